package config

import "time"

// Config is the engine's whole configuration. The zero value is not valid:
// start from [Default].
type Config struct {
	// Root is what must last (images, records), State what a reboot may take
	// (sockets, pinned namespaces, bundles), Listen the CRI socket.
	Root   string `toml:"root"`
	State  string `toml:"state"`
	Listen string `toml:"listen"`

	Log     Log     `toml:"log"`
	Runtime Runtime `toml:"runtime"`
	Monitor Monitor `toml:"monitor"`
	Image   Image   `toml:"image"`
	Network Network `toml:"network"`
}

// Log is [log].
type Log struct {
	Level  string `toml:"level"`  // "error", "warn", "info", "debug", "trace"
	Format string `toml:"format"` // "text", "json"
}

// Runtime is [runtime].
type Runtime struct {
	// DefaultHandler serves pods that name no handler.
	DefaultHandler string `toml:"default_handler"`
	// CgroupDriver is "auto", "systemd" or "cgroupfs".
	CgroupDriver string `toml:"cgroup_driver"`
	// DefaultCapabilities of containers that are not privileged, before the request's add and drop.
	DefaultCapabilities []string `toml:"default_capabilities"`
	// SeccompProfile replaces the built-in RuntimeDefault profile: a JSON file.
	SeccompProfile string `toml:"seccomp_profile"`
	// PidsLimit of each container; 0 for none.
	PidsLimit int64 `toml:"pids_limit"`
	// DefaultUlimits such as "nofile=1024:524288".
	DefaultUlimits []string `toml:"default_ulimits"`
	// DefaultSysctls are set in every pod unless its request sets them: "name=value".
	DefaultSysctls []string `toml:"default_sysctls"`
	// UnprivilegedPorts and UnprivilegedICMP let non-root processes bind ports below 1024 and
	// send ICMP echo, in pods with a network of their own.
	UnprivilegedPorts bool `toml:"unprivileged_ports"`
	UnprivilegedICMP  bool `toml:"unprivileged_icmp"`
	// Handlers by name. The name "auto" is built in.
	Handlers map[string]Handler `toml:"handlers"`
	// OperationTimeout ends any call of the OCI runtime that takes longer.
	OperationTimeout Duration `toml:"operation_timeout"`
}

// Handler is [runtime.handlers.NAME].
type Handler struct {
	Path                         string   `toml:"path"`
	Type                         string   `toml:"type"`
	Root                         string   `toml:"root"`
	Annotations                  []string `toml:"annotations"`
	Sandbox                      bool     `toml:"sandbox"`
	PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices"`
}

// Monitor is [monitor].
type Monitor struct {
	// Path of the monitor's binary; "" for cri-engine-monitor beside this one, then PATH.
	Path string `toml:"path"`
	// Start it when it does not run. False where it is a unit of its own.
	Start bool `toml:"start"`
}

// Image is [image].
type Image struct {
	Driver            string   `toml:"driver"`
	DriverOptions     []string `toml:"driver_options"`
	RegistriesConf    string   `toml:"registries_conf"`
	RegistriesConfDir string   `toml:"registries_conf_dir"`
	Policy            string   `toml:"policy"`
	AuthFile          string   `toml:"auth_file"`
	CertsDir          string   `toml:"certs_dir"`
	Pinned            []string `toml:"pinned"`
	MaxParallelLayers int      `toml:"max_parallel_layers"`
	ProgressTimeout   Duration `toml:"progress_timeout"`
}

// Network is [network].
type Network struct {
	ConfDir string   `toml:"conf_dir"`
	BinDirs []string `toml:"bin_dirs"`
	// DefaultNetwork: serve the built-in conflist while conf_dir has none.
	DefaultNetwork bool `toml:"default_network"`
	// Timeout ends a CNI call that takes longer.
	Timeout Duration `toml:"timeout"`
}

// Duration is a time.Duration written "30s".
type Duration time.Duration

// UnmarshalText reads "30s", "1m30s".
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText writes "30s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }
