package sandbox

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/config"
	"github.com/cri-engine/cri-engine/internal/labels"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/pause"
)

// Options are the parts an engine is put together from.
type Options struct {
	// Root is where records last, State where sockets, pins and bundles are.
	Root, State string
	Config      config.Config
	Images      Images
	Networks    Networks
	// HandlerNetworks are those of handlers whose pods have others than the node's.
	HandlerNetworks map[string]Networks
	Monitor         Monitor
	AppArmor        oci.AppArmor
	Labels          *labels.Labeler // gives SELinux labels; nil for none
	Devices         Devices         // nil where CDI is switched off
	Hooks           Hooks           // nil where none are configured
	Handlers        []*oci.Handler
	Plugins         Plugins // NRI; nil where it is off
	CgroupDriver    oci.CgroupDriver
	// NetNSDir is where network namespaces are pinned; "" for /run/netns.
	NetNSDir string
}

// Engine holds every pod and container of this node. See the package comment.
type Engine struct {
	o        Options
	records  *records
	handlers map[string]*oci.Handler
	ulimits  map[string][2]uint64
	sysctls  map[string]string
	bootID   string
	// mark is in the name of every network namespace we pin, so that a sweep
	// never takes another engine's.
	mark        string
	pauseRootFS string

	podRuns, containerCreates flights
	hub                       Hub // tells of changes

	mu             sync.Mutex // Protects the maps; never held over anything slow.
	pods           map[string]*pod
	containers     map[string]*container
	podNames       map[string]*pod
	containerNames map[string]*container

	// Background work: exits, clean-up after them, retries of what failed. None of
	// it begins before restored is closed: recovery has the maps and pods to itself.
	restored chan struct{}

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New reads the records, compares them with what is really there, and returns
// when all that the engine would answer is true. What can only be put right
// slowly (a network to detach) goes on in the background, with its pod shown as not ready.
func New(ctx context.Context, o Options) (*Engine, error) {
	e, err := build(o)
	if err != nil {
		return nil, err
	}
	if err := e.recover(ctx); err != nil {
		e.Close()
		return nil, fmt.Errorf("recover: %w", err)
	}
	close(e.restored)
	e.goOwned(func(ctx context.Context) { e.records.flusher(ctx) })
	e.goOwned(e.watchMonitor)
	return e, nil
}

func build(o Options) (*Engine, error) {
	if o.NetNSDir == "" {
		o.NetNSDir = "/run/netns"
	}
	if o.Plugins == nil {
		o.Plugins = noPlugins{}
	}
	records, err := openRecords(o.Root)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"pods", "containers", "runtime"} {
		if err := os.MkdirAll(filepath.Join(o.State, dir), 0o711); err != nil {
			return nil, fmt.Errorf("state: %w", err)
		}
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	if o.Labels == nil {
		o.Labels = labels.Off("not asked for")
	}
	// Beneath root, since Debian mounts /run so that nothing there is executed.
	pauseRootFS, err := pause.Install(filepath.Join(o.Root, "pause"))
	if err == nil {
		err = o.Labels.Relabel(context.Background(), pauseRootFS, o.Labels.Shared())
	}
	if err != nil {
		return nil, fmt.Errorf("pause binary: %w", err)
	}
	ulimits, err := o.Config.Runtime.Ulimits()
	if err != nil {
		return nil, err
	}
	sysctls, err := o.Config.Runtime.Sysctls()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(o.Root))
	e := &Engine{
		o: o, records: records, ulimits: ulimits, sysctls: sysctls,
		bootID:         strings.TrimSpace(string(bootID)),
		mark:           "cri-" + hex.EncodeToString(sum[:4]) + "-",
		pauseRootFS:    pauseRootFS,
		handlers:       map[string]*oci.Handler{},
		pods:           map[string]*pod{},
		containers:     map[string]*container{},
		podNames:       map[string]*pod{},
		containerNames: map[string]*container{},
		restored:       make(chan struct{}),
	}
	for _, h := range o.Handlers {
		e.handlers[h.Name] = h
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e, nil
}

// Close ends the engine's own goroutines. Pods and containers run on.
func (e *Engine) Close() {
	e.cancel()
	e.wg.Wait()
	e.hub.Close()
}

// Handlers are the OCI runtimes that pods can ask for.
func (e *Engine) Handlers() []*oci.Handler { return e.o.Handlers }

// CgroupDriver says who makes cgroups here.
func (e *Engine) CgroupDriver() oci.CgroupDriver { return e.o.CgroupDriver }

// MonitorStatus asks the monitor for its own state.
func (e *Engine) MonitorStatus(ctx context.Context) (monitor.Status, error) {
	return e.o.Monitor.Status(ctx)
}

func (e *Engine) handler(name string) (*oci.Handler, error) {
	if name == "" {
		name = e.o.Config.Runtime.DefaultHandler
	}
	if h := e.handlers[name]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("runtime handler %q is not configured here: %w", name, ErrInvalid)
}

// goOwned runs f in a goroutine that Close ends and waits for.
func (e *Engine) goOwned(f func(context.Context)) {
	e.wg.Go(func() { f(e.ctx) })
}

// goRestored is goOwned for what needs the engine's start to be over.
func (e *Engine) goRestored(f func(context.Context)) {
	e.goOwned(func(ctx context.Context) {
		select {
		case <-e.restored:
			f(ctx)
		case <-ctx.Done():
		}
	})
}

// retry repeats f, which cleans something up, until it succeeds or the engine is
// closed; the next start finds what is left by its record.
func (e *Engine) retry(what, id string, f func(context.Context) error) {
	e.goRestored(func(ctx context.Context) {
		for wait := time.Second; ; wait = min(2*wait, time.Minute) {
			err := f(ctx)
			if err == nil {
				return
			}
			klog.ErrorS(err, "Clean-up failed and is tried again", "what", what, "id", id, "in", wait)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
	})
}

// toEnd runs f to its end even when the caller gives up, for calls that only go
// forward: a network half detached helps nobody. f's context ends after limit.
func (e *Engine) toEnd(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	done := make(chan error, 1)
	e.goOwned(func(context.Context) {
		fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		done <- f(fctx)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *Engine) runtimeTimeout() time.Duration {
	return time.Duration(e.o.Config.Runtime.OperationTimeout)
}

func (e *Engine) networkTimeout() time.Duration { return time.Duration(e.o.Config.Network.Timeout) }

// forwardTimeout bounds the calls that go forward to their end: a few of the
// runtime's and the network's, one after the other.
func (e *Engine) forwardTimeout() time.Duration {
	return 4*e.runtimeTimeout() + e.networkTimeout()
}

func (e *Engine) runtimeOf(h *oci.Handler) monitor.Runtime {
	root := h.Root
	if root == "" {
		root = filepath.Join(e.o.State, "runtime", h.Name)
	}
	return monitor.Runtime{Path: h.Binary, Root: root, SystemdCgroup: e.o.CgroupDriver == oci.Systemd}
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return hex.EncodeToString(b[:])
}

// find returns the one object whose id is, or starts with, the given one.
func find[T any](e *Engine, m map[string]T, kind, id string) (T, error) {
	var none T
	e.mu.Lock()
	defer e.mu.Unlock()
	if v, ok := m[id]; ok {
		return v, nil
	}
	var found []string
	if id != "" {
		for full := range m {
			if strings.HasPrefix(full, id) {
				found = append(found, full)
			}
		}
	}
	switch len(found) {
	case 0:
		return none, fmt.Errorf("%s %q: %w", kind, id, ErrNotFound)
	case 1:
		return m[found[0]], nil
	}
	return none, fmt.Errorf("%s %q: %d ids start so: %w", kind, id, len(found), ErrInvalid)
}

// Pod returns a pod by id or the start of one.
func (e *Engine) Pod(id string) (*Pod, error) {
	p, err := e.findPod(id)
	if err != nil {
		return nil, err
	}
	return p.snap.Load(), nil
}

func (e *Engine) findPod(id string) (*pod, error) {
	p, err := find(e, e.pods, "pod sandbox", id)
	if err == nil && p.snap.Load() == nil { // being made, or rolled back
		return nil, fmt.Errorf("pod sandbox %q: %w", id, ErrNotFound)
	}
	return p, err
}

// Pods returns all pods, the newest first. Those being made are not among them.
func (e *Engine) Pods() []*Pod {
	e.mu.Lock()
	list := make([]*Pod, 0, len(e.pods))
	for _, p := range e.pods {
		if s := p.snap.Load(); s != nil {
			list = append(list, s)
		}
	}
	e.mu.Unlock()
	sort.Slice(list, func(i, j int) bool {
		return newer(list[i].CreatedAt, list[j].CreatedAt, list[i].ID, list[j].ID)
	})
	return list
}

func newer(a, b time.Time, aID, bID string) bool {
	if a.Equal(b) {
		return aID < bID
	}
	return a.After(b)
}

// Container returns a container by id or the start of one.
func (e *Engine) Container(id string) (*Container, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return nil, err
	}
	return c.snap.Load(), nil
}

func (e *Engine) findContainer(id string) (*container, error) {
	c, err := find(e, e.containers, "container", id)
	if err == nil && c.snap.Load() == nil {
		return nil, fmt.Errorf("container %q: %w", id, ErrNotFound)
	}
	return c, err
}

// Containers returns all containers, the newest first, without those being made.
func (e *Engine) Containers() []*Container {
	e.mu.Lock()
	list := make([]*Container, 0, len(e.containers))
	for _, c := range e.containers {
		if s := c.snap.Load(); s != nil {
			list = append(list, s)
		}
	}
	e.mu.Unlock()
	sort.Slice(list, func(i, j int) bool {
		return newer(list[i].CreatedAt, list[j].CreatedAt, list[i].ID, list[j].ID)
	})
	return list
}

// ContainersOf returns the containers of one pod, the newest first.
func (e *Engine) ContainersOf(podID string) []*Container {
	p, err := e.findPod(podID)
	if err != nil {
		return nil
	}
	return p.snapshots()
}

// ImageInUse reports whether a container was made from the image.
func (e *Engine) ImageInUse(imageID string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if s := c.snap.Load(); s != nil && s.ImageID == imageID {
			return true
		}
	}
	return false
}

func isGone(err error) bool { return errors.Is(err, monitor.ErrNotFound) }
