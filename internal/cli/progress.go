package cli

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	enginev1 "github.com/cri-engine/cri-engine/api/engine/v1"
)

// pullView shows how one pull goes. Calls come from one goroutine at a time.
type pullView interface {
	// step shows one step of a layer, or of the whole pull.
	step(p *enginev1.PullProgress)
	// close ends the view and leaves the terminal as it found it.
	close()
}

// newPullView returns a view for what w is: bars on a terminal, a line for
// each change elsewhere, nothing when quiet.
func newPullView(w io.Writer, ref string, quiet bool) pullView {
	switch {
	case quiet:
		return noView{}
	case isTerminal(w):
		return newBars(w, ref)
	default:
		return &lines{w: w, ref: ref, shown: map[string]enginev1.PullProgress_State{}}
	}
}

// watchPull shows the progress of a pull until stop is called, which waits
// for the view to be at rest. With a runtime that has no such service, the view gets no steps.
func (c *client) watchPull(ctx context.Context, ref string, view pullView) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		stream, err := c.engine.WatchPulls(ctx, &enginev1.WatchPullsRequest{Image: ref})
		if err != nil {
			return
		}
		for {
			// Unimplemented comes here. Progress is a nicety: how the pull ends is PullImage's to say.
			p, err := stream.Recv()
			if err != nil {
				return
			}
			if p.GetImage() == ref {
				view.step(p)
			}
		}
	})
	return func() { cancel(); watcher.Wait() }
}

type noView struct{}

func (noView) step(*enginev1.PullProgress) {}
func (noView) close()                      {}

// maxLayers bounds what a view remembers; images have at most 127 layers with overlay.
const maxLayers = 256

// lines writes a line when a layer's state changes.
type lines struct {
	w     io.Writer
	ref   string
	shown map[string]enginev1.PullProgress_State // by layer
}

func (l *lines) step(p *enginev1.PullProgress) {
	last, known := l.shown[p.GetLayer()]
	if last == p.GetState() || !known && len(l.shown) >= maxLayers {
		return
	}
	l.shown[p.GetLayer()] = p.GetState()
	what := clean(l.ref)
	if p.GetLayer() != "" {
		what = clean(shortID(p.GetLayer()))
	}
	detail := ""
	if p.GetTotal() > 0 {
		detail = " " + size(uint64(p.GetTotal()))
	}
	_, _ = fmt.Fprintf(l.w, "%s: %s%s\n", what, stateText(p.GetState()), detail)
}

func (l *lines) close() {}

func stateText(s enginev1.PullProgress_State) string {
	switch s {
	case enginev1.PullProgress_STATE_RESOLVING:
		return "resolving"
	case enginev1.PullProgress_STATE_DOWNLOADING:
		return "downloading"
	case enginev1.PullProgress_STATE_DONE:
		return "done"
	case enginev1.PullProgress_STATE_CACHED:
		return "already here"
	case enginev1.PullProgress_STATE_FAILED:
		return "failed"
	default:
		return "in progress"
	}
}

// bars shows a spinner with the time elapsed, and below it a bar for each layer.
type bars struct {
	p      *mpb.Progress
	whole  *mpb.Bar
	layers map[string]*layerBar
}

// layerBar is one layer's bar. Its decorators run in mpb's goroutine.
type layerBar struct {
	bar   *mpb.Bar
	mu    sync.Mutex // Protects state and whole.
	state enginev1.PullProgress_State
	whole bool // all bytes are here
}

// barRefresh is how often bars are drawn.
const barRefresh = 100 * time.Millisecond

func newBars(w io.Writer, ref string) *bars {
	p := mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithRefreshRate(barRefresh))
	whole := p.New(1, mpb.SpinnerStyle().PositionLeft(),
		mpb.PrependDecorators(decor.Name(clean(ref)+" ")),
		mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO)),
		mpb.BarFillerClearOnComplete(),
	)
	return &bars{p: p, whole: whole, layers: map[string]*layerBar{}}
}

func (b *bars) step(p *enginev1.PullProgress) {
	if p.GetLayer() == "" {
		return
	}
	l, known := b.layers[p.GetLayer()]
	if !known {
		if len(b.layers) >= maxLayers {
			return
		}
		l = b.add(p.GetLayer())
		b.layers[p.GetLayer()] = l
	}
	l.update(p)
}

func (b *bars) add(layer string) *layerBar {
	l := &layerBar{}
	l.bar = b.p.New(0, mpb.BarStyle().Rbound("|").Lbound("|").Filler("█").Tip("█").Padding(" "),
		mpb.PrependDecorators(
			decor.Name("  "+clean(shortID(layer))+" "),
			decor.Any(func(decor.Statistics) string { return l.text() }, decor.WC{W: 12}),
		),
		mpb.AppendDecorators(decor.Counters(decor.SizeB1000(0), "% .1f / % .1f")),
	)
	return l
}

func (l *layerBar) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.whole && l.state == enginev1.PullProgress_STATE_DOWNLOADING {
		return "unpacking"
	}
	return stateText(l.state)
}

func (l *layerBar) update(p *enginev1.PullProgress) {
	l.mu.Lock()
	l.state, l.whole = p.GetState(), p.GetTotal() > 0 && p.GetOffset() >= p.GetTotal()
	l.mu.Unlock()
	switch p.GetState() {
	case enginev1.PullProgress_STATE_DONE, enginev1.PullProgress_STATE_CACHED:
		total := max(p.GetTotal(), p.GetOffset(), 1)
		l.bar.SetTotal(total, false)
		l.bar.SetCurrent(total)
		l.bar.SetTotal(total, true)
	case enginev1.PullProgress_STATE_FAILED:
		l.bar.Abort(false)
	default:
		if p.GetTotal() > 0 {
			l.bar.SetTotal(p.GetTotal(), false)
		}
		l.bar.SetCurrent(p.GetOffset())
	}
}

func (b *bars) close() {
	for _, l := range b.layers {
		l.bar.Abort(false)
	}
	b.whole.SetTotal(1, true)
	b.p.Wait()
}
