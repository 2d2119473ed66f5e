package streaming

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

// What today's clients (kubectl, crictl) speak over WebSocket the library does not:
// v5.channel.k8s.io, in which stdin can end before the command does, for exec and
// attach, and SPDY inside of a WebSocket for port-forward. Both are described in
// Kubernetes' enhancement proposal 4006. Older protocols are left to the library.

const tunnelProtocol = "SPDY/3.1+" + portforward.ProtocolV1Name

// Channels of v5.channel.k8s.io: the first byte of each binary message.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelStatus
	channelResize
	// channelClose is followed by the channel that the client ends.
	channelClose = 255
)

const (
	// maxMessage bounds a message of the client's; theirs are of 32 KiB.
	maxMessage = 1 << 20
	// pongPeriod is how often a client hears from us while it waits for a command that
	// does not take its input: pings that come after that are not read.
	pongPeriod = 10 * time.Second
)

// speaks tells whether the client offers the protocol over WebSocket.
func speaks(r *http.Request, protocol string) bool {
	return websocket.IsWebSocketUpgrade(r) && slices.Contains(websocket.Subprotocols(r), protocol)
}

func upgrade(w http.ResponseWriter, r *http.Request, protocol string) (*websocket.Conn, bool) {
	u := websocket.Upgrader{Subprotocols: []string{protocol}, HandshakeTimeout: headerTime}
	c, err := u.Upgrade(w, r, nil)
	if err != nil { // the client was told
		klog.V(2).InfoS("Upgrade to WebSocket failed", "err", err)
		return nil, false
	}
	c.SetReadLimit(maxMessage)
	return c, true
}

// channels serves one exec or attach by v5.channel.k8s.io.
type channels struct {
	conn  *websocket.Conn
	call  *call
	idle  time.Duration
	stdin *io.PipeWriter // nil when it was not asked for
	sizes chan sandbox.WindowSize

	writing sync.Mutex // One message at a time.
}

// serveV5 upgrades the connection and serves a command's streams until it has ended.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, c *call, run func(Streams) (int32, error)) {
	conn, ok := upgrade(w, r, remotecommand.StreamProtocolV5Name)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	ch := &channels{conn: conn, call: c, idle: s.o.IdleTimeout, sizes: make(chan sandbox.WindowSize)}
	streams := Streams{TTY: c.asked.TTY}
	if c.asked.Stdin {
		streams.Stdin, ch.stdin = io.Pipe()
	}
	if c.asked.Stdout {
		streams.Stdout = channel{ch, channelStdout}
	}
	if c.asked.Stderr {
		streams.Stderr = channel{ch, channelStderr}
	}
	if c.asked.TTY {
		streams.Resize = ch.sizes
	}
	var helpers sync.WaitGroup
	helpers.Go(func() { ch.read(ctx) })
	helpers.Go(func() { ch.pong(ctx) })
	code, err := run(streams)
	ch.end(code, err)
	cancel()
	if ch.stdin != nil {
		ch.stdin.CloseWithError(io.ErrClosedPipe) // a message that was not read is not waited for
	}
	// The client answers the close, and hangs up. One that does not is left soon.
	_ = conn.SetReadDeadline(time.Now().Add(leaveTime))
	helpers.Wait()
	_ = conn.Close()
}

// read takes the client's messages until it has gone, or has answered our close.
func (ch *channels) read(ctx context.Context) {
	if ch.stdin != nil {
		defer ch.stdin.Close()
	}
	defer close(ch.sizes)
	for {
		if ctx.Err() == nil { // else the end has its own deadline
			_ = ch.conn.SetReadDeadline(time.Now().Add(ch.idle))
		}
		_, data, err := ch.conn.ReadMessage()
		if err != nil {
			if ctx.Err() == nil {
				ch.call.gone()
			}
			return
		}
		if len(data) > 0 && !ch.take(ctx, data[0], data[1:]) {
			ch.call.gone()
			return
		}
	}
}

// take is false when the message breaks the protocol.
func (ch *channels) take(ctx context.Context, to byte, data []byte) bool {
	switch to {
	case channelStdin:
		if ch.stdin != nil {
			_, _ = ch.stdin.Write(data) // fails when the command has ended
		}
	case channelClose:
		if len(data) != 1 {
			return false
		}
		if data[0] == channelStdin && ch.stdin != nil {
			_ = ch.stdin.Close()
		}
	case channelResize:
		var size struct{ Width, Height uint16 }
		if json.Unmarshal(data, &size) != nil {
			return false
		}
		select {
		case ch.sizes <- sandbox.WindowSize{Columns: size.Width, Rows: size.Height}:
		case <-ctx.Done():
		case <-time.After(time.Second): // nobody has a use for it
		}
	default:
		return false
	}
	return true
}

