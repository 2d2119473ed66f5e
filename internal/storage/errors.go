package storage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"

	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/signature"
	"go.podman.io/storage"
)

// Kinds of errors, found with errors.Is. Their texts name the reference, the
// step and the cause.
var (
	// ErrNotFound: the store has no such image or root filesystem, or the
	// registry has no such image for this platform.
	ErrNotFound = errors.New("not found")
	// ErrInvalidReference: what was sent is no image name, or a short name that
	// registries.conf does not allow.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrUnauthorized: the registry wants other credentials.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrRegistryUnavailable: the registry does not answer, or says that it
	// can't. Trying again later may help.
	ErrRegistryUnavailable = errors.New("registry unavailable")
	// ErrSignatureValidation: the policy does not let the image in.
	ErrSignatureValidation = errors.New("signature validation failed")
	// ErrNoSpace: the disk or a quota is full.
	ErrNoSpace = errors.New("no space left")
	// ErrInUse: something else holds it, a mount for example.
	ErrInUse = errors.New("in use")
)

// kindError gives an error a kind and a text that is fit to be shown.
type kindError struct {
	kind  error // nil for none
	cause error
	text  string
}

func (e *kindError) Error() string { return e.text }

func (e *kindError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.cause}
	}
	return []error{e.kind, e.cause}
}

// withKind adds a kind to an error that was made here.
func withKind(kind, err error) error { return &kindError{kind: kind, cause: err, text: err.Error()} }

// opError says what was done to which object, classifies the cause, and strips
// its text of secrets: the libraries below put URLs into theirs.
func opError(op, object, step string, cause error, secrets ...string) error {
	text := fmt.Sprintf("%s %s: %s: %s", op, object, step, cause)
	return &kindError{kind: kindOf(cause), cause: cause, text: redact(text, secrets)}
}

// kindOf finds the kind of an error of the libraries below, nil if it has none
// or was given one already.
func kindOf(err error) error {
	for _, kind := range []error{ErrNotFound, ErrInvalidReference, ErrUnauthorized, ErrRegistryUnavailable, ErrSignatureValidation, ErrNoSpace, ErrInUse} {
		if errors.Is(err, kind) {
			return nil
		}
	}
	switch {
	case isAny(err, syscall.ENOSPC, syscall.EDQUOT) || isNoSpaceText(err):
		return ErrNoSpace
	case isAny(err, syscall.EBUSY):
		return ErrInUse
	case isAny(err, storage.ErrImageUnknown, storage.ErrContainerUnknown):
		return ErrNotFound
	case isAny(err, context.Canceled, context.DeadlineExceeded):
		return nil
	case isPolicyError(err):
		return ErrSignatureValidation
	}
	if status := statusOf(err); status != 0 {
		return kindOfStatus(status)
	}
	if isNetworkError(err) {
		return ErrRegistryUnavailable
	}
	return nil
}

func isAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// isNoSpaceText: layers are unpacked by a process of their own, which can only
// say in words what went wrong.
func isNoSpaceText(err error) bool {
	text := err.Error()
	return strings.Contains(text, syscall.ENOSPC.Error()) || strings.Contains(text, syscall.EDQUOT.Error())
}

func isPolicyError(err error) bool {
	if _, ok := errors.AsType[signature.PolicyRequirementError](err); ok {
		return true
	}
	_, ok := errors.AsType[signature.InvalidSignatureError](err)
	return ok
}

func kindOfStatus(status int) error {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return ErrUnauthorized
	case status == http.StatusNotFound:
		return ErrNotFound
	case status == http.StatusTooManyRequests || status >= 500:
		return ErrRegistryUnavailable
	}
	return nil
}

// statusText is how the docker transport writes an answer whose body it did
// not understand; the error's type is not exported.
var statusText = regexp.MustCompile(`StatusCode: ([1-5][0-9][0-9])\b`)

// statusOf is the HTTP status that a registry answered with, 0 if the error is
// about something else.
func statusOf(err error) int {
	if _, ok := errors.AsType[docker.ErrUnauthorizedForCredentials](err); ok {
		return http.StatusUnauthorized
	}
	if errors.Is(err, docker.ErrTooManyRequests) {
		return http.StatusTooManyRequests
	}
	if e, ok := errors.AsType[docker.UnexpectedHTTPStatusError](err); ok {
		return e.StatusCode
	}
	var coded errcode.ErrorCoder
	if errors.As(err, &coded) {
		return statusOfCode(coded.ErrorCode(), err.Error())
	}
	if m := statusText.FindStringSubmatch(err.Error()); m != nil {
		var status int
		_, _ = fmt.Sscan(m[1], &status) // three digits
		return status
	}
	return 0
}

func statusOfCode(code errcode.ErrorCode, text string) int {
	switch code {
	case v2.ErrorCodeManifestUnknown, v2.ErrorCodeNameUnknown, v2.ErrorCodeBlobUnknown:
		return http.StatusNotFound
	case errcode.ErrorCodeUnknown:
		// Harbor and registry.redhat.io answer so where others say MANIFEST_UNKNOWN.
		if strings.Contains(strings.ToLower(text), "not found") {
			return http.StatusNotFound
		}
	}
	return code.Descriptor().HTTPStatusCode
}

func isNetworkError(err error) bool {
	if isAny(err, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ETIMEDOUT, syscall.EPIPE) {
		return true
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return true // no answer at all: TLS, DNS, proxies
	}
	_, ok := errors.AsType[net.Error](err)
	return ok
}

var (
	// What follows "?" in a URL may be a signed grant, as blob stores use them.
	urlQuery = regexp.MustCompile(`(https?://[^\s"'?]+)\?[^\s"']*`)
	urlUser  = regexp.MustCompile(`(https?://)[^\s"'/@]+@`)
)

// redact takes secrets out of a text: the given ones, and what URLs carry.
func redact(text string, secrets []string) string {
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	text = urlQuery.ReplaceAllString(text, "$1?***")
	return urlUser.ReplaceAllString(text, "$1***@")
}
