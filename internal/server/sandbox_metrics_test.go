package server

import (
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/stats"
)

// metricNames are what critest asks for, and so do dashboards made for cAdvisor.
const metricNames = `blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes
fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes
last_seen memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss
memory_swap memory_usage_bytes memory_working_set_bytes network_receive_bytes_total network_receive_errors_total
network_receive_packets_dropped_total network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total pressure_cpu_stalled_seconds_total
pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total
pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota
spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads
threads_max ulimits_soft`

func TestMetrics(t *testing.T) {
	f := world()
	f.interfaces = []stats.Interface{{Name: "eth0", RxBytes: 5}}
	c := start(t, f)
	described := map[string]*runtimeapi.MetricDescriptor{}
	for _, d := range must[*runtimeapi.ListMetricDescriptorsResponse](t)(c.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})).GetDescriptors() {
		if described[d.GetName()] != nil || d.GetHelp() == "" || len(d.GetLabelKeys()) == 0 {
			t.Errorf("descriptor %v", d)
		}
		described[d.GetName()] = d
	}
	for _, name := range strings.Fields(metricNames) {
		if described["container_"+name] == nil {
			t.Errorf("container_%s is not described", name)
		}
	}
	check := func(t *testing.T) map[string]uint64 {
		t.Helper()
		pods := must[*runtimeapi.ListPodSandboxMetricsResponse](t)(c.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})).GetPodMetrics()
		if len(pods) != 1 || pods[0].GetPodSandboxId() != "bb" || len(pods[0].GetContainerMetrics()) != 1 || pods[0].GetContainerMetrics()[0].GetContainerId() != "cc" {
			t.Fatalf("got %v", pods)
		}
		values := map[string]uint64{}
		for _, m := range append(pods[0].GetMetrics(), pods[0].GetContainerMetrics()[0].GetMetrics()...) {
			d := described[m.GetName()]
			if len(m.GetLabelValues()) != len(d.GetLabelKeys()) {
				t.Errorf("%s has the labels %v for %v", m.GetName(), m.GetLabelValues(), d.GetLabelKeys())
			}
			key := m.GetName()
			if extra := m.GetLabelValues()[len(commonLabels):]; len(extra) > 0 {
				key += fmt.Sprint(extra)
			}
			values[key] = m.GetValue().GetValue()
			values[m.GetName()] += 0
		}
		for name := range described {
			if _, ok := values[name]; !ok {
				t.Errorf("%s has no value", name)
			}
		}
		return values
	}
	values := check(t)
	for key, want := range map[string]uint64{
		"container_network_receive_bytes_total[eth0]":           5,
		"container_memory_working_set_bytes":                    2,
		"container_memory_failures_total[pgmajfault hierarchy]": 5,
		"container_fs_reads_bytes_total[/dev/sda]":              5,
		"container_blkio_device_usage_total[/dev/sda 8 0 Read]": 5,
		"container_hugetlb_max_usage_bytes[2MB]":                2,
		"container_ulimits_soft[max_open_files]":                1024,
		"container_processes":                                   3,
		"container_start_time_seconds":                          4,
		"container_fs_usage_bytes[]":                            3,
		"container_spec_memory_limit_bytes":                     100,
		"container_pressure_memory_waiting_seconds_total":       0,
	} {
		if got, ok := values[key]; !ok || got != want {
			t.Errorf("%s is %d, %v; want %d", key, got, ok, want)
		}
	}
	t.Run("a container that did no I/O has a value all the same", func(t *testing.T) {
		f.bare = true
		defer func() { f.bare = false }()
		check(t)
	})
	t.Run("what can't be read is left out", func(t *testing.T) {
		f.statsErr, f.netStatsErr = stats.ErrGone, stats.ErrGone
		defer func() { f.statsErr, f.netStatsErr = nil, nil }()
		in, err := c.StreamPodSandboxMetrics(t.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
		pods, _ := drain(t, in, err, (*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)
		if len(pods) != 1 || len(pods[0].GetMetrics()) != 0 || len(pods[0].GetContainerMetrics()) != 0 {
			t.Errorf("got %v", pods)
		}
	})
}
