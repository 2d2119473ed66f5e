package stats

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/internal/cgroup"
)

// Details are a reading with what only metrics ask for. Figures that the
// kernel does not have here are 0.
type Details struct {
	Cgroup

	Periods uint64 // of the CPU quota, in which something ran

	Cache, MappedFile, Kernel uint64 // bytes
	MaxUsage                  uint64 // bytes, the most that Usage ever was
	LimitHits                 uint64 // how often Usage met its limit
	OwnFaults, OwnMajorFaults uint64 // without the cgroups below; v2 has the sum only
	SoftLimit, SwapLimit      uint64 // bytes, 0 for none; the swap limit of v1 is of memory and swap
	QuotaMicros, PeriodMicros uint64 // QuotaMicros is 0 for none
	Shares                    uint64 // as v1 counts, also on v2
	HugePages                 []HugePages
	Devices                   []Device
	Procs                     uint64
	FileDescriptors, Sockets  uint64
	SoftOpenFiles             uint64 // limit of the first process, 0 for none
}

// HugePages of one size, such as "2MB". Max is the most there ever was; v2
// does not keep it, and it is what there is now.
type HugePages struct {
	Size       string
	Usage, Max uint64 // bytes
}

// Device is what was done to one block device.
type Device struct {
	Name               string // "/dev/sda", "" where the kernel does not tell
	Major, Minor       uint64
	ReadBytes, Reads   uint64
	WriteBytes, Writes uint64
}

// Details reads all there is about the cgroup of a live process; see [Sampler.Read].
func (s *Sampler) Details(key string, pid int) (Details, error) {
	c, err := s.Read(key, pid)
	if err != nil {
		return Details{}, err
	}
	paths := s.paths(key, pid)
	if paths == nil {
		return Details{}, fmt.Errorf("cgroup of process %d: %w", pid, ErrGone)
	}
	d := Details{Cgroup: c}
	var r reader
	paths.detailCPU(&r, &d)
	paths.detailMemory(&r, &d)
	paths.detailHugePages(&r, &d)
	paths.detailDevices(&r, &d)
	if err := r.outcome(paths); err != nil {
		return Details{}, err
	}
	pids, err := cgroup.Dirs(paths).Procs()
	if err != nil {
		return Details{}, fmt.Errorf("processes of cgroup: %w", err)
	}
	d.Procs = uint64(len(pids))
	d.FileDescriptors, d.Sockets = descriptors(pids)
	d.SoftOpenFiles = softOpenFiles(pid)
	return d, nil
}

func (p Paths) detailCPU(r *reader, d *Details) {
	if dir := p["cpu"]; dir != "" {
		d.Periods = r.table(dir, "cpu.stat")["nr_periods"]
		d.QuotaMicros, d.PeriodMicros = r.number(dir, "cpu.cfs_quota_us"), r.number(dir, "cpu.cfs_period_us")
		d.Shares = r.number(dir, "cpu.shares")
		return
	}
	dir := p[""]
	d.Periods = r.table(dir, "cpu.stat")["nr_periods"]
	quota, period, _ := strings.Cut(strings.TrimSpace(r.file(dir, "cpu.max")), " ")
	d.QuotaMicros, _ = strconv.ParseUint(quota, 10, 64) // "max" is none
	d.PeriodMicros, _ = strconv.ParseUint(period, 10, 64)
	// Weights 1 to 10000 stand for shares 2 to 262144 (kubernetes KEP 2254).
	if weight := r.number(dir, "cpu.weight"); weight > 0 {
		d.Shares = 2 + (weight-1)*262142/9999
	}
}

func (p Paths) detailMemory(r *reader, d *Details) {
	if dir := p["memory"]; dir != "" {
		stat := r.table(dir, "memory.stat")
		d.Cache, d.MappedFile = stat["total_cache"], stat["total_mapped_file"]
		d.OwnFaults, d.OwnMajorFaults = stat["pgfault"], stat["pgmajfault"]
		d.Kernel = r.number(dir, "memory.kmem.usage_in_bytes")
		d.MaxUsage = r.number(dir, "memory.max_usage_in_bytes")
		d.LimitHits = r.number(dir, "memory.failcnt")
		d.SoftLimit = r.number(dir, "memory.soft_limit_in_bytes")
		d.SwapLimit = r.number(dir, "memory.memsw.limit_in_bytes")
		return
	}
	dir := p[""]
	stat := r.table(dir, "memory.stat")
	d.Cache, d.MappedFile = stat["file"], stat["file_mapped"]
	d.OwnFaults, d.OwnMajorFaults = stat["pgfault"], stat["pgmajfault"]
	d.Kernel = stat["kernel"]                                      // since Linux 5.18
	d.MaxUsage = max(r.number(dir, "memory.peak"), d.Memory.Usage) // memory.peak: since Linux 5.19
	d.LimitHits = r.table(dir, "memory.events")["max"]
	d.SoftLimit = r.number(dir, "memory.low")
	d.SwapLimit = r.number(dir, "memory.swap.max")
}

func (p Paths) detailHugePages(r *reader, d *Details) {
	for _, size := range hugePageSizes() {
		h := HugePages{Size: size}
		if dir := p["hugetlb"]; dir != "" {
			h.Usage, h.Max = r.number(dir, "hugetlb."+size+".usage_in_bytes"), r.number(dir, "hugetlb."+size+".max_usage_in_bytes")
		} else if dir := p[""]; dir != "" {
			h.Usage = r.number(dir, "hugetlb."+size+".current")
			h.Max = h.Usage
		}
		d.HugePages = append(d.HugePages, h)
	}
}

