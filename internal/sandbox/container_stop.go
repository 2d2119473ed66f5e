package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/steps"
)

// containerStop ends a running container: its stop signal, then SIGKILL to all
// of it when the time is over.
type containerStop struct {
	e       *Engine
	c       *container
	exited  <-chan struct{}
	timeout time.Duration
}

var _ = steps.Register("StopContainer", names((*containerStop)(nil).steps())...)

func (s *containerStop) steps() []steps.Step {
	return []steps.Step{
		{Name: "signal", Do: s.signal},
		{Name: "wait", Do: s.wait},
		{Name: "kill", Do: s.kill},
	}
}

// StopContainer ends the container, waiting at most timeout between its stop
// signal and SIGKILL. Each call has its own deadline and none queues behind
// another: the shortest wins, and one whose caller gives up kills nothing. A
// container that does not run is left as it is.
func (e *Engine) StopContainer(ctx context.Context, id string, timeout time.Duration) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	running, exited := c.rec.Phase == phaseRunning || c.rec.Phase == phaseStarting, c.exited
	c.mu.Unlock()
	if !running {
		return nil
	}
	s := &containerStop{e: e, c: c, exited: exited, timeout: timeout}
	if err := steps.Run(ctx, "StopContainer", s.steps()); err != nil {
		return fmt.Errorf("stop container %s: %w", c.id, err)
	}
	e.tellEnded(ctx, c)
	return nil
}

func (s *containerStop) signal(ctx context.Context) error {
	if s.timeout <= 0 {
		return nil
	}
	s.c.mu.Lock()
	sig, sent := syscall.Signal(s.c.rec.StopSignal), s.c.rec.StopSent
	s.c.mu.Unlock()
	if sent {
		return nil // some programs take a second signal as "at once"
	}
	if err := s.e.o.Monitor.Signal(ctx, s.c.id, "", sig); err != nil && !isGone(err) {
		return err
	}
	return s.e.setContainer(s.c, func(r *containerRecord) { r.StopSent = true })
}

func (s *containerStop) wait(ctx context.Context) error {
	if s.timeout <= 0 {
		return nil
	}
	t := time.NewTimer(s.timeout)
	defer t.Stop()
	select {
	case <-s.exited:
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *containerStop) kill(ctx context.Context) error {
	select {
	case <-s.exited:
		return nil
	default:
	}
	return s.e.kill(ctx, s.c, s.exited)
}

// kill ends all processes of a container at once and waits until its end is recorded.
func (e *Engine) kill(ctx context.Context, c *container, exited <-chan struct{}) error {
	if err := e.o.Monitor.Signal(ctx, c.id, "", syscall.SIGKILL); err != nil && !isGone(err) {
		return err
	}
	klog.V(2).InfoS("Container is killed", "container", c.id, "name", c.name)
	ctx, cancel := context.WithTimeout(ctx, e.runtimeTimeout())
	defer cancel()
	if err := c.read().Process.Cgroups.Kill(ctx); err != nil {
		return err
	}
	select {
	case <-exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("processes of the container can't be killed: %w", ctx.Err())
	}
}

// killContainer is kill for a container in whatever state, with c.op held.
func (e *Engine) killContainer(ctx context.Context, c *container) error {
	c.mu.Lock()
	running, exited := c.rec.Phase == phaseRunning, c.exited
	c.mu.Unlock()
	if !running {
		return nil
	}
	if err := e.kill(ctx, c, exited); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	return nil
}

// stopSignal is the signal that asks the container to end: the request's, else
// the image's, else SIGTERM.
func stopSignal(cfg *runtimeapi.ContainerConfig, image string) (syscall.Signal, error) {
	if s := cfg.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		sig, err := parseSignal(strings.TrimPrefix(s.String(), "SIGNAL_"))
		if err != nil {
			return 0, fmt.Errorf("config.stop_signal %v: %w: %w", s, err, ErrInvalid)
		}
		return sig, nil
	}
	if image == "" {
		return unix.SIGTERM, nil
	}
	sig, err := parseSignal(image)
	if err != nil {
		// The image can't be helped by refusing to run it.
		klog.V(1).InfoS("Image's stop signal is not known here; SIGTERM is used", "signal", image)
		return unix.SIGTERM, nil
	}
	return sig, nil
}

// Real-time signals as the C library numbers them: it keeps the first two for itself (signal(7)).
const sigRTMin, sigRTMax = 34, 64

var errSignal = errors.New("no such signal")

// parseSignal reads "SIGTERM", "TERM", "15", "SIGRTMIN+3", and CRI's "SIGRTMINPLUS3".
func parseSignal(s string) (syscall.Signal, error) {
	name := strings.ToUpper(strings.TrimSpace(s))
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, errSignal
		}
		return syscall.Signal(n), nil
	}
	name = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace("SIG" + strings.TrimPrefix(name, "SIG"))
	switch name { // other names of the same (signal(7))
	case "SIGIOT":
		name = "SIGABRT"
	case "SIGPOLL":
		name = "SIGIO"
	case "SIGCLD":
		name = "SIGCHLD"
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	base := sigRTMin
	rest, ok := strings.CutPrefix(name, "SIGRTMIN")
	if !ok {
		base = sigRTMax
		rest, ok = strings.CutPrefix(name, "SIGRTMAX")
	}
	if !ok {
		return 0, errSignal
	}
	if rest == "" {
		return syscall.Signal(base), nil
	}
	n, err := strconv.Atoi(rest)
	if err != nil || base+n < sigRTMin || base+n > sigRTMax {
		return 0, errSignal
	}
	return syscall.Signal(base + n), nil
}
