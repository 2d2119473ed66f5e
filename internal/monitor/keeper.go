package monitor

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// KeeperOptions say how the monitor's first process starts.
type KeeperOptions struct {
	// StateDir is the engine's state directory, absolute.
	StateDir string
	// Handover is the fd of a memfd with the state of the image that this one
	// replaces in the same process; -1 for none.
	Handover int
	// Version of the binary.
	Version string
}

// held is what the keeper has of one process.
type held struct {
	rec record
	fds map[string]int // by role
}

// keeper holds everything and does nothing: it survives by being simple. All of it
// belongs to one goroutine, run.
type keeper struct {
	dir     paths
	version string
	lock    int
	listen  int
	shmFd   int
	shm     *shm
	origin  origin
	held    map[key]*held
	byPid   map[int]key
	store   *fdStore

	// The pump of this moment.
	pump      int   // its pid, 0 for none
	link      *link // nil once it is at its end
	packets   chan packet
	told      map[int]bool // children whose end this pump knows
	started   time.Time
	failures  int // pumps that did not live for a second, one after the other
	restart   <-chan time.Time
	stopping  bool
	upgrading bool
}

// packet is what the reader of a link passes to run.
type packet struct {
	m   *message
	fds []int
	err error
}

// RunKeeper is the monitor's first process. It returns when it was told to stop.
func RunKeeper(o KeeperOptions) error {
	ownFds()
	k := &keeper{
		dir: newPaths(o.StateDir), version: o.Version,
		held: map[key]*held{}, byPid: map[int]key{}, store: newFdStore(),
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	var err error
	if o.Handover >= 0 {
		err = k.takeHandover(o.Handover)
	} else {
		err = k.begin()
	}
	if err != nil {
		return err
	}
	return k.run()
}

// begin makes a new monitor, or finds what one left that died as a whole.
func (k *keeper) begin() error {
	if err := k.dir.make(); err != nil {
		return err
	}
	if err := k.takeLock(); err != nil {
		return err
	}
	var err error
	k.origin = lowerOOMScore()
	if k.origin.Binary, err = startedBy(); err != nil {
		return err
	}
	left := k.store.inherited()
	k.shmFd = -1
	if fd, ok := left.take("shm"); ok {
		if k.shm, err = mapShm(fd); err == nil {
			k.shmFd = fd
		}
	}
	fresh := k.shmFd < 0
	if fresh {
		if k.shmFd, err = createShm(); err != nil {
			return err
		}
		if k.shm, err = mapShm(k.shmFd); err != nil {
			return err
		}
		k.store.add("shm", k.shmFd)
	}
	if k.listen, err = listenUnix(k.dir.socket()); err != nil {
		return err
	}
	records, err := k.dir.records().read(func(name string, err error) {
		slog.Error("a record cannot be read and is set aside", "file", name, "err", err)
	})
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, r := range records {
		h := &held{rec: r, fds: left.of(r.key(), fresh)}
		k.held[r.key()] = h
		if r.Pid > 0 {
			k.byPid[r.Pid] = r.key()
		}
	}
	left.close()
	return nil
}

// takeLock makes this the only monitor of its directory. The pump inherits the
// lock: it is free when both are dead.
func (k *keeper) takeLock() error {
	fd, err := unix.Open(k.dir.lock(), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open %s: %w", k.dir.lock(), err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		if err == unix.EWOULDBLOCK {
			return fmt.Errorf("another monitor runs in %s", k.dir)
		}
		return fmt.Errorf("lock %s: %w", k.dir.lock(), err)
	}
	k.lock = fd
	return nil
}

// lowerOOMScore makes the kernel kill others first, where that is allowed.
func lowerOOMScore() origin {
	const file, wanted = "/proc/self/oom_score_adj", -999
	var o origin
	data, err := os.ReadFile(file)
	if err == nil {
		o.OOMScoreAdj, err = strconv.Atoi(string(data[:max(len(data)-1, 0)]))
	}
	if err == nil && o.OOMScoreAdj > wanted {
		err = os.WriteFile(file, strconv.AppendInt(nil, wanted, 10), 0)
		o.Lowered = err == nil
	}
	if err != nil {
		slog.Warn("the monitor is not protected from the OOM killer", "err", err)
	}
	return o
}

// startedBy is the path of the binary, as it was called: an upgrade puts a new file there.
func startedBy() (string, error) {
	if filepath.IsAbs(os.Args[0]) {
		return os.Args[0], nil
	}
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the monitor's binary: %w", err)
	}
	return path, nil
}

func listenUnix(path string) (int, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = unix.Chmod(path, 0o600) // before listen: nobody can connect in between
	}
	if err == nil {
		err = unix.Listen(fd, 1024)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, nil
}

