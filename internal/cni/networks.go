package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/conffiles"
)

// Kinds of errors, found with errors.Is.
var (
	// ErrInvalid: the pod asks for what cannot be (a port, a bandwidth, a sysctl).
	ErrInvalid = errors.New("invalid network settings")
	// ErrNotReady: no network can serve now; the text says why.
	ErrNotReady = errors.New("network is not ready")
)

const (
	defaultTimeout = 2 * time.Minute
	// undoTimeout bounds the DEL after an ADD that failed.
	undoTimeout = time.Minute
)

// Options say where networks are defined.
type Options struct {
	// ConfDir holds *.conflist, *.conf, *.json; the first valid one by name is the
	// network of all pods. Watched; it need not exist yet.
	ConfDir string
	// BinDirs are searched for plugins in order.
	BinDirs []string
	// CacheDir is this engine's own libcni cache.
	CacheDir string
	// Default is a conflist (JSON) that serves while ConfDir has no configuration
	// file at all; nil for none.
	Default []byte
	// ConfTemplate is a template (text/template) that becomes a file in ConfDir when the
	// node's pod CIDRs are known; "" for none.
	ConfTemplate string
	// DataDir replaces host-local's dataDir of the default network. Leave it empty:
	// engines whose default networks share a bridge must share its addresses too, so
	// the conflist names a directory of the whole machine.
	DataDir string
	// MaxConfBytes bounds a configuration file; 0 for 1 MiB.
	MaxConfBytes int64
	// Timeout ends any call of the plugins that takes longer; 0 for two minutes.
	Timeout time.Duration
}

// Networks are the networks of a node. Its methods may be called by many
// goroutines; calls about one pod must not overlap.
type Networks struct {
	opts  Options
	cni   *libcni.CNIConfig
	masq  *masquerade
	facts func(context.Context) hostFacts
	// node has the node's pod CIDRs; nil in the node's own.
	node *Networks
	// statusPeriod and pollPeriod pace the watch.
	statusPeriod, pollPeriod time.Duration

	stop    context.CancelFunc
	stopped chan struct{} // closed when the watch has ended

	mu    sync.Mutex // Protects the fields below; held for a moment only.
	now   state
	cidrs []string // the node's pod CIDRs, from SetPodCIDR
}

// state is what the last look at ConfDir and the plugins found.
type state struct {
	network *network        // nil when none serves
	builtin *defaultNetwork // network is this one's, or nil
	// confErr is why there is no network; pluginErr why it can't serve.
	confErr, pluginErr error
	warnings           []string
	loadedAt           time.Time
	fingerprint        string
}

// Status is what Networks says of itself, for people.
type Status struct {
	Network  string    `json:"network,omitempty"`
	File     string    `json:"file,omitempty"` // "" for the default network
	Default  bool      `json:"default,omitempty"`
	Plugins  []string  `json:"plugins,omitempty"`
	LoadedAt time.Time `json:"loadedAt"`
	// Error is why the network isn't ready.
	Error string `json:"error,omitempty"`
	// Warnings: files that were passed over, and what the default network does without here.
	Warnings []string `json:"warnings,omitempty"`
	PodCIDRs []string `json:"podCIDRs,omitempty"`
}

// New reads ConfDir and starts to watch it, until Close.
func New(opts Options) (*Networks, error) {
	n, err := prepare(opts)
	if err != nil {
		return nil, err
	}
	n.start()
	return n, nil
}

// prepare makes everything but the watch.
func prepare(opts Options) (*Networks, error) {
	if opts.ConfDir == "" || opts.CacheDir == "" || len(opts.BinDirs) == 0 {
		return nil, errors.New("cni: ConfDir, CacheDir and BinDirs are needed")
	}
	if opts.MaxConfBytes == 0 {
		opts.MaxConfBytes = defaultMaxConfBytes
	}
	if opts.Timeout == 0 {
		opts.Timeout = defaultTimeout
	}
	n := &Networks{
		opts:         opts,
		cni:          libcni.NewCNIConfigWithCacheDir(opts.BinDirs, opts.CacheDir, &pluginExec{}),
		masq:         newMasquerade(),
		facts:        factsOfHost,
		statusPeriod: 15 * time.Second,
		pollPeriod:   5 * time.Second,
		stopped:      make(chan struct{}),
	}
	if err := os.MkdirAll(opts.CacheDir, 0o700); err != nil {
		return nil, err
	}
	cidrs, err := n.readPodCIDRs()
	if err != nil {
		klog.ErrorS(err, "The node's pod CIDRs could not be read; waiting for the kubelet to tell them again")
	}
	n.cidrs = cidrs
	if err := n.writeTemplated(cidrs); err != nil {
		klog.ErrorS(err, "No network is made of the pod CIDRs that the kubelet told before")
	}
	return n, nil
}

