package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/cli/crilog"
)

// logsOptions are the flags of logs.
type logsOptions struct {
	options
	follow, timestamps bool
	tail               int
	since              string
}

func logsCommand() *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs CONTAINER",
		Short: "Show what a container wrote",
		Long: `Show what a container wrote: its stdout on stdout, its stderr on stderr.

The log file is read on this machine. With --follow, new lines are shown as they come,
over rotations of the file, until the container has ended.`,
		Example: `  cri-engine logs web
  cri-engine logs -f --tail 20 web
  cri-engine logs --since 10m --timestamps 3f2a`,
		Args: cobra.ExactArgs(1),
		RunE: o.connected(func(ctx context.Context, c *call) error { return logs(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	cmd.ValidArgsFunction = o.complete(1, completeContainers)
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on until the container has ended")
	f.BoolVar(&o.timestamps, "timestamps", false, "show each line's time")
	f.IntVar(&o.tail, "tail", -1, "only the last `N` lines; -1: all")
	f.StringVar(&o.since, "since", "", "only lines since this `TIME`: a duration such as 10m, or one in RFC 3339")
	return cmd
}

func logs(ctx context.Context, c *call, o *logsOptions) error {
	name := c.args[0]
	since, err := parseSince(o.since, time.Now())
	if err != nil {
		return err
	}
	list, err := c.containers(ctx, nil)
	if err != nil {
		return err
	}
	container, err := list.find(name)
	if err != nil {
		return about("logs", name, err)
	}
	status, err := c.containerStatus(ctx, container.GetId())
	if err != nil {
		return about("logs", name, err)
	}
	copyOptions := crilog.Options{Tail: o.tail, Since: since, Timestamps: o.timestamps}
	if o.follow {
		copyOptions.Ended = c.ended(container.GetId())
	}
	if err := c.showLog(ctx, status.GetLogPath(), copyOptions); err != nil {
		return about("logs", name, err)
	}
	return nil
}

// showLog writes a log file to the call's output.
func (c *call) showLog(ctx context.Context, path string, o crilog.Options) error {
	if path == "" {
		return errors.New("the container has no log file: its pod was made without a log directory")
	}
	malformed, err := crilog.Copy(ctx, path, o, c.out, c.errOut)
	if malformed > 0 {
		fmt.Fprintf(c.errOut, "%s: lines of %s that are not in the CRI log format were left out: %d\n", program, clean(path), malformed)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no log file at %s", path)
	}
	return err
}

// ended returns a function that tells whether a container writes no more.
func (c *client) ended(id string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		status, err := c.containerStatus(ctx, id)
		if hasCode(err, codes.NotFound) {
			return true, nil
		}
		state := status.GetState()
		return state == runtimeapi.ContainerState_CONTAINER_EXITED || state == runtimeapi.ContainerState_CONTAINER_UNKNOWN, err
	}
}

func (c *client) containerStatus(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	r, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	return r.GetStatus(), err
}

// parseSince reads --since: how long before now, or a time.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since %s: want a duration such as 10m, or a time such as 2026-01-02T15:04:05Z", text)
	}
	return t, nil
}
