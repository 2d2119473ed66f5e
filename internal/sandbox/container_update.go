package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/steps"
)

// containerUpdate changes a container's limits.
type containerUpdate struct {
	e *Engine
	c *container

	phase    phase
	old      *runtimeapi.LinuxContainerResources
	next     *runtimeapi.LinuxContainerResources
	nextSpec *specs.LinuxResources
}

var _ = steps.Register("UpdateContainerResources", names((*containerUpdate)(nil).steps())...)

func (r *containerUpdate) steps() []steps.Step {
	return []steps.Step{
		{Name: "runtime", Do: r.runtime, Undo: r.restore},
		{Name: "bundle", Do: r.bundle},
		{Name: "record", Do: r.record},
	}
}

// UpdateResources changes limits of a container that is created or runs; those
// that are zero in the request stay. When it fails the container has its old ones.
func (e *Engine) UpdateResources(ctx context.Context, id string, request *runtimeapi.LinuxContainerResources) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	if err := c.op.lock(ctx); err != nil {
		return err
	}
	defer c.op.unlock()
	rec := c.read()
	if rec.Phase != phaseRunning && rec.Phase != phaseCreated {
		return fmt.Errorf("update container %s: it is %s: %w", c.id, rec.Phase, ErrPrecondition)
	}
	r := &containerUpdate{e: e, c: c, phase: rec.Phase, old: resourcesOf(&rec, c.cfg)}
	if r.next, r.nextSpec, err = oci.UpdatedResources(r.old, request); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	if err := steps.Run(ctx, "UpdateContainerResources", r.steps()); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return nil
}

// resourcesOf are the limits that a container has now: the request's, or those of
// the last update.
func resourcesOf(rec *containerRecord, cfg *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerResources {
	if rec.Resources == nil {
		return cfg.GetLinux().GetResources()
	}
	r := &runtimeapi.LinuxContainerResources{}
	if err := proto.Unmarshal(rec.Resources, r); err != nil {
		return cfg.GetLinux().GetResources()
	}
	return r
}

// runtime changes the cgroup of a container that runs. One that is only created
// has none yet: its bundle is enough.
func (r *containerUpdate) runtime(ctx context.Context) error { return r.apply(ctx, r.nextSpec) }

func (r *containerUpdate) restore(ctx context.Context) error {
	_, spec, err := oci.UpdatedResources(r.old, nil)
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
	dir := r.e.bundleDir(r.c.id)
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return fmt.Errorf("bundle: config.json has no resources")
	}
	if spec.Linux.Resources, err = oci.OverlayResources(spec.Linux.Resources, r.nextSpec); err != nil {
		return err
	}
	return replaceBundle(dir, &spec)
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
