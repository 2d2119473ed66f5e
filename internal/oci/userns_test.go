package oci

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func idMapping(container, host, length uint32) *runtimeapi.IDMapping {
	return &runtimeapi.IDMapping{ContainerId: container, HostId: host, Length: length}
}

func TestParseUserNamespace(t *testing.T) {
	good := []*runtimeapi.IDMapping{idMapping(0, 1000, 10)}
	for _, c := range []struct {
		name string
		in   *runtimeapi.UserNamespace
		want *IDMappings
	}{
		{"nothing is the host's", nil, nil},
		{"the mode NODE is the host's", &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}, nil},
		{"users and groups each have a range", &runtimeapi.UserNamespace{Uids: good, Gids: []*runtimeapi.IDMapping{idMapping(0, 7, 1)}},
			&IDMappings{UIDs: IDRange{1000, 10}, GIDs: IDRange{7, 1}}},
		{"a range may go to the last id", &runtimeapi.UserNamespace{Uids: good, Gids: []*runtimeapi.IDMapping{idMapping(0, math.MaxUint32-10, 10)}},
			&IDMappings{UIDs: IDRange{1000, 10}, GIDs: IDRange{math.MaxUint32 - 10, 10}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseUserNamespace("u", c.in)
			if err != nil || (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
				t.Errorf("got %v, %v; want %v", got, err, c.want)
			}
		})
	}
	for _, c := range []struct {
		name, field string
		in          *runtimeapi.UserNamespace
	}{
		{"no users", "u.uids", &runtimeapi.UserNamespace{Gids: good}},
		{"no groups", "u.gids", &runtimeapi.UserNamespace{Uids: good}},
		{"two ranges", "u.gids", &runtimeapi.UserNamespace{Uids: good, Gids: append(good, good...)}},
		{"a nil range", "u.uids[0].length", &runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{nil}, Gids: good}},
		{"an empty range", "u.uids[0].length", &runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{idMapping(0, 1, 0)}, Gids: good}},
		{"a range without root", "u.gids[0].container_id", &runtimeapi.UserNamespace{Uids: good, Gids: []*runtimeapi.IDMapping{idMapping(1, 1, 1)}}},
		{"a range that ends with no id", "u.uids[0].length", &runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{idMapping(0, math.MaxUint32, 1)}, Gids: good}},
		{"a range that overflows", "u.uids[0].length", &runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{idMapping(0, math.MaxUint32, math.MaxUint32)}, Gids: good}},
		{"the host's with a range", "u.mode", &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE, Gids: good}},
		{"CONTAINER", "u.mode", &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER, Uids: good, Gids: good}},
		{"an unknown mode", "u.mode", &runtimeapi.UserNamespace{Mode: 7, Uids: good, Gids: good}},
	} {
		t.Run(c.name+" is refused", func(t *testing.T) {
			m, err := ParseUserNamespace("u", c.in)
			var inv *InvalidError
			if m != nil || !errors.As(err, &inv) || inv.Field != c.field {
				t.Errorf("got %v, %v; want an InvalidError for %s", m, err, c.field)
			}
		})
	}
}

// inUserNS is a container in a pod with a user namespace.
func inUserNS(tb testing.TB, m ...*runtimeapi.Mount) ContainerInput {
	in := mounting(tb, m...)
	in.Namespaces.User = "/p/user"
	in.IDMappings = &IDMappings{UIDs: IDRange{1000, 10}, GIDs: IDRange{2000, 20}}
	return in
}

func idMappableHost(err error) *host {
	h := ableHost()
	h.idMappable = func(string, string) error { return err }
	return h
}

func TestUserNamespaceSpec(t *testing.T) {
	t.Run("the namespace is joined by its path, with its mappings beside it", func(t *testing.T) {
		spec, _ := build(t, inUserNS(t), ableHost())
		if !slices.Contains(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/p/user"}) {
			t.Errorf("namespaces %v", spec.Linux.Namespaces)
		}
		equal(t, "uids", spec.Linux.UIDMappings, []specs.LinuxIDMapping{{HostID: 1000, Size: 10}})
		equal(t, "gids", spec.Linux.GIDMappings, []specs.LinuxIDMapping{{HostID: 2000, Size: 20}})
	})
	t.Run("terminals have their group only where it is mapped", func(t *testing.T) {
		in := inUserNS(t)
		spec, _ := build(t, in, ableHost())
		if m, _ := mountAt(spec, "/dev/pts"); !slices.Contains(m.Options, "gid=5") {
			t.Errorf("options %v", m.Options)
		}
		in.IDMappings.GIDs.Size = 5
		spec, _ = build(t, in, ableHost())
		if m, _ := mountAt(spec, "/dev/pts"); slices.Contains(m.Options, "gid=5") {
			t.Errorf("options %v", m.Options)
		}
	})
	t.Run("on the host's network /sys is the host's, read-only all the way down", func(t *testing.T) {
		in := inUserNS(t)
		in.Namespaces.Net = ""
		spec, _ := build(t, in, ableHost())
		if m, _ := mountAt(spec, "/sys"); m.Type != "bind" || m.Source != "/sys" || !slices.Contains(m.Options, "rro") {
			t.Errorf("mount %+v", m)
		}
		in.Handler.RecursiveReadOnlyMounts = false
		spec, _ = build(t, in, ableHost())
		if m, _ := mountAt(spec, "/sys"); !slices.Contains(m.Options, "ro") {
			t.Errorf("mount %+v", m)
		}
	})
	t.Run("the host's processes are refused", func(t *testing.T) {
		in := inUserNS(t)
		in.Namespaces.HostPID = true
		refuses(t, in, ableHost(), securityContext+"namespace_options.pid")
	})
	t.Run("a user or group that is not mapped is refused", func(t *testing.T) {
		in := inUserNS(t)
		in.Config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 10}
		refuses(t, in, ableHost(), "the container's user")
		in = inUserNS(t)
		in.Config.Linux.SecurityContext.SupplementalGroups = []int64{20}
		refuses(t, in, ableHost(), "the container's group")
	})
	t.Run("a sandbox's init joins it, as a user that it has", func(t *testing.T) {
		spec, err := pauseSpec(PauseInput{ID: "x", RootFS: "/r", Handler: testInput(t).Handler, CgroupDriver: Cgroupfs,
			Namespaces: Namespaces{User: "/p/user"}, IDMappings: &IDMappings{UIDs: IDRange{1000, 10}, GIDs: IDRange{2000, 1 << 20}}}, ableHost())
		if err != nil {
			t.Fatal(err)
		}
		if u := spec.Process.User; u.UID != 9 || u.GID != pauseUser || len(spec.Linux.UIDMappings) != 1 {
			t.Errorf("user %v, mappings %v", u, spec.Linux.UIDMappings)
		}
	})
}

