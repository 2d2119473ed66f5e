package sandbox

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestStartGate(t *testing.T) {
	fresh := func(p phase) *container { return &container{rec: containerRecord{Phase: p}} }
	opened := func(c *container, ok bool) <-chan struct{} {
		done := make(chan struct{})
		go func() { c.openGate(ok); close(done) }()
		return done
	}
	t.Run("a start waits until those who came before it have connected", func(t *testing.T) {
		c := fresh(phaseCreated)
		first, second := c.enterGate(), c.enterGate()
		done := opened(c, true)
		for _, g := range []*gateClient{first, second} {
			if err := g.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			select {
			case <-done:
				t.Fatal("it did not wait")
			case <-time.After(20 * time.Millisecond):
			}
			g.leave()
			g.leave()
		}
		<-done
	})
	t.Run("it does not wait for one that is gone, nor for ever", func(t *testing.T) {
		c := fresh(phaseCreated)
		gone, stuck := c.enterGate(), c.enterGate()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := gone.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		gone.leave()
		start := time.Now()
		<-opened(c, true)
		if d := time.Since(start); d < gateTime/2 || d > 10*gateTime {
			t.Errorf("it waited %v for a client that is stuck", d)
		}
		stuck.leave()
	})
	t.Run("where there will be no process the clients are told", func(t *testing.T) {
		c := fresh(phaseCreated)
		g := c.enterGate()
		go c.openGate(false)
		if err := g.wait(t.Context()); !errors.Is(err, ErrPrecondition) {
			t.Errorf("got %v", err)
		}
		g.leave()
	})
	t.Run("nobody waits for a container that has a process, or had one", func(t *testing.T) {
		made := fresh(phaseStarting)
		made.rec.Process.Pid = 7
		for _, c := range []*container{made, fresh(phaseRunning), fresh(phaseExited), fresh(phaseRemoving)} {
			g := c.enterGate()
			if g != nil {
				t.Errorf("phase %s: there is something to wait for", c.rec.Phase)
			}
			g.leave()
			if err := g.wait(t.Context()); err != nil {
				t.Error(err)
			}
			c.openGate(true)
		}
	})
}
