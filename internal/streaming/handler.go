package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/utils/exec"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

// ReadWriteCloser is a client's end of a forwarded connection; Close ends its half.
type ReadWriteCloser = io.ReadWriteCloser

// Exec keeps a checked request and returns the URL that is good for one connection.
func (s *Server) Exec(r *runtimeapi.ExecRequest) (string, error) { return s.keep("exec", r) }

// Attach is like [Server.Exec].
func (s *Server) Attach(r *runtimeapi.AttachRequest) (string, error) { return s.keep("attach", r) }

// PortForward is like [Server.Exec].
func (s *Server) PortForward(r *runtimeapi.PortForwardRequest) (string, error) {
	return s.keep("portforward", r)
}

func (s *Server) keep(method string, r any) (string, error) {
	token, err := s.tokens.add(r)
	if err != nil {
		return "", err
	}
	return s.url(method, token), nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, method := range []string{"GET ", "POST "} {
		mux.HandleFunc(method+"/exec/{token}", serve(s, s.serveExec))
		mux.HandleFunc(method+"/attach/{token}", serve(s, s.serveAttach))
		mux.HandleFunc(method+"/portforward/{token}", serve(s, s.servePortForward))
	}
	return mux
}

// serve finds the request that a URL's token stands for. A wrong one, or one for
// another method, is not found, and is used up.
func serve[R any](s *Server, f func(http.ResponseWriter, *http.Request, R)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		kept, _ := s.tokens.take(r.PathValue("token"))
		request, ok := kept.(R)
		if !ok {
			http.NotFound(w, r)
			return
		}
		if !s.begin() {
			http.Error(w, "the engine stops", http.StatusServiceUnavailable)
			return
		}
		defer s.calls.Done()
		defer leave(connOf(r))
		f(w, r, request)
	}
}

// leaveTime is what a client has to take the end of its streams.
const leaveTime = 5 * time.Second

// leave ends a connection whose call is over, when the client has had time to read
// the rest. The library says goodbye and then waits for the client to hang up; to one
// that did not open its streams in time it says nothing.
func leave(c *conn) {
	timer := time.AfterFunc(leaveTime, c.cancel)
	context.AfterFunc(c.ctx, func() { timer.Stop() })
}

// optionsOf are the streams that an Exec or Attach asks for.
func optionsOf(q interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}) *remotecommand.Options {
	return &remotecommand.Options{Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), TTY: q.GetTty()}
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, q *runtimeapi.ExecRequest) {
	c, o := s.call(r), optionsOf(q)
	c.asked = *o
	if s.serveCommand(w, r, c, func(streams Streams) (int32, error) {
		code, err := s.o.Engine.Exec(c.ctx, q.GetContainerId(), q.GetCmd(), streams)
		return code, about("executing command in container", err)
	}) {
		return
	}
	remotecommand.ServeExec(w, r, c, "", "", q.GetContainerId(), q.GetCmd(), o,
		s.o.IdleTimeout, s.o.CreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, q *runtimeapi.AttachRequest) {
	c, o := s.call(r), optionsOf(q)
	c.asked = *o
	if s.serveCommand(w, r, c, func(streams Streams) (int32, error) {
		return 0, about("attaching to container", s.o.Engine.Attach(c.ctx, q.GetContainerId(), streams))
	}) {
		return
	}
	remotecommand.ServeAttach(w, r, c, "", "", q.GetContainerId(), o,
		s.o.IdleTimeout, s.o.CreationTimeout, remotecommand.SupportedStreamingProtocols)
}

// serveCommand is false for a client that speaks what is left to the library.
func (s *Server) serveCommand(w http.ResponseWriter, r *http.Request, c *call, run func(Streams) (int32, error)) bool {
	switch {
	case speaks(r, remotecommand.StreamProtocolV5Name):
		s.serveV5(w, r, c, run)
	case speaksSPDY(r, remotecommand.StreamProtocolV4Name):
		s.serveV4(w, r, c, run)
	default:
		return false
	}
	return true
}

// about says the same of an error as the library does.
func about(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("error %s: %w", doing, err)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, q *runtimeapi.PortForwardRequest) {
	o, err := portforward.BuildV4Options(q.GetPort())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c := s.call(r)
	switch {
	case speaks(r, tunnelProtocol):
		s.serveTunnel(w, r, func(w http.ResponseWriter, r *http.Request) { s.serveForwards(w, r, c, q.GetPodSandboxId()) })
	case speaksSPDY(r, portforward.ProtocolV1Name):
		s.serveForwards(w, r, c, q.GetPodSandboxId())
	default:
		portforward.ServePortForward(w, r, c, q.GetPodSandboxId(), "", o, s.o.IdleTimeout, s.o.CreationTimeout, portforward.SupportedProtocols)
	}
}

// call is what the library calls back for one connection. The contexts that it
// brings do not end with the connection; this one does.
type call struct {
	s     *Server
	ctx   context.Context
	gone  context.CancelFunc // ends ctx, and the connection with it
	asked remotecommand.Options
}

func (s *Server) call(r *http.Request) *call {
	conn := connOf(r)
	return &call{s: s, ctx: conn.ctx, gone: conn.cancel}
}

// ExecInContainer runs a command; an exit code other than 0 is an error that says so.
func (c *call) ExecInContainer(_ context.Context, _, _, id string, command []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	code, failed := c.s.o.Engine.Exec(c.ctx, id, command, c.streams(in, out, err, tty, resize))
	if failed != nil {
		klog.V(2).InfoS("Exec failed", "container", id, "err", failed)
		return failed
	}
	if code != 0 {
		return exec.CodeExitError{Err: errors.New("command failed"), Code: int(code)}
	}
	return nil
}

// AttachContainer returns when the container has ended or the client has left.
func (c *call) AttachContainer(_ context.Context, _, _, id string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return c.s.o.Engine.Attach(c.ctx, id, c.streams(in, out, err, tty, resize))
}

// PortForward serves one forwarded connection of perhaps many on the client's one.
func (c *call) PortForward(_ context.Context, podID, _ string, port int32, client io.ReadWriteCloser) error {
	if !c.s.begin() {
		return context.Canceled
	}
	defer c.s.calls.Done()
	return c.s.o.Engine.PortForward(c.ctx, podID, port, client)
}

// streams leaves out what the client did not ask for: over WebSocket, the library has
// something to ignore it there.
func (c *call) streams(in io.Reader, out, err io.Writer, tty bool, resize <-chan remotecommand.TerminalSize) Streams {
	s := Streams{TTY: tty}
	if c.asked.Stdin {
		s.Stdin = in
	}
	if c.asked.Stdout {
		s.Stdout = out
	}
	if c.asked.Stderr {
		s.Stderr = err
	}
	if tty && resize != nil {
		s.Resize = c.sizes(resize)
	}
	return s
}

func (c *call) sizes(from <-chan remotecommand.TerminalSize) <-chan sandbox.WindowSize {
	to := make(chan sandbox.WindowSize)
	go func() { // ends with the connection
		defer close(to)
		for {
			select {
			case size, ok := <-from:
				if !ok {
					return
				}
				select {
				case to <- sandbox.WindowSize{Columns: size.Width, Rows: size.Height}:
				case <-c.ctx.Done():
					return
				}
			case <-c.ctx.Done():
				return
			}
		}
	}()
	return to
}
