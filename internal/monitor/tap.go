package monitor

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxTaps bounds the clients attached to one stream of a container, tapBuffer
	// what waits for each of them, in bytes.
	maxTaps   = 32
	tapBuffer = 256 << 10
)

// tap is one attached client's copy of a container's output. It never holds the
// container or its log back: what its client does not take in time is skipped,
// and the offset of the next chunk tells how much that was.
type tap struct {
	conn *net.UnixConn
	wake chan struct{}

	// next is the offset of the stream's first byte that was not offered to it; the
	// holder of the process's turn uses it.
	next uint64

	mu     sync.Mutex // Protects what follows.
	queue  []tapChunk
	queued int  // bytes in queue
	ended  bool // nothing will be added
}

// tapChunk is shared by all taps of a stream and never changed.
type tapChunk struct {
	offset uint64
	data   []byte
}

// tapOut shows what is at the stream's offset to whoever is attached. The same
// bytes may be shown many times, before they are consumed: each tap takes what is new to it.
func (s *stream) tapOut(offset uint64, head []byte) {
	var copied []byte
	end := offset + uint64(len(head))
	for _, t := range s.taps {
		if t.next >= end {
			continue
		}
		if copied == nil {
			copied = slices.Clone(head)
		}
		from := max(t.next, offset)
		t.next = end
		t.put(tapChunk{from, copied[from-offset:]})
	}
}

func (t *tap) put(c tapChunk) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended || t.queued+len(c.data) > tapBuffer {
		return
	}
	t.queue = append(t.queue, c)
	t.queued += len(c.data)
	poke(t.wake)
}

func (t *tap) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	poke(t.wake)
}

// take returns what waits, and whether nothing comes after it.
func (t *tap) take() (queue []tapChunk, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	queue, t.queue, t.queued = t.queue, nil, 0
	return queue, t.ended
}

// send passes chunks on until the stream's end or the client's.
func (t *tap) send(gone <-chan struct{}) {
	for {
		queue, ended := t.take()
		for _, c := range queue {
			for data := range slices.Chunk(c.data, maxChunk) {
				if sendChunk(t.conn, c.offset, data) != nil {
					return
				}
				c.offset += uint64(len(data))
			}
		}
		if ended {
			_ = sendChunk(t.conn, 0, nil)
			return
		}
		select {
		case <-t.wake:
		case <-gone:
			return
		}
	}
}

var errTooManyClients = errors.New("too many clients are attached")

// addTap attaches a client to a container's output, from what no earlier byte of
// it had (have), or from what is not logged yet.
func (p *proc) addTap(i int, conn *net.UnixConn, have uint64) (*tap, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	t := &tap{conn: conn, wake: make(chan struct{}, 1), next: max(have, p.slot.out[i].consumed)}
	s := p.out[i]
	if s == nil || s.fd < 0 {
		t.end()
		return t, nil
	}
	if len(s.taps) >= maxTaps {
		return nil, fmt.Errorf("%w: %d to %s of %s", errTooManyClients, maxTaps, s.role, p.key)
	}
	s.taps = append(s.taps, t)
	return t, nil
}

func (p *proc) removeTap(i int, t *tap) {
	p.turn.Lock()
	defer p.turn.Unlock()
	if s := p.out[i]; s != nil {
		s.taps = slices.DeleteFunc(s.taps, func(o *tap) bool { return o == t })
	}
}

// endTaps tells whoever is attached that nothing comes any more; the turn is held.
func (s *stream) endTaps() {
	for _, t := range s.taps {
		t.end()
	}
	s.taps = nil
}

// resize gives a process's terminal a new size.
func (pu *pump) resize(q resizeParams) error {
	p, err := pu.find(q.ID, q.ExecID)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fd, ok := p.fds[roleStdout]
	if !p.rec.Terminal || !ok {
		return fmt.Errorf("%w: %s has no terminal", ErrState, p.key)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: q.Rows, Col: q.Columns}); err != nil {
		return fmt.Errorf("resize the terminal of %s: %w", p.key, err)
	}
	return nil
}
