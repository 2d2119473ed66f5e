package oci

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxVolumes bounds what an image may declare.
const maxVolumes = 1024

// volumePaths are the directories that an image declares as volumes, sorted.
func volumePaths(image ociv1.ImageConfig) ([]string, error) {
	if len(image.Volumes) > maxVolumes {
		return nil, invalid("the image's volumes", "", "more than %d", maxVolumes)
	}
	var paths []string
	for _, p := range slices.Sorted(maps.Keys(image.Volumes)) {
		// Absolute, as a rule; an image's paths are relative to its root anyway.
		if p = path.Join("/", p); p != "/" && !strings.ContainsRune(p, 0) {
			paths = append(paths, p)
		}
	}
	return slices.Compact(paths), nil
}

// MakeVolumes makes the directories in a root filesystem that its image declares
// as volumes and does not have, owned by the given user and group. An image's
// volume is a directory of the container's own layer: it has what the image has
// there, and lives as long as the container.
func MakeVolumes(rootfs string, image ociv1.ImageConfig, uid, gid int) error {
	paths, err := volumePaths(image)
	if err != nil {
		return err
	}
	for _, p := range paths {
		if err := makeVolume(rootfs, p, uid, gid); err != nil {
			return volumeError(p, err)
		}
	}
	return nil
}

// makeVolume goes down from the root, so that every directory that it makes gets its owner.
func makeVolume(rootfs, volume string, uid, gid int) error {
	for at := "/"; at != volume; {
		next, _, _ := strings.Cut(strings.TrimPrefix(volume[len(at):], "/"), "/")
		at = path.Join(at, next)
		have, err := pathrs.OpenInRoot(rootfs, at)
		if err == nil {
			have.Close()
			continue
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := mkdirInRoot(rootfs, at, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

func mkdirInRoot(rootfs, dir string, uid, gid int) error {
	root, err := os.OpenFile(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	made, err := pathrs.MkdirAllHandle(root, dir, 0o755)
	if err != nil {
		return err
	}
	defer made.Close()
	if err := unix.Fchownat(int(made.Fd()), "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	return nil
}

func volumeError(p string, err error) error {
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) {
		return invalid("the image's volume", p, "%v", err)
	}
	return fmt.Errorf("the image's volume %s: %w", quote(p), err)
}

// volumes are the mounts that keep the image's volumes writable where the root
// filesystem is not: its own directories, over themselves.
func (b *builder) volumes() ([]specs.Mount, error) {
	if !b.sc.GetReadonlyRootfs() {
		return nil, nil
	}
	paths, err := volumePaths(b.Image)
	if err != nil {
		return nil, err
	}
	var mounts []specs.Mount
	for _, p := range paths {
		source, err := pathInRoot(b.RootFS, p)
		if err != nil {
			return nil, volumeError(p, err)
		}
		mounts = append(mounts, specs.Mount{
			Destination: p, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", "rw"},
		})
	}
	return mounts, nil
}

// pathInRoot is where a path of a root filesystem is on the host, with links
// followed inside of it.
func pathInRoot(root, p string) (string, error) {
	handle, err := pathrs.OpenInRoot(root, p)
	if err != nil {
		return "", err
	}
	defer handle.Close()
	return handlePath(handle)
}

func handlePath(handle *os.File) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", handle.Fd()))
}
