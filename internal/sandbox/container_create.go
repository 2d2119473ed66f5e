package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/nri"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/steps"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// containerCreate makes one container, not started.
type containerCreate struct {
	e          *Engine
	c          *container
	image      storage.Image
	handler    *oci.Handler
	undoFailed bool

	// ociSpec is made by the step spec and changed by plugins, who want the limits of
	// others changed too.
	ociSpec    *specs.Spec
	others     []nri.Update
	undoOthers func(context.Context) error
}

var _ = steps.Register("CreateContainer", names((*containerCreate)(nil).steps())...)

func (r *containerCreate) steps() []steps.Step {
	return []steps.Step{
		{Name: "record", Do: r.record, Undo: r.unrecord},
		{Name: "root-filesystem", Do: r.rootFS, Undo: r.undo(r.removeRootFS)},
		{Name: "image-volumes", Do: r.imageVolumes, Undo: r.undo(r.removeImageVolumes)},
		{Name: "spec", Do: r.spec, Undo: r.undo(r.removeBundle)},
		{Name: "relabel", Do: r.relabel},
		{Name: "plugins", Do: r.plugins, Undo: r.undo(r.forgetInPlugins)},
		{Name: "plugin-updates", Do: r.pluginUpdates, Undo: r.undo(r.undoPluginUpdates)},
		{Name: "created", Do: r.created},
	}
}

// CreateContainer makes a container in a ready pod and returns its id. A
// repeated request joins the first, or is answered with the container it made.
func (e *Engine) CreateContainer(ctx context.Context, podID string, cfg *runtimeapi.ContainerConfig, podCfg *runtimeapi.PodSandboxConfig) (string, error) {
	p, err := e.findPod(podID)
	if err != nil {
		return "", err
	}
	if podCfg.GetMetadata() == nil {
		podCfg = p.cfg
	}
	config, err := encode(cfg)
	if err != nil {
		return "", fmt.Errorf("container config: %w: %w", ErrInvalid, err)
	}
	podConfig, err := encode(podCfg)
	if err != nil {
		return "", fmt.Errorf("pod config: %w: %w", ErrInvalid, err)
	}
	name := containerName(p.id, cfg.GetMetadata())
	return e.containerCreates.do(ctx, name, config, func(ctx context.Context) (string, error) {
		if c := e.containerByName(name); c != nil {
			rec := c.read()
			if rec.Phase == phaseCreated && bytes.Equal(rec.Config, config) {
				return c.id, nil
			}
			return "", fmt.Errorf("container %s has the name %q: %w", c.id, name, ErrExists)
		}
		return e.createContainer(ctx, p, &container{
			id: newID(), name: name, pod: p, cfg: cfg, podCfg: podCfg, op: newOpLock(), limits: newOpLock(), telling: newOpLock(), exited: make(chan struct{}),
			rec: containerRecord{Config: config, PodConfig: podConfig},
		})
	})
}

func (e *Engine) containerByName(name string) *container {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.containerNames[name]
}

func (e *Engine) createContainer(ctx context.Context, p *pod, c *container) (string, error) {
	image, err := e.o.Images.Image(c.cfg.GetImage().GetImage())
	if err != nil {
		return "", fmt.Errorf("create container %s: config.image.image: %w", c.name, err)
	}
	podRec := p.read()
	h, err := e.handler(podRec.Handler)
	if err != nil {
		return "", err
	}
	logPath, err := containerLogPath(p.cfg, c.podCfg, c.cfg)
	if err != nil {
		return "", err
	}
	stop, err := stopSignal(c.cfg, image.Config.StopSignal)
	if err != nil {
		return "", err
	}
	c.rec = containerRecord{
		Version: recordVersion, ID: c.id, PodID: p.id, Phase: phaseCreating, BootID: e.bootID, CreatedAt: time.Now(),
		Config: c.rec.Config, PodConfig: c.rec.PodConfig, ImageID: image.ID, Handler: h.Name, LogPath: logPath,
		Cgroup:  oci.CgroupsPath(e.o.CgroupDriver, podRec.CgroupParent, c.id),
		Process: process{Runtime: e.runtimeOf(h)}, StopSignal: int(stop),
	}
	if err := c.op.lock(ctx); err != nil {
		return "", err
	}
	defer c.op.unlock()
	r := &containerCreate{e: e, c: c, image: image, handler: h}
	if err := steps.Run(ctx, "CreateContainer", r.steps()); err != nil {
		return "", fmt.Errorf("create container %s: %w", c.name, err)
	}
	e.mentionInTurn(ctx, nri.PostCreateContainer, c)
	return c.id, nil
}

func (r *containerCreate) undo(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := f(ctx)
		if err != nil {
			r.undoFailed = true
		}
		return err
	}
}

