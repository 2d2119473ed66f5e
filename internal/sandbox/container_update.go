package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/nri"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/steps"
)

// containerUpdate changes a container's limits.
type containerUpdate struct {
	e *Engine
	c *container

	phase    phase
	next     *runtimeapi.LinuxContainerResources
	nextSpec *specs.LinuxResources // what the OCI runtime is to change
	before   *specs.Spec           // of the bundle
}

var _ = steps.Register("UpdateContainerResources", names((*containerUpdate)(nil).steps())...)

func (r *containerUpdate) steps() []steps.Step {
	return []steps.Step{
		{Name: "runtime", Do: r.runtime, Undo: r.restore},
		{Name: "bundle", Do: r.bundle, Undo: r.restoreBundle},
		{Name: "record", Do: r.record},
	}
}

// UpdateResources changes limits of a container that is created or runs; those
// that are zero in the request stay. Plugins may change the request, and the limits
// of others with it. When it fails all have their old ones.
func (e *Engine) UpdateResources(ctx context.Context, id string, request *runtimeapi.LinuxContainerResources) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	if err := c.limits.lock(ctx); err != nil {
		return err
	}
	defer c.limits.unlock()
	if err := e.updateResources(ctx, c, request); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	e.mentionInTurn(ctx, nri.PostUpdateContainer, c)
	return nil
}

func (e *Engine) updateResources(ctx context.Context, c *container, request *runtimeapi.LinuxContainerResources) error {
	rec := c.read()
	if err := updatable(&rec); err != nil {
		return err
	}
	// Plugins are not asked about what can't be.
	if _, _, err := oci.UpdatedResources(resourcesOf(&rec, c.cfg), request); err != nil {
		return err
	}
	own, others := &nri.Limits{CRI: request}, []nri.Update(nil)
	err := e.inTurn(ctx, func() error {
		if !e.o.Plugins.Any() {
			return nil
		}
		changed, also, err := e.o.Plugins.Update(ctx, e.pluginPod(c.pod), e.pluginContainer(c, nil), request)
		if changed != nil {
			own = changed
		}
		others = also
		return err
	})
	if err != nil {
		return err
	}
	undo, err := e.applyOthers(ctx, others)
	if err != nil {
		return err
	}
	if err := e.setLimits(ctx, c.id, own, nil); err != nil {
		if own.CRI != request {
			err = pluginsFault(err)
		}
		return errors.Join(err, undo(context.WithoutCancel(ctx)))
	}
	return nil
}

func updatable(rec *containerRecord) error {
	if rec.Phase != phaseRunning && rec.Phase != phaseCreated {
		return fmt.Errorf("it is %s: %w", rec.Phase, ErrPrecondition)
	}
	return nil
}

// setLimits changes one container's limits, or nothing. What takes it back is
// added to undos, where those are wanted.
func (e *Engine) setLimits(ctx context.Context, id string, limits *nri.Limits, undos *[]func(context.Context) error) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	if rec := c.read(); updatable(&rec) != nil { // one that has ended may be locked by who waits for plugins
		return updatable(&rec)
	}
	if err := c.op.lock(ctx); err != nil {
		return err
	}
	defer c.op.unlock()
	rec := c.read()
	if err := updatable(&rec); err != nil {
		return err
	}
	r := &containerUpdate{e: e, c: c, phase: rec.Phase}
	if r.before, err = e.readBundle(c.id); err != nil {
		return err
	}
	if r.before.Linux == nil || r.before.Linux.Resources == nil {
		return errors.New("bundle: config.json has no resources")
	}
	if r.next, r.nextSpec, err = oci.UpdatedResources(resourcesOf(&rec, c.cfg), limits.CRI); err != nil {
		return err
	}
	if err := oci.MoreResources(r.nextSpec, limits.More); err != nil {
		return err
	}
	if err := steps.Run(ctx, "UpdateContainerResources", r.steps()); err != nil {
		return err
	}
	if undos != nil {
		*undos = append(*undos, func(ctx context.Context) error { return r.takeBack(ctx, rec.Resources) })
	}
	return nil
}

// takeBack undoes an update that has succeeded, unless the container has ended since.
func (r *containerUpdate) takeBack(ctx context.Context, resources []byte) error {
	if err := r.c.op.lock(ctx); err != nil {
		return err
	}
	defer r.c.op.unlock()
	rec := r.c.read()
	if updatable(&rec) != nil {
		return nil
	}
	r.phase = rec.Phase
	err := errors.Join(r.restore(ctx), r.restoreBundle(ctx))
	return errors.Join(err, r.e.setContainer(r.c, func(rec *containerRecord) { rec.Resources = resources }))
}

// resourcesOf are the limits that a container has now: the request's, or those of
// the last update.
func resourcesOf(rec *containerRecord, cfg *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerResources {
	return recordedResources(rec.Resources, cfg.GetLinux().GetResources())
}

// recordedResources are those of a record, or the request's where it has none.
func recordedResources(data []byte, requested *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{}
	if data == nil || proto.Unmarshal(data, r) != nil {
		return requested
	}
	return r
}

// runtime changes the cgroup of a container that runs. One that is only created
// has none yet: its bundle is enough.
func (r *containerUpdate) runtime(ctx context.Context) error {
	err := r.apply(ctx, r.nextSpec)
	if err != nil { // some of it may be done: controllers are written one after the other
		err = errors.Join(err, r.restore(context.WithoutCancel(ctx)))
	}
	return err
}

func (r *containerUpdate) restore(ctx context.Context) error {
	spec, err := oci.UndoneResources(r.before.Linux.Resources, r.nextSpec)
	if err != nil {
		return err
	}
	return r.apply(ctx, spec)
}

func (r *containerUpdate) apply(ctx context.Context, spec *specs.LinuxResources) error {
	if r.phase != phaseRunning {
		return nil
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, r.e.runtimeTimeout())
	defer cancel()
	return r.e.o.Monitor.Update(ctx, r.c.id, data)
}

// bundle writes the limits where the container's start, or a look at it, finds them.
func (r *containerUpdate) bundle(context.Context) error {
	now, err := oci.OverlayResources(r.before.Linux.Resources, r.nextSpec)
	if err != nil {
		return err
	}
	spec, linux := *r.before, *r.before.Linux
	linux.Resources = now
	spec.Linux = &linux
	return replaceBundle(r.e.bundleDir(r.c.id), &spec)
}

func (r *containerUpdate) restoreBundle(context.Context) error {
	return replaceBundle(r.e.bundleDir(r.c.id), r.before)
}

func (r *containerUpdate) record(context.Context) error {
	data, err := proto.Marshal(r.next)
	if err != nil {
		return err
	}
	return r.e.setContainer(r.c, func(rec *containerRecord) { rec.Resources = data })
}

// replaceBundle writes config.json whole or not at all: a start may read it.
func replaceBundle(dir string, spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("OCI spec: %w", err)
	}
	next := filepath.Join(dir, "config.json.new")
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := os.Rename(next, filepath.Join(dir, "config.json")); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}
