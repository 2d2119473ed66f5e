//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *Container) update(t testing.TB, r *runtimeapi.LinuxContainerResources) error {
	t.Helper()
	_, err := c.p.e.rt.UpdateContainerResources(call(t), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: r})
	return err
}

func TestUpdateResources(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		limits := func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}
		}
		bigger := map[string]string{"memory/memory.limit_in_bytes": fmt.Sprint(128 << 20), "cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.shares": "1024"}
		t.Run("a running container has its new limits and the old ones not named, over a restart too", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper, limits)
			if err := c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 128 << 20}); err != nil {
				t.Fatal(err)
			}
			checkCgroup(t, c, bigger)
			e.Kill()
			e.restart(t)
			r := c.status(t).GetResources().GetLinux()
			if r.GetCpuShares() != 1024 || r.GetMemoryLimitInBytes() != 128<<20 || r.GetCpuQuota() != 50000 {
				t.Errorf("status says %v", r)
			}
			if err := c.update(t, &runtimeapi.LinuxContainerResources{CpuQuota: 25000, MemoryLimitInBytes: 32 << 20}); err != nil {
				t.Fatal(err)
			}
			checkCgroup(t, c, map[string]string{"memory/memory.limit_in_bytes": fmt.Sprint(32 << 20), "cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.shares": "1024"})
		})
		t.Run("a created container starts with them", func(t *testing.T) {
			c := p.create(t, busyboxImage, sleeper, limits)
			if err := c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 128 << 20}); err != nil {
				t.Fatal(err)
			}
			c.start(t)
			checkCgroup(t, c, bigger)
		})
		t.Run("one that has ended is refused, and so are limits that can't be", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper, limits)
			wantCode(t, c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: -1}), codes.InvalidArgument, "cpu_shares")
			wantCode(t, c.update(t, nil), codes.InvalidArgument, "linux")
			if err := c.update(t, &runtimeapi.LinuxContainerResources{CpusetCpus: "7777"}); err == nil {
				t.Error("a CPU that there is not was taken")
			}
			checkCgroup(t, c, map[string]string{"cpu/cpu.shares": "512"})
			if got := c.status(t).GetResources().GetLinux().GetCpusetCpus(); got != "" {
				t.Errorf("status says cpuset %q after an update that failed", got)
			}
			c.stop(t, 0)
			wantCode(t, c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 2}), codes.FailedPrecondition, "update")
		})
		t.Run("cpuset, swap, huge pages and unified keys are changed where the node has them, and the status says what holds", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper, func(c *runtimeapi.ContainerConfig) {
				c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20}
			})
			groups := cgroupsOf(t, c.pid(t))
			_, v1 := groups["memory"]
			has := func(controller, file string) (string, bool) {
				dir := groups[controller]
				if !v1 {
					dir = groups[""]
				}
				text, err := os.ReadFile(filepath.Join(dir, file))
				return strings.TrimSpace(string(text)), err == nil && dir != ""
			}
			status := func() *runtimeapi.LinuxContainerResources { return c.status(t).GetResources().GetLinux() }
			if err := c.update(t, &runtimeapi.LinuxContainerResources{CpusetCpus: "0", CpusetMems: "0"}); err != nil {
				t.Fatal(err)
			}
			if got, ok := has("cpuset", "cpuset.cpus"); !ok || got != "0" || status().GetCpusetCpus() != "0" || status().GetCpusetMems() != "0" {
				t.Errorf("the cpuset is %q, status says %v", got, status())
			}
			if err := c.update(t, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 80 << 20, MemorySwapLimitInBytes: 128 << 20}); err != nil {
				t.Fatal(err)
			}
			swap, want := "memory.memsw.limit_in_bytes", fmt.Sprint(128<<20)
			if !v1 {
				swap, want = "memory.swap.max", fmt.Sprint(48<<20) // without the memory
			}
			if got, ok := has("memory", swap); ok && got != want || status().GetMemorySwapLimitInBytes() != 128<<20 {
				t.Errorf("%s is %q, want %s; status says %v", swap, got, want, status())
			}
			huge := &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}}
			if file := map[bool]string{true: "hugetlb.2MB.limit_in_bytes", false: "hugetlb.2MB.max"}[v1]; v1 && groups["hugetlb"] == "" {
				wantCode(t, c.update(t, huge), codes.Unimplemented, "hugepage_limits[0]", "hugetlb")
			} else if err := c.update(t, huge); err != nil {
				t.Error(err)
			} else if got, ok := has("hugetlb", file); ok && got != fmt.Sprint(4<<20) || status().GetHugepageLimits()[0].GetLimit() != 4<<20 {
				t.Errorf("%s is %q, status says %v", file, got, status())
			}
			unified := &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": fmt.Sprint(40 << 20)}}
			if v1 {
				wantCode(t, c.update(t, unified), codes.Unimplemented, "unified", "cgroup v1")
			} else if err := c.update(t, unified); err != nil {
				t.Error(err)
			} else if got, _ := has("", "memory.high"); got != fmt.Sprint(40<<20) || status().GetUnified()["memory.high"] != got {
				t.Errorf("memory.high is %q, status says %v", got, status())
			}
			// What was refused is not in the status.
			if v1 && (len(status().GetUnified()) > 0 || groups["hugetlb"] == "" && len(status().GetHugepageLimits()) > 0) {
				t.Errorf("status says %v", status())
			}
		})
		t.Run("a pod's resize is let through", func(t *testing.T) {
			_, err := e.rt.UpdatePodSandboxResources(call(t), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: p.ID})
			if err != nil {
				t.Error(err)
			}
		})
	})
}
