package monitor

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cri-engine/cri-engine/internal/cgroup"
)

// runcNode is a node with the real runtime, for tests that need what only the kernel does.
func runcNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for runc")
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("needs runc")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox, static, for a root filesystem")
	}
	makeRootFS(t, busybox)
	t.Cleanup(func() {
		// What a test leaves in a cgroup is an error of the monitor.
		must(t, cgroup.Remove("/monitor-test"))
	})
	return newNode(t, Runtime{Path: runc})
}

func makeRootFS(t testing.TB, busybox string) {
	t.Helper()
	testRootFS = filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"bin", "proc", "dev", "tmp"} {
		must(t, os.MkdirAll(filepath.Join(testRootFS, dir), 0o755))
	}
	data, err := os.ReadFile(busybox)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(testRootFS, "bin/busybox"), data, 0o755))
	for _, name := range []string{"sh", "cat", "seq", "sleep", "echo", "stty", "dd", "tail", "usleep"} {
		must(t, os.Symlink("busybox", filepath.Join(testRootFS, "bin", name)))
	}
}

// counter writes the lines 1 … bursts*2500, 50,000 a second.
func counter(bursts int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do seq $((i*2500+1)) $((i*2500+2500)); i=$((i+1)); usleep 50000; done", bursts)
}

func TestKilledUnderLoad(t *testing.T) {
	kills := 10
	if testing.Short() {
		kills = 4
	}
	for _, c := range []struct {
		name   string
		keeper func(i int) bool
	}{
		{"the pump", func(int) bool { return false }},
		{"the keeper", func(int) bool { return true }},
		{"one or the other", func(i int) bool { return i%2 == 1 }},
	} {
		t.Run("every line once and every code right while "+c.name+" is killed", func(t *testing.T) {
			killUnderLoad(t, kills, c.keeper)
		})
	}
}

func killUnderLoad(t *testing.T, kills int, keeper func(int) bool) {
	n := runcNode(t)
	bursts := kills * 6 // 0.3 seconds of writing for each kill
	var writers []*box
	for i := range 2 {
		writers = append(writers, n.run(n.shell(counter(bursts)+"; exit "+strconv.Itoa(40+i))))
	}
	// In a container of its own: an exec dies with its container.
	other := n.run(n.shell("exec sleep 10000"))
	s, err := n.c.Exec(n.ctx(), ExecRequest{ID: other.id, ExecID: "e", Runtime: n.runtime,
		Process: fmt.Appendf(nil, `{"args":["/bin/sh","-c",%q],"cwd":"/","env":["PATH=/bin"]}`, counter(bursts)+"; exit 9")})
	must(t, err)
	read := make(chan string, 1)
	go func() {
		data, err := io.ReadAll(s.Stdout)
		read <- fmt.Sprintf("%s%v", data, err)
	}()
	var ending sync.WaitGroup
	for i := range kills {
		// A container whose end may fall into the kill.
		b := n.create(n.shell("usleep 30000; exit " + strconv.Itoa(i+1)))
		if err := n.c.Start(n.ctx(), b.id); err != nil {
			t.Fatal(err)
		}
		ending.Add(1)
		go func() {
			defer ending.Done()
			if e := b.wait(); e.Code != int32(i+1) || e.Lost {
				t.Errorf("container %d: exit %+v", i, e)
			}
			n.delete(b.id)
		}()
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		n.killOne(keeper(i))
	}
	ending.Wait()
	for i, b := range writers {
		if e := b.wait(); e.Code != int32(40+i) || e.Lost {
			t.Errorf("writer %d: exit %+v", i, e)
		}
		checkNumbers(t, b.lines("stdout"), bursts*2500)
	}
	lines := strings.Split(<-read, "\n")
	if last := lines[len(lines)-1]; last != "<nil>" {
		t.Errorf("exec's output ends with %s", last)
	}
	checkNumbers(t, lines[:len(lines)-1], bursts*2500)
	if e, err := s.Wait(n.ctx()); err != nil || e.Code != 9 || e.Lost {
		t.Errorf("exec's exit %+v, %v", e, err)
	}
	must(t, s.Close())
}

func TestTerminal(t *testing.T) {
	n := runcNode(t)
	b := n.run(n.shell("stty -echo; echo ready; cat"), func(r *CreateRequest, spec map[string]any) {
		r.Terminal = true
		spec["process"].(map[string]any)["terminal"] = true
	})
	eventually(t, "the terminal's output is logged", func() bool {
		return strings.Join(b.lines("stdout"), "") == "ready\r"
	})
	w := &streamWriter{end: streamEnd{ctx: n.ctx(), socket: n.c.socket, params: attachParams{target: target{ID: b.id}, Stream: roleStdin}}}
	_, err := io.WriteString(w, "typed\n\x04")
	must(t, err)
	if e := b.wait(); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if got := strings.Join(b.lines("stdout"), ""); got != "ready\rtyped\r" {
		t.Errorf("log %q", got)
	}
}

