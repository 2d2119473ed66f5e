package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeStore is the end of NOTIFY_SOCKET that systemd has.
func fakeStore(t testing.TB) *net.UnixConn {
	t.Helper()
	address := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", address)
	return c
}

// stored reads one message, and the file that came with it.
func stored(t testing.TB, c *net.UnixConn) (name string, f *os.File) {
	t.Helper()
	buf, oob := make([]byte, 4096), make([]byte, 128)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%q came with %d messages, %v", buf[:n], len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d fds, %v", len(fds), err)
	}
	_, name, _ = strings.Cut(string(buf[:n]), "FDNAME=")
	f = os.NewFile(uintptr(fds[0]), name)
	t.Cleanup(func() { f.Close() })
	return name, f
}

// gone is an engine that has listened and ended: systemd has its socket, f.
func gone(t testing.TB) (systemd *net.UnixConn, path string, f *os.File) {
	t.Helper()
	systemd, path = fakeStore(t), filepath.Join(t.TempDir(), "cri.sock")
	l, err := (&keptSocket{}).listen(path)
	if err != nil {
		t.Fatal(err)
	}
	_, f = stored(t, systemd)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return systemd, path, f
}

func TestAClientThatConnectsBetweenTwoEnginesIsAnsweredByTheSecond(t *testing.T) {
	systemd, path, f := gone(t)
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("nobody listens between two engines: %v", err)
	}
	defer client.Close()
	second, err := (&keptSocket{files: []*os.File{f}}).listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	_ = second.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := second.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if name, _ := stored(t, systemd); name != f.Name() {
		t.Errorf("it is kept as %q and was as %q", name, f.Name())
	}
}

func TestAKeptSocketWhoseFileWasReplacedIsNotUsed(t *testing.T) {
	systemd, path, f := gone(t)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := (&keptSocket{files: []*os.File{f}}).listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	buf := make([]byte, 4096)
	n, err := systemd.Read(buf)
	if want := "FDSTOREREMOVE=1\nFDNAME=" + f.Name(); err != nil || string(buf[:n]) != want {
		t.Errorf("systemd was told %q, %v; want %q", buf[:n], err, want)
	}
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_ = second.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := second.Accept()
	if err != nil {
		t.Fatalf("the new socket is not the one at the path: %v", err)
	}
	c.Close()
}

func TestWithoutSystemdTheSocketsFileGoesWithIt(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	path := filepath.Join(t.TempDir(), "cri.sock")
	l, err := (&keptSocket{}).listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}
