package monitor

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What an epoll event is about.
const (
	watchStdout int32 = iota
	watchStderr
	watchStdin
	watchPidfd
	watchOOM
	watchWake // the loop's own eventfd
)

// watcher waits for events on all processes' fds, in one thread. Registrations are
// edge-triggered: what is left in a pipe on purpose must not wake it again.
type watcher struct {
	epoll int
	on    func(slot, kind int32, events uint32)
}

func newWatcher(on func(slot, kind int32, events uint32)) (*watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	return &watcher{epoll: fd, on: on}, nil
}

// add registers fd; an event that is pending already is told at once.
func (w *watcher) add(fd int, slot, kind int32, events uint32) error {
	return unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events | unix.EPOLLET, Fd: slot, Pad: kind})
}

// remove must come before fd is closed: the keeper's duplicate would keep the registration alive.
func (w *watcher) remove(fd int) {
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, fd, nil)
}

// run never ends; the pump's end is the process's.
func (w *watcher) run() error {
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(w.epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for events: %w", err)
		}
		for _, e := range events[:n] {
			w.on(e.Fd, e.Pad, e.Events)
		}
	}
}

const (
	// maxWorkers bounds the processes that are served at the same time, and so
	// the logs on hung disks that it takes to stop the others.
	maxWorkers = 16
	// workerIdle is how long a worker waits for more before it gives its buffers back.
	workerIdle = 5 * time.Second
)

// The states of a process's turn, in proc.run.
const (
	runIdle uint32 = iota
	runQueued
	runRunning
	runAgain // something came while it was running
)

// workers give turns to processes that have something to move, in the order in
// which they asked. There are none while nothing moves.
type workers struct {
	turn func(*proc, *buffers) (more bool)

	mu    sync.Mutex // Protects what follows.
	queue []*proc
	idle  int // workers that wait for the queue
	count int
	wake  chan struct{}
}

func newWorkers(turn func(*proc, *buffers) bool) *workers {
	return &workers{turn: turn, wake: make(chan struct{}, maxWorkers)}
}

// ready asks for a turn for p.
func (w *workers) ready(p *proc) {
	for {
		switch s := p.run.Load(); s {
		case runIdle:
			if p.run.CompareAndSwap(runIdle, runQueued) {
				w.push(p)
				return
			}
		case runRunning:
			if p.run.CompareAndSwap(runRunning, runAgain) {
				return
			}
		default:
			return
		}
	}
}

func (w *workers) push(p *proc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, p)
	switch {
	case len(w.queue) <= w.idle:
		select {
		case w.wake <- struct{}{}:
		default:
		}
	case w.count < maxWorkers:
		w.count++
		go w.work()
	}
}

func (w *workers) pop() *proc {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		w.queue = nil
		return nil
	}
	p := w.queue[0]
	w.queue[0] = nil
	w.queue = w.queue[1:]
	return p
}

func (w *workers) work() {
	b, err := newBuffers()
	for err != nil { // out of fds: what waits in the pipes is not lost
		time.Sleep(logRetry)
		b, err = newBuffers()
	}
	defer b.close()
	timer := time.NewTimer(workerIdle)
	defer timer.Stop()
	for {
		if p := w.pop(); p != nil {
			w.serve(p, b)
			continue
		}
		if !w.wait(timer) {
			return
		}
	}
}

// wait returns true when there may be something to do, and false when the worker shall end.
func (w *workers) wait(timer *time.Timer) bool {
	w.mu.Lock()
	if len(w.queue) > 0 {
		w.mu.Unlock()
		return true
	}
	w.idle++
	w.mu.Unlock()
	timer.Reset(workerIdle)
	expired := false
	select {
	case <-w.wake:
	case <-timer.C:
		expired = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle--
	if expired && len(w.queue) == 0 {
		w.count--
		return false
	}
	return true
}

func (w *workers) serve(p *proc, b *buffers) {
	p.run.Store(runRunning)
	more := w.turn(p, b)
	if !more && p.run.CompareAndSwap(runRunning, runIdle) {
		return
	}
	p.run.Store(runQueued)
	w.push(p)
}
