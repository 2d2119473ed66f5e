package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/config"
	"github.com/cri-engine/cri-engine/internal/labels"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// world stands in for what is outside of this package, and outlives an engine
// as the kernel and the monitor do.
type world struct {
	t           testing.TB
	root, state string
	labels      *labels.Labeler

	mu        sync.Mutex // Protects what is below.
	rootFSes  map[string]bool
	labelled  []string // mount labels of root filesystems, in order
	processes map[string]*monitor.Info
	signals   []string
	detached  []string
	events    chan monitor.Event
	ignore    syscall.Signal // the processes live on after this signal
	fail      map[string]error
	block     map[string]chan struct{}
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, root: t.TempDir(), state: t.TempDir(), rootFSes: map[string]bool{}, processes: map[string]*monitor.Info{},
		events: make(chan monitor.Event, 100), fail: map[string]error{}, block: map[string]chan struct{}{}}
	return w
}

func (w *world) engine() *Engine {
	w.t.Helper()
	e, err := New(w.t.Context(), Options{
		Root: w.root, State: w.state, Config: config.Default(), Images: w, Networks: w, Monitor: w,
		Handlers:     []*oci.Handler{{HandlerConfig: oci.HandlerConfig{Name: "auto", Type: "runc"}, Binary: "/bin/true", OCIVersion: "1.0.2"}},
		CgroupDriver: oci.Cgroupfs, NetNSDir: filepath.Join(w.state, "netns"), Labels: w.labels,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(e.Close)
	return e
}

func (w *world) at(ctx context.Context, point string) error {
	w.mu.Lock()
	err, gate := w.fail[point], w.block[point]
	w.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (w *world) Image(ref string) (storage.Image, error) {
	if ref != "image" {
		return storage.Image{}, fmt.Errorf("image %q: %w", ref, storage.ErrNotFound)
	}
	return storage.Image{ID: "sha256:" + strings.Repeat("1", 64), Config: ociv1.ImageConfig{Cmd: []string{"/bin/sh"}}}, nil
}

func (w *world) CreateRootFS(ctx context.Context, id, _ string, o storage.RootFSOptions) (storage.RootFS, error) {
	if err := w.at(ctx, "CreateRootFS"); err != nil {
		return storage.RootFS{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rootFSes[id] = true
	w.labelled = append(w.labelled, o.MountLabel)
	dir := filepath.Join(w.root, "rootfs", id)
	return storage.RootFS{Path: dir}, os.MkdirAll(dir, 0o700)
}

func (w *world) RemoveRootFS(ctx context.Context, id string) error {
	if err := w.at(ctx, "RemoveRootFS"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.rootFSes, id)
	return nil
}

func (w *world) RootFSes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ids []string
	for id := range w.rootFSes {
		ids = append(ids, id)
	}
	return ids
}

func (w *world) Intent(p cni.Pod) (cni.Pod, error)                { return p, nil }
func (w *world) Add(context.Context, cni.Pod) (cni.Result, error) { return cni.Result{}, nil }

func (w *world) Del(ctx context.Context, p cni.Pod) error {
	w.mu.Lock()
	w.detached = append(w.detached, p.ID)
	w.mu.Unlock()
	return w.at(ctx, "Del")
}

func (w *world) Create(ctx context.Context, r monitor.CreateRequest) (monitor.Info, error) {
	if err := w.at(ctx, "Create"); err != nil {
		return monitor.Info{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := os.Stat(filepath.Join(r.Bundle, "config.json")); err != nil {
		return monitor.Info{}, err
	}
	i := &monitor.Info{ID: r.ID, State: monitor.StateCreated, Pid: 1 << 30, StartTime: 7}
	w.processes[r.ID] = i
	return *i, nil
}

func (w *world) Start(ctx context.Context, id string) error {
	if err := w.at(ctx, "Start"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.processes[id].State = monitor.StateRunning
	return nil
}

func (w *world) Exec(context.Context, monitor.ExecRequest) (*monitor.ExecSession, error) {
	return nil, errors.New("not here")
}

func (w *world) Signal(_ context.Context, id, _ string, sig syscall.Signal) error {
	w.mu.Lock()
	i := w.processes[id]
	w.signals = append(w.signals, sig.String())
	ignore := w.ignore == sig
	w.mu.Unlock()
	if i == nil || i.Exit != nil {
		return monitor.ErrNotFound
	}
	if !ignore {
		w.exit(id, monitor.Exit{Code: 128 + int32(sig), Signal: int32(sig), At: time.Now()})
	}
	return nil
}

func (w *world) exit(id string, exit monitor.Exit) {
	w.mu.Lock()
	i := w.processes[id]
	i.State, i.Exit = monitor.StateExited, &exit
	ev := monitor.Event{Type: monitor.EventExit, Info: *i}
	w.mu.Unlock()
	w.events <- ev
}

func (w *world) Attach(string) *monitor.Attached                              { return nil }
func (w *world) Update(context.Context, string, []byte) error                 { return nil }
func (w *world) Kill(context.Context, string, string) error                   { return nil }
func (w *world) Stdin(string) *monitor.Stdin                                  { return nil }
func (w *world) CloseStdin(context.Context, string, string) error             { return nil }
func (w *world) Resize(context.Context, string, string, uint16, uint16) error { return nil }

func (w *world) ReopenLog(context.Context, string) error { return nil }

func (w *world) Delete(ctx context.Context, r monitor.DeleteRequest) error {
	if err := w.at(ctx, "Delete"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.processes, r.ID)
	return nil
}

func (w *world) List(context.Context) ([]monitor.Info, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []monitor.Info
	for _, i := range w.processes {
		list = append(list, *i)
	}
	return list, nil
}

func (w *world) Status(context.Context) (monitor.Status, error) { return monitor.Status{}, nil }
func (w *world) Events() <-chan monitor.Event                   { return w.events }

// podConfig is a pod on the host's namespaces: it needs no root to be made.
func podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "u-" + name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/test",
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER,
			}},
		},
	}
}

func containerConfig(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "image"},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			RunAsUser: &runtimeapi.Int64Value{Value: 1000},
			NamespaceOptions: &runtimeapi.NamespaceOption{
				Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER,
			},
		}},
	}
}

