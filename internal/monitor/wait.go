package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ended is how a child ended, as waitid(2) tells it.
type ended struct {
	Pid    int   `json:"pid"`
	Code   int32 `json:"code"`
	Signal int32 `json:"signal,omitempty"`
}

func (e ended) exit() *Exit {
	return &Exit{Code: e.Code, Signal: e.Signal, At: time.Now()}
}

// lostExit is the exit of a process that ended while nobody watched.
func lostExit() *Exit { return &Exit{Code: 255, Lost: true, At: time.Now()} }

// statusEnded reads a wait status.
func statusEnded(pid int, status uint32) ended {
	ws := unix.WaitStatus(status)
	if ws.Signaled() {
		return ended{Pid: pid, Code: 128 + int32(ws.Signal()), Signal: int32(ws.Signal())}
	}
	return ended{Pid: pid, Code: int32(ws.ExitStatus())}
}

// peekChild returns a child that has ended and leaves it a zombie, so that its
// status is not lost if this process dies before it is recorded.
// With pid 0 any child; ok is false when none has ended.
func peekChild(pid int) (e ended, ok bool) {
	idType := unix.P_PID
	if pid == 0 {
		idType = unix.P_ALL
	}
	var info unix.Siginfo
	for {
		err := unix.Waitid(idType, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return ended{}, false
		}
		return endedOf(&info)
	}
}

// sigchld is siginfo_t as the kernel fills it for a child: three ints, then, aligned
// to a pointer, the union's pid, uid and status.
type sigchld struct {
	_      [3]int32
	_      [0]uintptr
	pid    int32
	_      uint32
	status int32
}

func endedOf(info *unix.Siginfo) (ended, bool) {
	c := (*sigchld)(unsafe.Pointer(info)) //nolint:gosec // G103: siginfo_t's union has no Go type
	if c.pid == 0 {
		return ended{}, false
	}
	const exited = 1 // CLD_EXITED; CLD_KILLED and CLD_DUMPED carry a signal
	if info.Code == exited {
		return ended{Pid: int(c.pid), Code: c.status}, true
	}
	return ended{Pid: int(c.pid), Code: 128 + c.status, Signal: c.status}, true
}

// reap takes a zombie away.
func reap(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG, nil)
		if err != unix.EINTR {
			return
		}
	}
}

// procStat is what is needed of /proc/PID/stat.
type procStat struct {
	state  byte
	parent int
	start  uint64 // clock ticks since boot: tells it from a later process with the same pid
	exit   uint32 // wait status, of a zombie
}

func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(data)
}

// parseStat reads proc_pid_stat(5). The name in parentheses is the process's own choice.
func parseStat(data []byte) (procStat, error) {
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return procStat{}, errors.New("stat without a name")
	}
	f := strings.Fields(string(data[end+1:]))
	const first = 3 // the number of the field after the name
	if len(f) <= 52-first {
		return procStat{}, fmt.Errorf("stat with %d fields", len(f)+first-1)
	}
	parent, err1 := strconv.Atoi(f[4-first])
	start, err2 := strconv.ParseUint(f[22-first], 10, 64)
	exit, err3 := strconv.ParseInt(f[52-first], 10, 64)
	return procStat{state: f[0][0], parent: parent, start: start, exit: uint32(exit)}, errors.Join(err1, err2, err3)
}

// openPidfd returns a pidfd of the process with this start time, and ErrNotFound when it is gone.
func openPidfd(pid int, start uint64) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			err = ErrNotFound
		}
		return -1, err
	}
	// Looked at after the pidfd is open: the number cannot change hands any more.
	st, err := readStat(pid)
	if err != nil || st.start != start {
		unix.Close(fd)
		return -1, ErrNotFound
	}
	return fd, nil
}

// orphanEnd tells how a process ended that is no child of ours, when its pidfd
// says that it did. While it is a zombie, /proc has its status; when its parent
// has reaped it, a kernel since 6.15 still knows by the pidfd.
func orphanEnd(pid int, start uint64, pidfd int) (ended, bool) {
	if e, ok := pidfdEnd(pid, pidfd); ok {
		return e, true
	}
	// Only root is shown the status; others see 0.
	if st, err := readStat(pid); err == nil && st.start == start && st.state == 'Z' && os.Geteuid() == 0 {
		return statusEnded(pid, st.exit), true
	}
	return pidfdEnd(pid, pidfd)
}

func pidfdEnd(pid, pidfd int) (ended, bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if unix.IoctlPidfdInfo(pidfd, &info) != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return ended{}, false
	}
	return statusEnded(pid, uint32(info.Exit_code)), true
}
