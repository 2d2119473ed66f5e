package stats

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/internal/thread"
)

const (
	// maxInterfaces bounds the answer: a pod may make interfaces at will.
	maxInterfaces = 256
	// maxMessages bounds how much of the kernel's answer is looked at.
	maxMessages = 4096
)

// Interfaces reads the counters of the interfaces in the network namespace
// pinned at netns, without lo, in the kernel's order; the first 256.
func Interfaces(netns string) ([]Interface, error) {
	socket := -1
	// A netlink socket belongs to the namespace it was made in, wherever it is used.
	err := thread.Run(func() (err error) {
		if err := thread.Join(netns, unix.CLONE_NEWNET); err != nil {
			return err
		}
		socket, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) { // EINVAL: a file that was a pin before a reboot
		return nil, fmt.Errorf("interfaces of %s: %w", netns, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("interfaces of %s: %w", netns, err)
	}
	defer unix.Close(socket)
	interfaces, err := dumpLinks(socket)
	if err != nil {
		return nil, fmt.Errorf("interfaces of %s: %w", netns, err)
	}
	return interfaces, nil
}

// dumpLinks asks for all links, rtnetlink(7).
func dumpLinks(socket int) ([]Interface, error) {
	timeout := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, err
	}
	const size = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg
	request := make([]byte, size)
	binary.NativeEndian.PutUint32(request[0:], size)
	binary.NativeEndian.PutUint16(request[4:], unix.RTM_GETLINK)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(socket, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var interfaces []Interface
	buf := make([]byte, 32<<10) // the kernel's largest piece of a dump
	for messages := 0; messages < maxMessages; {
		n, _, err := unix.Recvfrom(socket, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parsed, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, err
		}
		messages += 1 + len(parsed)
		for _, m := range parsed {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return interfaces, nil
			case unix.NLMSG_ERROR:
				return nil, errors.New("the kernel refuses to list links")
			case unix.RTM_NEWLINK:
				if i, ok := linkOf(&m); ok && len(interfaces) < maxInterfaces {
					interfaces = append(interfaces, i)
				}
			}
		}
	}
	return interfaces, nil
}

func linkOf(m *syscall.NetlinkMessage) (Interface, bool) {
	if len(m.Data) < unix.SizeofIfInfomsg { // the parser takes that for granted
		return Interface{}, false
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(m)
	if err != nil {
		return Interface{}, false
	}
	var i Interface
	found := false
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			i.Name = strings.TrimRight(string(a.Value), "\x00")
		case unix.IFLA_STATS64:
			found = i.setCounters(a.Value)
		}
	}
	flags := binary.NativeEndian.Uint32(m.Data[8:]) // struct ifinfomsg, ifi_flags
	return i, found && flags&unix.IFF_LOOPBACK == 0
}

// setCounters reads struct rtnl_link_stats64 (linux/if_link.h): 64-bit numbers,
// packets before bytes before errors before drops, receiving before sending.
func (i *Interface) setCounters(value []byte) bool {
	const fields, size = 8, 8
	if len(value) < fields*size {
		return false
	}
	for n, field := range []*uint64{
		&i.RxPackets, &i.TxPackets, &i.RxBytes, &i.TxBytes, &i.RxErrors, &i.TxErrors, &i.RxDropped, &i.TxDropped,
	} {
		*field = binary.NativeEndian.Uint64(value[size*n:])
	}
	return true
}
