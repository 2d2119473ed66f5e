package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/nri"
	"github.com/cri-engine/cri-engine/internal/steps"
)

// podStop ends what runs in a pod and gives its network back. It only goes
// forward, each step tolerates that it is done, and a failure is mended by calling again.
type podStop struct {
	e *Engine
	p *pod
}

var _ = steps.Register("StopPodSandbox", names((*podStop)(nil).steps())...)

func (s *podStop) steps() []steps.Step {
	return []steps.Step{
		{Name: "record", Do: s.record},
		{Name: "containers", Do: s.containers},
		{Name: "init", Do: s.init},
		{Name: "plugins", Do: s.plugins},
		{Name: "network", Do: s.network},
		{Name: "shm", Do: s.shm},
		{Name: "namespaces", Do: s.namespaces},
		{Name: "stopped", Do: s.stopped},
	}
}

// StopPod ends everything in the pod, by force, and detaches its network. A
// stopped pod is left as it is. ErrNotFound for an unknown one.
func (e *Engine) StopPod(ctx context.Context, id string) error {
	p, err := e.findPod(id)
	if err != nil {
		return err
	}
	return e.toEnd(ctx, e.forwardTimeout(), func(ctx context.Context) error {
		if err := p.op.lock(ctx); err != nil {
			return err
		}
		defer p.op.unlock()
		return e.stopPod(ctx, p)
	})
}

// stopPod is called with p.op held.
func (e *Engine) stopPod(ctx context.Context, p *pod) error {
	switch p.read().Phase {
	case phaseStopped, phaseRemoving:
		return nil
	}
	if err := steps.Run(ctx, "StopPodSandbox", (&podStop{e, p}).steps()); err != nil {
		return fmt.Errorf("stop pod sandbox %s: %w", p.id, err)
	}
	return nil
}

func (s *podStop) record(context.Context) error {
	return s.e.setPod(s.p, func(r *podRecord) { r.Phase = phaseStopping })
}

// containers kills all that run. One that is being started is waited for: its
// op lock is held until then, and nothing starts in a pod that is stopping.
func (s *podStop) containers(ctx context.Context) error {
	list := s.p.list()
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() {
			if errs[i] = s.kill(ctx, c); errs[i] == nil && c.read().Phase == phaseExited {
				s.e.tellEnded(ctx, c) // before plugins are told of the pod's end
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *podStop) kill(ctx context.Context, c *container) error {
	if err := c.op.lock(ctx); err != nil {
		return err
	}
	defer c.op.unlock()
	return s.e.killContainer(ctx, c)
}

func (s *podStop) init(ctx context.Context) error {
	if err := s.e.deleteInit(ctx, s.p); err != nil {
		return err
	}
	s.e.tellPodStopped(s.p) // nothing runs in it any more, and of each container that was told
	return nil
}

// plugins: the containers have ended, and what the pod holds is still there.
func (s *podStop) plugins(ctx context.Context) error {
	return s.e.pluginsPodIs(ctx, s.p, toldEnded, nri.StopPod)
}

func (s *podStop) network(ctx context.Context) error { return s.e.detach(ctx, s.p) }
func (s *podStop) shm(context.Context) error         { return s.e.unmountShm(s.p.id) }
func (s *podStop) namespaces(context.Context) error  { return s.e.unpin(s.p) }

func (s *podStop) stopped(context.Context) error {
	klog.V(2).InfoS("Pod sandbox is stopped", "pod", s.p.id, "name", s.p.name)
	return s.e.setPod(s.p, func(r *podRecord) {
		r.Phase = phaseStopped
		r.Network, r.Init = nil, nil
	})
}
