// Package stats reads what pods and containers use: cgroup v1, v2 or the mix of
// both, and the interfaces of a network namespace. It keeps no file open and
// runs no goroutine; a rate comes out of two readings (see [Sampler]).
package stats

import (
	"errors"
	"time"
)

// ErrGone says that the process, cgroup or namespace is not there any more. It
// may end at any moment of a reading.
var ErrGone = errors.New("gone")

// Cgroup is one reading.
type Cgroup struct {
	At     time.Time
	CPU    CPU
	Memory Memory
	// IO has pressure only; cgroup v2.
	IO        IO
	Processes uint64
	// ProcessLimit is 0 for none.
	ProcessLimit uint64
	// OOMKills counts the processes that the OOM killer ended in the cgroup and below it.
	OOMKills uint64
}

// CPU of a cgroup.
type CPU struct {
	UsageNanos          uint64 // since the cgroup was made
	NanoCores           uint64 // over the last sampling period, 0 while unknown
	ThrottledPeriods    uint64
	ThrottledNanos      uint64
	UserNanos, SysNanos uint64
	Pressure            *Pressure
}

// Memory of a cgroup, bytes.
type Memory struct {
	// WorkingSet is Usage less the file pages that the kernel would take back first.
	// Available is Limit less WorkingSet, 0 without a limit. RSS is anonymous memory.
	Usage, WorkingSet, RSS, Available uint64
	PageFaults, MajorPageFaults       uint64
	Limit                             uint64 // 0 for none
	SwapUsage                         uint64
	SwapAvailable                     uint64 // 0 without a limit
	Pressure                          *Pressure
}

// IO of a cgroup.
type IO struct {
	Pressure *Pressure
}

// Pressure is the time that tasks of a cgroup waited for a resource (PSI,
// Documentation/accounting/psi.rst). A nil *Pressure means that the kernel
// does not tell: cgroup v1, or psi=0.
type Pressure struct {
	Some, Full PressureLine
}

// PressureLine is one line of a pressure file.
type PressureLine struct {
	TotalNanos           uint64
	Avg10, Avg60, Avg300 float64 // per cent
}

// Interface is one network interface of a pod.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}
