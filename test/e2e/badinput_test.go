//go:build e2e

package e2e

import (
	"context"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestBadInput(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		c := p.run(t, busyboxImage, sleeper)
		idle := settled(t, w, e)
		long := strings.Repeat("x", 5000)
		unknown := strings.Repeat("0", 64)

		pod := func(change podOption) func(context.Context) error {
			return func(ctx context.Context) error {
				_, err := e.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t, change)})
				return err
			}
		}
		container := func(change containerOption) func(context.Context) error {
			return func(ctx context.Context) error {
				_, err := e.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: p.containerConfig(busyboxImage, sleeper, change), SandboxConfig: p.Config})
				return err
			}
		}
		mounts := func(m *runtimeapi.Mount) func(context.Context) error {
			return container(func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{m} })
		}
		ids := func(id string) map[string]func(context.Context) error {
			return map[string]func(context.Context) error{
				"PodSandboxStatus": func(ctx context.Context) error {
					_, err := e.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
					return err
				},
				"CreateContainer": func(ctx context.Context) error {
					_, err := e.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: p.containerConfig(busyboxImage, sleeper), SandboxConfig: p.Config})
					return err
				},
				"StartContainer": func(ctx context.Context) error {
					_, err := e.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
					return err
				},
				"ContainerStatus": func(ctx context.Context) error {
					_, err := e.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
					return err
				},
				"ExecSync": func(ctx context.Context) error {
					_, err := e.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
					return err
				},
				"ReopenContainerLog": func(ctx context.Context) error {
					_, err := e.rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
					return err
				},
			}
		}
		try := func(t *testing.T, f func(context.Context) error, code codes.Code, texts ...string) {
			t.Helper()
			wantCode(t, f(call(t)), code, texts...)
			leaks(t, w, e, idle)
		}

		for name, f := range ids(unknown) {
			t.Run(name+" of an unknown id is NotFound and names it", func(t *testing.T) { try(t, f, codes.NotFound, unknown) })
		}
		for _, bad := range []string{"", "../../../etc/passwd", "a/b", "\x00", long, "*", "-rf"} {
			for name, f := range ids(bad) {
				t.Run(name+" of the id "+clip(bad, 20)+" is refused", func(t *testing.T) {
					err := f(call(t))
					if code := status.Code(err); code != codes.InvalidArgument && code != codes.NotFound {
						t.Errorf("got %v", err)
					}
					if bad == "" {
						wantCode(t, err, codes.InvalidArgument)
					}
				})
			}
		}
		for _, bad := range []struct {
			name  string
			f     func(context.Context) error
			code  codes.Code
			texts []string
		}{
			{"a pod without a config", func(ctx context.Context) error {
				_, err := e.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{})
				return err
			}, codes.InvalidArgument, []string{"config"}},
			{"a pod without metadata", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }), codes.InvalidArgument, []string{"metadata"}},
			{"a pod without a name", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" }), codes.InvalidArgument, []string{"metadata.name"}},
			{"a pod without a uid", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "" }), codes.InvalidArgument, []string{"metadata.uid"}},
			{"a pod without a namespace", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = "" }), codes.InvalidArgument, []string{"metadata.namespace"}},
			{"a pod whose name is too long", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = long }), codes.InvalidArgument, []string{"metadata.name"}},
			{"a pod whose name holds a NUL", pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "a\x00b" }), codes.InvalidArgument, []string{"metadata.name"}},
			{"a hostname that is too long", pod(func(c *runtimeapi.PodSandboxConfig) { c.Hostname = long }), codes.InvalidArgument, []string{"hostname"}},
			{"a hostname with a slash", pod(func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a/b" }), codes.InvalidArgument, []string{"hostname"}},
			{"a log directory that is relative", pod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "logs" }), codes.InvalidArgument, []string{"log_directory"}},
			{"a handler that is not configured", func(ctx context.Context) error {
				_, err := e.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t), RuntimeHandler: "no-such"})
				return err
			}, codes.InvalidArgument, []string{"no-such"}},
			{"a DNS server with a newline", pod(func(c *runtimeapi.PodSandboxConfig) {
				c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"192.0.2.1\nsearch evil.example"}}
			}), codes.InvalidArgument, []string{"dns_config"}},
			{"a host port that is none", pod(func(c *runtimeapi.PodSandboxConfig) {
				c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000, ContainerPort: 80}}
			}), codes.InvalidArgument, []string{"70000"}},
			{"a host address that is none", pod(func(c *runtimeapi.PodSandboxConfig) {
				c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 8080, ContainerPort: 80, HostIp: "here"}}
			}), codes.InvalidArgument, []string{"here"}},
			{"a cgroup parent that leads out", pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/../../x" }), codes.InvalidArgument, []string{"cgroup_parent"}},
			{"a namespace mode that does not exist", pod(namespaces(func(o *runtimeapi.NamespaceOption) { o.Network = 77 })), codes.InvalidArgument, []string{"network"}},

			{"a container without a config", func(ctx context.Context) error {
				_, err := e.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config})
				return err
			}, codes.InvalidArgument, []string{"config"}},
			{"a container without metadata", container(func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }), codes.InvalidArgument, []string{"metadata"}},
			{"a container without a name", container(func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "" }), codes.InvalidArgument, []string{"metadata.name"}},
			{"a container whose name is too long", container(func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = long }), codes.InvalidArgument, []string{"metadata.name"}},
			{"a container without an image", container(func(c *runtimeapi.ContainerConfig) { c.Image = nil }), codes.InvalidArgument, []string{"image"}},
			{"a log path that leads out of the log directory", container(func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../../../tmp/evil.log" }), codes.InvalidArgument, []string{"log_path"}},
			{"a log path that is absolute", container(func(c *runtimeapi.ContainerConfig) { c.LogPath = "/tmp/evil.log" }), codes.InvalidArgument, []string{"log_path"}},
			{"a log path with a NUL", container(func(c *runtimeapi.ContainerConfig) { c.LogPath = "a\x00b" }), codes.InvalidArgument, []string{"log_path"}},
			{"a command with a NUL", container(command("echo", "a\x00b")), codes.InvalidArgument, []string{"command"}},
			{"an environment with a NUL", container(env("A=b\x00c")), codes.InvalidArgument, []string{"env"}},
			{"an environment variable without a name", container(env("=x")), codes.InvalidArgument, []string{"env"}},
			{"a working directory that is relative", container(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "a/b" }), codes.InvalidArgument, []string{"working_dir"}},
			{"a negative user", container(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: -5} })), codes.InvalidArgument, []string{"run_as_user"}},
			{"a user beyond 32 bits", container(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.RunAsUser = &runtimeapi.Int64Value{Value: math.MaxInt64}
			})), codes.InvalidArgument, []string{"run_as_user"}},
			{"a group without a user", container(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsGroup = &runtimeapi.Int64Value{Value: 5} })), codes.InvalidArgument, []string{"run_as_group"}},
			{"a mount with a relative container path", mounts(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "m"}), codes.InvalidArgument, []string{"container_path"}},
			{"a mount without a container path", mounts(&runtimeapi.Mount{HostPath: "/tmp"}), codes.InvalidArgument, []string{"container_path"}},
			{"a mount with a relative host path", mounts(&runtimeapi.Mount{HostPath: "tmp", ContainerPath: "/m"}), codes.InvalidArgument, []string{"host_path"}},
			{"a mount with a NUL", mounts(&runtimeapi.Mount{HostPath: "/tmp/a\x00", ContainerPath: "/m"}), codes.InvalidArgument, []string{"host_path"}},
			{"a mount whose host path is missing", mounts(&runtimeapi.Mount{HostPath: "/no/such/path", ContainerPath: "/m"}), codes.InvalidArgument, []string{"/no/such/path"}},
			{"a mount whose host path runs through a file", mounts(&runtimeapi.Mount{HostPath: "/etc/passwd/x", ContainerPath: "/m"}), codes.InvalidArgument, []string{"/etc/passwd/x"}},
			{"a device that does not exist", container(func(c *runtimeapi.ContainerConfig) {
				c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "rw"}}
			}), codes.InvalidArgument, []string{"/dev/no-such"}},
			{"device permissions that are none", container(func(c *runtimeapi.ContainerConfig) {
				c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "xyz"}}
			}), codes.InvalidArgument, []string{"permissions"}},
			{"a negative memory limit", container(resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -7})), codes.InvalidArgument, []string{"memory_limit_in_bytes"}},
			{"a cpuset that is none", container(resources(&runtimeapi.LinuxContainerResources{CpusetCpus: "all of them"})), codes.InvalidArgument, []string{"cpuset_cpus"}},
			{"an oom_score_adj out of range", container(resources(&runtimeapi.LinuxContainerResources{OomScoreAdj: 5000})), codes.InvalidArgument, []string{"oom_score_adj"}},
			{"a seccomp profile that does not exist", container(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile.json"}
			})), codes.InvalidArgument, []string{"/no/such/profile.json"}},

			{"a negative stop time-out", func(ctx context.Context) error {
				_, err := e.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: -1})
				return err
			}, codes.InvalidArgument, []string{"timeout"}},
			{"a negative exec time-out", func(ctx context.Context) error {
				_, err := e.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"true"}, Timeout: -1})
				return err
			}, codes.InvalidArgument, []string{"timeout"}},
			{"an exec without a command", func(ctx context.Context) error {
				_, err := e.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID})
				return err
			}, codes.InvalidArgument, []string{"cmd"}},
			{"an exec with a NUL", func(ctx context.Context) error {
				_, err := e.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"echo", "a\x00b"}})
				return err
			}, codes.InvalidArgument, []string{"cmd"}},
			{"starting a container that runs", func(ctx context.Context) error {
				done := p.run(t, busyboxImage, command("true"))
				defer done.remove(t)
				done.wait(t)
				_, err := e.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: done.ID})
				return err
			}, codes.FailedPrecondition, nil},
			{"a pull without an image", func(ctx context.Context) error {
				_, err := e.img.PullImage(ctx, &runtimeapi.PullImageRequest{})
				return err
			}, codes.InvalidArgument, []string{"image"}},
			{"a pull of a name that is none", func(ctx context.Context) error { _, err := e.tryPull(ctx, "UPPER//..:::@", nil); return err }, codes.InvalidArgument, []string{"UPPER"}},
			{"a pull of a name that is too long", func(ctx context.Context) error { _, err := e.tryPull(ctx, long, nil); return err }, codes.InvalidArgument, nil},
			{"a pull of a name with traversal", func(ctx context.Context) error { _, err := e.tryPull(ctx, "../../etc/passwd", nil); return err }, codes.InvalidArgument, nil},
			{"a pull by a digest of a wrong length", func(ctx context.Context) error {
				_, err := e.tryPull(ctx, w.ref("e2e/busybox@sha256:abc"), nil)
				return err
			}, codes.InvalidArgument, nil},
			{"the status of no image", func(ctx context.Context) error {
				_, err := e.img.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{})
				return err
			}, codes.InvalidArgument, []string{"image"}},
		} {
			t.Run(bad.name+" is refused", func(t *testing.T) { try(t, bad.f, bad.code, bad.texts...) })
		}
		t.Run("a log directory with a link in it does not lead out", func(t *testing.T) {
			outside := filepath.Join(w.Dir, "outside")
			symlink(t, outside, filepath.Join(p.Config.LogDirectory, "link"))
			config := p.containerConfig(busyboxImage, command("true"), func(c *runtimeapi.ContainerConfig) { c.LogPath = "link/evil.log" })
			resp, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
			if err == nil {
				_, err = e.rt.StartContainer(call(t), &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId})
				(&Container{p: p, ID: resp.ContainerId, Config: config}).remove(t)
			}
			if err == nil {
				t.Error("the container starts")
			}
			wantAbsent(t, filepath.Join(outside, "evil.log"))
		})
		t.Run("what is unknown may be stopped and removed where the proto says so", func(t *testing.T) {
			if _, err := e.rt.RemovePodSandbox(call(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: unknown}); err != nil {
				t.Errorf("RemovePodSandbox: %v", err)
			}
			if _, err := e.rt.RemoveContainer(call(t), &runtimeapi.RemoveContainerRequest{ContainerId: unknown}); err != nil {
				t.Errorf("RemoveContainer: %v", err)
			}
			if _, err := e.img.RemoveImage(call(t), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "none/such:v1"}}); err != nil {
				t.Errorf("RemoveImage: %v", err)
			}
		})
		t.Run("the same name with another configuration is AlreadyExists, and with the same the same pod", func(t *testing.T) {
			again, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: p.Config})
			if err != nil || again.PodSandboxId != p.ID {
				t.Errorf("the same: %v, %v", again, err)
			}
			other := e.podConfig(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata = p.Config.Metadata })
			_, err = e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: other})
			wantCode(t, err, codes.AlreadyExists, p.ID)
		})
		t.Run("a container in a stopped pod is refused", func(t *testing.T) {
			q := e.runPod(t)
			q.stop(t)
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: q.ID, Config: q.containerConfig(busyboxImage, sleeper), SandboxConfig: q.Config})
			wantCode(t, err, codes.FailedPrecondition, q.ID)
		})
		t.Run("a request larger than the limit is refused and the engine lives", func(t *testing.T) {
			huge := e.podConfig(t, func(c *runtimeapi.PodSandboxConfig) {
				c.Annotations = map[string]string{"a": strings.Repeat("x", 20<<20)}
			})
			_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: huge})
			wantCode(t, err, codes.ResourceExhausted)
			if _, err := e.rt.Version(call(t), &runtimeapi.VersionRequest{}); err != nil {
				t.Error(err)
			}
		})
	})
}

