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

func link(tb testing.TB, target, path string) {
	tb.Helper()
	if err := os.Symlink(target, path); err != nil {
		tb.Fatal(err)
	}
}

func fifo(tb testing.TB, path string) {
	tb.Helper()
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		tb.Fatal(err)
	}
}

// mounting is a request with these mounts.
func mounting(tb testing.TB, mounts ...*runtimeapi.Mount) ContainerInput {
	tb.Helper()
	in := testInput(tb)
	in.Config.Mounts = mounts
	return in
}

func TestDefaultMounts(t *testing.T) {
	in := testInput(t)
	in.ResolvConf, in.Hosts, in.HostnameFile, in.Shm = "/s/resolv", "/s/hosts", "/s/hostname", "/s/shm"
	spec, _ := build(t, in, ableHost())
	var got []string
	for _, m := range spec.Mounts {
		got = append(got, m.Destination+"="+m.Type)
	}
	equal(t, "mounts", got, strings.Fields(`/proc=proc /dev=tmpfs /sys=sysfs /dev/pts=devpts /dev/mqueue=mqueue /dev/shm=bind
		/etc/resolv.conf=bind /etc/hosts=bind /etc/hostname=bind /sys/fs/cgroup=cgroup`))
	for _, d := range []string{"/sys", cgroupRoot} {
		if m, _ := mountAt(spec, d); !contains(m.Options, "ro") {
			t.Errorf("%s is writable: %v", d, m.Options)
		}
	}
	if m, _ := mountAt(spec, "/etc/hosts"); !contains(m.Options, "rw") || m.Source != "/s/hosts" {
		t.Errorf("hosts file %+v", m)
	}
	t.Run("with a read-only root the pod's files are read-only too", func(t *testing.T) {
		in.Config.Linux.SecurityContext.ReadonlyRootfs = true
		spec, _ := build(t, in, ableHost())
		if m, _ := mountAt(spec, "/etc/hosts"); !contains(m.Options, "ro") {
			t.Errorf("hosts file %+v", m)
		}
	})
	t.Run("without the pod's /dev/shm the container has one of its own", func(t *testing.T) {
		in.Shm = ""
		spec, _ := build(t, in, ableHost())
		if m, _ := mountAt(spec, "/dev/shm"); m.Type != "tmpfs" {
			t.Errorf("mount %+v", m)
		}
	})
}

