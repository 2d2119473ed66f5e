package sandbox

import (
	"fmt"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/oci"
)

// pod is a pod sandbox in this process. What lasts of it is rec.
type pod struct {
	id   string
	name string                       // podName of its metadata
	cfg  *runtimeapi.PodSandboxConfig // never written to

	// op is held by whoever makes, stops or removes the pod.
	op opLock
	// snap is what lists and statuses see; nil while the pod is being made.
	snap atomic.Pointer[Pod]
	told toldStage // what plugins know of it

	mu       sync.Mutex            // Protects what is below. Held for memory and one record's write only.
	rec      podRecord             //
	children map[string]*container // by id
	stopTold bool                  // see tellPodStopped
}

// podName is what must be unique: kubelet's identity of one attempt at a pod.
func podName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s/%s/%s/%d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

// read returns a copy of the record.
func (p *pod) read() podRecord {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec
}

// list returns the pod's containers.
func (p *pod) list() []*container {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*container, 0, len(p.children))
	for _, c := range p.children {
		list = append(list, c)
	}
	return list
}

// snapshots are the pod's containers as lists show them, the newest first.
func (p *pod) snapshots() []*Container {
	var list []*Container
	for _, c := range p.list() {
		if s := c.snap.Load(); s != nil {
			list = append(list, s)
		}
	}
	sort.Slice(list, func(i, j int) bool {
		return newer(list[i].CreatedAt, list[j].CreatedAt, list[i].ID, list[j].ID)
	})
	return list
}

// setPod changes the pod's record, writes it and shows it. When it can't be
// written the change stands in memory only, and the error says so.
func (e *Engine) setPod(p *pod, change func(*podRecord)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.rec)
	err := e.records.savePod(&p.rec)
	if p.rec.Phase != phaseCreating {
		p.snap.Store(p.snapshot())
	}
	return err
}

func (p *pod) snapshot() *Pod {
	s := &Pod{
		ID: p.id, Config: p.cfg, Handler: p.rec.RequestedHandler,
		CreatedAt: p.rec.CreatedAt,
		Ready:     p.rec.Phase == phaseReady,
		NetNS:     p.rec.NetNS,
		// As the cgroup's path below each hierarchy, whichever driver made it.
		Cgroup: oci.CgroupPath(p.rec.CgroupParent),
		Info: map[string]any{
			"phase": p.rec.Phase, "runtimeHandler": p.rec.Handler, "cgroupParent": p.rec.CgroupParent,
			"ipcNamespace": p.rec.IPCNS, "utsNamespace": p.rec.UTSNS, "userNamespace": p.rec.UserNS, "selinux": p.rec.Labels,
		},
	}
	if p.rec.Result != nil {
		s.IPs = p.rec.Result.IPs
		s.Info["cniResult"] = p.rec.Result
	}
	if p.rec.Init != nil {
		s.InitPid = p.rec.Init.Pid
	}
	return s
}

// sandboxOptions are the pod's namespace modes; never nil.
func sandboxOptions(cfg *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	if o := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &runtimeapi.NamespaceOption{}
}

// dir is the pod's own directory under the state directory.
func (e *Engine) podDir(id string) string { return filepath.Join(e.o.State, "pods", id) }

func (e *Engine) netNSPath(id string) string {
	return filepath.Join(e.o.NetNSDir, e.mark+id[:24])
}

// markLost shows a pod as not ready because something it stands on is gone.
func (e *Engine) markLost(p *pod, why string) {
	if p.read().Phase != phaseReady {
		return
	}
	klog.InfoS("Pod sandbox is not ready any more", "pod", p.id, "name", p.name, "reason", why)
	if err := e.setPod(p, func(r *podRecord) {
		if r.Phase == phaseReady {
			r.Phase = phaseStopping
		}
	}); err != nil {
		klog.ErrorS(err, "Pod's record could not be written", "pod", p.id)
	}
	e.tellPodStopped(p)
}

func decodePod(data []byte) (*runtimeapi.PodSandboxConfig, error) {
	cfg := &runtimeapi.PodSandboxConfig{}
	if err := proto.Unmarshal(data, cfg); err != nil {
		return nil, fmt.Errorf("pod config: %w", err)
	}
	if cfg.GetMetadata() == nil {
		return nil, fmt.Errorf("pod config: no metadata: %w", ErrInvalid)
	}
	return cfg, nil
}

// ownCgroupParent is the parent for a pod whose request names none: one of its
// own, so that it can be removed with the pod.
func ownCgroupParent(systemd bool, id string) string {
	if systemd {
		return "cri_engine-pod" + id[:24] + ".slice"
	}
	return "/cri-engine/pod" + id[:24]
}

func isSlice(parent string) bool { return strings.HasSuffix(parent, ".slice") }
