package server

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	enginev1 "github.com/cri-engine/cri-engine/api/engine/v1"
	"github.com/cri-engine/cri-engine/internal/config"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/stats"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// fake is an engine, a store and networks that answer what a test wants.
type fake struct {
	// err is what every call that changes something returns.
	err error
	// hook, when set, runs in those calls.
	hook        func(ctx context.Context) error
	pods        []*sandbox.Pod
	containers  []*sandbox.Container
	images      []storage.Image
	imageErr    error
	handlers    []*oci.Handler
	driver      oci.CgroupDriver
	monitorErr  error
	networkErr  error
	execResult  sandbox.ExecResult
	statsErr    error
	interfaces  []stats.Interface
	netStatsErr error
	bare        bool // containers did no I/O, and the machine has no huge pages
	progress    []storage.Progress
	hub         sandbox.Hub

	mu    sync.Mutex // Protects what is below.
	calls []any
	stuck map[string]chan struct{} // readings that do not end before their channel is closed
}

// call notes what was asked for.
func (f *fake) call(ctx context.Context, what any) error {
	f.mu.Lock()
	f.calls = append(f.calls, what)
	f.mu.Unlock()
	if f.hook != nil {
		return f.hook(ctx)
	}
	return f.err
}

func (f *fake) last() any {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		return nil
	}
	return f.calls[len(f.calls)-1]
}

func (f *fake) RunPod(ctx context.Context, c *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return "a1", f.call(ctx, "run "+c.GetMetadata().GetName()+" "+handler)
}
func (f *fake) StopPod(ctx context.Context, id string) error   { return f.call(ctx, "stop pod "+id) }
func (f *fake) RemovePod(ctx context.Context, id string) error { return f.call(ctx, "remove pod "+id) }
func (f *fake) Pod(id string) (*sandbox.Pod, error) {
	for _, p := range f.pods {
		if strings.HasPrefix(p.ID, id) {
			return p, nil
		}
	}
	return nil, sandbox.ErrNotFound
}
func (f *fake) Pods() []*sandbox.Pod { return f.pods }
func (f *fake) CreateContainer(ctx context.Context, podID string, c *runtimeapi.ContainerConfig, p *runtimeapi.PodSandboxConfig) (string, error) {
	return "c1", f.call(ctx, "create "+c.GetMetadata().GetName()+" in "+podID+" "+p.GetMetadata().GetName())
}
func (f *fake) StartContainer(ctx context.Context, id string) error { return f.call(ctx, "start "+id) }
func (f *fake) StopContainer(ctx context.Context, id string, t time.Duration) error {
	return f.call(ctx, "stop "+id+" "+t.String())
}
func (f *fake) RemoveContainer(ctx context.Context, id string) error {
	return f.call(ctx, "remove "+id)
}
func (f *fake) Container(id string) (*sandbox.Container, error) {
	for _, c := range f.containers {
		if strings.HasPrefix(c.ID, id) {
			return c, nil
		}
	}
	return nil, sandbox.ErrNotFound
}
func (f *fake) Containers() []*sandbox.Container { return f.containers }
func (f *fake) ContainersOf(podID string) []*sandbox.Container {
	var list []*sandbox.Container
	for _, c := range f.containers {
		if c.PodID == podID {
			list = append(list, c)
		}
	}
	return list
}
func (f *fake) Events() *sandbox.Subscription                  { return f.hub.Subscribe() }
func (f *fake) ReopenLog(ctx context.Context, id string) error { return f.call(ctx, "reopen "+id) }
func (f *fake) UpdateResources(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	return f.call(ctx, fmt.Sprintf("update %s %d", id, r.GetCpuShares()))
}
func (f *fake) UpdatePodResources(ctx context.Context, id string, overhead, r *runtimeapi.LinuxContainerResources) error {
	return f.call(ctx, fmt.Sprintf("update pod %s %d %d", id, overhead.GetCpuShares(), r.GetCpuShares()))
}
func (f *fake) ExecSync(ctx context.Context, id string, cmd []string, t time.Duration) (sandbox.ExecResult, error) {
	return f.execResult, f.call(ctx, "exec "+id+" "+strings.Join(cmd, " ")+" "+t.String())
}
func (f *fake) Handlers() []*oci.Handler       { return f.handlers }
func (f *fake) CgroupDriver() oci.CgroupDriver { return f.driver }
func (f *fake) MonitorStatus(context.Context) (monitor.Status, error) {
	return monitor.Status{KeeperPid: 7}, f.monitorErr
}
func (f *fake) Pull(ctx context.Context, r storage.PullRequest) (storage.Image, error) {
	return storage.Image{ID: "sha256:1"}, f.call(ctx, r)
}
func (f *fake) Image(ref string) (storage.Image, error) {
	if f.imageErr != nil {
		return storage.Image{}, f.imageErr
	}
	for _, i := range f.images {
		if i.ID == ref || len(i.RepoTags) > 0 && i.RepoTags[0] == ref {
			return i, nil
		}
	}
	return storage.Image{}, storage.ErrNotFound
}
func (f *fake) Images() []storage.Image                      { return f.images }
func (f *fake) Remove(ctx context.Context, ref string) error { return f.call(ctx, "rmi "+ref) }
func (f *fake) FsInfo() (images, containers storage.FsUsage) {
	return storage.FsUsage{Mountpoint: "/i", UsedBytes: 5, InodesUsed: 2, At: time.Unix(0, 9)}, storage.FsUsage{Mountpoint: "/c"}
}
func (f *fake) RootFSUsage(id string) (storage.FsUsage, error) {
	return storage.FsUsage{Mountpoint: "/" + id, UsedBytes: 3, At: time.Unix(0, 5)}, nil
}
func (f *fake) Watch(ctx context.Context) <-chan storage.Progress {
	c := make(chan storage.Progress)
	go func() {
		defer close(c)
		for _, p := range f.progress {
			select {
			case c <- p:
			case <-ctx.Done():
				return
			}
		}
		<-ctx.Done()
	}()
	return c
}
func (f *fake) Ready() error                 { return f.networkErr }
func (f *fake) SetPodCIDR(cidr string) error { return f.call(context.Background(), "cidr "+cidr) }