func TestMounts(t *testing.T) {
	dir := t.TempDir()
	link(t, dir, dir+"/link")
	t.Run("a link on the host is followed, and the options are what was asked for", func(t *testing.T) {
		in := mounting(t,
			&runtimeapi.Mount{ContainerPath: "/a//b/", HostPath: dir + "/link/link", Readonly: true, MountOptions: []string{"noexec"}},
			&runtimeapi.Mount{ContainerPath: "/w", HostPath: dir},
			&runtimeapi.Mount{ContainerPath: "/r", HostPath: dir, Readonly: true, RecursiveReadOnly: true})
		spec, _ := build(t, in, ableHost())
		for dest, options := range map[string][]string{
			"/a/b": {"rbind", "rprivate", "ro", "noexec"}, "/w": {"rbind", "rprivate", "rw"}, "/r": {"rbind", "rprivate", "rro"},
		} {
			m, i := mountAt(spec, dest)
			if i < 0 || m.Source != dir || m.Type != "bind" {
				t.Errorf("%s: %+v", dest, m)
			}
			equal(t, dest, m.Options, options)
		}
	})
	t.Run("no mount hides another: deeper ones come later", func(t *testing.T) {
		in := mounting(t, &runtimeapi.Mount{ContainerPath: "/v/deep/er", HostPath: dir}, &runtimeapi.Mount{ContainerPath: "/v", HostPath: dir},
			&runtimeapi.Mount{ContainerPath: "/etc", HostPath: dir})
		in.Hosts = "/s/hosts"
		spec, _ := build(t, in, ableHost())
		_, v := mountAt(spec, "/v")
		_, deep := mountAt(spec, "/v/deep/er")
		_, etc := mountAt(spec, "/etc")
		_, hosts := mountAt(spec, "/etc/hosts")
		if v < 0 || deep < v || etc < 0 || hosts < etc {
			t.Errorf("mounts %+v", spec.Mounts)
		}
	})
	t.Run("the request's mount replaces ours at the same place", func(t *testing.T) {
		in := mounting(t, &runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: dir}, &runtimeapi.Mount{ContainerPath: "/dev/shm", HostPath: dir})
		in.Hosts, in.Shm = "/s/hosts", "/s/shm"
		spec, _ := build(t, in, ableHost())
		for _, m := range spec.Mounts {
			if m.Source == "/s/hosts" || m.Source == "/s/shm" {
				t.Errorf("mount %+v", m)
			}
		}
	})
	t.Run("who mounts the host's /dev or /sys sees the host's", func(t *testing.T) {
		in := mounting(t, &runtimeapi.Mount{ContainerPath: "/dev", HostPath: dir}, &runtimeapi.Mount{ContainerPath: "/sys", HostPath: dir})
		in.Shm = "/s/shm"
		spec, _ := build(t, in, ableHost())
		for _, d := range []string{"/dev/pts", "/dev/shm", "/dev/mqueue", cgroupRoot} {
			if _, i := mountAt(spec, d); i >= 0 {
				t.Errorf("%s hides it", d)
			}
		}
	})
	for _, c := range []struct {
		name, field string
		mount       *runtimeapi.Mount
	}{
		{"a host path that does not exist", "host_path", &runtimeapi.Mount{ContainerPath: "/a", HostPath: dir + "/no"}},
		{"a link to nowhere", "host_path", &runtimeapi.Mount{ContainerPath: "/a", HostPath: dangling(t)}},
		{"no host path", "host_path", &runtimeapi.Mount{ContainerPath: "/a"}},
		{"a relative host path", "host_path", &runtimeapi.Mount{ContainerPath: "/a", HostPath: "etc"}},
		{"no container path", "container_path", &runtimeapi.Mount{HostPath: dir}},
		{"a relative container path", "container_path", &runtimeapi.Mount{ContainerPath: "a", HostPath: dir}},
		{"a container path that goes up", "container_path", &runtimeapi.Mount{ContainerPath: "/a/../b", HostPath: dir}},
		{"the root for a container path", "container_path", &runtimeapi.Mount{ContainerPath: "//", HostPath: dir}},
		{"a NUL byte", "container_path", &runtimeapi.Mount{ContainerPath: "/a\x00", HostPath: dir}},
		{"recursively read-only and writable", "recursive_read_only", &runtimeapi.Mount{ContainerPath: "/a", HostPath: dir, RecursiveReadOnly: true}},
		{"an option that loosens", "mount_options[1]", &runtimeapi.Mount{ContainerPath: "/a", HostPath: dir, MountOptions: []string{"nodev", "suid"}}},
		{"an unknown propagation", "propagation", &runtimeapi.Mount{ContainerPath: "/a", HostPath: dir, Propagation: 9}},
		{"a path in an image and no image", "image_sub_path", &runtimeapi.Mount{ContainerPath: "/a", HostPath: dir, ImageSubPath: "x"}},
	} {
		t.Run(c.name+" is refused", func(t *testing.T) {
			refuses(t, mounting(t, c.mount), ableHost(), "config.mounts[0]."+c.field)
		})
	}
	t.Run("recursively read-only needs a runtime that can", func(t *testing.T) {
		in := mounting(t, &runtimeapi.Mount{ContainerPath: "/a", HostPath: dir, Readonly: true, RecursiveReadOnly: true})
		in.Handler.RecursiveReadOnlyMounts = false
		unsupports(t, in, ableHost(), in.Handler.Binary)
	})
	t.Run("mounts that ask for a label are told, links resolved", func(t *testing.T) {
		in := mounting(t, &runtimeapi.Mount{ContainerPath: "/a", HostPath: dir + "/link", SelinuxRelabel: true}, &runtimeapi.Mount{ContainerPath: "/b", HostPath: "/"})
		got, err := Relabels(in.Config)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "volumes", got, []Relabel{{Field: "config.mounts[0].selinux_relabel", Path: dir}})
	})
}

func dangling(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "link")
	link(tb, "/does/not/exist", path)
	return path
}

