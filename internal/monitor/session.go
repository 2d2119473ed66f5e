package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ExecSession is a process that Exec started. Its streams outlive the pump: what
// was sent when it is replaced is not sent again, and nothing of a pipe is missing.
type ExecSession struct {
	// Stdout and Stderr read until the process and all who inherited the stream have
	// closed it. Each has one reader; neither waits for the other. With a
	// terminal, all is on Stdout. They return ErrClosed after Close.
	Stdout, Stderr io.Reader
	// Stdin is nil when not asked for. A Write returns when the process's pipe has
	// taken all of it. Close is a real EOF (not on a terminal, which has none).
	Stdin io.WriteCloser

	client *Client
	info   Info
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
}

func newExecSession(c *Client, r ExecRequest, info Info) *ExecSession {
	ctx, cancel := context.WithCancel(context.Background())
	s := &ExecSession{client: c, info: info, ctx: ctx, cancel: cancel}
	s.Stdout = &streamReader{end: s.streamEnd(roleStdout)}
	if r.Terminal {
		s.Stderr = eofReader{}
	} else {
		s.Stderr = &streamReader{end: s.streamEnd(roleStderr)}
	}
	if r.Stdin {
		s.Stdin = &streamWriter{end: s.streamEnd(roleStdin)}
	}
	return s
}

func (s *ExecSession) streamEnd(role string) streamEnd {
	return streamEnd{ctx: s.ctx, socket: s.client.socket, params: attachParams{target: target{s.info.ID, s.info.ExecID}, Stream: role}}
}

// Pid of the process, in the host's PID namespace.
func (s *ExecSession) Pid() int { return s.info.Pid }

// Wait returns the process's own end, whether or not its streams are at theirs.
func (s *ExecSession) Wait(ctx context.Context) (Exit, error) {
	return s.client.Wait(ctx, s.info.ID, s.info.ExecID)
}

// Resize sets the size of the process's terminal, in characters.
func (s *ExecSession) Resize(ctx context.Context, columns, rows uint16) error {
	return s.client.Resize(ctx, s.info.ID, s.info.ExecID, columns, rows)
}

// closeTime bounds what Close waits for.
const closeTime = 10 * time.Second

