package oci

import (
	"bytes"
	"context"
	"crypto/rand"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/pause"
)

// node is the OCI runtime of this machine with a root filesystem to run,
// cgroups of its own, and nothing left of either after the test.
type node struct {
	testing.TB
	handler              *Handler
	dir, rootfs, cgroups string
}

// realNode skips the test where containers cannot be run.
func realNode(tb testing.TB) *node {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root to run containers")
	}
	busybox := staticBusybox(tb)
	n := &node{TB: tb, dir: tb.TempDir(), cgroups: "/cri-engine-test-" + rand.Text()}
	tb.Cleanup(n.removeCgroups)
	found, err := FindHandlers(context.Background(), []HandlerConfig{{Name: "auto", CgroupDriver: Cgroupfs}}, n.dir, filepath.Join(n.dir, "trial"))
	if errors.Is(err, exec.ErrNotFound) {
		tb.Skip("needs runc or crun: ", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	n.handler = found[0]
	// The container's user must be able to come here.
	for dir := n.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	n.rootfs = filepath.Join(n.dir, "rootfs")
	n.fill(busybox)
	return n
}

func staticBusybox(tb testing.TB) string {
	tb.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		tb.Skip("needs busybox-static: ", err)
	}
	f, err := elf.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		tb.Skip("needs a busybox that is static")
	}
	return path
}

func (n *node) fill(busybox string) {
	n.Helper()
	data, err := os.ReadFile(busybox)
	if err != nil {
		n.Fatal(err)
	}
	write(n, n.rootfs+"/bin/busybox", string(data))
	if err := os.Chmod(n.rootfs+"/bin/busybox", 0o755); err != nil {
		n.Fatal(err)
	}
	for _, applet := range strings.Fields("sh cat id pwd env ls touch stat sleep grep mkdir kill readlink head ps hostname") {
		link(n, "busybox", n.rootfs+"/bin/"+applet)
	}
	write(n, n.rootfs+"/etc/passwd", testPasswd)
	write(n, n.rootfs+"/etc/group", testGroup)
}

// input is a container that runs a script as the shell of the root filesystem.
func (n *node) input(script string) ContainerInput {
	n.Helper()
	in := testInput(n)
	in.ID = "cri-engine-test-" + rand.Text()
	in.RootFS, in.Handler, in.CgroupParent, in.Namespaces = n.rootfs, n.handler, n.cgroups, Namespaces{}
	in.Config.Command = []string{"sh", "-c", script}
	return in
}

func (n *node) spec(in ContainerInput) *specs.Spec {
	n.Helper()
	spec, _, err := ContainerSpec(in)
	if err != nil {
		n.Fatal(err)
	}
	return spec
}

func (n *node) bundle(spec *specs.Spec) string {
	n.Helper()
	data, err := json.Marshal(spec)
	if err != nil {
		n.Fatal(err)
	}
	dir := filepath.Join(n.dir, "bundle-"+rand.Text())
	write(n, dir+"/config.json", string(data))
	return dir
}

func (n *node) command(args ...string) *exec.Cmd {
	return exec.Command(n.handler.Binary, append([]string{"--root", filepath.Join(n.dir, "runtime")}, args...)...)
}

// run runs a container to its end and returns what it printed.
func (n *node) run(in ContainerInput) string {
	n.Helper()
	cmd := n.command("run", "--bundle", n.bundle(n.spec(in)), in.ID)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.Fatalf("run: %v, printed %q and %q", err, out, stderr.String())
	}
	return string(out)
}

// start starts a container in the background and returns its pid.
func (n *node) start(id string, spec *specs.Spec) int {
	n.Helper()
	dir := n.bundle(spec)
	// Files, not pipes: the container keeps them.
	log, err := os.Create(dir + "/log")
	if err != nil {
		n.Fatal(err)
	}
	defer log.Close()
	n.Cleanup(func() { _ = n.command("delete", "--force", id).Run() })
	for _, args := range [][]string{{"create", "--bundle", dir, "--pid-file", dir + "/pid", id}, {"start", id}} {
		cmd := n.command(args...)
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Run(); err != nil {
			n.Fatalf("%s: %v: %s", args[0], err, tail(log.Name()))
		}
	}
	pid, err := strconv.Atoi(readWord(dir + "/pid"))
	if err != nil {
		n.Fatal(err)
	}
	return pid
}

