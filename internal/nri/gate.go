package nri

import (
	"context"
	"sync"
)

// gate lets many take turns side by side, or one hold up all of them. In place
// of a sync.RWMutex it gives up waiting with a context, and those that wait for it
// are let in then.
type gate struct {
	mu    sync.Mutex // Protects the fields below; held for memory only.
	turns int        // begun and not ended
	holds int        // how often it is shut
	// drained is closed when the last turn ends while the gate is shut, opened
	// when it is open again. Both are made by the first hold.
	drained, opened chan struct{}
}

// enter begins a turn, when the gate is open.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.holds == 0 {
			g.turns++
			g.mu.Unlock()
			return nil
		}
		opened := g.opened
		g.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leave ends a turn.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.turns--; g.turns == 0 && g.holds > 0 {
		close(g.drained)
	}
}

// shut lets no turn begin, and returns when none is left. When ctx ends before
// that the gate is as it was. It may be shut more than once, and is open when it
// was opened as often.
func (g *gate) shut(ctx context.Context) error {
	g.mu.Lock()
	if g.holds++; g.holds == 1 {
		g.drained, g.opened = make(chan struct{}), make(chan struct{})
		if g.turns == 0 {
			close(g.drained)
		}
	}
	drained := g.drained
	g.mu.Unlock()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		g.open()
		return ctx.Err()
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.holds--; g.holds == 0 {
		close(g.opened)
	}
}
