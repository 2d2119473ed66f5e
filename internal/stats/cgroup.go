package stats

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cri-engine/cri-engine/internal/cgroup"
)

// Paths are the directories of one cgroup by controller, "" for the v2
// hierarchy, to read without a process.
type Paths cgroup.Dirs

// PathsOf returns the cgroup that a live process is in. A container's init may
// move itself once it runs; systemd, when it is one, goes to init.scope below.
func PathsOf(pid int) (Paths, error) {
	dirs, err := cgroup.Of(pid)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil, fmt.Errorf("cgroup of process %d: %w", pid, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	for controller, dir := range dirs {
		if base, ok := strings.CutSuffix(dir, " (deleted)"); ok { // cgroup v2 says so
			if _, err := os.Stat(dir); err != nil {
				return nil, fmt.Errorf("cgroup %s: %w", base, ErrGone)
			}
		}
		dirs[controller] = strings.TrimSuffix(dir, "/init.scope")
	}
	return Paths(dirs), nil
}

// ReadCgroup reads the cgroup of a live process.
func ReadCgroup(pid int) (Cgroup, error) {
	paths, err := PathsOf(pid)
	if err != nil {
		return Cgroup{}, err
	}
	return paths.Read()
}

// Read reads all figures. Files of controllers that are not enabled leave
// theirs 0. NanoCores is for a [Sampler] to know.
func (p Paths) Read() (Cgroup, error) {
	c := Cgroup{At: time.Now()}
	var r reader
	p.readCPU(&r, &c.CPU)
	p.readMemory(&r, &c)
	p.readProcesses(&r, &c)
	if unified := p[""]; unified != "" {
		c.CPU.Pressure = r.pressure(unified, "cpu.pressure")
		c.Memory.Pressure = r.pressure(unified, "memory.pressure")
		c.IO.Pressure = r.pressure(unified, "io.pressure")
	}
	return c, r.outcome(p)
}

func (p Paths) readCPU(r *reader, cpu *CPU) {
	if acct := p["cpuacct"]; acct != "" {
		cpu.UsageNanos = r.number(acct, "cpuacct.usage")
		cpu.UserNanos = r.number(acct, "cpuacct.usage_user")
		cpu.SysNanos = r.number(acct, "cpuacct.usage_sys")
		stat := r.table(p["cpu"], "cpu.stat")
		cpu.ThrottledPeriods, cpu.ThrottledNanos = stat["nr_throttled"], stat["throttled_time"]
		return
	}
	stat := r.table(p[""], "cpu.stat")
	cpu.UsageNanos, cpu.UserNanos, cpu.SysNanos = micros(stat["usage_usec"]), micros(stat["user_usec"]), micros(stat["system_usec"])
	cpu.ThrottledPeriods, cpu.ThrottledNanos = stat["nr_throttled"], micros(stat["throttled_usec"])
}

func micros(v uint64) uint64 { return v * uint64(time.Microsecond) }

func (p Paths) readMemory(r *reader, c *Cgroup) {
	m := &c.Memory
	var inactive uint64
	if dir := p["memory"]; dir != "" {
		inactive = p.readMemoryV1(r, dir, c)
	} else {
		inactive = p.readMemoryV2(r, p[""], c)
	}
	m.WorkingSet = less(m.Usage, inactive)
	if m.Limit > 0 {
		m.Available = less(m.Limit, m.WorkingSet)
	}
}

// readMemoryV1 takes the sums over the cgroup and those below, "total_…": a
// container may make cgroups of its own.
func (p Paths) readMemoryV1(r *reader, dir string, c *Cgroup) (inactive uint64) {
	m := &c.Memory
	stat := r.table(dir, "memory.stat")
	m.Usage = r.number(dir, "memory.usage_in_bytes")
	m.Limit = r.number(dir, "memory.limit_in_bytes")
	m.RSS = stat["total_rss"]
	m.PageFaults, m.MajorPageFaults = stat["total_pgfault"], stat["total_pgmajfault"]
	m.SwapUsage = stat["total_swap"]
	// memsw counts memory and swap together.
	if both := r.number(dir, "memory.memsw.limit_in_bytes"); both > 0 && m.Limit > 0 {
		m.SwapAvailable = less(less(both, m.Limit), m.SwapUsage)
	}
	c.OOMKills = r.table(dir, "memory.oom_control")["oom_kill"]
	return stat["total_inactive_file"]
}

func (p Paths) readMemoryV2(r *reader, dir string, c *Cgroup) (inactive uint64) {
	m := &c.Memory
	stat := r.table(dir, "memory.stat")
	m.Usage = r.number(dir, "memory.current")
	m.Limit = r.number(dir, "memory.max")
	m.RSS = stat["anon"]
	m.PageFaults, m.MajorPageFaults = stat["pgfault"], stat["pgmajfault"]
	m.SwapUsage = r.number(dir, "memory.swap.current")
	m.SwapAvailable = less(r.number(dir, "memory.swap.max"), m.SwapUsage)
	c.OOMKills = r.table(dir, "memory.events")["oom_kill"]
	return stat["inactive_file"]
}

func (p Paths) readProcesses(r *reader, c *Cgroup) {
	dir := p["pids"]
	if dir == "" {
		dir = p[""]
	}
	c.Processes, c.ProcessLimit = r.number(dir, "pids.current"), r.number(dir, "pids.max")
}

// less subtracts without going below 0: the figures are not read at one moment.
func less(a, b uint64) uint64 {
	if b >= a {
		return 0
	}
	return a - b
}

// reader reads the files of cgroups and remembers what went wrong.
type reader struct {
	read int
	gone bool
	err  error
}

// outcome: a file that isn't there is a controller that isn't enabled, or the
// end of the cgroup.
func (r *reader) outcome(p Paths) error {
	if r.err != nil {
		return r.err
	}
	if r.gone || r.read == 0 {
		return ErrGone
	}
	for _, controller := range []string{"memory", "cpuacct", "pids"} {
		dir := p[controller]
		if dir == "" {
			continue
		}
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cgroup %s: %w", dir, ErrGone)
		}
	}
	return nil
}

