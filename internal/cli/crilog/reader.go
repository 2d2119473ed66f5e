package crilog

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// Stream says where the container wrote.
type Stream uint8

// The two streams of a container.
const (
	Stdout Stream = iota
	Stderr
	streams int = iota
)

// bufferSize is what a Reader holds in memory. Physical lines that are longer
// come in several entries.
const bufferSize = 64 << 10

// maxHeader is longer than any time, stream and tag together.
const maxHeader = 256

// ErrMalformed says that a physical line is not in the CRI format and was left
// out. The reader goes on with the next line.
var ErrMalformed = errors.New("line is not in the CRI log format")

// Entry is a line of the container's, or a part of one.
type Entry struct {
	Time   time.Time
	Stream Stream
	// Content is without the newline, and valid until the next call of Next.
	Content []byte
	// More says that the line goes on in the next entry of this stream.
	More bool
}

// Reader takes a log file apart. It is not safe for use by several goroutines.
type Reader struct {
	src        io.Reader
	buf        []byte
	start, end int   // buf[start:end] is read and not yet given out
	offset     int64 // of buf[start] in src

	// within says that buf[start] continues the physical line that current
	// is the header of (malformed: that nobody wants).
	within    bool
	malformed bool
	current   Entry
}

// NewReader returns a reader of src, whose first byte begins a physical line.
func NewReader(src io.Reader) *Reader {
	return &Reader{src: src, buf: make([]byte, bufferSize)}
}

// Offset returns how many bytes of the source were given out.
func (r *Reader) Offset() int64 { return r.offset }

// Next returns the next entry. At io.EOF, bytes that no newline ends yet are
// kept: when the file has grown, Next goes on.
func (r *Reader) Next() (Entry, error) {
	for {
		i := bytes.IndexByte(r.buf[r.start:r.end], '\n')
		var piece []byte
		switch {
		case i >= 0:
			piece = r.take(i + 1)[:i]
		case r.end-r.start == len(r.buf):
			piece = r.take(len(r.buf))
		default:
			if err := r.fill(); err != nil {
				return Entry{}, err
			}
			continue
		}
		known := r.within && r.malformed
		e, err := r.entry(piece, i >= 0)
		if !known {
			return e, err
		}
	}
}

// Rest returns what a last line without a newline holds, as when its writer
// died in the middle; ok is false when there is nothing.
func (r *Reader) Rest() (e Entry, ok bool) {
	if r.start == r.end {
		return Entry{}, false
	}
	e, err := r.entry(r.take(r.end-r.start), false)
	return e, err == nil
}

func (r *Reader) take(n int) []byte {
	b := r.buf[r.start : r.start+n]
	r.start += n
	r.offset += int64(n)
	return b
}

func (r *Reader) fill() error {
	if r.start > 0 {
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	}
	n, err := r.src.Read(r.buf[r.end:])
	r.end += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// entry makes an entry of a physical line, or of a piece of one; last says
// that it ends here.
func (r *Reader) entry(piece []byte, last bool) (Entry, error) {
	first := !r.within
	r.within = !last
	if first {
		r.current, r.malformed = Entry{}, false
		h, ok := parseHeader(piece)
		if !ok {
			r.malformed = true
			return Entry{}, ErrMalformed
		}
		r.current = Entry{Time: h.time, Stream: h.stream, More: h.partial}
		piece = piece[h.size:]
	} else if r.malformed {
		return Entry{}, ErrMalformed
	}
	e := r.current
	e.Content = piece
	e.More = e.More || !last
	return e, nil
}

type header struct {
	time    time.Time
	stream  Stream
	partial bool
	size    int // bytes up to the content
}

// parseHeader reads the time, the stream and the tags at the start of line.
func parseHeader(line []byte) (h header, ok bool) {
	head := line[:min(len(line), maxHeader)]
	stamp, head, ok := bytes.Cut(head, []byte{' '})
	if !ok {
		return h, false
	}
	stream, head, ok := bytes.Cut(head, []byte{' '})
	if !ok {
		return h, false
	}
	// An empty line's last space may be missing: "… stdout F".
	tags, _, _ := bytes.Cut(head, []byte{' '})
	var err error
	if h.time, err = time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return h, false
	}
	switch string(stream) {
	case "stdout":
		h.stream = Stdout
	case "stderr":
		h.stream = Stderr
	default:
		return h, false
	}
	// Tags are separated by colons; the first is the only one defined.
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	switch string(tag) {
	case "F":
	case "P":
		h.partial = true
	default:
		return h, false
	}
	h.size = min(len(stamp)+1+len(stream)+1+len(tags)+1, len(line))
	return h, true
}
