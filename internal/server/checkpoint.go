package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errNoCheckpoints answers all three RPCs about checkpoints.
var errNoCheckpoints = status.Error(codes.Unimplemented, "checkpoints need CRIU beneath the OCI runtime, which this engine does not drive yet")

// CheckpointContainer is not there.
func (s *runtimeService) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, errNoCheckpoints
}

// CheckpointPod is not there.
func (s *runtimeService) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, errNoCheckpoints
}

// RestorePod is not there.
func (s *runtimeService) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, errNoCheckpoints
}
