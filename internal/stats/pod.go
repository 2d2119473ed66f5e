package stats

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cri-engine/cri-engine/internal/cgroup"
)

// PathsAt are the directories of a cgroup by its path from each hierarchy's root.
// A hierarchy that does not have it is left out; ErrGone when none has.
func PathsAt(path string) (Paths, error) {
	mounts, err := cgroup.Mounts()
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return pathsBelow(mounts, path)
}

func pathsBelow(mounts cgroup.Dirs, path string) (Paths, error) {
	paths := Paths{}
	for controller, root := range mounts {
		dir := filepath.Join(root, filepath.Join("/", path))
		_, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", path, err)
		}
		paths[controller] = dir
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("cgroup %s: %w", path, ErrGone)
	}
	return paths, nil
}

// PodCgroup reads a pod's cgroup by its path from each hierarchy's root, like
// [Sampler.Read], and counts the processes in it and below. ErrGone also when it
// has none yet: runtimes make it with the first container.
func (s *Sampler) PodCgroup(key, path string) (c Cgroup, processes uint64, err error) {
	paths, err := PathsAt(path)
	if err != nil {
		return Cgroup{}, 0, err
	}
	if c, err = paths.Read(); err != nil {
		return Cgroup{}, 0, err
	}
	pids, err := cgroup.Dirs(paths).Procs()
	if err != nil {
		return Cgroup{}, 0, fmt.Errorf("processes of cgroup %s: %w", path, err)
	}
	c.CPU.NanoCores = s.observe(key, 0, paths, c)
	return c, uint64(len(pids)), nil
}

// Interfaces are [Interfaces].
func (s *Sampler) Interfaces(netns string) ([]Interface, error) { return Interfaces(netns) }
