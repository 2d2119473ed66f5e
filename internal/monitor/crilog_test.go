package monitor

import (
	"bytes"
	"strings"
	"testing"
)

func TestRender(t *testing.T) {
	const stamp = "2026-01-02T03:04:05.000000006Z stdout "
	const at = 1767323045000000006
	long := strings.Repeat("x", maxEntry)
	cases := []struct {
		name    string
		in      string
		b       batch
		want    []string // entries without the stamp
		taken   int
		partial bool
	}{
		{"whole lines become entries", "a\n\nb\n", batch{}, []string{"F a", "F ", "F b"}, 5, false},
		{"an unfinished line stays", "a\nbc", batch{}, []string{"F a"}, 2, false},
		{"at the end it is logged", "a\nbc", batch{tail: 'F'}, []string{"F a", "F bc"}, 4, false},
		{"or as the part of a line", "bc", batch{tail: 'P'}, []string{"P bc"}, 2, true},
		{"a line of exactly an entry's size is one", long + "\n", batch{}, []string{"F " + long}, maxEntry + 1, false},
		{"a longer one is split", long + "y\n", batch{}, []string{"P " + long, "F y"}, maxEntry + 2, false},
		{"one that may still end in time waits", long, batch{}, nil, 0, false},
		{"one that is too long does not", long + "y", batch{}, []string{"P " + long}, maxEntry, true},
		{"nothing taken leaves the state", "y", batch{partial: true}, nil, 0, true},
		{"what was dropped is told first", "a\n", batch{dropped: 7}, []string{"F [cri-engine: 7 bytes of output are missing here: the log could not be written]", "F a"}, 2, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.b.stream, c.b.at = "stdout", at
			out, n, partial := c.b.render(nil, []byte(c.in), false)
			want := ""
			for _, e := range c.want {
				want += stamp + e + "\n"
			}
			if string(out) != want || n != c.taken || partial != c.partial {
				t.Errorf("got %.200q, %d, %v; want %.200q, %d, %v", out, n, partial, want, c.taken, c.partial)
			}
		})
	}
	t.Run("one write is bounded", func(t *testing.T) {
		out, n, _ := batch{stream: "stdout"}.render(nil, bytes.Repeat([]byte("\n"), peekSize), false)
		if len(out) > maxRender+maxEntry || n == 0 || n == peekSize {
			t.Errorf("%d bytes of %d lines", len(out), n)
		}
	})
}

// FuzzRender: whatever a container writes, the entries hold it once and in order, and the
// same bytes alone make the same entries again, which is what recovery relies on.
func FuzzRender(f *testing.F) {
	f.Add([]byte("a\nb"), uint8(0), false, uint64(0))
	f.Add(bytes.Repeat([]byte("x"), maxEntry+1), uint8('P'), true, uint64(3))
	f.Add(append(bytes.Repeat([]byte("x"), maxEntry), '\n'), uint8('F'), false, uint64(0))
	f.Fuzz(func(t *testing.T, in []byte, tail uint8, partial bool, dropped uint64) {
		switch tail {
		case 0, 'P', 'F':
		default:
			tail = 0
		}
		b := batch{stream: "stderr", partial: partial, dropped: dropped, tail: tail}
		out, n, after := b.render(nil, in, false)
		var content []byte
		for _, e := range bytes.SplitAfter(out, []byte{'\n'}) {
			if len(e) == 0 {
				continue
			}
			parts := bytes.SplitN(bytes.TrimSuffix(e, []byte{'\n'}), []byte{' '}, 4)
			if len(parts) != 4 || len(parts[3]) > maxEntry {
				t.Fatalf("entry %.100q", e)
			}
			if bytes.HasPrefix(parts[3], []byte("[cri-engine: ")) {
				continue
			}
			content = append(content, parts[3]...)
			if parts[2][0] == 'F' {
				content = append(content, '\n')
			}
		}
		if dropped == 0 && !bytes.HasPrefix(in, []byte("[cri-engine: ")) {
			want := in[:n]
			if tail == 'F' && n == len(in) && n > 0 && in[n-1] != '\n' && !after {
				want = append(bytes.Clone(want), '\n')
			}
			if !bytes.Contains(in, []byte("[cri-engine: ")) && !bytes.Equal(content, want) {
				t.Fatalf("%d bytes became %d", len(want), len(content))
			}
		}
		again := b
		if after {
			again.tail = 'P'
		}
		if out2, _, _ := again.render(nil, in[:n], true); !bytes.Equal(out, out2) && n > 0 {
			t.Fatal("the same bytes make other entries when they are alone")
		}
	})
}
