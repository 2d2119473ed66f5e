package stats

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/cri-engine/cri-engine/internal/cgroup"
)

func TestDetailsOfCgroups(t *testing.T) {
	v2 := Paths{"": files(t, map[string]string{
		"cpu.stat": "nr_periods 9\n", "cpu.max": "50000 100000\n", "cpu.weight": "100\n",
		"memory.stat": "file 5\nfile_mapped 4\nkernel 3\npgfault 2\npgmajfault 1\n", "memory.peak": "77\n",
		"memory.events": "low 0\nmax 6\n", "memory.low": "8\n", "memory.swap.max": "max\n",
		"io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n../x:1 rbytes=9\n7:1 rbytes=8\nbroken\n",
	})}
	v1dir := files(t, map[string]string{
		"cpu.stat": "nr_periods 9\n", "cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n", "cpu.shares": "2597\n",
		"memory.stat": "cache 1\nmapped_file 1\ntotal_cache 5\ntotal_mapped_file 4\npgfault 2\npgmajfault 1\n", "memory.kmem.usage_in_bytes": "3\n",
		"memory.max_usage_in_bytes": "77\n", "memory.failcnt": "6\n", "memory.soft_limit_in_bytes": "8\n",
		"memory.memsw.limit_in_bytes":               "9223372036854771712\n",
		"blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\n7:1 Read 8\nTotal 11\n",
		"blkio.throttle.io_serviced_recursive":      "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
	})
	v1 := Paths{"cpu": v1dir, "memory": v1dir, "blkio": v1dir}
	for name, paths := range map[string]Paths{"cgroup v2": v2, "cgroup v1": v1} {
		t.Run(name, func(t *testing.T) {
			var r reader
			var d Details
			paths.detailCPU(&r, &d)
			paths.detailMemory(&r, &d)
			paths.detailDevices(&r, &d)
			if r.err != nil {
				t.Fatal(r.err)
			}
			if d.Periods != 9 || d.QuotaMicros != 50000 || d.PeriodMicros != 100000 || d.Shares != 2597 {
				t.Errorf("cpu: %+v", d)
			}
			if d.Cache != 5 || d.MappedFile != 4 || d.Kernel != 3 || d.MaxUsage != 77 || d.LimitHits != 6 || d.SoftLimit != 8 || d.SwapLimit != 0 || d.OwnFaults != 2 || d.OwnMajorFaults != 1 {
				t.Errorf("memory: %+v", d)
			}
			if len(d.Devices) != 2 || d.Devices[0].Major != 7 || d.Devices[0].ReadBytes != 8 {
				t.Fatalf("devices: %+v", d.Devices)
			}
			if sda := d.Devices[1]; sda.ReadBytes != 1 || sda.WriteBytes != 2 || sda.Reads != 3 || sda.Writes != 4 {
				t.Errorf("got %+v", sda)
			}
		})
	}
	t.Run("no quota is 0", func(t *testing.T) {
		for _, paths := range []Paths{
			{"": files(t, map[string]string{"cpu.max": "max 100000\n"})},
			{"cpu": files(t, map[string]string{"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"})},
		} {
			var r reader
			var d Details
			if paths.detailCPU(&r, &d); d.QuotaMicros != 0 || d.PeriodMicros != 100000 {
				t.Errorf("got %+v", d)
			}
		}
	})
}

func TestHugePageSize(t *testing.T) {
	for name, want := range map[string]string{
		"hugepages-2048kB": "2MB", "hugepages-1048576kB": "1GB", "hugepages-64kB": "64KB",
		"hugepages-0kB": "", "hugepages-kB": "", "2048kB": "", "hugepages-../x": "",
	} {
		if got, ok := hugePageSize(name); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v", name, got, ok)
		}
	}
}

func TestSoftLimit(t *testing.T) {
	const text = "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \nMax processes             unlimited            unlimited            processes \n"
	for name, want := range map[string]uint64{"Max open files": 1024, "Max processes": 0, "Max nothing": 0} {
		if got := softLimit(text, name); got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
	}
}

func TestDescriptorsOfAProcess(t *testing.T) {
	files, sockets := descriptors([]int{os.Getpid()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	moreFiles, moreSockets := descriptors([]int{os.Getpid()})
	if files == 0 || moreFiles <= files || moreSockets != sockets+1 {
		t.Errorf("%d files and %d sockets, with one more socket %d and %d", files, sockets, moreFiles, moreSockets)
	}
	if f, s := descriptors([]int{1 << 30}); f != 0 || s != 0 {
		t.Errorf("a process that is gone has %d, %d", f, s)
	}
}

func TestDetailsOfAProcess(t *testing.T) {
	child := exec.Command("sh", "-c", "echo up; read line")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := PathsOf(child.Process.Pid); err != nil {
		t.Skip("the child's cgroup is not to be seen here: ", err)
	}
	s := NewSampler(time.Second)
	d, err := s.Details("child", child.Process.Pid)
	if err != nil || d.Procs == 0 || d.FileDescriptors == 0 || d.SoftOpenFiles == 0 {
		t.Errorf("got %+v, %v", d, err)
	}
	_ = in.Close()
	_ = child.Wait()
	if _, err := NewSampler(time.Second).Details("child", child.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("after its end: %v", err)
	}
}

func TestPathsBelow(t *testing.T) {
	memory, pids := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(memory+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	mounts := cgroup.Dirs{"memory": memory, "pids": pids}
	got, err := pathsBelow(mounts, "/a/b")
	if want := fmt.Sprint(Paths{"memory": memory + "/a/b"}); err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v; want %s", got, err, want)
	}
	if _, err := pathsBelow(mounts, "/none"); !errors.Is(err, ErrGone) {
		t.Errorf("what is not there: %v", err)
	}
	if got, err := pathsBelow(mounts, "/../../a"); err != nil || got["memory"] != memory+"/a" {
		t.Errorf("a path that climbs: %v, %v", got, err)
	}
}
