//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStop(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		e.pull(t, signalImage)
		e.idle = settled(t, w, e)
		p := e.runPod(t)
		// deaf outlives SIGTERM and says that it came.
		deaf := func(t *testing.T) *Container {
			t.Helper()
			c := p.run(t, busyboxImage, command("payload", "trap", "7"))
			eventually(t, 10*time.Second, "the container traps signals", func() bool { return strings.Contains(c.stdout(t), "ready") })
			return c
		}
		stopTime := func(t *testing.T, c *Container, seconds int64) time.Duration {
			t.Helper()
			start := time.Now()
			c.stop(t, seconds)
			return time.Since(start)
		}
		t.Run("a container that minds SIGTERM ends at once with its own code", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("trap 'exit 9' TERM; while :; do sleep 0.02; done"))
			c.exec(t, "true") // by then the trap is set
			if took := stopTime(t, c, 30); took > slowly(3*time.Second) {
				t.Errorf("it took %v", took)
			}
			if s := c.status(t); s.ExitCode != 9 {
				t.Errorf("exit code %d", s.ExitCode)
			}
		})
		t.Run("one that does not is killed at the deadline", func(t *testing.T) {
			c := deaf(t)
			if took := stopTime(t, c, 1); took < time.Second || took > slowly(3*time.Second) {
				t.Errorf("it took %v", took)
			}
			if s := c.status(t); s.ExitCode != 137 || !strings.Contains(c.stdout(t), "signal 15") {
				t.Errorf("exit code %d, log %q", s.ExitCode, c.stdout(t))
			}
		})
		t.Run("a time-out of 0 kills at once", func(t *testing.T) {
			c := deaf(t)
			if took := stopTime(t, c, 0); took > slowly(2*time.Second) {
				t.Errorf("it took %v", took)
			}
			if s := c.status(t); s.ExitCode != 137 {
				t.Errorf("exit code %d", s.ExitCode)
			}
		})
		t.Run("the image's stop signal is used", func(t *testing.T) {
			c := p.run(t, signalImage)
			eventually(t, 10*time.Second, "the container traps signals", func() bool { return strings.Contains(c.stdout(t), "ready") })
			c.stop(t, 20)
			if s := c.status(t); s.ExitCode != 7 || !strings.Contains(c.stdout(t), "signal 12") {
				t.Errorf("exit code %d, log %q", s.ExitCode, c.stdout(t))
			}
		})
		t.Run("the request's stop signal wins", func(t *testing.T) {
			c := p.run(t, busyboxImage, command("payload", "trap", "11"), func(c *runtimeapi.ContainerConfig) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR2 })
			eventually(t, 10*time.Second, "the container traps signals", func() bool { return strings.Contains(c.stdout(t), "ready") })
			if got := c.status(t).StopSignal; got != runtimeapi.Signal_SIGNAL_SIGUSR2 {
				t.Errorf("the status says %v", got)
			}
			c.stop(t, 20)
			if s := c.status(t); s.ExitCode != 11 {
				t.Errorf("exit code %d", s.ExitCode)
			}
		})
		t.Run("a second call shortens the first one's time and both return", func(t *testing.T) {
			c := deaf(t)
			var wg sync.WaitGroup
			start := time.Now()
			wg.Go(func() {
				if _, err := e.rt.StopContainer(call(t), &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 60}); err != nil {
					t.Errorf("the first call: %v", err)
				}
			})
			time.Sleep(200 * time.Millisecond)
			c.stop(t, 1)
			wg.Wait()
			if took := time.Since(start); took > slowly(5*time.Second) {
				t.Errorf("it took %v", took)
			}
		})
		t.Run("a cancelled call kills nothing, not even later", func(t *testing.T) {
			c := deaf(t)
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if _, err := e.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 1}); err == nil {
				t.Error("the call succeeds")
			}
			time.Sleep(2 * time.Second)
			if s := c.status(t); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("state %v", s.State)
			}
			c.stop(t, 0)
		})
		t.Run("all processes of a container end with it", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("trap '' TERM; sleep 5551 & sleep 5552 & (trap '' TERM; sleep 5553) & wait; sleep 5554"))
			c.exec(t, "true")
			c.stop(t, 0)
			for _, x := range takeSnapshot(t, w, e)["process"] {
				if strings.Contains(x, "sleep 555") {
					t.Errorf("still there: %s", x)
				}
			}
		})
		t.Run("exit codes from 0 to 255 are reported as they are", func(t *testing.T) {
			var list []*Container
			codes := []int{0, 1, 2, 3, 64, 125, 126, 127, 128, 129, 137, 143, 200, 254, 255}
			for _, code := range codes {
				list = append(list, p.run(t, busyboxImage, shell(fmt.Sprintf("exit %d", code))))
			}
			for i, c := range list {
				s := c.wait(t)
				reason := "Error"
				if codes[i] == 0 {
					reason = "Completed"
				}
				if int(s.ExitCode) != codes[i] || s.Reason != reason {
					t.Errorf("exit code %d, reason %q; want %d, %q", s.ExitCode, s.Reason, codes[i], reason)
				}
				c.remove(t)
			}
		})
		t.Run("a process that a signal ended reports 128 and the signal's number", func(t *testing.T) {
			// The first process of a PID namespace ignores what it does not handle, so it must be in the pod's.
			q := e.runPod(t, podPID)
			for _, sig := range []syscall.Signal{1, 2, 6, 9, 11, 15} {
				c := q.run(t, busyboxImage, sleeper)
				if err := syscall.Kill(c.pid(t), sig); err != nil {
					t.Fatal(err)
				}
				if s := c.wait(t); s.ExitCode != 128+int32(sig) {
					t.Errorf("signal %d: exit code %d", sig, s.ExitCode)
				}
				c.remove(t)
			}
		})
		t.Run("a program that does not exist is EXITED with a code and the reason StartError", func(t *testing.T) {
			c := p.create(t, busyboxImage, command("/no/such/program"))
			_, err := e.rt.StartContainer(call(t), &runtimeapi.StartContainerRequest{ContainerId: c.ID})
			if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
				t.Errorf("StartContainer says %v", err)
			}
			s := c.status(t)
			if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 || s.Reason != "StartError" || s.Message == "" || s.FinishedAt == 0 {
				t.Errorf("status %v", s)
			}
			c.remove(t)
		})
		t.Run("stop and remove may be called again and for what is gone", func(t *testing.T) {
			q := e.runPod(t)
			c := q.run(t, busyboxImage, sleeper)
			c.stop(t, 0)
			c.stop(t, 0)
			first := c.status(t)
			c.stop(t, 5)
			if again := c.status(t); again.FinishedAt != first.FinishedAt || again.ExitCode != first.ExitCode {
				t.Errorf("a second stop changed the status from %v to %v", first, again)
			}
			c.remove(t)
			c.remove(t)
			q.stop(t)
			q.stop(t)
			q.remove(t)
			for range 2 {
				if _, err := e.rt.RemovePodSandbox(call(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: q.ID}); err != nil {
					t.Errorf("remove a pod that is gone: %v", err)
				}
				if _, err := e.rt.RemoveContainer(call(t), &runtimeapi.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
					t.Errorf("remove a container that is gone: %v", err)
				}
			}
		})
		t.Run("a running container is removed by force, and a pod with its containers", func(t *testing.T) {
			q := e.runPod(t)
			q.run(t, busyboxImage, sleeper).remove(t)
			q.run(t, busyboxImage, sleeper)
			q.remove(t)
		})
		t.Run("a pod is stopped with containers that ignore SIGTERM", func(t *testing.T) {
			q := e.runPod(t)
			c := q.run(t, busyboxImage, command("payload", "trap", "1"))
			start := time.Now()
			q.stop(t)
			if took := time.Since(start); took > slowly(15*time.Second) {
				t.Errorf("it took %v", took)
			}
			if s := c.status(t); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
				t.Errorf("state %v", s.State)
			}
		})
	})
}

