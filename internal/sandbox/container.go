package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-engine/cri-engine/internal/monitor"
)

// container is a container in this process. What lasts of it is rec.
type container struct {
	id     string
	name   string
	pod    *pod
	cfg    *runtimeapi.ContainerConfig  // never written to
	podCfg *runtimeapi.PodSandboxConfig // never written to

	// op is held by whoever makes, starts or removes the container. Stopping does
	// not take it: a stop never queues behind another.
	op opLock
	// limits is held by an update of the container's limits that somebody asked for, over
	// what plugins want to change of other containers. It comes before op.
	limits opLock
	// telling keeps what plugins are told of a start and an end in order. It comes after op.
	telling opLock
	// snap is what lists and statuses see; nil while the container is being made.
	snap atomic.Pointer[Container]
	told toldStage // what plugins know of it

	mu  sync.Mutex      // Protects what is below. Held for memory and one record's write only.
	rec containerRecord //
	// early are exits that were told before the start was recorded.
	early []monitor.Info
	// gate is where clients wait that attach before the start; nil without any.
	gate *startGate
	// stdin is what attached clients share; nil while none of them has it.
	stdin *sharedStdin
	// exited is closed when the container has ended; made anew by each start.
	exited chan struct{}
}

// containerName is what must be unique: one attempt at a container of a pod.
func containerName(podID string, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("%s/%s/%d", podID, m.GetName(), m.GetAttempt())
}

// namespaceOptions are the container's own or, where it has none, its pod's; never nil.
func (c *container) namespaceOptions() *runtimeapi.NamespaceOption {
	if o := c.cfg.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return sandboxOptions(c.pod.cfg)
}

func (c *container) read() containerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// setContainer changes the container's record, writes it and shows it, like setPod.
func (e *Engine) setContainer(c *container, change func(*containerRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return e.setContainerLocked(c, change)
}

func (e *Engine) setContainerLocked(c *container, change func(*containerRecord)) error {
	change(&c.rec)
	err := e.records.saveContainer(&c.rec)
	if c.rec.Phase != phaseCreating {
		c.snap.Store(e.snapshot(c))
	}
	return err
}

func (e *Engine) snapshot(c *container) *Container {
	r := &c.rec
	s := &Container{
		ID: c.id, PodID: r.PodID, Config: c.cfg, Pod: c.podCfg, State: criState(r.Phase, r.FinishedAt),
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt,
		ExitCode: r.ExitCode, Reason: r.Reason, Message: r.Message,
		ImageID: r.ImageID, LogPath: r.LogPath, Handler: r.Handler, Cgroup: r.Cgroup, RootFS: r.RootFS,
		Restored: r.Restored, Resources: resourcesOf(r, c.cfg), Mounts: mountsOf(r, c.cfg),
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: r.UID, Gid: r.GID, SupplementalGroups: r.Groups,
		}},
		Info: map[string]any{
			"phase": r.Phase, "bundle": e.bundleDir(c.id), "pid": r.Process.Pid, "runtime": r.Process.Runtime,
			"cgroups": r.Process.Cgroups, "apparmorProfile": r.AppArmor,
			"selinux": r.Labels,
		},
	}
	if r.Phase == phaseRunning {
		s.Pid = r.Process.Pid
	}
	return s
}

func criState(p phase, finished time.Time) runtimeapi.ContainerState {
	switch p {
	case phaseRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case phaseExited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case phaseRemoving:
		if !finished.IsZero() {
			return runtimeapi.ContainerState_CONTAINER_EXITED
		}
		return runtimeapi.ContainerState_CONTAINER_CREATED
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

func (e *Engine) bundleDir(id string) string { return filepath.Join(e.o.State, "containers", id) }

func decodeContainer(config, podConfig []byte) (*runtimeapi.ContainerConfig, *runtimeapi.PodSandboxConfig, error) {
	cfg := &runtimeapi.ContainerConfig{}
	if err := proto.Unmarshal(config, cfg); err != nil {
		return nil, nil, fmt.Errorf("container config: %w", err)
	}
	if cfg.GetMetadata() == nil {
		return nil, nil, fmt.Errorf("container config: no metadata: %w", ErrInvalid)
	}
	podCfg, err := decodePod(podConfig)
	return cfg, podCfg, err
}

// writeBundle makes an OCI bundle: a directory with config.json.
func writeBundle(dir string, spec *specs.Spec) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return replaceBundle(dir, spec)
}

// createProcess has the monitor create a process. When the monitor's pump was
// replaced meanwhile nobody knows how far the runtime came: what it left is
// deleted, and it is tried once more.
func (e *Engine) createProcess(ctx context.Context, r monitor.CreateRequest) (monitor.Info, error) {
	info, err := e.o.Monitor.Create(ctx, r)
	for try := 0; errors.Is(err, monitor.ErrReplaced) && try < 3; try++ {
		if err := e.o.Monitor.Delete(ctx, monitor.DeleteRequest{ID: r.ID, Runtime: r.Runtime, Force: true}); err != nil {
			return info, err
		}
		info, err = e.o.Monitor.Create(ctx, r)
	}
	if err != nil {
		// Cancelled calls and failures alike leave nothing.
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.runtimeTimeout())
		defer cancel()
		err = errors.Join(err, e.o.Monitor.Delete(dctx, monitor.DeleteRequest{ID: r.ID, Runtime: r.Runtime, Force: true}))
	}
	return info, err
}

