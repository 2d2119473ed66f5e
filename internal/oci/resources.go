package oci

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// resources are the container's cgroup and its limits. The OCI runtime turns
// them into files of cgroup v1 or v2.
func (b *builder) resources() error {
	if err := CheckCgroupParent(b.CgroupDriver, b.CgroupParent); err != nil {
		return err
	}
	b.spec.Linux.CgroupsPath = CgroupsPath(b.CgroupDriver, b.CgroupParent, b.ID)
	if b.PidsLimit > 0 && b.base.Linux.Resources.Pids == nil {
		b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &b.PidsLimit}
	}
	for _, part := range []func() error{b.cpu, b.memory, b.hugepages, b.unified} {
		if err := part(); err != nil {
			return err
		}
	}
	lower := *b.base.Linux.Resources
	lower.Devices = b.spec.Linux.Resources.Devices
	var err error
	b.spec.Linux.Resources, err = OverlayResources(&lower, b.spec.Linux.Resources)
	return err
}

const resourcesField = "config.linux.resources."

func (b *builder) cpu() error {
	r := b.Config.GetLinux().GetResources()
	cpu := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	for field, set := range map[string]string{"cpuset_cpus": cpu.Cpus, "cpuset_mems": cpu.Mems} {
		if !cpuList.MatchString(set) {
			return invalid(resourcesField+field, set, `not a list such as "0-3,7"`)
		}
	}
	if v := r.GetCpuShares(); v < 0 {
		return invalid(resourcesField+"cpu_shares", strconv.FormatInt(v, 10), "negative")
	} else if v > 0 {
		shares := uint64(v)
		cpu.Shares = &shares
	}
	if v := r.GetCpuPeriod(); v < 0 {
		return invalid(resourcesField+"cpu_period", strconv.FormatInt(v, 10), "negative")
	} else if v > 0 {
		period := uint64(v)
		cpu.Period = &period
	}
	// -1 is no limit, as in the cgroup's own file.
	if v := r.GetCpuQuota(); v < -1 {
		return invalid(resourcesField+"cpu_quota", strconv.FormatInt(v, 10), "less than -1")
	} else if v != 0 {
		cpu.Quota = &v
	}
	if *cpu != (specs.LinuxCPU{}) {
		b.spec.Linux.Resources.CPU = cpu
	}
	return nil
}

// cpuList is the kernel's list format, or nothing.
var cpuList = regexp.MustCompile(`^([0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)?$`)

// memory: without a limit of its own for swap, a container with a memory limit
// gets none, where the kernel can say so.
func (b *builder) memory() error {
	r := b.Config.GetLinux().GetResources()
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case limit < -1:
		return invalid(resourcesField+"memory_limit_in_bytes", strconv.FormatInt(limit, 10), "less than -1")
	case swap < -1:
		return invalid(resourcesField+"memory_swap_limit_in_bytes", strconv.FormatInt(swap, 10), "less than -1")
	case swap > 0 && limit > 0 && swap < limit:
		// It is the sum of memory and swap.
		return invalid(resourcesField+"memory_swap_limit_in_bytes", strconv.FormatInt(swap, 10), "less than memory_limit_in_bytes, which it includes")
	}
	if limit == 0 && swap == 0 {
		return nil
	}
	memory := &specs.LinuxMemory{}
	if limit != 0 {
		memory.Limit = &limit
	}
	if swap == 0 {
		swap = limit
	}
	if b.host.swap {
		memory.Swap = &swap
	}
	b.spec.Linux.Resources.Memory = memory
	return nil
}

// hugepages: the kubelet names every page size with a limit, most with 0. That
// is what a kernel without the controller gives anyway.
func (b *builder) hugepages() error {
	for i, l := range b.Config.GetLinux().GetResources().GetHugepageLimits() {
		field := fmt.Sprintf("%shugepage_limits[%d]", resourcesField, i)
		if !pageSize.MatchString(l.GetPageSize()) {
			return invalid(field+".page_size", l.GetPageSize(), `not a size such as "2MB"`)
		}
		if b.host.hugetlb {
			b.spec.Linux.Resources.HugepageLimits = append(b.spec.Linux.Resources.HugepageLimits,
				specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
		} else if l.GetLimit() > 0 {
			return unsupported(field, "the hugetlb cgroup controller is not available")
		}
	}
	return nil
}

var pageSize = regexp.MustCompile(`^[1-9][0-9]*[KMG]B$`)

// unified are files of cgroup v2. Those of the core (cgroup.procs,
// cgroup.kill …) are no limits, and not the request's to write.
func (b *builder) unified() error {
	unified := b.Config.GetLinux().GetResources().GetUnified()
	if len(unified) == 0 {
		return nil
	}
	if !b.host.cgroupV2 {
		return unsupported(resourcesField+"unified", "this machine has cgroup v1")
	}
	for _, key := range slices.Sorted(maps.Keys(unified)) {
		field := resourcesField + "unified"
		if !unifiedKey.MatchString(key) || strings.HasPrefix(key, "cgroup.") {
			return invalid(field, key, "not a controller's file")
		}
		if err := checkText(field, unified[key]); err != nil {
			return err
		}
	}
	b.spec.Linux.Resources.Unified = maps.Clone(unified)
	return nil
}

var unifiedKey = regexp.MustCompile(`^[a-z0-9_]+(\.[A-Za-z0-9_]+)+$`)

// oomScore is always written, 0 too: the process is a child of the monitor,
// whose own is very low.
func (b *builder) oomScore() error {
	v := b.Config.GetLinux().GetResources().GetOomScoreAdj()
	if v < -1000 || v > 1000 {
		return invalid(resourcesField+"oom_score_adj", strconv.FormatInt(v, 10), "not between -1000 and 1000")
	}
	b.spec.Process.OOMScoreAdj = b.host.clampOOMScore(int(v))
	return nil
}

// clampOOMScore: only CAP_SYS_RESOURCE may go below what it was started with.
func (h *host) clampOOMScore(v int) *int {
	if !h.resource {
		v = max(v, h.oomScoreAdj)
	}
	return &v
}

// rlimits by the names of the OCI runtime spec.
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// ulimits are the configured ones, those of the handler before those of all,
// lowered to our own hard limits where we may not raise those.
func (b *builder) ulimits() error {
	limits := map[string][2]uint64{}
	maps.Copy(limits, b.DefaultUlimits)
	for _, l := range b.base.Process.Rlimits {
		limits[l.Type] = [2]uint64{l.Soft, l.Hard}
	}
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		limit := limits[name]
		resource, ok := rlimits[name]
		if !ok {
			return fmt.Errorf("default ulimit %s: no such limit", name)
		}
		if !b.host.resource {
			most, err := b.host.hardLimit(resource)
			if err != nil {
				return fmt.Errorf("default ulimit %s: read own: %w", name, err)
			}
			limit[1] = min(limit[1], most)
		}
		limit[0] = min(limit[0], limit[1])
		b.spec.Process.Rlimits = append(b.spec.Process.Rlimits, specs.POSIXRlimit{Type: name, Soft: limit[0], Hard: limit[1]})
	}
	return nil
}
