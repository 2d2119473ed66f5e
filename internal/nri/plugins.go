package nri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"k8s.io/klog/v2"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrRefused is in errors of calls that a plugin refused or could not answer, or
// whose wishes cannot be fulfilled.
var ErrRefused = errors.New("refused by an NRI plugin")

// Options say where plugins come from and how long they may take.
type Options struct {
	// Version of the engine, for plugins.
	Version string
	// Socket that plugins connect to. PluginPath has programs that are started with the
	// engine, PluginConfigPath their configurations.
	Socket, PluginPath, PluginConfigPath string
	// RegistrationTimeout is what a plugin may take to register, and a synchronization
	// to begin; RequestTimeout what it may take for each call.
	RegistrationTimeout, RequestTimeout time.Duration
	// ExternalConnections: without them there is no socket.
	ExternalConnections bool
}

// Update is a change of a container's limits that a plugin asks for.
type Update struct {
	ContainerID string
	Limits      *Limits
	// IgnoreFailure: what caused the update goes on without it.
	IgnoreFailure bool

	msg *api.ContainerUpdate // as it came, to be told what failed
}

// Eviction is a container that a plugin wants ended.
type Eviction struct{ ContainerID, Reason string }

// Node is the engine, as plugins see it.
type Node interface {
	// Known are all pods and containers that plugins were told of and that have not
	// ended. It is called while no turn is under way.
	Known(ctx context.Context) ([]*Pod, []*Container)
	// ApplyUpdates changes limits, each for itself, and returns those that could not be changed.
	ApplyUpdates(ctx context.Context, updates []Update) (failed []Update)
	// Evict ends a container; nil for one that is not there.
	Evict(ctx context.Context, e Eviction) error
}

// Plugins are all plugins of a node together. Its methods may be called by many
// goroutines, those that call plugins in a turn only.
type Plugins struct {
	o    Options
	nri  *adaptation.Adaptation
	gate gate
	// count of plugins that are called: no more than so many, since one that left
	// is counted until the next call.
	count atomic.Int32

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex // Protects closed, and adding to wg.
	closed bool

	node atomic.Pointer[Node] // nil before Start
}

// New prepares; no plugin is there, and no turn begins, before [Plugins.Start].
func New(o Options) (*Plugins, error) {
	useLogger()
	adaptation.SetPluginRegistrationTimeout(o.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(o.RequestTimeout)
	p := &Plugins{o: o}
	options := []adaptation.Option{
		adaptation.WithSocketPath(o.Socket), adaptation.WithPluginPath(o.PluginPath), adaptation.WithPluginConfigPath(o.PluginConfigPath),
		adaptation.WithMetrics(counter{&p.count}),
		adaptation.WithTTRPCOptions(nil, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.takeEvictions)}),
	}
	if !o.ExternalConnections {
		options = append(options, adaptation.WithDisabledExternalConnections())
	}
	var err error
	if p.nri, err = adaptation.New("cri-engine", o.Version, p.synchronize, p.updateContainers, options...); err != nil {
		return nil, fmt.Errorf("NRI: %w", err)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, p.gate.shut(p.ctx)
}

// Start starts the plugins of the plugin directory, synchronizes those that come up, and
// lets others connect.
func (p *Plugins) Start(node Node) error {
	if err := p.socketIsFree(); err != nil {
		return err
	}
	p.node.Store(&node)
	if err := p.nri.Start(); err != nil {
		return fmt.Errorf("NRI: %w", err)
	}
	p.gate.open()
	klog.InfoS("NRI plugins can connect", "socket", p.o.Socket, "external", p.o.ExternalConnections, "plugins", p.count.Load())
	return nil
}

// socketIsFree: the library would take the socket from whoever listens there.
func (p *Plugins) socketIsFree() error {
	if !p.o.ExternalConnections {
		return nil
	}
	conn, err := net.DialTimeout("unix", p.o.Socket, time.Second)
	if err != nil {
		return nil
	}
	_ = conn.Close()
	return fmt.Errorf("NRI: another runtime serves plugins on %s: set socket in [nri] to another path, or enabled to false", p.o.Socket)
}

