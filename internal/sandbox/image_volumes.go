package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/oci"
)

// imageVolume is an image that a mount of a container names. It is mounted for
// that container alone, as a root filesystem that nothing writes to: so the image
// stays while the container does, and what a crash leaves is found like any other root filesystem.
type imageVolume struct {
	// Mount is the index of the request's mount.
	Mount   int    `json:"mount"`
	ImageID string `json:"imageId"`
	Path    string `json:"path"`
}

// volumeID names the root filesystem of a container's n-th image volume.
func volumeID(containerID string, n int) string { return fmt.Sprintf("%s-%d", containerID, n) }

// rootFSOwner is the container that a root filesystem, its own or a volume's, belongs to.
func rootFSOwner(id string) string {
	owner, _, _ := strings.Cut(id, "-")
	return owner
}

func (r *containerCreate) imageVolumes(ctx context.Context) error {
	var volumes []imageVolume
	for i, m := range r.c.cfg.GetMounts() {
		if m.GetImage().GetImage() == "" {
			continue
		}
		v, err := r.imageVolume(ctx, fmt.Sprintf("config.mounts[%d]", i), i, m, volumes)
		if err != nil {
			return errors.Join(fmt.Errorf("%w: %w", oci.ErrImageVolume, err), r.removeImageVolumes(context.WithoutCancel(ctx)))
		}
		volumes = append(volumes, v)
	}
	r.c.mu.Lock()
	r.c.rec.Volumes = volumes
	r.c.mu.Unlock()
	return nil
}

// imageVolume mounts one, or shares what a mount before it has of the same image.
func (r *containerCreate) imageVolume(ctx context.Context, field string, i int, m *runtimeapi.Mount, have []imageVolume) (imageVolume, error) {
	if err := oci.CheckImageVolume(field, m); err != nil {
		return imageVolume{}, err
	}
	image, err := r.e.o.Images.Image(m.GetImage().GetImage())
	if err != nil {
		return imageVolume{}, fmt.Errorf("%s.image.image: %w", field, err)
	}
	for _, v := range have {
		if v.ImageID == image.ID {
			return imageVolume{Mount: i, ImageID: image.ID, Path: v.Path}, nil
		}
	}
	options := r.c.rootFSOptions()
	options.ReadOnly = true
	fs, err := r.e.o.Images.CreateRootFS(ctx, volumeID(r.c.id, i), image.ID, options)
	if err != nil {
		return imageVolume{}, fmt.Errorf("%s.image: %w", field, err)
	}
	return imageVolume{Mount: i, ImageID: image.ID, Path: fs.Path}, nil
}

func (r *containerCreate) removeImageVolumes(ctx context.Context) error {
	return r.e.removeImageVolumes(ctx, r.c.id)
}

// removeImageVolumes goes by what the store has, so that it takes those of a
// container whose record is lost, too.
func (e *Engine) removeImageVolumes(ctx context.Context, containerID string) error {
	var errs []error
	for _, id := range e.o.Images.RootFSes() {
		if id != containerID && rootFSOwner(id) == containerID {
			errs = append(errs, e.o.Images.RemoveRootFS(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// removeRootFS takes away all that a container has mounted of images.
func (e *Engine) removeRootFS(ctx context.Context, containerID string) error {
	if err := e.removeImageVolumes(ctx, containerID); err != nil {
		return err
	}
	return e.o.Images.RemoveRootFS(ctx, containerID)
}

func imageVolumePaths(volumes []imageVolume) map[int]string {
	paths := map[int]string{}
	for _, v := range volumes {
		paths[v.Mount] = v.Path
	}
	return paths
}

// mountsOf are the request's mounts. Those of images say which image that was,
// as PullImage does, whatever its names mean by now.
func mountsOf(r *containerRecord, cfg *runtimeapi.ContainerConfig) []*runtimeapi.Mount {
	if len(r.Volumes) == 0 {
		return cfg.GetMounts()
	}
	mounts := append([]*runtimeapi.Mount{}, cfg.GetMounts()...)
	for _, v := range r.Volumes {
		if v.Mount < 0 || v.Mount >= len(mounts) { // a record that something else wrote
			continue
		}
		m := proto.CloneOf(mounts[v.Mount])
		if m.Image == nil {
			continue
		}
		m.Image.ImageRef = v.ImageID
		mounts[v.Mount] = m
	}
	return mounts
}
