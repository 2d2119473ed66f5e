package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"

	"go.podman.io/storage"
)

// containerID: the store makes directories of these names.
var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// container is what is remembered of a root filesystem.
type container struct {
	layer string // its id in the store
	image string // 64 hex digits
}

// CreateRootFS makes a container's root filesystem from an image, by the
// image's whole id, and mounts it, or leaves nothing. ErrNotFound when there is
// no such image.
//
// It is volatile: what a container writes may be lost in a power cut, after
// which Kubernetes makes a new container anyway, and in return no unmount ever
// waits until all of that has been written out.
func (s *Store) CreateRootFS(ctx context.Context, id, imageID string, o RootFSOptions) (RootFS, error) {
	hex, ok := parseID(imageID)
	if !ok {
		return RootFS{}, withKind(ErrInvalidReference, fmt.Errorf("create root filesystem %s: image id %s: not a whole id", id, quoteRef(imageID)))
	}
	if !containerID.MatchString(id) {
		return RootFS{}, withKind(ErrInvalidReference, fmt.Errorf("create root filesystem %q: not an id", id))
	}
	if err := ctx.Err(); err != nil {
		return RootFS{}, fmt.Errorf("create root filesystem %s: %w", id, err)
	}
	if o.mapped() && s.noIDMaps != "" {
		return RootFS{}, fmt.Errorf("create root filesystem %s: %s: %w", id, s.noIDMaps, errors.ErrUnsupported)
	}
	defer s.byContainer.lock(id)()
	record, err := s.store.CreateContainer(id, nil, hex, "", "", containerOptions(o))
	if err != nil {
		return RootFS{}, opError("create root filesystem", id, "make a layer on image "+imageID, err)
	}
	s.mu.Lock()
	s.containers[id] = container{layer: record.LayerID, image: hex}
	s.mu.Unlock()
	fs, err := s.mount(id)
	if err == nil && o.mapped() {
		err = s.openFor(o, record.LayerID)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return RootFS{}, errors.Join(err, s.remove(id))
	}
	return fs, nil
}

func containerOptions(o RootFSOptions) *storage.ContainerOptions {
	c := &storage.ContainerOptions{Volatile: true, Flags: map[string]any{}}
	if o.MountLabel == "" {
		// Else the library makes a label up where SELinux is on.
		c.LabelOpts = []string{"disable"}
	} else {
		// It wants both or none, and uses the one for the mount.
		c.Flags["MountLabel"], c.Flags["ProcessLabel"] = o.MountLabel, o.MountLabel
	}
	if o.ReadOnly {
		c.MountOpts = []string{"ro"}
	}
	if o.mapped() {
		c.UIDMap, c.GIDMap = o.UIDs.library(), o.GIDs.library()
	}
	return c
}

// MountRootFS says where a container's root filesystem is mounted, and mounts
// it if it is not, as after a reboot. ErrNotFound when there is none.
func (s *Store) MountRootFS(_ context.Context, id string) (RootFS, error) {
	defer s.byContainer.lock(id)()
	return s.mount(id)
}

// mount needs the container's lock. The library counts mounts; that they are
// never given back does no harm, since removal unmounts whatever the count.
func (s *Store) mount(id string) (RootFS, error) {
	c, ok := s.container(id)
	if !ok {
		return RootFS{}, noRootFS(id)
	}
	path, err := s.store.Mount(id, "")
	if err != nil {
		return RootFS{}, opError("root filesystem", id, "mount", err)
	}
	return RootFS{Path: path, Upper: s.upper(c.layer)}, nil
}

func noRootFS(id string) error {
	return withKind(ErrNotFound, fmt.Errorf("root filesystem %q: not found", id))
}

func (s *Store) container(id string) (container, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[id]
	return c, ok
}

// upper is where the driver keeps what a layer's owner writes, "" if unknown.
func (s *Store) upper(layer string) string {
	switch s.opts.Driver {
	case "overlay":
		return filepath.Join(s.opts.Root, "overlay", layer, "diff")
	case "vfs":
		return filepath.Join(s.opts.Root, "vfs", "dir", layer)
	}
	return ""
}

// RemoveRootFS unmounts and deletes a container's root filesystem, and its
// image, if that was removed meanwhile and this was the last made of it. It is
// nil when there is none.
func (s *Store) RemoveRootFS(_ context.Context, id string) error {
	defer s.byContainer.lock(id)()
	return s.remove(id)
}

func (s *Store) remove(id string) error {
	c, ok := s.container(id)
	if !ok {
		return nil
	}
	if err := s.detachMapped(c.layer); err != nil {
		return opError("remove root filesystem", id, "detach its id-mapped layers", err)
	}
	if _, err := s.store.Unmount(id, true); err != nil && !errors.Is(err, storage.ErrLayerUnknown) && !errors.Is(err, storage.ErrContainerUnknown) {
		return opError("remove root filesystem", id, "unmount", err)
	}
	if err := s.store.DeleteContainer(id); err != nil && !errors.Is(err, storage.ErrNotAContainer) {
		return opError("remove root filesystem", id, "delete", err)
	}
	s.mu.Lock()
	delete(s.containers, id)
	s.mu.Unlock()
	s.usage.forget(id)
	if err := s.reap(c.image); err != nil {
		return opError("remove root filesystem", id, "delete its image", err)
	}
	return nil
}

// RootFSes lists the containers that have a root filesystem, sorted. From memory.
func (s *Store) RootFSes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.containers))
}
