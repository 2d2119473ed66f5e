package server

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// Reading figures may hang: a file of a cgroup waits for locks in the kernel
// that reclaim or a dying device hold. A goroutine that reads can't be ended then, but its
// caller need not wait for it, and nobody need start a second one.
const (
	readTime    = 2 * time.Second // how long a caller waits for one pod or container
	readWorkers = 8               // how many are read at once for one call
)

// errStuck says that figures are not to be had now.
var errStuck = errors.New("the kernel does not answer")

// readings are the readings under way. Each has one goroutine, which ends with
// it; there are never more than there are pods and containers. The zero value is ready.
type readings struct {
	mu      sync.Mutex // Protects running.
	running map[string]*reading
}

// reading is one that runs, or ran.
type reading struct {
	begun time.Time
	done  chan struct{} // closed when value and err are set
	value any
	err   error
}

// start begins a reading, or returns the one of the same key that is under way.
func (r *readings) start(key string, f func() (any, error)) *reading {
	r.mu.Lock()
	defer r.mu.Unlock()
	if under := r.running[key]; under != nil {
		return under
	}
	if r.running == nil {
		r.running = map[string]*reading{}
	}
	n := &reading{begun: time.Now(), done: make(chan struct{})}
	r.running[key] = n
	go func() {
		n.value, n.err = guarded(f)
		r.mu.Lock()
		delete(r.running, key)
		r.mu.Unlock()
		close(n.done)
	}()
	return n
}

// guarded makes a panic an error, as a call's own goroutine does.
func guarded(f func() (any, error)) (value any, err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.ErrorS(fmt.Errorf("panic: %v", p), "Reading figures panicked", "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "reading figures: internal error, see the engine's log")
		}
	}()
	return f()
}

// read reads in a time that is bounded whatever f does. Callers who ask for the
// same at the same time get one answer, which they must not write to.
func read[T any](ctx context.Context, r *readings, key string, f func() (T, error)) (T, error) {
	var none T
	under := r.start(key, func() (any, error) { return f() })
	timer := time.NewTimer(readTime - time.Since(under.begun)) // at once for one that is stuck already
	defer timer.Stop()
	select {
	case <-under.done:
		if under.err != nil {
			return none, under.err
		}
		return under.value.(T), nil
	case <-timer.C:
		return none, fmt.Errorf("figures of %s: %w: %w", key, errStuck, context.DeadlineExceeded)
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// figure is what one reading gave.
type figure[T any] struct {
	value T
	err   error
}

// gather reads the figures of many, several at once, in the order they were given.
func gather[S, T any](ctx context.Context, r *readings, kind string, of []S, id func(S) string, f func(S) (T, error)) []figure[T] {
	results := make([]figure[T], len(of))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(readWorkers, len(of)) {
		wg.Go(func() {
			for i := range next {
				results[i].value, results[i].err = read(ctx, r, kind+id(of[i]), func() (T, error) { return f(of[i]) })
			}
		})
	}
	for i := range of {
		next <- i
	}
	close(next)
	wg.Wait()
	return results
}
