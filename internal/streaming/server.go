package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

// Streams are a client's ends of a process's streams.
type Streams = sandbox.Streams

// Engine does what clients ask for. Each call returns soon after ctx ends, which is
// when the client's connection does.
type Engine interface {
	// Exec returns the command's exit code.
	Exec(ctx context.Context, id string, command []string, s Streams) (int32, error)
	Attach(ctx context.Context, id string, s Streams) error
	PortForward(ctx context.Context, podID string, port int32, client ReadWriteCloser) error
}

// Options are what a server runs with.
type Options struct {
	Engine Engine
	// Address to listen on, host:port; port 0 is any free one.
	Address string
	// TLS is nil for plain HTTP.
	TLS *tls.Config
	// IdleTimeout ends a connection on which nothing moves, CreationTimeout one whose client
	// does not open its streams.
	IdleTimeout, CreationTimeout time.Duration
}

// Server serves streams.
type Server struct {
	o      Options
	l      net.Listener
	http   *http.Server
	tokens *tokens
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	ended  chan struct{} // closed when the listener's loop is over

	closing sync.Mutex // Held to add to calls while ctx has not ended.
	calls   sync.WaitGroup
}

// maxHeader bounds a request's header, headerTime how long it may take to come.
const (
	maxHeader  = 64 << 10
	headerTime = 10 * time.Second
)

// Listen starts a server.
func Listen(o Options) (*Server, error) {
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("streaming.address %s: %w", o.Address, err)
	}
	s := &Server{o: o, l: l, tokens: newTokens(), ended: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler: s.handler(), TLSConfig: o.TLS, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: headerTime, IdleTimeout: headerTime,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			return context.WithValue(ctx, connKey{}, c.(*conn))
		},
		// The library's upgrades are of HTTP/1.1.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog:     klog.NewStandardLogger("WARNING"),
	}
	go s.serve()
	return s, nil
}

func (s *Server) serve() {
	defer close(s.ended)
	l := net.Listener(&listener{s.l, s.ctx})
	if s.o.TLS != nil {
		l = tls.NewListener(l, s.o.TLS)
	}
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		klog.ErrorS(err, "Streaming ended: exec, attach and port-forward do not work", "address", s.l.Addr())
	}
}

// Close ends the server and all its connections, and returns when their calls have ended.
func (s *Server) Close() {
	s.closing.Lock()
	s.cancel()
	s.closing.Unlock()
	_ = s.http.Close()
	<-s.ended
	s.calls.Wait()
}

// begin counts a call that Close waits for, until calls.Done. False: it came too late.
func (s *Server) begin() bool {
	s.closing.Lock()
	defer s.closing.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.calls.Add(1)
	return true
}

// Address is where the server listens, host:port.
func (s *Server) Address() string { return s.l.Addr().String() }

func (s *Server) url(method, token string) string {
	scheme := "http"
	if s.o.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + s.Address() + "/" + method + "/" + token
}

type connKey struct{}

// connOf returns the request's connection, whose context ends with it, also after it
// was taken over from HTTP.
func connOf(r *http.Request) *conn { return r.Context().Value(connKey{}).(*conn) }

// listener gives each connection a context, a child of ctx.
type listener struct {
	net.Listener
	ctx context.Context
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := &conn{Conn: c}
	w.ctx, w.cancel = context.WithCancel(l.ctx)
	context.AfterFunc(w.ctx, func() { c.Close() })
	return w, nil
}

// conn ends its context when the client is gone: the protocols read all the time,
// and see it there first.
type conn struct {
	net.Conn
	ctx    context.Context
	cancel context.CancelFunc
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.failed(err)
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.failed(err)
	return n, err
}

func (c *conn) failed(err error) {
	var timeout net.Error
	// HTTP ends its own reads by a deadline when a connection is taken over.
	if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
		c.cancel()
	}
}

func (c *conn) Close() error {
	c.cancel()
	return c.Conn.Close()
}
