package config

import "time"

// Config is the engine's whole configuration. The zero value is not valid:
// start from [Default] or [Load].
type Config struct {
	// Root is what must last: images and records.
	Root string `toml:"root"`
	// State is what a reboot may take: sockets, pinned namespaces, bundles.
	State string `toml:"state"`
	// Listen is the CRI socket.
	Listen string `toml:"listen"`

	Log     Log     `toml:"log"`
	Runtime Runtime `toml:"runtime"`
	Monitor Monitor `toml:"monitor"`
	Image   Image   `toml:"image"`
	Network Network `toml:"network"`

	Streaming Streaming `toml:"streaming"`
	CDI       CDI       `toml:"cdi"`
	NRI       NRI       `toml:"nri"`
}

// Log is [log].
type Log struct {
	// Level is "error", "warn", "info", "debug" or "trace".
	Level string `toml:"level"`
	// Format is "text" or "json".
	Format string `toml:"format"`
}

// Runtime is [runtime].
type Runtime struct {
	// DefaultHandler serves pods that name no handler.
	DefaultHandler string `toml:"default_handler"`
	// CgroupDriver is "auto", "systemd" or "cgroupfs".
	CgroupDriver string `toml:"cgroup_driver"`
	// DefaultCapabilities of containers that are not privileged, before the
	// request's add and drop. [Load] brings them into the form "CAP_CHOWN".
	DefaultCapabilities []string `toml:"default_capabilities"`
	// SeccompProfile replaces the built-in RuntimeDefault profile: a JSON file.
	SeccompProfile string `toml:"seccomp_profile"`
	// SELinux: label containers where the kernel has it.
	SELinux bool `toml:"selinux"`
	// AppArmor: use it where the kernel has it.
	AppArmor bool `toml:"apparmor"`
	// AppArmorProfile is a loaded profile that replaces the built-in RuntimeDefault one,
	// or "unconfined".
	AppArmorProfile string `toml:"apparmor_profile"`
	// PidsLimit of each container; 0 for none.
	PidsLimit int64 `toml:"pids_limit"`
	// DefaultUlimits such as "nofile=1024:524288"; [Runtime.Ulimits] reads them.
	DefaultUlimits []string `toml:"default_ulimits"`
	// DefaultSysctls are set in every pod unless its request sets them:
	// "name=value"; [Runtime.Sysctls] reads them.
	DefaultSysctls []string `toml:"default_sysctls"`
	// UnprivilegedPorts lets non-root processes bind ports below 1024, in pods
	// with a network of their own.
	UnprivilegedPorts bool `toml:"unprivileged_ports"`
	// UnprivilegedICMP lets non-root processes send ICMP echo, in pods with a
	// network of their own.
	UnprivilegedICMP bool `toml:"unprivileged_icmp"`
	// DeviceOwnershipFromSecurityContext: the devices that a container asks for belong to
	// the user and group that it asks to run as, where those are not 0.
	DeviceOwnershipFromSecurityContext bool `toml:"device_ownership_from_security_context"`
	// HooksDirs hold OCI hooks, as oci-hooks(5) says.
	HooksDirs []string `toml:"hooks_dirs"`
	// Handlers by name. The name "auto" is built in.
	Handlers map[string]Handler `toml:"handlers"`
	// OperationTimeout ends any call of the OCI runtime that takes longer.
	OperationTimeout Duration `toml:"operation_timeout"`
}

