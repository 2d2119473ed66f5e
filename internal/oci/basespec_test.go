package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// printed is what `ctr oci spec` prints, shortened, with parts that an operator would add.
const printed = `{
  "ociVersion": "1.2.1",
  "process": {
    "user": {"uid": 7, "gid": 7},
    "args": ["sh"],
    "env": ["PATH=/base", "BASE=1", "FROM=base"],
    "cwd": "/base",
    "capabilities": {"bounding": ["CAP_CHOWN", "CAP_NET_RAW"], "effective": ["CAP_CHOWN"]},
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2048, "soft": 1024}],
    "noNewPrivileges": true
  },
  "root": {"path": "rootfs"},
  "hostname": "base",
  "annotations": {"org.base/x": "base"},
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["ro"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    {"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
    {"destination": "/opt/base", "type": "bind", "source": "/usr/lib", "options": ["rbind", "ro"]},
    {"destination": "/asked", "type": "bind", "source": "/usr/lib", "options": ["rbind", "ro"]},
    {"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["rbind", "ro"]}
  ],
  "hooks": {"poststart": [{"path": "/bin/hook", "args": ["hook"], "timeout": 3}]},
  "linux": {
    "sysctl": {"net.core.somaxconn": "256"},
    "resources": {
      "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
      "cpu": {"burst": 50, "shares": 2, "cpus": "0"}, "memory": {"swappiness": 10, "limit": 1000}, "pids": {"limit": 77},
      "unified": {"memory.high": "5", "memory.low": "6"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}]
    },
    "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
    "cgroupsPath": "/base",
    "namespaces": [{"type": "pid"}, {"type": "network"}],
    "maskedPaths": ["/proc/base"]
  }
}`

func loadBase(t testing.TB, text string) (*BaseSpec, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "base.json")
	write(t, file, text)
	return LoadBaseSpec(file)
}

