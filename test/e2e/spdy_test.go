//go:build e2e

package e2e

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cri-engine/cri-engine/test/harness"
)

// streamClient is a client at the URL that Exec, Attach or PortForward returned.
type streamClient struct {
	nc   net.Conn
	conn httpstream.Connection
	// nil where not asked for
	failure, stdin, stdout, stderr, resize httpstream.Stream
}

// streamLimit ends reads of what never comes.
const streamLimit = 5 * time.Minute

// connect upgrades a connection to SPDY.
func connect(address, protocol string) (*streamClient, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	nc, err := net.DialTimeout("tcp", u.Host, slowly(10*time.Second))
	if err != nil {
		return nil, err
	}
	_ = nc.SetDeadline(time.Now().Add(slowly(10 * time.Second)))
	conn, err := harness.UpgradeSPDY(nc, address, protocol)
	if err != nil {
		nc.Close()
		return nil, err
	}
	_ = nc.SetDeadline(time.Now().Add(slowly(streamLimit)))
	return &streamClient{nc: nc, conn: conn}, nil
}

func (c *streamClient) open(kind string, more ...string) (httpstream.Stream, error) {
	h := http.Header{}
	h.Set(remotecommand.StreamType, kind)
	for i := 0; i+1 < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	return c.conn.CreateStream(h)
}

type streamsWanted struct{ stdin, stdout, stderr, tty bool }

// connectStreams opens the streams of an exec or attach.
func connectStreams(address string, want streamsWanted) (*streamClient, error) {
	c, err := connect(address, remotecommand.StreamProtocolV4Name)
	if err != nil {
		return nil, err
	}
	for _, s := range []struct {
		wanted bool
		kind   string
		to     *httpstream.Stream
	}{
		{true, remotecommand.StreamTypeError, &c.failure},
		{want.stdin, remotecommand.StreamTypeStdin, &c.stdin},
		{want.stdout, remotecommand.StreamTypeStdout, &c.stdout},
		{want.stderr, remotecommand.StreamTypeStderr, &c.stderr},
		{want.tty, remotecommand.StreamTypeResize, &c.resize},
	} {
		if !s.wanted {
			continue
		}
		if *s.to, err = c.open(s.kind); err != nil {
			c.cut()
			return nil, err
		}
	}
	return c, nil
}

func mustConnect(t testing.TB, address string, want streamsWanted) *streamClient {
	t.Helper()
	c, err := connectStreams(address, want)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.cut)
	return c
}

// cut ends the connection without a word, as a client does that is killed.
func (c *streamClient) cut() {
	c.nc.Close()
	if c.conn != nil {
		c.conn.Close()
	}
}

// code is what the command ended with, from the status at the end of the error stream.
func (c *streamClient) code(t testing.TB) int {
	t.Helper()
	data, err := io.ReadAll(c.failure)
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Status, Message string
		Details         struct{ Causes []struct{ Message string } }
	}
	if err := json.Unmarshal(data, &status); err != nil {
		t.Fatalf("status %q: %v", data, err)
	}
	if status.Status == "Success" {
		return 0
	}
	for _, cause := range status.Details.Causes {
		if n, err := strconv.Atoi(cause.Message); err == nil {
			return n
		}
	}
	t.Fatalf("no exit code: %q", data)
	return -1
}

// forwarded is one connection to a port of a pod.
type forwarded struct {
	data   httpstream.Stream
	failed <-chan string // has what the error stream said, at its end
}

func (c *streamClient) forward(port, request int) (f forwarded, err error) {
	id := []string{portforward.PortHeader, strconv.Itoa(port), portforward.PortForwardRequestIDHeader, strconv.Itoa(request)}
	failure, err := c.open(portforward.StreamTypeError, id...)
	if err != nil {
		return f, err
	}
	_ = failure.Close() // nothing is written there
	failed := make(chan string, 1)
	f.failed = failed
	go func() { // all streams of a connection stand still while one is not read
		text, _ := io.ReadAll(failure)
		failed <- string(text)
	}()
	f.data, err = c.open(portforward.StreamTypeData, id...)
	return f, err
}
