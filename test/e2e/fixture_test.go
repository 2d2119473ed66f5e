//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// Images that pushImages puts into every world's registry, by short name.
const (
	busyboxImage    = "e2e/busybox:1"    // busybox, the payload, and no more
	userImage       = "e2e/user:1"       // User app
	entrypointImage = "e2e/entrypoint:1" // Entrypoint, Cmd, Env, WorkingDir
	volumeImage     = "e2e/volume:1"     // Volumes /data, with a file in it
	multiImage      = "e2e/multi:1"      // an index: amd64 and arm64, the label arch tells which
	dockerImage     = "e2e/docker:1"     // Docker's media types
	layersImage     = "e2e/layers:1"     // whiteouts and an opaque directory
	signalImage     = "e2e/signal:1"     // StopSignal SIGUSR2
	emptyImage      = "e2e/empty:1"      // neither entrypoint nor command
)

func pushImages(ctx context.Context, r *harness.Registry) error {
	base, err := harness.BusyboxLayer()
	if err != nil {
		return err
	}
	file, err := payload()
	if err != nil {
		return err
	}
	program, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	layers := []harness.Layer{base, harness.NewLayer(harness.File{Name: "bin/payload", Body: program})}
	path := []string{"PATH=/usr/local/bin:/bin"}
	images := map[string]harness.Image{
		busyboxImage: {Layers: layers, Config: ociv1.ImageConfig{Env: path, Cmd: []string{"sh"}}},
		userImage:    {Layers: layers, Config: ociv1.ImageConfig{Env: path, Cmd: []string{"id"}, User: "app"}},
		entrypointImage: {Layers: layers, Config: ociv1.ImageConfig{
			Env: append(path, "FROM=image", "ONLY=image"), Entrypoint: []string{"/bin/echo", "entry"}, Cmd: []string{"default", "args"}, WorkingDir: "/work/here"}},
		volumeImage: {Layers: append(layers, harness.NewLayer(harness.File{Name: "data/"}, harness.File{Name: "data/seed", Body: []byte("seed\n"), Mode: 0o644})),
			Config: ociv1.ImageConfig{Env: path, Volumes: map[string]struct{}{"/data": {}}, Cmd: []string{"sh"}}},
		dockerImage: {Layers: layers, Config: ociv1.ImageConfig{Env: path, Cmd: []string{"sh"}, Labels: map[string]string{"kind": "docker"}}, Docker: true},
		layersImage: {Layers: append(layers, whiteoutLayers()...), Config: ociv1.ImageConfig{Env: path, Cmd: []string{"sh"}}},
		signalImage: {Layers: layers, Config: ociv1.ImageConfig{Env: path, StopSignal: "SIGUSR2", Cmd: []string{"payload", "trap", "7"}}},
		emptyImage:  {Layers: layers, Config: ociv1.ImageConfig{Env: path}},
	}
	for name, img := range images {
		repo, tag, _ := strings.Cut(name, ":")
		if err := r.Push(ctx, repo, img.Pack(), tag); err != nil {
			return fmt.Errorf("push %s: %w", name, err)
		}
	}
	_, err = r.PushIndex(ctx, "e2e/multi", multiArch(layers, path), "1")
	return err
}

func multiArch(layers []harness.Layer, env []string) []harness.Packed {
	var list []harness.Packed
	for _, arch := range []string{"arm64", "amd64"} {
		img := harness.Image{Layers: layers, Arch: arch, Config: ociv1.ImageConfig{Env: env, Cmd: []string{"sh"}, Labels: map[string]string{"arch": arch}}}
		list = append(list, img.Pack())
	}
	return list
}

func whiteoutLayers() []harness.Layer {
	return []harness.Layer{
		harness.NewLayer(harness.File{Name: "x/"}, harness.File{Name: "x/gone", Body: []byte("old")}, harness.File{Name: "x/kept", Body: []byte("old")},
			harness.File{Name: "opaque/"}, harness.File{Name: "opaque/old", Body: []byte("old")}),
		harness.NewLayer(harness.File{Name: "x/.wh.gone"}, harness.File{Name: "x/kept", Body: []byte("new")},
			harness.File{Name: "opaque/"}, harness.File{Name: "opaque/.wh..wh..opq"}, harness.File{Name: "opaque/new", Body: []byte("new")}),
	}
}

// smallImage is an image of one small layer that no other image shares.
func smallImage(text string) harness.Packed {
	layer := harness.NewLayer(harness.File{Name: "unique", Body: []byte(text)})
	return harness.Image{Layers: []harness.Layer{layer}, Config: ociv1.ImageConfig{Cmd: []string{"/none"}, Labels: map[string]string{"text": text}}}.Pack()
}

// ref is an image's full name in the world's registry.
func (w *World) ref(name string) string { return w.Registry.Addr + "/" + name }

func (e *Engine) pull(t testing.TB, name string) string {
	t.Helper()
	resp, err := e.img.PullImage(call(t), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: e.w.ref(name)}})
	if err != nil {
		t.Fatalf("pull %s: %v", name, err)
	}
	return resp.ImageRef
}