func (r *containerCreate) record(context.Context) error {
	e, c := r.e, r.c
	pair, err := e.containerLabels(c)
	if err != nil {
		return err
	}
	c.rec.Labels = pair
	if err := e.records.saveContainer(&c.rec); err != nil {
		e.o.Labels.Release(pair)
		return err
	}
	if !c.pod.adopt(c) {
		_ = e.records.deleteContainer(c.id)
		e.o.Labels.Release(pair)
		return fmt.Errorf("pod sandbox %s is not ready: %w", c.pod.id, ErrPrecondition)
	}
	e.index(c)
	return nil
}

func (e *Engine) index(c *container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.containers[c.id], e.containerNames[c.name] = c, c
}

// adopt takes a container into the pod, unless the pod is not ready. A stop that
// comes later finds it in the pod's list.
func (p *pod) adopt(c *container) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rec.Phase != phaseReady {
		return false
	}
	p.children[c.id] = c
	return true
}

func (r *containerCreate) unrecord(context.Context) error {
	e, c := r.e, r.c
	if r.undoFailed {
		e.freeContainerName(c)
		e.retry("container that could not be made", c.id, func(ctx context.Context) error { return e.rollbackContainer(ctx, c) })
		return nil
	}
	return e.forgetContainer(c)
}

func (e *Engine) freeContainerName(c *container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.containerNames[c.name] == c {
		delete(e.containerNames, c.name)
	}
}

