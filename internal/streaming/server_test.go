package streaming

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/cri-engine/cri-engine/test/harness"
)

// fakeEngine's commands: "echo" gives stdin back, "hang" waits for the end of its
// context, "size" tells the first size of its terminal, and all end with the code 7.
type fakeEngine struct {
	running atomic.Int32
}

func (e *fakeEngine) Exec(ctx context.Context, id string, command []string, s Streams) (int32, error) {
	e.running.Add(1)
	defer e.running.Add(-1)
	fmt.Fprintf(s.Stdout, "%s in %s\n", command[0], id)
	switch command[0] {
	case "hang":
		<-ctx.Done()
		return 0, ctx.Err()
	case "echo":
		_, _ = io.Copy(s.Stdout, s.Stdin)
	case "line": // WebSocket has no half-close in this version of the protocol
		line, _ := bufio.NewReader(s.Stdin).ReadString('\n')
		fmt.Fprintf(s.Stderr, "got %s", line)
	case "size":
		select {
		case size := <-s.Resize:
			fmt.Fprintf(s.Stdout, "%dx%d", size.Columns, size.Rows)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	case "fail":
		return 0, errors.New("there is no such program")
	}
	return 7, nil
}

func (e *fakeEngine) Attach(ctx context.Context, id string, s Streams) error {
	if s.Stdin != nil || s.Stderr != nil {
		return errors.New("only stdout was asked for")
	}
	fmt.Fprintln(s.Stdout, "attached to "+id)
	return nil
}

func (e *fakeEngine) PortForward(_ context.Context, id string, port int32, client ReadWriteCloser) error {
	if port == 9 {
		return errors.New("connection refused")
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(client, buf); err != nil {
		return err
	}
	_, err := client.Write([]byte(strings.ToUpper(string(buf))))
	return err
}

func listen(t testing.TB, o Options) (*Server, *fakeEngine) {
	t.Helper()
	e := &fakeEngine{}
	o.Engine, o.Address = e, "127.0.0.1:0"
	if o.IdleTimeout == 0 {
		o.IdleTimeout = time.Minute
	}
	if o.CreationTimeout == 0 {
		o.CreationTimeout = 10 * time.Second
	}
	s, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, e
}

func execURL(t testing.TB, s *Server, command string, tty bool) string {
	t.Helper()
	u, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c1", Cmd: []string{command}, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// socket connects as kubectl does, with a library that is not the server's.
func socket(t testing.TB, address, protocol string, config *tls.Config) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{Subprotocols: []string{protocol}, HandshakeTimeout: 10 * time.Second, TLSClientConfig: config}
	c, resp, err := d.Dial("ws"+strings.TrimPrefix(address, "http"), nil)
	if err != nil {
		t.Fatalf("%v: %v", err, resp)
	}
	t.Cleanup(func() { c.Close() })
	if c.Subprotocol() != protocol {
		t.Fatalf("the protocol is %q", c.Subprotocol())
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	return c
}

func send(t testing.TB, c *websocket.Conn, channel byte, data string) {
	t.Helper()
	if err := c.WriteMessage(websocket.BinaryMessage, append([]byte{channel}, data...)); err != nil {
		t.Fatal(err)
	}
}

// receive reads all there is until the server closes, by channel.
func receive(t testing.TB, c *websocket.Conn) map[byte]string {
	t.Helper()
	all := map[byte]string{}
	for {
		_, data, err := c.ReadMessage()
		if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseNoStatusReceived, websocket.CloseAbnormalClosure) {
			return all
		}
		if err != nil || len(data) == 0 {
			t.Fatalf("message %q, %v", data, err)
		}
		all[data[0]] += string(data[1:])
	}
}

const (
	v4 = "v4.channel.k8s.io"
	v5 = "v5.channel.k8s.io"
)

func TestStdinCanEndBeforeTheCommandOverWebSocket(t *testing.T) {
	s, e := listen(t, Options{})
	c := socket(t, execURL(t, s, "echo", false), v5, nil)
	want := "echo in c1\n"
	for range 100 {
		data := strings.Repeat("0123456789", 1000)
		send(t, c, 0, data)
		want += data
	}
	send(t, c, 255, "\x00")
	got := receive(t, c)
	if got[1] != want || !strings.Contains(got[3], `"reason":"ExitCode","message":"7"`) {
		t.Errorf("got %d bytes of %d, status %q", len(got[1]), len(want), got[3])
	}

	c = socket(t, execURL(t, s, "size", true), v5, nil)
	send(t, c, 4, `{"Width":101,"Height":33}`)
	if got := receive(t, c); got[1] != "size in c1\n101x33" {
		t.Errorf("a terminal got %q", got)
	}

	c = socket(t, execURL(t, s, "fail", false), v5, nil)
	if got := receive(t, c); !strings.Contains(got[3], "error executing command in container: there is no such program") {
		t.Errorf("a failure: %q", got)
	}

	u, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c1", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := receive(t, socket(t, u, v5, nil)); got[1] != "attached to c1\n" || !strings.Contains(got[3], "Success") {
		t.Errorf("attached: %q", got)
	}
	waitFor(t, "all commands to end", func() bool { return e.running.Load() == 0 })
}

func TestWhoBreaksTheProtocolIsLeft(t *testing.T) {
	s, e := listen(t, Options{})
	for name, message := range map[string]string{
		"a channel that is not the client's": "\x01x", "an end of two channels": "\xff\x00\x01", "a size that is none": "\x04{",
		"a message that is too long": strings.Repeat("x", maxMessage+1),
	} {
		c := socket(t, execURL(t, s, "hang", false), v5, nil)
		waitFor(t, "the command to run", func() bool { return e.running.Load() == 1 })
		_ = c.WriteMessage(websocket.BinaryMessage, []byte(message))
		waitFor(t, "the command to end after "+name, func() bool { return e.running.Load() == 0 })
	}
}

func TestACommandThatReadsNothingDoesNotKeepItsEndFromTheClient(t *testing.T) {
	s, _ := listen(t, Options{})
	c := socket(t, execURL(t, s, "line", false), v5, nil)
	send(t, c, 0, "hello\n"+strings.Repeat("more\n", 10000))
	send(t, c, 0, "and more")
	if got := receive(t, c); got[2] != "got hello\n" || !strings.Contains(got[3], `"message":"7"`) {
		t.Errorf("got %q", got)
	}
}

func TestPortForwardBySPDYInWebSocket(t *testing.T) {
	s, _ := listen(t, Options{})
	u, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p1"})
	if err != nil {
		t.Fatal(err)
	}
	ws := socket(t, u, tunnelProtocol, nil)
	conn, err := spdy.NewClientConnection(&tunnel{Conn: ws.NetConn(), ws: ws})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i, port := range []string{"80", "9"} {
		h := http.Header{}
		h.Set("port", port)
		h.Set("requestID", fmt.Sprint(i))
		h.Set("streamType", "error")
		failure, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		failure.Close()
		h.Set("streamType", "data")
		data, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(data, "hello"); err != nil {
			t.Fatal(err)
		}
		data.Close()
		if port == "9" {
			if text, _ := io.ReadAll(failure); !strings.Contains(string(text), "connection refused") {
				t.Errorf("of a port that nobody listens on: %q", text)
			}
			continue
		}
		buf := make([]byte, 5)
		if _, err := io.ReadFull(data, buf); err != nil || string(buf) != "HELLO" {
			t.Errorf("got %q, %v", buf, err)
		}
	}
}

func TestExecOverWebSocket(t *testing.T) {
	s, _ := listen(t, Options{})
	c := socket(t, execURL(t, s, "line", false), v4, nil)
	send(t, c, 0, "hello\n")
	got := receive(t, c)
	if got[1] != "line in c1\n" || got[2] != "got hello\n" || !strings.Contains(got[3], `"ExitCode","message":"7"`) {
		t.Errorf("got %q", got)
	}

	c = socket(t, execURL(t, s, "size", true), v4, nil)
	send(t, c, 4, `{"Width":101,"Height":33}`)
	if got := receive(t, c); got[1] != "size in c1\n101x33" {
		t.Errorf("got %q", got)
	}

	c = socket(t, execURL(t, s, "fail", false), v4, nil)
	if got := receive(t, c); !strings.Contains(got[3], "there is no such program") {
		t.Errorf("got %q", got)
	}
}

func TestAttachOverWebSocketHasOnlyTheStreamsThatWereAskedFor(t *testing.T) {
	s, _ := listen(t, Options{})
	u, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c1", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := receive(t, socket(t, u, v4, nil)); got[1] != "attached to c1\n" || !strings.Contains(got[3], "Success") {
		t.Errorf("got %q", got)
	}
}

