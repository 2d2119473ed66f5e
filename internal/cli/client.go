package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	enginev1 "github.com/cri-engine/cri-engine/api/engine/v1"
)

// maxMessage bounds what a runtime may send in one answer. The kubelet takes
// 16 MiB; a list that a kubelet can't read is one that a person wants to see.
const maxMessage = 64 << 20

// client is a connection to a runtime. Safe for use by several goroutines.
type client struct {
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	image   runtimeapi.ImageServiceClient
	engine  enginev1.EngineClient
}

// dial connects to the runtime at an endpoint. Every call on the connection ends after timeout,
// unless that is 0 or the call has a context made by [unlimited].
func dial(ctx context.Context, endpoint string, timeout time.Duration) (*client, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return nil, err
	}
	// gRPC would try again and again and then tell of names and addresses. One
	// attempt of our own says plainly what is wrong with the socket.
	var dialer net.Dialer
	probe, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, unreachable(path, err)
	}
	_ = probe.Close()
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithUnaryInterceptor(plainErrors(timeout)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return &client{
		conn:    conn,
		runtime: runtimeapi.NewRuntimeServiceClient(conn),
		image:   runtimeapi.NewImageServiceClient(conn),
		engine:  enginev1.NewEngineClient(conn),
	}, nil
}

func (c *client) close() {
	_ = c.conn.Close() // fails only when closed already
}

// socketPath returns the path in an endpoint, "unix:///PATH" or "/PATH".
func socketPath(endpoint string) (string, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if path == endpoint && strings.HasPrefix(endpoint, "unix:/") {
		path = strings.TrimPrefix(endpoint, "unix:")
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("--endpoint %q: want unix:///PATH or /PATH", endpoint)
	}
	return filepath.Clean(path), nil
}

// unreachable says why nobody answers at a socket, and who can help.
func unreachable(path string, err error) error {
	var reason string
	switch {
	case errors.Is(err, fs.ErrNotExist):
		reason = "there is no such socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		reason = "nobody listens on it"
	case errors.Is(err, fs.ErrPermission):
		reason = "no permission: are you root?"
	default:
		return fmt.Errorf("connect to %s: %w", path, err)
	}
	return fmt.Errorf("no runtime answers at %s: %s (`cri-engine doctor` looks for the cause)", path, reason)
}

// rpcError is what a runtime answered instead of a result.
type rpcError struct {
	code    codes.Code
	message string
}

func (e *rpcError) Error() string { return e.message }

// Is makes errors.Is find a call that the caller ended.
func (e *rpcError) Is(target error) bool {
	return target == context.Canceled && e.code == codes.Canceled
}

// hasCode tells whether err is an answer of a runtime with this code.
func hasCode(err error, code codes.Code) bool {
	var e *rpcError
	return errors.As(err, &e) && e.code == code
}

type unlimitedKey struct{}

// unlimited returns a context whose calls have no time limit of their own.
func unlimited(ctx context.Context) context.Context {
	return context.WithValue(ctx, unlimitedKey{}, true)
}

// plainErrors limits calls in time and turns gRPC's errors into [rpcError].
func plainErrors(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		limited, began := ctx, time.Now()
		if timeout > 0 && ctx.Value(unlimitedKey{}) == nil {
			var cancel context.CancelFunc
			limited, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		err := invoke(limited, method, req, reply, cc, opts...)
		if err == nil {
			return nil
		}
		e := plainError(err)
		// How the end of a context looks depends on which side saw it first: the
		// runtime is told the deadline and may be a moment ahead.
		late := limited.Err() != nil || limited != ctx && time.Since(began) > timeout*9/10
		switch {
		case ctx.Err() != nil:
			return &rpcError{status.FromContextError(ctx.Err()).Code(), ctx.Err().Error()}
		case late && (e.code == codes.DeadlineExceeded || e.code == codes.Canceled):
			return &rpcError{codes.DeadlineExceeded, fmt.Sprintf("no answer within %s (--timeout)", timeout)}
		}
		return e
	}
}

// plainError makes an rpcError of what gRPC returned.
func plainError(err error) *rpcError {
	s := status.Convert(err)
	e := &rpcError{code: s.Code(), message: s.Message()}
	switch {
	case e.message == "":
		e.message = e.code.String()
	case e.code == codes.Unimplemented:
		e.message = "this runtime does not support it: " + e.message
	}
	return e
}
