package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Exec checks the request and returns the URL at which a client connects to have it done.
func (s *runtimeService) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := s.checkStreams(r); err != nil {
		return nil, err
	}
	if err := checkCommand(r.GetCmd()); err != nil {
		return nil, err
	}
	url, err := s.Streams.Exec(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// streamsRequest is what Exec and Attach have in common.
type streamsRequest interface {
	GetContainerId() string
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

// checkStreams refuses what the proto forbids, and a container that does not run,
// before a client is sent on its way. Attaching to one that was not started yet
// waits for its start.
func (s *Server) checkStreams(r streamsRequest) error {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return err
	}
	switch {
	case r.GetTty() && r.GetStderr():
		return status.Error(codes.InvalidArgument, "stderr: with a tty all output is on stdout")
	case !r.GetStdin() && !r.GetStdout() && !r.GetStderr():
		return status.Error(codes.InvalidArgument, "stdin, stdout, stderr: one of them must be asked for")
	}
	c, err := s.Engine.Container(r.GetContainerId())
	if err != nil {
		return err
	}
	_, attach := r.(*runtimeapi.AttachRequest)
	if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING && !(attach && c.State == runtimeapi.ContainerState_CONTAINER_CREATED) {
		return status.Errorf(codes.FailedPrecondition, "container %s does not run: it is %s", c.ID, c.State)
	}
	return nil
}
