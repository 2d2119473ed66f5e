package cdi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// whole has every kind of edit.
const whole = `
cdiVersion: "1.1.0"
kind: "vendor.com/dev"
containerEdits:
  env: ["COMMON=yes"]
  additionalGids: [4242]
devices:
- name: one
  containerEdits:
    env: ["ONE=1", "BOTH=one"]
    deviceNodes:
    - {path: /dev/one, hostPath: /dev/null, permissions: rw}
    mounts:
    - {hostPath: /usr/lib, containerPath: /opt/lib, options: [ro, bind]}
    hooks:
    - {hookName: createContainer, path: /bin/hook, args: [hook, one], env: ["A=b"], timeout: 5}
    intelRdt: {closID: class}
    netDevices:
    - {hostInterfaceName: dummy0, name: net1}
- name: two
  containerEdits:
    env: ["TWO=2", "BOTH=two"]
`

// simple is a specification with devices that set an environment variable to value.
func simple(value string, devices ...string) string {
	text := "{\"cdiVersion\": \"0.6.0\", \"kind\": \"vendor.com/dev\", \"devices\": ["
	for i, d := range devices {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf(`{"name": %q, "containerEdits": {"env": ["DEVICE_%s=%s"]}}`, d, d, value)
	}
	return text + "]}"
}

func container() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Env: []string{"PATH=/bin", "BOTH=image"}, User: specs.User{UID: 1000, GID: 100}},
		Mounts:  []specs.Mount{{Destination: "/opt/lib/deep/er"}},
		Linux:   &specs.Linux{},
	}
}

func TestInject(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/vendor.yaml", whole)
	r := New([]string{dir})
	t.Run("all edits of a device and of its file are applied", func(t *testing.T) {
		s := container()
		if err := r.Inject(s, []string{"vendor.com/dev=one"}); err != nil {
			t.Fatal(err)
		}
		for what, ok := range map[string]bool{
			"env":     strings.Join(s.Process.Env, " ") == "PATH=/bin BOTH=one COMMON=yes ONE=1",
			"groups":  len(s.Process.User.AdditionalGids) == 1 && s.Process.User.AdditionalGids[0] == 4242,
			"mount":   len(s.Mounts) == 2 && s.Mounts[0].Destination == "/opt/lib" && s.Mounts[0].Source == "/usr/lib",
			"hook":    len(s.Hooks.CreateContainer) == 1 && s.Hooks.CreateContainer[0].Path == "/bin/hook" && *s.Hooks.CreateContainer[0].Timeout == 5,
			"rdt":     s.Linux.IntelRdt.ClosID == "class",
			"net":     s.Linux.NetDevices["dummy0"].Name == "net1",
			"devices": len(s.Linux.Devices) == 1 && s.Linux.Devices[0].Path == "/dev/one" && s.Linux.Devices[0].Major == 1 && s.Linux.Devices[0].Minor == 3 && *s.Linux.Devices[0].UID == 1000 && *s.Linux.Devices[0].GID == 100,
			"cgroup":  len(s.Linux.Resources.Devices) == 1 && s.Linux.Resources.Devices[0].Access == "rw" && s.Linux.Resources.Devices[0].Allow,
		} {
			if !ok {
				t.Errorf("%s: not as the file says, in %+v, linux %+v", what, s, s.Linux)
			}
		}
	})
	t.Run("a device that is named twice is there once", func(t *testing.T) {
		s := container()
		if err := r.Inject(s, []string{"vendor.com/dev=one", "vendor.com/dev=two", "vendor.com/dev=one"}); err != nil {
			t.Fatal(err)
		}
		if len(s.Hooks.CreateContainer) != 1 || len(s.Process.User.AdditionalGids) != 1 || strings.Join(s.Process.Env, " ") != "PATH=/bin BOTH=two COMMON=yes ONE=1 TWO=2" {
			t.Errorf("got %d hooks, groups %v, env %q", len(s.Hooks.CreateContainer), s.Process.User.AdditionalGids, s.Process.Env)
		}
	})
	t.Run("a device node is what it is at that moment", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("makes device nodes")
		}
		node := filepath.Join(dir, "node")
		write(t, dir+"/node.json", `{"cdiVersion": "0.6.0", "kind": "vendor.com/node", "devices": [{"name": "n", "containerEdits": {"deviceNodes": [{"path": "`+node+`"}]}}]}`)
		for _, minor := range []int64{3, 5} {
			if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(1, uint32(minor)))); err != nil {
				t.Skip("device nodes cannot be made here:", err)
			}
			s := container()
			if err := r.Inject(s, []string{"vendor.com/node=n"}); err != nil {
				t.Fatal(err)
			}
			if got := s.Linux.Devices[0].Minor; got != minor {
				t.Errorf("minor is %d, want %d", got, minor)
			}
			os.Remove(node)
		}
		if err := r.Inject(container(), []string{"vendor.com/node=n"}); err == nil || !strings.Contains(err.Error(), node) || errors.Is(err, ErrInvalid) {
			t.Errorf("a node that is gone: %v", err)
		}
	})
}

