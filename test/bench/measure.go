package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/pause"
	"github.com/cri-engine/cri-engine/test/harness"
)

// values are what one round of a measurement found, by name ("pod start (CNI)").
type values map[string]float64

// measurement is something that is done in rounds, one subject after the other.
type measurement struct {
	name   string
	rounds func(options) int
	// units of the names it finds, in the order to print.
	units []unit
	// once does one round.
	once func(ctx context.Context, o options, s *subject) (values, error)
	// own: only for the engine that this program started.
	own bool
}

type unit struct{ name, unit string }

func timed(names ...string) []unit {
	var units []unit
	for _, n := range names {
		units = append(units, unit{n, "ms"})
	}
	return units
}

var measurements = []measurement{
	{"pod with CNI", rounds, timed("pod start, CNI", "pod stop, CNI", "pod remove, CNI"), podRound(false), false},
	{"pod on the host's network", rounds, timed("pod start, host network", "pod stop, host network", "pod remove, host network"), podRound(true), false},
	{"container", rounds, timed("container create", "container start", "container stop", "container remove"), containerRound, false},
	{"exec", rounds, timed("exec true"), execRound, false},
	{"log", func(options) int { return 3 }, []unit{{"log of one container", "MB/s"}, {"log of one container, lines", "1000/s"}}, logRound, false},
	{"memory", func(options) int { return 1 }, []unit{{"runtime's memory per pod (PSS)", "MiB"}, {"host's memory per pod (MemAvailable)", "MiB"}, {"processes of the runtime per pod", ""}, {"processes of the runtime, no pods", ""}}, memoryRound, false},
	{"restart", func(options) int { return 1 }, []unit{{"daemon killed, until its first true answer", "ms"}}, restartRound, true},
}

func rounds(o options) int { return o.rounds }

