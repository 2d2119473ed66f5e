package nri

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

// aSpec has a bit of everything.
func aSpec() *specs.Spec {
	return &specs.Spec{
		Annotations: map[string]string{"old": "1", "stays": "1", ownAnnotations + "container-type": "container"},
		Process: &specs.Process{
			Args: []string{"run"}, Env: []string{"OLD=1", "STAYS=1", "BARE"}, OOMScoreAdj: ptr(5),
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 10, Soft: 10}},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/a/b", Type: "tmpfs"}, {Destination: "/etc/hosts", Type: "bind", Source: "/h"}},
		Linux: &specs.Linux{
			CgroupsPath: "/pod/c", Sysctl: map[string]string{"net.a": "1"},
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/run/netns/x"}},
			Devices:    []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 7, Minor: 8}, {Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}},
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Major: ptr[int64](7), Minor: ptr[int64](8), Access: "rw"}},
				Memory:  &specs.LinuxMemory{Limit: ptr[int64](100), Swap: ptr[int64](150)}, CPU: &specs.LinuxCPU{Shares: ptr[uint64](2), Cpus: "0"},
				HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 0}}, Unified: map[string]string{"cpu.weight": "1"},
			},
		},
	}
}

func adjustment(f func(*api.ContainerAdjustment)) *Adjustment {
	a := &api.ContainerAdjustment{}
	f(a)
	return &Adjustment{a}
}

