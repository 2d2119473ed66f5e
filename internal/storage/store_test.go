package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/test/harness"
	"github.com/cri-engine/cri-engine/test/registry"
)

func TestMain(m *testing.M) {
	if Init() {
		return
	}
	if spec := os.Getenv(crashEnv); spec != "" {
		pullUntilKilled(spec)
		return
	}
	os.Exit(m.Run())
}

// needRoot: layers hold files of many owners, and mounting is root's.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: unpacks layers and mounts overlays")
	}
}

// testOptions are those of a store that knows nothing of the machine's own
// configuration and trusts these registries without TLS.
func testOptions(t testing.TB, registries ...*registry.Registry) Options {
	t.Helper()
	dir := t.TempDir()
	var conf strings.Builder
	for i, r := range registries {
		if i == 0 {
			fmt.Fprintf(&conf, "unqualified-search-registries = [%q]\n", r.Host())
		}
		fmt.Fprintf(&conf, "[[registry]]\nlocation = %q\ninsecure = true\n", r.Host())
	}
	return Options{
		Root: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Driver: "overlay",
		RegistriesConf: writeFile(t, dir, "registries.conf", conf.String()), RegistriesConfDir: filepath.Join(dir, "none.d"),
		PolicyPath: writeFile(t, dir, "policy.json", `{"default":[{"type":"insecureAcceptAnything"}]}`),
		AuthFile:   writeFile(t, dir, "auth.json", "{}"), CertsDir: filepath.Join(dir, "certs.d"),
	}
}

func writeFile(t testing.TB, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// testStore is a store that can be closed and opened again.
type testStore struct{ *Store }

// openStore opens a store and, at the test's end, takes away all that it mounted.
func openStore(t testing.TB, o Options) *testStore {
	t.Helper()
	needRoot(t)
	opened, err := Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	s := &testStore{opened}
	t.Cleanup(func() {
		for _, id := range s.RootFSes() {
			if err := s.RemoveRootFS(context.Background(), id); err != nil {
				t.Errorf("clean up: %v", err)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
		checkNoMounts(t, o.Root)
	})
	return s
}

// reopen closes the store and opens it again, as a restart of the engine does.
func (s *testStore) reopen(t testing.TB) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close the store: %v", err)
	}
	next, err := Open(t.Context(), s.opts)
	if err != nil {
		t.Fatalf("open the store again: %v", err)
	}
	s.Store = next
}

func checkNoMounts(t testing.TB, dir string) {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			t.Errorf("still mounted: %s", fields[4])
			_ = unix.Unmount(fields[4], unix.MNT_DETACH)
		}
	}
}

// testImage has as many layers as texts, each with a file of it.
func testImage(texts ...string) harness.Packed {
	img := harness.Image{Config: ociv1.ImageConfig{Cmd: []string{"/bin/true"}, User: "1000", Env: []string{"A=b"}}}
	for i, text := range texts {
		img.Layers = append(img.Layers, harness.NewLayer(
			harness.File{Name: fmt.Sprintf("file%d", i), Mode: 0o644, Body: []byte(text)},
			harness.File{Name: "owned", Mode: 0o600, UID: 1234, GID: 1234, Body: []byte("by another")},
		))
	}
	return img.Pack()
}

func mustPull(t testing.TB, s *testStore, ref string) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	return img
}

func wantKind(t testing.TB, err, kind error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want %v", kind)
		return
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("error %v: want %v", err, kind)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %v: want %q in it", err, text)
		}
	}
}

