package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/monitor"
)

// Attach shows a client a container's output from now on, and lets it write to its
// stdin, until the container ends or the client leaves (ctx). Neither the container
// nor other clients are held back by it. Of one that was not started yet the client
// sees all from its first byte on; it waits for the start.
func (e *Engine) Attach(ctx context.Context, id string, s Streams) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	gate := c.enterGate()
	defer gate.leave()
	if phase := c.read().Phase; phase != phaseRunning && gate == nil && phase != phaseStarting {
		return fmt.Errorf("attach to container %s: it does not run: %w", c.id, ErrPrecondition)
	}
	if s.Stdin != nil && !c.cfg.GetStdin() {
		return fmt.Errorf("attach to container %s: it was created without stdin: %w", c.id, ErrPrecondition)
	}
	s.TTY = c.cfg.GetTty()
	if err := gate.wait(ctx); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	if err := e.attach(ctx, c, s, gate); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return nil
}

func (e *Engine) attach(ctx context.Context, c *container, s Streams, gate *gateClient) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	view := e.o.Monitor.Attach(c.id)
	out := newCopies(cancel)
	defer out.wg.Wait() // ends after view.Close
	defer view.Close()
	// What the container answers to the first word of stdin must not be missed.
	stop := context.AfterFunc(ctx, view.Close)
	view.Connect(s.Stdout != nil, s.Stderr != nil && !s.TTY)
	stop()
	gate.leave() // the client misses nothing any more
	if s.Stdout != nil {
		out.start(s.Stdout, view.Stdout)
	}
	if s.Stderr != nil && !s.TTY {
		out.start(s.Stderr, view.Stderr)
	}
	if s.Stdin != nil {
		in := c.openStdin(e.o.Monitor)
		defer e.leaveStdin(c, in)
		go func() { // ends with the client's connection, or with ctx
			if e.feedStdin(ctx, c, in, s.Stdin); s.Stdout == nil && s.Stderr == nil {
				cancel(errDetached)
			}
		}()
	}
	go s.resize(ctx, func(ctx context.Context, columns, rows uint16) error {
		return e.o.Monitor.Resize(ctx, c.id, "", columns, rows)
	})
	c.mu.Lock()
	exited := c.exited
	c.mu.Unlock()
	var ended chan struct{} // never, for a client that wants no output
	if s.Stdout != nil || s.Stderr != nil {
		ended = make(chan struct{})
		go func() { // ends with the copies
			out.wg.Wait()
			close(ended)
		}()
	}
	select {
	case <-ended:
	case <-exited:
		out.end(ctx)
	case <-ctx.Done():
		if cause := context.Cause(ctx); !errors.Is(cause, errDetached) {
			return cause
		}
	}
	return nil
}

// sharedStdin is a container's stdin and how many attached clients have it.
type sharedStdin struct {
	*monitor.Stdin
	users int       // guarded by the container's mu
	ended sync.Once // of one that is given once
}

func (c *container) openStdin(m Monitor) *sharedStdin {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stdin == nil {
		c.stdin = &sharedStdin{Stdin: m.Stdin(c.id)}
	}
	c.stdin.users++
	return c.stdin
}

// leaveStdin is called when a client that had stdin leaves. Stdin that is given
// once ends with the first of them.
func (e *Engine) leaveStdin(c *container, in *sharedStdin) {
	e.endOnce(c, in)
	c.mu.Lock()
	defer c.mu.Unlock()
	if in.users--; in.users == 0 {
		in.Close()
		c.stdin = nil
	}
}

func (e *Engine) endOnce(c *container, in *sharedStdin) {
	if !c.cfg.GetStdinOnce() {
		return
	}
	in.ended.Do(func() {
		ctx, cancel := context.WithTimeout(e.ctx, e.runtimeTimeout())
		defer cancel()
		if err := e.o.Monitor.CloseStdin(ctx, c.id, ""); err != nil && !isGone(err) {
			klog.ErrorS(err, "Container's stdin can't be ended", "container", c.id)
		}
	})
}

// feedStdin gives the container what a client sends. The client's end is the end of
// stdin only if that is given once.
func (e *Engine) feedStdin(ctx context.Context, c *container, in *sharedStdin, from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := in.Write(ctx, buf[:n]); werr != nil {
				return // the container has closed it, or the client left
			}
		}
		if err != nil {
			e.endOnce(c, in)
			return
		}
	}
}
