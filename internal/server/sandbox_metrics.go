package server

import (
	"context"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/stats"
)

// metric is one that is described and has a value for every container, or pod.
// Names and labels are cAdvisor's, which monitoring knows; a figure that the kernel
// does not have here is 0.
type metric[T any] struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string // after commonLabels
	values     func(T) []sample
}

// sample has a value for each of the metric's labels.
type sample struct {
	labels []string
	value  uint64
}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// commonLabels are every metric's, in the order of their values: the cgroup, the
// image, the id of the container or pod, and who they are in Kubernetes.
var commonLabels = []string{"id", "image", "name", "namespace", "pod", "container"}

// ListMetricDescriptors lists all metrics there are; the list never changes.
func (s *runtimeService) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{
		Descriptors: slices.Concat(describe(containerMetrics), describe(podMetrics)),
	}, nil
}

func describe[T any](metrics []metric[T]) []*runtimeapi.MetricDescriptor {
	var list []*runtimeapi.MetricDescriptor
	for _, m := range metrics {
		list = append(list, &runtimeapi.MetricDescriptor{
			Name: m.name, Help: m.help, LabelKeys: slices.Concat(commonLabels, m.labels),
		})
	}
	return list
}

// ListPodSandboxMetrics reads the metrics of all pods that are ready. Those of
// what ends meanwhile, or can't be read, are left out.
func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	pods := slices.DeleteFunc(slices.Clone(s.Engine.Pods()), func(p *sandbox.Pod) bool { return !p.Ready })
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	for i, m := range gather(ctx, &s.readings, "metrics ", pods, func(p *sandbox.Pod) string { return p.ID }, s.podMetrics) {
		if m.err != nil {
			klog.V(2).InfoS("Pod is left out of the metrics", "pod", pods[i].ID, "err", m.err)
			continue
		}
		resp.PodMetrics = append(resp.PodMetrics, m.value)
	}
	return resp, ctx.Err()
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in pieces.
func (s *runtimeService) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	list, err := s.ListPodSandboxMetrics(out.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		return err
	}
	return sendChunks(out.Context(), list.GetPodMetrics(), func(chunk []*runtimeapi.PodSandboxMetrics) error {
		return out.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: chunk})
	})
}

func (s *Server) podMetrics(p *sandbox.Pod) (*runtimeapi.PodSandboxMetrics, error) {
	m := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID}
	meta := p.Config.GetMetadata()
	if p.NetNS != "" { // else the traffic is not the pod's own
		if interfaces, err := s.Stats.Interfaces(p.NetNS); err == nil {
			m.Metrics = measure(podMetrics, interfaces, []string{p.Cgroup, "", p.ID, meta.GetNamespace(), meta.GetName(), ""})
		} else {
			klog.V(4).InfoS("Pod's interfaces can't be read", "pod", p.ID, "err", err)
		}
	}
	for _, c := range s.Engine.ContainersOf(p.ID) {
		if c.Pid == 0 {
			continue
		}
		d, err := s.Stats.Details(c.ID, c.Pid)
		if err != nil {
			klog.V(4).InfoS("Container is left out of the metrics", "container", c.ID, "err", err)
			continue
		}
		f := containerFigures{Details: d, started: c.StartedAt, disk: s.diskOf(c)}
		labels := []string{cgroupOf(p, c), imageSpec(c).GetImage(), c.ID, meta.GetNamespace(), meta.GetName(), c.Config.GetMetadata().GetName()}
		m.ContainerMetrics = append(m.ContainerMetrics, &runtimeapi.ContainerMetrics{
			ContainerId: c.ID, Metrics: measure(containerMetrics, f, labels),
		})
	}
	return m, nil
}

// cgroupOf is the path of a container's cgroup, as cAdvisor names containers.
// Under systemd "slice:prefix:name" is a scope.
func cgroupOf(p *sandbox.Pod, c *sandbox.Container) string {
	if parts := strings.Split(c.Cgroup, ":"); len(parts) == 3 {
		return path.Join(p.Cgroup, parts[1]+"-"+parts[2]+".scope")
	}
	return c.Cgroup
}

// measure takes all metrics of one thing. A time of 0 says that they are as of now.
func measure[T any](metrics []metric[T], of T, common []string) []*runtimeapi.Metric {
	var list []*runtimeapi.Metric
	for _, m := range metrics {
		for _, v := range m.values(of) {
			list = append(list, &runtimeapi.Metric{
				Name: m.name, MetricType: m.kind, LabelValues: slices.Concat(common, v.labels), Value: number(v.value),
			})
		}
	}
	return list
}

// containerFigures are what a container's metrics are made of.
type containerFigures struct {
	stats.Details
	started time.Time
	disk    disk
}

// plain is a metric of one figure.
func plain(name, help string, kind runtimeapi.MetricType, of func(containerFigures) uint64) metric[containerFigures] {
	return metric[containerFigures]{name: name, help: help, kind: kind, values: func(f containerFigures) []sample {
		return []sample{{value: of(f)}}
	}}
}

