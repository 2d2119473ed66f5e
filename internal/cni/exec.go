package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// maxPluginOutput bounds what a plugin may write to stdout: a result is some kilobytes.
	maxPluginOutput = 1 << 20
	// maxPluginStderr is how much of a plugin's complaints is kept for the error.
	maxPluginStderr = 4 << 10
	// pipeGrace is how long a plugin that has ended may leave its output open in a
	// process that it started. libcni's own exec waits for ever.
	pipeGrace = 2 * time.Second
	// busyRetries and busyPause cover a plugin that is just being written (ETXTBSY).
	busyRetries = 10
	busyPause   = 100 * time.Millisecond
)

// pluginExec runs plugins for libcni: in a process group of their own that ends
// with the context and with the daemon, with bounded output.
type pluginExec struct {
	version.PluginDecoder
}

var _ invoke.Exec = &pluginExec{}

// FindInPath returns the path of the plugin's binary.
func (*pluginExec) FindInPath(plugin string, dirs []string) (string, error) {
	return findPlugin(plugin, dirs)
}

func findPlugin(plugin string, dirs []string) (string, error) {
	if err := checkPluginType(plugin); err != nil {
		return "", err
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("plugin %q is not in %s", plugin, strings.Join(dirs, ", "))
}

// checkPluginType refuses names that would lead out of the plugin directories.
func checkPluginType(plugin string) error {
	if plugin == "" || plugin == "." || plugin == ".." || len(plugin) > 255 || strings.ContainsAny(plugin, "/\x00") {
		return fmt.Errorf("%q is no plugin name", truncate(plugin, 64))
	}
	return nil
}

// ExecPlugin runs the plugin and returns its stdout. A plugin that fails gives
// the [types.Error] that it wrote, or one made of its stderr.
func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	var out *limitedBuffer
	var err error
	for range busyRetries {
		out, err = runPlugin(ctx, path, stdin, env)
		if !errors.Is(err, syscall.ETXTBSY) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(busyPause):
		}
	}
	switch {
	case err == nil:
		return out.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("plugin %s was ended: %w", filepath.Base(path), context.Cause(ctx))
	case out.overflow:
		return nil, fmt.Errorf("plugin %s wrote more than %d bytes and was ended", filepath.Base(path), maxPluginOutput)
	}
	return nil, err
}

func runPlugin(ctx context.Context, path string, stdin []byte, env []string) (*limitedBuffer, error) {
	// The plugin gets SIGKILL when the thread that started it ends (PR_SET_PDEATHSIG is
	// about the thread, not the process), so the thread is ours until the plugin is done.
	// A daemon that was killed leaves no plugin behind that would race with the DEL of
	// the next one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.CommandContext(ctx, path)
	kill := func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	stdout := &limitedBuffer{max: maxPluginOutput, onOverflow: func() { _ = kill() }}
	stderr := &limitedBuffer{max: maxPluginStderr}
	cmd.Env = pluginEnv(env)
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Cancel = kill
	cmd.WaitDelay = pipeGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	err := cmd.Run()
	if stdout.overflow {
		return stdout, errors.New("too much output")
	}
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		// A plugin that ended well but left its output open in a daemon of its own has
		// said all that counts.
		return stdout, nil
	case errors.As(err, &exit):
		return stdout, pluginError(exit, stdout.Bytes(), stderr.Bytes())
	default:
		return stdout, err
	}
}

// pluginError reads what a failed plugin says (CNI spec, section 5, "Error").
func pluginError(exit *exec.ExitError, stdout, stderr []byte) error {
	said := &types.Error{}
	if len(bytes.TrimSpace(stdout)) > 0 && json.Unmarshal(stdout, said) == nil && (said.Msg != "" || said.Code != 0) {
		said.Msg, said.Details = truncate(said.Msg, maxPluginStderr), truncate(said.Details, maxPluginStderr)
		return said
	}
	text := strings.TrimSpace(string(stderr))
	if text == "" {
		text = strings.TrimSpace(truncate(string(stdout), 512))
	}
	if text == "" {
		return fmt.Errorf("%w without a message", exit)
	}
	return fmt.Errorf("%w: %q", exit, text)
}

// pluginEnv drops what systemd gave the daemon for itself, and makes sure that
// plugins find nft, iptables and ip where a unit's PATH has no sbin.
func pluginEnv(env []string) []string {
	out := make([]string, 0, len(env)+1)
	path := ""
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		switch name {
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID":
		case "PATH":
			path = value
		default:
			out = append(out, kv)
		}
	}
	return append(out, "PATH="+withSbin(path))
}

func withSbin(path string) string {
	dirs := filepath.SplitList(path)
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return strings.Join(dirs, string(filepath.ListSeparator))
}

// limitedBuffer keeps the first max bytes and tells once when there are more.
// Writes never fail, so that the writer isn't blocked by a full pipe. The buffer
// isn't embedded: io.Copy would find its ReadFrom and go around the limit.
type limitedBuffer struct {
	kept       bytes.Buffer
	max        int
	overflow   bool
	onOverflow func()
}

func (b *limitedBuffer) Bytes() []byte { return b.kept.Bytes() }

func (b *limitedBuffer) String() string { return b.kept.String() }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	keep := p
	if room := b.max - b.kept.Len(); len(p) > room {
		keep = p[:room]
		if !b.overflow && b.onOverflow != nil {
			b.onOverflow()
		}
		b.overflow = true
	}
	b.kept.Write(keep)
	return len(p), nil
}

func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
