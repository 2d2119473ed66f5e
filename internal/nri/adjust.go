package nri

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Adjustment is what plugins together want changed of a container that is being made.
type Adjustment struct {
	msg *api.ContainerAdjustment
}

// newAdjustment is nil when nothing is to be changed: the library always answers.
func newAdjustment(msg *api.ContainerAdjustment) *Adjustment {
	if msg = msg.Strip(); msg == nil {
		return nil
	}
	return &Adjustment{msg}
}

// Resources reports whether the container's limits are changed.
func (a *Adjustment) Resources() bool { return a.msg.GetLinux().GetResources() != nil }

// CDIDevices are devices to be injected, by their qualified names.
func (a *Adjustment) CDIDevices() []string {
	var names []string
	for _, d := range a.msg.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	return names
}

// Apply lays the adjustment, but for its CDI devices, over the spec of a
// container. What a spec can't hold, or what would be ignored, is an error;
// whether the OCI runtime can do the rest is for the caller to check. The spec is
// of no use after an error.
func (a *Adjustment) Apply(spec *specs.Spec) error {
	l := a.msg.GetLinux()
	for _, part := range []func() error{
		func() error { return adjustAnnotations(spec, a.msg.GetAnnotations()) },
		func() error { return adjustEnv(spec.Process, a.msg.GetEnv()) },
		func() error { return adjustArgs(spec.Process, a.msg.GetArgs()) },
		func() error { return adjustHooks(spec, a.msg.GetHooks()) },
		func() error { return adjustMounts(spec, a.msg.GetMounts()) },
		func() error { return adjustRlimits(spec.Process, a.msg.GetRlimits()) },
		func() error { return adjustDevices(spec.Linux, l.GetDevices()) },
		func() error { return adjustResources(spec.Linux, l.GetResources()) },
		func() error { return adjustNamespaces(spec.Linux, l.GetNamespaces()) },
		func() error { return adjustSysctls(spec.Linux, l.GetSysctl()) },
		func() error { return adjustNetDevices(spec.Linux, l.GetNetDevices()) },
		func() error { return adjustRdt(spec.Linux, l.GetRdt()) },
		func() error { return adjustScheduling(spec, l) },
	} {
		if err := part(); err != nil {
			return err
		}
	}
	if p := l.GetCgroupsPath(); p != "" {
		spec.Linux.CgroupsPath = p
	}
	if v := l.GetOomScoreAdj(); v != nil {
		if v.GetValue() < -1000 || v.GetValue() > 1000 {
			return fmt.Errorf("oom_score_adj %d: not between -1000 and 1000", v.GetValue())
		}
		spec.Process.OOMScoreAdj = v.Get()
	}
	if p := l.GetSeccompPolicy(); p != nil {
		spec.Linux.Seccomp = seccomp(p)
	}
	return nil
}

// ownAnnotations are what tools tell pods and containers by.
const ownAnnotations = "io.kubernetes.cri."

func adjustAnnotations(spec *specs.Spec, annotations map[string]string) error {
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	added := map[string]string{}
	for key, value := range annotations {
		name, remove := api.IsMarkedForRemoval(key)
		if name == "" || strings.HasPrefix(name, ownAnnotations) {
			return fmt.Errorf("annotation %q: can't be changed", name)
		}
		if remove {
			delete(spec.Annotations, name)
		} else {
			added[name] = value
		}
	}
	// Last: a plugin may remove one and set it anew.
	maps.Copy(spec.Annotations, added)
	return nil
}

func adjustEnv(p *specs.Process, env []*api.KeyValue) error {
	for _, e := range env {
		name, remove := e.IsMarkedForRemoval()
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(e.GetValue(), 0) {
			return fmt.Errorf("environment variable %q: not a name, or a value with a NUL byte", name)
		}
		is := func(v string) bool { return strings.HasPrefix(v, name+"=") }
		at := slices.IndexFunc(p.Env, is)
		switch {
		case remove:
			p.Env = slices.DeleteFunc(p.Env, is)
		case at >= 0:
			p.Env[at] = name + "=" + e.GetValue()
		default:
			p.Env = append(p.Env, name+"="+e.GetValue())
		}
	}
	return nil
}

func adjustArgs(p *specs.Process, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if args[0] == "" || slices.ContainsFunc(args, func(s string) bool { return strings.ContainsRune(s, 0) }) {
		return errors.New("args: an empty command, or a NUL byte")
	}
	p.Args = slices.Clone(args)
	return nil
}

