package oci

import (
	"errors"
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func contains(list []string, s string) bool { return slices.Contains(list, s) }

// sorted brings capabilities to the kernel's order.
func sorted(caps []string) []string {
	return slices.DeleteFunc(slices.Clone(knownCaps), func(c string) bool { return !contains(caps, c) })
}

func TestCapabilities(t *testing.T) {
	without := func(drop ...string) []string {
		return slices.DeleteFunc(sorted(testCaps), func(c string) bool { return contains(drop, c) })
	}
	cases := []struct {
		name               string
		add, drop, ambient []string
		bounding           []string // of the host, nil for all
		want, wantAmbient  []string
	}{
		{name: "the defaults", want: without()},
		{name: "names with and without prefix, in any case", add: []string{"net_admin", "CAP_SYS_TIME"}, drop: []string{"cap_chown", "KILL"},
			want: sorted(append(without("CAP_CHOWN", "CAP_KILL"), "CAP_NET_ADMIN", "CAP_SYS_TIME"))},
		{name: "drop ALL leaves what is added", drop: []string{"ALL"}, add: []string{"NET_BIND_SERVICE"}, want: []string{"CAP_NET_BIND_SERVICE"}},
		{name: "drop ALL alone leaves none", drop: []string{"all"}},
		{name: "add ALL, less what is dropped", add: []string{"ALL"}, drop: []string{"SYS_ADMIN"},
			want: slices.DeleteFunc(slices.Clone(knownCaps), func(c string) bool { return c == "CAP_SYS_ADMIN" })},
		{name: "all means those of our own bounding set", add: []string{"ALL"}, bounding: []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}, want: []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}},
		{name: "what we cannot give is left out", add: []string{"SYS_RESOURCE"}, bounding: without("CAP_KILL"), want: without("CAP_KILL")},
		{name: "ambient ones are in every set", ambient: []string{"NET_ADMIN"}, want: sorted(append(without(), "CAP_NET_ADMIN")), wantAmbient: []string{"CAP_NET_ADMIN"}},
		{name: "ambient ones that are dropped are not", ambient: []string{"CHOWN"}, drop: []string{"CHOWN"}, want: without("CAP_CHOWN")},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in, h := testInput(t), ableHost()
			if c.bounding != nil {
				h.bounding = c.bounding
			}
			in.Config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{
				AddCapabilities: c.add, DropCapabilities: c.drop, AddAmbientCapabilities: c.ambient,
			}
			spec, _ := build(t, in, h)
			caps := spec.Process.Capabilities
			equal(t, "bounding", caps.Bounding, c.want)
			equal(t, "permitted", caps.Permitted, c.want)
			equal(t, "effective", caps.Effective, c.want)
			equal(t, "inheritable", caps.Inheritable, c.wantAmbient)
			equal(t, "ambient", caps.Ambient, c.wantAmbient)
		})
	}
	t.Run("an unknown name is refused", func(t *testing.T) {
		in := testInput(t)
		in.Config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"CHOWN", "FLY"}}
		refuses(t, in, ableHost(), securityContext+"capabilities.drop_capabilities[1]")
	})
}

