package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rig is a stream with a real pipe, log and shared memory; a pump's memory is b.
type rig struct {
	t   *testing.T
	b   *buffers
	s   *stream
	w   *os.File
	log logTarget
	now time.Time
	// slot has the journals of both of the process's streams.
	slot *slot
}

func newRig(t *testing.T) *rig {
	t.Helper()
	fd, err := createShm()
	must(t, err)
	m, err := mapShm(fd)
	must(t, err)
	fds, err := pipe(0, nil)
	must(t, err)
	log, err := openLog(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	r := &rig{t: t, w: os.NewFile(uintptr(fds[1]), "w"), now: time.Unix(1767323045, 6), slot: m.slot(3)}
	r.s = &stream{role: "stdout", fd: fds[0], j: &r.slot.out[0]}
	r.log = logTarget{fd: log, now: func() time.Time { return r.now }}
	r.restart()
	t.Cleanup(func() {
		r.w.Close()
		r.b.close()
		closeAll([]int{fds[0], log, fd})
		_ = unix.Munmap(m.mem)
	})
	return r
}

// restart is what a new pump has: nothing but the fds and the shared memory.
func (r *rig) restart() {
	r.t.Helper()
	if r.b != nil {
		r.b.close()
	}
	b, err := newBuffers()
	must(r.t, err)
	r.b = b
	r.now = r.now.Add(time.Second)
}

func (r *rig) write(s string) {
	r.t.Helper()
	_, err := r.w.WriteString(s)
	must(r.t, err)
}

func (r *rig) move() {
	r.t.Helper()
	for {
		more, err := r.b.moveLines(r.s, r.log, turnBudget)
		if err != nil && !errors.Is(err, errEmpty) && !errors.Is(err, io.EOF) {
			r.t.Fatal(err)
		}
		if !more {
			return
		}
	}
}

func (r *rig) content() string {
	r.t.Helper()
	data, err := os.ReadFile(fdPath(r.log.fd))
	must(r.t, err)
	return string(data)
}

// entries returns the log without time stamps.
func (r *rig) entries() string {
	var out strings.Builder
	for _, e := range strings.SplitAfter(r.content(), "\n") {
		_, rest, _ := strings.Cut(e, " ")
		out.WriteString(rest)
	}
	return out.String()
}

// interrupt does with the pipe's head what moveLines does, up to a point at which the
// pump is killed.
func (r *rig) interrupt(point string, written func(int) int) {
	r.t.Helper()
	j := r.s.j
	head, err := r.b.peek(r.s.fd, peekSize)
	must(r.t, err)
	w := batch{stream: r.s.role, at: r.now.UnixNano(), partial: j.partial == 1}
	if r.s.hup.Load() {
		w.tail = 'F'
	}
	out, n, partial := w.render(nil, head, false)
	var st unix.Stat_t
	must(r.t, unix.Fstat(r.log.fd, &st))
	j.begin(head[:n], partial)
	j.at, j.logSize, j.logIno, j.tail = w.at, st.Size, st.Ino, uint32(w.tail)
	if partial {
		j.tail = 'P'
	}
	j.phase.Store(phaseWriting)
	must(r.t, writeAll(r.log.fd, out[:written(len(out))]))
	if point == "writing" {
		return
	}
	j.droppedAfter = 0
	j.phase.Store(phaseConsuming)
	if point == "written" {
		return
	}
	_, err = unix.Readv(r.s.fd, [][]byte{poisonOf(j), r.b.head[:j.n-1]})
	must(r.t, err)
	if point == "consumed" {
		return
	}
	j.partial, j.consumed = j.partialAfter, j.consumedAfter // half of commit
}

func TestKilledAtEveryPoint(t *testing.T) {
	all := func(n int) int { return n }
	points := []struct {
		name, point string
		written     func(int) int
	}{
		{"before the write", "writing", func(int) int { return 0 }},
		{"after one byte", "writing", func(int) int { return 1 }},
		{"in the middle of the write", "writing", func(n int) int { return n / 2 }},
		{"a byte before its end", "writing", func(n int) int { return n - 1 }},
		{"after the write", "writing", all},
		{"before the bytes are consumed", "written", all},
		{"after that", "consumed", all},
		{"half-way through the commit", "committing", all},
	}
	long := strings.Repeat("0123456789abcdef", 3000)
	inputs := []struct {
		name, in string
		end      bool
	}{
		{"lines", "one\ntwo\nthree\n", false},
		{"lines and the begin of one", "one\ntwo\nthr", false},
		{"a line of several entries", long + "\nnext\n", false},
		{"the begin of such a line", "one\n" + long, false},
		{"the last line, without an end", "one\ntwo", true},
		{"equal bytes", "\n\n\n\n", false},
	}
	for _, in := range inputs {
		for _, p := range points {
			t.Run(fmt.Sprintf("%s, killed %s: each is logged once", in.name, p.name), func(t *testing.T) {
				want := newRig(t)
				want.write("first\n" + in.in)
				if in.end {
					want.w.Close()
					want.s.hup.Store(true)
				}
				want.move()

				r := newRig(t)
				r.write("first\n")
				r.move()
				r.write(in.in)
				if in.end {
					r.w.Close()
					r.s.hup.Store(true)
				}
				r.interrupt(p.point, p.written)
				r.restart()
				r.move()
				if !in.end {
					want.write("\nafter\n")
					want.move()
					r.write("\nafter\n")
					r.move()
				}
				if r.entries() != want.entries() {
					t.Errorf("log is\n%.300q\nwant\n%.300q", r.entries(), want.entries())
				}
				if r.s.j.consumed != want.s.j.consumed || r.s.j.partial != want.s.j.partial {
					t.Errorf("journal %d %d, want %d %d", r.s.j.consumed, r.s.j.partial, want.s.j.consumed, want.s.j.partial)
				}
			})
		}
	}
}

func TestAHalfWrittenBatchIsEndedBeforeTheOtherStreamWrites(t *testing.T) {
	for _, role := range []string{roleStdout, roleStderr} {
		t.Run(role, func(t *testing.T) {
			r := newRig(t)
			fds, err := pipe(0, nil)
			must(t, err)
			defer closeAll(fds[:])
			streams := [2]*stream{r.s, {role: roleStderr, fd: fds[0], j: &r.slot.out[1]}}
			r.write("one\n")
			_, err = unix.Write(fds[1], []byte("two\n"))
			must(t, err)
			for _, s := range streams {
				if s.role == role {
					r.s = s
				}
			}
			r.interrupt("writing", func(n int) int { return n / 2 })
			r.restart()
			p := &proc{slot: r.slot, out: streams, log: r.log.fd}
			for p.takeTurn(r.b) {
			}
			want := "stdout F one\nstderr F two\n"
			if role == roleStderr {
				want = "stderr F two\nstdout F one\n"
			}
			if got := r.entries(); got != want {
				t.Errorf("log %q", r.content())
			}
		})
	}
}

func TestUnfinishedLineStaysInThePipe(t *testing.T) {
	r := newRig(t)
	r.write("prompt> ")
	r.move()
	if got := r.content(); got != "" {
		t.Errorf("log %q", got)
	}
	r.write("answer\n")
	r.move()
	if got := r.entries(); got != "stdout F prompt> answer\n" {
		t.Errorf("log %q", got)
	}
}

func TestPipeFullOfSplinters(t *testing.T) {
	r := newRig(t)
	src, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer src.Close()
	_, err = src.WriteString("ab")
	must(t, err)
	// Each splice takes a slot of the pipe, however short it is.
	for {
		off := int64(0)
		if _, err := unix.Splice(int(src.Fd()), &off, int(r.w.Fd()), nil, 2, unix.SPLICE_F_NONBLOCK); err != nil {
			break
		}
	}
	r.move()
	if got := r.entries(); !strings.HasPrefix(got, "stdout P abab") {
		t.Errorf("a writer waits for ever; log %q", got)
	}
}

func TestFullDisk(t *testing.T) {
	fill := func(t *testing.T) *rig {
		r := newRig(t)
		full, err := unix.Open("/dev/full", unix.O_WRONLY, 0)
		if err != nil {
			t.Skip("needs /dev/full")
		}
		t.Cleanup(func() { unix.Close(full) })
		r.write("one\ntwo\n")
		good := r.log.fd
		r.log.fd = full
		if _, err := r.b.moveLines(r.s, r.log, turnBudget); !errors.Is(err, errStalled) || !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("error %v", err)
		}
		r.s.j.logIno, r.s.j.logSize = inode(t, good), 0 // it was this one that was full
		r.log.fd = good
		return r
	}
	t.Run("what waited is logged when there is room again", func(t *testing.T) {
		r := fill(t)
		r.move()
		if got := r.entries(); got != "stdout F one\nstdout F two\n" {
			t.Errorf("log %q", got)
		}
	})
	t.Run("what was dropped is told of, and nothing else is missing", func(t *testing.T) {
		r := fill(t)
		must(t, writeAll(r.log.fd, []byte("torn"))) // a part had been written
		n, err := r.b.drop(r.s, r.log)
		if n != 8 || !errors.Is(err, errEmpty) {
			t.Errorf("dropped %d, %v", n, err)
		}
		r.write("three\n")
		r.move()
		want := "stdout F " + string(droppedNote(8)) + "\nstdout F three\n"
		if got := r.entries(); got != want {
			t.Errorf("log %q, want %q", got, want)
		}
	})
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	return st.Ino
}