func TestPropagation(t *testing.T) {
	t.Run("a mount that shares nothing is refused with the command that mends it", func(t *testing.T) {
		// The kernel's own sysctl files are on a mount below /proc that nobody shares, if any; skip where it is.
		if checkPropagation("f", "/proc/sys/kernel", "shared:") == nil {
			t.Skip("this machine shares /proc")
		}
		in := mounting(t, &runtimeapi.Mount{ContainerPath: "/a", HostPath: "/proc/sys/kernel", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL})
		_, _, err := containerSpec(in, ableHost())
		var inv *InvalidError
		if err == nil || errors.As(err, &inv) || !strings.Contains(err.Error(), "--make-rshared") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("recursively read-only excludes propagation", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root for a mount")
		}
		shared := sharedMount(t)
		for _, p := range []runtimeapi.MountPropagation{runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL} {
			refuses(t, mounting(t, &runtimeapi.Mount{ContainerPath: "/a", HostPath: shared, Readonly: true, RecursiveReadOnly: true, Propagation: p}),
				ableHost(), "config.mounts[0].recursive_read_only")
		}
	})
	t.Run("the root filesystem propagates as far as its mounts", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root for a mount")
		}
		shared := sharedMount(t)
		slave := &runtimeapi.Mount{ContainerPath: "/s", HostPath: shared, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}
		both := &runtimeapi.Mount{ContainerPath: "/b", HostPath: shared, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}
		for _, c := range []struct {
			mounts []*runtimeapi.Mount
			want   string
		}{{nil, ""}, {[]*runtimeapi.Mount{slave}, "rslave"}, {[]*runtimeapi.Mount{both, slave}, "rshared"}, {[]*runtimeapi.Mount{slave, both}, "rshared"}} {
			spec, _ := build(t, mounting(t, c.mounts...), ableHost())
			if spec.Linux.RootfsPropagation != c.want {
				t.Errorf("%d mounts: %q, want %q", len(c.mounts), spec.Linux.RootfsPropagation, c.want)
			}
		}
	})
}

// sharedMount is a tmpfs of which every mount event is propagated.
func sharedMount(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	if err := syscall.Mount("test", dir, "tmpfs", 0, "size=64k"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			tb.Error(err)
		}
	})
	if err := syscall.Mount("", dir, "", syscall.MS_SHARED, ""); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func TestDevices(t *testing.T) {
	with := func(d ...*runtimeapi.Device) ContainerInput {
		in := testInput(t)
		in.Config.Devices = d
		return in
	}
	t.Run("a device of the host is made and allowed as asked", func(t *testing.T) {
		alias := filepath.Join(t.TempDir(), "alias")
		link(t, "/dev/full", alias)
		spec, _ := build(t, with(&runtimeapi.Device{HostPath: alias, ContainerPath: "/dev/mine", Permissions: "rw"}), ableHost())
		if len(spec.Linux.Devices) != 1 {
			t.Fatalf("devices %+v", spec.Linux.Devices)
		}
		if d := spec.Linux.Devices[0]; d.Path != "/dev/mine" || d.Type != "c" || d.Major != 1 || d.Minor != 7 || *d.FileMode != 0o666 {
			t.Errorf("device %+v", d)
		}
		rules := spec.Linux.Resources.Devices
		if len(rules) != 2 || rules[0].Allow || !rules[1].Allow || *rules[1].Major != 1 || *rules[1].Minor != 7 || rules[1].Access != "rw" {
			t.Errorf("rules %+v", rules)
		}
	})
	t.Run("without a container path it is where it is on the host", func(t *testing.T) {
		spec, _ := build(t, with(&runtimeapi.Device{HostPath: "/dev/null", Permissions: "r"}), ableHost())
		if spec.Linux.Devices[0].Path != "/dev/null" {
			t.Errorf("device %+v", spec.Linux.Devices[0])
		}
	})
	for _, c := range []struct {
		name, field string
		device      *runtimeapi.Device
	}{
		{"no permissions", "permissions", &runtimeapi.Device{HostPath: "/dev/null"}},
		{"odd permissions", "permissions", &runtimeapi.Device{HostPath: "/dev/null", Permissions: "rx"}},
		{"a file that is no device", "host_path", &runtimeapi.Device{HostPath: "/etc/passwd", Permissions: "r"}},
		{"a directory without devices", "host_path", &runtimeapi.Device{HostPath: t.TempDir(), Permissions: "r"}},
		{"a path that does not exist", "host_path", &runtimeapi.Device{HostPath: "/dev/no-such", Permissions: "r"}},
		{"a container path that goes up", "container_path", &runtimeapi.Device{HostPath: "/dev/null", ContainerPath: "/dev/../x", Permissions: "r"}},
	} {
		t.Run(c.name+" is refused", func(t *testing.T) {
			refuses(t, with(c.device), ableHost(), "config.devices[0]."+c.field)
		})
	}
}
