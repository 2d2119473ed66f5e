package config

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cri-engine/cri-engine/conf"
)

// write puts files into a new directory and returns it.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t testing.TB, files map[string]string) *Loaded {
	t.Helper()
	l, err := Load(filepath.Join(write(t, files), "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTheDefaultsAreValid(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestConfigTOMLIsTheDefaults(t *testing.T) {
	l := load(t, map[string]string{"config.toml": string(conf.ConfigTOML)})
	if want := Default(); !reflect.DeepEqual(l.Config, want) {
		t.Errorf("conf/config.toml reads as\n%+v\nthe defaults are\n%+v", l.Config, want)
	}
	lines := strings.Split(string(conf.ConfigTOML), "\n")
	eachKey(reflect.TypeFor[Config](), "", func(table, key string) {
		if table != "runtime.handlers.NAME" && l.Origins[join(table, key)] == "" {
			t.Errorf("conf/config.toml has no %s", join(table, key))
		}
		if !documented(lines, table, key) {
			t.Errorf("conf/config.toml has no comment above %s", join(table, key))
		}
	})
}

// eachKey calls f for every value that the type has, with its table.
func eachKey(t reflect.Type, table string, f func(table, key string)) {
	for field := range fields(t) {
		name := join(table, keyOf(field))
		switch field.Type.Kind() {
		case reflect.Struct:
			eachKey(field.Type, name, f)
		case reflect.Map:
			eachKey(field.Type.Elem(), name+".NAME", f)
		default:
			f(table, keyOf(field))
		}
	}
}

// documented tells whether a comment stands above a key, or above a block of
// keys that ends with it. The handlers' table is a comment itself.
func documented(lines []string, table, key string) bool {
	prefix, in := "", ""
	if strings.HasSuffix(table, ".NAME") {
		prefix = "# "
	}
	for i, line := range lines {
		line, ok := strings.CutPrefix(line, prefix)
		if !ok {
			continue
		}
		if strings.HasPrefix(line, "[") {
			in = strings.Trim(line, "[]")
		}
		if in != table || !strings.HasPrefix(line, key+" = ") {
			continue
		}
		for i--; i >= 0; i-- {
			above := strings.TrimPrefix(lines[i], prefix)
			if strings.HasPrefix(above, "# ") {
				return true
			}
			if !strings.Contains(above, " = ") {
				return false
			}
		}
	}
	return false
}

func TestEveryFieldHasAKey(t *testing.T) {
	eachKey(reflect.TypeFor[Config](), "", func(table, key string) {
		if key == "" || key != strings.ToLower(key) {
			t.Errorf("a field of [%s] has the key %q", table, key)
		}
	})
}

func TestLoad(t *testing.T) {
	t.Run("drop-ins are read in the order of their names: tables merge, lists replace", func(t *testing.T) {
		l := load(t, map[string]string{
			"config.toml": `
				root = "/data/one"
				[runtime]
				default_capabilities = ["chown", "CAP_KILL"]
				default_ulimits = ["nofile=1:2", "core=0"]
				[runtime.handlers.crun]
				path = "/usr/bin/crun"
				annotations = ["a", "b"]
				[network]
				timeout = "30s"`,
			"conf.d/20-second.toml": `root = "/data/three"`,
			"conf.d/10-first.toml": `
				root = "/data/two"
				runtime.default_ulimits = ["nproc=5"]
				[runtime.handlers.crun]
				annotations = ["c"]
				sandbox = true
				[runtime.handlers.kata]
				path = "kata-runtime"`,
			"conf.d/30-other.conf":   `root = "/not/read"`,
			"conf.d/.40-hidden.toml": `root = "/not/read"`,
		})
		if err := l.Validate(); err != nil {
			t.Fatal(err)
		}
		want := Default()
		want.Root = "/data/three"
		want.Runtime.DefaultCapabilities = []string{"CAP_CHOWN", "CAP_KILL"}
		want.Runtime.DefaultUlimits = []string{"nproc=5"}
		want.Runtime.Handlers = map[string]Handler{
			"crun": {Path: "/usr/bin/crun", Annotations: []string{"c"}, Sandbox: true},
			"kata": {Path: "kata-runtime"},
		}
		want.Network.Timeout = Duration(30 * time.Second)
		if !reflect.DeepEqual(l.Config, want) {
			t.Errorf("got\n%+v\nwant\n%+v", l.Config, want)
		}
		dir := filepath.Dir(l.Files[0])
		for key, origin := range map[string]string{
			"root":                           dir + "/conf.d/20-second.toml:1",
			"runtime.handlers.crun.path":     dir + "/config.toml:7",
			"runtime.handlers.crun.sandbox":  dir + "/conf.d/10-first.toml:6",
			"runtime.default_ulimits":        dir + "/conf.d/10-first.toml:3",
			"runtime.unprivileged_icmp":      "",
			"runtime.handlers.crun.path.not": "",
		} {
			if l.Origins[key] != origin {
				t.Errorf("%s comes from %q, want %q", key, l.Origins[key], origin)
			}
		}
	})
	t.Run("a state directory takes the socket along", func(t *testing.T) {
		l := load(t, map[string]string{"config.toml": `state = "/run/two"`})
		if l.Listen != "/run/two/cri-engine.sock" || l.NRI.Socket != "/run/two/nri.sock" {
			t.Errorf("listen is %q, nri.socket %q", l.Listen, l.NRI.Socket)
		}
	})
	t.Run("unless the file says where plugins connect", func(t *testing.T) {
		l := load(t, map[string]string{"config.toml": "state = \"/run/two\"\n[nri]\nsocket = \"/run/three.sock\""})
		if l.NRI.Socket != "/run/three.sock" {
			t.Errorf("nri.socket is %q", l.NRI.Socket)
		}
	})
	t.Run("a file that was named must exist", func(t *testing.T) {
		if _, err := Load(filepath.Join(t.TempDir(), "config.toml")); !os.IsNotExist(unwrapAll(err)) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a file without end is refused", func(t *testing.T) {
		if _, err := Load("/dev/zero"); err == nil || !strings.Contains(err.Error(), "larger than") {
			t.Errorf("got %v", err)
		}
	})
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}

func TestLoadErrorsNameFileAndLine(t *testing.T) {
	cases := []struct{ name, text, line, want string }{
		{"an unknown key", "root = \"/a\"\n\nrot = 1\n", "3", "unknown key rot"},
		{"an unknown key in a table", "[log]\nlevel = \"info\"\nlevle = 1\n", "3", "unknown key log.levle"},
		{"an unknown key in a handler", "[runtime.handlers.x]\npath = \"x\"\npaht = \"x\"\n", "3", "unknown key runtime.handlers.x.paht"},
		{"an unknown key in an inline table", "log = {level = \"info\",\n levle = 2}\n", "2", "unknown key log.levle"},
		{"an unknown dotted key", "a = 1\nlog.x.y = 1\n", "2", "unknown key log.x"},
		{"an unknown key with an odd name", "\n\"ro\\\"o, t\" = 1\n", "2", `unknown key "ro\"o, t"`},
		{"a key in the wrong case", "Root = \"/a\"\n", "1", "unknown key Root"},
		{"an unknown table", "\n\n[nework]\n", "3", "unknown key nework"},
		{"a value of the wrong type", "\n[runtime]\npids_limit = \"many\"\n", "3", "runtime.pids_limit: incompatible types"},
		{"a duration without unit", "\n[network]\ntimeout = \"5\"\n", "3", "network.timeout: time: missing unit"},
		{"a number out of range", "[runtime]\npids_limit = 99999999999999999999\n", "2", "runtime.pids_limit: "},
		{"a table where a value belongs", "[root]\nx = 1\n", "1", "root: incompatible types"},
		{"broken syntax", "root = \n", "1", "expected value"},
		{"a key given twice", "root = \"/a\"\nroot = \"/b\"\n", "2", "root"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(write(t, map[string]string{"config.toml": c.text}), "config.toml")
			_, err := Load(path)
			if err == nil {
				t.Fatal("no error")
			}
			if want := path + ":" + c.line + ": "; !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, want it to hold %q and %q", err, want, c.want)
			}
		})
	}
}

