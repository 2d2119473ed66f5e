package oci

import (
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdatedResources are a container's limits after an UpdateContainerResources: what
// the request leaves at zero stays as it was. The first result is for
// ContainerStatus, the second for the OCI runtime's update. Errors are as [ContainerSpec]'s.
func UpdatedResources(old, request *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, *specs.LinuxResources, error) {
	h, err := thisHost()
	if err != nil {
		return nil, nil, err
	}
	return updatedResources(old, request, h)
}

func updatedResources(old, request *runtimeapi.LinuxContainerResources, h *host) (*runtimeapi.LinuxContainerResources, *specs.LinuxResources, error) {
	merged := mergeResources(old, request)
	b := &builder{
		ContainerInput: ContainerInput{Config: &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{Resources: merged}}},
		host:           h,
		spec:           &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{}}},
	}
	for _, part := range []func() error{b.cpu, b.memory, b.hugepages, b.unified} {
		if err := part(); err != nil {
			return nil, nil, err
		}
	}
	return merged, b.spec.Linux.Resources, nil
}

// mergeResources lays a request over what a container has. The OOM score is the
// process's from its start on, and is not the cgroup's to change.
func mergeResources(old, request *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	merged := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		merged = proto.CloneOf(old)
	}
	for _, v := range []struct {
		to   *int64
		from int64
	}{
		{&merged.CpuPeriod, request.GetCpuPeriod()}, {&merged.CpuQuota, request.GetCpuQuota()}, {&merged.CpuShares, request.GetCpuShares()},
		{&merged.MemoryLimitInBytes, request.GetMemoryLimitInBytes()}, {&merged.MemorySwapLimitInBytes, request.GetMemorySwapLimitInBytes()},
	} {
		if v.from != 0 {
			*v.to = v.from
		}
	}
	// A new memory limit without one for swap: what was said of swap was said of the old limit.
	if request.GetMemoryLimitInBytes() != 0 && request.GetMemorySwapLimitInBytes() == 0 {
		merged.MemorySwapLimitInBytes = 0
	}
	if s := request.GetCpusetCpus(); s != "" {
		merged.CpusetCpus = s
	}
	if s := request.GetCpusetMems(); s != "" {
		merged.CpusetMems = s
	}
	for _, l := range request.GetHugepageLimits() {
		setHugepageLimit(merged, proto.CloneOf(l))
	}
	setUnified(merged, request.GetUnified())
	return merged
}

// setHugepageLimit puts a limit in the place of another for pages of its size.
func setHugepageLimit(r *runtimeapi.LinuxContainerResources, l *runtimeapi.HugepageLimit) {
	same := func(o *runtimeapi.HugepageLimit) bool { return o.GetPageSize() == l.GetPageSize() }
	r.HugepageLimits = append(slices.DeleteFunc(r.HugepageLimits, same), l)
}

func setUnified(r *runtimeapi.LinuxContainerResources, values map[string]string) {
	if r.Unified == nil && len(values) > 0 {
		r.Unified = map[string]string{}
	}
	maps.Copy(r.Unified, values)
}

// MoreResources lays limits that CRI has no words for over those of an update, and
// checks them as [CheckAdjusted] does.
func MoreResources(update *specs.LinuxResources, more specs.LinuxResources) error {
	h, err := thisHost()
	if err != nil {
		return err
	}
	merged, err := OverlayResources(update, &more)
	if err != nil {
		return err
	}
	*update = *merged
	return notInvalid(checkResources(update, h))
}

// UndoneResources is the update that takes old's place back after next: what
// next limits and old does not is lifted. A cpuset can't be: it stays.
func UndoneResources(old, next *specs.LinuxResources) (*specs.LinuxResources, error) {
	unlimited, shares := int64(-1), uint64(1024) // the kernel's default weight
	undo := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}}
	if c := next.CPU; c != nil {
		if c.Quota != nil {
			undo.CPU.Quota = &unlimited
		}
		if c.Shares != nil {
			undo.CPU.Shares = &shares
		}
	}
	if m := next.Memory; m != nil {
		if m.Limit != nil {
			undo.Memory.Limit = &unlimited
		}
		if m.Swap != nil {
			undo.Memory.Swap = &unlimited
		}
		if m.Reservation != nil {
			undo.Memory.Reservation = &unlimited
		}
	}
	if next.Pids != nil {
		undo.Pids = &specs.LinuxPids{Limit: &unlimited}
	}
	return OverlayResources(undo, old)
}
