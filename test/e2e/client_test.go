//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cli runs the built-in client against the engine.
func (e *Engine) cli(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return e.cliWith(t, nil, args...)
}

// cliWith gives it a stdin.
func (e *Engine) cliWith(t testing.TB, in io.Reader, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(within(t, time.Minute), filepath.Join(binDir, "cri-engine"), append(args[:1:1], append([]string{"--endpoint", e.Socket}, args[1:]...)...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs the client and wants exit code 0.
func (e *Engine) must(t testing.TB, args ...string) string {
	t.Helper()
	out, errs, code := e.cli(t, args...)
	if code != 0 {
		t.Fatalf("cri-engine %v: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

func TestTheBuiltInClient(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		t.Run("pull, images, inspect and rmi of an image", func(t *testing.T) {
			ref := w.ref(dockerImage)
			e.must(t, "pull", ref)
			if out := e.must(t, "images"); !strings.Contains(out, "e2e/docker") {
				t.Errorf("images says\n%s", out)
			}
			if out := e.must(t, "inspect", ref); !json.Valid([]byte(out)) || !strings.Contains(out, ref) {
				t.Errorf("inspect says\n%s", out)
			}
			e.must(t, "rmi", ref)
			if out := e.must(t, "images"); strings.Contains(out, "e2e/docker") {
				t.Errorf("images says\n%s", out)
			}
			if _, errs, code := e.cli(t, "rmi", ref); code == 0 {
				t.Errorf("removing it again ends with %d, %q", code, errs)
			}
		})
		t.Run("run shows what the container writes and ends with its code", func(t *testing.T) {
			out, errs, code := e.cli(t, "run", "--rm", w.ref(busyboxImage), "sh", "-c", "echo to stdout; echo to stderr >&2; exit 42")
			if out != "to stdout\n" || !strings.Contains(errs, "to stderr\n") || code != 42 {
				t.Errorf("stdout %q, stderr %q, exit code %d", out, errs, code)
			}
			leaks(t, w, e, e.idle)
		})
		t.Run("run of a program that does not exist fails and leaves nothing", func(t *testing.T) {
			if _, errs, code := e.cli(t, "run", "--rm", w.ref(busyboxImage), "/no/such/program"); code == 0 || !strings.Contains(errs, "/no/such/program") {
				t.Errorf("exit code %d, %q", code, errs)
			}
			leaks(t, w, e, e.idle)
		})
		t.Run("run -i gives the container all of stdin and its end, shows all that it writes, and ends with its code", func(t *testing.T) {
			text := strings.Repeat("a line that goes in and comes out again\n", 50_000)
			out, errs, code := e.cliWith(t, strings.NewReader(text), "run", "--rm", "-i", w.ref(busyboxImage), "sh", "-c", "cat; echo end >&2; exit 9")
			if out != text || !strings.HasSuffix(errs, "end\n") || code != 9 {
				t.Errorf("%d bytes of %d came back, stderr %q, exit code %d", len(out), len(text), errs, code)
			}
		})
		t.Run("run -i of a program that reads nothing and ends at once ends with its code", func(t *testing.T) {
			for range 5 {
				out, errs, code := e.cliWith(t, strings.NewReader("word\n"), "run", "--rm", "-i", w.ref(busyboxImage), "sh", "-c", "echo hello; exit 3")
				if out != "hello\n" || code != 3 {
					t.Errorf("stdout %q, stderr %q, exit code %d", out, errs, code)
				}
			}
		})
		t.Run("run -it is a terminal from the program's first byte on, and ends with its code", func(t *testing.T) {
			for range 5 {
				out, errs, code := e.cliWith(t, strings.NewReader("word\n"), "run", "--rm", "-it", w.ref(busyboxImage), "sh", "-c", "test -t 0 && echo first; read x; echo got $x; exit 6")
				if !strings.Contains(out, "first\r\n") || !strings.Contains(out, "got word\r\n") || code != 6 {
					t.Errorf("stdout %q, stderr %q, exit code %d", out, errs, code)
				}
			}
		})
		t.Run("the detach keys of run -it leave the container running, and attach finds it", func(t *testing.T) {
			out, errs, code := e.cliWith(t, strings.NewReader("\x10\x11"), "run", "-it", "--name", "left", w.ref(busyboxImage), "sh", "-c", "read x; echo got $x; exit 4")
			if code != 0 || !strings.Contains(errs, "runs on") {
				t.Errorf("stdout %q, stderr %q, exit code %d", out, errs, code)
			}
			if out, errs, code := e.cliWith(t, strings.NewReader("later\n"), "attach", "-it", "left"); code != 0 || !strings.Contains(out, "got later\r\n") {
				t.Errorf("attach: stdout %q, stderr %q, exit code %d", out, errs, code)
			}
			e.must(t, "rmp", "-f", "left")
		})
		t.Run("run -d, ps, pods, logs, exec, stats, inspect, stop, rm and rmp", func(t *testing.T) {
			id := strings.TrimSpace(e.must(t, "run", "-d", "-q", "--name", "web", w.ref(busyboxImage), "sh", "-c", "echo started; exec sleep 10000"))
			if len(id) != 64 {
				t.Fatalf("run -d -q says %q", id)
			}
			short := id[:12]
			if out := e.must(t, "ps"); !strings.Contains(out, short) || !strings.Contains(out, "web") {
				t.Errorf("ps says\n%s", out)
			}
			var pods any
			if out := e.must(t, "pods", "-o", "json"); json.Unmarshal([]byte(out), &pods) != nil || !strings.Contains(out, "web") {
				t.Errorf("pods says\n%s", out)
			}
			eventually(t, 5*time.Second, "the log has the line", func() bool { return e.must(t, "logs", short) == "started\n" })
			if out, errs, code := e.cli(t, "exec", short, "sh", "-c", "echo out; echo err >&2; exit 7"); out != "out\n" || errs != "err\n" || code != 7 {
				t.Errorf("exec: %q, %q, %d", out, errs, code)
			}
			if out := e.must(t, "stats"); !strings.Contains(out, "web") {
				t.Errorf("stats says\n%s", out)
			}
			if out := e.must(t, "inspect", short); !json.Valid([]byte(out)) || !strings.Contains(out, id) {
				t.Errorf("inspect says\n%s", out)
			}
			if _, _, code := e.cli(t, "rm", short); code == 0 {
				t.Error("rm removes a container that runs")
			}
			e.must(t, "stop", "--grace", "0", short)
			if out := e.must(t, "ps"); strings.Contains(out, short) {
				t.Errorf("after the stop ps says\n%s", out)
			}
			if out := e.must(t, "ps", "-a"); !strings.Contains(out, short) {
				t.Errorf("after the stop ps -a says\n%s", out)
			}
			e.must(t, "rm", short)
			e.must(t, "rmp", "-f", "web")
			if out := e.must(t, "pods", "-q"); strings.TrimSpace(out) != "" {
				t.Errorf("pods says\n%s", out)
			}
			leaks(t, w, e, e.idle)
		})
		t.Run("what does not exist is said to be, with a code that is not 0", func(t *testing.T) {
			for _, args := range [][]string{{"logs", "none"}, {"exec", "none", "true"}, {"inspect", "none"}, {"stop", "none"}, {"rm", "none"}, {"rmp", "none"}} {
				if _, errs, code := e.cli(t, args...); code == 0 || !strings.Contains(errs, "none") {
					t.Errorf("%v: exit code %d, %q", args, code, errs)
				}
			}
		})
		t.Run("a socket that nobody serves is named", func(t *testing.T) {
			out, err := exec.Command(filepath.Join(binDir, "cri-engine"), "ps", "--endpoint", "/run/no-such.sock", "--timeout", "2s").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "/run/no-such.sock") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	})
}
