package monitor

import (
	"context"
	"io"
)

// Attached is a client's view of a running container: a copy of its output from
// now on (and of a line that has not ended yet).
type Attached struct {
	// Stdout and Stderr read until the container has closed the stream. With a terminal,
	// all is on Stdout. A reader that is slow misses bytes: neither the container
	// nor its log waits. They return ErrClosed after Close, ErrNotFound when there is no such container.
	Stdout, Stderr io.Reader

	stdout, stderr *streamReader
	cancel         context.CancelFunc
}

// Attach returns a view of a container's output. The streams connect by Connect or at
// their first Read, and again by themselves when the pump is replaced; what was written between is missing.
func (c *Client) Attach(id string) *Attached {
	ctx, cancel := context.WithCancel(context.Background())
	reader := func(role string) *streamReader {
		return &streamReader{end: streamEnd{ctx: ctx, socket: c.socket, params: attachParams{target: target{ID: id}, Stream: role}}}
	}
	stdout, stderr := reader(roleStdout), reader(roleStderr)
	return &Attached{Stdout: stdout, Stderr: stderr, stdout: stdout, stderr: stderr, cancel: cancel}
}

// Connect returns when what the container writes from then on will be read, or when
// the view is closed. Errors are the next Read's.
func (a *Attached) Connect(stdout, stderr bool) {
	for r, wanted := range map[*streamReader]bool{a.stdout: stdout, a.stderr: stderr} {
		if wanted {
			r.connectFirst()
		}
	}
}

func (r *streamReader) connectFirst() {
	r.end.mu.Lock()
	defer r.end.mu.Unlock()
	if r.end.conn == nil && r.err == nil {
		r.err = r.connect()
	}
}

// Close ends the view.
func (a *Attached) Close() { a.cancel() }

// Stdin writes to a container's stdin for any number of writers, a Write at a time.
type Stdin struct {
	client *Client
	id     string
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	turn   chan struct{} // holds one token; whoever has it may use what follows

	w      *streamWriter // nil before the first Write and after one that was given up
	wClose context.CancelFunc
}

// Stdin returns a writer of a container's stdin; it connects at the first Write.
// When the container was created with StdinOnce, Close is the end of its stdin.
func (c *Client) Stdin(id string) *Stdin {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Stdin{client: c, id: id, ctx: ctx, cancel: cancel, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// Write returns when the container's pipe (or terminal) has taken all of p, or
// when ctx ends, with how much it has taken as far as is known.
func (s *Stdin) Write(ctx context.Context, p []byte) (int, error) {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { s.turn <- struct{}{} }()
	if s.w == nil {
		wctx, cancel := context.WithCancel(s.ctx)
		params := attachParams{target: target{ID: s.id}, Stream: roleStdin}
		s.w = &streamWriter{end: streamEnd{ctx: wctx, socket: s.client.socket, params: params}, joins: true}
		s.wClose = cancel
	}
	stop := context.AfterFunc(ctx, s.wClose)
	n, err := s.w.Write(p)
	if !stop() || err != nil {
		s.wClose()
		s.w = nil // the next Write finds out how far this one came
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return n, err
}

// Close gives stdin up. A Write under way ends.
func (s *Stdin) Close() { s.cancel() }
