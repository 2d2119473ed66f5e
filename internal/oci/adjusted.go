package oci

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckAdjusted checks what was changed in a container's spec since
// [ContainerSpec] made it, and fits it to this machine as that does: after has then
// what can be run. An OCI runtime would quietly ignore some of what it does not
// know, so that is refused here.
//
// Errors name the part of the spec. They are about who changed it, never an
// [*InvalidError].
func CheckAdjusted(before, after *specs.Spec, handler *Handler, driver CgroupDriver) error {
	h, err := thisHost()
	if err != nil {
		return err
	}
	return checkAdjusted(before, after, handler, driver, h)
}

func checkAdjusted(before, after *specs.Spec, handler *Handler, driver CgroupDriver, h *host) error {
	a := &adjusted{before: before, after: after, handler: handler, host: h, driver: driver}
	for _, part := range []func() error{
		a.mounts, a.hooks, a.namespaces, a.sysctls, a.seccomp, a.cgroupsPath, a.oomScore, a.rlimits, a.resources,
		a.scheduling, a.netDevices, a.memoryPolicy, a.rdt,
	} {
		if err := part(); err != nil {
			return notInvalid(err)
		}
	}
	return nil
}

// notInvalid keeps a fault that is not the request's from being told as one.
func notInvalid(err error) error {
	var invalid *InvalidError
	if errors.As(err, &invalid) {
		return errors.New(err.Error())
	}
	return err
}

// adjusted is a spec that somebody changed.
type adjusted struct {
	before, after *specs.Spec
	handler       *Handler
	host          *host
	driver        CgroupDriver
}

func (a *adjusted) mounts() error {
	for i := range a.after.Mounts {
		m := &a.after.Mounts[i]
		if slices.ContainsFunc(a.before.Mounts, func(o specs.Mount) bool { return reflect.DeepEqual(o, *m) }) {
			continue
		}
		field := "mounts[" + m.Destination + "]"
		for _, s := range append([]string{m.Type, m.Source, m.Destination}, m.Options...) {
			if err := checkText(field, s); err != nil {
				return err
			}
		}
		if known := a.handler.Features.MountOptions; known != nil && m.Type == "bind" {
			for _, o := range m.Options {
				if !slices.Contains(known, o) {
					return unsupported(field, "%s does not know the option %q", a.handler.Binary, o)
				}
			}
		}
		if m.Type != "bind" && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			continue
		}
		source, err := resolveHostPath(field+".source", m.Source)
		if err != nil {
			return err
		}
		m.Source = source
		if err := a.propagation(field, m); err != nil {
			return err
		}
	}
	return nil
}

// propagation is as [builder.propagation]'s, for a mount whose options are there already.
func (a *adjusted) propagation(field string, m *specs.Mount) error {
	root := &a.after.Linux.RootfsPropagation
	switch {
	case slices.Contains(m.Options, "rshared") || slices.Contains(m.Options, "shared"):
		*root = "rshared"
		return checkPropagation(field, m.Source, "shared:")
	case slices.Contains(m.Options, "rslave") || slices.Contains(m.Options, "slave"):
		if *root == "" {
			*root = "rslave"
		}
		return checkPropagation(field, m.Source, "shared:", "master:")
	}
	return nil
}

