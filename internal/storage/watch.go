package storage

import (
	"context"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
)

// The states of [Progress].
const (
	StateResolving   = "resolving"
	StateDownloading = "downloading"
	StateDone        = "done"
	StateCached      = "cached"
	StateFailed      = "failed"
)

const (
	// watchBuffer is how much of the progress a slow reader may lag behind.
	watchBuffer = 256
	// progressInterval is how often one layer's progress is told.
	progressInterval = 100 * time.Millisecond
)

// Watch tells of all pulls until ctx ends, which closes the channel. A reader
// that is slow misses some; a pull never waits for one.
func (s *Store) Watch(ctx context.Context) <-chan Progress { return s.hub.watch(ctx) }

// hub hands progress to those who watch.
type hub struct {
	mu       sync.Mutex // Protects watchers, and keeps send and close apart.
	watchers map[chan Progress]struct{}
}

func newHub() *hub { return &hub{watchers: map[chan Progress]struct{}{}} }

func (h *hub) watch(ctx context.Context) <-chan Progress {
	c := make(chan Progress, watchBuffer)
	h.mu.Lock()
	h.watchers[c] = struct{}{}
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers, c)
		close(c)
	})
	return c
}

func (h *hub) send(p Progress) {
	p.At = time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.watchers {
		select {
		case c <- p:
		default:
		}
	}
}

// follow tells the guard of each event of a copy, and those who watch of some.
func (p *pull) follow(events <-chan types.ProgressProperties) {
	told := map[digest.Digest]time.Time{}
	for e := range events {
		p.guard.note(e)
		if e.Artifact.Digest.Encoded() == p.id {
			continue // the config
		}
		progress := Progress{Ref: p.ref, Layer: e.Artifact.Digest.String(), Offset: int64(e.Offset), Total: e.Artifact.Size, State: StateDownloading}
		switch e.Event {
		case types.ProgressEventRead:
			if progress.Offset < progress.Total && time.Since(told[e.Artifact.Digest]) < progressInterval {
				continue
			}
		case types.ProgressEventDone:
			progress.State = StateDone
		case types.ProgressEventSkipped:
			progress.State, progress.Offset = StateCached, progress.Total
		}
		told[e.Artifact.Digest] = time.Now()
		p.s.hub.send(progress)
	}
}
