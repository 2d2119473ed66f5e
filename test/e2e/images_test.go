//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// tryPull pulls by the name as it is, not in the world's registry.
func (e *Engine) tryPull(ctx context.Context, name string, auth *runtimeapi.AuthConfig) (string, error) {
	resp, err := e.img.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}, Auth: auth})
	return resp.GetImageRef(), err
}

func (e *Engine) images(t testing.TB) []*runtimeapi.Image {
	t.Helper()
	resp, err := e.img.ListImages(call(t), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Images
}

// push uploads to a registry of the test's own.
func push(t testing.TB, r *harness.Registry, repo string, p harness.Packed, tags ...string) {
	t.Helper()
	if err := r.Push(call(t), repo, p, tags...); err != nil {
		t.Fatal(err)
	}
}

func TestImages(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		dir := filepath.Join(w.Dir, "registry")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		own, err := harness.StartRegistry(call(t), harness.RegistryOptions{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(own.Stop)
		w.empty = takeSnapshot(t, w, nil)
		e := w.engine(t, func(o *harness.EngineOptions) { o.Registries = []string{own.Addr, w.Registry.Addr} })
		push(t, own, "lib/one", smallImage("one"), "v1", "v2")
		one := smallImage("one")
		digestRef := own.Addr + "/lib/one@" + one.Digest().String()

		for name, ref := range map[string]string{
			"by tag": own.Addr + "/lib/one:v1", "by digest": digestRef, "by short name": "lib/one:v1", "by tag and digest": own.Addr + "/lib/one:v1@" + one.Digest().String(),
		} {
			t.Run("an image is pulled, found and removed "+name, func(t *testing.T) {
				before := settled(t, w, e)
				id, err := e.tryPull(call(t), ref, nil)
				if err != nil {
					t.Fatal(err)
				}
				if id != one.ID().String() {
					t.Errorf("the pull's image_ref is %q, want the id %q", id, one.ID())
				}
				for _, by := range []string{ref, id, digestRef, strings.TrimPrefix(id, "sha256:")} {
					if img := e.image(t, by); img.GetId() != id {
						t.Errorf("by %s the image is %v", by, img)
					}
				}
				img := e.image(t, id)
				if img.Size == 0 || !slices.Contains(img.RepoDigests, digestRef) {
					t.Errorf("image %v", img)
				}
				if strings.HasSuffix(ref, ":v1") != slices.Contains(img.RepoTags, own.Addr+"/lib/one:v1") {
					t.Errorf("pulled by %s its tags are %v", ref, img.RepoTags)
				}
				e.removeImage(t, ref)
				if img := e.image(t, id); img != nil {
					t.Errorf("after its removal: %v", img)
				}
				leaks(t, w, e, before)
			})
		}
		t.Run("removal by any name removes the image with all its names, and again does nothing", func(t *testing.T) {
			for _, tag := range []string{"v1", "v2"} {
				if _, err := e.tryPull(call(t), own.Addr+"/lib/one:"+tag, nil); err != nil {
					t.Fatal(err)
				}
			}
			if img := e.image(t, own.Addr+"/lib/one:v2"); len(img.GetRepoTags()) != 2 {
				t.Errorf("two tags of one image: %v", img)
			}
			e.removeImage(t, own.Addr+"/lib/one:v1")
			if img := e.image(t, own.Addr+"/lib/one:v2"); img != nil {
				t.Errorf("by its other tag: %v", img)
			}
			e.removeImage(t, own.Addr+"/lib/one:v1")
		})
		t.Run("a tag that moves goes to the new image", func(t *testing.T) {
			push(t, own, "lib/moving", smallImage("old"), "latest")
			old, err := e.tryPull(call(t), own.Addr+"/lib/moving", nil)
			if err != nil {
				t.Fatal(err)
			}
			push(t, own, "lib/moving", smallImage("new"), "latest")
			now, err := e.tryPull(call(t), own.Addr+"/lib/moving", nil)
			if err != nil || now == old {
				t.Fatalf("pulled %s and %s, %v", old, now, err)
			}
			if img := e.image(t, own.Addr+"/lib/moving:latest"); img.GetId() != now {
				t.Errorf("the tag is %v", img)
			}
			if img := e.image(t, old); img == nil || len(img.RepoTags) != 0 {
				t.Errorf("the old image is %v", img)
			}
			e.removeImage(t, old)
			e.removeImage(t, now)
		})
		t.Run("an index gives the image of this machine's platform", func(t *testing.T) {
			before := settled(t, w, e)
			id := e.pull(t, multiImage)
			resp, err := e.img.ImageStatus(call(t), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: id}, Verbose: true})
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(fmt.Sprint(resp.Info), "amd64") || strings.Contains(fmt.Sprint(resp.Info), "arm64") {
				t.Errorf("info %v", resp.Info)
			}
			if got := e.runPod(t).output(t, multiImage, shell("echo runs")); got != "runs\n" {
				t.Errorf("got %q", got)
			}
			for _, p := range e.pods(t, nil) {
				(&Pod{e: e, ID: p.Id, Config: &runtimeapi.PodSandboxConfig{Metadata: p.Metadata}}).remove(t)
			}
			e.removeImage(t, id)
			leaks(t, w, e, before)
		})
		t.Run("Docker's media types are understood", func(t *testing.T) {
			id := e.pull(t, dockerImage)
			if got := e.runPod(t).output(t, dockerImage, shell("echo runs")); got != "runs\n" {
				t.Errorf("got %q", got)
			}
			_ = id
		})
		t.Run("whiteouts and opaque directories take effect", func(t *testing.T) {
			e.pull(t, layersImage)
			if got := e.runPod(t).output(t, layersImage, shell("ls /x /opaque; cat /x/kept")); got != "/opaque:\nnew\n\n/x:\nkept\nnew\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("the image's user is in its status", func(t *testing.T) {
			e.pull(t, userImage)
			if img := e.image(t, w.ref(userImage)); img.GetUsername() != "app" || img.GetUid() != nil {
				t.Errorf("user of the image: %q, %v", img.GetUsername(), img.GetUid())
			}
		})
		t.Run("an image in use by a container can be removed and the container lives on", func(t *testing.T) {
			e.pull(t, signalImage)
			p := e.runPod(t)
			c := p.run(t, signalImage, sleeper)
			e.removeImage(t, w.ref(signalImage))
			if got := c.exec(t, "echo", "lives"); got != "lives\n" {
				t.Errorf("got %q", got)
			}
			c.stop(t, 0)
			p.remove(t)
		})
		t.Run("ImageFsInfo is never empty", func(t *testing.T) {
			resp, err := e.img.ImageFsInfo(call(t), &runtimeapi.ImageFsInfoRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, list := range [][]*runtimeapi.FilesystemUsage{resp.ImageFilesystems, resp.ContainerFilesystems} {
				if len(list) == 0 || list[0].GetFsId().GetMountpoint() == "" || list[0].Timestamp == 0 {
					t.Errorf("got %v", resp)
				}
			}
			if resp.ImageFilesystems[0].GetUsedBytes().GetValue() == 0 {
				t.Error("the images use nothing")
			}
		})
		t.Run("an image that does not exist is NotFound, and a status of one is empty", func(t *testing.T) {
			_, err := e.tryPull(call(t), own.Addr+"/lib/none:v1", nil)
			wantCode(t, err, codes.NotFound, "lib/none:v1")
			_, err = e.tryPull(call(t), own.Addr+"/lib/one:none", nil)
			wantCode(t, err, codes.NotFound, "lib/one:none")
			_, err = e.tryPull(call(t), own.Addr+"/lib/one@sha256:"+strings.Repeat("0", 64), nil)
			wantCode(t, err, codes.NotFound)
			if img := e.image(t, own.Addr+"/lib/none:v1"); img != nil {
				t.Errorf("got %v", img)
			}
			p := e.runPod(t)
			_, err = e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: p.containerConfig("lib/none:v1", sleeper), SandboxConfig: p.Config})
			wantCode(t, err, codes.NotFound, "lib/none:v1")
		})
		t.Run("a list may be filtered by an image's name", func(t *testing.T) {
			resp, err := e.img.ListImages(call(t), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: w.ref(busyboxImage)}}})
			if err != nil || len(resp.Images) != 1 || !slices.Contains(resp.Images[0].RepoTags, w.ref(busyboxImage)) {
				t.Errorf("got %v, %v", resp, err)
			}
		})
		for _, img := range e.images(t) {
			if !slices.Contains(img.RepoTags, w.ref(busyboxImage)) {
				e.removeImage(t, img.Id)
			}
		}
	})
}

