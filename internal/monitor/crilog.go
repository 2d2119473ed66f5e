package monitor

import (
	"bytes"
	"strconv"
	"time"
)

const (
	// maxEntry bounds the content of one log entry: what kubelet's reader takes
	// at once. A longer line becomes several entries, all but the last tagged P.
	maxEntry = 16 << 10
	// maxRender bounds one write to the log. Lines of one byte grow forty-fold.
	maxRender = 256 << 10
	// stampLayout is RFC 3339 with all nine digits, so that entries align and sort.
	stampLayout = "2006-01-02T15:04:05.000000000Z07:00"
)

// batch is what render made of the head of a stream.
type batch struct {
	stream string // "stdout", "stderr"
	at     int64  // nanoseconds since 1970
	// partial: the log's last entry of this stream is tagged P.
	partial bool
	// dropped bytes are told of before anything else.
	dropped uint64
	// tail is the tag of a last line that has no newline: 'P', 'F', or 0 to leave it.
	tail byte
}

// render appends to dst the log entries for the head of a stream, and returns how
// many of its bytes they hold and whether the last of them is tagged P. The same
// bytes and batch always make the same entries: a journal need not hold them.
// With all false it stops when dst has maxRender bytes.
func (b batch) render(dst, head []byte, all bool) (out []byte, n int, partial bool) {
	var stamp [len(stampLayout) + 8]byte
	prefix := time.Unix(0, b.at).UTC().AppendFormat(stamp[:0], stampLayout)
	prefix = append(prefix, ' ')
	prefix = append(prefix, b.stream...)
	entry := func(tag byte, content []byte) {
		dst = append(dst, prefix...)
		dst = append(dst, ' ', tag, ' ')
		dst = append(dst, content...)
		dst = append(dst, '\n')
		partial = tag == 'P'
	}
	partial = b.partial
	if b.dropped > 0 {
		entry('F', droppedNote(b.dropped))
	}
	for n < len(head) && (all || len(dst) < maxRender) {
		rest := head[n:]
		end := bytes.IndexByte(rest[:min(len(rest), maxEntry+1)], '\n')
		switch {
		case end >= 0:
			entry('F', rest[:end])
			n += end + 1
		case len(rest) > maxEntry:
			entry('P', rest[:maxEntry])
			n += maxEntry
		case b.tail != 0:
			entry(b.tail, rest)
			n = len(head)
		default:
			return dst, n, partial
		}
	}
	return dst, n, partial
}

func droppedNote(n uint64) []byte {
	note := append([]byte("[cri-engine: "), strconv.AppendUint(nil, n, 10)...)
	return append(note, " bytes of output are missing here: the log could not be written]"...)
}

// quarantineNote is logged in place of the output of a process that keeps crashing the monitor.
const quarantineNote = "[cri-engine: the monitor crashed repeatedly on this output; the rest of it is not logged]\n"
