//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/test/harness"
)

// The environment that a world's processes are told by.
const (
	roleEnv    = "CRI_ENGINE_E2E_ROLE"    // "init" or "world"
	cgroupsEnv = "CRI_ENGINE_E2E_CGROUPS" // the world's cgroup directories, as the machine sees them
	nameEnv    = "CRI_ENGINE_E2E_WORLD"   // the world's name
	scratchEnv = "CRI_ENGINE_E2E_SHARED"  // the run's scratch directory
	binEnv     = "CRI_ENGINE_E2E_BIN"
	repoEnv    = "CRI_ENGINE_E2E_REPO"
)

// insideDir is where a world finds its things: /run is a tmpfs of its own, so
// nothing under it is the machine's.
const insideDir = "/run/e2e"

// worldLimit ends a world whose test does not.
const worldLimit = 30 * time.Minute

func onHost() bool { return os.Getenv("CRI_ENGINE_E2E_HOST") != "" }

// World is what a test function finds around it.
type World struct {
	Registry *harness.Registry
	// Dir is the world's own, on a filesystem that overlayfs takes.
	Dir   string
	empty snapshot // before any engine
	count int      // engines so far, to name them
}

// inWorld runs body in a world of its own, as the same test in a new process,
// and fails when it failed there.
func inWorld(t *testing.T, body func(t *testing.T, w *World)) {
	t.Helper()
	if os.Getenv(roleEnv) == "world" || onHost() {
		body(t, arrive(t))
		return
	}
	t.Parallel()
	name := fmt.Sprintf("e2e-%d-%s", os.Getpid(), strings.ReplaceAll(strings.ToLower(t.Name()), "/", "-"))
	cgroups, err := makeCgroups(name)
	t.Cleanup(func() { removeCgroups(t, cgroups) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), slowly(worldLimit))
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(scratchDir, "e2e.test"), "-test.v", "-test.timeout="+slowly(worldLimit).String(), "-test.run="+childPattern(t.Name()))
	cmd.Env = append(os.Environ(), roleEnv+"=init", cgroupsEnv+"="+strings.Join(cgroups, ":"), nameEnv+"="+name,
		scratchEnv+"="+scratchDir, binEnv+"="+binDir, repoEnv+"="+repoDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if os.Getenv("CRI_ENGINE_E2E_KEEP") == "" {
		// The world's mounts ended with it.
		_ = os.RemoveAll(filepath.Join(scratchDir, name))
	}
	if err != nil {
		t.Errorf("in its world: %v\n%s", err, out)
	} else if testing.Verbose() {
		t.Logf("%s", out)
	}
}

// underEachRuntime runs body under runc and under crun, in a world each.
func underEachRuntime(t *testing.T, body func(t *testing.T, w *World, runtime string)) {
	t.Helper()
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *World) { body(t, w, runtime) })
		})
	}
}

// childPattern is the -test.run that selects this test, and of its subtests
// those that the caller asked for.
func childPattern(name string) string {
	levels := strings.Split(name, "/")
	var pattern []string
	for _, level := range levels {
		pattern = append(pattern, "^"+regexp.QuoteMeta(level)+"$")
	}
	// An alternation of several tests is not taken apart: all subtests run then.
	all := flag.Lookup("test.run").Value.String()
	if asked := strings.Split(all, "/"); len(asked) > len(levels) && !strings.Contains(all, "|") {
		pattern = append(pattern, asked[len(levels):]...)
	}
	return strings.Join(pattern, "/")
}

// hierarchies are the machine's cgroup mounts, the v2 one (if any) too.
func hierarchies() ([]string, error) {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, m := range mounts {
		if m.fsType == "cgroup" || m.fsType == "cgroup2" {
			dirs = append(dirs, m.point)
		}
	}
	if dirs == nil {
		return nil, errors.New("no cgroup filesystem is mounted")
	}
	return dirs, nil
}

func makeCgroups(name string) ([]string, error) {
	roots, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var made []string
	for _, root := range roots {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return made, err
		}
		made = append(made, dir)
		// A new cpuset of cgroup v1 is empty and takes no process until it is filled.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if value, err := os.ReadFile(filepath.Join(root, file)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, file), value, 0o644)
			}
		}
	}
	return made, nil
}

