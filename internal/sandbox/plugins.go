package sandbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/nri"
	"github.com/cri-engine/cri-engine/internal/oci"
)

// stage is how much of a pod's or container's life plugins were told. It is kept
// whether there are plugins or not: one that comes later is told the rest. After
// a restart all plugins come anew, so none of it is recorded.
type stage int

// A pod goes from nothing to running, ended and removed; a container from nothing
// over created to all of them.
const (
	toldNothing stage = iota
	toldCreated
	toldRunning
	toldEnded
	toldRemoved
)

// toldStage is the stage of one pod or container. It is changed in a turn, and read by anyone.
type toldStage struct{ stage atomic.Int32 }

func (t *toldStage) note(s stage) { t.stage.Store(int32(s)) }
func (t *toldStage) was() stage   { return stage(t.stage.Load()) }

// noPlugins is where NRI is off.
type noPlugins struct{}

func (noPlugins) Turn(context.Context) (func(), error) { return func() {}, nil }
func (noPlugins) Any() bool                            { return false }
func (noPlugins) Tell(context.Context, nri.Event, *nri.Pod, *nri.Container) error {
	return nil
}
func (noPlugins) UpdatePod(context.Context, *nri.Pod, *runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources) error {
	return nil
}
func (noPlugins) Create(context.Context, *nri.Pod, *nri.Container) (*nri.Adjustment, []nri.Update, error) {
	return nil, nil, nil
}
func (noPlugins) Update(context.Context, *nri.Pod, *nri.Container, *runtimeapi.LinuxContainerResources) (*nri.Limits, []nri.Update, error) {
	return nil, nil, nil
}
func (noPlugins) Stop(context.Context, *nri.Pod, *nri.Container) ([]nri.Update, error) {
	return nil, nil
}

// inTurn runs f in a turn. In it nothing is waited for but plugins.
func (e *Engine) inTurn(ctx context.Context, f func() error) error {
	end, err := e.o.Plugins.Turn(ctx)
	if err != nil {
		return err
	}
	defer end()
	return f()
}

// tellOf tells plugins of an event, in a turn. Nothing is put together for nobody.
func (e *Engine) tellOf(ctx context.Context, ev nri.Event, p *pod, c *container) error {
	if !e.o.Plugins.Any() {
		return nil
	}
	if c == nil {
		return e.o.Plugins.Tell(ctx, ev, e.pluginPod(p), nil)
	}
	return e.o.Plugins.Tell(ctx, ev, e.pluginPod(c.pod), e.pluginContainer(c, nil))
}

// mention tells of what has happened and can't be refused any more: that a plugin
// fails changes nothing.
func (e *Engine) mention(ctx context.Context, ev nri.Event, p *pod, c *container) {
	if err := e.tellOf(ctx, ev, p, c); err != nil {
		id := p.id
		if c != nil {
			id = c.id
		}
		klog.ErrorS(err, "A plugin could not be told of an event", "event", ev, "id", id)
	}
}

// mentionStop is mention of a container's end, and returns what plugins want of others then.
func (e *Engine) mentionStop(ctx context.Context, c *container) []nri.Update {
	if !e.o.Plugins.Any() {
		return nil
	}
	updates, err := e.o.Plugins.Stop(ctx, e.pluginPod(c.pod), e.pluginContainer(c, nil))
	if err != nil {
		klog.ErrorS(err, "A plugin could not be told of an event", "event", "StopContainer", "id", c.id)
	}
	return updates
}

// pluginsRunPod asks plugins whether the pod may be. When one refuses, those
// that were asked before it are told of its end.
func (e *Engine) pluginsRunPod(ctx context.Context, p *pod) error {
	return e.inTurn(ctx, func() error {
		if err := e.tellOf(ctx, nri.RunPod, p, nil); err != nil {
			e.unmentionPod(ctx, p)
			return err
		}
		p.told.note(toldRunning)
		return nil
	})
}

// unmentionPod takes back what plugins were told of a pod that is not to be, in a turn.
func (e *Engine) unmentionPod(ctx context.Context, p *pod) {
	ctx = context.WithoutCancel(ctx)
	e.mention(ctx, nri.StopPod, p, nil)
	e.mention(ctx, nri.RemovePod, p, nil)
	p.told.note(toldNothing)
}

// pluginsForgetPod is the undo of pluginsRunPod.
func (e *Engine) pluginsForgetPod(ctx context.Context, p *pod) error {
	return e.inTurn(ctx, func() error {
		e.unmentionPod(ctx, p)
		return nil
	})
}

