package storage

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"golang.org/x/sys/unix"
)

func TestKindOf(t *testing.T) {
	cases := []struct {
		err  error
		kind error
	}{
		{fmt.Errorf("write x: %w", syscall.ENOSPC), ErrNoSpace},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}, ErrNoSpace},
		{errors.New("child: exit status 1: write /x: no space left on device"), ErrNoSpace},
		{fmt.Errorf("dial: %w", syscall.ECONNREFUSED), ErrRegistryUnavailable},
		{&url.Error{Op: "Get", URL: "https://x", Err: errors.New("tls: bad certificate")}, ErrRegistryUnavailable},
		{errors.New(`fetching blob: StatusCode: 404, "..."`), ErrNotFound},
		{errors.New(`StatusCode: 403, "..."`), ErrUnauthorized},
		{errors.New(`StatusCode: 502, "..."`), ErrRegistryUnavailable},
		{errors.New(`StatusCode: 400, "..."`), nil},
		{signature.PolicyRequirementError("no"), ErrSignatureValidation},
		{storage.ErrImageUnknown, ErrNotFound},
		{fmt.Errorf("unmount: %w", syscall.EBUSY), ErrInUse},
		{context.Canceled, nil},
		{&url.Error{Op: "Get", URL: "https://x", Err: context.DeadlineExceeded}, nil},
		{io.ErrUnexpectedEOF, nil},
		{fmt.Errorf("x: %w", ErrUnauthorized), nil}, // it has one
	}
	for _, c := range cases {
		t.Run(c.err.Error(), func(t *testing.T) {
			if got := kindOf(c.err); !errors.Is(got, c.kind) || got != nil && c.kind == nil {
				t.Errorf("got %v, want %v", got, c.kind)
			}
		})
	}
}

func TestErrorTextsHoldNoSecrets(t *testing.T) {
	cause := errors.New(`Get "https://user:hunter2@blobs.example/x?X-Amz-Signature=abcdef": http://me@h.example/y?token=zzz said "Bearer s3cr3t-token"`)
	err := opError("pull", "x", "resolve", cause, "s3cr3t-token")
	for _, secret := range []string{"hunter2", "abcdef", "zzz", "s3cr3t", "me@"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q is in %q", secret, err)
		}
	}
	if !strings.Contains(err.Error(), "blobs.example/x") {
		t.Errorf("the address is gone: %v", err)
	}
}

