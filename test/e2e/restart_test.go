//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

func TestDaemonRestarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		ends := map[string]func(t *testing.T){
			"SIGKILL": func(*testing.T) { e.Kill() },
			"SIGTERM": func(t *testing.T) {
				state, err := e.Terminate(within(t, 20*time.Second))
				if err != nil || !state.Success() {
					t.Errorf("the daemon ended with %v, %v", state, err)
				}
			},
		}
		for name, end := range ends {
			t.Run("pods run on through "+name+" of the daemon", func(t *testing.T) {
				p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) {
					c.PortMappings = []*runtimeapi.PortMapping{{HostPort: int32(freePort(t)), ContainerPort: 80}}
				})
				shared := e.runPod(t, podPID)
				writer := p.run(t, busyboxImage, command("payload", "lines", "150000", "50000", "21"))
				idle := shared.run(t, busyboxImage, sleeper)
				created := p.create(t, busyboxImage, sleeper)
				server := p.httpServer(t, 80)
				// A gate holds this one until the daemon is gone.
				gate := filepath.Join(w.Dir, "gate-"+name)
				if err := unix.Mkfifo(gate, 0o600); err != nil {
					t.Fatal(err)
				}
				defer os.Remove(gate)
				meanwhile := p.run(t, busyboxImage, shell("read x < /gate; exit 33"), func(c *runtimeapi.ContainerConfig) {
					c.Mounts = []*runtimeapi.Mount{{HostPath: gate, ContainerPath: "/gate"}}
				})
				before := statuses(t, e)

				end(t)
				if err := os.WriteFile(gate, []byte("go\n"), 0); err != nil {
					t.Fatal(err)
				}
				if got := get(t, "http://"+mustIP(before, p)+"/"); got != page {
					t.Errorf("while the daemon is gone the pod serves %q", got)
				}
				time.Sleep(500 * time.Millisecond)
				e.restart(t)

				if s := meanwhile.status(t); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 33 || s.FinishedAt == 0 {
					t.Errorf("a container that ended meanwhile: %v", s)
				}
				after := statuses(t, e)
				for id, was := range before {
					if id != meanwhile.ID && id != writer.ID && after[id] != was {
						t.Errorf("before the restart\n%s\nafter\n%s", was, after[id])
					}
				}
				if len(after) != len(before) {
					t.Errorf("%d pods and containers before, %d after", len(before), len(after))
				}
				created.start(t)
				if got := idle.exec(t, "echo", "exec works"); got != "exec works\n" {
					t.Errorf("got %q", got)
				}
				server.stop(t, 1)
				if s := writer.wait(t); s.ExitCode != 21 {
					t.Errorf("the writer ended with %d", s.ExitCode)
				}
				lines := readLog(t, writer.logPath())
				wantNumbered(t, lines, "stdout", 150000)
				wantNumbered(t, lines, "stderr", 150000)
			})
		}
		t.Run("a container that ends while the daemon starts is seen", func(t *testing.T) {
			p := e.runPod(t)
			for i := range 10 {
				c := p.run(t, busyboxImage, shell(fmt.Sprintf("sleep 0.%02d; exit %d", i*3, 40+i)))
				e.Kill()
				e.restart(t)
				if s := c.wait(t); int(s.ExitCode) != 40+i {
					t.Errorf("exit code %d, want %d", s.ExitCode, 40+i)
				}
			}
		})
	})
}

// statuses are the statuses of all pods and containers as text, by id.
func statuses(t *testing.T, e *Engine) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, p := range e.pods(t, nil) {
		resp, err := e.rt.PodSandboxStatus(call(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if err != nil {
			t.Fatal(err)
		}
		all[p.Id] = fmt.Sprint(resp.Status)
	}
	for _, c := range e.containers(t, nil) {
		resp, err := e.rt.ContainerStatus(call(t), &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		if err != nil {
			t.Fatal(err)
		}
		all[c.Id] = strings.Join(strings.Fields(fmt.Sprint(resp.Status)), " ")
	}
	return all
}

// mustIP finds the pod's address in its status as text.
func mustIP(all map[string]string, p *Pod) string {
	_, rest, _ := strings.Cut(all[p.ID], `ip:"`)
	ip, _, _ := strings.Cut(rest, `"`)
	return ip
}

func TestRestartWithManyPods(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		const pods = 50
		e := w.engine(t)
		all := runMany(t, e, pods)
		var took []time.Duration
		for range 5 {
			e.Kill()
			start := time.Now()
			e.start(t)
			if n := len(e.pods(t, nil)); n != pods {
				t.Fatalf("the first answer lists %d of %d pods", n, pods)
			}
			if n := len(e.containers(t, &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}})); n != pods {
				t.Fatalf("the first answer lists %d of %d running containers", n, pods)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		t.Logf("from the daemon's start to the first true answer with %d pods: median %v, all %v", pods, took[len(took)/2], took)
		// The design asks for 0.3 s on an idle machine; tests share this one.
		if took[0] > slowly(2*time.Second) {
			t.Errorf("the fastest of %d restarts took %v", len(took), took[0])
		}
		removeMany(t, all)
	})
}