func TestTornTerminalEntryIsCut(t *testing.T) {
	r := newRig(t)
	must(t, writeAll(r.log.fd, []byte("before\n")))
	r.s.j.logSize, r.s.j.logIno = 7, inode(t, r.log.fd)
	r.s.j.phase.Store(phaseTerminal)
	must(t, writeAll(r.log.fd, []byte("whole\nto")))
	must(t, r.b.resume(r.s, r.log))
	if got := r.content(); got != "before\nwhole\n" {
		t.Errorf("log %q", got)
	}
}

func TestOpenLog(t *testing.T) {
	dir := t.TempDir()
	t.Run("what is not a regular file is refused without waiting", func(t *testing.T) {
		fifo := filepath.Join(dir, "fifo")
		must(t, unix.Mkfifo(fifo, 0o600))
		link := filepath.Join(dir, "link")
		must(t, os.Symlink("/etc/hostname", link))
		for _, path := range []string{fifo, link, dir} {
			if fd, err := openLog(path); err == nil {
				unix.Close(fd)
				t.Errorf("%s was opened", path)
			}
		}
	})
	t.Run("a directory that is gone is made again", func(t *testing.T) {
		fd, err := openLog(filepath.Join(dir, "a/b/log"))
		must(t, err)
		unix.Close(fd)
	})
}

