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
		c.gate = &startGate{made: make(chan struct{})}
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

// leave says that the client has connected, or is gone. It may be called twice.
func (g *gateClient) leave() {
	if g != nil {
		g.left.Do(g.gate.clients.Done)
	}
}

// openGate lets the clients that wait connect, and returns when they have, or
// when one of them takes too long. ok is false when there will be no process.
func (c *container) openGate(ok bool) {
	c.mu.Lock()
	g := c.gate
	c.gate = nil
	c.mu.Unlock()
	if g == nil {
		return
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
}