func runMany(t *testing.T, e *Engine, n int) []*Pod {
	t.Helper()
	all := make([]*Pod, n)
	var wg sync.WaitGroup
	free := make(chan struct{}, 8)
	for i := range all {
		wg.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			config := e.podConfig(t)
			resp, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: config})
			if err != nil {
				t.Errorf("run pod: %v", err)
				return
			}
			p := &Pod{e: e, ID: resp.PodSandboxId, Config: config}
			c, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: p.containerConfig(busyboxImage, sleeper), SandboxConfig: config})
			if err != nil {
				t.Errorf("create container: %v", err)
				return
			}
			if _, err := e.rt.StartContainer(call(t), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
				t.Errorf("start container: %v", err)
			}
			all[i] = p
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return all
}

func removeMany(t *testing.T, pods []*Pod) {
	t.Helper()
	var wg sync.WaitGroup
	free := make(chan struct{}, 8)
	for _, p := range pods {
		wg.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			// Containers first, at once: the pod's own grace period is not what this tests.
			for _, c := range p.e.containers(t, &runtimeapi.ContainerFilter{PodSandboxId: p.ID}) {
				_, _ = p.e.rt.StopContainer(call(t), &runtimeapi.StopContainerRequest{ContainerId: c.Id})
			}
			p.remove(t)
		})
	}
	wg.Wait()
}

func TestMonitorRestarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		keeperPid := func() int { k, _ := e.monitorPids(t); return k }
		pumpPid := func() int { _, p := e.monitorPids(t); return p }
		kills := map[string]func(t *testing.T){
			"the pump":   func(t *testing.T) { e.killAndWaitForNew(t, pumpPid(), pumpPid) },
			"the keeper": func(t *testing.T) { e.killAndWaitForNew(t, keeperPid(), keeperPid) },
			"the pump, then the keeper": func(t *testing.T) {
				e.killAndWaitForNew(t, pumpPid(), pumpPid)
				e.killAndWaitForNew(t, keeperPid(), keeperPid)
			},
			"the pump while the daemon is gone": func(t *testing.T) {
				pump := pumpPid()
				e.Kill()
				kill(t, pump)
				e.restart(t)
			},
			"the keeper while the daemon is gone": func(t *testing.T) {
				keeper := keeperPid()
				e.Kill()
				kill(t, keeper)
				e.restart(t)
			},
		}
		for name, strike := range kills {
			t.Run("nothing happens to pods when "+name+" dies", func(t *testing.T) {
				p, shared := e.runPod(t), e.runPod(t, podPID)
				writer := p.run(t, busyboxImage, command("payload", "lines", "100000", "50000", "22"))
				idle := shared.run(t, busyboxImage, sleeper)
				waiting := p.run(t, busyboxImage, shell("sleep 2; exit 23"))
				pid := idle.pid(t)
				strike(t)
				if s := idle.status(t); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || idle.pid(t) != pid {
					t.Errorf("the idle container: %v", s)
				}
				if got := idle.exec(t, "echo", "exec works"); got != "exec works\n" {
					t.Errorf("got %q", got)
				}
				if s := p.status(t); s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
					t.Errorf("the pod: %v", s)
				}
				if s := writer.wait(t); s.ExitCode != 22 {
					t.Errorf("the writer ended with %d (%s)", s.ExitCode, s.Reason)
				}
				if s := waiting.wait(t); s.ExitCode != 23 {
					t.Errorf("the waiting container ended with %d (%s)", s.ExitCode, s.Reason)
				}
				lines := readLog(t, writer.logPath())
				wantNumbered(t, lines, "stdout", 100000)
				wantNumbered(t, lines, "stderr", 100000)
				if got := p.output(t, busyboxImage, shell("echo new containers start")); got != "new containers start\n" {
					t.Errorf("got %q", got)
				}
			})
		}
		t.Run("when both die at once the truth is told and removal works", func(t *testing.T) {
			p := e.runPod(t)
			c := p.run(t, busyboxImage, sleeper)
			if err := e.KillMonitor(); err != nil {
				t.Fatal(err)
			}
			eventually(t, 20*time.Second, "the engine has a monitor again", func() bool {
				resp, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{Verbose: true})
				return err == nil && resp.Status != nil && len(e.MonitorPids()) >= 2
			})
			// Its stdio died with the monitor, so what becomes of it is its own affair; what is said must be so.
			s := c.status(t)
			running := len(harness.Processes(func(q harness.Process) bool { return strings.Contains(q.Cmdline, "sleep 100000") && q.State != "Z" })) > 0
			if running != (s.State == runtimeapi.ContainerState_CONTAINER_RUNNING) {
				t.Errorf("the process lives: %v; the status says %v", running, s)
			}
			c.stop(t, 1)
			if s := c.status(t); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 {
				t.Errorf("after the stop: %v", s)
			}
			if got := p.output(t, busyboxImage, shell("echo works")); got != "works\n" {
				t.Errorf("got %q", got)
			}
		})
	})
}

