package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/internal/cgroup"
	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/oci"
)

// needed are the capabilities that the engine can't do without, wanted those
// without which it does less.
var (
	needed = map[string]uint{
		"CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "FOWNER": unix.CAP_FOWNER,
		"SETUID": unix.CAP_SETUID, "SETGID": unix.CAP_SETGID, "SETPCAP": unix.CAP_SETPCAP, "MKNOD": unix.CAP_MKNOD,
		"KILL": unix.CAP_KILL, "SYS_CHROOT": unix.CAP_SYS_CHROOT, "SYS_ADMIN": unix.CAP_SYS_ADMIN, "NET_ADMIN": unix.CAP_NET_ADMIN,
	}
	wanted = map[string]uint{"SYS_RESOURCE": unix.CAP_SYS_RESOURCE, "SYS_PTRACE": unix.CAP_SYS_PTRACE}
)

func checkRoot(_ context.Context, m *machine) finding {
	if os.Geteuid() != 0 {
		return fail("sudo "+program+" doctor", "not root: many checks below fail for that alone")
	}
	set, err := strconv.ParseUint(m.field("/proc/self/status", "CapEff:"), 16, 64)
	if err != nil {
		return warn("", "capabilities can't be read from /proc/self/status")
	}
	lacks := func(caps map[string]uint) (names []string) {
		for name, bit := range caps {
			if set&(1<<bit) == 0 {
				names = append(names, "CAP_"+name)
			}
		}
		slices.Sort(names)
		return names
	}
	if names := lacks(needed); len(names) > 0 {
		return fail("", "root without %s: run outside of the container, or give it these", strings.Join(names, ", "))
	}
	if names := lacks(wanted); len(names) > 0 {
		return warn("", "root without %s: OOM scores can't be lowered, nor limits raised", strings.Join(names, ", "))
	}
	return ok("root with all capabilities needed")
}

