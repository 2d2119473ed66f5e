package cli

import (
	"context"
	"errors"
	"fmt"
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
		Long: `Run a command in a running container and show what it wrote once it has ended. The exit
code is the command's own.`,
		Example: `  cri-engine exec web cat /etc/hostname
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
	cmd.Flags().BoolVarP(&o.interactive, "stdin", "i", false, "not supported yet: keep stdin open")
	cmd.Flags().BoolVarP(&o.tty, "tty", "t", false, "not supported yet: give the command a terminal")
	return cmd
}

func runExec(ctx context.Context, c *call, o *execOptions) error {
	if o.interactive || o.tty {
		return errors.New("exec: -i and -t are not supported yet: the command runs without input or a terminal " +
			"(crictl exec -it works with runtimes that stream)")
	}
	name, command := c.args[0], c.args[1:]
	list, err := c.containers(ctx, &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	})
	if err != nil {
		return err
	}
	container, err := list.find(name)
	if errors.Is(err, errUnknown) {
		err = fmt.Errorf("no such running container")
	}
	if err != nil {
		return about("exec", name, err)
	}
	ctx = unlimited(ctx)
	if o.limit > 0 {
		// The runtime ends the command at its deadline and says so; this is for one that doesn't.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(o.limit)+defaultTimeout)
		defer cancel()
	}
	r, err := c.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
		ContainerId: container.GetId(), Cmd: command, Timeout: o.limit.count(),
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