func TestResources(t *testing.T) {
	with := func(change func(*runtimeapi.LinuxContainerResources)) ContainerInput {
		in := testInput(t)
		change(in.Config.Linux.Resources)
		return in
	}
	t.Run("limits are in the spec", func(t *testing.T) {
		in := with(func(r *runtimeapi.LinuxContainerResources) {
			r.CpuPeriod, r.CpuQuota, r.CpuShares, r.CpusetCpus, r.CpusetMems = 100000, 50000, 512, "0-1,3", "0"
			r.MemoryLimitInBytes = 64 << 20
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}
			r.Unified = map[string]string{"memory.high": "50000000"}
		})
		in.PidsLimit = 100
		spec, _ := build(t, in, ableHost())
		r := spec.Linux.Resources
		if *r.CPU.Period != 100000 || *r.CPU.Quota != 50000 || *r.CPU.Shares != 512 || r.CPU.Cpus != "0-1,3" || r.CPU.Mems != "0" {
			t.Errorf("cpu %+v", r.CPU)
		}
		if *r.Memory.Limit != 64<<20 || *r.Memory.Swap != 64<<20 {
			t.Errorf("memory %+v", r.Memory)
		}
		if len(r.HugepageLimits) != 1 || r.HugepageLimits[0].Limit != 4<<20 || r.Unified["memory.high"] != "50000000" || *r.Pids.Limit != 100 {
			t.Errorf("resources %+v", r)
		}
	})
	t.Run("nothing asked for is nothing set", func(t *testing.T) {
		spec, _ := build(t, testInput(t), ableHost())
		if r := spec.Linux.Resources; r.CPU != nil || r.Memory != nil || r.Pids != nil || r.HugepageLimits != nil || r.Unified != nil {
			t.Errorf("resources %+v", r)
		}
	})
	t.Run("swap has its own limit where asked, and none is set where the kernel has no such limit", func(t *testing.T) {
		in := with(func(r *runtimeapi.LinuxContainerResources) {
			r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 64<<20, 96<<20
		})
		if spec, _ := build(t, in, ableHost()); *spec.Linux.Resources.Memory.Swap != 96<<20 {
			t.Errorf("swap %d", *spec.Linux.Resources.Memory.Swap)
		}
		h := ableHost()
		h.swap = false
		if spec, _ := build(t, in, h); spec.Linux.Resources.Memory.Swap != nil {
			t.Error("a limit is set")
		}
	})
	t.Run("without the hugetlb controller a limit of nothing is left out and another refused", func(t *testing.T) {
		h := ableHost()
		h.hugetlb = false
		in := with(func(r *runtimeapi.LinuxContainerResources) {
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}
		})
		if spec, _ := build(t, in, h); spec.Linux.Resources.HugepageLimits != nil {
			t.Error("it is in the spec")
		}
		in.Config.Linux.Resources.HugepageLimits[0].Limit = 2 << 20
		unsupports(t, in, h, "hugetlb")
	})
	t.Run("unified limits are refused on cgroup v1", func(t *testing.T) {
		h := ableHost()
		h.cgroupV2 = false
		unsupports(t, with(func(r *runtimeapi.LinuxContainerResources) { r.Unified = map[string]string{"memory.high": "1"} }), h, "cgroup v1")
	})
	for _, c := range []struct {
		name, field string
		change      func(*runtimeapi.LinuxContainerResources)
	}{
		{"negative shares", "cpu_shares", func(r *runtimeapi.LinuxContainerResources) { r.CpuShares = -1 }},
		{"a negative period", "cpu_period", func(r *runtimeapi.LinuxContainerResources) { r.CpuPeriod = -1 }},
		{"a quota below -1", "cpu_quota", func(r *runtimeapi.LinuxContainerResources) { r.CpuQuota = -2 }},
		{"a cpuset that is no list", "cpuset_cpus", func(r *runtimeapi.LinuxContainerResources) { r.CpusetCpus = "0-1;rm" }},
		{"a node set that is no list", "cpuset_mems", func(r *runtimeapi.LinuxContainerResources) { r.CpusetMems = "a" }},
		{"negative memory", "memory_limit_in_bytes", func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = -5 }},
		{"less swap than memory", "memory_swap_limit_in_bytes", func(r *runtimeapi.LinuxContainerResources) {
			r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 2, 1
		}},
		{"an odd page size", "hugepage_limits[0].page_size", func(r *runtimeapi.LinuxContainerResources) {
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "../2MB"}}
		}},
		{"a path for a unified key", "unified", func(r *runtimeapi.LinuxContainerResources) {
			r.Unified = map[string]string{"../memory.max": "1"}
		}},
		{"a file of the cgroup core", "unified", func(r *runtimeapi.LinuxContainerResources) {
			r.Unified = map[string]string{"cgroup.procs": "1"}
		}},
		{"an oom_score_adj out of range", "oom_score_adj", func(r *runtimeapi.LinuxContainerResources) { r.OomScoreAdj = 1001 }},
	} {
		t.Run(c.name+" is refused", func(t *testing.T) {
			refuses(t, with(c.change), ableHost(), resourcesField+c.field)
		})
	}
}

