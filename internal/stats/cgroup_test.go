package stats

import (
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// files writes a directory of fixture files.
func files(tb testing.TB, content map[string]string) string {
	tb.Helper()
	dir := tb.TempDir()
	for name, text := range content {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

const pressureText = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12345\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=678\n"

var wantPressure = Pressure{
	Some: PressureLine{TotalNanos: 12_345_000, Avg10: 1.5, Avg60: 0.25},
	Full: PressureLine{TotalNanos: 678_000, Avg10: 0.5},
}

func unified(tb testing.TB) string {
	return files(tb, map[string]string{
		"cpu.stat":            "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 7000\n",
		"memory.current":      "104857600\n",
		"memory.max":          "209715200\n",
		"memory.swap.current": "1000\n",
		"memory.swap.max":     "5000\n",
		"memory.stat":         "anon 52428800\nfile 41943040\ninactive_file 31457280\npgfault 77\npgmajfault 7\n",
		"memory.events":       "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n",
		"pids.current":        "5\n",
		"pids.max":            "100\n",
		"cpu.pressure":        pressureText,
		"memory.pressure":     pressureText,
		"io.pressure":         pressureText,
	})
}

func legacy(tb testing.TB) Paths {
	dir := files(tb, map[string]string{
		"cpuacct.usage": "5000000000\n", "cpuacct.usage_user": "3000000000\n", "cpuacct.usage_sys": "2000000000\n",
		"cpu.stat":              "nr_periods 10\nnr_throttled 4\nthrottled_time 7000000\n",
		"memory.usage_in_bytes": "104857600\n", "memory.limit_in_bytes": "209715200\n", "memory.memsw.limit_in_bytes": "209720200\n",
		"memory.stat": "rss 1\ninactive_file 1\npgfault 1\nswap 1\ntotal_rss 52428800\ntotal_inactive_file 31457280\n" +
			"total_pgfault 77\ntotal_pgmajfault 7\ntotal_swap 1000\n",
		"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"pids.current":       "5\n", "pids.max": "100\n",
	})
	return Paths{"cpu": dir, "cpuacct": dir, "memory": dir, "pids": dir}
}

func TestRead(t *testing.T) {
	want := Cgroup{
		CPU: CPU{UsageNanos: 5_000_000_000, UserNanos: 3_000_000_000, SysNanos: 2_000_000_000, ThrottledPeriods: 4, ThrottledNanos: 7_000_000},
		Memory: Memory{
			Usage: 100 << 20, WorkingSet: 70 << 20, RSS: 50 << 20, Limit: 200 << 20, Available: 130 << 20,
			PageFaults: 77, MajorPageFaults: 7, SwapUsage: 1000, SwapAvailable: 4000,
		},
		Processes: 5, ProcessLimit: 100, OOMKills: 2,
	}
	mixed := legacy(t)
	mixed[""] = files(t, map[string]string{"cpu.stat": "usage_usec 1\n", "cpu.pressure": pressureText, "memory.pressure": pressureText, "io.pressure": pressureText})
	cases := []struct {
		name     string
		paths    Paths
		pressure bool
	}{
		{"cgroup v2", Paths{"": unified(t)}, true},
		{"cgroup v1", legacy(t), false},
		{"the mix: controllers on v1, pressure on v2", mixed, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.paths.Read()
			if err != nil {
				t.Fatal(err)
			}
			if time.Since(got.At) > time.Minute {
				t.Errorf("read at %v", got.At)
			}
			for what, p := range map[string]*Pressure{"cpu": got.CPU.Pressure, "memory": got.Memory.Pressure, "io": got.IO.Pressure} {
				if c.pressure && (p == nil || *p != wantPressure) || !c.pressure && p != nil {
					t.Errorf("%s pressure is %+v", what, p)
				}
			}
			got.At, got.CPU.Pressure, got.Memory.Pressure, got.IO.Pressure = time.Time{}, nil, nil, nil
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestReadWithoutLimitsOrControllers(t *testing.T) {
	t.Run("no limit on v2 is max", func(t *testing.T) {
		got, err := Paths{"": files(t, map[string]string{"memory.current": "5\n", "memory.max": "max\n", "memory.swap.max": "max\n", "pids.max": "max\n"})}.Read()
		if err != nil || got.Memory.Limit != 0 || got.Memory.Available != 0 || got.Memory.SwapAvailable != 0 || got.ProcessLimit != 0 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("no limit on v1 is the largest number of pages", func(t *testing.T) {
		dir := files(t, map[string]string{"memory.usage_in_bytes": "5\n", "memory.limit_in_bytes": "9223372036854771712\n", "memory.memsw.limit_in_bytes": "9223372036854771712\n"})
		got, err := Paths{"memory": dir}.Read()
		if err != nil || got.Memory.Limit != 0 || got.Memory.Available != 0 || got.Memory.SwapAvailable != 0 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("the working set is never below zero", func(t *testing.T) {
		got, err := Paths{"": files(t, map[string]string{"memory.current": "5\n", "memory.stat": "inactive_file 9\n"})}.Read()
		if err != nil || got.Memory.WorkingSet != 0 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("garbage is no number", func(t *testing.T) {
		got, err := Paths{"": files(t, map[string]string{
			"memory.current": "-5\n", "memory.stat": "anon\ninactive_file x\n\n \nanon 99999999999999999999999\n", "pids.current": "\x00",
			"cpu.pressure": "\nsome\nfull avg10=x total=-1\n"})}.Read()
		if err != nil || got.Memory != (Memory{}) || got.Processes != 0 || *got.CPU.Pressure != (Pressure{}) {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

func TestWhatIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	for _, paths := range []Paths{{"": dir}, {"memory": dir, "cpuacct": dir, "pids": dir}, {}} {
		if _, err := paths.Read(); !errors.Is(err, ErrGone) {
			t.Errorf("%v: %v", paths, err)
		}
	}
	half := legacy(t)
	half["memory"] = dir
	if got, err := half.Read(); !errors.Is(err, ErrGone) {
		t.Errorf("a cgroup that is half gone: %+v, %v", got, err)
	}
	child := exec.Command("true")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCgroup(child.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("a process that ended: %v", err)
	}
	if _, err := Interfaces(dir); !errors.Is(err, ErrGone) {
		t.Errorf("a namespace that is gone: %v", err)
	}
}

// burn uses CPU for a while.
func burn(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
		_ = sha256.Sum256(make([]byte, 4096))
	}
}

func TestOwnCgroup(t *testing.T) {
	paths, err := PathsOf(os.Getpid())
	if err != nil {
		t.Skip("this process's cgroup is not to be seen here: ", err)
	}
	burn(20 * time.Millisecond)
	got, err := paths.Read()
	if err != nil {
		t.Fatal(err)
	}
	if got.CPU.UsageNanos == 0 {
		t.Errorf("no CPU was used, by a test that ran: %+v in %v", got, paths)
	}
}

func TestSampler(t *testing.T) {
	now := time.Unix(1000, 0)
	s := NewSampler(10 * time.Second)
	s.now = func() time.Time { return now }
	read := func(after time.Duration, key string, pid int, used time.Duration) uint64 {
		now = now.Add(after)
		return s.observe(key, pid, nil, Cgroup{At: now, CPU: CPU{UsageNanos: uint64(used)}})
	}
	steps := []struct {
		name  string
		after time.Duration
		pid   int
		used  time.Duration
		want  time.Duration // per second
	}{
		{"the first reading has no rate", 0, 1, 5 * time.Second, 0},
		{"nor has one within the period", time.Second, 1, 6 * time.Second, 0},
		{"a period later there is the average", 9 * time.Second, 1, 10 * time.Second, 500 * time.Millisecond},
		{"it stands until the next period is over", time.Second, 1, 11 * time.Second, 500 * time.Millisecond},
		{"then comes the next", 19 * time.Second, 1, 50 * time.Second, 2 * time.Second},
		{"an idle time is a rate of nothing", time.Minute, 1, 50 * time.Second, 0},
		{"a counter that went back begins anew", 10 * time.Second, 1, time.Second, 0},
		{"and has a rate again", 10 * time.Second, 1, 2 * time.Second, 100 * time.Millisecond},
		{"another process under the same key begins anew", 10 * time.Second, 2, 30 * time.Second, 0},
	}
	for _, c := range steps {
		if got := read(c.after, "a", c.pid, c.used); got != uint64(c.want) {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
	read(0, "b", 3, 0)
	read(forgetAfter, "c", 4, 0)
	if len(s.known) != 1 {
		t.Errorf("%d are kept, want the one that was asked for", len(s.known))
	}
}

func TestSamplerReadsAProcess(t *testing.T) {
	if _, err := PathsOf(os.Getpid()); err != nil {
		t.Skip("this process's cgroup is not to be seen here: ", err)
	}
	s := NewSampler(time.Millisecond)
	if _, err := s.Read("me", os.Getpid()); err != nil {
		t.Fatal(err)
	}
	burn(50 * time.Millisecond)
	got, err := s.Read("me", os.Getpid())
	if err != nil || got.CPU.NanoCores == 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}
