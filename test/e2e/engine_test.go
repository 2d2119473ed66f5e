//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// Engine is a running engine and a client of its socket.
type Engine struct {
	*harness.Engine
	w    *World
	conn *grpc.ClientConn
	rt   runtimeapi.RuntimeServiceClient
	img  runtimeapi.ImageServiceClient
	// idle is the snapshot of the engine with its images and no pods.
	idle snapshot
}

// with changes an engine's options before it is made.
type with func(*harness.EngineOptions)

func withConfig(toml string) with { return func(o *harness.EngineOptions) { o.Config += toml } }
func withHandler(name string) with {
	return func(o *harness.EngineOptions) { o.Handlers = []string{name} }
}

var podNumber atomic.Int64 // makes names unique in a test process

// engine starts an engine in the world, pulls the images that most tests use,
// and ends it with the test: then nothing may be left of it.
func (w *World) engine(t *testing.T, options ...with) *Engine {
	t.Helper()
	e := w.engineNotStarted(t, options...)
	e.start(t)
	e.pull(t, busyboxImage)
	e.warmUp(t)
	e.idle = settled(t, w, e)
	t.Cleanup(func() { leaks(t, w, e, e.idle) }) // runs before the engine is closed
	return e
}

// engineNotStarted makes an engine, to be started by the test.
func (w *World) engineNotStarted(t *testing.T, options ...with) *Engine {
	t.Helper()
	w.count++
	o := harness.EngineOptions{
		Dir: filepath.Join(w.Dir, fmt.Sprintf("engine%d", w.count)), State: fmt.Sprintf("/run/cri-engine-e2e%d-%d", os.Getpid(), w.count),
		Bin: binDir, Registries: []string{w.Registry.Addr},
	}
	for _, option := range options {
		option(&o)
	}
	inner, err := harness.NewEngine(o)
	if err != nil {
		t.Fatal(err)
	}
	labelDirs(t, inner)
	e := &Engine{Engine: inner, w: w}
	if e.conn, err = harness.Dial(e.Socket, notingSent...); err != nil {
		t.Fatal(err)
	}
	e.rt, e.img = runtimeapi.NewRuntimeServiceClient(e.conn), runtimeapi.NewImageServiceClient(e.conn)
	t.Cleanup(func() { e.end(t) })
	return e
}

func (e *Engine) start(t testing.TB) {
	t.Helper()
	if err := e.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// restart starts the daemon again after it was killed or terminated.
func (e *Engine) restart(t testing.TB) {
	t.Helper()
	e.start(t)
}

// warmUp runs one pod, so that what parts make once per node (a bridge, tables
// of rules) is there before the first snapshot.
func (e *Engine) warmUp(t *testing.T) {
	t.Helper()
	p := e.runPod(t)
	c := p.run(t, busyboxImage, sleeper)
	c.exec(t, "true")
	c.stop(t, 0)
	p.remove(t)
}

// end closes the engine and checks that nothing of it is left but its root directory.
func (e *Engine) end(t *testing.T) {
	t.Helper()
	if t.Failed() {
		t.Logf("the engine's log:\n%s", e.LogTail(8000))
	}
	e.conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), slowly(20*time.Second))
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Errorf("%v\n%s", err, e.LogTail(60_000))
	}
	if t.Failed() {
		return // what is left then was told above
	}
	// A stopped engine keeps its state directory: a monitor might live on. Its
	// sockets, locks and logs are not a leak; a mount or pin in it would be.
	removeEngineDirs(t, e)
	leaks(t, e.w, nil, e.w.empty)
}

