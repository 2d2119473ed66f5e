package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	runtimeTimeout = 2 * time.Minute
	// maxRuntimeText bounds what is read of a runtime's messages, maxErrorText what an error repeats of them.
	maxRuntimeText = 64 << 10
	maxErrorText   = 4 << 10
)

// errAgain: this pump is about to go and has not begun the call. The client repeats it.
var errAgain = errors.New("the pump is being replaced")

// runtimes runs OCI runtimes, as children that do not survive this process.
type runtimes struct {
	reaper *reaper
	temp   string
	origin origin
	env    []string
	serial atomic.Uint64
	forks  chan func()

	mu      sync.Mutex // Protects what follows.
	closed  bool
	running sync.WaitGroup
}

func newRuntimes(r *reaper, temp string, o origin) *runtimes {
	u := &runtimes{reaper: r, temp: temp, origin: o, env: runtimeEnv(os.Environ()), forks: make(chan func())}
	go u.forkLoop()
	return u
}

// forkLoop is the one thread that forks, and it never ends: Pdeathsig is sent
// when the thread that forked is gone, not the process.
func (u *runtimes) forkLoop() {
	runtime.LockOSThread()
	for f := range u.forks {
		f()
	}
}

// runtimeEnv is the monitor's environment without what systemd meant for the
// monitor: runc would pass the notify socket on to the container.
func runtimeEnv(env []string) []string {
	var kept []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "FDSTORE", "WATCHDOG_USEC", "WATCHDOG_PID":
		default:
			kept = append(kept, kv)
		}
	}
	return kept
}

// quiesce refuses new calls and waits a while for those that run.
func (u *runtimes) quiesce(wait time.Duration) {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	done := make(chan struct{})
	go func() {
		u.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(wait):
	}
}

// enter counts a call that is under way.
func (u *runtimes) enter() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return errAgain
	}
	u.running.Add(1)
	return nil
}

// call is one run of a runtime: its command and options, after the global ones.
type call struct {
	rt   Runtime
	args []string
	env  []string
	// stdio of the runtime and, through it, of the process it makes. Where out is
	// -1, the runtime's own messages are kept for its error.
	in, out, err int
}

// tempFile names a file that one call uses.
func (u *runtimes) tempFile(suffix string) string {
	return filepath.Join(u.temp, strconv.Itoa(os.Getpid())+"-"+strconv.FormatUint(u.serial.Add(1), 10)+suffix)
}

// removeTemp removes a call's file; one that stays is the next pump's to remove.
func removeTemp(path string) { _ = os.Remove(path) }

// run runs a runtime to its end.
func (u *runtimes) run(ctx context.Context, c call) error {
	if err := u.enter(); err != nil {
		return err
	}
	defer u.running.Done()
	verb := filepath.Base(c.rt.Path) + " " + c.args[0]
	log := u.tempFile(".log")
	defer removeTemp(log)
	said := -1
	if c.out < 0 {
		var err error
		if said, err = unix.MemfdCreate("runtime-output", unix.MFD_CLOEXEC); err != nil {
			return fmt.Errorf("%s: %w", verb, err)
		}
		defer unix.Close(said)
		c.out, c.err = said, said
	}
	timeout := c.rt.Timeout
	if timeout <= 0 {
		timeout = runtimeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pid, done, err := u.fork(c, log)
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	var e ended
	select {
	case e = <-done:
	case <-ctx.Done():
		u.reaper.kill(pid)
		<-done
		return fmt.Errorf("%s: killed: %w", verb, ctx.Err())
	}
	if e.Code == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", verb, &runtimeError{text: u.errorText(log, said, e)})
}

// runtimeError is what a runtime said when it failed.
type runtimeError struct{ text string }

func (e *runtimeError) Error() string { return e.text }

// gone reports whether the runtime knows no such container.
func (e *runtimeError) gone() bool {
	return strings.Contains(e.text, "does not exist") || strings.Contains(e.text, "No such file or directory")
}

func (u *runtimes) fork(c call, log string) (pid int, done <-chan ended, err error) {
	argv := []string{c.rt.Path, "--root", c.rt.Root, "--log", log, "--log-format", "json"}
	if c.rt.SystemdCgroup {
		argv = append(argv, "--systemd-cgroup")
	}
	argv = append(argv, c.args...)
	attr := &syscall.ProcAttr{
		Env:   append(u.env[:len(u.env):len(u.env)], c.env...),
		Files: []uintptr{uintptr(c.in), uintptr(c.out), uintptr(c.err)},
		// A session of its own: a terminal's signals are not for it.
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	forked := make(chan struct{})
	u.forks <- func() {
		defer close(forked)
		pid, done, err = u.reaper.start(func() (int, error) { return syscall.ForkExec(c.rt.Path, argv, attr) })
		if err == nil && u.origin.Lowered {
			// Long before it forks the container's init, which would inherit our score.
			_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), strconv.AppendInt(nil, int64(u.origin.OOMScoreAdj), 10), 0)
		}
	}
	<-forked
	return pid, done, err
}

// errorText is the last error in the runtime's log, else what it printed, else how it ended.
func (u *runtimes) errorText(log string, said int, e ended) string {
	if f, err := os.Open(log); err == nil {
		defer f.Close()
		if text := lastError(readTail(f)); text != "" {
			return text
		}
	}
	if said >= 0 {
		f := os.NewFile(uintptr(dupCloexec(said)), "said")
		defer f.Close()
		if text := strings.TrimSpace(string(readTail(f))); text != "" {
			return clip(text)
		}
	}
	if e.Signal != 0 {
		return "it was killed by signal " + syscall.Signal(e.Signal).String()
	}
	return "exit status " + strconv.Itoa(int(e.Code))
}

func dupCloexec(fd int) int {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return n
}

func readTail(f *os.File) []byte {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil
	}
	data, _ := io.ReadAll(io.NewSectionReader(f, max(0, size-maxRuntimeText), maxRuntimeText))
	return data
}

// lastError finds the message of the last line with level error (or worse) in a JSON log.
func lastError(log []byte) string {
	var text string
	for _, line := range bytes.Split(log, []byte{'\n'}) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) != nil || entry.Msg == "" {
			continue
		}
		switch entry.Level {
		case "error", "fatal", "panic":
			text = entry.Msg
		}
	}
	return clip(text)
}

func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "") + " …"
	}
	return s
}

// readPidFile reads what --pid-file made.
func readPidFile(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err == nil && pid <= 1 {
		err = fmt.Errorf("pid %d", pid)
	}
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	return pid, nil
}
