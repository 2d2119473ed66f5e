//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// trigger prepares what an operation needs while nothing is armed, and returns
// the call that goes through its steps. The call may be made again: after the
// daemon has died in it, it is.
type trigger func(t *testing.T, e *Engine) (call func(context.Context) error)

// triggers by operation. Every operation that registers steps must be here.
var triggers = map[string]trigger{
	"RunPodSandbox": func(t *testing.T, e *Engine) func(context.Context) error {
		// With an init and a host port, so that no step has nothing to do.
		config := e.podConfig(t, podPID, func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: int32(freePort(t)), ContainerPort: 80}}
		})
		return func(ctx context.Context) error {
			_, err := e.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			return err
		}
	},
	"StopPodSandbox": func(t *testing.T, e *Engine) func(context.Context) error {
		p := e.faultPod(t)
		p.run(t, busyboxImage, sleeper)
		return func(ctx context.Context) error {
			_, err := e.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID})
			return err
		}
	},
	"RemovePodSandbox": func(t *testing.T, e *Engine) func(context.Context) error {
		p := e.faultPod(t)
		p.run(t, busyboxImage, sleeper)
		return func(ctx context.Context) error {
			_, err := e.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID})
			return err
		}
	},
	"CreateContainer": func(t *testing.T, e *Engine) func(context.Context) error {
		p := e.faultPod(t)
		config := p.containerConfig(busyboxImage, sleeper, mounting(e.imageMount(busyboxImage, "/v", "")))
		request := &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config}
		return func(ctx context.Context) error {
			_, err := e.rt.CreateContainer(ctx, request)
			return err
		}
	},
	"StartContainer": func(t *testing.T, e *Engine) func(context.Context) error {
		p := e.faultPod(t)
		c := p.create(t, busyboxImage, sleeper)
		return func(ctx context.Context) error {
			_, err := e.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ID})
			// The daemon's death in the middle of a start may cost the container its
			// start; then it must be EXITED, and a kubelet makes another.
			if err != nil && status.Code(err) != codes.Unavailable && ctx.Err() == nil {
				if s := c.status(t); s.State == runtimeapi.ContainerState_CONTAINER_EXITED && s.Reason != "" {
					again := p.create(t, busyboxImage, sleeper, func(cc *runtimeapi.ContainerConfig) { cc.Metadata.Attempt = 1 })
					again.start(t)
					return nil
				}
			}
			return err
		}
	},
	"StopContainer": func(t *testing.T, e *Engine) func(context.Context) error {
		c := e.faultPod(t).run(t, busyboxImage, command("payload", "trap", "3"))
		eventually(t, 10*time.Second, "the container traps signals", func() bool { return strings.Contains(c.stdout(t), "ready") })
		return func(ctx context.Context) error {
			_, err := e.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 1})
			return err
		}
	},
	"RemoveContainer": func(t *testing.T, e *Engine) func(context.Context) error {
		c := e.faultPod(t).run(t, busyboxImage, sleeper, mounting(e.imageMount(busyboxImage, "/v", "")))
		return func(ctx context.Context) error {
			_, err := e.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
			return err
		}
	},
	"ExecSync": func(t *testing.T, e *Engine) func(context.Context) error {
		c := e.faultPod(t).run(t, busyboxImage, sleeper)
		return func(ctx context.Context) error {
			_, err := e.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"true"}, Timeout: 10})
			return err
		}
	},
	"Exec": func(t *testing.T, e *Engine) func(context.Context) error {
		c := e.faultPod(t).run(t, busyboxImage, sleeper)
		return func(ctx context.Context) error {
			resp, err := e.rt.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}, Stdout: true})
			if err != nil {
				return err
			}
			s, err := connectStreams(resp.Url, streamsWanted{stdout: true})
			if err != nil {
				return err
			}
			defer s.cut()
			if text, err := io.ReadAll(s.failure); err != nil || !strings.Contains(string(text), `"Success"`) {
				return fmt.Errorf("exec ends with %q, %w", text, err)
			}
			return nil
		}
	},
	"UpdateContainerResources": func(t *testing.T, e *Engine) func(context.Context) error {
		c := e.faultPod(t).run(t, busyboxImage, sleeper)
		return func(ctx context.Context) error {
			_, err := e.rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: c.ID, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20},
			})
			return err
		}
	},
	"ReopenContainerLog": func(t *testing.T, e *Engine) func(context.Context) error {
		c := e.faultPod(t).run(t, busyboxImage, sleeper)
		return func(ctx context.Context) error {
			_, err := e.rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID})
			return err
		}
	},
	"PullImage": func(t *testing.T, e *Engine) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := e.img.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: e.w.ref(dockerImage)}})
			return err
		}
	},
	"RemoveImage": func(t *testing.T, e *Engine) func(context.Context) error {
		e.pull(t, dockerImage)
		return func(ctx context.Context) error {
			_, err := e.img.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: e.w.ref(dockerImage)}})
			return err
		}
	},
}

