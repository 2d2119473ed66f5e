package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errRunning: what runs is removed only when told so.
var errRunning = errors.New("is running: stop it first, or give -f")

// rmOptions are the flags of rm and rmp.
type rmOptions struct {
	options
	all, force bool
}

func (o *rmOptions) addFlags(cmd *cobra.Command, kind string) {
	o.addEndpoint(cmd, defaultTimeout)
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "remove all "+kind+"s")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "stop them first; one that does not exist is no error")
	cmd.Args = func(_ *cobra.Command, args []string) error { return objectsOr(args, o.all, kind, "--all") }
}

func rmCommand() *cobra.Command {
	var o rmOptions
	cmd := &cobra.Command{
		Use:   "rm CONTAINER...",
		Short: "Remove containers",
		Example: `  cri-engine rm web
  cri-engine rm -f 3f2a 77c1
  cri-engine rm -a`,
		RunE: o.connected(func(ctx context.Context, c *call) error { return rm(ctx, c, &o) }),
	}
	o.addFlags(cmd, "container")
	cmd.ValidArgsFunction = o.complete(0, completeContainers)
	return cmd
}

func rm(ctx context.Context, c *call, o *rmOptions) error {
	list, err := c.containers(ctx, nil)
	if err != nil {
		return err
	}
	names := c.args
	if o.all {
		for _, container := range list {
			names = append(names, container.GetId())
		}
	}
	return c.each(ctx, "rm", names, func(ctx context.Context, name string) (string, error) {
		container, err := list.find(name)
		if errors.Is(err, errUnknown) && o.force {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if container.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			if !o.force {
				return "", errRunning
			}
			if err := c.stopContainer(ctx, container.GetId(), 0); err != nil {
				return "", err
			}
		}
		_, err = c.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: container.GetId()})
		return container.GetId(), err
	})
}

func rmpCommand() *cobra.Command {
	var o rmOptions
	cmd := &cobra.Command{
		Use:   "rmp POD...",
		Short: "Remove pods with all their containers",
		Long: `Remove pods with all their containers.

The logs of a pod that "run" made are removed with it; those of other pods belong to
whoever made them (a kubelet, for example) and stay.`,
		Example: `  cri-engine rmp -f web
  cri-engine rmp -a`,
		RunE: o.connected(func(ctx context.Context, c *call) error { return rmp(ctx, c, &o) }),
	}
	o.addFlags(cmd, "pod")
	cmd.ValidArgsFunction = o.complete(0, completePods)
	return cmd
}

func rmp(ctx context.Context, c *call, o *rmOptions) error {
	list, err := c.pods(ctx, nil)
	if err != nil {
		return err
	}
	names := c.args
	if o.all {
		for _, pod := range list {
			names = append(names, pod.GetId())
		}
	}
	return c.each(ctx, "rmp", names, func(ctx context.Context, name string) (string, error) {
		pod, err := list.find(name)
		if errors.Is(err, errUnknown) && o.force {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if pod.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY && !o.force {
			return "", errRunning
		}
		if err := c.removePod(ctx, pod.GetId()); err != nil {
			return "", err
		}
		return pod.GetId(), removeLogs(pod)
	})
}

// removePod stops and removes a pod with all that is in it.
func (c *client) removePod(ctx context.Context, id string) error {
	if _, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}