// started makes a pod and a running container in it.
func started(t testing.TB, e *Engine) (podID, id string) {
	t.Helper()
	podID = must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
	id = must(e.CreateContainer(t.Context(), podID, containerConfig("c"), podConfig("p")))(t)
	if err := e.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return podID, id
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (w *world) empty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := len(w.rootFSes) + len(w.processes)
	for _, dir := range []string{filepath.Join(w.root, "pods"), filepath.Join(w.root, "containers"), filepath.Join(w.state, "pods"), filepath.Join(w.state, "containers")} {
		entries, _ := os.ReadDir(dir)
		left += len(entries)
	}
	return left == 0
}

func state(t testing.TB, e *Engine, id string) *Container {
	t.Helper()
	return must(e.Container(id))(t)
}

func TestLife(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	podID, id := started(t, e)
	if s := state(t, e, id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.Pid == 0 || s.StartedAt.IsZero() {
		t.Errorf("after start: %+v", s)
	}
	w.exit(id, monitor.Exit{Code: 3, At: time.Now()})
	waitFor(t, func() bool { return state(t, e, id).State == runtimeapi.ContainerState_CONTAINER_EXITED })
	if s := state(t, e, id); s.ExitCode != 3 || s.Reason != "Error" || s.FinishedAt.IsZero() || s.Pid != 0 {
		t.Errorf("after exit: %+v", s)
	}
	waitFor(t, func() bool { l, _ := w.List(t.Context()); return len(l) == 0 })
	for range 2 {
		if err := errors.Join(e.StopContainer(t.Context(), id, time.Second), e.RemoveContainer(t.Context(), id), e.RemovePod(t.Context(), podID)); err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
	if !w.empty() {
		t.Error("something is left")
	}
}

func TestAnExitThatComesBeforeTheStartIsRecordedIsNotLost(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	gate := make(chan struct{})
	w.block["Start"] = gate
	podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
	id := must(e.CreateContainer(t.Context(), podID, containerConfig("c"), nil))(t)
	done := make(chan error)
	go func() { done <- e.StartContainer(t.Context(), id) }()
	waitFor(t, func() bool { l, _ := w.List(t.Context()); return len(l) == 1 })
	w.exit(id, monitor.Exit{Code: 0, At: time.Now()})
	waitFor(t, func() bool {
		c, _ := e.findContainer(id)
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.early != nil
	})
	w.mu.Lock()
	w.processes[id].State = monitor.StateExited
	w.mu.Unlock()
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := state(t, e, id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.Reason != "Completed" {
		t.Errorf("got %+v", s)
	}
}

func TestTheExitOfAnEarlierProcessIsNotTheContainers(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	gate := make(chan struct{})
	w.block["Start"] = gate
	podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
	id := must(e.CreateContainer(t.Context(), podID, containerConfig("c"), nil))(t)
	done := make(chan error)
	go func() { done <- e.StartContainer(t.Context(), id) }()
	waitFor(t, func() bool { l, _ := w.List(t.Context()); return len(l) == 1 })
	stale := monitor.Event{Type: monitor.EventExit, Info: monitor.Info{ID: id, State: monitor.StateExited, Pid: 1<<30 - 1, StartTime: 3, Exit: &monitor.Exit{Code: 137, At: time.Now()}}}
	unmade := monitor.Event{Type: monitor.EventExit, Info: monitor.Info{ID: id, State: monitor.StateExited, Exit: &monitor.Exit{Code: 255, Lost: true, At: time.Now()}}}
	w.events <- stale
	w.events <- unmade
	waitFor(t, func() bool {
		c, _ := e.findContainer(id)
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.early) == 2
	})
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.events <- stale
	w.events <- unmade
	w.exit(id, monitor.Exit{Code: 6, At: time.Now()})
	waitFor(t, func() bool { return state(t, e, id).State == runtimeapi.ContainerState_CONTAINER_EXITED })
	if s := state(t, e, id); s.ExitCode != 6 {
		t.Errorf("got exit code %d, want 6", s.ExitCode)
	}
}

func TestAFailedStartIsExitedWithACode(t *testing.T) {
	for _, point := range []string{"Create", "Start"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			e := w.engine()
			w.fail[point] = errors.New("exec: \"nothing\": not found")
			podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
			id := must(e.CreateContainer(t.Context(), podID, containerConfig("c"), nil))(t)
			if err := e.StartContainer(t.Context(), id); err == nil {
				t.Fatal("it started")
			}
			s := state(t, e, id)
			if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != startErrorCode || s.Reason != "StartError" || s.Message == "" {
				t.Errorf("got %+v", s)
			}
			if l, _ := w.List(t.Context()); len(l) != 0 {
				t.Errorf("processes are left: %v", l)
			}
		})
	}
}

