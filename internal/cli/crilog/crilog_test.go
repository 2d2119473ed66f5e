package crilog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

const stamp = "2026-01-02T03:04:05.000000006Z"

// line is a physical line of a log file.
func line(stream, tag, content string) string {
	return stamp + " " + stream + " " + tag + " " + content + "\n"
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func appendFile(t testing.TB, path, content string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
}

func TestCopy(t *testing.T) {
	long := strings.Repeat("x", 3*bufferSize+17)
	older := strings.Replace(line("stdout", "F", "older"), "2026", "2025", 1)
	interleaved := line("stdout", "P", "out-") + line("stderr", "F", "err") + line("stdout", "F", "put") + line("stderr", "F", "last")
	cases := []struct {
		name      string
		log       string
		o         Options
		out, err  string
		malformed int
	}{
		{"full lines go to their streams", line("stdout", "F", "a") + line("stderr", "F", "b") + line("stdout", "F", ""),
			Options{Tail: -1}, "a\n\n", "b\n", 0},
		{"parts are joined, also when the other stream's lie between", interleaved,
			Options{Tail: -1}, "out-put\n", "err\nlast\n", 0},
		{"an empty line may lack its last space", stamp + " stdout F\n" + line("stdout", "F", "b"),
			Options{Tail: -1}, "\nb\n", "", 0},
		{"further tags are ignored", line("stdout", "P:x:y", "a") + line("stdout", "F:z", "b"),
			Options{Tail: -1}, "ab\n", "", 0},
		{"bytes that are no text stay as they are", line("stdout", "F", "\xff\x00\r"),
			Options{Tail: -1}, "\xff\x00\r\n", "", 0},
		{"a physical line longer than the buffer is one line", line("stdout", "F", long) + line("stdout", "F", "b"),
			Options{Tail: -1}, long + "\nb\n", "", 0},
		{"malformed lines are left out and counted",
			"garbage\n" + line("stdout", "F", "a") + line("stdlog", "F", "b") + line("stdout", "X", "c") + "\n" + long + "\n" + line("stdout", "F", "d"),
			Options{Tail: -1}, "a\nd\n", "", 5},
		{"a last line whose writer died is shown as far as it goes", line("stdout", "F", "a") + strings.TrimSuffix(line("stdout", "F", "half"), "\n"),
			Options{Tail: -1}, "a\nhalf", "", 0},
		{"times are written once per line, however many parts it has", line("stdout", "P", "a") + line("stdout", "F", "b"),
			Options{Tail: -1, Timestamps: true}, stamp + " ab\n", "", 0},
		{"lines before since are left out, with all their parts",
			older + strings.Replace(line("stdout", "P", "x"), "2026", "2025", 1) + line("stdout", "F", "y") + line("stdout", "F", "newer"),
			Options{Tail: -1, Since: time.Date(2025, 12, 31, 0, 0, 0, 0, time.UTC)}, "newer\n", "", 0},
		{"tail 0 shows nothing", line("stdout", "F", "a"), Options{Tail: 0}, "", "", 0},
		{"tail 0 begins with the line that is being written", line("stdout", "F", "a") + stamp + " stdout F half", Options{Tail: 0}, "half", "", 0},
		{"tail counts lines of both streams", line("stdout", "F", "a") + line("stderr", "F", "b") + line("stdout", "F", "c"),
			Options{Tail: 2}, "c\n", "b\n", 0},
		{"tail of more lines than there are shows all", line("stdout", "F", "a") + line("stderr", "F", "b"),
			Options{Tail: 9}, "a\n", "b\n", 0},
		{"tail shows a line with all its parts and not the lines between them", interleaved,
			Options{Tail: 2}, "out-put\n", "last\n", 0},
		{"tail does not begin inside a line", line("stdout", "F", "0") + line("stdout", "P", "a") + line("stdout", "P", "b") + line("stdout", "F", "c"),
			Options{Tail: 1}, "abc\n", "", 0},
		{"tail over physical lines longer than a block", line("stdout", "F", "a") + line("stdout", "F", long) + line("stdout", "F", "c"),
			Options{Tail: 2}, long + "\nc\n", "", 0},
		{"tail skips malformed lines", line("stdout", "F", "a") + "garbage\n" + line("stdout", "F", "c"),
			Options{Tail: 2}, "a\nc\n", "", 1},
		{"an empty file is empty", "", Options{Tail: 3}, "", "", 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			writeFile(t, path, c.log)
			var out, errOut bytes.Buffer
			malformed, err := Copy(t.Context(), path, c.o, &out, &errOut)
			if err != nil {
				t.Fatal(err)
			}
			if out.String() != c.out || errOut.String() != c.err || malformed != c.malformed {
				t.Errorf("got stdout %.80q, stderr %.80q, %d malformed; want %.80q, %.80q, %d",
					out.String(), errOut.String(), malformed, c.out, c.err, c.malformed)
			}
		})
	}
}

