package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"go.podman.io/image/v5/docker/reference"
)

// errClosing is why pulls end when the store is closed.
var errClosing = errors.New("the engine is stopping")

// Pull fetches an image. Calls that want the same image with the same
// credentials at a time share one pull, which ends when all of them have given
// up; what it left is deleted then.
//
// An image that is there already is not fetched again, but the registry is
// asked each time: it decides which image a tag is, and who may have it.
func (s *Store) Pull(ctx context.Context, r PullRequest) (Image, error) {
	if _, ok := parseID(r.Ref); ok {
		return s.Image(r.Ref)
	}
	names, err := s.names.resolve(r.Ref)
	if err != nil {
		return Image{}, err
	}
	creds, err := parseAuth(r.Auth)
	if err != nil {
		return Image{}, withKind(ErrUnauthorized, fmt.Errorf("pull %s: %w", quoteRef(r.Ref), err))
	}
	f, err := s.flights.join(s, r.Ref, names, creds)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", quoteRef(r.Ref), err)
	}
	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
		s.flights.leave(f)
		return Image{}, fmt.Errorf("pull %s: %w", quoteRef(r.Ref), context.Cause(ctx))
	}
}

// flights are the pulls that run.
type flights struct {
	mu     sync.Mutex // Protects the fields below and flight.waiters.
	byKey  map[string]*flight
	closed bool
}

// flight is one running pull.
type flight struct {
	key     string
	cancel  context.CancelCauseFunc
	waiters int

	done  chan struct{} // closed at its end; then the result below is set
	image Image
	err   error
}

// join finds the running pull of these names with these credentials, or starts it.
func (fs *flights) join(s *Store, ref string, names []reference.Named, creds *credentials) (*flight, error) {
	key := flightKey(names, creds)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return nil, errClosing
	}
	if f := fs.byKey[key]; f != nil {
		f.waiters++
		return f, nil
	}
	ctx, cancel := context.WithCancelCause(s.ctx)
	f := &flight{key: key, cancel: cancel, waiters: 1, done: make(chan struct{})}
	if fs.byKey == nil {
		fs.byKey = map[string]*flight{}
	}
	fs.byKey[key] = f
	s.running.Go(func() {
		defer close(f.done)
		defer fs.forget(f)
		defer cancel(nil)
		f.image, f.err = s.fetch(ctx, ref, names, creds)
	})
	return f, nil
}

func flightKey(names []reference.Named, creds *credentials) string {
	var b strings.Builder
	for _, n := range names {
		b.WriteString(n.String())
		b.WriteByte(0)
	}
	return b.String() + creds.key()
}

// leave gives a pull up. The last to do so ends it; who comes after that starts anew.
func (fs *flights) leave(f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return
	}
	f.cancel(context.Canceled)
	if fs.byKey[f.key] == f {
		delete(fs.byKey, f.key)
	}
}

func (fs *flights) forget(f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.byKey[f.key] == f {
		delete(fs.byKey, f.key)
	}
}

// close lets no pull begin any more.
func (fs *flights) close() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.closed = true
}

// fetch is one pull, tried with each name in turn.
func (s *Store) fetch(ctx context.Context, ref string, names []reference.Named, creds *credentials) (Image, error) {
	s.hub.send(Progress{Ref: ref, State: StateResolving, Total: -1})
	leave := s.orphans.enter(s.deleteOrphans)
	img, err := s.fetchAny(ctx, ref, names, creds)
	leave(err)
	if err != nil {
		s.hub.send(Progress{Ref: ref, State: StateFailed, Total: -1, Error: err.Error()})
		return Image{}, err
	}
	s.hub.send(Progress{Ref: ref, State: StateDone, Total: -1})
	s.usage.poke()
	return img, nil
}

func (s *Store) fetchAny(ctx context.Context, ref string, names []reference.Named, creds *credentials) (Image, error) {
	var errs []error
	for _, named := range names {
		img, err := s.fetchOne(ctx, ref, named, creds)
		if err == nil {
			return img, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || errors.Is(err, ErrNoSpace) {
			break
		}
	}
	if len(errs) == 1 {
		return Image{}, errs[0]
	}
	return Image{}, errors.Join(errs...)
}

// fetchOne tries again when layers that the pull counted on were deleted
// meanwhile with another image.
func (s *Store) fetchOne(ctx context.Context, ref string, named reference.Named, creds *credentials) (Image, error) {
	for try := 1; ; try++ {
		removals := s.removals.Load()
		p := newPull(s, ref, named, creds)
		err := p.run(ctx)
		if err == nil {
			return p.image, nil
		}
		if try == 3 || ctx.Err() != nil || s.removals.Load() == removals {
			return Image{}, err
		}
	}
}