// Pod is a pod of a test.
type Pod struct {
	e      *Engine
	ID     string
	Config *runtimeapi.PodSandboxConfig
}

type podOption func(*runtimeapi.PodSandboxConfig)

// podConfig is a pod as the kubelet asks for it: a PID namespace per
// container, everything else of the pod's own.
func (e *Engine) podConfig(t testing.TB, options ...podOption) *runtimeapi.PodSandboxConfig {
	t.Helper()
	n := podNumber.Add(1)
	name := fmt.Sprintf("pod-%d", n)
	logs := filepath.Join(e.w.Dir, "logs", name)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: fmt.Sprintf("uid-%d", n), Namespace: "e2e"},
		Hostname:     name,
		LogDirectory: logs,
		Labels:       map[string]string{"app": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	for _, o := range options {
		o(c)
	}
	return c
}

func namespaces(f func(*runtimeapi.NamespaceOption)) podOption {
	return func(c *runtimeapi.PodSandboxConfig) { f(c.Linux.SecurityContext.NamespaceOptions) }
}

var (
	hostNetwork = func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network, c.Hostname = runtimeapi.NamespaceMode_NODE, ""
	}
	podPID = namespaces(func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD })
)

func (e *Engine) runPod(t testing.TB, options ...podOption) *Pod {
	t.Helper()
	return e.runConfig(t, e.podConfig(t, options...))
}

func (e *Engine) runConfig(t testing.TB, c *runtimeapi.PodSandboxConfig) *Pod {
	t.Helper()
	resp, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: c})
	if err != nil {
		t.Fatalf("run pod %s: %v", c.Metadata.Name, err)
	}
	p := &Pod{e: e, ID: resp.PodSandboxId, Config: c}
	t.Cleanup(func() { p.remove(t) })
	return p
}

func (p *Pod) status(t testing.TB) *runtimeapi.PodSandboxStatus {
	t.Helper()
	resp, err := p.e.rt.PodSandboxStatus(call(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Fatalf("status of pod %s: %v", p.Config.Metadata.Name, err)
	}
	return resp.Status
}

func (p *Pod) ip(t testing.TB) string { t.Helper(); return p.status(t).GetNetwork().GetIp() }

func (p *Pod) stop(t testing.TB) {
	t.Helper()
	if _, err := p.e.rt.StopPodSandbox(call(t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Errorf("stop pod %s: %v", p.Config.Metadata.Name, err)
	}
}

// remove stops and removes the pod; both are idempotent, so a test may have
// done either.
func (p *Pod) remove(t testing.TB) {
	t.Helper()
	if !p.e.alive() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), slowly(time.Minute)) // also from a cleanup, where call(t) is over
	defer cancel()
	if _, err := p.e.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil && !isNotFound(err) {
		t.Errorf("stop pod %s: %v", p.Config.Metadata.Name, err)
	}
	if _, err := p.e.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Errorf("remove pod %s: %v", p.Config.Metadata.Name, err)
	}
	os.RemoveAll(p.Config.LogDirectory)
}

// Container is a container of a test.
type Container struct {
	p      *Pod
	ID     string
	Config *runtimeapi.ContainerConfig
}

type containerOption func(*runtimeapi.ContainerConfig)

func command(argv ...string) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Command = argv }
}

func shell(script string) containerOption { return command("sh", "-c", script) }

func security(f func(*runtimeapi.LinuxContainerSecurityContext)) containerOption {
	return func(c *runtimeapi.ContainerConfig) { f(c.Linux.SecurityContext) }
}

func resources(r *runtimeapi.LinuxContainerResources) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = r }
}

// containerConfig takes over the pod's namespace options, as the kubelet sends them.
func (p *Pod) containerConfig(image string, options ...containerOption) *runtimeapi.ContainerConfig {
	name := fmt.Sprintf("c-%d", podNumber.Add(1))
	sc := &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}
	if o := p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		sc.NamespaceOptions = &runtimeapi.NamespaceOption{Network: o.Network, Pid: o.Pid, Ipc: o.Ipc, TargetId: o.TargetId}
	}
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: p.e.w.ref(image)},
		LogPath:  name + ".log",
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: sc, Resources: &runtimeapi.LinuxContainerResources{}},
	}
	for _, o := range options {
		o(c)
	}
	return c
}

func (p *Pod) create(t testing.TB, image string, options ...containerOption) *Container {
	t.Helper()
	c := p.containerConfig(image, options...)
	resp, err := p.e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: c, SandboxConfig: p.Config})
	if err != nil {
		t.Fatalf("create container %s: %v", c.Metadata.Name, err)
	}
	return &Container{p: p, ID: resp.ContainerId, Config: c}
}

// run creates and starts a container.
func (p *Pod) run(t testing.TB, image string, options ...containerOption) *Container {
	t.Helper()
	c := p.create(t, image, options...)
	c.start(t)
	return c
}

// output runs a container to its end and returns what it wrote to stdout.
func (p *Pod) output(t testing.TB, image string, options ...containerOption) string {
	t.Helper()
	c := p.run(t, image, options...)
	c.wait(t)
	defer c.remove(t)
	return c.stdout(t)
}

