//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

func podIDs(pods []*api.PodSandbox) []string {
	var ids []string
	for _, p := range pods {
		ids = append(ids, p.Id)
	}
	return ids
}

func containerStates(containers []*api.Container) map[string]api.ContainerState {
	states := map[string]api.ContainerState{}
	for _, c := range containers {
		states[c.Id] = c.State
	}
	return states
}

func TestAPluginIsSynchronizedWithWhatThereIs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p, stopped := e.runPod(t), e.runPod(t)
		stopped.stop(t)
		runs, created, ended := p.run(t, busyboxImage, sleeper), p.create(t, busyboxImage, sleeper), p.run(t, busyboxImage, shell("exit 0"))
		ended.wait(t)
		check := func(t *testing.T, plugin *harness.NRIPlugin) {
			t.Helper()
			pods, containers := plugin.Synced()
			if got := podIDs(pods); !slices.Equal(got, []string{p.ID, stopped.ID}) {
				t.Errorf("synchronized with the pods %v, there are %v", got, []string{p.ID, stopped.ID})
			}
			want := map[string]api.ContainerState{runs.ID: api.ContainerState_CONTAINER_RUNNING, created.ID: api.ContainerState_CONTAINER_CREATED}
			if got := containerStates(containers); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("synchronized with the containers %v, there are %v", got, want)
			}
			for _, c := range containers {
				if len(c.Args) == 0 || c.Linux.CgroupsPath == "" || c.Id == runs.ID && (c.Pid != uint32(runs.pid(t)) || c.StartedAt == 0) {
					t.Errorf("of a container it is told %v", c)
				}
			}
		}
		t.Run("when it connects, and its updates are done", func(t *testing.T) {
			plugin := e.plugin(t, &harness.NRIPlugin{Sync: func([]*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
				u := &api.ContainerUpdate{}
				u.SetContainerId(runs.ID)
				u.SetLinuxCPUShares(321)
				return []*api.ContainerUpdate{u}, nil
			}}, "10")
			check(t, plugin)
			eventually(t, mostly, "the update is done", func() bool { return runs.status(t).GetResources().GetLinux().GetCpuShares() == 321 })
			checkCgroup(t, runs, map[string]string{"cpu/cpu.shares": "321"})
			if got := plugin.Names(""); len(got) != 0 {
				t.Errorf("it is called besides: %v", got)
			}
			ended.remove(t)
			wantNames(t, plugin, ended.ID, "RemoveContainer")
		})
		t.Run("and again when it reconnects after the daemon was killed", func(t *testing.T) {
			plugin := e.plugin(t, &harness.NRIPlugin{}, "10")
			e.Kill()
			select {
			case <-plugin.Done():
			case <-time.After(mostly):
				t.Fatal("the plugin does not notice")
			}
			e.restart(t)
			e.plugin(t, plugin, "10")
			check(t, plugin)
			created.start(t)
			runs.stop(t, 0)
			wantNames(t, plugin, created.ID, "StartContainer", "PostStartContainer")
			wantNames(t, plugin, runs.ID, "StopContainer")
		})
	})
}

func TestNoContainerIsLostOrTwiceAroundASynchronization(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range 2 { // containers come and go all the time
			wg.Go(func() {
				for ctx.Err() == nil {
					c := p.create(t, busyboxImage, sleeper)
					c.start(t)
					c.stop(t, 0)
					c.remove(t)
				}
			})
		}
		defer func() { cancel(); wg.Wait() }()
		for round := range 6 {
			plugin := &harness.NRIPlugin{Sync: func([]*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
				time.Sleep(100 * time.Millisecond)
				return nil, nil
			}}
			if err := plugin.Connect(within(t, 20*time.Second), e.nriSocket(), "e2e", fmt.Sprintf("%02d", round)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
			plugin.Close()
			_, containers := plugin.Synced()
			known := containerStates(containers)
			stories := map[string][]string{}
			for _, ev := range plugin.Events("") {
				stories[ev.ID()] = append(stories[ev.ID()], ev.Name)
			}
			for id, story := range stories {
				if err := follows(known, id, story); err != nil {
					t.Errorf("round %d: container %s, synchronized as %v, then %v: %v", round, id[:12], known[id], story, err)
				}
			}
			if len(stories) == 0 {
				t.Errorf("round %d: nothing happened", round)
			}
		}
	})
}

