// Package cgroup finds the cgroups of processes and ends what is in them, on
// cgroup v1, v2 and the mix of both. It is a leaf: it knows nothing of pods.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Dirs are a process's cgroup directories on the host, one per hierarchy.
// The key is the v1 controller ("memory", "pids", "name=systemd" …), or ""
// for the v2 hierarchy. Controllers mounted together share a directory.
type Dirs map[string]string

// Of returns the cgroup directories of a live process, from
// /proc/PID/cgroup (cgroups(7)). Hierarchies that are not mounted are left out.
func Of(pid int) (Dirs, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mounts, err := Mounts()
	if err != nil {
		return nil, err
	}
	return parse(io.LimitReader(f, 64<<10), mounts)
}

func parse(r io.Reader, mounts Dirs) (Dirs, error) {
	dirs := Dirs{}
	s := bufio.NewScanner(r)
	for s.Scan() {
		// hierarchy-ID:controller-list:cgroup-path
		parts := strings.SplitN(s.Text(), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			return nil, fmt.Errorf("cgroup line %q is not of three parts", s.Text())
		}
		// A process outside our cgroup namespace is shown as "/..": no directory here is its.
		if slices.Contains(strings.Split(parts[2], "/"), "..") {
			return nil, fmt.Errorf("cgroup %q is outside of this cgroup namespace", parts[2])
		}
		for _, c := range strings.Split(parts[1], ",") {
			if root, ok := mounts[c]; ok {
				dirs[c] = filepath.Join(root, parts[2])
			}
		}
	}
	return dirs, s.Err()
}

// Mounts returns where each hierarchy is mounted, keyed like Dirs.
var Mounts = sync.OnceValues(func() (Dirs, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f)
})

func parseMounts(r io.Reader) (Dirs, error) {
	mounts := Dirs{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		pre, post := strings.Fields(before), strings.Fields(after)
		if !ok || len(pre) < 5 || len(post) < 3 {
			continue
		}
		switch post[0] {
		case "cgroup2":
			if _, have := mounts[""]; !have {
				mounts[""] = pre[4]
			}
		case "cgroup":
			for _, o := range strings.Split(post[2], ",") {
				if o != "rw" && o != "ro" && o != "xattr" {
					if _, have := mounts[o]; !have {
						mounts[o] = pre[4]
					}
				}
			}
		}
	}
	return mounts, s.Err()
}

// Unified reports whether this machine has cgroup v2 alone.
func Unified() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// main is the one directory that stands for all: processes of a container are
// in the same place of every hierarchy.
func (d Dirs) main() string {
	for _, c := range []string{"pids", "memory", "freezer", "cpu", ""} {
		if dir := d[c]; dir != "" {
			if c != "" || Unified() {
				return dir
			}
		}
	}
	return ""
}

// Procs returns the pids in the cgroup and those below it.
func (d Dirs) Procs() ([]int, error) {
	root := d.main()
	if root == "" {
		return nil, nil
	}
	var pids []int
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return skipGone(err)
		}
		data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return skipGone(err)
		}
		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

// skipGone: a cgroup may vanish while it is read (ENOENT, or ENODEV on an open file),
// and a threaded one has no cgroup.procs to read (EOPNOTSUPP).
func skipGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// Kill ends every process in the cgroup and those below it with SIGKILL, and
// returns when none is left or ctx ends. On v2 it writes cgroup.kill; else it
// repeats, since what is being killed can still fork.
func (d Dirs) Kill(ctx context.Context) error {
	root := d.main()
	if root == "" {
		return nil
	}
	if Unified() {
		if err := os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0); errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
				return nil
			}
		}
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := d.Procs()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes are left in cgroup %s: %w", len(pids), root, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Remove removes the cgroup at path (relative to each hierarchy's root) and
// the empty ones below it, in every hierarchy. Gone is fine; a cgroup that still
// has processes is an error.
func Remove(path string) error {
	mounts, err := Mounts()
	if err != nil {
		return err
	}
	var errs []error
	roots := slices.Collect(maps.Values(mounts))
	if _, mounted := mounts[""]; !mounted {
		roots = append(roots, "/sys/fs/cgroup/unified") // see Rmdir
	}
	for _, root := range roots {
		errs = append(errs, removeTree(filepath.Join(root, filepath.Clean("/"+path))))
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return skipGone(err)
	})
	for _, d := range slices.Backward(dirs) {
		if e := Rmdir(d); e != nil {
			err = errors.Join(err, fmt.Errorf("remove cgroup %s: %w", d, e))
		}
	}
	return err
}

// Rmdir removes the directory of one empty cgroup; nil when it is gone. Where
// nothing is mounted on /sys/fs/cgroup/unified, crun takes it for a hierarchy
// nevertheless and leaves directories and files on the tmpfs: those go too.
func Rmdir(dir string) error {
	err := unix.Rmdir(dir)
	switch err {
	case nil, unix.ENOENT:
		return nil
	case unix.ENOTEMPTY:
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.TMPFS_MAGIC {
			return os.RemoveAll(dir)
		}
	}
	return err
}
