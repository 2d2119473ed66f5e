package oci

import (
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CgroupDriver says who makes a container's cgroup.
type CgroupDriver string

// The cgroup drivers. "auto" in the configuration is resolved before it gets here.
const (
	Cgroupfs CgroupDriver = "cgroupfs"
	Systemd  CgroupDriver = "systemd"
)

// HandlerConfig is one OCI runtime as configured.
type HandlerConfig struct {
	Name string
	// Path is a binary's name or absolute path; "" looks up Type.
	Path string
	// Type is "runc" or "crun": which command line it speaks; "" guesses from the binary's name.
	Type string
	// Root is the runtime's --root; "" for STATE/runtime/NAME.
	Root string
	// Annotations of pods and containers that are let through to the spec, as path.Match patterns.
	Annotations []string
	// Sandbox: the handler needs a sandbox process of its own (gVisor, VMs) even without a shared PID namespace.
	Sandbox                      bool
	PrivilegedWithoutHostDevices bool
}

// Handler is an OCI runtime that was found and asked what it can do.
type Handler struct {
	HandlerConfig
	// Binary is the absolute path, Version what it says of itself.
	Binary, Version string
	Features        features.Features
	// What CRI's RuntimeHandlerFeatures want.
	RecursiveReadOnlyMounts, UserNamespaces bool
	// OCIVersion to write into specs: the newest that both sides know.
	OCIVersion string
}

// Namespaces are the pod's, as paths; "" means the host's, except PID where "" with PIDMode decides.
type Namespaces struct {
	Net, IPC, UTS string
	// PID is the path of the namespace to join; "" for a new one unless HostPID.
	PID     string
	HostPID bool
	// User is the path of the user namespace to join; "" for none.
	User string
}

// ContainerInput is all that a container's spec is made from. Paths are the host's and were checked.
type ContainerInput struct {
	ID, PodID string
	Config    *runtimeapi.ContainerConfig
	Pod       *runtimeapi.PodSandboxConfig
	Image     ociv1.ImageConfig
	ImageName string // as the user wrote it, for annotations
	// RootFS is the mounted root filesystem.
	RootFS       string
	Handler      *Handler
	CgroupDriver CgroupDriver
	// CgroupParent from the pod's config, may be "".
	CgroupParent string
	Namespaces   Namespaces
	// Files bound into the container unless the request mounts something there itself; "" for none.
	ResolvConf, Hosts, HostnameFile, Shm string
	Hostname                             string
	// DefaultCapabilities, "CAP_…", before add and drop.
	DefaultCapabilities []string
	// SeccompDefault is a profile file for RuntimeDefault; "" for the built-in one.
	SeccompDefault string
	// Defaults from the configuration.
	DefaultUlimits map[string][2]uint64 // "RLIMIT_NOFILE": {soft, hard}
	PidsLimit      int64                // 0 for none
	// ProcessLabel and MountLabel are SELinux labels, "" for none.
	ProcessLabel, MountLabel string
	// AppArmorProfile to apply, "" for none.
	AppArmorProfile string
}

// What oci offers.
//
//	FindHandlers(ctx, []HandlerConfig, stateDir string) ([]*Handler, error)
//	        the handlers that work here. For type auto: crun where a trial container really runs with it, else runc.
//	        One that was configured and does not work is an error that says why.
//	ContainerSpec(ContainerInput) (*specs.Spec, User, error)
//	        the spec and the user it resolved (for ContainerStatus.user). Errors are *InvalidError (field, value, reason)
//	        for what the request got wrong, others for what the machine lacks.
//	PauseSpec(PauseInput) (*specs.Spec, error)
//	ExecProcess(spec *specs.Spec, command []string, tty bool) (*specs.Process, error)
//	CgroupsPath(driver CgroupDriver, parent, id string) string
//	DetectCgroupDriver(setting string) (CgroupDriver, error)
//	        "auto": systemd where PID 1 is systemd and its cgroup hierarchy is usable, else cgroupfs.

// PauseInput is what the spec of a sandbox's init is made from.
type PauseInput struct {
	ID                       string
	Pod                      *runtimeapi.PodSandboxConfig
	RootFS                   string // a directory that holds /pause
	Handler                  *Handler
	CgroupDriver             CgroupDriver
	CgroupParent             string
	Namespaces               Namespaces
	ProcessLabel, MountLabel string
}

// User is who a container's first process runs as.
type User struct {
	UID, GID         int64
	AdditionalGroups []int64
}

// InvalidError is a request's fault.
type InvalidError struct {
	Field  string // path in the CRI message, such as "config.linux.security_context.run_as_user"
	Value  string
	Reason string
}

// Error names field, value and reason.
func (e *InvalidError) Error() string {
	if e.Value == "" {
		return e.Field + ": " + e.Reason
	}
	return e.Field + " " + quote(e.Value) + ": " + e.Reason
}

func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return `"` + s + `"`
}