// pluginsPodIs tells plugins once that a pod has ended, or is removed. With p.op held.
func (e *Engine) pluginsPodIs(ctx context.Context, p *pod, t stage, ev nri.Event) error {
	if was := p.told.was(); was == toldNothing || was >= t {
		return nil
	}
	return e.inTurn(ctx, func() error {
		e.mention(ctx, ev, p, nil)
		p.told.note(t)
		return nil
	})
}

// UpdatePodResources tells plugins that the pod is going to be resized, which any
// of them can refuse, and keeps what it is resized to.
func (e *Engine) UpdatePodResources(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	p, err := e.findPod(id)
	if err != nil {
		return err
	}
	if err := p.op.lock(ctx); err != nil {
		return err
	}
	defer p.op.unlock()
	if p.read().Phase != phaseReady {
		return fmt.Errorf("update pod sandbox %s: it is not ready: %w", p.id, ErrPrecondition)
	}
	if err := e.updatePod(ctx, p, overhead, resources); err != nil {
		return fmt.Errorf("update pod sandbox %s: %w", p.id, err)
	}
	return nil
}

func (e *Engine) updatePod(ctx context.Context, p *pod, overhead, resources *runtimeapi.LinuxContainerResources) error {
	oldOverhead, oldResources := p.resources()
	if overhead == nil {
		overhead = oldOverhead
	}
	if resources == nil {
		resources = oldResources
	}
	overheadData, err1 := encodeResources(overhead)
	resourcesData, err2 := encodeResources(resources)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	err := e.inTurn(ctx, func() error {
		if !e.o.Plugins.Any() {
			return nil
		}
		return e.o.Plugins.UpdatePod(ctx, e.pluginPod(p), overhead, resources)
	})
	if err != nil {
		return err
	}
	if err := e.setPod(p, func(r *podRecord) { r.Overhead, r.Resources = overheadData, resourcesData }); err != nil {
		return err
	}
	return e.inTurn(ctx, func() error {
		e.mention(ctx, nri.PostUpdatePod, p, nil)
		return nil
	})
}

func encodeResources(r *runtimeapi.LinuxContainerResources) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	return proto.Marshal(r)
}

// resources are what the pod was made or last resized with.
func (p *pod) resources() (overhead, resources *runtimeapi.LinuxContainerResources) {
	rec := p.read()
	return recordedResources(rec.Overhead, p.cfg.GetLinux().GetOverhead()), recordedResources(rec.Resources, p.cfg.GetLinux().GetResources())
}

// plugins asks plugins for adjustments, and writes the bundle with them.
func (r *containerCreate) plugins(ctx context.Context) error {
	e, c := r.e, r.c
	return e.inTurn(ctx, func() error {
		err := r.adjust(ctx)
		if err != nil {
			e.unmentionContainer(ctx, c)
			return err
		}
		c.told.note(toldCreated)
		return nil
	})
}

func (r *containerCreate) adjust(ctx context.Context) error {
	e, c := r.e, r.c
	if !e.o.Plugins.Any() {
		return nil
	}
	adjustment, others, err := e.o.Plugins.Create(ctx, e.pluginPod(c.pod), e.pluginContainer(c, r.ociSpec))
	if err != nil {
		return err
	}
	r.others = others
	if adjustment == nil {
		return nil
	}
	before, err := e.readBundle(c.id)
	if err != nil {
		return err
	}
	if err := r.apply(before, adjustment); err != nil {
		return fmt.Errorf("NRI adjustment: %w: %w", err, nri.ErrRefused)
	}
	return writeBundle(e.bundleDir(c.id), r.ociSpec)
}

func (r *containerCreate) apply(before *specs.Spec, adjustment *nri.Adjustment) error {
	if names := adjustment.CDIDevices(); len(names) > 0 {
		if r.e.o.Devices == nil {
			return fmt.Errorf("CDI device %q: [cdi] enabled is false in the configuration of this node", names[0])
		}
		if err := r.e.o.Devices.Inject(r.ociSpec, names); err != nil {
			return fmt.Errorf("CDI devices: %s", err.Error()) // an unknown one is not the request's fault
		}
	}
	if err := adjustment.Apply(r.ociSpec); err != nil {
		return err
	}
	if err := oci.CheckAdjusted(before, r.ociSpec, r.handler, r.e.o.CgroupDriver); err != nil {
		return err
	}
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Cgroup = r.ociSpec.Linux.CgroupsPath
	if !adjustment.Resources() {
		return nil
	}
	data, err := proto.Marshal(oci.ResourcesOf(c.cfg.GetLinux().GetResources(), r.ociSpec))
	c.rec.Resources = data
	return err
}

// unmentionContainer takes back what plugins were told of a container that is not
// to be, in a turn.
func (e *Engine) unmentionContainer(ctx context.Context, c *container) {
	ctx = context.WithoutCancel(ctx)
	// What a plugin wants of others now is what it would want had this one never been.
	_ = e.mentionStop(ctx, c)
	e.mention(ctx, nri.RemoveContainer, c.pod, c)
	c.told.note(toldNothing)
}