// ForHandler watches another directory, for pods of a handler that has networks of
// its own. There is no default network. Until Close; the node's own outlive it.
func (n *Networks) ForHandler(dir string) *Networks {
	opts := n.opts
	opts.ConfDir, opts.Default, opts.ConfTemplate = dir, nil, ""
	h := &Networks{
		opts: opts, cni: n.cni, masq: n.masq, facts: n.facts, node: n,
		statusPeriod: n.statusPeriod, pollPeriod: n.pollPeriod, stopped: make(chan struct{}),
	}
	h.start()
	return h
}

// Close ends the watch, and takes the default network's bridge and rule from
// the host if no pod uses them. Pods keep their networks.
func (n *Networks) Close() error {
	n.stop()
	<-n.stopped
	builtin := n.state().builtin
	if builtin == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	return builtin.tearDown(ctx)
}

func (n *Networks) state() state {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

// Ready returns nil when pods can get a network, else an error for which
// errors.Is(err, ErrNotReady) holds and whose text says why: no configuration,
// none that is valid, a plugin's binary is missing, a plugin's STATUS failed.
// It reads memory only.
func (n *Networks) Ready() error {
	s := n.state()
	if err := errors.Join(s.confErr, s.pluginErr); err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return nil
}

// Status tells which network serves, and what is wrong. It reads memory only.
func (n *Networks) Status() Status {
	s := n.state()
	status := Status{LoadedAt: s.loadedAt, Warnings: s.warnings, PodCIDRs: n.podCIDRs()}
	if s.network != nil {
		status.Network, status.File = s.network.list.Name, s.network.file
		status.Default, status.Plugins = s.network.isDefault(), s.network.pluginTypes()
	}
	if err := errors.Join(s.confErr, s.pluginErr); err != nil {
		status.Error = err.Error()
	}
	return status
}

// Intent checks what the pod asks for (ErrInvalid) and returns it with the
// network that it will get (ErrNotReady without one). Record it before Add, so
// that Del finds everything after a crash.
func (n *Networks) Intent(pod Pod) (Pod, error) {
	pod, err := pod.validate()
	if err != nil {
		return pod, err
	}
	s := n.state()
	if s.network == nil {
		return pod, n.Ready()
	}
	pod.PodCIDRs = nil
	if wants(s.network.list, "ipRanges") {
		pod.PodCIDRs = n.podCIDRs()
	}
	pod.Network, pod.Conf, pod.Default = s.network.list.Name, s.network.list.Bytes, s.network.isDefault()
	if s.builtin == nil {
		return pod, nil
	}
	capabilities, err := pod.capabilities()
	if err != nil {
		return pod, err
	}
	pod.Conf, err = s.builtin.confFor(capabilities)
	return pod, err
}

func wants(list *libcni.NetworkConfigList, capability string) bool {
	return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[capability] })
}

// Add attaches the pod, as Intent returned it, to its network. When it fails,
// DEL was called and nothing is left; if that failed too, its error is joined
// and the caller should call Del again later.
func (n *Networks) Add(ctx context.Context, pod Pod) (Result, error) {
	list, rt, err := n.recorded(pod)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	if pod.Default {
		release, err := n.prepareDefault(ctx)
		if err != nil {
			return Result{}, fmt.Errorf("add pod %s to network %s: %w", pod.ID, pod.Network, err)
		}
		defer release()
	}
	result, err := n.add(ctx, list, rt)
	if err != nil {
		err = fmt.Errorf("add pod %s to network %s: %w", pod.ID, pod.Network, err)
		return Result{}, errors.Join(err, n.undoAdd(ctx, pod))
	}
	return result, nil
}

func (n *Networks) recorded(pod Pod) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	if len(pod.Conf) == 0 || pod.NetNS == "" {
		return nil, nil, fmt.Errorf("%w: pod %s has no network namespace or no network recorded", ErrInvalid, pod.ID)
	}
	list, err := recordedList(pod.Conf)
	if err != nil {
		return nil, nil, fmt.Errorf("network %s as recorded for pod %s: %w", pod.Network, pod.ID, err)
	}
	rt, err := pod.runtimeConf(pod.NetNS)
	return list, rt, err
}

func (n *Networks) add(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (result Result, err error) {
	var raw types.Result
	err = guard(func() (err error) {
		raw, err = n.cni.AddNetworkList(ctx, list, rt)
		return err
	})
	if err != nil {
		return Result{}, err
	}
	err = guard(func() error {
		r, err := types100.NewResultFromResult(raw)
		if err != nil {
			return err
		}
		result, err = resultOf(r)
		return err
	})
	return result, err
}

// guard makes an error of a panic: the CNI library takes some results apart
// without looking, such as a version 0.4.0 result with a null interface.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("a CNI result could not be read: %v", r)
		}
	}()
	return f()
}

func (n *Networks) undoAdd(ctx context.Context, pod Pod) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return n.Del(ctx, pod)
}