func TestTailOfManyLines(t *testing.T) {
	var log strings.Builder
	for i := range 20000 {
		log.WriteString(line([]string{"stdout", "stderr"}[i%2], "F", fmt.Sprint(i)))
	}
	path := filepath.Join(t.TempDir(), "0.log")
	writeFile(t, path, log.String())
	var out, errOut bytes.Buffer
	if _, err := Copy(t.Context(), path, Options{Tail: 10001}, &out, &errOut); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(out.String(), "\n") + strings.Count(errOut.String(), "\n"); got != 10001 {
		t.Errorf("got %d lines, want 10001", got)
	}
	if !strings.HasPrefix(errOut.String(), "9999\n") || !strings.HasPrefix(out.String(), "10000\n") {
		t.Errorf("stdout begins %.20q, stderr %.20q", out.String(), errOut.String())
	}
}

func TestCopyRefusesWhatIsNoFile(t *testing.T) {
	if _, err := Copy(t.Context(), "/dev/null", Options{Tail: -1}, io.Discard, io.Discard); err == nil {
		t.Error("a device was read")
	}
	if _, err := Copy(t.Context(), filepath.Join(t.TempDir(), "none"), Options{Tail: -1}, io.Discard, io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// safeBuffer is a buffer that one goroutine may read while another writes.
type safeBuffer struct {
	mu sync.Mutex // Protects b.
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await fails the test when want does not show up.
func (s *safeBuffer) await(t testing.TB, want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); s.String() != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("got %q, want %q", s.String(), want)
		}
	}
}

// follower runs Copy until the container is told to have ended.
type follower struct {
	path string
	out  safeBuffer
	end  chan struct{}
	done chan error
}

func follow(t testing.TB, create bool, o Options) *follower {
	t.Helper()
	f := &follower{path: filepath.Join(t.TempDir(), "0.log"), end: make(chan struct{}), done: make(chan error, 1)}
	if create {
		writeFile(t, f.path, line("stdout", "F", "first"))
	}
	o.Ended = func(context.Context) (bool, error) {
		select {
		case <-f.end:
			return true, nil
		default:
			return false, nil
		}
	}
	go func() {
		_, err := Copy(t.Context(), f.path, o, &f.out, &f.out)
		f.done <- err
	}()
	return f
}

