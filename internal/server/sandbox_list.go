package server

import (
	"context"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListPodSandbox lists the pods that the filter lets through, the newest first,
// from memory. The filter's id may be the start of one.
func (s *runtimeService) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	resp := &runtimeapi.ListPodSandboxResponse{}
	f := r.GetFilter()
	for _, p := range s.Engine.Pods() {
		state := podState(p)
		if !strings.HasPrefix(p.ID, f.GetId()) || !selects(f.GetLabelSelector(), p.Config.GetLabels()) {
			continue
		}
		if f.GetState() != nil && f.GetState().GetState() != state {
			continue
		}
		resp.Items = append(resp.Items, &runtimeapi.PodSandbox{
			Id:             p.ID,
			Metadata:       p.Config.GetMetadata(),
			State:          state,
			CreatedAt:      nanos(p.CreatedAt),
			Labels:         p.Config.GetLabels(),
			Annotations:    p.Config.GetAnnotations(),
			RuntimeHandler: p.Handler,
		})
	}
	return resp, nil
}

// selects tells whether the labels have all that the selector asks for.
func selects(selector, labels map[string]string) bool {
	for k, want := range selector {
		if have, ok := labels[k]; !ok || have != want {
			return false
		}
	}
	return true
}