// wholeSeconds of nanoseconds: the values are whole numbers.
func wholeSeconds(nanos uint64) uint64 { return nanos / uint64(time.Second) }

var containerMetrics = slices.Concat(cpuMetrics, memoryMetrics, diskMetrics, processMetrics, specMetrics, pressureMetrics)

var cpuMetrics = []metric[containerFigures]{
	plain("container_cpu_user_seconds_total", "Cumulative user CPU time consumed in seconds.", counter,
		func(f containerFigures) uint64 { return wholeSeconds(f.CPU.UserNanos) }),
	plain("container_cpu_system_seconds_total", "Cumulative system CPU time consumed in seconds.", counter,
		func(f containerFigures) uint64 { return wholeSeconds(f.CPU.SysNanos) }),
	{"container_cpu_usage_seconds_total", "Cumulative CPU time consumed in seconds.", counter, []string{"cpu"},
		func(f containerFigures) []sample {
			return []sample{{[]string{"total"}, wholeSeconds(f.CPU.UsageNanos)}}
		}},
	plain("container_cpu_cfs_periods_total", "Number of elapsed periods of the CPU quota.", counter,
		func(f containerFigures) uint64 { return f.Periods }),
	plain("container_cpu_cfs_throttled_periods_total", "Number of periods in which the CPU quota was used up.", counter,
		func(f containerFigures) uint64 { return f.CPU.ThrottledPeriods }),
	plain("container_cpu_cfs_throttled_seconds_total", "Seconds for which the container waited for CPU quota.", counter,
		func(f containerFigures) uint64 { return wholeSeconds(f.CPU.ThrottledNanos) }),
}

var memoryMetrics = []metric[containerFigures]{
	plain("container_memory_cache", "Bytes of page cache.", gauge, func(f containerFigures) uint64 { return f.Cache }),
	plain("container_memory_rss", "Bytes of anonymous memory.", gauge, func(f containerFigures) uint64 { return f.Memory.RSS }),
	plain("container_memory_kernel_usage", "Bytes of kernel memory.", gauge, func(f containerFigures) uint64 { return f.Kernel }),
	plain("container_memory_mapped_file", "Bytes of mapped files.", gauge, func(f containerFigures) uint64 { return f.MappedFile }),
	plain("container_memory_swap", "Bytes of swap in use.", gauge, func(f containerFigures) uint64 { return f.Memory.SwapUsage }),
	plain("container_memory_failcnt", "Number of times memory met its limit.", counter, func(f containerFigures) uint64 { return f.LimitHits }),
	plain("container_memory_usage_bytes", "Bytes of memory in use, of all kinds.", gauge, func(f containerFigures) uint64 { return f.Memory.Usage }),
	plain("container_memory_max_usage_bytes", "The most bytes of memory that were ever in use.", gauge, func(f containerFigures) uint64 { return f.MaxUsage }),
	plain("container_memory_working_set_bytes", "Bytes of memory that could not be taken back easily.", gauge, func(f containerFigures) uint64 { return f.Memory.WorkingSet }),
	{"container_memory_failures_total", "Number of page faults.", counter, []string{"failure_type", "scope"},
		func(f containerFigures) []sample {
			return []sample{
				{[]string{"pgfault", "container"}, f.OwnFaults},
				{[]string{"pgmajfault", "container"}, f.OwnMajorFaults},
				{[]string{"pgfault", "hierarchy"}, f.Memory.PageFaults},
				{[]string{"pgmajfault", "hierarchy"}, f.Memory.MajorPageFaults},
			}
		}},
	plain("container_oom_events_total", "Number of processes that the OOM killer ended.", counter, func(f containerFigures) uint64 { return f.OOMKills }),
	huge("container_hugetlb_usage_bytes", "Bytes of huge pages in use.", func(h stats.HugePages) uint64 { return h.Usage }),
	huge("container_hugetlb_max_usage_bytes", "The most bytes of huge pages that were ever in use; on cgroup v2 those in use.", func(h stats.HugePages) uint64 { return h.Max }),
}

func huge(name, help string, of func(stats.HugePages) uint64) metric[containerFigures] {
	return metric[containerFigures]{name, help, gauge, []string{"pagesize"}, func(f containerFigures) []sample {
		pages := f.HugePages
		if len(pages) == 0 { // a machine without: none of no size are in use
			pages = []stats.HugePages{{}}
		}
		var list []sample
		for _, h := range pages {
			list = append(list, sample{[]string{h.Size}, of(h)})
		}
		return list
	}}
}

