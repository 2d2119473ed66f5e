package monitor

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExitEvents(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for the process connector")
	}
	var x exitEvents
	cmd := exec.Command("/bin/sh", "-c", "read x; exit 7")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	if err := x.watch(cmd.Process.Pid); err != nil {
		t.Skipf("this kernel has none: %v", err)
	}
	stdin.Close()
	_ = cmd.Wait()
	e, ok := x.end(cmd.Process.Pid)
	if !ok || e.Code != 7 {
		t.Errorf("%+v, %v", e, ok)
	}
	if _, ok := x.end(1); ok {
		t.Error("a process that was not watched has ended")
	}
}

func FuzzParseExitEvent(f *testing.F) {
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, in []byte) {
		if pid, _, ok := parseExitEvent(in); ok && pid < 0 {
			t.Fatal(pid)
		}
	})
}

func TestStatusEnded(t *testing.T) {
	for status, want := range map[uint32]ended{
		0:         {Pid: 9},
		7 << 8:    {Pid: 9, Code: 7},
		9:         {Pid: 9, Code: 137, Signal: 9},
		11 | 0x80: {Pid: 9, Code: 139, Signal: 11},
	} {
		if got := statusEnded(9, status); got != want {
			t.Errorf("%#x: %+v, want %+v", status, got, want)
		}
	}
}

func TestQuarantine(t *testing.T) {
	fd, err := createShm()
	must(t, err)
	defer unix.Close(fd)
	m, err := mapShm(fd)
	must(t, err)
	defer func() { _ = unix.Munmap(m.mem) }()
	k := &keeper{shm: m, held: map[key]*held{"guilty": {rec: record{Slot: 1}}, "other": {rec: record{Slot: 2}}}}
	for range maxCrashes {
		m.slot(1).active.Store(1)
		k.blame()
	}
	if m.slot(1).quarantined.Load() != 1 || m.slot(2).quarantined.Load() != 0 {
		t.Fatal("the wrong one is quarantined")
	}
	// The next pump throws its output away and says so, once.
	r := newRig(t)
	watch, err := newWatcher(func(int32, int32, uint32) {})
	must(t, err)
	defer unix.Close(watch.epoll)
	p := &proc{pump: &pump{shm: m, watcher: watch}, slot: m.slot(1), log: r.log.fd, out: [2]*stream{r.s}, rec: record{}}
	r.write("poison\n")
	for range 2 {
		p.takeTurn(r.b)
		r.write("more\n")
	}
	if got := r.entries(); got != "stdout F "+quarantineNote {
		t.Errorf("log %q", got)
	}
}
