package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// execGrace is how long an exec waits for the daemon to come (again) for its streams.
const execGrace = 30 * time.Second

// attachParams asks for one stream of a process on a connection of its own.
type attachParams struct {
	target
	Stream string `json:"stream"`
	// Have is how many bytes of an output the client has already.
	Have uint64 `json:"have,omitempty"`
	// Fresh: a writer of stdin that has nothing under way, and does not care what became
	// of an earlier one's last bytes.
	Fresh bool `json:"fresh,omitempty"`
}

// attachResult says where the stream goes on: chunks follow, in the direction of the data.
type attachResult struct {
	Offset uint64 `json:"offset"`
	// Lossy: bytes may be missing. Of a pty after the pump was replaced; of a container's
	// output to a client that is slow or was not there.
	Lossy bool `json:"lossy,omitempty"`
}

// attachment is a client's connection to one stream.
type attachment struct {
	conn *net.UnixConn
	gone chan struct{} // closed when the client is, or another took its place
	over chan struct{} // closed when nothing is done for it any more; of stdin only
}

// The index of a stream in proc.attached.
const (
	attachStdout = iota
	attachStderr
	attachStdin
)

// serveAttach gives the connection to one stream until either ends.
func (pu *pump) serveAttach(c *serverConn, r *request) {
	serve := func() {}
	c.answer(r, func() (any, error) {
		var q attachParams
		if err := json.Unmarshal(r.Params, &q); err != nil {
			return nil, fmt.Errorf("%w: attach: %w", ErrInvalid, err)
		}
		p, err := pu.find(q.ID, q.ExecID)
		if err != nil {
			return nil, err
		}
		result, then, err := p.attachTo(q, c.conn)
		if err == nil {
			serve = then
		}
		return result, err
	})
	serve()
}

// attachTo prepares what serves a client once it knows the result.
func (p *proc) attachTo(q attachParams, conn *net.UnixConn) (attachResult, func(), error) {
	i := slices.Index([]string{roleStdout, roleStderr, roleStdin}, q.Stream)
	r := p.record()
	switch {
	case i < 0:
		return attachResult{}, nil, fmt.Errorf("%w: stream %.20q", ErrInvalid, q.Stream)
	case i == attachStdin:
		return p.attachStdin(q, conn)
	case r.ExecID != "":
		result, err := p.canSend(i, q, r)
		return result, func() { p.serveOutput(i, conn) }, err
	}
	t, err := p.addTap(i, conn, q.Have)
	if err != nil {
		return attachResult{}, nil, err
	}
	return attachResult{Offset: t.next, Lossy: true}, func() { p.serveTap(i, t) }, nil
}

