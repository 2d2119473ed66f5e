package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// EngineOptions say where an engine lives and how it is configured.
type EngineOptions struct {
	// Dir gets the root directory, configuration and logs; it must be on a filesystem that overlayfs can use.
	Dir string
	// State is the state directory, best on a tmpfs; "" for Dir/state.
	State string
	// Bin is the directory of cri-engine-monitor and cni/. Binary is the daemon, "" for Bin/cri-engine.
	Bin, Binary string
	// Registries are host:port of registries without TLS; the first serves short names.
	Registries []string
	// RegistriesConf is a file in place of the one that Registries would make.
	RegistriesConf string
	// ConfDir is the CNI configuration directory, "" for an empty one, so that the default network serves.
	ConfDir string
	// BinDirs are searched for CNI plugins before Bin/cni.
	BinDirs []string
	// Handlers are OCI runtimes to configure by name; the first is the default.
	// None: the engine picks one.
	Handlers []string
	// LogLevel of the daemon, "" for debug.
	LogLevel string
	// Config is TOML added to the file, sections of its own.
	Config string
	// Wrap is a command line put before the daemon's.
	Wrap []string
}

// Engine is one engine. Its methods are for one goroutine at a time, but for Dial.
type Engine struct {
	EngineOptions
	Root, Socket, ConfigFile, LogFile string
	// Env is added to the daemon's environment at the next Start.
	Env []string

	cmd  *exec.Cmd
	done <-chan struct{} // closed when cmd has ended
}

// NewEngine makes the directories and writes the configuration.
func NewEngine(o EngineOptions) (*Engine, error) {
	e := &Engine{EngineOptions: o, Root: filepath.Join(o.Dir, "root"), ConfigFile: filepath.Join(o.Dir, "config.toml"), LogFile: filepath.Join(o.Dir, "daemon.log")}
	if e.State == "" {
		e.State = filepath.Join(o.Dir, "state")
	}
	if e.Binary == "" {
		e.Binary = filepath.Join(o.Bin, "cri-engine")
	}
	if e.ConfDir == "" {
		e.ConfDir = filepath.Join(o.Dir, "net.d")
	}
	e.Socket = filepath.Join(e.State, "cri-engine.sock")
	for _, dir := range []string{e.Root, e.State, e.ConfDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	registries := o.RegistriesConf
	if registries == "" {
		registries = filepath.Join(o.Dir, "registries.conf")
		if err := os.WriteFile(registries, []byte(RegistriesConf(o.Registries...)), 0o644); err != nil {
			return nil, err
		}
	}
	return e, os.WriteFile(e.ConfigFile, []byte(e.config(registries)), 0o644)
}

// RegistriesConf is a registries.conf(5) for registries without TLS; the first serves short names.
func RegistriesConf(addrs ...string) string {
	var b strings.Builder
	if len(addrs) > 0 {
		fmt.Fprintf(&b, "unqualified-search-registries = [%q]\nshort-name-mode = \"disabled\"\n", addrs[0])
	}
	for _, addr := range addrs {
		fmt.Fprintf(&b, "[[registry]]\nlocation = %q\ninsecure = true\n", addr)
	}
	return b.String()
}

func (e *Engine) config(registries string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "root = %q\nstate = %q\nlisten = %q\n", e.Root, e.State, e.Socket)
	level := e.LogLevel
	if level == "" {
		level = "debug"
	}
	fmt.Fprintf(&b, "[log]\nlevel = %q\n", level)
	if len(e.Handlers) > 0 {
		fmt.Fprintf(&b, "[runtime]\ndefault_handler = %q\n", e.Handlers[0])
	}
	for _, h := range e.Handlers {
		fmt.Fprintf(&b, "[runtime.handlers.%s]\npath = %q\n", h, h)
	}
	fmt.Fprintf(&b, "[monitor]\npath = %q\nstart = true\n", filepath.Join(e.Bin, "cri-engine-monitor"))
	fmt.Fprintf(&b, "[image]\nregistries_conf = %q\n", registries)
	dirs := ""
	for _, d := range append(slices.Clone(e.BinDirs), filepath.Join(e.Bin, "cni")) {
		dirs += strconv.Quote(d) + ", "
	}
	fmt.Fprintf(&b, "[network]\nconf_dir = %q\nbin_dirs = [%s]\n", e.ConfDir, dirs)
	// A section of the caller's may be one of those above: TOML allows each
	// once, so the caller's keys go under the header that is there.
	return mergeSections(b.String(), e.Config)
}

func mergeSections(base, more string) string {
	for part := range strings.SplitSeq("\n"+more, "\n[") {
		header, body, _ := strings.Cut(part, "]\n")
		if strings.TrimSpace(part) == "" {
			continue
		}
		line := "[" + header + "]\n"
		if strings.Contains(base, line) {
			base = strings.Replace(base, line, line+body+"\n", 1)
		} else {
			base += line + body + "\n"
		}
	}
	return base
}

// Start starts the daemon and waits until its socket answers.
func (e *Engine) Start(ctx context.Context) error {
	if err := e.Spawn(); err != nil {
		return err
	}
	return e.Ready(ctx)
}

// Spawn starts the daemon and does not wait for it.
func (e *Engine) Spawn() error {
	args := append(slices.Clone(e.Wrap), e.Binary, "serve", "--config", e.ConfigFile)
	e.cmd = exec.Command(args[0], args[1:]...)
	e.cmd.Env = append(os.Environ(), e.Env...)
	done, err := StartLogged(e.cmd, e.LogFile)
	if err == nil {
		e.done = done
	}
	return err
}

// StartLogged starts a command whose output is added to a file. The channel is closed when
// it has ended.
func StartLogged(cmd *exec.Cmd, file string) (<-chan struct{}, error) {
	log, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// A process group of its own: a ^C at the test's terminal is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	return done, nil
}

