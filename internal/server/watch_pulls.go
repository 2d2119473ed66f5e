package server

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	enginev1 "github.com/cri-engine/cri-engine/api/engine/v1"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// WatchPulls streams the progress of pulls until its client ends the call.
func (s *engineService) WatchPulls(r *enginev1.WatchPullsRequest, out grpc.ServerStreamingServer[enginev1.PullProgress]) error {
	ctx, cancel := context.WithCancel(out.Context())
	defer cancel()
	progress := s.Images.Watch(ctx)
	// The client knows by the header that it misses nothing of a pull it starts now.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case p, ok := <-progress:
			if !ok {
				return ctx.Err()
			}
			if r.GetImage() != "" && r.GetImage() != p.Ref {
				continue
			}
			if err := out.Send(pullProgress(p)); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stopping.Done():
			return status.Error(codes.Unavailable, "the engine is stopping")
		}
	}
}

var pullStates = map[string]enginev1.PullProgress_State{
	"resolving":   enginev1.PullProgress_STATE_RESOLVING,
	"downloading": enginev1.PullProgress_STATE_DOWNLOADING,
	"done":        enginev1.PullProgress_STATE_DONE,
	"cached":      enginev1.PullProgress_STATE_CACHED,
	"failed":      enginev1.PullProgress_STATE_FAILED,
}

func pullProgress(p storage.Progress) *enginev1.PullProgress {
	return &enginev1.PullProgress{
		Image: p.Ref, Layer: p.Layer, State: pullStates[p.State],
		Offset: p.Offset, Total: p.Total, Error: p.Error, At: nanos(p.At),
	}
}
