package server

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/cri-engine/cri-engine/internal/apparmor"
	"github.com/cri-engine/cri-engine/internal/cdi"
	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/nri"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// maxErrorText bounds a message: parts of it may come from a registry, a
// plugin or a runtime, and it travels in a header.
const maxErrorText = 8 << 10

// classes are kinds of errors with their code, the first that fits. Pull errors
// that the kubelet must tell apart have the code Unknown and a constant first in
// their message: its client drops that code and compares the text.
var classes = []struct {
	is     error
	code   codes.Code
	prefix string
}{
	{storage.ErrSignatureValidation, codes.Unknown, crierrors.ErrSignatureValidationFailed.Error()},
	{storage.ErrRegistryUnavailable, codes.Unknown, crierrors.ErrRegistryUnavailable.Error()},
	{storage.ErrUnauthorized, codes.PermissionDenied, ""},
	{sandbox.ErrInvalid, codes.InvalidArgument, ""},
	{cdi.ErrInvalid, codes.InvalidArgument, ""},
	{cni.ErrInvalid, codes.InvalidArgument, ""},
	{storage.ErrInvalidReference, codes.InvalidArgument, ""},
	{sandbox.ErrExists, codes.AlreadyExists, ""},
	{sandbox.ErrPrecondition, codes.FailedPrecondition, ""},
	{oci.ErrNotShared, codes.FailedPrecondition, ""},
	{storage.ErrInUse, codes.FailedPrecondition, ""},
	{apparmor.ErrNoDefault, codes.FailedPrecondition, ""},
	{apparmor.ErrNotLoaded, codes.FailedPrecondition, ""},
	{storage.ErrNoSpace, codes.ResourceExhausted, ""},
	{syscall.ENOSPC, codes.ResourceExhausted, ""},
	{syscall.EDQUOT, codes.ResourceExhausted, ""},
	{syscall.EMFILE, codes.ResourceExhausted, ""},
	{sandbox.ErrSlow, codes.ResourceExhausted, ""},
	{sandbox.ErrEnded, codes.Unavailable, ""},
	{nri.ErrRefused, codes.FailedPrecondition, ""},
	{sandbox.ErrNotFound, codes.NotFound, ""},
	{storage.ErrNotFound, codes.NotFound, ""},
	{monitor.ErrNotFound, codes.NotFound, ""},
	{sandbox.ErrNotReady, codes.Unavailable, ""},
	{cni.ErrNotReady, codes.Unavailable, ""},
	{monitor.ErrReplaced, codes.Unavailable, ""},
	{monitor.ErrClosed, codes.Unavailable, ""},
	{monitor.ErrState, codes.FailedPrecondition, ""},
	{errors.ErrUnsupported, codes.Unimplemented, ""},
	{context.DeadlineExceeded, codes.DeadlineExceeded, ""},
	{context.Canceled, codes.Canceled, ""},
}

// toStatus gives an error its gRPC code and a message fit to be sent.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return s.GRPCStatus().Err()
	}
	var invalid *oci.InvalidError
	if errors.As(err, &invalid) {
		return status.Error(codes.InvalidArgument, mountPrefix(err)+errorText(err))
	}
	for _, c := range classes {
		if !errors.Is(err, c.is) {
			continue
		}
		text := mountPrefix(err) + errorText(err)
		if c.prefix != "" {
			text = c.prefix + ": " + text
		}
		return status.Error(c.code, text)
	}
	return status.Error(codes.Unknown, mountPrefix(err)+errorText(err))
}

// mountPrefix is the constant that CRI has for a mount that could not be made,
// beside the code that says why.
func mountPrefix(err error) string {
	switch {
	case errors.Is(err, oci.ErrImageVolume):
		return crierrors.ErrImageVolumeMountFailed.Error() + ": "
	case errors.Is(err, oci.ErrRecursiveReadOnly):
		return crierrors.ErrRROUnsupported.Error() + ": "
	}
	return ""
}

// errorText is the error on one line, as valid UTF-8, of bounded length.
func errorText(err error) string {
	text := err.Error()
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "…"
	}
	text = strings.ToValidUTF8(text, "\ufffd")
	return strings.Map(func(r rune) rune {
		if r == '\t' || r >= ' ' && r != 0x7f {
			return r
		}
		return ' '
	}, strings.ReplaceAll(strings.TrimSpace(text), "\n", "; "))
}
