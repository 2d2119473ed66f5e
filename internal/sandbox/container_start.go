package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/cgroup"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/nri"
	"github.com/cri-engine/cri-engine/internal/steps"
)

// startErrorCode is the exit code of a container that could not be started.
const startErrorCode = 128

// containerStart starts a created container.
type containerStart struct {
	e *Engine
	c *container
}

var _ = steps.Register("StartContainer", names((*containerStart)(nil).steps())...)

func (r *containerStart) steps() []steps.Step {
	return []steps.Step{
		{Name: "record", Do: r.record},
		{Name: "create", Do: r.create, Undo: r.delete},
		{Name: "plugins", Do: r.plugins},
		{Name: "start", Do: r.start},
		{Name: "running", Do: r.running},
	}
}

// StartContainer starts a created container. It goes to its end even when the
// caller gives up, and a repeated call finds the container running: nil. A start
// that fails leaves the container exited, with a code and the reason "StartError".
func (e *Engine) StartContainer(ctx context.Context, id string) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	return e.toEnd(ctx, e.forwardTimeout(), func(ctx context.Context) error {
		if err := c.op.lock(ctx); err != nil {
			return err
		}
		defer c.op.unlock()
		switch phase := c.read().Phase; phase {
		case phaseRunning:
			return nil
		case phaseCreated:
		default:
			return fmt.Errorf("start container %s: it is %s: %w", c.id, phase, ErrPrecondition)
		}
		if c.pod.read().Phase != phaseReady {
			return fmt.Errorf("start container %s: pod sandbox %s is not ready: %w", c.id, c.pod.id, ErrPrecondition)
		}
		return e.startContainer(ctx, c)
	})
}

func (e *Engine) startContainer(ctx context.Context, c *container) error {
	if err := c.telling.lock(ctx); err != nil {
		return err
	}
	err := steps.Run(ctx, "StartContainer", (&containerStart{e, c}).steps())
	if err == nil {
		e.mentionInTurn(ctx, nri.PostStartContainer, c)
		c.telling.unlock()
		return nil
	}
	c.telling.unlock()
	e.failStart(c, err)
	c.openGate(false)
	e.tellEnded(ctx, c)
	return fmt.Errorf("start container %s: %w", c.id, err)
}

// failStart records that a container could not be started.
func (e *Engine) failStart(c *container, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.early = nil
	saveErr := e.setContainerLocked(c, func(r *containerRecord) {
		r.Phase, r.ExitCode, r.Reason, r.Message = phaseExited, startErrorCode, "StartError", err.Error()
		r.StartedAt, r.FinishedAt = time.Now(), time.Now()
	})
	if saveErr != nil {
		klog.ErrorS(saveErr, "Container's failed start is known in memory only", "container", c.id)
	}
	e.records.flush(c.id)
	e.tellContainer(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	close(c.exited)
}

func (r *containerStart) record(context.Context) error {
	r.c.mu.Lock()
	r.c.early = nil
	r.c.mu.Unlock()
	return r.e.setContainer(r.c, func(rec *containerRecord) { rec.Phase = phaseStarting })
}

func (r *containerStart) create(ctx context.Context) error {
	rec := r.c.read()
	if err := makeLogDir(rec.LogPath, r.c.cfg.GetLogPath()); err != nil {
		return err
	}
	info, err := r.e.createProcess(ctx, monitor.CreateRequest{
		ID: r.c.id, Runtime: rec.Process.Runtime, Bundle: r.e.bundleDir(r.c.id), LogPath: rec.LogPath,
		Terminal: r.c.cfg.GetTty(), Stdin: r.c.cfg.GetStdin(), StdinOnce: r.c.cfg.GetStdinOnce(),
		Owner: r.c.streamsOwner(),
	})
	if err != nil {
		return err
	}
	// On disk before the process does anything: after a crash its cgroups are known.
	dirs, err := cgroup.Of(info.Pid)
	if err != nil {
		klog.V(2).InfoS("Container's cgroups are not known", "container", r.c.id, "err", err)
	}
	err = r.e.setContainer(r.c, func(rec *containerRecord) {
		rec.Process.Pid, rec.Process.StartTime, rec.Process.Cgroups = info.Pid, info.StartTime, dirs
	})
	if err != nil {
		_ = r.delete(context.WithoutCancel(ctx))
		return err
	}
	r.c.openGate(true)
	return nil
}

// makeLogDir makes the directory of a container's log, path, whose end rel is
// beneath the pod's log directory, and stays so: a link that leads out is refused.
func makeLogDir(path, rel string) error {
	if path == "" {
		return nil
	}
	logDir := strings.TrimSuffix(path, filepath.Clean("/"+rel))
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	root, err := os.OpenRoot(logDir)
	if err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.Dir(filepath.Clean(rel)), 0o755); err != nil {
		return fmt.Errorf("config.log_path %q in %s: %w: %w", rel, logDir, ErrInvalid, err)
	}
	// A link that dangles is made into nothing by MkdirAll and followed by the open.
	if _, err := root.Stat(filepath.Dir(filepath.Clean(rel))); err != nil {
		return fmt.Errorf("config.log_path %q in %s: %w: %w", rel, logDir, ErrInvalid, err)
	}
	return nil
}

func (r *containerStart) delete(ctx context.Context) error {
	return r.e.deleteProcess(ctx, r.c.id, r.c.read().Process)
}

func (r *containerStart) start(ctx context.Context) error { return r.e.o.Monitor.Start(ctx, r.c.id) }

func (r *containerStart) running(context.Context) error {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	err := r.e.setContainerLocked(c, func(rec *containerRecord) {
		rec.Phase, rec.StartedAt = phaseRunning, time.Now()
	})
	if err != nil {
		// It runs and the monitor has it: a record that lags behind is put right at the next start.
		klog.ErrorS(err, "Container's start is known in memory only", "container", c.id)
	}
	klog.V(2).InfoS("Container is running", "container", c.id, "name", c.name, "pid", c.rec.Process.Pid)
	r.e.tellContainer(c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	early := c.early
	c.early = nil
	for _, info := range early {
		if !c.rec.Process.is(info) {
			continue
		}
		if info.Exit.At.Before(c.rec.StartedAt) {
			c.rec.StartedAt = info.Exit.At
		}
		r.e.exitLocked(c, *info.Exit)
		break
	}
	return nil
}