func TestPortForwardOverWebSocket(t *testing.T) {
	s, _ := listen(t, Options{})
	u, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p1", Port: []int32{80, 9}})
	if err != nil {
		t.Fatal(err)
	}
	c := socket(t, u, v4, nil)
	send(t, c, 0, "hello")
	got := receive(t, c)
	port := func(n uint16) string { return string(binary.LittleEndian.AppendUint16(nil, n)) }
	if got[0] != port(80)+"HELLO" || got[2] != port(9) || !strings.Contains(got[3], "connection refused") {
		t.Errorf("got %q", got)
	}
}

// spdyConn upgrades a connection to SPDY as the kubelet does.
func spdyConn(t testing.TB, nc net.Conn, address string) httpstream.Connection {
	t.Helper()
	conn, err := harness.UpgradeSPDY(nc, address, remotecommand.StreamProtocolV4Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func open(t testing.TB, conn httpstream.Connection, kind string) httpstream.Stream {
	t.Helper()
	h := http.Header{}
	h.Set(remotecommand.StreamType, kind)
	s, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestExecOverSPDYAndTLS(t *testing.T) {
	ca := newAuthority(t)
	server := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ca.issue(t, "127.0.0.1")}, NextProtos: []string{"http/1.1"},
		ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
	s, _ := listen(t, Options{TLS: server})
	address := execURL(t, s, "echo", false)
	if !strings.HasPrefix(address, "https://127.0.0.1:") {
		t.Fatalf("the URL is %s", address)
	}
	t.Run("a client without a certificate is not served", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool}}, Timeout: 10 * time.Second}
		defer client.CloseIdleConnections()
		if resp, err := client.Get("https://" + s.Address() + "/exec/x"); err == nil {
			t.Errorf("it got %s", resp.Status)
		}
	})
	t.Run("a client without TLS is not served", func(t *testing.T) {
		client := &http.Client{Timeout: 10 * time.Second}
		defer client.CloseIdleConnections()
		if resp, err := client.Get("http://" + s.Address() + "/exec/x"); err == nil && resp.StatusCode != http.StatusBadRequest {
			t.Errorf("it got %s", resp.Status)
		}
	})
	config := &tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{ca.issue(t, "client")}, ServerName: "127.0.0.1"}
	t.Run("SPDY with a certificate is", func(t *testing.T) {
		nc, err := tls.Dial("tcp", s.Address(), config)
		if err != nil {
			t.Fatal(err)
		}
		conn := spdyConn(t, nc, address)
		failure, in, out := open(t, conn, "error"), open(t, conn, "stdin"), open(t, conn, "stdout")
		open(t, conn, "stderr")
		if _, err := io.WriteString(in, "hello"); err != nil {
			t.Fatal(err)
		}
		in.Close() // half of it
		got, _ := io.ReadAll(out)
		status, _ := io.ReadAll(failure)
		if string(got) != "echo in c1\nhello" || !strings.Contains(string(status), `"message":"7"`) {
			t.Errorf("got %q and %q", got, status)
		}
	})
	t.Run("WebSocket with a certificate is", func(t *testing.T) {
		c := socket(t, execURL(t, s, "line", false), v4, config)
		send(t, c, 0, "hello\n")
		if got := receive(t, c); got[2] != "got hello\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestAConnectionOnWhichNothingMovesIsEnded(t *testing.T) {
	s, e := listen(t, Options{IdleTimeout: 300 * time.Millisecond})
	t.Run("over WebSocket", func(t *testing.T) {
		for _, protocol := range []string{v4, v5} {
			c := socket(t, execURL(t, s, "hang", false), protocol, nil)
			if got := receive(t, c); got[1] != "hang in c1\n" {
				t.Errorf("got %q", got)
			}
		}
		waitFor(t, "the command to end", func() bool { return e.running.Load() == 0 })
	})
	t.Run("over SPDY", func(t *testing.T) {
		nc, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Fatal(err)
		}
		conn := spdyConn(t, nc, execURL(t, s, "hang", false))
		for _, kind := range []string{"error", "stdin", "stdout", "stderr"} {
			open(t, conn, kind)
		}
		select {
		case <-conn.CloseChan():
		case <-time.After(10 * time.Second):
			t.Error("it is still there")
		}
		waitFor(t, "the command to end", func() bool { return e.running.Load() == 0 })
	})
}