// Handler is [runtime.handlers.NAME].
type Handler struct {
	// Path is a binary's name or absolute path; "" looks up Type, or else the
	// handler's own name.
	Path string `toml:"path"`
	// Type is "runc" or "crun": which command line it speaks; "" guesses from
	// the binary's name. "auto" is crun where it works, else runc.
	Type string `toml:"type"`
	// Root is the OCI runtime's own state directory; "" for one beneath State.
	Root string `toml:"root"`
	// Annotations of pods and containers that are let through to the OCI spec,
	// as patterns of path.Match.
	Annotations []string `toml:"annotations"`
	// Sandbox: every pod gets a sandbox process (gVisor, VMs).
	Sandbox bool `toml:"sandbox"`
	// PrivilegedWithoutHostDevices keeps the host's devices from privileged containers.
	PrivilegedWithoutHostDevices bool `toml:"privileged_without_host_devices"`
	// CNIConfDir holds the networks of this handler's pods; "" for the node's.
	CNIConfDir string `toml:"cni_conf_dir"`
	// BaseRuntimeSpec is an OCI spec (JSON) whose parts its containers have beside
	// what the request says; "" for none.
	BaseRuntimeSpec string `toml:"base_runtime_spec"`
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
	// Driver of the layer store.
	Driver string `toml:"driver"`
	// DriverOptions are its options as in containers-storage.conf(5).
	DriverOptions []string `toml:"driver_options"`
	// RegistriesConf is a containers-registries.conf(5); "" for the system's.
	RegistriesConf string `toml:"registries_conf"`
	// RegistriesConfDir holds its drop-ins; "" for the system's.
	RegistriesConfDir string `toml:"registries_conf_dir"`
	// Policy is a containers-policy.json(5); "" for the system's.
	Policy string `toml:"policy"`
	// AuthFile is a containers-auth.json(5); "" for the system's.
	AuthFile string `toml:"auth_file"`
	// CertsDir is a containers-certs.d(5); "" for the system's.
	CertsDir string `toml:"certs_dir"`
	// Pinned are patterns of path.Match on full references of images that must
	// not be garbage collected.
	Pinned []string `toml:"pinned"`
	// MaxParallelLayers bounds the layers that one pull fetches at a time.
	MaxParallelLayers int `toml:"max_parallel_layers"`
	// ProgressTimeout ends a pull that makes no progress for so long; 0 for never.
	ProgressTimeout Duration `toml:"progress_timeout"`
}

// Network is [network].
type Network struct {
	// ConfDir holds the node's CNI configuration.
	ConfDir string `toml:"conf_dir"`
	// BinDirs are searched for CNI plugins in order. [Network.PluginDirs] puts
	// the real directory for a leading $EXE_DIR.
	BinDirs []string `toml:"bin_dirs"`
	// ConfTemplate makes a file in ConfDir of the node's pod CIDRs; "" for none.
	ConfTemplate string `toml:"conf_template"`
	// DefaultNetwork: serve the built-in conflist while conf_dir has none.
	DefaultNetwork bool `toml:"default_network"`
	// Timeout ends a CNI call that takes longer.
	Timeout Duration `toml:"timeout"`
}

// Streaming is [streaming]: exec, attach and port-forward.
type Streaming struct {
	// Address to listen on, host:port; port 0 is any free one.
	Address string `toml:"address"`
	// TLSCertFile and TLSKeyFile make it HTTPS; both or none. They are read at each
	// connection's start when they have changed.
	TLSCertFile string `toml:"tls_cert_file"`
	TLSKeyFile  string `toml:"tls_key_file"`
	// TLSClientCAFile: only clients with a certificate of these authorities are served.
	TLSClientCAFile string `toml:"tls_client_ca_file"`
	// IdleTimeout ends a connection on which nothing moves.
	IdleTimeout Duration `toml:"idle_timeout"`
	// CreationTimeout ends a connection whose client does not open its streams.
	CreationTimeout Duration `toml:"creation_timeout"`
}

// CDI is [cdi]: devices of the Container Device Interface.
type CDI struct {
	// Enabled: containers can ask for CDI devices.
	Enabled bool `toml:"enabled"`
	// SpecDirs hold the specifications; a device in a later one comes before the same in an earlier.
	SpecDirs []string `toml:"spec_dirs"`
}

// NRI is [nri]: plugins that take part in the life of pods and containers.
type NRI struct {
	Enabled bool `toml:"enabled"`
	// Socket that plugins connect to. Where it is left out and State is not the default, it is in State.
	Socket string `toml:"socket"`
	// ExternalConnections: plugins may connect to the socket; else those in PluginPath are all.
	ExternalConnections bool `toml:"external_connections"`
	// PluginPath has plugins that are started with the engine; PluginConfigPath
	// their configuration.
	PluginPath       string `toml:"plugin_path"`
	PluginConfigPath string `toml:"plugin_config_path"`
	// RegistrationTimeout is what a plugin may take to register, RequestTimeout what
	// it may take for each request.
	RegistrationTimeout Duration `toml:"registration_timeout"`
	RequestTimeout      Duration `toml:"request_timeout"`
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
