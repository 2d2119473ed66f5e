//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

func (e *Engine) nriSocket() string { return filepath.Join(e.State, "nri.sock") }

// plugin connects a plugin, and disconnects it with the test.
func (e *Engine) plugin(t *testing.T, p *harness.NRIPlugin, index string) *harness.NRIPlugin {
	t.Helper()
	if err := p.Connect(within(t, 20*time.Second), e.nriSocket(), "e2e", index); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// mostly is a wait that is over long before on any machine.
const mostly = 15 * time.Second

func wantNames(t *testing.T, p *harness.NRIPlugin, id string, want ...string) {
	t.Helper()
	if err := p.WaitNames(id, mostly, want...); err != nil {
		t.Error(err)
	}
}

func TestPluginsAreToldOfAPodsWholeLife(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		plugin := e.plugin(t, &harness.NRIPlugin{}, "10")
		// In the order in which all of it happens.
		p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{"note": "pod"}
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 100}
		})
		ip := p.ip(t)
		limits := resources(&runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20})
		c := p.run(t, busyboxImage, sleeper, limits, func(c *runtimeapi.ContainerConfig) {
			c.Labels, c.Annotations = map[string]string{"l": "v"}, map[string]string{"a": "v"}
			c.Envs = []*runtimeapi.KeyValue{{Key: "FROM", Value: []byte("request")}}
		})
		pid := c.pid(t)
		if err := c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 600}); err != nil {
			t.Fatal(err)
		}
		if _, err := e.rt.UpdatePodSandboxResources(call(t), &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.ID, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 777}}); err != nil {
			t.Fatal(err)
		}
		c.stop(t, 0)
		ends := p.run(t, busyboxImage, shell("exit 3"))
		ends.wait(t)
		wantNames(t, plugin, ends.ID, "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer", "StopContainer")
		p.stop(t)
		p.stop(t)
		p.remove(t)

		t.Run("in order, each once", func(t *testing.T) {
			life := []string{"CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer"}
			wantNames(t, plugin, p.ID, "RunPodSandbox", "UpdatePodSandbox", "PostUpdatePodSandbox", "StopPodSandbox", "RemovePodSandbox")
			wantNames(t, plugin, c.ID, append(life, "UpdateContainer", "PostUpdateContainer", "StopContainer", "RemoveContainer")...)
			wantNames(t, plugin, ends.ID, append(life, "StopContainer", "RemoveContainer")...)
			names := plugin.Names("")
			last := slices.Index(names, "StopPodSandbox")
			if slices.Contains(names[last:], "StopContainer") || slices.Index(names, "RemoveContainer") < last || names[len(names)-1] != "RemovePodSandbox" {
				t.Errorf("told in the order %v", names)
			}
		})
		t.Run("with what the pod is", func(t *testing.T) {
			run := plugin.Events(p.ID)[0].Pod
			m := p.Config.Metadata
			if run.Name != m.Name || run.Uid != m.Uid || run.Namespace != m.Namespace || run.Labels["app"] != m.Name || run.Annotations["note"] != "pod" {
				t.Errorf("told of %v", run)
			}
			if !slices.Equal(run.Ips, []string{ip}) && !slices.Contains(run.Ips, ip) {
				t.Errorf("told the addresses %v, the pod has %s", run.Ips, ip)
			}
			at := slices.IndexFunc(run.Linux.Namespaces, func(n *api.LinuxNamespace) bool { return n.Type == "network" })
			if at < 0 || !strings.HasPrefix(run.Linux.Namespaces[at].Path, "/run/netns/") {
				t.Errorf("told the namespaces %v", run.Linux.Namespaces)
			}
			if got := run.Linux.PodResources.GetCpu().GetShares().GetValue(); got != 100 {
				t.Errorf("told of %d CPU shares", got)
			}
			if got := plugin.Events(p.ID)[2].Pod.Linux.PodResources.GetCpu().GetShares().GetValue(); got != 777 {
				t.Errorf("after a resize, told of %d CPU shares", got)
			}
		})
		t.Run("with what the container is at each moment", func(t *testing.T) {
			events := map[string]*api.Container{}
			for _, ev := range plugin.Events(c.ID) {
				events[ev.Name] = ev.Container
				if ev.Pod.GetId() != p.ID || ev.Container.GetPodSandboxId() != p.ID || ev.Container.GetName() != c.Config.Metadata.Name {
					t.Errorf("%s is about %v in %v", ev.Name, ev.Container, ev.Pod)
				}
			}
			create := events["CreateContainer"]
			if !slices.Contains(create.Env, "FROM=request") || create.Labels["l"] != "v" || create.Annotations["a"] != "v" || len(create.Args) == 0 {
				t.Errorf("env %v, labels %v, annotations %v, args %v", create.Env, create.Labels, create.Annotations, create.Args)
			}
			l := create.Linux
			if l.Resources.Memory.Limit.GetValue() != 64<<20 || l.Resources.Cpu.Shares.GetValue() != 512 || !strings.HasSuffix(l.CgroupsPath, c.ID) || len(l.Namespaces) == 0 {
				t.Errorf("linux: %v", l)
			}
			if !slices.ContainsFunc(create.Mounts, func(m *api.Mount) bool { return m.Destination == "/etc/resolv.conf" }) {
				t.Errorf("mounts: %v", create.Mounts)
			}
			if create.Image.GetName() != w.ref(busyboxImage) || !strings.HasPrefix(create.Image.GetDigest(), "sha256:") || !strings.HasPrefix(create.Image.GetConfigDigest(), "sha256:") {
				t.Errorf("image: %v", create.Image)
			}
			for name, want := range map[string]api.ContainerState{
				"CreateContainer": api.ContainerState_CONTAINER_CREATED, "StartContainer": api.ContainerState_CONTAINER_CREATED,
				"PostStartContainer": api.ContainerState_CONTAINER_RUNNING, "UpdateContainer": api.ContainerState_CONTAINER_RUNNING,
				"StopContainer": api.ContainerState_CONTAINER_STOPPED, "RemoveContainer": api.ContainerState_CONTAINER_STOPPED,
			} {
				if events[name].State != want {
					t.Errorf("%s has the state %v", name, events[name].State)
				}
			}
			if events["StartContainer"].Pid != uint32(pid) || events["PostStartContainer"].Pid != uint32(pid) {
				t.Errorf("told the pids %d and %d of %d", events["StartContainer"].Pid, events["PostStartContainer"].Pid, pid)
			}
			if got := events["PostUpdateContainer"].Linux.Resources.Cpu.Shares.GetValue(); got != 600 {
				t.Errorf("after an update, told of %d CPU shares", got)
			}
			if stop := plugin.Events(ends.ID)[4].Container; stop.ExitCode != 3 || stop.FinishedAt == 0 {
				t.Errorf("its end is told as %v", stop)
			}
		})
	})
}