func TestOOM(t *testing.T) {
	n := runcNode(t)
	oom := make(chan string, 16)
	go func() {
		for e := range n.c.Events() {
			if e.Type == EventOOM {
				oom <- e.Info.ID
			}
		}
	}()
	limit := func(_ *CreateRequest, spec map[string]any) {
		spec["linux"].(map[string]any)["resources"] = map[string]any{"memory": map[string]any{"limit": 16 << 20}}
	}
	// tail keeps one endless line in memory.
	b := n.run(n.shell("tail -n 1 /dev/zero; echo survived; exec tail -n 1 /dev/zero"), limit)
	e := b.wait()
	if !e.OOMKilled || e.Code != 137 {
		t.Errorf("exit %+v", e)
	}
	select {
	case id := <-oom:
		if id != b.id {
			t.Errorf("OOM of %s", id)
		}
	case <-time.After(5 * time.Second):
		t.Error("no OOM event came")
	}
}

func TestBothDead(t *testing.T) {
	n := runcNode(t)
	kill := func() {
		s := n.status()
		must(t, syscall.Kill(s.PumpPid, syscall.SIGSTOP)) // so that it cannot take the keeper's place
		must(t, syscall.Kill(s.KeeperPid, syscall.SIGKILL))
		must(t, syscall.Kill(s.PumpPid, syscall.SIGKILL))
	}
	ended, lives := n.run(n.shell("exit 5")), n.run(n.shell("sleep 2; exit 6"))
	dies := n.run(n.shell("usleep 300000; exit 7"))
	ended.wait()
	kill()
	time.Sleep(3 * time.Second / 2)
	if e := ended.wait(); e.Code != 5 || e.Lost {
		t.Errorf("ended before: %+v", e)
	}
	// They are nobody's children now. What is told is their own code (a zombie has it, and
	// a kernel since 6.15 keeps it), or that it is lost; never another.
	for want, b := range map[int32]*box{7: dies, 6: lives} {
		if e := b.wait(); (e.Code != want || e.Lost) && (e.Code != 255 || !e.Lost) {
			t.Errorf("exit %+v, want %d or lost", e, want)
		} else {
			t.Logf("exit %+v", e)
		}
	}
}

func TestUpgrade(t *testing.T) {
	n := runcNode(t)
	b := n.run(n.shell(counter(60) + "; exit 3"))
	before := n.status()
	for range 3 {
		s := n.status()
		must(t, syscall.Kill(s.KeeperPid, syscall.SIGHUP))
		eventually(t, "another pump answers", func() bool { return n.status().PumpPid != s.PumpPid })
	}
	if now := n.status(); now.KeeperPid != before.KeeperPid {
		t.Errorf("the keeper's pid was %d and is %d", before.KeeperPid, now.KeeperPid)
	}
	if e := b.wait(); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
	checkNumbers(t, b.lines("stdout"), 60*2500)
}

func TestKilledWhileCreating(t *testing.T) {
	n := runcNode(t)
	for i := range 12 {
		done := make(chan error, 1)
		var b *box
		go func() {
			var err error
			b, err = n.tryCreate(n.shell("exec sleep 1000"))
			done <- err
		}()
		time.Sleep(time.Duration(i*4) * time.Millisecond)
		n.killOne(false)
		err := <-done
		n.delete(b.id)
		if _, err := os.Stat("/sys/fs/cgroup/memory/monitor-test/" + b.id); err == nil {
			t.Errorf("kill %d: cgroup of %s is left", i, b.id)
		}
		if _, err := os.Stat(filepath.Join(n.runtime.Root, b.id)); err == nil {
			t.Errorf("kill %d: the runtime's directory of %s is left", i, b.id)
		}
		if err == nil {
			t.Logf("kill %d came after create", i)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	n := runcNode(b)
	var boxes []*box
	b.ResetTimer()
	for range b.N {
		boxes = append(boxes, n.run([]string{"/bin/sleep", "1000"}))
	}
	b.StopTimer()
	for _, x := range boxes {
		n.delete(x.id)
	}
}

func BenchmarkBareStart(b *testing.B) {
	n := runcNode(b)
	var ids []string
	b.ResetTimer()
	for range b.N {
		id := newID()
		bundle := filepath.Join(n.dir, "b-"+id[:8])
		must(b, os.Mkdir(bundle, 0o700))
		must(b, writeJSON(filepath.Join(bundle, "config.json"), testSpec(id, []string{"/bin/sleep", "1000"})))
		cmd := exec.Command(n.runtime.Path, "--root", n.runtime.Root, "create", "--bundle", bundle, id)
		must(b, cmd.Run())
		must(b, exec.Command(n.runtime.Path, "--root", n.runtime.Root, "start", id).Run())
		ids = append(ids, id)
	}
	b.StopTimer()
	for _, id := range ids {
		n.delete(id)
	}
}

// BenchmarkOverhead is what a create costs without the runtime: one that fails at once.
func BenchmarkOverhead(b *testing.B) {
	n := newNode(b, Runtime{Path: "/bin/false"})
	r := CreateRequest{Runtime: n.runtime, Bundle: n.dir, LogPath: filepath.Join(n.dir, "log")}
	for range b.N {
		r.ID = newID()
		if _, err := n.c.Create(n.ctx(), r); err == nil {
			b.Fatal("/bin/false made a container")
		}
	}
}

func BenchmarkFalse(b *testing.B) {
	for range b.N {
		_ = exec.Command("/bin/false").Run()
	}
}
