package monitor

import "errors"

// Errors that the client's calls return wrapped; errors.Is finds them.
var (
	// ErrNotFound: the monitor has no process of that name, or it has ended.
	ErrNotFound = errors.New("not found in the monitor")
	// ErrExists: the monitor already has a process of that name.
	ErrExists = errors.New("already in the monitor")
	// ErrReplaced: the pump was replaced during a call that is not safe to repeat.
	// Nobody knows how far it got: clean up with Delete.
	ErrReplaced = errors.New("the monitor was replaced during the call")
	// ErrInvalid: the request is wrong, whatever the state.
	ErrInvalid = errors.New("invalid request to the monitor")
	// ErrState: the process's state does not allow the call.
	ErrState = errors.New("the process's state does not allow this")
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("the monitor's client is closed")
	// ErrVersion: client and monitor are more than one version apart.
	ErrVersion = errors.New("no protocol version in common with the monitor")
)

// codes are the sentinels' names on the wire, both ways.
var codes = map[string]error{
	"not_found": ErrNotFound,
	"exists":    ErrExists,
	"replaced":  ErrReplaced,
	"invalid":   ErrInvalid,
	"state":     ErrState,
	"version":   ErrVersion,
	"again":     errAgain,
}

// wireError is an error as the protocol carries it.
type wireError struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
}

func toWire(err error) *wireError {
	w := &wireError{Message: err.Error()}
	for code, sentinel := range codes {
		if errors.Is(err, sentinel) {
			w.Code = code
		}
	}
	return w
}

// Error and Unwrap make the received error read, and be found, like the sent one.
func (w *wireError) Error() string { return w.Message }

func (w *wireError) Unwrap() error { return codes[w.Code] }
