package sandbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/monitor"
)

// told reads n events as "pod created" or "container stopped exited", the last
// word being the container's own state in the statuses that came with it.
func told(t testing.TB, s *Subscription, podID string, n int) []string {
	t.Helper()
	var list []string
	for range n {
		select {
		case ev, open := <-s.Events():
			if !open {
				t.Fatalf("events ended after %v: %v", list, s.Err())
			}
			if ev.Pod == nil || ev.Pod.ID != podID || ev.Pod.Config.GetMetadata() == nil || ev.At.IsZero() {
				t.Errorf("event %+v lacks its pod or time", ev)
			}
			list = append(list, wordOf(ev))
		case <-time.After(10 * time.Second):
			t.Fatalf("no event after %v", list)
		}
	}
	return list
}

func wordOf(ev Event) string {
	what := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(ev.Type.String(), "CONTAINER_"), "_EVENT"))
	if ev.ID == ev.Pod.ID {
		return fmt.Sprintf("pod %s ready=%v", what, ev.Pod.Ready)
	}
	state := "absent"
	for _, c := range ev.Containers {
		if c.ID == ev.ID {
			state = strings.ToLower(strings.TrimPrefix(c.State.String(), "CONTAINER_"))
		}
	}
	return "container " + what + " " + state
}

func TestEventsOfALife(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	s := e.Events()
	defer s.Close()
	podID, id := started(t, e)
	want := []string{"pod created ready=true", "pod started ready=true", "container created created", "container started running"}
	if got := told(t, s, podID, 4); !slices.Equal(got, want) {
		t.Errorf("a start told %v, want %v", got, want)
	}
	w.exit(id, monitor.Exit{Code: 3, At: time.Now()})
	if got := told(t, s, podID, 1); got[0] != "container stopped exited" {
		t.Errorf("an exit told %v", got)
	}
	if err := e.RemoveContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := e.StopPod(t.Context(), podID); err != nil {
		t.Fatal(err)
	}
	if err := e.StopPod(t.Context(), podID); err != nil {
		t.Fatal(err)
	}
	if err := e.RemovePod(t.Context(), podID); err != nil {
		t.Fatal(err)
	}
	want = []string{"container deleted absent", "pod stopped ready=false", "pod deleted ready=false"}
	if got := told(t, s, podID, 3); !slices.Equal(got, want) {
		t.Errorf("an end told %v, want %v", got, want)
	}
	select {
	case ev := <-s.Events():
		t.Errorf("one more event: %s", wordOf(ev))
	default:
	}
}

func TestEventsWhenAPodIsRemovedAtOnce(t *testing.T) {
	e := newWorld(t).engine()
	podID, _ := started(t, e)
	s := e.Events()
	defer s.Close()
	if err := e.RemovePod(t.Context(), podID); err != nil {
		t.Fatal(err)
	}
	want := []string{"container stopped exited", "pod stopped ready=false", "container deleted absent", "pod deleted ready=false"}
	if got := told(t, s, podID, 4); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEventsOfWhatFailed(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
	s := e.Events()
	defer s.Close()
	w.fail["CreateRootFS"] = errors.New("disk")
	if _, err := e.CreateContainer(t.Context(), podID, containerConfig("c"), podConfig("p")); err == nil {
		t.Fatal("a container was made without a disk")
	}
	delete(w.fail, "CreateRootFS")
	id := must(e.CreateContainer(t.Context(), podID, containerConfig("c"), podConfig("p")))(t)
	w.fail["Start"] = errors.New("no such program")
	if err := e.StartContainer(t.Context(), id); err == nil {
		t.Fatal("a container started that cannot")
	}
	want := []string{"container created created", "container stopped exited"}
	if got := told(t, s, podID, 2); !slices.Equal(got, want) {
		t.Errorf("what was never there told of itself, or a failed start did not: %v, want %v", got, want)
	}
}

func TestHub(t *testing.T) {
	event := func(n int) Event {
		return Event{ID: fmt.Sprint(n), Type: runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT}
	}
	t.Run("a slow reader is cut off after what fits, and others are not", func(t *testing.T) {
		var h Hub
		slow, quick := h.Subscribe(), h.Subscribe()
		for n := range eventQueue + 1 {
			h.Publish(event(n))
			if ev := <-quick.Events(); ev.ID != fmt.Sprint(n) {
				t.Fatalf("got %s, want %d", ev.ID, n)
			}
		}
		n := 0
		for ev := range slow.Events() {
			if ev.ID != fmt.Sprint(n) {
				t.Fatalf("got %s, want %d", ev.ID, n)
			}
			n++
		}
		if n != eventQueue || !errors.Is(slow.Err(), ErrSlow) {
			t.Errorf("%d events, %v", n, slow.Err())
		}
		slow.Close()
		h.Publish(event(0))
		if ev := <-quick.Events(); ev.ID != "0" {
			t.Error("the other reader ended")
		}
	})
	t.Run("a closed subscription leaves nothing", func(t *testing.T) {
		var h Hub
		s := h.Subscribe()
		s.Close()
		s.Close()
		if _, open := <-s.Events(); open || h.heard() {
			t.Error("it is still there")
		}
	})
	t.Run("the end of the hub ends readers, also late ones", func(t *testing.T) {
		var h Hub
		s := h.Subscribe()
		h.Publish(event(1))
		h.Close()
		if ev, open := <-s.Events(); !open || ev.ID != "1" {
			t.Error("what was published before is lost")
		}
		for _, s := range []*Subscription{s, h.Subscribe()} {
			if _, open := <-s.Events(); open || !errors.Is(s.Err(), ErrEnded) {
				t.Errorf("open %v, %v", open, s.Err())
			}
		}
	})
	t.Run("readers come and go while events are published", func(t *testing.T) {
		var h Hub
		done := make(chan struct{})
		go func() {
			defer close(done)
			for n := range 2000 {
				h.Publish(event(n))
			}
		}()
		for range 200 {
			s := h.Subscribe()
			go s.Close()
			for range s.Events() {
				break
			}
		}
		<-done
	})
}
