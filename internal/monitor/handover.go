package monitor

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// handover is the state of a keeper, or of a pump that becomes one, for the image
// that takes its place in the same process: fds and children stay. JSON, in a memfd.
type handover struct {
	Procs  []handedProc `json:"procs"`
	Lock   int          `json:"lock"`
	Listen int          `json:"listen"`
	Shm    int          `json:"shm"`
	// Pump and Link are of the living pump, 0 and -1 for none.
	Pump   int    `json:"pump"`
	Link   int    `json:"link"`
	Origin origin `json:"origin"`
}

type handedProc struct {
	Record record         `json:"record"`
	Fds    map[string]int `json:"fds"`
}

func (h *handover) fds() []int {
	list := []int{h.Lock, h.Listen, h.Shm}
	if h.Link >= 0 {
		list = append(list, h.Link)
	}
	for _, p := range h.Procs {
		for _, fd := range p.Fds {
			list = append(list, fd)
		}
	}
	return list
}

// exec replaces this process's image by binary in the role of the keeper. It
// returns only on failure, with everything as before.
func (h *handover) exec(binary, stateDir string) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("cri-engine-handover", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := writeAll(fd, data); err != nil {
		return err
	}
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		return err
	}
	// No child may be forked while the fds can be inherited.
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	inherit := append(h.fds(), fd)
	setCloexec(inherit, false)
	err = syscall.Exec(binary, []string{h.Origin.Binary, "--state", stateDir, "--role", "keeper", "--handover", strconv.Itoa(fd)}, os.Environ())
	setCloexec(inherit, true)
	return fmt.Errorf("exec %s: %w", binary, err)
}

// ownFds keeps all fds that this process was started with from its children: what
// whoever started it left open by mistake would end up in containers.
func ownFds() {
	const first = 3
	if unix.CloseRange(first, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// A kernel before 5.11.
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			setCloexec([]int{fd}, true)
		}
	}
}

func setCloexec(fds []int, on bool) {
	flag := 0
	if on {
		flag = unix.FD_CLOEXEC
	}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
	}
}

func (k *keeper) execKeeper(binary string) error {
	h := &handover{Lock: k.lock, Listen: k.listen, Shm: k.shmFd, Pump: k.pump, Link: -1, Origin: k.origin}
	if k.link != nil {
		fd, err := k.link.fd()
		if err != nil {
			return err
		}
		h.Link = fd
	}
	for _, p := range k.held {
		h.Procs = append(h.Procs, handedProc{p.rec, p.fds})
	}
	return h.exec(binary, filepath.Dir(string(k.dir)))
}

// maxHandover bounds what is read of a handover: all records and more.
const maxHandover = shmSlots * maxRecord

// takeHandover goes on with what the image before this one had.
func (k *keeper) takeHandover(fd int) error {
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close()
	var h handover
	if err := json.NewDecoder(io.LimitReader(f, maxHandover)).Decode(&h); err != nil {
		return fmt.Errorf("read handover: %w", err)
	}
	k.lock, k.listen, k.shmFd, k.origin, k.pump = h.Lock, h.Listen, h.Shm, h.Origin, h.Pump
	k.told = map[int]bool{}
	var err error
	if k.shm, err = mapShm(k.shmFd); err != nil {
		return err
	}
	if h.Link >= 0 {
		if k.link, err = newLink(h.Link); err != nil {
			return fmt.Errorf("take over the link: %w", err)
		}
		k.packets = make(chan packet)
	}
	for _, p := range h.Procs {
		k.held[p.Record.key()] = &held{rec: p.Record, fds: p.Fds}
		if p.Record.Pid > 0 {
			k.byPid[p.Record.Pid] = p.Record.key()
		}
		// A pump's puts did not reach the files while it had no keeper.
		if err := k.dir.records().write(&p.Record); err != nil {
			return fmt.Errorf("write record of %s: %w", p.Record.key(), err)
		}
	}
	// Nor did what it forgot.
	return k.dir.records().keepOnly(func(name key) bool { return k.held[name] != nil })
}
