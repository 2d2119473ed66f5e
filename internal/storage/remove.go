package storage

import (
	"context"
	"errors"
	"fmt"

	"go.podman.io/storage"
)

// Remove takes all names of an image away, by whichever of them or its id, and
// deletes it, as CRI's RemoveImage wants it. An image that root filesystems are
// made of is deleted with the last of them. It is nil when there is no such image.
func (s *Store) Remove(_ context.Context, ref string) error {
	img, err := s.Image(ref)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	hex, _ := parseID(img.ID)
	if err := s.unname(hex); err != nil {
		return opError("remove image", quoteRef(ref), "take its names", err)
	}
	if err := s.reap(hex); err != nil {
		return opError("remove image", quoteRef(ref), "delete it", err)
	}
	return nil
}

// unname takes all names of an image away, which unlists it.
func (s *Store) unname(id string) error {
	defer s.byImage.lock(id)()
	record, err := s.store.Image(id)
	if errors.Is(err, storage.ErrImageUnknown) {
		return s.publish(id)
	}
	if err != nil {
		return err
	}
	if err := s.store.RemoveNames(id, record.Names); err != nil && !errors.Is(err, storage.ErrImageUnknown) {
		return err
	}
	return s.publish(id)
}

// reap deletes an image if it has no name and no root filesystem is made of it.
func (s *Store) reap(id string) error {
	defer s.byImage.lock(id)()
	record, err := s.store.Image(id)
	if errors.Is(err, storage.ErrImageUnknown) || err == nil && len(record.Names) > 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", id, err)
	}
	s.removals.Add(1)
	_, err = s.store.DeleteImage(id, true)
	if errors.Is(err, storage.ErrImageUsedByContainer) || errors.Is(err, storage.ErrNotAnImage) || errors.Is(err, storage.ErrImageUnknown) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", id, err)
	}
	s.removals.Add(1)
	if s.usage != nil {
		s.usage.poke()
	}
	return nil
}