// result is all that was found under one name for one subject.
type result struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit,omitempty"`
	Subject string    `json:"subject"`
	Values  []float64 `json:"values,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// measureAll goes through the measurements; within one, the subjects take
// turns. A subject that fails is out of that measurement, and said to be.
func measureAll(ctx context.Context, o options, subjects []*subject) []*result {
	var all []*result
	for _, m := range measurements {
		if !strings.Contains(m.name, o.only) || ctx.Err() != nil {
			continue
		}
		found := map[*subject]map[string]*result{}
		for _, u := range m.units {
			for _, s := range subjects {
				if m.own && s.engine == nil {
					continue
				}
				r := &result{Name: u.name, Unit: u.unit, Subject: s.name}
				if found[s] == nil {
					found[s] = map[string]*result{}
				}
				found[s][u.name] = r
				all = append(all, r)
			}
		}
		interleave(ctx, o, m, subjects, found)
	}
	return all
}

func interleave(ctx context.Context, o options, m measurement, subjects []*subject, found map[*subject]map[string]*result) {
	failed := map[*subject]bool{}
	for range m.rounds(o) {
		for _, s := range subjects {
			if found[s] == nil || failed[s] || ctx.Err() != nil {
				continue
			}
			v, err := m.once(ctx, o, s)
			if err != nil {
				failed[s] = true
				fmt.Fprintf(os.Stderr, "bench: %s: %s: %v\n", s.name, m.name, err)
			}
			for name, r := range found[s] {
				if err != nil {
					r.Error = err.Error()
				} else if x, ok := v[name]; ok {
					r.Values = append(r.Values, x)
				}
			}
		}
	}
}

// clock times one call after the other; after an error it does nothing more.
type clock struct {
	v   values
	err error
}

func (c *clock) time(name string, f func() error) {
	if c.err != nil {
		return
	}
	start := time.Now()
	if c.err = f(); c.err != nil {
		c.err = fmt.Errorf("%s: %w", name, c.err)
		return
	}
	c.v[name] = float64(time.Since(start)) / float64(time.Millisecond)
}

func podRound(hostNetwork bool) func(context.Context, options, *subject) (values, error) {
	kind := ", CNI"
	if hostNetwork {
		kind = ", host network"
	}
	return func(ctx context.Context, _ options, s *subject) (values, error) {
		c := clock{v: values{}}
		var p *pod
		c.time("pod start"+kind, func() (err error) { p, err = s.run(ctx, hostNetwork); return err })
		c.time("pod stop"+kind, func() error { return p.stop(ctx) })
		c.time("pod remove"+kind, func() error { return p.remove(ctx) })
		if p != nil && c.err != nil {
			return nil, errors.Join(c.err, p.end(ctx))
		}
		return c.v, c.err
	}
}

func containerRound(ctx context.Context, _ options, s *subject) (values, error) {
	p, err := s.run(ctx, false)
	if err != nil {
		return nil, err
	}
	c := clock{v: values{}}
	var id string
	c.time("container create", func() (err error) { id, err = p.create(ctx, "sleep", "100000"); return err })
	c.time("container start", func() error { return s.start(ctx, id) })
	c.time("container stop", func() error { return s.stopContainer(ctx, id) })
	c.time("container remove", func() error { return s.removeContainer(ctx, id) })
	return c.v, errors.Join(c.err, p.end(ctx))
}

func execRound(ctx context.Context, _ options, s *subject) (values, error) {
	p, id, err := s.sleeping(ctx)
	if err != nil {
		return nil, err
	}
	c := clock{v: values{}}
	// The first exec of a container may pay for what later ones do not; a probe is a later one.
	c.time("first", func() error { return s.exec(ctx, id) })
	c.time("exec true", func() error { return s.exec(ctx, id) })
	return c.v, errors.Join(c.err, p.away(ctx, id))
}

const floodLine = 100 // bytes, with the newline

func logRound(ctx context.Context, o options, s *subject) (values, error) {
	p, err := s.run(ctx, false)
	if err != nil {
		return nil, err
	}
	v, err := flood(ctx, o, p)
	return v, errors.Join(err, p.end(ctx), os.RemoveAll(p.config.LogDirectory))
}

func flood(ctx context.Context, o options, p *pod) (values, error) {
	id, err := p.create(ctx, "payload", "flood", strconv.Itoa(o.flood), strconv.Itoa(floodLine))
	if err != nil {
		return nil, err
	}
	if err := p.s.start(ctx, id); err != nil {
		return nil, err
	}
	for {
		resp, err := p.s.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return nil, err
		}
		if st := resp.Status; st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			lines, err := countLines(st.LogPath)
			seconds := float64(st.FinishedAt-st.StartedAt) / 1e9
			return values{"log of one container": float64(lines) * floodLine / 1e6 / seconds, "log of one container, lines": float64(lines) / 1000 / seconds}, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// countLines counts whole lines; a log in CRI's format has the writer's text behind a prefix.
func countLines(path string) (n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		n++
	}
	return n, lines.Err()
}

func memoryRound(ctx context.Context, o options, s *subject) (v values, err error) {
	settle()
	before := s.footprint()
	var pods []*pod
	var containers []string
	defer func() {
		for i, p := range pods {
			err = errors.Join(err, p.away(ctx, containers[i]))
		}
	}()
	for range o.pods {
		p, id, err := s.sleeping(ctx)
		if err != nil {
			return nil, err
		}
		pods, containers = append(pods, p), append(containers, id)
	}
	settle()
	after := s.footprint()
	n := float64(o.pods)
	const mib = 1 << 20
	return values{
		"runtime's memory per pod (PSS)":       (after.pss - before.pss) / mib / n,
		"host's memory per pod (MemAvailable)": (before.available - after.available) / mib / n,
		"processes of the runtime per pod":     float64(after.processes-before.processes) / n,
		"processes of the runtime, no pods":    float64(before.processes),
	}, nil
}

// settle lets garbage collectors and the kernel finish what the last call began.
func settle() {
	unix.Sync()
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o644)
	time.Sleep(3 * time.Second)
}

type footprint struct {
	pss, available float64 // bytes
	processes      int
}

// runtimeNames are the processes that runtimes keep: their daemons, and what
// stands beside each pod or container. ownNames are ours.
var (
	ownNames     = regexp.MustCompile(`^(cri-engine|pause)`)
	runtimeNames = regexp.MustCompile(`^(containerd|conmon|crio|pause)`)
)

// footprint sums up the runtime's processes. A monitor or shim is nobody's child
// any more, so names decide, and for ours that it works in our directories:
// another engine may run on this machine.
func (s *subject) footprint() footprint {
	var f footprint
	for _, pid := range harness.Processes(s.isRuntime) {
		f.processes++
		f.pss += pssOf(pid)
	}
	f.available = meminfo("MemAvailable")
	return f
}

func (s *subject) isRuntime(p harness.Process) bool {
	name := filepath.Base(p.Exe)
	if s.engine == nil {
		return p.Pid == s.pid || runtimeNames.MatchString(name)
	}
	return p.Pid == s.engine.Pid() || ownNames.MatchString(name) && (name == "pause" || strings.Contains(p.Cmdline, s.engine.State))
}

func pssOf(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	return kilobytes(string(text), "Pss:")
}

func meminfo(name string) float64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return kilobytes(string(text), name+":")
}

// kilobytes finds "NAME  123 kB" and returns bytes.
func kilobytes(text, name string) float64 {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == name {
			n, _ := strconv.ParseFloat(fields[1], 64)
			return n * 1024
		}
	}
	return 0
}

func restartRound(ctx context.Context, o options, s *subject) (v values, err error) {
	var pods []*pod
	var containers []string
	defer func() {
		for i, p := range pods {
			err = errors.Join(err, p.away(ctx, containers[i]))
		}
	}()
	for range o.pods {
		p, id, err := s.sleeping(ctx)
		if err != nil {
			return nil, err
		}
		pods, containers = append(pods, p), append(containers, id)
	}
	s.engine.Kill()
	start := time.Now()
	if err := s.engine.Start(ctx); err != nil {
		return nil, err
	}
	s.pid = s.engine.Pid()
	resp, err := s.rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	took := time.Since(start)
	if err == nil && len(resp.Containers) != o.pods {
		err = fmt.Errorf("the first answer lists %d of %d running containers", len(resp.Containers), o.pods)
	}
	return values{"daemon killed, until its first true answer": float64(took) / float64(time.Millisecond)}, err
}

// pushPause gives runtimes that need a pause image one, made of our own program.
func pushPause(ctx context.Context, r *harness.Registry) error {
	program, err := pause.Binary("amd64")
	if err != nil {
		return err
	}
	img := harness.Image{Layers: []harness.Layer{harness.NewLayer(harness.File{Name: "pause", Body: program})}}
	img.Config.Entrypoint = []string{"/pause"}
	return r.Push(ctx, "bench/pause", img.Pack(), "1")
}

// peerPid asks the kernel who serves a socket.
func peerPid(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}
