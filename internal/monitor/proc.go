package monitor

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// proc is one process in the pump's custody: a container's own, or an exec's. It is
// in the pump's table from before its OCI runtime runs until it is forgotten.
type proc struct {
	pump *pump
	key  key
	slot *slot
	run  atomic.Uint32 // the state of its turn: see workers
	// done is closed when the end is recorded and the output before it logged.
	done     chan struct{}
	doneOnce sync.Once
	// kick tells an exec's senders (stdout, stderr) and whoever writes stdin that the fd is ready.
	kick   [2]chan struct{}
	kickIn chan struct{}

	// ops makes calls of the OCI runtime for it wait for each other.
	ops sync.Mutex
	// saving keeps the keeper's copies in the order of the changes.
	saving sync.Mutex

	// sliceBase is what sliceKills had when this pump created the process; else nil.
	sliceBase atomic.Pointer[uint64]

	mu  sync.Mutex // Protects rec and fds. Nothing waits while it is held.
	rec record
	fds map[string]int // what is open, by role; closed under mu too

	turn sync.Mutex // Protects what follows, and the journals.
	out  [2]*stream // set once; nil where it has none
	log  int        // -1 for none
	// stalledSince is when the log could not be written first, retryAt when it is tried next.
	stalledSince, retryAt time.Time

	attachMu sync.Mutex // Protects what follows.
	attached [3]*attachment
	grace    *time.Timer // forgets an exec that nobody attaches to
	discard  atomic.Bool // output goes nowhere
}

func (pu *pump) newProc(r record, fds map[string]int) *proc {
	p := &proc{pump: pu, key: r.key(), slot: pu.shm.slot(r.Slot), rec: r, fds: fds, log: -1, done: make(chan struct{})}
	for i := range p.kick {
		p.kick[i] = make(chan struct{}, 1)
	}
	p.kickIn = make(chan struct{}, 1)
	for i, role := range []string{roleStdout, roleStderr} {
		if fd, ok := fds[role]; ok {
			p.out[i] = &stream{role: role, fd: fd, pty: r.Terminal, j: &p.slot.out[i]}
		}
	}
	if fd, ok := fds[roleLog]; ok {
		p.log = fd
	}
	p.discard.Store(r.Forgotten || r.ExecID == "" && p.log < 0)
	return p
}

func (p *proc) record() record {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec
}

func (p *proc) info() Info { return p.record().Info }

// fd returns the open fd of a role, -1 for none.
func (p *proc) fd(role string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fd, ok := p.fds[role]; ok {
		return fd
	}
	return -1
}

// save changes the record and has the keeper take the change, with the fds of
// these roles, before it returns.
func (p *proc) save(change func(*record), newRoles ...string) error {
	return p.saveDrop(change, newRoles, nil)
}

func (p *proc) saveDrop(change func(*record), newRoles, drop []string) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	if change != nil {
		change(&p.rec)
	}
	r := p.rec
	m := &message{Op: opPut, Record: &r, Drop: drop}
	var fds []int
	for _, role := range newRoles {
		if fd, ok := p.fds[role]; ok {
			m.Roles = append(m.Roles, role)
			fds = append(fds, fd)
		}
	}
	for _, role := range drop {
		p.closeRole(role)
	}
	p.mu.Unlock()
	return p.pump.link.call(m, fds...)
}

// closeRole closes an fd; mu is held. The watcher first: the keeper's duplicate keeps the file open.
func (p *proc) closeRole(role string) {
	if fd, ok := p.fds[role]; ok {
		p.pump.watcher.remove(fd)
		unix.Close(fd)
		delete(p.fds, role)
	}
}

// drop closes fds here and at the keeper: after it no duplicate is left.
func (p *proc) drop(roles ...string) {
	if err := p.saveDrop(nil, nil, roles); err != nil {
		slog.Error("the keeper could not be told to drop fds", "process", p.key, "roles", roles, "err", err)
	}
}