func TestStop(t *testing.T) {
	stop := func(e *Engine, ctx context.Context, id string, timeout time.Duration) <-chan error {
		done := make(chan error, 1)
		go func() { done <- e.StopContainer(ctx, id, timeout) }()
		return done
	}
	t.Run("a cancelled stop kills nothing, and a second one's shorter deadline counts", func(t *testing.T) {
		w := newWorld(t)
		w.ignore = syscall.SIGTERM
		e := w.engine()
		_, id := started(t, e)
		ctx, cancel := context.WithCancel(t.Context())
		first, long := stop(e, ctx, id, time.Hour), stop(e, t.Context(), id, time.Hour)
		waitFor(t, func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.signals) > 0 })
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the cancelled stop returned %v", err)
		}
		if s := state(t, e, id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("after the cancelled stop: %v", s.State)
		}
		if err := <-stop(e, t.Context(), id, 10*time.Millisecond); err != nil {
			t.Error(err)
		}
		if err := <-long; err != nil {
			t.Error(err)
		}
		if s := state(t, e, id); s.ExitCode != 137 {
			t.Errorf("got %+v, want it killed", s)
		}
		if n := len(slices.DeleteFunc(w.signals, func(s string) bool { return s != syscall.SIGTERM.String() })); n > 2 {
			t.Errorf("SIGTERM was sent %d times", n)
		}
	})
	t.Run("timeout 0 sends SIGKILL only", func(t *testing.T) {
		w := newWorld(t)
		e := w.engine()
		_, id := started(t, e)
		if err := e.StopContainer(t.Context(), id, 0); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(w.signals, []string{syscall.SIGKILL.String()}) {
			t.Errorf("sent %q", w.signals)
		}
	})
}

