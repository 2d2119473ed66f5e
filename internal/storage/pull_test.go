package storage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-engine/cri-engine/test/registry"
)

func TestBadRegistries(t *testing.T) {
	img := testImage("base", strings.Repeat("noise that does not fit in one read ", 20_000))
	lower, upper, config := layerOf(img, 0), layerOf(img, 1), img.ID().String()
	manyBytes := make([]byte, 5<<20)
	cases := []struct {
		name  string
		twist registry.Twist
		kind  error // nil for none in particular
		text  string
	}{
		{"another layer than the digest says", registry.Only(upper, registry.Garble), nil, ""},
		{"a layer that ends too early", registry.Only(upper, registry.Truncate), nil, ""},
		{"a connection that is cut in a layer", registry.Only(upper, registry.CutOff), nil, ""},
		{"a layer without an end", registry.Only(lower, registry.Endless), nil, "more than the"},
		{"a layer that stalls", registry.Only(upper, registry.Stall), ErrRegistryUnavailable, "has sent nothing"},
		{"a layer that is missing", registry.Only(upper, registry.Status(404, "")), ErrNotFound, ""},
		{"a manifest that hangs", registry.Manifests(registry.Hang), ErrRegistryUnavailable, "has sent nothing"},
		{"a manifest without an end", registry.Manifests(registry.Endless), nil, "exceeded maximum allowed size"},
		{"a manifest of no JSON", registry.Manifests(registry.Status(200, "<html>")), nil, ""},
		{"a config without an end", registry.Only(config, registry.Endless), nil, "exceeded maximum allowed size"},
		{"a config of 5 MiB", registry.Only(config, registry.Status(200, string(manyBytes))), nil, "exceeded maximum allowed size"},
		{"another config than the digest says", registry.Only(config, registry.Garble), nil, ""},
		{"404", registry.Manifests(registry.Status(404, "")), ErrNotFound, ""},
		{"404 in JSON", registry.Manifests(registry.Status(404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`)), ErrNotFound, ""},
		{"401", registry.Manifests(registry.Status(401, "")), ErrUnauthorized, ""},
		{"403 in JSON", registry.Manifests(registry.Status(403, `{"errors":[{"code":"DENIED"}]}`)), ErrUnauthorized, ""},
		{"500", registry.Manifests(registry.Status(500, "")), ErrRegistryUnavailable, "500"},
		{"503 for a layer", registry.Only(upper, registry.Status(503, "")), ErrRegistryUnavailable, "503"},
		{"429 for longer than we wait", func(w http.ResponseWriter, r registry.Request) bool {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, ErrRegistryUnavailable, "has sent nothing"},
	}
	r := registry.Start(t)
	r.Add("app", img, "v1")
	o := testOptions(t, r)
	o.ProgressTimeout = 3 * time.Second
	s := openStore(t, o)
	for _, c := range cases {
		t.Run(c.name+" is an error and leaves nothing", func(t *testing.T) {
			r.Twist(c.twist)
			defer r.Twist(nil)
			_, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref("app:v1")})
			wantKind(t, err, c.kind, r.Ref("app:v1"), c.text)
			wantEmpty(t, s)
		})
	}
	t.Run("slow is no error", func(t *testing.T) {
		r.Twist(registry.Only(upper, registry.Trickle(1024, 300*time.Millisecond)))
		defer r.Twist(nil)
		mustPull(t, s, r.Ref("app:v1"))
	})
}

func TestUnavailableRegistry(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	o := testOptions(t)
	o.RegistriesConf = writeFile(t, t.TempDir(), "registries.conf", fmt.Sprintf("[[registry]]\nlocation=%q\ninsecure=true\n", addr))
	s := openStore(t, o)
	_, err = s.Pull(t.Context(), PullRequest{Ref: addr + "/app:v1"})
	wantKind(t, err, ErrRegistryUnavailable, addr+"/app:v1", "connection refused")
	_, err = s.Pull(t.Context(), PullRequest{Ref: "registry.invalid/app:v1"})
	wantKind(t, err, ErrRegistryUnavailable, "registry.invalid")
}

func TestImagesThatAreRefused(t *testing.T) {
	r := registry.Start(t)
	windows := testImage("x")
	windows.Config = []byte(strings.Replace(string(windows.Config), `"linux"`, `"windows"`, 1))
	windows = repack(windows)
	r.Add("windows", windows, "v1")
	r.AddManifest("schema1", "application/vnd.docker.distribution.manifest.v1+json", []byte(`{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[],"history":[]}`), "v1")
	r.AddManifest("artifact", ociv1.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/x","digest":"sha256:`+strings.Repeat("a", 64)+`","size":2},"layers":[]}`), "v1")
	wrong := testImage("y")
	wrong.Config = []byte(strings.Replace(string(wrong.Config), layerDiffID(wrong), "sha256:"+strings.Repeat("b", 64), 1))
	r.Add("diffid", repack(wrong), "v1")
	s := openStore(t, testOptions(t, r))
	for repo, text := range map[string]string{"windows": "windows", "schema1": "schema 1", "artifact": "", "diffid": "DiffID"} {
		t.Run(repo, func(t *testing.T) {
			_, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref(repo + ":v1")})
			wantKind(t, err, nil, repo+":v1", text)
			wantEmpty(t, s)
		})
	}
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref("windows@sha256:" + strings.Repeat("c", 64))})
	wantKind(t, err, ErrNotFound)
	_, err = s.Pull(t.Context(), PullRequest{Ref: "sha256:" + strings.Repeat("c", 64)})
	wantKind(t, err, ErrNotFound)
	_, err = s.Pull(t.Context(), PullRequest{Ref: "NOT/valid"})
	wantKind(t, err, ErrInvalidReference)
}

