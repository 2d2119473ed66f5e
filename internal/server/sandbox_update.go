package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdatePodSandboxResources is told before the kubelet resizes a pod's cgroup, which is
// the kubelet's own; an error keeps it from that. A pod here has nothing else
// that depends on its size.
func (s *runtimeService) UpdatePodSandboxResources(_ context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	p, err := s.Engine.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if !p.Ready {
		return nil, status.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready", p.ID)
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