func TestReboot(t *testing.T) {
	if onHost() {
		t.Skip("it ends every process but its own: it needs a world")
	}
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p, shared := e.runPod(t), e.runPod(t, podPID)
		done := p.run(t, busyboxImage, shell("exit 5"))
		done.wait(t)
		running := p.run(t, busyboxImage, sleeper)
		created := shared.create(t, busyboxImage, sleeper)
		ip := p.ip(t)
		reboot(t, e)
		e.restart(t)

		for _, q := range []*Pod{p, shared} {
			if s := q.status(t); s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("a pod of the earlier boot is %v", s.State)
			}
		}
		if s := done.status(t); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 5 || s.Reason != "Error" {
			t.Errorf("a container that had ended: %v", s)
		}
		if s := running.status(t); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 {
			t.Errorf("a container that ran: %v", s)
		}
		if s := created.status(t); s.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("a container that was not started: %v", s)
		}
		_, err := e.rt.StartContainer(call(t), &runtimeapi.StartContainerRequest{ContainerId: created.ID})
		wantCode(t, err, codes.FailedPrecondition)
		e.pull(t, busyboxImage) // the store's cache of blobs, on the state's tmpfs, is made again
		eventually(t, 20*time.Second, "CNI DEL has given the address back", func() bool { return !reserved(t, e, ip) })
		p.remove(t)
		shared.remove(t)
		if got := e.runPod(t).output(t, busyboxImage, shell("echo a new pod runs")); got != "a new pod runs\n" {
			t.Errorf("got %q", got)
		}
	})
}

// reserved says whether host-local has a reservation file for ip anywhere under the engine's directories.
func reserved(t *testing.T, e *Engine, ip string) bool {
	t.Helper()
	found := false
	for _, dir := range []string{e.Root, e.State} {
		_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil && filepath.Base(path) == ip {
				found = true
			}
			return nil
		})
	}
	return found
}

// reboot does to the engine what a power cut does: its processes and its pods'
// end at once, with them mounts, namespaces, and all that is on a tmpfs, and the
// kernel has another boot id.
func reboot(t *testing.T, e *Engine) {
	t.Helper()
	e.Kill()
	if err := e.KillMonitor(); err != nil {
		t.Fatal(err)
	}
	keep := map[int]bool{1: true, os.Getpid(): true, e.w.Registry.Pid(): true}
	for _, pid := range harness.Processes(func(p harness.Process) bool { return !keep[p.Pid] && p.State != "Z" && p.Parent != os.Getpid() }) {
		kill(t, pid)
	}
	eventually(t, 5*time.Second, "all processes are gone", func() bool {
		return len(harness.Processes(func(p harness.Process) bool { return !keep[p.Pid] && p.Parent != os.Getpid() })) == 0
	})
	unmountBelow("/run/netns")
	unmountBelow(e.State)
	unmountBelow(e.Root)
	for _, dir := range []string{"/run/netns", e.State} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(e.State, 0o755); err != nil {
		t.Fatal(err)
	}
	emptyCgroups(t)
	removeBridges(t)
	newBootID(t, e.w)
}