// kubeletVersion: the one value that the kubelet takes as the API's version.
func TestVersionAndStatus(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		v, err := e.rt.Version(call(t), &runtimeapi.VersionRequest{Version: "0.1.0"})
		if err != nil || v.Version != "0.1.0" || v.RuntimeApiVersion != "v1" || v.RuntimeName != "cri-engine" || v.RuntimeVersion == "" {
			t.Errorf("version %v, %v", v, err)
		}
		s, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		conditions := map[string]bool{}
		for _, c := range s.Status.Conditions {
			conditions[c.Type] = c.Status
		}
		if !conditions["RuntimeReady"] || !conditions["NetworkReady"] {
			t.Errorf("conditions %v", s.Status.Conditions)
		}
		unnamed := false
		for _, h := range s.RuntimeHandlers {
			unnamed = unnamed || h.Name == ""
		}
		if !unnamed {
			t.Errorf("no handler has the empty name: %v", s.RuntimeHandlers)
		}
		if len(s.Info) == 0 {
			t.Error("the verbose status has no info")
		}
		config, err := e.rt.RuntimeConfig(call(t), &runtimeapi.RuntimeConfigRequest{})
		if err != nil || config.GetLinux() == nil {
			t.Errorf("runtime config %v, %v", config, err)
		}
		_, err = e.rt.CheckpointContainer(call(t), &runtimeapi.CheckpointContainerRequest{ContainerId: strings.Repeat("0", 64)})
		wantCode(t, err, codes.Unimplemented)
	})
}
