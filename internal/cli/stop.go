package cli

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultGrace is how long a container may take to end after its stop signal.
const defaultGrace = 10 * time.Second

// seconds is a duration on the command line: "10s", or "10" as crictl takes it.
// CRI counts in whole seconds.
type seconds time.Duration

func (s *seconds) String() string { return time.Duration(*s).String() }

// Type names it in the help.
func (s *seconds) Type() string { return "duration" }

// Set reads "10", "10s", "1m30s".
func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if n, numErr := strconv.ParseUint(text, 10, 31); numErr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err == nil && d < 0 {
		err = errors.New("must not be negative")
	}
	*s = seconds(d)
	return err
}

// count rounds up to whole seconds, so that a short time does not become none.
func (s seconds) count() int64 {
	return int64((time.Duration(s) + time.Second - 1) / time.Second)
}

func stopCommand() *cobra.Command {
	var o options
	grace := seconds(defaultGrace)
	cmd := &cobra.Command{
		Use:   "stop CONTAINER|POD...",
		Short: "Stop containers, or pods with all their containers",
		Long: `Stop containers, or pods with all their containers. A name is looked for among the
containers first. Containers of a pod that is stopped get the runtime's own time to end.`,
		Example: `  cri-engine stop web
  cri-engine stop -t 30 3f2a 77c1`,
		Args: cobra.MinimumNArgs(1),
		RunE: o.connected(func(ctx context.Context, c *call) error { return stop(ctx, c, grace) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	cmd.ValidArgsFunction = o.complete(0, completeContainersAndPods)
	cmd.Flags().VarP(&grace, "grace", "t", "time a container has to end by itself before it is killed: seconds or a duration")
	return cmd
}

func stop(ctx context.Context, c *call, grace seconds) error {
	containers, err := c.containers(ctx, nil)
	if err != nil {
		return err
	}
	pods, err := c.pods(ctx, nil)
	if err != nil {
		return err
	}
	return c.each(ctx, "stop", c.args, func(ctx context.Context, name string) (string, error) {
		container, err := containers.find(name)
		if errors.Is(err, errUnknown) {
			if pod, podErr := pods.find(name); podErr == nil {
				_, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.GetId()})
				return pod.GetId(), err
			} else if !errors.Is(podErr, errUnknown) {
				return "", podErr
			}
		}
		if err != nil {
			return "", err
		}
		return container.GetId(), c.stopContainer(ctx, container.GetId(), grace)
	})
}

// stopContainer stops a container; the call's own time limit comes on top of grace.
func (c *client) stopContainer(ctx context.Context, id string, grace seconds) error {
	if grace > 0 {
		ctx = unlimited(ctx)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(grace)+defaultTimeout)
		defer cancel()
	}
	_, err := c.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace.count()})
	return err
}
