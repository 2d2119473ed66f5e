package server

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	enginev1 "github.com/cri-engine/cri-engine/api/engine/v1"
	"github.com/cri-engine/cri-engine/internal/config"
)

const (
	// maxMessage is the most a request may have: as much as the kubelet's and
	// crictl's clients take of an answer.
	maxMessage = 16 << 20
	// finishTime is how long calls under way may take to finish when the server
	// stops, undoTime how long those that are then cancelled may take to undo what they did. What
	// takes longer is found and undone by the next start.
	finishTime = 10 * time.Second
	undoTime   = 20 * time.Second
)

// Options are what a server answers with.
type Options struct {
	Engine   Engine
	Images   Images
	Networks Networks
	Stats    Stats
	Streams  Streams
	Config   config.Config
	// Version of the engine, by semver.org.
	Version string
	// Info has more of Status(verbose)'s info by key; each value becomes JSON. May be nil.
	Info func() map[string]any
}

// Server is the CRI service.
type Server struct {
	Options
	grpc *grpc.Server
	// readings of figures under way
	readings readings
	// stopping ends calls that have no end of their own.
	stopping context.Context
	stop     context.CancelFunc
}

// New makes a server that does not listen yet.
func New(o Options) *Server {
	s := &Server{Options: o}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(unary),
		grpc.ChainStreamInterceptor(stream),
		// Local clients may keep an idle connection as they like.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	runtimeapi.RegisterRuntimeServiceServer(s.grpc, &runtimeService{Server: s})
	runtimeapi.RegisterImageServiceServer(s.grpc, &imageService{Server: s})
	enginev1.RegisterEngineServer(s.grpc, &engineService{Server: s})
	return s
}

// The services are types of their own because their Unimplemented parts are:
// those answer "method X not implemented" for what CRI has and this server has not.
type (
	runtimeService struct {
		runtimeapi.UnimplementedRuntimeServiceServer
		*Server
	}
	imageService struct {
		runtimeapi.UnimplementedImageServiceServer
		*Server
	}
	engineService struct {
		enginev1.UnimplementedEngineServer
		*Server
	}
)

// Serve answers on the listener until [Server.Stop], and then returns nil. The
// socket of [Listen] is removed.
func (s *Server) Serve(l *Socket) error {
	if err := s.grpc.Serve(l); err != nil {
		return fmt.Errorf("serve CRI on %s: %w", l.path, err)
	}
	return nil
}

// Stop ends the server: no new calls, time for those under way to finish, then
// their cancellation. It returns when all handlers did, or when they had time enough.
func (s *Server) Stop() {
	s.stop()
	done := make(chan struct{})
	go func() { // ends with GracefulStop, which Stop below ends, or with the process
		defer close(done)
		s.grpc.GracefulStop()
	}()
	if wait(done, finishTime) {
		return
	}
	klog.InfoS("Calls under way are cancelled")
	go s.grpc.Stop() // waits for the handlers as well
	if !wait(done, undoTime) {
		klog.InfoS("Calls that do not end are left to the next start")
	}
}

func wait(done <-chan struct{}, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
