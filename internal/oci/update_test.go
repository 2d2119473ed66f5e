package oci

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestUpdatedResources(t *testing.T) {
	h := &host{swap: true, hugetlb: true, cgroupV2: true}
	old := &runtimeapi.LinuxContainerResources{
		CpuShares: 100, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20, CpusetCpus: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 2}}, Unified: map[string]string{"memory.high": "1"},
	}
	before := proto.CloneOf(old)
	merged, spec, err := updatedResources(old, &runtimeapi.LinuxContainerResources{
		CpuQuota: -1, MemoryLimitInBytes: 8 << 20, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 9}},
		Unified: map[string]string{"memory.low": "2"},
	}, h)
	if err != nil {
		t.Fatal(err)
	}
	want := proto.CloneOf(before)
	want.CpuQuota, want.MemoryLimitInBytes, want.MemorySwapLimitInBytes = -1, 8<<20, 0
	want.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "1GB", Limit: 2}, {PageSize: "2MB", Limit: 9}}
	want.Unified["memory.low"] = "2"
	if !proto.Equal(merged, want) {
		t.Errorf("merged\n%v\nwant\n%v", merged, want)
	}
	if !proto.Equal(old, before) {
		t.Error("the old limits were changed")
	}
	if *spec.CPU.Quota != -1 || *spec.CPU.Shares != 100 || spec.CPU.Cpus != "0" || *spec.Memory.Limit != 8<<20 || *spec.Memory.Swap != 8<<20 || len(spec.Unified) != 2 {
		t.Errorf("spec %+v %+v", spec.CPU, spec.Memory)
	}
	for _, bad := range []*runtimeapi.LinuxContainerResources{
		{CpuShares: -1}, {CpuQuota: -2}, {MemoryLimitInBytes: -2}, {CpusetCpus: "a"}, {Unified: map[string]string{"cgroup.kill": "1"}},
		{MemoryLimitInBytes: 4096, MemorySwapLimitInBytes: 1},
	} {
		var invalid *InvalidError
		if _, _, err := updatedResources(old, bad, h); !errors.As(err, &invalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if _, _, err := updatedResources(nil, &runtimeapi.LinuxContainerResources{CpuShares: 2}, h); err != nil {
		t.Error(err)
	}
}
