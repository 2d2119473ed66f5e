package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Each layer of the overlay driver has a short name: the file overlay/ID/link holds
// it, and overlay/l/NAME is a symbolic link to overlay/ID/diff.

// mendLinks puts right what a kill or a power cut between the steps of making or
// deleting a layer left of the two. It comes before the library is opened, since that
// then deletes half-made layers: of one whose file "link" is there and empty it would
// delete overlay/l/, with the names of all.
func mendLinks(o Options) error {
	if o.Driver != "overlay" {
		return nil
	}
	home := filepath.Join(o.Root, "overlay")
	entries, err := os.ReadDir(home)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	names := map[string]string{} // what each is a link to
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		file := filepath.Join(home, e.Name(), "link")
		name, err := os.ReadFile(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("read a layer's short name: %w", err)
		case !isLinkName(name):
			// Without it the library leaves overlay/l/ alone.
			if err := os.Remove(file); err != nil {
				return fmt.Errorf("remove a layer's half-written short name: %w", err)
			}
		default:
			names[string(name)] = filepath.Join("..", e.Name(), "diff")
		}
	}
	return linkAll(filepath.Join(home, "l"), names)
}

// isLinkName: base32 in capitals, see [RFC 4648] section 6.
//
// [RFC 4648]: https://www.rfc-editor.org/rfc/rfc4648
func isLinkName(name []byte) bool {
	for _, c := range name {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return len(name) > 0 && len(name) <= 64
}

// linkAll makes the links in dir those that names has.
func linkAll(dir string, names map[string]string) error {
	there, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range there {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil && names[e.Name()] == target {
			delete(names, e.Name())
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove a short name of no layer: %w", err)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, target := range names {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("give a layer its short name again: %w", err)
		}
	}
	return nil
}
