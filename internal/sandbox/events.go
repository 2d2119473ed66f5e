package sandbox

import (
	"errors"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	// ErrSlow ends a subscription whose reader fell too far behind. What it missed is
	// lost to it; it lists, and subscribes anew.
	ErrSlow = errors.New("the reader of events is too slow and was cut off")
	// ErrEnded ends a subscription when the engine closes.
	ErrEnded = errors.New("the engine is closing")
)

// eventQueue is how many events a reader may be behind: some 250 pods that come
// and go at once.
const eventQueue = 2048

// Event is a change in the life of a container, or of a pod sandbox, whose
// container ID is then the pod's (as peers do, and as the kubelet takes it).
type Event struct {
	ID   string
	Type runtimeapi.ContainerEventType
	At   time.Time
	// Pod is the container's, as it was at this moment or shortly after; when it
	// was deleted, as it was last.
	Pod *Pod
	// Containers are all of the pod's, in the order of lists, without deleted ones.
	Containers []*Container
}

// Hub hands events to whoever subscribed. Publishing never waits: it happens
// where a state changes, under the lock of the object that did. The zero value is ready.
type Hub struct {
	mu      sync.Mutex // Protects the fields below; held for memory only.
	readers map[*Subscription]struct{}
	closed  bool
}

// Subscription is one reader's view of the events from its beginning on. It has
// no goroutine: nothing is left of one that was closed.
type Subscription struct {
	hub    *Hub
	events chan Event
	cut    chan struct{}
	err    error // Why events was closed; set before that and then constant.
}

// Subscribe begins a subscription, which the caller closes.
func (h *Hub) Subscribe() *Subscription {
	s := &Subscription{hub: h, events: make(chan Event, eventQueue), cut: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		s.end(ErrEnded)
		return s
	}
	if h.readers == nil {
		h.readers = map[*Subscription]struct{}{}
	}
	h.readers[s] = struct{}{}
	return s
}

// Events are in the order they were published in. The channel is closed when the
// subscription ended, after what was published before; [Subscription.Err] says why.
func (s *Subscription) Events() <-chan Event { return s.events }

// Cut is closed when the reader is cut off, while Events still has what was in
// the queue.
func (s *Subscription) Cut() <-chan struct{} { return s.cut }

// Err is why Events is closed, to be called after it was: ErrSlow, ErrEnded.
func (s *Subscription) Err() error { return s.err }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if _, on := s.hub.readers[s]; on {
		s.end(nil)
	}
}

// end is called with the hub's lock held, once.
func (s *Subscription) end(err error) {
	delete(s.hub.readers, s)
	s.err = err
	close(s.events)
}

// Publish hands the event to every reader; one whose queue is full is cut off.
func (h *Hub) Publish(ev Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.readers {
		select {
		case s.events <- ev:
		default:
			s.end(ErrSlow)
			close(s.cut)
		}
	}
}

// heard tells whether anybody reads, so that nothing is put together for nobody.
func (h *Hub) heard() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.readers) > 0
}

// Close ends all subscriptions, and those to come.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.readers {
		s.end(ErrEnded)
	}
}

// Events subscribes to what happens to pods and containers from now on.
func (e *Engine) Events() *Subscription { return e.hub.Subscribe() }

// tellContainer publishes a change of a container after it shows in lists. That
// the container's lock or op lock is held until then keeps its events in order. The
// pod's lock, taken here for its list of containers, is never held by anyone
// who waits for a container's.
func (e *Engine) tellContainer(c *container, kind runtimeapi.ContainerEventType) {
	e.tell(c.pod, c.id, kind)
}

// tellPod publishes a change of the pod sandbox itself.
func (e *Engine) tellPod(p *pod, kind runtimeapi.ContainerEventType) { e.tell(p, p.id, kind) }

func (e *Engine) tell(p *pod, id string, kind runtimeapi.ContainerEventType) {
	// A pod without a snapshot was never there for anyone.
	snap := p.snap.Load()
	if snap == nil || !e.hub.heard() {
		return
	}
	// The time comes first: a kubelet takes the statuses for at least as new.
	ev := Event{ID: id, Type: kind, At: time.Now(), Pod: snap}
	ev.Containers = p.snapshots()
	e.hub.Publish(ev)
}

// tellPodStopped publishes the end of a pod sandbox, once: it is lost first and
// stopped later, or stopped in more than one try.
func (e *Engine) tellPodStopped(p *pod) {
	p.mu.Lock()
	told := p.stopTold
	p.stopTold = true
	p.mu.Unlock()
	if !told {
		e.tellPod(p, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}