// removeCgroups removes the world's cgroups after its init has ended and the
// kernel has killed all that was in its PID namespace.
func removeCgroups(t *testing.T, roots []string) {
	for _, root := range roots {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			removeBusyDir(t, dirs[i])
		}
	}
}

func removeBusyDir(t *testing.T, dir string) {
	// The last processes may still be on their way out.
	var err error
	for range 200 {
		if err = os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the world's cgroup stays: %v", err)
}

// worldInit is process 1 of a world: it starts the test and reaps.
func worldInit() int {
	for dir := range strings.SplitSeq(os.Getenv(cgroupsEnv), ":") {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: join cgroup:", err)
			return 1
		}
	}
	if err := os.Setenv(roleEnv, "world"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	attr := &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWCGROUP},
	}
	child, err := os.StartProcess(os.Args[0], os.Args, attr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: start the test:", err)
		return 1
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "e2e: wait:", err)
			return 1
		case pid == child.Pid && status.Signaled():
			fmt.Fprintln(os.Stderr, "e2e: the test was ended by", status.Signal())
			return 128 + int(status.Signal())
		case pid == child.Pid:
			return status.ExitStatus()
		}
	}
}

// enterWorld sets the filesystem of the namespaces up that the init made.
func enterWorld() error {
	scratch, bin, name := os.Getenv(scratchEnv), os.Getenv(binEnv), os.Getenv(nameEnv)
	own := filepath.Join(scratch, name)
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	groups, err := cgroupMounts()
	if err != nil {
		return err
	}
	for i, fs := range securityFilesystems {
		var st unix.Statfs_t
		securityFilesystems[i].mounted = unix.Statfs(fs.point, &st) == nil && st.Type == fs.magic
	}
	mounts := []struct{ source, target, fsType, options string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""}, // shows the interfaces of this network namespace
		{"tmpfs", "/sys/fs/cgroup", "tmpfs", "mode=755"},
		{"tmpfs", "/dev/shm", "tmpfs", "mode=1777"},
		{"tmpfs", "/run", "tmpfs noexec", "mode=755"}, // as Debian has it
		{"tmpfs", "/var/log", "tmpfs", "mode=755"},    // a kubelet has links in /var/log/containers
		{scratch, insideDir + "/scratch", "bind", ""},
		{own, insideDir + "/world", "bind", ""},
		{bin, insideDir + "/bin", "bind", ""},
		{os.Getenv(repoEnv), insideDir + "/repo", "bind", ""},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777"}, // these last: they hide where scratch and bin may be
		{"tmpfs", "/var/tmp", "tmpfs", "mode=1777"},
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := dropMounts(scratch, bin, os.Getenv(repoEnv)); err != nil {
		return err
	}
	if len(groups) == 1 && groups[0].fsType == "cgroup2" && groups[0].point == "/sys/fs/cgroup" {
		mounts[2].fsType, mounts[2].options, groups = "cgroup2", "", nil
	}
	for _, m := range mounts {
		if err := mountAt(m.source, m.target, m.fsType, m.options); err != nil {
			return err
		}
	}
	for _, g := range groups {
		if err := mountAt("cgroup", g.point, g.fsType, g.options); err != nil {
			return err
		}
	}
	for _, fs := range securityFilesystems {
		if fs.mounted {
			if err := mountAt(fs.fsType, fs.point, fs.fsType, ""); err != nil {
				return err
			}
		}
	}
	if err := delegateV2(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	// Where the caller's own place for runc was may be hidden by now.
	if err := os.Setenv("PATH", insideDir+"/bin:"+os.Getenv("PATH")); err != nil {
		return err
	}
	scratchDir, worldDir, binDir, repoDir = insideDir+"/scratch", insideDir+"/world", insideDir+"/bin", insideDir+"/repo"
	return os.Chdir(worldDir)
}

// securityFilesystems are those of the security modules, which a world's own
// /sys has where the machine's has them.
var securityFilesystems = []struct {
	fsType, point string
	magic         int64
	mounted       bool
}{
	{fsType: "securityfs", point: "/sys/kernel/security", magic: unix.SECURITYFS_MAGIC},
	{fsType: "selinuxfs", point: "/sys/fs/selinux", magic: unix.SELINUX_MAGIC},
}

// dropMounts detaches the copies that this mount namespace has of mounts that
// are none of the system's and none that the named paths are on, such as pods
// of an engine that runs on the machine: they would vanish from here when they
// are removed there.
func dropMounts(needed ...string) error {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if keepMount(m.point, needed) {
			continue
		}
		if err := unix.Unmount(m.point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("detach %s: %w", m.point, err)
		}
	}
	return nil
}