func TestRetries(t *testing.T) {
	t.Run("a repeated request is answered with what it made", func(t *testing.T) {
		e := newWorld(t).engine()
		a, b := must(e.RunPod(t.Context(), podConfig("p"), ""))(t), must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
		if a != b {
			t.Errorf("two pods: %s and %s", a, b)
		}
		c, d := must(e.CreateContainer(t.Context(), a, containerConfig("c"), nil))(t), must(e.CreateContainer(t.Context(), a, containerConfig("c"), nil))(t)
		if c != d {
			t.Errorf("two containers: %s and %s", c, d)
		}
	})
	t.Run("the same name with another configuration exists already", func(t *testing.T) {
		e := newWorld(t).engine()
		podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
		other := podConfig("p")
		other.Labels = map[string]string{"a": "b"}
		if _, err := e.RunPod(t.Context(), other, ""); !errors.Is(err, ErrExists) {
			t.Errorf("got %v", err)
		}
		_ = must(e.CreateContainer(t.Context(), podID, containerConfig("c"), nil))(t)
		cfg := containerConfig("c")
		cfg.Args = []string{"x"}
		if _, err := e.CreateContainer(t.Context(), podID, cfg, nil); !errors.Is(err, ErrExists) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a creation that its caller gave up is rolled back, and a retry makes it anew", func(t *testing.T) {
		w := newWorld(t)
		e := w.engine()
		podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
		gate := make(chan struct{})
		w.block["CreateRootFS"] = gate
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := e.CreateContainer(ctx, podID, containerConfig("c"), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		if l := e.Containers(); len(l) != 0 {
			t.Errorf("%d containers are listed", len(l))
		}
		close(gate)
		_ = must(e.CreateContainer(t.Context(), podID, containerConfig("c"), nil))(t)
	})
	t.Run("an undo that fails is tried again until it works", func(t *testing.T) {
		w := newWorld(t)
		e := w.engine()
		podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
		w.fail["RemoveRootFS"] = errors.New("busy")
		bad := containerConfig("c")
		bad.Linux.SecurityContext.RunAsUser.Value = -5
		if _, err := e.CreateContainer(t.Context(), podID, bad, nil); err == nil {
			t.Fatal("it was created")
		}
		if len(e.Containers()) != 0 || len(w.RootFSes()) != 1 {
			t.Error("want it unlisted, with its root filesystem still there")
		}
		w.mu.Lock()
		delete(w.fail, "RemoveRootFS")
		w.mu.Unlock()
		waitFor(t, func() bool { return len(w.RootFSes()) == 0 })
	})
}

func TestAStoppedPodStartsNothing(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	podID, id := started(t, e)
	second := must(e.CreateContainer(t.Context(), podID, containerConfig("d"), nil))(t)
	if err := e.StopPod(t.Context(), podID); err != nil {
		t.Fatal(err)
	}
	if s := state(t, e, id); s.ExitCode != 137 {
		t.Errorf("the pod's container: %+v", s)
	}
	if err := e.StartContainer(t.Context(), second); !errors.Is(err, ErrPrecondition) {
		t.Errorf("start in a stopped pod: %v", err)
	}
	if _, err := e.CreateContainer(t.Context(), podID, containerConfig("x"), nil); !errors.Is(err, ErrPrecondition) {
		t.Errorf("create in a stopped pod: %v", err)
	}
	if p := must(e.Pod(podID))(t); p.Ready {
		t.Error("the stopped pod is ready")
	}
}

func TestANewEngineFindsAllAsItWas(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	podID, id := started(t, e)
	ended := must(e.CreateContainer(t.Context(), podID, containerConfig("d"), nil))(t)
	if err := e.StartContainer(t.Context(), ended); err != nil {
		t.Fatal(err)
	}
	created := must(e.CreateContainer(t.Context(), podID, containerConfig("e"), nil))(t)
	e.Close()
	w.mu.Lock()
	w.processes[ended].State, w.processes[ended].Exit = monitor.StateExited, &monitor.Exit{Code: 42, At: time.Now()}
	w.mu.Unlock()
	e = w.engine()
	if p := must(e.Pod(podID[:10]))(t); !p.Ready || p.Config.GetMetadata().GetName() != "p" {
		t.Errorf("the pod is %+v", p)
	}
	if s := state(t, e, id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the running one is %v", s.State)
	}
	if s := state(t, e, ended); s.ExitCode != 42 || s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the one that ended meanwhile is %+v", s)
	}
	if err := e.StartContainer(t.Context(), created); err != nil {
		t.Errorf("the created one does not start: %v", err)
	}
	if err := e.RemovePod(t.Context(), podID); err != nil || !w.empty() {
		t.Errorf("removed with %v, empty: %v", err, w.empty())
	}
}

