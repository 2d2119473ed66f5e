package monitor

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unfinished watches pipes in which the beginning of a line waits for its end.
//
// Since Linux 5.5 epoll does not tell of what a write puts into a pipe that is not empty
// until all of it is there. One that does not fit would wait for us, and we for it. Who
// asks for signals (O_ASYNC, fcntl(2)) is told of it. They go to one thread, which
// takes them by sigtimedwait(2): no handler runs, and they end with the thread when
// the pump becomes the keeper or is killed.
type unfinished struct {
	ready  func(*proc)
	thread int // its id

	mu    sync.Mutex // Protects what follows.
	procs map[int]*proc
}

const (
	// asyncSignal carries the number of the fd. When the kernel's queue is full SIGIO comes, without it.
	asyncSignal = unix.Signal(44)
	// asyncDelay is how long a line waits before the pipe's signals are asked for: one for each
	// write is more than those cost that write little and often.
	asyncDelay = 2 * time.Millisecond
)

func newUnfinished(ready func(*proc)) (*unfinished, error) {
	u := &unfinished{ready: ready, procs: map[int]*proc{}}
	begun := make(chan error)
	go u.run(begun)
	if err := <-begun; err != nil {
		return nil, fmt.Errorf("take signals of pipes: %w", err)
	}
	return u, nil
}

// run never ends: its signals are the thread's.
func (u *unfinished) run(begun chan error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The first thread is the one that is left by an exec.
		next := make(chan error)
		go u.run(next)
		begun <- <-next
		runtime.UnlockOSThread()
		return
	}
	u.thread = unix.Gettid()
	var set unix.Sigset_t
	for _, s := range []unix.Signal{asyncSignal, unix.SIGIO} {
		set.Val[0] |= 1 << (s - 1)
	}
	err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
	begun <- err
	for err == nil {
		fd, all, ok := takeSignal(&set)
		if ok {
			u.wake(fd, all)
		}
	}
}

// takeSignal waits for a signal. ok is false when there was none.
func takeSignal(set *unix.Sigset_t) (fd int, all, ok bool) {
	var info struct {
		signo, errno, code, _ int32
		band                  int64
		fd                    int32
		_                     [100]byte
	}
	const kernelSigset = 8
	at, to := unsafe.Pointer(set), unsafe.Pointer(&info) //nolint:gosec // G103: the kernel's structures
	_, _, errno := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(at), uintptr(to), 0, kernelSigset, 0, 0)
	return int(info.fd), unix.Signal(info.signo) == unix.SIGIO, errno == 0
}

func (u *unfinished) wake(fd int, all bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if all {
		for _, p := range u.procs {
			u.ready(p)
		}
	} else if p := u.procs[fd]; p != nil {
		u.ready(p)
	}
}

// add has p get a turn for whatever is written to fd, a pipe of its.
func (u *unfinished) add(fd int, p *proc) error {
	u.mu.Lock()
	u.procs[fd] = p
	u.mu.Unlock()
	owner := struct{ kind, id int32 }{id: int32(u.thread)} // F_OWNER_TID is 0
	from := unsafe.Pointer(&owner)                         //nolint:gosec // G103: a structure that x/sys has no call for
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETOWN_EX, uintptr(from))
	if errno != 0 {
		return errno
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETSIG, int(asyncSignal)); err != nil {
		return err
	}
	// A pump before this one may have had it on: its fd's number would be told.
	return errors.Join(setAsync(fd, false), setAsync(fd, true))
}

// remove must come before fd is closed: the keeper's duplicate would go on.
func (u *unfinished) remove(fd int) {
	_ = setAsync(fd, false)
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.procs, fd)
}

// lineWaits is called when the beginning of a line is all that a stream has, with the
// turn held. It is to be looked at again when more is true.
func (p *proc) lineWaits(s *stream) (more bool) {
	full, news := s.full, s.seen != s.waited
	s.full, s.waited = false, s.seen
	now := time.Now()
	switch due := !s.asyncAt.IsZero() && !now.Before(s.asyncAt); {
	case s.async && (full || !news):
		return false
	case full || due:
		s.asyncAt = time.Time{}
		if err := p.pump.unfinished.add(s.fd, p); err == nil {
			s.async = true
			return true // something may have come before the kernel knew
		}
		// Out of memory: as if the time had not come.
	case s.async:
		p.pump.unfinished.remove(s.fd)
		s.async = false
	}
	if s.asyncAt.IsZero() {
		s.asyncAt = now.Add(asyncDelay)
		time.AfterFunc(asyncDelay, func() { p.pump.workers.ready(p) })
	}
	return false
}

// noLineWaits is called when a stream is empty or at its end, with the turn held.
func (p *proc) noLineWaits(s *stream) {
	s.full, s.asyncAt = false, time.Time{}
	if s.async {
		p.pump.unfinished.remove(s.fd)
		s.async = false
	}
}

func setAsync(fd int, on bool) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if flags &^= unix.O_ASYNC; on {
		flags |= unix.O_ASYNC
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
	return err
}