func TestBaseSpec(t *testing.T) {
	base, err := loadBase(t, printed)
	if err != nil {
		t.Fatal(err)
	}
	input := func(t *testing.T) ContainerInput {
		in := testInput(t)
		in.Handler.Base = base
		in.Image.Env = []string{"FROM=image"}
		in.DefaultUlimits = map[string][2]uint64{"RLIMIT_NOFILE": {1, 1}, "RLIMIT_CORE": {0, 0}}
		in.PidsLimit = 5
		in.Hosts = "/pods/hosts"
		return in
	}
	t.Run("what is the handler's is there, under what is asked for", func(t *testing.T) {
		in := input(t)
		in.Config.Envs = []*runtimeapi.KeyValue{{Key: "BASE", Value: []byte("asked")}}
		in.Config.Mounts = []*runtimeapi.Mount{{HostPath: "/usr", ContainerPath: "/asked"}}
		in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
			CpuShares: 100, MemoryLimitInBytes: 4096, Unified: map[string]string{"memory.high": "9"},
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 9}},
		}
		in.Config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"CHOWN"}, AddCapabilities: []string{"KILL"}}
		s, _ := build(t, in, ableHost())
		equal(t, "environment", s.Process.Env, []string{"PATH=/base", "HOSTNAME=pod", "BASE=asked", "FROM=image", "HOME=/"})
		equal(t, "capabilities", s.Process.Capabilities.Bounding, []string{"CAP_KILL", "CAP_NET_RAW"})
		equal(t, "limits", s.Process.Rlimits, []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 2048}})
		if m, _ := mountAt(s, "/opt/base"); m.Source != "/usr/lib" {
			t.Errorf("the mount of the base: %+v", m)
		}
		for destination, source := range map[string]string{"/asked": "/usr", "/etc/hosts": "/pods/hosts"} {
			if m, _ := mountAt(s, destination); m.Source != source {
				t.Errorf("%s is %+v, want %s", destination, m, source)
			}
		}
		r := s.Linux.Resources
		for what, ok := range map[string]bool{
			"pids":       *r.Pids.Limit == 77,
			"cpu":        *r.CPU.Burst == 50 && *r.CPU.Shares == 100 && r.CPU.Cpus == "0",
			"memory":     *r.Memory.Swappiness == 10 && *r.Memory.Limit == 4096 && *r.Memory.Swap == 4096,
			"unified":    r.Unified["memory.high"] == "9" && r.Unified["memory.low"] == "6",
			"hugepages":  len(r.HugepageLimits) == 2 && r.HugepageLimits[0].Limit == 9 && r.HugepageLimits[1].Limit == 2,
			"rules":      len(r.Devices) == 3 && !r.Devices[0].Allow && r.Devices[2].Allow,
			"device":     len(s.Linux.Devices) == 1 && s.Linux.Devices[0].Path == "/dev/fuse",
			"sysctl":     s.Linux.Sysctl["net.core.somaxconn"] == "256",
			"hook":       s.Hooks.Poststart[0].Path == "/bin/hook" && *s.Hooks.Poststart[0].Timeout == 3,
			"annotation": s.Annotations["org.base/x"] == "base",
		} {
			if !ok {
				t.Errorf("%s is not as it should be: %+v, resources %+v", what, s.Linux, r)
			}
		}
	})
	t.Run("what the request, the pod and the engine decide is not taken from it", func(t *testing.T) {
		s, _ := build(t, input(t), ableHost())
		proc, _ := mountAt(s, "/proc")
		_, run := mountAt(s, "/run")
		for what, ok := range map[string]bool{
			"command": s.Process.Args[0] == "/bin/true" && s.Process.Cwd == "/", "user": s.Process.User.UID == 0,
			"privileges": !s.Process.NoNewPrivileges, "root": s.Root.Path != "rootfs" && !s.Root.Readonly,
			"hostname": s.Hostname == "", "cgroup": s.Linux.CgroupsPath == "/cri-engine/c0ffee",
			"namespaces": len(s.Linux.Namespaces) > 2, "version": s.Version == "1.1.0",
			"proc": proc.Options[0] == "nosuid", "run": run < 0, "masked": len(s.Linux.MaskedPaths) == 0,
		} {
			if !ok {
				t.Errorf("%s: %+v, process %+v, linux %+v", what, s, s.Process, s.Linux)
			}
		}
	})
	t.Run("a privileged container keeps its devices and its sysfs", func(t *testing.T) {
		in := input(t)
		in.Config.Linux.SecurityContext.Privileged = true
		s, _ := build(t, in, ableHost())
		sys, _ := mountAt(s, "/sys")
		if len(s.Linux.Resources.Devices) != 1 || !s.Linux.Resources.Devices[0].Allow || sys.Options[3] != "rw" {
			t.Errorf("rules %+v, /sys %+v", s.Linux.Resources.Devices, sys)
		}
	})
	t.Run("two containers share nothing of it", func(t *testing.T) {
		a, _ := build(t, input(t), ableHost())
		a.Hooks.Poststart[0].Path, a.Linux.Sysctl["x.y"] = "/changed", "1"
		b, _ := build(t, input(t), ableHost())
		if b.Hooks.Poststart[0].Path != "/bin/hook" || len(b.Linux.Sysctl) != 1 {
			t.Errorf("the second has %+v, %v", b.Hooks, b.Linux.Sysctl)
		}
	})
	t.Run("its seccomp profile holds where the request says nothing of one", func(t *testing.T) {
		withProfile, err := loadBase(t, `{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_LOG"}}}`)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			profile *runtimeapi.SecurityProfile
			want    bool
		}{{nil, true}, {&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, false}} {
			in := testInput(t)
			in.Handler.Base = withProfile
			in.Config.Linux.SecurityContext.Seccomp = c.profile
			s, _ := build(t, in, ableHost())
			if got := s.Linux.Seccomp != nil; got != c.want {
				t.Errorf("asked for %v: filtered %v, want %v", c.profile, got, c.want)
			}
		}
	})
}

