package server

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// slowAfter is when a call that is still under way is logged, so that one that
// hangs can be seen. Calls that may take long by their nature are not in it.
const slowAfter = 10 * time.Second

// unhurried calls take as long as what they wait for.
var unhurried = map[string]bool{"PullImage": true, "StopContainer": true, "ExecSync": true}

// unary runs one call: see the package comment.
func unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	c := begin(info.FullMethod, req)
	defer func() { err = c.end(recover(), err) }()
	if m, ok := req.(proto.Message); ok {
		if err := checkBounds(m); err != nil {
			return nil, err
		}
	}
	return handler(ctx, req)
}

// stream runs one call that streams its answers.
func stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	c := begin(info.FullMethod, nil)
	c.slow.Stop()
	defer func() { err = c.end(recover(), err) }()
	return handler(srv, boundedStream{ss})
}

// boundedStream refuses requests that unary would refuse.
type boundedStream struct{ grpc.ServerStream }

func (b boundedStream) RecvMsg(m any) error {
	if err := b.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if m, ok := m.(proto.Message); ok {
		return checkBounds(m)
	}
	return nil
}

// rpc is one call under way.
type rpc struct {
	name   string
	object []any // key and value, for the log
	start  time.Time
	slow   *time.Timer
}

func begin(method string, req any) *rpc {
	c := &rpc{name: path.Base(method), object: objectOf(req), start: time.Now()}
	c.slow = time.AfterFunc(slowAfter, func() {
		if !unhurried[c.name] {
			klog.InfoS("Call is still under way", append([]any{"rpc", c.name, "after", slowAfter}, c.object...)...)
		}
	})
	return c
}

// end translates the call's error, or the panic it ended in, and logs it.
func (c *rpc) end(panicked any, err error) error {
	c.slow.Stop()
	if panicked != nil {
		klog.ErrorS(fmt.Errorf("panic: %v", panicked), "Call panicked", "rpc", c.name, "stack", string(debug.Stack()))
		err = status.Errorf(codes.Internal, "%s: internal error, see the engine's log", c.name)
	}
	err = toStatus(err)
	fields := append([]any{"rpc", c.name, "took", time.Since(c.start).Round(time.Microsecond)}, c.object...)
	if err == nil {
		klog.V(c.verbosity()).InfoS("Call", fields...)
		return nil
	}
	s, _ := status.FromError(err)
	fields = append(fields, "code", s.Code().String(), "err", s.Message())
	switch s.Code() {
	case codes.Unknown, codes.Internal, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Unavailable:
		klog.InfoS("Call failed", fields...)
	case codes.Canceled:
		klog.V(4).InfoS("Call was given up", fields...)
	default: // the caller's doing
		klog.V(2).InfoS("Call failed", fields...)
	}
	return err
}

// verbosity of a call that did what it should: those that change something are
// rare and interesting, those that look come every second.
func (c *rpc) verbosity() klog.Level {
	for _, verb := range []string{"Run", "Create", "Start", "Stop", "Remove", "Pull", "Update", "Reopen"} {
		if strings.HasPrefix(c.name, verb) && c.name != "RuntimeConfig" {
			return 2
		}
	}
	return 4
}

// objectOf says what a request is about. Nothing else of it is ever logged.
func objectOf(req any) []any {
	var object []any
	add := func(key, value string) {
		if value != "" {
			object = append(object, key, shorten(value, 256))
		}
	}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		add("pod", r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		add("container", r.GetContainerId())
	}
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		add("name", m.GetNamespace()+"/"+m.GetName())
	case *runtimeapi.CreateContainerRequest:
		add("name", r.GetConfig().GetMetadata().GetName())
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		add("image", r.GetImage().GetImage())
	}
	return object
}

func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
