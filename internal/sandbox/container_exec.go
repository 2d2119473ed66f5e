package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/steps"
)

// MaxExecOutput bounds stdout and stderr of ExecSync together: the kubelet's
// client takes messages of at most 16 MiB.
const MaxExecOutput = 15 << 20

// execDrain is how long the output of an ended command is waited for when
// something it left behind still holds its streams open.
const execDrain = time.Second

// containerExec runs one command in a running container, to its end: with its
// output kept (ExecSync), or with a client at its streams (Exec).
type containerExec struct {
	e       *Engine
	c       *container
	command []string
	timeout time.Duration
	client  Streams

	rec     containerRecord
	execID  string
	process []byte
	session *monitor.ExecSession
	out     execOutput
	result  ExecResult
}

var _ = steps.Register("ExecSync", names((*containerExec)(nil).steps())...)

func (x *containerExec) steps() []steps.Step {
	return []steps.Step{
		{Name: "spec", Do: x.spec},
		{Name: "start", Do: x.start, Undo: x.kill},
		{Name: "wait", Do: x.wait},
		{Name: "output", Do: x.output},
	}
}

// ExecSync runs a command in a running container and returns its output and
// exit code. After timeout (0 for none), and when the caller gives up, the
// command is killed; the error then is context.DeadlineExceeded or Canceled.
func (e *Engine) ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (ExecResult, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return ExecResult{}, err
	}
	x := &containerExec{e: e, c: c, command: command, timeout: timeout, rec: c.read(), execID: "sync-" + newID()[:16]}
	if x.rec.Phase != phaseRunning {
		return ExecResult{}, fmt.Errorf("exec in container %s: it does not run: %w", c.id, ErrPrecondition)
	}
	if err := steps.Run(ctx, "ExecSync", x.steps()); err != nil {
		return ExecResult{}, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return x.result, nil
}

func (x *containerExec) spec(context.Context) error {
	data, err := os.ReadFile(filepath.Join(x.e.bundleDir(x.c.id), "config.json"))
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	p, err := oci.ExecProcess(&spec, x.command, x.client.TTY)
	if err != nil {
		return err
	}
	x.process, err = json.Marshal(p)
	return err
}

func (x *containerExec) start(ctx context.Context) error {
	s, err := x.open(ctx, monitor.ExecRequest{})
	if err != nil {
		return err
	}
	x.out.read(s.Stdout, &x.result.Stdout)
	x.out.read(s.Stderr, &x.result.Stderr)
	return nil
}

// open has the process made. That is waited for even when the caller gives up: what
// is made then has a step of its own to be undone.
func (x *containerExec) open(ctx context.Context, r monitor.ExecRequest) (*monitor.ExecSession, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.e.runtimeTimeout())
	defer cancel()
	r.ID, r.ExecID, r.Runtime, r.Process = x.c.id, x.execID, x.rec.Process.Runtime, x.process
	r.Owner = x.c.streamsOwner()
	var err error
	x.session, err = x.e.o.Monitor.Exec(ctx, r)
	return x.session, err
}

func (x *containerExec) kill(ctx context.Context) error {
	err := x.e.o.Monitor.Kill(ctx, x.c.id, x.execID)
	if isGone(err) {
		err = nil
	}
	return errors.Join(err, x.session.Close())
}

func (x *containerExec) wait(ctx context.Context) error {
	if x.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, x.timeout)
		defer cancel()
	}
	exit, err := x.session.Wait(ctx)
	if err != nil {
		if x.timeout > 0 && errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("command %q timed out after %s: %w", x.command[0], x.timeout, context.DeadlineExceeded)
		}
		return err
	}
	x.result.ExitCode = exit.Code
	return nil
}

func (x *containerExec) output(context.Context) error {
	x.out.wait(execDrain)
	err := x.session.Close()
	x.out.wg.Wait() // Close ended the streams
	x.result.Truncated = x.out.truncated
	return err
}

// execOutput reads streams into buffers that share one bound.
type execOutput struct {
	wg sync.WaitGroup

	mu        sync.Mutex // Protects what is below and the buffers.
	size      int
	truncated bool
}

// read copies r until its end; what is over the bound is read and dropped, so
// that the command is not stopped by it.
func (o *execOutput) read(r io.Reader, to *[]byte) {
	if r == nil {
		return
	}
	o.wg.Go(func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Read(buf)
			o.mu.Lock()
			keep := min(n, MaxExecOutput-o.size)
			*to = append(*to, buf[:keep]...)
			o.size += keep
			o.truncated = o.truncated || keep < n
			o.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
}

func (o *execOutput) wait(limit time.Duration) {
	done := make(chan struct{})
	go func() { // ends with the readers, which Close ends
		o.wg.Wait()
		close(done)
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}
