package monitor

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The shared memory is a memfd that keeper and pump both map. It holds one slot
// for each process in custody, and in the slot the journals of its streams. It is
// there for one reader: the next pump, after this one was killed at any
// instruction. The kernel keeps the pages, so what was stored before the kill is
// seen after it; phase is stored last, atomically, so that the compiler keeps
// the order too.
const (
	shmSlots = 8192
	slotSize = 512
	shmSize  = slotSize * (shmSlots + 1)
)

// The phases of a stream's journal.
const (
	// phaseIdle: the journal says nothing.
	phaseIdle uint32 = iota
	// phaseWriting: the first n bytes in the pipe are being appended to the log
	// as the entries that render makes of them.
	phaseWriting
	// phaseConsuming: they are in the log (or sent to the client, or given up) and
	// are being taken out of the pipe. They are out if poison was overwritten.
	phaseConsuming
	// phaseTerminal: bytes that came from a pty are being appended to the log.
	phaseTerminal
)

// journal is what must be known of a stream if the pump dies now. Only the
// holder of the process's turn writes it.
type journal struct {
	phase atomic.Uint32
	n     uint32
	// tail is the tag ('P', 'F') of a last line without newline, 0 if there is none.
	tail uint32
	// partial is 1 inside a line whose beginning is in the log, tagged P.
	partial, partialAfter uint32
	// first is the first of the n bytes; poison its complement, until read(2)
	// puts the first byte there while it takes the n bytes out of the pipe.
	first, poison uint8
	_             [2]byte
	// at is the time stamp of the entries, logSize and logIno the log before they were written.
	at      int64
	logSize int64
	logIno  uint64
	// consumed counts all bytes ever taken out; dropped those that no log has and no note told of yet.
	consumed, consumedAfter uint64
	dropped, droppedAfter   uint64
}

// commit ends a batch whose bytes are out of the pipe. Done twice it does no harm,
// since a kill may come in its middle.
func (j *journal) commit() {
	j.partial = j.partialAfter
	j.consumed = j.consumedAfter
	j.dropped = j.droppedAfter
	j.phase.Store(phaseIdle)
}

// slot is a process's part of the shared memory.
type slot struct {
	out [2]journal // stdout (or the pty), stderr
	// active is 1 while a worker has its turn: whom a crash is blamed on.
	active atomic.Uint32
	// crashes counts pumps that died of this process's bytes. The keeper writes it.
	crashes atomic.Uint32
	// quarantined is 1 once the keeper gave up on its output, 2 when the log says so.
	quarantined atomic.Uint32
	// stdinBusy is 1 while bytes are written to stdin, whose count is not yet in stdinOffset.
	stdinBusy   atomic.Uint32
	stdinOffset atomic.Uint64
	// oomKills counts the OOM killer's victims in its cgroup since it was created.
	oomKills atomic.Uint64
}

// The slot fits: otherwise this array's length is negative and nothing compiles.
var _ [slotSize - unsafe.Sizeof(slot{})]byte

// shm is the mapped memory.
type shm struct {
	mem []byte
}

// header is before the slots.
type header struct {
	// dropped counts bytes of output that could not be written, since the memory was made.
	dropped atomic.Uint64
}

func createShm() (fd int, err error) {
	fd, err = unix.MemfdCreate("cri-engine-monitor", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("create shared memory: %w", err)
	}
	if err := unix.Ftruncate(fd, shmSize); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("size shared memory: %w", err)
	}
	return fd, nil
}

// mapShm maps a memory that createShm made, in this process or one before it.
func mapShm(fd int) (*shm, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at shared memory: %w", err)
	}
	if st.Size != shmSize {
		return nil, fmt.Errorf("shared memory has %d bytes, not %d", st.Size, shmSize)
	}
	mem, err := unix.Mmap(fd, 0, shmSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map shared memory: %w", err)
	}
	return &shm{mem: mem}, nil
}

func (s *shm) header() *header {
	return (*header)(unsafe.Pointer(&s.mem[0])) //nolint:gosec // G103: the memory is mapped, page-aligned and large enough
}

// slot returns the i-th slot, 0 ≤ i < shmSlots.
func (s *shm) slot(i int) *slot {
	return (*slot)(unsafe.Pointer(&s.mem[(i+1)*slotSize])) //nolint:gosec // G103: as above; slotSize keeps the alignment
}

// clear makes a slot new.
func (s *shm) clear(i int) {
	clear(s.mem[(i+1)*slotSize : (i+2)*slotSize])
}