// run is the keeper's life.
func (k *keeper) run() error {
	signals := make(chan os.Signal, 16)
	// SIGPIPE is caught, not ignored, when the reader of our messages goes away:
	// an ignored signal would stay ignored in containers.
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	switch {
	case k.link != nil:
		go k.read(k.link, k.packets)
		k.tell(&message{Op: opStop}) // the pump of the old version
	case k.pump == 0:
		k.startPump()
	}
	notify("READY=1\nMAINPID=" + strconv.Itoa(os.Getpid()))
	k.reapChildren()
	for {
		select {
		case s := <-signals:
			k.signalled(s)
		case p := <-k.packets:
			k.received(p)
		case <-k.restart:
			k.restart = nil
			k.startPump()
		}
		if k.stopping && k.pump == 0 && k.link == nil {
			return nil
		}
	}
}

func (k *keeper) signalled(s os.Signal) {
	switch s {
	case syscall.SIGCHLD:
		k.reapChildren()
	case syscall.SIGTERM, syscall.SIGINT:
		slog.Info("the monitor stops; containers are left as they are", "containers", len(k.held))
		k.stopping = true
		k.restart = nil
		notify("STOPPING=1")
		k.tell(&message{Op: opStop})
	case syscall.SIGHUP:
		k.upgrade()
	}
}

// startPump starts a pump from this process's own image and hands it everything.
func (k *keeper) startPump() {
	k.pump, k.told, k.started = 0, map[int]bool{}, time.Now()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		k.failed(err)
		return
	}
	defer unix.Close(pair[1])
	l, err := newLink(pair[0])
	if err != nil {
		k.failed(err)
		return
	}
	pid, err := syscall.ForkExec("/proc/self/exe",
		[]string{k.origin.Binary, "--state", filepath.Dir(string(k.dir)), "--role", "pump"},
		&syscall.ProcAttr{
			Env:   os.Environ(),
			Files: []uintptr{0, 1, 2, uintptr(pair[1]), uintptr(k.listen), uintptr(k.shmFd), uintptr(k.lock)},
			Sys:   &syscall.SysProcAttr{},
		})
	if err != nil {
		l.conn.Close()
		k.failed(err)
		return
	}
	k.pump, k.link, k.packets = pid, l, make(chan packet)
	go k.read(l, k.packets)
	k.handOver()
	k.reapChildren() // who ended while there was no pump
}

// handOver tells a new pump of every process, and gives it duplicates of the fds.
func (k *keeper) handOver() {
	for _, h := range k.held {
		m := &message{Op: opPut, Record: &h.rec}
		var fds []int
		for role, fd := range h.fds {
			m.Roles = append(m.Roles, role)
			fds = append(fds, fd)
		}
		k.tell(m, fds...)
	}
	k.tell(&message{Op: opReady, Origin: &k.origin, Version: k.version})
}

// tell sends to the pump. A failure is not dealt with here: it means that the pump is dying.
func (k *keeper) tell(m *message, fds ...int) {
	if k.link == nil {
		return
	}
	if err := k.link.send(m, fds...); err != nil && !isGone(err) {
		slog.Error("the pump cannot be told", "op", m.Op, "err", err)
	}
}

// failed tries again to start a pump, later each time.
func (k *keeper) failed(err error) {
	k.failures++
	wait := min(10*time.Millisecond<<min(k.failures, 10), 2*time.Second)
	slog.Error("the pump cannot be started", "err", err, "again", wait)
	k.restart = time.After(wait)
}

// read passes on what comes from a pump until the end of its socket.
func (k *keeper) read(l *link, to chan<- packet) {
	buf := make([]byte, maxPacket)
	for {
		m, fds, err := l.receive(buf)
		to <- packet{m, fds, err}
		if err != nil {
			return
		}
	}
}

func (k *keeper) received(p packet) {
	if p.err != nil {
		k.linkEnded(p.err)
		return
	}
	ack := &message{Op: opAck, Seq: p.m.Seq}
	var reapable bool
	switch p.m.Op {
	case opHello:
		slog.Info("a pump is at work", "pid", k.pump, "version", p.m.Version)
		closeAll(p.fds)
	case opPut:
		if p.m.Record == nil {
			closeAll(p.fds)
			ack.Error = "a record is missing"
			break
		}
		reapable = k.put(p.m, p.fds)
	case opForget:
		closeAll(p.fds)
		k.forget(p.m.Key)
	default:
		closeAll(p.fds)
		ack.Error = "unknown operation " + strconv.Quote(p.m.Op)
	}
	k.tell(ack)
	if reapable {
		k.reapChildren()
	}
}

// put holds what a pump gives, and reports whether it recorded the end of a child of ours.
func (k *keeper) put(m *message, fds []int) bool {
	r := *m.Record
	h := k.held[r.key()]
	if h == nil {
		h = &held{fds: map[string]int{}}
		k.held[r.key()] = h
	}
	for i, role := range m.Roles {
		h.drop(role)
		h.fds[role] = fds[i]
		k.store.add(storeName(r.key(), role), fds[i])
	}
	for _, role := range m.Drop {
		h.drop(role)
		k.store.remove(storeName(r.key(), role))
	}
	h.rec = r
	if r.Pid > 0 {
		k.byPid[r.Pid] = r.key()
	}
	if err := k.dir.records().write(&r); err != nil {
		slog.Error("a record cannot be written; it is lost if the whole monitor dies", "process", r.key(), "err", err)
	}
	return r.Exit != nil && k.told[r.Pid]
}

