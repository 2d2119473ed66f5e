package monitor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is also the monitor, and the OCI runtime of those tests that
// need none of a real one's isolation: what a process is shows in its arguments.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "--state":
			monitorMain(os.Args[1:])
		case "--root":
			runtimeMain(os.Args[1:])
		case "--init":
			initMain(os.Args[2], os.Args[3:])
		}
	}
	os.Exit(m.Run())
}

func monitorMain(args []string) {
	flags := flag.NewFlagSet("monitor", flag.ExitOnError)
	state := flags.String("state", "", "")
	role := flags.String("role", "keeper", "")
	handover := flags.Int("handover", -1, "")
	_ = flags.Parse(args)
	var err error
	if *role == "pump" {
		err = RunPump(*state, "test")
	} else {
		err = RunKeeper(KeeperOptions{StateDir: *state, Handover: *handover, Version: "test"})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// node is a monitor with a client, in directories of its own.
type node struct {
	t       testing.TB
	dir     string
	runtime Runtime
	c       *Client
}

func selfPath(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	must(t, err)
	return path
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newNode(t testing.TB, rt Runtime) *node {
	t.Helper()
	// Not t.TempDir: a socket's path is short.
	dir, err := os.MkdirTemp("", "mon")
	must(t, err)
	n := &node{t: t, dir: dir, runtime: rt}
	n.runtime.Root = filepath.Join(dir, "runtime")
	must(t, os.Mkdir(n.runtime.Root, 0o700))
	t.Cleanup(n.stop)
	n.dial()
	return n
}

func (n *node) options() Options {
	return Options{StateDir: n.dir, Binary: selfPath(n.t), LogFile: filepath.Join(n.dir, "monitor.log")}
}

func (n *node) dial() {
	n.t.Helper()
	c, err := Dial(n.ctx(), n.options())
	must(n.t, err)
	n.c = c
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	n.t.Cleanup(cancel)
	return ctx
}

// stop ends the containers and the monitor, and shows the monitor's log if the test failed.
func (n *node) stop() {
	list, err := n.c.List(n.ctx())
	if err != nil {
		n.t.Errorf("list: %v", err)
	}
	for _, p := range list {
		if p.ExecID == "" {
			n.delete(p.ID)
		}
	}
	s := n.status()
	_ = n.c.Close()
	_ = syscall.Kill(s.KeeperPid, syscall.SIGTERM)
	eventually(n.t, "the monitor ends", func() bool {
		return syscall.Kill(s.KeeperPid, 0) != nil && syscall.Kill(s.PumpPid, 0) != nil
	})
	n.checkLog()
	if n.t.Failed() {
		if data, err := os.ReadFile(filepath.Join(n.dir, "monitor.log")); err == nil {
			n.t.Logf("monitor's log, its end:\n%s", data[max(0, len(data)-8000):])
		}
	}
	must(n.t, os.RemoveAll(n.dir))
}

// checkLog finds what a monitor's process says before it dies of itself, and the race detector's reports.
func (n *node) checkLog() {
	data, _ := os.ReadFile(filepath.Join(n.dir, "monitor.log"))
	for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
		if i := strings.Index(string(data), bad); i >= 0 {
			n.t.Errorf("the monitor says:\n%.6000s", data[max(0, i-100):])
		}
	}
}

func (n *node) status() Status {
	n.t.Helper()
	s, err := n.c.Status(n.ctx())
	must(n.t, err)
	return s
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Errorf("it did not happen in time that %s", what)
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// box is a container of a test.
type box struct {
	n      *node
	id     string
	log    string
	bundle string
}

// create makes a container that runs args, changed by edit.
func (n *node) create(args []string, edit ...func(*CreateRequest, map[string]any)) *box {
	n.t.Helper()
	b, err := n.tryCreate(args, edit...)
	must(n.t, err)
	return b
}

func (n *node) tryCreate(args []string, edit ...func(*CreateRequest, map[string]any)) (*box, error) {
	n.t.Helper()
	id := newID()
	b := &box{n: n, id: id, log: filepath.Join(n.dir, id[:8]+".log"), bundle: filepath.Join(n.dir, "b-"+id[:8])}
	r := CreateRequest{ID: id, Runtime: n.runtime, Bundle: b.bundle, LogPath: b.log}
	spec := testSpec(id, args)
	for _, e := range edit {
		e(&r, spec)
	}
	must(n.t, os.Mkdir(b.bundle, 0o700))
	data, err := json.Marshal(spec)
	must(n.t, err)
	must(n.t, os.WriteFile(filepath.Join(b.bundle, "config.json"), data, 0o600))
	_, err = n.c.Create(n.ctx(), r)
	return b, err
}

func (n *node) run(args []string, edit ...func(*CreateRequest, map[string]any)) *box {
	n.t.Helper()
	b := n.create(args, edit...)
	must(n.t, n.c.Start(n.ctx(), b.id))
	return b
}

func (n *node) delete(id string) {
	n.t.Helper()
	if err := n.c.Delete(n.ctx(), DeleteRequest{ID: id, Runtime: n.runtime, Force: true}); err != nil {
		n.t.Errorf("delete: %v", err)
	}
}

func (b *box) wait() Exit {
	b.n.t.Helper()
	e, err := b.n.c.Wait(b.n.ctx(), b.id, "")
	must(b.n.t, err)
	return e
}

// lines returns the log's lines with partial entries joined, and checks its format.
func (b *box) lines(stream string) []string {
	b.n.t.Helper()
	return logLines(b.n.t, b.log, stream)
}

func logLines(t testing.TB, path, stream string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	if len(data) > 0 && data[len(data)-1] != '\n' {
		t.Errorf("log ends in %q", data[max(0, len(data)-80):])
	}
	var lines []string
	partial := ""
	for _, entry := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		if entry == "" && len(data) == 0 {
			break
		}
		f := strings.SplitN(entry, " ", 4)
		if len(f) != 4 || f[2] != "F" && f[2] != "P" {
			t.Fatalf("torn log entry %.200q", entry)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			t.Fatalf("log entry %.200q: %v", entry, err)
		}
		if f[1] != stream {
			continue
		}
		partial += f[3]
		if f[2] == "F" {
			lines = append(lines, partial)
			partial = ""
		}
	}
	if partial != "" {
		lines = append(lines, partial)
	}
	return lines
}

func (n *node) shell(script string) []string {
	if n.runtime.Path == selfPath(n.t) {
		return []string{"/bin/sh", "-c", script}
	}
	return []string{"/bin/busybox", "sh", "-c", script}
}

// checkNumbers fails unless lines are 1, 2, … count.
func checkNumbers(t testing.TB, lines []string, count int) {
	t.Helper()
	for i, line := range lines {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d of %d is %.100q", i+1, len(lines), line)
		}
	}
	if len(lines) != count {
		t.Fatalf("%d lines, want %d", len(lines), count)
	}
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
