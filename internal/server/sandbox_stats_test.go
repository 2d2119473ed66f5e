package server

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/stats"
)

func TestPodSandboxStats(t *testing.T) {
	f := world()
	f.interfaces = []stats.Interface{{Name: "net1", RxBytes: 1}, {Name: "eth0", RxBytes: 5, TxBytes: 6, RxErrors: 7, TxErrors: 8}}
	c := start(t, f)
	get := func(t *testing.T, id string) *runtimeapi.PodSandboxStats {
		t.Helper()
		got := must[*runtimeapi.PodSandboxStatsResponse](t)(c.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})).GetStats()
		if got.GetLinux() == nil || got.GetAttributes().GetMetadata() == nil {
			t.Fatalf("got %v", got)
		}
		return got
	}
	t.Run("a pod that runs", func(t *testing.T) {
		l := get(t, "bb").GetLinux()
		if l.GetCpu().GetUsageNanoCores().GetValue() != 12 || l.GetMemory().GetWorkingSetBytes().GetValue() != 2 || l.GetProcess().GetProcessCount().GetValue() != 6 {
			t.Errorf("got %v", l)
		}
		if n := l.GetNetwork(); n.GetDefaultInterface().GetName() != "eth0" || n.GetDefaultInterface().GetTxErrors().GetValue() != 8 || len(n.GetInterfaces()) != 1 || n.GetTimestamp() == 0 {
			t.Errorf("got %v", n)
		}
		if len(l.GetContainers()) != 1 || l.GetContainers()[0].GetWritableLayer() == nil {
			t.Errorf("got %v", l.GetContainers())
		}
	})
	t.Run("one that is not ready uses nothing", func(t *testing.T) {
		if l := get(t, "ba").GetLinux(); l.GetCpu() != nil || l.GetNetwork() != nil || len(l.GetContainers()) != 0 {
			t.Errorf("got %v", l)
		}
	})
	t.Run("one whose cgroup is not made yet has used nothing", func(t *testing.T) {
		f.statsErr = stats.ErrGone
		defer func() { f.statsErr = nil }()
		if l := get(t, "bb").GetLinux(); l.GetCpu().GetUsageCoreNanoSeconds() == nil || l.GetCpu().GetTimestamp() == 0 || len(l.GetContainers()) != 0 {
			t.Errorf("got %v", l)
		}
	})
	t.Run("what can't be read is left out", func(t *testing.T) {
		f.statsErr, f.netStatsErr = errors.New("disk"), stats.ErrGone
		defer func() { f.statsErr, f.netStatsErr = nil, nil }()
		if l := get(t, "bb").GetLinux(); l.GetCpu() != nil || l.GetNetwork() != nil {
			t.Errorf("got %v", l)
		}
	})
	t.Run("an unknown pod", func(t *testing.T) {
		_, err := c.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "ff"})
		wantCode(t, err, codes.NotFound, "")
	})
	for _, filter := range []struct {
		name string
		f    *runtimeapi.PodSandboxStatsFilter
		want string
	}{
		{"all are listed", nil, "[bb ba]"},
		{"by the start of an id", &runtimeapi.PodSandboxStatsFilter{Id: "ba"}, "[ba]"},
		{"by label", &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "db"}}, "[ba]"},
		{"by both", &runtimeapi.PodSandboxStatsFilter{Id: "bb", LabelSelector: map[string]string{"app": "db"}}, "[]"},
	} {
		t.Run(filter.name, func(t *testing.T) {
			list := must[*runtimeapi.ListPodSandboxStatsResponse](t)(c.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: filter.f})).GetStats()
			in, err := c.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{Filter: filter.f})
			streamed, _ := drain(t, in, err, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats)
			for _, got := range [][]*runtimeapi.PodSandboxStats{list, streamed} {
				ids := []string{}
				for _, st := range got {
					ids = append(ids, st.GetAttributes().GetId())
				}
				if fmt.Sprint(ids) != filter.want {
					t.Errorf("got %v, want %s", ids, filter.want)
				}
			}
		})
	}
}

func TestAStuckPodDoesNotHoldUpTheFiguresOfOthers(t *testing.T) {
	f := world()
	gate := make(chan struct{})
	f.stuck = map[string]chan struct{}{"pod bb": gate}
	for i := range 20 {
		f.pods = append(f.pods, &sandbox.Pod{ID: fmt.Sprintf("e%02d", i), Config: podConfig(), Ready: true})
	}
	c := start(t, f)
	for try := range 3 {
		begun := time.Now()
		list := must[*runtimeapi.ListPodSandboxStatsResponse](t)(c.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})).GetStats()
		limit := readTime + time.Second
		if try > 0 { // it is known by then
			limit = time.Second
		}
		if took := time.Since(begun); took > limit {
			t.Errorf("try %d took %v", try, took)
		}
		for _, st := range list {
			if st.GetLinux() == nil || (st.GetLinux().GetCpu() == nil) != (st.GetAttributes().GetId()[0] == 'b') {
				t.Errorf("try %d: got %v", try, st)
			}
		}
		if len(list) != 22 {
			t.Errorf("%d pods", len(list))
		}
	}
	if n := len(c.server.readings.running); n != 1 {
		t.Errorf("%d readings are under way for one stuck pod", n)
	}
	_, err := c.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "bb"})
	wantCode(t, err, codes.DeadlineExceeded, "does not answer")
	close(gate)
	eventually(t, "a reading that came to its end is kept", func() bool {
		c.server.readings.mu.Lock()
		defer c.server.readings.mu.Unlock()
		return len(c.server.readings.running) == 0
	})
	if _, err := c.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "bb"}); err != nil {
		t.Error(err)
	}
}
