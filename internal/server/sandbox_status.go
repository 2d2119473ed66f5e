package server

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

// PodSandboxStatus is all that is known of one pod and its containers, from memory.
func (s *runtimeService) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	// The time comes first: what changes after it shows in a later answer.
	resp := &runtimeapi.PodSandboxStatusResponse{Timestamp: time.Now().UnixNano()}
	pod, err := s.Engine.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp.Status = podStatus(pod)
	for _, c := range s.Engine.ContainersOf(pod.ID) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, s.containerStatus(c))
	}
	if r.GetVerbose() {
		resp.Info, err = podInfo(pod)
	}
	return resp, err
}

func podStatus(p *sandbox.Pod) *runtimeapi.PodSandboxStatus {
	options := p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if options == nil {
		options = &runtimeapi.NamespaceOption{}
	}
	return &runtimeapi.PodSandboxStatus{
		Id:             p.ID,
		Metadata:       p.Config.GetMetadata(),
		State:          podState(p),
		CreatedAt:      nanos(p.CreatedAt),
		Network:        podNetwork(p),
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: options}},
		Labels:         p.Config.GetLabels(),
		Annotations:    p.Config.GetAnnotations(),
		RuntimeHandler: p.Handler,
	}
}

func podState(p *sandbox.Pod) runtimeapi.PodSandboxState {
	if p.Ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// podNetwork is never nil: a kubelet takes its absence for a mistake. A pod on
// the host's network, and one whose network was given back, has no address.
func podNetwork(p *sandbox.Pod) *runtimeapi.PodSandboxNetworkStatus {
	network := &runtimeapi.PodSandboxNetworkStatus{}
	for i, ip := range p.IPs {
		if i == 0 {
			network.Ip = ip.String()
			continue
		}
		network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return network
}

func podInfo(p *sandbox.Pod) (map[string]string, error) {
	config, err := protoJSON(p.Config)
	if err != nil {
		return nil, err
	}
	info := map[string]any{
		"pid":              p.InitPid,
		"networkNamespace": p.NetNS,
		"config":           config,
	}
	for k, v := range p.Info {
		info[k] = v
	}
	return infoJSON(map[string]any{"info": info})
}
