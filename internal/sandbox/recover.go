package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/oci"
)

// recover makes memory agree with the records, and the records with what the
// kernel and the monitor have. It does what is quick at once, and starts the
// rest in the background, with the objects concerned shown as they then are.
func (e *Engine) recover(ctx context.Context) error {
	start := time.Now()
	pods, containers, damagedPods, damaged, err := e.load()
	if err != nil {
		return err
	}
	infos, err := e.o.Monitor.List(ctx)
	if err != nil {
		return fmt.Errorf("ask the monitor what runs: %w", err)
	}
	known := map[string]monitor.Info{}
	for _, i := range infos {
		if i.ExecID == "" {
			known[i.ID] = i
		}
	}
	for _, rec := range pods {
		e.restorePod(rec)
	}
	for _, rec := range containers {
		e.restoreContainer(rec)
	}
	for _, id := range damaged {
		e.restoreDamaged(id, known)
	}
	for _, id := range damagedPods {
		e.clearDamaged(id)
	}
	for _, p := range e.allPods() {
		e.reconcilePod(p, known)
	}
	for _, c := range e.allContainers() {
		if err := e.reconcileContainer(ctx, c, known); err != nil {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
	}
	e.noteRestored()
	e.sweep(known)
	klog.InfoS("Pods and containers are restored", "pods", len(pods), "containers", len(containers), "damaged", len(damaged)+len(damagedPods), "took", time.Since(start))
	return nil
}

// load reads all records; damaged are the ids of those whose record can't be used.
func (e *Engine) load() (pods []*podRecord, containers []*containerRecord, damagedPods, damaged []string, err error) {
	checkPod := func(r *podRecord, id string) error {
		if r.Version != recordVersion || r.ID != id || !validID(id) {
			return fmt.Errorf("record of version %d with id %q: %w", r.Version, r.ID, ErrInvalid)
		}
		_, err := decodePod(r.Config)
		return err
	}
	checkContainer := func(r *containerRecord, id string) error {
		if r.Version != recordVersion || r.ID != id || !validID(id) || !validID(r.PodID) {
			return fmt.Errorf("record of version %d with id %q: %w", r.Version, r.ID, ErrInvalid)
		}
		_, _, err := decodeContainer(r.Config, r.PodConfig)
		return err
	}
	pods, err = loadAll(e.records, e.records.pods, checkPod, func(id string) { damagedPods = append(damagedPods, id) })
	if err != nil {
		return nil, nil, nil, nil, err
	}
	containers, err = loadAll(e.records, e.records.containers, checkContainer, func(id string) { damaged = append(damaged, id) })
	return pods, containers, damagedPods, damaged, err
}

func (e *Engine) restorePod(rec *podRecord) {
	cfg, _ := decodePod(rec.Config) // load checked it
	p := &pod{id: rec.ID, name: podName(cfg.GetMetadata()), cfg: cfg, op: newOpLock(), rec: *rec, children: map[string]*container{}}
	e.pods[p.id], e.podNames[p.name] = p, p
	e.o.Labels.Reserve(rec.Labels)
}

// restoreContainer: one whose pod's record is gone gets a pod that is stopped,
// so that it can be seen and removed.
func (e *Engine) restoreContainer(rec *containerRecord) {
	cfg, podCfg, _ := decodeContainer(rec.Config, rec.PodConfig)
	p := e.pods[rec.PodID]
	if p == nil {
		remains := e.remains(rec.PodID, rec.Handler)
		remains.Phase, remains.CreatedAt, remains.Config = phaseStopping, rec.CreatedAt, rec.PodConfig
		e.restorePod(&remains)
		p = e.pods[rec.PodID]
		klog.InfoS("A container's pod has no usable record; the pod is shown as stopped", "container", rec.ID, "pod", rec.PodID)
	}
	c := &container{
		id: rec.ID, name: containerName(rec.PodID, cfg.GetMetadata()), pod: p, cfg: cfg, podCfg: podCfg,
		op: newOpLock(), limits: newOpLock(), telling: newOpLock(), rec: *rec, exited: make(chan struct{}),
	}
	p.children[c.id] = c
	e.containers[c.id], e.containerNames[c.name] = c, c
	e.o.Labels.Reserve(rec.Labels)
}

// remains is a record of all that a pod may have had, for one whose own record is
// lost: every name follows from its id, and taking back what is not there is no error.
func (e *Engine) remains(id, handler string) podRecord {
	dir := e.podDir(id)
	netns := e.netNSPath(id)
	rec := podRecord{
		Version: recordVersion, ID: id, Phase: phaseCreating, BootID: e.bootID, CreatedAt: time.Now(), Handler: handler,
		NetNS: netns, IPCNS: filepath.Join(dir, "ns", "ipc"), UTSNS: filepath.Join(dir, "ns", "uts"), UserNS: filepath.Join(dir, "ns", "user"),
		Network:      &cni.Pod{ID: id, NetNS: netns},
		CgroupParent: ownCgroupParent(e.o.CgroupDriver == oci.Systemd, id), OwnParent: true,
	}
	if h, err := e.handler(handler); err == nil {
		rec.Init = &process{Runtime: e.runtimeOf(h)}
	}
	return rec
}

// clearDamaged takes back what a pod had whose record is lost, unless one of its
// containers was found: then the pod is shown, and the kubelet removes it.
func (e *Engine) clearDamaged(id string) {
	if e.pods[id] != nil {
		return
	}
	p := &pod{id: id, cfg: &runtimeapi.PodSandboxConfig{}, op: newOpLock(), rec: e.remains(id, ""), children: map[string]*container{}}
	e.pods[id] = p // unlisted: its name is not known
}

// restoreDamaged shows a container whose record is lost by what its bundle says
// of it; the kubelet can then stop and remove it. Without a bundle nothing runs
// of it, and the sweep takes what is left.
func (e *Engine) restoreDamaged(id string, known map[string]monitor.Info) {
	data, err := os.ReadFile(filepath.Join(e.bundleDir(id), "config.json"))
	var spec specs.Spec
	if err == nil {
		err = json.Unmarshal(data, &spec)
	}
	podID := spec.Annotations["io.kubernetes.cri.sandbox-id"]
	p := e.pods[podID]
	if err != nil || p == nil {
		klog.ErrorS(err, "Nothing is left to tell what the container was", "container", id, "pod", podID)
		return
	}
	h, err := e.handler(p.rec.Handler)
	if err != nil {
		klog.ErrorS(err, "A container can't be restored", "container", id)
		return
	}
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: spec.Annotations["io.kubernetes.cri.container-name"]},
		Image:    &runtimeapi.ImageSpec{Image: spec.Annotations["io.kubernetes.cri.image-name"]},
	}
	config, _ := encode(cfg)
	podConfig, _ := encode(p.cfg)
	rec := &containerRecord{
		Version: recordVersion, ID: id, PodID: podID, Phase: phaseCreated, BootID: e.bootID, CreatedAt: p.rec.CreatedAt,
		Config: config, PodConfig: podConfig, Handler: h.Name, Restored: true, LogPath: known[id].LogPath,
		Process: process{Runtime: e.runtimeOf(h), Pid: known[id].Pid, StartTime: known[id].StartTime}, StopSignal: 15,
		Message: "restored from what was left of a damaged record",
	}
	if spec.Root != nil {
		rec.RootFS = spec.Root.Path
	}
	if spec.Linux != nil {
		rec.Cgroup, rec.Labels.Mount = spec.Linux.CgroupsPath, spec.Linux.MountLabel
	}
	if spec.Process != nil {
		rec.Labels.Process, rec.AppArmor = spec.Process.SelinuxLabel, spec.Process.ApparmorProfile
	}
	if _, ok := known[id]; ok {
		rec.Phase = phaseStarting // decided by what the monitor says
	}
	e.restoreContainer(rec)
}

