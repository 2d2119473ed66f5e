//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

func mounting(m ...*runtimeapi.Mount) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = append(c.Mounts, m...) }
}

// readonlyRoot makes the container's root filesystem read-only.
var readonlyRoot = security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })

// imageMount mounts an image of the world's registry, or what is at sub in it.
func (e *Engine) imageMount(image, path, sub string) *runtimeapi.Mount {
	return &runtimeapi.Mount{
		ContainerPath: path, Readonly: true, ImageSubPath: sub,
		Image: &runtimeapi.ImageSpec{Image: e.w.ref(image), UserSpecifiedImage: e.w.ref(image)},
	}
}

// refused fails the test unless the container is refused so, and nothing is left of it.
func (p *Pod) refused(t *testing.T, code codes.Code, texts []string, options ...containerOption) {
	t.Helper()
	before := len(p.e.containers(t, nil))
	_, err := p.e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.ID, Config: p.containerConfig(busyboxImage, options...), SandboxConfig: p.Config,
	})
	wantCode(t, err, code, texts...)
	if after := len(p.e.containers(t, nil)); after != before {
		t.Errorf("%d containers, %d before", after, before)
	}
}

// treeImage holds links and special files among its own.
func (w *World) treeImage(t testing.TB) string {
	t.Helper()
	layer := harness.NewLayer(
		harness.File{Name: "models/"}, harness.File{Name: "models/weights", Body: []byte("weights\n"), Mode: 0o644},
		harness.File{Name: "models/tool", Body: []byte("#!/bin/sh\necho tool\n")},
		harness.File{Name: "up", Link: "../../../../models"}, harness.File{Name: "absolute", Link: "/models/weights"},
		harness.File{Name: "etc/"}, harness.File{Name: "etc/hostname", Body: []byte("the image's own\n"), Mode: 0o644},
		harness.File{Name: "out", Link: "/../../etc/hostname"},
		harness.File{Name: "owned/", UID: 1000, GID: 1000}, harness.File{Name: "owned/file", UID: 1000, GID: 1000, Mode: 0o640},
	)
	image := harness.Image{Layers: []harness.Layer{layer}}.Pack()
	if err := w.Registry.Push(call(t), "e2e/tree", image, "1"); err != nil {
		t.Fatal(err)
	}
	return "e2e/tree:1"
}

