package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func fakeNode(t *testing.T) *node {
	t.Helper()
	return newNode(t, Runtime{Path: selfPath(t)})
}

func withStdin(r *CreateRequest, _ map[string]any) { r.Stdin = true }

func TestContainer(t *testing.T) {
	n := fakeNode(t)
	t.Run("output is logged in order and the exit code is its own", func(t *testing.T) {
		b := n.run(n.shell("i=1; while [ $i -le 500 ]; do echo $i; i=$((i+1)); done; echo oops >&2; printf unfinished; exit 7"))
		if e := b.wait(); e.Code != 7 || e.Signal != 0 || e.Lost || e.OOMKilled {
			t.Errorf("exit %+v", e)
		}
		lines := b.lines("stdout")
		if last := lines[len(lines)-1]; last != "unfinished" {
			t.Errorf("last line %q", last)
		}
		checkNumbers(t, lines[:len(lines)-1], 500)
		if got := b.lines("stderr"); len(got) != 1 || got[0] != "oops" {
			t.Errorf("stderr %q", got)
		}
		n.delete(b.id)
		if _, err := n.c.Wait(n.ctx(), b.id, ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("after delete: %v", err)
		}
	})
	t.Run("a signal's end has code 128 and its number", func(t *testing.T) {
		b := n.run(n.shell("exec sleep 1000"))
		must(t, n.c.Signal(n.ctx(), b.id, "", syscall.SIGTERM))
		if e := b.wait(); e.Code != 143 || e.Signal != 15 {
			t.Errorf("exit %+v", e)
		}
		if err := n.c.Signal(n.ctx(), b.id, "", syscall.SIGTERM); !errors.Is(err, ErrNotFound) {
			t.Errorf("signal after the end: %v", err)
		}
		n.delete(b.id)
	})
	t.Run("a created container is not started until Start, and once", func(t *testing.T) {
		b := n.create(n.shell("echo started"))
		if st, err := os.Stat(b.log); err != nil || st.Mode().Perm() != 0o640 {
			t.Errorf("log: %v, %v", st, err)
		}
		if got := b.lines("stdout"); len(got) != 0 {
			t.Errorf("log has %q before start", got)
		}
		must(t, n.c.Start(n.ctx(), b.id))
		b.wait()
		if err := n.c.Start(n.ctx(), b.id); !errors.Is(err, ErrState) {
			t.Errorf("second start: %v", err)
		}
		n.delete(b.id)
	})
	t.Run("stdin reaches the process, and its end too", func(t *testing.T) {
		b := n.run(n.shell("cat; echo end"), withStdin)
		w := &streamWriter{end: streamEnd{ctx: n.ctx(), socket: n.c.socket, params: attachParams{target: target{ID: b.id}, Stream: roleStdin}}}
		_, err := io.WriteString(w, "hello\n")
		must(t, err)
		must(t, n.c.CloseStdin(n.ctx(), b.id, ""))
		b.wait()
		if got := strings.Join(b.lines("stdout"), " "); got != "hello end" {
			t.Errorf("log %q", got)
		}
		n.delete(b.id)
	})
	t.Run("a failing runtime says why and leaves nothing", func(t *testing.T) {
		_, err := n.tryCreate(nil, func(r *CreateRequest, _ map[string]any) { r.Bundle = "/nonexistent" })
		if err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("error %v", err)
		}
		eventually(t, "nothing is left", func() bool { return n.status().Processes == 0 })
	})
	t.Run("a log is reopened, and made again when it is gone", func(t *testing.T) {
		b := n.run(n.shell("echo one; read x; echo two; read x"), withStdin)
		eventually(t, "the first line is logged", func() bool { return len(b.lines("stdout")) == 1 })
		must(t, os.Rename(b.log, b.log+".1"))
		must(t, n.c.ReopenLog(n.ctx(), b.id))
		w := &streamWriter{end: streamEnd{ctx: n.ctx(), socket: n.c.socket, params: attachParams{target: target{ID: b.id}, Stream: roleStdin}}}
		_, err := io.WriteString(w, "\n")
		must(t, err)
		eventually(t, "the second line is in the new log", func() bool { return len(b.lines("stdout")) == 1 })
		if got := logLines(t, b.log+".1", "stdout"); len(got) != 1 || got[0] != "one" {
			t.Errorf("old log %q", got)
		}
		n.delete(b.id)
	})
}

