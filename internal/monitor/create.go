package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cri-engine/cri-engine/internal/cgroup"
	"golang.org/x/sys/unix"
)

func (pu *pump) create(ctx context.Context, r CreateRequest) (Info, error) {
	if err := r.check(); err != nil {
		return Info{}, err
	}
	p, err := pu.add(record{
		Info:    Info{ID: r.ID, State: StateCreating, LogPath: r.LogPath},
		Runtime: r.Runtime, Bundle: r.Bundle, Terminal: r.Terminal, StdinOnce: r.StdinOnce,
		PidFile: pu.runtimes.tempFile(".pid"), Created: time.Now(),
	})
	if err != nil {
		return Info{}, err
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	madeLog, err := p.openLog(r.LogPath)
	if err == nil {
		args := []string{"create", "--bundle", r.Bundle}
		err = p.launch(ctx, launch{args: args, env: r.Env, stdin: r.Stdin, owner: r.Owner, state: StateCreated})
	}
	if err != nil {
		p.abandon(err)
		if madeLog {
			_ = os.Remove(r.LogPath)
		}
		return Info{}, fmt.Errorf("create container %s: %w", r.ID, err)
	}
	return p.info(), nil
}

// openLog makes the log file, and reports whether it was not there before.
func (p *proc) openLog(path string) (made bool, err error) {
	if path == "" {
		return false, nil
	}
	_, err = os.Lstat(path)
	made = errors.Is(err, os.ErrNotExist)
	fd, err := openLog(path)
	if err != nil {
		return false, fmt.Errorf("open log: %w", err)
	}
	p.setFd(roleLog, fd)
	p.turn.Lock()
	defer p.turn.Unlock()
	p.log = fd
	p.discard.Store(false)
	return made, nil
}

// launch is how a runtime is made to make a process.
type launch struct {
	args  []string // of the runtime, without the id
	env   []string
	stdin bool
	owner *Owner
	state State // of the process afterwards
}

// launch makes the process's streams, puts them in custody, has the runtime make
// the process, and takes it into care.
func (p *proc) launch(ctx context.Context, l launch) error {
	r := p.record()
	defer removeTemp(r.PidFile)
	c := call{rt: r.Runtime, args: append(l.args, "--pid-file", r.PidFile), env: l.env, in: -1, out: -1, err: -1}
	theirs, err := p.makeStreams(l, &c)
	defer func() { closeAll(theirs) }()
	if err != nil {
		return fmt.Errorf("make streams: %w", err)
	}
	if err := p.save(nil, roleStdin, roleStdout, roleStderr, roleLog); err != nil {
		return err
	}
	var pty *ptyReceiver
	if r.Terminal {
		if pty, err = newPtyReceiver(p.pump.runtimes.tempFile(".pty")); err != nil {
			return err
		}
		defer pty.close()
		c.args = append(c.args, "--console-socket", pty.path)
	}
	c.args = append(c.args, r.ID)
	if err := p.pump.runtimes.run(ctx, c); err != nil {
		return p.withStderr(err)
	}
	closeAll(theirs)
	theirs = nil
	if pty != nil {
		if err := p.takePty(pty); err != nil {
			return err
		}
	}
	return p.adopt(r.PidFile, l.state)
}

// makeStreams makes the pipes, or what a process with a pty gets instead, and returns the ends that go to the runtime.
func (p *proc) makeStreams(l launch, c *call) (theirs []int, err error) {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, null)
	c.in = null
	if p.record().Terminal {
		return theirs, nil // the pty comes from the runtime
	}
	if l.stdin {
		fds, err := pipe(1, l.owner)
		if err != nil {
			return theirs, err
		}
		c.in = fds[0]
		theirs = append(theirs, fds[0])
		p.setFd(roleStdin, fds[1])
	}
	for i, role := range []string{roleStdout, roleStderr} {
		fds, err := pipe(0, l.owner)
		if err != nil {
			return theirs, err
		}
		theirs = append(theirs, fds[1])
		p.setFd(role, fds[0])
		p.setStream(i, role, fds[0], false)
		if i == 0 {
			c.out = fds[1]
		} else {
			c.err = fds[1]
		}
	}
	return theirs, nil
}

