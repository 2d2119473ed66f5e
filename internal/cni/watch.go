package cni

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/version"
	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

const (
	// debounce lets a writer finish: an installer drops a file in several writes.
	debounce = 100 * time.Millisecond
	// factsTimeout bounds the look at the host for the default network.
	factsTimeout = 10 * time.Second
	// statusTimeout bounds a plugin's STATUS.
	statusTimeout = 30 * time.Second
)

// watcher is the goroutine that keeps Networks' state; nobody else writes it.
type watcher struct {
	n *Networks
	// notify is nil where the kernel gives us no inotify instance; then the poll
	// alone has to do.
	notify  *fsnotify.Watcher
	watched map[string]bool
	// factsAt is when the host was looked at for the default network.
	facts   hostFacts
	factsAt time.Time
	// status gets the outcome of the STATUS that is under way; nil when none is.
	status   chan statusAnswer
	statusAt time.Time
}

// statusAnswer is what the plugins of a network said to CNI STATUS.
type statusAnswer struct {
	network *network
	err     error
}

// start takes a first look, so that New's caller finds the network if there is
// one, and begins the watch.
func (n *Networks) start() {
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	w := &watcher{n: n, watched: map[string]bool{}}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		klog.ErrorS(err, "No file notification; the CNI configuration is polled", "dir", n.opts.ConfDir, "period", n.pollPeriod)
	} else {
		w.notify = notify
		w.arm()
	}
	w.reload(ctx)
	go w.run(ctx)
}

func (w *watcher) run(ctx context.Context) {
	defer close(w.n.stopped)
	var events <-chan fsnotify.Event
	var faults <-chan error
	if w.notify != nil {
		defer w.notify.Close()
		events, faults = w.notify.Events, w.notify.Errors
	}
	poll := time.NewTicker(w.n.pollPeriod)
	defer poll.Stop()
	settled := time.NewTimer(time.Hour)
	settled.Stop()
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			if w.status != nil {
				<-w.status
			}
			return
		case <-events:
			settled.Reset(debounce)
		case err := <-faults: // the queue overflowed: look for ourselves
			klog.V(2).InfoS("File notifications were lost", "dir", w.n.opts.ConfDir, "err", err)
			settled.Reset(debounce)
		case <-settled.C:
			w.arm()
			w.reload(ctx)
		case <-poll.C:
			w.poll(ctx)
		case answer := <-w.status:
			w.status = nil
			if now := w.n.state().network; now != nil && now.same(answer.network) {
				w.setPluginErr(answer.err)
			}
		}
	}
}

// poll catches what notifications miss: a configuration directory that came or
// was replaced, plugins that were installed or removed, a lost masquerading
// rule, a host that gained IPv6 or nft.
func (w *watcher) poll(ctx context.Context) {
	w.arm()
	s := w.n.state()
	stale := s.builtin != nil && time.Since(w.factsAt) > 12*w.n.pollPeriod
	if stale || fingerprint(w.n.opts.ConfDir) != s.fingerprint {
		w.reload(ctx)
		s = w.n.state()
	} else {
		w.probe(ctx)
	}
	if s.builtin != nil && s.builtin.inUse() {
		ctx, cancel := context.WithTimeout(ctx, factsTimeout)
		defer cancel()
		if err := w.n.masq.ensure(ctx, s.builtin.subnets); err != nil {
			klog.ErrorS(err, "Pods of the default network may not reach other machines")
		}
	}
}

