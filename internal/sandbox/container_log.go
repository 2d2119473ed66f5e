package sandbox

import (
	"context"
	"fmt"

	"github.com/cri-engine/cri-engine/internal/steps"
)

// logReopen has a running container's log written to a new file.
type logReopen struct {
	e *Engine
	c *container
}

var _ = steps.Register("ReopenContainerLog", names((*logReopen)(nil).steps())...)

func (r *logReopen) steps() []steps.Step {
	return []steps.Step{{Name: "reopen", Do: r.reopen}}
}

// ReopenLog opens the container's log file anew, after it was rotated: a
// renamed file is left, a missing one is created.
func (e *Engine) ReopenLog(ctx context.Context, id string) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	if phase := c.read().Phase; phase != phaseRunning {
		return fmt.Errorf("reopen log of container %s: it does not run: %w", c.id, ErrPrecondition)
	}
	if err := steps.Run(ctx, "ReopenContainerLog", (&logReopen{e, c}).steps()); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

func (r *logReopen) reopen(ctx context.Context) error { return r.e.o.Monitor.ReopenLog(ctx, r.c.id) }