var processMetrics = []metric[containerFigures]{
	plain("container_file_descriptors", "Number of open file descriptors.", gauge, func(f containerFigures) uint64 { return f.FileDescriptors }),
	plain("container_processes", "Number of processes.", gauge, func(f containerFigures) uint64 { return f.Procs }),
	plain("container_sockets", "Number of open sockets.", gauge, func(f containerFigures) uint64 { return f.Sockets }),
	plain("container_threads", "Number of threads.", gauge, func(f containerFigures) uint64 { return f.Processes }),
	plain("container_threads_max", "Number of threads that are allowed, 0 for no limit.", gauge, func(f containerFigures) uint64 { return f.ProcessLimit }),
	{"container_ulimits_soft", "Soft limits of the container's first process, 0 for none.", gauge, []string{"ulimit"},
		func(f containerFigures) []sample { return []sample{{[]string{"max_open_files"}, f.SoftOpenFiles}} }},
}

var specMetrics = []metric[containerFigures]{
	plain("container_last_seen", "When the container was last seen, in seconds since 1970.", gauge, func(f containerFigures) uint64 { return wholeSeconds(uint64(f.At.UnixNano())) }),
	plain("container_start_time_seconds", "When the container started, in seconds since 1970.", gauge, func(f containerFigures) uint64 { return uint64(max(f.started.Unix(), 0)) }),
	plain("container_spec_cpu_period", "Period of the CPU quota in microseconds.", gauge, func(f containerFigures) uint64 { return f.PeriodMicros }),
	plain("container_spec_cpu_quota", "CPU quota in microseconds, 0 for none.", gauge, func(f containerFigures) uint64 { return f.QuotaMicros }),
	plain("container_spec_cpu_shares", "CPU shares.", gauge, func(f containerFigures) uint64 { return f.Shares }),
	plain("container_spec_memory_limit_bytes", "Memory limit, 0 for none.", gauge, func(f containerFigures) uint64 { return f.Memory.Limit }),
	plain("container_spec_memory_reservation_limit_bytes", "Memory that is reserved (soft limit), 0 for none.", gauge, func(f containerFigures) uint64 { return f.SoftLimit }),
	plain("container_spec_memory_swap_limit_bytes", "Swap limit, on cgroup v1 of memory and swap; 0 for none.", gauge, func(f containerFigures) uint64 { return f.SwapLimit }),
}

var pressureMetrics = []metric[containerFigures]{
	pressure("cpu_stalled", "all", "CPU", func(f containerFigures) *stats.Pressure { return f.CPU.Pressure }),
	pressure("cpu_waiting", "some", "CPU", func(f containerFigures) *stats.Pressure { return f.CPU.Pressure }),
	pressure("memory_stalled", "all", "memory", func(f containerFigures) *stats.Pressure { return f.Memory.Pressure }),
	pressure("memory_waiting", "some", "memory", func(f containerFigures) *stats.Pressure { return f.Memory.Pressure }),
	pressure("io_stalled", "all", "IO", func(f containerFigures) *stats.Pressure { return f.IO.Pressure }),
	pressure("io_waiting", "some", "IO", func(f containerFigures) *stats.Pressure { return f.IO.Pressure }),
}

func pressure(name, who, what string, of func(containerFigures) *stats.Pressure) metric[containerFigures] {
	help := "Seconds for which " + who + " tasks waited for " + what + "; 0 where the kernel does not tell (cgroup v1)."
	return plain("container_pressure_"+name+"_seconds_total", help, counter, func(f containerFigures) uint64 {
		p := of(f)
		switch {
		case p == nil:
			return 0
		case who == "all":
			return wholeSeconds(p.Full.TotalNanos)
		}
		return wholeSeconds(p.Some.TotalNanos)
	})
}

var podMetrics = []metric[[]stats.Interface]{
	traffic("receive_bytes", "Cumulative count of bytes received.", func(i stats.Interface) uint64 { return i.RxBytes }),
	traffic("receive_packets", "Cumulative count of packets received.", func(i stats.Interface) uint64 { return i.RxPackets }),
	traffic("receive_packets_dropped", "Cumulative count of packets dropped while receiving.", func(i stats.Interface) uint64 { return i.RxDropped }),
	traffic("receive_errors", "Cumulative count of errors while receiving.", func(i stats.Interface) uint64 { return i.RxErrors }),
	traffic("transmit_bytes", "Cumulative count of bytes sent.", func(i stats.Interface) uint64 { return i.TxBytes }),
	traffic("transmit_packets", "Cumulative count of packets sent.", func(i stats.Interface) uint64 { return i.TxPackets }),
	traffic("transmit_packets_dropped", "Cumulative count of packets dropped while sending.", func(i stats.Interface) uint64 { return i.TxDropped }),
	traffic("transmit_errors", "Cumulative count of errors while sending.", func(i stats.Interface) uint64 { return i.TxErrors }),
}

func traffic(name, help string, of func(stats.Interface) uint64) metric[[]stats.Interface] {
	return metric[[]stats.Interface]{"container_network_" + name + "_total", help, counter, []string{"interface"},
		func(interfaces []stats.Interface) []sample {
			var list []sample
			for _, i := range interfaces {
				list = append(list, sample{[]string{i.Name}, of(i)})
			}
			return list
		}}
}

func decimal(v uint64) string { return strconv.FormatUint(v, 10) }