func TestImageVolumes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		tree := w.treeImage(t)
		id := e.pull(t, tree)
		t.Cleanup(func() { e.removeImage(t, id) })
		p := e.runPod(t)
		t.Run("an image is mounted read-only, its programs can run, and the status has its digest and else what was asked for", func(t *testing.T) {
			m := e.imageMount(tree, "/v", "")
			c := p.run(t, busyboxImage, sleeper, mounting(m))
			defer c.remove(t)
			if got := c.exec(t, "sh", "-c", "cat /v/models/weights; /v/models/tool; touch /v/x 2>/dev/null || echo ro"); got != "weights\ntool\nro\n" {
				t.Errorf("got %q", got)
			}
			if got := c.exec(t, "sh", "-c", "grep ' /v ' /proc/mounts"); !strings.Contains(got, "overlay ro,") {
				t.Errorf("mount %q", got)
			}
			want := proto.CloneOf(m)
			want.Image.ImageRef = id
			wantMounts(t, c, want)
			e.killed(t)
			wantMounts(t, c, want)
			c.stop(t, 0)
			wantMounts(t, c, want)
		})
		t.Run("the mount is by id, as the kubelet asks, and outlives the daemon", func(t *testing.T) {
			m := e.imageMount(tree, "/v", "models")
			m.Image.Image = id
			c := p.run(t, busyboxImage, sleeper, mounting(m))
			defer c.remove(t)
			e.killed(t)
			if got := c.exec(t, "cat", "/v/weights"); got != "weights\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a path in the image is a directory or a file, and links stay inside", func(t *testing.T) {
			got := p.output(t, busyboxImage, shell("cat /a/weights /b /c/weights /d /e"), mounting(
				e.imageMount(tree, "/a", "models"), e.imageMount(tree, "/b", "models/weights"),
				e.imageMount(tree, "/c", "up"), e.imageMount(tree, "/d", "absolute"), e.imageMount(tree, "/e", "out")))
			if got != strings.Repeat("weights\n", 4)+"the image's own\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("several containers share an image, and one goes without the others", func(t *testing.T) {
			a := p.run(t, busyboxImage, sleeper, mounting(e.imageMount(tree, "/v", "")))
			b := p.run(t, busyboxImage, sleeper, mounting(e.imageMount(tree, "/v", "")))
			a.stop(t, 0)
			a.remove(t)
			if got := b.exec(t, "cat", "/v/models/weights"); got != "weights\n" {
				t.Errorf("got %q", got)
			}
			b.stop(t, 0)
			b.remove(t)
		})
		t.Run("an image that is removed while it is mounted stays until the container goes", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper, mounting(e.imageMount(tree, "/v", "")))
			e.removeImage(t, id)
			if e.image(t, id) != nil {
				t.Error("it is still listed")
			}
			e.killed(t)
			if got := c.exec(t, "cat", "/v/models/weights"); got != "weights\n" {
				t.Errorf("got %q", got)
			}
			if m := c.status(t).Mounts[0]; m.Image.ImageRef != id {
				t.Errorf("status %v", m)
			}
			c.stop(t, 0)
			c.remove(t)
			e.pull(t, tree)
		})
		t.Run("mount options restrict it further", func(t *testing.T) {
			m := e.imageMount(tree, "/v", "")
			m.MountOptions = []string{"noexec"}
			if got := p.output(t, busyboxImage, shell("/v/models/tool 2>/dev/null || echo noexec"), mounting(m)); got != "noexec\n" {
				t.Errorf("got %q", got)
			}
		})
		const prefix = "ImageVolumeMountFailed: "
		for _, c := range []struct {
			name, text string
			code       codes.Code
			change     func(*runtimeapi.Mount)
		}{
			{"an image that is not there", "no/such", codes.NotFound, func(m *runtimeapi.Mount) { m.Image.Image = w.ref("no/such:1") }},
			{"a path that the image does not have", "image_sub_path", codes.InvalidArgument, func(m *runtimeapi.Mount) { m.ImageSubPath = "none" }},
			{"a path that leads out", "image_sub_path", codes.InvalidArgument, func(m *runtimeapi.Mount) { m.ImageSubPath = "models/../../.." }},
			{"an absolute path", "image_sub_path", codes.InvalidArgument, func(m *runtimeapi.Mount) { m.ImageSubPath = "/models" }},
			{"a writable mount of an image", "readonly", codes.InvalidArgument, func(m *runtimeapi.Mount) { m.Readonly = false }},
			{"an image beside a host path", "host_path", codes.InvalidArgument, func(m *runtimeapi.Mount) { m.HostPath = "/tmp" }},
			{"propagation from an image", "propagation", codes.InvalidArgument, func(m *runtimeapi.Mount) {
				m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
			}},
		} {
			t.Run(c.name+" is refused, and the mounts before it are undone", func(t *testing.T) {
				m := e.imageMount(tree, "/v", "")
				c.change(m)
				p.refused(t, c.code, []string{prefix, "config.mounts[1]", c.text}, mounting(e.imageMount(tree, "/first", ""), m))
			})
		}
		p.remove(t)
	})
}

// killed ends the daemon at once and starts it again.
func (e *Engine) killed(t *testing.T) {
	t.Helper()
	e.Kill()
	e.restart(t)
}

func wantMounts(t testing.TB, c *Container, want ...*runtimeapi.Mount) {
	t.Helper()
	got := c.status(t).Mounts
	if len(got) != len(want) {
		t.Errorf("the status has %d mounts, want %d", len(got), len(want))
		return
	}
	for i := range want {
		if !proto.Equal(got[i], want[i]) {
			t.Errorf("mount %d in the status: %v, want %v", i, got[i], want[i])
		}
	}
}

