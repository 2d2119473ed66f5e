package streaming

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

// Over SPDY, what kubectl and crictl speak is served here and not by the library: port-forward,
// and v4.channel.k8s.io for exec and attach. A stream whose opening could not be answered
// any more, since the client had gone, holds whoever writes to it or closes it for good
// (github.com/moby/spdystream waits for an answer that nobody will send), and the library
// does so. Older protocols are left to it.

// speaksSPDY tells whether the client offers the protocol over SPDY.
func speaksSPDY(r *http.Request, protocol string) bool {
	if !strings.EqualFold(r.Header.Get(httpstream.HeaderUpgrade), spdy.HeaderSpdy31) {
		return false
	}
	for _, values := range r.Header.Values(httpstream.HeaderProtocolVersion) {
		for offered := range strings.SplitSeq(values, ",") {
			if strings.TrimSpace(offered) == protocol {
				return true
			}
		}
	}
	return false
}

// spdyStreams are a client's connection and the streams that it opens.
type spdyStreams struct {
	httpstream.Connection
	// opened are streams whose opening was answered: writing to them does not wait for it.
	opened chan httpstream.Stream
}

// upgradeSPDY takes the connection over. check refuses a stream that is not to be opened.
// False: the client was told.
func (s *Server) upgradeSPDY(w http.ResponseWriter, r *http.Request, c *call, protocol string, check func(httpstream.Stream) error) (*spdyStreams, bool) {
	if _, err := httpstream.Handshake(r, w, []string{protocol}); err != nil {
		return nil, false
	}
	conn := &spdyStreams{opened: make(chan httpstream.Stream)}
	begun := make(chan struct{})
	conn.Connection = spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, answered <-chan struct{}) error {
		if err := check(stream); err != nil {
			return err
		}
		go func() { // ends with the connection
			<-begun
			conn.pass(c.ctx, stream, answered)
		}()
		return nil
	})
	close(begun)
	if conn.Connection == nil {
		return nil, false
	}
	conn.SetIdleTimeout(s.o.IdleTimeout)
	return conn, true
}

// pass waits for the answer to a stream's opening. That it was tried to is all that the
// library says; it fails when the connection has failed, which ends ctx, or was closed.
func (conn *spdyStreams) pass(ctx context.Context, stream httpstream.Stream, answered <-chan struct{}) {
	select {
	case <-answered:
	case <-conn.CloseChan():
		return
	}
	select {
	case <-conn.CloseChan():
		return
	default:
	}
	if ctx.Err() != nil {
		return
	}
	select {
	case conn.opened <- stream:
	case <-ctx.Done():
	case <-conn.CloseChan():
	}
}

// serveV4 upgrades the connection and serves a command's streams until it has ended.
func (s *Server) serveV4(w http.ResponseWriter, r *http.Request, c *call, run func(Streams) (int32, error)) {
	wanted := map[string]bool{
		remotecommand.StreamTypeError: true, remotecommand.StreamTypeStdin: c.asked.Stdin, remotecommand.StreamTypeStdout: c.asked.Stdout,
		remotecommand.StreamTypeStderr: c.asked.Stderr, remotecommand.StreamTypeResize: c.asked.TTY,
	}
	var count atomic.Int32
	conn, ok := s.upgradeSPDY(w, r, c, remotecommand.StreamProtocolV4Name, func(stream httpstream.Stream) error {
		kind := stream.Headers().Get(remotecommand.StreamType)
		if !wanted[kind] || int(count.Add(1)) > len(wanted) {
			return fmt.Errorf("a stream %.20q was not asked for", kind)
		}
		return nil
	})
	if !ok {
		return
	}
	defer conn.Close()
	streams, ok := conn.wait(c.ctx, wanted, s.o.CreationTimeout)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	ours := Streams{TTY: c.asked.TTY}
	if stdin := streams[remotecommand.StreamTypeStdin]; stdin != nil {
		ours.Stdin = stdin
	}
	if stdout := streams[remotecommand.StreamTypeStdout]; stdout != nil {
		ours.Stdout = stdout
	}
	if stderr := streams[remotecommand.StreamTypeStderr]; stderr != nil {
		ours.Stderr = stderr
	}
	if resize := streams[remotecommand.StreamTypeResize]; resize != nil {
		sizes := make(chan sandbox.WindowSize)
		ours.Resize = sizes
		go readSizes(ctx, resize, sizes)
	}
	code, err := run(ours)
	_, _ = streams[remotecommand.StreamTypeError].Write(statusOf(code, err))
}

