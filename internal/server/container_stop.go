package server

import (
	"context"
	"errors"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

// StopContainer ends a container, by force when the timeout is over. One that does
// not run, or is unknown, is stopped already: no error.
func (s *runtimeService) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	timeout, err := seconds(r.GetTimeout())
	if err != nil {
		return nil, err
	}
	if err := s.Engine.StopContainer(ctx, r.GetContainerId(), timeout); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}
