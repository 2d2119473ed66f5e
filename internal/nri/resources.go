package nri

import (
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits are changes to a container's resources.
type Limits struct {
	// CRI has what CRI has words for; what is zero stays as it is.
	CRI *runtimeapi.LinuxContainerResources
	// More has the rest; what is nil stays as it is.
	More specs.LinuxResources
}

// resourcesMessage has what the request sets. What it leaves at zero is not
// there: to a plugin a zero would be a value.
func resourcesMessage(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	msg := &api.LinuxResources{
		Memory: &api.LinuxMemory{Limit: optional(r.GetMemoryLimitInBytes()), Swap: optional(r.GetMemorySwapLimitInBytes())},
		Cpu: &api.LinuxCPU{
			Shares: optionalUint(r.GetCpuShares()), Quota: optional(r.GetCpuQuota()), Period: optionalUint(r.GetCpuPeriod()),
			Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems(),
		},
		Unified: maps.Clone(r.GetUnified()),
	}
	for _, l := range r.GetHugepageLimits() {
		msg.HugepageLimits = append(msg.HugepageLimits, &api.HugepageLimit{PageSize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	return msg
}

func optional(v int64) *api.OptionalInt64 {
	if v == 0 {
		return nil
	}
	return api.Int64(v)
}

func optionalUint(v int64) *api.OptionalUInt64 {
	if v <= 0 {
		return nil
	}
	return api.UInt64(uint64(v))
}

// limits reads what a plugin wants of a container that exists.
func limits(msg *api.LinuxResources) (*Limits, error) {
	l := &Limits{CRI: &runtimeapi.LinuxContainerResources{Unified: maps.Clone(msg.GetUnified())}}
	if err := notForUs(msg); err != nil {
		return nil, err
	}
	if len(msg.GetDevices()) > 0 || msg.GetRdtClass() != nil {
		return nil, errors.New("resources.devices, resources.rdt_class: can't be changed once a container is made")
	}
	cpu, memory := msg.GetCpu(), msg.GetMemory()
	if cpu.GetShares().GetValue() > maxInt64 || cpu.GetPeriod().GetValue() > maxInt64 {
		return nil, errors.New("cpu: too large a number")
	}
	l.CRI.CpuShares, l.CRI.CpuQuota, l.CRI.CpuPeriod = int64(cpu.GetShares().GetValue()), cpu.GetQuota().GetValue(), int64(cpu.GetPeriod().GetValue())
	l.CRI.CpusetCpus, l.CRI.CpusetMems = cpu.GetCpus(), cpu.GetMems()
	l.CRI.MemoryLimitInBytes, l.CRI.MemorySwapLimitInBytes = memory.GetLimit().GetValue(), memory.GetSwap().GetValue()
	for _, h := range msg.GetHugepageLimits() {
		l.CRI.HugepageLimits = append(l.CRI.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	if memory.GetReservation() != nil || memory.GetSwappiness() != nil {
		l.More.Memory = &specs.LinuxMemory{Reservation: memory.GetReservation().Get(), Swappiness: memory.GetSwappiness().Get()}
	}
	if cpu.GetRealtimeRuntime() != nil || cpu.GetRealtimePeriod() != nil {
		l.More.CPU = &specs.LinuxCPU{RealtimeRuntime: cpu.GetRealtimeRuntime().Get(), RealtimePeriod: cpu.GetRealtimePeriod().Get()}
	}
	if pids := msg.GetPids(); pids != nil {
		l.More.Pids = pidsLimit(pids)
	}
	return l, nil
}

const maxInt64 = 1<<63 - 1

// pidsLimit: NRI's 0 and -1 are both for no limit.
func pidsLimit(p *api.LinuxPids) *specs.LinuxPids {
	limit := p.GetLimit()
	if limit <= 0 {
		limit = -1
	}
	return &specs.LinuxPids{Limit: &limit}
}

// notForUs refuses resources that would be taken and have no effect.
func notForUs(r *api.LinuxResources) error {
	memory := r.GetMemory()
	for field, set := range map[string]bool{
		"memory.kernel":             memory.GetKernel() != nil,
		"memory.kernel_tcp":         memory.GetKernelTcp() != nil,
		"memory.use_hierarchy":      memory.GetUseHierarchy() != nil,
		"memory.disable_oom_killer": memory.GetDisableOomKiller().GetValue(),
	} {
		if set {
			return fmt.Errorf("resources.%s: kernels have no such setting any more, or OCI runtimes ignore it", field)
		}
	}
	if c := r.GetBlockioClass().GetValue(); c != "" {
		return fmt.Errorf("resources.blockio_class %q: no classes of block I/O are configured here", c)
	}
	return nil
}