func TestSpecsAreLookedUp(t *testing.T) {
	inject := func(r *Registry, names ...string) (string, error) {
		s := container()
		err := r.Inject(s, names)
		return strings.Join(s.Process.Env[2:], " "), err
	}
	setUp := func(t *testing.T) (string, *Registry) {
		dir := t.TempDir()
		return dir, New([]string{dir + "/etc", dir + "/run"})
	}
	t.Run("what changed since is seen, in either direction", func(t *testing.T) {
		dir, r := setUp(t)
		if _, err := inject(r, "vendor.com/dev=a"); !errors.Is(err, ErrInvalid) {
			t.Errorf("before there is a file: %v", err)
		}
		write(t, dir+"/run/v.json", simple("1", "a"))
		if got, err := inject(r, "vendor.com/dev=a"); err != nil || got != "DEVICE_a=1" {
			t.Errorf("got %q, %v", got, err)
		}
		write(t, dir+"/run/v.json", simple("22", "a"))
		if got, err := inject(r, "vendor.com/dev=a"); err != nil || got != "DEVICE_a=22" {
			t.Errorf("got %q, %v", got, err)
		}
		os.Remove(dir + "/run/v.json")
		if _, err := inject(r, "vendor.com/dev=a"); !errors.Is(err, ErrInvalid) {
			t.Errorf("after it went: %v", err)
		}
	})
	t.Run("the last directory wins, two files of one are a conflict", func(t *testing.T) {
		dir, r := setUp(t)
		write(t, dir+"/etc/v.json", simple("etc", "a", "b"))
		write(t, dir+"/run/v.json", simple("run", "a"))
		if got, err := inject(r, "vendor.com/dev=a", "vendor.com/dev=b"); err != nil || got != "DEVICE_a=run DEVICE_b=etc" {
			t.Errorf("got %q, %v", got, err)
		}
		write(t, dir+"/run/w.json", simple("run", "a"))
		_, err := inject(r, "vendor.com/dev=a")
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "run/v.json and "+dir+"/run/w.json") {
			t.Errorf("error %v", err)
		}
		if _, err := inject(r, "vendor.com/dev=b"); err != nil {
			t.Errorf("the conflict hurt another device: %v", err)
		}
	})
	t.Run("a broken file hurts no other, and an unknown device's error names it", func(t *testing.T) {
		dir, r := setUp(t)
		write(t, dir+"/etc/v.json", simple("1", "a"))
		write(t, dir+"/etc/broken.json", `{"cdiVersion": "0.6.0", "kind": "vendor.com/other", "devcies": []}`)
		write(t, dir+"/run/large.yaml", strings.Repeat("x", maxFile+1))
		if _, err := inject(r, "vendor.com/dev=a"); err != nil {
			t.Error(err)
		}
		_, err := inject(r, "vendor.com/dev=a", "vendor.com/other=x")
		for _, want := range []string{`"vendor.com/other=x" is not defined`, dir + "/etc, " + dir + "/run", dir + "/etc/broken.json", "devcies", dir + "/run/large.yaml is larger than"} {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v does not say %q", err, want)
			}
		}
	})
	t.Run("what is no device's name is refused", func(t *testing.T) {
		_, r := setUp(t)
		for _, name := range []string{"", "gpu0", "vendor.com/dev", "vendor.com/dev=../x", strings.Repeat("x", 1000)} {
			if _, err := inject(r, name); !errors.Is(err, ErrInvalid) || len(err.Error()) > 2000 {
				t.Errorf("%.20q: error %v", name, err)
			}
		}
		if _, err := inject(r, make([]string, maxDevices+1)...); !errors.Is(err, ErrInvalid) {
			t.Errorf("too many: %v", err)
		}
	})
}

