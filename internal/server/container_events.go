package server

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

// GetContainerEvents streams what happens to pods and containers, from the moment
// that the client has the header, until the client ends the call, falls too far
// behind (RESOURCE_EXHAUSTED) or the server stops (UNAVAILABLE).
func (s *runtimeService) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	sub := s.Engine.Events()
	defer sub.Close()
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	// A client that takes nothing blocks Send, and only the end of this function ends
	// that: so sending is another goroutine's. It has one event at a time, and ends when
	// next is closed, or with the call's context, which gRPC cancels when this returns.
	next, sent := make(chan *runtimeapi.ContainerEventResponse), make(chan error, 1)
	go func() {
		for ev := range next {
			if err := out.Send(ev); err != nil {
				sent <- err
				return
			}
		}
	}()
	defer close(next)
	return s.relay(sub, next, sent, out)
}

// relay hands events over until one of the ends that GetContainerEvents has. A
// client that takes its time delays none of them.
func (s *runtimeService) relay(sub *sandbox.Subscription, next chan<- *runtimeapi.ContainerEventResponse, sent <-chan error, out grpc.ServerStream) error {
	var pending *runtimeapi.ContainerEventResponse
	for {
		// One of the two is open: events are taken when the last was handed over.
		events, to := sub.Events(), chan<- *runtimeapi.ContainerEventResponse(nil)
		if pending != nil {
			events, to = nil, next
		}
		select {
		case ev, open := <-events:
			if !open {
				return sub.Err()
			}
			pending = s.containerEvent(ev)
		case to <- pending:
			pending = nil
		case <-sub.Cut():
			return sandbox.ErrSlow
		case err := <-sent:
			return err
		case <-out.Context().Done():
			return out.Context().Err()
		case <-s.stopping.Done():
			return errStopping
		}
	}
}

var errStopping = status.Error(codes.Unavailable, "the engine is stopping")

func (s *Server) containerEvent(ev sandbox.Event) *runtimeapi.ContainerEventResponse {
	resp := &runtimeapi.ContainerEventResponse{
		ContainerId: ev.ID, ContainerEventType: ev.Type, CreatedAt: nanos(ev.At), PodSandboxStatus: podStatus(ev.Pod),
	}
	for _, c := range ev.Containers {
		resp.ContainersStatuses = append(resp.ContainersStatuses, s.containerStatus(c))
	}
	return resp
}
