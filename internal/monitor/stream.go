package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// peekSize is how much of a stream a worker looks at at once: a pipe's default capacity.
	peekSize = 64 << 10
	// turnBudget bounds what one process may have moved before another gets its turn.
	turnBudget = 256 << 10
	// logRetry is how often a log that could not be written is tried again, and
	// logPatience how long the process is held back for it before its output is dropped.
	logRetry    = 250 * time.Millisecond
	logPatience = 10 * time.Second
)

var (
	errEmpty      = errors.New("nothing to read now")
	errUnfinished = fmt.Errorf("%w: a line waits for its end", errEmpty)
	errStalled    = errors.New("the log cannot be written now")
)

// stream is one output of a process: our end of its pipe, or the pty's master.
// All but hup is guarded by the process's turn.
type stream struct {
	role string // "stdout", "stderr"
	fd   int    // -1 at its end
	pty  bool
	j    *journal
	// pending are entries made of a pty's bytes, which a full disk keeps from the log.
	pending  []byte
	pendingN int
	// taps are the clients attached to a container's output.
	taps []*tap
	// What lineWaits goes by: whether the pipe's signals are asked for (async) or when they
	// will be, whether the pipe was more than half full, and how far the stream was seen (of
	// which seen when it was called last).
	async        bool
	asyncAt      time.Time
	full         bool
	seen, waited uint64
	// hup is set when no writer is left, so that a line without end is the last.
	hup atomic.Bool
}

// buffers are what a turn needs and an idle process does not have.
type buffers struct {
	scratch [2]int // a pipe that tee(2) copies into
	head    []byte
	out     []byte
}