func TestAPluginsAdjustmentsAreWhatRuns(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		data := filepath.Join(w.Dir, "injected")
		if err := os.WriteFile(data, []byte("from the host\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		hooked := filepath.Join(w.Dir, "hooked")
		plugin := e.plugin(t, &harness.NRIPlugin{Create: func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			a.AddEnv("ADDED", "by plugin")
			a.AddEnv("CHANGED", "by plugin")
			a.RemoveEnv("REMOVED")
			a.AddAnnotation("from.plugin", "yes")
			a.AddMount(&api.Mount{Destination: "/injected", Type: "bind", Source: data, Options: []string{"bind", "ro"}})
			a.RemoveMount("/etc/hostname")
			a.AddDevice(&api.LinuxDevice{Path: "/dev/mynull", Type: "c", Major: 1, Minor: 3})
			a.AddRlimit("RLIMIT_NOFILE", 512, 256)
			a.SetLinuxMemoryLimit(96 << 20)
			a.SetLinuxCPUShares(700)
			a.SetLinuxPidLimits(50)
			a.SetLinuxCgroupsPath("/" + strings.Trim(filepath.Dir(c.Linux.CgroupsPath), "/") + "/plugin-" + c.Id)
			a.SetLinuxSysctl("net.ipv4.ip_default_ttl", "77")
			a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo ran >" + hooked}}}})
			a.SetArgs([]string{"sh", "-c", "echo $ADDED; exec sleep 12345"})
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Syscalls: []*api.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: "SCMP_ACT_ERRNO"}}})
			return a, nil, nil
		}}, "10")
		p := e.runPod(t)
		c := p.run(t, busyboxImage, sleeper, func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "CHANGED", Value: []byte("x")}, {Key: "REMOVED", Value: []byte("x")}}
		}, resources(&runtimeapi.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 32 << 20, CpuQuota: 50000, CpuPeriod: 100000}))
		inside := c.exec(t, "sh", "-c", `echo "$ADDED $CHANGED $REMOVED"; cat /injected; ls /etc/hostname; ls -l /dev/mynull; echo x >/dev/mynull; ulimit -n; ulimit -Hn; cat /proc/sys/net/ipv4/ip_default_ttl; mkdir /tmp/x; cat /proc/self/cgroup; cat /proc/1/cmdline | tr '\0' ' '`+" 2>&1; true")
		for _, want := range []string{"by plugin by plugin \n", "from the host\n", "1,   3", "\n256\n512\n77\n", "plugin-" + c.ID, "sleep 12345"} {
			if !strings.Contains(inside, want) {
				t.Errorf("inside there is no %q in:\n%s", want, inside)
			}
		}
		if _, err := os.Stat(hooked); err != nil {
			t.Errorf("the hook did not run: %v", err)
		}
		if resp, _ := e.rt.ExecSync(call(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", "mkdir /tmp/x; ls /etc/hostname"}}); !strings.Contains(string(resp.GetStderr()), "not permitted") || !strings.Contains(string(resp.GetStderr()), "No such file") {
			t.Errorf("the seccomp policy or the removed mount is not there: %s%s", resp.GetStdout(), resp.GetStderr())
		}
		if out := c.stdout(t); out != "by plugin\n" {
			t.Errorf("its output is %q", out)
		}
		t.Run("and what its status and further updates start from", func(t *testing.T) {
			checkCgroup(t, c, map[string]string{"memory/memory.limit_in_bytes": fmt.Sprint(96 << 20), "cpu/cpu.shares": "700", "pids/pids.max": "50"})
			s := c.status(t)
			if r := s.GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 96<<20 || r.GetCpuShares() != 700 || r.GetCpuQuota() != 50000 {
				t.Errorf("status says %v", r)
			}
			if len(s.GetAnnotations()) != 0 {
				t.Errorf("status has the annotations %v, which the request had not", s.GetAnnotations())
			}
			if err := c.update(t, &runtimeapi.LinuxContainerResources{CpuQuota: 25000}); err != nil {
				t.Fatal(err)
			}
			checkCgroup(t, c, map[string]string{"memory/memory.limit_in_bytes": fmt.Sprint(96 << 20), "cpu/cpu.shares": "700", "cpu/cpu.cfs_quota_us": "25000", "pids/pids.max": "50"})
		})
		t.Run("the plugin is told of them after the creation", func(t *testing.T) {
			post := plugin.Events(c.ID)[1].Container
			if post.Annotations["from.plugin"] != "yes" || !slices.Contains(post.Env, "ADDED=by plugin") || post.Linux.Resources.Memory.Limit.GetValue() != 96<<20 {
				t.Errorf("told %v", post)
			}
		})
	})
}