func TestFrames(t *testing.T) {
	t.Run("a message comes as it went", func(t *testing.T) {
		var buf bytes.Buffer
		must(t, writeMessage(&buf, &request{ID: 7, Method: "list"}))
		var r request
		must(t, readMessage(&buf, &r))
		if r.ID != 7 || r.Method != "list" {
			t.Errorf("%+v", r)
		}
		if err := readMessage(&buf, &r); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	})
	for name, in := range map[string]string{
		"a length beyond the limit": "\xff\xff\xff\xff{}",
		"a message that is cut off": "\x00\x00\x00\x09{}",
		"a message that is no JSON": "\x00\x00\x00\x02{x",
		"a length that is cut off":  "\x00\x00",
	} {
		t.Run(name+" is an error", func(t *testing.T) {
			if err := readMessage(strings.NewReader(in), &request{}); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x7f\xff\xff\xff{"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var r request
		if readMessage(bytes.NewReader(in), &r) == nil {
			var buf bytes.Buffer
			if err := writeMessage(&buf, &r); err != nil && !errors.Is(err, errTooLong) {
				t.Fatal(err)
			}
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"id":"` + strings.Repeat("a", 64) + `","state":"running","slot":1}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := parseRecord(in)
		if err == nil && (r.Slot < 0 || r.Slot >= shmSlots || strings.ContainsAny(string(r.key()), "/\x00")) {
			t.Fatalf("record %+v", r)
		}
	})
}

func TestParseStat(t *testing.T) {
	line := "42 (a) b) Z 7 " + strings.Repeat("0 ", 17) + "99 " + strings.Repeat("0 ", 29) + "1792\n"
	st, err := parseStat([]byte(line))
	must(t, err)
	if st.state != 'Z' || st.parent != 7 || st.start != 99 || statusEnded(42, st.exit).Code != 7 {
		t.Errorf("%+v", st)
	}
	for _, bad := range []string{"", "42 (x)", "42 (x) Z 1 2"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestSystemdPath(t *testing.T) {
	for in, want := range map[string]string{
		"kubepods-burstable-podx.slice:cri:abc": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/cri-abc.scope",
		"-.slice:cri:abc":                       "/cri-abc.scope",
		"a.slice:cri":                           "",
		"a.slice:../..:x":                       "",
		"/plain/path":                           "",
	} {
		if got := systemdPath(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for _, c := range []struct {
		name                   string
		min1, max1, min2, max2 int
		want                   int
	}{
		{"equal", 1, 1, 1, 1, 1},
		{"one step of skew", 1, 2, 2, 3, 2},
		{"two steps", 1, 1, 2, 3, 0},
		{"nonsense", 0, 0, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := negotiate(c.min1, c.max1, c.min2, c.max2); got != c.want || (err == nil) != (c.want > 0) {
				t.Errorf("%d, %v", got, err)
			}
		})
	}
}