func TestBaseSpecErrorsNameFileAndField(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"broken JSON", "{\n\"process\": {\n", "line 3: unexpected EOF"},
		{"syntax", "{\n\"process\": x\n}", "line 2: invalid character 'x'"},
		{"a wrong type", "{\n\"process\": {\"env\": \"x\"}\n}", "line 2: process.env: a JSON string does not fit"},
		{"an unknown field", `{"proces": {}}`, `unknown field "proces"`},
		{"two documents", `{} {}`, "something follows"},
		{"a version of the future", `{"ociVersion": "2.0.0"}`, "ociVersion: "},
		{"another system's", `{"windows": {"layerFolders": []}}`, "windows: "},
		{"a variable", `{"process": {"env": ["A=1", "B"]}}`, "process.env[1]: "},
		{"a limit's name", `{"process": {"rlimits": [{"type": "NOFILE", "soft": 1, "hard": 1}]}}`, `process.rlimits[0].type: "NOFILE"`},
		{"a limit above the other", `{"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]}}`, "process.rlimits[0].soft: 2"},
		{"a limit twice", `{"process": {"rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}, {"type": "RLIMIT_CORE", "soft": 1, "hard": 1}]}}`, "process.rlimits[1].type: "},
		{"a capability", `{"process": {"capabilities": {"bounding": ["CAP_FLY"]}}}`, `process.capabilities.bounding[0]: "CAP_FLY"`},
		{"what is the request's", `{"process": {"apparmorProfile": "x"}}`, "process.apparmorProfile: "},
		{"a label", `{"process": {"selinuxLabel": "x"}}`, "process.selinuxLabel: "},
		{"a score", `{"process": {"oomScoreAdj": 5}}`, "process.oomScoreAdj: "},
		{"a mount", `{"mounts": [{"destination": "x"}]}`, `mounts[0].destination: "x"`},
		{"a mount out of the way", `{"mounts": [{"destination": "/a/../b"}]}`, "mounts[0].destination: "},
		{"a hook", `{"hooks": {"prestart": [{"path": "x"}]}}`, `hooks.prestart[0].path: "x"`},
		{"a hook's time", `{"hooks": {"poststop": [{"path": "/x", "timeout": 0}]}}`, "hooks.poststop[0].timeout: 0"},
		{"a device", `{"linux": {"devices": [{"path": "/dev/x", "type": "z"}]}}`, `linux.devices[0].type: "z"`},
		{"a rule", `{"linux": {"resources": {"devices": [{"access": "q"}]}}}`, `linux.resources.devices[0].access: "q"`},
		{"mappings", `{"linux": {"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}}`, "linux.uidMappings: "},
		{"a seccomp profile without an action", `{"linux": {"seccomp": {"defaultAction": ""}}}`, "linux.seccomp.defaultAction: "},
		{"a time", `{"linux": {"timeOffsets": {"boottime": {"secs": 1}}}}`, "linux.timeOffsets: "},
		{"an interface", `{"linux": {"netDevices": {"eth9": {"name": "x"}}}}`, "linux.netDevices: "},
		{"a file without end", strings.Repeat(" ", maxBaseSpec+1), "is larger than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := loadBase(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "base.json") {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	if _, err := LoadBaseSpec("/nowhere/base.json"); !os.IsNotExist(err) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func FuzzBaseSpec(f *testing.F) {
	f.Add([]byte(printed))
	f.Add([]byte(`{"linux": {"resources": {"devices": [{}]}}, "hooks": {"prestart": [{}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := decodeBase(data)
		if err == nil {
			err = checkBase(spec)
		}
		if err != nil {
			return
		}
		keptOfBase(spec)
		if _, err := OverlayResources(&specs.LinuxResources{}, &specs.LinuxResources{}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDevicesBelongToTheUserOfTheSecurityContext(t *testing.T) {
	for _, c := range []struct {
		name     string
		on       bool
		uid, gid *runtimeapi.Int64Value
		want     [2]uint32
	}{
		{"switched off, to the host's owner", false, &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 1001}, [2]uint32{0, 0}},
		{"to user and group", true, &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 1001}, [2]uint32{1000, 1001}},
		{"without a group, to the user", true, &runtimeapi.Int64Value{Value: 1000}, nil, [2]uint32{1000, 0}},
		{"root's stay the host's", true, &runtimeapi.Int64Value{}, &runtimeapi.Int64Value{}, [2]uint32{0, 0}},
		{"without a user too", true, nil, nil, [2]uint32{0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t)
			in.DeviceOwnership = c.on
			in.Config.Linux.SecurityContext.RunAsUser, in.Config.Linux.SecurityContext.RunAsGroup = c.uid, c.gid
			in.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "rw"}}
			s, _ := build(t, in, ableHost())
			if d := s.Linux.Devices[0]; *d.UID != c.want[0] || *d.GID != c.want[1] {
				t.Errorf("%d:%d, want %v", *d.UID, *d.GID, c.want)
			}
		})
	}
}