func (p *proc) setStream(i int, role string, fd int, pty bool) {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.out[i] = &stream{role: role, fd: fd, pty: pty, j: &p.slot.out[i]}
}

// pipe makes a pipe whose end number ours does not block.
func pipe(ours int, owner *Owner) (fds [2]int, err error) {
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return fds, err
	}
	err = unix.SetNonblock(fds[ours], true)
	if err == nil && owner != nil {
		err = unix.Fchown(fds[0], owner.UID, owner.GID) // of the pipe, whichever end
	}
	if err != nil {
		closeAll(fds[:])
	}
	return fds, err
}

// withStderr adds what a runtime that failed without a word in its log left in
// the stderr that it would have passed on.
func (p *proc) withStderr(err error) error {
	var said *runtimeError
	if !errors.As(err, &said) || !strings.HasPrefix(said.text, "exit status") {
		return err
	}
	p.turn.Lock()
	defer p.turn.Unlock()
	if p.out[1] == nil {
		return err
	}
	buf := make([]byte, maxErrorText)
	n, _ := readSome(p.out[1].fd, buf)
	if text := strings.TrimSpace(clip(string(buf[:max(n, 0)]))); text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// adopt takes a process that a runtime has made into care.
func (p *proc) adopt(pidFile string, state State) error {
	pid, err := readPidFile(pidFile)
	if err != nil {
		return err
	}
	early, over := p.pump.reaper.adopt(pid, p)
	if !over {
		if err := p.identify(pid); err != nil {
			// It ended between the two looks, and the reaper knows how.
			slog.Debug("a process ended as it was made", "process", p.key, "err", err)
		}
	}
	err = p.save(func(r *record) {
		r.Pid = pid
		if r.Exit == nil {
			r.State = state
		}
	}, rolePidfd, roleStdout)
	if err != nil {
		return err
	}
	if over {
		p.ended(early.exit())
	} else {
		p.findParent()
		if err := p.watchOOM(); err != nil {
			slog.Warn("OOM kills are seen only at a process's end", "process", p.key, "err", err)
		}
	}
	return p.watch()
}

// identify notes all that tells the process from others, while it is there.
func (p *proc) identify(pid int) error {
	st, err := readStat(pid)
	if err != nil {
		return err
	}
	fd, err := openPidfd(pid, st.start)
	if err != nil {
		return err
	}
	p.setFd(rolePidfd, fd)
	dirs, err := cgroup.Of(pid)
	if err != nil {
		slog.Warn("a process's cgroup is not known", "process", p.key, "err", err)
	}
	dirs = ownCgroups(dirs)
	var base uint64
	if path, _ := oomFile(dirs); path != "" {
		base, _ = readOOMKills(path)
	}
	p.mu.Lock()
	p.rec.Pid, p.rec.StartTime, p.rec.Cgroups, p.rec.OOMBase = pid, st.start, dirs, base
	r := p.rec
	p.mu.Unlock()
	p.sliceBase.Store(p.pump.slices.base(r.sliceEvents()))
	return nil
}

// abandon undoes what a failed launch left: the runtime cleans up after itself,
// unless it was killed.
func (p *proc) abandon(cause error) {
	p.mu.Lock()
	pidfd, ok := p.fds[rolePidfd]
	if ok {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	}
	p.mu.Unlock()
	r := p.record()
	var said *runtimeError
	if r.ExecID == "" && !errors.Is(cause, errAgain) && !errors.As(cause, &said) {
		ctx, cancel := context.WithTimeout(context.Background(), runtimeTimeout)
		defer cancel()
		if err := p.pump.remove(ctx, DeleteRequest{ID: r.ID, Runtime: r.Runtime, Force: true}, &r); err != nil {
			slog.Warn("what a failed create left could not be removed", "container", r.ID, "err", err)
		}
	}
	p.pump.forget(p)
}

// ptyReceiver is the socket on which a runtime passes the master of the pty it made.
type ptyReceiver struct {
	path string
	l    *net.UnixListener
}

func newPtyReceiver(path string) (*ptyReceiver, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("console socket: %s is longer than %d bytes", path, maxSocketPath)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	return &ptyReceiver{path: path, l: l}, nil
}

func (r *ptyReceiver) close() { r.l.Close() }

// receive returns the master. The runtime has sent it before it ended, so it is there.
func (r *ptyReceiver) receive() (int, error) {
	deadline := time.Now().Add(10 * time.Second)
	_ = r.l.SetDeadline(deadline)
	c, err := r.l.AcceptUnix()
	if err != nil {
		return -1, fmt.Errorf("console socket: %w", err)
	}
	defer c.Close()
	_ = c.SetDeadline(deadline)
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(name, oob)
	if err != nil {
		return -1, fmt.Errorf("console socket: %w", err)
	}
	fds, err := parseFds(oob[:n])
	if err != nil || len(fds) != 1 {
		closeAll(fds)
		return -1, errors.Join(errors.New("console socket: no pty came"), err)
	}
	return fds[0], nil
}

func (p *proc) takePty(r *ptyReceiver) error {
	master, err := r.receive()
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(master, true); err != nil {
		unix.Close(master)
		return err
	}
	p.setFd(roleStdout, master)
	p.setStream(0, roleStdout, master, true)
	return nil
}

func (pu *pump) start(ctx context.Context, id string) error {
	p, err := pu.find(id, "")
	if err != nil {
		return err
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	r := p.record()
	if r.State != StateCreated {
		return fmt.Errorf("%w: start container %s: it is %s", ErrState, id, r.State)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	err = pu.runtimes.run(ctx, call{rt: r.Runtime, args: []string{"start", id}, in: null, out: -1, err: -1})
	if errors.Is(err, errAgain) {
		return err
	}
	if err != nil {
		p.kill()
		return fmt.Errorf("start container %s: %w", id, err)
	}
	return p.save(func(r *record) {
		if r.State == StateCreated {
			r.State = StateRunning
		}
	})
}

// kill ends the process, however it is.
func (p *proc) kill() {
	if err := p.signal(unix.SIGKILL); err != nil && !errors.Is(err, ErrNotFound) {
		slog.Error("a process cannot be killed", "process", p.key, "err", err)
	}
}

// signal sends by pidfd, so that no other process of that number can be hit.
func (p *proc) signal(sig unix.Signal) error { return p.sendSignal(sig, 0) }

// signalGroup sends to the process and to those of its children that stayed in its
// process group: OCI runtimes make what they exec the leader of one.
func (p *proc) signalGroup(sig unix.Signal) error {
	const processGroup = 4 // PIDFD_SIGNAL_PROCESS_GROUP, since Linux 6.9
	err := p.sendSignal(sig, processGroup)
	switch {
	case errors.Is(err, unix.EINVAL):
		// An older kernel. The process is a zombie at least until its end is recorded, so the number is its.
		p.mu.Lock()
		if pid := p.rec.Pid; p.rec.Exit == nil && pid > 1 {
			_ = unix.Kill(-pid, sig)
		}
		p.mu.Unlock()
		return p.signal(sig)
	case errors.Is(err, ErrNotFound):
		return p.signal(sig) // it leads none
	}
	return err
}

func (p *proc) sendSignal(sig unix.Signal, flags int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	fd, ok := p.fds[rolePidfd]
	if !ok || p.rec.Exit != nil {
		return fmt.Errorf("%w: %s has ended", ErrNotFound, p.key)
	}
	err := unix.PidfdSendSignal(fd, sig, nil, flags)
	if err == unix.ESRCH {
		return fmt.Errorf("%w: %s has ended", ErrNotFound, p.key)
	}
	if err != nil {
		return fmt.Errorf("signal %s: %w", p.key, err)
	}
	return nil
}

func (pu *pump) exec(ctx context.Context, r ExecRequest) (Info, error) {
	if err := r.check(); err != nil {
		return Info{}, err
	}
	c, err := pu.find(r.ID, "")
	if err != nil {
		return Info{}, err
	}
	if s := c.record().State; s != StateRunning && s != StateCreated {
		return Info{}, fmt.Errorf("%w: exec in container %s: it is %s", ErrState, r.ID, s)
	}
	p, err := pu.add(record{
		Info:    Info{ID: r.ID, ExecID: r.ExecID, State: StateCreating},
		Runtime: r.Runtime, Terminal: r.Terminal, PidFile: pu.runtimes.tempFile(".pid"), Created: time.Now(),
	})
	if err != nil {
		return Info{}, err
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	spec := pu.runtimes.tempFile(".json")
	defer removeTemp(spec)
	if err = os.WriteFile(spec, r.Process, 0o600); err == nil {
		args := []string{"exec", "--process", spec, "--detach"}
		err = p.launch(ctx, launch{args: args, stdin: r.Stdin, owner: r.Owner, state: StateRunning})
	}
	if err != nil {
		p.abandon(err)
		return Info{}, fmt.Errorf("exec in container %s: %w", r.ID, err)
	}
	p.startGrace()
	return p.info(), nil
}

// check refuses what could reach beyond the request's own container.
func (r *CreateRequest) check() error {
	if err := checkKey(r.ID, ""); err != nil {
		return err
	}
	if err := r.Runtime.check(); err != nil {
		return err
	}
	if err := checkPath("bundle", r.Bundle); err != nil {
		return err
	}
	if r.LogPath != "" {
		if err := checkPath("log path", r.LogPath); err != nil {
			return err
		}
	}
	return checkEnv(r.Env)
}

const (
	maxPath    = 4096
	maxProcess = 1 << 20
	maxEnv     = 32 << 10
)

func (r *ExecRequest) check() error {
	if r.ExecID == "" {
		return fmt.Errorf("%w: an exec without an id", ErrInvalid)
	}
	if err := checkKey(r.ID, r.ExecID); err != nil {
		return err
	}
	if len(r.Process) > maxProcess || !isObject(r.Process) {
		return fmt.Errorf("%w: the process is not a JSON object of at most %d bytes", ErrInvalid, maxProcess)
	}
	return r.Runtime.check()
}

func (r *Runtime) check() error {
	if err := checkPath("runtime", r.Path); err != nil {
		return err
	}
	return checkPath("runtime root", r.Root)
}

func checkPath(what, path string) error {
	if len(path) > maxPath || !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%w: %s %.200q is not a clean absolute path", ErrInvalid, what, path)
	}
	return nil
}

func checkEnv(env []string) error {
	size := 0
	for _, kv := range env {
		size += len(kv)
		if strings.ContainsRune(kv, 0) || strings.IndexByte(kv, '=') < 1 {
			return fmt.Errorf("%w: an environment entry is not NAME=VALUE", ErrInvalid)
		}
	}
	if size > maxEnv {
		return fmt.Errorf("%w: an environment of %d bytes", ErrInvalid, size)
	}
	return nil
}

func checkKey(id, execID string) error {
	if !validID(id) {
		return fmt.Errorf("%w: %.80q is not a container id", ErrInvalid, id)
	}
	if execID != "" && !validExecID(execID) {
		return fmt.Errorf("%w: %.80q is not an exec id", ErrInvalid, execID)
	}
	return nil
}

// validID: 64 hex digits.
func validID(id string) bool {
	if len(id) != 64 {
		return false
	}
	return strings.Trim(id, "0123456789abcdef") == ""
}

// validExecID: 1–64 of [a-z0-9-].
func validExecID(id string) bool {
	return len(id) >= 1 && len(id) <= 64 && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz-") == ""
}

func isObject(data []byte) bool {
	var object map[string]json.RawMessage
	return json.Unmarshal(data, &object) == nil && object != nil
}