// follows checks that a story goes on from where the synchronization left it,
// with each event in its turn. It may break off anywhere.
func follows(known map[string]api.ContainerState, id string, story []string) error {
	life := []string{"CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer", "StopContainer", "RemoveContainer"}
	from := []int{0}
	if state, ok := known[id]; ok {
		// A container is known from the moment plugins were asked about it: what comes
		// after that is told.
		from = map[api.ContainerState][]int{
			api.ContainerState_CONTAINER_CREATED: {1, 2, 3}, api.ContainerState_CONTAINER_RUNNING: {3, 4}, api.ContainerState_CONTAINER_STOPPED: {3, 4},
		}[state]
	} else if story[0] == "RemoveContainer" {
		from = []int{5} // it had ended before
	}
	for _, i := range from {
		if i+len(story) <= len(life) && slices.Equal(life[i:i+len(story)], story) {
			return nil
		}
	}
	return errors.New("an event is missing, or comes twice")
}

func TestAPluginsUpdatesOfContainers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		limits := resources(&runtimeapi.LinuxContainerResources{CpuShares: 500, MemoryLimitInBytes: 64 << 20})
		other, another := p.run(t, busyboxImage, sleeper, limits), p.run(t, busyboxImage, sleeper, limits)
		shares := func(c *Container, n uint64) *api.ContainerUpdate {
			u := &api.ContainerUpdate{}
			u.SetContainerId(c.ID)
			u.SetLinuxCPUShares(n)
			return u
		}
		impossible := func(c *Container) *api.ContainerUpdate {
			u := &api.ContainerUpdate{}
			u.SetContainerId(c.ID)
			u.SetLinuxCPUSetCPUs("7777")
			return u
		}
		has := func(t *testing.T, c *Container, shares int64) {
			t.Helper()
			checkCgroup(t, c, map[string]string{"cpu/cpu.shares": fmt.Sprint(shares)})
			if got := c.status(t).GetResources().GetLinux().GetCpuShares(); got != shares {
				t.Errorf("status says %d CPU shares, want %d", got, shares)
			}
		}
		var create, update, stop []*api.ContainerUpdate
		plugin := e.plugin(t, &harness.NRIPlugin{
			Create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
				return nil, create, nil
			},
			Update: func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error) { return update, nil },
			Stop:   func(*api.Container) ([]*api.ContainerUpdate, error) { return stop, nil },
		}, "10")
		t.Run("of others, with a creation", func(t *testing.T) {
			create = []*api.ContainerUpdate{shares(other, 401)}
			p.create(t, busyboxImage, sleeper).remove(t)
			has(t, other, 401)
		})
		t.Run("none of them, when one fails, and no creation", func(t *testing.T) {
			create = []*api.ContainerUpdate{shares(other, 402), impossible(another)}
			config := p.containerConfig(busyboxImage, sleeper)
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
			if err == nil || !strings.Contains(statusMessage(err), another.ID) {
				t.Errorf("got %v", err)
			}
			has(t, other, 401)
			has(t, another, 500)
		})
		t.Run("unless it may fail", func(t *testing.T) {
			mayFail := impossible(another)
			mayFail.SetIgnoreFailure()
			create = []*api.ContainerUpdate{mayFail, shares(other, 403)}
			p.create(t, busyboxImage, sleeper).remove(t)
			has(t, other, 403)
		})
		t.Run("of the one that is updated, and of others with it", func(t *testing.T) {
			create = nil
			own := shares(another, 604)
			own.SetLinuxMemoryReservation(16 << 20)
			update = []*api.ContainerUpdate{own, shares(other, 404)}
			if err := another.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 999, MemoryLimitInBytes: 96 << 20}); err != nil {
				t.Fatal(err)
			}
			has(t, another, 604)
			checkCgroup(t, another, map[string]string{"memory/memory.limit_in_bytes": fmt.Sprint(96 << 20)})
			has(t, other, 404)
			post := plugin.Events(another.ID)
			if r := post[len(post)-1].Container.Linux.Resources; r.Memory.Reservation.GetValue() != 16<<20 || r.Cpu.Shares.GetValue() != 604 {
				t.Errorf("after it, the plugin is told %v", r)
			}
		})
		t.Run("none when the update fails", func(t *testing.T) {
			update = []*api.ContainerUpdate{impossible(another), shares(other, 405)}
			if err := another.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 998}); err == nil {
				t.Error("it did not fail")
			}
			has(t, another, 604)
			has(t, other, 404)
		})
		t.Run("of others, when one has ended", func(t *testing.T) {
			update = nil
			stop = []*api.ContainerUpdate{shares(other, 406)}
			c := p.run(t, busyboxImage, shell("exit 0"))
			c.wait(t)
			eventually(t, mostly, "the other is updated", func() bool { return other.status(t).GetResources().GetLinux().GetCpuShares() == 406 })
			stop = nil
			c.remove(t)
		})
		t.Run("by itself, and what can't be done is told", func(t *testing.T) {
			failed, err := plugin.UpdateContainers(shares(other, 407), impossible(another))
			if err != nil || len(failed) != 1 || failed[0].ContainerId != another.ID {
				t.Errorf("got %v, %v", failed, err)
			}
			has(t, other, 407)
		})
		t.Run("what nothing can do is an error", func(t *testing.T) {
			u := shares(other, 408)
			u.SetLinuxBlockIOClass("fast")
			if _, err := plugin.UpdateContainers(u); err == nil || !strings.Contains(err.Error(), "blockio_class") {
				t.Errorf("got %v", err)
			}
		})
		t.Run("and evictions", func(t *testing.T) {
			if err := harness.EvictOverNRI(call(t), e.nriSocket(), other.ID, "the node is too hot"); err != nil {
				t.Fatal(err)
			}
			if s := other.status(t); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
				t.Errorf("it is %v", s.State)
			}
			if err := harness.EvictOverNRI(call(t), e.nriSocket(), strings.Repeat("0", 64), ""); err != nil {
				t.Errorf("one that is not there: %v", err)
			}
		})
	})
}

func TestAPluginThatFailsHoldsNothingUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t, withConfig("[nri]\nrequest_timeout = \"1s\"\nregistration_timeout = \"1s\"\n"))
		hang := func(plugin *harness.NRIPlugin, event string) {
			over := make(chan struct{})
			t.Cleanup(func() { close(over) })
			plugin.On(event, func(harness.NRIEvent) error { <-over; return nil })
		}
		gone := func(t *testing.T, plugin *harness.NRIPlugin) {
			t.Helper()
			select {
			case <-plugin.Done():
			case <-time.After(mostly):
				t.Error("it is still connected")
			}
		}
		t.Run("one that hangs is disconnected, and the pod runs", func(t *testing.T) {
			plugin := e.plugin(t, &harness.NRIPlugin{}, "10")
			hang(plugin, "RunPodSandbox")
			start := time.Now()
			e.runPod(t).remove(t)
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			gone(t, plugin)
		})
		t.Run("one that must not be missed fails the call when it hangs", func(t *testing.T) {
			plugin := e.plugin(t, &harness.NRIPlugin{Policy: &api.FailurePolicy{FailRequest: true}}, "10")
			hang(plugin, "RunPodSandbox")
			_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t)})
			wantCode(t, err, codes.FailedPrecondition, "10-e2e", "RunPodSandbox")
			if list := e.pods(t, nil); len(list) != 0 {
				t.Errorf("left: %v", list)
			}
			gone(t, plugin)
		})
		t.Run("one that vanishes in a call, or between two, is not missed", func(t *testing.T) {
			plugin := e.plugin(t, &harness.NRIPlugin{}, "10")
			plugin.On("CreateContainer", func(harness.NRIEvent) error {
				plugin.Vanish()
				return nil
			})
			p := e.runPod(t)
			c := p.run(t, busyboxImage, sleeper)
			second := e.plugin(t, &harness.NRIPlugin{}, "20")
			second.Vanish()
			gone(t, second)
			c.stop(t, 0)
			p.remove(t)
		})
		t.Run("one that hangs in its synchronization lets the node go on", func(t *testing.T) {
			over, begun := make(chan struct{}), make(chan struct{})
			plugin := &harness.NRIPlugin{Sync: func([]*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
				close(begun)
				<-over
				return nil, nil
			}}
			connected := make(chan struct{})
			go func() {
				defer close(connected)
				_ = plugin.Connect(within(t, 20*time.Second), e.nriSocket(), "e2e", "10") // it ends some way or other
			}()
			t.Cleanup(func() { close(over); <-connected; plugin.Close() })
			<-begun
			start := time.Now()
			e.pods(t, nil) // lists wait for no plugin
			if took := time.Since(start); took > 900*time.Millisecond {
				t.Errorf("a list took %v", took)
			}
			e.runPod(t).remove(t)
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("a pod took %v", took)
			}
		})
		t.Run("one that never registers lets the node go on", func(t *testing.T) {
			conn, err := net.Dial("unix", e.nriSocket())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			e.runPod(t).remove(t)
			e.plugin(t, &harness.NRIPlugin{}, "10") // and the next is served
		})
	})
}

