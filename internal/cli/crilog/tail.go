package crilog

import (
	"bytes"
	"errors"
	"io"
)

// maxJoin is how far before the last lines the start of one of them is looked
// for, when the other stream's lines lie between its parts.
const maxJoin = 4 << 20

// window says from which offset on each stream's entries are wanted.
type window [streams]int64

// start is the first offset that any stream wants.
func (w window) start() int64 { return min(w[Stdout], w[Stderr]) }

// lastLines finds the last n lines of the container's in the first size bytes of f, from the
// end: what it costs does not depend on the size of the file.
//
// A line of one stream may begin before lines of the other that are not wanted,
// so each stream has its own offset: behind the last line of it that is not wanted.
func lastLines(f io.ReaderAt, size int64, n int) (window, error) {
	if n <= 0 {
		return lastNewline(f, size)
	}
	var (
		w            window
		seen, closed [streams]bool
		lines        = backward{f: f, pos: size}
		count        int
		reached      int64 // where the n-th last line ends that carries tag F
	)
	for lines.pos > 0 {
		if count == n && (settled(seen, closed) || reached-lines.pos > maxJoin) {
			break
		}
		end := lines.pos
		head, err := lines.previous()
		if err != nil {
			return window{}, err
		}
		h, ok := parseHeader(head)
		if !ok {
			continue
		}
		switch {
		case count < n:
			seen[h.stream] = true
			if !h.partial {
				count++
				reached = end
			}
		case !h.partial && !closed[h.stream]:
			closed[h.stream] = true
			w[h.stream] = end
		}
	}
	for s := range w {
		if !closed[s] {
			w[s] = lines.pos
		}
	}
	return w, nil
}

// lastNewline is where the line begins that is being written at size: size itself
// unless its writer was seen in the middle.
func lastNewline(f io.ReaderAt, size int64) (window, error) {
	lines := backward{f: f, pos: size + 1}
	if _, err := lines.previous(); err != nil {
		return window{}, err
	}
	return window{lines.pos, lines.pos}, nil
}

func settled(seen, closed [streams]bool) bool {
	for s := range seen {
		if seen[s] && !closed[s] {
			return false
		}
	}
	return true
}

// backward gives the physical lines of a file from the last to the first.
type backward struct {
	f   io.ReaderAt
	pos int64 // where the line given last begins
	// block holds the bytes from blockAt on, up to pos or beyond.
	block   []byte
	blockAt int64
}

// previous moves pos to the start of the line before it and returns as much of the line
// as holds its header.
func (b *backward) previous() ([]byte, error) {
	end := b.pos
	at := end - 1 // the newline at the line's own end, which is not the one looked for
	for at > 0 {
		if at <= b.blockAt || b.block == nil {
			if err := b.load(at); err != nil {
				return nil, err
			}
		}
		i := bytes.LastIndexByte(b.block[:at-b.blockAt], '\n')
		if i >= 0 {
			at = b.blockAt + int64(i) + 1
			break
		}
		at = b.blockAt
	}
	b.pos = max(at, 0)
	head := make([]byte, min(end-b.pos, maxHeader))
	n, err := b.f.ReadAt(head, b.pos)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return bytes.TrimSuffix(head[:n], []byte{'\n'}), nil
}

// load reads the block that ends at end.
func (b *backward) load(end int64) error {
	size := min(end, bufferSize)
	if b.block == nil {
		b.block = make([]byte, bufferSize)
	}
	b.block = b.block[:size]
	b.blockAt = end - size
	_, err := b.f.ReadAt(b.block, b.blockAt)
	if errors.Is(err, io.EOF) {
		// The file was cut off meanwhile.
		err = io.ErrUnexpectedEOF
	}
	return err
}