// field is the value behind a name at the start of a line.
func (m *machine) field(path, name string) string {
	for line := range strings.Lines(m.read(path)) {
		if rest, found := strings.CutPrefix(line, name); found {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// minKernel is the first with pidfd_open and waitid on a pidfd.
var minKernel = [2]int{5, 4}

// goodKernel is the first with cgroup.kill.
var goodKernel = [2]int{5, 14}

func checkKernel(_ context.Context, m *machine) finding {
	release := m.read("/proc/sys/kernel/osrelease")
	version := kernelVersion(release)
	if slices.Compare(version[:], minKernel[:]) < 0 {
		return fail("", "Linux %s: older than %d.%d", release, minKernel[0], minKernel[1])
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		err = unix.PidfdSendSignal(fd, 0, nil, 0)
		_ = unix.Close(fd)
	}
	if err != nil {
		return fail("", "Linux %s: processes can't be held by pidfd: %v", release, err)
	}
	if slices.Compare(version[:], goodKernel[:]) < 0 {
		return warn("", "Linux %s works; %d.%d or later ends containers at once (cgroup.kill)", release, goodKernel[0], goodKernel[1])
	}
	return ok("Linux %s, pidfd works", release)
}

// kernelVersion reads the first two numbers of a release such as "6.1.0-18-amd64".
func kernelVersion(release string) (v [2]int) {
	for i, part := range strings.SplitN(release, ".", 3)[:min(2, strings.Count(release, ".")+1)] {
		digits := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if digits >= 0 {
			part = part[:digits]
		}
		v[i], _ = strconv.Atoi(part)
	}
	return v
}

// checkNamespaces makes and pins a pod's namespaces as the engine does.
func checkNamespaces(_ context.Context, m *machine) finding {
	dir, err := m.scratchDir()
	if err != nil {
		return fail("", "no scratch directory: %v", err)
	}
	spec := cni.NamespaceSpec{
		Net: filepath.Join(dir, "net"), IPC: filepath.Join(dir, "ipc"), UTS: filepath.Join(dir, "uts"),
		Hostname: "doctor",
	}
	if err := cni.NewNamespaces(spec); err != nil {
		return fail("", "namespaces can't be made: %v", err)
	}
	m.netns = spec.Net
	if err := errors.Join(cni.Unpin(spec.IPC), cni.Unpin(spec.UTS)); err != nil {
		return fail("", "namespaces can't be unpinned: %v", err)
	}
	if !cni.Pinned(spec.Net) {
		return fail("", "a pinned namespace did not stay")
	}
	detail := "network, IPC and UTS namespaces can be made and pinned"
	if n := m.read("/proc/sys/user/max_user_namespaces"); n == "" || n == "0" {
		return warn("sysctl -w user.max_user_namespaces=65536", "%s; user namespaces are off", detail)
	}
	return ok("%s", detail)
}

// close undoes what checks left for later ones.
func (m *machine) close() {
	if m.netns != "" {
		if err := cni.Unpin(m.netns); err != nil {
			fmt.Fprintf(os.Stderr, "%s: doctor: %v\n", program, err)
		}
	}
	if m.scratch != "" {
		if err := os.RemoveAll(m.scratch); err != nil {
			fmt.Fprintf(os.Stderr, "%s: doctor: %v\n", program, err)
		}
	}
}

// checkOverlay mounts one where images will be: what is below matters (an
// overlay, an NFS or an eCryptfs can't be its upper directory).
func checkOverlay(_ context.Context, m *machine) finding {
	if m.cfg.Image.Driver != "overlay" && m.cfg.Image.Driver != "" {
		return ok("not needed with [image] driver = %q", m.cfg.Image.Driver)
	}
	base := nearest(m.cfg.Root)
	dir, err := os.MkdirTemp(base, ".cri-engine-doctor-")
	if err != nil {
		return fail("", "%s: %v", base, err)
	}
	err = tryOverlay(dir)
	err = errors.Join(err, os.RemoveAll(dir))
	switch {
	case err == nil:
		return ok("works on %s", base)
	case errors.Is(err, unix.ENODEV):
		return fail("modprobe overlay && echo overlay > /etc/modules-load.d/cri-engine.conf", "the kernel has no overlay filesystem")
	default:
		return fail("", "%s can't hold root filesystems of containers: %v", base, err)
	}
}

// tryOverlay mounts an overlay in a mount namespace of its own, so that it
// goes even when this process is killed, and writes through it.
func tryOverlay(dir string) error {
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower", "file"), []byte("lower"), 0o600); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		// Not unlocked: the thread has another mount namespace now, and ends with the goroutine.
		runtime.LockOSThread()
		done <- overlayHere(dir)
	}()
	return <-done
}

func overlayHere(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare the mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	err := os.WriteFile(filepath.Join(merged, "file"), []byte("upper"), 0o600)
	// Removing what is below makes a whiteout, a device node.
	err = errors.Join(err, os.Remove(filepath.Join(merged, "file")))
	return errors.Join(err, unix.Unmount(merged, 0))
}

// Controllers by whether a kubelet, and thus anybody, can do without.
var (
	neededControllers = []string{"cpu", "cpuset", "memory", "pids"}
	wantedControllers = map[bool][]string{true: {"io", "hugetlb"}, false: {"blkio", "hugetlb", "freezer", "devices"}}
)

const memoryFix = `add "cgroup_enable=memory" to the kernel's command line and reboot`

func checkCgroups(_ context.Context, m *machine) finding {
	unified := cgroup.Unified()
	mounts, err := cgroup.Mounts()
	if err != nil || len(mounts) == 0 {
		return fail("", "no cgroup hierarchy is mounted: %v", err)
	}
	has := func(controller string) bool { return mounts[controller] != "" }
	if unified {
		list := strings.Fields(m.read(filepath.Join(mounts[""], "cgroup.controllers")))
		has = func(controller string) bool { return slices.Contains(list, controller) }
	}
	missing := func(list []string) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(list), has), ", ")
	}
	if names := missing(neededControllers); names != "" {
		return fail(memoryFix, "cgroup controllers missing: %s", names)
	}
	if err := tryCgroup(mounts, unified); err != nil {
		return fail("", "cgroups can't be made: %v", err)
	}
	driver, err := oci.DetectCgroupDriver(m.cfg.Runtime.CgroupDriver)
	if err != nil {
		return fail("", "%v", err)
	}
	names := missing(wantedControllers[unified])
	switch {
	case !unified:
		return warn(`add "systemd.unified_cgroup_hierarchy=1" to the kernel's command line and reboot`,
			"cgroup v1, driver %s: works, but a kubelet takes it only with failCgroupV1: false", driver)
	case names != "":
		return warn("", "cgroup v2, driver %s; controllers missing: %s", driver, names)
	}
	return ok("cgroup v2, driver %s", driver)
}