// faultPod is a pod with all that a pod can have.
func (e *Engine) faultPod(t *testing.T) *Pod {
	t.Helper()
	return e.runPod(t, podPID, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{HostPort: int32(freePort(t)), ContainerPort: 80}}
	})
}

// TestTheDaemonDiesAtEveryStep goes through all fail points there are, the ones
// of each operation in a world of their own.
func TestTheDaemonDiesAtEveryStep(t *testing.T) {
	buildFaults(t)
	for _, op := range operations(t) {
		t.Run(op.name, func(t *testing.T) {
			prepare, ok := triggers[op.name]
			if !ok {
				t.Fatalf("nothing here triggers %s: add it to triggers", op.name)
			}
			inWorld(t, func(t *testing.T, w *World) {
				e := w.engine(t, func(o *harness.EngineOptions) { o.Binary = faultsBin })
				for i, point := range op.points {
					next := op.points[(i+1)%len(op.points)]
					t.Run(strings.TrimPrefix(point, op.name+"/"), func(t *testing.T) { dieAt(t, e, point, next, prepare) })
				}
			})
		})
	}
}

type operation struct {
	name   string
	points []string
}

// operations asks the daemon for its fail points.
func operations(t *testing.T) []operation {
	t.Helper()
	list, err := exec.Command(faultsBin, "failpoints").Output()
	if err != nil {
		t.Fatalf("list the fail points: %v", err)
	}
	var all []operation
	for point := range strings.FieldsSeq(string(list)) {
		name, _, _ := strings.Cut(point, "/")
		if len(all) == 0 || all[len(all)-1].name != name {
			all = append(all, operation{name: name})
		}
		all[len(all)-1].points = append(all[len(all)-1].points, point)
	}
	if all == nil {
		t.Fatal("there are no fail points")
	}
	return all
}

// dieAt lets the daemon die at one point, and then wants what the design
// promises: the next start leaves no half-made thing, the call works when it is
// made again, and when all is removed nothing is left. The start after a death
// is with the next point, which does nothing until the file is there.
func dieAt(t *testing.T, e *Engine, point, next string, prepare trigger) {
	armed := filepath.Join(e.w.Dir, "armed")
	at := func(point string) []string { return []string{"CRI_ENGINE_FAILPOINT=" + point + "@" + armed} }
	if !slices.Equal(e.Env, at(point)) {
		e.Kill()
		e.Env = at(point)
		e.restart(t)
	}
	request := prepare(t, e)
	if err := os.WriteFile(armed, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	err := request(within(t, time.Minute))
	select {
	case <-e.Done():
	case <-time.After(slowly(5 * time.Second)):
		_ = os.Remove(armed)
		t.Fatalf("the daemon lives: the call did not pass here (its result: %v)", err)
	}
	e.Env = at(next)
	e.restart(t)

	for _, p := range e.pods(t, nil) {
		if _, err := e.rt.PodSandboxStatus(call(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id}); err != nil {
			t.Errorf("a pod is listed and has no status: %v", err)
		}
	}
	for _, c := range e.containers(t, nil) {
		resp, err := e.rt.ContainerStatus(call(t), &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		if isNotFound(err) && len(e.containers(t, &runtimeapi.ContainerFilter{Id: c.Id})) == 0 {
			continue // a removal that the daemon died in has been finished meanwhile
		}
		if err != nil {
			t.Errorf("a container is listed and has no status: %v", err)
		} else if s := resp.Status; s.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN || s.State != c.State {
			t.Errorf("a container is listed as %v, its status is %v", c.State, s)
		}
	}
	if err := request(within(t, time.Minute)); err != nil {
		t.Errorf("the call made again: %v", err)
	}
	removeAll(t, e)
	leaks(t, e.w, e, e.idle)
}

// removeAll removes every pod, and every image but that of most tests.
func removeAll(t *testing.T, e *Engine) {
	t.Helper()
	for _, p := range e.pods(t, nil) {
		(&Pod{e: e, ID: p.Id, Config: &runtimeapi.PodSandboxConfig{Metadata: p.Metadata}}).remove(t)
	}
	for _, c := range e.containers(t, nil) {
		t.Errorf("a container without a pod: %v", c)
	}
	e.removeImage(t, e.w.ref(dockerImage))
}