func (r *containerCreate) forgetInPlugins(ctx context.Context) error {
	return r.e.inTurn(ctx, func() error {
		r.e.unmentionContainer(ctx, r.c)
		return nil
	})
}

// pluginUpdates changes the limits of other containers as plugins want it for this one.
func (r *containerCreate) pluginUpdates(ctx context.Context) error {
	undo, err := r.e.applyOthers(ctx, r.others)
	r.undoOthers = undo
	return err
}

func (r *containerCreate) undoPluginUpdates(ctx context.Context) error { return r.undoOthers(ctx) }

// plugins asks plugins whether the container, whose process exists now, may start.
func (r *containerStart) plugins(ctx context.Context) error {
	return r.e.inTurn(ctx, func() error {
		if err := r.e.tellOf(ctx, nri.StartContainer, r.c.pod, r.c); err != nil {
			return err
		}
		r.c.told.note(toldRunning)
		return nil
	})
}

// mentionInTurn is mention with a turn of its own.
func (e *Engine) mentionInTurn(ctx context.Context, ev nri.Event, c *container) {
	_ = e.inTurn(ctx, func() error { // else the caller has given up
		e.mention(ctx, ev, c.pod, c)
		return nil
	})
}

// tellEnded tells plugins once that a container has ended, whoever notices it
// first, and does what they want of others then. When it returns they were told.
func (e *Engine) tellEnded(ctx context.Context, c *container) {
	for _, u := range e.askEnded(ctx, c) {
		if err := e.setLimits(ctx, u.ContainerID, u.Limits, nil); err != nil && !isEnded(err) {
			klog.ErrorS(err, "An update that a plugin asked for failed", "container", u.ContainerID)
		}
	}
}

func (e *Engine) askEnded(ctx context.Context, c *container) (updates []nri.Update) {
	if err := c.telling.lock(ctx); err != nil {
		return nil // the engine closes, or the caller has given up
	}
	defer c.telling.unlock()
	if t := c.told.was(); t != toldCreated && t != toldRunning {
		return nil
	}
	_ = e.inTurn(ctx, func() error { // as above
		updates = e.mentionStop(ctx, c)
		c.told.note(toldEnded)
		return nil
	})
	return updates
}

// plugins tells plugins that the container is gone.
func (s *containerRemove) plugins(ctx context.Context) error {
	s.e.tellEnded(ctx, s.c)
	if s.c.told.was() != toldEnded {
		return nil
	}
	return s.e.inTurn(ctx, func() error {
		s.e.mention(ctx, nri.RemoveContainer, s.c.pod, s.c)
		s.c.told.note(toldRemoved)
		return nil
	})
}

// isEnded: a container that has ended, or is gone, has no limits to change.
func isEnded(err error) bool { return errors.Is(err, ErrNotFound) || errors.Is(err, ErrPrecondition) }

// applyOthers changes limits of several containers, or of none: undo takes all of
// it back. Those that have ended are passed over.
func (e *Engine) applyOthers(ctx context.Context, updates []nri.Update) (undo func(context.Context) error, err error) {
	var undos []func(context.Context) error
	undo = func(ctx context.Context) error {
		var errs []error
		for _, u := range slices.Backward(undos) {
			errs = append(errs, u(ctx))
		}
		return errors.Join(errs...)
	}
	for _, u := range updates {
		err := e.setLimits(ctx, u.ContainerID, u.Limits, &undos)
		switch {
		case err == nil || isEnded(err):
		case u.IgnoreFailure:
			klog.ErrorS(err, "An update that a plugin asked for failed", "container", u.ContainerID)
		default:
			err = fmt.Errorf("update of container %s: %w", u.ContainerID, pluginsFault(err))
			return nil, errors.Join(err, undo(context.WithoutCancel(ctx)))
		}
	}
	return undo, nil
}

// pluginsFault keeps what a plugin asks for wrongly from being told as the request's fault.
func pluginsFault(err error) error {
	var invalid *oci.InvalidError
	if errors.As(err, &invalid) {
		return fmt.Errorf("%s: %w", err.Error(), nri.ErrRefused)
	}
	return err
}

// ApplyUpdates does what a plugin asks for by itself. Each update stands alone;
// those that could not be done are returned.
func (e *Engine) ApplyUpdates(ctx context.Context, updates []nri.Update) (failed []nri.Update) {
	for _, u := range updates {
		if err := e.setLimits(ctx, u.ContainerID, u.Limits, nil); err != nil {
			klog.ErrorS(err, "An update that a plugin asked for failed", "container", u.ContainerID)
			failed = append(failed, u)
		}
	}
	return failed
}

