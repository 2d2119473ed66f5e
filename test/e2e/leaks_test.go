//go:build e2e

package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/test/harness"
)

// snapshot is everything a test could leave behind, by kind. Each entry is one
// thing as a reader would want it named in a failure.
type snapshot map[string][]string

// A kind of thing that can be left, and how to list it.
type leakKind struct {
	name string
	list func(w *World, e *Engine) ([]string, error)
}

var leakKinds = []leakKind{
	{"mount", listMounts},
	{"network namespace", listNetNS},
	{"process", listProcesses},
	{"cgroup", listCgroups},
	{"interface", listInterfaces},
	{"firewall rule", listFirewall},
	{"System V object", listSysV},
	{"file", listFiles},
	{descriptorKind, listDescriptors},
}

const descriptorKind = "descriptor"

func takeSnapshot(t testing.TB, w *World, e *Engine) snapshot {
	t.Helper()
	s := snapshot{}
	for _, k := range leakKinds {
		list, err := k.list(w, e)
		if err != nil {
			t.Fatalf("leak check: list %ss: %v", k.name, err)
		}
		list = slices.DeleteFunc(list, func(x string) bool { return isExcused(k.name, x) })
		slices.Sort(list)
		s[k.name] = list
	}
	return s
}

// settled is a snapshot of a state that does not change by itself any more:
// what an engine does behind its answers, such as asking the OCI runtime to
// forget a container that has ended, is over.
func settled(t testing.TB, w *World, e *Engine) snapshot {
	t.Helper()
	before := takeSnapshot(t, w, e)
	for deadline := time.Now().Add(slowly(10 * time.Second)); ; {
		time.Sleep(100 * time.Millisecond)
		now := takeSnapshot(t, w, e)
		diff := before.diff(now)
		if diff == nil {
			return now
		}
		if time.Now().After(deadline) {
			t.Errorf("nothing is asked of the engine and it does not come to rest:\n\t%s", strings.Join(diff, "\n\t"))
			return now
		}
		before = now
	}
}

