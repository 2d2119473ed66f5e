package sandbox

import "errors"

// Kinds of errors that the engine returns itself, found with errors.Is. Those of
// oci, monitor, storage and cni come through wrapped, with their own sentinels.
var (
	// ErrNotFound: no pod or container has this id.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken by another pod or container, whose configuration differs.
	ErrExists = errors.New("already exists")
	// ErrPrecondition: the object's state does not allow the call.
	ErrPrecondition = errors.New("failed precondition")
	// ErrInvalid: the request is wrong, whatever the state.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotReady: the engine has not finished its start, or a part it needs does not work.
	ErrNotReady = errors.New("unavailable")
)