// wait returns the wanted streams when all of them are open; false when they are not in time.
func (conn *spdyStreams) wait(ctx context.Context, wanted map[string]bool, limit time.Duration) (map[string]httpstream.Stream, bool) {
	missing := 0
	for _, want := range wanted {
		if want {
			missing++
		}
	}
	streams := map[string]httpstream.Stream{}
	late := time.NewTimer(limit)
	defer late.Stop()
	for len(streams) < missing {
		select {
		case stream := <-conn.opened:
			streams[stream.Headers().Get(remotecommand.StreamType)] = stream
		case <-late.C:
			klog.V(2).InfoS("A client did not open its streams in time")
			return nil, false
		case <-ctx.Done():
			return nil, false
		case <-conn.CloseChan():
			return nil, false
		}
	}
	return streams, true
}

// readSizes passes a terminal's sizes on. It ends with the stream, or with ctx and the connection.
func readSizes(ctx context.Context, from io.Reader, to chan<- sandbox.WindowSize) {
	defer close(to)
	d := json.NewDecoder(from)
	for {
		var size struct{ Width, Height uint16 }
		if d.Decode(&size) != nil {
			return
		}
		select {
		case to <- sandbox.WindowSize{Columns: size.Width, Rows: size.Height}:
		case <-ctx.Done():
			return
		}
	}
}

// forward is one forwarded connection: a stream for its bytes and one for what went wrong.
type forwarded struct {
	port          uint16
	data, failure httpstream.Stream
	late          *time.Timer
}

// serveForwards upgrades the connection, and forwards as many as the client asks for.
func (s *Server) serveForwards(w http.ResponseWriter, r *http.Request, c *call, podID string) {
	conn, ok := s.upgradeSPDY(w, r, c, portforward.ProtocolV1Name, func(stream httpstream.Stream) error {
		_, err := portOf(stream)
		return err
	})
	if !ok {
		return
	}
	defer conn.Close()
	half := map[string]*forwarded{} // those that have one of their streams, by the client's name for them
	late := make(chan string)
	for {
		select {
		case stream := <-conn.opened:
			id := requestOf(stream)
			f := half[id]
			if f == nil {
				f = &forwarded{}
				f.late = time.AfterFunc(s.o.CreationTimeout, func() {
					select {
					case late <- id:
					case <-c.ctx.Done():
					case <-conn.CloseChan():
					}
				})
				half[id] = f
			}
			if f.add(stream) {
				f.late.Stop()
				delete(half, id)
				go conn.forward(c, podID, f)
			}
		case id := <-late:
			if f := half[id]; f != nil {
				delete(half, id)
				go conn.leave(f, fmt.Errorf("request %.80q: timed out waiting for streams", id))
			}
		case <-c.ctx.Done():
			return
		case <-conn.CloseChan():
			return
		}
	}
}

// portOf is the port that a stream is for.
func portOf(stream httpstream.Stream) (uint16, error) {
	text := stream.Headers().Get(portforward.PortHeader)
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("header %s is %.20q", portforward.PortHeader, text)
	}
	switch kind := stream.Headers().Get(portforward.StreamType); kind {
	case portforward.StreamTypeData, portforward.StreamTypeError:
		return uint16(port), nil
	default:
		return 0, fmt.Errorf("header %s is %.20q", portforward.StreamType, kind)
	}
}

// requestOf is what the two streams of one forwarded connection have in common. Clients that
// do not say open the one for errors first, and the other right after it.
func requestOf(stream httpstream.Stream) string {
	if id := stream.Headers().Get(portforward.PortForwardRequestIDHeader); id != "" {
		return id
	}
	n := stream.Identifier()
	if stream.Headers().Get(portforward.StreamType) == portforward.StreamTypeData {
		n -= 2
	}
	return strconv.FormatUint(uint64(n), 10)
}

// add reports whether both streams are there. A second one of a kind is reset.
func (f *forwarded) add(stream httpstream.Stream) bool {
	f.port, _ = portOf(stream)
	to := &f.data
	if stream.Headers().Get(portforward.StreamType) == portforward.StreamTypeError {
		to = &f.failure
	}
	if *to != nil {
		_ = stream.Reset()
		return false
	}
	*to = stream
	return f.data != nil && f.failure != nil
}

func (conn *spdyStreams) forward(c *call, podID string, f *forwarded) {
	err := c.PortForward(c.ctx, podID, "", int32(f.port), f.data)
	if err != nil {
		klog.V(2).InfoS("Port-forward failed", "podSandbox", podID, "port", f.port, "err", err)
		err = fmt.Errorf("error forwarding port %d to pod %s: %w", f.port, podID, err)
	}
	conn.leave(f, err)
}

// leave ends a forwarded connection's streams. After an error, which is told, what the
// client still sends is not taken.
func (conn *spdyStreams) leave(f *forwarded, err error) {
	if err != nil && f.failure != nil {
		_, _ = io.WriteString(f.failure, err.Error())
	}
	if err != nil && f.data != nil {
		_ = f.data.Reset()
	}
	for _, stream := range []httpstream.Stream{f.failure, f.data} {
		if stream != nil {
			_ = stream.Close()
			conn.RemoveStreams(stream)
		}
	}
}