func TestWhatAPluginCantHaveFailsTheCall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		var adjust func(a *api.ContainerAdjustment)
		plugin := e.plugin(t, &harness.NRIPlugin{Create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			adjust(a)
			return a, nil, nil
		}}, "10")
		p := e.runPod(t)
		for name, c := range map[string]struct {
			adjust func(a *api.ContainerAdjustment)
			want   string
		}{
			"a mount of what is not there": {func(a *api.ContainerAdjustment) {
				a.AddMount(&api.Mount{Destination: "/x", Type: "bind", Source: "/no/such", Options: []string{"bind"}})
			}, "/no/such"},
			"a mount over the root":    {func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "/..", Type: "tmpfs"}) }, "below the root"},
			"an unknown limit":         {func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_X", 1, 1) }, "RLIMIT_X"},
			"a class of block I/O":     {func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("fast") }, "fast"},
			"a CDI device":             {func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "none.example/x=1"}) }, "none.example"},
			"a sysctl of the machine":  {func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("vm.swappiness", "1") }, "vm.swappiness"},
			"an annotation of ours":    {func(a *api.ContainerAdjustment) { a.AddAnnotation("io.kubernetes.cri.sandbox-id", "x") }, "sandbox-id"},
			"a cgroup that is no path": {func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("../../x") }, "cgroupsPath"},
			"a cpuset that is none":    {func(a *api.ContainerAdjustment) { a.SetLinuxCPUSetCPUs("all") }, "all"},
		} {
			t.Run(name, func(t *testing.T) {
				adjust = c.adjust
				config := p.containerConfig(busyboxImage, sleeper)
				_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
				wantCode(t, err, codes.FailedPrecondition, "NRI", c.want)
				names := plugin.Names("")
				if last := names[len(names)-3:]; !slices.Equal(last, []string{"CreateContainer", "StopContainer", "RemoveContainer"}) {
					t.Errorf("the plugin was told %v", last)
				}
				if list := e.containers(t, nil); len(list) != 0 {
					t.Errorf("left: %v", list)
				}
			})
		}
	})
}

