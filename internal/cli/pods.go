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

// podsOptions are the flags of pods.
type podsOptions struct {
	options
	listOptions
	namespace string
}

// podStates by the names that --state takes.
var podStates = map[string]runtimeapi.PodSandboxState{
	"ready":    runtimeapi.PodSandboxState_SANDBOX_READY,
	"notready": runtimeapi.PodSandboxState_SANDBOX_NOTREADY,
}

// podState is a state as people read it.
func podState(s runtimeapi.PodSandboxState) string {
	return title(strings.TrimPrefix(s.String(), "SANDBOX_"))
}

func podsCommand() *cobra.Command {
	var o podsOptions
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "List pods",
		Example: `  cri-engine pods
  cri-engine pods --namespace kube-system --state ready`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              o.connected(func(ctx context.Context, c *call) error { return listPods(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	o.addOutput(cmd, "only ids")
	o.listOptions.addFlags(cmd, []string{"ready", "notready"})
	cmd.Flags().StringVar(&o.namespace, "namespace", "", "only those of this `NAMESPACE`")
	return cmd
}

func listPods(ctx context.Context, c *call, o *podsOptions) error {
	filter := &runtimeapi.PodSandboxFilter{LabelSelector: o.labels}
	if o.state != "" {
		state, ok := podStates[strings.ToLower(o.state)]
		if !ok {
			return fmt.Errorf("--state %s: want ready or notready", o.state)
		}
		filter.State = &runtimeapi.PodSandboxStateValue{State: state}
	}
	list, err := c.pods(ctx, filter)
	if err != nil {
		return err
	}
	if o.namespace != "" {
		list = slices.DeleteFunc(list, func(p *runtimeapi.PodSandbox) bool { return p.GetMetadata().GetNamespace() != o.namespace })
	}
	list = cut(list, &o.listOptions, func(p *runtimeapi.PodSandbox) string { return p.GetMetadata().GetName() })
	switch {
	case o.quiet:
		for _, pod := range list {
			fmt.Fprintln(c.out, clean(pod.GetId()))
		}
		return nil
	case o.structured():
		return c.print(&runtimeapi.ListPodSandboxResponse{Items: list})
	}
	t := newTable(c.out, "POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME")
	for _, pod := range list {
		t.row(
			idCell(pod.GetId(), o.noTrunc), ago(pod.GetCreatedAt()), podState(pod.GetState()),
			pod.GetMetadata().GetName(), pod.GetMetadata().GetNamespace(),
			strconv.FormatUint(uint64(pod.GetMetadata().GetAttempt()), 10), handlerCell(pod.GetRuntimeHandler()),
		)
	}
	return t.flush()
}

func handlerCell(handler string) string {
	if handler == "" {
		return "(default)"
	}
	return handler
}
