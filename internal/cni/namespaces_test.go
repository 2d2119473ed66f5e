package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/internal/thread"
)

func TestNamespaceRequestsThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	ns := filepath.Join(dir, "net")
	cases := []struct {
		name string
		spec NamespaceSpec
	}{
		{"no namespace at all", NamespaceSpec{Hostname: "x"}},
		{"a relative path", NamespaceSpec{Net: "net"}},
		{"a path that climbs", NamespaceSpec{Net: dir + "/../net"}},
		{"a hostname for the host", NamespaceSpec{Net: ns, Hostname: "x"}},
		{"a hostname of 65 bytes", NamespaceSpec{UTS: ns, Hostname: strings.Repeat("x", 65)}},
		{"a network sysctl for the host", NamespaceSpec{IPC: ns, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}}},
		{"an IPC sysctl for the host", NamespaceSpec{Net: ns, Sysctls: map[string]string{"kernel.shmmax": "1"}}},
		{"a sysctl that is the host's", NamespaceSpec{Net: ns, IPC: ns, Sysctls: map[string]string{"vm.swappiness": "1"}}},
		{"a sysctl that climbs", NamespaceSpec{Net: ns, Sysctls: map[string]string{"net/../vm/swappiness": "1"}}},
		{"a value with a newline", NamespaceSpec{Net: ns, Sysctls: map[string]string{"net.ipv4.ip_forward": "1\n0"}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := NewNamespaces(c.spec); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

func TestSysctlPath(t *testing.T) {
	cases := map[string]string{
		"net.ipv4.ip_forward":                 "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":                 "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.forwarding":   "net/ipv4/conf/eth0.100/forwarding",
		"net/ipv4/conf/eth0.100/forwarding":   "net/ipv4/conf/eth0.100/forwarding",
		"kernel.shmmax":                       "kernel/shmmax",
		"net":                                 "net",
		"":                                    "",
		".net.ipv4":                           "",
		"net..ipv4":                           "",
		"net.ipv4.":                           "",
		"net/../../etc/passwd":                "",
		"net.//.x":                            "", // the part between the dots is ".."
		"net/./x":                             "",
		"net.ipv4 .x":                         "",
		"net.\x00":                            "",
		"net." + strings.Repeat("x", 300):     "",
		"net/ipv4/conf/" + "eth0" + "/../all": "",
	}
	for name, want := range cases {
		got, err := sysctlPath(name)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q is %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestSysctlNamespace(t *testing.T) {
	cases := map[string]string{
		"net/core/somaxconn": "net", "kernel/shmmax": "ipc", "kernel/shm_rmid_forced": "ipc", "kernel/msgmnb": "ipc",
		"kernel/sem": "ipc", "fs/mqueue/msg_max": "ipc",
		"kernel/sem_next_id": "", "kernel/shm/x": "", "kernel/hostname": "", "fs/file-max": "", "net": "", "network/x": "", "fs/mqueue": "",
	}
	for path, want := range cases {
		if got := sysctlNamespace(path); got != want {
			t.Errorf("%s belongs to %q, want %q", path, got, want)
		}
	}
}

func TestSplitSysctls(t *testing.T) {
	now, later := SplitSysctls(map[string]string{
		"net.ipv4.conf.eth0.forwarding": "1", "net/ipv6/conf/eth0/accept_ra": "2", "net.ipv4.conf.all.forwarding": "3", "net..eth0": "4", "kernel.sem": "5",
	})
	if len(later) != 2 || later["net.ipv4.conf.eth0.forwarding"] != "1" || later["net/ipv6/conf/eth0/accept_ra"] != "2" || len(now) != 3 {
		t.Errorf("now %v, later %v", now, later)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestNamespacesArePinnedAndSetUp(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	before := ownNamespaces(t)
	spec := NamespaceSpec{
		Net: dir + "/sub/net", IPC: dir + "/ipc", UTS: dir + "/uts", Hostname: strings.Repeat("h", 64),
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "77", "fs/mqueue/msg_max": "7"},
	}
	if err := NewNamespaces(spec); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{spec.Net, spec.IPC, spec.UTS} {
		defer Unpin(path)
		if !Pinned(path) {
			t.Errorf("%s is not pinned", path)
		}
	}
	err := thread.Run(func() error {
		for path, kind := range map[string]int{spec.Net: unix.CLONE_NEWNET, spec.IPC: unix.CLONE_NEWIPC, spec.UTS: unix.CLONE_NEWUTS} {
			if err := thread.Join(path, kind); err != nil {
				return err
			}
		}
		for path, want := range map[string]string{"net/ipv4/ip_unprivileged_port_start": "7", "kernel/shmmni": "77", "fs/mqueue/msg_max": "7", "kernel/hostname": spec.Hostname} {
			got, err := os.ReadFile("/proc/sys/" + path)
			if err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s is %q, %v; want %q", path, got, err, want)
			}
		}
		lo, err := net.InterfaceByName("lo")
		if err != nil || lo.Flags&net.FlagUp == 0 {
			t.Errorf("lo is %+v, %v", lo, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("sysctls can be set later", func(t *testing.T) {
		if err := SetSysctls(spec.Net, spec.IPC, map[string]string{"net.ipv4.conf.lo.forwarding": "1", "kernel.msgmni": "77"}); err != nil {
			t.Fatal(err)
		}
		if err := SetSysctls(spec.Net, "", map[string]string{"kernel.msgmni": "77"}); !errors.Is(err, ErrInvalid) {
			t.Errorf("a sysctl of the host's IPC namespace: %v", err)
		}
	})
	t.Run("a path that exists is refused, and what was pinned before it is undone", func(t *testing.T) {
		err := NewNamespaces(NamespaceSpec{Net: dir + "/net2", UTS: spec.UTS})
		if !errors.Is(err, os.ErrExist) {
			t.Errorf("got %v", err)
		}
		if _, err := os.Lstat(dir + "/net2"); !os.IsNotExist(err) {
			t.Errorf("the network namespace is left: %v", err)
		}
		if !Pinned(spec.UTS) {
			t.Error("the namespace that was there is gone")
		}
	})
	t.Run("a sysctl that the kernel refuses leaves nothing", func(t *testing.T) {
		for name, value := range map[string]string{"net.ipv4.no_such_thing": "1", "net.ipv4.ip_unprivileged_port_start": "many"} {
			if err := NewNamespaces(NamespaceSpec{Net: dir + "/net3", Sysctls: map[string]string{name: value}}); err == nil {
				t.Errorf("%s=%s was taken", name, value)
			}
			if _, err := os.Lstat(dir + "/net3"); !os.IsNotExist(err) {
				t.Errorf("left: %v", err)
			}
		}
	})
	for _, path := range []string{spec.Net, spec.IPC, spec.UTS, dir + "/never-there"} {
		if err := Unpin(path); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) || Pinned(path) {
			t.Errorf("%s is left", path)
		}
	}
	waitFor(t, func() bool { return ownNamespaces(t) == before }) // the thread ends after the call returned
}

func TestUnpinTakesWhatAReboootLeft(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if Pinned(path) {
		t.Error("a plain file is taken for a namespace")
	}
	if err := Unpin(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file is left: %v", err)
	}
	if err := Unpin(t.TempDir()); err == nil {
		t.Error("a directory was unpinned")
	}
}

// ownNamespaces lists the namespaces of all threads of the process.
func ownNamespaces(t *testing.T) string {
	t.Helper()
	seen := map[string]bool{}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		for _, kind := range []string{"net", "ipc", "uts"} {
			if ns, err := os.Readlink(fmt.Sprintf("/proc/self/task/%s/ns/%s", task.Name(), kind)); err == nil {
				seen[ns] = true
			}
		}
	}
	return fmt.Sprint(seen)
}

func TestManyAtOnceLeaveNoThreadBehind(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	before := ownNamespaces(t)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			path := filepath.Join(dir, fmt.Sprint(i))
			if err := NewNamespaces(NamespaceSpec{Net: path, UTS: path + "u"}); err != nil {
				t.Error(err)
			}
			err := InNetNS(path, func() error {
				links, err := net.Interfaces()
				for _, link := range links {
					if link.Name == "eth0" {
						t.Error("f runs in the host's namespace")
					}
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			for _, p := range []string{path, path + "u"} {
				if err := Unpin(p); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool { return ownNamespaces(t) == before })
}

func TestPinsSurviveIPNetnsAdd(t *testing.T) {
	if !onMachine(t) {
		return
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	path := iproute2Dir + "/cri-engine-test"
	if err := NewNamespaces(NamespaceSpec{Net: path}); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip", "netns", "add", "other")
	if list := sh(t, "ip", "netns", "list"); !strings.Contains(list, "cri-engine-test") {
		t.Errorf("ip netns does not see the pod: %s", list)
	}
	if err := Unpin(path); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the pin is left: %v", err)
	}
}