func TestPrivateRegistries(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		dir := filepath.Join(w.Dir, "private")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		private, err := harness.StartRegistry(call(t), harness.RegistryOptions{Dir: dir, Private: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(private.Stop)
		w.empty = takeSnapshot(t, w, nil)
		push(t, private, "secret/image", smallImage("secret"), "v1")
		e := w.engine(t, func(o *harness.EngineOptions) { o.Registries = append(o.Registries, private.Addr) })
		ref := private.Addr + "/secret/image:v1"
		right := base64.StdEncoding.EncodeToString([]byte(private.User + ":" + private.Password))
		for _, c := range []struct {
			name string
			auth *runtimeapi.AuthConfig
			ok   bool
		}{
			{"none", nil, false},
			{"the right user and password", &runtimeapi.AuthConfig{Username: private.User, Password: private.Password}, true},
			{"a wrong password", &runtimeapi.AuthConfig{Username: private.User, Password: "a wrong secret"}, false},
			{"the right ones in the auth field", &runtimeapi.AuthConfig{Auth: right}, true},
			{"the right ones for this server", &runtimeapi.AuthConfig{Username: private.User, Password: private.Password, ServerAddress: private.Addr}, true},
			{"the right ones for another server", &runtimeapi.AuthConfig{Username: private.User, Password: private.Password, ServerAddress: "registry.example"}, false},
			{"an auth field that is no base64", &runtimeapi.AuthConfig{Auth: "%%%"}, false},
		} {
			t.Run("credentials: "+c.name, func(t *testing.T) {
				_, err := e.tryPull(call(t), ref, c.auth)
				if (err == nil) != c.ok {
					t.Errorf("the pull ends with %v", err)
				}
				if err != nil {
					for _, secret := range []string{private.Password, "a wrong secret", right} {
						if strings.Contains(err.Error(), secret) {
							t.Errorf("the error holds a secret: %v", err)
						}
					}
				}
				e.removeImage(t, ref)
				leaks(t, w, e, e.idle)
			})
		}
		log, err := os.ReadFile(e.LogFile)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{private.Password, "a wrong secret", right} {
			if strings.Contains(string(log), secret) {
				t.Errorf("the log holds the secret %q", secret)
			}
		}
	})
}

