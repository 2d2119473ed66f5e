package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrInUse means that another process answers on the socket. It has to be
// stopped, or this engine needs another socket.
var ErrInUse = errors.New("another process answers on this socket")

// Listen makes the socket, for root and its group only. One that a process left
// behind is replaced; one that still answers is left alone: [ErrInUse].
func Listen(path string) (*Socket, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (*Socket, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := stale(path); err != nil {
		return nil, err
	}
	// Made under another name and renamed: at no time is there a socket with
	// other permissions, or none in place of an old one.
	temp := filepath.Join(dir, fmt.Sprintf(".s%d", os.Getpid()))
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	file, err := place(temp, path)
	if err != nil {
		_ = os.Remove(temp)
		_ = l.Close()
		return nil, err
	}
	return &Socket{UnixListener: l, path: path, file: file}, nil
}

func place(temp, path string) (os.FileInfo, error) {
	if err := os.Chmod(temp, 0o660); err != nil {
		return nil, err
	}
	if err := os.Rename(temp, path); err != nil {
		return nil, err
	}
	return os.Lstat(path)
}

// stale is nil when nothing, or a socket nobody listens on, is at the path.
func stale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("something that is not a socket is there")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = c.Close()
		return ErrInUse
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, syscall.EAGAIN), os.IsTimeout(err): // its backlog is full
		return ErrInUse
	}
	return err
}

// Socket is a unix socket that removes its file when it is closed, unless
// another server has taken the path since.
type Socket struct {
	*net.UnixListener
	path string
	file os.FileInfo
	kept bool
}

// ID tells the socket's file from any other that is or was at its path.
func (s *Socket) ID() string { return fileID(s.file) }

func fileID(file os.FileInfo) string {
	st, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d-%d", st.Dev, st.Ino)
}

// Keep leaves the socket's file where it is at Close: somebody else has a duplicate
// of the socket, on which clients wait for the next server.
func (s *Socket) Keep() { s.kept = true }

// Resume takes over a socket that another process listened on, if the file at path
// is still the one with this id; else it is [Listen]. The socket f is duplicated.
func Resume(path, id string, f *os.File) (*Socket, error) {
	file, err := os.Lstat(path)
	if err != nil || fileID(file) != id {
		return Listen(path)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("resume listening on %s: %w", path, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("resume listening on %s: it is no unix socket but of %s", path, l.Addr().Network())
	}
	u.SetUnlinkOnClose(false)
	return &Socket{UnixListener: u, path: path, file: file}, nil
}

// Close closes the socket and removes its file.
func (s *Socket) Close() error {
	if s.kept {
		return s.UnixListener.Close()
	}
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
		_ = os.Remove(s.path) // what is left, the next start replaces
	}
	return s.UnixListener.Close()
}
