package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/idtools"
	"golang.org/x/sys/unix"
)

func (o RootFSOptions) mapped() bool { return o.UIDs.Size > 0 || o.GIDs.Size > 0 }

func (r IDRange) library() []idtools.IDMap {
	return []idtools.IDMap{{ContainerID: 0, HostID: int(r.Host), Size: int(r.Size)}}
}

// NoIDMaps says why root filesystems can't have their ids mapped, as pods with a
// user namespace need it; "" when they can.
func (s *Store) NoIDMaps() string { return s.noIDMaps }

// whyNoIDMaps asks the driver, which tries it with a mount, once per boot. It must
// be called before the store is used: the driver remembers the answer without a lock.
func whyNoIDMaps(store storage.Store) string {
	driver, err := store.GraphDriver()
	if err != nil {
		return fmt.Sprintf("the image store: %v", err)
	}
	one := []idtools.IDMap{{Size: 1}}
	if !driver.SupportsShifting(one, one) {
		// The library would copy the whole image for every mapping.
		return fmt.Sprintf("this kernel cannot map the ids of layers in %s (driver %s): that takes overlay on Linux 5.19 and a filesystem that allows it",
			store.GraphRoot(), driver.String())
	}
	return ""
}

// openFor lets the mapped root, which is nobody on the host, come to its root
// filesystem, and nobody else: the layer's directory becomes its own, and those
// above can be gone through, not listed.
func (s *Store) openFor(o RootFSOptions, layer string) error {
	driver := filepath.Join(s.opts.Root, s.opts.Driver)
	for _, dir := range []string{s.opts.Root, driver} {
		if err := addMode(dir, 0o011); err != nil {
			return err
		}
	}
	for dir := filepath.Dir(s.opts.Root); dir != "/"; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if st.Mode()&1 == 0 {
			return fmt.Errorf("root filesystem for a user namespace: its users cannot pass through the directory %s: give it mode o+x", dir)
		}
	}
	return os.Lchown(filepath.Join(driver, layer), int(o.UIDs.Host), int(o.GIDs.Host))
}

func addMode(dir string, bits os.FileMode) error {
	st, err := os.Stat(dir)
	if err != nil || st.Mode()&bits == bits {
		return err
	}
	return os.Chmod(dir, st.Mode().Perm()|bits)
}

// mappedDir is where the overlay driver mounts the layers below, with mapped ids,
// for the moment in which it mounts a root filesystem on them.
const mappedDir = "mapped"

// detachMapped makes sure that none of these mounts is left of a process that died
// in that moment: deleting the root filesystem would go on through it and delete
// the image's own files.
func (s *Store) detachMapped(layer string) error {
	if s.opts.Driver != defaultDriver {
		return nil
	}
	dir := filepath.Join(s.opts.Root, defaultDriver, layer, mappedDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := detach(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// detachAllMapped does so for all, before the library deletes what it finds half-made.
func detachAllMapped(o Options) error {
	if o.Driver != defaultDriver {
		return nil
	}
	root, err := filepath.EvalSymlinks(filepath.Join(o.Root, defaultDriver))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	left, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		rest, below := strings.CutPrefix(m.Mountpoint, root+"/")
		parts := strings.Split(rest, "/")
		return !below || len(parts) != 3 || parts[1] != mappedDir, false
	})
	if err != nil {
		return err
	}
	for _, m := range left {
		if err := detach(m.Mountpoint); err != nil {
			return err
		}
	}
	return nil
}

func detach(path string) error {
	// More than once, should something be mounted over another.
	for range 16 {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // not a mount point
			return nil
		}
		if err != nil {
			return fmt.Errorf("detach %s: %w", path, err)
		}
	}
	return fmt.Errorf("detach %s: it stays mounted", path)
}
