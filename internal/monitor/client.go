package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Client is the daemon's side of the monitor. Every method may be called by many
// goroutines, and returns ctx's error when ctx ends first.
//
// All calls share one connection, which is made anew when it breaks because the
// pump was replaced. Calls that are safe to repeat are then repeated; Create, Start
// and Exec are not, nor is a signal that does not end the process: they return an
// error for which errors.Is(err, ErrReplaced) holds.
type Client struct {
	options Options
	socket  string
	events  *eventQueue
	cancel  context.CancelFunc
	ended   chan struct{} // closed when run has returned
	started monitorProcess

	mu      sync.Mutex // Protects what follows.
	serial  uint64
	conn    *clientConn   // nil while there is none
	changed chan struct{} // closed when conn changes
	closed  bool
}

// clientConn is the connection of a moment, and the calls that wait on it.
type clientConn struct {
	conn    net.Conn
	broken  chan struct{} // closed when it is
	writeMu sync.Mutex    // Keeps messages whole.

	mu      sync.Mutex // Protects what follows.
	waiting map[uint64]chan *request
}

// Dial connects to the monitor, and starts it when none answers and o.Binary is set.
func Dial(ctx context.Context, o Options) (*Client, error) {
	c := &Client{
		options: o, socket: newPaths(o.StateDir).socket(),
		changed: make(chan struct{}), ended: make(chan struct{}), events: newEventQueue(),
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the monitor: %w", err)
	}
	run, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	go c.run(run, conn)
	return c, nil
}

// Close ends the connection. The monitor goes on.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	<-c.ended
	return nil
}

// Events has what happens to processes, for one reader. Nothing is dropped
// silently: what was missed has an EventReset in its place. The channel is closed by Close.
func (c *Client) Events() <-chan Event { return c.events.out }

// The wait between two tries to connect, at first and at most.
const (
	minBackoff = 2 * time.Millisecond
	maxBackoff = 500 * time.Millisecond
)

