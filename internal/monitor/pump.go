package monitor

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The fds that a pump is started with, after stdio.
const (
	pumpLinkFd = 3 + iota
	pumpListenFd
	pumpShmFd
	pumpLockFd
)

// drainTime is how long calls of the OCI runtime may go on when the pump is about to go.
const drainTime = 5 * time.Second

// pump does the work: it runs OCI runtimes, moves bytes, reaps, and talks to the daemon.
type pump struct {
	dir     paths
	version string
	link    *link
	listen  int
	shmFd   int
	shm     *shm
	lock    int
	origin  origin
	keeper  int // its pid

	watcher *watcher
	workers *workers
	// unfinished are woken when their pipes are full.
	unfinished *unfinished
	reaper     *reaper
	runtimes   *runtimes
	spare      chan *buffers
	exits      exitEvents
	slices     sliceKills
	taps       atomic.Int32 // clients of containers' output

	slots [shmSlots]atomic.Pointer[proc] // for the watcher

	mu       sync.Mutex // Protects what follows. Nothing slow under it.
	procs    map[key]*proc
	nextSlot int
	clients  map[*serverConn]struct{}
}

// RunPump is the monitor's second process, started by the keeper. It does not return
// unless something is wrong: it is told to exit, or becomes the keeper.
func RunPump(stateDir, version string) error {
	ownFds()
	pu := &pump{
		dir: newPaths(stateDir), version: version,
		listen: pumpListenFd, shmFd: pumpShmFd, lock: pumpLockFd, keeper: os.Getppid(),
		procs: map[key]*proc{}, clients: map[*serverConn]struct{}{},
	}
	if err := pu.begin(); err != nil {
		return err
	}
	go pu.reaper.run()
	go pu.serve()
	return pu.watcher.run()
}

func (pu *pump) begin() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	// Caught and not ignored: see keeper.run.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE, syscall.SIGHUP)
	var err error
	if pu.shm, err = mapShm(pu.shmFd); err != nil {
		return err
	}
	if pu.link, err = newLink(pumpLinkFd); err != nil {
		return fmt.Errorf("take the link: %w", err)
	}
	if pu.watcher, err = newWatcher(pu.event); err != nil {
		return err
	}
	pu.workers = newWorkers((*proc).takeTurn)
	if pu.unfinished, err = newUnfinished(pu.workers.ready); err != nil {
		return err
	}
	pu.reaper = newReaper()
	pu.spare = make(chan *buffers, maxSpare)
	return pu.takeOver()
}

// event is called by the watcher.
func (pu *pump) event(slot, kind int32, events uint32) {
	if slot < 0 || slot >= shmSlots {
		return
	}
	p := pu.slots[slot].Load()
	if p == nil {
		return
	}
	hup := events&(unix.EPOLLHUP|unix.EPOLLERR) != 0
	if events&unix.EPOLLOUT != 0 {
		poke(p.kickIn)
	}
	switch kind {
	case watchStdout:
		p.outputReady(0, hup)
	case watchStderr:
		p.outputReady(1, hup)
	case watchStdin:
		poke(p.kickIn)
	case watchPidfd:
		go p.orphanEnded()
	case watchOOM:
		go p.oomEvent()
	}
}

// takeOver receives what the keeper holds, finishes what an earlier pump was at, and
// goes on from there.
func (pu *pump) takeOver() error {
	if err := pu.link.send(&message{Op: opHello, Version: pu.version}); err != nil {
		return fmt.Errorf("greet the keeper: %w", err)
	}
	buf := make([]byte, maxPacket)
	var taken []*proc
	for ready := false; !ready; {
		m, fds, err := pu.link.receive(buf)
		if err != nil {
			return fmt.Errorf("take over from the keeper: %w", err)
		}
		switch m.Op {
		case opPut:
			taken = append(taken, pu.take(m, fds))
		case opReady:
			pu.origin = *m.Origin
			ready = true
		default:
			closeAll(fds)
		}
	}
	// Before the keeper is listened to: it may say at once that this pump should end.
	pu.runtimes = newRuntimes(pu.reaper, pu.dir.temp(), pu.origin)
	go pu.listenKeeper()
	for _, p := range taken {
		if r := p.record(); r.State == StateCreating {
			killLeft(r.PidFile)
		}
	}
	pu.cleanTemp()
	for _, p := range taken {
		pu.resume(p)
	}
	return nil
}

