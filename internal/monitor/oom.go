package monitor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cri-engine/cri-engine/internal/cgroup"
	"golang.org/x/sys/unix"
)

// ownCgroups are a process's cgroups without those that the monitor is in itself,
// or below which it is: nobody may kill or remove these on a container's account.
func ownCgroups(dirs cgroup.Dirs) cgroup.Dirs {
	ours, err := cgroup.Of(os.Getpid())
	if err != nil {
		return nil
	}
	mounts, err := cgroup.Mounts()
	if err != nil {
		return nil
	}
	kept := cgroup.Dirs{}
	for c, dir := range dirs {
		if dir != mounts[c] && !within(ours[c], dir) {
			kept[c] = dir
		}
	}
	return kept
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	path, dir = filepath.Clean(path), filepath.Clean(dir)
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// oomFile is where a cgroup counts the OOM killer's victims: memory.oom_control
// on v1, memory.events on v2. Empty when it has no memory controller.
func oomFile(dirs cgroup.Dirs) (path string, v2 bool) {
	if dir := dirs["memory"]; dir != "" {
		return filepath.Join(dir, "memory.oom_control"), false
	}
	if dir := dirs[""]; dir != "" {
		return filepath.Join(dir, "memory.events"), true
	}
	return "", false
}

// readOOMKills reads the count; both files have it as a line "oom_kill N".
func readOOMKills(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return parseOOMKills(data)
}

func parseOOMKills(data []byte) (uint64, error) {
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if count, ok := strings.CutPrefix(s.Text(), "oom_kill "); ok {
			return strconv.ParseUint(strings.TrimSpace(count), 10, 64)
		}
	}
	return 0, fmt.Errorf("no oom_kill count in %d bytes", len(data))
}

// watchOOM has the kernel tell of OOM kills in the process's cgroup. A cgroup
// without a memory controller has none to tell of.
func (p *proc) watchOOM() error {
	r := p.record()
	if r.ExecID != "" { // the container's own process stands for the cgroup
		return nil
	}
	path, v2 := oomFile(r.Cgroups)
	if path == "" {
		return nil
	}
	if v2 {
		return p.watchEvents(path, int32(r.Slot))
	}
	return p.watchControl(path, int32(r.Slot))
}

// roleOOM is the fd that tells of OOM kills; the keeper need not hold it.
const roleOOM = "oom"

// watchEvents polls memory.events (cgroup-v2, "memory.events … generates a file
// modified event", which poll(2) shows as POLLPRI).
func (p *proc) watchEvents(path string, slot int32) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	p.setFd(roleOOM, fd)
	return p.pump.watcher.add(fd, slot, watchOOM, unix.EPOLLPRI)
}

// watchControl registers an eventfd with v1's cgroup.event_control, which takes "EVENTFD FD-OF-FILE".
func (p *proc) watchControl(path string, slot int32) error {
	control, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(control)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	p.setFd(roleOOM, fd)
	line := fmt.Sprintf("%d %d", fd, control)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "cgroup.event_control"), []byte(line), 0); err != nil {
		return err
	}
	return p.pump.watcher.add(fd, slot, watchOOM, unix.EPOLLIN)
}

func (p *proc) setFd(role string, fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeRole(role)
	p.fds[role] = fd
}

// oomEvent looks at the count. v1 tells before it kills, so the count may come later.
func (p *proc) oomEvent() {
	for wait := time.Millisecond; wait < time.Second; wait *= 4 {
		if p.countOOM() {
			p.pump.broadcast(Event{Type: EventOOM, Info: p.info()})
			return
		}
		if _, v2 := oomFile(p.record().Cgroups); v2 {
			return // another line of the file changed
		}
		time.Sleep(wait)
	}
}

// countOOM reads the count into the slot, where it outlives the cgroup and the
// pump, and reports whether it grew.
func (p *proc) countOOM() bool {
	r := p.record()
	path, _ := oomFile(r.Cgroups)
	if path == "" {
		return false
	}
	count, err := readOOMKills(path)
	if err != nil || count < r.OOMBase {
		return false
	}
	count -= r.OOMBase
	for {
		last := p.slot.oomKills.Load()
		if count <= last {
			return false
		}
		if p.slot.oomKills.CompareAndSwap(last, count) {
			p.pump.slices.note(r.sliceEvents(), count-last)
			return true
		}
	}
}

// oomKilled reports whether the OOM killer struck since the process was created.
func (p *proc) oomKilled(exit *Exit) bool {
	p.countOOM()
	if p.slot.oomKills.Load() > 0 {
		return true
	}
	r := p.record()
	path, v2 := oomFile(r.Cgroups)
	if !v2 || exit.Signal != int32(unix.SIGKILL) {
		return false
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	base := p.sliceBase.Load()
	if base == nil || !p.pump.slices.claim(r.sliceEvents(), *base) {
		return false
	}
	p.slot.oomKills.Add(1)
	return true
}

// systemd removes a scope as soon as its last process has ended, and on a busy machine
// before anybody has read its count. What happened is in the count of the slice above then, with
// what happened in other scopes.
type sliceKills struct {
	mu sync.Mutex // Protects found.
	// found are, by the slice's file, kills that were found in processes' own cgroups, or claimed.
	found map[string]uint64
}

// sliceEvents is the memory.events of the slice that systemd has a container's scope in;
// empty where it has none, and for execs: the container's own process stands for the cgroup.
func (r *record) sliceEvents() string {
	if r.ExecID != "" {
		return ""
	}
	for dir := r.Cgroups[""]; len(dir) > 1; dir = filepath.Dir(dir) {
		if strings.HasSuffix(dir, ".slice") {
			return filepath.Join(dir, "memory.events")
		}
	}
	return ""
}

// base is how many kills of a slice are nobody's so far; nil when that is not to be known.
func (s *sliceKills) base(file string) *uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nobodys(file)
}

// nobodys is for whoever holds the lock. The number may be below zero, as what it is compared with.
func (s *sliceKills) nobodys(file string) *uint64 {
	if file == "" {
		return nil
	}
	count, err := readOOMKills(file)
	if err != nil {
		return nil
	}
	count -= s.found[file]
	return &count
}

// note tells of kills that were found in a process's own cgroup.
func (s *sliceKills) note(file string, kills uint64) {
	if file == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(file, kills)
}

func (s *sliceKills) add(file string, kills uint64) {
	if s.found == nil {
		s.found = map[string]uint64{}
	}
	if len(s.found) >= 1024 { // those of pods that are gone
		maps.DeleteFunc(s.found, func(file string, _ uint64) bool {
			_, err := os.Stat(file)
			return err != nil
		})
	}
	s.found[file] += kills
}

// claim reports whether there is a kill since base that is nobody's, and makes it the caller's.
func (s *sliceKills) claim(file string, base uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.nobodys(file)
	if now == nil || int64(*now-base) <= 0 {
		return false
	}
	s.add(file, 1)
	return true
}
