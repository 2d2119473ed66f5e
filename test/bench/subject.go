package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// subject is one runtime with one handler.
type subject struct {
	name, handler string
	image         string // full name of the bench image
	logs          string // directory of its containers' logs
	conn          *grpc.ClientConn
	rt            runtimeapi.RuntimeServiceClient
	img           runtimeapi.ImageServiceClient
	engine        *harness.Engine // ours, when this program started it
	closes        bool            // whether close ends what this and other handlers' subjects share
	pid           int             // of the process that serves the socket
}

const benchRepo = "bench/image"

// serveImage starts a registry with the bench image: busybox and the payload.
func serveImage(ctx context.Context, dir, addr string) (*harness.Registry, error) {
	base, err := harness.BusyboxLayer()
	if err != nil {
		return nil, err
	}
	payload := filepath.Join(dir, "payload")
	if err := harness.BuildPayload("test/e2e/testdata/payload", payload); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(payload)
	if err != nil {
		return nil, err
	}
	blobs := filepath.Join(dir, "registry")
	if err := os.Mkdir(blobs, 0o755); err != nil {
		return nil, err
	}
	r, err := harness.StartRegistry(ctx, harness.RegistryOptions{Dir: blobs, Addr: addr})
	if err != nil {
		return nil, err
	}
	img := harness.Image{
		Layers: []harness.Layer{base, harness.NewLayer(harness.File{Name: "bin/payload", Body: program})},
		Config: ociv1.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sleep", "100000"}},
	}
	err = r.Push(ctx, benchRepo, img.Pack(), "1")
	if err == nil {
		err = pushPause(ctx, r)
	}
	if err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

func startOwn(ctx context.Context, bin, dir, registry, handlers string) (*subject, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	state, err := os.MkdirTemp("/run", "cri-engine-bench-")
	if err != nil {
		return nil, err
	}
	e, err := harness.NewEngine(harness.EngineOptions{Dir: dir, State: state, Bin: bin, Registries: []string{registry},
		Handlers: strings.FieldsFunc(handlers, func(r rune) bool { return r == ',' }), LogLevel: "info"})
	if err != nil {
		return nil, err
	}
	s := &subject{name: "cri-engine", engine: e, closes: true, image: registry + "/" + benchRepo + ":1"}
	if err := e.Start(ctx); err != nil {
		return s, err
	}
	s.pid = e.Pid()
	return s, s.dial(e.Socket)
}

func connect(ctx context.Context, item, registry string) (*subject, error) {
	name, socket, named := strings.Cut(item, "=")
	if !named {
		name, socket = "", item
	}
	s := &subject{name: name, closes: true, image: registry + "/" + benchRepo + ":1"}
	if err := s.dial(socket); err != nil {
		return nil, err
	}
	v, err := s.rt.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	if s.name == "" {
		s.name = v.RuntimeName + " " + v.RuntimeVersion
	}
	s.pid, err = peerPid(strings.TrimPrefix(socket, "unix://"))
	return s, err
}

func (s *subject) dial(socket string) error {
	conn, err := harness.Dial(socket)
	if err != nil {
		return err
	}
	s.conn, s.rt, s.img = conn, runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return nil
}

// close ends what this program started, and only that.
func (s *subject) close() error {
	if !s.closes {
		return nil
	}
	if s.conn != nil {
		s.conn.Close()
	}
	if s.engine == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return errors.Join(s.engine.Close(ctx), s.engine.Remove())
}

func (s *subject) pull(ctx context.Context) error {
	_, err := s.img.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: s.image}})
	return err
}

var count atomic.Int64

type pod struct {
	s      *subject
	id     string
	config *runtimeapi.PodSandboxConfig
}

func (s *subject) podConfig(hostNetwork bool) (*runtimeapi.PodSandboxConfig, error) {
	n := count.Add(1)
	name := fmt.Sprintf("bench-%d-%d", os.Getpid(), n)
	logs := filepath.Join(s.logs, name)
	hostname := fmt.Sprintf("bench-%d", n)
	options := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if hostNetwork {
		// On the host's network the UTS namespace is the host's too, so its name cannot be set.
		options.Network, hostname = runtimeapi.NamespaceMode_NODE, ""
	}
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: name, Namespace: "bench"},
		Hostname:     hostname,
		LogDirectory: logs,
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}},
	}, os.MkdirAll(logs, 0o755)
}

func (s *subject) run(ctx context.Context, hostNetwork bool) (*pod, error) {
	config, err := s.podConfig(hostNetwork)
	if err != nil {
		return nil, err
	}
	resp, err := s.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: s.handler})
	if err != nil {
		return nil, err
	}
	return &pod{s: s, id: resp.PodSandboxId, config: config}, nil
}

func (p *pod) stop(ctx context.Context) error {
	_, err := p.s.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	return err
}

func (p *pod) remove(ctx context.Context) error {
	_, err := p.s.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
	return err
}

// end stops and removes the pod whatever its state, also after ctx is over.
func (p *pod) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(p.stop(ctx), p.remove(ctx))
}

func (p *pod) create(ctx context.Context, argv ...string) (string, error) {
	name := fmt.Sprintf("c%d", count.Add(1))
	resp, err := p.s.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: p.s.image},
		Command:  argv,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}},
	}})
	return resp.GetContainerId(), err
}

func (s *subject) start(ctx context.Context, id string) error {
	_, err := s.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (s *subject) stopContainer(ctx context.Context, id string) error {
	_, err := s.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
	return err
}

func (s *subject) removeContainer(ctx context.Context, id string) error {
	_, err := s.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return err
}

func (s *subject) exec(ctx context.Context, id string) error {
	resp, err := s.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 30})
	if err == nil && resp.ExitCode != 0 {
		err = fmt.Errorf("true ended with %d: %s", resp.ExitCode, resp.Stderr)
	}
	return err
}

// sleeping is a pod with one container that sleeps.
func (s *subject) sleeping(ctx context.Context) (p *pod, container string, err error) {
	if p, err = s.run(ctx, false); err != nil {
		return nil, "", err
	}
	if container, err = p.create(ctx, "sleep", "100000"); err == nil {
		err = s.start(ctx, container)
	}
	if err != nil {
		return nil, "", errors.Join(err, p.end(ctx))
	}
	return p, container, nil
}

// away stops the container at once and ends its pod.
func (p *pod) away(ctx context.Context, container string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(p.s.stopContainer(ctx, container), p.end(ctx))
}