func (h *held) drop(role string) {
	if fd, ok := h.fds[role]; ok {
		unix.Close(fd)
		delete(h.fds, role)
	}
}

func (k *keeper) forget(name key) {
	h := k.held[name]
	if h == nil {
		return
	}
	for role := range maps.Clone(h.fds) {
		h.drop(role)
		k.store.remove(storeName(name, role))
	}
	if k.byPid[h.rec.Pid] == name {
		delete(k.byPid, h.rec.Pid)
	}
	delete(k.held, name)
	k.dir.records().remove(name)
}

// reapChildren looks after children that ended: the pump, and containers whose
// own pump is dead. One of those is left a zombie until the new pump has recorded
// its end, so that its exit code cannot get lost in between.
func (k *keeper) reapChildren() {
	for {
		// The pump first: it may be behind a container that only the next pump can record.
		e, ok := ended{}, false
		if k.pump != 0 {
			e, ok = peekChild(k.pump)
		}
		if !ok {
			e, ok = peekChild(0)
		}
		if !ok {
			return
		}
		if e.Pid == k.pump {
			reap(e.Pid)
			k.pumpDied(e)
			continue
		}
		name, known := k.byPid[e.Pid]
		if known && k.held[name].rec.Exit == nil {
			if !k.told[e.Pid] && k.link != nil {
				k.told[e.Pid] = true
				k.tell(&message{Op: opExited, Ended: &e})
			}
			return // the others are behind it, until its record comes
		}
		reap(e.Pid)
	}
}

func (k *keeper) pumpDied(e ended) {
	lived := time.Since(k.started)
	if !k.stopping {
		slog.Warn("the pump died", "pid", e.Pid, "code", e.Code, "signal", e.Signal, "lived", lived)
	}
	k.pump = 0
	k.failures++
	if lived > time.Second {
		k.failures = 0
	}
	if syscall.Signal(e.Signal) != syscall.SIGKILL && e.Code != 0 {
		k.blame()
	}
	k.replacePump()
}

// maxCrashes is how many pumps may die of one process's output.
const maxCrashes = 3

// blame counts the crash on the processes whose turn it was, and gives up on the
// output of one that it happens with again and again.
func (k *keeper) blame() {
	for name, h := range k.held {
		s := k.shm.slot(h.rec.Slot)
		if s.active.Swap(0) == 0 {
			continue
		}
		if s.crashes.Add(1) >= maxCrashes && s.quarantined.CompareAndSwap(0, 1) {
			slog.Error("the output of a process keeps crashing the pump and is not read any more", "process", name)
		}
	}
}

// linkEnded comes after the last packet of a pump.
func (k *keeper) linkEnded(err error) {
	k.packets = nil
	if k.upgrading && errors.Is(err, os.ErrDeadlineExceeded) {
		k.execNew()
		return
	}
	k.link.conn.Close()
	k.link = nil
	if k.pump != 0 && !isGone(err) {
		slog.Error("the pump is not understood and is killed", "pid", k.pump, "err", err)
		_ = unix.Kill(k.pump, unix.SIGKILL)
	}
	if k.upgrading {
		k.execNew()
	}
	k.reapChildren()
	k.replacePump()
}

// replacePump starts another when the last is dead and all that it sent is done.
func (k *keeper) replacePump() {
	if k.pump != 0 || k.link != nil || k.stopping || k.restart != nil {
		return
	}
	var wait time.Duration
	if k.failures > 3 {
		wait = min(10*time.Millisecond<<min(k.failures-3, 10), 2*time.Second)
	}
	k.restart = time.After(wait)
}

// upgrade replaces this process's image by what is now at the path it was started
// by. The reader is stopped first, so that no packet is lost in its hands.
func (k *keeper) upgrade() {
	if k.upgrading || k.stopping {
		return
	}
	if k.link == nil {
		k.execNew()
		return
	}
	k.upgrading = true
	_ = k.link.conn.SetReadDeadline(time.Unix(1, 0))
}

// execNew returns only if the new image cannot be started; then this one goes on.
func (k *keeper) execNew() {
	slog.Info("the keeper is replaced", "binary", k.origin.Binary)
	err := k.execKeeper(k.origin.Binary)
	slog.Error("the keeper cannot be replaced and goes on", "err", err)
	k.upgrading = false
	if k.link != nil {
		_ = k.link.conn.SetReadDeadline(time.Time{})
		k.packets = make(chan packet)
		go k.read(k.link, k.packets)
	}
}