func newBuffers() (*buffers, error) {
	b := &buffers{head: make([]byte, peekSize)}
	if err := unix.Pipe2(b.scratch[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *buffers) close() {
	unix.Close(b.scratch[0])
	unix.Close(b.scratch[1])
}

// peek returns up to limit bytes at the head of a pipe and leaves them there.
// It returns io.EOF at the end and errEmpty when there are none now.
func (b *buffers) peek(fd, limit int) ([]byte, error) {
	for {
		n, err := unix.Tee(fd, b.scratch[1], min(limit, len(b.head)), unix.SPLICE_F_NONBLOCK)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil, errEmpty
		case err != nil:
			return nil, err
		case n == 0:
			return nil, io.EOF
		}
		head := b.head[:n]
		for got := 0; got < len(head); {
			m, err := unix.Read(b.scratch[0], head[got:])
			if err == unix.EINTR {
				continue
			}
			if err != nil || m == 0 {
				return nil, errors.Join(errors.New("a copied pipe cannot be read"), err)
			}
			got += m
		}
		return head, nil
	}
}

// begin notes in the journal that the next n bytes are about to be consumed.
func (j *journal) begin(head []byte, partialAfter bool) {
	j.n = uint32(len(head))
	j.first, j.poison = head[0], ^head[0]
	j.consumedAfter = j.consumed + uint64(len(head))
	j.partialAfter = 0
	if partialAfter {
		j.partialAfter = 1
	}
}

// consume takes the journal's bytes out of the pipe, unless an earlier pump
// did so before it died. One read does it: the bytes are all there and nobody
// else reads, so the kernel moves them without a pause in which a kill could
// come, and the first of them falls on the poison and tells that it was done.
func (b *buffers) consume(fd int, j *journal) error {
	if j.poison == ^j.first {
		// The rest goes to memory that is surely present: a page fault could fail in a dying process.
		n, err := unix.Readv(fd, [][]byte{poisonOf(j), b.head[:j.n-1]})
		// The process may read its own pipe, or write packets (O_DIRECT). Then the bytes
		// are not what was seen, and that is its own loss.
		for left := int(j.n) - n; left > 0 && n > 0 && err == nil; left -= n {
			n, err = unix.Read(fd, b.head[:left])
		}
		if err != nil && err != unix.EAGAIN {
			return err
		}
	}
	j.commit()
	return nil
}

// poisonOf is the journal's cell that the first byte is read into.
func poisonOf(j *journal) []byte {
	return unsafe.Slice(&j.poison, 1) //nolint:gosec // G103: a slice of the one byte
}

// logTarget is where a process's output goes, for the length of a turn.
type logTarget struct {
	fd  int
	now func() time.Time
}

// moveLines logs what can be logged of a pipe, up to budget bytes, and reports
// whether there may be more. Complete lines are taken, and of a longer line the
// entries that are full. What is left of a line stays in the pipe, so that
// waiting for its end takes no memory here.
func (b *buffers) moveLines(s *stream, log logTarget, budget int) (more bool, err error) {
	for budget > 0 {
		if err := b.resume(s, log); err != nil {
			return false, err
		}
		hup := s.hup.Load()
		head, err := b.peek(s.fd, peekSize)
		if err != nil {
			return false, err
		}
		s.tapOut(s.j.consumed, head)
		s.full, s.seen = s.full || len(head) > peekSize/2, s.j.consumed+uint64(len(head))
		w := batch{stream: s.role, at: log.now().UnixNano(), partial: s.j.partial == 1, dropped: s.j.dropped}
		out, n, partial := w.render(b.out[:0], head, false)
		if n == 0 && (hup || pipeFull(s.fd, len(head))) {
			w.tail = 'P'
			if hup {
				w.tail = 'F'
			}
			out, n, partial = w.render(b.out[:0], head, false)
		}
		b.out = out
		if n == 0 {
			return false, errUnfinished
		}
		if err := b.append(s, log, w, head[:n], partial); err != nil {
			return false, err
		}
		budget -= n
	}
	return true, nil
}

// append logs the entries in b.out, which hold head, and consumes it.
func (b *buffers) append(s *stream, log logTarget, w batch, head []byte, partial bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(log.fd, &st); err != nil {
		return err
	}
	j := s.j
	j.begin(head, partial)
	j.at, j.logSize, j.logIno = w.at, st.Size, st.Ino
	j.tail = uint32(w.tail)
	if partial {
		j.tail = 'P'
	}
	j.phase.Store(phaseWriting)
	return b.finish(s, log, b.out)
}

// finish writes entries to the log, which may be the rest of them, and consumes their bytes.
func (b *buffers) finish(s *stream, log logTarget, entries []byte) error {
	if err := writeAll(log.fd, entries); err != nil {
		return errors.Join(errStalled, err)
	}
	s.j.droppedAfter = 0
	s.j.phase.Store(phaseConsuming)
	return b.consume(s.fd, s.j)
}

// resume ends the batch in the journal: one that a killed pump began, or that a
// full disk stopped. The log's size tells how much of it is written.
func (b *buffers) resume(s *stream, log logTarget) error {
	j := s.j
	switch j.phase.Load() {
	case phaseConsuming:
		return b.consume(s.fd, j)
	case phaseTerminal:
		return cutTorn(log.fd, j)
	case phaseWriting:
	default:
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(log.fd, &st); err != nil {
		return err
	}
	head, err := b.peek(s.fd, int(j.n))
	if errors.Is(err, io.EOF) || errors.Is(err, errEmpty) || err == nil && len(head) < int(j.n) || st.Ino != j.logIno {
		// Somebody else read the pipe, or this is not the log that was written: nothing to go on with.
		j.phase.Store(phaseIdle)
		return nil
	}
	if err != nil {
		return err
	}
	w := batch{stream: s.role, at: j.at, partial: j.partial == 1, dropped: j.dropped, tail: byte(j.tail)}
	out, _, _ := w.render(b.out[:0], head, true)
	b.out = out
	done := st.Size - j.logSize
	if done < 0 { // cut by somebody: rather twice than never
		done = 0
		j.logSize = st.Size
	}
	return b.finish(s, log, out[min(done, int64(len(out))):])
}

// drop gives up on the stalled batch in the journal and on all else that is in
// the pipe, and returns how many bytes that were. A torn entry is cut off the log.
func (b *buffers) drop(s *stream, log logTarget) (uint64, error) {
	j := s.j
	var dropped uint64
	if j.phase.Load() == phaseWriting {
		var st unix.Stat_t
		if unix.Fstat(log.fd, &st) == nil && st.Ino == j.logIno && st.Size > j.logSize {
			_ = unix.Ftruncate(log.fd, j.logSize)
		}
		dropped += uint64(j.n)
		j.droppedAfter = j.dropped + uint64(j.n)
		j.phase.Store(phaseConsuming)
		if err := b.consume(s.fd, j); err != nil {
			return dropped, err
		}
	}
	if s.pending != nil {
		dropped += uint64(s.pendingN)
		j.dropped += uint64(s.pendingN)
		j.consumed += uint64(s.pendingN)
		s.pending = nil
	}
	n, err := b.discard(s, turnBudget, true)
	return dropped + n, err
}

// discard takes up to budget bytes out of a pipe and forgets them; counted, a note in the log will tell of them.
func (b *buffers) discard(s *stream, budget int, counted bool) (uint64, error) {
	var total uint64
	for total < uint64(budget) {
		n, err := readSome(s.fd, b.head)
		if err != nil {
			return total, err
		}
		total += uint64(n)
		s.tapOut(s.j.consumed, b.head[:n])
		s.j.consumed += uint64(n)
		if counted {
			s.j.dropped += uint64(n)
		}
	}
	return total, nil
}

// moveTerminal logs what a pty has. It can only be read, not looked at: what was
// read and is not yet written is lost if the pump is killed right then. An
// unfinished line (a prompt) is logged at once, tagged P.
func (b *buffers) moveTerminal(s *stream, log logTarget, budget int) (more bool, err error) {
	if err := b.resume(s, log); err != nil {
		return false, err
	}
	for budget > 0 {
		if s.pending == nil {
			n, err := readSome(s.fd, b.head[:maxEntry])
			if err != nil {
				return false, err
			}
			s.tapOut(s.j.consumed, b.head[:n])
			w := batch{stream: s.role, at: log.now().UnixNano(), partial: s.j.partial == 1, dropped: s.j.dropped, tail: 'P'}
			out, _, partial := w.render(b.out[:0], b.head[:n], true)
			b.out = out
			s.pending, s.pendingN = out, n
			s.j.begin(b.head[:n], partial)
			s.j.droppedAfter = 0
		}
		if err := s.flushPending(log); err != nil {
			return false, err
		}
		budget -= s.pendingN
	}
	return true, nil
}

// flushPending writes a pty's entries. Those that cannot be written are kept, whole.
func (s *stream) flushPending(log logTarget) error {
	var st unix.Stat_t
	if err := unix.Fstat(log.fd, &st); err != nil {
		return err
	}
	s.j.logSize, s.j.logIno = st.Size, st.Ino
	s.j.phase.Store(phaseTerminal)
	if err := writeAll(log.fd, s.pending); err != nil {
		_ = unix.Ftruncate(log.fd, st.Size)
		s.j.phase.Store(phaseIdle)
		s.pending = bytes.Clone(s.pending) // the buffer is another process's in the next turn
		return errors.Join(errStalled, err)
	}
	s.pending = nil
	s.j.commit()
	return nil
}

// endStream writes what a log still lacks when its stream ends: the end of a line
// that is there with the tag P, and the note of bytes that were dropped.
func (b *buffers) endStream(s *stream, log logTarget) {
	w := batch{stream: s.role, at: log.now().UnixNano(), dropped: s.j.dropped}
	var rest []byte
	if s.j.partial == 1 && w.dropped == 0 {
		rest = []byte{'\n'}
	}
	// Before the entry: if a kill comes between, a newline is missing rather than one too many.
	s.j.partial, s.j.dropped = 0, 0
	b.out, _, _ = w.render(b.out[:0], rest, true)
	_ = writeAll(log.fd, b.out)
}

// cutTorn removes the half of an entry that a killed pump left at a log's end.
func cutTorn(log int, j *journal) error {
	defer j.phase.Store(phaseIdle)
	var st unix.Stat_t
	if err := unix.Fstat(log, &st); err != nil {
		return err
	}
	torn := st.Size - j.logSize
	if st.Ino != j.logIno || torn <= 0 || torn > 4*maxRender {
		return nil
	}
	tail := make([]byte, torn)
	n, err := unix.Pread(log, tail, j.logSize)
	if err != nil {
		return err
	}
	whole := lastNewline(tail[:n]) + 1
	if whole == n {
		return nil
	}
	return unix.Ftruncate(log, j.logSize+int64(whole))
}

func lastNewline(b []byte) int {
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == '\n' {
			return i
		}
	}
	return -1
}

// readSome reads from a pipe or a pty's master: io.EOF at the end, errEmpty when there is nothing now.
func readSome(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, errEmpty
		case err == unix.EIO: // what a master says when no slave is open any more
			return 0, io.EOF
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// pipeFull reports whether writers of a pipe wait although only n bytes of it, too
// few for a log entry, could be seen. A process can fill all the pipe's slots
// with tiny splices; waiting for the end of its line would block it for ever.
func pipeFull(fd, n int) bool {
	const slots = 16 // of a pipe with the default capacity, and of a scratch pipe
	if n < slots {
		return false
	}
	if avail, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil && avail > n && avail > maxEntry {
		return true
	}
	// A second end for writing, only for a look. As it is closed the kernel tells
	// of the pipe's end again, so none is missed.
	w, err := unix.Open(fdPath(fd), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(w)
	p := []unix.PollFd{{Fd: int32(w), Events: unix.POLLOUT}}
	ready, err := unix.Poll(p, 0)
	return err == nil && ready == 0
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