func adjustHooks(spec *specs.Spec, hooks *api.Hooks) error {
	if hooks == nil {
		return nil
	}
	if spec.Hooks == nil {
		spec.Hooks = &specs.Hooks{}
	}
	for _, h := range []struct {
		stage string
		from  []*api.Hook
		to    *[]specs.Hook
	}{
		{"prestart", hooks.GetPrestart(), &spec.Hooks.Prestart}, //nolint:staticcheck // SA1019: the nvidia hook's older versions are one
		{"createRuntime", hooks.GetCreateRuntime(), &spec.Hooks.CreateRuntime},
		{"createContainer", hooks.GetCreateContainer(), &spec.Hooks.CreateContainer},
		{"startContainer", hooks.GetStartContainer(), &spec.Hooks.StartContainer},
		{"poststart", hooks.GetPoststart(), &spec.Hooks.Poststart},
		{"poststop", hooks.GetPoststop(), &spec.Hooks.Poststop},
	} {
		for _, hook := range h.from {
			if !path.IsAbs(hook.GetPath()) {
				return fmt.Errorf("%s hook %q: not an absolute path", h.stage, hook.GetPath())
			}
			if t := hook.GetTimeout(); t != nil && t.GetValue() <= 0 {
				return fmt.Errorf("%s hook %s: timeout %d is not positive", h.stage, hook.GetPath(), t.GetValue())
			}
			*h.to = append(*h.to, hook.ToOCI())
		}
	}
	return nil
}

func adjustMounts(spec *specs.Spec, mounts []*api.Mount) error {
	if len(mounts) == 0 {
		return nil
	}
	for _, m := range mounts {
		destination, remove := m.IsMarkedForRemoval()
		if !path.IsAbs(destination) || path.Clean(destination) == "/" || slices.Contains(strings.Split(destination, "/"), "..") {
			return fmt.Errorf("mount at %q: not an absolute path below the root", destination)
		}
		destination = path.Clean(destination)
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(o specs.Mount) bool { return path.Clean(o.Destination) == destination })
		if remove {
			continue
		}
		mount := m.ToOCI(nil)
		mount.Destination = destination
		spec.Mounts = append(spec.Mounts, mount)
	}
	// In an order in which none hides another.
	slices.SortStableFunc(spec.Mounts, func(x, y specs.Mount) int {
		return strings.Count(x.Destination, "/") - strings.Count(y.Destination, "/")
	})
	return nil
}

func adjustRlimits(p *specs.Process, rlimits []*api.POSIXRlimit) error {
	for _, l := range rlimits {
		if l.GetSoft() > l.GetHard() {
			return fmt.Errorf("rlimit %s: the soft limit is above the hard one", l.GetType())
		}
		p.Rlimits = slices.DeleteFunc(p.Rlimits, func(o specs.POSIXRlimit) bool { return o.Type == l.GetType() })
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: l.GetType(), Hard: l.GetHard(), Soft: l.GetSoft()})
	}
	return nil
}

func adjustDevices(l *specs.Linux, devices []*api.LinuxDevice) error {
	for _, d := range devices {
		name, remove := d.IsMarkedForRemoval()
		if !path.IsAbs(name) || path.Clean(name) != name {
			return fmt.Errorf("device %q: not a clean absolute path", name)
		}
		if !remove && !slices.Contains([]string{"b", "c", "u", "p"}, d.GetType()) {
			return fmt.Errorf("device %s: type %q is not b, c, u or p", name, d.GetType())
		}
		removeDevice(l, name)
		if remove {
			continue
		}
		l.Devices = append(l.Devices, d.ToOCI())
		if d.GetType() != "p" {
			major, minor := d.GetMajor(), d.GetMinor()
			l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: cgroupType(d.GetType()), Major: &major, Minor: &minor, Access: "rwm"})
		}
	}
	return nil
}

// cgroupType is the device controller's: "u" is a character device, unbuffered.
func cgroupType(t string) string {
	if t == "u" {
		return "c"
	}
	return t
}

// removeDevice takes away a device, and the right to use it, unless the same one has another name.
func removeDevice(l *specs.Linux, name string) {
	at := slices.IndexFunc(l.Devices, func(d specs.LinuxDevice) bool { return d.Path == name })
	if at < 0 {
		return
	}
	gone := l.Devices[at]
	l.Devices = slices.Delete(l.Devices, at, at+1)
	if slices.ContainsFunc(l.Devices, func(d specs.LinuxDevice) bool {
		return d.Type == gone.Type && d.Major == gone.Major && d.Minor == gone.Minor
	}) {
		return
	}
	l.Resources.Devices = slices.DeleteFunc(l.Resources.Devices, func(r specs.LinuxDeviceCgroup) bool {
		return r.Allow && r.Type == cgroupType(gone.Type) && r.Major != nil && *r.Major == gone.Major && r.Minor != nil && *r.Minor == gone.Minor
	})
}