// prepareDefault makes ready what the engine itself does for the default network.
func (n *Networks) prepareDefault(ctx context.Context) (release func(), err error) {
	builtin := n.state().builtin
	if builtin == nil { // a file came since the Intent; the bridge plugin still works
		return func() {}, nil
	}
	release, err = builtin.shareDir(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.masq.ensure(ctx, builtin.subnets); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// Del detaches the pod from the network it was added to. It returns nil when
// there is nothing left, and may be called again, after a reboot too: a
// namespace that is gone is passed as none. The network is the one in the
// pod's record, else those libcni's cache knows of, else the current one.
func (n *Networks) Del(ctx context.Context, pod Pod) error {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	attachments, err := n.attachments(pod)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range attachments {
		err := guard(func() error { return n.cni.DelNetworkList(ctx, a.list, a.rt) })
		if err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s from network %s: %w", pod.ID, a.list.Name, err))
		}
	}
	return errors.Join(errs...)
}

// attachment is what DEL and CHECK need.
type attachment struct {
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
}

func (n *Networks) attachments(pod Pod) ([]attachment, error) {
	netns := pod.NetNS
	if netns != "" && !Pinned(netns) {
		netns = ""
	}
	if len(pod.Conf) > 0 {
		list, err := recordedList(pod.Conf)
		if err != nil {
			return nil, fmt.Errorf("network %s as recorded for pod %s: %w", pod.Network, pod.ID, err)
		}
		rt, err := pod.runtimeConf(netns)
		return []attachment{{list, rt}}, err
	}
	if found, err := n.cached(pod, netns); err != nil || len(found) > 0 {
		return found, err
	}
	current := n.state().network
	if current == nil {
		return nil, nil
	}
	rt, err := pod.runtimeConf(netns)
	return []attachment{{current.list, rt}}, err
}

// cached finds the pod's attachments in libcni's cache.
func (n *Networks) cached(pod Pod, netns string) ([]attachment, error) {
	found, err := n.cni.GetCachedAttachments(pod.ID)
	if err != nil {
		return nil, fmt.Errorf("read the CNI cache for pod %s: %w", pod.ID, err)
	}
	var out []attachment
	for _, a := range found {
		list, err := recordedList(a.Config)
		if err != nil {
			return nil, fmt.Errorf("network %s as cached for pod %s: %w", a.Network, pod.ID, err)
		}
		out = append(out, attachment{list, &libcni.RuntimeConf{
			ContainerID: a.ContainerID, NetNS: netns, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs,
		}})
	}
	return out, nil
}

// Check asks the plugins whether the pod's network is as Add left it. Networks
// of a CNI version without CHECK (before 0.4.0) are taken to be well.
func (n *Networks) Check(ctx context.Context, pod Pod) error {
	list, rt, err := n.recorded(pod)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	err = guard(func() error { return n.cni.CheckNetworkList(ctx, list, rt) })
	if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
		return fmt.Errorf("check pod %s on network %s: %w", pod.ID, pod.Network, err)
	}
	return nil
}

// SetPodCIDR keeps the CIDRs that the kubelet says are the node's, one or more
// separated by commas, for plugins with the ipRanges capability; "" for none.
// They last over restarts: the kubelet does not repeat them. With a template, a
// network is made of them.
func (n *Networks) SetPodCIDR(cidr string) error {
	cidrs, err := parseCIDRs(cidr)
	if err != nil {
		return err
	}
	if err := writeFile(n.podCIDRFile(), strings.Join(cidrs, ",")); err != nil {
		return fmt.Errorf("keep the node's pod CIDRs: %w", err)
	}
	n.mu.Lock()
	n.cidrs = cidrs
	n.mu.Unlock()
	return n.writeTemplated(cidrs)
}

func (n *Networks) podCIDRs() []string {
	if n.node != nil {
		return n.node.podCIDRs()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cidrs
}

func (n *Networks) podCIDRFile() string { return filepath.Join(n.opts.CacheDir, "pod-cidrs") }

func (n *Networks) readPodCIDRs() ([]string, error) {
	data, err := conffiles.Read(n.podCIDRFile(), defaultMaxConfBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseCIDRs(string(data))
}

func parseCIDRs(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	const maxCIDRs = 8
	parts := strings.SplitN(text, ",", maxCIDRs+1)
	if len(parts) > maxCIDRs {
		return nil, fmt.Errorf("%w: more than %d pod CIDRs", ErrInvalid, maxCIDRs)
	}
	var cidrs []string
	for _, part := range parts {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%w: pod CIDR %q", ErrInvalid, truncate(part, 64))
		}
		cidrs = append(cidrs, prefix.Masked().String())
	}
	return cidrs, nil
}

// writeFile replaces a file at once: a reader sees the old or the new text.
func writeFile(path, text string) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
