//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// The units that "make install" installs.
const (
	engineUnit  = "cri-engine.service"
	monitorUnit = "cri-engine-monitor.service"
)

func TestSystemdRunsWhatIsInstalled(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.installed(t)
		e.pull(t, busyboxImage)
		p := e.runPod(t)
		idle := p.run(t, busyboxImage, sleeper)
		pid := idle.pid(t)
		untouched := func(t *testing.T) {
			t.Helper()
			if s := idle.status(t); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || idle.pid(t) != pid {
				t.Errorf("the idle container, once process %d: %v", pid, s)
			}
			if s := p.status(t); s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
				t.Errorf("the pod: %v", s)
			}
			if got := idle.exec(t, "echo", "works"); got != "works\n" {
				t.Errorf("exec says %q", got)
			}
		}
		// write starts a container that writes numbered lines for long enough and ends with 22.
		write := func(t *testing.T) *Container {
			t.Helper()
			return p.run(t, busyboxImage, command("payload", "lines", "60000", "6000", "22"))
		}
		wrote := func(t *testing.T, c *Container) {
			t.Helper()
			if s := c.wait(t); s.ExitCode != 22 {
				t.Errorf("the writer ended with %d (%s, %s)", s.ExitCode, s.Reason, s.Message)
			}
			lines := readLog(t, c.logPath())
			wantNumbered(t, lines, "stdout", 60000)
			wantNumbered(t, lines, "stderr", 60000)
			c.remove(t)
		}

		t.Run("containers are in scopes of their own and the monitor in its unit", func(t *testing.T) {
			keeper, pump := e.monitorPids(t)
			for _, pid := range []int{keeper, pump} {
				if got := cgroupsOf(t, pid)[""]; got != "/sys/fs/cgroup/system.slice/"+monitorUnit {
					t.Errorf("a process of the monitor is in %s", got)
				}
			}
			if got := unit(t, monitorUnit, "MainPID"); got != strconv.Itoa(keeper) {
				t.Errorf("systemd has the main process %s, the keeper is %d", got, keeper)
			}
			// crun has a cgroup of the container's own in the scope.
			if got := cgroupsOf(t, pid)[""]; !strings.Contains(got+"/", "/cri-engine-"+idle.ID+".scope/") {
				t.Errorf("the container is in %s", got)
			}
		})
		t.Run("a stop of the engine leaves pods alone, and the next start knows what happened", func(t *testing.T) {
			writer := write(t)
			ending := p.run(t, busyboxImage, shell("sleep 3; exit 23"))
			systemctl(t, "stop", engineUnit)
			if got := unit(t, engineUnit, "ActiveState"); got != "inactive" {
				t.Errorf("the engine's unit is %s", got)
			}
			if _, err := net.Dial("unix", e.Socket); err == nil {
				t.Error("somebody still listens on the socket")
			}
			time.Sleep(slowly(time.Second))
			if p, ok := harness.ReadProcess(pid); !ok || p.State == "Z" {
				t.Error("the idle container's process is gone")
			}
			systemctl(t, "start", engineUnit)
			untouched(t)
			if s := ending.wait(t); s.ExitCode != 23 {
				t.Errorf("the container that ended meanwhile: %v", s)
			}
			wrote(t, writer)
		})
		t.Run("no client is refused while the engine is restarted", func(t *testing.T) {
			refused := dialing(t, e.Socket, func() { systemctl(t, "restart", engineUnit) })
			if refused != nil {
				t.Error(refused)
			}
			untouched(t)
		})
		t.Run("no client is refused while the engine is killed, and it is started again", func(t *testing.T) {
			before := unit(t, engineUnit, "MainPID")
			refused := dialing(t, e.Socket, func() {
				kill(t, number(t, before))
				eventually(t, 20*time.Second, "systemd starts it again", func() bool {
					now := unit(t, engineUnit, "MainPID")
					return now != before && now != "0" && unit(t, engineUnit, "ActiveState") == "active"
				})
			})
			if refused != nil {
				t.Error(refused)
			}
			untouched(t)
		})
		t.Run("a reload of the monitor replaces it and loses nothing", func(t *testing.T) {
			writer := write(t)
			keeper, pump := e.monitorPids(t)
			systemctl(t, "reload", monitorUnit)
			eventually(t, 20*time.Second, "there is another pump under the same keeper", func() bool {
				k, p := e.monitorNow(t)
				return k == keeper && p != 0 && p != pump
			})
			untouched(t)
			wrote(t, writer)
		})
		t.Run("the monitor is not stopped by hand", func(t *testing.T) {
			if out, err := exec.Command("systemctl", "stop", monitorUnit).CombinedOutput(); err == nil {
				t.Errorf("it was: %s", out)
			}
			untouched(t)
		})
		t.Run("systemd follows the keeper's role", func(t *testing.T) {
			writer := write(t)
			keeper, _ := e.monitorPids(t)
			kill(t, keeper)
			eventually(t, 20*time.Second, "the unit's main process is the new keeper", func() bool {
				now, pump := e.monitorNow(t)
				return now != keeper && pump != 0 && unit(t, monitorUnit, "MainPID") == strconv.Itoa(now)
			})
			if got := unit(t, monitorUnit, "NRestarts"); got != "0" {
				t.Errorf("systemd has restarted the unit %s times", got)
			}
			untouched(t)
			wrote(t, writer)
		})
		t.Run("both halves of the monitor die at once, and no line and no exit code is lost", func(t *testing.T) {
			writer := write(t)
			keeper, pump := e.monitorPids(t)
			if err := harness.KillAtOnce(keeper, pump); err != nil {
				t.Fatal(err)
			}
			eventually(t, 20*time.Second, "systemd starts another", func() bool {
				k, p := e.monitorNow(t)
				return k != 0 && k != keeper && p != 0 && p != pump
			})
			untouched(t)
			wrote(t, writer)
			if got := p.output(t, busyboxImage, shell("echo new containers start")); got != "new containers start\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("an OOM kill is told of though systemd has removed the scope before anybody looked", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("sleep 3; exec payload eat 200"), resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 30 << 20, MemorySwapLimitInBytes: 30 << 20}))
			scope := cgroupsOf(t, c.pid(t))[""]
			_, pump := e.monitorPids(t)
			if err := syscall.Kill(pump, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = syscall.Kill(pump, syscall.SIGCONT) }()
			eventually(t, 30*time.Second, "the scope is gone", func() bool {
				_, err := os.Stat(scope)
				return errors.Is(err, fs.ErrNotExist)
			})
			if err := syscall.Kill(pump, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if s := c.wait(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
				t.Errorf("it ended with %d (%s)", s.ExitCode, s.Reason)
			}
			q := p.run(t, busyboxImage, sleeper)
			if q.stop(t, 0); q.status(t).Reason == "OOMKilled" {
				t.Error("one that was stopped after that is OOMKilled")
			}
		})
		p.remove(t)
	})
}