// wantEmpty fails the test if anything is left of any image.
func wantEmpty(t testing.TB, s *testStore) {
	t.Helper()
	layers, err := s.store.Layers()
	if err != nil {
		t.Fatal(err)
	}
	images, err := s.store.Images()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers)+len(images)+len(s.Images()) > 0 {
		t.Errorf("left over: %d layers, %d images, %d listed", len(layers), len(images), len(s.Images()))
	}
	temp, err := os.ReadDir(tempDir(s.opts))
	if err != nil || len(temp) > 0 {
		t.Errorf("left over in the temporary directory: %v, %v", temp, err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestPullAndRemove(t *testing.T) {
	r := registry.Start(t)
	img := testImage("one", "two")
	r.Add("lib/app", img, "v1")
	s := openStore(t, testOptions(t, r))

	got := mustPull(t, s, r.Ref("lib/app:v1"))
	if got.ID != img.ID().String() {
		t.Errorf("id %s, want the config's digest %s", got.ID, img.ID())
	}
	if want := []string{r.Ref("lib/app:v1")}; !slices.Equal(got.RepoTags, want) {
		t.Errorf("tags %q, want %q", got.RepoTags, want)
	}
	if want := []string{r.Ref("lib/app@" + img.Digest().String())}; !slices.Equal(got.RepoDigests, want) {
		t.Errorf("digests %q, want %q", got.RepoDigests, want)
	}
	if got.Size == 0 || got.Config.User != "1000" || !slices.Equal(got.Config.Env, []string{"A=b"}) || got.OS != "linux" {
		t.Errorf("not as in its config: %+v", got)
	}
	t.Run("it is found by every name it has", func(t *testing.T) {
		hex, _ := parseID(got.ID)
		for _, ref := range []string{
			got.ID, hex, hex[:12], "sha256:" + hex[:6], "lib/app:v1", r.Ref("lib/app:v1"),
			got.RepoDigests[0], r.Ref("lib/app:other@" + img.Digest().String()),
		} {
			if found, err := s.Image(ref); err != nil || found.ID != got.ID {
				t.Errorf("%s: %v, %v", ref, found.ID, err)
			}
		}
	})
	t.Run("it is not found by others", func(t *testing.T) {
		for _, ref := range []string{"lib/app:v2", "lib/app", "aaaaaaaaaaaa", "sha256:" + strings.Repeat("a", 64)} {
			_, err := s.Image(ref)
			wantKind(t, err, ErrNotFound, ref)
		}
		for _, ref := range []string{"", "UPPER/case", "a b", "x@sha256:12", strings.Repeat("a/", 1000), "../x", "-"} {
			_, err := s.Image(ref)
			wantKind(t, err, ErrInvalidReference)
		}
	})
	t.Run("it is there after a restart", func(t *testing.T) {
		s.reopen(t)
		if again, err := s.Image("lib/app:v1"); err != nil || fmt.Sprint(again) != fmt.Sprint(got) {
			t.Errorf("%+v, %v; want %+v", again, err, got)
		}
	})
	t.Run("a second pull fetches no layer", func(t *testing.T) {
		layer := layerOf(img, 0)
		before := r.Requests(layer)
		mustPull(t, s, r.Ref("lib/app:v1"))
		mustPull(t, s, got.RepoDigests[0])
		if n := r.Requests(layer) - before; n != 0 {
			t.Errorf("fetched %d times", n)
		}
	})
	t.Run("a pull by digest gives no tag", func(t *testing.T) {
		r.Add("lib/other", img)
		other := mustPull(t, s, r.Ref("lib/other@"+img.Digest().String()))
		if len(other.RepoTags) != 1 || len(other.RepoDigests) != 2 {
			t.Errorf("tags %q, digests %q", other.RepoTags, other.RepoDigests)
		}
	})
	t.Run("removal by one name removes all of it", func(t *testing.T) {
		if err := s.Remove(t.Context(), "lib/app:v1"); err != nil {
			t.Fatal(err)
		}
		wantEmpty(t, s)
		if err := s.Remove(t.Context(), "lib/app:v1"); err != nil {
			t.Errorf("again: %v", err)
		}
		if err := s.Remove(t.Context(), got.ID); err != nil {
			t.Errorf("by id: %v", err)
		}
	})
}

// layerOf is the digest of an image's layer.
func layerOf(img harness.Packed, i int) string {
	return blobDigest(img.Blobs[i])
}

func TestTagThatMoves(t *testing.T) {
	r := registry.Start(t)
	older, newer := testImage("base", "old"), testImage("base", "new")
	r.Add("app", older, "latest")
	s := openStore(t, testOptions(t, r))
	first := mustPull(t, s, r.Ref("app"))
	r.Add("app", newer, "latest")
	second := mustPull(t, s, r.Ref("app"))
	if second.ID != newer.ID().String() || len(second.RepoTags) != 1 {
		t.Errorf("got %+v", second)
	}
	old, err := s.Image(first.ID)
	if err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 {
		t.Errorf("the old image has %q, %q, %v; want it to have its digest alone", old.RepoTags, old.RepoDigests, err)
	}
	if n := len(s.Images()); n != 2 {
		t.Errorf("%d images", n)
	}
}

func TestIndex(t *testing.T) {
	r := registry.Start(t)
	arm := harness.Image{Arch: "arm64", Layers: []harness.Layer{harness.NewLayer(harness.File{Name: "arm"})}}.Pack()
	amd := harness.Image{Arch: "amd64", Layers: []harness.Layer{harness.NewLayer(harness.File{Name: "amd"})}}.Pack()
	other := harness.Image{Arch: "s390x", Layers: []harness.Layer{harness.NewLayer(harness.File{Name: "s390x"})}}.Pack()
	index := r.AddIndex("app", []harness.Packed{other, arm, amd}, "all")
	r.AddIndex("app", []harness.Packed{other}, "s390x")
	s := openStore(t, testOptions(t, r))
	got := mustPull(t, s, r.Ref("app:all"))
	if want := map[string]string{"amd64": amd.ID().String(), "arm64": arm.ID().String()}[got.Architecture]; got.ID != want {
		t.Errorf("got %s for %s", got.ID, got.Architecture)
	}
	if want := []string{r.Ref("app@" + index.String())}; !slices.Equal(got.RepoDigests, want) {
		t.Errorf("digests %q, want the index's %q", got.RepoDigests, want)
	}
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref("app:s390x")})
	wantKind(t, err, ErrNotFound, "app:s390x", "architecture")
}

