package pause

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestBinary(t *testing.T) {
	for goarch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		t.Run("the "+goarch+" program is a static executable with a stack that is not", func(t *testing.T) {
			data, err := Binary(goarch)
			if err != nil {
				t.Fatal(err)
			}
			f, err := elf.NewFile(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if f.Machine != machine || f.Type != elf.ET_EXEC || f.Class != elf.ELFCLASS64 {
				t.Errorf("header %+v", f.FileHeader)
			}
			if len(f.Progs) != 2 {
				t.Fatalf("%d program headers, want 2", len(f.Progs))
			}
			load, stack := f.Progs[0], f.Progs[1]
			if load.Type != elf.PT_LOAD || load.Flags != elf.PF_R|elf.PF_X || load.Filesz != uint64(len(data)) || load.Memsz != load.Filesz {
				t.Errorf("load segment %+v of a file of %d bytes", load.ProgHeader, len(data))
			}
			if f.Entry < load.Vaddr || f.Entry >= load.Vaddr+load.Memsz {
				t.Errorf("entry %#x outside of the load segment %+v", f.Entry, load.ProgHeader)
			}
			if stack.Type != elf.PT_GNU_STACK || stack.Flags&elf.PF_X != 0 {
				t.Errorf("stack segment %+v", stack.ProgHeader)
			}
			if code := data[f.Entry-load.Vaddr:]; !bytes.HasSuffix(code, []byte(Text)) || bytes.Equal(code, []byte(Text)) {
				t.Error("the text does not follow the code")
			}
		})
	}
	t.Run("an architecture without a program is unsupported", func(t *testing.T) {
		if _, err := Binary("s390x"); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("error %v", err)
		}
	})
}

// TestArm64 runs the other architecture's program where an emulator is installed.
func TestArm64(t *testing.T) {
	emulator, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Skip("needs qemu-aarch64-static")
	}
	data, err := Binary("arm64")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	testProgram(t, emulator, path)
}

func TestProgram(t *testing.T) {
	testProgram(t, filepath.Join(install(t), "pause"))
}

// testProgram tests what needs no privilege. The emulator, if any, comes before the program.
func testProgram(t *testing.T, command ...string) {
	t.Run("with an argument it says its name and ends", func(t *testing.T) {
		out, err := exec.Command(command[0], append(command[1:], "-v")...).Output()
		if err != nil || string(out) != Text {
			t.Errorf("printed %q, error %v", out, err)
		}
	})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(fmt.Sprintf("it ends with 0 on signal %d and on no other", sig), func(t *testing.T) {
			cmd := start(t, command...)
			for _, other := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGQUIT, syscall.SIGCHLD} {
				if err := cmd.Process.Signal(other); err != nil {
					t.Fatalf("signal %d ended it: %v", other, err)
				}
			}
			time.Sleep(50 * time.Millisecond)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestInit(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a PID namespace")
	}
	program := filepath.Join(install(t), "pause")

	t.Run("as PID 1 it reaps hundreds of orphans and ends on SIGTERM", func(t *testing.T) {
		// The shell becomes the program; what it has started before are the orphans.
		cmd := exec.Command("/bin/sh", "-c", `i=0; while [ $i -lt 300 ]; do (sleep 0.2 &) ; i=$((i+1)); done; exec "$0"`, program)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
		begin(t, cmd)
		waitFor(t, func() bool { return comm(cmd.Process.Pid) == "pause" })
		waitFor(t, func() bool { return len(children(t, cmd.Process.Pid)) == 0 })
		rss, stack := memory(t, cmd.Process.Pid)
		t.Logf("resident: %d KiB, of which %d KiB its own", rss, stack)
		if stack > 64 {
			t.Errorf("%d KiB of memory of its own", stack)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestInstall(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := t.TempDir()
	rootfs, err := Install(dir)
	if err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T) {
		t.Helper()
		for _, name := range []string{"", "pause", "proc", "dev", "sys"} {
			st, err := os.Stat(filepath.Join(rootfs, name))
			if err != nil || st.Mode().Perm() != 0o755 {
				t.Errorf("%q: %v, error %v; want mode 0755", name, st, err)
			}
		}
		for d, want := range map[string]int{rootfs: 4, dir: 1} {
			if got, err := os.ReadDir(d); err != nil || len(got) != want {
				t.Errorf("%s holds %v, error %v; want %d entries", d, got, err, want)
			}
		}
		want, _ := Binary(runtime.GOARCH)
		if got, err := os.ReadFile(filepath.Join(rootfs, "pause")); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the program is not what it should be (error %v)", err)
		}
	}
	t.Run("it makes a root filesystem that every user can read, whatever the umask", check)
	t.Run("it puts back a program that is damaged and clears what a crash left", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(rootfs, "pause"), []byte("half"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(rootfs+".new", []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Install(dir); err != nil {
			t.Fatal(err)
		}
		check(t)
	})
	t.Run("it leaves a program that is right alone", func(t *testing.T) {
		before, _ := os.Stat(filepath.Join(rootfs, "pause"))
		if _, err := Install(dir); err != nil {
			t.Fatal(err)
		}
		if after, err := os.Stat(filepath.Join(rootfs, "pause")); err != nil || !os.SameFile(before, after) {
			t.Error("the file was replaced")
		}
	})
}

func install(tb testing.TB) string {
	tb.Helper()
	if _, err := Binary(runtime.GOARCH); err != nil {
		tb.Skip(err)
	}
	rootfs, err := Install(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	return rootfs
}

// start runs a command and waits until the program waits for a signal. (Its
// blocked signals do not tell: they are not shown as blocked while it waits.)
func start(tb testing.TB, command ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	begin(tb, cmd)
	asleep := 0
	waitFor(tb, func() bool {
		if asleep++; field(cmd.Process.Pid, "status", "State:") != "S" {
			asleep = 0
		}
		return asleep > 5
	})
	return cmd
}

func begin(tb testing.TB, cmd *exec.Cmd) {
	tb.Helper()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func waitFor(tb testing.TB, what func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(20 * time.Second); !what(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatal("waited 20 s in vain")
		}
	}
}

func comm(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(data))
}

// field returns the first word after a label in a file of /proc/PID.
func field(pid int, file, label string) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), label); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				return words[0]
			}
		}
	}
	return ""
}

func children(tb testing.TB, pid int) []string {
	tb.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Fields(string(data))
}

// memory returns what is resident, and what of it is private and written to, in KiB.
func memory(tb testing.TB, pid int) (rss, private int) {
	tb.Helper()
	rss, err1 := strconv.Atoi(field(pid, "smaps_rollup", "Rss:"))
	private, err2 := strconv.Atoi(field(pid, "smaps_rollup", "Private_Dirty:"))
	if err := errors.Join(err1, err2); err != nil {
		tb.Fatal(err)
	}
	return rss, private
}