// dialing connects to a socket over and over while something is done, and returns
// the first failure.
func dialing(t testing.TB, socket string, do func()) error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			c, err := net.Dial("unix", socket)
			if err != nil {
				result <- err
				return
			}
			c.Close()
			time.Sleep(2 * time.Millisecond)
		}
		result <- nil
	}()
	do()
	cancel()
	return <-result
}

// installed installs the project on this machine as its README says, starts it under
// systemd, and takes all of it back with the test.
func (w *World) installed(t *testing.T) *Engine {
	t.Helper()
	script := filepath.Join(repoDir, "hack/install.sh")
	if _, err := os.Stat("/run/systemd/system"); err != nil || !onHost() {
		t.Skip("not a machine of our own that systemd runs")
	}
	for _, path := range []string{"/etc/cri-engine", "/usr/local/bin/cri-engine", "/var/lib/cri-engine"} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s is there: somebody uses cri-engine on this machine", path)
		}
	}
	install := func(what string) {
		t.Helper()
		cmd := exec.Command(script, what)
		cmd.Dir, cmd.Env = repoDir, append(os.Environ(), "PREFIX=/usr/local", "SYSCONFDIR=/etc", "DESTDIR=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", script, what, err, out)
		}
	}
	e := &Engine{w: w, Engine: &harness.Engine{Root: "/var/lib/cri-engine", Socket: "/run/cri-engine/cri-engine.sock",
		EngineOptions: harness.EngineOptions{Dir: filepath.Join(w.Dir, "installed"), State: "/run/cri-engine"}}}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := exec.Command("journalctl", "-q", "--no-pager", "-n", "200", "-u", engineUnit, "-u", monitorUnit).CombinedOutput()
			t.Logf("what the units said:\n%s", out)
		}
		systemctl(t, "stop", engineUnit)
		install("uninstall")
		systemctl(t, "daemon-reload")
		// With its file the monitor's refusal to be stopped is gone.
		systemctl(t, "stop", monitorUnit)
		for _, path := range []string{"/etc/cri-engine/conf.d/50-test.toml", "/etc/cri-engine/conf.d", "/etc/cri-engine"} {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
		removeEngineDirs(t, e)
		for _, dir := range []string{e.Root, e.Dir} {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		}
		if !t.Failed() {
			leaks(t, w, nil, w.empty)
		}
	})
	install("install")
	if err := os.MkdirAll(e.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	registries := filepath.Join(e.Dir, "registries.conf")
	if err := os.WriteFile(registries, []byte(harness.RegistriesConf(w.Registry.Addr)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/etc/cri-engine/conf.d/50-test.toml", fmt.Appendf(nil, "[image]\nregistries_conf = %q\n", registries), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	if e.conn, err = harness.Dial(e.Socket, notingSent...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.conn.Close() })
	e.rt, e.img = runtimeapi.NewRuntimeServiceClient(e.conn), runtimeapi.NewImageServiceClient(e.conn)
	systemctl(t, "daemon-reload")
	systemctl(t, "start", engineUnit)
	return e
}

func systemctl(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(within(t, time.Minute), "systemctl", args...).CombinedOutput(); err != nil {
		t.Errorf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// unit is a property of a unit.
func unit(t testing.TB, name, property string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "-P", property, name).Output()
	if err != nil {
		t.Fatalf("systemctl show %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

func number(t testing.TB, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