// leaks compares now with before and fails the test with every difference.
// What a process or the kernel still tears down gets a moment.
func leaks(t testing.TB, w *World, e *Engine, before snapshot) {
	t.Helper()
	var diff []string
	for deadline := time.Now().Add(slowly(5 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		diff = before.diff(takeSnapshot(t, w, e))
		if diff == nil {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	const most = 40 // lines: one forgotten pod alone is thirty
	if n := len(diff); n > most {
		diff = append(diff[:most], fmt.Sprintf("… and %d more", n-most))
	}
	t.Errorf("left behind (+) or gone (-):\n\t%s", strings.Join(diff, "\n\t"))
}

// diff lists what is in one snapshot and not in the other, counting equal
// entries. Of descriptors only more than before count, and only those of a
// process that both snapshots saw: another one has others.
func (before snapshot) diff(after snapshot) []string {
	var out []string
	for _, k := range leakKinds {
		count := map[string]int{}
		for _, x := range after[k.name] {
			count[x]++
		}
		for _, x := range before[k.name] {
			count[x]--
		}
		if k.name == descriptorKind {
			maps.DeleteFunc(count, func(x string, n int) bool { return n < spareDescriptors(x) || !before.knowsProcess(x) })
		}
		var names []string
		for x, n := range count {
			if n != 0 {
				names = append(names, x)
			}
		}
		slices.Sort(names)
		for _, x := range names {
			sign := "+"
			if count[x] < 0 {
				sign = "-"
			}
			out = append(out, fmt.Sprintf("%s %s: %s", sign, k.name, x))
		}
	}
	return out
}

// spareDescriptors is how many more of a kind a process may have: the Go
// runtime keeps a few pipes for splice(2) until its garbage collector takes them.
func spareDescriptors(x string) int {
	if strings.HasSuffix(x, ": pipe") {
		return 6
	}
	return 1
}

// knowsProcess says whether the process whose descriptor x is had any before.
func (before snapshot) knowsProcess(x string) bool {
	owner, _, _ := strings.Cut(x, ": ")
	return slices.ContainsFunc(before[descriptorKind], func(y string) bool { return strings.HasPrefix(y, owner+": ") })
}

// crunCopy: the monitor's pump takes the OCI runtimes it started with it, when it is killed.
const crunCopy = "crun runs from a copy of itself that it makes, mounts and unlinks at every call; only a SIGKILL in between leaves it"

// excused is what the engine or the parts it calls leave on purpose. Nothing
// else may excuse a difference.
var excused = []struct{ kind, pattern, why string }{
	{"file", "/tmp/crun.??????", crunCopy},
	{"mount", "* /dev/* at /tmp/crun.??????", crunCopy},
	{"mount", "tmpfs tmpfs at /run/netns", "made with the first namespace and shared, as ip-netns(8) does, so that pins are seen everywhere"},
	{"file", "/run/netns", "likewise"},
	{"cgroup", "/sys/fs/cgroup/*/cri-engine", "the parent of pods that name none is the node's; a pod's own below it is not"},
	{"cgroup", "/sys/fs/cgroup/cri-engine", "likewise, on v2"},
	{"cgroup", "/sys/fs/cgroup/cri_engine.slice", "likewise, under systemd"},
	{"interface", "cri*0", "a network's bridge is made with its first pod and stays, as the bridge plugin has it"},
}

func listMounts(_ *World, e *Engine) ([]string, error) {
	// An engine in a mount namespace of its own has its mounts there.
	file := "/proc/self/mountinfo"
	if e != nil && e.Wrap != nil && e.alive() {
		file = fmt.Sprintf("/proc/%d/mountinfo", e.Pid())
	}
	mounts, err := readMounts(file)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range mounts {
		out = append(out, fmt.Sprintf("%s %s at %s", m.fsType, m.source, m.point))
	}
	return out, nil
}

// listNetNS lists the names in /run/netns and the namespaces that processes are in.
func listNetNS(*World, *Engine) ([]string, error) {
	var out []string
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, e := range entries {
		out = append(out, "/run/netns/"+e.Name())
	}
	seen := map[string]bool{}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil && !seen[ns] {
			seen[ns] = true
			out = append(out, ns)
		}
	}
	return out, nil
}

// listProcesses lists every process but the daemon and monitor of the test's
// engine, whose pids change when they are restarted, and kernel threads.
func listProcesses(_ *World, e *Engine) ([]string, error) {
	own := map[int]bool{}
	if e != nil {
		own[e.Pid()] = true
		for _, pid := range e.MonitorPids() {
			own[pid] = true
		}
	}
	var out []string
	harness.Processes(func(p harness.Process) bool {
		// The lists themselves are made with child processes, which come and go.
		if own[p.Pid] || p.Parent == os.Getpid() && (p.State == "Z" || p.Comm == "nft" || strings.Contains(p.Comm, "tables")) {
			return false
		}
		// Kernel threads, and udev's workers, which it has while interfaces come and go.
		if p.Parent == 2 || p.Pid == 2 || p.Comm == "(udev-worker)" {
			return false
		}
		zombie := ""
		if p.State == "Z" {
			zombie = ", a zombie"
		}
		out = append(out, fmt.Sprintf("%d %s (child of %d%s) %s", p.Pid, p.Comm, p.Parent, zombie, clip(p.Cmdline, 160)))
		return false
	})
	return out, nil
}

func clip(s string, most int) string {
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func listCgroups(*World, *Engine) ([]string, error) {
	roots, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // gone between the listing and the visit
			}
			if d.IsDir() && path != root {
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func listInterfaces(*World, *Engine) ([]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range links {
		out = append(out, l.Name)
	}
	return out, nil
}

func isExcused(kind, name string) bool {
	return slices.ContainsFunc(excused, func(x struct{ kind, pattern, why string }) bool {
		ok, _ := filepath.Match(x.pattern, name)
		return x.kind == kind && ok
	})
}

// listFirewall lists rules and the elements of sets and maps. Tables and
// chains without any are not listed: the plugins make them once per node and
// leave them by design.
func listFirewall(*World, *Engine) ([]string, error) {
	rules, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		return nil, fmt.Errorf("nft list ruleset: %w", err)
	}
	var out []string
	table, chain := "", ""
	for line := range strings.Lines(string(rules)) {
		text := strings.TrimSpace(line)
		switch indent := len(line) - len(strings.TrimLeft(line, "\t")); {
		case text == "" || text == "}" || strings.HasPrefix(text, "#"):
		case indent == 0:
			table = strings.TrimSuffix(text, " {")
		case indent == 1:
			chain = strings.TrimSuffix(text, " {")
		case strings.HasPrefix(text, "type ") || strings.HasPrefix(text, "policy ") || strings.HasPrefix(text, "comment ") || strings.HasPrefix(text, "flags "):
		default:
			out = append(out, fmt.Sprintf("%s, %s: %s", table, chain, withoutCounters(text)))
		}
	}
	for _, tool := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		text, err := exec.Command(tool).Output()
		if err != nil {
			continue // not on this machine: then nobody wrote rules with it
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "-A") {
				out = append(out, tool+": "+strings.TrimSpace(line))
			}
		}
	}
	return slices.DeleteFunc(out, isBaseRule), nil
}

func withoutCounters(rule string) string {
	fields := strings.Fields(rule)
	for i := 0; i+4 < len(fields); i++ {
		if fields[i] == "counter" && fields[i+1] == "packets" {
			fields = slices.Delete(fields, i+1, i+5)
		}
	}
	return strings.Join(fields, " ")
}

// isBaseRule: rules that the plugins write once per node and that serve every
// pod, such as the jump from a hook to a plugin's chain. They are no pod's.
func isBaseRule(rule string) bool {
	for _, base := range baseRules {
		if strings.Contains(rule, base) {
			return true
		}
	}
	return false
}

var baseRules = []string{
	// portmap's nftables backend: hooks that jump to its chains, the mark that asks for masquerading.
	"table inet cni_hostport, chain prerouting: ",
	"table inet cni_hostport, chain output: ",
	"table inet cni_hostport, chain masquerading: ",
	"chain hostports_all: jump ",
	"table ip cni_hostport, chain prerouting: ",
	"table ip cni_hostport, chain output: ",
	"table ip cni_hostport, chain masquerading: ",
	"table ip6 cni_hostport, chain prerouting: ",
	"table ip6 cni_hostport, chain output: ",
	"table ip6 cni_hostport, chain masquerading: ",
}

func listSysV(*World, *Engine) ([]string, error) {
	var out []string
	for _, kind := range []string{"shm", "sem", "msg"} {
		text, err := os.ReadFile("/proc/sysvipc/" + kind)
		if err != nil {
			return nil, err
		}
		for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
			if i > 0 { // the first is the header
				out = append(out, kind+" "+strings.Join(strings.Fields(line)[:2], " "))
			}
		}
	}
	return out, nil
}