// maxFile bounds what is read of one file: memory.stat has some 2 KiB, and
// 1 KiB more for each NUMA node.
const maxFile = 256 << 10

func (r *reader) file(dir, name string) string {
	if dir == "" || r.err != nil {
		return ""
	}
	f, err := os.Open(filepath.Join(dir, name))
	if err == nil {
		defer f.Close()
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(f, maxFile)); err == nil {
			r.read++
			return string(data)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EOPNOTSUPP): // EOPNOTSUPP: pressure with psi=0
	case errors.Is(err, syscall.ENODEV): // the cgroup went while its file was open
		r.gone = true
	default:
		r.err = fmt.Errorf("read cgroup: %w", err)
	}
	return ""
}

// unlimited is where numbers begin that stand for no limit. v1 writes the
// largest number of pages, in bytes.
const unlimited = 1 << 60

// number reads a file of one number; "max", v1's largest number, and what is
// not there are 0.
func (r *reader) number(dir, name string) uint64 {
	v, err := strconv.ParseUint(strings.TrimSpace(r.file(dir, name)), 10, 64)
	if err != nil || v >= unlimited {
		return 0
	}
	return v
}

// table reads a file of lines "key number".
func (r *reader) table(dir, name string) map[string]uint64 {
	values := map[string]uint64{}
	for line := range strings.Lines(r.file(dir, name)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64); err == nil {
			values[key] = v
		}
	}
	return values
}

// pressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the same
// with "full". The cpu file has no full line before Linux 5.13.
func (r *reader) pressure(dir, name string) *Pressure {
	text := r.file(dir, name)
	if text == "" {
		return nil
	}
	var p Pressure
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		switch fields[0] {
		case "some":
			p.Some = pressureLine(fields[1:])
		case "full":
			p.Full = pressureLine(fields[1:])
		}
	}
	return &p
}

func pressureLine(fields []string) PressureLine {
	var l PressureLine
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "total": // microseconds
			v, _ := strconv.ParseUint(value, 10, 64)
			l.TotalNanos = micros(v)
		case "avg10":
			l.Avg10, _ = strconv.ParseFloat(value, 64)
		case "avg60":
			l.Avg60, _ = strconv.ParseFloat(value, 64)
		case "avg300":
			l.Avg300, _ = strconv.ParseFloat(value, 64)
		}
	}
	return l
}