func TestDockerFormat(t *testing.T) {
	r := registry.Start(t)
	img := harness.Image{Docker: true, Layers: []harness.Layer{harness.NewLayer(harness.File{Name: "a", Body: []byte("x")})}}.Pack()
	r.Add("app", img, "v1")
	s := openStore(t, testOptions(t, r))
	if got := mustPull(t, s, r.Ref("app:v1")); got.ID != img.ID().String() || !strings.HasSuffix(got.RepoDigests[0], img.Digest().String()) {
		t.Errorf("got %+v", got)
	}
}

func TestRootFS(t *testing.T) {
	r := registry.Start(t)
	r.Add("app", testImage("one", "two"), "v1")
	s := openStore(t, testOptions(t, r))
	img := mustPull(t, s, r.Ref("app:v1"))
	ctx := t.Context()

	fs, err := s.CreateRootFS(ctx, "c1", img.ID, RootFSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if body, err := os.ReadFile(filepath.Join(fs.Path, "file1")); err != nil || string(body) != "two" {
		t.Errorf("file1: %q, %v", body, err)
	}
	writeFile(t, fs.Path, "new", strings.Repeat("x", 100_000))
	if _, err := os.Stat(filepath.Join(fs.Upper, "new")); err != nil {
		t.Errorf("what was written is not in the upper directory: %v", err)
	}
	t.Run("what it uses is measured", func(t *testing.T) {
		eventually(t, "100 kB in use", func() bool {
			u, err := s.RootFSUsage("c1")
			return err == nil && u.UsedBytes >= 100_000 && u.InodesUsed >= 2 && u.Mountpoint == fs.Upper
		})
		eventually(t, "images and containers are measured", func() bool {
			images, containers := s.FsInfo()
			return images.UsedBytes > 0 && images.InodesUsed >= 6 && containers.UsedBytes >= 100_000 && images.Mountpoint == s.opts.Root
		})
	})
	t.Run("mounting again finds the mount", func(t *testing.T) {
		again, err := s.MountRootFS(ctx, "c1")
		if err != nil || again != fs {
			t.Errorf("%+v, %v; want %+v", again, err, fs)
		}
	})
	t.Run("it outlives the process", func(t *testing.T) {
		s.reopen(t)
		if ids := s.RootFSes(); !slices.Equal(ids, []string{"c1"}) {
			t.Errorf("have %q", ids)
		}
		if again, err := s.MountRootFS(ctx, "c1"); err != nil || again != fs {
			t.Errorf("%+v, %v; want %+v", again, err, fs)
		}
	})
	t.Run("it is mounted again after a reboot, with what was written", func(t *testing.T) {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Unmount(fs.Path, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(s.opts.RunRoot); err != nil {
			t.Fatal(err)
		}
		s.reopen(t)
		again, err := s.MountRootFS(ctx, "c1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(again.Path, "new")); err != nil {
			t.Error(err)
		}
	})
	t.Run("an image in use loses its names and goes with the last root filesystem", func(t *testing.T) {
		if _, err := s.CreateRootFS(ctx, "c2", img.ID, RootFSOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(ctx, img.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Image(img.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("still listed: %v", err)
		}
		s.reopen(t)
		if _, err := os.Stat(filepath.Join(fs.Path, "file1")); err != nil {
			t.Errorf("the root filesystem lost its image: %v", err)
		}
		for _, id := range []string{"c1", "c2"} {
			if err := s.RemoveRootFS(ctx, id); err != nil {
				t.Error(err)
			}
		}
		wantEmpty(t, s)
		if err := s.RemoveRootFS(ctx, "c1"); err != nil {
			t.Errorf("again: %v", err)
		}
	})
	t.Run("of an image that is not there, nothing is made", func(t *testing.T) {
		_, err := s.CreateRootFS(ctx, "c3", img.ID, RootFSOptions{})
		wantKind(t, err, ErrNotFound, "c3", img.ID)
		_, err = s.MountRootFS(ctx, "c3")
		wantKind(t, err, ErrNotFound, "c3")
		_, err = s.RootFSUsage("c3")
		wantKind(t, err, ErrNotFound, "c3")
	})
	t.Run("ids that are no ids are refused", func(t *testing.T) {
		for _, id := range []string{"", "../x", "a/b", ".", strings.Repeat("a", 200)} {
			_, err := s.CreateRootFS(ctx, id, img.ID, RootFSOptions{})
			wantKind(t, err, ErrInvalidReference)
		}
	})
}

func TestReadOnlyRootFS(t *testing.T) {
	r := registry.Start(t)
	r.Add("app", testImage("one", "two"), "v1")
	s := openStore(t, testOptions(t, r))
	img := mustPull(t, s, r.Ref("app:v1"))
	fs, err := s.CreateRootFS(t.Context(), "c1", img.ID, RootFSOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(fs.Path, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing gives %v", err)
	}
}

func TestRepair(t *testing.T) {
	r := registry.Start(t)
	good, bad := testImage("base", "good"), testImage("base", "bad")
	r.Add("app", good, "good")
	r.Add("app", bad, "bad")
	o := testOptions(t, r)
	s := openStore(t, o)
	mustPull(t, s, r.Ref("app:good"))
	damaged := mustPull(t, s, r.Ref("app:bad"))
	hex, _ := parseID(damaged.ID)

	t.Run("an image whose config is damaged is deleted, and others stay", func(t *testing.T) {
		files, err := filepath.Glob(filepath.Join(o.Root, "overlay-images", hex, "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no files of the image: %v", err)
		}
		for _, f := range files {
			if err := os.Truncate(f, 0); err != nil {
				t.Fatal(err)
			}
		}
		s.reopen(t)
		if images := s.Images(); len(images) != 1 || images[0].ID != good.ID().String() {
			t.Errorf("images: %+v", images)
		}
		if got := mustPull(t, s, r.Ref("app:bad")); got.ID != damaged.ID {
			t.Errorf("pulled again: %+v", got)
		}
	})
	t.Run("an image without a name and layers of no image are deleted", func(t *testing.T) {
		// What a crash leaves between the copy and the name.
		if err := s.store.RemoveNames(hex, damaged.RepoTags); err != nil {
			t.Fatal(err)
		}
		if err := s.store.RemoveNames(hex, damaged.RepoDigests); err != nil {
			t.Fatal(err)
		}
		if _, err := s.store.CreateLayer("", "", nil, "", false, nil); err != nil {
			t.Fatal(err)
		}
		s.reopen(t)
		layers, err := s.store.Layers()
		if err != nil || len(layers) != 2 || len(s.Images()) != 1 {
			t.Errorf("%d layers and %d images, %v; want the 2 layers of 1 image", len(layers), len(s.Images()), err)
		}
	})
}