func (e *Engine) allPods() []*pod {
	var list []*pod
	for _, p := range e.pods {
		list = append(list, p)
	}
	return list
}

func (e *Engine) allContainers() []*container {
	var list []*container
	for _, c := range e.containers {
		list = append(list, c)
	}
	return list
}

// reconcilePod decides what a pod is now. A half-made one is rolled back, a
// half-stopped or half-removed one is brought to its end, a ready one must still
// have all it stands on.
func (e *Engine) reconcilePod(p *pod, known map[string]monitor.Info) {
	rec := p.read()
	switch rec.Phase {
	case phaseCreating:
		e.freePodName(p)
		e.retry("pod sandbox whose making was cut off", p.id, func(ctx context.Context) error { return e.rollbackPod(ctx, p) })
		return
	case phaseReady:
		if why := e.lost(rec, known); why != "" {
			klog.InfoS("Pod sandbox is not ready any more", "pod", p.id, "name", p.name, "reason", why)
			p.rec.Phase = phaseStopping
		}
	}
	p.snap.Store(p.snapshot())
	switch p.rec.Phase {
	case phaseStopping:
		e.retry("pod sandbox to stop", p.id, func(ctx context.Context) error { return e.finish(ctx, p, e.stopPod) })
	case phaseRemoving:
		e.retry("pod sandbox to remove", p.id, func(ctx context.Context) error { return e.finish(ctx, p, e.removePod) })
	}
}

