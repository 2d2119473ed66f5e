package oci

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func adjustable() *specs.Spec {
	score := 100
	return &specs.Spec{
		Process: &specs.Process{OOMScoreAdj: &score},
		Mounts:  []specs.Mount{{Destination: "/gone", Type: "bind", Source: "/no/such/before", Options: []string{"bind"}}},
		Linux: &specs.Linux{
			CgroupsPath: "/pod/c", Resources: &specs.LinuxResources{},
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"}},
		},
	}
}

func ptrTo[T any](v T) *T { return &v }

func TestCheckAdjusted(t *testing.T) {
	v1 := host{seccomp: true, hardLimit: func(int) (uint64, error) { return 1000, nil }, oomScoreAdj: 50}
	v2 := v1
	v2.cgroupV2, v2.swap, v2.hugetlb, v2.resource = true, true, true, true
	runc := &Handler{Binary: "/runc", OCIVersion: "1.2.0", Features: features.Features{
		Hooks: []string{"createRuntime"}, MountOptions: []string{"bind", "rbind", "ro", "rw", "rprivate"},
		Linux: &features.Linux{Seccomp: &features.Seccomp{Enabled: ptrTo(true), Actions: []string{"SCMP_ACT_ALLOW"}}},
	}}
	memory := func(m specs.LinuxMemory) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Resources.Memory = &m }
	}
	cases := []struct {
		name   string
		host   host
		driver CgroupDriver
		change func(*specs.Spec)
		want   string // "" for none
	}{
		{"what was there before is not checked", v1, Cgroupfs, func(*specs.Spec) {}, ""},
		{"a bind mount of what is there", v1, Cgroupfs, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/proc/self/exe", Options: []string{"bind", "ro"}})
		}, ""},
		{"a bind mount of what is not there", v1, Cgroupfs, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/no/such", Options: []string{"bind"}})
		}, "/no/such"},
		{"an option that the runtime does not know", v1, Cgroupfs, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/proc", Options: []string{"bind", "rro"}})
		}, `"rro"`},
		{"a hook that is there", v1, Cgroupfs, func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/proc/self/exe"}}} }, ""},
		{"a hook that is not there", v1, Cgroupfs, func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/no/such"}}} }, "/no/such"},
		{"a hook that the runtime does not know", v1, Cgroupfs, func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/proc/self/exe"}}} }, "poststop"},
		{"a namespace that is not there", v1, Cgroupfs, func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "/no/such"})
		}, "/no/such"},
		{"a sysctl of its network", v1, Cgroupfs, func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net/ipv4/ip_forward": "1"} }, ""},
		{"a sysctl of a namespace that is the host's", v1, Cgroupfs, func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.msgmax": "1"} }, "kernel.msgmax"},
		{"a sysctl of the machine", v1, Cgroupfs, func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"vm.swappiness": "1"} }, "vm.swappiness"},
		{"a seccomp action that is known", v1, Cgroupfs, func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow} }, ""},
		{"one that is not", v1, Cgroupfs, func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActNotify} }, "SCMP_ACT_NOTIFY"},
		{"another cgroup", v1, Cgroupfs, func(s *specs.Spec) { s.Linux.CgroupsPath = "/pod/other" }, ""},
		{"a cgroup that leads elsewhere", v1, Cgroupfs, func(s *specs.Spec) { s.Linux.CgroupsPath = "/pod/../x" }, "cgroupsPath"},
		{"a cgroup of systemd", v1, Systemd, func(s *specs.Spec) { s.Linux.CgroupsPath = "a.slice:p:n" }, ""},
		{"a cgroup that systemd does not take", v1, Systemd, func(s *specs.Spec) { s.Linux.CgroupsPath = "/a/b" }, "slice:prefix:name"},
		{"a limit of the process within ours", v1, Cgroupfs, func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1000}} }, ""},
		{"one above ours", v1, Cgroupfs, func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1001}} }, "CAP_SYS_RESOURCE"},
		{"one above ours, where it may be raised", v2, Cgroupfs, func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1001}} }, ""},
		{"one that there is not", v2, Cgroupfs, func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, "RLIMIT_X"},
		{"a cpuset that is none", v1, Cgroupfs, func(s *specs.Spec) { s.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "all"} }, "all"},
		{"less than no limit", v1, Cgroupfs, memory(specs.LinuxMemory{Limit: ptrTo[int64](-2)}), "-2"},
		{"less swap than memory", v2, Cgroupfs, memory(specs.LinuxMemory{Limit: ptrTo[int64](9), Swap: ptrTo[int64](8)}), "swap 8"},
		{"swappiness on v1", v1, Cgroupfs, memory(specs.LinuxMemory{Swappiness: ptrTo[uint64](9)}), ""},
		{"swappiness on v2", v2, Cgroupfs, memory(specs.LinuxMemory{Swappiness: ptrTo[uint64](9)}), "swappiness"},
		{"huge pages where there are none", v1, Cgroupfs, func(s *specs.Spec) {
			s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}
		}, "hugetlb"},
		{"a file of v2 on v1", v1, Cgroupfs, func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"memory.high": "1"} }, "v1"},
		{"a file of v2 on v2", v2, Cgroupfs, func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"memory.high": "1"} }, ""},
		{"a file of v2 that is no limit", v2, Cgroupfs, func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"cgroup.procs": "1"} }, "cgroup.procs"},
		{"a network device, with a runtime that moves none", v2, Cgroupfs, func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"lo": {}} }, "network devices"},
		{"a memory policy that the runtime does not know", v2, Cgroupfs, func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind} }, "MPOL_BIND"},
		{"RDT where there is none", v2, Cgroupfs, func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "x"} }, "intelRdt"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			after := adjustable()
			c.change(after)
			err := checkAdjusted(adjustable(), after, runc, c.driver, &c.host)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			var invalid *InvalidError
			if errors.As(err, &invalid) {
				t.Errorf("%v is told as the request's fault", err)
			}
		})
	}
	t.Run("what means nothing on this machine is left out, and an OOM score that can't be is raised", func(t *testing.T) {
		after := adjustable()
		after.Process.OOMScoreAdj = ptrTo(-900)
		after.Linux.Resources = &specs.LinuxResources{
			Memory:         &specs.LinuxMemory{Limit: ptrTo[int64](9), Swap: ptrTo[int64](10)},
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}},
		}
		if err := checkAdjusted(adjustable(), after, runc, Cgroupfs, &v1); err != nil {
			t.Fatal(err)
		}
		if r := after.Linux.Resources; *after.Process.OOMScoreAdj != 50 || r.Memory.Swap != nil || len(r.HugepageLimits) != 0 {
			t.Errorf("left: %d, %v", *after.Process.OOMScoreAdj, r)
		}
	})
}

func TestResourcesOf(t *testing.T) {
	spec := adjustable()
	spec.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptrTo[uint64](7), Cpus: "1"}, Memory: &specs.LinuxMemory{Limit: ptrTo[int64](9)}}
	r := ResourcesOf(&runtimeapi.LinuxContainerResources{CpuQuota: 5, CpuShares: 6}, spec)
	if r.CpuQuota != 5 || r.CpuShares != 7 || r.CpusetCpus != "1" || r.MemoryLimitInBytes != 9 || r.OomScoreAdj != 100 {
		t.Errorf("got %v", r)
	}
}

func TestUndoneResources(t *testing.T) {
	old := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptrTo[uint64](7)}}
	next := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptrTo[uint64](8), Quota: ptrTo[int64](9)}, Memory: &specs.LinuxMemory{Limit: ptrTo[int64](1)}, Pids: &specs.LinuxPids{Limit: ptrTo[int64](3)}}
	undo, err := UndoneResources(old, next)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(undo)
	if want := `{"memory":{"limit":-1},"cpu":{"shares":7,"quota":-1},"pids":{"limit":-1}}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
