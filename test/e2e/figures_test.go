//go:build e2e

package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (e *Engine) containerStats(t testing.TB, f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	t.Helper()
	resp, err := e.rt.ListContainerStats(call(t), &runtimeapi.ListContainerStatsRequest{Filter: f})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Stats
}

func (e *Engine) podStats(t testing.TB, id string) *runtimeapi.PodSandboxStats {
	t.Helper()
	resp, err := e.rt.PodSandboxStats(call(t), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Stats
}

// received reads a stream of the engine's to its end.
func received[M any](t testing.TB, s grpc.ServerStreamingClient[M], err error) []*M {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var all []*M
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
}

func labelled(key, value string) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{key: value} }
}

func TestFigures(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p, other := e.runPod(t), e.runPod(t)
		busy := p.run(t, busyboxImage, labelled("what", "busy"), shell("dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; while :; do :; done"))
		idle := other.run(t, busyboxImage, labelled("what", "idle"), sleeper)
		t.Run("a container's CPU, memory and writable layer grow with what it does", func(t *testing.T) {
			var s *runtimeapi.ContainerStats
			eventually(t, time.Minute, "the figures have come", func() bool {
				resp, err := e.rt.ContainerStats(call(t), &runtimeapi.ContainerStatsRequest{ContainerId: busy.ID})
				if err != nil {
					t.Fatal(err)
				}
				s = resp.Stats
				return s.GetWritableLayer().GetUsedBytes().GetValue() >= 8<<20 && s.GetCpu().GetUsageNanoCores().GetValue() > 1e8
			})
			if s.Attributes.Id != busy.ID || s.Attributes.Labels["what"] != "busy" || s.Attributes.Metadata.GetName() == "" {
				t.Errorf("attributes %v", s.Attributes)
			}
			for name, v := range map[string]uint64{
				"cpu": s.Cpu.GetUsageCoreNanoSeconds().GetValue(), "working set": s.Memory.GetWorkingSetBytes().GetValue(),
				"usage": s.Memory.GetUsageBytes().GetValue(), "rss": s.Memory.GetRssBytes().GetValue(), "faults": s.Memory.GetPageFaults().GetValue(),
				"inodes": s.WritableLayer.GetInodesUsed().GetValue(),
			} {
				if v == 0 {
					t.Errorf("%s is 0", name)
				}
			}
			if now := time.Now().UnixNano(); s.Cpu.Timestamp < now-int64(time.Minute) || s.Cpu.Timestamp > now {
				t.Errorf("measured at %d, now %d", s.Cpu.Timestamp, now)
			}
		})
		t.Run("lists are filtered by id, pod and labels", func(t *testing.T) {
			for name, f := range map[string]*runtimeapi.ContainerStatsFilter{
				"id": {Id: idle.ID}, "pod": {PodSandboxId: other.ID}, "labels": {LabelSelector: map[string]string{"what": "idle"}},
			} {
				if got := e.containerStats(t, f); len(got) != 1 || got[0].Attributes.Id != idle.ID {
					t.Errorf("by %s: %v", name, got)
				}
			}
			if got := e.containerStats(t, nil); len(got) != 2 {
				t.Errorf("without a filter: %d", len(got))
			}
			resp, err := e.rt.ListPodSandboxStats(call(t), &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: p.ID}})
			if err != nil || len(resp.Stats) != 1 || resp.Stats[0].Attributes.Id != p.ID {
				t.Errorf("pods by id: %v, %v", resp, err)
			}
			resp, err = e.rt.ListPodSandboxStats(call(t), &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"no": "such"}}})
			if err != nil || len(resp.Stats) != 0 {
				t.Errorf("pods by a label that none has: %v, %v", resp, err)
			}
		})
		t.Run("a pod's figures are those of its cgroup, its network and its processes", func(t *testing.T) {
			before := e.podStats(t, p.ID)
			if conn, err := net.DialTimeout("tcp", net.JoinHostPort(p.ip(t), "81"), slowly(5*time.Second)); err == nil {
				conn.Close()
				t.Error("somebody listens on port 81")
			}
			var s *runtimeapi.PodSandboxStats
			eventually(t, 30*time.Second, "the network's bytes are counted", func() bool {
				s = e.podStats(t, p.ID)
				return s.GetLinux().GetNetwork().GetDefaultInterface().GetRxBytes().GetValue() > before.GetLinux().GetNetwork().GetDefaultInterface().GetRxBytes().GetValue()
			})
			l := s.GetLinux()
			if l.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || l.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
				t.Errorf("cpu %v, memory %v", l.GetCpu(), l.GetMemory())
			}
			if n := l.GetProcess().GetProcessCount().GetValue(); n < 1 {
				t.Errorf("%d processes", n)
			}
			if name := l.GetNetwork().GetDefaultInterface().GetName(); name != "eth0" {
				t.Errorf("the interface is %q", name)
			}
			if len(l.GetContainers()) != 1 || l.GetContainers()[0].Attributes.Id != busy.ID {
				t.Errorf("containers %v", l.GetContainers())
			}
		})
		t.Run("a pod that is stopped has figures that are not nil", func(t *testing.T) {
			stopped := e.runPod(t)
			stopped.stop(t)
			if e.podStats(t, stopped.ID).GetLinux() == nil {
				t.Error("linux is nil")
			}
			stopped.remove(t)
		})
		t.Run("figures of what does not exist are NotFound", func(t *testing.T) {
			_, err := e.rt.ContainerStats(call(t), &runtimeapi.ContainerStatsRequest{ContainerId: strings.Repeat("0", 64)})
			wantCode(t, err, codes.NotFound, "000")
			_, err = e.rt.PodSandboxStats(call(t), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: strings.Repeat("0", 64)})
			wantCode(t, err, codes.NotFound, "000")
		})
		t.Run("every descriptor has a metric, and every metric a descriptor and its labels", func(t *testing.T) { metrics(t, e, p.ID) })
		t.Run("streamed lists have what the lists have", func(t *testing.T) { streamedLists(t, e, p, busy) })
	})
}

