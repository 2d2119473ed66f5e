package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/internal/thread"
)

// NamespaceSpec says which namespaces to create and where to pin them. Empty path: not this one.
type NamespaceSpec struct {
	Net, IPC, UTS string // absolute paths of files that do not exist yet
	// User is the user namespace to create with them, nil for the caller's. It alone may be asked for.
	User     *UserNamespace
	Hostname string // set in UTS, if any; at most 64 bytes
	// Sysctls are written inside: "net.*" needs Net, "kernel.shm*", "kernel.msg*",
	// "kernel.sem", "fs.mqueue.*" need IPC. Names as sysctl(8) takes them, with dots or slashes.
	Sysctls map[string]string
}

// namespaceKind is one of the kinds that can be created and pinned.
type namespaceKind struct {
	name string // as in /proc/PID/ns
	flag int
	path func(NamespaceSpec) string
}

var namespaceKinds = []namespaceKind{
	{"user", unix.CLONE_NEWUSER, func(s NamespaceSpec) string { return s.User.path() }},
	{"net", unix.CLONE_NEWNET, func(s NamespaceSpec) string { return s.Net }},
	{"ipc", unix.CLONE_NEWIPC, func(s NamespaceSpec) string { return s.IPC }},
	{"uts", unix.CLONE_NEWUTS, func(s NamespaceSpec) string { return s.UTS }},
}

// NewNamespaces creates the namespaces asked for and pins them: they live until
// their paths are unpinned and no process is in them. lo is up, hostname and
// sysctls are set. All or nothing: when it fails, nothing is left.
func NewNamespaces(spec NamespaceSpec) error {
	sysctls, err := spec.validate()
	if err != nil {
		return err
	}
	return thread.Run(func() error {
		if spec.User == nil {
			if err := spec.unshare(); err != nil {
				return err
			}
			return spec.setUpAndPin("/proc/thread-self/ns/", sysctls)
		}
		dir, release, err := spec.hold()
		if err != nil {
			return err
		}
		if err = spec.joinHeld(dir); err == nil {
			err = spec.setUpAndPin(dir, sysctls)
		}
		return errors.Join(err, release())
	})
}

// setUpAndPin runs on the thread that is in the new namespaces, which are in dir too.
func (s NamespaceSpec) setUpAndPin(dir string, sysctls []sysctl) error {
	if err := s.setUp(sysctls); err != nil {
		return err
	}
	var pinned []string
	for _, kind := range namespaceKinds {
		path := kind.path(s)
		if path == "" {
			continue
		}
		if err := pin(dir+kind.name, path); err != nil {
			errs := []error{err}
			for _, path := range pinned {
				errs = append(errs, Unpin(path))
			}
			return errors.Join(errs...)
		}
		pinned = append(pinned, path)
	}
	return nil
}

func (s NamespaceSpec) validate() ([]sysctl, error) {
	if s.Net == "" && s.IPC == "" && s.UTS == "" && s.User == nil {
		return nil, fmt.Errorf("%w: no namespace asked for", ErrInvalid)
	}
	if s.User != nil && s.User.Path == "" {
		return nil, fmt.Errorf("%w: a user namespace without a path", ErrInvalid)
	}
	for _, path := range []string{s.Net, s.IPC, s.UTS, s.User.path()} {
		if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
			return nil, fmt.Errorf("%w: namespace path %q", ErrInvalid, path)
		}
	}
	if s.Hostname != "" && s.UTS == "" {
		return nil, fmt.Errorf("%w: a hostname needs a UTS namespace", ErrInvalid)
	}
	const hostNameMax = 64 // __NEW_UTS_LEN
	if len(s.Hostname) > hostNameMax || strings.Contains(s.Hostname, "\x00") {
		return nil, fmt.Errorf("%w: hostname %q is longer than %d bytes or has a null byte", ErrInvalid, truncate(s.Hostname, hostNameMax), hostNameMax)
	}
	return parseSysctls(s.Sysctls, s.Net != "", s.IPC != "")
}

func (s NamespaceSpec) flags() (flags int) {
	for _, kind := range namespaceKinds {
		if kind.path(s) != "" {
			flags |= kind.flag
		}
	}
	return flags
}

func (s NamespaceSpec) unshare() error {
	if err := unix.Unshare(s.flags()); err != nil {
		return fmt.Errorf("create namespaces: %w", err)
	}
	return nil
}