func TestAClientThatDoesNotOpenItsStreamsIsLeft(t *testing.T) {
	s, e := listen(t, Options{CreationTimeout: 300 * time.Millisecond})
	nc, err := net.Dial("tcp", s.Address())
	if err != nil {
		t.Fatal(err)
	}
	conn := spdyConn(t, nc, execURL(t, s, "hang", false))
	open(t, conn, "error")
	select {
	case <-conn.CloseChan():
	case <-time.After(leaveTime + 10*time.Second):
		t.Error("the connection is still there")
	}
	if e.running.Load() != 0 {
		t.Error("the command was run")
	}
}

func TestACommandEndsWithItsClientAndWithTheServer(t *testing.T) {
	s, e := listen(t, Options{})
	start := func(protocol string) *websocket.Conn {
		c := socket(t, execURL(t, s, "hang", false), protocol, nil)
		waitFor(t, "the command to run", func() bool { return e.running.Load() == 1 })
		return c
	}
	for _, protocol := range []string{v4, v5} {
		start(protocol).NetConn().Close()
		waitFor(t, "the command to end", func() bool { return e.running.Load() == 0 })
	}
	start(v5)
	s.Close()
	if n := e.running.Load(); n != 0 {
		t.Errorf("%d commands run on after Close", n)
	}
}

