package sandbox

import (
	"context"
	"io"
	"sync"
	"time"
)

// Streams are a client's ends of a process's streams; nil for those it did not ask for.
type Streams struct {
	// Stdin ends with the client. A Read that is under way when the call returns must
	// end by itself, as one from a connection does when that is closed.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// TTY asks for a terminal, all of whose output is on Stdout. Sizes come through
	// Resize, which may be nil, until it is closed.
	TTY    bool
	Resize <-chan WindowSize
}

// WindowSize is a terminal's size in characters.
type WindowSize struct{ Columns, Rows uint16 }

// copies are the outputs of a process on their way to a client.
type copies struct {
	wg     sync.WaitGroup
	failed context.CancelCauseFunc // called with what the client's end said

	mu      sync.Mutex // Protects what follows.
	waiting map[io.Reader]time.Time
}

func newCopies(failed context.CancelCauseFunc) *copies {
	return &copies{failed: failed, waiting: map[io.Reader]time.Time{}}
}

// start copies until the stream's end. Without a client's end the bytes are thrown
// away, so that the process does not wait for somebody to read them.
func (c *copies) start(to io.Writer, from io.Reader) {
	if to == nil {
		to = io.Discard
	}
	c.mu.Lock()
	c.waiting[from] = time.Now()
	c.mu.Unlock()
	c.wg.Go(func() {
		defer c.set(from, false)
		buf := make([]byte, 32<<10)
		for {
			c.set(from, true)
			n, err := from.Read(buf)
			c.set(from, false)
			if n > 0 {
				if _, werr := to.Write(buf[:n]); werr != nil {
					c.failed(werr)
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
}

// set notes since when a copy waits for the process.
func (c *copies) set(from io.Reader, waits bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if waits {
		c.waiting[from] = time.Now()
	} else {
		delete(c.waiting, from)
	}
}

// idle reports whether all copies that are not done have waited for limit.
func (c *copies) idle(limit time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, since := range c.waiting {
		if time.Since(since) < limit {
			return false
		}
	}
	return len(c.waiting) > 0
}

// end waits for the rest of an ended process's output. What it left behind may
// hold its streams open: that is waited for only while there comes something. A client
// that is slow is waited for until ctx ends.
func (c *copies) end(ctx context.Context) {
	done := make(chan struct{})
	go func() { // ends with the copies, which the caller ends by closing what they read
		c.wg.Wait()
		close(done)
	}()
	tick := time.NewTicker(execDrain / 10)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
			if c.idle(execDrain) {
				return
			}
		}
	}
}

// resize passes sizes on until there are no more or ctx ends.
func (s *Streams) resize(ctx context.Context, to func(context.Context, uint16, uint16) error) {
	if s.Resize == nil || !s.TTY {
		return
	}
	for {
		select {
		case size, ok := <-s.Resize:
			if !ok {
				return
			}
			_ = to(ctx, size.Columns, size.Rows) // the process may have ended
		case <-ctx.Done():
			return
		}
	}
}