func (f *fake) Read(key string, _ int) (stats.Cgroup, error) {
	f.mu.Lock()
	gate := f.stuck[key]
	f.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return cgroupFigures(), f.statsErr
}

func (f *fake) Details(key string, pid int) (stats.Details, error) {
	c, err := f.Read(key, pid)
	if f.bare {
		return stats.Details{Cgroup: c}, err
	}
	return stats.Details{Cgroup: c, Periods: 1, HugePages: []stats.HugePages{{Size: "2MB", Usage: 1, Max: 2}},
		Devices: []stats.Device{{Name: "/dev/sda", Major: 8, ReadBytes: 5}}, Procs: 3, SoftOpenFiles: 1024}, err
}

func (f *fake) PodCgroup(key, _ string) (stats.Cgroup, uint64, error) {
	c, err := f.Read(key, 0)
	return c, 6, err
}

func (f *fake) Interfaces(string) ([]stats.Interface, error) { return f.interfaces, f.netStatsErr }

func cgroupFigures() stats.Cgroup {
	return stats.Cgroup{
		At: time.Unix(0, 77), CPU: stats.CPU{UsageNanos: 11, NanoCores: 12},
		Memory: stats.Memory{Usage: 1, WorkingSet: 2, RSS: 3, PageFaults: 4, MajorPageFaults: 5, Limit: 100, Available: 98, SwapUsage: 6, SwapAvailable: 7},
	}
}

// client is a server on a real socket, and clients of its services.
type client struct {
	runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
	engine enginev1.EngineClient
	server *Server
	path   string
}

// start serves the fake until the test ends.
func start(t testing.TB, f *fake) *client {
	t.Helper()
	cfg := config.Default()
	s := New(Options{Engine: f, Images: f, Networks: f, Stats: f, Config: cfg, Version: "1.2.3"})
	path := filepath.Join(t.TempDir(), "s", "cri.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(32<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := net.Dial("unix", path); err == nil {
			t.Error("the socket answers after the server has stopped")
		}
	})
	return &client{
		RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn),
		images:               runtimeapi.NewImageServiceClient(conn),
		engine:               enginev1.NewEngineClient(conn),
		server:               s, path: path,
	}
}

// syncBuffer is a buffer that many goroutines may use.
type syncBuffer struct {
	mu  sync.Mutex // Protects buf.
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns what was written, after klog has written all.
func (b *syncBuffer) String() string {
	klog.Flush()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func setKlog(t testing.TB, name, value string) {
	t.Helper()
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	if err := flags.Set(name, value); err != nil {
		t.Fatal(err)
	}
}