func TestOverride(t *testing.T) {
	cases := []struct {
		name  string
		flags Flags
		want  Config
	}{
		{"nothing given", Flags{}, Config{Root: "/r", State: "/s", Listen: "/l"}},
		{"a state directory takes the sockets along", Flags{State: "/x"}, Config{Root: "/r", State: "/x", Listen: "/x/cri-engine.sock", NRI: NRI{Socket: "/x/nri.sock"}}},
		{"unless the socket is given", Flags{State: "/x", Listen: "/y"}, Config{Root: "/r", State: "/x", Listen: "/y", NRI: NRI{Socket: "/x/nri.sock"}}},
		{"the log", Flags{LogLevel: "debug", LogFormat: "json"}, Config{Root: "/r", State: "/s", Listen: "/l", Log: Log{Level: "debug", Format: "json"}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := &Loaded{Config: Config{Root: "/r", State: "/s", Listen: "/l"}, Origins: map[string]string{}}
			l.Override(c.flags)
			if !reflect.DeepEqual(l.Config, c.want) {
				t.Errorf("got %+v, want %+v", l.Config, c.want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	long := "/" + strings.Repeat("x", 200)
	cases := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"a relative root", func(c *Config) { c.Root = "data" }, "root: "},
		{"an empty state", func(c *Config) { c.State = "" }, "state: is empty"},
		{"a path that is not clean", func(c *Config) { c.Root = "/a/../b/" }, `root: "/a/../b/" should be written "/b"`},
		{"the file system's root", func(c *Config) { c.Root = "/" }, "root: "},
		{"a root in state", func(c *Config) { c.Root = c.State + "/root" }, "root: "},
		{"root and state in one", func(c *Config) { c.Root = c.State }, "root: "},
		{"a socket path that is too long", func(c *Config) { c.Listen = long }, "listen: "},
		{"a socket path for plugins that is too long", func(c *Config) { c.NRI.Socket = long }, "nri.socket: "},
		{"plugins without any time", func(c *Config) { c.NRI.RequestTimeout = 0 }, "nri.request_timeout: "},
		{"a relative plugin path", func(c *Config) { c.NRI.PluginPath = "plugins" }, "nri.plugin_path: "},
		{"a state path that is too long", func(c *Config) { c.State = long }, "state: "},
		{"a log level", func(c *Config) { c.Log.Level = "loud" }, "log.level: "},
		{"a log format", func(c *Config) { c.Log.Format = "xml" }, "log.format: "},
		{"a default handler that does not exist", func(c *Config) { c.Runtime.DefaultHandler = "kata" }, "runtime.default_handler: "},
		{"a cgroup driver", func(c *Config) { c.Runtime.CgroupDriver = "none" }, "runtime.cgroup_driver: "},
		{"a capability", func(c *Config) { c.Runtime.DefaultCapabilities = []string{"CAP_FLY"} }, "runtime.default_capabilities: "},
		{"an AppArmor profile that is no name", func(c *Config) { c.Runtime.AppArmorProfile = "a\nb" }, "runtime.apparmor_profile: "},
		{"a relative seccomp profile", func(c *Config) { c.Runtime.SeccompProfile = "x.json" }, "runtime.seccomp_profile: "},
		{"a negative pids limit", func(c *Config) { c.Runtime.PidsLimit = -1 }, "runtime.pids_limit: "},
		{"an unknown ulimit", func(c *Config) { c.Runtime.DefaultUlimits = []string{"files=1"} }, "runtime.default_ulimits: "},
		{"a soft limit above the hard", func(c *Config) { c.Runtime.DefaultUlimits = []string{"nofile=2:1"} }, "runtime.default_ulimits: "},
		{"a sysctl without value", func(c *Config) { c.Runtime.DefaultSysctls = []string{"net.x"} }, "runtime.default_sysctls: "},
		{"a sysctl with traversal", func(c *Config) { c.Runtime.DefaultSysctls = []string{"net/../x=1"} }, "runtime.default_sysctls: "},
		{"an operation timeout of nothing", func(c *Config) { c.Runtime.OperationTimeout = 0 }, "runtime.operation_timeout: "},
		{"a handler named auto", func(c *Config) { c.Runtime.Handlers["auto"] = Handler{Type: "runc"} }, "runtime.handlers.auto: "},
		{"a handler with a bad name", func(c *Config) { c.Runtime.Handlers["../x"] = Handler{Type: "runc"} }, "runtime.handlers.../x: "},
		{"a handler of unknown type", func(c *Config) { c.Runtime.Handlers["x"] = Handler{Type: "docker"} }, "runtime.handlers.x.type: "},
		{"a handler with a relative path", func(c *Config) { c.Runtime.Handlers["x"] = Handler{Path: "bin/x"} }, "runtime.handlers.x.path: "},
		{"a handler of type auto with a path", func(c *Config) { c.Runtime.Handlers["x"] = Handler{Path: "/x", Type: "auto"} }, "runtime.handlers.x.path: "},
		{"a handler with a bad pattern", func(c *Config) { c.Runtime.Handlers["x"] = Handler{Type: "runc", Annotations: []string{"["}} }, "runtime.handlers.x.annotations: "},
		{"a relative monitor", func(c *Config) { c.Monitor.Path = "monitor" }, "monitor.path: "},
		{"a driver", func(c *Config) { c.Image.Driver = "aufs" }, "image.driver: "},
		{"a driver option without value", func(c *Config) { c.Image.DriverOptions = []string{"x"} }, "image.driver_options: "},
		{"a relative policy", func(c *Config) { c.Image.Policy = "p.json" }, "image.policy: "},
		{"no layers in parallel", func(c *Config) { c.Image.MaxParallelLayers = 0 }, "image.max_parallel_layers: "},
		{"a negative progress timeout", func(c *Config) { c.Image.ProgressTimeout = -1 }, "image.progress_timeout: "},
		{"a relative directory of plugins", func(c *Config) { c.Network.BinDirs = []string{"bin"} }, "network.bin_dirs: "},
		{"a network timeout of nothing", func(c *Config) { c.Network.Timeout = 0 }, "network.timeout: "},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg := Default()
			c.change(&cfg)
			err := cfg.Validate()
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want an error that begins with %q", err, c.want)
			}
		})
	}
	t.Run("all that is wrong is told at once", func(t *testing.T) {
		cfg := Default()
		cfg.Root, cfg.Log.Level = "", ""
		if err := cfg.Validate(); err == nil || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("got %v", err)
		}
	})
}

