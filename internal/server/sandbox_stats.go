package server

import (
	"context"
	"errors"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"google.golang.org/grpc"

	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/stats"
)

// PodSandboxStats reads what one pod uses. One that is not ready uses nothing.
func (s *runtimeService) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	p, err := s.Engine.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := read(ctx, &s.readings, "pod "+p.ID, func() (*runtimeapi.PodSandboxStats, error) { return s.podStats(p) })
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats reads what the pods use that the filter lets through. A pod
// whose figures are not to be had is in the list without them.
func (s *runtimeService) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := r.GetFilter()
	var pods []*sandbox.Pod
	for _, p := range s.Engine.Pods() {
		if strings.HasPrefix(p.ID, f.GetId()) && selects(f.GetLabelSelector(), p.Config.GetLabels()) {
			pods = append(pods, p)
		}
	}
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for i, st := range gather(ctx, &s.readings, "pod ", pods, func(p *sandbox.Pod) string { return p.ID }, s.podStats) {
		if st.err != nil {
			klog.V(2).InfoS("Pod is without figures in the stats", "pod", pods[i].ID, "err", st.err)
			st.value = emptyPodStats(pods[i])
		}
		resp.Stats = append(resp.Stats, st.value)
	}
	return resp, ctx.Err()
}

// StreamPodSandboxStats is ListPodSandboxStats in pieces.
func (s *runtimeService) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	list, err := s.ListPodSandboxStats(out.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return sendChunks(out.Context(), list.GetStats(), func(chunk []*runtimeapi.PodSandboxStats) error {
		return out.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: chunk})
	})
}

// emptyPodStats has Linux, without which the kubelet's client fails.
func emptyPodStats(p *sandbox.Pod) *runtimeapi.PodSandboxStats {
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: p.ID, Metadata: p.Config.GetMetadata(), Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(),
		},
		Linux: &runtimeapi.LinuxPodSandboxStats{},
	}
}

// podStats has what could be read: a pod, or part of it, may end meanwhile.
func (s *Server) podStats(p *sandbox.Pod) (*runtimeapi.PodSandboxStats, error) {
	st := emptyPodStats(p)
	if !p.Ready {
		return st, nil
	}
	if err := s.setPodCgroup(st.Linux, p); err != nil {
		klog.V(4).InfoS("Pod's cgroup can't be read", "pod", p.ID, "err", err)
	}
	if network, err := s.podTraffic(p); err == nil {
		st.Linux.Network = network
	} else {
		klog.V(4).InfoS("Pod's interfaces can't be read", "pod", p.ID, "err", err)
	}
	for _, c := range s.Engine.ContainersOf(p.ID) {
		if c.Pid == 0 {
			continue
		}
		if cs, err := s.statsOf(c); err == nil {
			st.Linux.Containers = append(st.Linux.Containers, cs)
		}
	}
	return st, nil
}

// setPodCgroup: a pod in which nothing runs has no cgroup, and uses nothing.
func (s *Server) setPodCgroup(l *runtimeapi.LinuxPodSandboxStats, p *sandbox.Pod) error {
	c, processes, err := s.Stats.PodCgroup("pod "+p.ID, p.Cgroup)
	if errors.Is(err, stats.ErrGone) {
		c, err = stats.Cgroup{At: time.Now()}, nil
	}
	if err != nil {
		return err
	}
	var all runtimeapi.ContainerStats // has the same figures
	setCgroup(&all, c)
	l.Cpu, l.Memory, l.Io = all.Cpu, all.Memory, all.Io
	l.Process = &runtimeapi.ProcessUsage{Timestamp: nanos(c.At), ProcessCount: number(processes)}
	return nil
}

// podTraffic is nil for a pod on the host's network: the traffic is not its own.
func (s *Server) podTraffic(p *sandbox.Pod) (*runtimeapi.NetworkUsage, error) {
	if p.NetNS == "" {
		return nil, nil
	}
	interfaces, err := s.Stats.Interfaces(p.NetNS)
	if err != nil {
		return nil, err
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, i := range interfaces {
		n := &runtimeapi.NetworkInterfaceUsage{
			Name: i.Name, RxBytes: number(i.RxBytes), RxErrors: number(i.RxErrors), TxBytes: number(i.TxBytes), TxErrors: number(i.TxErrors),
		}
		if i.Name == cni.IfName {
			usage.DefaultInterface = n
		} else {
			usage.Interfaces = append(usage.Interfaces, n)
		}
	}
	return usage, nil
}
