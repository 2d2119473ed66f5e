package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxForwardPorts bounds the ports of one PortForward.
const maxForwardPorts = 64

// PortForward checks the request and returns the URL at which a client connects to a
// pod's ports. Clients that speak SPDY name the ports there; for WebSocket they are the request's.
func (s *runtimeService) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if n := len(r.GetPort()); n > maxForwardPorts {
		return nil, status.Errorf(codes.InvalidArgument, "port: %d of them, more than %d", n, maxForwardPorts)
	}
	for _, port := range r.GetPort() {
		if port < 1 || port > 65535 {
			return nil, status.Errorf(codes.InvalidArgument, "port: %d is none", port)
		}
	}
	p, err := s.Engine.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if !p.Ready {
		return nil, status.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready", p.ID)
	}
	url, err := s.Streams.PortForward(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}
