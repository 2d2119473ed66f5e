package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// rawTerminal takes a terminal's line editing and signals away, so that every key
// goes to the command, until restore is called. Where in is no terminal it does nothing.
func rawTerminal(in io.Reader) (restore func(), err error) {
	if !isTerminal(in) {
		return func() {}, nil
	}
	fd := int(in.(*os.File).Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() { _ = term.Restore(fd, old) }, nil
}

// windowSizes tells a terminal's size, now and whenever it changes, until ctx ends.
// What is no terminal has no size.
func windowSizes(ctx context.Context, out io.Writer) <-chan terminalSize {
	sizes := make(chan terminalSize)
	if !isTerminal(out) {
		return sizes
	}
	fd := int(out.(*os.File).Fd())
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		defer signal.Stop(changed)
		for {
			if width, height, err := term.GetSize(fd); err == nil {
				select {
				case sizes <- terminalSize{uint16(width), uint16(height)}:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// errDetached ends a reader at the detach keys.
var errDetached = errors.New("detached")

// parseKeys reads detach keys: a comma between keys, each a character or ctrl-X.
func parseKeys(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	var keys []byte
	for key := range strings.SplitSeq(text, ",") {
		c, ctrl := strings.CutPrefix(key, "ctrl-")
		switch {
		case len(c) != 1:
			return nil, fmt.Errorf("--detach-keys %q: want characters or ctrl-X, with commas between", text)
		case !ctrl:
			keys = append(keys, c[0])
		case c[0] >= '@' && c[0] <= '_' || c[0] >= 'a' && c[0] <= 'z':
			keys = append(keys, c[0]&0x1f)
		default:
			return nil, fmt.Errorf("--detach-keys %q: there is no ctrl-%s", text, c)
		}
	}
	return keys, nil
}

// detacher reads until it has read the detach keys, and then says errDetached. What may
// be their beginning is held back until the next key shows.
type detacher struct {
	in   io.Reader
	keys []byte
	// got is how many of the keys came; rest is what was read and not given yet.
	got  int
	rest []byte
	err  error
	done func() // called at the keys
}

func (d *detacher) Read(p []byte) (int, error) {
	for len(d.rest) == 0 && d.err == nil && len(p) > 0 {
		buf := make([]byte, len(p))
		n, err := d.in.Read(buf)
		d.err = err
		d.take(buf[:n])
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	return 0, d.err
}

func (d *detacher) take(data []byte) {
	for _, c := range data {
		if c == d.keys[d.got] {
			if d.got++; d.got == len(d.keys) {
				d.err = errDetached
				d.done()
				return
			}
			continue
		}
		d.rest = append(d.rest, d.keys[:d.got]...)
		if d.got = 0; c == d.keys[0] {
			d.got = 1
			continue
		}
		d.rest = append(d.rest, c)
	}
	if d.err != nil { // no key comes any more
		d.rest = append(d.rest, d.keys[:d.got]...)
		d.got = 0
	}
}