func TestAfterAReboot(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	podID, id := started(t, e)
	e.Close()
	w.processes = map[string]*monitor.Info{}
	w.state = t.TempDir()
	for _, dir := range []string{"pods", "containers"} {
		entries, _ := os.ReadDir(filepath.Join(w.root, dir))
		for _, f := range entries {
			path := filepath.Join(w.root, dir, f.Name())
			data, _ := os.ReadFile(path)
			data = []byte(strings.ReplaceAll(string(data), e.bootID, "another-boot"))
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	e = w.engine()
	if p := must(e.Pod(podID))(t); p.Ready {
		t.Error("the pod is ready")
	}
	if s := state(t, e, id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != lostCode || s.Reason != "Unknown" {
		t.Errorf("the container is %+v", s)
	}
	if err := e.RemovePod(t.Context(), podID); err != nil || !w.empty() {
		t.Errorf("removed with %v, empty: %v", err, w.empty())
	}
}

// TestCutOff starts an engine on every phase that a record can have been left in.
func TestCutOff(t *testing.T) {
	for _, ph := range []phase{phaseCreating, phaseCreated, phaseStarting, phaseRunning, phaseExited, phaseRemoving} {
		for _, st := range []monitor.State{"", monitor.StateCreated, monitor.StateRunning, monitor.StateExited} {
			t.Run(fmt.Sprintf("a container left %s whose process is %q", ph, st), func(t *testing.T) {
				w := newWorld(t)
				e := w.engine()
				podID, id := started(t, e)
				c, _ := e.findContainer(id)
				e.Close()
				c.rec.Phase = ph
				if err := e.records.saveContainer(&c.rec); err != nil {
					t.Fatal(err)
				}
				switch info := w.processes[id]; st {
				case "":
					delete(w.processes, id)
				case monitor.StateExited:
					info.State, info.Exit = st, &monitor.Exit{Code: 9, At: time.Now()}
				default:
					info.State = st
				}
				e = w.engine()
				if ph == phaseStarting && (st == "" || st == monitor.StateCreated) {
					if err := e.StartContainer(t.Context(), id); err != nil {
						t.Errorf("a start that was cut off can't be repeated: %v", err)
					}
				}
				if ph == phaseStarting && st == monitor.StateExited && state(t, e, id).ExitCode != 9 {
					t.Errorf("got %+v", state(t, e, id))
				}
				if ph == phaseCreating || ph == phaseRemoving {
					waitFor(t, func() bool { return len(e.Containers()) == 0 })
				}
				if err := e.RemovePod(t.Context(), podID); err != nil {
					t.Fatal(err)
				}
				waitFor(t, w.empty)
			})
		}
	}
	for _, ph := range []phase{phaseCreating, phaseReady, phaseStopping, phaseStopped, phaseRemoving} {
		t.Run(fmt.Sprintf("a pod left %s", ph), func(t *testing.T) {
			w := newWorld(t)
			e := w.engine()
			podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
			p, _ := e.findPod(podID)
			e.Close()
			p.rec.Phase = ph
			if err := e.records.savePod(&p.rec); err != nil {
				t.Fatal(err)
			}
			e = w.engine()
			if ph == phaseCreating || ph == phaseRemoving {
				waitFor(t, func() bool { return w.empty() && len(e.Pods()) == 0 })
			}
			again := must(e.RunPod(t.Context(), podConfig("again"), ""))(t)
			for _, id := range []string{podID, again} {
				if err := e.RemovePod(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			waitFor(t, w.empty)
		})
	}
}

func TestWhatNoRecordKnowsIsSwept(t *testing.T) {
	w := newWorld(t)
	id := strings.Repeat("a", 64)
	w.rootFSes[id] = true
	w.processes[id] = &monitor.Info{ID: id, State: monitor.StateRunning}
	for _, kind := range []string{"pods", "containers"} {
		if err := os.MkdirAll(filepath.Join(w.state, kind, id, "ns"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.engine()
	waitFor(t, w.empty)
}

func TestADamagedRecordsContainerIsShownAsItIs(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	podID, id := started(t, e)
	e.Close()
	if err := os.WriteFile(filepath.Join(w.root, "containers", id+".json"), []byte(`{"version":1,"id":"`), 0o600); err != nil {
		t.Fatal(err)
	}
	e = w.engine()
	s := state(t, e, id)
	if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || !s.Restored || s.PodID != podID || s.Config.GetMetadata().GetName() != "c" {
		t.Errorf("got %+v", s)
	}
	if err := e.RemovePod(t.Context(), podID); err != nil || !w.empty() {
		t.Errorf("removed with %v, empty: %v", err, w.empty())
	}
}

func TestADamagedPodsRecordLeavesNothingBehind(t *testing.T) {
	for _, withContainer := range []bool{true, false} {
		t.Run(fmt.Sprintf("with a container: %v", withContainer), func(t *testing.T) {
			w := newWorld(t)
			e := w.engine()
			podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
			if withContainer {
				_ = must(e.CreateContainer(t.Context(), podID, containerConfig("c"), nil))(t)
			}
			e.Close()
			if err := os.WriteFile(filepath.Join(w.root, "pods", podID+".json"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			e = w.engine()
			if withContainer {
				if p := must(e.Pod(podID))(t); p.Ready || p.Config.GetMetadata().GetName() != "p" {
					t.Errorf("the pod is %+v", p)
				}
				if err := e.RemovePod(t.Context(), podID); err != nil {
					t.Fatal(err)
				}
			}
			waitFor(t, w.empty)
			w.mu.Lock()
			defer w.mu.Unlock()
			if !slices.Contains(w.detached, podID) {
				t.Error("its network was not given back")
			}
		})
	}
}

func TestAStuckPodDelaysNoOther(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	_, id := started(t, e)
	stuck := make(chan struct{})
	w.mu.Lock()
	w.block["CreateRootFS"] = stuck
	w.mu.Unlock()
	other := must(e.RunPod(t.Context(), podConfig("q"), ""))(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = e.CreateContainer(t.Context(), other, containerConfig("c"), nil)
	}()
	waitFor(t, func() bool {
		return waiters(&e.containerCreates, containerName(other, containerConfig("c").GetMetadata())) == 1
	})
	if len(e.Containers()) != 1 || len(e.Pods()) != 2 {
		t.Error("lists are wrong while a call hangs")
	}
	if err := e.StopContainer(t.Context(), id, 0); err != nil {
		t.Error(err)
	}
	close(stuck)
	<-done
}