// finish ends what an earlier process began, unless a call has done it by now.
func (e *Engine) finish(ctx context.Context, p *pod, f func(context.Context, *pod) error) error {
	if err := p.op.lock(ctx); err != nil {
		return nil
	}
	defer p.op.unlock()
	if ph := p.read().Phase; ph != phaseStopping && ph != phaseRemoving {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.forwardTimeout())
	defer cancel()
	return f(ctx, p)
}

// lost says what a ready pod misses, "" for nothing.
func (e *Engine) lost(rec podRecord, known map[string]monitor.Info) string {
	if rec.BootID != e.bootID {
		return "the machine was rebooted"
	}
	for _, path := range rec.pins() {
		if !cni.Pinned(path) {
			return "namespace " + path + " is gone"
		}
	}
	if rec.Init != nil {
		if info, ok := known[rec.ID]; !ok || info.Exit != nil {
			return "its sandbox process has ended"
		}
	}
	return ""
}

// reconcileContainer decides what a container is now, from its record and what
// the monitor says of its process.
func (e *Engine) reconcileContainer(ctx context.Context, c *container, known map[string]monitor.Info) error {
	info, has := known[c.id]
	rec := c.read()
	switch rec.Phase {
	case phaseCreating:
		e.freeContainerName(c)
		e.retry("container whose making was cut off", c.id, func(ctx context.Context) error { return e.rollbackContainer(ctx, c) })
		return nil
	case phaseStarting:
		return e.reconcileStarting(ctx, c, info)
	case phaseRunning:
		c.snap.Store(e.snapshot(c))
		switch {
		case info.Exit != nil:
			e.onExit(c, info)
		case !has || rec.BootID != e.bootID:
			e.onExit(c, rec.Process.lost(c.id))
		}
		return nil
	case phaseRemoving:
		c.snap.Store(e.snapshot(c))
		e.retry("container to remove", c.id, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, e.forwardTimeout())
			defer cancel()
			return e.removeContainer(ctx, c)
		})
		return nil
	case phaseExited:
		close(c.exited)
		if has {
			e.retry("container that has ended", c.id, func(ctx context.Context) error { return e.reapContainer(ctx, c) })
		}
	}
	c.snap.Store(e.snapshot(c))
	return nil
}