// Close lets no more plugins connect and stops those that were started. Turns go
// on, and find no plugins.
func (p *Plugins) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.nri.Stop()
	p.wg.Wait()
}

// goOwned runs f in a goroutine that Close waits for; false when that was called.
func (p *Plugins) goOwned(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.wg.Go(f)
	}
	return !p.closed
}

// counter learns how many plugins there are.
type counter struct{ n *atomic.Int32 }

func (c counter) UpdatePluginCount(n int)                                                  { c.n.Store(int32(n)) }
func (counter) RecordPluginInvocation(string, string, error)                               {}
func (counter) RecordPluginLatency(string, string, time.Duration)                          {}
func (counter) RecordPluginAdjustments(string, string, *api.ContainerAdjustment, int, int) {}

// Turn begins a turn, which the caller ends, and waits while a plugin is
// synchronized. See the package comment for what may be done in one.
func (p *Plugins) Turn(ctx context.Context) (end func(), err error) {
	if err := p.gate.enter(ctx); err != nil {
		return nil, fmt.Errorf("wait for an NRI plugin to be synchronized: %w", err)
	}
	return p.gate.leave, nil
}

// Any reports whether there may be a plugin to call. In a turn, none is added.
func (p *Plugins) Any() bool { return p.count.Load() > 0 }

// synchronize is called by the library for a plugin that has registered, or for
// all that were started together.
func (p *Plugins) synchronize(ctx context.Context, send adaptation.SyncCB) error {
	start := time.Now()
	sctx, cancel := context.WithTimeout(p.ctx, p.o.RegistrationTimeout)
	defer cancel()
	if err := p.gate.shut(sctx); err != nil {
		return fmt.Errorf("calls of other plugins did not end in time: %w", err)
	}
	waited := time.Since(start)
	// The library adds the plugin to those it calls after this function, and holds
	// its own lock until then.
	opens := p.goOwned(func() {
		done := p.nri.BlockPluginSync()
		p.gate.open()
		done.Unblock()
	})
	if !opens {
		p.gate.open()
		return errors.New("the engine is closing")
	}
	node := *p.node.Load()
	pods, containers := node.Known(ctx)
	podMessages, containerMessages := make([]*api.PodSandbox, 0, len(pods)), make([]*api.Container, 0, len(containers))
	for _, pod := range pods {
		podMessages = append(podMessages, pod.message())
	}
	for _, c := range containers {
		containerMessages = append(containerMessages, c.message())
	}
	wanted, err := send(ctx, podMessages, containerMessages)
	klog.V(2).InfoS("NRI plugins are synchronized", "pods", len(pods), "containers", len(containers), "waited", waited, "took", time.Since(start), "updates", len(wanted), "err", err)
	if err != nil || len(wanted) == 0 {
		return err
	}
	// Not waited for: nobody could take a turn meanwhile, and the containers' own
	// locks may be held by who waits for one.
	p.goOwned(func() {
		if _, err := p.updateContainers(p.ctx, wanted); err != nil {
			klog.ErrorS(err, "Updates that a plugin asked for when it was synchronized failed")
		}
	})
	return nil
}

// updateContainers does what a plugin asks for by itself.
func (p *Plugins) updateContainers(ctx context.Context, wanted []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	updates, err := readUpdates(wanted)
	if err != nil {
		return wanted, err
	}
	node := p.node.Load()
	if node == nil {
		return wanted, errors.New("the engine is starting")
	}
	var failed []*api.ContainerUpdate
	for _, u := range (*node).ApplyUpdates(ctx, updates) {
		failed = append(failed, u.msg)
	}
	return failed, nil
}

// maxUpdates bounds what one answer of a plugin can ask for.
const maxUpdates = 1 << 14