func TestApply(t *testing.T) {
	cases := []struct {
		name   string
		adjust func(*api.ContainerAdjustment)
		got    func(*specs.Spec) any
		want   any
	}{
		{"variables are added, changed in their place, and removed", func(a *api.ContainerAdjustment) {
			a.AddEnv("NEW", "x=y")
			a.RemoveEnv("OLD")
			a.AddEnv("STAYS", "2")
		}, func(s *specs.Spec) any { return s.Process.Env }, []string{"STAYS=2", "BARE", "NEW=x=y"}},
		{"a variable is removed and set anew", func(a *api.ContainerAdjustment) {
			a.RemoveEnv("OLD")
			a.AddEnv("OLD", "2")
		}, func(s *specs.Spec) any { return s.Process.Env }, []string{"STAYS=1", "BARE", "OLD=2"}},
		{"the command is replaced", func(a *api.ContainerAdjustment) { a.SetArgs([]string{"other", ""}) },
			func(s *specs.Spec) any { return s.Process.Args }, []string{"other", ""}},
		{"annotations are added and removed", func(a *api.ContainerAdjustment) {
			a.AddAnnotation("new", "1")
			a.RemoveAnnotation("old")
		}, func(s *specs.Spec) any { return s.Annotations }, map[string]string{"new": "1", "stays": "1", ownAnnotations + "container-type": "container"}},
		{"an annotation is removed and set anew", func(a *api.ContainerAdjustment) {
			a.RemoveAnnotation("old")
			a.AddAnnotation("old", "2")
		}, func(s *specs.Spec) any { return s.Annotations["old"] }, "2"},
		{"mounts are replaced and removed, and none hides another", func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/a/", Type: "tmpfs", Options: []string{"ro"}})
			a.AddMount(&api.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/mine"})
			a.RemoveMount("/proc")
		}, func(s *specs.Spec) any { return s.Mounts }, []specs.Mount{
			{Destination: "/a", Type: "tmpfs", Options: []string{"ro"}}, {Destination: "/a/b", Type: "tmpfs"}, {Destination: "/etc/hosts", Type: "bind", Source: "/mine"}}},
		{"hooks are added", func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/h", Args: []string{"h", "x"}, Timeout: api.Int(3)}}})
		}, func(s *specs.Spec) any { return s.Hooks.Poststop }, []specs.Hook{{Path: "/h", Args: []string{"h", "x"}, Timeout: ptr(3)}}},
		{"a limit of the process is replaced", func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_NOFILE", 20, 15) },
			func(s *specs.Spec) any { return s.Process.Rlimits }, []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 20, Soft: 15}}},
		{"a device comes with the right to use it", func(a *api.ContainerAdjustment) {
			a.AddDevice(&api.LinuxDevice{Path: "/dev/y", Type: "b", Major: 1, Minor: 2})
		}, func(s *specs.Spec) any { return s.Linux.Resources.Devices[2] }, specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: ptr[int64](1), Minor: ptr[int64](2), Access: "rwm"}},
		{"and goes with it", func(a *api.ContainerAdjustment) { a.RemoveDevice("/dev/x") },
			func(s *specs.Spec) any { return []any{s.Linux.Devices, s.Linux.Resources.Devices} },
			[]any{[]specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}, []specs.LinuxDeviceCgroup{{Access: "rwm"}}}},
		{"limits are laid over those that are there", func(a *api.ContainerAdjustment) {
			a.SetLinuxCPUQuota(7)
			a.SetLinuxCPUSetCPUs("1")
			a.SetLinuxMemoryLimit(200)
			a.SetLinuxMemoryReservation(50)
			a.SetLinuxPidLimits(9)
			a.AddLinuxHugepageLimit("2MB", 4)
			a.AddLinuxUnified("memory.high", "max")
		}, func(s *specs.Spec) any {
			r := *s.Linux.Resources
			r.Devices = nil
			return r
		}, specs.LinuxResources{
			CPU:    &specs.LinuxCPU{Shares: ptr[uint64](2), Quota: ptr[int64](7), Cpus: "1"},
			Memory: &specs.LinuxMemory{Limit: ptr[int64](200), Swap: ptr[int64](200), Reservation: ptr[int64](50)},
			Pids:   &specs.LinuxPids{Limit: ptr[int64](9)}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}},
			Unified: map[string]string{"cpu.weight": "1", "memory.high": "max"}}},
		{"swap can be told by itself", func(a *api.ContainerAdjustment) {
			a.SetLinuxMemoryLimit(200)
			a.SetLinuxMemorySwap(300)
		}, func(s *specs.Spec) any { return *s.Linux.Resources.Memory.Swap }, int64(300)},
		{"no limit of processes has one form", func(a *api.ContainerAdjustment) { a.SetLinuxPidLimits(0) },
			func(s *specs.Spec) any { return *s.Linux.Resources.Pids.Limit }, int64(-1)},
		{"namespaces are joined and left", func(a *api.ContainerAdjustment) {
			a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "ipc", Path: "/proc/1/ns/ipc"})
			a.RemoveNamespace(&api.LinuxNamespace{Type: "network"})
		}, func(s *specs.Spec) any { return s.Linux.Namespaces }, []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.IPCNamespace, Path: "/proc/1/ns/ipc"}}},
		{"sysctls are set and removed", func(a *api.ContainerAdjustment) {
			a.SetLinuxSysctl("net.b", "2")
			a.SetLinuxSysctl("-net.a", "")
		}, func(s *specs.Spec) any { return s.Linux.Sysctl }, map[string]string{"net.b": "2"}},
		{"the cgroup is another", func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/x") }, func(s *specs.Spec) any { return s.Linux.CgroupsPath }, "/x"},
		{"the OOM score is another", func(a *api.ContainerAdjustment) { a.SetLinuxOomScoreAdj(ptr(0)) }, func(s *specs.Spec) any { return *s.Process.OOMScoreAdj }, 0},
		{"the seccomp policy is replaced", func(a *api.ContainerAdjustment) {
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ERRNO", DefaultErrno: api.UInt32(uint32(38)), Architectures: []string{"SCMP_ARCH_X86_64"},
				Syscalls: []*api.LinuxSyscall{{Names: []string{"read"}, Action: "SCMP_ACT_ALLOW"}}})
		}, func(s *specs.Spec) any { return s.Linux.Seccomp }, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: ptr[uint](38), Architectures: []specs.Arch{specs.ArchX86_64},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{}}}}},
		{"the scheduling and the I/O priority are set", func(a *api.ContainerAdjustment) {
			a.SetLinuxScheduler(&api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 5})
			a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 6})
		}, func(s *specs.Spec) any { return []any{s.Process.Scheduler.Policy, s.Process.IOPriority} },
			[]any{specs.SchedBatch, &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}}},
		{"network devices move in", func(a *api.ContainerAdjustment) { a.AddLinuxNetDevice("eth9", &api.LinuxNetDevice{Name: "lan"}) },
			func(s *specs.Spec) any { return s.Linux.NetDevices }, map[string]specs.LinuxNetDevice{"eth9": {Name: "lan"}}},
		{"RDT is by class", func(a *api.ContainerAdjustment) { a.SetLinuxRDTClass("gold") }, func(s *specs.Spec) any { return s.Linux.IntelRdt }, &specs.LinuxIntelRdt{ClosID: "gold"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			spec := aSpec()
			if err := adjustment(c.adjust).Apply(spec); err != nil {
				t.Fatal(err)
			}
			if got := c.got(spec); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	cases := []struct {
		name   string
		adjust func(*api.ContainerAdjustment)
		want   string
	}{
		{"a variable without a name", func(a *api.ContainerAdjustment) { a.AddEnv("", "x") }, "environment"},
		{"a variable whose name has a =", func(a *api.ContainerAdjustment) { a.AddEnv("A=B", "x") }, "A=B"},
		{"a value with a NUL byte", func(a *api.ContainerAdjustment) { a.AddEnv("A", "x\x00y") }, "NUL"},
		{"an argument with a NUL byte", func(a *api.ContainerAdjustment) { a.SetArgs([]string{"a", "x\x00y"}) }, "args"},
		{"an annotation of ours", func(a *api.ContainerAdjustment) { a.RemoveAnnotation(ownAnnotations + "sandbox-id") }, "sandbox-id"},
		{"a mount over the root", func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "/a/.."}) }, "below the root"},
		{"a mount at a relative path", func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "a"}) }, "absolute"},
		{"a hook at a relative path", func(a *api.ContainerAdjustment) { a.AddHooks(&api.Hooks{Prestart: []*api.Hook{{Path: "h"}}}) }, "prestart"},
		{"a hook without time", func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/h", Timeout: api.Int(0)}}})
		}, "timeout"},
		{"a soft limit above the hard one", func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_CPU", 1, 2) }, "RLIMIT_CPU"},
		{"a device of an unknown type", func(a *api.ContainerAdjustment) { a.AddDevice(&api.LinuxDevice{Path: "/dev/z", Type: "z"}) }, "/dev/z"},
		{"a device at a path that is not clean", func(a *api.ContainerAdjustment) { a.AddDevice(&api.LinuxDevice{Path: "/dev/../z", Type: "c"}) }, "clean"},
		{"a class of block I/O", func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("x") }, "blockio_class"},
		{"a memory limit of kernels before", func(a *api.ContainerAdjustment) { a.SetLinuxMemoryKernel(1) }, "memory.kernel"},
		{"a container without a mount namespace", func(a *api.ContainerAdjustment) { a.RemoveNamespace(&api.LinuxNamespace{Type: "mount"}) }, "mount"},
		{"an unknown namespace", func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "disk"}) }, "disk"},
		{"a sysctl of two lines", func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("net.a", "1\n2") }, "net.a"},
		{"a sysctl that leads elsewhere", func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("net/../vm", "1") }, "net/../vm"},
		{"an interface that is a path", func(a *api.ContainerAdjustment) { a.AddLinuxNetDevice("../x", &api.LinuxNetDevice{}) }, "../x"},
		{"an RDT class that is a path", func(a *api.ContainerAdjustment) { a.SetLinuxRDTClosID("../x") }, "../x"},
		{"an OOM score out of range", func(a *api.ContainerAdjustment) { a.SetLinuxOomScoreAdj(ptr(1001)) }, "1001"},
		{"an I/O priority out of range", func(a *api.ContainerAdjustment) {
			a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 8})
		}, "io_priority"},
		{"an unknown scheduler", func(a *api.ContainerAdjustment) { a.SetLinuxScheduler(&api.LinuxScheduler{Policy: 99}) }, "scheduler"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := adjustment(c.adjust).Apply(aSpec())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it to hold %q", err, c.want)
			}
		})
	}
}