// watch registers the process's fds with the pump's watcher.
func (p *proc) watch() error {
	var errs []error
	slot := int32(p.record().Slot)
	// Again, after out was set: the watcher that loads it sees out as it is now.
	p.pump.slots[slot].Store(p)
	p.turn.Lock()
	defer p.turn.Unlock()
	for i, kind := range []int32{watchStdout, watchStderr} {
		if s := p.out[i]; s != nil && s.fd >= 0 {
			events := uint32(unix.EPOLLIN)
			if s.pty {
				events |= unix.EPOLLOUT // its master is stdin too
			}
			errs = append(errs, p.pump.watcher.add(s.fd, slot, kind, events))
		}
	}
	if fd := p.fd(roleStdin); fd >= 0 {
		errs = append(errs, p.pump.watcher.add(fd, slot, watchStdin, unix.EPOLLOUT))
	}
	return errors.Join(errs...)
}

// outputReady: there is something to read from stdout (0) or stderr (1).
func (p *proc) outputReady(i int, hup bool) {
	s := p.out[i]
	if s == nil {
		return
	}
	if hup {
		s.hup.Store(true)
	}
	if p.sends() {
		poke(p.kick[i])
		return
	}
	p.pump.workers.ready(p)
}

// sends reports whether output waits for the daemon to take it, not for a worker: an exec's.
func (p *proc) sends() bool { return p.record().ExecID != "" && !p.discard.Load() }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// takeTurn moves a bounded part of what the process has written.
func (p *proc) takeTurn(b *buffers) (more bool) {
	p.turn.Lock()
	defer p.turn.Unlock()
	if p.sends() || time.Now().Before(p.retryAt) {
		return false
	}
	p.slot.active.Store(1)
	defer p.slot.active.Store(0)
	for _, s := range p.inOrder() {
		if s == nil || s.fd < 0 {
			continue
		}
		more = p.move(s, b) || more
		if s.halfWritten() {
			break
		}
	}
	return more
}

// inOrder returns the streams with the one first whose batch a killed pump or a full
// disk left half written: both streams' entries go to one file, and the rest must
// follow its beginning.
func (p *proc) inOrder() [2]*stream {
	if s := p.out[1]; s != nil && s.fd >= 0 && s.halfWritten() {
		return [2]*stream{s, p.out[0]}
	}
	return p.out
}

func (s *stream) halfWritten() bool { return s.j.phase.Load() == phaseWriting }

// move gives one stream its part of the turn.
func (p *proc) move(s *stream, b *buffers) (more bool) {
	log := logTarget{fd: p.log, now: time.Now}
	dropped := s.j.dropped
	defer func() {
		if s.j.dropped > dropped {
			p.pump.shm.header().dropped.Add(s.j.dropped - dropped)
		}
	}()
	var err error
	switch {
	case p.discard.Load():
		_, err = b.discard(s, turnBudget, false)
		more = err == nil
	case p.slot.quarantined.Load() != 0:
		leaveLog(s, log.fd)
		p.noteQuarantine(s, b, log)
		_, err = b.discard(s, turnBudget, false)
		more = err == nil
	case s.pty:
		more, err = b.moveTerminal(s, log, turnBudget)
	default:
		more, err = b.moveLines(s, log, turnBudget)
	}
	switch {
	case errors.Is(err, errStalled):
		p.stalled(s, b, log, err)
		return false
	case err == nil:
	case errors.Is(err, errUnfinished):
		more = p.lineWaits(s)
	case errors.Is(err, errEmpty):
		p.noLineWaits(s)
	default:
		if !errors.Is(err, io.EOF) {
			slog.Error("a stream failed and is closed", "process", p.key, "stream", s.role, "err", err)
		}
		p.endStream(s, b, log)
	}
	if s.j.dropped == 0 {
		p.stalledSince = time.Time{}
	}
	return more
}

// stalled holds a process back whose log cannot be written, and after a while
// drops its output, so that a full disk does not stop it for ever.
func (p *proc) stalled(s *stream, b *buffers, log logTarget, err error) {
	now := time.Now()
	if p.stalledSince.IsZero() {
		p.stalledSince = now
		slog.Warn("a log cannot be written", "process", p.key, "err", err)
	}
	if now.Sub(p.stalledSince) >= logPatience {
		if _, err := b.drop(s, log); errors.Is(err, io.EOF) {
			p.endStream(s, b, log)
		}
	}
	p.retryAt = now.Add(logRetry)
	time.AfterFunc(logRetry, func() { p.pump.workers.ready(p) })
}