func (c *Container) start(t testing.TB) {
	t.Helper()
	if _, err := c.p.e.rt.StartContainer(call(t), &runtimeapi.StartContainerRequest{ContainerId: c.ID}); err != nil {
		t.Fatalf("start container %s: %v", c.Config.Metadata.Name, err)
	}
}

func (c *Container) stop(t testing.TB, seconds int64) {
	t.Helper()
	if _, err := c.p.e.rt.StopContainer(call(t), &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: seconds}); err != nil {
		t.Fatalf("stop container %s: %v", c.Config.Metadata.Name, err)
	}
}

func (c *Container) remove(t testing.TB) {
	t.Helper()
	if _, err := c.p.e.rt.RemoveContainer(call(t), &runtimeapi.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		t.Errorf("remove container %s: %v", c.Config.Metadata.Name, err)
	}
}

func (c *Container) status(t testing.TB) *runtimeapi.ContainerStatus {
	t.Helper()
	resp, err := c.p.e.rt.ContainerStatus(call(t), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		t.Fatalf("status of container %s: %v", c.Config.Metadata.Name, err)
	}
	return resp.Status
}

// wait waits until the container has ended.
func (c *Container) wait(t testing.TB) *runtimeapi.ContainerStatus {
	t.Helper()
	return c.waitFor(t, time.Minute)
}

func (c *Container) waitFor(t testing.TB, d time.Duration) *runtimeapi.ContainerStatus {
	t.Helper()
	var s *runtimeapi.ContainerStatus
	eventually(t, d, "container "+c.Config.Metadata.Name+" ends", func() bool {
		s = c.status(t)
		return s.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return s
}

// exec runs a command in the container, which must succeed, and returns its stdout.
func (c *Container) exec(t testing.TB, argv ...string) string {
	t.Helper()
	resp, err := c.p.e.rt.ExecSync(call(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: argv, Timeout: 60})
	if err != nil {
		t.Fatalf("exec %q: %v", argv, err)
	}
	if resp.ExitCode != 0 {
		t.Fatalf("exec %q: exit code %d, stderr %q", argv, resp.ExitCode, resp.Stderr)
	}
	return string(resp.Stdout)
}

func (c *Container) logPath() string {
	return filepath.Join(c.p.Config.LogDirectory, c.Config.LogPath)
}

// logLine is one line of a log in CRI's format.
type logLine struct {
	At      time.Time
	Stream  string
	Partial bool
	Text    []byte
}

// parseLog fails the test at the first line that is not in CRI's format.
func parseLog(t testing.TB, text []byte) []logLine {
	t.Helper()
	var lines []logLine
	for n, raw := range bytes.SplitAfter(text, []byte("\n")) {
		if len(raw) == 0 {
			continue
		}
		fields := bytes.SplitN(bytes.TrimSuffix(raw, []byte("\n")), []byte(" "), 4)
		if len(fields) != 4 || raw[len(raw)-1] != '\n' {
			t.Fatalf("log line %d is torn: %q", n+1, clip(string(raw), 200))
		}
		at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
		stream, tag := string(fields[1]), string(fields[2])
		if err != nil || stream != "stdout" && stream != "stderr" || tag != "P" && tag != "F" {
			t.Fatalf("log line %d is not in CRI's format: %q", n+1, clip(string(raw), 200))
		}
		lines = append(lines, logLine{At: at, Stream: stream, Partial: tag == "P", Text: fields[3]})
	}
	return lines
}

func readLog(t testing.TB, path string) []logLine {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parseLog(t, text)
}

// stream is the bytes that a log holds of one stream. A line that ended with
// the stream and without a newline cannot be told from one that had it.
func stream(lines []logLine, name string) []byte {
	var b bytes.Buffer
	for _, l := range lines {
		if l.Stream == name {
			b.Write(l.Text)
			if !l.Partial {
				b.WriteByte('\n')
			}
		}
	}
	return b.Bytes()
}

func (c *Container) stdout(t testing.TB) string {
	t.Helper()
	return string(stream(readLog(t, c.logPath()), "stdout"))
}

func (c *Container) stderr(t testing.TB) string {
	t.Helper()
	return string(stream(readLog(t, c.logPath()), "stderr"))
}

func (e *Engine) pods(t testing.TB, filter *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	t.Helper()
	resp, err := e.rt.ListPodSandbox(call(t), &runtimeapi.ListPodSandboxRequest{Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Items
}

func (e *Engine) containers(t testing.TB, filter *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	t.Helper()
	resp, err := e.rt.ListContainers(call(t), &runtimeapi.ListContainersRequest{Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Containers
}

func (e *Engine) image(t testing.TB, name string) *runtimeapi.Image {
	t.Helper()
	resp, err := e.img.ImageStatus(call(t), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		t.Fatalf("status of image %s: %v", name, err)
	}
	return resp.Image
}

func (e *Engine) removeImage(t testing.TB, name string) {
	t.Helper()
	if _, err := e.img.RemoveImage(call(t), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil {
		t.Errorf("remove image %s: %v", name, err)
	}
}