func adjustResources(l *specs.Linux, r *api.LinuxResources) error {
	if r == nil {
		return nil
	}
	if err := notForUs(r); err != nil {
		return err
	}
	to := l.Resources
	adjustCPU(to, r.GetCpu())
	adjustMemory(to, r.GetMemory())
	if p := r.GetPids(); p != nil {
		to.Pids = pidsLimit(p)
	}
	for _, h := range r.GetHugepageLimits() {
		to.HugepageLimits = slices.DeleteFunc(to.HugepageLimits, func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == h.GetPageSize() })
		to.HugepageLimits = append(to.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	if len(r.GetUnified()) > 0 {
		all := maps.Clone(to.Unified)
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, r.GetUnified())
		to.Unified = all
	}
	for _, d := range r.GetDevices() {
		if !slices.Contains([]string{"a", "b", "c"}, d.GetType()) || strings.Trim(d.GetAccess(), "rwm") != "" {
			return fmt.Errorf("resources.devices: type %q or access %q is unknown", d.GetType(), d.GetAccess())
		}
		to.Devices = append(to.Devices, specs.LinuxDeviceCgroup{
			Allow: d.GetAllow(), Type: d.GetType(), Major: d.GetMajor().Get(), Minor: d.GetMinor().Get(), Access: d.GetAccess(),
		})
	}
	if c := r.GetRdtClass(); c != nil {
		if l.IntelRdt = nil; c.GetValue() != "" {
			l.IntelRdt = &specs.LinuxIntelRdt{ClosID: c.GetValue()}
		}
	}
	return nil
}

func adjustCPU(r *specs.LinuxResources, cpu *api.LinuxCPU) {
	if cpu == nil {
		return
	}
	c := &specs.LinuxCPU{}
	if r.CPU != nil {
		*c = *r.CPU
	}
	set(&c.Shares, cpu.GetShares().Get())
	set(&c.Quota, cpu.GetQuota().Get())
	set(&c.Period, cpu.GetPeriod().Get())
	set(&c.RealtimeRuntime, cpu.GetRealtimeRuntime().Get())
	set(&c.RealtimePeriod, cpu.GetRealtimePeriod().Get())
	if s := cpu.GetCpus(); s != "" {
		c.Cpus = s
	}
	if s := cpu.GetMems(); s != "" {
		c.Mems = s
	}
	r.CPU = c
}

// adjustMemory: what was said of swap was said of the old limit.
func adjustMemory(r *specs.LinuxResources, memory *api.LinuxMemory) {
	if memory == nil {
		return
	}
	m := &specs.LinuxMemory{}
	if r.Memory != nil {
		*m = *r.Memory
	}
	if limit := memory.GetLimit().Get(); limit != nil && *limit != 0 {
		m.Limit = limit
		if m.Swap != nil {
			m.Swap = limit
		}
	}
	set(&m.Swap, memory.GetSwap().Get())
	set(&m.Reservation, memory.GetReservation().Get())
	set(&m.Swappiness, memory.GetSwappiness().Get())
	r.Memory = m
}

func set[T any](to **T, value *T) {
	if value != nil {
		*to = value
	}
}

// namespaces that NRI and the OCI runtime spec have names for.
var namespaces = []specs.LinuxNamespaceType{
	specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace,
	specs.UTSNamespace, specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace,
}

func adjustNamespaces(l *specs.Linux, list []*api.LinuxNamespace) error {
	for _, n := range list {
		name, remove := n.IsMarkedForRemoval()
		kind := specs.LinuxNamespaceType(name)
		if !slices.Contains(namespaces, kind) {
			return fmt.Errorf("namespace %q: unknown type", name)
		}
		if kind == specs.MountNamespace && remove {
			return errors.New("namespace mount: no container can be without")
		}
		if p := n.GetPath(); p != "" && (!path.IsAbs(p) || strings.ContainsRune(p, 0)) {
			return fmt.Errorf("namespace %s: path %q is not absolute", name, p)
		}
		l.Namespaces = slices.DeleteFunc(l.Namespaces, func(o specs.LinuxNamespace) bool { return o.Type == kind })
		if !remove {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: kind, Path: n.GetPath()})
		}
	}
	return nil
}