// finish ends the container and wants Copy to return, with what it wrote.
func (f *follower) finish(t testing.TB, want string) {
	t.Helper()
	close(f.end)
	select {
	case err := <-f.done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still following after the container's end")
	}
	if got := f.out.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFollow(t *testing.T) {
	t.Run("lines are shown as they come, and all that came before the end", func(t *testing.T) {
		f := follow(t, true, Options{Tail: -1})
		f.out.await(t, "first\n")
		appendFile(t, f.path, line("stdout", "F", "second"))
		f.out.await(t, "first\nsecond\n")
		appendFile(t, f.path, line("stdout", "F", "third"))
		f.finish(t, "first\nsecond\nthird\n")
	})
	t.Run("a line that is written in pieces is shown when it is complete", func(t *testing.T) {
		f := follow(t, true, Options{Tail: 0})
		time.Sleep(2 * pollInterval)
		torn := line("stdout", "F", "torn")
		appendFile(t, f.path, torn[:20])
		time.Sleep(2 * pollInterval)
		appendFile(t, f.path, torn[20:])
		f.out.await(t, "torn\n")
		f.finish(t, "torn\n")
	})
	t.Run("a file that is not there yet is waited for", func(t *testing.T) {
		f := follow(t, false, Options{Tail: -1})
		time.Sleep(2 * pollInterval)
		writeFile(t, f.path, line("stdout", "F", "late"))
		f.out.await(t, "late\n")
		f.finish(t, "late\n")
	})
	t.Run("a rotated file is read to its end and the new one from its start", func(t *testing.T) {
		f := follow(t, true, Options{Tail: -1})
		f.out.await(t, "first\n")
		if err := os.Rename(f.path, f.path+".1"); err != nil {
			t.Fatal(err)
		}
		appendFile(t, f.path+".1", line("stdout", "P", "between "))
		f.out.await(t, "first\nbetween ")
		appendFile(t, f.path+".1", line("stdout", "P", "rename "))
		writeFile(t, f.path, line("stdout", "F", "and reopen"))
		f.out.await(t, "first\nbetween rename and reopen\n")
		f.finish(t, "first\nbetween rename and reopen\n")
	})
	t.Run("a file that was cut off is read from its start", func(t *testing.T) {
		f := follow(t, true, Options{Tail: -1})
		f.out.await(t, "first\n")
		writeFile(t, f.path, line("stdout", "F", "2"))
		f.out.await(t, "first\n2\n")
		f.finish(t, "first\n2\n")
	})
	t.Run("a caller that gives up ends it", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "0.log")
		writeFile(t, path, "")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		never := func(context.Context) (bool, error) { return false, nil }
		if _, err := Copy(ctx, path, Options{Tail: -1, Ended: never}, io.Discard, io.Discard); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// FuzzReader wants every well-formed line out of any bytes, in pieces of any
// size, with bounded memory, and the tail to agree with the whole.
func FuzzReader(f *testing.F) {
	f.Add([]byte(line("stdout", "F", "a")+line("stderr", "P", "b")), 1)
	f.Add([]byte("garbage\n"+line("stdout", "P", "a")+line("stderr", "F", "")+line("stdout", "F", "c")), 2)
	f.Add([]byte(stamp+" stdout F"), 1)
	f.Add([]byte("\n\n \n"), 0)
	f.Fuzz(func(t *testing.T, log []byte, n int) {
		whole := collect(t, NewReader(bytes.NewReader(log)))
		if slow := collect(t, NewReader(iotest.OneByteReader(bytes.NewReader(log)))); slow != whole {
			t.Errorf("byte by byte %q, at once %q", slow, whole)
		}
		n = max(0, min(n, 50))
		w, err := lastLines(bytes.NewReader(log), int64(len(log)), n)
		if err != nil {
			t.Fatal(err)
		}
		for s, at := range w {
			if at < 0 || at > int64(len(log)) || at > 0 && log[at-1] != '\n' && at != int64(len(log)) {
				t.Errorf("stream %d begins at %d, inside a line", s, at)
			}
		}
		tail := collect(t, NewReader(bytes.NewReader(log[w.start():])))
		if !strings.HasSuffix(whole, tail) {
			t.Errorf("tail %q is not the end of %q", tail, whole)
		}
	})
}

func collect(t testing.TB, r *Reader) string {
	t.Helper()
	var b strings.Builder
	for {
		e, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			if e, ok := r.Rest(); ok {
				fmt.Fprintf(&b, "%d%s…", e.Stream, e.Content)
			}
			return b.String()
		case errors.Is(err, ErrMalformed):
			b.WriteString("!")
		case err != nil:
			t.Fatal(err)
		default:
			fmt.Fprintf(&b, "%d%s", e.Stream, e.Content)
			if !e.More {
				b.WriteByte('\n')
			}
		}
	}
}