// Evict ends a container because a plugin wants it; nil for one that is not there.
func (e *Engine) Evict(ctx context.Context, ev nri.Eviction) error {
	klog.InfoS("A plugin evicts a container", "container", ev.ContainerID, "reason", ev.Reason)
	err := e.StopContainer(ctx, ev.ContainerID, 0)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Known are all pods, and the containers that have not ended, of which plugins
// were told, the oldest first. No turn is under way.
func (e *Engine) Known(context.Context) (pods []*nri.Pod, containers []*nri.Container) {
	e.mu.Lock()
	allPods, allContainers := slices.Collect(maps.Values(e.pods)), slices.Collect(maps.Values(e.containers))
	e.mu.Unlock()
	slices.SortFunc(allPods, func(a, b *pod) int { return older(a.read().CreatedAt, b.read().CreatedAt, a.id, b.id) })
	slices.SortFunc(allContainers, func(a, b *container) int { return older(a.read().CreatedAt, b.read().CreatedAt, a.id, b.id) })
	for _, p := range allPods {
		if t := p.told.was(); t == toldRunning || t == toldEnded {
			pods = append(pods, e.pluginPod(p))
		}
	}
	for _, c := range allContainers {
		if t := c.told.was(); t == toldCreated || t == toldRunning {
			containers = append(containers, e.pluginContainer(c, nil))
		}
	}
	return pods, containers
}

func older(a, b time.Time, aID, bID string) int {
	return cmp.Or(a.Compare(b), strings.Compare(aID, bID))
}

// noteRestored makes what plugins count as having been told follow from the
// phases: those that connect are sent what there is.
func (e *Engine) noteRestored() {
	for _, p := range e.allPods() {
		switch {
		case p.snap.Load() == nil: // being rolled back
		case p.rec.Phase == phaseReady || p.rec.Phase == phaseStopping:
			p.told.note(toldRunning)
		default:
			p.told.note(toldEnded)
		}
	}
	for _, c := range e.allContainers() {
		switch c.read().Phase {
		case phaseCreating:
		case phaseCreated:
			c.told.note(toldCreated)
		case phaseRunning:
			c.told.note(toldRunning)
		default:
			c.told.note(toldEnded)
		}
	}
}

// pluginPod is what plugins see of a pod.
func (e *Engine) pluginPod(p *pod) *nri.Pod {
	rec := p.read()
	view := &nri.Pod{ID: p.id, Config: p.cfg, Handler: rec.RequestedHandler, CgroupParent: rec.CgroupParent}
	view.Overhead, view.Resources = p.resources()
	if rec.Result != nil {
		view.IPs = rec.Result.IPs
	}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: rec.NetNS}, {Type: specs.IPCNamespace, Path: rec.IPCNS},
		{Type: specs.UTSNamespace, Path: rec.UTSNS}, {Type: specs.UserNamespace, Path: rec.UserNS},
	} {
		// They are let go before the pod is.
		if ns.Path != "" && rec.Phase != phaseStopped && rec.Phase != phaseRemoving {
			view.Namespaces = append(view.Namespaces, ns)
		}
	}
	if rec.Init != nil {
		view.Pid = rec.Init.Pid
		view.CgroupsPath = oci.CgroupsPath(e.o.CgroupDriver, rec.CgroupParent, p.id)
	}
	return view
}

// pluginContainer is what plugins see of a container. The spec is read from its
// bundle where none is given: it is not kept in memory for the few who ask.
func (e *Engine) pluginContainer(c *container, spec *specs.Spec) *nri.Container {
	if spec == nil {
		var err error
		if spec, err = e.readBundle(c.id); err != nil {
			klog.V(2).InfoS("Plugins can't be told all of a container", "container", c.id, "err", err)
			spec = nil
		}
	}
	rec := c.read()
	view := &nri.Container{
		ID: c.id, PodID: rec.PodID, Config: c.cfg, State: criState(rec.Phase, rec.FinishedAt), Spec: spec,
		CreatedAt: rec.CreatedAt, StartedAt: rec.StartedAt, FinishedAt: rec.FinishedAt,
		ExitCode: rec.ExitCode, Reason: rec.Reason, Message: rec.Message,
		ImageName: imageName(c.cfg), ImageID: rec.ImageID,
	}
	if rec.Phase == phaseRunning || rec.Phase == phaseStarting {
		view.Pid = rec.Process.Pid
	}
	if image, err := e.o.Images.Image(rec.ImageID); err == nil && len(image.RepoDigests) > 0 {
		_, view.ImageDigest, _ = strings.Cut(image.RepoDigests[0], "@")
	}
	return view
}

func (e *Engine) readBundle(id string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(e.bundleDir(id), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	return spec, nil
}
