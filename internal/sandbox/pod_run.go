package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/cgroup"
	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/steps"
	"github.com/cri-engine/cri-engine/internal/systemd"
)

// podRun makes one pod sandbox. Its steps are where a pod starts.
type podRun struct {
	e       *Engine
	p       *pod
	handler *oci.Handler
	// laterSysctls are those of interfaces that the network will make.
	laterSysctls map[string]string
	// undoFailed keeps the record, so that what could not be undone is tried again.
	undoFailed bool
}

var _ = steps.Register("RunPodSandbox", names((*podRun)(nil).steps())...)

func (r *podRun) steps() []steps.Step {
	return []steps.Step{
		{Name: "record", Do: r.record, Undo: r.unrecord},
		{Name: "directories", Do: r.directories, Undo: r.undo(r.removeDirectories)},
		{Name: "namespaces", Do: r.namespaces, Undo: r.undo(r.unpin)},
		{Name: "network-intent", Do: r.networkIntent},
		{Name: "network", Do: r.network, Undo: r.undo(r.detach)},
		{Name: "interface-sysctls", Do: r.interfaceSysctls},
		{Name: "files", Do: r.files},
		{Name: "shm", Do: r.shm, Undo: r.undo(r.unmountShm)},
		{Name: "init", Do: r.init, Undo: r.undo(r.deleteInit)},
		{Name: "plugins", Do: r.plugins, Undo: r.undo(r.forgetInPlugins)},
		{Name: "ready", Do: r.ready},
	}
}

func names(list []steps.Step) []string {
	var n []string
	for _, s := range list {
		n = append(n, s.Name)
	}
	return n
}

// RunPod makes a pod sandbox and returns its id when the pod is ready. A
// repeated request (the client timed out) joins the first or is answered with the pod it made.
func (e *Engine) RunPod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	config, err := encode(cfg)
	if err != nil {
		return "", fmt.Errorf("pod config: %w: %w", ErrInvalid, err)
	}
	h, err := e.handler(handler)
	if err != nil {
		return "", err
	}
	if err := checkPodNamespaces(cfg, h); err != nil {
		return "", err
	}
	if err := oci.CheckCgroupParent(e.o.CgroupDriver, cfg.GetLinux().GetCgroupParent()); err != nil {
		return "", err
	}
	name := podName(cfg.GetMetadata())
	request := append(bytes.Clone(config), handler...)
	return e.podRuns.do(ctx, name, request, func(ctx context.Context) (string, error) {
		if p := e.podByName(name); p != nil {
			rec := p.read()
			if rec.Phase == phaseReady && bytes.Equal(rec.Config, config) && rec.RequestedHandler == handler {
				return p.id, nil
			}
			return "", fmt.Errorf("pod sandbox %s has the name %q: %w", p.id, name, ErrExists)
		}
		return e.runPod(ctx, cfg, config, h, handler)
	})
}

func (e *Engine) podByName(name string) *pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.podNames[name]
}

func (e *Engine) runPod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, config []byte, h *oci.Handler, handler string) (string, error) {
	id := newID()
	p := &pod{id: id, name: podName(cfg.GetMetadata()), cfg: cfg, op: newOpLock(), children: map[string]*container{}}
	p.rec = podRecord{
		Version: recordVersion, ID: id, Phase: phaseCreating, BootID: e.bootID, CreatedAt: time.Now(),
		Config: config, RequestedHandler: handler, Handler: h.Name,
		CgroupParent: cfg.GetLinux().GetCgroupParent(),
	}
	if p.rec.CgroupParent == "" {
		p.rec.CgroupParent, p.rec.OwnParent = ownCgroupParent(e.o.CgroupDriver == oci.Systemd, id), true
	}
	e.planNamespaces(p)
	if err := p.op.lock(ctx); err != nil {
		return "", err
	}
	defer p.op.unlock()
	r := &podRun{e: e, p: p, handler: h}
	if err := steps.Run(ctx, "RunPodSandbox", r.steps()); err != nil {
		return "", fmt.Errorf("run pod sandbox %s: %w", p.name, err)
	}
	return id, nil
}

