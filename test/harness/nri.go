package harness

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
)

// NRIEvent is a call that a plugin got.
type NRIEvent struct {
	Name      string // such as "CreateContainer"
	Pod       *api.PodSandbox
	Container *api.Container // nil for those of pods
}

// ID is the container's, or the pod's for its own events.
func (e NRIEvent) ID() string {
	if e.Container != nil {
		return e.Container.GetId()
	}
	return e.Pod.GetId()
}

// NRIPlugin is a plugin in this process, which remembers its calls and answers
// as the test wants it. Fields are set before it connects, but for what On is for.
type NRIPlugin struct {
	// Policy for its own failures; nil for the default.
	Policy *api.FailurePolicy
	// Create, Update and Stop answer those calls; nil for no wishes.
	Create func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	Update func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error)
	Stop   func(*api.Container) ([]*api.ContainerUpdate, error)
	// Validate judges all plugins' adjustments.
	Validate func(*api.ValidateContainerAdjustmentRequest) error
	// Sync answers the synchronization.
	Sync func([]*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error)

	mu         sync.Mutex // Protects the fields below.
	events     []NRIEvent
	pods       []*api.PodSandbox // as synchronized
	containers []*api.Container
	synced     chan struct{} // closed by the first synchronization
	on         map[string]func(NRIEvent) error

	stub stub.Stub
	conn net.Conn
	done chan struct{} // closed when the connection has ended
}

// On has f called for each of the named events, before it is answered; its error refuses.
func (p *NRIPlugin) On(event string, f func(NRIEvent) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.on == nil {
		p.on = map[string]func(NRIEvent) error{}
	}
	p.on[event] = f
}

// Connect connects the plugin and returns when it has been synchronized.
func (p *NRIPlugin) Connect(ctx context.Context, socket, name, index string) error {
	p.mu.Lock()
	p.synced, p.done, p.events = make(chan struct{}), make(chan struct{}), nil
	p.mu.Unlock()
	dial := func(string) (net.Conn, error) {
		var err error
		p.conn, err = (&net.Dialer{}).DialContext(ctx, "unix", socket)
		return p.conn, err
	}
	var handler any = &nriHandler{p}
	if p.Validate != nil {
		handler = &nriValidator{nriHandler{p}}
	}
	options := []stub.Option{
		stub.WithPluginName(name), stub.WithPluginIdx(index), stub.WithSocketPath(socket), stub.WithDialer(dial),
		stub.WithOnClose(func() {}), // without, the stub ends the process
	}
	if p.Policy != nil {
		options = append(options, stub.WithFailurePolicy(p.Policy))
	}
	var err error
	if p.stub, err = stub.New(handler, options...); err != nil {
		return err
	}
	if err := p.stub.Start(ctx); err != nil {
		return err
	}
	go func() {
		defer close(p.done)
		p.stub.Wait()
	}()
	select {
	case <-p.synced:
		return nil
	case <-p.done:
		return fmt.Errorf("plugin %s: the connection ended before it was synchronized", name)
	case <-ctx.Done():
		return fmt.Errorf("plugin %s: not synchronized: %w", name, ctx.Err())
	}
}

// Close disconnects as a plugin that ends does.
func (p *NRIPlugin) Close() {
	if p.stub != nil {
		p.stub.Stop()
	}
}

// Vanish cuts the connection in the middle of whatever goes on.
func (p *NRIPlugin) Vanish() { _ = p.conn.Close() }

// Done is closed when the engine, or the plugin, has ended the connection.
func (p *NRIPlugin) Done() <-chan struct{} { return p.done }

// UpdateContainers asks for updates by itself, and returns those that failed.
func (p *NRIPlugin) UpdateContainers(updates ...*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	return p.stub.UpdateContainers(updates)
}

// EvictOverNRI asks for a container's end, which the stub has no call for.
func EvictOverNRI(ctx context.Context, socket, id, reason string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	mux := multiplex.Multiplex(conn)
	defer mux.Close()
	runtime, err := mux.Open(multiplex.RuntimeServiceConn)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(runtime)
	defer client.Close()
	_, err = api.NewRuntimeClient(client).UpdateContainers(ctx, &api.UpdateContainersRequest{Evict: []*api.ContainerEviction{{ContainerId: id, Reason: reason}}})
	return err
}

