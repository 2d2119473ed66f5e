package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// attachOptions are the flags of attach.
type attachOptions struct {
	options
	interactive, tty bool
	detachKeys       string
}

func attachCommand() *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:   "attach CONTAINER",
		Short: "See and feed a running container's streams",
		Long: `Show what a running container writes from now on, and with -i send it what you type. It
goes on when you leave: with the detach keys, with Ctrl-C where it has no terminal, or in any other way.`,
		Example: `  cri-engine attach web
  cri-engine attach -it shell`,
		Args: cobra.ExactArgs(1),
		RunE: o.connected(func(ctx context.Context, c *call) error { return runAttach(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	cmd.ValidArgsFunction = o.complete(1, completeContainers)
	f := cmd.Flags()
	f.BoolVarP(&o.interactive, "stdin", "i", false, "send it our stdin; it must have been created with one")
	f.BoolVarP(&o.tty, "tty", "t", false, "it has a terminal (found out by itself where the runtime tells)")
	f.StringVar(&o.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "`KEYS` to leave a terminal with; empty: none")
	return cmd
}

func runAttach(ctx context.Context, c *call, o *attachOptions) error {
	keys, err := parseKeys(o.detachKeys)
	if err != nil {
		return err
	}
	id, err := c.runningContainer(ctx, c.args[0])
	if err != nil {
		return about("attach", c.args[0], err)
	}
	tty := o.tty || c.hasTerminal(ctx, id)
	r, err := c.runtime.Attach(ctx, &runtimeapi.AttachRequest{
		ContainerId: id, Stdin: o.interactive, Stdout: true, Stderr: !tty, Tty: tty,
	})
	if err != nil {
		return about("attach", c.args[0], err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	local := c.local(ctx, o.interactive, tty)
	if tty && local.in != nil && len(keys) > 0 {
		local.in = &detacher{in: local.in, keys: keys, done: func() { cancel(errDetached) }}
	}
	_, err = c.withTerminal(local, func() (int, error) { return stream(ctx, r.GetUrl(), local) })
	if errors.Is(context.Cause(ctx), errDetached) {
		fmt.Fprintln(c.errOut, "\ndetached; the container runs on")
		return nil
	}
	if err != nil {
		return about("attach", c.args[0], err)
	}
	return nil
}

// runningContainer returns the id of the running container that name stands for.
func (c *call) runningContainer(ctx context.Context, name string) (string, error) {
	list, err := c.containers(ctx, &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	})
	if err != nil {
		return "", err
	}
	container, err := list.find(name)
	if errors.Is(err, errUnknown) {
		err = errors.New("no such running container")
	}
	return container.GetId(), err
}

// hasTerminal looks for the container's own configuration in what the runtime says for people.
func (c *call) hasTerminal(ctx context.Context, id string) bool {
	r, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return false
	}
	var config struct {
		TTY    bool
		Config struct{ TTY bool } // where all is in one entry
	}
	for _, key := range []string{"config", "info"} {
		if json.Unmarshal([]byte(r.GetInfo()[key]), &config) == nil && (config.TTY || config.Config.TTY) {
			return true
		}
	}
	return false
}

// local are the program's own streams, for a command with or without a terminal.
func (c *call) local(ctx context.Context, interactive, tty bool) stdio {
	s := stdio{out: c.out, tty: tty}
	if interactive {
		s.in = c.in
	}
	if tty {
		s.sizes = windowSizes(ctx, c.out)
	} else {
		s.err = c.errOut
	}
	return s
}

// withTerminal runs f while every key goes to the command, where it has a terminal.
func (c *call) withTerminal(local stdio, f func() (int, error)) (int, error) {
	if local.tty && local.in != nil {
		restore, err := rawTerminal(c.in)
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	return f()
}