func metrics(t *testing.T, e *Engine, pod string) {
	d, err := e.rt.ListMetricDescriptors(call(t), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, d := range d.Descriptors {
		if d.Help == "" || labels[d.Name] != 0 {
			t.Errorf("descriptor %v: no help, or twice", d)
		}
		labels[d.Name] = len(d.LabelKeys)
	}
	resp, err := e.rt.ListPodSandboxMetrics(call(t), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range resp.PodMetrics {
		if p.PodSandboxId != pod {
			continue
		}
		all := p.Metrics
		for _, c := range p.ContainerMetrics {
			all = append(all, c.Metrics...)
		}
		for _, m := range all {
			seen[m.Name] = true
			if n, ok := labels[m.Name]; !ok || n != len(m.LabelValues) {
				t.Errorf("metric %v: its descriptor has %d labels (%v)", m, n, ok)
			}
		}
	}
	// The kernel has no figures of these here, and a missing one is more honest than a 0.
	none := func(name string) bool { return strings.Contains(name, "pressure") }
	for name := range labels {
		if !seen[name] && !none(name) {
			t.Errorf("no value for %s", name)
		}
	}
}

func streamedLists(t *testing.T, e *Engine, p *Pod, c *Container) {
	ctx := call(t)
	pods, err := e.rt.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: p.ID}})
	if got := received(t, pods, err); len(got) != 1 || len(got[0].PodSandboxes) != 1 || got[0].PodSandboxes[0].Id != p.ID {
		t.Errorf("pods %v", got)
	}
	containers, err := e.rt.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.ID}})
	if got := received(t, containers, err); len(got) != 1 || len(got[0].Containers) != 1 || got[0].Containers[0].Id != c.ID {
		t.Errorf("containers %v", got)
	}
	stats, err := e.rt.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{Id: c.ID}})
	if got := received(t, stats, err); len(got) != 1 || len(got[0].ContainerStats) != 1 || got[0].ContainerStats[0].Attributes.Id != c.ID {
		t.Errorf("container stats %v", got)
	}
	podStats, err := e.rt.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: p.ID}})
	if got := received(t, podStats, err); len(got) != 1 || len(got[0].PodSandboxStats) != 1 || got[0].PodSandboxStats[0].Linux == nil {
		t.Errorf("pod stats %v", got)
	}
	podMetrics, err := e.rt.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	found := 0
	for _, m := range received(t, podMetrics, err) {
		found += len(m.PodSandboxMetrics)
	}
	if found < 2 {
		t.Errorf("metrics of %d pods", found)
	}
	images, err := e.img.StreamImages(ctx, &runtimeapi.StreamImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: busyboxImage}}})
	if got := received(t, images, err); len(got) != 1 || len(got[0].Images) != 1 {
		t.Errorf("images %v", got)
	}
}