func TestDigestMismatch(t *testing.T) {
	r := registry.Start(t)
	img, other := testImage("one"), testImage("two")
	r.Add("app", img)
	r.Add("app", other)
	r.Twist(registry.Only(img.Digest().String(), func(w http.ResponseWriter, q registry.Request) bool {
		w.Header().Set("Content-Type", q.MediaType)
		_, _ = w.Write(other.Manifest)
		return true
	}))
	s := openStore(t, testOptions(t, r))
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref("app@" + img.Digest().String())})
	wantKind(t, err, nil, "digest")
	wantEmpty(t, s)
}

func TestCredentials(t *testing.T) {
	const password = "correct-horse-battery"
	img := testImage("secret")
	basic := registry.Start(t)
	basic.Add("app", img, "v1")
	basic.RequireBasic("alice", password)
	token := registry.Start(t)
	token.Add("app", img, "v1")
	token.RequireToken("tok-en-value", func(r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok {
			return u == "alice" && p == password
		}
		return r.PostFormValue("refresh_token") == "identity-value"
	})
	s := openStore(t, testOptions(t, basic, token))
	cases := []struct {
		name string
		reg  *registry.Registry
		auth *Auth
		ok   bool
	}{
		{"user and password", basic, &Auth{Username: "alice", Password: password}, true},
		{"base64", basic, &Auth{Auth: "YWxpY2U6Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5"}, true},
		{"none", basic, nil, false},
		{"empty", basic, &Auth{}, false},
		{"a wrong password", basic, &Auth{Username: "alice", Password: "wrong-password"}, false},
		{"broken base64", basic, &Auth{Auth: "%%%"}, false},
		{"for this server", basic, &Auth{Username: "alice", Password: password, ServerAddress: "http://" + basic.Host() + "/v2/"}, true},
		{"for another server", basic, &Auth{Username: "alice", Password: password, ServerAddress: "registry.example"}, false},
		{"a password for a token", token, &Auth{Username: "alice", Password: password}, true},
		{"an identity token", token, &Auth{IdentityToken: "identity-value"}, true},
		{"a wrong identity token", token, &Auth{IdentityToken: "wrong-identity"}, false},
		{"a registry token", token, &Auth{RegistryToken: "tok-en-value"}, true},
		{"a wrong registry token", token, &Auth{RegistryToken: "wrong-tok-en"}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.Pull(t.Context(), PullRequest{Ref: c.reg.Ref("app:v1"), Auth: c.auth})
			if c.ok {
				if err != nil {
					t.Errorf("pull: %v", err)
				}
				return
			}
			wantKind(t, err, ErrUnauthorized, c.reg.Ref("app:v1"))
			for _, secret := range []string{"wrong-password", "wrong-identity", "wrong-tok-en", password} {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("the error tells a secret: %v", err)
				}
			}
		})
	}
}

