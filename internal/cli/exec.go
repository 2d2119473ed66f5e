package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// execOptions are the flags of exec.
type execOptions struct {
	options
	limit            seconds
	interactive, tty bool
}

func execCommand() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Run a command in a running container and show what it writes. The exit code is the
command's own. It is ended when this program is.

With --timeout the runtime runs it by itself and ends it in time; what it wrote is then shown at its end.`,
		Example: `  cri-engine exec web cat /etc/hostname
  cri-engine exec -it web sh
  cri-engine exec --timeout 5 3f2a sh -c 'sleep 1; exit 7'; echo $?`,
		Args: cobra.MinimumNArgs(2),
		RunE: o.connected(func(ctx context.Context, c *call) error { return runExec(ctx, c, &o) }),
	}
	// Flags behind the container's name are the command's own.
	cmd.Flags().SetInterspersed(false)
	o.addEndpointOnly(cmd)
	o.timeout = defaultTimeout
	cmd.ValidArgsFunction = o.complete(1, completeContainers)
	cmd.Flags().Var(&o.limit, "timeout", "how long the command may run, in seconds or as a duration; 0: no limit")
	cmd.Flags().BoolVarP(&o.interactive, "stdin", "i", false, "send it our stdin")
	cmd.Flags().BoolVarP(&o.tty, "tty", "t", false, "give it a terminal")
	return cmd
}

func runExec(ctx context.Context, c *call, o *execOptions) error {
	name, command := c.args[0], c.args[1:]
	if o.limit > 0 && (o.interactive || o.tty) {
		return errors.New("exec: --timeout is for commands without -i and -t")
	}
	id, err := c.runningContainer(ctx, name)
	if err != nil {
		return about("exec", name, err)
	}
	if o.limit == 0 {
		return c.execStreams(ctx, name, id, command, o)
	}
	ctx = unlimited(ctx)
	// The runtime ends the command at its deadline and says so; this is for one that doesn't.
	ctx, cancel := context.WithTimeout(ctx, time.Duration(o.limit)+defaultTimeout)
	defer cancel()
	r, err := c.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
		ContainerId: id, Cmd: command, Timeout: o.limit.count(),
	})
	if err != nil {
		return about("exec", name, err)
	}
	_, outErr := c.out.Write(r.GetStdout())
	_, errErr := c.errOut.Write(r.GetStderr())
	if err := errors.Join(outErr, errErr); err != nil {
		return err
	}
	if code := int(r.GetExitCode()); code != 0 {
		return &ExitError{code}
	}
	return nil
}

// execStreams runs a command with our streams at its own.
func (c *call) execStreams(ctx context.Context, name, id string, command []string, o *execOptions) error {
	r, err := c.runtime.Exec(ctx, &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: command, Stdin: o.interactive, Stdout: true, Stderr: !o.tty, Tty: o.tty,
	})
	if err != nil {
		return about("exec", name, err)
	}
	local := c.local(ctx, o.interactive, o.tty)
	code, err := c.withTerminal(local, func() (int, error) { return stream(ctx, r.GetUrl(), local) })
	switch {
	case err != nil:
		return about("exec", name, err)
	case code != 0:
		return &ExitError{code}
	}
	return nil
}