// pong says that we are there.
func (ch *channels) pong(ctx context.Context) {
	tick := time.NewTicker(pongPeriod)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = ch.conn.WriteControl(websocket.PongMessage, nil, time.Now().Add(pongPeriod))
		case <-ctx.Done():
			return
		}
	}
}

func (ch *channels) write(to byte, p []byte) error {
	ch.writing.Lock()
	defer ch.writing.Unlock()
	_ = ch.conn.SetWriteDeadline(time.Now().Add(ch.idle))
	w, err := ch.conn.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	_, first := w.Write([]byte{to})
	_, err = w.Write(p)
	if err := errors.Join(first, err, w.Close()); err != nil {
		return err
	}
	// What moves, moves in either direction.
	return ch.conn.SetReadDeadline(time.Now().Add(ch.idle))
}

// channel is one of the outputs.
type channel struct {
	ch *channels
	to byte
}

func (c channel) Write(p []byte) (int, error) {
	if err := c.ch.write(c.to, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// end tells how the command ended, and that nothing comes after that.
func (ch *channels) end(code int32, err error) {
	if werr := ch.write(channelStatus, statusOf(code, err)); werr != nil {
		return
	}
	message := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = ch.conn.WriteControl(websocket.CloseMessage, message, time.Now().Add(leaveTime))
}

// statusOf is what clients read a command's end from: a Status of Kubernetes' meta/v1.
func statusOf(code int32, err error) []byte {
	type cause struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	type details struct {
		Causes []cause `json:"causes"`
	}
	status := struct {
		Metadata struct{} `json:"metadata"`
		Status   string   `json:"status"`
		Message  string   `json:"message,omitempty"`
		Reason   string   `json:"reason,omitempty"`
		Details  *details `json:"details,omitempty"`
		Code     int      `json:"code,omitempty"`
	}{Status: "Success"}
	switch {
	case err != nil:
		status.Status, status.Reason, status.Message, status.Code = "Failure", "InternalError", err.Error(), http.StatusInternalServerError
	case code != 0:
		status.Status, status.Reason = "Failure", "NonZeroExitCode"
		status.Message = fmt.Sprintf("command terminated with non-zero exit code: exit code %d", code)
		status.Details = &details{[]cause{{"ExitCode", strconv.Itoa(int(code))}}}
	}
	text, _ := json.Marshal(status) // of strings and numbers
	return text
}

// serveTunnel serves port-forward by SPDY inside of a WebSocket's binary messages.
func (s *Server) serveTunnel(w http.ResponseWriter, r *http.Request, serve func(http.ResponseWriter, *http.Request)) {
	conn, ok := upgrade(w, r, tunnelProtocol)
	if !ok {
		return
	}
	inner := r.Clone(r.Context())
	inner.Method, inner.Header = http.MethodPost, http.Header{}
	inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
	t := &tunnel{Conn: conn.NetConn(), ws: conn}
	serve(&upgraded{header: http.Header{}, conn: t}, inner)
	_ = t.Close()
}

// upgraded is a response whose connection was upgraded before.
type upgraded struct {
	header http.Header
	conn   net.Conn
}

func (u *upgraded) Header() http.Header         { return u.header }
func (u *upgraded) Write(p []byte) (int, error) { return len(p), nil } // only an error's text
func (u *upgraded) WriteHeader(int)             {}
func (u *upgraded) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return u.conn, bufio.NewReadWriter(bufio.NewReader(u.conn), bufio.NewWriter(u.conn)), nil
}

// tunnel is the stream of bytes in a WebSocket's binary messages.
type tunnel struct {
	net.Conn // what is beneath, for addresses and deadlines
	ws       *websocket.Conn

	message io.Reader // the one that is being read; of Read alone
	writing sync.Mutex
}

func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			kind, m, err := t.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("a message is not binary")
			}
			t.message = m
		}
		n, err := t.message.Read(p)
		if errors.Is(err, io.EOF) {
			t.message, err = nil, nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

func (t *tunnel) Write(p []byte) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	if err := t.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close says goodbye and hangs up.
func (t *tunnel) Close() error {
	_ = t.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	return t.ws.Close()
}
