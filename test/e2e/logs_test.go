//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// wantNumbered fails unless the stream holds the lines 1 to count, each once
// and in order, as `payload lines` writes them.
func wantNumbered(t testing.TB, lines []logLine, name string, count int) {
	t.Helper()
	text := stream(lines, name)
	next, faults := 1, 0
	for line := range bytes.Lines(text) {
		want := fmt.Sprintf("line %09d\n", next)
		if string(line) != want {
			if faults++; faults <= 3 {
				t.Errorf("%s: got %q where %q is due", name, clip(string(line), 100), want)
			}
			// Go on from the line that is there, so that one gap is one fault.
			if n := 0; len(line) > 5 {
				if _, err := fmt.Sscanf(string(line), "line %d", &n); err == nil {
					next = n
				}
			}
		}
		next++
	}
	if next-1 != count || faults > 3 {
		t.Errorf("%s: the last line is %d of %d; %d faults", name, next-1, count, faults)
	}
}

func TestLogs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		t.Run("the log exists when StartContainer returns, and is for root and its group alone", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper)
			info, err := os.Stat(c.logPath())
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v", info.Mode())
			}
			c.stop(t, 0)
		})
		t.Run("a long line is cut into partials of 16 KiB, the last one full", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("head -c 40000 /dev/zero | tr '\\0' x; echo; echo short"))
			c.wait(t)
			lines := readLog(t, c.logPath())
			if len(lines) != 4 {
				t.Fatalf("%d lines", len(lines))
			}
			for i, want := range []struct {
				length  int
				partial bool
			}{{16384, true}, {16384, true}, {40000 - 2*16384, false}, {5, false}} {
				if len(lines[i].Text) != want.length || lines[i].Partial != want.partial {
					t.Errorf("line %d: %d bytes, partial %v; want %+v", i, len(lines[i].Text), lines[i].Partial, want)
				}
			}
		})
		t.Run("a line of exactly 16 KiB is one line", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("head -c 16384 /dev/zero | tr '\\0' x; echo; echo next"))
			c.wait(t)
			if got := string(stream(readLog(t, c.logPath()), "stdout")); got != strings.Repeat("x", 16384)+"\nnext\n" {
				t.Errorf("%d bytes, ends in %q", len(got), got[max(0, len(got)-20):])
			}
		})
		t.Run("bytes that are no text are kept as they are", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell(`printf 'a\000b\377\376\001\r\033[0m\n'; head -c 100000 /dev/urandom > /tmp/r; cat /tmp/r; sleep 1000`))
			eventually(t, 10*time.Second, "the bytes arrive", func() bool { return len(c.stdout(t)) > 99000 })
			want := "a\x00b\xff\xfe\x01\r\x1b[0m\n" + c.exec(t, "cat", "/tmp/r")
			c.stop(t, 0)
			if got := c.stdout(t); strings.TrimSuffix(got, "\n") != strings.TrimSuffix(want, "\n") {
				t.Errorf("%d bytes differ from the %d that were written", len(got), len(want))
			}
		})
		t.Run("output without a newline at its end is not lost", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("printf one; printf two >&2"))
			c.wait(t)
			if out, errs := c.stdout(t), c.stderr(t); strings.TrimSpace(out) != "one" || strings.TrimSpace(errs) != "two" {
				t.Errorf("got %q and %q", out, errs)
			}
		})
		t.Run("empty lines are lines", func(t *testing.T) {
			if got := p.output(t, busyboxImage, shell(`printf '\n\na\n\n'`)); got != "\n\na\n\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("the order of lines written slowly to both streams is kept", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("for i in 1 2 3 4 5; do echo $i; sleep 0.02; echo $i >&2; sleep 0.02; done"))
			c.wait(t)
			got := ""
			for _, l := range readLog(t, c.logPath()) {
				got += l.Stream[3:4] + string(l.Text) + " "
			}
			if got != "o1 e1 o2 e2 o3 e3 o4 e4 o5 e5 " {
				t.Errorf("got %s", got)
			}
		})
		t.Run("what a container wrote before it ended is in the log when it is seen to have ended", func(t *testing.T) {
			for range 10 {
				c := p.run(t, busyboxImage, command("payload", "lines", "2000", "0", "0"))
				c.wait(t)
				lines := readLog(t, c.logPath())
				wantNumbered(t, lines, "stdout", 2000)
				wantNumbered(t, lines, "stderr", 2000)
				c.remove(t)
			}
		})
		t.Run("50,000 lines a second on each stream arrive in order", func(t *testing.T) {
			c := p.run(t, busyboxImage, command("payload", "lines", "200000", "50000", "0"))
			c.wait(t)
			lines := readLog(t, c.logPath())
			wantNumbered(t, lines, "stdout", 200000)
			wantNumbered(t, lines, "stderr", 200000)
		})
		reopen := func(t *testing.T, rotate func(path string) error) {
			c := p.run(t, busyboxImage, command("payload", "lines", "100000", "50000", "0"))
			time.Sleep(700 * time.Millisecond)
			old := c.logPath() + ".old"
			if err := rotate(c.logPath()); err != nil {
				t.Fatal(err)
			}
			if _, err := e.rt.ReopenContainerLog(call(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(c.logPath()); err != nil {
				t.Errorf("when ReopenContainerLog returns: %v", err)
			}
			c.wait(t)
			lines := append(readLog(t, old), readLog(t, c.logPath())...)
			wantNumbered(t, lines, "stdout", 100000)
			wantNumbered(t, lines, "stderr", 100000)
		}
		t.Run("a log that was renamed is reopened without a gap", func(t *testing.T) {
			reopen(t, func(path string) error { return os.Rename(path, path+".old") })
		})
		t.Run("a log that was deleted is made anew", func(t *testing.T) {
			// A second name keeps what the first file gets until then.
			reopen(t, func(path string) error {
				if err := os.Link(path, path+".old"); err != nil {
					return err
				}
				return os.Remove(path)
			})
		})
		t.Run("the log of a container that does not run cannot be reopened", func(t *testing.T) {
			c := p.run(t, busyboxImage, command("true"))
			c.wait(t)
			_, err := e.rt.ReopenContainerLog(call(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID})
			wantCode(t, err, codes.FailedPrecondition)
			_, err = e.rt.ReopenContainerLog(call(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: strings.Repeat("0", 64)})
			wantCode(t, err, codes.NotFound)
		})
		t.Run("without a log path output goes nowhere and blocks nobody", func(t *testing.T) {
			c := p.run(t, busyboxImage, command("payload", "lines", "100000", "0", "4"), func(c *runtimeapi.ContainerConfig) { c.LogPath = "" })
			if s := c.wait(t); s.ExitCode != 4 || s.LogPath != "" {
				t.Errorf("status %v", s)
			}
		})
		t.Run("a terminal's output is logged", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("for i in 1 2 3; do echo $i; done"), func(c *runtimeapi.ContainerConfig) { c.Tty = true })
			c.wait(t)
			if got := c.stdout(t); got != "1\r\n2\r\n3\r\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a log path may have directories", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("echo deep"), func(c *runtimeapi.ContainerConfig) { c.LogPath = "name/0.log" })
			c.wait(t)
			if got := c.stdout(t); got != "deep\n" {
				t.Errorf("got %q", got)
			}
		})
	})
}
