package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	enginev1 "github.com/cri-engine/cri-engine/api/engine/v1"
)

// fakeRuntime is a container runtime that only remembers, and that can be told to fail.
type fakeRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	socket string

	mu         sync.Mutex // Protects all below.
	pods       []*runtimeapi.PodSandbox
	podConfigs map[string]*runtimeapi.PodSandboxConfig
	containers []*runtimeapi.ContainerStatus
	podOf      map[string]string // pod by container
	configs    map[string]*runtimeapi.ContainerConfig
	images     []*runtimeapi.Image
	stats      []*runtimeapi.ContainerStats
	calls      []string
	// fail holds errors by RPC name.
	fail map[string]error
	// loseAnswer is an RPC that is done and not answered before its caller gives up.
	loseAnswer string
	// program is what a started container does: its output, then its exit code; nil to run on.
	program func(logPath string) (exitCode int32)
	// slow is how long PullImage takes.
	slow    time.Duration
	auth    *runtimeapi.AuthConfig
	made    int
	streams *streamed
	// attachToRunning: it refuses to attach to a container before its start.
	attachToRunning bool
}

// newFake serves a fake runtime, with the engine's own service when withEngine.
func newFake(t testing.TB, steps ...*enginev1.PullProgress) *fakeRuntime {
	t.Helper()
	// Socket paths are at most 107 bytes; those of t.TempDir have the test's name in them.
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f := &fakeRuntime{
		socket: filepath.Join(dir, "s"), podConfigs: map[string]*runtimeapi.PodSandboxConfig{},
		podOf: map[string]string{}, configs: map[string]*runtimeapi.ContainerConfig{}, fail: map[string]error{},
	}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(f.intercept))
	runtimeapi.RegisterRuntimeServiceServer(s, f)
	runtimeapi.RegisterImageServiceServer(s, f)
	if len(steps) > 0 {
		enginev1.RegisterEngineServer(s, &fakeEngine{steps: steps})
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-served })
	return f
}

// fakeEngine sends the progress of one pull.
type fakeEngine struct {
	enginev1.UnimplementedEngineServer
	steps []*enginev1.PullProgress
}

func (f *fakeEngine) WatchPulls(_ *enginev1.WatchPullsRequest, stream grpc.ServerStreamingServer[enginev1.PullProgress]) error {
	for _, p := range f.steps {
		if err := stream.Send(p); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return nil
}

func (f *fakeRuntime) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	name := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
	f.mu.Lock()
	f.calls = append(f.calls, name)
	err := f.fail[name]
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	resp, err := handle(ctx, req)
	f.mu.Lock()
	lose := f.loseAnswer == name
	f.mu.Unlock()
	if lose {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return resp, err
}

// called tells how often an RPC came in.
func (f *fakeRuntime) called(rpc string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if c == rpc {
			n++
		}
	}
	return n
}

// left is how many pods and containers there are.
func (f *fakeRuntime) left() (pods, containers int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.pods), len(f.containers)
}

func (f *fakeRuntime) newID() string {
	f.made++
	return fmt.Sprintf("%02x%062x", f.made, f.made)
}

func (f *fakeRuntime) addPod(id, name, namespace string, state runtimeapi.PodSandboxState) {
	f.pods = append(f.pods, &runtimeapi.PodSandbox{
		Id: id, State: state, CreatedAt: time.Now().Add(-time.Hour).UnixNano(),
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: "uid-" + name},
	})
}

func (f *fakeRuntime) addContainer(id, pod, name string, state runtimeapi.ContainerState) *runtimeapi.ContainerStatus {
	c := &runtimeapi.ContainerStatus{
		Id: id, State: state, CreatedAt: time.Now().Add(-2*time.Hour - time.Duration(len(f.containers))*time.Second).UnixNano(),
		Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: 2},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:" + strings.Repeat("ab", 32)},
		Labels:   map[string]string{labelPodName: "pod-of-" + name, labelPodNamespace: "default"},
	}
	f.containers = append(f.containers, c)
	f.podOf[id] = pod
	return c
}

