package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"sync"
)

// flights joins calls that ask for the same object: a client that timed out and
// asks again gets the outcome of its first try, or finds it rolled back and
// starts anew, but is never told that its own name is taken.
type flights struct {
	mu sync.Mutex // Protects m and the fields of each flight.
	m  map[string]*flight
}

type flight struct {
	request []byte // what was asked, to tell a retry from a clash
	waiters int
	cancel  context.CancelFunc
	done    chan struct{} // closed after id and err are set
	id      string
	err     error
}

// do runs make for the name, or joins the run that is under way. The run's
// context ends when every caller has given up: then make undoes what it did.
// A call that comes while that happens waits for it, and runs anew.
func (f *flights) do(ctx context.Context, name string, request []byte, makeIt func(context.Context) (string, error)) (string, error) {
	for {
		fl, err := f.join(ctx, name, request, makeIt)
		if err != nil {
			return "", err
		}
		if fl == nil {
			continue
		}
		select {
		case <-fl.done:
			return fl.id, fl.err
		case <-ctx.Done():
			f.leave(fl)
			return "", ctx.Err()
		}
	}
}

// join returns the flight to wait for, or nil when one that was given up has
// now ended and the caller should look again.
func (f *flights) join(ctx context.Context, name string, request []byte, makeIt func(context.Context) (string, error)) (*flight, error) {
	f.mu.Lock()
	fl := f.m[name]
	switch {
	case fl == nil:
		defer f.mu.Unlock()
		return f.start(ctx, name, request, makeIt), nil
	case fl.waiters > 0:
		defer f.mu.Unlock()
		if !bytes.Equal(fl.request, request) {
			return nil, fmt.Errorf("%q is being made from another configuration: %w", name, ErrExists)
		}
		fl.waiters++
		return fl, nil
	}
	f.mu.Unlock()
	select {
	case <-fl.done:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// start begins a flight whose first waiter is the caller, who holds f.mu. The
// goroutine it starts ends with makeIt, which bounds itself.
func (f *flights) start(ctx context.Context, name string, request []byte, makeIt func(context.Context) (string, error)) *flight {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fl := &flight{request: request, waiters: 1, cancel: cancel, done: make(chan struct{})}
	if f.m == nil {
		f.m = map[string]*flight{}
	}
	f.m[name] = fl
	go func() {
		defer cancel()
		fl.id, fl.err = makeIt(ctx)
		f.mu.Lock()
		delete(f.m, name)
		f.mu.Unlock()
		close(fl.done)
	}()
	return fl
}

func (f *flights) leave(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters == 0 {
		fl.cancel()
	}
}