// connect tries until it has a connection or ctx ends.
func (c *Client) connect(ctx context.Context) (net.Conn, error) {
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		conn, err := dialHello(ctx, c.socket)
		if err == nil {
			return conn, nil
		}
		if errors.Is(err, ErrVersion) {
			return nil, err
		}
		if c.options.Binary != "" {
			if startErr := c.started.ensure(c.options); startErr != nil {
				return nil, errors.Join(startErr, err)
			}
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}

// dialHello makes one connection on which the calls can begin.
func dialHello(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	params, err := json.Marshal(hello{Min: minProtocol, Max: maxProtocol})
	if err == nil {
		var h hello
		err = callOnce(conn, &request{ID: 1, Method: "hello", Params: params}, &h)
		if err == nil {
			_, err = negotiate(h.Version, h.Version, minProtocol, maxProtocol)
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// callOnce makes a call on a connection that has no other.
func callOnce(conn net.Conn, r *request, result any) error {
	_ = conn.SetDeadline(time.Now().Add(helloTime))
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	if err := writeMessage(conn, r); err != nil {
		return err
	}
	var a request
	if err := readMessage(conn, &a); err != nil {
		return err
	}
	if a.Error != nil {
		return a.Error
	}
	return json.Unmarshal(a.Result, result)
}

// run keeps a connection until the client is closed.
func (c *Client) run(ctx context.Context, conn net.Conn) {
	defer close(c.ended)
	defer c.events.close()
	defer c.set(nil)
	for {
		cc := &clientConn{conn: conn, broken: make(chan struct{}), waiting: map[uint64]chan *request{}}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		c.set(cc)
		c.receive(cc)
		stop()
		conn.Close()
		c.set(nil)
		close(cc.broken)
		for {
			if ctx.Err() != nil {
				return
			}
			var err error
			if conn, err = c.connect(ctx); err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(maxBackoff):
			}
		}
		c.events.push(Event{Type: EventReset})
	}
}

func (c *Client) set(cc *clientConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = cc
	close(c.changed)
	c.changed = make(chan struct{})
}

// receive passes on answers and events until the connection breaks.
func (c *Client) receive(cc *clientConn) {
	for {
		a := &request{}
		if err := readMessage(cc.conn, a); err != nil {
			return
		}
		if a.Event != nil {
			c.events.push(*a.Event)
			continue
		}
		cc.mu.Lock()
		answer := cc.waiting[a.ID]
		delete(cc.waiting, a.ID)
		cc.mu.Unlock()
		if answer != nil {
			answer <- a
		}
	}
}

// current waits for a connection other than last.
func (c *Client) current(ctx context.Context, last *clientConn) (*clientConn, error) {
	for {
		c.mu.Lock()
		cc, changed, closed := c.conn, c.changed, c.closed
		c.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		if cc != nil && cc != last {
			return cc, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

var errBroken = errors.New("the connection to the monitor broke")

// call makes a call. One that is safe to repeat is repeated when the connection breaks.
func (c *Client) call(ctx context.Context, method string, repeat bool, params, result any) error {
	data, err := json.Marshal(params)
	if err != nil {
		return err
	}
	var cc *clientConn
	for {
		if cc, err = c.current(ctx, cc); err != nil {
			return err
		}
		a, err := c.roundTrip(ctx, cc, method, data)
		switch {
		case errors.Is(err, errBroken) && repeat:
			continue
		case errors.Is(err, errBroken):
			return fmt.Errorf("%s: %w", method, ErrReplaced)
		case err != nil:
			return err
		case a.Error == nil:
			return json.Unmarshal(a.Result, result)
		case errors.Is(a.Error, errAgain):
			// Nothing was done yet, and the pump that said so is on its way out.
			select {
			case <-cc.broken:
			case <-ctx.Done():
				return ctx.Err()
			}
		default:
			return a.Error
		}
	}
}

func (c *Client) roundTrip(ctx context.Context, cc *clientConn, method string, params []byte) (*request, error) {
	c.mu.Lock()
	c.serial++
	r := &request{ID: c.serial, Method: method, Params: params}
	c.mu.Unlock()
	answer := make(chan *request, 1)
	cc.mu.Lock()
	cc.waiting[r.ID] = answer
	cc.mu.Unlock()
	defer func() {
		cc.mu.Lock()
		delete(cc.waiting, r.ID)
		cc.mu.Unlock()
	}()
	cc.writeMu.Lock()
	err := writeMessage(cc.conn, r)
	cc.writeMu.Unlock()
	if errors.Is(err, errTooLong) {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil {
		cc.conn.Close() // half a message may be out; receive sees it and ends
	}
	select {
	case a := <-answer:
		return a, nil
	case <-cc.broken:
		// The answer may have come just before.
		select {
		case a := <-answer:
			return a, nil
		default:
			return nil, errBroken
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Create has the OCI runtime create a container's process, which waits for Start.
// When it returns, the process's streams are in both processes' custody and its log exists.
// ErrExists when the id is in use.
func (c *Client) Create(ctx context.Context, r CreateRequest) (Info, error) {
	var info Info
	err := c.call(ctx, "create", false, r, &info)
	return info, err
}

// Start has the OCI runtime start a container that Create made. When the runtime
// fails, the process is killed and its end recorded as any other.
func (c *Client) Start(ctx context.Context, id string) error {
	return c.call(ctx, "start", false, target{ID: id}, &none{})
}

// Exec starts one more process in a container.
func (c *Client) Exec(ctx context.Context, r ExecRequest) (*ExecSession, error) {
	var info Info
	if err := c.call(ctx, "exec", false, r, &info); err != nil {
		return nil, err
	}
	return newExecSession(c, r, info), nil
}

// Signal sends a signal by pidfd; ErrNotFound when the process has ended or is unknown.
func (c *Client) Signal(ctx context.Context, id, execID string, sig syscall.Signal) error {
	// Twice does no harm for those that end a process, or do nothing.
	repeat := sig == 0 || sig == syscall.SIGKILL || sig == syscall.SIGTERM
	return c.call(ctx, "signal", repeat, signalParams{target{id, execID}, int(sig), false}, &none{})
}

// Kill ends an exec's process and its process group; ErrNotFound when it has ended or is unknown.
func (c *Client) Kill(ctx context.Context, id, execID string) error {
	return c.call(ctx, "signal", true, signalParams{target{id, execID}, int(syscall.SIGKILL), true}, &none{})
}

// Wait returns when the process has ended, and what it wrote before is in the log.
func (c *Client) Wait(ctx context.Context, id, execID string) (Exit, error) {
	var e Exit
	err := c.call(ctx, "wait", true, target{id, execID}, &e)
	return e, err
}

// ReopenLog goes on in a new file at the container's LogPath, and makes it if
// nothing is there. The file that was moved away has whole entries only.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.call(ctx, "reopenLog", true, target{ID: id}, &none{})
}

// CloseStdin drops every duplicate of stdin's write end: the process reads EOF.
func (c *Client) CloseStdin(ctx context.Context, id, execID string) error {
	return c.call(ctx, "closeStdin", true, target{id, execID}, &none{})
}

// Resize sets the size of a process's terminal, in characters. ErrState when it has none.
func (c *Client) Resize(ctx context.Context, id, execID string, columns, rows uint16) error {
	return c.call(ctx, "resize", true, resizeParams{target{id, execID}, rows, columns}, &none{})
}

// Delete removes a container from its OCI runtime, with all that the runtime left,
// and forgets it and its execs. nil when there is nothing left to delete;
// ErrState when it runs and Force is not set.
func (c *Client) Delete(ctx context.Context, r DeleteRequest) error {
	return c.call(ctx, "destroy", true, r, &none{})
}

// List returns all processes in custody, in no order.
func (c *Client) List(ctx context.Context) ([]Info, error) {
	var list []Info
	err := c.call(ctx, "list", true, none{}, &list)
	return list, err
}

// Forget gives up an ended process, or lets an exec run on with nobody reading its output.
func (c *Client) Forget(ctx context.Context, id, execID string) error {
	return c.call(ctx, "forget", true, target{id, execID}, &none{})
}

// Status returns what the monitor says of itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, "status", true, none{}, &s)
	return s, err
}

// maxQueued bounds the events that wait for their reader.
const maxQueued = 4096

// eventQueue takes events without waiting and gives them to one reader in order.
type eventQueue struct {
	out  chan Event
	more chan struct{}

	mu     sync.Mutex // Protects what follows.
	queue  []Event
	closed bool
}

func newEventQueue() *eventQueue {
	q := &eventQueue{out: make(chan Event), more: make(chan struct{}, 1)}
	go q.run()
	return q
}

// push never waits. When too many wait, one EventReset takes their place.
func (q *eventQueue) push(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) >= maxQueued || e.Type == EventReset {
		q.queue = append(q.queue[:0], Event{Type: EventReset})
	} else {
		q.queue = append(q.queue, e)
	}
	poke(q.more)
}

func (q *eventQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	close(q.more)
}

func (q *eventQueue) run() {
	defer close(q.out)
	for range q.more {
		for e, ok := q.pop(); ok; e, ok = q.pop() {
			select {
			case q.out <- e:
			case _, open := <-q.more:
				if !open {
					return // nobody reads any more
				}
				q.unpop(e)
			}
		}
	}
}

func (q *eventQueue) pop() (Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		return Event{}, false
	}
	e := q.queue[0]
	q.queue = q.queue[1:]
	return e, true
}

// unpop puts back an event that was not read, unless a reset came that covers it.
func (q *eventQueue) unpop(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) > 0 && q.queue[0].Type == EventReset {
		return
	}
	q.queue = append([]Event{e}, q.queue...)
}

// errOutputLost is what a reader gets instead of a stream with a hole.
var errOutputLost = fmt.Errorf("output was lost: %w", io.ErrUnexpectedEOF)