// Ready waits until the daemon answers Version, which it does only once it knows the truth.
func (e *Engine) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Slowly(60*time.Second))
	defer cancel()
	conn, err := Dial(e.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	for {
		_, err := client.Version(ctx, &runtimeapi.VersionRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-e.done:
			return fmt.Errorf("the daemon ended at its start: %s\n%s", e.cmd.ProcessState, e.LogTail(4096))
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer: %w\n%s", err, e.LogTail(4096))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Dial connects to a CRI socket. A lost connection is made again at once, and
// calls fail as Unavailable meanwhile.
func Dial(socket string, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	fast := backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: 50 * time.Millisecond}
	return grpc.NewClient("unix://"+strings.TrimPrefix(socket, "unix://"), append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: fast, MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16 << 20)),
	}, more...)...)
}

// Pid of the daemon.
func (e *Engine) Pid() int { return e.cmd.Process.Pid }

// Done is closed when the daemon that was started last has ended.
func (e *Engine) Done() <-chan struct{} { return e.done }

// Kill ends the daemon with SIGKILL and waits until it is gone.
func (e *Engine) Kill() { e.signal(syscall.SIGKILL) }

// Terminate asks the daemon to end and says how it did.
func (e *Engine) Terminate(ctx context.Context) (*os.ProcessState, error) {
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-e.done:
		return e.cmd.ProcessState, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the daemon ignores SIGTERM: %w", ctx.Err())
	}
}

func (e *Engine) signal(sig syscall.Signal) {
	if e.cmd == nil {
		return
	}
	_ = e.cmd.Process.Signal(sig)
	<-e.done
}

// Close ends the daemon and the monitor. Containers are not its business:
// whoever made them removes them first.
func (e *Engine) Close(ctx context.Context) error {
	var errs []error
	if e.cmd != nil {
		if _, err := e.Terminate(ctx); err != nil {
			errs = append(errs, err)
			e.signal(syscall.SIGQUIT) // its log then says what it was at
		}
	}
	return errors.Join(append(errs, e.KillMonitor())...)
}

// MonitorPids are the processes of this engine's monitor, oldest first.
func (e *Engine) MonitorPids() []int {
	return Processes(func(p Process) bool {
		return filepath.Base(p.Exe) == "cri-engine-monitor" && strings.Contains(p.Cmdline, e.State)
	})
}

// KillMonitor ends the monitor for good. Its processes guard each other, so
// they are all stopped before any of them is killed.
func (e *Engine) KillMonitor() error {
	for end := time.Now().Add(Slowly(time.Second)); time.Now().Before(end); {
		pids := e.MonitorPids()
		if len(pids) == 0 {
			return nil
		}
		_ = KillAtOnce(pids...) // some have ended
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("the monitor of %s does not end: pids %v", e.State, e.MonitorPids())
}

// KillAtOnce kills processes of which none sees another's end.
func KillAtOnce(pids ...int) error {
	var errs []error
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range pids {
			errs = append(errs, syscall.Kill(pid, sig))
		}
	}
	return errors.Join(errs...)
}

// LogTail is the end of the daemon's and the monitor's messages.
func (e *Engine) LogTail(most int) string {
	var b bytes.Buffer
	for _, file := range []string{e.LogFile, filepath.Join(e.State, "monitor", "monitor.log")} {
		if text, err := tail(file, most); err == nil {
			fmt.Fprintf(&b, "--- %s\n%s", file, text)
		}
	}
	return b.String()
}

// Tail is the end of a file, for people: why there is none, where there is none.
func Tail(file string, most int) string {
	text, err := tail(file, most)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func tail(file string, most int) ([]byte, error) {
	text, err := os.ReadFile(file)
	return text[max(0, len(text)-most):], err
}

// Process is what /proc says of one.
type Process struct {
	Pid, Parent    int
	Comm, State    string
	Exe, Cmdline   string
	StartTime      uint64
	PSS, RSS, Swap uint64 // bytes; only ReadMemory fills them in
}

// ReadProcess reads /proc/PID; false when there is none.
func ReadProcess(pid int) (Process, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Process{}, false
	}
	// The name may hold blanks and parentheses: fields count from the last ")".
	text := string(stat)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return Process{}, false
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 20 {
		return Process{}, false
	}
	p := Process{Pid: pid, Comm: text[open+1 : end], State: fields[0]}
	p.Parent, _ = strconv.Atoi(fields[1])
	p.StartTime, _ = strconv.ParseUint(fields[19], 10, 64)
	p.Exe, _ = os.Readlink(filepath.Join(dir, "exe"))
	p.Exe = strings.TrimSuffix(p.Exe, " (deleted)")
	cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	p.Cmdline = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
	return p, true
}

// Processes are the pids of all processes that match, in order of their start.
func Processes(match func(Process) bool) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, ok := ReadProcess(pid); ok && match(p) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b Process) int {
		if a.StartTime != b.StartTime {
			return int(int64(a.StartTime) - int64(b.StartTime))
		}
		return a.Pid - b.Pid
	})
	pids := make([]int, len(found))
	for i, p := range found {
		pids[i] = p.Pid
	}
	return pids
}

// Remove removes the directories of an engine that is closed and whose pods are
// gone. The storage library keeps its home mounted on itself; that goes too.
func (e *Engine) Remove() error {
	for _, dir := range []string{e.Root, e.State, e.Dir} {
		if err := unmountBelow(dir); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func unmountBelow(dir string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range slices.Backward(lines) {
		if fields := strings.Fields(line); len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			if err := syscall.Unmount(fields[4], syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", fields[4], err)
			}
		}
	}
	return nil
}