// cgroup returns a file of a container's cgroup, by its names in both versions.
func (n *node) cgroup(id, v1, v2 string) string {
	n.Helper()
	controller, _, _ := strings.Cut(v1, ".")
	file := filepath.Join(cgroupRoot, controller, n.cgroups, id, v1)
	if h, _ := thisHost(); h.cgroupV2 {
		file = filepath.Join(cgroupRoot, n.cgroups, id, v2)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		n.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func (n *node) removeCgroups() {
	dirs, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", n.cgroups))
	for _, dir := range append(dirs, filepath.Join(cgroupRoot, n.cgroups)) {
		// The runtime's delete may come back a moment before the kernel has let go of the child.
		for range 50 {
			if err := syscall.Rmdir(dir); err == nil || errors.Is(err, syscall.ENOENT) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		var fs syscall.Statfs_t
		if exists(dir) && syscall.Statfs(dir, &fs) == nil && fs.Type == 0x01021994 { // tmpfs: see removeCgroup
			_ = os.RemoveAll(dir)
		}
		if exists(dir) {
			n.Errorf("cgroup %s is left", dir)
		}
	}
}

// status reads a line of /proc/PID/status out of what a container printed.
func status(printed, key string) string {
	for line := range strings.Lines(printed) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	return ""
}

// mask is a set of capabilities as the kernel prints it.
func mask(caps []string) string {
	var bits uint64
	for i, c := range knownCaps {
		if slices.Contains(caps, c) {
			bits |= 1 << i
		}
	}
	return fmt.Sprintf("%016x", bits)
}

func TestRealContainers(t *testing.T) {
	n := realNode(t)
	t.Log(n.handler.Version)
	h, err := thisHost()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("a container is confined as its spec says", func(t *testing.T) {
		in := n.input("cat /proc/self/status; id; pwd; env; cat /proc/self/oom_score_adj; touch /x")
		sc := in.Config.Linux.SecurityContext
		sc.RunAsUser, sc.SupplementalGroups = &runtimeapi.Int64Value{Value: 1000}, []int64{99}
		sc.NoNewPrivs, sc.Seccomp = true, profileOf(byDefault, "")
		sc.MaskedPaths = []string{"/proc/kcore"}
		in.Config.Linux.Resources.OomScoreAdj = 300
		in.Config.WorkingDir = "/srv/made"
		in.Config.Envs = []*runtimeapi.KeyValue{{Key: "GREETING", Value: []byte("grüß dich")}}
		in.Config.Command[2] += " 2>/dev/null || echo refused"
		out := n.run(in)
		for key, want := range map[string]string{
			"Uid": "1000 1000 1000 1000", "Gid": "1001 1001 1001 1001", "Groups": "10 29 99 1001",
			"NoNewPrivs": "1", "Seccomp": "2",
			"CapBnd": mask(h.clamp(testCaps)), "CapInh": mask(nil), "CapAmb": mask(nil),
			// A user that is not root loses these at exec.
			"CapEff": mask(nil), "CapPrm": mask(nil),
		} {
			if got := status(out, key); got != want {
				t.Errorf("%s: got %q, want %q", key, got, want)
			}
		}
		for _, want := range []string{"\n/srv/made\n", "\nGREETING=grüß dich\n", "\nHOSTNAME=pod\n", "\nHOME=/home/app\n", "\n300\n", "\nrefused\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in %q", want, out)
			}
		}
	})
	t.Run("root has the default capabilities, and ambient ones reach other users", func(t *testing.T) {
		in := n.input("cat /proc/self/status")
		if out, want := n.run(in), mask(h.clamp(testCaps)); status(out, "CapEff") != want || status(out, "CapBnd") != want || status(out, "Seccomp") != "0" {
			t.Errorf("status %s", out)
		}
		in = n.input("cat /proc/self/status")
		in.Config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		in.Config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_ADMIN"}}
		if out, want := n.run(in), mask([]string{"CAP_NET_ADMIN"}); status(out, "CapEff") != want || status(out, "CapAmb") != want {
			t.Errorf("status %s", out)
		}
	})
	t.Run("a privileged container has all that we have, and the host's devices", func(t *testing.T) {
		in := n.input("cat /proc/self/status; stat -c '%t,%T' /dev/null; ls /dev | head -1000; touch /sys/fs/cgroup/x 2>&1 | grep Read-only; mkdir -p /proc/sys")
		in.Config.Linux.SecurityContext.Privileged = true
		out := n.run(in)
		if status(out, "CapEff") != mask(h.bounding) || strings.Contains(out, "Read-only") {
			t.Errorf("printed %s", out)
		}
		devices, err := devicesBelow("/dev", "/dev")
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range devices {
			if filepath.Dir(d.Path) == "/dev" && !strings.Contains(out, "\n"+filepath.Base(d.Path)+"\n") {
				t.Errorf("no %s", d.Path)
			}
		}
	})
	t.Run("mounts and devices are there as asked, and a read-only root is", func(t *testing.T) {
		in := n.input(`touch /x; touch /ro/x; touch /rw/x; touch /etc/hosts; cat /rw/deep/file; stat -c '%t,%T %a' /dev/mine; head -c 1 /dev/mine >/dev/null && echo can read; echo x >/dev/mine; echo; touch /sys/x; echo end`)
		dir := t.TempDir()
		write(t, dir+"/file", "deep file\n")
		hosts := filepath.Join(dir, "hosts")
		write(t, hosts, "")
		in.Hosts = hosts
		in.Config.Command[2] = "{ " + in.Config.Command[2] + "; } 2>&1"
		in.Config.Linux.SecurityContext.ReadonlyRootfs = true
		rw := t.TempDir()
		for _, d := range []string{n.rootfs + "/ro", n.rootfs + "/rw", rw + "/deep"} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		in.Config.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/rw/deep", HostPath: dir}, {ContainerPath: "/rw", HostPath: rw},
			{ContainerPath: "/ro", HostPath: dir, Readonly: true},
		}
		in.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/mine", Permissions: "r"}}
		out := n.run(in)
		for _, want := range []string{"/x: Read-only", "/ro/x: Read-only", "/etc/hosts: Read-only", "deep file\n", "1,5 666\n", "can read\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in %q", want, out)
			}
		}
		if !exists(rw + "/x") {
			t.Error("the writable mount was not written to")
		}
	})
	t.Run("a recursively read-only mount has no writable mount below, a read-only one has", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(dir+"/below", 0o755); err != nil {
			t.Fatal(err)
		}
		below := sharedMount(t)
		if err := syscall.Mount(below, dir+"/below", "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Unmount(dir+"/below", syscall.MNT_DETACH) }()
		for _, recursive := range []bool{false, true} {
			if recursive && !n.handler.RecursiveReadOnlyMounts {
				continue
			}
			in := n.input("touch /mnt/below/x 2>/dev/null && echo written || echo refused")
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/mnt", HostPath: dir, Readonly: true, RecursiveReadOnly: recursive}}
			if out, want := n.run(in), map[bool]string{false: "written\n", true: "refused\n"}[recursive]; out != want {
				t.Errorf("recursive %v: %q, want %q", recursive, out, want)
			}
		}
	})
	t.Run("a seccomp profile of the node forbids what it says", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "profile.json")
		write(t, file, `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`)
		in := n.input("mkdir /tmp-dir 2>/dev/null && echo made || echo refused")
		in.Config.Linux.SecurityContext.Seccomp = profileOf(localhost, file)
		if out := n.run(in); out != "refused\n" {
			t.Errorf("printed %q", out)
		}
	})
	t.Run("limits are in the cgroup", func(t *testing.T) {
		in := n.input("exec sleep 60")
		r := in.Config.Linux.Resources
		r.CpuPeriod, r.CpuQuota, r.CpuShares = 100000, 30000, 512
		r.MemoryLimitInBytes = 48 << 20
		in.PidsLimit = 77
		pid := n.start(in.ID, n.spec(in))
		for _, c := range []struct{ v1, v2, want1, want2 string }{
			{"memory.limit_in_bytes", "memory.max", "50331648", "50331648"},
			{"cpu.cfs_quota_us", "cpu.max", "30000", "30000 100000"},
			{"cpu.shares", "cpu.weight", "512", ""},
			{"pids.max", "pids.max", "77", "77"},
		} {
			want := c.want1
			if h.cgroupV2 {
				want = c.want2
			}
			if got := n.cgroup(in.ID, c.v1, c.v2); want != "" && got != want {
				t.Errorf("%s: got %q, want %q", c.v1, got, want)
			}
		}
		if h.swap && !h.cgroupV2 {
			if got := n.cgroup(in.ID, "memory.memsw.limit_in_bytes", ""); got != "50331648" {
				t.Errorf("memory and swap: %s", got)
			}
		}
		if !strings.Contains(readFile(fmt.Sprintf("/proc/%d/cgroup", pid)), n.cgroups+"/"+in.ID) {
			t.Errorf("process %d is not in the cgroup", pid)
		}
	})
}