func TestRetries(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		// A client's time-out may strike at any moment of a call: each length is tried.
		timeouts := []time.Duration{time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond, 160 * time.Millisecond}
		t.Run("RunPodSandbox works when retried after a time-out of the client", func(t *testing.T) {
			for _, d := range timeouts {
				config := e.podConfig(t)
				ctx, cancel := context.WithTimeout(context.Background(), d)
				_, _ = e.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
				cancel()
				p := e.runConfig(t, config)
				if pods := e.pods(t, nil); len(pods) != 1 {
					t.Errorf("after a time-out of %v %d pods are listed", d, len(pods))
				}
				p.remove(t)
			}
		})
		t.Run("CreateContainer works when retried after a time-out of the client", func(t *testing.T) {
			p := e.runPod(t)
			for _, d := range timeouts {
				request := &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: p.containerConfig(busyboxImage, sleeper), SandboxConfig: p.Config}
				ctx, cancel := context.WithTimeout(context.Background(), d)
				_, _ = e.rt.CreateContainer(ctx, request)
				cancel()
				resp, err := e.rt.CreateContainer(call(t), request)
				if err != nil {
					t.Fatalf("after a time-out of %v: %v", d, err)
				}
				if list := e.containers(t, nil); len(list) != 1 {
					t.Errorf("after a time-out of %v %d containers are listed", d, len(list))
				}
				(&Container{p: p, ID: resp.ContainerId, Config: request.Config}).remove(t)
			}
		})
		t.Run("two equal calls at a time make one pod", func(t *testing.T) {
			config := e.podConfig(t)
			ids := make([]string, 5)
			var wg sync.WaitGroup
			for i := range ids {
				wg.Go(func() {
					resp, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: config})
					if err != nil {
						t.Errorf("%v", err)
						return
					}
					ids[i] = resp.PodSandboxId
				})
			}
			wg.Wait()
			for _, id := range ids {
				if id != ids[0] {
					t.Errorf("ids %v", ids)
				}
			}
			(&Pod{e: e, ID: ids[0], Config: config}).remove(t)
		})
	})
}
