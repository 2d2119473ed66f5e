package sandbox

import (
	"net/netip"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a pod sandbox as it was at one moment. It is never changed after it
// was handed out; Config must not be written to.
type Pod struct {
	ID        string
	Config    *runtimeapi.PodSandboxConfig // as the request had it
	Handler   string                       // as the request had it, "" for the default
	CreatedAt time.Time
	Ready     bool
	IPs       []netip.Addr
	Cgroup    string // the parent of the containers' cgroups, from each hierarchy's root
	NetNS     string // path of the pinned network namespace, "" on the host's
	// InitPid is the sandbox process's pid, 0 where the pod needs none.
	InitPid int
	// Info for people (verbose status): what is where.
	Info map[string]any
}

// Container is a container as it was at one moment. It is never changed after
// it was handed out; Config must not be written to.
type Container struct {
	ID, PodID string
	Config    *runtimeapi.ContainerConfig // as the request had it
	Pod       *runtimeapi.PodSandboxConfig
	State     runtimeapi.ContainerState
	CreatedAt time.Time
	// StartedAt and FinishedAt are zero while it has not.
	StartedAt, FinishedAt time.Time
	ExitCode              int32
	// Reason is "Completed", "Error", "OOMKilled", "StartError", "Unknown" …; Message is for people.
	Reason, Message string
	// ImageID is the id of the image, ImageRef what CRI calls image_ref (the same id).
	ImageID string
	LogPath string // absolute, "" for none
	Pid     int    // 0 unless running
	User    *runtimeapi.ContainerUser
	Handler string
	Cgroup  string // the spec's cgroupsPath
	// Resources are its limits now; nil for none. Not to be written to.
	Resources *runtimeapi.LinuxContainerResources
	// Mounts are the request's, and those of images name the image that they were made from. Not to be written to.
	Mounts   []*runtimeapi.Mount
	RootFS   string // "" when not mounted
	Restored bool   // read from a record that was damaged: some fields are unknown
	Info     map[string]any
}

// ExecResult is what ExecSync returns.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
	// Truncated: there was more output than MaxExecOutput.
	Truncated bool
}
