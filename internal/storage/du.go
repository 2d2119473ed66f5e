package storage

import (
	"context"
	"errors"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// diskUsage counts the blocks and inodes of a directory and all beneath it, a
// file with several names once. What it can't read it leaves out.
//
// A container may be changing the tree, on purpose while we walk it: each
// directory is opened beneath the root without following links, so that the
// walk can't be led out of it.
func diskUsage(ctx context.Context, dir string) (measured, error) {
	root, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return measured{}, nil
	}
	if err != nil {
		return measured{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(root) }()
	w := usageWalk{root: root, seen: map[inode]struct{}{}, todo: []string{"."}}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err == nil {
		w.add(&st)
	}
	for len(w.todo) > 0 {
		if err := ctx.Err(); err != nil {
			return w.sum, err
		}
		next := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		w.directory(next)
	}
	return w.sum, nil
}

type inode struct{ dev, ino uint64 }

type usageWalk struct {
	root int
	seen map[inode]struct{} // files with several names
	todo []string           // directories, relative to root
	sum  measured
}

func (w *usageWalk) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		key := inode{st.Dev, st.Ino}
		if _, ok := w.seen[key]; ok {
			return
		}
		w.seen[key] = struct{}{}
	}
	w.sum.inodes++
	w.sum.bytes += uint64(st.Blocks) * 512
}

func (w *usageWalk) directory(dir string) {
	fd, err := unix.Openat2(w.root, dir, &unix.OpenHow{
		Flags:   unix.O_DIRECTORY | unix.O_RDONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			w.entry(fd, dir, name)
		}
		if err != nil || len(names) == 0 {
			return
		}
	}
}

func (w *usageWalk) entry(fd int, dir, name string) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return
	}
	w.add(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		w.todo = append(w.todo, path.Join(dir, name))
	}
}