func TestClamps(t *testing.T) {
	h := ableHost()
	h.resource, h.oomScoreAdj = false, 200
	h.hardLimit = func(int) (uint64, error) { return 4096, nil }
	in := testInput(t)
	in.DefaultUlimits = map[string][2]uint64{"RLIMIT_NOFILE": {1024, 524288}, "RLIMIT_CORE": {8192, 8192}}
	for _, c := range []struct{ want, able, unable int64 }{{-997, -997, 200}, {0, 0, 200}, {1000, 1000, 1000}} {
		in.Config.Linux.Resources.OomScoreAdj = c.want
		if spec, _ := build(t, in, ableHost()); int64(*spec.Process.OOMScoreAdj) != c.able {
			t.Errorf("oom_score_adj %d becomes %d for who may lower it", c.want, *spec.Process.OOMScoreAdj)
		}
		if spec, _ := build(t, in, h); int64(*spec.Process.OOMScoreAdj) != c.unable {
			t.Errorf("oom_score_adj %d becomes %d for who may not lower it", c.want, *spec.Process.OOMScoreAdj)
		}
	}
	spec, _ := build(t, in, h)
	core, nofile := spec.Process.Rlimits[0], spec.Process.Rlimits[1]
	if core.Soft != 4096 || core.Hard != 4096 || nofile.Soft != 1024 || nofile.Hard != 4096 {
		t.Errorf("limits of who may not raise them: %+v", spec.Process.Rlimits)
	}
	spec, _ = build(t, in, ableHost())
	if nofile := spec.Process.Rlimits[1]; nofile.Type != "RLIMIT_NOFILE" || nofile.Hard != 524288 {
		t.Errorf("limits of who may raise them: %+v", spec.Process.Rlimits)
	}
	t.Run("an unknown limit in the configuration is an error, but not the request's", func(t *testing.T) {
		in.DefaultUlimits = map[string][2]uint64{"RLIMIT_LIES": {}}
		_, _, err := containerSpec(in, h)
		var inv *InvalidError
		if err == nil || errors.As(err, &inv) {
			t.Errorf("error %v", err)
		}
	})
}

func TestCgroups(t *testing.T) {
	for _, c := range []struct {
		driver             CgroupDriver
		parent, want, name string
	}{
		{Cgroupfs, "", "/cri-engine/id", "the default"},
		{Cgroupfs, "/kubepods/burstable/pod1", "/kubepods/burstable/pod1/id", "a path"},
		{Cgroupfs, "/kubepods/../../x", "", "a path that leads out"},
		{Cgroupfs, "kubepods", "", "a relative path"},
		{Cgroupfs, "/a//b", "", "a path that is not clean"},
		{Systemd, "", "system.slice:cri-engine:id", "the default"},
		{Systemd, "/kubepods.slice/kubepods-burstable.slice", "kubepods-burstable.slice:cri-engine:id", "the kubelet's form"},
		{Systemd, "kubepods-burstable.slice", "kubepods-burstable.slice:cri-engine:id", "a name alone"},
		{Systemd, "/-.slice", "-.slice:cri-engine:id", "the root slice"},
		{Systemd, "/kubepods/pod1", "", "a path that is no slice"},
		{Systemd, "/other.slice/kubepods-burstable.slice", "", "a slice in the wrong place"},
		{Systemd, "a--b.slice", "", "an empty part"},
		{Systemd, ".slice", "", "no name"},
		{Systemd, "a:b.slice", "", "a name that would be read as two"},
	} {
		t.Run(string(c.driver)+": "+c.name, func(t *testing.T) {
			err := CheckCgroupParent(c.driver, c.parent)
			if (err == nil) != (c.want != "") {
				t.Fatalf("error %v", err)
			}
			if err == nil && CgroupsPath(c.driver, c.parent, "id") != c.want {
				t.Errorf("got %q, want %q", CgroupsPath(c.driver, c.parent, "id"), c.want)
			}
		})
	}
	t.Run("a driver that does not exist is an error", func(t *testing.T) {
		if _, err := DetectCgroupDriver("both"); err == nil {
			t.Error("no error")
		}
		if d, err := DetectCgroupDriver("cgroupfs"); err != nil || d != Cgroupfs {
			t.Errorf("%s, error %v", d, err)
		}
	})
}