// tryCgroup makes a cgroup and removes it.
func tryCgroup(mounts cgroup.Dirs, unified bool) error {
	root := mounts["memory"]
	if unified {
		root = mounts[""]
	}
	dir, err := os.MkdirTemp(root, "cri-engine-doctor-")
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

func checkSeccomp(_ context.Context, m *machine) finding {
	actions := m.read("/proc/sys/kernel/seccomp/actions_avail")
	if !strings.Contains(" "+actions+" ", " errno ") {
		return fail("", "the kernel has no seccomp filters: containers would run unconfined")
	}
	if !strings.Contains(" "+actions+" ", " user_notif ") {
		return warn("", "seccomp filters work; the kernel has no user notification")
	}
	return ok("filters work")
}

// number reads a decimal number from a file of /proc.
func (m *machine) number(path string) (int64, bool) {
	fields := strings.Fields(m.read(path))
	if len(fields) == 0 {
		return 0, false
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	return n, err == nil
}

// What a node full of pods uses: each pod has some watchers of its own.
const (
	goodInstances = 1024
	goodWatches   = 65536
)

func checkInotify(_ context.Context, m *machine) finding {
	instances, found := m.number("/proc/sys/fs/inotify/max_user_instances")
	watches, foundWatches := m.number("/proc/sys/fs/inotify/max_user_watches")
	switch {
	case !found || !foundWatches:
		return warn("", "the kernel has no inotify limits to read")
	case instances < goodInstances || watches < goodWatches:
		return warn(fmt.Sprintf("printf 'fs.inotify.max_user_instances=%d\\nfs.inotify.max_user_watches=%d\\n' > /etc/sysctl.d/90-inotify.conf && sysctl --system",
			max(8192, instances), max(524288, watches)),
			"%d instances and %d watches: few for a node full of pods", instances, watches)
	}
	return ok("%d instances, %d watches", instances, watches)
}

// What a node with a few hundred containers needs.
const (
	goodFiles = 65536
	goodPids  = 32768
)

func checkLimits(_ context.Context, m *machine) finding {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return warn("", "the limit of open files can't be read: %v", err)
	}
	pids, _ := m.number("/proc/sys/kernel/pid_max")
	switch {
	case pids < goodPids:
		return warn("sysctl -w kernel.pid_max=4194304", "%d processes in all: few for a node", pids)
	case files.Max < goodFiles:
		return warn("", "%d open files at most in this shell: the units in conf/ ask for more themselves", files.Max)
	}
	return ok("%d open files, %d processes", files.Max, pids)
}

func checkSwap(_ context.Context, m *machine) finding {
	if devices := strings.Count(m.read("/proc/swaps"), "\n"); devices > 0 {
		return warn("swapoff -a, and remove it from /etc/fstab; or set failSwapOn: false for the kubelet",
			"on: a kubelet refuses to start unless told otherwise")
	}
	return ok("off")
}
