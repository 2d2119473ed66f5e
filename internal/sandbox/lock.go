package sandbox

import "context"

// opLock lets one operation at a time change a pod or a container. Unlike a
// mutex it can be waited for with a context: a caller that gives up leaves the queue.
type opLock chan struct{}

func newOpLock() opLock { return make(opLock, 1) }

func (l opLock) lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l opLock) unlock() { <-l }