// hugePageSizes are the machine's, as the hugetlb controller names them
// (Documentation/admin-guide/cgroup-v1/hugetlb.rst).
var hugePageSizes = sync.OnceValue(func() []string {
	entries, _ := os.ReadDir("/sys/kernel/mm/hugepages")
	var sizes []string
	for _, e := range entries {
		if size, ok := hugePageSize(e.Name()); ok {
			sizes = append(sizes, size)
		}
	}
	return sizes
})

// hugePageSize makes "2MB" of "hugepages-2048kB".
func hugePageSize(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, "hugepages-")
	rest, ok2 := strings.CutSuffix(rest, "kB")
	kb, err := strconv.ParseUint(rest, 10, 64)
	switch {
	case !ok || !ok2 || err != nil || kb == 0:
		return "", false
	case kb >= 1<<20:
		return fmt.Sprintf("%dGB", kb>>20), true
	case kb >= 1<<10:
		return fmt.Sprintf("%dMB", kb>>10), true
	}
	return fmt.Sprintf("%dKB", kb), true
}

// maxDevices bounds what is kept of io files.
const maxDevices = 256

func (p Paths) detailDevices(r *reader, d *Details) {
	found := map[string]*Device{}
	device := func(number string) *Device {
		if found[number] == nil && len(found) < maxDevices {
			major, minor, ok := strings.Cut(number, ":")
			dev := &Device{}
			var errs [2]error
			dev.Major, errs[0] = strconv.ParseUint(major, 10, 32)
			dev.Minor, errs[1] = strconv.ParseUint(minor, 10, 32)
			if !ok || errors.Join(errs[:]...) != nil {
				return nil
			}
			found[number] = dev
		}
		return found[number]
	}
	if dir := p["blkio"]; dir != "" {
		legacyDevices(r.file(dir, "blkio.throttle.io_service_bytes_recursive"), device, false)
		legacyDevices(r.file(dir, "blkio.throttle.io_serviced_recursive"), device, true)
	} else {
		unifiedDevices(r.file(p[""], "io.stat"), device)
	}
	for number, dev := range found {
		dev.Name = deviceName(number)
		d.Devices = append(d.Devices, *dev)
	}
	slices.SortFunc(d.Devices, func(a, b Device) int {
		return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor))
	})
}

// legacyDevices reads lines "8:0 Read 4096".
func legacyDevices(text string, device func(string) *Device, operations bool) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue // "Total 4096"
		}
		dev := device(fields[0])
		v, err := strconv.ParseUint(fields[2], 10, 64)
		if dev == nil || err != nil {
			continue
		}
		switch {
		case fields[1] == "Read" && operations:
			dev.Reads = v
		case fields[1] == "Write" && operations:
			dev.Writes = v
		case fields[1] == "Read":
			dev.ReadBytes = v
		case fields[1] == "Write":
			dev.WriteBytes = v
		}
	}
}

// unifiedDevices reads lines "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func unifiedDevices(text string, device func(string) *Device) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		dev := device(fields[0])
		if dev == nil {
			continue
		}
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, "=")
			v, _ := strconv.ParseUint(value, 10, 64)
			switch key {
			case "rbytes":
				dev.ReadBytes = v
			case "wbytes":
				dev.WriteBytes = v
			case "rios":
				dev.Reads = v
			case "wios":
				dev.Writes = v
			}
		}
	}
}

// DeviceOf names the block device of a path's filesystem, "/dev/sda1"; for one that is
// on no device of the kernel's (tmpfs, overlay, btrfs) it is the number, "0:42".
func DeviceOf(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("device of %s: %w", path, err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	return cmp.Or(deviceName(number), number), nil
}

// deviceName finds the device's file; its number has been parsed, so the path is safe.
func deviceName(number string) string {
	target, err := os.Readlink(filepath.Join("/sys/dev/block", number))
	if err != nil {
		return ""
	}
	return "/dev/" + filepath.Base(target)
}

// What is looked at of /proc for one container: it may have as many processes
// and descriptors as its limits allow, and each is a call.
const (
	maxProcs = 1024
	maxLinks = 16 << 10
)

// descriptors counts open files and the sockets among them. Processes that end
// meanwhile have none.
func descriptors(pids []int) (files, sockets uint64) {
	for _, pid := range pids[:min(len(pids), maxProcs)] {
		dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			continue
		}
		for files < maxLinks {
			names, err := dir.Readdirnames(256)
			for _, name := range names {
				files++
				if target, err := os.Readlink(filepath.Join(dir.Name(), name)); err == nil && strings.HasPrefix(target, "socket:") {
					sockets++
				}
			}
			if err != nil {
				break
			}
		}
		_ = dir.Close()
	}
	return files, sockets
}

// softOpenFiles reads proc_pid_limits(5).
func softOpenFiles(pid int) uint64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, 16<<10))
	return softLimit(string(data), "Max open files")
}

// softLimit finds the line of a limit: its name, soft, hard and unit in columns.
func softLimit(text, name string) uint64 {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if fields := strings.Fields(rest); ok && len(fields) > 0 {
			v, _ := strconv.ParseUint(fields[0], 10, 64) // "unlimited" is none
			return v
		}
	}
	return 0
}
