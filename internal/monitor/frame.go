package monitor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxMessage bounds one message of the protocol, in bytes.
const maxMessage = 4 << 20

var errTooLong = errors.New("message is too long")

// writeMessage writes a message: its length as four bytes, big-endian, then JSON.
// It is one write, so that concurrent writers need no more than a lock.
func writeMessage(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("%w: %d bytes", errTooLong, len(body))
	}
	buf := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	_, err = w.Write(append(buf, body...))
	return err
}

// readMessage reads what writeMessage wrote. io.EOF comes only between messages.
func readMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return fmt.Errorf("%w: %d bytes", errTooLong, n)
	}
	// The length is only claimed: memory grows with what really comes.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(body) < int(n) {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	return nil
}

// A stream's connection carries chunks in one direction: length (four bytes) and
// offset (eight) of the data, big-endian, then the data. A length of 0 is the
// stream's end.
const (
	chunkHeader = 12
	maxChunk    = 32 << 10
)

func putChunkHeader(buf []byte, offset uint64, n int) {
	binary.BigEndian.PutUint32(buf, uint32(n))
	binary.BigEndian.PutUint64(buf[4:], offset)
}

func readChunkHeader(r io.Reader) (offset uint64, n int, err error) {
	var buf [chunkHeader]byte
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return 0, 0, err
	}
	size := binary.BigEndian.Uint32(buf[:])
	if size > maxChunk {
		return 0, 0, fmt.Errorf("%w: chunk of %d bytes", errTooLong, size)
	}
	return binary.BigEndian.Uint64(buf[4:]), int(size), nil
}
