package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"go.podman.io/storage"
	"k8s.io/klog/v2"
)

// repair puts right what a crash or a power cut left, and fills the index. The
// library itself has deleted half-made layers by now.
func (s *Store) repair(ctx context.Context) error {
	if err := emptyDir(tempDir(s.opts)); err != nil {
		return err
	}
	if err := removeHalfWritten(s.opts); err != nil {
		return err
	}
	if err := s.store.GarbageCollect(); err != nil {
		return fmt.Errorf("delete what no record names: %w", err)
	}
	all, err := s.store.MultiList(storage.MultiListOptions{Images: true, Layers: true, Containers: true})
	if err != nil {
		return fmt.Errorf("read the records: %w", err)
	}
	layers := map[string]*storage.Layer{}
	for i := range all.Layers {
		layers[all.Layers[i].ID] = &all.Layers[i]
	}
	used := map[string]bool{}
	for _, c := range all.Containers {
		used[c.ImageID] = true
		s.containers[c.ID] = container{layer: c.LayerID, image: c.ImageID}
	}
	images := map[string]Image{}
	for i := range all.Images {
		if err := ctx.Err(); err != nil {
			return err
		}
		record := &all.Images[i]
		if img := s.check(record, layers, used[record.ID]); img != nil {
			images[img.ID] = *img
		}
	}
	s.images.Store(newIndex(images))
	return s.deleteOrphans()
}

// check returns the image if it is whole and has a name. Else it deletes it,
// unless a root filesystem needs it: then it stays, unlisted.
func (s *Store) check(record *storage.Image, layers map[string]*storage.Layer, used bool) *Image {
	if len(record.Names) > 0 {
		img, err := s.describe(record, func(id string) (*storage.Layer, error) {
			if l, ok := layers[id]; ok {
				return l, nil
			}
			return nil, storage.ErrLayerUnknown
		})
		if err == nil {
			return img
		}
		klog.ErrorS(err, "An image in the store is damaged and will have to be pulled again", "image", record.ID, "names", record.Names)
		if err := s.store.RemoveNames(record.ID, record.Names); err != nil {
			klog.ErrorS(err, "Cannot take the names of a damaged image", "image", record.ID)
		}
	}
	if used {
		return nil
	}
	if _, err := s.store.DeleteImage(record.ID, true); err != nil && !errors.Is(err, storage.ErrLayerUnknown) {
		klog.ErrorS(err, "Cannot delete an image that is not whole", "image", record.ID)
	}
	return nil
}

// removeHalfWritten removes what the library was writing when it was killed: it
// writes its indexes beside themselves, under names of this form, and renames.
func removeHalfWritten(o Options) error {
	for _, root := range []string{o.Root, o.RunRoot} {
		left, err := filepath.Glob(filepath.Join(root, "*-*", ".tmp-*.json*"))
		if err != nil {
			return err
		}
		for _, path := range left {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove what was half-written: %w", err)
			}
		}
	}
	return nil
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// orphans are layers that a failed pull left: whole, but of no image. They are
// deleted when no pull runs, since one that runs counts on layers that are not
// an image's yet.
type orphans struct {
	mu    sync.Mutex // Protects the fields below, and is held while orphans are deleted.
	pulls int
	dirty bool // a pull has failed since the last deletion
}

// enter tells that a pull begins. What it returns must be called with the
// pull's result at its end.
func (o *orphans) enter(deleteAll func() error) (leave func(err error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pulls++
	return func(err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.pulls--
		o.dirty = o.dirty || err != nil
		if o.pulls > 0 || !o.dirty {
			return
		}
		if err := deleteAll(); err != nil {
			klog.ErrorS(err, "Cannot delete the layers of a failed pull")
			return
		}
		o.dirty = false
	}
}

// deleteOrphans deletes nameless images that nothing uses, and layers that no
// image and no root filesystem is made of.
func (s *Store) deleteOrphans() error {
	all, err := s.store.MultiList(storage.MultiListOptions{Images: true, Layers: true, Containers: true})
	if err != nil {
		return fmt.Errorf("read the records: %w", err)
	}
	var errs []error
	for _, id := range orphanImages(all) {
		if err := s.reap(id); err != nil {
			errs = append(errs, err)
		}
	}
	for _, id := range orphanLayers(all) {
		if err := s.store.DeleteLayer(id); err != nil && !errors.Is(err, storage.ErrLayerUnknown) && !errors.Is(err, storage.ErrNotALayer) {
			errs = append(errs, fmt.Errorf("delete layer %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func orphanImages(all storage.MultiListResult) []string {
	used := map[string]bool{}
	for _, c := range all.Containers {
		used[c.ImageID] = true
	}
	var ids []string
	for _, img := range all.Images {
		if len(img.Names) == 0 && !used[img.ID] {
			ids = append(ids, img.ID)
		}
	}
	return ids
}

// orphanLayers lists children before their parents.
func orphanLayers(all storage.MultiListResult) []string {
	parents, children := map[string]string{}, map[string][]string{}
	for _, l := range all.Layers {
		parents[l.ID] = l.Parent
	}
	for _, l := range all.Layers {
		parent := l.Parent
		if _, ok := parents[parent]; !ok {
			parent = "" // the bottom, or lost
		}
		children[parent] = append(children[parent], l.ID)
	}
	wanted := map[string]bool{}
	want := func(id string) {
		for ; id != "" && !wanted[id]; id = parents[id] {
			wanted[id] = true
		}
	}
	for _, img := range all.Images {
		want(img.TopLayer)
		for _, id := range img.MappedTopLayers {
			want(id)
		}
	}
	for _, c := range all.Containers {
		want(c.LayerID)
	}
	var ids []string
	var visit func(id string)
	visit = func(id string) {
		for _, child := range children[id] {
			visit(child)
		}
		if id != "" && !wanted[id] {
			ids = append(ids, id)
		}
	}
	visit("")
	return ids
}
