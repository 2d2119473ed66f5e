// Package steps runs what takes several steps (run a pod, start a container,
// remove one) as a list of named steps, each with its undo.
//
// A list is run in order. When a step fails, or the context ends between two
// steps, the undos of the steps already done run in reverse order, with a
// context of their own that the caller's cancellation does not reach: a
// call that was given up still cleans up after itself. When all steps are
// done, nothing is undone.
//
// The names of every list are known to the program ([Register]), and in
// binaries built with the tag "failpoints" the process can be made to die
// before or after any of them. The fault tests take their points from the
// same lists, so a step that is added is a step that is tested.
package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"
)

// UndoTimeout bounds all undos of one failed list together.
const UndoTimeout = 2 * time.Minute

// Step is one named step of an operation.
type Step struct {
	// Name is lower-case words with dashes, unique in its list.
	Name string
	// Do does the step. When it fails, it leaves nothing of its own behind:
	// its own Undo is not called.
	Do func(ctx context.Context) error
	// Undo takes back what Do did, nil where there is nothing to take back.
	// It is called at most once, and only after Do succeeded.
	Undo func(ctx context.Context) error
}

// Run runs the list of the operation op, such as "RunPodSandbox".
//
// The error is that of the failed step, wrapped with the step's name; errors
// of undos are joined to it. errors.Is finds either.
func Run(ctx context.Context, op string, list []Step) error {
	for i, s := range list {
		err := ctx.Err()
		if err == nil {
			hit(op, s.Name, "before")
			err = s.Do(ctx)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", s.Name, err)
			return errors.Join(err, undo(ctx, list[:i]))
		}
		hit(op, s.Name, "after")
	}
	return nil
}

func undo(ctx context.Context, done []Step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), UndoTimeout)
	defer cancel()
	var errs []error
	for _, s := range slices.Backward(done) {
		if s.Undo == nil {
			continue
		}
		if err := s.Undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", s.Name, err))
		}
	}
	return errors.Join(errs...)
}

var (
	mu    sync.Mutex // Protects known.
	known = map[string][]string{}
)

// Register tells the program the step names of an operation, in their order.
// Call it from a package variable's initializer.
func Register(op string, names ...string) []string {
	mu.Lock()
	defer mu.Unlock()
	known[op] = names
	return names
}

// Points returns every fail point, sorted by operation and in the order of
// its steps, written "Operation/step:before" or "Operation/step:after".
func Points() []string {
	mu.Lock()
	defer mu.Unlock()
	ops := make([]string, 0, len(known))
	for op := range known {
		ops = append(ops, op)
	}
	sort.Strings(ops)
	var points []string
	for _, op := range ops {
		for _, name := range known[op] {
			points = append(points, op+"/"+name+":before", op+"/"+name+":after")
		}
	}
	return points
}
