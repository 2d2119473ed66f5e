package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// exitEvents hears of the ends of all processes by the kernel's process connector
// (linux/cn_proc.h). It is for processes that are nobody's child among us, on kernels
// before 6.15, whose pidfds do not tell how a process ended; it is opened with the
// first of those, since it wakes us at each exec and exit on the node.
type exitEvents struct {
	once sync.Once

	mu      sync.Mutex     // Protects what follows.
	watched map[int]uint32 // wait statuses; noStatus until the end
}

const noStatus = ^uint32(0)

// From linux/connector.h and linux/cn_proc.h.
const (
	cnProc         = 1
	cnListen       = 1
	cnHeader       = 20
	cnEventExit    = 0x80000000
	cnEventExitLen = 16 + 12 // what, cpu, timestamp; pid, tgid, status
)

// watch begins to listen for a process's end.
func (x *exitEvents) watch(pid int) error {
	var err error
	x.once.Do(func() { err = x.open() })
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.watched == nil {
		x.watched = map[int]uint32{}
	}
	if _, have := x.watched[pid]; !have {
		x.watched[pid] = noStatus
	}
	return err
}

// end returns how a watched process ended, and forgets it. The event is sent before the
// pidfd becomes readable; the little wait is for our own reader.
func (x *exitEvents) end(pid int) (ended, bool) {
	for range 20 {
		x.mu.Lock()
		status, have := x.watched[pid]
		if status != noStatus {
			delete(x.watched, pid)
		}
		x.mu.Unlock()
		if !have {
			break
		}
		if status != noStatus {
			return statusEnded(pid, status), true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ended{}, false
}

func (x *exitEvents) open() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_CONNECTOR)
	if err != nil {
		return fmt.Errorf("open the process connector: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: cnProc})
	if err == nil {
		// A burst of exits must not push ours out before it is read.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
		err = unix.Sendto(fd, listenRequest(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("listen to the process connector: %w", err)
	}
	go x.read(fd)
	return nil
}

// listenRequest is nlmsghdr, cn_msg and the operation, all in the machine's byte order.
func listenRequest() []byte {
	const size = unix.SizeofNlMsghdr + cnHeader + 4
	b := make([]byte, size)
	native := binary.NativeEndian
	native.PutUint32(b, size)
	native.PutUint16(b[4:], unix.NLMSG_DONE)
	cn := b[unix.SizeofNlMsghdr:]
	native.PutUint32(cn, cnProc)     // idx
	native.PutUint32(cn[4:], cnProc) // val
	native.PutUint16(cn[16:], 4)     // len
	native.PutUint32(cn[cnHeader:], cnListen)
	return b
}

func (x *exitEvents) read(fd int) {
	buf := make([]byte, 4096)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) {
			continue // events were missed: their processes are then lost
		}
		if err != nil {
			return
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not the kernel
		}
		if pid, status, ok := parseExitEvent(buf[:n]); ok {
			x.mu.Lock()
			if _, have := x.watched[pid]; have {
				x.watched[pid] = status
			}
			x.mu.Unlock()
		}
	}
}

// parseExitEvent reads the end of a process; that of another thread than its first is none.
func parseExitEvent(b []byte) (pid int, status uint32, ok bool) {
	if len(b) < unix.SizeofNlMsghdr+cnHeader+cnEventExitLen {
		return 0, 0, false
	}
	event := b[unix.SizeofNlMsghdr+cnHeader:]
	native := binary.NativeEndian
	if native.Uint32(event) != cnEventExit {
		return 0, 0, false
	}
	thread, process := native.Uint32(event[16:]), native.Uint32(event[20:])
	return int(process), native.Uint32(event[24:]), thread == process
}

// pidfdsTellExits: since Linux 6.15 a pidfd tells how its process ended.
func pidfdsTellExits() bool {
	var u unix.Utsname
	var major, minor int
	if unix.Uname(&u) != nil {
		return false
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 6 || major == 6 && minor >= 15
}
