package config

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DefaultPath is the configuration file that is read when none is named. It
// need not exist.
const DefaultPath = "/etc/cri-engine/config.toml"

// exeDir stands for the directory of the engine's binary, at the start of a path.
const exeDir = "$EXE_DIR"

// Default is what holds where nothing is configured. conf/config.toml shows
// the same to people.
func Default() Config {
	return Config{
		Root:   "/var/lib/cri-engine",
		State:  "/run/cri-engine",
		Listen: "/run/cri-engine/" + socketName,
		Log:    Log{Level: "info", Format: "text"},
		Runtime: Runtime{
			DefaultHandler: autoHandler,
			CgroupDriver:   "auto",
			DefaultCapabilities: []string{
				"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
				"CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID",
				"CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
			},
			AppArmor:          true,
			DefaultUlimits:    []string{},
			DefaultSysctls:    []string{},
			UnprivilegedPorts: true,
			UnprivilegedICMP:  true,
			HooksDirs:         []string{},
			Handlers:          map[string]Handler{},
			OperationTimeout:  Duration(2 * time.Minute),
		},
		Monitor: Monitor{Start: true},
		Image: Image{
			Driver:            "overlay",
			DriverOptions:     []string{},
			Pinned:            []string{},
			MaxParallelLayers: 3,
			ProgressTimeout:   Duration(time.Minute),
		},
		Network: Network{
			ConfDir:        "/etc/cni/net.d",
			BinDirs:        []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni", exeDir + "/cni", exeDir + "/../libexec/cri-engine/cni"},
			DefaultNetwork: true,
			Timeout:        Duration(2 * time.Minute),
		},
		Streaming: Streaming{
			Address:         "127.0.0.1:0",
			IdleTimeout:     Duration(4 * time.Hour),
			CreationTimeout: Duration(30 * time.Second),
		},
		CDI: CDI{Enabled: true, SpecDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		// Where plugins look, and what they are used to (github.com/containerd/nri).
		NRI: NRI{
			Enabled:             true,
			Socket:              "/var/run/nri/" + nriSocketName,
			ExternalConnections: true,
			PluginPath:          "/opt/nri/plugins",
			PluginConfigPath:    "/etc/nri/conf.d",
			RegistrationTimeout: Duration(5 * time.Second),
			RequestTimeout:      Duration(2 * time.Second),
		},
	}
}

// socketName is the CRI socket's name in the state directory, where Listen
// says nothing else.
const socketName = "cri-engine.sock"

// nriSocketName is likewise that of NRI's.
const nriSocketName = "nri.sock"

// PluginDirs are BinDirs with the real directory for a leading $EXE_DIR. Where
// that cannot be found out, such entries are left out.
func (n Network) PluginDirs() []string {
	exe, err := os.Executable()
	dirs := make([]string, 0, len(n.BinDirs))
	for _, dir := range n.BinDirs {
		rest, ok := strings.CutPrefix(dir, exeDir)
		switch {
		case !ok:
			dirs = append(dirs, dir)
		case err == nil:
			dirs = append(dirs, filepath.Join(filepath.Dir(exe), rest))
		}
	}
	return dirs
}