func readUpdates(wanted []*api.ContainerUpdate) ([]Update, error) {
	if len(wanted) > maxUpdates {
		return nil, fmt.Errorf("%d updates at once are more than %d: %w", len(wanted), maxUpdates, ErrRefused)
	}
	updates := make([]Update, 0, len(wanted))
	for _, u := range wanted {
		if u == nil {
			continue
		}
		l, err := limits(u.GetLinux().GetResources())
		if err != nil && u.GetIgnoreFailure() {
			klog.ErrorS(err, "An NRI plugin's update of a container can't be done", "container", u.GetContainerId())
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("update of container %s: %w: %w", u.GetContainerId(), err, ErrRefused)
		}
		updates = append(updates, Update{ContainerID: u.GetContainerId(), Limits: l, IgnoreFailure: u.GetIgnoreFailure(), msg: u})
	}
	return updates, nil
}

// takeEvictions does the evictions in a plugin's UpdateContainers, which the
// library leaves out: after the updates, as an eviction is not undone.
func (p *Plugins) takeEvictions(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	var evict []*api.ContainerEviction
	answer, err := method(ctx, func(v any) error {
		if err := unmarshal(v); err != nil {
			return err
		}
		if r, ok := v.(*api.UpdateContainersRequest); ok {
			evict = r.GetEvict()
		}
		return nil
	})
	if err != nil || len(evict) == 0 {
		return answer, err
	}
	node := p.node.Load()
	if node == nil || len(evict) > maxUpdates {
		return nil, errors.New("too many evictions, or too early")
	}
	var errs []error
	for _, e := range evict {
		err := (*node).Evict(ctx, Eviction{ContainerID: e.GetContainerId(), Reason: e.GetReason()})
		if err != nil {
			errs = append(errs, fmt.Errorf("evict container %s: %w", e.GetContainerId(), err))
		}
	}
	return answer, errors.Join(errs...)
}

// Event is one that plugins are told of, and can refuse at most.
type Event int

// The events of [Plugins.Tell]. The others have methods of their own.
const (
	RunPod Event = iota
	PostUpdatePod
	StopPod
	RemovePod
	PostCreateContainer
	StartContainer
	PostStartContainer
	PostUpdateContainer
	RemoveContainer
)

var eventNames = map[Event]string{
	RunPod: "RunPodSandbox", PostUpdatePod: "PostUpdatePodSandbox", StopPod: "StopPodSandbox", RemovePod: "RemovePodSandbox",
	PostCreateContainer: "PostCreateContainer", StartContainer: "StartContainer", PostStartContainer: "PostStartContainer",
	PostUpdateContainer: "PostUpdateContainer", RemoveContainer: "RemoveContainer",
}

// String is the name of NRI's call.
func (e Event) String() string { return eventNames[e] }

// Tell tells all plugins of an event, one after the other; c is nil for those of
// pods. It ends with the first that refuses.
func (p *Plugins) Tell(ctx context.Context, e Event, pod *Pod, c *Container) error {
	if !p.Any() {
		return nil
	}
	var err error
	switch e {
	case RunPod:
		err = p.nri.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod.message()})
	case PostUpdatePod:
		err = p.nri.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: pod.message()})
	case StopPod:
		err = p.nri.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod.message()})
	case RemovePod:
		err = p.nri.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod.message()})
	case PostCreateContainer:
		err = p.nri.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod.message(), Container: c.message()})
	case StartContainer:
		err = p.nri.StartContainer(ctx, &api.StartContainerRequest{Pod: pod.message(), Container: c.message()})
	case PostStartContainer:
		err = p.nri.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod.message(), Container: c.message()})
	case PostUpdateContainer:
		err = p.nri.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod.message(), Container: c.message()})
	case RemoveContainer:
		err = p.nri.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod.message(), Container: c.message()})
	}
	return refused(ctx, e.String(), err)
}