// checkPodNamespaces refuses what this engine can't do, before anything is made.
func checkPodNamespaces(cfg *runtimeapi.PodSandboxConfig, h *oci.Handler) error {
	o := sandboxOptions(cfg)
	bad := func(field string, v any, why string) error {
		return fmt.Errorf("config.linux.security_context.namespace_options.%s %v: %s: %w", field, v, why, ErrInvalid)
	}
	for field, mode := range map[string]runtimeapi.NamespaceMode{"network": o.GetNetwork(), "ipc": o.GetIpc()} {
		if mode != runtimeapi.NamespaceMode_POD && mode != runtimeapi.NamespaceMode_NODE {
			return bad(field, mode, "a pod's own is POD or NODE")
		}
	}
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_TARGET:
		return bad("pid", o.GetPid(), "a pod has no target")
	default:
		return bad("pid", o.GetPid(), "unknown mode")
	}
	if err := checkPodUserNamespace(o, h); err != nil {
		return err
	}
	if o.GetNetwork() == runtimeapi.NamespaceMode_NODE {
		for name := range cfg.GetLinux().GetSysctls() {
			if strings.HasPrefix(strings.ReplaceAll(name, "/", "."), "net.") {
				return fmt.Errorf("config.linux.sysctls %q: the pod is on the host's network: %w", name, ErrInvalid)
			}
		}
	}
	return nil
}

// planNamespaces writes into the record what will be pinned where.
func (e *Engine) planNamespaces(p *pod) {
	o := sandboxOptions(p.cfg)
	if o.GetNetwork() != runtimeapi.NamespaceMode_NODE {
		p.rec.NetNS = e.netNSPath(p.id)
		// A pod on the host's network has the host's name, too.
		p.rec.UTSNS = filepath.Join(e.podDir(p.id), "ns", "uts")
	}
	if o.GetIpc() != runtimeapi.NamespaceMode_NODE {
		p.rec.IPCNS = filepath.Join(e.podDir(p.id), "ns", "ipc")
	}
	if p.idMappings() != nil {
		p.rec.UserNS = filepath.Join(e.podDir(p.id), "ns", "user")
	}
}

// undo wraps an undo so that its failure keeps the record.
func (r *podRun) undo(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := f(ctx)
		if err != nil {
			r.undoFailed = true
		}
		return err
	}
}

func (r *podRun) record(context.Context) error {
	e, p := r.e, r.p
	pair, err := e.podLabels(p.cfg)
	if err != nil {
		return err
	}
	p.rec.Labels = pair
	if err := e.records.savePod(&p.rec); err != nil {
		e.o.Labels.Release(pair)
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pods[p.id], e.podNames[p.name] = p, p
	return nil
}

func (r *podRun) unrecord(context.Context) error {
	e, p := r.e, r.p
	if r.undoFailed {
		e.freePodName(p)
		e.retry("pod sandbox that could not be made", p.id, func(ctx context.Context) error { return e.rollbackPod(ctx, p) })
		return nil
	}
	return e.forgetPod(p)
}

func (e *Engine) freePodName(p *pod) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.podNames[p.name] == p {
		delete(e.podNames, p.name)
	}
}

// forgetPod is the last step of every end: the record, then the indexes.
func (e *Engine) forgetPod(p *pod) error {
	if err := e.records.deletePod(p.id); err != nil {
		return err
	}
	e.o.Labels.Release(p.read().Labels)
	e.freePodName(p)
	e.mu.Lock()
	delete(e.pods, p.id)
	e.mu.Unlock()
	e.tellPod(p, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}

func (r *podRun) directories(context.Context) error {
	if dir := r.p.cfg.GetLogDirectory(); dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("log directory: %w", err)
		}
	}
	return os.MkdirAll(filepath.Join(r.e.podDir(r.p.id), "ns"), 0o711)
}

func (r *podRun) removeDirectories(context.Context) error { return r.e.removePodDir(r.p.id) }

func (e *Engine) removePodDir(id string) error { return os.RemoveAll(e.podDir(id)) }

func (r *podRun) namespaces(context.Context) error {
	rec := &r.p.rec
	spec := cni.NamespaceSpec{Net: rec.NetNS, IPC: rec.IPCNS, UTS: rec.UTSNS, User: r.userNamespace()}
	if spec.UTS != "" {
		spec.Hostname = r.p.cfg.GetHostname()
	}
	spec.Sysctls, r.laterSysctls = cni.SplitSysctls(r.sysctls())
	if len(rec.pins()) == 0 {
		if len(spec.Sysctls) > 0 {
			return fmt.Errorf("config.linux.sysctls: the pod has no namespace of its own to set them in: %w", ErrInvalid)
		}
		return nil
	}
	return cni.NewNamespaces(spec)
}

