package nri

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestGate(t *testing.T) {
	t.Run("turns are taken side by side", func(t *testing.T) {
		var g gate
		for range 3 {
			if err := g.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("it is shut when the last turn has ended, and lets none begin", func(t *testing.T) {
		var g gate
		_ = g.enter(t.Context())
		shut := make(chan error)
		go func() { shut <- g.shut(t.Context()) }()
		waitFor(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.holds == 1 })
		entered := make(chan error)
		go func() { entered <- g.enter(t.Context()) }()
		select {
		case <-shut:
			t.Fatal("shut while there is a turn")
		case <-entered:
			t.Fatal("a turn began while it waits")
		case <-time.After(20 * time.Millisecond):
		}
		g.leave()
		if err := <-shut; err != nil {
			t.Fatal(err)
		}
		select {
		case <-entered:
			t.Fatal("a turn began while it is shut")
		case <-time.After(20 * time.Millisecond):
		}
		g.open()
		if err := <-entered; err != nil {
			t.Fatal(err)
		}
	})
	t.Run("who can't shut it in time lets all go on", func(t *testing.T) {
		var g gate
		_ = g.enter(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := g.shut(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		if err := g.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.leave()
		g.leave()
		if err := g.shut(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a turn is waited for with a context", func(t *testing.T) {
		var g gate
		_ = g.shut(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := g.enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("shut twice, it is opened twice", func(t *testing.T) {
		var g gate
		_ = g.shut(t.Context())
		_ = g.shut(t.Context())
		g.open()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := g.enter(ctx); err == nil {
			t.Error("it is open")
		}
		g.open()
		if err := g.enter(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("nobody is in while it is shut, whatever comes and goes", func(t *testing.T) {
		var g gate
		var inside atomic.Int32
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 8 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if g.enter(ctx) == nil {
						inside.Add(1)
						inside.Add(-1)
						g.leave()
					}
				}
			})
		}
		for range 200 {
			if err := g.shut(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := inside.Load(); n != 0 {
				t.Fatalf("%d are inside", n)
			}
			g.open()
		}
		cancel()
		wg.Wait()
	})
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in 10 s")
		}
	}
}

func BenchmarkATurnWithoutPlugins(b *testing.B) {
	p := &Plugins{}
	for b.Loop() {
		end, err := p.Turn(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if p.Any() {
			b.Fatal("there is a plugin")
		}
		end()
	}
}
