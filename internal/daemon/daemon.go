package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/config"
	"github.com/cri-engine/cri-engine/internal/server"
	"github.com/cri-engine/cri-engine/internal/stats"
)

// Options are what an engine runs with.
type Options struct {
	Config  config.Config
	Version string
	// ConfigFiles that were read, for the log.
	ConfigFiles []string
}

// garbage lets the heap grow by half between collections, not to the double: the
// engine has little that lives and nodes have little to spare.
const garbage = 50

// Run runs the engine until ctx ends, or SIGTERM or SIGINT comes. A second one
// of those ends the process at once.
func Run(ctx context.Context, o Options) error {
	debug.SetGCPercent(garbage)
	syscall.Umask(0o022) // what is for root alone says so itself
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	start := time.Now()
	klog.InfoS("Engine starts", "version", o.Version, "root", o.Config.Root, "state", o.Config.State, "config", o.ConfigFiles)

	kept := inherited()
	defer kept.close()
	unlock, err := lock(o.Config.State, o.Config.Root)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer p.close()
	opened := time.Since(start)
	engine, err := newEngine(ctx, o.Config, p)
	if err != nil {
		return err
	}
	defer engine.Close()
	if p.plugins != nil {
		if err := p.plugins.Start(engine); err != nil {
			return err
		}
	}
	streams, err := openStreaming(o.Config.Streaming, engine)
	if err != nil {
		return err
	}
	defer streams.Close()
	sampler := stats.NewSampler(samplePeriod)
	srv := server.New(server.Options{
		Engine: engine, Images: p.store, Networks: p.podNetworks(o.Config.Runtime.DefaultHandler), Stats: sampler, Streams: streams,
		Config: o.Config, Version: o.Version,
		Info: func() map[string]any {
			return map[string]any{
				"cni":         p.networks.Status(),
				"cniHandlers": p.networkStatus(),
				"apparmor":    p.apparmor.Info(),
				"selinux":     p.labels.Info(),
				"daemon":      map[string]any{"pid": os.Getpid(), "goroutines": runtime.NumGoroutine(), "streaming": streams.Address()},
			}
		},
	})
	l, err := kept.listen(o.Config.Listen)
	if err != nil {
		return err
	}
	klog.InfoS("Engine answers", "socket", o.Config.Listen, "opened", opened, "recovered", time.Since(start)-opened)
	return serve(ctx, stop, srv, l)
}

// samplePeriod is how old a CPU reading must be to make a rate with the next.
const samplePeriod = time.Second

// serve answers until ctx ends.
func serve(ctx context.Context, restore func(), srv *server.Server, l *server.Socket) error {
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }() // ends with Stop, or by itself
	notify(sd.SdNotifyReady)
	select {
	case err := <-ended:
		return errors.Join(errors.New("the server ended by itself"), err)
	case <-ctx.Done():
	}
	restore() // the next signal is not ours
	klog.InfoS("Engine stops; pods run on")
	notify(sd.SdNotifyStopping)
	srv.Stop()
	return <-ended
}

// notify tells systemd, where that started us.
func notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		klog.ErrorS(fmt.Errorf("notify systemd: %w", err), "The service manager was not told", "state", state)
	}
}
