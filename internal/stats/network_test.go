package stats

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInterfacesOfOwnNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("joining a network namespace needs root")
	}
	got, err := Interfaces("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	want, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range want {
		listed := slices.ContainsFunc(got, func(g Interface) bool { return g.Name == i.Name })
		if loopback := i.Flags&net.FlagLoopback != 0; listed == loopback {
			t.Errorf("%s is listed: %v", i.Name, listed)
		}
	}
	for _, i := range got {
		text, err := os.ReadFile("/sys/class/net/" + i.Name + "/statistics/rx_bytes")
		if err != nil {
			continue // sysfs may be another namespace's
		}
		var rx uint64
		if _, err := fmt.Sscan(string(text), &rx); err != nil || rx < i.RxBytes {
			t.Errorf("%s has received %s bytes, and before that %d", i.Name, strings.TrimSpace(string(text)), i.RxBytes)
		}
	}
}

// TestInterfacesAreBounded makes 300 of them in a namespace of a child's.
func TestInterfacesAreBounded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Skip("needs iproute2")
	}
	var batch strings.Builder
	for i := range 300 {
		fmt.Fprintf(&batch, "link add many%d type dummy\n", i)
	}
	// The child tells when it is done and waits until its stdin closes.
	child := exec.Command("sh", "-c", ip+` -batch - && echo done && exec sleep 600`)
	child.Stdin = strings.NewReader(batch.String())
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	if n, _ := out.Read(make([]byte, 16)); n == 0 {
		t.Skip("this kernel makes no dummy interfaces")
	}
	got, err := Interfaces(fmt.Sprintf("/proc/%d/ns/net", child.Process.Pid))
	if err != nil || len(got) != maxInterfaces {
		t.Errorf("got %d interfaces, %v; want %d", len(got), err, maxInterfaces)
	}
}

func TestLinkOf(t *testing.T) {
	attr := func(kind uint16, value []byte) []byte {
		a := make([]byte, 4, 4+len(value)+3)
		binary.NativeEndian.PutUint16(a, uint16(4+len(value)))
		binary.NativeEndian.PutUint16(a[2:], kind)
		a = append(a, value...)
		return append(a, make([]byte, (4-len(a)%4)%4)...)
	}
	message := func(flags uint32, attrs ...[]byte) *syscall.NetlinkMessage {
		header := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(header[8:], flags)
		data := slices.Concat(append([][]byte{header}, attrs...)...)
		return &syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWLINK}, Data: data}
	}
	counters := make([]byte, 24*8)
	for i := range 24 {
		binary.NativeEndian.PutUint64(counters[8*i:], uint64(i+1))
	}
	name := attr(unix.IFLA_IFNAME, []byte("eth0\x00"))
	got, ok := linkOf(message(0, name, attr(unix.IFLA_STATS64, counters)))
	want := Interface{Name: "eth0", RxPackets: 1, TxPackets: 2, RxBytes: 3, TxBytes: 4, RxErrors: 5, TxErrors: 6, RxDropped: 7, TxDropped: 8}
	if !ok || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for what, m := range map[string]*syscall.NetlinkMessage{
		"lo":                 message(unix.IFF_LOOPBACK, name, attr(unix.IFLA_STATS64, counters)),
		"no counters":        message(0, name),
		"counters cut off":   message(0, name, attr(unix.IFLA_STATS64, counters[:40])),
		"no header":          {Header: syscall.NlMsghdr{Type: unix.RTM_NEWLINK}},
		"an attribute's end": {Header: syscall.NlMsghdr{Type: unix.RTM_NEWLINK}, Data: append(make([]byte, unix.SizeofIfInfomsg), 200, 0, 3, 0)},
	} {
		if got, ok := linkOf(m); ok {
			t.Errorf("%s gave %+v", what, got)
		}
	}
}