func TestVolumesThatImagesDeclare(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		e.pull(t, volumeImage)
		t.Cleanup(func() { e.removeImage(t, w.ref(volumeImage)) })
		p := e.runPod(t)
		const script = "cat /data/seed; echo x > /data/new && cat /data/new; touch /other 2>/dev/null || echo ro"
		t.Run("a volume that the image declares has the image's files and is writable", func(t *testing.T) {
			if got := p.output(t, volumeImage, shell(script)); got != "seed\nx\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("it is writable where the root filesystem is read-only", func(t *testing.T) {
			if got := p.output(t, volumeImage, shell(script), readonlyRoot); got != "seed\nx\nro\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("each container has its own", func(t *testing.T) {
			if got := p.output(t, volumeImage, shell("ls /data")); got != "seed\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a mount of the request takes its place", func(t *testing.T) {
			host := t.TempDir()
			if got := p.output(t, volumeImage, shell("ls /data; touch /data/x || echo ro"), readonlyRoot, mounting(&runtimeapi.Mount{HostPath: host, ContainerPath: "/data", Readonly: true})); got != "ro\n" {
				t.Errorf("got %q", got)
			}
		})
		p.remove(t)
	})
}

// rro tells whether the default handler says that it can make mounts recursively read-only.
func (e *Engine) features(t testing.TB) *runtimeapi.RuntimeHandlerFeatures {
	t.Helper()
	s, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range s.RuntimeHandlers {
		if h.Name == "" {
			return h.Features
		}
	}
	t.Fatal("no handler has the empty name")
	return nil
}

func TestRecursiveReadOnlyMounts(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		p := e.runPod(t)
		host := filepath.Join(w.Dir, "host")
		if err := os.MkdirAll(host, 0o777); err != nil {
			t.Fatal(err)
		}
		share(t, host)
		mountTmpfs(t, filepath.Join(host, "below"), "marker")
		t.Cleanup(func() { unmountBelow(host); os.RemoveAll(host) })
		const script = "touch /m/x 2>/dev/null || echo ro; touch /m/below/x 2>/dev/null || echo ro"
		mount := func(change func(*runtimeapi.Mount)) *runtimeapi.Mount {
			m := &runtimeapi.Mount{HostPath: host, ContainerPath: "/m", Readonly: true, RecursiveReadOnly: true}
			change(m)
			return m
		}
		recursive := mount(func(*runtimeapi.Mount) {})
		if e.features(t).RecursiveReadOnlyMounts {
			t.Run("a recursively read-only mount takes no write on mounts below it, and a read-only one does", func(t *testing.T) {
				if got := p.output(t, busyboxImage, shell(script), mounting(recursive)); got != "ro\nro\n" {
					t.Errorf("got %q", got)
				}
				if got := p.output(t, busyboxImage, shell(script), mounting(mount(func(m *runtimeapi.Mount) { m.RecursiveReadOnly = false }))); got != "ro\n" {
					t.Errorf("got %q", got)
				}
			})
		} else {
			t.Run("where the handler has no such feature a recursively read-only mount is refused", func(t *testing.T) {
				p.refused(t, codes.Unimplemented, []string{"RROUnsupported: ", "config.mounts[0].recursive_read_only", runtime}, mounting(recursive))
			})
		}
		for name, change := range map[string]func(*runtimeapi.Mount){
			"without readonly":                    func(m *runtimeapi.Mount) { m.Readonly = false },
			"with propagation from the host":      func(m *runtimeapi.Mount) { m.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER },
			"with propagation in both directions": func(m *runtimeapi.Mount) { m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL },
		} {
			t.Run("recursively read-only "+name+" is refused", func(t *testing.T) {
				p.refused(t, codes.InvalidArgument, []string{"config.mounts[0].recursive_read_only"}, mounting(mount(change)))
			})
		}
		p.remove(t)
	})
}

