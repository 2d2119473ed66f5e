package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/test/registry"
)

func fileOwner(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func TestMappedRootFS(t *testing.T) {
	r := registry.Start(t)
	r.Add("app", testImage("one", "two"), "v1")
	s := openStore(t, testOptions(t, r))
	if why := s.NoIDMaps(); why != "" {
		t.Skip(why)
	}
	img := mustPull(t, s, r.Ref("app:v1"))
	ctx := t.Context()
	plain, err := s.CreateRootFS(ctx, "plain", img.ID, RootFSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	openUp(t, s.opts.Root)
	options := RootFSOptions{UIDs: IDRange{Host: 300000, Size: 1000}, GIDs: IDRange{Host: 400000, Size: 1000}}
	fs, err := s.CreateRootFS(ctx, "mapped", img.ID, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("its files are others' on the host, and those of the same image without a mapping are not", func(t *testing.T) {
		if got := fileOwner(t, filepath.Join(fs.Path, "file1")); got != "300000:400000" {
			t.Errorf("mapped: %s", got)
		}
		if got := fileOwner(t, filepath.Join(plain.Path, "file1")); got != "0:0" {
			t.Errorf("plain: %s", got)
		}
	})
	t.Run("the mapped root, and no other user, may pass to it", func(t *testing.T) {
		layer := filepath.Dir(fs.Path)
		if st, err := os.Stat(layer); err != nil || st.Mode().Perm()&0o077 != 0 || fileOwner(t, layer) != "300000:400000" {
			t.Errorf("%v, %v, owner %s", st.Mode(), err, fileOwner(t, layer))
		}
	})
	t.Run("it is mounted again so after a reboot", func(t *testing.T) {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(unix.Unmount(fs.Path, 0), unix.Unmount(plain.Path, 0), os.RemoveAll(s.opts.RunRoot)); err != nil {
			t.Fatal(err)
		}
		s.reopen(t)
		again, err := s.MountRootFS(ctx, "mapped")
		if err != nil {
			t.Fatal(err)
		}
		if got := fileOwner(t, filepath.Join(again.Path, "file1")); got != "300000:400000" {
			t.Errorf("%s", got)
		}
	})
	t.Run("what a crash left of the image's mapped layers takes none of its files along", func(t *testing.T) {
		leave := func(id string) {
			t.Helper()
			c, _ := s.container(id)
			layer := filepath.Join(s.opts.Root, "overlay", c.layer)
			dir := filepath.Join(layer, mappedDir, "0")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			// The layers lie side by side: one of them stands for what the driver maps.
			if err := unix.Mount(imageLayer(t, s), dir, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
		}
		leave("mapped")
		if err := s.RemoveRootFS(ctx, "mapped"); err != nil {
			t.Fatal(err)
		}
		leave("plain")
		s.reopen(t)
		c, _ := s.container("plain")
		if left, err := os.ReadDir(filepath.Join(s.opts.Root, "overlay", c.layer, mappedDir, "0")); err != nil || len(left) > 0 {
			t.Errorf("after a start: %v, %v", left, err)
		}
		if left, err := os.ReadDir(imageLayer(t, s)); err != nil || len(left) == 0 {
			t.Errorf("the image's layer: %v, %v", left, err)
		}
	})
	for _, id := range []string{"plain", "mapped"} {
		if err := s.RemoveRootFS(ctx, id); err != nil {
			t.Error(err)
		}
	}
	t.Run("a directory on the way that its users can't pass is named", func(t *testing.T) {
		parent := filepath.Dir(s.opts.Root)
		if err := os.Chmod(parent, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := s.CreateRootFS(ctx, "mapped", img.ID, options)
		wantKind(t, err, nil, parent)
		if ids := s.RootFSes(); len(ids) > 0 {
			t.Errorf("left %v", ids)
		}
	})
}

// imageLayer is the directory of a layer that is an image's.
func imageLayer(t testing.TB, s *testStore) string {
	t.Helper()
	layers, err := s.imageLayers()
	if err != nil || len(layers) == 0 {
		t.Fatalf("layers %v, %v", layers, err)
	}
	return s.upper(layers[0].ID)
}

// openUp lets every user pass the test's own directories.
func openUp(t testing.TB, dir string) {
	t.Helper()
	for dir = filepath.Dir(dir); dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := addMode(dir, 0o011); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAMappedRootFSIsRefusedWhereTheKernelCannot(t *testing.T) {
	s := &Store{noIDMaps: "this kernel cannot"}
	_, err := s.CreateRootFS(t.Context(), "c1", "sha256:"+blobDigest(nil)[len("sha256:"):], RootFSOptions{UIDs: IDRange{Size: 1}})
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}
