package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/storage"
)

func TestToStatus(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("start container 3f: %w", err) }
	cases := []struct {
		name string
		err  error
		code codes.Code
		text string // the message's start
	}{
		{"an unknown pod", sandbox.ErrNotFound, codes.NotFound, "start container 3f: "},
		{"an unknown image", storage.ErrNotFound, codes.NotFound, "start container 3f: "},
		{"a process that is gone", monitor.ErrNotFound, codes.NotFound, "start container 3f: "},
		{"a name that is taken", sandbox.ErrExists, codes.AlreadyExists, "start container 3f: "},
		{"a state that does not allow it", sandbox.ErrPrecondition, codes.FailedPrecondition, "start container 3f: "},
		{"a request that is wrong", sandbox.ErrInvalid, codes.InvalidArgument, "start container 3f: "},
		{"a field that is wrong", &oci.InvalidError{Field: "config.mounts", Reason: "r"}, codes.InvalidArgument, "start container 3f: config.mounts: r"},
		{"a port that is wrong", cni.ErrInvalid, codes.InvalidArgument, "start container 3f: "},
		{"an image's name that is wrong", storage.ErrInvalidReference, codes.InvalidArgument, "start container 3f: "},
		{"a part that is not ready", sandbox.ErrNotReady, codes.Unavailable, "start container 3f: "},
		{"a network that is not ready", cni.ErrNotReady, codes.Unavailable, "start container 3f: "},
		{"a monitor that was replaced", monitor.ErrReplaced, codes.Unavailable, "start container 3f: "},
		{"a monitor that is stopping", monitor.ErrClosed, codes.Unavailable, "start container 3f: "},
		{"a process in another state", monitor.ErrState, codes.FailedPrecondition, "start container 3f: "},
		{"a full disk", syscall.ENOSPC, codes.ResourceExhausted, "start container 3f: "},
		{"a full store", storage.ErrNoSpace, codes.ResourceExhausted, "start container 3f: "},
		{"an image in use", storage.ErrInUse, codes.FailedPrecondition, "start container 3f: "},
		{"a registry that refuses", storage.ErrUnauthorized, codes.PermissionDenied, "start container 3f: "},
		{"a registry that is down", storage.ErrRegistryUnavailable, codes.Unknown, "RegistryUnavailable: start container 3f: "},
		{"a registry that is down for so long that the call ended", errors.Join(storage.ErrRegistryUnavailable, context.DeadlineExceeded), codes.Unknown, "RegistryUnavailable: "},
		{"a signature that is wrong", storage.ErrSignatureValidation, codes.Unknown, "SignatureValidationFailed: start container 3f: "},
		{"a call that took too long", context.DeadlineExceeded, codes.DeadlineExceeded, "start container 3f: "},
		{"a caller who gave up", context.Canceled, codes.Canceled, "start container 3f: "},
		{"what a kernel cannot do", errors.ErrUnsupported, codes.Unimplemented, "start container 3f: "},
		{"anything else", errors.New("odd"), codes.Unknown, "start container 3f: odd"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s, ok := status.FromError(toStatus(wrap(c.err)))
			if !ok || s.Code() != c.code || !strings.HasPrefix(s.Message(), c.text) {
				t.Errorf("got %v %q, want %v %q", s.Code(), s.Message(), c.code, c.text)
			}
		})
	}
	t.Run("no error", func(t *testing.T) {
		if err := toStatus(nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("a status stays what it is", func(t *testing.T) {
		err := status.Error(codes.Aborted, "x")
		if s, _ := status.FromError(toStatus(err)); s.Code() != codes.Aborted || s.Message() != "x" {
			t.Errorf("got %v", s)
		}
	})
}

func TestErrorText(t *testing.T) {
	hostile := errors.New("a\nb\x00\x1b[31mc\xff" + strings.Repeat("ä", maxErrorText))
	text := errorText(hostile)
	if !utf8.ValidString(text) || len(text) > maxErrorText+16 || strings.ContainsAny(text, "\n\x00\x1b") {
		t.Errorf("got %d bytes: %q…", len(text), text[:40])
	}
	if !strings.HasPrefix(text, "a; b  [31mc") {
		t.Errorf("got %q…", text[:40])
	}
}
