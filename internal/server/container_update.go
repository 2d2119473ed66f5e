package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateContainerResources changes a container's limits; those that are zero stay.
// Annotations are for runtimes that have limits of their own: there are none here.
func (s *runtimeService) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if r.GetLinux() == nil {
		return nil, status.Error(codes.InvalidArgument, "linux: no resources to update")
	}
	if err := s.Engine.UpdateResources(ctx, r.GetContainerId(), r.GetLinux()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}
