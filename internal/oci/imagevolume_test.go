package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageRoot is a root filesystem with a directory, a file, and links that want to leave it.
func imageRoot(tb testing.TB) string {
	tb.Helper()
	root := tb.TempDir()
	write(tb, root+"/data/file", "in the image")
	link(tb, "/data", root+"/absolute")
	link(tb, "../../../../data", root+"/upwards")
	link(tb, "loop", root+"/loop")
	if err := syscall.Mkfifo(root+"/fifo", 0o600); err != nil {
		tb.Fatal(err)
	}
	return root
}

func TestImageVolumes(t *testing.T) {
	root := imageRoot(t)
	mountOf := func(change func(*runtimeapi.Mount)) ContainerInput {
		m := &runtimeapi.Mount{ContainerPath: "/v", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "i"}}
		change(m)
		in := mounting(t, m)
		in.ImageVolumes = map[int]string{0: root}
		return in
	}
	for sub, want := range map[string]string{
		"": root, "data": root + "/data", "data/file": root + "/data/file",
		"absolute": root + "/data", "upwards/file": root + "/data/file", "./data/": root + "/data",
	} {
		t.Run("the path "+sub+" is found in the image", func(t *testing.T) {
			spec, _ := build(t, mountOf(func(m *runtimeapi.Mount) { m.ImageSubPath = sub }), ableHost())
			m, _ := mountAt(spec, "/v")
			if m.Source != want || m.Type != "bind" {
				t.Errorf("mount %+v, want %s", m, want)
			}
			equal(t, "options", m.Options, []string{"rbind", "rprivate", "ro"})
		})
	}
	for _, c := range []struct {
		name, field string
		change      func(*runtimeapi.Mount)
	}{
		{"a host path beside the image", "host_path", func(m *runtimeapi.Mount) { m.HostPath = "/tmp" }},
		{"a writable one", "readonly", func(m *runtimeapi.Mount) { m.Readonly = false }},
		{"propagation", "propagation", func(m *runtimeapi.Mount) {
			m.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}},
		{"an absolute path", "image_sub_path", func(m *runtimeapi.Mount) { m.ImageSubPath = "/data" }},
		{"a path that goes up", "image_sub_path", func(m *runtimeapi.Mount) { m.ImageSubPath = "data/../.." }},
		{"a path with a NUL", "image_sub_path", func(m *runtimeapi.Mount) { m.ImageSubPath = "data\x00" }},
		{"a path that does not exist", "image_sub_path", func(m *runtimeapi.Mount) { m.ImageSubPath = "none" }},
		{"a path through a file", "image_sub_path", func(m *runtimeapi.Mount) { m.ImageSubPath = "data/file/x" }},
		{"a path in a loop", "image_sub_path", func(m *runtimeapi.Mount) { m.ImageSubPath = "loop" }},
		{"a path to a FIFO", "image_sub_path", func(m *runtimeapi.Mount) { m.ImageSubPath = "fifo" }},
	} {
		t.Run(c.name+" is refused", func(t *testing.T) {
			in := mountOf(c.change)
			refuses(t, in, ableHost(), "config.mounts[0]."+c.field)
			if _, _, err := containerSpec(in, ableHost()); !errors.Is(err, ErrImageVolume) {
				t.Errorf("error %v is not an image volume's", err)
			}
		})
	}
}

func TestImageDeclaredVolumes(t *testing.T) {
	declare := func(paths ...string) ContainerInput {
		in := testInput(t)
		in.Image.Volumes = map[string]struct{}{}
		for _, p := range paths {
			in.Image.Volumes[p] = struct{}{}
		}
		return in
	}
	t.Run("they are directories of the root filesystem, made where it has none", func(t *testing.T) {
		in := declare("/a/b/c", "relative", "/have", "/")
		write(t, in.RootFS+"/have/seed", "seed")
		if err := MakeVolumes(in.RootFS, in.Image, os.Getuid(), os.Getgid()); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"/a/b/c", "/relative", "/have"} {
			if st, err := os.Stat(in.RootFS + p); err != nil || !st.IsDir() || st.Mode().Perm() != 0o755 {
				t.Errorf("%s: %v, %v", p, st, err)
			}
		}
		spec, _ := build(t, in, ableHost())
		if _, i := mountAt(spec, "/have"); i >= 0 {
			t.Errorf("a mount that nothing needs: %+v", spec.Mounts)
		}
	})
	t.Run("they are writable where the root filesystem is not, unless the request mounts something there", func(t *testing.T) {
		in := declare("/data", "/taken")
		in.Config.Linux.SecurityContext.ReadonlyRootfs = true
		in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/taken/", HostPath: t.TempDir(), Readonly: true}}
		if err := MakeVolumes(in.RootFS, in.Image, os.Getuid(), os.Getgid()); err != nil {
			t.Fatal(err)
		}
		spec, _ := build(t, in, ableHost())
		m, _ := mountAt(spec, "/data")
		if m.Source != filepath.Join(in.RootFS, "data") {
			t.Errorf("mount %+v", m)
		}
		equal(t, "options", m.Options, []string{"rbind", "rprivate", "rw"})
		if m, _ := mountAt(spec, "/taken"); m.Source != in.Config.Mounts[0].HostPath {
			t.Errorf("mount %+v", m)
		}
	})
	t.Run("links in the image do not lead out of it", func(t *testing.T) {
		outside := t.TempDir()
		in := declare("/link/made")
		link(t, outside, in.RootFS+"/link")
		if err := MakeVolumes(in.RootFS, in.Image, os.Getuid(), os.Getgid()); err == nil {
			if _, err := os.Stat(filepath.Join(in.RootFS, outside, "made")); err != nil {
				t.Error(err)
			}
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
			t.Errorf("outside: %v, %v", left, err)
		}
	})
	t.Run("one that is a file is refused", func(t *testing.T) {
		in := declare("/file/below")
		write(t, in.RootFS+"/file", "")
		var invalid *InvalidError
		if err := MakeVolumes(in.RootFS, in.Image, 0, 0); !errors.As(err, &invalid) {
			t.Errorf("error %v", err)
		}
	})
}

// What an image's author put into the image decides what the path means, but never
// makes it lead out.
func FuzzImageSubPath(f *testing.F) {
	for _, s := range []string{"data", "absolute", "upwards/file", "loop", "a/../b", "//x", "\x00", "link/../../x"} {
		f.Add(s, "/../../../etc")
	}
	f.Fuzz(func(t *testing.T, sub, target string) {
		root := imageRoot(t)
		_ = os.Symlink(target, root+"/link") // whatever can be one
		m := &runtimeapi.Mount{ContainerPath: "/v", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "i"}, ImageSubPath: sub}
		got, err := imageSource("m", root, m)
		if err == nil && got != root && !strings.HasPrefix(got, root+"/") {
			t.Errorf("%q leads to %q", sub, got)
		}
	})
}
