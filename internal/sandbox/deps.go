package sandbox

import (
	"context"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/hooks"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/nri"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// Images is what pods and containers need of the store.
type Images interface {
	// Image finds an image by any name it has; storage.ErrNotFound.
	Image(ref string) (storage.Image, error)
	// CreateRootFS makes and mounts a container's own root filesystem, or leaves nothing.
	CreateRootFS(ctx context.Context, containerID, imageID string, o storage.RootFSOptions) (storage.RootFS, error)
	// RemoveRootFS unmounts and deletes it; nil when there is none.
	RemoveRootFS(ctx context.Context, containerID string) error
	// RootFSes lists the containers that have one.
	RootFSes() []string
}

// Networks is what pods need of CNI.
type Networks interface {
	// Intent chooses the network and checks the request; what it returns is recorded before Add.
	Intent(p cni.Pod) (cni.Pod, error)
	// Add attaches the pod, or leaves nothing.
	Add(ctx context.Context, p cni.Pod) (cni.Result, error)
	// Del detaches it; nil when there is nothing left.
	Del(ctx context.Context, p cni.Pod) error
}

// Devices are those of the Container Device Interface.
type Devices interface {
	// Inject edits a spec so that its container has the named devices; cdi.ErrInvalid for one that there is not.
	Inject(spec *specs.Spec, names []string) error
}

// Hooks are the operator's programs at stages of containers' lives.
type Hooks interface {
	// Apply adds those that are for a container to its spec.
	Apply(spec *specs.Spec, c hooks.Container) error
}

// Plugins are asked and told about what happens to pods and containers.
// *nri.Plugins is one; its package comment tells what a turn is.
type Plugins interface {
	// Turn waits while a plugin is synchronized; all below is called in one.
	Turn(ctx context.Context) (end func(), err error)
	// Any is false when there is nobody to tell.
	Any() bool
	// Tell returns what the first plugin that refuses says; c is nil for a pod's event.
	Tell(ctx context.Context, ev nri.Event, p *nri.Pod, c *nri.Container) error
	UpdatePod(ctx context.Context, p *nri.Pod, overhead, resources *runtimeapi.LinuxContainerResources) error
	// Create returns what to change of the container, nil for nothing, and of others.
	Create(ctx context.Context, p *nri.Pod, c *nri.Container) (*nri.Adjustment, []nri.Update, error)
	// Update returns what the request becomes, nil for no change, and what to change of others.
	Update(ctx context.Context, p *nri.Pod, c *nri.Container, request *runtimeapi.LinuxContainerResources) (*nri.Limits, []nri.Update, error)
	// Stop returns what to change of others.
	Stop(ctx context.Context, p *nri.Pod, c *nri.Container) ([]nri.Update, error)
}

// Monitor is the parent of all processes, as this package calls it.
// *monitor.Client is one.
type Monitor interface {
	Create(ctx context.Context, r monitor.CreateRequest) (monitor.Info, error)
	Start(ctx context.Context, id string) error
	Exec(ctx context.Context, r monitor.ExecRequest) (*monitor.ExecSession, error)
	Update(ctx context.Context, id string, resources []byte) error
	Attach(id string) *monitor.Attached
	Stdin(id string) *monitor.Stdin
	CloseStdin(ctx context.Context, id, execID string) error
	Resize(ctx context.Context, id, execID string, columns, rows uint16) error
	Kill(ctx context.Context, id, execID string) error
	Signal(ctx context.Context, id, execID string, sig syscall.Signal) error
	ReopenLog(ctx context.Context, id string) error
	Delete(ctx context.Context, r monitor.DeleteRequest) error
	List(ctx context.Context) ([]monitor.Info, error)
	Status(ctx context.Context) (monitor.Status, error)
	Events() <-chan monitor.Event
}
