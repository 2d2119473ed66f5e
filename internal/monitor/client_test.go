package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// liar is a monitor that answers as a test wants it to.
type liar struct {
	t      *testing.T
	l      net.Listener
	answer func(conn int, r *request) *request // nil cuts the connection

	mu    sync.Mutex
	conns int
	calls []string
}

func newLiar(t *testing.T, answer func(int, *request) *request) (*liar, Options) {
	t.Helper()
	dir, err := os.MkdirTemp("", "liar")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Mkdir(filepath.Join(dir, "monitor"), 0o700))
	l, err := net.Listen("unix", newPaths(dir).socket())
	must(t, err)
	m := &liar{t: t, l: l, answer: answer}
	t.Cleanup(func() { l.Close() })
	go m.accept()
	return m, Options{StateDir: dir}
}

func (m *liar) accept() {
	for {
		c, err := m.l.Accept()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.conns++
		n := m.conns
		m.mu.Unlock()
		go m.serve(n, c)
	}
}

func (m *liar) serve(n int, c net.Conn) {
	defer c.Close()
	for {
		var r request
		if readMessage(c, &r) != nil {
			return
		}
		if r.Method == "hello" {
			_ = writeMessage(c, &request{ID: r.ID, Result: json.RawMessage(`{"version":1}`)})
			continue
		}
		m.mu.Lock()
		m.calls = append(m.calls, r.Method)
		m.mu.Unlock()
		a := m.answer(n, &r)
		if a == nil {
			return
		}
		_ = writeMessage(c, a)
	}
}

func dialTest(t *testing.T, o Options) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := Dial(ctx, o)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestClientWhenTheConnectionBreaks(t *testing.T) {
	cutFirst := func(result string) func(int, *request) *request {
		return func(conn int, r *request) *request {
			if conn == 1 {
				return nil
			}
			return &request{ID: r.ID, Result: json.RawMessage(result)}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	t.Run("a call that is safe to repeat is repeated, and a reset is sent", func(t *testing.T) {
		_, o := newLiar(t, cutFirst("[]"))
		c := dialTest(t, o)
		if _, err := c.List(ctx); err != nil {
			t.Errorf("list: %v", err)
		}
		select {
		case e := <-c.Events():
			if e.Type != EventReset {
				t.Errorf("event %+v", e)
			}
		case <-ctx.Done():
			t.Error("no event came")
		}
	})
	t.Run("one that is not fails with ErrReplaced, and the next is served", func(t *testing.T) {
		m, o := newLiar(t, cutFirst("{}"))
		c := dialTest(t, o)
		if err := c.Start(ctx, newID()); !errors.Is(err, ErrReplaced) {
			t.Errorf("start: %v", err)
		}
		must(t, c.Start(ctx, newID()))
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.calls) != 2 {
			t.Errorf("calls %q", m.calls)
		}
	})
	t.Run("one that a leaving pump did not begin is made on the next", func(t *testing.T) {
		_, o := newLiar(t, func(conn int, r *request) *request {
			if conn == 1 {
				if r.Method == "list" {
					return nil
				}
				return &request{ID: r.ID, Error: toWire(errAgain)}
			}
			return &request{ID: r.ID, Result: json.RawMessage("{}")}
		})
		c := dialTest(t, o)
		done := make(chan error, 1)
		go func() { done <- c.Start(ctx, newID()) }()
		time.Sleep(20 * time.Millisecond)
		go func() { _, _ = c.List(ctx) }() // now the pump leaves
		if err := <-done; err != nil {
			t.Errorf("start: %v", err)
		}
	})
	t.Run("a call's context ends it", func(t *testing.T) {
		_, o := newLiar(t, func(int, *request) *request { return &request{ID: 999999} })
		c := dialTest(t, o)
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		if _, err := c.Status(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("status: %v", err)
		}
	})
	t.Run("an error comes back as the sentinel it was", func(t *testing.T) {
		_, o := newLiar(t, func(_ int, r *request) *request { return &request{ID: r.ID, Error: toWire(ErrNotFound)} })
		c := dialTest(t, o)
		if _, err := c.Wait(ctx, newID(), ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("wait: %v", err)
		}
	})
	t.Run("after Close calls fail and events end", func(t *testing.T) {
		_, o := newLiar(t, cutFirst("[]"))
		c := dialTest(t, o)
		must(t, c.Close())
		if _, err := c.List(ctx); !errors.Is(err, ErrClosed) {
			t.Errorf("list: %v", err)
		}
		for range c.Events() {
		}
	})
}

func TestEventQueueCollapses(t *testing.T) {
	q := newEventQueue()
	defer q.close()
	for range 3 * maxQueued {
		q.push(Event{Type: EventExit})
	}
	resets, others := 0, 0
	for {
		select {
		case e := <-q.out:
			if e.Type == EventReset {
				resets++
			} else {
				others++
			}
			continue
		case <-time.After(100 * time.Millisecond):
		}
		break
	}
	if resets == 0 || others > maxQueued+1 {
		t.Errorf("%d resets, %d others", resets, others)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer l.Close()
	must(t, l.SetDeadline(time.Now().Add(10*time.Second)))
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("FDSTORE", "100")
	s := newFdStore()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	s.add(storeName(key(newID()), roleStdout), int(r.Fd()))
	buf, oob := make([]byte, 4096), make([]byte, 64)
	n, oobn, _, _, err := l.ReadMsgUnix(buf, oob)
	must(t, err)
	fds, err := parseFds(oob[:oobn])
	must(t, err)
	defer closeAll(fds)
	if len(fds) != 1 || string(buf[:22]) != "FDSTORE=1\nFDPOLL=0\nFDN" {
		t.Errorf("%d fds with %q", len(fds), buf[:n])
	}
	s.add(storeName(key(newID()), rolePidfd), int(r.Fd()))
	s.remove(storeName(key(newID()), roleLog))
	n, _, err = l.ReadFromUnix(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "FDSTOREREMOVE=1\nFDNAME=") || !strings.HasSuffix(string(buf[:n]), ".log") {
		t.Errorf("%q, %v", buf[:n], err)
	}
}
