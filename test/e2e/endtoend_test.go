//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

func TestAPodRunsEndToEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		endToEnd(t, w.engine(t, withHandler("runc")))
	})
}

// crun 1.8 refuses a cgroup mix where hugetlb is on v2, and whoever must have it
// on such a machine gives it a mount namespace in which v2 is not mounted. (In a
// world crun works as it is: no controller is given to a world's v2 cgroup.)
func TestAPodRunsEndToEndUnderCrun(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		endToEnd(t, w.engine(t, withHandler("crun"), withoutUnified))
	})
}

func withoutUnified(o *harness.EngineOptions) {
	o.Wrap = []string{"unshare", "-m", "sh", "-c", `if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"`, "sh"}
}

func endToEnd(t *testing.T, e *Engine) {
	imageID := e.pull(t, busyboxImage)
	p := e.runPod(t)

	s := p.status(t)
	if s.State != runtimeapi.PodSandboxState_SANDBOX_READY || s.Metadata.Name != p.Config.Metadata.Name || s.Labels["app"] != p.Config.Labels["app"] {
		t.Errorf("pod status %v", s)
	}
	addr, err := netip.ParseAddr(s.GetNetwork().GetIp())
	if err != nil || addr.IsLoopback() {
		t.Errorf("the pod's address is %q", s.GetNetwork().GetIp())
	}

	verbose, err := e.rt.PodSandboxStatus(call(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	if err != nil || !strings.Contains(fmt.Sprint(verbose.Info), p.Config.Metadata.Uid) {
		t.Errorf("the verbose status of the pod has %v, %v", verbose.GetInfo(), err)
	}

	before := time.Now()
	c := p.run(t, busyboxImage, shell("echo to stdout; echo to stderr >&2; echo $$ > /pid; trap 'exit 3' TERM; while :; do sleep 0.05; done"),
		resources(&runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20}))
	running := c.status(t)
	details, err := e.rt.ContainerStatus(call(t), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil || !strings.Contains(fmt.Sprint(details.Info), "pid") {
		t.Errorf("the verbose status of the container has %v, %v", details.GetInfo(), err)
	}
	if running.State != runtimeapi.ContainerState_CONTAINER_RUNNING || running.StartedAt < before.UnixNano() || running.FinishedAt != 0 {
		t.Errorf("running status %v", running)
	}
	if !strings.HasPrefix(running.ImageRef, e.w.ref("e2e/busybox@sha256:")) || running.ImageId != imageID || running.Image.GetImage() != c.Config.Image.Image {
		t.Errorf("image fields of the status: ref %q, id %q, image %q; pulled %q", running.ImageRef, running.ImageId, running.Image, imageID)
	}
	if running.LogPath != c.logPath() || running.Metadata.Name != c.Config.Metadata.Name {
		t.Errorf("log path %q, metadata %v", running.LogPath, running.Metadata)
	}
	checkCgroup(t, c, map[string]string{
		"memory/memory.limit_in_bytes": fmt.Sprint(64 << 20), "cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.shares": "512"})

	if out := c.exec(t, "sh", "-c", "cat /pid; hostname"); out != "1\n"+p.Config.Hostname+"\n" {
		t.Errorf("exec says %q", out)
	}
	eventually(t, 5*time.Second, "both lines are in the log", func() bool { return len(readLog(t, c.logPath())) == 2 })
	for _, l := range readLog(t, c.logPath()) {
		if string(l.Text) != "to "+l.Stream || l.Partial || l.At.Before(before) || l.At.After(time.Now()) {
			t.Errorf("log line %+v", l)
		}
	}

	c.stop(t, 10)
	ended := c.status(t)
	if ended.State != runtimeapi.ContainerState_CONTAINER_EXITED || ended.ExitCode != 3 || ended.Reason != "Error" || ended.FinishedAt < running.StartedAt {
		t.Errorf("status after the stop %v", ended)
	}
	one := p.run(t, busyboxImage, shell("exit 0"))
	if s := one.wait(t); s.ExitCode != 0 || s.Reason != "Completed" {
		t.Errorf("status of a container that ended with 0: %v", s)
	}
	if n := len(e.containers(t, &runtimeapi.ContainerFilter{PodSandboxId: p.ID})); n != 2 {
		t.Errorf("%d containers are listed, want 2", n)
	}

	p.stop(t)
	if s := p.status(t); s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("a stopped pod is %v", s.State)
	}
	p.remove(t)
	_, err = e.rt.PodSandboxStatus(call(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	wantCode(t, err, codes.NotFound, p.ID)
	_, err = e.rt.ContainerStatus(call(t), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	wantCode(t, err, codes.NotFound, c.ID)
	if pods := e.pods(t, nil); len(pods) != 0 {
		t.Errorf("listed after all was removed: %v", pods)
	}
	leaks(t, e.w, e, e.idle)
}

// v2Files are cgroup v2's counterparts of the v1 files that tests name, with
// what a value of the one is in the other.
var v2Files = map[string]func(string) (file, value string){
	"memory/memory.limit_in_bytes": func(v string) (string, string) { return "memory.max", v },
	"cpu/cpu.cfs_quota_us":         func(v string) (string, string) { return "cpu.max", v + " 100000" },
	"cpu/cpu.shares":               func(v string) (string, string) { return "cpu.weight", "" },
	"pids/pids.max":                func(v string) (string, string) { return "pids.max", v },
}

// checkCgroup compares files "controller/file" of the cgroups that the
// container's first process is in.
func checkCgroup(t *testing.T, c *Container, want map[string]string) {
	t.Helper()
	groups := cgroupsOf(t, c.pid(t))
	for name, value := range want {
		controller, file := filepath.Split(name)
		dir, v1 := groups[strings.TrimSuffix(controller, "/")]
		if !v1 {
			file, value = v2Files[name](value)
			dir = groups[""]
		}
		got, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Errorf("%v", err)
		} else if value != "" && strings.TrimSpace(string(got)) != value {
			t.Errorf("%s is %s, want %s", filepath.Join(dir, file), strings.TrimSpace(string(got)), value)
		}
	}
}

// cgroupsOf maps controllers to directories; the v2 hierarchy has the name "".
func cgroupsOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string]string{}
	for line := range strings.FieldsSeq(string(text)) {
		parts := strings.SplitN(line, ":", 3)
		for controller := range strings.SplitSeq(parts[1], ",") {
			mounted := strings.TrimPrefix(controller, "name=")
			if controller == "" {
				if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
					mounted = "unified"
				}
			}
			groups[controller] = filepath.Join("/sys/fs/cgroup", mounted, parts[2])
		}
	}
	return groups
}

// pid is the container's first process, as the world's PID namespace numbers
// it: the oldest in its cgroup. StartContainer returns when the runtime has let
// the process go; a moment later it is the container's own program.
func (c *Container) pid(t testing.TB) int {
	t.Helper()
	var pids []int
	eventually(t, 5*time.Second, "container "+c.ID+" has a process of its own", func() bool {
		pids = harness.Processes(func(p harness.Process) bool {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Pid))
			return err == nil && strings.Contains(string(text), c.ID) && !strings.HasPrefix(p.Comm, "runc") && p.Comm != "crun"
		})
		return len(pids) > 0
	})
	return pids[0]
}