func (f *fakeRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeRuntime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true},
	}}}, nil
}

func (f *fakeRuntime) RunPodSandbox(_ context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.newID()
	f.podConfigs[id] = r.GetConfig()
	f.pods = append(f.pods, &runtimeapi.PodSandbox{
		Id: id, Metadata: r.GetConfig().GetMetadata(), Labels: r.GetConfig().GetLabels(),
		Annotations: r.GetConfig().GetAnnotations(), CreatedAt: time.Now().UnixNano(), RuntimeHandler: r.GetRuntimeHandler(),
	})
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (f *fakeRuntime) StopPodSandbox(_ context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		if p.GetId() == r.GetPodSandboxId() {
			p.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		}
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (f *fakeRuntime) RemovePodSandbox(_ context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods = slices.DeleteFunc(f.pods, func(p *runtimeapi.PodSandbox) bool { return p.GetId() == r.GetPodSandboxId() })
	f.containers = slices.DeleteFunc(f.containers, func(c *runtimeapi.ContainerStatus) bool {
		return f.podOf[c.GetId()] == r.GetPodSandboxId()
	})
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (f *fakeRuntime) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, p := range f.pods {
		if state := r.GetFilter().GetState(); state == nil || state.GetState() == p.GetState() {
			resp.Items = append(resp.Items, p)
		}
	}
	return resp, nil
}

func (f *fakeRuntime) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		if p.GetId() == r.GetPodSandboxId() {
			return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
				Id: p.GetId(), Metadata: p.GetMetadata(), State: p.GetState(), Labels: p.GetLabels(), Annotations: p.GetAnnotations(),
			}, Info: map[string]string{"info": `{"pid": 7}`, "note": "plain"}}, nil
		}
	}
	return nil, status.Error(codes.NotFound, "no such pod")
}

func (f *fakeRuntime) CreateContainer(_ context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.newID()
	logPath := ""
	if dir := f.podConfigs[r.GetPodSandboxId()].GetLogDirectory(); dir != "" {
		logPath = filepath.Join(dir, r.GetConfig().GetLogPath())
	}
	f.configs[id] = r.GetConfig()
	f.podOf[id] = r.GetPodSandboxId()
	f.containers = append(f.containers, &runtimeapi.ContainerStatus{
		Id: id, Metadata: r.GetConfig().GetMetadata(), Image: r.GetConfig().GetImage(), LogPath: logPath,
		Labels: r.GetConfig().GetLabels(), CreatedAt: time.Now().UnixNano(),
	})
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (f *fakeRuntime) container(id string) *runtimeapi.ContainerStatus {
	for _, c := range f.containers {
		if c.GetId() == id {
			return c
		}
	}
	return nil
}

func (f *fakeRuntime) StartContainer(_ context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.container(r.GetContainerId())
	c.State = runtimeapi.ContainerState_CONTAINER_RUNNING
	if log := c.GetLogPath(); log != "" { // it is there when this call returns
		file, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		file.Close()
	}
	if f.program != nil {
		c.ExitCode = f.program(c.GetLogPath())
		c.State = runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (f *fakeRuntime) StopContainer(_ context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.container(r.GetContainerId()); c != nil && c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		c.State = runtimeapi.ContainerState_CONTAINER_EXITED
		c.ExitCode = 137
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (f *fakeRuntime) RemoveContainer(_ context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers = slices.DeleteFunc(f.containers, func(c *runtimeapi.ContainerStatus) bool { return c.GetId() == r.GetContainerId() })
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (f *fakeRuntime) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range f.containers {
		if state := r.GetFilter().GetState(); state != nil && state.GetState() != c.GetState() {
			continue
		}
		if pod := r.GetFilter().GetPodSandboxId(); pod != "" && pod != f.podOf[c.GetId()] {
			continue
		}
		resp.Containers = append(resp.Containers, &runtimeapi.Container{
			Id: c.GetId(), PodSandboxId: f.podOf[c.GetId()], Metadata: c.GetMetadata(), Image: c.GetImage(),
			State: c.GetState(), CreatedAt: c.GetCreatedAt(), Labels: c.GetLabels(), ImageId: c.GetImage().GetImage(),
		})
	}
	return resp, nil
}

func (f *fakeRuntime) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.container(r.GetContainerId())
	if c == nil {
		return nil, status.Error(codes.NotFound, "no such container")
	}
	// A copy: the fake changes it under its lock, gRPC reads it outside.
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{
		Id: c.GetId(), Metadata: c.GetMetadata(), State: c.GetState(), ExitCode: c.GetExitCode(), LogPath: c.GetLogPath(),
		CreatedAt: c.GetCreatedAt(), Image: c.GetImage(), Labels: c.GetLabels(), Reason: c.GetReason(),
	}}, nil
}

func (f *fakeRuntime) ExecSync(_ context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return &runtimeapi.ExecSyncResponse{
		Stdout:   []byte(strings.Join(r.GetCmd(), "|") + "\n"),
		Stderr:   fmt.Appendf(nil, "timeout %d\n", r.GetTimeout()),
		ExitCode: 7,
	}, nil
}

func (f *fakeRuntime) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &runtimeapi.ListContainerStatsResponse{Stats: f.stats}, nil
}

func (f *fakeRuntime) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &runtimeapi.ListImagesResponse{Images: slices.Clone(f.images)}, nil
}