// sysctls are the request's, and our defaults for those it does not set.
func (r *podRun) sysctls() map[string]string {
	rec := &r.p.rec
	all := map[string]string{}
	for name, value := range r.p.cfg.GetLinux().GetSysctls() {
		all[dotted(name)] = value
	}
	setDefault := func(name, value string) {
		if _, have := all[name]; !have {
			all[name] = value
		}
	}
	for name, value := range r.e.sysctls {
		name = dotted(name)
		// A default that does not fit a pod on the host's namespaces is not its fault.
		if isNet := strings.HasPrefix(name, "net."); isNet && rec.NetNS != "" || !isNet && rec.IPCNS != "" {
			setDefault(name, value)
		}
	}
	if rec.NetNS != "" && r.e.o.Config.Runtime.UnprivilegedPorts {
		setDefault("net.ipv4.ip_unprivileged_port_start", "0")
	}
	if rec.NetNS != "" && r.e.o.Config.Runtime.UnprivilegedICMP {
		// The largest group id that the kernel takes here (ping_group_range in ip-sysctl).
		setDefault("net.ipv4.ping_group_range", "0 2147483647")
	}
	return all
}

// dotted is a sysctl's name with dots, as sysctl(8) reads one with slashes.
func dotted(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return strings.NewReplacer("/", ".", ".", "/").Replace(name)
}

func (r *podRun) unpin(context.Context) error { return r.e.unpin(r.p) }

func (e *Engine) unpin(p *pod) error {
	var errs []error
	rec := p.read()
	for _, path := range rec.pins() {
		errs = append(errs, cni.Unpin(path))
	}
	return errors.Join(errs...)
}

func (r *podRun) networkIntent(context.Context) error {
	if r.p.rec.NetNS == "" {
		return nil
	}
	cfg := r.p.cfg
	m := cfg.GetMetadata()
	want := cni.Pod{
		ID: r.p.id, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		NetNS: r.p.rec.NetNS, Annotations: cfg.GetAnnotations(), CgroupParent: r.p.rec.CgroupParent,
	}
	if d := cfg.GetDnsConfig(); d != nil {
		want.DNSServers, want.DNSSearches, want.DNSOptions = d.GetServers(), d.GetSearches(), d.GetOptions()
	}
	for _, pm := range cfg.GetPortMappings() {
		want.Ports = append(want.Ports, cni.PortMapping{
			HostPort: pm.GetHostPort(), ContainerPort: pm.GetContainerPort(), HostIP: pm.GetHostIp(),
			Protocol: strings.ToLower(pm.GetProtocol().String()),
		})
	}
	networks := r.e.o.Networks
	if own := r.e.o.HandlerNetworks[r.handler.Name]; own != nil {
		networks = own
	}
	// What the intent says is recorded, so Add and Del need not know whose it was.
	intent, err := networks.Intent(want)
	if err != nil {
		return err
	}
	return r.e.setPod(r.p, func(rec *podRecord) { rec.Network = &intent })
}

func (r *podRun) network(ctx context.Context) error {
	if r.p.rec.Network == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.e.networkTimeout())
	defer cancel()
	result, err := r.e.o.Networks.Add(ctx, *r.p.rec.Network)
	if err != nil {
		return err
	}
	// Written with the next change: until then DEL needs the intent only.
	r.p.mu.Lock()
	r.p.rec.Result = &result
	r.p.mu.Unlock()
	return nil
}

// interfaceSysctls sets those of interfaces that the network has made by now.
func (r *podRun) interfaceSysctls(context.Context) error {
	return cni.SetSysctls(r.p.rec.NetNS, r.p.rec.IPCNS, r.laterSysctls)
}

func (r *podRun) detach(ctx context.Context) error { return r.e.detach(ctx, r.p) }

// detach is CNI DEL, for a pod in whatever state; nil when there is nothing left.
func (e *Engine) detach(ctx context.Context, p *pod) error {
	rec := p.read()
	if rec.Network == nil {
		return nil
	}
	network := *rec.Network
	if !cni.Pinned(network.NetNS) {
		network.NetNS = "" // the namespace went with a reboot; plugins release what they hold elsewhere
	}
	ctx, cancel := context.WithTimeout(ctx, e.networkTimeout())
	defer cancel()
	return e.o.Networks.Del(ctx, network)
}

func (r *podRun) files(ctx context.Context) error {
	if err := writePodFiles(r.e.podDir(r.p.id), r.p); err != nil {
		return err
	}
	return r.e.labelFiles(ctx, r.p)
}

// shmSize is what Docker and the kubelet's users are used to.
const shmSize = 64 << 20

