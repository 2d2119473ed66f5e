package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// completionTimeout bounds how long a press of the Tab key may take.
const completionTimeout = 2 * time.Second

// completer offers arguments of a command.
type completer func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective)

// complete offers what list returns, less what the command line has already; at
// most n arguments, or any number when n is 0.
func (o *options) complete(n int, list func(ctx context.Context, c *client) []cobra.Completion) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n > 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completionTimeout)
		defer cancel()
		c, err := dial(ctx, o.endpoint, completionTimeout)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.close()
		offers := slices.DeleteFunc(list(ctx, c), func(o cobra.Completion) bool { return o == "" })
		return offers, cobra.ShellCompDirectiveNoFileComp
	}
}

// The lists are best effort: a runtime that does not answer completes nothing.

func completeContainers(ctx context.Context, c *client) (offers []cobra.Completion) {
	list, _ := c.containers(ctx, nil)
	for _, container := range list {
		name := clean(container.GetMetadata().GetName())
		state := containerState(container.GetState())
		offers = append(offers,
			cobra.CompletionWithDesc(shortID(container.GetId()), name+", "+state),
			cobra.CompletionWithDesc(name, state))
	}
	return offers
}

func completePods(ctx context.Context, c *client) (offers []cobra.Completion) {
	list, _ := c.pods(ctx, nil)
	for _, pod := range list {
		name := clean(pod.GetMetadata().GetName())
		state := podState(pod.GetState())
		offers = append(offers,
			cobra.CompletionWithDesc(shortID(pod.GetId()), name+", "+state),
			cobra.CompletionWithDesc(name, state))
	}
	return offers
}

func completeImages(ctx context.Context, c *client) (offers []cobra.Completion) {
	list, _ := c.images(ctx, nil)
	for _, image := range list {
		for _, tag := range image.GetRepoTags() {
			offers = append(offers, cobra.CompletionWithDesc(clean(tag), shortID(image.GetId())))
		}
		offers = append(offers, cobra.CompletionWithDesc(shortID(image.GetId()), size(image.GetSize())))
	}
	return offers
}

func completeAll(ctx context.Context, c *client) []cobra.Completion {
	return slices.Concat(completeContainers(ctx, c), completePods(ctx, c), completeImages(ctx, c))
}

func completeContainersAndPods(ctx context.Context, c *client) []cobra.Completion {
	return slices.Concat(completeContainers(ctx, c), completePods(ctx, c))
}

// mustComplete offers fixed values of a flag.
func mustComplete(cmd *cobra.Command, flag string, values ...cobra.Completion) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag does not exist: a mistake in this package
	}
}

// mustCompleteFunc offers values of a flag that the runtime knows.
func mustCompleteFunc(cmd *cobra.Command, flag string, f completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the flag does not exist: a mistake in this package
	}
}
