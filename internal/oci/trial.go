package oci

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/internal/cgroup"
	"github.com/cri-engine/cri-engine/internal/pause"
)

// trialTimeout is for a machine that is busy booting: a trial takes 0.1 s on one that is not.
const trialTimeout = time.Minute

// runTrial runs one container as the engine will: create with a pipe, start,
// end, delete, with limits in a cgroup of its own. It is our pause program
// with an argument, so what it prints proves that it ran. Nothing is left of
// it, whether it worked or not.
func runTrial(ctx context.Context, h *Handler, stateDir, rootDir string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	if err := os.MkdirAll(stateDir, 0o711); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(stateDir, "trial-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// The container's user must reach its root filesystem.
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	t := &trial{handler: h, dir: dir, rootDir: rootDir, id: "cri-engine-trial-" + rand.Text()}
	spec, err := t.spec()
	if err != nil {
		return err
	}
	if err := t.writeBundle(spec); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.cleanUp(context.WithoutCancel(ctx))) }()
	return t.run(ctx)
}

// trial is a container that lives in one call of runTrial.
type trial struct {
	handler          *Handler
	dir, rootDir, id string
}

func (t *trial) spec() (*specs.Spec, error) {
	rootfs, err := pause.Install(filepath.Join(t.rootDir, "pause"))
	if err != nil {
		return nil, err
	}
	spec, err := PauseSpec(PauseInput{ID: t.id, RootFS: rootfs, Handler: t.handler, CgroupDriver: t.handler.CgroupDriver})
	if err != nil {
		return nil, err
	}
	spec.Process.Args = append(spec.Process.Args, "-v")
	if t.handler.CgroupDriver == Cgroupfs {
		// At the top, so that no parent is left.
		spec.Linux.CgroupsPath = "/" + t.id
	}
	// What containers usually have.
	memory, pids := int64(64<<20), int64(64)
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	return spec, nil
}

func (t *trial) writeBundle(spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(t.dir, "config.json"), data, 0o600)
}

func (t *trial) run(ctx context.Context) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	pidFile := filepath.Join(t.dir, "pid")
	err = t.call(ctx, in, "create", "--bundle", t.dir, "--pid-file", pidFile, t.id)
	in.Close()
	if err != nil {
		return err
	}
	ended, err := t.watch(pidFile)
	if err != nil {
		return err
	}
	defer ended.Close()
	if err := t.call(ctx, nil, "start", t.id); err != nil {
		return err
	}
	// It ends by itself: the end of its output is its end, or nearly.
	if deadline, ok := ctx.Deadline(); ok {
		if err := out.SetReadDeadline(deadline); err != nil {
			return err
		}
	}
	printed, err := io.ReadAll(io.LimitReader(out, int64(len(pause.Text)+1)))
	if err != nil {
		return fmt.Errorf("read the container's output: %w", err)
	}
	if string(printed) != pause.Text {
		return fmt.Errorf("the container printed %q", printed)
	}
	waitEnd(ended)
	return t.call(ctx, nil, "delete", t.id)
}

// watch returns a pidfd of the container's process, which waits for start.
func (t *trial) watch(pidFile string) (*os.File, error) {
	var pid int
	if _, err := fmt.Sscan(readWord(pidFile), &pid); err != nil {
		return nil, fmt.Errorf("read the container's pid: %w", err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitEnd waits a little for a process that is on its way out; delete refuses one that still runs.
func waitEnd(pidfd *os.File) {
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if n, err := unix.Poll(fds, 100); n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// cleanUp removes what is left of the container. After a run that worked there is nothing.
func (t *trial) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	// Its error tells nothing: mostly there is no such container any more.
	_ = t.call(ctx, nil, "delete", "--force", t.id)
	if t.handler.CgroupDriver != Cgroupfs {
		return nil
	}
	// A create that failed half-way can leave cgroups: below a controller's mount, or the only one.
	left, err := filepath.Glob(filepath.Join(cgroupRoot, "*", t.id))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range append(left, filepath.Join(cgroupRoot, t.id)) {
		if err := cgroup.Rmdir(dir); err != nil {
			errs = append(errs, &os.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}

// call runs the OCI runtime. Its output, and the container's stderr, are a
// file: a pipe would stay open as long as the container has it.
func (t *trial) call(ctx context.Context, stdout *os.File, command string, args ...string) error {
	log := filepath.Join(t.dir, "log-"+command)
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, t.handler.Binary, t.args(command, args)...)
	cmd.Stdout, cmd.Stderr = f, f
	if stdout != nil {
		cmd.Stdout = stdout
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", command, errors.Join(err, ctx.Err()), tail(log))
	}
	return nil
}

func (t *trial) args(command string, args []string) []string {
	all := []string{"--root", filepath.Join(t.dir, "root")}
	if t.handler.CgroupDriver == Systemd {
		all = append(all, "--systemd-cgroup")
	}
	return append(append(all, command), args...)
}
