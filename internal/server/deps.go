package server

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/stats"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// Engine is pods and containers. *sandbox.Engine is one. Ids are whole or the
// start of one that is only one's.
type Engine interface {
	// RunPod returns the id of a pod that is ready.
	RunPod(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error)
	// StopPod ends the pod's containers and gives its network back; sandbox.ErrNotFound.
	StopPod(ctx context.Context, id string) error
	// RemovePod is nil when there is no such pod.
	RemovePod(ctx context.Context, id string) error
	// UpdatePodResources tells that a pod is to be resized; an error keeps it from that.
	UpdatePodResources(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error
	// Pod and Pods are from memory; the newest comes first.
	Pod(id string) (*sandbox.Pod, error)
	Pods() []*sandbox.Pod

	// CreateContainer returns the id; podConfig may be nil: the pod's own.
	CreateContainer(ctx context.Context, podID string, config *runtimeapi.ContainerConfig, podConfig *runtimeapi.PodSandboxConfig) (string, error)
	StartContainer(ctx context.Context, id string) error
	// StopContainer ends it, by force after timeout; sandbox.ErrNotFound.
	StopContainer(ctx context.Context, id string, timeout time.Duration) error
	// RemoveContainer is nil when there is no such container.
	RemoveContainer(ctx context.Context, id string) error
	// Container, Containers and ContainersOf a pod are from memory; the newest comes first.
	Container(id string) (*sandbox.Container, error)
	Containers() []*sandbox.Container
	ContainersOf(podID string) []*sandbox.Container

	// Events subscribes to changes from now on; the caller closes it.
	Events() *sandbox.Subscription

	ReopenLog(ctx context.Context, id string) error
	// UpdateResources changes limits; those that are zero stay.
	UpdateResources(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error
	// ExecSync runs to the command's end; a timeout of 0 is for none.
	ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (sandbox.ExecResult, error)

	// Handlers are the OCI runtimes that pods can name.
	Handlers() []*oci.Handler
	CgroupDriver() oci.CgroupDriver
	MonitorStatus(ctx context.Context) (monitor.Status, error)
}

// Images is the image store. *storage.Store is one.
type Images interface {
	Pull(ctx context.Context, r storage.PullRequest) (storage.Image, error)
	// Image finds one by any name it has, from memory; storage.ErrNotFound.
	Image(ref string) (storage.Image, error)
	// Images are from memory, sorted by id.
	Images() []storage.Image
	// Remove removes the image with all its names; nil when there is none.
	Remove(ctx context.Context, ref string) error
	// FsInfo is what images and containers' writable layers use, from memory.
	FsInfo() (images, containers storage.FsUsage)
	// RootFSUsage is what one container's writable layer uses, from memory.
	RootFSUsage(containerID string) (storage.FsUsage, error)
	// Watch tells of pulls until ctx ends, which closes the channel.
	Watch(ctx context.Context) <-chan storage.Progress
}

// Streams keep requests for a client that connects to the URL they return, once.
type Streams interface {
	Exec(r *runtimeapi.ExecRequest) (string, error)
	Attach(r *runtimeapi.AttachRequest) (string, error)
	PortForward(r *runtimeapi.PortForwardRequest) (string, error)
}

// Networks is CNI. *cni.Networks is one.
type Networks interface {
	// Ready is nil when pods can get a network, else the reason.
	Ready() error
	// SetPodCIDR tells the range of this node's pods.
	SetPodCIDR(cidr string) error
}

// Stats reads figures from the kernel. *stats.Sampler is one. Keys name what is
// read, so that rates can be made; stats.ErrGone when it ended.
type Stats interface {
	// Read reads what a container uses, by the pid of a process in it.
	Read(key string, pid int) (stats.Cgroup, error)
	// Details is Read with what metrics ask for.
	Details(key string, pid int) (stats.Details, error)
	// Pod reads a pod's cgroup by its path, and counts the processes below.
	PodCgroup(key, path string) (c stats.Cgroup, processes uint64, err error)
	// Interfaces are those of a pinned network namespace, without lo.
	Interfaces(netns string) ([]stats.Interface, error)
}
