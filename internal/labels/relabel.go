package labels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// PathError is a path whose label must stay as it is.
type PathError struct{ Path, Reason string }

// Error names the path.
func (e *PathError) Error() string { return fmt.Sprintf("%s: %s", e.Path, e.Reason) }

// attribute is where the kernel keeps a file's label.
const attribute = "security.selinux"

// maxDepth bounds how deep a volume is labelled: each directory on the way down is held open.
const maxDepth = 512

var (
	// systemTrees are the system's own with all that is in them.
	systemTrees = []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr"}
	// systemDirs are those of which only what is deep enough in them can be a volume.
	systemDirs = []string{
		"/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp",
		"/var", "/var/cache", "/var/lib", "/var/lib/kubelet", "/var/lib/kubelet/pods", "/var/log", "/var/spool", "/var/tmp",
	}
)

// CheckPath refuses to relabel what the system lives on, and the engine itself, whose directories
// are own: services would be kept from their files, and containers be let at them.
// The path is absolute, clean and without links.
func CheckPath(path string, own ...string) error {
	for _, tree := range append(slices.Clone(systemTrees), own...) {
		switch {
		case beneath(path, tree):
			return &PathError{path, "what is in " + tree + " is not relabelled"}
		case beneath(tree, path):
			return &PathError{path, tree + " is in it, which is not relabelled"}
		}
	}
	for _, dir := range systemDirs {
		if beneath(dir, path) {
			return &PathError{path, "a directory of the system's is not relabelled"}
		}
	}
	if filepath.Dir(path) == "/home" {
		return &PathError{path, "a user's home is not relabelled"}
	}
	return nil
}

// beneath is true for a directory itself, too.
func beneath(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// Relabel gives a file, or a directory and all that is in it, the label, the
// directory itself last. It follows no link, whatever those who write to the
// directory put there meanwhile. What can't have labels (NFS, a filesystem that was
// mounted with one) keeps what it has. The path is one that [CheckPath] lets pass.
func (l *Labeler) Relabel(ctx context.Context, path, label string) error {
	if label == "" || !l.On() {
		return nil
	}
	set := func(fd int) error { return l.policy.Set(fd, label) }
	return (&walk{ctx: ctx, set: set}).start(path)
}

// walk calls set for everything in a tree. The file is open as a place only (O_PATH)
// unless it is a directory.
type walk struct {
	ctx context.Context
	set func(fd int) error
}

func (w *walk) start(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := w.node(fd, 0); err != nil {
		return fmt.Errorf("label %s: %w", path, err)
	}
	return nil
}

// node labels what fd is, and closes it.
func (w *walk) node(fd, depth int) error {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return w.set(fd)
	}
	if depth == maxDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxDepth)
	}
	dir, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(dir), "")
	defer f.Close()
	if err := w.entries(f, depth); err != nil {
		return err
	}
	return w.set(fd)
}

// batch is how many names of a directory are read at a time: it may have millions.
const batch = 256

func (w *walk) entries(dir *os.File, depth int) error {
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(batch)
		for _, name := range names {
			fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if errors.Is(err, unix.ENOENT) {
				continue // removed meanwhile
			}
			if err == nil {
				err = w.node(fd, depth+1)
			}
			if err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// setLabel labels an open file, be it a link or a FIFO: the name in /proc leads to what was opened, no further.
func setLabel(fd int, label string) error {
	name := "/proc/self/fd/" + strconv.Itoa(fd)
	have := make([]byte, len(label)+2)
	if n, err := unix.Getxattr(name, attribute, have); err == nil && strings.TrimRight(string(have[:n]), "\x00") == label {
		return nil
	}
	err := unix.Setxattr(name, attribute, []byte(label), 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}
