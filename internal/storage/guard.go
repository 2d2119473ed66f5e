package storage

import (
	"context"
	"fmt"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
)

// unpackTimeout ends a pull that waits for nothing from the registry and still
// does not get on. Unpacking a large layer on a slow disk takes minutes.
const unpackTimeout = 30 * time.Minute

// guard ends a pull whose registry stops sending, or sends more than the
// manifest says: that could fill the disk before its digest is found wrong.
type guard struct {
	timeout time.Duration // 0 for never

	mu      sync.Mutex // Protects the fields below.
	end     context.CancelCauseFunc
	last    time.Time // when something happened
	fetched bool      // layers are being fetched: the registry has answered
	layers  map[digest.Digest]layerProgress
}

type layerProgress struct {
	offset, total int64
	done          bool // unpacked, too, or waiting for the layers below it
}

func newGuard(timeout time.Duration) *guard {
	return &guard{timeout: timeout, last: time.Now(), layers: map[digest.Digest]layerProgress{}}
}

// watch returns a context that the guard may end, and what ends the watching.
func (g *guard) watch(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	g.mu.Lock()
	g.end = cancel
	g.mu.Unlock()
	if g.timeout <= 0 {
		return ctx, func() { cancel(nil) }
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(max(g.timeout/8, time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				g.check(now)
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

func (g *guard) check(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	idle := now.Sub(g.last)
	switch {
	case g.waiting() && idle > g.timeout:
		g.end(withKind(ErrRegistryUnavailable, fmt.Errorf("the registry has sent nothing for %s", g.timeout)))
	case idle > max(g.timeout, unpackTimeout):
		g.end(fmt.Errorf("no progress in unpacking for %s", max(g.timeout, unpackTimeout)))
	}
}

// waiting tells whether the next thing to happen is the registry's to do. While
// a layer is unpacked, another that gets no bytes may have failed long ago: the
// copy tells that at its end only. The caller holds mu.
func (g *guard) waiting() bool {
	waiting := !g.fetched
	for _, l := range g.layers {
		switch {
		case l.done:
		case l.offset >= l.total:
			return false
		default:
			waiting = true
		}
	}
	return waiting
}

// note takes an event of the copy.
func (g *guard) note(e types.ProgressProperties) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last, g.fetched = time.Now(), true
	l := layerProgress{offset: int64(e.Offset), total: e.Artifact.Size}
	switch e.Event {
	case types.ProgressEventNewArtifact, types.ProgressEventRead:
		if l.offset > l.total {
			g.end(fmt.Errorf("layer %s: the registry sends more than the %d bytes that the manifest says", e.Artifact.Digest, l.total))
		}
	default:
		l.done = true
	}
	g.layers[e.Artifact.Digest] = l
}