// reconcileStarting: the daemon died while it started the container. If the
// process was started it is running or has ended; else all of it is taken back,
// and the container is created again, ready for the next try.
func (e *Engine) reconcileStarting(ctx context.Context, c *container, info monitor.Info) error {
	switch info.State {
	case monitor.StateRunning, monitor.StateExited:
		err := e.setContainer(c, func(r *containerRecord) {
			r.Phase, r.StartedAt = phaseRunning, time.Now()
			r.Process.Pid, r.Process.StartTime = info.Pid, info.StartTime
		})
		if info.Exit != nil {
			e.onExit(c, info)
		}
		return err
	}
	if err := e.deleteProcess(ctx, c.id, c.read().Process); err != nil {
		return err
	}
	return e.setContainer(c, func(r *containerRecord) {
		r.Phase = phaseCreated
		r.Process.Pid, r.Process.StartTime, r.Process.Cgroups = 0, 0, nil
	})
}

// sweep removes what carries our mark and belongs to nothing that is recorded.
func (e *Engine) sweep(known map[string]monitor.Info) {
	isOurs := func(id string) bool { return e.pods[id] != nil || e.containers[id] != nil }
	for id := range known {
		if !isOurs(id) {
			e.retry("process of no known container", id, func(ctx context.Context) error { return e.sweepProcess(ctx, id) })
		}
	}
	for _, id := range e.o.Images.RootFSes() {
		if e.containers[rootFSOwner(id)] == nil {
			e.retry("root filesystem of no known container", id, func(ctx context.Context) error { return e.o.Images.RemoveRootFS(ctx, id) })
		}
	}
	e.sweepDirs("pods", func(id string) bool { return e.pods[id] != nil }, func(id string) error {
		if err := e.unmountShm(id); err != nil {
			return err
		}
		for _, ns := range []string{"ipc", "uts", "user"} {
			if err := cni.Unpin(filepath.Join(e.podDir(id), "ns", ns)); err != nil {
				return err
			}
		}
		return e.removePodDir(id)
	})
	e.sweepDirs("containers", func(id string) bool { return e.containers[id] != nil || known[id].ID != "" }, func(id string) error {
		return os.RemoveAll(e.bundleDir(id))
	})
	e.sweepNetNS()
}

// sweepProcess ends a process that the monitor has for a container that no record
// knows. Any handler's runtime may have made it: the bundle does not say, so all are asked.
func (e *Engine) sweepProcess(ctx context.Context, id string) error {
	for _, h := range e.o.Handlers {
		err := e.o.Monitor.Delete(ctx, monitor.DeleteRequest{ID: id, Runtime: e.runtimeOf(h), Force: true})
		if err != nil {
			return err
		}
	}
	return os.RemoveAll(e.bundleDir(id))
}

func (e *Engine) sweepDirs(kind string, known func(string) bool, remove func(string) error) {
	entries, err := os.ReadDir(filepath.Join(e.o.State, kind))
	if err != nil {
		klog.ErrorS(err, "State directory can't be read")
		return
	}
	for _, entry := range entries {
		id := entry.Name()
		if !validID(id) || known(id) {
			continue
		}
		klog.InfoS("Removing what no record knows", "kind", kind, "id", id)
		if err := remove(id); err != nil {
			klog.ErrorS(err, "Sweep failed", "kind", kind, "id", id)
		}
	}
}

func (e *Engine) sweepNetNS() {
	entries, err := os.ReadDir(e.o.NetNSDir)
	if err != nil {
		return // none was ever pinned
	}
	inUse := map[string]bool{}
	for _, p := range e.pods {
		inUse[p.rec.NetNS] = true
	}
	for _, entry := range entries {
		path := filepath.Join(e.o.NetNSDir, entry.Name())
		if !strings.HasPrefix(entry.Name(), e.mark) || inUse[path] {
			continue
		}
		klog.InfoS("Removing a network namespace that no record knows", "path", path)
		if err := cni.Unpin(path); err != nil {
			klog.ErrorS(err, "Sweep failed", "path", path)
		}
	}
}
