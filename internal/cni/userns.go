package cni

import (
	"errors"
	"fmt"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/internal/thread"
)

// UserNamespace is one to be created with the others, which it owns: who is root
// in it may do in those what root may.
type UserNamespace struct {
	Path string // where it is pinned, as the others
	// UIDs and GIDs are its ids; 0 is mapped.
	UIDs, GIDs syscall.SysProcIDMap
	// Holder is a static program that waits until it is killed. A thread of a Go
	// program can't enter a new user namespace, so this is the first process in it, and gone when it is pinned.
	Holder string
}

func (u *UserNamespace) path() string {
	if u == nil {
		return ""
	}
	return u.Path
}

// hold starts the holder in new namespaces and returns the directory of /proc that
// they are in. It must be called on a thread that lives until release: the kernel
// ends the holder with it.
func (s NamespaceSpec) hold() (dir string, release func() error, err error) {
	cmd := &exec.Cmd{Path: s.User.Holder, Args: []string{s.User.Holder}, Dir: "/", SysProcAttr: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | uintptr(s.flags()),
		UidMappings: []syscall.SysProcIDMap{s.User.UIDs}, GidMappings: []syscall.SysProcIDMap{s.User.GIDs},
		GidMappingsEnableSetgroups: true,
		Setsid:                     true,
		Pdeathsig:                  unix.SIGKILL,
	}}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("create a user namespace: %w", err)
	}
	release = func() error {
		if err := cmd.Process.Kill(); err != nil {
			return fmt.Errorf("end the holder of a user namespace: %w", err)
		}
		var killed *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &killed) {
			return fmt.Errorf("end the holder of a user namespace: %w", err)
		}
		return nil
	}
	return fmt.Sprintf("/proc/%d/ns/", cmd.Process.Pid), release, nil
}

// joinHeld moves the calling thread into the namespaces at dir, but for the user
// namespace: what rights it has over the others it has from outside.
func (s NamespaceSpec) joinHeld(dir string) error {
	for _, kind := range namespaceKinds {
		if kind.path(s) == "" || kind.flag == unix.CLONE_NEWUSER {
			continue
		}
		if err := thread.Join(dir+kind.name, kind.flag); err != nil {
			return err
		}
	}
	return nil
}

// asOwner runs f on the calling thread with the ids of the namespaces' root: sysctls
// of IPC may be written by those alone, whatever capabilities another has.
func (s NamespaceSpec) asOwner(f func() error) error {
	if s.User == nil {
		return f()
	}
	if err := setIDs(s.User.UIDs.HostID, s.User.GIDs.HostID, true); err != nil {
		return err
	}
	return errors.Join(f(), setIDs(unix.Getuid(), unix.Getgid(), false))
}

// setIDs changes the effective ids of the calling thread alone, without Go's
// wrappers, which change all threads. The real and saved ids stay, and with them
// the way back. The group comes first on the way out and last on the way back,
// while the thread may change it.
func setIDs(uid, gid int, out bool) error {
	const keep = ^uintptr(0)
	calls := [2][2]uintptr{{unix.SYS_SETRESGID, uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid)}}
	if !out {
		calls[0], calls[1] = calls[1], calls[0]
	}
	for _, c := range calls {
		if _, _, errno := unix.RawSyscall(c[0], keep, c[1], keep); errno != 0 {
			return fmt.Errorf("act as user %d and group %d: %w", uid, gid, errno)
		}
	}
	return nil
}
