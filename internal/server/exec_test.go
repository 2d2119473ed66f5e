package server

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

func TestStreamsAreForContainersThatRunOrWillBeStarted(t *testing.T) {
	s := &Server{Options: Options{Engine: &fake{containers: []*sandbox.Container{
		{ID: "aa", State: runtimeapi.ContainerState_CONTAINER_CREATED},
		{ID: "bb", State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		{ID: "cc", State: runtimeapi.ContainerState_CONTAINER_EXITED},
	}}}}
	for _, c := range []struct {
		name string
		r    streamsRequest
		code codes.Code
	}{
		{"attach before the start", &runtimeapi.AttachRequest{ContainerId: "aa", Stdin: true}, codes.OK},
		{"attach", &runtimeapi.AttachRequest{ContainerId: "bb", Stdout: true}, codes.OK},
		{"attach after the end", &runtimeapi.AttachRequest{ContainerId: "cc", Stdout: true}, codes.FailedPrecondition},
		{"exec before the start", &runtimeapi.ExecRequest{ContainerId: "aa", Stdout: true}, codes.FailedPrecondition},
		{"exec", &runtimeapi.ExecRequest{ContainerId: "bb", Stdout: true}, codes.OK},
		{"no stream", &runtimeapi.AttachRequest{ContainerId: "bb"}, codes.InvalidArgument},
		{"a terminal with stderr", &runtimeapi.AttachRequest{ContainerId: "bb", Stderr: true, Tty: true}, codes.InvalidArgument},
	} {
		if got := status.Code(s.checkStreams(c.r)); got != c.code {
			t.Errorf("%s: code %v, want %v", c.name, got, c.code)
		}
	}
}
