package cli

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// streamTime is how long a streaming server may take to take a connection.
const streamTime = 30 * time.Second

// maxStatus bounds what is read from an error stream.
const maxStatus = 64 << 10

// dialStream connects to a URL that Exec, Attach or PortForward answered. The
// connection ends with ctx.
func dialStream(ctx context.Context, address, protocol string) (httpstream.Connection, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the runtime answered with no URL")
	}
	nc, err := dialURL(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("connect to the runtime's streams: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	conn, err := upgrade(ctx, nc, u, protocol)
	if err != nil {
		stop()
		nc.Close()
		return nil, fmt.Errorf("connect to the runtime's streams at %s: %w", u.Host, err)
	}
	return conn, nil
}

func dialURL(ctx context.Context, u *url.URL) (net.Conn, error) {
	d := net.Dialer{Timeout: streamTime}
	switch u.Scheme {
	case "http":
		return d.DialContext(ctx, "tcp", u.Host)
	case "https":
		// The URL came over the runtime's own socket, and the token in it is what the
		// server is trusted with; its certificate is often signed by nobody known here.
		t := tls.Dialer{NetDialer: &d, Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}} //nolint:gosec // G402: see above
		return t.DialContext(ctx, "tcp", u.Host)
	}
	return nil, fmt.Errorf("scheme %.20q is neither http nor https", u.Scheme)
}

func upgrade(ctx context.Context, nc net.Conn, u *url.URL, protocol string) (httpstream.Connection, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	req.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	_ = nc.SetDeadline(time.Now().Add(streamTime))
	if err := req.Write(nc); err != nil {
		return nil, err
	}
	// The server sends nothing before a stream is opened, so nothing is lost in the buffer.
	resp, err := http.ReadResponse(bufio.NewReader(nc), req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
		return nil, fmt.Errorf("%s: %s", resp.Status, text)
	}
	_ = nc.SetDeadline(time.Time{})
	return spdy.NewClientConnection(nc)
}

// terminalSize is what goes over the resize stream.
type terminalSize struct {
	Width, Height uint16
}

// stdio are the local ends of a command's streams; nil for those that are not asked for.
type stdio struct {
	in       io.Reader
	out, err io.Writer
	tty      bool
	sizes    <-chan terminalSize // nil without a terminal
	opened   func()              // called when all streams are open; may be nil
}

// stream serves a command's streams until it has ended, and returns its exit code.
func stream(ctx context.Context, address string, local stdio) (code int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dialStream(ctx, address, remotecommand.StreamProtocolV4Name)
	if err != nil {
		return 0, err
	}
	var outputs sync.WaitGroup
	defer outputs.Wait() // the writers are the caller's again, whatever the end was
	defer conn.Close()
	failure, err := openStream(conn, remotecommand.StreamTypeError)
	if err != nil {
		return 0, err
	}
	_ = failure.Close() // nothing is written there
	var in httpstream.Stream
	if local.in != nil {
		if in, err = openStream(conn, remotecommand.StreamTypeStdin); err != nil {
			return 0, err
		}
	}
	for kind, to := range map[string]io.Writer{remotecommand.StreamTypeStdout: local.out, remotecommand.StreamTypeStderr: local.err} {
		if to == nil {
			continue
		}
		s, err := openStream(conn, kind)
		if err != nil {
			return 0, err
		}
		outputs.Go(func() { _, _ = io.Copy(to, s) })
	}
	if local.tty {
		s, err := openStream(conn, remotecommand.StreamTypeResize)
		if err != nil {
			return 0, err
		}
		go sendSizes(ctx, s, local.sizes)
	}
	if local.opened != nil {
		local.opened()
	}
	if in != nil {
		// Not before: a key that detaches would cut streams off that are being opened.
		go func() { // ends with the program's stdin, or at a write after the connection's end
			_, _ = io.Copy(in, local.in)
			_ = in.Close()
		}()
	}
	text, err := io.ReadAll(io.LimitReader(failure, maxStatus))
	if err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	outputs.Wait()
	return exitStatus(text)
}

func openStream(conn httpstream.Connection, kind string, more ...string) (httpstream.Stream, error) {
	h := http.Header{}
	h.Set(remotecommand.StreamType, kind)
	for i := 0; i+1 < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	s, err := conn.CreateStream(h)
	if err != nil {
		return nil, fmt.Errorf("open stream %s: %w", kind, err)
	}
	return s, nil
}

func sendSizes(ctx context.Context, to io.Writer, sizes <-chan terminalSize) {
	e := json.NewEncoder(to)
	for {
		select {
		case size := <-sizes:
			if e.Encode(size) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// errCut is the end of a connection that nobody gave a reason for.
var errCut = errors.New("the connection was cut")

// exitStatus reads what the error stream said at its end (v4.channel.k8s.io).
func exitStatus(text []byte) (int, error) {
	if len(text) == 0 {
		return 0, errCut
	}
	var status struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return 0, fmt.Errorf("the runtime's answer is not understood: %.200q", text)
	}
	if status.Status == "Success" {
		return 0, nil
	}
	for _, c := range status.Details.Causes {
		if c.Reason != remotecommand.ExitCodeCauseType {
			continue
		}
		if code, err := strconv.Atoi(c.Message); err == nil {
			return code, nil
		}
	}
	return 0, errors.New(status.Message)
}
