package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// gateTime is how long a start waits for clients that attached before it.
const gateTime = 2 * time.Second

// startGate is where clients wait that attach to a container before it is started:
// between the making of its process and the program's first instruction they
// connect, and so miss nothing of what it writes.
type startGate struct {
	made    chan struct{} // closed when the process is there, or never will be
	started chan struct{} // closed when its program runs, or never will
	ok      bool          // that it is there; read after made
	clients sync.WaitGroup
}

// gateClient is one client at a gate; nil for one that found nothing to wait for.
type gateClient struct {
	gate *startGate
	left sync.Once
}

// enterGate returns nil when there is nothing to wait for. Whoever enters leaves.
func (c *container) enterGate() *gateClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Phase != phaseCreated && c.rec.Phase != phaseStarting || c.rec.Process.Pid != 0 {
		return nil
	}
	if c.gate == nil {
		c.gate = &startGate{made: make(chan struct{}), started: make(chan struct{})}
	}
	c.gate.clients.Add(1)
	return &gateClient{gate: c.gate}
}

// wait returns when there is a process to connect to.
func (g *gateClient) wait(ctx context.Context) error {
	if g == nil {
		return nil
	}
	select {
	case <-g.gate.made:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !g.gate.ok {
		return fmt.Errorf("it was not started: %w", ErrPrecondition)
	}
	return nil
}

// awaitStart returns when the program runs: its stdin is not to be filled before, where
// nobody empties it.
func (g *gateClient) awaitStart(ctx context.Context) {
	if g == nil {
		return
	}
	select {
	case <-g.gate.started:
	case <-ctx.Done():
	}
}

// leave says that the client has connected, or is gone. It may be called twice.
func (g *gateClient) leave() {
	if g != nil {
		g.left.Do(g.gate.clients.Done)
	}
}

// openGate lets the clients that wait connect, and returns when they have, or
// when one of them takes too long. ok is false when there will be no process. The
// caller calls begun when the program runs or never will.
func (c *container) openGate(ok bool) (begun func()) {
	c.mu.Lock()
	g := c.gate
	c.gate = nil
	c.mu.Unlock()
	if g == nil {
		return func() {}
	}
	g.ok = ok
	close(g.made)
	connected := make(chan struct{})
	go func() { // ends with the slowest client, whose connecting has an end of its own
		g.clients.Wait()
		close(connected)
	}()
	select {
	case <-connected:
	case <-time.After(gateTime):
	}
	return func() { close(g.started) }
}