func (pu *pump) take(m *message, list []int) *proc {
	fds := map[string]int{}
	for i, role := range m.Roles {
		fds[role] = list[i]
	}
	p := pu.newProc(*m.Record, fds)
	pu.procs[p.key] = p
	pu.slots[m.Record.Slot].Store(p)
	return p
}

// killLeft ends a process that a runtime made, and could not tell us of, before both were killed.
func killLeft(pidFile string) {
	pid, err := readPidFile(pidFile)
	if err != nil {
		return
	}
	// Only what fell to the keeper when its pump died: the number may be another's by now.
	if st, err := readStat(pid); err == nil && st.parent == os.Getppid() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

func (pu *pump) cleanTemp() {
	files, _ := os.ReadDir(pu.dir.temp())
	for _, f := range files {
		_ = os.Remove(filepath.Join(pu.dir.temp(), f.Name()))
	}
}

// resume goes on with a process from the state that its record and journals have.
func (pu *pump) resume(p *proc) {
	r := p.record()
	switch {
	case r.State == StateCreating:
		// The runtime died with its pump. What it left is for the daemon's Delete.
		p.drop(roles...)
		p.out, p.log = [2]*stream{}, -1
		p.ended(lostExit())
		return
	case r.Exit != nil:
		go p.publish()
	default:
		pu.resumeLiving(p, r)
	}
	if err := p.watch(); err != nil {
		slog.Error("a process's streams cannot be watched", "process", p.key, "err", err)
	}
	if r.ExecID != "" {
		p.startGrace()
	}
	pu.workers.ready(p)
}

func (pu *pump) resumeLiving(p *proc, r record) {
	if p.fd(rolePidfd) < 0 {
		fd, err := openPidfd(r.Pid, r.StartTime)
		if err != nil {
			p.ended(lostExit())
			return
		}
		p.setFd(rolePidfd, fd)
		_ = p.save(nil, rolePidfd)
	}
	p.findParent()
	if err := p.watchOOM(); err != nil {
		slog.Warn("OOM kills are seen only at a process's end", "process", p.key, "err", err)
	}
}

// findParent finds out who will be told of the process's end: this pump, the
// keeper, or, when its parent of then is dead, only the pidfd.
func (p *proc) findParent() {
	r := p.record()
	st, err := readStat(r.Pid)
	if err == nil && st.start == r.StartTime && (st.parent == os.Getpid() || st.parent == p.pump.keeper) {
		return
	}
	fd := p.fd(rolePidfd)
	if fd < 0 {
		return
	}
	if !pidfdsTellExits() {
		if err := p.pump.exits.watch(r.Pid); err != nil {
			slog.Warn("a process's exit code may be lost", "process", p.key, "err", err)
		}
	}
	if err := p.pump.watcher.add(fd, int32(r.Slot), watchPidfd, unix.EPOLLIN); err != nil {
		slog.Error("a process's end cannot be watched", "process", p.key, "err", err)
	}
}

// orphanEnded is called when the pidfd of a process that is nobody's child says that it ended.
func (p *proc) orphanEnded() {
	r := p.record()
	fd := p.fd(rolePidfd)
	if r.Exit != nil || fd < 0 {
		return
	}
	e, ok := orphanEnd(r.Pid, r.StartTime, fd)
	if !ok {
		e, ok = p.pump.exits.end(r.Pid)
	}
	if ok {
		p.ended(e.exit())
		return
	}
	p.ended(lostExit())
}

// listenKeeper hears the keeper until one of the two ends.
func (pu *pump) listenKeeper() {
	buf := make([]byte, maxPacket)
	for {
		m, fds, err := pu.link.receive(buf)
		if err != nil {
			if !errors.Is(err, io.EOF) && !isGone(err) {
				slog.Error("the keeper is not understood", "err", err)
			}
			pu.becomeKeeper()
			return
		}
		closeAll(fds)
		switch m.Op {
		case opAck:
			pu.link.acknowledged(m)
		case opExited:
			go pu.childOfKeeper(*m.Ended)
		case opStop:
			go pu.stop()
		}
	}
}

func (pu *pump) childOfKeeper(e ended) {
	pu.mu.Lock()
	var p *proc
	for _, q := range pu.procs {
		if r := q.record(); r.Pid == e.Pid && r.Exit == nil {
			p = q
		}
	}
	pu.mu.Unlock()
	if p != nil {
		p.ended(e.exit())
	}
}

// stop ends this pump when the keeper says so.
func (pu *pump) stop() {
	pu.runtimes.quiesce(drainTime)
	os.Exit(0)
}

// becomeKeeper is called when the keeper is dead. This process is the parent of its
// containers; it takes the keeper's role in place, by exec, and stays their parent.
func (pu *pump) becomeKeeper() {
	slog.Warn("the keeper died; this pump takes its place", "keeper", pu.keeper)
	pu.link.died()
	pu.runtimes.quiesce(drainTime)
	for {
		err := pu.execKeeper()
		slog.Error("the pump cannot become the keeper", "err", err)
		time.Sleep(time.Second)
	}
}

func (pu *pump) execKeeper() error {
	h := &handover{Lock: pu.lock, Listen: pu.listen, Shm: pu.shmFd, Link: -1, Origin: pu.origin}
	pu.mu.Lock()
	defer pu.mu.Unlock()
	// No fd may be closed, and its number used anew, between here and exec.
	for _, p := range pu.procs {
		p.mu.Lock()
	}
	defer func() {
		for _, p := range pu.procs {
			p.mu.Unlock()
		}
	}()
	for _, p := range pu.procs {
		fds := map[string]int{}
		for role, fd := range p.fds {
			if role != roleOOM {
				fds[role] = fd
			}
		}
		h.Procs = append(h.Procs, handedProc{p.rec, fds})
	}
	return h.exec("/proc/self/exe", filepath.Dir(string(pu.dir)))
}

// add makes a place for a new process.
func (pu *pump) add(r record) (*proc, error) {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	if _, have := pu.procs[r.key()]; have {
		return nil, fmt.Errorf("%w: %s", ErrExists, r.key())
	}
	// The next free one after the last: events of a slot's former owner may still be under way.
	for range shmSlots {
		i := pu.nextSlot
		pu.nextSlot = (i + 1) % shmSlots
		if pu.slots[i].Load() != nil {
			continue
		}
		pu.shm.clear(i)
		r.Slot = i
		p := pu.newProc(r, map[string]int{})
		pu.procs[p.key] = p
		pu.slots[i].Store(p)
		return p, nil
	}
	return nil, fmt.Errorf("the monitor has %d processes, its limit", shmSlots)
}

// find returns a process, ErrNotFound when there is none of that name.
func (pu *pump) find(id, execID string) (*proc, error) {
	if err := checkKey(id, execID); err != nil {
		return nil, err
	}
	pu.mu.Lock()
	defer pu.mu.Unlock()
	p := pu.procs[makeKey(id, execID)]
	if p == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, makeKey(id, execID))
	}
	return p, nil
}