func TestParseAuth(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	cases := []struct {
		name string
		auth *Auth
		user string
		pass string
		bad  bool
		none bool
	}{
		{name: "nothing", none: true},
		{name: "empty", auth: &Auth{}, none: true},
		{name: "a server alone", auth: &Auth{ServerAddress: "x"}, none: true},
		{name: "user and password", auth: &Auth{Username: "u", Password: "p"}, user: "u", pass: "p"},
		{name: "user and password before base64", auth: &Auth{Username: "u", Password: "p", Auth: "%%"}, user: "u", pass: "p"},
		{name: "base64", auth: &Auth{Auth: b64([]byte("u:p:q"))}, user: "u", pass: "p:q"},
		{name: "base64 without padding", auth: &Auth{Auth: strings.TrimRight(b64([]byte("u:pp")), "=")}, user: "u", pass: "pp"},
		{name: "URL base64", auth: &Auth{Auth: base64.URLEncoding.EncodeToString([]byte("u:\xff\xfe\xfd"))}, user: "u", pass: "\xff\xfe\xfd"},
		{name: "zero bytes at the end", auth: &Auth{Auth: b64([]byte("u:p\x00\x00"))}, user: "u", pass: "p"},
		{name: "no colon", auth: &Auth{Auth: b64([]byte("secretsecret"))}, bad: true},
		{name: "no base64", auth: &Auth{Auth: "!secretsecret"}, bad: true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseAuth(c.auth)
			switch {
			case c.bad:
				if err == nil || strings.Contains(err.Error(), "secretsecret") {
					t.Errorf("error %v", err)
				}
			case c.none:
				if got != nil || err != nil {
					t.Errorf("got %v, %v", got, err)
				}
			case err != nil || got.config.Username != c.user || got.config.Password != c.pass:
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func FuzzDecodeBasic(f *testing.F) {
	f.Add("dTpw")
	f.Add("dTpw====")
	f.Add("!")
	f.Fuzz(func(t *testing.T, s string) {
		user, _, err := decodeBasic(s)
		if err == nil && strings.Contains(user, ":") {
			t.Errorf("user %q", user)
		}
		if err != nil && len(s) > 12 && strings.Contains(err.Error(), s) {
			t.Errorf("the error quotes the credentials: %v", err)
		}
	})
}

func TestServerHost(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"https://index.docker.io/v1/": "docker.io",
		"registry-1.docker.io":        "docker.io",
		"Host.example:5000":           "host.example:5000",
		"http://h.example/v2/":        "h.example",
		"h.example/path":              "h.example",
	} {
		if got := serverHost(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestIndexSnapshots(t *testing.T) {
	a := Image{ID: "sha256:" + strings.Repeat("a", 64), RepoTags: []string{"x/a:1"}}
	ab := Image{ID: "sha256:" + strings.Repeat("a", 63) + "b", RepoTags: []string{"x/ab:1"}}
	c := Image{ID: "sha256:" + strings.Repeat("c", 64), RepoDigests: []string{"x/c@" + someDigest}}
	first := newIndex(map[string]Image{a.ID: a, ab.ID: ab})
	second := first.with(map[string]*Image{c.ID: &c, a.ID: nil})
	if len(first.images) != 2 || len(second.images) != 2 || second.images[0].ID != ab.ID || second.images[1].ID != c.ID {
		t.Errorf("first %v, second %v", first.images, second.images)
	}
	if _, ok := first.name("x/a:1"); !ok {
		t.Error("the first snapshot has changed")
	}
	if _, ok := second.name("x/a:1"); ok {
		t.Error("a removed image is still found by name")
	}
	if _, ok := second.byID(strings.Repeat("a", 64)); ok {
		t.Error("a removed image is still found by id")
	}
	if _, ok := first.byPrefix("aaaaaa"); ok {
		t.Error("the start of two ids finds one")
	}
	if img, ok := second.byPrefix("aaaaaa"); !ok || img.ID != ab.ID {
		t.Error("the start of one id does not find it")
	}
	for _, p := range []string{"bbbbbb", "dddddd", "000000"} {
		if _, ok := second.byPrefix(p); ok {
			t.Errorf("%s is found", p)
		}
	}
}

func TestChainSize(t *testing.T) {
	layers := map[string]*storage.Layer{
		"top":  {ID: "top", Parent: "base", UncompressedSize: 5},
		"base": {ID: "base", UncompressedSize: 7},
		"loop": {ID: "loop", Parent: "loop"},
		"lost": {ID: "lost", Parent: "gone"},
	}
	find := func(id string) (*storage.Layer, error) {
		if l := layers[id]; l != nil {
			return l, nil
		}
		return nil, storage.ErrLayerUnknown
	}
	if size, err := chainSize("top", find); err != nil || size != 12 {
		t.Errorf("%d, %v", size, err)
	}
	if _, err := chainSize("loop", find); err == nil {
		t.Error("a loop has a size")
	}
	if _, err := chainSize("lost", find); !errors.Is(err, storage.ErrLayerUnknown) {
		t.Errorf("a lost layer: %v", err)
	}
}

func TestOrphanLayers(t *testing.T) {
	all := storage.MultiListResult{
		Layers: []storage.Layer{
			{ID: "base"}, {ID: "app", Parent: "base"}, {ID: "c", Parent: "app"},
			{ID: "left", Parent: "base"}, {ID: "left2", Parent: "left"}, {ID: "lost", Parent: "gone"},
		},
		Images:     []storage.Image{{ID: "i", TopLayer: "app", Names: []string{"x"}}, {ID: "j"}, {ID: "k"}},
		Containers: []storage.Container{{ID: "c", LayerID: "c", ImageID: "k"}},
	}
	if got, want := fmt.Sprint(orphanLayers(all)), "[left2 left lost]"; got != want {
		t.Errorf("layers %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(orphanImages(all)), "[j]"; got != want {
		t.Errorf("images %s, want %s", got, want)
	}
}

func TestGuard(t *testing.T) {
	event := func(kind types.ProgressEvent, offset uint64) types.ProgressProperties {
		return types.ProgressProperties{Event: kind, Artifact: types.BlobInfo{Digest: digest.Digest(someDigest), Size: 100}, Offset: offset}
	}
	other := event(types.ProgressEventNewArtifact, 0)
	other.Artifact.Digest = "sha256:" + digest.Digest(strings.Repeat("f", 64))
	newArtifact, read, done := types.ProgressEventNewArtifact, types.ProgressEventRead, types.ProgressEventDone
	cases := []struct {
		name   string
		events []types.ProgressProperties
		idle   time.Duration
		ends   string // "" for not at all
	}{
		{"an answer that does not come", nil, 2 * time.Second, "has sent nothing"},
		{"an answer that is awaited", nil, time.Second / 2, ""},
		{"a layer that stalls", []types.ProgressProperties{event(newArtifact, 0), event(read, 50)}, 2 * time.Second, "has sent nothing"},
		{"a layer that is being unpacked", []types.ProgressProperties{event(newArtifact, 0), event(read, 100)}, time.Minute, ""},
		{"a layer that is being unpacked for ever", []types.ProgressProperties{event(newArtifact, 0), event(read, 100)}, time.Hour, "unpacking"},
		{"a layer that stalls while another is unpacked", []types.ProgressProperties{other, event(newArtifact, 0), event(read, 100)}, time.Minute, ""},
		{"a layer that stalls after another was unpacked", []types.ProgressProperties{other, event(newArtifact, 0), event(done, 100)}, 2 * time.Second, "has sent nothing"},
		{"a layer that is done", []types.ProgressProperties{event(newArtifact, 0), event(done, 100)}, time.Minute, ""},
		{"a layer that is too long", []types.ProgressProperties{event(newArtifact, 0), event(read, 101)}, 0, "more than the 100 bytes"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := newGuard(time.Second)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			g.end = cancel
			for _, e := range c.events {
				g.note(e)
			}
			g.check(time.Now().Add(c.idle))
			cause := context.Cause(ctx)
			if (cause != nil) != (c.ends != "") || cause != nil && !strings.Contains(cause.Error(), c.ends) {
				t.Errorf("ended by %v, want %q", cause, c.ends)
			}
		})
	}
}

func TestDiskUsage(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "a", strings.Repeat("x", 50_000))
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "same")); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	writeFile(t, outside, "large", strings.Repeat("x", 5_000_000))
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, strings.Repeat("d/", 300))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, deep, "b", strings.Repeat("x", 30_000))
	m, err := diskUsage(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	// The directory, a file with two names, a link, 300 directories and a file.
	if m.inodes != 304 || m.bytes < 80_000 || m.bytes > 4_000_000 {
		t.Errorf("%+v", m)
	}
	if m, err := diskUsage(t.Context(), filepath.Join(dir, "none")); err != nil || m != (measured{}) {
		t.Errorf("what is not there: %+v, %v", m, err)
	}
	if _, err := diskUsage(t.Context(), filepath.Join(dir, "link")); !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a link: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := diskUsage(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

func TestKeyLocks(t *testing.T) {
	var k keyLocks
	unlock := k.lock("a")
	k.lock("b")() // another key does not wait
	var wg sync.WaitGroup
	n := 0
	for range 50 {
		wg.Go(func() {
			defer k.lock("a")()
			n++
		})
	}
	unlock()
	wg.Wait()
	if n != 50 || len(k.locks) != 0 {
		t.Errorf("%d turns, %d locks left", n, len(k.locks))
	}
}

func TestDefaultPolicy(t *testing.T) {
	dir := t.TempDir()
	s := &Store{sys: types.SystemContext{RootForImplicitAbsolutePaths: dir}}
	if p, err := s.policy(); err != nil || len(p.Default) != 1 {
		t.Errorf("without any policy: %+v, %v", p, err)
	}
	s.opts.PolicyPath = filepath.Join(dir, "none.json")
	s.sys.SignaturePolicyPath = s.opts.PolicyPath
	if _, err := s.policy(); err == nil {
		t.Error("a policy that is configured and missing is no error")
	}
	s.opts.PolicyPath = writeFile(t, dir, "bad.json", "{")
	s.sys.SignaturePolicyPath = s.opts.PolicyPath
	if _, err := s.policy(); err == nil {
		t.Error("a policy that is no JSON is no error")
	}
}

func FuzzParseImage(f *testing.F) {
	f.Add([]byte(`{"config":{"Env":["A=b"]},"annotations":{"a":"b"}}`))
	f.Add([]byte(`{"created":"yesterday"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = parseConfig(raw)
		_ = parseAnnotations(raw)
	})
}