func removeEngineDirs(t *testing.T, e *Engine) {
	t.Helper()
	// The storage library keeps its home bind-mounted on itself for as long as any
	// process uses it; it is no pod's, and goes with the directory.
	unmountBelow(filepath.Join(e.Root, "storage"))
	for _, dir := range []string{e.State, e.Dir} {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("the engine's directory cannot be removed: %v", err)
		}
	}
	// The bridge of the default network, the rule that masquerades it, and the
	// allocator's memory of the last address are made with the first pod, are the
	// node's and not a pod's, and nothing in CNI removes them.
	removeBridges(t)
	removeCgroupDir(t, "cri-engine")
	unmountBelow("/run/netns")
	_ = os.Remove("/run/netns")
	_ = exec.Command("nft", "delete", "table", "inet", "cri_engine_masquerade").Run()
	kept, err := filepath.Glob("/run/cri-engine-cni/*/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range kept {
		if base := filepath.Base(file); base == "lock" || strings.HasPrefix(base, "last_reserved_ip.") {
			_ = os.Remove(file)
		}
	}
	// Not RemoveAll: an address that is still reserved is a leak.
	for _, dir := range []string{"/run/cri-engine-cni/cri-engine", "/run/cri-engine-cni"} {
		_ = os.Remove(dir)
	}
}

func (e *Engine) alive() bool {
	select {
	case <-e.Done():
		return false
	default:
		return true
	}
}

// call gives a request the time that a kubelet would.
func call(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slowly(2*time.Minute))
	t.Cleanup(cancel)
	return ctx
}

// slowly is the limit of time on this machine for what may take d on a usual one.
func slowly(d time.Duration) time.Duration { return harness.Slowly(d) }

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slowly(d))
	t.Cleanup(cancel)
	return ctx
}

// monitorPids reads the keeper's and the pump's pid from the engine's verbose status.
func (e *Engine) monitorPids(t testing.TB) (keeper, pump int) {
	t.Helper()
	if keeper, pump = e.monitorNow(t); keeper == 0 || pump == 0 {
		t.Fatalf("the verbose status does not name the monitor's processes: %v", e.verbose(t))
	}
	return keeper, pump
}

// monitorNow is like monitorPids, for a moment in which there may be no monitor.
func (e *Engine) monitorNow(t testing.TB) (keeper, pump int) {
	t.Helper()
	resp, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return 0, 0
	}
	for _, info := range resp.Info {
		if keeper, pump = findPids(info); keeper > 0 && pump > 0 {
			return keeper, pump
		}
	}
	return 0, 0
}

// findPids looks for keeperPid and pumpPid anywhere in a JSON document.
func findPids(text string) (keeper, pump int) {
	var doc any
	if json.Unmarshal([]byte(text), &doc) != nil {
		return 0, 0
	}
	var walk func(any)
	walk = func(v any) {
		m, ok := v.(map[string]any)
		if !ok {
			return
		}
		for key, value := range m {
			n, _ := value.(float64)
			switch key {
			case "keeperPid":
				keeper = int(n)
			case "pumpPid":
				pump = int(n)
			default:
				walk(value)
			}
		}
	}
	walk(doc)
	return keeper, pump
}

// killAndWaitForNew kills a process of the monitor and waits until the engine
// names a living one in its place.
func (e *Engine) killAndWaitForNew(t testing.TB, pid int, which func() int) int {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
	for deadline := time.Now().Add(slowly(20 * time.Second)); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if now := which(); now != pid && now != 0 {
			return now
		}
	}
	t.Fatalf("nobody took the place of %d", pid)
	return 0
}

// wantCode fails unless err has the code and its message every text.
func wantCode(t testing.TB, err error, code codes.Code, texts ...string) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Errorf("got code %v (%v), want %v", got, err, code)
		return
	}
	for _, text := range texts {
		if !strings.Contains(status.Convert(err).Message(), text) {
			t.Errorf("the message %q does not say %q", status.Convert(err).Message(), text)
		}
	}
}

// eventually asks until ok or the time is up, and then fails with what was wanted.
func eventually(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(slowly(d)); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

// underSystemd says whether systemd makes the engine's cgroups.
func (e *Engine) underSystemd(t testing.TB) bool {
	t.Helper()
	resp, err := e.rt.RuntimeConfig(call(t), &runtimeapi.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD
}

func stopUnit(t testing.TB, name string) {
	t.Helper()
	if out, err := exec.Command("systemctl", "stop", name).CombinedOutput(); err != nil {
		t.Errorf("systemctl stop %s: %v\n%s", name, err, out)
	}
}

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }

func statusMessage(err error) string { return status.Convert(err).Message() }
