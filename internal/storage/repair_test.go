package storage

import (
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
