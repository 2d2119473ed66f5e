//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// knob reads a number from the environment.
func knob(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// retried makes a call again while the daemon is away: nothing listens on the
// socket (Unavailable), or it died with the call under way. Any other answer,
// and none within two minutes, is the caller's.
func retried(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, slowly(2*time.Minute))
	defer cancel()
	for {
		err := f(ctx)
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestKills kills the keeper, the pump and the daemon at random moments, while
// containers write as fast as the design says they may, others end with known
// codes, and calls go on. KILLS is how often each of the three is killed.
func TestKills(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		kills := int(knob(t, "KILLS", 10))
		seed := knob(t, "SEED", uint64(time.Now().UnixNano()))
		t.Logf("SEED=%d KILLS=%d", seed, kills)
		e := w.engine(t)
		storm := &storm{t: t, e: e, random: rand.New(rand.NewPCG(seed, 0)), oldKernel: kernelBefore(t, 6, 15)}
		p := e.runPod(t)

		// Writers last as long as the kills do; a second of lines per kill and a bit.
		var stop atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() { storm.writers(p, &stop) })
		for first := range int32(4) {
			wg.Go(func() { storm.enders(p, first*64, &stop) })
		}
		wg.Go(func() { storm.callers(&stop) })
		storm.strike(kills)
		stop.Store(true)
		wg.Wait()
		removeCrunCopies(t)
		t.Logf("%d kills; %d writers wrote %d lines; %d other containers ended, %d of all without a known code; %d other calls were answered",
			3*kills, storm.wrote.Load(), storm.lines.Load(), storm.ended.Load(), storm.lost.Load(), storm.answered.Load())
		if storm.lost.Load() > storm.ended.Load()/4+2 {
			t.Error("that is more than what kills can hide")
		}
	})
}

func kernelBefore(t *testing.T, major, minor int) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var a, b int
	if _, err := fmt.Sscanf(string(text), "%d.%d", &a, &b); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return a < major || a == major && b < minor
}

type storm struct {
	t      *testing.T
	e      *Engine
	random *rand.Rand // of strike alone

	oldKernel                           bool // its pidfds do not tell exits
	wrote, lines, ended, lost, answered atomic.Int64
}

// strike kills each process kills times, in random order, at random moments.
func (s *storm) strike(kills int) {
	var victims []string
	for range kills {
		victims = append(victims, "keeper", "pump", "daemon")
	}
	s.random.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	for _, victim := range victims {
		time.Sleep(time.Duration(s.random.IntN(300)) * time.Millisecond)
		switch victim {
		case "daemon":
			s.e.Kill()
			time.Sleep(time.Duration(s.random.IntN(50)) * time.Millisecond)
			if err := s.e.Start(context.Background()); err != nil {
				s.t.Errorf("the daemon does not start again: %v", err)
				return
			}
		default:
			keeper, pump := s.monitor()
			pid := map[string]int{"keeper": keeper, "pump": pump}[victim]
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				s.t.Errorf("kill the %s: %v", victim, err)
			}
			// The two guard each other, so one is killed when both are there: both at once is another test.
			s.settled(pid)
		}
	}
}

func (s *storm) monitor() (keeper, pump int) {
	var info map[string]string
	err := retried(context.Background(), func(ctx context.Context) error {
		resp, err := s.e.rt.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
		info = resp.GetInfo()
		return err
	})
	if err != nil {
		s.t.Errorf("status: %v", err)
	}
	for _, text := range info {
		if k, p := findPids(text); k > 0 && p > 0 {
			return k, p
		}
	}
	return 0, 0
}

// settled waits until two processes, of which gone is none, guard each other.
func (s *storm) settled(gone int) {
	for deadline := time.Now().Add(slowly(30 * time.Second)); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if k, p := s.monitor(); k > 0 && p > 0 && k != gone && p != gone && k != p && syscall.Kill(k, 0) == nil && syscall.Kill(p, 0) == nil {
			return
		}
	}
	s.t.Errorf("nobody took the place of %d", gone)
}

// startRetried creates and starts a container as a kubelet would over kills:
// one whose start was lost is EXITED, and another attempt is made.
func (s *storm) startRetried(p *Pod, argv ...string) *Container {
	for attempt := range uint32(20) {
		config := p.containerConfig(busyboxImage, command(argv...), func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt = attempt })
		c := &Container{p: p, Config: config}
		err := retried(context.Background(), func(ctx context.Context) error {
			resp, err := s.e.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
			c.ID = resp.GetContainerId()
			return err
		})
		if err != nil {
			s.t.Errorf("create: %v", err)
			return nil
		}
		err = retried(context.Background(), func(ctx context.Context) error {
			_, err := s.e.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ID})
			return err
		})
		if err == nil {
			return c
		}
		if st := s.status(c); st == nil || st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason == "" {
			s.t.Errorf("a start failed with %v and left %v", err, st)
			return nil
		}
		s.remove(c)
	}
	s.t.Errorf("no container could be started in 20 attempts")
	return nil
}

