package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer makes a container in a pod that is ready. A request that is
// repeated gets the container of the first.
func (s *runtimeService) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	err := first(
		func() error { return checkID("pod_sandbox_id", r.GetPodSandboxId()) },
		func() error { return checkContainerConfig(r.GetConfig()) },
		func() error {
			if r.GetSandboxConfig() == nil {
				return nil // the pod's own is used
			}
			return checkPodConfig("sandbox_config", r.GetSandboxConfig())
		},
	)
	if err != nil {
		return nil, err
	}
	id, err := s.Engine.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig(), r.GetSandboxConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}