func TestRealPod(t *testing.T) {
	n := realNode(t)
	rootfs, err := pause.Install(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	id := "cri-engine-test-" + rand.Text()
	spec, err := PauseSpec(PauseInput{ID: id, RootFS: rootfs, Handler: n.handler, CgroupDriver: Cgroupfs, CgroupParent: n.cgroups})
	if err != nil {
		t.Fatal(err)
	}
	init := n.start(id, spec)
	// start is done a moment before the runtime's last step, the exec.
	var stat string
	for end := time.Now().Add(20 * time.Second); status(stat, "Name") != "pause" && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		stat = readFile(fmt.Sprintf("/proc/%d/status", init))
	}
	for key, want := range map[string]string{
		"Name": "pause", "Uid": "65535 65535 65535 65535", "CapBnd": mask(nil), "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := status(stat, key); got != want {
			t.Errorf("%s of the pod's init: got %q, want %q", key, got, want)
		}
	}
	container := n.input("sleep 60 & exec sleep 60")
	container.Namespaces.PID = fmt.Sprintf("/proc/%d/ns/pid", init)
	container.Config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	containerSpec := n.spec(container)
	pid := n.start(container.ID, containerSpec)

	t.Run("a container in the pod's PID namespace has the pause program for its init", func(t *testing.T) {
		if got := n.exec(container.ID, containerSpec, "cat", "/proc/1/comm"); got != "pause\n" {
			t.Errorf("process 1 is %q", got)
		}
	})
	t.Run("an exec is the container's user", func(t *testing.T) {
		if got := n.exec(container.ID, containerSpec, "id", "-u"); got != "1000\n" {
			t.Errorf("user %q", got)
		}
	})
	t.Run("SIGTERM ends the init, and the pod with it", func(t *testing.T) {
		if err := syscall.Kill(init, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); alive(init) || alive(pid); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a process lives")
			}
		}
	})
}

