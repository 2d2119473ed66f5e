package sandbox

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func TestFlights(t *testing.T) {
	t.Run("calls for one name share one run", func(t *testing.T) {
		var f flights
		release, runs := make(chan struct{}), 0
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				id, err := f.do(t.Context(), "n", []byte("same"), func(context.Context) (string, error) {
					runs++
					<-release
					return "id", nil
				})
				if id != "id" || err != nil {
					t.Errorf("got %q, %v", id, err)
				}
			})
		}
		waitFor(t, func() bool { return waiters(&f, "n") == 5 })
		close(release)
		wg.Wait()
		if runs != 1 {
			t.Errorf("ran %d times", runs)
		}
	})
	t.Run("another configuration under the same name is refused while the first runs", func(t *testing.T) {
		var f flights
		release := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = f.do(t.Context(), "n", []byte("a"), func(context.Context) (string, error) { <-release; return "", nil })
		})
		waitFor(t, func() bool { return waiters(&f, "n") == 1 })
		_, err := f.do(t.Context(), "n", []byte("b"), func(context.Context) (string, error) { return "", nil })
		if !errors.Is(err, ErrExists) {
			t.Errorf("got %v, want ErrExists", err)
		}
		close(release)
		wg.Wait()
	})
	t.Run("a run is cancelled only when every caller has given up, and a retry waits for its end", func(t *testing.T) {
		var f flights
		ctx1, cancel1 := context.WithCancel(t.Context())
		ctx2, cancel2 := context.WithCancel(t.Context())
		cancelled, undone := make(chan struct{}), make(chan struct{})
		run := func(ctx context.Context) (string, error) {
			<-ctx.Done()
			close(cancelled)
			<-undone
			return "", ctx.Err()
		}
		var wg sync.WaitGroup
		for _, ctx := range []context.Context{ctx1, ctx2} {
			wg.Go(func() {
				if _, err := f.do(ctx, "n", nil, run); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			})
		}
		waitFor(t, func() bool { return waiters(&f, "n") == 2 })
		cancel1()
		select {
		case <-cancelled:
			t.Error("the run was cancelled while a caller waited")
		case <-time.After(20 * time.Millisecond):
		}
		cancel2()
		<-cancelled
		wg.Wait()
		got := make(chan string)
		go func() {
			id, _ := f.do(t.Context(), "n", []byte("other"), func(context.Context) (string, error) { return "second", nil })
			got <- id
		}()
		select {
		case <-got:
			t.Error("the retry did not wait for the first try's end")
		case <-time.After(20 * time.Millisecond):
		}
		close(undone)
		if id := <-got; id != "second" {
			t.Errorf("the retry got %q", id)
		}
	})
}

func waiters(f *flights, name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.m[name]; fl != nil {
		return fl.waiters
	}
	return 0
}

func waitFor(t testing.TB, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatal("what was waited for did not happen")
}