func TestAnnotated(t *testing.T) {
	got, err := Annotated(map[string]string{
		"cdi.k8s.io/z": "vendor.com/dev=c", "cdi.k8s.io/a_b": "vendor.com/dev=a,vendor.com/dev=b", "other": "x",
	})
	if err != nil || strings.Join(got, " ") != "vendor.com/dev=a vendor.com/dev=b vendor.com/dev=c" {
		t.Errorf("got %q, %v", got, err)
	}
	_, err = Annotated(map[string]string{"cdi.k8s.io/x": "vendor.com/dev=a,b"})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `annotation "cdi.k8s.io/x": "b"`) {
		t.Errorf("error %v", err)
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	device := func(edits string) string {
		return `{"cdiVersion": "1.1.0", "kind": "vendor.com/dev", "devices": [{"name": "a", "containerEdits": ` + edits + `}]}`
	}
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "EOF"},
		{"null", "null", "no specification"},
		{"no devices", `{"cdiVersion": "0.6.0", "kind": "vendor.com/dev"}`, "devices: there are none"},
		{"a device of nothing", device(`{}`), "devices[0].containerEdits: there are none"},
		{"an empty entry", device(`{"deviceNodes": [null]}`), "devices[0].containerEdits: an entry is empty"},
		{"a relative device", device(`{"deviceNodes": [{"path": "dev/x"}]}`), "devices[0].containerEdits.deviceNodes[0]"},
		{"a relative hook", device(`{"hooks": [{"hookName": "prestart", "path": "x"}]}`), "devices[0].containerEdits.hooks[0].path"},
		{"an unknown hook", device(`{"hooks": [{"hookName": "x", "path": "/x"}]}`), `"x"`},
		{"a relative mount", device(`{"mounts": [{"hostPath": "/x", "containerPath": "x"}]}`), "devices[0].containerEdits.mounts[0].containerPath"},
		{"permissions", device(`{"deviceNodes": [{"path": "/dev/x", "permissions": "q"}]}`), `"q"`},
		{"an environment", device(`{"env": ["x"]}`), `"x"`},
		{"a name twice", simple("1", "a", "a"), "devices[1].name"},
		{"a kind", strings.Replace(simple("1", "a"), "vendor.com/dev", "dev", 1), `kind "dev"`},
		{"a version that has not what is used", strings.Replace(device(`{"additionalGids": [1]}`), "1.1.0", "0.6.0", 1), "cdiVersion"},
		{"an unknown version", strings.Replace(simple("1", "a"), "0.6.0", "9.9.9", 1), "cdiVersion"},
	} {
		if _, err := parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(simple("1", "a")))
	f.Add([]byte(`{"devices": [{"containerEdits": {"mounts": [null], "hooks": [{}]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parse(data)
		if err != nil {
			return
		}
		// What was taken can be applied: an error may come of it, a panic may not.
		for _, d := range file.spec.Devices {
			all := &cdi.ContainerEdits{}
			if err := add(all, d.ContainerEdits); err != nil {
				t.Fatal(err)
			}
			_ = all.Apply(container())
		}
	})
}
