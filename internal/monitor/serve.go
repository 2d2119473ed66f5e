package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The protocol's versions: what this binary speaks, from oldest to newest. One step
// of skew is kept: minProtocol is at most one less than maxProtocol.
const (
	minProtocol = 1
	maxProtocol = 1
)

// request is one call, or one answer to it (Result or Error), or an event that
// nobody asked for. A client's first request is hello; the answer tells the version that
// both then speak.
type request struct {
	ID     uint64          `json:"id,omitempty"`
	Method string          `json:"method,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *wireError      `json:"error,omitempty"`
	Event  *Event          `json:"event,omitempty"`
}

// hello is the first request's parameter (Min, Max) and answer (Version).
type hello struct {
	Min     int `json:"min,omitempty"`
	Max     int `json:"max,omitempty"`
	Version int `json:"version,omitempty"`
}

// negotiate returns the highest version that both sides speak.
func negotiate(min1, max1, min2, max2 int) (int, error) {
	v := min(max1, max2)
	if v < max(min1, min2) || v < 1 {
		return 0, fmt.Errorf("%w: %d–%d and %d–%d", ErrVersion, min1, max1, min2, max2)
	}
	return v, nil
}

// target names a process.
type target struct {
	ID     string `json:"id"`
	ExecID string `json:"execId,omitempty"`
}

// resizeParams has a terminal's new size, in characters.
type resizeParams struct {
	target
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

type signalParams struct {
	target
	Signal int `json:"signal"`
	// Group: to the process group that the process leads, too.
	Group bool `json:"group,omitempty"`
}

const (
	// helloTime is how long a client may take to say hello, sendTime to take a message.
	helloTime = 10 * time.Second
	sendTime  = 30 * time.Second
	// maxCalls bounds the calls of one connection that are under way.
	maxCalls = 1024
	// maxEvents bounds the events that wait for one connection; a client that is
	// that slow is cut off, and finds what it missed by List.
	maxEvents = 4096
)

// serverConn is one connection of the daemon.
type serverConn struct {
	conn   *net.UnixConn
	events chan Event
	calls  chan struct{}

	mu sync.Mutex // Keeps messages whole.
}

func (pu *pump) serveConn(u *net.UnixConn) {
	defer u.Close()
	if err := checkPeer(u); err != nil {
		slog.Warn("a connection is refused", "err", err)
		return
	}
	c := &serverConn{conn: u, events: make(chan Event, maxEvents), calls: make(chan struct{}, maxCalls)}
	if err := c.hello(); err != nil {
		if !errors.Is(err, io.EOF) {
			slog.Warn("a connection is refused", "err", err)
		}
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for first := true; ; first = false {
		var r request
		if err := readMessage(u, &r); err != nil {
			if !errors.Is(err, io.EOF) && !isGone(err) && !errors.Is(err, net.ErrClosed) {
				slog.Warn("a connection is cut", "err", err)
			}
			return
		}
		if first {
			if r.Method == "attach" {
				pu.serveAttach(c, &r)
				return
			}
			defer pu.subscribe(ctx, c)()
		}
		c.calls <- struct{}{}
		go func() {
			defer func() { <-c.calls }()
			c.answer(&r, func() (any, error) { return pu.dispatch(ctx, &r) })
		}()
	}
}

// subscribe sends events to the connection until the returned function is called.
func (pu *pump) subscribe(ctx context.Context, c *serverConn) func() {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	pu.clients[c] = struct{}{}
	go c.sendEvents(ctx)
	return func() {
		pu.mu.Lock()
		defer pu.mu.Unlock()
		delete(pu.clients, c)
	}
}

// checkPeer lets only root in, and whoever this process runs as (a test).
func checkPeer(u *net.UnixConn) error {
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("peer has uid %d", cred.Uid)
	}
	return nil
}

func (c *serverConn) hello() error {
	_ = c.conn.SetReadDeadline(time.Now().Add(helloTime))
	var r request
	if err := readMessage(c.conn, &r); err != nil {
		return err
	}
	_ = c.conn.SetReadDeadline(time.Time{})
	var failed error
	c.answer(&r, func() (any, error) {
		var h hello
		if r.Method != "hello" {
			failed = fmt.Errorf("%w: %.40q came before hello", ErrInvalid, r.Method)
		} else if err := json.Unmarshal(r.Params, &h); err != nil {
			failed = fmt.Errorf("%w: hello: %w", ErrInvalid, err)
		} else {
			h.Version, failed = negotiate(h.Min, h.Max, minProtocol, maxProtocol)
		}
		return hello{Version: h.Version}, failed
	})
	return failed
}

// send writes a message; a client that does not take it is cut off.
func (c *serverConn) send(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(sendTime))
	if err := writeMessage(c.conn, r); err != nil {
		c.conn.Close()
	}
}

func (c *serverConn) answer(r *request, f func() (any, error)) {
	result, err := f()
	a := &request{ID: r.ID}
	if err == nil {
		a.Result, err = json.Marshal(result)
	}
	if err != nil {
		a.Error = toWire(err)
	}
	c.send(a)
}

// push never waits.
func (c *serverConn) push(e Event) {
	select {
	case c.events <- e:
	default:
		c.conn.Close()
	}
}

func (c *serverConn) sendEvents(ctx context.Context) {
	for {
		select {
		case e := <-c.events:
			c.send(&request{Event: &e})
		case <-ctx.Done():
			return
		}
	}
}

// dispatch does one call.
func (pu *pump) dispatch(ctx context.Context, r *request) (any, error) {
	// The daemon may go while the runtime works: what was begun is ended.
	lasting := context.WithoutCancel(ctx)
	switch r.Method {
	case "create":
		return with(r, func(q CreateRequest) (Info, error) { return pu.create(lasting, q) })
	case "start":
		return with(r, func(q target) (none, error) { return none{}, pu.start(lasting, q.ID) })
	case "exec":
		return with(r, func(q ExecRequest) (Info, error) { return pu.exec(lasting, q) })
	case "destroy":
		return with(r, func(q DeleteRequest) (none, error) { return none{}, pu.delete(lasting, q) })
	case "wait":
		return with(r, func(q target) (Exit, error) { return pu.wait(ctx, q) })
	case "signal":
		return with(r, func(q signalParams) (none, error) { return none{}, pu.signal(q) })
	case "update":
		return with(r, func(q updateParams) (none, error) { return none{}, pu.update(lasting, q) })
	case "resize":
		return with(r, func(q resizeParams) (none, error) { return none{}, pu.resize(q) })
	case "reopenLog":
		return with(r, func(q target) (none, error) { return none{}, pu.reopenLog(q.ID) })
	case "closeStdin":
		return with(r, func(q target) (none, error) { return none{}, pu.closeStdin(q) })
	case "forget":
		return with(r, func(q target) (none, error) { return none{}, pu.forgetCall(q) })
	case "list":
		return pu.list(), nil
	case "status":
		return pu.status(), nil
	}
	return nil, fmt.Errorf("%w: unknown method %.40q", ErrInvalid, r.Method)
}

// none is the result of calls that have none.
type none struct{}

func with[P, R any](r *request, f func(P) (R, error)) (R, error) {
	var params P
	if err := json.Unmarshal(r.Params, &params); err != nil {
		var zero R
		return zero, fmt.Errorf("%w: %s: %w", ErrInvalid, r.Method, err)
	}
	return f(params)
}

func (pu *pump) wait(ctx context.Context, t target) (Exit, error) {
	p, err := pu.find(t.ID, t.ExecID)
	if err != nil {
		return Exit{}, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
	if e := p.record().Exit; e != nil {
		return *e, nil
	}
	return Exit{}, fmt.Errorf("%w: %s was forgotten", ErrNotFound, p.key)
}

func (pu *pump) signal(q signalParams) error {
	p, err := pu.find(q.ID, q.ExecID)
	if err != nil {
		return err
	}
	if q.Signal < 0 || q.Signal > 64 {
		return fmt.Errorf("%w: signal %d", ErrInvalid, q.Signal)
	}
	if q.Group {
		return p.signalGroup(syscall.Signal(q.Signal))
	}
	return p.signal(syscall.Signal(q.Signal))
}

func (pu *pump) reopenLog(id string) error {
	p, err := pu.find(id, "")
	if err != nil {
		return err
	}
	if err := p.reopenLog(); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", id, err)
	}
	return nil
}

func (pu *pump) closeStdin(t target) error {
	p, err := pu.find(t.ID, t.ExecID)
	if err != nil {
		return err
	}
	p.drop(roleStdin)
	poke(p.kickIn)
	return nil
}

func (pu *pump) forgetCall(t target) error {
	p, err := pu.find(t.ID, t.ExecID)
	if err != nil {
		return err
	}
	r := p.record()
	if r.Exit != nil {
		pu.forget(p)
		return nil
	}
	if r.ExecID == "" {
		return fmt.Errorf("%w: forget container %s: it is %s", ErrState, t.ID, r.State)
	}
	p.abandonExec()
	return nil
}

func (pu *pump) list() []Info {
	infos := []Info{}
	for _, p := range pu.all() {
		infos = append(infos, p.info())
	}
	return infos
}

func (pu *pump) status() Status {
	return Status{
		Version: pu.version, Protocol: maxProtocol, KeeperPid: pu.keeper, PumpPid: os.Getpid(),
		Processes: len(pu.all()), Attached: int(pu.taps.Load()), Goroutines: runtime.NumGoroutine(),
		DroppedLogBytes: pu.shm.header().dropped.Load(),
	}
}