func (f *fakeRuntime) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := r.GetImage().GetImage()
	for _, image := range f.images {
		if image.GetId() == name || slices.Contains(image.GetRepoTags(), name) || slices.Contains(image.GetRepoTags(), "docker.io/library/"+name+":latest") {
			return &runtimeapi.ImageStatusResponse{Image: image}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (f *fakeRuntime) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.auth = r.GetAuth()
	time.Sleep(f.slow)
	ref := r.GetImage().GetImage()
	image := &runtimeapi.Image{Id: "sha256:" + strings.Repeat("cd", 32), RepoTags: []string{ref}, Size: 12_345_678}
	f.images = append(f.images, image)
	return &runtimeapi.PullImageResponse{ImageRef: image.GetId()}, nil
}

func (f *fakeRuntime) RemoveImage(_ context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images = slices.DeleteFunc(f.images, func(i *runtimeapi.Image) bool { return i.GetId() == r.GetImage().GetImage() })
	return &runtimeapi.RemoveImageResponse{}, nil
}

// result is what a command line came to.
type result struct {
	out, err string
	code     int
}

// try runs a command line against the fake.
func (f *fakeRuntime) try(t testing.TB, args ...string) result {
	t.Helper()
	return f.tryContext(t.Context(), t, "", args...)
}

func (f *fakeRuntime) tryContext(ctx context.Context, t testing.TB, stdin string, args ...string) result {
	t.Helper()
	t.Setenv("CRI_ENGINE_ENDPOINT", f.socket)
	return execute(ctx, stdin, args...)
}

// execute runs a command line as main does.
func execute(ctx context.Context, stdin string, args ...string) result {
	root := &cobra.Command{Use: program, SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(Commands()...)
	var out, errOut bytes.Buffer
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errOut)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var told *ExitError
	if err != nil && !errors.As(err, &told) {
		fmt.Fprintln(&errOut, err)
	}
	return result{out.String(), errOut.String(), ExitCode(err)}
}

// want checks a result; parts of stderr are enough.
func (r result) want(t testing.TB, code int, out string, errParts ...string) {
	t.Helper()
	if r.code != code || r.out != out {
		t.Errorf("code %d, stdout\n%s\nstderr\n%s\nwant code %d, stdout\n%s", r.code, r.out, r.err, code, out)
	}
	for _, part := range errParts {
		if !strings.Contains(r.err, part) {
			t.Errorf("stderr %q does not hold %q", r.err, part)
		}
	}
	if len(errParts) == 0 && r.err != "" {
		t.Errorf("stderr %q, want none", r.err)
	}
}
