package stats

import "time"

// CPU of a cgroup.
type CPU struct {
	UsageNanos          uint64 // since the cgroup was made
	NanoCores           uint64 // over the last sampling period, 0 while unknown
	ThrottledPeriods    uint64
	ThrottledNanos      uint64
	UserNanos, SysNanos uint64
}

// Memory of a cgroup, bytes.
type Memory struct {
	Usage, WorkingSet, RSS, Available uint64 // Available is 0 without a limit
	PageFaults, MajorPageFaults       uint64
	Limit                             uint64 // 0 for none
	SwapUsage, SwapAvailable          uint64
}

// Cgroup is one reading.
type Cgroup struct {
	At        time.Time
	CPU       CPU
	Memory    Memory
	Processes uint64
	OOMKills  uint64
}

// What stats offers.
//
//	ReadCgroup(pid int) (Cgroup, error)        of the cgroup(s) a live process is in, v1, v2 or a mix
//	PathsOf(pid int) (Paths, error)            the cgroup directories by controller, to read without a process
//	(Paths) Read() (Cgroup, error)
//	NewSampler(period time.Duration) *Sampler  keeps NanoCores per key from consecutive readings
//	Interfaces(netns path) ([]Interface, error)
