package daemon

import (
	"errors"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/server"
)

// A kubelet that listens for events gives that up for good when its stream has
// broken five times. While an engine restarts, each try that finds nobody listening
// would be one of them. So systemd keeps a duplicate of the CRI socket
// (FileDescriptorStoreMax= of the unit) over restarts and crashes, though not over a
// stop: clients connect, and wait for the next engine to answer.

// keptPrefix begins the socket's name in systemd's store; the id of its file follows.
const keptPrefix = "cri-"

// keptSocket is what systemd kept of an engine before this one.
type keptSocket struct {
	files []*os.File // named after keptPrefix
}

// inherited takes what systemd hands over at the start, by sd_listen_fds(3), before
// any child process could.
func inherited() *keptSocket {
	k := &keptSocket{}
	for _, f := range activation.Files(true) {
		if strings.HasPrefix(f.Name(), keptPrefix) {
			k.files = append(k.files, f)
			continue
		}
		klog.InfoS("A file descriptor from systemd is not known and closed", "name", f.Name())
		_ = f.Close()
	}
	return k
}

// listen goes on with the kept socket, or makes one, and has it kept.
func (k *keptSocket) listen(path string) (*server.Socket, error) {
	var l *server.Socket
	var err error
	if len(k.files) == 1 {
		f := k.files[0]
		l, err = server.Resume(path, strings.TrimPrefix(f.Name(), keptPrefix), f)
	} else {
		l, err = server.Listen(path)
	}
	if err != nil {
		return nil, err
	}
	name := keptPrefix + l.ID()
	for _, f := range k.files {
		if f.Name() != name { // of a socket that has been replaced
			notify("FDSTOREREMOVE=1\nFDNAME=" + f.Name())
		}
	}
	if err := keep(l, name); err != nil {
		klog.ErrorS(err, "systemd does not keep the socket over restarts")
	}
	return l, nil
}

func (k *keptSocket) close() {
	for _, f := range k.files {
		_ = f.Close()
	}
}

// keep hands a duplicate of the socket to systemd, where that started us.
func keep(l *server.Socket, name string) error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	to, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendmsg(to, []byte("FDSTORE=1\nFDNAME="+name), unix.UnixRights(int(fd)), &unix.SockaddrUnix{Name: address}, unix.MSG_NOSIGNAL)
	})
	if err := errors.Join(err, sent); err != nil {
		return err
	}
	l.Keep()
	return nil
}
