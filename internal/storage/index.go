package storage

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/storage"
)

// maxDepth bounds an image's layers: above the overlay driver's own limit of
// 500, and below what a loop in the records would make of it.
const maxDepth = 1000

// index is all images at one moment. It is never changed: a change makes a new one.
type index struct {
	images []Image        // sorted by ID
	byName map[string]int // by full name, as in the store
}

func newIndex(images map[string]Image) *index {
	x := &index{images: slices.Collect(maps.Values(images)), byName: map[string]int{}}
	slices.SortFunc(x.images, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	for i, img := range x.images {
		for _, name := range slices.Concat(img.RepoTags, img.RepoDigests) {
			x.byName[name] = i
		}
	}
	return x
}

// with returns an index in which the images of changed are as given there, or
// gone where the value is nil. Keys are ids with "sha256:".
func (x *index) with(changed map[string]*Image) *index {
	images := make(map[string]Image, len(x.images)+len(changed))
	for _, img := range x.images {
		images[img.ID] = img
	}
	for id, img := range changed {
		if img == nil {
			delete(images, id)
			continue
		}
		images[id] = *img
	}
	return newIndex(images)
}

// byID takes the 64 hex digits.
func (x *index) byID(hex string) (Image, bool) {
	id := "sha256:" + hex
	i, ok := slices.BinarySearchFunc(x.images, id, func(img Image, id string) int { return strings.Compare(img.ID, id) })
	if !ok {
		return Image{}, false
	}
	return x.images[i], true
}

// byPrefix finds the one image whose id starts so.
func (x *index) byPrefix(hex string) (Image, bool) {
	id := "sha256:" + hex
	i, _ := slices.BinarySearchFunc(x.images, id, func(img Image, id string) int { return strings.Compare(img.ID, id) })
	if i == len(x.images) || !strings.HasPrefix(x.images[i].ID, id) {
		return Image{}, false
	}
	if i+1 < len(x.images) && strings.HasPrefix(x.images[i+1].ID, id) {
		return Image{}, false
	}
	return x.images[i], true
}

// name finds an image by its full name.
func (x *index) name(name string) (Image, bool) {
	i, ok := x.byName[name]
	if !ok {
		return Image{}, false
	}
	return x.images[i], true
}

// describe makes the entry of an image from the store's record, its config and
// manifest, and the sizes of its layers. It fails for an image that is not whole.
func (s *Store) describe(record *storage.Image, layer func(id string) (*storage.Layer, error)) (*Image, error) {
	id := digest.NewDigestFromEncoded(digest.SHA256, record.ID)
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("image id %q: %w", record.ID, err)
	}
	raw, err := s.store.ImageBigData(record.ID, id.String())
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if digest.FromBytes(raw) != id {
		return nil, fmt.Errorf("config: its digest is not %s", id)
	}
	config, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	size, err := chainSize(record.TopLayer, layer)
	if err != nil {
		return nil, err
	}
	manifest, err := s.store.ImageBigData(record.ID, storage.ImageDigestBigDataKey)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	img := &Image{ID: id.String(), Size: size, Config: config.Config, Architecture: config.Architecture, OS: config.OS, Annotations: parseAnnotations(manifest)}
	if config.Created != nil {
		img.Created = *config.Created
	}
	img.RepoTags, img.RepoDigests = splitNames(record.Names)
	img.Pinned = matchesAny(s.opts.Pinned, slices.Concat(img.RepoTags, img.RepoDigests))
	return img, nil
}

// parseConfig reads an image's config, which is foreign.
func parseConfig(raw []byte) (ociv1.Image, error) {
	var config ociv1.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return ociv1.Image{}, fmt.Errorf("config: %w", err)
	}
	return config, nil
}

// parseAnnotations reads those of a manifest, which is foreign. Docker's
// manifests have none.
func parseAnnotations(raw []byte) map[string]string {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return nil
	}
	return m.Annotations
}

// chainSize adds up the unpacked sizes of a layer and all below it.
func chainSize(top string, layer func(id string) (*storage.Layer, error)) (uint64, error) {
	var size uint64
	depth := 0
	for id := top; id != ""; {
		if depth++; depth > maxDepth {
			return 0, fmt.Errorf("more than %d layers", maxDepth)
		}
		l, err := layer(id)
		if err != nil {
			return 0, fmt.Errorf("layer %s: %w", id, err)
		}
		size += uint64(max(l.UncompressedSize, 0))
		id = l.Parent
	}
	return size, nil
}