// exec runs a command in a container and returns what it printed.
func (n *node) exec(id string, spec *specs.Spec, command ...string) string {
	n.Helper()
	process, err := ExecProcess(spec, command, false)
	if err != nil {
		n.Fatal(err)
	}
	data, err := json.Marshal(process)
	if err != nil {
		n.Fatal(err)
	}
	file := filepath.Join(n.dir, "process.json")
	write(n, file, string(data))
	cmd := n.command("exec", "--process", file, id)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.Fatalf("exec: %v: %s", err, stderr.String())
	}
	return string(out)
}

// alive is false for a process that is gone or waits to be reaped.
func alive(pid int) bool {
	state := status(readFile(fmt.Sprintf("/proc/%d/status", pid)), "State")
	return state != "" && state[0] != 'Z'
}

func TestRealTrial(t *testing.T) {
	n := realNode(t)
	t.Run("the trial leaves nothing but its result", func(t *testing.T) {
		state := t.TempDir()
		if _, err := FindHandlers(context.Background(), []HandlerConfig{{Name: "auto", CgroupDriver: Cgroupfs}}, state, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(state)
		if err != nil || len(left) != 1 || left[0].Name() != "handlers.json" {
			t.Errorf("left %v, error %v", left, err)
		}
		cgroups, _ := filepath.Glob(cgroupRoot + "/*/cri-engine-trial-*")
		if len(cgroups) > 0 {
			t.Errorf("cgroups %v", cgroups)
		}
	})
	t.Run("a runtime that cannot run containers fails it with the runtime's words", func(t *testing.T) {
		binary, _ := fakeRuntime(t, "runc", saysVersion, saysFeatures)
		h := *n.handler
		h.Binary = binary
		state := t.TempDir()
		if err := runTrial(context.Background(), &h, state, t.TempDir()); err == nil || !strings.Contains(err.Error(), "create") {
			t.Errorf("error %v", err)
		}
		if left, _ := os.ReadDir(state); len(left) != 0 {
			t.Errorf("left %v", left)
		}
	})
}

func BenchmarkContainerSpec(b *testing.B) {
	in := testInput(b)
	write(b, in.RootFS+"/etc/passwd", testPasswd)
	write(b, in.RootFS+"/etc/group", testGroup)
	in.Config.Linux.SecurityContext.Seccomp = profileOf(byDefault, "")
	in.Config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	for b.Loop() {
		if _, _, err := containerSpec(in, ableHost()); err != nil {
			b.Fatal(err)
		}
	}
}