// forgetContainer is the last step of every end: the record, then the indexes.
func (e *Engine) forgetContainer(c *container) error {
	if err := e.records.deleteContainer(c.id); err != nil {
		return err
	}
	e.o.Labels.Release(c.read().Labels)
	e.freeContainerName(c)
	e.mu.Lock()
	delete(e.containers, c.id)
	e.mu.Unlock()
	c.pod.mu.Lock()
	delete(c.pod.children, c.id)
	c.pod.mu.Unlock()
	c.openGate(false)
	if c.snap.Load() != nil { // else it was never there for anyone
		e.tellContainer(c, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
	return nil
}

// rollbackContainer undoes a making that was cut off.
func (e *Engine) rollbackContainer(ctx context.Context, c *container) error {
	if err := e.deleteProcess(ctx, c.id, c.read().Process); err != nil {
		return err
	}
	if err := e.removeRootFS(ctx, c.id); err != nil {
		return err
	}
	if err := os.RemoveAll(e.bundleDir(c.id)); err != nil {
		return err
	}
	return e.forgetContainer(c)
}

func (r *containerCreate) rootFS(ctx context.Context) error {
	fs, err := r.e.o.Images.CreateRootFS(ctx, r.c.id, r.image.ID, r.c.rootFSOptions())
	if err != nil {
		return err
	}
	r.c.mu.Lock()
	r.c.rec.RootFS = fs.Path
	r.c.mu.Unlock()
	return nil
}

func (r *containerCreate) removeRootFS(ctx context.Context) error {
	return r.e.o.Images.RemoveRootFS(ctx, r.c.id)
}

func (r *containerCreate) spec(context.Context) error {
	e, c := r.e, r.c
	ns, err := e.containerNamespaces(c)
	if err != nil {
		return err
	}
	podRec := c.pod.read()
	uid, gid := c.pod.root()
	if err := oci.MakeVolumes(c.rec.RootFS, r.image.Config, uid, gid); err != nil {
		return err
	}
	in := oci.ContainerInput{
		ID: c.id, PodID: c.pod.id, Config: c.cfg, Pod: c.podCfg, Image: r.image.Config,
		ImageName: imageName(c.cfg), RootFS: c.rec.RootFS, Handler: r.handler,
		CgroupDriver: e.o.CgroupDriver, CgroupParent: podRec.CgroupParent, Namespaces: ns, IDMappings: c.pod.idMappings(),
		DefaultCapabilities: e.o.Config.Runtime.DefaultCapabilities,
		SeccompDefault:      e.o.Config.Runtime.SeccompProfile, AppArmor: e.o.AppArmor,
		DefaultUlimits: e.ulimits, PidsLimit: e.o.Config.Runtime.PidsLimit,
		ImageVolumes:    imageVolumePaths(c.rec.Volumes),
		DeviceOwnership: e.o.Config.Runtime.DeviceOwnershipFromSecurityContext,
	}
	in.ProcessLabel, in.MountLabel = c.rec.Labels.Process, c.rec.Labels.Mount
	dir := e.podDir(c.pod.id)
	in.ResolvConf, in.Hosts, in.HostnameFile = filepath.Join(dir, resolvFile), filepath.Join(dir, hostsFile), filepath.Join(dir, hostnameFile)
	in.Hostname = c.pod.cfg.GetHostname()
	if podRec.UTSNS == "" {
		in.Hostname, _ = os.Hostname()
	}
	in.Shm = "/dev/shm"
	if ns.IPC != "" {
		in.Shm = filepath.Join(dir, "shm")
	}
	spec, user, err := oci.ContainerSpec(in)
	if err != nil {
		return err
	}
	if err := e.addHooks(spec, c); err != nil {
		return err
	}
	if err := e.injectDevices(spec, c.cfg, r.handler); err != nil {
		return err
	}
	c.mu.Lock()
	c.rec.UID, c.rec.GID, c.rec.Groups = user.UID, user.GID, groupsOf(spec)
	c.rec.AppArmor = spec.Process.ApparmorProfile
	c.mu.Unlock()
	r.ociSpec = spec
	return writeBundle(e.bundleDir(c.id), spec)
}

// groupsOf are the supplementary groups that the container really has: a device
// may have brought some.
func groupsOf(spec *specs.Spec) []int64 {
	var groups []int64
	for _, gid := range spec.Process.User.AdditionalGids {
		groups = append(groups, int64(gid))
	}
	return groups
}

// imageName is the image as the user wrote it.
func imageName(cfg *runtimeapi.ContainerConfig) string {
	if s := cfg.GetImage().GetUserSpecifiedImage(); s != "" {
		return s
	}
	return cfg.GetImage().GetImage()
}

// containerNamespaces says which namespaces the container joins. Network, IPC
// and UTS are the pod's; its own options decide about PID.
func (e *Engine) containerNamespaces(c *container) (oci.Namespaces, error) {
	podRec := c.pod.read()
	ns := oci.Namespaces{Net: podRec.NetNS, IPC: podRec.IPCNS, UTS: podRec.UTSNS, User: podRec.UserNS}
	o := c.namespaceOptions()
	if err := checkContainerUserNamespace(c.pod, o); err != nil {
		return ns, err
	}
	if err := checkContainerNamespaces(c.pod, o); err != nil {
		return ns, err
	}
	const field = "config.linux.security_context.namespace_options.pid"
	switch mode := o.GetPid(); mode {
	case runtimeapi.NamespaceMode_NODE:
		ns.HostPID = true
	case runtimeapi.NamespaceMode_POD:
		if podRec.Init == nil || sandboxOptions(c.pod.cfg).GetPid() != runtimeapi.NamespaceMode_POD {
			return ns, fmt.Errorf("%s POD: pod sandbox %s was made without a shared PID namespace: %w", field, c.pod.id, ErrInvalid)
		}
		ns.PID = pidNamespace(podRec.Init.Pid)
	case runtimeapi.NamespaceMode_TARGET:
		target, err := e.findContainer(o.GetTargetId())
		if err != nil || target.pod != c.pod {
			return ns, fmt.Errorf("%s TARGET: target_id %q is no container of pod sandbox %s: %w", field, o.GetTargetId(), c.pod.id, ErrInvalid)
		}
		rec := target.read()
		if rec.Phase != phaseRunning {
			return ns, fmt.Errorf("%s TARGET: container %s does not run: %w", field, target.id, ErrPrecondition)
		}
		ns.PID = pidNamespace(rec.Process.Pid)
	case runtimeapi.NamespaceMode_CONTAINER:
	default:
		return ns, fmt.Errorf("%s %d: unknown mode: %w", field, mode, ErrInvalid)
	}
	return ns, nil
}

// checkContainerNamespaces refuses network and IPC modes that a container can't
// have: it is in its pod's. POD, the value of a request that says nothing, is the pod's, whatever that is.
func checkContainerNamespaces(p *pod, o *runtimeapi.NamespaceOption) error {
	have := sandboxOptions(p.cfg)
	for _, ns := range []struct {
		field      string
		want, have runtimeapi.NamespaceMode
	}{{"network", o.GetNetwork(), have.GetNetwork()}, {"ipc", o.GetIpc(), have.GetIpc()}} {
		if ns.want != runtimeapi.NamespaceMode_POD && ns.want != ns.have {
			return fmt.Errorf("config.linux.security_context.namespace_options.%s %v: pod sandbox %s has %v: %w", ns.field, ns.want, p.id, ns.have, ErrInvalid)
		}
	}
	return nil
}

func pidNamespace(pid int) string { return fmt.Sprintf("/proc/%d/ns/pid", pid) }

func (r *containerCreate) removeBundle(context.Context) error {
	return os.RemoveAll(r.e.bundleDir(r.c.id))
}

func (r *containerCreate) created(context.Context) error {
	err := r.e.setContainer(r.c, func(rec *containerRecord) { rec.Phase = phaseCreated })
	if err != nil {
		r.c.mu.Lock()
		r.c.rec.Phase = phaseCreating
		r.c.mu.Unlock()
		r.c.snap.Store(nil)
		return err
	}
	r.e.tellContainer(r.c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	klog.V(2).InfoS("Container is created", "container", r.c.id, "name", r.c.name)
	return nil
}