// listFiles lists every name under the places that an engine or a plugin might
// write to: its root and state, the machine's runtime directories, and the
// default places it must not use.
func listFiles(w *World, e *Engine) ([]string, error) {
	places := []string{"/run", "/tmp", "/dev/shm", "/var/lib/cni", "/var/lib/cri-engine", "/etc/cni", "/var/lib/containers", "/var/log/pods", "/var/tmp"}
	if onHost() {
		places = []string{"/run/netns", "/run/cri-engine", "/run/cri-engine-cni", "/run/runc", "/run/crun", "/run/cni", "/run/containers", "/dev/shm", "/var/lib/cni", "/var/lib/cri-engine", "/etc/cni", "/var/lib/containers"}
	}
	if e != nil {
		places = append(places, e.Root, e.State)
	}
	var out []string
	for _, place := range places {
		err := filepath.WalkDir(place, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // absent, or gone meanwhile
			}
			if path == insideDir {
				return fs.SkipDir
			}
			if path != place && !isOwnFile(e, path) {
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// isOwnFile: files that are an engine's for as long as it lives, or that no
// pod's life decides over.
func isOwnFile(e *Engine, path string) bool {
	if e == nil {
		return path == "/run/xtables.lock" || path == "/run/mount"
	}
	switch base := filepath.Base(path); {
	case path == "/run/xtables.lock": // the iptables tools' own, made at their first use
	case strings.HasSuffix(base, ".lock"), path == "/run/mount": // libmount's, when a test calls mount(8)
	case strings.HasPrefix(base, "blob-info-cache"): // where blobs were seen, made with the first pull after a boot
	case strings.Contains(path, "/.cache/seccomp"), base == ".cache": // crun's, of filters that it has compiled
	default:
		return false
	}
	return true
}

// isOwnDescriptor: sockets and event descriptors come and go with clients that
// closed their connections a moment ago, and the Go runtime keeps its cgroup's
// cpu limit open, to set GOMAXPROCS by it, from when it first looks.
func isOwnDescriptor(target string) bool {
	return strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "anon_inode:inotify") ||
		strings.HasSuffix(target, "/cpu.cfs_quota_us") || strings.HasSuffix(target, "/cpu.cfs_period_us") || strings.HasSuffix(target, "/cpu.max")
}

// listDescriptors counts the daemon's and the monitor's open files by what they are.
func listDescriptors(_ *World, e *Engine) ([]string, error) {
	if e == nil || !e.alive() {
		return nil, nil
	}
	var out []string
	roles := map[string][]int{"daemon": {e.Pid()}, "monitor": e.MonitorPids()}
	for role, pids := range roles {
		for _, pid := range pids {
			entries, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
			if err != nil {
				return nil, nil
			}
			for _, fd := range entries {
				target, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/fd/" + fd.Name())
				if err != nil || isOwnDescriptor(target) {
					continue
				}
				kind, number, _ := strings.Cut(target, ":[") // pipe:[123], net:[123], anon_inode:[pidfd]
				if kind == "anon_inode" {
					kind = number
				}
				out = append(out, fmt.Sprintf("%s %d: %s", role, pid, kind))
			}
		}
	}
	return out, nil
}

func removeBridges(t testing.TB) {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if isExcused("interface", l.Name) {
			if link, err := netlink.LinkByName(l.Name); err == nil {
				_ = netlink.LinkDel(link)
			}
		}
	}
}

func unmountBelow(dir string) {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return
	}
	for _, m := range slices.Backward(mounts) {
		if m.point == dir || strings.HasPrefix(m.point, dir+"/") {
			_ = unix.Unmount(m.point, unix.MNT_DETACH)
		}
	}
}

// share makes dir a mount of its own whose propagation is shared.
func share(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
}

func mountTmpfs(t testing.TB, dir, marker string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, marker), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// removeCgroupDir removes a cgroup and those below it from every hierarchy.
func removeCgroupDir(t testing.TB, name string) {
	t.Helper()
	roots, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(root, name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil {
				t.Errorf("%v", err)
			}
		}
	}
}

func symlink(t testing.TB, target, link string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
}

func wantAbsent(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s is there: %v", path, err)
	}
}