// listener collects a stream of events until it ends.
type listener struct {
	events chan *runtimeapi.ContainerEventResponse
	failed chan error
}

func (e *Engine) listen(t testing.TB) *listener {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s, err := e.rt.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = s.Header() // it listens from now on
	}
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{make(chan *runtimeapi.ContainerEventResponse, 1000), make(chan error, 1)}
	go func() {
		for {
			r, err := s.Recv()
			if err != nil {
				l.failed <- err
				return
			}
			l.events <- r
		}
	}()
	return l
}

// next returns n events as "TYPE id".
func (l *listener) next(t testing.TB, n int) []string {
	t.Helper()
	var got []string
	for range n {
		select {
		case r := <-l.events:
			got = append(got, strings.TrimSuffix(strings.TrimPrefix(r.ContainerEventType.String(), "CONTAINER_"), "_EVENT")+" "+r.ContainerId)
		case err := <-l.failed:
			t.Fatalf("after %q: %v", got, err)
		case <-time.After(slowly(30 * time.Second)):
			t.Fatalf("no more came after %q", got)
		}
	}
	return got
}

func TestEvents(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		t.Run("the life of a pod and its container comes in order, with what the kubelet needs to know", func(t *testing.T) {
			l := e.listen(t)
			p := e.runPod(t)
			c := p.create(t, busyboxImage, shell("exit 7"))
			c.start(t)
			c.wait(t)
			if got, want := l.next(t, 4), []string{"CREATED " + p.ID, "STARTED " + p.ID, "CREATED " + c.ID, "STARTED " + c.ID}; !slices.Equal(got, want) {
				t.Fatalf("got %q, want %q", got, want)
			}
			var stopped *runtimeapi.ContainerEventResponse
			select {
			case stopped = <-l.events:
			case <-time.After(slowly(30 * time.Second)):
				t.Fatal("its end is not told")
			}
			if stopped.ContainerEventType != runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT || stopped.ContainerId != c.ID ||
				stopped.GetPodSandboxStatus().GetMetadata().GetUid() != p.Config.Metadata.Uid || stopped.CreatedAt == 0 {
				t.Fatalf("its end is %v", stopped)
			}
			if s := stopped.GetContainersStatuses(); len(s) != 1 || s[0].Id != c.ID || s[0].ExitCode != 7 || s[0].State != runtimeapi.ContainerState_CONTAINER_EXITED {
				t.Errorf("its end comes with %v", s)
			}
			p.stop(t)
			p.remove(t)
			got := l.next(t, 3)
			slices.Sort(got)
			want := []string{"DELETED " + c.ID, "DELETED " + p.ID, "STOPPED " + p.ID}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("at its removal %q, want %q", got, want)
			}
		})
		t.Run("listeners do not wait for each other, and all get all", func(t *testing.T) {
			slow, err := e.rt.GetContainerEvents(call(t), &runtimeapi.GetEventsRequest{}) // never read
			if err != nil {
				t.Fatal(err)
			}
			if _, err := slow.Header(); err != nil {
				t.Fatal(err)
			}
			a, b := e.listen(t), e.listen(t)
			p := e.runPod(t, hostNetwork)
			for range 20 {
				p.run(t, busyboxImage, shell("exit 0")).wait(t)
			}
			if got, also := a.next(t, 62), b.next(t, 62); !slices.Equal(got, also) {
				t.Errorf("one got %q, the other %q", got, also)
			}
			p.remove(t)
		})
	})
}
