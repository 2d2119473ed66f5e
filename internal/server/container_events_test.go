package server

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// subscribed returns once the server has the subscription.
func subscribed(ctx context.Context, t testing.TB, c *client) grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse] {
	t.Helper()
	in, err := c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Header(); err != nil {
		t.Fatal(err)
	}
	return in
}

func event(f *fake, id string, kind runtimeapi.ContainerEventType) sandbox.Event {
	return sandbox.Event{ID: id, Type: kind, At: time.Unix(0, 7), Pod: f.pods[0], Containers: f.ContainersOf(f.pods[0].ID)}
}

// eventually waits for what goroutines of gRPC do in their own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// sending counts the goroutines that send events.
func sending() int {
	buf := make([]byte, 4<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), "runtimeService).GetContainerEvents")
}

func TestGetContainerEvents(t *testing.T) {
	f := world()
	c := start(t, f)
	t.Run("an event has the statuses that a kubelet uses", func(t *testing.T) {
		in := subscribed(t.Context(), t, c)
		f.hub.Publish(event(f, "cc", created))
		f.hub.Publish(event(f, "bb", deleted))
		got := must[*runtimeapi.ContainerEventResponse](t)(in.Recv())
		if got.GetContainerId() != "cc" || got.GetContainerEventType() != created || got.GetCreatedAt() != 7 ||
			got.GetPodSandboxStatus().GetMetadata().GetName() != "web-0" || got.GetPodSandboxStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY ||
			len(got.GetContainersStatuses()) != 1 || got.GetContainersStatuses()[0].GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("got %v", got)
		}
		if got := must[*runtimeapi.ContainerEventResponse](t)(in.Recv()); got.GetContainerId() != "bb" || got.GetContainerEventType() != deleted {
			t.Errorf("got %v", got)
		}
	})
	t.Run("a client that goes leaves no goroutine", func(t *testing.T) {
		for range 50 {
			ctx, cancel := context.WithCancel(t.Context())
			in := subscribed(ctx, t, c)
			f.hub.Publish(event(f, "cc", created))
			cancel()
			for {
				if _, err := in.Recv(); err != nil {
					wantCode(t, err, codes.Canceled, "")
					break
				}
			}
		}
		eventually(t, "goroutines are left", func() bool { return sending() == 0 })
	})
	t.Run("a client that takes nothing is cut off, and told why", func(t *testing.T) {
		in := subscribed(t.Context(), t, c)
		eventually(t, "it was never cut off", func() bool {
			for range 500 {
				f.hub.Publish(event(f, "cc", created))
			}
			return sending() == 0
		})
		for {
			_, err := in.Recv()
			if err == nil {
				continue // what was under way
			}
			wantCode(t, err, codes.ResourceExhausted, "too slow")
			break
		}
	})
}

func TestEventsEndWithTheServer(t *testing.T) {
	f := world()
	c := start(t, f)
	in := subscribed(t.Context(), t, c)
	stuck := subscribed(t.Context(), t, c)
	for range 1500 { // more than a stream holds, less than a queue
		f.hub.Publish(event(f, "cc", created))
	}
	stopped := make(chan struct{})
	go func() { c.server.Stop(); close(stopped) }()
	for {
		_, err := in.Recv()
		if err == nil {
			continue
		}
		if s, _ := status.FromError(err); s.Code() != codes.Unavailable {
			t.Errorf("got %v", err)
		}
		break
	}
	for {
		if _, err := stuck.Recv(); err != nil {
			wantCode(t, err, codes.Unavailable, "stopping")
			break
		}
	}
	select {
	case <-stopped:
	case <-time.After(5 * time.Second):
		t.Error("a reader of events delays the server's stop")
	}
}
