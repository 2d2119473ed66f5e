package nri

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// node is an engine with one pod and one container.
type node struct{ updated, evicted []string }

func aPod() *Pod {
	return &Pod{ID: "p", Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod"}}}
}

func aContainer() *Container {
	return &Container{ID: "c", PodID: "p", Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "container"}}, Spec: aSpec()}
}

func (n *node) Known(context.Context) ([]*Pod, []*Container) {
	return []*Pod{aPod()}, []*Container{aContainer()}
}

func (n *node) ApplyUpdates(_ context.Context, updates []Update) (failed []Update) {
	for _, u := range updates {
		if n.updated = append(n.updated, u.ContainerID); u.ContainerID == "bad" {
			failed = append(failed, u)
		}
	}
	return failed
}

func (n *node) Evict(_ context.Context, e Eviction) error {
	n.evicted = append(n.evicted, e.ContainerID+" "+e.Reason)
	return nil
}

func start(t *testing.T) (*Plugins, *node, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "nri.sock")
	p, err := New(Options{
		Version: "test", Socket: socket, PluginPath: t.TempDir(), PluginConfigPath: t.TempDir(), ExternalConnections: true,
		RegistrationTimeout: time.Second, RequestTimeout: 2 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	n := &node{}
	if err := p.Start(n); err != nil {
		t.Fatal(err)
	}
	return p, n, socket
}

func connect(t *testing.T, p *harness.NRIPlugin, socket string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Connect(ctx, socket, "test", "10"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
}

func inTurn(t *testing.T, p *Plugins, f func()) {
	t.Helper()
	end, err := p.Turn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	f()
}

func TestPlugins(t *testing.T) {
	p, n, socket := start(t)
	t.Run("without any, none is called", func(t *testing.T) {
		inTurn(t, p, func() {
			if p.Any() {
				t.Error("there is one")
			}
		})
	})
	plugin := &harness.NRIPlugin{Create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a, u := &api.ContainerAdjustment{}, &api.ContainerUpdate{ContainerId: "other"}
		a.RemoveEnv("OLD")
		a.RemoveDevice("/dev/fuse")
		u.SetLinuxCPUShares(9)
		u.SetLinuxMemoryReservation(8)
		return a, []*api.ContainerUpdate{u}, nil
	}}
	connect(t, plugin, socket)
	t.Run("one that connects knows what there is, and is called in the next turn", func(t *testing.T) {
		pods, containers := plugin.Synced()
		if len(pods) != 1 || pods[0].Name != "pod" || len(containers) != 1 || containers[0].Name != "container" || containers[0].Args[0] != "run" {
			t.Errorf("synchronized with %v, %v", pods, containers)
		}
		inTurn(t, p, func() {
			if err := p.Tell(t.Context(), RunPod, aPod(), nil); err != nil || !slices.Equal(plugin.Names("p"), []string{"RunPodSandbox"}) {
				t.Errorf("got %v, told %v", err, plugin.Names("p"))
			}
		})
	})
	t.Run("what it removes from a container is removed", func(t *testing.T) {
		inTurn(t, p, func() {
			adjust, others, err := p.Create(t.Context(), aPod(), aContainer())
			if err != nil || adjust == nil {
				t.Fatal(adjust, err)
			}
			spec := aSpec()
			if err := adjust.Apply(spec); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(spec.Process.Env, []string{"STAYS=1", "BARE"}) || slices.ContainsFunc(spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/fuse" }) {
				t.Errorf("left: %v, %v", spec.Process.Env, spec.Linux.Devices)
			}
			if len(others) != 1 || others[0].ContainerID != "other" || others[0].Limits.CRI.CpuShares != 9 || *others[0].Limits.More.Memory.Reservation != 8 {
				t.Errorf("of others it wants %+v", others)
			}
		})
	})
	t.Run("what it refuses is refused", func(t *testing.T) {
		plugin.On("StartContainer", func(harness.NRIEvent) error { return errors.New("no") })
		inTurn(t, p, func() {
			if err := p.Tell(t.Context(), StartContainer, aPod(), aContainer()); !errors.Is(err, ErrRefused) {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("it updates and evicts by itself", func(t *testing.T) {
		failed, err := plugin.UpdateContainers(&api.ContainerUpdate{ContainerId: "good"}, &api.ContainerUpdate{ContainerId: "bad"})
		if err != nil || len(failed) != 1 || failed[0].ContainerId != "bad" || !slices.Equal(n.updated, []string{"good", "bad"}) {
			t.Errorf("failed %v, %v; updated %v", failed, err, n.updated)
		}
		if err := harness.EvictOverNRI(t.Context(), socket, "c", "why"); err != nil || !slices.Equal(n.evicted, []string{"c why"}) {
			t.Errorf("got %v, evicted %v", err, n.evicted)
		}
	})
	t.Run("another engine does not take its socket", func(t *testing.T) {
		second, err := New(p.o)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if err := second.Start(n); err == nil {
			t.Error("it did")
		}
	})
}

func TestASynchronizationGivesUpWhenTurnsDontEnd(t *testing.T) {
	p, _, socket := start(t)
	end, err := p.Turn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	plugin := &harness.NRIPlugin{}
	if err := plugin.Connect(ctx, socket, "test", "10"); err == nil {
		t.Error("it was synchronized in the middle of a turn")
	}
	plugin.Close()
	inTurn(t, p, func() {}) // and nobody waits for it any more
	end()
	connect(t, &harness.NRIPlugin{}, socket)
}