func (s *storm) status(c *Container) *runtimeapi.ContainerStatus {
	var st *runtimeapi.ContainerStatus
	err := retried(context.Background(), func(ctx context.Context) error {
		resp, err := s.e.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
		st = resp.GetStatus()
		return err
	})
	if err != nil {
		s.t.Errorf("status of a container: %v", err)
	}
	return st
}

func (s *storm) remove(c *Container) {
	err := retried(context.Background(), func(ctx context.Context) error {
		_, err := s.e.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
		return err
	})
	if err != nil {
		s.t.Errorf("remove a container: %v", err)
	}
}

// await waits for the end and fails unless it is the one that was meant.
func (s *storm) await(c *Container, code int32) {
	for deadline := time.Now().Add(slowly(2 * time.Minute)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		st := s.status(c)
		if st == nil {
			return
		}
		if st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			if st.ExitCode != code && s.mayBeLost(st) {
				s.lost.Add(1)
			} else if st.ExitCode != code {
				s.t.Errorf("a container ended with %d (%s: %s), it meant %d", st.ExitCode, st.Reason, st.Message, code)
			}
			return
		}
	}
	s.t.Errorf("container %s does not end", c.ID)
}

// mayBeLost says whether an end may be one that the engine could not see, and says so
// (docs/monitor.md): before Linux 6.15 a pidfd does not tell how its process ended, so the ends of
// containers that are nobody's children any more, after the pump and then the keeper were
// killed, are missed until a pump is there again.
func (s *storm) mayBeLost(st *runtimeapi.ContainerStatus) bool {
	return s.oldKernel && st.ExitCode == 255 && st.Reason == "Unknown"
}

// writers runs one container after the other that writes 50,000 lines a second
// to each stream, and checks each log.
func (s *storm) writers(p *Pod, stop *atomic.Bool) {
	const count, speed = 150000, 50000
	for code := int32(1); !stop.Load(); code++ {
		c := s.startRetried(p, "payload", "lines", fmt.Sprint(count), fmt.Sprint(speed), fmt.Sprint(code%200))
		if c == nil {
			return
		}
		s.await(c, code%200)
		lines := readLog(s.t, c.logPath())
		wantNumbered(s.t, lines, "stdout", count)
		wantNumbered(s.t, lines, "stderr", count)
		s.wrote.Add(1)
		s.lines.Add(2 * count)
		s.remove(c)
		_ = os.Remove(c.logPath())
	}
}

// enders runs containers that end soon, with one code after the other.
func (s *storm) enders(p *Pod, first int32, stop *atomic.Bool) {
	for code := first; !stop.Load(); code = (code + 1) % 256 {
		c := s.startRetried(p, "sh", "-c", fmt.Sprintf("sleep 0.0%d; exit %d", code%10, code))
		if c == nil {
			return
		}
		s.await(c, code)
		s.ended.Add(1)
		s.remove(c)
		_ = os.Remove(c.logPath())
	}
}

// callers keeps asking: each call must be answered.
func (s *storm) callers(stop *atomic.Bool) {
	for !stop.Load() {
		for name, f := range map[string]func(context.Context) error{
			"Version": func(ctx context.Context) error {
				_, err := s.e.rt.Version(ctx, &runtimeapi.VersionRequest{})
				return err
			},
			"ListPodSandbox": func(ctx context.Context) error {
				resp, err := s.e.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
				if err == nil && len(resp.Items) != 1 {
					return fmt.Errorf("%d pods are listed", len(resp.Items))
				}
				return err
			},
			"ListContainers": func(ctx context.Context) error {
				_, err := s.e.rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
				return err
			},
			"ListImages": func(ctx context.Context) error {
				_, err := s.e.img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
				return err
			},
		} {
			if err := retried(context.Background(), f); err != nil {
				s.t.Errorf("%s: %v", name, err)
			}
			s.answered.Add(1)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// removeCrunCopies removes what crun leaves in /tmp when SIGKILL hits it: at each
// call it makes a sealed copy of itself there, and unlinks it at once. It minds no TMPDIR.
func removeCrunCopies(t *testing.T) {
	t.Helper()
	copies, err := filepath.Glob("/tmp/crun.??????")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range copies {
		_ = os.Remove(file)
	}
}
