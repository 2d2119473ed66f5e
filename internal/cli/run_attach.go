package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// session is our streams at a container's, for run -i.
type session struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it has ended and the terminal is as it was
	err    error         // why; read after done
}

// interactive tells whether our stdin is the container's.
func (r *runner) interactive() bool { return r.o.interactive && !r.o.detach }

// outputAttached tells whether its output comes over the session, too: a terminal's
// does, to be seen at once. Else its log has all of it, and a session only what a slow reader is in time for.
func (r *runner) outputAttached() bool { return r.o.tty || r.pod.GetLogDirectory() == "" }

// attachEarly opens the session before the start, so that nothing a terminal shows
// is missed, and a program that ends at once is not missed either. A runtime that attaches to
// what runs only says so: then it is opened after the start.
func (r *runner) attachEarly(ctx context.Context) error {
	url, err := r.attachURL(ctx)
	if err != nil {
		return ctx.Err()
	}
	return r.openSession(ctx, url)
}

func (r *runner) attachLate(ctx context.Context) error {
	if r.session != nil {
		return nil
	}
	url, err := r.attachURL(ctx)
	if err == nil {
		err = r.openSession(ctx, url)
	}
	if err != nil {
		if over, _ := r.ended(r.containerID)(ctx); over {
			return nil // it was not there for long enough, and what it wrote is in its log
		}
	}
	return err
}

func (r *runner) attachURL(ctx context.Context) (string, error) {
	resp, err := r.runtime.Attach(ctx, &runtimeapi.AttachRequest{
		ContainerId: r.containerID, Stdin: true, Tty: r.o.tty,
		Stdout: r.outputAttached(), Stderr: r.outputAttached() && !r.o.tty,
	})
	return resp.GetUrl(), err
}

// openSession returns when the streams are open.
func (r *runner) openSession(ctx context.Context, url string) error {
	keys, err := r.detachKeys()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := &session{cancel: cancel, done: make(chan struct{})}
	opened := make(chan struct{})
	local := r.local(ctx, true, r.o.tty)
	local.opened = sync.OnceFunc(func() { close(opened) })
	if !r.outputAttached() {
		local.out, local.err = nil, nil
	}
	if len(keys) > 0 {
		local.in = &detacher{in: local.in, keys: keys, done: func() { cancel(errDetached) }}
	}
	go func() { // ends with the container, or with ctx
		defer close(s.done)
		_, s.err = r.withTerminal(local, func() (int, error) { return stream(ctx, url, local) })
		if errors.Is(context.Cause(ctx), errDetached) {
			s.err = errDetached
		}
	}()
	select {
	case <-opened:
		r.session = s
		return nil
	case <-s.done:
	}
	// What was typed early may have been the detach keys.
	if cancel(nil); s.err != nil && !errors.Is(s.err, errDetached) {
		return s.err
	}
	r.session = s
	return nil
}

// detachKeys are of a terminal that one can come back to: with --rm nobody would be left to remove it.
func (r *runner) detachKeys() ([]byte, error) {
	if !r.o.tty || r.o.remove {
		return nil, nil
	}
	return parseKeys(r.o.detachKeys)
}

// endSession ends it, and returns when the terminal is as it was.
func (r *runner) endSession(context.Context) error {
	if r.session != nil {
		r.session.cancel(nil)
		<-r.session.done
	}
	return nil
}

// watchSession returns when the container's terminal has ended; errDetached when the user left.
func (r *runner) watchSession(ctx context.Context) error {
	select {
	case <-r.session.done:
		return r.session.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tellStdin says that the container may not have got all of our stdin.
func (r *runner) tellStdin() {
	select {
	case <-r.session.done:
		if !r.outputAttached() && r.session.err != nil {
			fmt.Fprintf(r.errOut, "%s: stdin of container %s: %s\n", program, shortID(r.containerID), clean(r.session.err.Error()))
		}
	default:
	}
}