func TestPluginsAreStartedWithTheEngine(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		dir, log := filepath.Join(w.Dir, "plugins"), filepath.Join(w.Dir, "plugin.log")
		for _, d := range []string{dir, filepath.Join(w.Dir, "plugins.conf")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := testProgram("nriplugin", filepath.Join(dir, "10-writer")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(w.Dir, "plugins.conf", "10-writer.conf"), []byte(log), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "20-broken"), []byte("#!/no/such\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		e := w.engine(t, withConfig(fmt.Sprintf("[nri]\nexternal_connections = false\nplugin_path = %q\nplugin_config_path = %q\n", dir, filepath.Join(w.Dir, "plugins.conf"))))
		if _, err := os.Stat(e.nriSocket()); err == nil {
			t.Error("there is a socket")
		}
		p := e.runPod(t)
		c := p.run(t, busyboxImage, sleeper)
		if got := c.exec(t, "sh", "-c", "echo $STARTED_WITH"); got != "the engine\n" {
			t.Errorf("its adjustment is %q", got)
		}
		e.Kill()
		e.restart(t)
		wrote := func(want string) func() bool {
			return func() bool {
				text, _ := os.ReadFile(log)
				return strings.Contains(string(text), want)
			}
		}
		eventually(t, mostly, "it is started anew and synchronized", wrote("synchronized "+p.ID+" "+c.ID))
		c.stop(t, 0)
		eventually(t, mostly, "it is told of the end", wrote("stop "+c.ID))
		p.remove(t)
		e.idle = settled(t, w, e) // the plugin's process is another now
	})
}

func TestTheSocketOfAnotherRuntimeIsNotTaken(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		socket := filepath.Join(w.Dir, "nri.sock")
		other, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		e := w.engineNotStarted(t, withConfig(fmt.Sprintf("[nri]\nsocket = %q\n", socket)))
		if err := e.Start(within(t, 30*time.Second)); err == nil {
			t.Error("it started")
		}
		if log := e.LogTail(4000); !strings.Contains(log, "another runtime serves plugins on "+socket) {
			t.Errorf("it does not say why: %s", log)
		}
		if _, err := os.Stat(socket); err != nil {
			t.Error(err)
		}
	})
}