func TestUlimits(t *testing.T) {
	got, err := Runtime{DefaultUlimits: []string{"nofile=1024:524288", "RLIMIT_CORE=unlimited", "nproc=7"}}.Ulimits()
	want := map[string][2]uint64{"RLIMIT_NOFILE": {1024, 524288}, "RLIMIT_CORE": {1<<64 - 1, 1<<64 - 1}, "RLIMIT_NPROC": {7, 7}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestSysctls(t *testing.T) {
	got, err := Runtime{DefaultSysctls: []string{"net.ipv4.ip_local_port_range = 1024 65000", "kernel.shm_rmid_forced=1"}}.Sysctls()
	want := map[string]string{"net.ipv4.ip_local_port_range": "1024 65000", "kernel.shm_rmid_forced": "1"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestWhatIsWrittenReadsBackTheSame(t *testing.T) {
	l := load(t, map[string]string{"config.toml": `
		[runtime]
		default_ulimits = ["nofile=1:2"]
		[runtime.handlers.crun]
		path = "/usr/bin/cr\"un"
		[runtime.handlers.a]
		type = "runc"`})
	var out bytes.Buffer
	if err := l.Write(&out); err != nil {
		t.Fatal(err)
	}
	again := load(t, map[string]string{"config.toml": out.String()})
	for name, h := range again.Runtime.Handlers {
		if len(h.Annotations) == 0 {
			h.Annotations = nil
			again.Runtime.Handlers[name] = h
		}
	}
	if !reflect.DeepEqual(l.Config, again.Config) {
		t.Errorf("written\n%s\nreads back as\n%+v\nwant\n%+v", out.String(), again.Config, l.Config)
	}
	if want := l.Files[0] + ":3\n"; !strings.Contains(out.String(), want) {
		t.Errorf("written\n%s\nwithout the origin %q", out.String(), want)
	}
}

func TestPluginDirs(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	got := Network{BinDirs: []string{"/opt/cni/bin", "$EXE_DIR/cni", "$EXE_DIR/../libexec/cni"}}.PluginDirs()
	dir := filepath.Dir(exe)
	if want := []string{"/opt/cni/bin", filepath.Join(dir, "cni"), filepath.Join(filepath.Dir(dir), "libexec/cni")}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzDecode: whatever a file holds, it is read or refused, and what was read
// and found valid can be written and read again.
func FuzzDecode(f *testing.F) {
	f.Add(conf.ConfigTOML)
	f.Add([]byte("[runtime.handlers.x]\ntype = 'crun'\n"))
	f.Add([]byte("log = {level = 'info', x.y = [{a = 1}]}"))
	f.Add([]byte("[[runtime.handlers]]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := &Loaded{Config: Default(), Origins: map[string]string{}}
		if l.decode("f", data) != nil {
			return
		}
		l.settle()
		if l.Validate() != nil {
			return
		}
		var out bytes.Buffer
		if err := l.Write(&out); err != nil {
			t.Fatal(err)
		}
		again := &Loaded{Config: Default(), Origins: map[string]string{}}
		if err := again.decode("again", out.Bytes()); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
	})
}