// emptyCgroups removes all cgroups of the world but the one of its own processes
// (delegateV2), as the next boot has none.
func emptyCgroups(t *testing.T) {
	t.Helper()
	roots, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		entries, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if entry.IsDir() && entry.Name() != "e2e" {
				removeCgroupDir(t, entry.Name())
			}
		}
	}
}

// newBootID binds another file over the kernel's, in this world's mount namespace.
func newBootID(t *testing.T, w *World) {
	t.Helper()
	const real = "/proc/sys/kernel/random/boot_id"
	file := filepath.Join(w.Dir, "boot_id")
	id := bytes.Replace([]byte("00000000-0000-4000-8000-000000000000\n"), []byte("0000"), fmt.Appendf(nil, "%04d", time.Now().UnixNano()%10000), 1)
	if err := os.WriteFile(file, id, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, real, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(real, unix.MNT_DETACH)
		_ = os.Remove(file)
	})
}

func TestDamagedRecords(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		damage := map[string]func(text []byte) []byte{
			"cut in half":                 func(b []byte) []byte { return b[:len(b)/2] },
			"empty":                       func([]byte) []byte { return nil },
			"full of zeros":               func(b []byte) []byte { return make([]byte, len(b)) },
			"of a later version":          func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":1`), []byte(`"version":99`), 1) },
			"foreign JSON":                func([]byte) []byte { return []byte(`{"id":"../../etc","pid":1,"bundle":["x"]}`) },
			"JSON with a path for its id": func(b []byte) []byte { return bytes.Replace(b, []byte(`"id":"`), []byte(`"id":"../`), 1) },
		}
		e := w.engine(t)
		for name, f := range damage {
			t.Run("a container's record that is "+name+" is set aside, the container shown, and both can be removed", func(t *testing.T) {
				p := e.runPod(t)
				c := p.run(t, busyboxImage, sleeper)
				other := p.run(t, busyboxImage, sleeper)
				e.Kill()
				spoil(t, filepath.Join(e.Root, "containers", c.ID+".json"), f)
				e.restart(t)
				if s := other.status(t); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
					t.Errorf("the other container: %v", s)
				}
				if s := c.status(t); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
					t.Errorf("the container, which runs: %v", s)
				}
				c.stop(t, 0)
				c.remove(t)
				p.remove(t)
				wantSetAside(t, e, c.ID)
				leaks(t, w, e, e.idle)
			})
			t.Run("a pod's record that is "+name+" is set aside, and all of it can be removed", func(t *testing.T) {
				p := e.runPod(t)
				c := p.run(t, busyboxImage, sleeper)
				e.Kill()
				spoil(t, filepath.Join(e.Root, "pods", p.ID+".json"), f)
				e.restart(t)
				if s := p.status(t); s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
					t.Errorf("the pod: %v", s)
				}
				c.stop(t, 0)
				p.remove(t)
				wantSetAside(t, e, p.ID)
				leaks(t, w, e, e.idle)
			})
		}
		t.Run("files that are no records are left alone", func(t *testing.T) {
			e.Kill()
			for _, name := range []string{"pods/README", "containers/x.json", "pods/.tmp-abc"} {
				if err := os.WriteFile(filepath.Join(e.Root, name), []byte("not ours"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			e.restart(t)
			if n := len(e.pods(t, nil)) + len(e.containers(t, nil)); n != 0 {
				t.Errorf("%d are listed", n)
			}
			for _, dir := range []string{"pods", "containers", "damaged"} {
				entries, err := os.ReadDir(filepath.Join(e.Root, dir))
				if err != nil {
					t.Fatal(err)
				}
				for _, entry := range entries {
					_ = os.Remove(filepath.Join(e.Root, dir, entry.Name()))
				}
			}
		})
	})
}

func spoil(t *testing.T, file string, f func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, f(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wantSetAside fails unless the damaged record was kept for people to look at, and removes it.
func wantSetAside(t *testing.T, e *Engine, id string) {
	t.Helper()
	kept, err := filepath.Glob(filepath.Join(e.Root, "damaged", id+"*"))
	if err != nil || len(kept) != 1 {
		t.Errorf("kept: %v, %v", kept, err)
	}
	for _, file := range kept {
		_ = os.Remove(file)
	}
	if log, err := os.ReadFile(e.LogFile); err != nil || !bytes.Contains(log, []byte(id)) {
		t.Errorf("the log does not name the record: %v", err)
	}
}
