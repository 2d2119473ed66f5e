package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/internal/pause"
	"github.com/cri-engine/cri-engine/internal/thread"
)

// owned is a spec of all namespaces in a user namespace.
func owned(t testing.TB) NamespaceSpec {
	t.Helper()
	dir := t.TempDir()
	root, err := pause.Install(filepath.Join(dir, "holder"))
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, "ns", name) }
	return NamespaceSpec{
		Net: in("net"), IPC: in("ipc"), UTS: in("uts"), Hostname: "owned",
		User: &UserNamespace{
			Path: in("user"), Holder: filepath.Join(root, "pause"),
			UIDs: syscall.SysProcIDMap{HostID: 300000, Size: 1000}, GIDs: syscall.SysProcIDMap{HostID: 400000, Size: 1000},
		},
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "4321", "fs.mqueue.msg_max": "17"},
	}
}

func unpinAll(t testing.TB, s NamespaceSpec) {
	t.Helper()
	for _, path := range []string{s.Net, s.IPC, s.UTS, s.User.Path} {
		if err := Unpin(path); err != nil {
			t.Error(err)
		}
	}
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestOwnedNamespaces(t *testing.T) {
	needRoot(t)
	spec := owned(t)
	if err := NewNamespaces(spec); err != nil {
		t.Fatal(err)
	}
	defer unpinAll(t, spec)
	t.Run("the user namespace owns the others and is nobody's process's", func(t *testing.T) {
		for _, path := range []string{spec.Net, spec.IPC, spec.UTS} {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
			if err != nil {
				t.Fatal(err)
			}
			if got := inode(t, fmt.Sprintf("/proc/self/fd/%d", fd)); got != inode(t, spec.User.Path) {
				t.Errorf("%s is owned by the user namespace %d", path, got)
			}
			unix.Close(fd)
		}
		procs, err := filepath.Glob("/proc/[0-9]*/ns/user")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range procs {
			var st unix.Stat_t
			if unix.Stat(p, &st) == nil && st.Ino == inode(t, spec.User.Path) {
				t.Errorf("%s is in it", p)
			}
		}
	})
	t.Run("hostname and sysctls are set in them, also those that only their own root may write", func(t *testing.T) {
		err := thread.Run(func() error {
			for path, kind := range map[string]int{spec.Net: unix.CLONE_NEWNET, spec.IPC: unix.CLONE_NEWIPC, spec.UTS: unix.CLONE_NEWUTS} {
				if err := thread.Join(path, kind); err != nil {
					return err
				}
			}
			for name, want := range map[string]string{"net/ipv4/ip_forward": "1", "kernel/msgmax": "4321", "fs/mqueue/msg_max": "17", "kernel/hostname": "owned"} {
				if got, err := os.ReadFile("/proc/thread-self/root/proc/sys/" + name); err != nil || strings.TrimSpace(string(got)) != want {
					t.Errorf("%s: %q, %v", name, got, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if unix.Geteuid() != 0 || unix.Getegid() != 0 {
			t.Error("this process has other ids than before")
		}
	})
}

func TestOwnedNamespacesThatFailLeaveNothing(t *testing.T) {
	needRoot(t)
	for name, change := range map[string]func(*NamespaceSpec){
		"no holder":               func(s *NamespaceSpec) { s.User.Holder = "/no/such/program" },
		"a value that is refused": func(s *NamespaceSpec) { s.Sysctls["kernel.msgmax"] = "none" },
		"a path that is taken":    func(s *NamespaceSpec) { s.UTS = s.User.Holder },
		"a mapping of nothing":    func(s *NamespaceSpec) { s.User.UIDs.Size = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			spec := owned(t)
			change(&spec)
			if err := NewNamespaces(spec); err == nil {
				t.Error("no error")
				unpinAll(t, spec)
			}
			if left, _ := os.ReadDir(filepath.Dir(spec.Net)); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}
