package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cri-engine/cri-engine/internal/cgroup"
	"golang.org/x/sys/unix"
)

// killTime bounds how long killed processes may take to be gone.
const killTime = 10 * time.Second

func (pu *pump) delete(ctx context.Context, r DeleteRequest) error {
	if err := checkKey(r.ID, ""); err != nil {
		return err
	}
	if err := r.Runtime.check(); err != nil {
		return err
	}
	p, err := pu.find(r.ID, "")
	if errors.Is(err, ErrNotFound) {
		return pu.remove(ctx, r, nil)
	}
	if err != nil {
		return err
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.end(ctx, r.Force); err != nil {
		return fmt.Errorf("delete container %s: %w", r.ID, err)
	}
	rec := p.record()
	if err := pu.remove(ctx, r, &rec); err != nil {
		return err
	}
	for _, e := range pu.execsOf(r.ID) {
		pu.forget(e)
	}
	pu.forget(p)
	return nil
}

// end makes sure that the process has ended and that this is recorded.
func (p *proc) end(ctx context.Context, force bool) error {
	if s := p.record().State; s == StateExited {
		return nil
	} else if !force {
		return fmt.Errorf("%w: it is %s", ErrState, s)
	}
	p.kill()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(killTime + logGrace):
		return errors.New("the process was killed and does not end")
	}
}

// remove has the runtime delete a container and takes away what the runtime does
// not know of any more. r is nil when the monitor knows nothing of it either.
func (pu *pump) remove(ctx context.Context, d DeleteRequest, r *record) error {
	dirs := cgroupsOf(r)
	if d.Force {
		killCtx, cancel := context.WithTimeout(ctx, killTime)
		defer cancel()
		if err := dirs.Kill(killCtx); err != nil {
			return fmt.Errorf("delete container %s: %w", d.ID, err)
		}
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	err = pu.runtimes.run(ctx, call{rt: d.Runtime, args: []string{"delete", d.ID}, in: null, out: -1, err: -1})
	if err == nil {
		return nil
	}
	var said *runtimeError
	if errors.As(err, &said) && !said.gone() && d.Force {
		err = pu.runtimes.run(ctx, call{rt: d.Runtime, args: []string{"delete", "--force", d.ID}, in: null, out: -1, err: -1})
	}
	if err != nil && (said == nil || !said.gone()) {
		return fmt.Errorf("delete container %s: %w", d.ID, err)
	}
	return removeLeft(d, dirs)
}

// removeLeft takes away what a runtime left that was killed before it had noted
// the container, or half-way through deleting it.
func removeLeft(d DeleteRequest, dirs cgroup.Dirs) error {
	errs := []error{os.RemoveAll(filepath.Join(d.Runtime.Root, d.ID))}
	mounts, err := cgroup.Mounts()
	errs = append(errs, err)
	done := map[string]bool{}
	for c, dir := range dirs {
		path := strings.TrimPrefix(dir, mounts[c])
		if !done[path] {
			done[path] = true
			errs = append(errs, cgroup.Remove(path))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what is left of container %s: %w", d.ID, err)
	}
	return nil
}

// cgroupsOf are a container's cgroups, as they were seen, or as its bundle asks for them.
func cgroupsOf(r *record) cgroup.Dirs {
	if r == nil {
		return nil
	}
	if len(r.Cgroups) > 0 {
		return ownCgroups(r.Cgroups)
	}
	path := bundleCgroup(r.Bundle, r.Runtime.SystemdCgroup)
	mounts, err := cgroup.Mounts()
	if path == "" || err != nil {
		return nil
	}
	dirs := cgroup.Dirs{}
	for c, root := range mounts {
		dirs[c] = filepath.Join(root, path)
	}
	return ownCgroups(dirs)
}

// bundleCgroup is the absolute cgroup path that a bundle asks for, "" when it does not.
func bundleCgroup(bundle string, systemd bool) string {
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return ""
	}
	defer f.Close()
	var spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	const maxSpec = 8 << 20
	if json.NewDecoder(io.LimitReader(f, maxSpec)).Decode(&spec) != nil {
		return ""
	}
	path := spec.Linux.CgroupsPath
	if systemd {
		path = systemdPath(path)
	}
	if path = filepath.Clean(path); !filepath.IsAbs(path) || path == "/" {
		return ""
	}
	return path
}

// systemdPath is where systemd puts "SLICE:PREFIX:NAME": a slice a-b.slice is below a.slice.
func systemdPath(s string) string {
	parts := strings.Split(s, ":")
	if len(parts) != 3 || strings.Contains(s, "/") {
		return ""
	}
	slice, ok := strings.CutSuffix(parts[0], ".slice")
	if !ok {
		return ""
	}
	path := "/"
	if slice != "-" {
		for i, c := range slice + "-" {
			if c == '-' {
				path = filepath.Join(path, slice[:i]+".slice")
			}
		}
	}
	return filepath.Join(path, parts[1]+"-"+parts[2]+".scope")
}