func TestATokenIsGoodForOneConnectionOfItsKindWithinAMinute(t *testing.T) {
	s, _ := listen(t, Options{})
	get := func(address string) int {
		t.Helper()
		resp, err := http.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	address := execURL(t, s, "echo", false)
	if got := get(strings.Replace(address, "/exec/", "/attach/", 1)); got != http.StatusNotFound {
		t.Errorf("another kind: %d", got)
	}
	if got := get(address); got != http.StatusNotFound {
		t.Errorf("after a wrong try: %d", got)
	}
	address = execURL(t, s, "echo", false)
	if got := get(address); got == http.StatusNotFound { // no upgrade, but known
		t.Errorf("a good one: %d", got)
	}
	if got := get(address); got != http.StatusNotFound {
		t.Errorf("the second time: %d", got)
	}
	address = execURL(t, s, "echo", false)
	s.tokens.mu.Lock()
	s.tokens.now = func() time.Time { return time.Now().Add(tokenTime + time.Second) }
	s.tokens.mu.Unlock()
	if got := get(address); got != http.StatusNotFound {
		t.Errorf("too late: %d", got)
	}
}

func TestRequestsThatWaitAreBounded(t *testing.T) {
	k := newTokens()
	now := time.Now()
	k.now = func() time.Time { return now }
	for range maxTokens {
		if _, err := k.add("x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := k.add("x"); err == nil || !strings.Contains(err.Error(), "ResourceExhausted") {
		t.Errorf("one too many: %v", err)
	}
	now = now.Add(tokenTime + time.Second)
	if _, err := k.add("x"); err != nil || len(k.waiting) != 1 {
		t.Errorf("when the others are too old: %v, %d wait", err, len(k.waiting))
	}
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var der []byte
	a.key, der = sign(t, template, template, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	key, der := sign(t, template, a.cert, a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func sign(t testing.TB, template, parent *x509.Certificate, by *ecdsa.PrivateKey) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if by == nil {
		by = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

func TestStatusOfTheLastFrameIsJSON(t *testing.T) {
	s, _ := listen(t, Options{})
	c := socket(t, execURL(t, s, "line", false), v4, nil)
	send(t, c, 0, "\n")
	var status struct{ Status, Reason string }
	if err := json.Unmarshal([]byte(receive(t, c)[3]), &status); err != nil || status.Status != "Failure" || status.Reason != "NonZeroExitCode" {
		t.Errorf("%+v, %v", status, err)
	}
}