func (r *podRun) shm(context.Context) error {
	if r.p.rec.IPCNS == "" {
		return nil
	}
	dir := filepath.Join(r.e.podDir(r.p.id), "shm")
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	uid, gid := r.p.root()
	opts := label.FormatMountLabel(fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", shmSize, uid, gid), r.p.rec.Labels.Mount)
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, opts); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

func (r *podRun) unmountShm(context.Context) error { return r.e.unmountShm(r.p.id) }

func (e *Engine) unmountShm(id string) error {
	dir := filepath.Join(e.podDir(id), "shm")
	switch err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
	case nil, unix.EINVAL, unix.ENOENT: // EINVAL: not a mount point
		return nil
	default:
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
}

// init starts the sandbox process where the pod needs one: its PID namespace is
// shared, or the handler wants one to live in.
func (r *podRun) init(ctx context.Context) error {
	e, p := r.e, r.p
	if sandboxOptions(p.cfg).GetPid() != runtimeapi.NamespaceMode_POD && !r.handler.Sandbox {
		return nil
	}
	bundle := filepath.Join(e.podDir(p.id), "init")
	spec, err := oci.PauseSpec(oci.PauseInput{
		ID: p.id, Pod: p.cfg, RootFS: e.pauseRootFS, Handler: r.handler,
		CgroupDriver: e.o.CgroupDriver, CgroupParent: p.rec.CgroupParent,
		Namespaces:   oci.Namespaces{Net: p.rec.NetNS, IPC: p.rec.IPCNS, UTS: p.rec.UTSNS, User: p.rec.UserNS},
		IDMappings:   p.idMappings(),
		ProcessLabel: p.initLabel(), MountLabel: p.rec.Labels.Mount,
	})
	if err != nil {
		return err
	}
	if err := writeBundle(bundle, spec); err != nil {
		return err
	}
	proc := process{Runtime: e.runtimeOf(r.handler)}
	if err := e.setPod(p, func(rec *podRecord) { rec.Init = &proc }); err != nil {
		return err
	}
	info, err := e.createProcess(ctx, monitor.CreateRequest{ID: p.id, Runtime: proc.Runtime, Bundle: bundle})
	if err != nil {
		return err
	}
	if err := e.o.Monitor.Start(ctx, p.id); err != nil {
		return errors.Join(err, e.deleteInit(context.WithoutCancel(ctx), p))
	}
	proc.Pid, proc.StartTime = info.Pid, info.StartTime
	proc.Cgroups, _ = cgroup.Of(info.Pid)
	p.mu.Lock()
	p.rec.Init = &proc
	p.mu.Unlock()
	return nil
}

func (r *podRun) deleteInit(ctx context.Context) error { return r.e.deleteInit(ctx, r.p) }

func (e *Engine) deleteInit(ctx context.Context, p *pod) error {
	rec := p.read()
	if rec.Init == nil {
		return nil
	}
	return e.deleteProcess(ctx, p.id, *rec.Init)
}

func (r *podRun) plugins(ctx context.Context) error { return r.e.pluginsRunPod(ctx, r.p) }
func (r *podRun) forgetInPlugins(ctx context.Context) error {
	return r.e.pluginsForgetPod(ctx, r.p)
}

func (r *podRun) ready(context.Context) error {
	err := r.e.setPod(r.p, func(rec *podRecord) { rec.Phase = phaseReady })
	if err != nil {
		r.p.snap.Store(nil)
		r.p.rec.Phase = phaseCreating
		return err
	}
	// Peers tell two: a kubelet goes by the state in the statuses, other readers by the pair.
	r.e.tellPod(r.p, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	r.e.tellPod(r.p, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	klog.V(2).InfoS("Pod sandbox is ready", "pod", r.p.id, "name", r.p.name, "ips", r.p.snap.Load().IPs)
	return nil
}

// rollbackPod undoes all that a pod's record may stand for, however far its
// making came, and forgets it.
func (e *Engine) rollbackPod(ctx context.Context, p *pod) error {
	if err := e.teardown(ctx, p); err != nil {
		return err
	}
	return e.forgetPod(p)
}

// teardown takes back everything a pod has outside of its record. Each part
// tolerates that it is gone, so it can be repeated from anywhere.
func (e *Engine) teardown(ctx context.Context, p *pod) error {
	if err := errors.Join(e.deleteInit(ctx, p), e.detach(ctx, p)); err != nil {
		return err // the namespaces stay: DEL wants them
	}
	if err := errors.Join(e.unmountShm(p.id), e.unpin(p)); err != nil {
		return err
	}
	return errors.Join(e.removePodDir(p.id), e.removeOwnParent(ctx, p))
}

func (e *Engine) removeOwnParent(ctx context.Context, p *pod) error {
	rec := p.read()
	if !rec.OwnParent {
		return nil
	}
	if isSlice(rec.CgroupParent) {
		return systemd.RemoveSlice(ctx, rec.CgroupParent)
	}
	return cgroup.Remove(rec.CgroupParent)
}
