package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/conf"
	"github.com/cri-engine/cri-engine/internal/apparmor"
	"github.com/cri-engine/cri-engine/internal/cdi"
	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/config"
	"github.com/cri-engine/cri-engine/internal/hooks"
	"github.com/cri-engine/cri-engine/internal/labels"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/nri"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// parts are what the engine is put together from.
type parts struct {
	store    *storage.Store
	networks *cni.Networks
	// handlerNetworks are of handlers with a cni_conf_dir, by name.
	handlerNetworks map[string]*cni.Networks
	monitor         *monitor.Client
	handlers        []*oci.Handler
	apparmor        *apparmor.Profiles
	labels          *labels.Labeler
	driver          oci.CgroupDriver
	plugins         *nri.Plugins // nil where NRI is off
}

// open opens all parts side by side, or none.
func open(ctx context.Context, o Options) (_ *parts, err error) {
	p := &parts{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	p.driver, err = oci.DetectCgroupDriver(o.Config.Runtime.CgroupDriver)
	if err != nil {
		return nil, err
	}
	if p.plugins, err = openPlugins(o); err != nil {
		return nil, err
	}
	// Before the image store, which labels by itself where SELinux is not off.
	if p.labels, err = labels.Open(o.Config.Runtime.SELinux); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	part := func(name string, open func() error) {
		g.Go(func() error {
			start := time.Now()
			err := open()
			klog.V(4).InfoS("Part is opened", "part", name, "took", time.Since(start), "err", err)
			return err
		})
	}
	part("image store", func() (err error) { p.store, err = openStore(ctx, o); return err })
	part("networks", func() (err error) { p.networks, p.handlerNetworks, err = openNetworks(o.Config); return err })
	part("monitor", func() (err error) { p.monitor, err = dialMonitor(ctx, o.Config); return err })
	part("AppArmor", func() error {
		p.apparmor = apparmor.Open(apparmor.ThisHost(), o.Config.Runtime.AppArmor, o.Config.Runtime.AppArmorProfile)
		return nil
	})
	part("runtime handlers", func() (err error) { p.handlers, err = findHandlers(ctx, o.Config, p.driver); return err })
	if err := g.Wait(); err != nil {
		return p, err
	}
	for _, h := range p.handlers {
		if h.NoUserNamespaces == "" {
			h.NoUserNamespaces = p.store.NoIDMaps()
		}
	}
	return p, nil
}

// close closes the parts that were opened. Containers run on.
func (p *parts) close() {
	var errs []error
	if p.plugins != nil {
		p.plugins.Close()
	}
	for _, n := range p.handlerNetworks {
		errs = append(errs, n.Close())
	}
	if p.networks != nil {
		errs = append(errs, p.networks.Close())
	}
	if p.monitor != nil {
		errs = append(errs, p.monitor.Close())
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	if err := errors.Join(errs...); err != nil {
		klog.ErrorS(err, "A part of the engine did not close well")
	}
}

func openStore(ctx context.Context, o Options) (*storage.Store, error) {
	c := o.Config.Image
	s, err := storage.Open(ctx, storage.Options{
		Root:    filepath.Join(o.Config.Root, "storage"),
		RunRoot: filepath.Join(o.Config.State, "storage"),
		Driver:  c.Driver, DriverOptions: c.DriverOptions,
		RegistriesConf: c.RegistriesConf, RegistriesConfDir: c.RegistriesConfDir,
		PolicyPath: c.Policy, AuthFile: c.AuthFile, CertsDir: c.CertsDir,
		Pinned: c.Pinned, MaxParallelLayers: c.MaxParallelLayers,
		ProgressTimeout: time.Duration(c.ProgressTimeout),
		UserAgent:       "cri-engine/" + o.Version,
	})
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return s, nil
}

// openNetworks opens the node's networks and those of handlers with directories of their own.
func openNetworks(c config.Config) (*cni.Networks, map[string]*cni.Networks, error) {
	o := cni.Options{
		ConfDir: c.Network.ConfDir, ConfTemplate: c.Network.ConfTemplate, BinDirs: c.Network.PluginDirs(),
		CacheDir: filepath.Join(c.Root, "cni", "cache"), Timeout: time.Duration(c.Network.Timeout),
	}
	if c.Network.DefaultNetwork {
		o.Default = conf.DefaultConflist
	}
	n, err := cni.New(o)
	if err != nil {
		return nil, nil, fmt.Errorf("networks: %w", err)
	}
	own := map[string]*cni.Networks{}
	for name, h := range c.Runtime.Handlers {
		if h.CNIConfDir != "" {
			own[name] = n.ForHandler(h.CNIConfDir)
		}
	}
	return n, own, nil
}

// podNetworks are those of pods that name no handler: they decide whether the
// node's network is ready.
type podNetworks struct {
	*cni.Networks // the kubelet's pod CIDRs are the node's
	ready         func() error
}

// Ready is that of the default handler's networks.
func (n podNetworks) Ready() error { return n.ready() }

func (p *parts) podNetworks(defaultHandler string) podNetworks {
	if own := p.handlerNetworks[defaultHandler]; own != nil {
		return podNetworks{p.networks, own.Ready}
	}
	return podNetworks{p.networks, p.networks.Ready}
}

// networkStatus is what handlers' own networks say of themselves.
func (p *parts) networkStatus() map[string]cni.Status {
	status := map[string]cni.Status{}
	for name, n := range p.handlerNetworks {
		status[name] = n.Status()
	}
	return status
}

// monitorBinary is the monitor's name beside our own binary, and in PATH.
const monitorBinary = "cri-engine-monitor"

func dialMonitor(ctx context.Context, c config.Config) (*monitor.Client, error) {
	o := monitor.Options{StateDir: c.State, LogFile: filepath.Join(c.State, "monitor.log")}
	if c.Monitor.Start {
		var err error
		if o.Binary, err = findMonitor(c.Monitor.Path); err != nil {
			return nil, fmt.Errorf("monitor: %w", err)
		}
	}
	m, err := monitor.Dial(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("monitor: %w", err)
	}
	return m, nil
}

// findMonitor returns the configured path, or the monitor beside this program, or that in PATH.
func findMonitor(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	if exe, err := os.Executable(); err == nil {
		if found, err := exec.LookPath(filepath.Join(filepath.Dir(exe), monitorBinary)); err == nil {
			return found, nil
		}
	}
	return exec.LookPath(monitorBinary)
}

// findHandlers returns the OCI runtimes that work. The default one must; a
// node can do without another, whose pods are refused by name.
func findHandlers(ctx context.Context, c config.Config, driver oci.CgroupDriver) ([]*oci.Handler, error) {
	configs, err := handlerConfigs(c.Runtime, driver)
	if err != nil {
		return nil, err
	}
	handlers, err := oci.FindHandlers(ctx, configs, c.State, c.Root)
	name := c.Runtime.DefaultHandler
	if !slices.ContainsFunc(handlers, func(h *oci.Handler) bool { return h.Name == name }) {
		return nil, fmt.Errorf("OCI runtime of the default handler %s: %w", name, err)
	}
	if err != nil {
		klog.ErrorS(err, "Some runtime handlers do not work")
	}
	return handlers, nil
}

// autoHandler is the one that is not configured.
const autoHandler = "auto"

// handlerConfigs are the built-in handler and those of the file, by name. A base
// specification that can't be used is fatal: containers without what it says would
// run with less limits than the operator wants.
func handlerConfigs(r config.Runtime, driver oci.CgroupDriver) ([]oci.HandlerConfig, error) {
	list := []oci.HandlerConfig{{Name: autoHandler, CgroupDriver: driver}}
	for _, name := range slices.Sorted(maps.Keys(r.Handlers)) {
		h := r.Handlers[name]
		c := oci.HandlerConfig{
			Name: name, Path: h.Path, Type: h.Type, Root: h.Root, Annotations: h.Annotations,
			Sandbox: h.Sandbox, PrivilegedWithoutHostDevices: h.PrivilegedWithoutHostDevices, CgroupDriver: driver,
		}
		if h.BaseRuntimeSpec != "" {
			var err error
			if c.Base, err = oci.LoadBaseSpec(h.BaseRuntimeSpec); err != nil {
				return nil, fmt.Errorf("runtime.handlers.%s.base_runtime_spec: %w", name, err)
			}
		}
		list = append(list, c)
	}
	return list, nil
}

func newEngine(ctx context.Context, c config.Config, p *parts) (*sandbox.Engine, error) {
	o := sandbox.Options{
		Root: c.Root, State: c.State, Config: c,
		Images: p.store, Networks: p.networks, Monitor: p.monitor, AppArmor: p.apparmor, Labels: p.labels,
		Handlers: p.handlers, CgroupDriver: p.driver,
		HandlerNetworks: map[string]sandbox.Networks{},
	}
	for name, n := range p.handlerNetworks {
		o.HandlerNetworks[name] = n
	}
	if c.CDI.Enabled {
		o.Devices = cdi.New(c.CDI.SpecDirs)
	}
	if len(c.Runtime.HooksDirs) > 0 {
		h, err := hooks.New(c.Runtime.HooksDirs)
		if err != nil {
			return nil, fmt.Errorf("runtime.hooks_dirs: %w", err)
		}
		o.Hooks = h
	}
	if p.plugins != nil {
		o.Plugins = p.plugins
	}
	return sandbox.New(ctx, o)
}

// openPlugins prepares NRI; its plugins come when the engine is there.
func openPlugins(o Options) (*nri.Plugins, error) {
	c := o.Config.NRI
	if !c.Enabled {
		return nil, nil
	}
	return nri.New(nri.Options{
		Version: o.Version, Socket: c.Socket, ExternalConnections: c.ExternalConnections,
		PluginPath: c.PluginPath, PluginConfigPath: c.PluginConfigPath,
		RegistrationTimeout: time.Duration(c.RegistrationTimeout), RequestTimeout: time.Duration(c.RequestTimeout),
	})
}
