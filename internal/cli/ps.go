package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// psOptions are the flags of ps.
type psOptions struct {
	options
	listOptions
	all bool
	pod string
}

// listOptions choose what ps and pods show.
type listOptions struct {
	name, state string
	labels      map[string]string
	last        int
	latest      bool
	noTrunc     bool
}

func (o *listOptions) addFlags(cmd *cobra.Command, states []string) {
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "only those whose name contains this `TEXT`")
	f.StringVar(&o.state, "state", "", "only those in this `STATE`: "+strings.Join(states, ", "))
	f.StringToStringVar(&o.labels, "label", nil, "only those with this label: `KEY=VALUE`")
	f.IntVarP(&o.last, "last", "n", 0, "the newest `N`, in any state")
	f.BoolVarP(&o.latest, "latest", "l", false, "the newest one, in any state")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "show whole ids")
	mustComplete(cmd, "state", states...)
}

// newest is how many of the newest are wanted in any state, 0 for no such limit.
func (o *listOptions) newest() int {
	if o.latest {
		return 1
	}
	return max(o.last, 0)
}

// cut applies what the runtime does not filter to a list with the newest first.
func cut[T any](list []T, o *listOptions, name func(T) string) []T {
	if o.name != "" {
		list = slices.DeleteFunc(list, func(t T) bool { return !strings.Contains(name(t), o.name) })
	}
	if n := o.newest(); n > 0 {
		list = list[:min(n, len(list))]
	}
	return list
}

// containerStates by the names that --state takes.
var containerStates = map[string]runtimeapi.ContainerState{
	"created": runtimeapi.ContainerState_CONTAINER_CREATED,
	"running": runtimeapi.ContainerState_CONTAINER_RUNNING,
	"exited":  runtimeapi.ContainerState_CONTAINER_EXITED,
	"unknown": runtimeapi.ContainerState_CONTAINER_UNKNOWN,
}

// containerState is a state as people read it.
func containerState(s runtimeapi.ContainerState) string {
	return title(strings.TrimPrefix(s.String(), "CONTAINER_"))
}

// title makes "Running" of "RUNNING".
func title(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + strings.ToLower(s[1:])
}

func psCommand() *cobra.Command {
	var o psOptions
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Example: `  cri-engine ps
  cri-engine ps -a --label app=web
  cri-engine ps -q --pod web`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              o.connected(func(ctx context.Context, c *call) error { return ps(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	o.addOutput(cmd, "only ids")
	o.listOptions.addFlags(cmd, []string{"created", "running", "exited", "unknown"})
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "those that do not run too")
	cmd.Flags().StringVarP(&o.pod, "pod", "p", "", "only those of this `POD`")
	mustCompleteFunc(cmd, "pod", o.complete(0, completePods))
	return cmd
}

func ps(ctx context.Context, c *call, o *psOptions) error {
	filter, err := o.filter(ctx, c)
	if err != nil {
		return err
	}
	list, err := c.containers(ctx, filter)
	if err != nil {
		return err
	}
	list = cut(list, &o.listOptions, func(c *runtimeapi.Container) string { return c.GetMetadata().GetName() })
	switch {
	case o.quiet:
		for _, container := range list {
			fmt.Fprintln(c.out, clean(container.GetId()))
		}
		return nil
	case o.structured():
		return c.print(&runtimeapi.ListContainersResponse{Containers: list})
	}
	t := newTable(c.out, "CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD", "NAMESPACE")
	for _, container := range list {
		t.row(
			idCell(container.GetId(), o.noTrunc), imageCell(container, o.noTrunc), ago(container.GetCreatedAt()),
			containerState(container.GetState()), container.GetMetadata().GetName(),
			strconv.FormatUint(uint64(container.GetMetadata().GetAttempt()), 10),
			idCell(container.GetPodSandboxId(), o.noTrunc),
			container.GetLabels()[labelPodName], container.GetLabels()[labelPodNamespace],
		)
	}
	return t.flush()
}

// filter is what the runtime is asked for: running containers unless told otherwise.
func (o *psOptions) filter(ctx context.Context, c *call) (*runtimeapi.ContainerFilter, error) {
	filter := &runtimeapi.ContainerFilter{LabelSelector: o.labels}
	switch {
	case o.state != "":
		state, ok := containerStates[strings.ToLower(o.state)]
		if !ok {
			return nil, fmt.Errorf("--state %s: want created, running, exited or unknown", o.state)
		}
		filter.State = &runtimeapi.ContainerStateValue{State: state}
	case !o.all && o.newest() == 0:
		filter.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	}
	if o.pod != "" {
		list, err := c.pods(ctx, nil)
		if err != nil {
			return nil, err
		}
		pod, err := list.find(o.pod)
		if err != nil {
			return nil, fmt.Errorf("--pod %s: %w", o.pod, err)
		}
		filter.PodSandboxId = pod.GetId()
	}
	return filter, nil
}

// imageCell is a container's image as its creator named it.
func imageCell(container *runtimeapi.Container, whole bool) string {
	if name := container.GetImage().GetUserSpecifiedImage(); name != "" {
		return name
	}
	image := container.GetImage().GetImage()
	if bare, ok := strings.CutPrefix(image, "sha256:"); ok && !whole {
		return shortID(bare)
	}
	return image
}