func TestExec(t *testing.T) {
	n := fakeNode(t)
	b := n.run(n.shell("exec sleep 1000"))
	exec := func(t *testing.T, stdin bool, script string) *ExecSession {
		t.Helper()
		s, err := n.c.Exec(n.ctx(), ExecRequest{
			ID: b.id, ExecID: newID()[:16], Runtime: n.runtime, Stdin: stdin,
			Process: fmt.Appendf(nil, `{"args":["/bin/sh","-c",%q],"cwd":"/"}`, script),
		})
		must(t, err)
		return s
	}
	t.Run("output, errors and the code come back", func(t *testing.T) {
		s := exec(t, false, "echo out; echo err >&2; exit 3")
		out, err := io.ReadAll(s.Stdout)
		must(t, err)
		errs, err := io.ReadAll(s.Stderr)
		must(t, err)
		if string(out) != "out\n" || string(errs) != "err\n" {
			t.Errorf("stdout %q, stderr %q", out, errs)
		}
		if e, err := s.Wait(n.ctx()); err != nil || e.Code != 3 {
			t.Errorf("exit %+v, %v", e, err)
		}
		must(t, s.Close())
		eventually(t, "the exec is forgotten", func() bool { return n.status().Processes == 1 })
	})
	t.Run("stdin and its end go in", func(t *testing.T) {
		s := exec(t, true, "cat")
		defer s.Close()
		sent := strings.Repeat("0123456789abcdef", 20000)
		go func() {
			_, _ = io.WriteString(s.Stdin, sent)
			_ = s.Stdin.Close()
		}()
		out, err := io.ReadAll(s.Stdout)
		must(t, err)
		if string(out) != sent {
			t.Errorf("%d bytes came back of %d", len(out), len(sent))
		}
	})
	t.Run("after Close the process goes on, and leaves when it ends", func(t *testing.T) {
		file := filepath.Join(n.dir, "touched")
		s := exec(t, false, "sleep 0.2; echo to nobody; touch "+file)
		must(t, s.Close())
		eventually(t, "it went on", func() bool { _, err := os.Stat(file); return err == nil })
		eventually(t, "it is forgotten", func() bool { return n.status().Processes == 1 })
		if _, err := s.Stdout.Read(make([]byte, 1)); !errors.Is(err, ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
	})
}

// killOne ends the pump, or the keeper, as a crash or an operator's mistake does.
func (n *node) killOne(keeper bool) {
	n.t.Helper()
	s := n.status()
	pid := s.PumpPid
	if keeper {
		pid = s.KeeperPid
	}
	must(n.t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(n.t, "the monitor answers again", func() bool {
		now, err := n.c.Status(n.ctx())
		return err == nil && now.PumpPid != s.PumpPid
	})
}

func TestKilled(t *testing.T) {
	for _, c := range []struct {
		name string
		kill func(*node, int)
	}{
		{"the pump", func(n *node, _ int) { n.killOne(false) }},
		{"the keeper", func(n *node, _ int) { n.killOne(true) }},
	} {
		t.Run("nothing happens to a container when "+c.name+" is killed", func(t *testing.T) {
			n := fakeNode(t)
			b := n.run(n.shell("i=1; while [ $i -le 20000 ]; do echo $i; i=$((i+1)); done; read x; exit 42"), withStdin)
			s, err := n.c.Exec(n.ctx(), ExecRequest{
				ID: b.id, ExecID: "e", Runtime: n.runtime,
				Process: []byte(`{"args":["/bin/sh","-c","i=1; while [ $i -le 20000 ]; do echo $i; i=$((i+1)); done; exit 9"],"cwd":"/"}`),
			})
			must(t, err)
			read := make(chan string, 1)
			go func() {
				data, err := io.ReadAll(s.Stdout)
				read <- fmt.Sprintf("%s%v", data, err)
			}()
			for i := range 3 {
				time.Sleep(20 * time.Millisecond)
				c.kill(n, i)
			}
			lines := strings.Split(<-read, "\n")
			if last := lines[len(lines)-1]; last != "<nil>" {
				t.Errorf("exec's output ends with %s", last)
			}
			checkNumbers(t, lines[:len(lines)-1], 20000)
			if e, err := s.Wait(n.ctx()); err != nil || e.Code != 9 {
				t.Errorf("exec's exit %+v, %v", e, err)
			}
			must(t, s.Close())
			must(t, n.c.CloseStdin(n.ctx(), b.id, ""))
			if e := b.wait(); e.Code != 42 || e.Lost {
				t.Errorf("exit %+v", e)
			}
			checkNumbers(t, b.lines("stdout"), 20000)
		})
	}
}

// TestAWriteThatFillsThePipeBehindALine: epoll does not tell of it.
func TestAWriteThatFillsThePipeBehindALine(t *testing.T) {
	n := fakeNode(t)
	const count = 50_000
	file := filepath.Join(n.dir, "lines")
	var text strings.Builder
	for i := range count {
		fmt.Fprintln(&text, i+1)
	}
	must(t, os.WriteFile(file, []byte(text.String()[1:]), 0o600))
	// The first line's beginning waits before the rest of all lines comes in one write.
	script := "printf 1; sleep 0.2; dd bs=1M 2>/dev/null <" + file + "; printf 1 >&2; read x; dd bs=1M <" + file + " >&2 2>/dev/null"
	for _, c := range []struct {
		name string
		then func()
	}{
		{"a line waits", func() {}},
		{"a line waited for a pump that is killed", func() { n.killOne(false) }},
		{"a line waited for one that then is the keeper", func() { n.killOne(true) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := n.run(n.shell(script), withStdin)
			eventually(t, "all that was written is logged", func() bool {
				data, err := os.ReadFile(b.log)
				return err == nil && strings.Count(string(data), "\n") == count
			})
			c.then()
			must(t, n.c.CloseStdin(n.ctx(), b.id, ""))
			if e := b.wait(); e.Code != 0 {
				t.Errorf("exit %+v", e)
			}
			checkNumbers(t, b.lines("stdout"), count)
			checkNumbers(t, b.lines("stderr"), count)
			n.delete(b.id)
		})
	}
}