// deleteProcess ends a process and all else in its cgroup, and removes it from
// the runtime and the monitor. Nil when nothing is left.
func (e *Engine) deleteProcess(ctx context.Context, id string, p process) error {
	if p.Runtime.Path == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.runtimeTimeout())
	defer cancel()
	if err := p.Cgroups.Kill(ctx); err != nil {
		return err
	}
	return e.o.Monitor.Delete(ctx, monitor.DeleteRequest{ID: id, Runtime: p.Runtime, Force: true})
}

// onExit takes in that a container's process has ended. An earlier process of
// the same container, whose start was cut off and taken back, is not meant.
func (e *Engine) onExit(c *container, info monitor.Info) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.rec.Phase {
	case phaseStarting:
		c.early = append(c.early, info)
	case phaseRunning:
		if c.rec.Process.is(info) {
			e.exitLocked(c, *info.Exit)
		}
	}
}

// is reports whether the monitor speaks of this process. One without a pid is
// another: an earlier one, which was never made to its end.
func (p process) is(info monitor.Info) bool {
	return p.Pid == 0 || p.Pid == info.Pid && p.StartTime == info.StartTime
}

// lost is the end of a process of which the monitor knows nothing any more.
func (p process) lost(id string) monitor.Info {
	exit := &monitor.Exit{Code: lostCode, Lost: true, At: time.Now()}
	return monitor.Info{ID: id, State: monitor.StateExited, Pid: p.Pid, StartTime: p.StartTime, Exit: exit}
}

// exitLocked records the end of a running container, with c.mu held, and has
// what is left of it cleaned up.
func (e *Engine) exitLocked(c *container, exit monitor.Exit) {
	err := e.setContainerLocked(c, func(r *containerRecord) {
		r.Phase = phaseExited
		r.ExitCode, r.FinishedAt = exit.Code, exit.At
		r.Reason, r.Message = exitReason(exit)
	})
	if err != nil {
		klog.ErrorS(err, "Container's end is known in memory only", "container", c.id)
	}
	e.records.flush(c.id)
	// Before those who wait for it go on, to what is told after it.
	e.tellContainer(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	close(c.exited)
	e.goRestored(func(ctx context.Context) { e.tellEnded(ctx, c) })
	klog.V(2).InfoS("Container has ended", "container", c.id, "name", c.name, "exitCode", exit.Code, "oomKilled", exit.OOMKilled)
	e.retry("container that has ended", c.id, func(ctx context.Context) error { return e.reapContainer(ctx, c) })
}

// reapContainer gives back what an ended container still holds: processes that
// outlived its first one, the runtime's state, the cgroup.
func (e *Engine) reapContainer(ctx context.Context, c *container) error {
	if err := c.op.lock(ctx); err != nil {
		return nil // the engine is closing: the next start does this
	}
	defer c.op.unlock()
	rec := c.read()
	if rec.Phase != phaseExited {
		return nil
	}
	return e.deleteProcess(ctx, c.id, rec.Process)
}

func exitReason(exit monitor.Exit) (reason, message string) {
	switch {
	case exit.Lost:
		return "Unknown", "the container ended while nothing watched it: its exit code is not known"
	case exit.OOMKilled && exit.Code != 0:
		return "OOMKilled", ""
	case exit.Code == 0:
		return "Completed", ""
	}
	return "Error", ""
}