func keepMount(point string, needed []string) bool {
	for _, system := range []string{"/dev", "/proc", "/sys"} {
		if point == system || strings.HasPrefix(point, system+"/") {
			return true
		}
	}
	return point == "/" || slices.ContainsFunc(needed, func(path string) bool { return path == point || strings.HasPrefix(path, point+"/") })
}

func mountAt(source, target, fsType, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	flags := uintptr(0)
	if kind, noexec := strings.CutSuffix(fsType, " noexec"); noexec {
		flags, fsType = unix.MS_NOEXEC, kind
	}
	if fsType == "bind" {
		flags, fsType = unix.MS_BIND, ""
	}
	if err := unix.Mount(source, target, fsType, flags, options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	return nil
}

type cgroupMount struct{ point, fsType, options string }

// cgroupMounts are the machine's hierarchies in the form mount(2) wants them.
func cgroupMounts() ([]cgroupMount, error) {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []cgroupMount
	for _, m := range mounts {
		switch m.fsType {
		case "cgroup2":
			list = append(list, cgroupMount{m.point, m.fsType, ""})
		case "cgroup":
			var options []string
			for o := range strings.SplitSeq(m.superOptions, ",") {
				// A named hierarchy has no controller of its own.
				if strings.HasPrefix(o, "name=") {
					options = append(options, "none")
				}
				if o != "rw" && o != "ro" && !strings.HasPrefix(o, "release_agent=") {
					options = append(options, o)
				}
			}
			list = append(list, cgroupMount{m.point, m.fsType, strings.Join(options, ",")})
		}
	}
	return list, nil
}

// delegateV2 moves the world's own processes out of the root of a pure v2
// hierarchy: a cgroup below the real root cannot both hold processes and give
// controllers to its children.
func delegateV2() error {
	const root = "/sys/fs/cgroup"
	controllers, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		return nil // v1, or a mix whose controllers are on v1
	}
	if err := os.Mkdir(root+"/e2e", 0o755); err != nil {
		return err
	}
	for _, pid := range []string{"1", "0"} {
		if err := os.WriteFile(root+"/e2e/cgroup.procs", []byte(pid), 0o644); err != nil {
			return err
		}
	}
	enable := ""
	for c := range strings.FieldsSeq(string(controllers)) {
		enable += "+" + c + " "
	}
	return os.WriteFile(root+"/cgroup.subtree_control", []byte(enable), 0o644)
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// arrive readies a world, or the machine itself, for the test that runs in it.
func arrive(t *testing.T) *World {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slowly(time.Minute))
	defer cancel()
	w := &World{Dir: worldDir}
	t.Cleanup(func() { sent.skipped = t.Skipped() })
	if onHost() {
		w.Dir = filepath.Join(scratchDir, "host-"+strings.ReplaceAll(strings.ToLower(t.Name()), "/", "-"))
		if err := os.Mkdir(w.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.Registry, err = harness.StartRegistry(ctx, harness.RegistryOptions{Dir: filepath.Join(scratchDir, "registry")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Registry.Stop)
	w.empty = takeSnapshot(t, w, nil)
	return w
}

// freePort is a port of the world's loopback that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// mount is a line of mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	point, root, fsType, source, superOptions, propagation string
}

func readMounts(file string) ([]mount, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []mount
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		a, b := strings.Fields(before), strings.Fields(after)
		if !ok || len(a) < 6 || len(b) < 2 {
			return nil, fmt.Errorf("%s: unknown line %q", file, lines.Text())
		}
		m := mount{point: a[4], root: a[3], fsType: b[0], source: b[1], propagation: strings.Join(a[6:], " ")}
		if len(b) > 2 {
			m.superOptions = b[2]
		}
		list = append(list, m)
	}
	return list, lines.Err()
}