func (s NamespaceSpec) setUp(sysctls []sysctl) error {
	if s.Net != "" {
		if err := linkUp("lo"); err != nil {
			return fmt.Errorf("bring lo up: %w", err)
		}
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", s.Hostname, err)
		}
	}
	var ipc, other []sysctl
	for _, c := range sysctls {
		if sysctlNamespace(c.path) == "ipc" {
			ipc = append(ipc, c)
		} else {
			other = append(other, c)
		}
	}
	if err := writeSysctls(other); err != nil || len(ipc) == 0 {
		return err
	}
	return s.asOwner(func() error { return writeSysctls(ipc) })
}

// SetSysctls writes sysctls in namespaces that are pinned already, such as those
// of an interface that a CNI plugin made. Names are checked as in NamespaceSpec;
// an empty path means that the pod has no such namespace of its own.
func SetSysctls(netns, ipc string, values map[string]string) error {
	sysctls, err := parseSysctls(values, netns != "", ipc != "")
	if err != nil || len(sysctls) == 0 {
		return err
	}
	return thread.Run(func() error {
		if netns != "" {
			if err := thread.Join(netns, unix.CLONE_NEWNET); err != nil {
				return err
			}
		}
		if ipc != "" {
			if err := thread.Join(ipc, unix.CLONE_NEWIPC); err != nil {
				return err
			}
		}
		return writeSysctls(sysctls)
	})
}

// SplitSysctls tells the sysctls that can be written at once from those of eth0
// (net.ipv4.conf.eth0.forwarding), which has to be made by Add first: give the
// former to NewNamespaces and the latter to SetSysctls after Add.
func SplitSysctls(values map[string]string) (now, afterAdd map[string]string) {
	now, afterAdd = map[string]string{}, map[string]string{}
	for name, value := range values {
		path, err := sysctlPath(name) // one that can't be is for NewNamespaces to refuse
		if err == nil && slices.Contains(strings.Split(path, "/"), IfName) {
			afterAdd[name] = value
		} else {
			now[name] = value
		}
	}
	return now, afterAdd
}

// InNetNS runs f in the network namespace pinned at path, on a thread of its own.
// What f starts in other goroutines isn't in the namespace: dial single
// addresses there, not names.
func InNetNS(path string, f func() error) error {
	return thread.Run(func() error {
		if err := thread.Join(path, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// pin makes a new file and binds the namespace to it.
func pin(namespace, path string) error {
	if err := makePinDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	f.Close()
	if err := unix.Mount(namespace, path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("pin namespace at %s: %w", path, err), unix.Unlink(path))
	}
	return nil
}

// iproute2Dir is where ip-netns(8) looks for network namespaces.
const iproute2Dir = "/run/netns"

// makePinDir makes the directory, and iproute2's one a mount of its own as the
// first "ip netns add" would do. If that came later, it would bind the directory
// over itself with our pins in it: those underneath could not be unmounted any more,
// and their files not be removed.
func makePinDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(dir); err != nil || real != iproute2Dir {
		return err
	}
	fd, err := unix.Open(iproute2Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil { // against one of us doing the same, and newer iproute2
		return err
	}
	if mounted, err := isMountPoint(iproute2Dir); err != nil || mounted {
		return err
	}
	if err := unix.Mount(iproute2Dir, iproute2Dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", iproute2Dir, "", unix.MS_SHARED|unix.MS_REC, "")
}

func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO, &st); err != nil {
		return false, fmt.Errorf("statx %s: %w", path, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("statx %s: the kernel is older than Linux 5.8", path)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Unpin lets go of the namespace at path and removes the file. It returns nil
// when the path is gone, and takes a plain file that a reboot left of a pin.
func Unpin(path string) error {
	const maxStacked = 16 // mounts over each other, where something bound the directory again
	for range maxStacked {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if errors.Is(err, unix.EINVAL) { // not a mount point
			break
		}
		if err != nil {
			return fmt.Errorf("unpin %s: %w", path, err)
		}
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin %s: %w", path, err)
	}
	return nil
}

// Pinned reports whether the path still is a namespace.
func Pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// linkUp and linkDel go by ioctl, netdevice(7): three system calls, no netlink dump.
func linkUp(name string) error {
	return withInterface(name, func(fd int, req *unix.Ifreq) error {
		req.SetUint16(req.Uint16() | unix.IFF_UP)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
}

// linkDel removes a bridge. It must be down for that.
func linkDel(bridge string) error {
	err := withInterface(bridge, func(fd int, req *unix.Ifreq) error {
		req.SetUint16(req.Uint16() &^ unix.IFF_UP)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.SIOCBRDELBR, req)
	})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove bridge %s: %w", bridge, err)
	}
	return nil
}

// withInterface calls f with the interface's flags.
func withInterface(name string, f func(fd int, req *unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	return f(fd, req)
}
