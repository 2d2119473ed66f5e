package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/stats"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// ContainerStats reads what one container uses. One that does not run uses
// disk only.
func (s *runtimeService) ContainerStats(_ context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.Engine.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.statsOf(c)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats reads what the running containers use that the filter lets
// through. One that ends meanwhile is left out.
func (s *runtimeService) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := r.GetFilter()
	var running []*sandbox.Container
	for _, c := range s.Engine.Containers() {
		if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			!strings.HasPrefix(c.ID, f.GetId()) || !strings.HasPrefix(c.PodID, f.GetPodSandboxId()) ||
			!selects(f.GetLabelSelector(), c.Config.GetLabels()) {
			continue
		}
		running = append(running, c)
	}
	resp := &runtimeapi.ListContainerStatsResponse{}
	for i, st := range gather(ctx, &s.readings, "container ", running, func(c *sandbox.Container) string { return c.ID }, s.statsOf) {
		if st.err != nil {
			klog.V(4).InfoS("Container is left out of the stats", "container", running[i].ID, "err", st.err)
			continue
		}
		resp.Stats = append(resp.Stats, st.value)
	}
	return resp, ctx.Err()
}

func (s *Server) statsOf(c *sandbox.Container) (*runtimeapi.ContainerStats, error) {
	st := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.ID, Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		},
	}
	if usage, err := s.Images.RootFSUsage(c.ID); err == nil {
		st.WritableLayer = fsUsage(usage)
	}
	if c.Pid == 0 {
		return st, nil
	}
	read, err := s.Stats.Read(c.ID, c.Pid)
	if err != nil {
		if now, gone := s.Engine.Container(c.ID); gone == nil && now.Pid != c.Pid {
			return s.statsOf(now) // it ended while it was read
		}
		return nil, fmt.Errorf("stats of container %s: %w", c.ID, err)
	}
	setCgroup(st, read)
	return st, nil
}

func setCgroup(st *runtimeapi.ContainerStats, read stats.Cgroup) {
	at := nanos(read.At)
	st.Cpu = &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: number(read.CPU.UsageNanos), Psi: psi(read.CPU.Pressure)}
	if read.CPU.NanoCores > 0 {
		st.Cpu.UsageNanoCores = number(read.CPU.NanoCores)
	}
	m := read.Memory
	st.Memory = &runtimeapi.MemoryUsage{
		Timestamp: at, WorkingSetBytes: number(m.WorkingSet), UsageBytes: number(m.Usage), RssBytes: number(m.RSS),
		PageFaults: number(m.PageFaults), MajorPageFaults: number(m.MajorPageFaults),
		Psi: psi(m.Pressure),
	}
	if m.Limit > 0 {
		st.Memory.AvailableBytes = number(m.Available)
	}
	if read.IO.Pressure != nil {
		st.Io = &runtimeapi.IoUsage{Timestamp: at, Psi: psi(read.IO.Pressure)}
	}
	st.Swap = &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: number(m.SwapUsage), SwapAvailableBytes: number(m.SwapAvailable)}
}

// psi is nil where the kernel does not tell.
func psi(p *stats.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	return &runtimeapi.PsiStats{Full: psiData(p.Full), Some: psiData(p.Some)}
}

func psiData(l stats.PressureLine) *runtimeapi.PsiData {
	return &runtimeapi.PsiData{Total: l.TotalNanos, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
}

func fsUsage(u storage.FsUsage) *runtimeapi.FilesystemUsage {
	at := u.At
	if at.IsZero() {
		at = time.Now() // CRI: must be > 0
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp:  nanos(at),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes:  number(u.UsedBytes),
		InodesUsed: number(u.InodesUsed),
	}
}

func number(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
