package monitor

import (
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// notify tells systemd, by sd_notify(3)'s protocol, if it started us.
func notify(state string, fds ...int) {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	if err := sendNotify(addr, state, fds); err != nil {
		slog.Warn("systemd cannot be told", "err", err)
	}
}

func sendNotify(addr, state string, fds []int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	// An address that begins with @ is an abstract one for this package as well.
	return unix.Sendmsg(fd, []byte(state), oob, &unix.SockaddrUnix{Name: addr}, unix.MSG_NOSIGNAL)
}

// fdStore is systemd's (FileDescriptorStoreMax= of the unit): it keeps duplicates
// while neither keeper nor pump lives.
type fdStore struct{ on bool }

// newFdStore finds out whether there is one; systemd says so since v254.
func newFdStore() *fdStore {
	n, err := strconv.Atoi(os.Getenv("FDSTORE"))
	return &fdStore{on: err == nil && n > 0}
}

// add stores fd. FDPOLL=0, else systemd would throw a pipe out when its other end closes.
func (s *fdStore) add(name string, fd int) {
	if s.on && name != "" {
		notify("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd)
	}
}

func (s *fdStore) remove(name string) {
	if s.on && name != "" {
		notify("FDSTOREREMOVE=1\nFDNAME=" + name)
	}
}

// storeName is an fd's name in the store, "" for what need not be stored.
func storeName(k key, role string) string {
	if role == rolePidfd {
		return ""
	}
	return string(k) + "." + role
}

// storedFds are those that systemd gave back at the start.
type storedFds map[string]int

// inherited reads sd_listen_fds(3)'s environment and removes it, so that no child takes it for its own.
func (s *fdStore) inherited() storedFds {
	defer func() {
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(name)
		}
	}()
	fds := storedFds{}
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if pid != os.Getpid() || n <= 0 || n > shmSlots*len(roles) {
		return fds
	}
	const first = 3 // SD_LISTEN_FDS_START
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i := range n {
		if i < len(names) {
			fds[names[i]] = first + i
		}
	}
	return fds
}

func (f storedFds) take(name string) (int, bool) {
	fd, ok := f[name]
	delete(f, name)
	return fd, ok
}

// of returns a process's fds. Without the journals that belong to them (fresh),
// the pipes can be read on all the same: at worst a batch is logged twice.
func (f storedFds) of(k key, fresh bool) map[string]int {
	fds := map[string]int{}
	for _, role := range roles {
		if fd, ok := f.take(storeName(k, role)); ok {
			fds[role] = fd
		}
	}
	if fresh && len(fds) > 0 {
		slog.Warn("streams were kept and their journal was not", "process", k)
	}
	return fds
}

// close closes those that nobody took.
func (f storedFds) close() {
	for _, fd := range f {
		unix.Close(fd)
	}
}
