package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Attach checks the request and returns the URL at which a client connects to a
// container's streams.
func (s *runtimeService) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := s.checkStreams(r); err != nil {
		return nil, err
	}
	c, err := s.Engine.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if r.GetStdin() && !c.Config.GetStdin() {
		return nil, status.Errorf(codes.FailedPrecondition, "stdin: container %s was created without it", c.ID)
	}
	url, err := s.Streams.Attach(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}