func (a *adjusted) hooks() error {
	h := a.after.Hooks
	if h == nil {
		return nil
	}
	for stage, list := range map[string][]specs.Hook{
		"prestart":      h.Prestart, //nolint:staticcheck // SA1019: who uses it still has to be checked
		"createRuntime": h.CreateRuntime, "createContainer": h.CreateContainer, "startContainer": h.StartContainer,
		"poststart": h.Poststart, "poststop": h.Poststop,
	} {
		if known := a.handler.Features.Hooks; len(list) > 0 && known != nil && !slices.Contains(known, stage) {
			return unsupported("hooks."+stage, "%s does not know such hooks", a.handler.Binary)
		}
		for _, hook := range list {
			// A startContainer hook is looked up in the container.
			if stage != "startContainer" && !exists(hook.Path) {
				return fmt.Errorf("hooks.%s: %s does not exist", stage, hook.Path)
			}
			for _, s := range slices.Concat(hook.Args, hook.Env) {
				if err := checkText("hooks."+stage, s); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (a *adjusted) namespaces() error {
	for _, n := range a.after.Linux.Namespaces {
		if n.Path != "" && !slices.Contains(a.before.Linux.Namespaces, n) && !exists(n.Path) {
			return fmt.Errorf("linux.namespaces: %s: %s does not exist", n.Type, n.Path)
		}
	}
	return nil
}

// ipcSysctls belong to an IPC namespace (ipc_namespaces(7)).
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

// sysctls: those that are the whole machine's are refused.
func (a *adjusted) sysctls() error {
	has := func(t specs.LinuxNamespaceType) bool {
		return slices.ContainsFunc(a.after.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
	}
	for name := range a.after.Linux.Sysctl {
		dotted := strings.ReplaceAll(name, "/", ".")
		var ok bool
		switch {
		case strings.HasPrefix(dotted, "net."):
			ok = has(specs.NetworkNamespace)
		case slices.Contains(ipcSysctls, dotted) || strings.HasPrefix(dotted, "fs.mqueue."):
			ok = has(specs.IPCNamespace)
		case dotted == "kernel.domainname" || dotted == "kernel.hostname":
			ok = has(specs.UTSNamespace)
		}
		if !ok {
			return fmt.Errorf("linux.sysctl %s: belongs to no namespace of the container's", name)
		}
	}
	return nil
}

func (a *adjusted) seccomp() error {
	s := a.after.Linux.Seccomp
	if s == nil || reflect.DeepEqual(s, a.before.Linux.Seccomp) {
		return nil
	}
	const field = "linux.seccomp"
	if !a.host.seccomp || !a.handler.hasSeccomp() {
		return unsupported(field, "the kernel, or %s, has no seccomp filters", a.handler.Binary)
	}
	if s.ListenerPath != "" && !path.IsAbs(s.ListenerPath) {
		return fmt.Errorf("%s.listenerPath %q: not an absolute path", field, s.ListenerPath)
	}
	actions := []specs.LinuxSeccompAction{s.DefaultAction}
	for _, call := range s.Syscalls {
		actions = append(actions, call.Action)
	}
	for _, action := range actions {
		if !a.knowsAction(action) {
			return unsupported(field, "%s does not know the action %q", a.handler.Binary, action)
		}
	}
	return nil
}

func (a *adjusted) knowsAction(action specs.LinuxSeccompAction) bool {
	f := a.handler.Features.Linux
	if f == nil || f.Seccomp == nil || f.Seccomp.Actions == nil {
		return strings.HasPrefix(string(action), "SCMP_ACT_")
	}
	return slices.Contains(f.Seccomp.Actions, string(action))
}

func (a *adjusted) cgroupsPath() error {
	p := a.after.Linux.CgroupsPath
	if p == a.before.Linux.CgroupsPath {
		return nil
	}
	const field = "linux.cgroupsPath"
	if a.driver == Systemd {
		// slice:prefix:name
		parts := strings.Split(p, ":")
		if len(parts) != 3 || parts[2] == "" || strings.ContainsAny(parts[1]+parts[2], "/ \x00") {
			return fmt.Errorf("%s %q: the cgroup driver is systemd, and this is not slice:prefix:name", field, p)
		}
		if parts[0] == "" {
			return nil
		}
		return CheckCgroupParent(Systemd, parts[0])
	}
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%s %q: not a clean absolute path", field, p)
	}
	return nil
}

func (a *adjusted) oomScore() error {
	if v := a.after.Process.OOMScoreAdj; v != nil {
		a.after.Process.OOMScoreAdj = a.host.clampOOMScore(*v)
	}
	return nil
}

// rlimits: unlike a default, what was asked for by name is not lowered.
func (a *adjusted) rlimits() error {
	for _, l := range a.after.Process.Rlimits {
		if slices.Contains(a.before.Process.Rlimits, l) {
			continue
		}
		resource, ok := rlimits[l.Type]
		if !ok {
			return fmt.Errorf("process.rlimits: %q: no such limit", l.Type)
		}
		if a.host.resource {
			continue
		}
		most, err := a.host.hardLimit(resource)
		if err != nil {
			return fmt.Errorf("process.rlimits: %s: read own: %w", l.Type, err)
		}
		if l.Hard > most {
			return unsupported("process.rlimits", "%s %d is above the engine's own limit of %d, and it has no CAP_SYS_RESOURCE to raise it", l.Type, l.Hard, most)
		}
	}
	return nil
}

func (a *adjusted) resources() error {
	r := a.after.Linux.Resources
	if reflect.DeepEqual(r, a.before.Linux.Resources) {
		return nil
	}
	return checkResources(r, a.host)
}

// checkResources checks limits as an OCI runtime will get them, and leaves out of
// them what means nothing here.
func checkResources(r *specs.LinuxResources, h *host) error {
	const field = "linux.resources."
	if c := r.CPU; c != nil {
		if !cpuList.MatchString(c.Cpus) || !cpuList.MatchString(c.Mems) {
			return fmt.Errorf(`%scpu: %q or %q is not a list such as "0-3,7"`, field, c.Cpus, c.Mems)
		}
		if c.Quota != nil && *c.Quota < -1 {
			return fmt.Errorf("%scpu.quota %d: less than -1", field, *c.Quota)
		}
		if h.cgroupV2 && (c.RealtimeRuntime != nil || c.RealtimePeriod != nil) {
			return unsupported(field+"cpu", "cgroup v2 has no realtime limits")
		}
	}
	if err := checkMemory(r.Memory, h); err != nil {
		return err
	}
	var huge []specs.LinuxHugepageLimit
	for _, l := range r.HugepageLimits {
		switch {
		case !pageSize.MatchString(l.Pagesize):
			return fmt.Errorf(`%shugepageLimits: %q is not a size such as "2MB"`, field, l.Pagesize)
		case h.hugetlb:
			huge = append(huge, l)
		case l.Limit > 0:
			return unsupported(field+"hugepageLimits", "the hugetlb cgroup controller is not available")
		}
	}
	r.HugepageLimits = huge
	if len(r.Unified) > 0 && !h.cgroupV2 {
		return unsupported(field+"unified", "this machine has cgroup v1")
	}
	for key, value := range r.Unified {
		if !unifiedKey.MatchString(key) || strings.HasPrefix(key, "cgroup.") || strings.ContainsRune(value, 0) {
			return fmt.Errorf("%sunified: %q: not a controller's file, or its value has a NUL byte", field, key)
		}
	}
	return nil
}

func checkMemory(m *specs.LinuxMemory, h *host) error {
	const field = "linux.resources.memory."
	if m == nil {
		return nil
	}
	for name, v := range map[string]*int64{"limit": m.Limit, "swap": m.Swap, "reservation": m.Reservation} {
		if v != nil && *v < -1 {
			return fmt.Errorf("%s%s %d: less than -1", field, name, *v)
		}
	}
	if m.Limit != nil && m.Swap != nil && *m.Swap > 0 && *m.Swap < *m.Limit {
		return fmt.Errorf("%sswap %d: less than the limit %d, which it includes", field, *m.Swap, *m.Limit)
	}
	if m.Swappiness != nil && (h.cgroupV2 || *m.Swappiness > 100) {
		return unsupported(field+"swappiness", "cgroup v2 has none, and v1 takes 0 to 100")
	}
	switch {
	case !h.swap:
		m.Swap = nil
	case m.Swap == nil:
		m.Swap = m.Limit // as for a request without a limit of its own for swap
	}
	return nil
}

// scheduling came with version 1.1 of the OCI runtime spec.
func (a *adjusted) scheduling() error {
	p := a.after.Process
	if p.Scheduler == nil && p.IOPriority == nil {
		return nil
	}
	if strings.HasPrefix(a.handler.OCIVersion, "1.0.") {
		return unsupported("process", "%s knows neither scheduler nor ioPriority", a.handler.Binary)
	}
	return nil
}

func (a *adjusted) netDevices() error {
	if len(a.after.Linux.NetDevices) == 0 {
		return nil
	}
	if !a.handler.MovesNetDevices() {
		return unsupported("linux.netDevices", "%s can't move network devices", a.handler.Binary)
	}
	for name := range a.after.Linux.NetDevices {
		if !exists("/sys/class/net/" + name) {
			return fmt.Errorf("linux.netDevices: the host has no interface %s", name)
		}
	}
	return nil
}

func (a *adjusted) memoryPolicy() error {
	m := a.after.Linux.MemoryPolicy
	if m == nil {
		return nil
	}
	f := a.handler.Features.Linux
	if f == nil || f.MemoryPolicy == nil || !slices.Contains(f.MemoryPolicy.Modes, string(m.Mode)) {
		return unsupported("linux.memoryPolicy", "%s can't set the mode %s", a.handler.Binary, m.Mode)
	}
	for _, flag := range m.Flags {
		if !slices.Contains(f.MemoryPolicy.Flags, string(flag)) {
			return unsupported("linux.memoryPolicy", "%s can't set the flag %s", a.handler.Binary, flag)
		}
	}
	return nil
}

func (a *adjusted) rdt() error {
	if a.after.Linux.IntelRdt == nil {
		return nil
	}
	f := a.handler.Features.Linux
	if f == nil || f.IntelRdt == nil || f.IntelRdt.Enabled == nil || !*f.IntelRdt.Enabled || !exists("/sys/fs/resctrl/schemata") {
		return unsupported("linux.intelRdt", "%s has no RDT, or /sys/fs/resctrl is not mounted", a.handler.Binary)
	}
	return nil
}

// ResourcesOf are a container's limits in CRI's words, those of its spec over
// those of its request.
func ResourcesOf(request *runtimeapi.LinuxContainerResources, spec *specs.Spec) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{}
	if request != nil {
		r = proto.CloneOf(request)
	}
	if v := spec.Process.OOMScoreAdj; v != nil {
		r.OomScoreAdj = int64(*v)
	}
	from := spec.Linux.Resources
	if c := from.CPU; c != nil {
		copyTo(&r.CpuQuota, c.Quota)
		copyTo(&r.CpuShares, c.Shares)
		copyTo(&r.CpuPeriod, c.Period)
		r.CpusetCpus, r.CpusetMems = c.Cpus, c.Mems
	}
	if m := from.Memory; m != nil {
		copyTo(&r.MemoryLimitInBytes, m.Limit)
		copyTo(&r.MemorySwapLimitInBytes, m.Swap)
	}
	for _, l := range from.HugepageLimits {
		setHugepageLimit(r, &runtimeapi.HugepageLimit{PageSize: l.Pagesize, Limit: l.Limit})
	}
	setUnified(r, from.Unified)
	return r
}

func copyTo[T int64 | uint64](to *int64, from *T) {
	if from != nil {
		*to = int64(*from)
	}
}