// UpdatePod tells of a pod that is to be resized, and can be refused.
func (p *Plugins) UpdatePod(ctx context.Context, pod *Pod, overhead, resources *runtimeapi.LinuxContainerResources) error {
	if !p.Any() {
		return nil
	}
	_, err := p.nri.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{
		Pod: pod.message(), OverheadLinuxResources: resourcesMessage(overhead), LinuxResources: resourcesMessage(resources),
	})
	return refused(ctx, "UpdatePodSandbox", err)
}

// Create asks for changes of a container that is being made, nil for none, and of others.
func (p *Plugins) Create(ctx context.Context, pod *Pod, c *Container) (*Adjustment, []Update, error) {
	if !p.Any() {
		return nil, nil, nil
	}
	r := &api.CreateContainerRequest{Pod: pod.message(), Container: c.message()}
	env, devices := r.Container.Env, r.Container.GetLinux().GetDevices()
	answer, err := p.nri.CreateContainer(ctx, r)
	if err != nil {
		return nil, nil, refused(ctx, "CreateContainer", err)
	}
	adjust := answer.GetAdjust()
	if adjust != nil && adjust.Linux != nil {
		adjust.Env = append(envRemovals(env, r.Container.Env), adjust.Env...)
		adjust.Linux.Devices = append(deviceRemovals(devices, r.Container.Linux.Devices), adjust.Linux.Devices...)
	}
	others, err := readUpdates(answer.GetUpdate())
	return newAdjustment(adjust), others, err
}

// envRemovals are the variables that plugins removed. The library leaves them out
// of its answer, but changes the request by them, for the plugins that come later.
func envRemovals(before, after []string) []*api.KeyValue {
	var removals []*api.KeyValue
	for _, e := range before {
		name, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(after, func(a string) bool { return a == e || strings.HasPrefix(a, name+"=") }) {
			removals = append(removals, &api.KeyValue{Key: api.MarkForRemoval(name)})
		}
	}
	return removals
}

// deviceRemovals are the same for devices.
func deviceRemovals(before, after []*api.LinuxDevice) []*api.LinuxDevice {
	var removals []*api.LinuxDevice
	for _, d := range before {
		if !slices.ContainsFunc(after, func(a *api.LinuxDevice) bool { return a.GetPath() == d.GetPath() }) {
			removals = append(removals, &api.LinuxDevice{Path: api.MarkForRemoval(d.GetPath())})
		}
	}
	return removals
}

// Update asks for changes of an update of a container's limits, nil for none, and
// of other containers.
func (p *Plugins) Update(ctx context.Context, pod *Pod, c *Container, request *runtimeapi.LinuxContainerResources) (*Limits, []Update, error) {
	if !p.Any() {
		return nil, nil, nil
	}
	answer, err := p.nri.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: pod.message(), Container: c.message(), LinuxResources: resourcesMessage(request)})
	if err != nil {
		return nil, nil, refused(ctx, "UpdateContainer", err)
	}
	updates, err := readUpdates(answer.GetUpdate())
	if err != nil {
		return nil, nil, err
	}
	var own *Limits
	others := updates[:0]
	for _, u := range updates {
		if u.ContainerID == c.ID {
			own = u.Limits
		} else {
			others = append(others, u)
		}
	}
	return own, others, nil
}

// Stop tells of a container that has ended, and asks for changes of others.
func (p *Plugins) Stop(ctx context.Context, pod *Pod, c *Container) ([]Update, error) {
	if !p.Any() {
		return nil, nil
	}
	answer, err := p.nri.StopContainer(ctx, &api.StopContainerRequest{Pod: pod.message(), Container: c.message()})
	if err != nil {
		return nil, refused(ctx, "StopContainer", err)
	}
	return readUpdates(answer.GetUpdate())
}

// refused says what a plugin refused. A caller that has given up is no plugin's fault.
func refused(ctx context.Context, call string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("NRI %s: %w", call, ctx.Err())
	}
	return fmt.Errorf("NRI %s: %w: %w", call, err, ErrRefused)
}
