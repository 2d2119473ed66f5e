package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// noCheckpoints answers all three RPCs about checkpoints.
func noCheckpoints(rpc string) error {
	return status.Errorf(codes.Unimplemented, "%s needs CRIU beneath the OCI runtime, which this engine does not drive yet", rpc)
}

// CheckpointContainer is not there.
func (s *runtimeService) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, noCheckpoints("CheckpointContainer")
}

// CheckpointPod is not there.
func (s *runtimeService) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, noCheckpoints("CheckpointPod")
}

// RestorePod is not there.
func (s *runtimeService) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, noCheckpoints("RestorePod")
}
