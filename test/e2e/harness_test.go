//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/test/harness"
)

// A leak check that finds nothing proves nothing: this one is shown each kind.
func TestTheLeakCheckFindsEveryKindOfLeak(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		command := func(argv ...string) {
			t.Helper()
			if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", argv, err, out)
			}
		}
		dir := filepath.Join(w.Dir, "mnt")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		var sleeping *exec.Cmd
		shm := 0
		for _, c := range []struct {
			kind       string
			make, undo func()
		}{
			{"mount", func() { mountTmpfs(t, dir, "x") }, func() { unmountBelow(dir) }},
			{"network namespace", func() { command("ip", "netns", "add", "leak") }, func() {
				command("ip", "netns", "del", "leak")
				unmountBelow("/run/netns")
				_ = os.Remove("/run/netns")
			}},
			{"process", func() {
				sleeping = exec.Command("sleep", "1000")
				if err := sleeping.Start(); err != nil {
					t.Fatal(err)
				}
			}, func() { _ = sleeping.Process.Kill(); _ = sleeping.Wait() }},
			{"cgroup", func() {
				roots, err := hierarchies()
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Mkdir(filepath.Join(roots[0], "leak"), 0o755); err != nil {
					t.Fatal(err)
				}
			}, func() { removeCgroupDir(t, "leak") }},
			{"interface", func() { command("ip", "link", "add", "leak0", "type", "veth", "peer", "name", "leak1") }, func() {
				link, err := netlink.LinkByName("leak0")
				if err != nil {
					t.Fatal(err)
				}
				if err := netlink.LinkDel(link); err != nil {
					t.Fatal(err)
				}
			}},
			{"firewall rule", func() {
				command("nft", "add", "table", "ip", "leak")
				command("nft", "add", "chain", "ip", "leak", "c")
				command("nft", "add", "rule", "ip", "leak", "c", "tcp", "dport", "80", "counter", "accept")
			}, func() { command("nft", "delete", "table", "ip", "leak") }},
			{"System V object", func() {
				var err error
				if shm, err = unix.SysvShmGet(0, 4096, unix.IPC_CREAT|0o600); err != nil {
					t.Fatal(err)
				}
			}, func() {
				if _, err := unix.SysvShmCtl(shm, unix.IPC_RMID, nil); err != nil {
					t.Fatal(err)
				}
			}},
			{"file", func() {
				if err := os.WriteFile("/run/leak", nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}, func() { _ = os.Remove("/run/leak") }},
		} {
			t.Run(c.kind, func(t *testing.T) {
				c.make()
				found := strings.Join(w.empty.diff(takeSnapshot(t, w, nil)), "\n")
				if !strings.Contains(found, "+ "+c.kind+": ") {
					t.Errorf("it finds %q", found)
				}
				c.undo()
				if left := w.empty.diff(takeSnapshot(t, w, nil)); left != nil {
					t.Errorf("after it was removed the check still finds %q", left)
				}
			})
		}
	})
}

func TestTheRegistryAsksForItsPassword(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		r, err := harness.StartRegistry(call(t), harness.RegistryOptions{Dir: t.TempDir(), Private: true})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Stop()
		if err := r.Push(call(t), "a/b", smallImage("x"), "v1"); err != nil {
			t.Errorf("with the right password: %v", err)
		}
		r.Password = "wrong"
		if err := r.Push(call(t), "a/b", smallImage("x"), "v1"); err == nil {
			t.Error("it takes a wrong password")
		}
	})
}
