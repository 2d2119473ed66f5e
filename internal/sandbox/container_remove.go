package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cri-engine/cri-engine/internal/steps"
)

// containerRemove takes a container away, by force where it runs. It only goes forward.
type containerRemove struct {
	e *Engine
	c *container
}

var _ = steps.Register("RemoveContainer", names((*containerRemove)(nil).steps())...)

func (s *containerRemove) steps() []steps.Step {
	return []steps.Step{
		{Name: "kill", Do: s.kill},
		{Name: "record", Do: s.record},
		{Name: "process", Do: s.process},
		{Name: "plugins", Do: s.plugins},
		{Name: "root-filesystem", Do: s.rootFS},
		{Name: "bundle", Do: s.bundle},
		{Name: "forget", Do: s.forget},
	}
}

// RemoveContainer removes the container, killing it if it runs. An unknown one
// is removed already: nil. Its log stays: it is the kubelet's.
func (e *Engine) RemoveContainer(ctx context.Context, id string) error {
	c, err := e.findContainer(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.toEnd(ctx, e.forwardTimeout(), func(ctx context.Context) error { return e.removeContainer(ctx, c) })
}

func (e *Engine) removeContainer(ctx context.Context, c *container) error {
	if err := c.op.lock(ctx); err != nil {
		return err
	}
	defer c.op.unlock()
	e.mu.Lock()
	_, known := e.containers[c.id]
	e.mu.Unlock()
	if !known { // another call removed it while this one waited
		return nil
	}
	if err := steps.Run(ctx, "RemoveContainer", (&containerRemove{e, c}).steps()); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	return nil
}

func (s *containerRemove) kill(ctx context.Context) error { return s.e.killContainer(ctx, s.c) }

func (s *containerRemove) record(context.Context) error {
	return s.e.setContainer(s.c, func(r *containerRecord) { r.Phase = phaseRemoving })
}

func (s *containerRemove) process(ctx context.Context) error {
	return s.e.deleteProcess(ctx, s.c.id, s.c.read().Process)
}

func (s *containerRemove) rootFS(ctx context.Context) error {
	return s.e.removeRootFS(ctx, s.c.id)
}

func (s *containerRemove) bundle(context.Context) error { return os.RemoveAll(s.e.bundleDir(s.c.id)) }
func (s *containerRemove) forget(context.Context) error { return s.e.forgetContainer(s.c) }