func adjustSysctls(l *specs.Linux, sysctls map[string]string) error {
	added := map[string]string{}
	for key, value := range sysctls {
		name, remove := api.IsMarkedForRemoval(key)
		if name == "" || strings.Contains(name, "..") || strings.ContainsAny(name+value, "\n\x00") {
			return fmt.Errorf("sysctl %q: not a name, or a value of more than one line", name)
		}
		if remove {
			delete(l.Sysctl, name)
		} else {
			added[name] = value
		}
	}
	if len(added) > 0 && l.Sysctl == nil {
		l.Sysctl = map[string]string{}
	}
	maps.Copy(l.Sysctl, added)
	return nil
}

func adjustNetDevices(l *specs.Linux, devices map[string]*api.LinuxNetDevice) error {
	added := map[string]specs.LinuxNetDevice{}
	for key, d := range devices {
		name, remove := api.IsMarkedForRemoval(key)
		if !interfaceName(name) || d.GetName() != "" && !interfaceName(d.GetName()) {
			return fmt.Errorf("network device %q: not a name of an interface", name)
		}
		if remove {
			delete(l.NetDevices, name)
		} else {
			added[name] = d.ToOCI()
		}
	}
	if len(added) > 0 && l.NetDevices == nil {
		l.NetDevices = map[string]specs.LinuxNetDevice{}
	}
	maps.Copy(l.NetDevices, added)
	return nil
}

// interfaceName is the kernel's dev_valid_name().
func interfaceName(s string) bool {
	return s != "" && len(s) < 16 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\v\f\r\x00")
}

func adjustRdt(l *specs.Linux, rdt *api.LinuxRdt) error {
	if rdt.GetRemove() {
		l.IntelRdt = nil
	}
	if rdt.GetClosId() == nil && rdt.GetSchemata() == nil && rdt.GetEnableMonitoring() == nil {
		return nil
	}
	r := &specs.LinuxIntelRdt{}
	if l.IntelRdt != nil {
		*r = *l.IntelRdt
	}
	if v := rdt.GetClosId(); v != nil {
		r.ClosID = v.GetValue()
	}
	if strings.Contains(r.ClosID, "/") || r.ClosID == "." || r.ClosID == ".." {
		return fmt.Errorf("rdt.clos_id %q: not a directory's name", r.ClosID)
	}
	if v := rdt.GetSchemata(); v != nil {
		r.Schemata = slices.Clone(v.GetValue())
	}
	if v := rdt.GetEnableMonitoring(); v != nil {
		r.EnableMonitoring = v.GetValue()
	}
	l.IntelRdt = r
	return nil
}

// adjustScheduling is how the first process is scheduled, its I/O, and where its memory comes from.
func adjustScheduling(spec *specs.Spec, l *api.LinuxContainerAdjustment) error {
	if p := l.GetIoPriority(); p != nil {
		if p.GetPriority() < 0 || p.GetPriority() > 7 {
			return fmt.Errorf("io_priority %d: not between 0 and 7", p.GetPriority())
		}
		if spec.Process.IOPriority = p.ToOCI(); p.GetClass() == api.IOPrioClass_IOPRIO_CLASS_NONE {
			spec.Process.IOPriority = nil
		}
	}
	if s := l.GetScheduler(); s != nil {
		if _, known := api.LinuxSchedulerPolicy_name[int32(s.GetPolicy())]; !known {
			return fmt.Errorf("scheduler.policy %d: unknown", s.GetPolicy())
		}
		spec.Process.Scheduler = s.ToOCI()
	}
	if m := l.GetMemoryPolicy(); m != nil {
		if _, known := api.MpolMode_name[int32(m.GetMode())]; !known {
			return fmt.Errorf("memory_policy.mode %d: unknown", m.GetMode())
		}
		spec.Linux.MemoryPolicy = m.ToOCI()
	}
	return nil
}

func seccomp(p *api.LinuxSeccomp) *specs.LinuxSeccomp {
	s := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(p.GetDefaultAction()), Syscalls: api.ToOCILinuxSyscalls(p.GetSyscalls()),
		ListenerPath: p.GetListenerPath(), ListenerMetadata: p.GetListenerMetadata(),
	}
	if e := p.GetDefaultErrno(); e != nil {
		errno := uint(e.GetValue())
		s.DefaultErrnoRet = &errno
	}
	for _, a := range p.GetArchitectures() {
		s.Architectures = append(s.Architectures, specs.Arch(a))
	}
	for _, f := range p.GetFlags() {
		s.Flags = append(s.Flags, specs.LinuxSeccompFlag(f))
	}
	return s
}