func (p *proc) noteQuarantine(s *stream, b *buffers, log logTarget) {
	if log.fd < 0 || !p.slot.quarantined.CompareAndSwap(1, 2) {
		return
	}
	w := batch{stream: s.role, at: log.now().UnixNano()}
	b.out, _, _ = w.render(b.out[:0], []byte(quarantineNote), true)
	_ = writeAll(log.fd, b.out)
}

// endStream is called at a stream's end, with the turn held.
func (p *proc) endStream(s *stream, b *buffers, log logTarget) {
	if log.fd >= 0 && p.slot.quarantined.Load() == 0 {
		b.endStream(s, log)
	}
	p.closeStream(s)
}

// closeStream gives a stream's fd up, and the log's after the last stream.
func (p *proc) closeStream(s *stream) {
	p.noLineWaits(s)
	s.fd = -1
	s.endTaps()
	roles := []string{s.role}
	open := false
	for _, o := range p.out {
		open = open || o != nil && o.fd >= 0
	}
	if !open && p.log >= 0 {
		p.log = -1
		roles = append(roles, roleLog)
	}
	p.drop(roles...)
}

// ended records how the process ended, in time for its parent to reap it only after that.
func (p *proc) ended(exit *Exit) {
	exit.OOMKilled = p.oomKilled(exit)
	err := p.save(func(r *record) {
		if r.Exit == nil {
			r.Exit, r.State = exit, StateExited
		}
	})
	if err != nil {
		slog.Error("the keeper could not be told of an exit", "process", p.key, "err", err)
	}
	go p.publish()
}

// logGrace is how long the end of a process is held back for the output before it to be logged.
const logGrace = 2 * time.Second

// publish makes the end known, after the process's last words are in the log.
func (p *proc) publish() {
	r := p.record()
	if r.ExecID == "" && r.LogPath != "" {
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			p.drain()
		}()
		select {
		case <-drained:
		case <-time.After(logGrace):
		}
	}
	p.doneOnce.Do(func() {
		close(p.done)
		p.pump.broadcast(Event{Type: EventExit, Info: r.Info})
	})
	if r.Forgotten {
		p.pump.forget(p)
	}
}

func (p *proc) drain() {
	b, err := newBuffers()
	if err != nil {
		return
	}
	defer b.close()
	end := time.Now().Add(logGrace)
	for more := true; more && time.Now().Before(end); {
		more = p.takeTurn(b)
	}
}

// openLog opens a log file to append to, makes it if it is not there, and the pod's
// directory around it. What is not a regular file is refused.
func openLog(path string) (int, error) {
	const flags = unix.O_RDWR | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Open(path, flags, 0o640)
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return -1, err
		}
		fd, err = unix.Open(path, flags, 0o640)
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("not a regular file")
	}
	if err == nil {
		err = unix.Fchmod(fd, 0o640) // whatever the umask
	}
	if err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// reopenLog goes on in a new file at the log's path.
func (p *proc) reopenLog() error {
	path := p.record().LogPath
	if path == "" {
		return nil
	}
	fd, err := openLog(path)
	if err != nil {
		return err
	}
	p.turn.Lock()
	defer p.turn.Unlock()
	if p.log < 0 { // all is written: the new file is there and stays empty
		unix.Close(fd)
		return nil
	}
	for _, s := range p.out {
		if s != nil {
			leaveLog(s, p.log)
		}
	}
	p.mu.Lock()
	p.closeRole(roleLog)
	p.fds[roleLog] = fd
	p.mu.Unlock()
	p.log, p.retryAt = fd, time.Time{}
	err = p.save(nil, roleLog)
	p.pump.workers.ready(p)
	return err
}

// leaveLog ends a stream's batch that the old log has only a part of: it is begun
// anew in the next one. The journal must not name a log that a next pump does not get.
func leaveLog(s *stream, log int) {
	if s.j.phase.Load() != phaseWriting {
		return
	}
	var st unix.Stat_t
	if unix.Fstat(log, &st) == nil && st.Ino == s.j.logIno && st.Size > s.j.logSize {
		_ = unix.Ftruncate(log, s.j.logSize)
	}
	s.j.phase.Store(phaseIdle)
}
