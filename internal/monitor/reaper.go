package monitor

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// maxEarly bounds what is remembered of children that nobody knew.
const maxEarly = 1024

// reaper waits for all children of this process: the runtimes it runs, the
// processes they leave to it, and whatever else becomes its child.
type reaper struct {
	mu    sync.Mutex // Protects what follows; held over fork, so that no child is unknown.
	calls map[int]chan ended
	procs map[int]*proc
	// early has the ends of children that were not known, the oldest first in order: a
	// container may end before its runtime has told its pid.
	early map[int]ended
	order []int
}

func newReaper() *reaper {
	return &reaper{calls: map[int]chan ended{}, procs: map[int]*proc{}, early: map[int]ended{}}
}

// run never ends.
func (r *reaper) run() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	for {
		r.scan()
		<-c
	}
}

func (r *reaper) scan() {
	for {
		e, ok := peekChild(0)
		if !ok {
			return
		}
		r.mu.Lock()
		call, p := r.calls[e.Pid], r.procs[e.Pid]
		if call == nil && p == nil {
			r.remember(e)
		}
		delete(r.calls, e.Pid)
		delete(r.procs, e.Pid)
		r.mu.Unlock()
		if p != nil {
			p.ended(e.exit()) // recorded before it is reaped
		}
		reap(e.Pid)
		if call != nil {
			call <- e
		}
	}
}

// remember is called with mu held.
func (r *reaper) remember(e ended) {
	if _, have := r.early[e.Pid]; !have {
		r.order = append(r.order, e.Pid)
	}
	r.early[e.Pid] = e
	if len(r.order) > maxEarly {
		delete(r.early, r.order[0])
		r.order = r.order[1:]
	}
}

// start forks a child whose end comes through the channel.
func (r *reaper) start(fork func() (int, error)) (int, <-chan ended, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return 0, nil, err
	}
	done := make(chan ended, 1)
	r.calls[pid] = done
	return pid, done, nil
}

// kill ends a child that start made, unless it is gone and its pid another's.
func (r *reaper) kill(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ours := r.calls[pid]; ours {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// adopt makes p the one that is told of pid's end. If it has ended already, it says how.
func (r *reaper) adopt(pid int, p *proc) (ended, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// An entry may be of an earlier process of that number: then this one lives.
	if e, ok := r.early[pid]; ok {
		delete(r.early, pid)
		if syscall.Kill(pid, 0) != nil {
			return e, true
		}
	}
	r.procs[pid] = p
	return ended{}, false
}
