package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// kubeletAPIVersion is the one value of VersionResponse.version that the kubelet accepts.
	kubeletAPIVersion = "0.1.0"
	criVersion        = "v1"
	runtimeName       = "cri-engine"
)

// Version says who answers, in which version of CRI.
func (s *runtimeService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           kubeletAPIVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.Options.Version,
		RuntimeApiVersion: criVersion,
	}, nil
}