// liar is a registry that serves one image and may do so badly.
type liar struct {
	*httptest.Server
	image harness.Packed
	// twist is called for each request before the honest answer; true means it answered.
	twist func(w http.ResponseWriter, r *http.Request, body []byte) bool
	// requests for blobs, by digest
	mu       sync.Mutex // Protects fetched.
	fetched  map[string]int
	manifest atomic.Int64
}

func newLiar(t testing.TB, img harness.Packed, twist func(http.ResponseWriter, *http.Request, []byte) bool) *liar {
	l := &liar{image: img, twist: twist, fetched: map[string]int{}}
	l.Server = httptest.NewServer(l)
	t.Cleanup(func() { l.CloseClientConnections(); l.Close() })
	return l
}

func (l *liar) ref() string { return l.Listener.Addr().String() + "/liar:v1" }

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, contentType := l.find(r)
	if l.twist != nil && l.twist(w, r, body) {
		return
	}
	if r.URL.Path == "/v2/" {
		return
	}
	if body == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

func (l *liar) find(r *http.Request) ([]byte, string) {
	if strings.Contains(r.URL.Path, "/manifests/") {
		l.manifest.Add(1)
		return l.image.Manifest, l.image.MediaType
	}
	for _, blob := range l.image.Blobs {
		if d := digest.FromBytes(blob).String(); strings.HasSuffix(r.URL.Path, "/blobs/"+d) {
			l.mu.Lock()
			l.fetched[d]++
			l.mu.Unlock()
			return blob, "application/octet-stream"
		}
	}
	return nil, ""
}

func isLayer(r *http.Request, img harness.Packed) bool {
	return strings.HasSuffix(r.URL.Path, "/blobs/"+digest.FromBytes(img.Blobs[0]).String())
}