func TestSharedPulls(t *testing.T) {
	r := registry.Start(t)
	img := testImage("base", strings.Repeat("shared ", 50_000))
	r.Add("app", img, "v1")
	s := openStore(t, testOptions(t, r))
	layer := layerOf(img, 1)
	slow := registry.Only(layer, registry.Late(300*time.Millisecond))

	t.Run("ten calls fetch a layer once", func(t *testing.T) {
		r.Twist(slow)
		defer r.Twist(nil)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref("app:v1")}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := r.Requests(layer); n != 1 {
			t.Errorf("fetched %d times", n)
		}
		if err := s.Remove(t.Context(), r.Ref("app:v1")); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a caller that gives up does not end the others' pull", func(t *testing.T) {
		r.Twist(slow)
		defer r.Twist(nil)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := s.Pull(ctx, PullRequest{Ref: r.Ref("app:v1")})
			wantKind(t, err, context.DeadlineExceeded)
		})
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref("app:v1")}); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if err := s.Remove(t.Context(), r.Ref("app:v1")); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a pull that all have given up leaves nothing", func(t *testing.T) {
		r.Twist(registry.Only(layer, registry.Stall))
		defer r.Twist(nil)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := s.Pull(ctx, PullRequest{Ref: r.Ref("app:v1")})
		wantKind(t, err, context.DeadlineExceeded, r.Ref("app:v1"))
		eventually(t, "no layer is left", func() bool {
			layers, err := s.store.Layers()
			return err == nil && len(layers) == 0
		})
	})
	t.Run("closing the store ends a pull and says why", func(t *testing.T) {
		r.Twist(registry.Only(layer, registry.Stall))
		defer r.Twist(nil)
		result := make(chan error, 1)
		go func() {
			_, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref("app:v1")})
			result <- err
		}()
		time.Sleep(200 * time.Millisecond)
		s.reopen(t)
		wantKind(t, <-result, errClosing)
		mustPullHonest(t, s, r)
	})
}

func mustPullHonest(t testing.TB, s *testStore, r *registry.Registry) {
	t.Helper()
	r.Twist(nil)
	mustPull(t, s, r.Ref("app:v1"))
}