// attachStdin takes stdin from whoever had it, and once nothing is written for
// that one any more, tells how far stdin is.
func (p *proc) attachStdin(q attachParams, conn *net.UnixConn) (attachResult, func(), error) {
	a := p.attach(attachStdin, conn)
	leave := func() {
		close(a.over)
		p.detach(attachStdin, a)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.Fresh {
		p.slot.stdinBusy.Store(0)
	}
	if p.slot.stdinBusy.Load() != 0 {
		go leave()
		return attachResult{}, nil, fmt.Errorf("%w: how much of stdin %s got is not known", ErrReplaced, p.key)
	}
	serve := func() {
		defer leave()
		p.receiveStdin(a)
	}
	return attachResult{Offset: p.slot.stdinOffset.Load(), Lossy: p.rec.Terminal}, serve, nil
}

// serveOutput sends an exec's output to its one client.
func (p *proc) serveOutput(i int, conn *net.UnixConn) {
	a := p.attach(i, conn)
	defer p.detach(i, a)
	go func() {
		p.sendOutput(i, a)
		_ = conn.CloseWrite()
	}()
	// Nothing is to come: this is how the client's end is seen.
	_, _ = io.Copy(io.Discard, conn)
	close(a.gone)
}

// serveTap sends a container's output to one of its clients.
func (p *proc) serveTap(i int, t *tap) {
	defer p.removeTap(i, t)
	p.pump.taps.Add(1)
	defer p.pump.taps.Add(-1)
	gone := make(chan struct{})
	go func() {
		t.send(gone)
		_ = t.conn.CloseWrite()
	}()
	p.pump.workers.ready(p) // an unfinished line may wait in the pipe
	_, _ = io.Copy(io.Discard, t.conn)
	t.conn.Close()
	close(gone)
}

// canSend says where an exec's output goes on.
func (p *proc) canSend(i int, q attachParams, r record) (attachResult, error) {
	if r.Forgotten {
		return attachResult{}, fmt.Errorf("%w: output of %s", ErrNotFound, p.key)
	}
	p.turn.Lock()
	defer p.turn.Unlock()
	j := &p.slot.out[i]
	recoverSent(j)
	if q.Have < j.consumed && !r.Terminal {
		return attachResult{}, fmt.Errorf("%w: output of %s was given away", ErrNotFound, p.key)
	}
	return attachResult{Offset: j.consumed, Lossy: r.Terminal}, nil
}

// recoverSent ends what a killed pump was at: bytes that it had sent and not
// consumed are sent again, and the client knows by the offset that it has them.
func recoverSent(j *journal) {
	if j.phase.Load() != phaseConsuming {
		return
	}
	if j.poison == ^j.first {
		j.phase.Store(phaseIdle)
		return
	}
	j.commit()
}

// attach makes conn the client of a stream. Whoever was it before is sent away; when
// that is stdin's, attach returns when nothing more is written for it.
func (p *proc) attach(i int, conn *net.UnixConn) *attachment {
	a := &attachment{conn: conn, gone: make(chan struct{}), over: make(chan struct{})}
	p.attachMu.Lock()
	old := p.attached[i]
	p.attached[i] = a
	if p.grace != nil {
		p.grace.Stop()
		p.grace = nil
	}
	p.attachMu.Unlock()
	if old != nil {
		old.conn.Close() // the client has come anew
		if i == attachStdin {
			close(old.gone)
			<-old.over
		}
	}
	return a
}

func (p *proc) detach(i int, a *attachment) {
	p.attachMu.Lock()
	last := p.attached[i] == a
	if last {
		p.attached[i] = nil
	}
	none := p.attached == [3]*attachment{}
	p.attachMu.Unlock()
	r := p.record()
	switch {
	case r.ExecID != "" && none:
		p.startGrace()
	case r.ExecID == "" && i == attachStdin && last && r.StdinOnce:
		p.drop(roleStdin)
	}
}

// startGrace forgets an exec that the daemon does not come for.
func (p *proc) startGrace() {
	p.attachMu.Lock()
	defer p.attachMu.Unlock()
	if p.grace == nil && p.attached == [3]*attachment{} {
		p.grace = time.AfterFunc(execGrace, p.abandonExec)
	}
}

func (p *proc) stopGrace() {
	p.attachMu.Lock()
	defer p.attachMu.Unlock()
	if p.grace != nil {
		p.grace.Stop()
	}
}

// abandonExec lets an exec run on with its output going nowhere, until its end.
func (p *proc) abandonExec() {
	p.attachMu.Lock()
	for _, a := range p.attached {
		if a != nil {
			a.conn.Close()
		}
	}
	p.attachMu.Unlock()
	over := false
	err := p.saveDrop(func(r *record) {
		r.Forgotten = true
		over = r.Exit != nil
	}, nil, []string{roleStdin})
	if err != nil {
		return
	}
	p.discard.Store(true)
	if over {
		p.pump.forget(p)
		return
	}
	p.pump.workers.ready(p)
}

// wakeSenders has whoever waits for the process's fds look again.
func (p *proc) wakeSenders() {
	p.attachMu.Lock()
	for _, a := range p.attached {
		if a != nil {
			a.conn.Close()
		}
	}
	p.attachMu.Unlock()
	for _, c := range []chan struct{}{p.kick[0], p.kick[1], p.kickIn} {
		poke(c)
	}
}

// sendOutput sends a stream to its client, chunk by chunk, until the stream's end.
// A chunk is consumed after it was sent.
func (p *proc) sendOutput(i int, a *attachment) {
	var b *buffers
	defer func() { p.pump.giveBack(b) }()
	for {
		if b == nil {
			var err error
			if b, err = p.pump.borrow(); err != nil {
				a.conn.Close()
				return
			}
		}
		head, offset, err := p.headOf(i, b)
		switch {
		case errors.Is(err, errEmpty):
			p.pump.giveBack(b) // whoever waits holds no buffers
			b = nil
			select {
			case <-p.kick[i]:
			case <-a.gone:
				return
			}
			continue
		case err != nil:
			_ = sendChunk(a.conn, offset, nil)
			return
		}
		if sendChunk(a.conn, offset, head) != nil {
			return
		}
		p.sent(i, b, head)
	}
}

// headOf returns the next bytes of an exec's stream and their offset. A pty's are
// gone from it then, and count as consumed, whether they arrive or not.
func (p *proc) headOf(i int, b *buffers) (head []byte, offset uint64, err error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	s, j := p.out[i], &p.slot.out[i]
	recoverSent(j)
	if s == nil || s.fd < 0 {
		return nil, j.consumed, io.EOF
	}
	offset = j.consumed
	if s.pty {
		var n int
		if n, err = readSome(s.fd, b.head[:maxChunk]); err == nil {
			head = b.head[:n]
			j.consumed += uint64(n)
		}
	} else {
		head, err = b.peek(s.fd, maxChunk)
	}
	if err != nil && !errors.Is(err, errEmpty) {
		p.closeStream(s)
	}
	return head, offset, err
}

// sent consumes what was sent.
func (p *proc) sent(i int, b *buffers, head []byte) {
	p.turn.Lock()
	defer p.turn.Unlock()
	s := p.out[i]
	if s.pty || s.fd < 0 || p.discard.Load() {
		return
	}
	s.j.begin(head, false)
	s.j.phase.Store(phaseConsuming)
	_ = b.consume(s.fd, s.j)
}

func sendChunk(w io.Writer, offset uint64, data []byte) error {
	var head [chunkHeader]byte
	putChunkHeader(head[:], offset, len(data))
	_, err := (&net.Buffers{head[:], data}).WriteTo(w)
	return err
}

// maxSpare bounds the buffers that are kept for the next sender.
const maxSpare = 4

func (pu *pump) borrow() (*buffers, error) {
	select {
	case b := <-pu.spare:
		return b, nil
	default:
		return newBuffers()
	}
}

func (pu *pump) giveBack(b *buffers) {
	if b == nil {
		return
	}
	select {
	case pu.spare <- b:
	default:
		b.close()
	}
}

// receiveStdin writes what comes to the process's stdin and acknowledges each
// chunk with an empty one at the new offset; one with text is the reason why it ends.
func (p *proc) receiveStdin(a *attachment) {
	buf := make([]byte, maxChunk)
	for {
		offset, n, err := readChunkHeader(a.conn)
		if err != nil {
			return
		}
		if n == 0 {
			p.drop(roleStdin)
			_ = sendChunk(a.conn, offset, nil)
			continue
		}
		if _, err := io.ReadFull(a.conn, buf[:n]); err != nil {
			return
		}
		at, err := p.feedStdin(a, offset, buf[:n])
		if err != nil {
			_ = sendChunk(a.conn, at, []byte(err.Error()))
			return
		}
		if sendChunk(a.conn, at, nil) != nil {
			return
		}
	}
}

// feedStdin writes data, without the part that stdin has had already.
func (p *proc) feedStdin(a *attachment, offset uint64, data []byte) (uint64, error) {
	for {
		n, at, err := p.writeStdin(offset, data)
		offset += uint64(n)
		data = data[n:]
		if len(data) == 0 || err != nil && !errors.Is(err, unix.EAGAIN) {
			return at, err
		}
		if err == nil {
			continue
		}
		select {
		case <-p.kickIn:
		case <-a.gone:
			return at, net.ErrClosed
		case <-p.done:
			return at, unix.EPIPE
		case <-time.After(time.Second):
			if hungUp(a.conn) {
				return at, net.ErrClosed
			}
		}
	}
}

// writeStdin writes what fits in without waiting. busy is set from before the
// write until its count is kept: if a kill comes in between, the count is not known.
func (p *proc) writeStdin(offset uint64, data []byte) (n int, at uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at = p.slot.stdinOffset.Load()
	if offset > at {
		return 0, at, fmt.Errorf("%w: stdin is at %d, not %d", ErrInvalid, at, offset)
	}
	if had := at - offset; had > 0 {
		return int(min(had, uint64(len(data)))), at, nil
	}
	role := roleStdin
	if p.rec.Terminal {
		role = roleStdout
	}
	fd, ok := p.fds[role]
	if !ok {
		return 0, at, unix.EPIPE
	}
	p.slot.stdinBusy.Store(1)
	n, err = unix.Write(fd, data)
	n = max(n, 0)
	at = p.slot.stdinOffset.Add(uint64(n))
	p.slot.stdinBusy.Store(0)
	if err == unix.EINTR {
		err = nil
	}
	return n, at, err
}

// hungUp reports whether the other end is closed, even if there is something left to read.
func hungUp(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}
