package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/steps"
)

var _ = steps.Register("Exec", names((*containerExec)(nil).streamSteps())...)

func (x *containerExec) streamSteps() []steps.Step {
	return []steps.Step{
		{Name: "spec", Do: x.spec},
		{Name: "start", Do: x.startSession, Undo: x.kill},
		{Name: "stream", Do: x.stream},
	}
}

// Exec runs a command in a running container with a client at its streams, and
// returns its exit code. When ctx ends or the client's end fails, the command is killed.
func (e *Engine) Exec(ctx context.Context, id string, command []string, s Streams) (int32, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return 0, err
	}
	x := &containerExec{e: e, c: c, command: command, client: s, rec: c.read(), execID: "exec-" + newID()[:16]}
	if x.rec.Phase != phaseRunning {
		return 0, fmt.Errorf("exec in container %s: it does not run: %w", c.id, ErrPrecondition)
	}
	if err := steps.Run(ctx, "Exec", x.streamSteps()); err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return x.result.ExitCode, nil
}

func (x *containerExec) startSession(ctx context.Context) error {
	_, err := x.open(ctx, monitor.ExecRequest{Terminal: x.client.TTY, Stdin: x.client.Stdin != nil})
	return err
}

// stream moves what there is to move until the command ends.
func (x *containerExec) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := newCopies(cancel)
	out.start(x.client.Stdout, x.session.Stdout)
	if !x.client.TTY {
		out.start(x.client.Stderr, x.session.Stderr)
	}
	if x.client.Stdin != nil {
		go x.feed() // ends with the client's connection, or the session
	}
	resized := make(chan struct{})
	go func() {
		defer close(resized)
		x.client.resize(ctx, x.session.Resize)
	}()
	exit, err := x.session.Wait(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("client: %w", cause)
		}
		return err
	}
	x.result.ExitCode = exit.Code
	out.end(ctx)
	err = x.session.Close()
	out.wg.Wait() // Close ended their reads
	cancel(nil)
	<-resized
	return err
}

// feed gives the command what the client sends, and its end.
func (x *containerExec) feed() {
	// The command need not read it all: how it ends is what counts.
	_, _ = io.Copy(x.session.Stdin, x.client.Stdin)
	_ = x.session.Stdin.Close()
}

// errDetached ends an attached client's call without an error: it left.
var errDetached = errors.New("the client left")
