package oci

import (
	"errors"
	"fmt"
	"strings"
)

// What errors about mounts wrap, beside their cause where they have one.
var (
	// ErrRecursiveReadOnly: the OCI runtime or the kernel cannot make it recursively read-only.
	ErrRecursiveReadOnly = errors.New("no recursive read-only mounts")
	// ErrImageVolume: the image that it names, or the path in that, could not be mounted.
	ErrImageVolume = errors.New("image volume")
	// ErrNotShared: the mount that a host path is on propagates nothing. CRI has no constant for it.
	ErrNotShared = errors.New("not a shared mount")
)

// InvalidError is a request's fault.
type InvalidError struct {
	Field  string // path in the CRI message, such as "config.linux.security_context.run_as_user"
	Value  string
	Reason string
}

// Error names field, value and reason.
func (e *InvalidError) Error() string {
	if e.Value == "" {
		return e.Field + ": " + e.Reason
	}
	return e.Field + " " + quote(e.Value) + ": " + e.Reason
}

func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return `"` + s + `"`
}

func invalid(field, value, reason string, args ...any) error {
	return &InvalidError{Field: field, Value: value, Reason: fmt.Sprintf(reason, args...)}
}

// unsupported is for what was asked rightly and cannot be done here; it says
// what of the kernel, the OCI runtime or the engine is missing.
func unsupported(field, reason string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(reason, args...), errors.ErrUnsupported)
}

// checkText refuses what would end a C string early.
func checkText(field, s string) error {
	if strings.ContainsRune(s, 0) {
		return invalid(field, "", "contains a NUL byte")
	}
	return nil
}