func TestAnAdjustmentThatChangesNothingIsNone(t *testing.T) {
	empty := &api.ContainerAdjustment{Annotations: map[string]string{}, Hooks: &api.Hooks{}, Linux: &api.LinuxContainerAdjustment{
		Resources: &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{}}}}
	if a := newAdjustment(empty); a != nil {
		t.Errorf("got %v", a)
	}
}

// FuzzApply lays any message over a spec: it is changed, or refused, and what is
// ours in it stays.
func FuzzApply(f *testing.F) {
	for _, seed := range []func(*api.ContainerAdjustment){
		func(a *api.ContainerAdjustment) { a.AddEnv("A", "b"); a.RemoveEnv("OLD"); a.SetArgs([]string{"x"}) },
		func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "/x"}); a.SetLinuxMemoryLimit(1) },
		func(a *api.ContainerAdjustment) {
			a.AddDevice(&api.LinuxDevice{Path: "/dev/x", Type: "c"})
			a.RemoveDevice("/dev/fuse")
		},
		func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("net.a", "1"); a.AddLinuxNetDevice("a", nil) },
	} {
		a := &api.ContainerAdjustment{}
		seed(a)
		data, err := a.MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		msg := &api.ContainerAdjustment{}
		if msg.UnmarshalVT(data) != nil {
			return
		}
		a := newAdjustment(msg)
		if a == nil {
			return
		}
		spec := aSpec()
		if a.Apply(spec) != nil {
			return
		}
		if spec.Annotations[ownAnnotations+"container-type"] != "container" {
			t.Error("an annotation of ours is changed")
		}
		if !slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.MountNamespace }) {
			t.Error("no mount namespace is left")
		}
	})
}