// all returns every process, in no order.
func (pu *pump) all() []*proc {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	list := make([]*proc, 0, len(pu.procs))
	for _, p := range pu.procs {
		list = append(list, p)
	}
	return list
}

// execsOf returns the execs of a container.
func (pu *pump) execsOf(id string) []*proc {
	var list []*proc
	for _, p := range pu.all() {
		if r := p.record(); r.ID == id && r.ExecID != "" {
			list = append(list, p)
		}
	}
	return list
}

// forget gives up all that is held of a process. Its streams are read no more.
func (pu *pump) forget(p *proc) {
	p.stopGrace()
	p.discard.Store(true)
	p.turn.Lock()
	for _, s := range p.out {
		if s != nil {
			p.noLineWaits(s)
			s.fd = -1
			s.endTaps()
		}
	}
	p.log = -1
	p.turn.Unlock()
	if err := pu.link.call(&message{Op: opForget, Key: p.key}); err != nil {
		slog.Error("the keeper could not be told to forget", "process", p.key, "err", err)
	}
	p.mu.Lock()
	slot := p.rec.Slot
	for _, role := range append(roles, roleOOM) {
		p.closeRole(role)
	}
	p.mu.Unlock()
	p.wakeSenders()
	pu.mu.Lock()
	defer pu.mu.Unlock()
	if pu.procs[p.key] == p {
		delete(pu.procs, p.key)
		pu.slots[slot].CompareAndSwap(p, nil)
	}
	p.doneOnce.Do(func() { close(p.done) })
}

// serve accepts the daemon's connections.
func (pu *pump) serve() {
	f := os.NewFile(uintptr(dupCloexec(pu.listen)), "listener")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		slog.Error("connections cannot be accepted", "err", err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			slog.Error("a connection cannot be accepted", "err", err)
			time.Sleep(50 * time.Millisecond) // out of fds, most likely
			continue
		}
		if u, ok := c.(*net.UnixConn); ok {
			go pu.serveConn(u)
		}
	}
}

func (pu *pump) broadcast(e Event) {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	for c := range pu.clients {
		c.push(e)
	}
}