func TestPullsAndRemovalsAtATime(t *testing.T) {
	r := registry.Start(t)
	for i := range 3 {
		r.Add("app", testImage("base", "middle", fmt.Sprint(i)), fmt.Sprint(i))
	}
	s := openStore(t, testOptions(t, r))
	ctx := t.Context()
	var wg sync.WaitGroup
	for i := range 3 {
		ref := r.Ref(fmt.Sprintf("app:%d", i))
		wg.Go(func() {
			for range 5 {
				if _, err := s.Pull(ctx, PullRequest{Ref: ref}); err != nil && !errors.Is(err, ErrNotFound) {
					t.Errorf("pull %s: %v", ref, err)
				}
			}
		})
		wg.Go(func() {
			for range 10 {
				if err := s.Remove(ctx, ref); err != nil {
					t.Errorf("remove %s: %v", ref, err)
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
		wg.Go(func() {
			for n := range 5 {
				img, err := s.Image(ref)
				if err != nil {
					time.Sleep(20 * time.Millisecond)
					continue
				}
				id := fmt.Sprintf("c%d-%d", i, n)
				if _, err := s.CreateRootFS(ctx, id, img.ID, RootFSOptions{}); err != nil && !errors.Is(err, ErrNotFound) {
					t.Errorf("create: %v", err)
				}
				if err := s.RemoveRootFS(ctx, id); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for _, img := range s.Images() {
		if err := s.Remove(ctx, img.ID); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, s)
}

func TestProgress(t *testing.T) {
	r := registry.Start(t)
	img := testImage("base", strings.Repeat("watched ", 100))
	r.Add("app", img, "v1")
	s := openStore(t, testOptions(t, r))
	ctx, cancel := context.WithCancel(t.Context())
	events := s.Watch(ctx)
	idle := s.Watch(ctx) // nobody reads it
	mustPull(t, s, r.Ref("app:v1"))
	mustPull(t, s, r.Ref("app:v1"))
	_, err := s.Pull(ctx, PullRequest{Ref: r.Ref("app:none")})
	wantKind(t, err, ErrNotFound)
	cancel()
	seen := map[string]int{}
	for e := range events {
		if e.At.IsZero() || e.Ref == "" || e.Layer != "" && e.Offset > e.Total {
			t.Errorf("%+v", e)
		}
		kind := "image"
		if e.Layer != "" {
			kind = "layer"
		}
		seen[kind+" "+e.State]++
	}
	want := map[string]int{"image resolving": 3, "image done": 2, "image cached": 1, "image failed": 1, "layer done": 2}
	for what, n := range want {
		if seen[what] != n {
			t.Errorf("%s: %d times, want %d (%v)", what, seen[what], n, seen)
		}
	}
	for range idle {
		continue
	}
}

func TestPolicy(t *testing.T) {
	r := registry.Start(t)
	r.Add("app", testImage("x"), "v1")
	o := testOptions(t, r)
	s := openStore(t, o)
	reject := `{"default":[{"type":"reject"}]}`
	if err := os.WriteFile(o.PolicyPath, []byte(reject), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref("app:v1")})
	wantKind(t, err, ErrSignatureValidation, r.Ref("app:v1"))
	wantEmpty(t, s)
}

func TestMirror(t *testing.T) {
	mirror, upstream := registry.Start(t), registry.Start(t)
	img := testImage("x")
	mirror.Add("team/app", img, "v1")
	o := testOptions(t)
	o.RegistriesConf = writeFile(t, t.TempDir(), "registries.conf", fmt.Sprintf(
		"[[registry]]\nprefix = \"registry.example\"\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n",
		upstream.Host(), mirror.Host()))
	var sent []string
	mirror.Twist(func(_ http.ResponseWriter, q registry.Request) bool {
		if a := q.Header.Get("Authorization"); a != "" {
			sent = append(sent, a)
		}
		return false
	})
	s := openStore(t, o)
	got, err := s.Pull(t.Context(), PullRequest{Ref: "registry.example/team/app:v1", Auth: &Auth{Username: "u", Password: "p", RegistryToken: "for-upstream"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.RepoTags) != 1 || got.RepoTags[0] != "registry.example/team/app:v1" {
		t.Errorf("tags %q", got.RepoTags)
	}
	if len(sent) > 0 {
		t.Errorf("credentials meant for the registry went to its mirror: %q", sent)
	}
}

func TestFullDisk(t *testing.T) {
	needRoot(t)
	r := registry.Start(t)
	r.Add("app", testImage("x", strings.Repeat("0123456789abcdef", 1<<20)), "v1")
	r.Add("app", testImage("small"), "small")
	o := testOptions(t, r)
	mountTmpfs(t, o.Root, "size=8m")
	s := openStore(t, o)
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.Ref("app:v1")})
	wantKind(t, err, ErrNoSpace, r.Ref("app:v1"))
	wantEmpty(t, s)
	mustPull(t, s, r.Ref("app:small"))
}

func TestPinned(t *testing.T) {
	r := registry.Start(t)
	r.Add("kube/proxy", testImage("x"), "v1")
	o := testOptions(t, r)
	o.Pinned = []string{"*/kube/*"}
	s := openStore(t, o)
	if img := mustPull(t, s, r.Ref("kube/proxy:v1")); !img.Pinned {
		t.Errorf("not pinned: %+v", img)
	}
	o.Pinned = []string{"["}
	o.Root = filepath.Join(t.TempDir(), "other")
	if _, err := Open(t.Context(), o); err == nil {
		t.Error("a pattern that is none is taken")
	}
}