var errRefused = errors.New("not today")

func TestAPluginThatRefusesFailsTheCallAndNothingIsLeft(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		events := e.listen(t)
		first := e.plugin(t, &harness.NRIPlugin{}, "10")
		plugin := e.plugin(t, &harness.NRIPlugin{}, "20")
		refuse := func(event string) (yes func()) {
			refused := true
			plugin.On(event, func(harness.NRIEvent) error {
				if refused {
					return errRefused
				}
				return nil
			})
			return func() { refused = false }
		}
		t.Run("a pod", func(t *testing.T) {
			yes := refuse("RunPodSandbox")
			config := e.podConfig(t)
			_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: config})
			wantCode(t, err, codes.FailedPrecondition, "NRI RunPodSandbox", "not today", config.Metadata.Name)
			if list := e.pods(t, nil); len(list) != 0 {
				t.Errorf("left: %v", list)
			}
			// The one before it had been told.
			id := first.Events("")[0].ID()
			wantNames(t, first, id, "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox")
			yes()
			e.runConfig(t, config).remove(t)
		})
		p := e.runPod(t)
		t.Run("a container", func(t *testing.T) {
			yes := refuse("CreateContainer")
			config := p.containerConfig(busyboxImage, sleeper)
			request := &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config}
			_, err := e.rt.CreateContainer(call(t), request)
			wantCode(t, err, codes.FailedPrecondition, "NRI CreateContainer", "not today")
			if list := e.containers(t, nil); len(list) != 0 {
				t.Errorf("left: %v", list)
			}
			yes()
			if _, err := e.rt.CreateContainer(call(t), request); err != nil {
				t.Errorf("made again: %v", err)
			}
		})
		t.Run("a start", func(t *testing.T) {
			c := p.create(t, busyboxImage, sleeper)
			yes := refuse("StartContainer")
			defer yes()
			_, err := e.rt.StartContainer(call(t), &runtimeapi.StartContainerRequest{ContainerId: c.ID})
			wantCode(t, err, codes.FailedPrecondition, "NRI StartContainer", "not today")
			if s := c.status(t); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || s.ExitCode != 128 {
				t.Errorf("its status is %v", s)
			}
			wantNames(t, first, c.ID, "CreateContainer", "PostCreateContainer", "StartContainer", "StopContainer")
			c.remove(t)
		})
		t.Run("an update", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper, resources(&runtimeapi.LinuxContainerResources{CpuShares: 500}))
			yes := refuse("UpdateContainer")
			defer yes()
			wantCode(t, c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 600}), codes.FailedPrecondition, "NRI UpdateContainer", "not today")
			checkCgroup(t, c, map[string]string{"cpu/cpu.shares": "500"})
			if got := c.status(t).GetResources().GetLinux().GetCpuShares(); got != 500 {
				t.Errorf("status says %d CPU shares", got)
			}
		})
		t.Run("a pod's resize", func(t *testing.T) {
			yes := refuse("UpdatePodSandbox")
			defer yes()
			_, err := e.rt.UpdatePodSandboxResources(call(t), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: p.ID, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 5}})
			wantCode(t, err, codes.FailedPrecondition, "NRI UpdatePodSandbox", "not today")
		})
		t.Run("but no end", func(t *testing.T) {
			for _, event := range []string{"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"} {
				refuse(event)
			}
			c := p.run(t, busyboxImage, sleeper)
			c.stop(t, 0)
			c.remove(t)
			p.remove(t)
		})
		t.Run("a judge of what others adjust", func(t *testing.T) {
			e.plugin(t, &harness.NRIPlugin{Validate: func(r *api.ValidateContainerAdjustmentRequest) error {
				if len(r.GetAdjust().GetEnv()) > 0 {
					return errors.New("no env here")
				}
				return nil
			}}, "30")
			first.Create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
				a := &api.ContainerAdjustment{}
				a.AddEnv("X", "y")
				return a, nil, nil
			}
			p := e.runPod(t)
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: p.containerConfig(busyboxImage, sleeper), SandboxConfig: p.Config})
			wantCode(t, err, codes.FailedPrecondition, "no env here")
		})
		t.Run("of what was refused, nobody hears", func(t *testing.T) {
			refused := first.Events("")[0].ID()
			for len(events.events) > 0 {
				if ev := <-events.events; ev.ContainerId == refused {
					t.Errorf("an event tells of it: %v", ev)
				}
			}
		})
	})
}