func TestBadRegistries(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		img := smallImage(strings.Repeat("some text that a registry garbles ", 1000))
		hold := make(chan struct{}) // closed at the end: lets handlers go that hang on purpose
		t.Cleanup(func() { close(hold) })
		type answer = func(http.ResponseWriter, *http.Request, []byte) bool
		layer := func(f answer) answer {
			return func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				return isLayer(r, img) && f(w, r, body)
			}
		}
		cases := []struct {
			name  string
			twist answer
		}{
			{"sends another layer than the digest says", layer(func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
				bad := slices.Clone(body)
				bad[len(bad)/2] ^= 0xff
				_, _ = w.Write(bad)
				return true
			})},
			{"ends a layer too early", layer(func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
				_, _ = w.Write(body[:len(body)/2])
				return true
			})},
			{"promises more bytes than it sends", layer(func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
				w.Header().Set("Content-Length", fmt.Sprint(len(body)*2))
				_, _ = w.Write(body)
				return true
			})},
			{"sends more bytes than the manifest says", layer(func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
				_, _ = w.Write(append(slices.Clone(body), make([]byte, 1<<20)...))
				return true
			})},
			{"answers each request with 500", func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
				http.Error(w, "broken", http.StatusInternalServerError)
				return true
			}},
			{"answers with no JSON", func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", img.MediaType)
				_, _ = w.Write([]byte("{not json"))
				return true
			}},
			{"sends a manifest without an end", func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", img.MediaType)
				for range 64 << 10 {
					if _, err := w.Write(make([]byte, 4096)); err != nil {
						break
					}
				}
				return true
			}},
			{"has another image under the digest of the config", func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if !strings.HasSuffix(r.URL.Path, img.ID().String()) {
					return false
				}
				_, _ = w.Write(smallImage("other").Config)
				return true
			}},
			{"stops in the middle of a layer and holds the connection", layer(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				_, _ = w.Write(body[:len(body)/2])
				w.(http.Flusher).Flush()
				select {
				case <-hold:
				case <-r.Context().Done():
				}
				return true
			})},
		}
		var liars []*liar
		var addrs []string
		for _, c := range cases {
			l := newLiar(t, img, c.twist)
			liars, addrs = append(liars, l), append(addrs, l.Listener.Addr().String())
		}
		honest := newLiar(t, img, nil)
		down, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		down.Close()
		addrs = append(addrs, honest.Listener.Addr().String(), down.Addr().String())
		e := w.engine(t, withConfig("[image]\nprogress_timeout = \"2s\"\n"), func(o *harness.EngineOptions) { o.Registries = append(o.Registries, addrs...) })
		// The store writes a file for each registry it has spoken to; that of blobs it knows is made with the first image.
		for i, c := range cases {
			t.Run("a registry that "+c.name+" gives an error and leaves nothing", func(t *testing.T) {
				start := time.Now()
				_, err := e.tryPull(within(t, 90*time.Second), liars[i].ref(), nil)
				if err == nil {
					t.Error("the pull succeeds")
				} else if !strings.Contains(err.Error(), liars[i].ref()) {
					t.Errorf("the error does not name the image: %v", err)
				}
				if took := time.Since(start); took > slowly(60*time.Second) {
					t.Errorf("it took %v", took)
				}
				if img := e.image(t, liars[i].ref()); img != nil {
					t.Errorf("the image is there: %v", img)
				}
				leaks(t, w, e, e.idle)
			})
		}
		t.Run("a registry that is down is said to be", func(t *testing.T) {
			_, err := e.tryPull(call(t), down.Addr().String()+"/x:v1", nil)
			if err == nil || !strings.HasPrefix(statusMessage(err), "RegistryUnavailable") {
				t.Errorf("the kubelet knows the error by its prefix RegistryUnavailable; got %v", err)
			}
			wantCode(t, err, codes.Unknown, down.Addr().String())
			leaks(t, w, e, e.idle)
		})
		t.Run("the same image comes whole from an honest registry after all that", func(t *testing.T) {
			if id, err := e.tryPull(call(t), honest.ref(), nil); err != nil || id != img.ID().String() {
				t.Errorf("got %q, %v", id, err)
			}
			e.removeImage(t, honest.ref())
			leaks(t, w, e, e.idle)
		})
	})
}

func TestConcurrentPulls(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		img := smallImage(strings.Repeat("fetched once ", 10000))
		slow := newLiar(t, img, func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
			if isLayer(r, img) {
				time.Sleep(300 * time.Millisecond)
			}
			return false
		})
		e := w.engine(t, func(o *harness.EngineOptions) { o.Registries = append(o.Registries, slow.Listener.Addr().String()) })
		t.Run("ten pulls of one image at a time fetch its layer once", func(t *testing.T) {
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if id, err := e.tryPull(call(t), slow.ref(), nil); err != nil || id != img.ID().String() {
						t.Errorf("got %q, %v", id, err)
					}
				})
			}
			wg.Wait()
			slow.mu.Lock()
			defer slow.mu.Unlock()
			if n := slow.fetched[digest.FromBytes(img.Blobs[0]).String()]; n != 1 {
				t.Errorf("the layer was fetched %d times", n)
			}
			e.removeImage(t, slow.ref())
		})
		t.Run("a caller that gives up does not end the pull of another", func(t *testing.T) {
			var wg sync.WaitGroup
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			wg.Go(func() {
				if _, err := e.tryPull(ctx, slow.ref(), nil); err == nil {
					t.Error("the pull that was given up succeeds")
				}
			})
			time.Sleep(50 * time.Millisecond)
			if _, err := e.tryPull(call(t), slow.ref(), nil); err != nil {
				t.Errorf("the other: %v", err)
			}
			wg.Wait()
			e.removeImage(t, slow.ref())
		})
		t.Run("a pull that is given up leaves nothing", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			if _, err := e.tryPull(ctx, slow.ref(), nil); err == nil {
				t.Error("the pull succeeds")
			}
			eventually(t, 10*time.Second, "the image is not there", func() bool { return e.image(t, slow.ref()) == nil })
			leaks(t, w, e, e.idle)
		})
	})
}
