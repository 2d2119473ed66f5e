package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestWhatTheLibraryWasWritingIsRemoved(t *testing.T) {
	root := t.TempDir()
	kept, gone := filepath.Join(root, "overlay-layers", "layers.json"), filepath.Join(root, "overlay-layers", ".tmp-volatile-layers.json104461626")
	if err := os.Mkdir(filepath.Dir(kept), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{kept, gone} {
		if err := os.WriteFile(path, []byte("[]"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeHalfWritten(Options{Root: root, RunRoot: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(gone); err == nil {
		t.Error("the half-written file is still there")
	}
}

// A kill comes between the making of a layer's file "link" and what is written to
// it. The library takes an empty one for the name of the directory of all links.
func TestAHalfMadeLayerDoesNotTakeTheShortNamesOfOthers(t *testing.T) {
	o := testOptions(t)
	s := openStore(t, o)
	whole, _, err := s.store.PutLayer("", "", nil, "", true, nil, bytes.NewReader(make([]byte, 1024)))
	if err != nil {
		t.Fatal(err)
	}
	half, err := s.store.CreateLayer("", "", nil, "", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.store.Free()

	home := filepath.Join(o.Root, "overlay")
	name := func(id string) string {
		text, err := os.ReadFile(filepath.Join(home, id, "link"))
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(home, "l", string(text))
	}
	kept, stray := name(whole.ID), name(half.ID)
	if err := os.Truncate(filepath.Join(home, half.ID, "link"), 0); err != nil {
		t.Fatal(err)
	}
	if err := mendLinks(o); err != nil {
		t.Fatal(err)
	}
	again, err := openLibrary(o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Free()
	if err := again.DeleteLayer(half.ID); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(kept); err != nil || target != "../"+whole.ID+"/diff" {
		t.Errorf("the other layer's name is a link to %q, %v", target, err)
	}
	if _, err := os.Lstat(stray); err == nil {
		t.Error("the name of the half-made layer is left")
	}

	// One that is missing, as after such a deletion, is made again.
	if err := os.RemoveAll(filepath.Join(home, "l")); err != nil {
		t.Fatal(err)
	}
	if err := mendLinks(o); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(kept); err != nil || target != "../"+whole.ID+"/diff" {
		t.Errorf("made again it is a link to %q, %v", target, err)
	}
}
