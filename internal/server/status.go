package server

import (
	"context"
	"runtime"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/oci"
)

// monitorTime is how long the monitor may take to answer before the runtime
// counts as not ready.
const monitorTime = 2 * time.Second

// Status says whether containers can run and get a network, and what the
// handlers can do.
func (s *runtimeService) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	mctx, cancel := context.WithTimeout(ctx, monitorTime)
	defer cancel()
	monitor, err := s.Engine.MonitorStatus(mctx)
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "MonitorNotReady", err),
			condition(runtimeapi.NetworkReady, "NetworkNotReady", s.Networks.Ready()),
		}},
		RuntimeHandlers: s.runtimeHandlers(),
		Features: &runtimeapi.RuntimeFeatures{
			SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: s.hasUserNamespaces(),
		},
	}
	if !r.GetVerbose() {
		return resp, nil
	}
	info := map[string]any{
		"config":   s.Config,
		"monitor":  monitor,
		"versions": s.versions(),
	}
	if s.Info != nil {
		for k, v := range s.Info() {
			info[k] = v
		}
	}
	resp.Info, err = infoJSON(info)
	return resp, err
}

// condition is one of the two that a kubelet asks for.
func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	if err != nil {
		return &runtimeapi.RuntimeCondition{Type: kind, Reason: reason, Message: errorText(err)}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
}

// runtimeHandlers lists the handlers, first the default under the empty name.
func (s *Server) runtimeHandlers() []*runtimeapi.RuntimeHandler {
	var list []*runtimeapi.RuntimeHandler
	for _, h := range s.Engine.Handlers() {
		if h.Name == s.Config.Runtime.DefaultHandler {
			list = append(list, runtimeHandler("", h))
		}
	}
	for _, h := range s.Engine.Handlers() {
		list = append(list, runtimeHandler(h.Name, h))
	}
	return list
}

func runtimeHandler(name string, h *oci.Handler) *runtimeapi.RuntimeHandler {
	return &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
		RecursiveReadOnlyMounts: h.RecursiveReadOnlyMounts,
		UserNamespaces:          h.NoUserNamespaces == "",
	}}
}

// hasUserNamespaces tells whether any handler can give pods one: then also to those on the host's network.
func (s *Server) hasUserNamespaces() bool {
	return slices.ContainsFunc(s.Engine.Handlers(), func(h *oci.Handler) bool { return h.NoUserNamespaces == "" })
}

func (s *Server) versions() map[string]string {
	v := map[string]string{runtimeName: s.Options.Version, "go": runtime.Version(), "cri": criVersion}
	for _, h := range s.Engine.Handlers() {
		v["handler "+h.Name] = h.Binary + ": " + h.Version
	}
	return v
}

// hasHandler tells whether pods can name the handler; "" is the default.
func (s *Server) hasHandler(name string) bool {
	if name == "" {
		return true
	}
	for _, h := range s.Engine.Handlers() {
		if h.Name == name {
			return true
		}
	}
	return false
}