// Close gives the session up: reads and writes end, and the process's output goes
// nowhere from now on. The process is not killed.
func (s *ExecSession) Close() error {
	s.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	err := s.client.Forget(ctx, s.info.ID, s.info.ExecID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.EOF }

// streamEnd is the client's end of one stream: a connection that is made anew when it breaks.
type streamEnd struct {
	ctx    context.Context
	socket string
	params attachParams

	mu   sync.Mutex // One read or write at a time.
	conn net.Conn
	stop func() bool
}

// reattach waits for a pump and attaches to the stream again.
func (e *streamEnd) reattach(have uint64) (attachResult, error) {
	e.detach()
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		if e.ctx.Err() != nil {
			return attachResult{}, ErrClosed
		}
		result, err := e.attach(have)
		if err == nil {
			return result, nil
		}
		var said *wireError
		if errors.As(err, &said) && !errors.Is(err, errAgain) {
			return attachResult{}, err
		}
		select {
		case <-e.ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (e *streamEnd) attach(have uint64) (attachResult, error) {
	conn, err := dialHello(e.ctx, e.socket)
	if err != nil {
		return attachResult{}, err
	}
	e.params.Have = have
	var result attachResult
	params, err := json.Marshal(e.params)
	if err == nil {
		err = callOnce(conn, &request{ID: 2, Method: "attach", Params: params}, &result)
	}
	if err != nil {
		conn.Close()
		return attachResult{}, err
	}
	e.conn = conn
	e.stop = context.AfterFunc(e.ctx, func() { conn.Close() })
	return result, nil
}

func (e *streamEnd) detach() {
	if e.conn != nil {
		e.stop()
		e.conn.Close()
		e.conn = nil
	}
}

// streamReader reads an output.
type streamReader struct {
	end  streamEnd
	have uint64 // bytes that the reader has got
	left int    // of the chunk at hand
	// lossy: chunks may be missing between two others.
	lossy bool
	err   error
}

func (r *streamReader) Read(p []byte) (int, error) {
	r.end.mu.Lock()
	defer r.end.mu.Unlock()
	for r.err == nil && len(p) > 0 {
		n, err := r.read(p)
		if n > 0 {
			return n, nil
		}
		if err != nil && !errors.Is(err, errBroken) {
			r.end.detach()
			r.err = err
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	return 0, r.err
}

func (r *streamReader) connect() error {
	result, err := r.end.reattach(r.have)
	if err != nil {
		return err
	}
	r.left, r.lossy = 0, result.Lossy
	if result.Offset > r.have {
		if !result.Lossy {
			return errOutputLost
		}
		r.have = result.Offset
	}
	return nil
}

// read returns bytes, or an error; errBroken is none that lasts.
func (r *streamReader) read(p []byte) (int, error) {
	if r.end.conn == nil {
		if err := r.connect(); err != nil {
			return 0, err
		}
	}
	if r.left == 0 {
		if err := r.nextChunk(); err != nil {
			return 0, err
		}
	}
	n, err := r.end.conn.Read(p[:min(len(p), r.left)])
	r.have += uint64(n)
	r.left -= n
	if n == 0 && err != nil {
		r.end.detach()
		return 0, r.broken()
	}
	return n, nil
}

func (r *streamReader) broken() error {
	if r.end.ctx.Err() != nil {
		return ErrClosed
	}
	return errBroken
}

// nextChunk finds the next bytes that the reader does not have yet.
func (r *streamReader) nextChunk() error {
	for r.left == 0 {
		offset, n, err := readChunkHeader(r.end.conn)
		if err != nil {
			r.end.detach()
			return r.broken()
		}
		if n == 0 {
			return io.EOF
		}
		if offset > r.have {
			if !r.lossy {
				return errOutputLost
			}
			r.have = offset
		}
		had := int(min(r.have-offset, uint64(n)))
		if _, err := io.CopyN(io.Discard, r.end.conn, int64(had)); err != nil {
			r.end.detach()
			return r.broken()
		}
		r.left = n - had
	}
	return nil
}

// streamWriter writes stdin.
type streamWriter struct {
	end    streamEnd
	offset uint64 // bytes that the process has got
	// joins: stdin may have had an earlier writer, whose bytes count in offset, until
	// this one has begun.
	joins bool
	err   error
}

func (w *streamWriter) Write(p []byte) (int, error) {
	w.end.mu.Lock()
	defer w.end.mu.Unlock()
	done := 0
	for done < len(p) && w.err == nil {
		chunk := p[done:min(len(p), done+maxChunk)]
		w.err = w.put(chunk)
		if w.err == nil {
			done += len(chunk)
		}
	}
	return done, w.err
}

// Close lets the process read EOF. Bytes that a Write returned for are before it.
func (w *streamWriter) Close() error {
	w.end.mu.Lock()
	defer w.end.mu.Unlock()
	if w.err != nil {
		w.end.detach()
		return nil
	}
	err := w.put(nil)
	w.err = ErrClosed
	w.end.detach()
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrClosed) {
		return nil // the process is gone, or the session: so is stdin
	}
	return err
}

// put sends one chunk until it is acknowledged; an empty one is the end.
func (w *streamWriter) put(chunk []byte) error {
	start := w.offset
	for {
		if w.end.conn == nil {
			w.end.params.Fresh = w.joins
			result, err := w.end.reattach(0)
			if err != nil {
				return err
			}
			if w.joins {
				w.joins, start = false, result.Offset
			}
			// What an earlier pump took of this chunk.
			if w.offset = result.Offset; w.offset < start || w.offset > start+uint64(len(chunk)) {
				return fmt.Errorf("stdin is at %d, not between %d and %d", w.offset, start, start+uint64(len(chunk)))
			}
		}
		rest := chunk[w.offset-start:]
		if len(rest) == 0 && len(chunk) > 0 {
			return nil
		}
		err := w.exchange(rest)
		if !errors.Is(err, errBroken) {
			return err
		}
		w.end.detach()
		if w.end.ctx.Err() != nil {
			return ErrClosed
		}
	}
}

func (w *streamWriter) exchange(data []byte) error {
	if sendChunk(w.end.conn, w.offset, data) != nil {
		return errBroken
	}
	offset, n, err := readChunkHeader(w.end.conn)
	if err != nil {
		return errBroken
	}
	if n == 0 {
		w.offset = offset
		return nil
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(w.end.conn, text); err != nil {
		return errBroken
	}
	return fmt.Errorf("write stdin: %s", text)
}
