package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cri-engine/cri-engine/internal/nri"
	"github.com/cri-engine/cri-engine/internal/steps"
)

// podRemove takes a pod and its containers away. Like podStop it only goes forward.
type podRemove struct {
	e *Engine
	p *pod
}

var _ = steps.Register("RemovePodSandbox", names((*podRemove)(nil).steps())...)

func (s *podRemove) steps() []steps.Step {
	return []steps.Step{
		{Name: "stop", Do: s.stop},
		{Name: "record", Do: s.record},
		{Name: "containers", Do: s.containers},
		{Name: "teardown", Do: s.teardown},
		{Name: "plugins", Do: s.plugins},
		{Name: "forget", Do: s.forget},
	}
}

// RemovePod stops the pod if it runs, and removes it with its containers. An
// unknown pod is removed already: nil.
func (e *Engine) RemovePod(ctx context.Context, id string) error {
	p, err := e.findPod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.toEnd(ctx, e.forwardTimeout(), func(ctx context.Context) error {
		if err := p.op.lock(ctx); err != nil {
			return err
		}
		defer p.op.unlock()
		return e.removePod(ctx, p)
	})
}

func (e *Engine) removePod(ctx context.Context, p *pod) error {
	if err := steps.Run(ctx, "RemovePodSandbox", (&podRemove{e, p}).steps()); err != nil {
		return fmt.Errorf("remove pod sandbox %s: %w", p.id, err)
	}
	return nil
}

func (s *podRemove) stop(ctx context.Context) error { return s.e.stopPod(ctx, s.p) }

func (s *podRemove) record(context.Context) error {
	return s.e.setPod(s.p, func(r *podRecord) { r.Phase = phaseRemoving })
}

func (s *podRemove) containers(ctx context.Context) error {
	list := s.p.list()
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { errs[i] = s.e.removeContainer(ctx, c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *podRemove) teardown(ctx context.Context) error { return s.e.teardown(ctx, s.p) }
func (s *podRemove) plugins(ctx context.Context) error {
	return s.e.pluginsPodIs(ctx, s.p, toldRemoved, nri.RemovePod)
}
func (s *podRemove) forget(context.Context) error { return s.e.forgetPod(s.p) }
