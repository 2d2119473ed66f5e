package nri

import (
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is what plugins are told of a pod.
type Pod struct {
	ID      string
	Config  *runtimeapi.PodSandboxConfig
	Handler string // as the request had it
	// CgroupParent of its containers, CgroupsPath that of its sandbox process, "" where it has none.
	CgroupParent, CgroupsPath string
	// Namespaces that are its own, by path.
	Namespaces []specs.LinuxNamespace
	IPs        []netip.Addr
	Pid        int // of its sandbox process, 0 where it has none
	// Overhead and Resources are the request's, or those of the last resize; nil for none.
	Overhead, Resources *runtimeapi.LinuxContainerResources
}

// Container is what plugins are told of a container.
type Container struct {
	ID, PodID string
	Config    *runtimeapi.ContainerConfig
	State     runtimeapi.ContainerState
	// Spec that it runs, or will run, with; nil where nothing is left of it.
	Spec *specs.Spec
	Pid  int // 0 unless its process exists
	// Times are zero where it has not come to that.
	CreatedAt, StartedAt, FinishedAt time.Time
	ExitCode                         int32
	Reason, Message                  string
	// ImageName is what the user wrote, ImageDigest a manifest's, ImageID the config's.
	ImageName, ImageDigest, ImageID string
}

func (p *Pod) message() *api.PodSandbox {
	m := p.Config.GetMetadata()
	msg := &api.PodSandbox{
		Id: p.ID, Name: m.GetName(), Uid: m.GetUid(), Namespace: m.GetNamespace(),
		Labels: maps.Clone(p.Config.GetLabels()), Annotations: maps.Clone(p.Config.GetAnnotations()),
		RuntimeHandler: p.Handler, Pid: uint32(p.Pid),
		Linux: &api.LinuxPodSandbox{
			PodOverhead: resourcesMessage(p.Overhead), PodResources: resourcesMessage(p.Resources),
			CgroupParent: p.CgroupParent, CgroupsPath: p.CgroupsPath, Namespaces: api.FromOCILinuxNamespaces(p.Namespaces),
		},
	}
	for _, ip := range p.IPs {
		msg.Ips = append(msg.Ips, ip.String())
	}
	return msg
}

func (c *Container) message() *api.Container {
	msg := &api.Container{
		Id: c.ID, PodSandboxId: c.PodID, Name: c.Config.GetMetadata().GetName(), State: states[c.State],
		Labels: maps.Clone(c.Config.GetLabels()), Annotations: map[string]string{}, Pid: uint32(c.Pid),
		CreatedAt: nanos(c.CreatedAt), StartedAt: nanos(c.StartedAt), FinishedAt: nanos(c.FinishedAt),
		ExitCode: c.ExitCode, StatusReason: c.Reason, StatusMessage: strings.ToValidUTF8(c.Message, "\ufffd"),
		Linux: &api.LinuxContainer{SeccompProfile: seccompProfile(c.Config.GetLinux().GetSecurityContext().GetSeccomp())},
	}
	for _, d := range c.Config.GetCDIDevices() {
		msg.CDIDevices = append(msg.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if c.ImageName != "" || c.ImageID != "" {
		msg.Image = &api.Image{Name: c.ImageName, Digest: c.ImageDigest, ConfigDigest: c.ImageID}
	}
	if c.Spec != nil {
		specMessage(msg, c.Spec)
	}
	// What the pod's author wrote comes last: some of it may be left out of the spec.
	maps.Copy(msg.Annotations, c.Config.GetAnnotations())
	return msg
}

var states = map[runtimeapi.ContainerState]api.ContainerState{
	runtimeapi.ContainerState_CONTAINER_CREATED: api.ContainerState_CONTAINER_CREATED,
	runtimeapi.ContainerState_CONTAINER_RUNNING: api.ContainerState_CONTAINER_RUNNING,
	runtimeapi.ContainerState_CONTAINER_EXITED:  api.ContainerState_CONTAINER_STOPPED,
	runtimeapi.ContainerState_CONTAINER_UNKNOWN: api.ContainerState_CONTAINER_UNKNOWN,
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func seccompProfile(p *runtimeapi.SecurityProfile) *api.SecurityProfile {
	if p == nil {
		return nil
	}
	return &api.SecurityProfile{ProfileType: api.SecurityProfile_ProfileType(p.GetProfileType()), LocalhostRef: p.GetLocalhostRef()}
}

// specMessage fills in what the OCI spec says. It shares no memory with it: the
// library changes the message by what each plugin answers.
func specMessage(msg *api.Container, spec *specs.Spec) {
	maps.Copy(msg.Annotations, spec.Annotations)
	msg.Mounts = api.FromOCIMounts(spec.Mounts)
	msg.Hooks = api.FromOCIHooks(spec.Hooks)
	if p := spec.Process; p != nil {
		msg.Args, msg.Env = api.DupStringSlice(p.Args), api.DupStringSlice(p.Env)
		msg.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: append([]uint32(nil), p.User.AdditionalGids...)}
		for _, l := range p.Rlimits {
			msg.Rlimits = append(msg.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		msg.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		if p.IOPriority != nil {
			msg.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		}
		if p.Scheduler != nil {
			msg.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
		}
	}
	l := spec.Linux
	if l == nil {
		return
	}
	msg.Linux.Namespaces = api.FromOCILinuxNamespaces(l.Namespaces)
	msg.Linux.Devices = api.FromOCILinuxDevices(l.Devices)
	msg.Linux.Resources = api.FromOCILinuxResources(l.Resources, nil)
	msg.Linux.CgroupsPath = l.CgroupsPath
	msg.Linux.Sysctl = maps.Clone(l.Sysctl)
	if l.Seccomp != nil {
		msg.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	if len(l.NetDevices) > 0 {
		msg.Linux.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	}
	if rdt := l.IntelRdt; rdt != nil {
		msg.Linux.Rdt = &api.LinuxRdt{ClosId: api.String(rdt.ClosID), Schemata: api.RepeatedString(rdt.Schemata), EnableMonitoring: api.Bool(rdt.EnableMonitoring)}
	}
}
