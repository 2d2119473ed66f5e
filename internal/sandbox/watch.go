package sandbox

import (
	"context"
	"maps"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/monitor"
)

// watchMonitor takes in what the monitor tells until the engine closes.
func (e *Engine) watchMonitor(ctx context.Context) {
	events := e.o.Monitor.Events()
	for {
		select {
		case ev, open := <-events:
			if !open {
				return
			}
			e.onEvent(ctx, ev)
		case <-ctx.Done():
			return
		}
	}
}

func (e *Engine) onEvent(ctx context.Context, ev monitor.Event) {
	switch ev.Type {
	case monitor.EventExit:
		if ev.Info.ExecID == "" && ev.Info.Exit != nil {
			e.onProcessExit(ev.Info)
		}
	case monitor.EventReset:
		klog.InfoS("The connection to the monitor was made anew; comparing what runs")
		e.compare(ctx)
	case monitor.EventOOM:
		klog.V(1).InfoS("The kernel's OOM killer struck in a container", "container", ev.Info.ID)
	}
}

func (e *Engine) onProcessExit(info monitor.Info) {
	e.mu.Lock()
	c, p := e.containers[info.ID], e.pods[info.ID]
	e.mu.Unlock()
	switch {
	case c != nil:
		e.onExit(c, info)
	case p != nil:
		if rec := p.read(); rec.Init != nil && rec.Init.is(info) {
			e.markLost(p, "its sandbox process has ended")
		}
	}
}

// compare asks the monitor what runs, after events may have been missed, and
// takes in the ends that were. It repeats until the monitor answers.
func (e *Engine) compare(ctx context.Context) {
	for wait := 10 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, time.Second) {
		running := e.running() // before List, so that what starts meanwhile is not taken for lost
		infos, err := e.o.Monitor.List(ctx)
		if err == nil {
			e.takeIn(running, infos)
			return
		}
		klog.ErrorS(err, "The monitor does not answer")
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// running are the processes that should be in the monitor's custody, by id.
func (e *Engine) running() map[string]process {
	e.mu.Lock()
	containers, pods := slices.Collect(maps.Values(e.containers)), slices.Collect(maps.Values(e.pods))
	e.mu.Unlock()
	running := map[string]process{}
	for _, c := range containers {
		if rec := c.read(); rec.Phase == phaseRunning {
			running[c.id] = rec.Process
		}
	}
	for _, p := range pods {
		if rec := p.read(); rec.Phase == phaseReady && rec.Init != nil {
			running[p.id] = *rec.Init
		}
	}
	return running
}

func (e *Engine) takeIn(running map[string]process, infos []monitor.Info) {
	known := map[string]monitor.Info{}
	for _, i := range infos {
		if i.ExecID == "" {
			known[i.ID] = i
		}
	}
	for id, p := range running {
		info, ok := known[id]
		switch {
		case !ok:
			e.onProcessExit(p.lost(id))
		case info.Exit != nil:
			e.onProcessExit(info)
		}
	}
}

// lostCode is the exit code of a container whose end nobody saw.
const lostCode = 255