func TestHostPathsAndStatus(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		host := filepath.Join(w.Dir, "host")
		if err := os.MkdirAll(filepath.Join(host, "real"), 0o777); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(host) })
		if err := os.WriteFile(filepath.Join(host, "real", "file"), []byte("real\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		symlink(t, filepath.Join(host, "real"), filepath.Join(host, "link"))
		symlink(t, "link/file", filepath.Join(host, "filelink"))
		if err := os.Symlink(filepath.Join(host, "nothing"), filepath.Join(host, "dangling")); err != nil {
			t.Fatal(err)
		}
		t.Run("a host path that is a link is followed to what it means", func(t *testing.T) {
			got := p.output(t, busyboxImage, shell("cat /d/file /f"), mounting(
				&runtimeapi.Mount{HostPath: filepath.Join(host, "link"), ContainerPath: "/d"},
				&runtimeapi.Mount{HostPath: filepath.Join(host, "filelink"), ContainerPath: "/f"}))
			if got != "real\nreal\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a host path that does not exist, or is a link to nothing, is refused and not made", func(t *testing.T) {
			for _, name := range []string{"nothing", "dangling"} {
				path := filepath.Join(host, name)
				p.refused(t, codes.InvalidArgument, []string{"config.mounts[0].host_path", path}, mounting(&runtimeapi.Mount{HostPath: path, ContainerPath: "/m"}))
			}
			wantAbsent(t, filepath.Join(host, "nothing"))
		})
		t.Run("the status lists mounts exactly as they were asked for, also after a restart and the exit", func(t *testing.T) {
			want := []*runtimeapi.Mount{
				{HostPath: filepath.Join(host, "link"), ContainerPath: "/a//b/", Readonly: true, MountOptions: []string{"noexec"}},
				{HostPath: filepath.Join(host, "link"), ContainerPath: "/c/", SelinuxRelabel: true},
				{HostPath: filepath.Join(host, "real"), ContainerPath: "/c/d", Propagation: runtimeapi.MountPropagation_PROPAGATION_PRIVATE},
			}
			c := p.run(t, busyboxImage, sleeper, mounting(want...))
			wantMounts(t, c, want...)
			e.killed(t)
			wantMounts(t, c, want...)
			c.stop(t, 0)
			wantMounts(t, c, want...)
			c.remove(t)
			removeMountPoint(t, filepath.Join(host, "real", "d"))
		})
		t.Run("a tmpfs of the host, as a volume in memory is, is mounted with what is on it", func(t *testing.T) {
			dir := filepath.Join(host, "memory")
			mountTmpfs(t, dir, "marker")
			defer unmountBelow(dir)
			got := p.output(t, busyboxImage, shell("ls /m; stat -f -c %T /m; echo x > /m/written"), mounting(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m"}))
			if got != "marker\ntmpfs\n" {
				t.Errorf("got %q", got)
			}
			if _, err := os.Stat(filepath.Join(dir, "written")); err != nil {
				t.Error(err)
			}
		})
		t.Run("propagation that the host's mount does not have is refused with what mends it", func(t *testing.T) {
			private := filepath.Join(host, "private")
			mountTmpfs(t, private, "marker")
			defer unmountBelow(private)
			if err := unix.Mount("", private, "", unix.MS_PRIVATE, ""); err != nil {
				t.Fatal(err)
			}
			for _, mode := range []runtimeapi.MountPropagation{runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL} {
				p.refused(t, codes.FailedPrecondition, []string{"config.mounts[0].propagation", "--make-rshared"}, mounting(&runtimeapi.Mount{HostPath: private, ContainerPath: "/m", Propagation: mode}))
			}
		})
		t.Run("a propagation that does not exist is refused", func(t *testing.T) {
			p.refused(t, codes.InvalidArgument, []string{"config.mounts[0].propagation"}, mounting(&runtimeapi.Mount{HostPath: host, ContainerPath: "/m", Propagation: 9}))
		})
		p.remove(t)
	})
}

func removeMountPoint(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Error(fmt.Errorf("the mount point that the runtime made: %w", err))
	}
}