func TestIDMappedMounts(t *testing.T) {
	dir := t.TempDir()
	mount := func(change func(*runtimeapi.Mount)) *runtimeapi.Mount {
		m := &runtimeapi.Mount{ContainerPath: "/a", HostPath: dir,
			UidMappings: []*runtimeapi.IDMapping{idMapping(0, 1000, 10)}, GidMappings: []*runtimeapi.IDMapping{idMapping(0, 2000, 20)}}
		change(m)
		return m
	}
	same := mount(func(*runtimeapi.Mount) {})
	t.Run("a mount with the pod's mappings has them in the spec", func(t *testing.T) {
		spec, _ := build(t, inUserNS(t, same), idMappableHost(nil))
		m, _ := mountAt(spec, "/a")
		equal(t, "uids", m.UIDMappings, []specs.LinuxIDMapping{{HostID: 1000, Size: 10}})
		equal(t, "gids", m.GIDMappings, []specs.LinuxIDMapping{{HostID: 2000, Size: 20}})
	})
	t.Run("one without has none", func(t *testing.T) {
		spec, _ := build(t, inUserNS(t, mount(func(m *runtimeapi.Mount) { m.UidMappings, m.GidMappings = nil, nil })), idMappableHost(errors.New("not asked")))
		if m, _ := mountAt(spec, "/a"); m.UIDMappings != nil {
			t.Errorf("mount %+v", m)
		}
	})
	t.Run("an image's files are mapped already", func(t *testing.T) {
		in := inUserNS(t, mount(func(m *runtimeapi.Mount) {
			m.HostPath, m.Readonly, m.Image = "", true, &runtimeapi.ImageSpec{Image: "i"}
		}))
		in.ImageVolumes = map[int]string{0: dir}
		spec, _ := build(t, in, idMappableHost(errors.New("not asked")))
		if m, _ := mountAt(spec, "/a"); m.UIDMappings != nil {
			t.Errorf("mount %+v", m)
		}
	})
	t.Run("what the kernel can't map is refused as such", func(t *testing.T) {
		unsupports(t, inUserNS(t, same), idMappableHost(errors.New("cannot map the ids of files on NFS")), "NFS")
	})
	t.Run("mappings that are not the pod's, or half, are refused", func(t *testing.T) {
		for field, m := range map[string]*runtimeapi.Mount{
			"uidMappings":                 mount(func(m *runtimeapi.Mount) { m.UidMappings[0].HostId++ }),
			"gidMappings":                 mount(func(m *runtimeapi.Mount) { m.GidMappings = nil }),
			"gidMappings[0].length":       mount(func(m *runtimeapi.Mount) { m.GidMappings[0].Length = 0 }),
			"uidMappings[0].length":       mount(func(m *runtimeapi.Mount) { m.UidMappings = []*runtimeapi.IDMapping{nil} }),
			"uidMappings[0].container_id": mount(func(m *runtimeapi.Mount) { m.UidMappings[0].ContainerId = 3 }),
		} {
			refuses(t, inUserNS(t, m), idMappableHost(nil), "config.mounts[0]."+field)
		}
		refuses(t, mounting(t, same), idMappableHost(nil), "config.mounts[0].uidMappings")
	})
	t.Run("a filesystem of the kernel's own can't be mapped, and is named", func(t *testing.T) {
		if err := idMappable("/proc/self", "/proc/self/ns/user"); err == nil {
			t.Error("it can")
		}
		for path, want := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/no/such": "its filesystem"} {
			if got := filesystem(path); got != want {
				t.Errorf("%s is on %s, want %s", path, got, want)
			}
		}
	})
}

func TestHandlersWithoutUserNamespacesSayWhy(t *testing.T) {
	if readWord("/proc/sys/user/max_user_namespaces") == "0" || !exists("/proc/self/ns/user") {
		t.Skip("this kernel has none")
	}
	yes, no := true, false
	with := func(enabled *bool) *features.Linux {
		return &features.Linux{MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: enabled}}}
	}
	for name, c := range map[string]struct {
		linux *features.Linux
		can   bool
	}{
		"a runtime that says nothing": {nil, false}, "one that has no such extension": {&features.Linux{}, false},
		"one that does not know": {with(nil), false}, "one that can't": {with(&no), false}, "one that can": {with(&yes), true},
	} {
		why := noUserNamespaces(&Handler{Binary: "/bin/r", Version: "r 1", Features: features.Features{Linux: c.linux}})
		if (why == "") != c.can || !c.can && !strings.Contains(why, "/bin/r") {
			t.Errorf("%s: %q", name, why)
		}
	}
}