// Events are the calls so far, those of one pod or container if an id is given.
func (p *NRIPlugin) Events(id string) []NRIEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.Clone(p.events)
	return slices.DeleteFunc(all, func(e NRIEvent) bool { return id != "" && e.ID() != id })
}

// Names are the names of Events.
func (p *NRIPlugin) Names(id string) []string {
	var names []string
	for _, e := range p.Events(id) {
		names = append(names, e.Name)
	}
	return names
}

// Synced is what the plugin was last synchronized with.
func (p *NRIPlugin) Synced() ([]*api.PodSandbox, []*api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods, p.containers
}

func (p *NRIPlugin) got(name string, pod *api.PodSandbox, c *api.Container) error {
	e := NRIEvent{Name: name, Pod: pod, Container: c}
	p.mu.Lock()
	p.events = append(p.events, e)
	f := p.on[name]
	p.mu.Unlock()
	if f != nil {
		return f(e)
	}
	return nil
}

// nriHandler has NRI's calls as methods: the stub subscribes to those it finds.
type nriHandler struct{ p *NRIPlugin }

func (h *nriHandler) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p := h.p
	p.mu.Lock()
	p.pods, p.containers = pods, containers
	p.mu.Unlock()
	if p.Sync != nil {
		updates, err := p.Sync(pods, containers)
		if err != nil {
			return nil, err
		}
		defer close(p.synced)
		return updates, nil
	}
	close(p.synced)
	return nil, nil
}

func (h *nriHandler) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return h.p.got("RunPodSandbox", pod, nil)
}

func (h *nriHandler) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	pod.Linux.PodOverhead, pod.Linux.PodResources = overhead, resources // to be seen in the event
	return h.p.got("UpdatePodSandbox", pod, nil)
}

func (h *nriHandler) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return h.p.got("PostUpdatePodSandbox", pod, nil)
}

func (h *nriHandler) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return h.p.got("StopPodSandbox", pod, nil)
}

func (h *nriHandler) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return h.p.got("RemovePodSandbox", pod, nil)
}

func (h *nriHandler) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := h.p.got("CreateContainer", pod, c); err != nil {
		return nil, nil, err
	}
	if h.p.Create == nil {
		return nil, nil, nil
	}
	return h.p.Create(pod, c)
}

func (h *nriHandler) PostCreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return h.p.got("PostCreateContainer", pod, c)
}

func (h *nriHandler) StartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return h.p.got("StartContainer", pod, c)
}

func (h *nriHandler) PostStartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return h.p.got("PostStartContainer", pod, c)
}

func (h *nriHandler) UpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := h.p.got("UpdateContainer", pod, c); err != nil {
		return nil, err
	}
	if h.p.Update == nil {
		return nil, nil
	}
	return h.p.Update(c, r)
}

func (h *nriHandler) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return h.p.got("PostUpdateContainer", pod, c)
}

func (h *nriHandler) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	if err := h.p.got("StopContainer", pod, c); err != nil {
		return nil, err
	}
	if h.p.Stop == nil {
		return nil, nil
	}
	return h.p.Stop(c)
}

func (h *nriHandler) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return h.p.got("RemoveContainer", pod, c)
}

// nriValidator is one that judges: all who subscribe to that are asked.
type nriValidator struct{ nriHandler }

func (h *nriValidator) ValidateContainerAdjustment(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	return h.p.Validate(r)
}

// WaitNames waits until the calls about a pod or container are those wanted.
func (p *NRIPlugin) WaitNames(id string, d time.Duration, want ...string) error {
	for deadline := time.Now().Add(d); ; time.Sleep(5 * time.Millisecond) {
		got := p.Names(id)
		if slices.Equal(got, want) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the plugin was called for %s with %v, want %v", id, got, want)
		}
	}
}