// arm watches ConfDir, and its nearest ancestor that exists, to see it come or
// be replaced. inotify drops a watch when its directory goes; adding one that
// is there already does nothing.
func (w *watcher) arm() {
	if w.notify == nil {
		return
	}
	want := map[string]bool{}
	if isDir(w.n.opts.ConfDir) {
		want[w.n.opts.ConfDir] = true
	}
	for dir := filepath.Dir(filepath.Clean(w.n.opts.ConfDir)); ; dir = filepath.Dir(dir) {
		if isDir(dir) {
			want[dir] = true
			break
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	for dir := range w.watched {
		if !want[dir] {
			_ = w.notify.Remove(dir)
		}
	}
	for dir := range want {
		if err := w.notify.Add(dir); err != nil {
			klog.V(2).InfoS("Directory is polled, not watched", "dir", dir, "err", err)
		}
	}
	w.watched = maps.Clone(want)
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// reload reads the configuration anew and publishes what it found.
func (w *watcher) reload(ctx context.Context) {
	s := state{loadedAt: time.Now(), fingerprint: fingerprint(w.n.opts.ConfDir)}
	var err error
	s.network, s.warnings, err = loadDir(w.n.opts.ConfDir, w.n.opts.MaxConfBytes)
	switch {
	case err != nil:
		// There is a configuration, so the default network must not take its place:
		// the node's owner wants another.
		s.confErr = fmt.Errorf("no valid CNI configuration in %s: %w", w.n.opts.ConfDir, err)
	case s.network == nil && w.n.opts.Default == nil:
		s.confErr = fmt.Errorf("no CNI configuration in %s", w.n.opts.ConfDir)
	case s.network == nil:
		s.builtin, s.confErr = w.loadDefault(ctx)
		if s.builtin != nil {
			s.network, s.warnings = &s.builtin.network, s.builtin.warnings
		}
	}
	w.publish(s)
	w.probe(ctx)
}

func (w *watcher) loadDefault(ctx context.Context) (*defaultNetwork, error) {
	if time.Since(w.factsAt) > w.n.pollPeriod {
		ctx, cancel := context.WithTimeout(ctx, factsTimeout)
		defer cancel()
		w.facts, w.factsAt = w.n.facts(ctx), time.Now()
	}
	return fitDefault(w.n.opts.Default, w.n.opts.DataDir, w.facts)
}

func (w *watcher) publish(s state) {
	w.n.mu.Lock()
	before := w.n.now
	// A plugin that was well stays so until STATUS says otherwise; a new network has
	// to show it first.
	s.pluginErr = errNoStatusYet
	if sameNetwork(before, s) {
		s.pluginErr = before.pluginErr
	}
	if s.network == nil || !hasStatus(s.network) {
		s.pluginErr = nil
	}
	w.n.now = s
	w.n.mu.Unlock()

	if sameNetwork(before, s) {
		return
	}
	w.statusAt = time.Time{}
	for _, warning := range s.warnings {
		klog.InfoS("CNI configuration", "warning", warning)
	}
	switch {
	case s.confErr != nil:
		klog.ErrorS(s.confErr, "Pods get no network")
	case s.network.isDefault():
		klog.InfoS("Pods get the default network", "network", s.network.list.Name, "confDir", w.n.opts.ConfDir)
	default:
		klog.InfoS("Pods get the network of a CNI configuration", "network", s.network.list.Name, "file", s.network.file)
	}
}

// errNoStatusYet stands until a plugin's first STATUS has come back.
var errNoStatusYet = errors.New("the CNI plugins have not told their status yet")

func sameNetwork(a, b state) bool {
	if a.network == nil || b.network == nil {
		return a.network == nil && b.network == nil && fmt.Sprint(a.confErr) == fmt.Sprint(b.confErr)
	}
	return a.network.same(b.network)
}

// hasStatus: the STATUS command came with CNI 1.1.0.
func hasStatus(n *network) bool {
	ok, err := version.GreaterThanOrEqualTo(n.list.CNIVersion, "1.1.0")
	return err == nil && ok
}

// probe looks whether the plugins are there, and asks them now and then.
func (w *watcher) probe(ctx context.Context) {
	s := w.n.state()
	if s.network == nil {
		return
	}
	if err := w.findPlugins(s.network); err != nil {
		w.setPluginErr(err)
		w.statusAt = time.Time{}
		return
	}
	if !hasStatus(s.network) {
		w.setPluginErr(nil)
		return
	}
	if w.status == nil && time.Since(w.statusAt) >= w.n.statusPeriod {
		w.askStatus(ctx, s.network)
	}
}

func (w *watcher) findPlugins(n *network) error {
	for _, plugin := range n.pluginTypes() {
		if _, err := findPlugin(plugin, w.n.opts.BinDirs); err != nil {
			return fmt.Errorf("network %s: %w", n.list.Name, err)
		}
	}
	return nil
}

// askStatus starts CNI STATUS. It ends by itself, and run waits for it.
func (w *watcher) askStatus(ctx context.Context, n *network) {
	answer := make(chan statusAnswer, 1)
	w.status, w.statusAt = answer, time.Now()
	go func() {
		ctx, cancel := context.WithTimeout(ctx, min(statusTimeout, w.n.opts.Timeout))
		defer cancel()
		err := guard(func() error { return w.n.cni.GetStatusNetworkList(ctx, n.list) })
		if err != nil {
			err = fmt.Errorf("network %s: CNI STATUS: %w", n.list.Name, err)
		}
		answer <- statusAnswer{n, err}
	}()
}

func (w *watcher) setPluginErr(err error) {
	w.n.mu.Lock()
	before := w.n.now.pluginErr
	w.n.now.pluginErr = err
	w.n.mu.Unlock()
	switch {
	case err != nil && fmt.Sprint(err) != fmt.Sprint(before):
		klog.ErrorS(err, "The pod network cannot serve")
	case err == nil && before != nil:
		klog.InfoS("The pod network can serve")
	}
}
