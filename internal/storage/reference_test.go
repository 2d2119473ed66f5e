package storage

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
)

// testResolver reads a registries.conf, or finds none when conf is "".
func testResolver(t testing.TB, conf string) *resolver {
	t.Helper()
	dir := t.TempDir()
	sys := &types.SystemContext{
		RootForImplicitAbsolutePaths: dir,
		UserShortNameAliasConfPath:   filepath.Join(dir, "aliases.conf"),
	}
	if conf != "" {
		sys.SystemRegistriesConfPath = writeFile(t, dir, "registries.conf", conf)
	}
	r, err := newResolver(sys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestResolve(t *testing.T) {
	const search = "unqualified-search-registries = [\"one.example\", \"two.example:5000\"]\n"
	const enforcing = "short-name-mode = \"enforcing\"\n"
	const aliases = "[aliases]\n\"fedora\" = \"registry.fedoraproject.org/fedora\"\n"
	cases := []struct {
		name, conf, ref string
		want            []string // nil for an error
	}{
		{"without registries.conf a short name is Docker Hub's", "", "nginx", []string{"docker.io/library/nginx:latest"}},
		{"and one with a path", "", "team/app:v1", []string{"docker.io/team/app:v1"}},
		{"and so with one that names no search registry", "[[registry]]\nlocation = \"x.example\"\n", "nginx", []string{"docker.io/library/nginx:latest"}},
		{"a full name stays", search, "gcr.io/a/b:c", []string{"gcr.io/a/b:c"}},
		{"a full name without a tag is latest", search, "gcr.io/a/b", []string{"gcr.io/a/b:latest"}},
		{"localhost is a host", search, "localhost/b", []string{"localhost/b:latest"}},
		{"a port makes a host", search, "host:5000/b", []string{"host:5000/b:latest"}},
		{"with a tag and a digest, the digest decides", "", "a.example/b:c@" + someDigest, []string{"a.example/b@" + someDigest}},
		{"a short name is searched in order", search, "app:v1", []string{"one.example/app:v1", "two.example:5000/app:v1"}},
		{"also by digest", search, "app@" + someDigest, []string{"one.example/app@" + someDigest, "two.example:5000/app@" + someDigest}},
		{"an alias comes before the search", search + aliases, "fedora:41", []string{"registry.fedoraproject.org/fedora:41"}},
		{"an alias works without a search", aliases, "fedora", []string{"registry.fedoraproject.org/fedora:latest"}},
		{"enforcing refuses what is ambiguous", search + enforcing, "app", nil},
		{"enforcing takes one registry", "unqualified-search-registries = [\"one.example\"]\n" + enforcing, "app", []string{"one.example/app:latest"}},
		{"enforcing takes an alias", search + enforcing + aliases, "fedora", []string{"registry.fedoraproject.org/fedora:latest"}},
		{"Docker Hub's names are one", "", "index.docker.io/nginx", []string{"docker.io/library/nginx:latest"}},
		{"capitals are no name", "", "Nginx", nil},
		{"a scheme is no name", "", "https://docker.io/nginx", nil},
		{"an empty tag is no name", "", "nginx:", nil},
		{"a short digest is no name", "", "nginx@sha256:abc", nil},
		{"an id is no name", "", strings.Repeat("a", 64), nil},
		{"spaces are no name", "", "a b", nil},
		{"nothing is no name", "", "", nil},
		{"what is too long is no name", "", "x/" + strings.Repeat("a", 2000), nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := testResolver(t, c.conf)
			for range 2 { // the second time it is remembered
				named, err := r.resolve(c.ref)
				var got []string
				for _, n := range named {
					got = append(got, n.String())
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("got %q, %v; want %q", got, err, c.want)
				}
				if c.want == nil {
					wantKind(t, err, ErrInvalidReference)
				}
			}
		})
	}
}

func TestBrokenRegistriesConf(t *testing.T) {
	sys := &types.SystemContext{SystemRegistriesConfPath: writeFile(t, t.TempDir(), "registries.conf", "[[registry\n")}
	if _, err := newResolver(sys); err == nil || !strings.Contains(err.Error(), "registries.conf") {
		t.Errorf("error %v", err)
	}
}

func TestStoreNames(t *testing.T) {
	served := digest.Digest(someDigest)
	cases := []struct {
		name, pulled string
		want         []string
	}{
		{"by tag", "a.example/b:c", []string{"a.example/b@" + someDigest, "a.example/b:c"}},
		{"by its digest", "a.example/b@" + someDigest, []string{"a.example/b@" + someDigest}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			named, err := reference.ParseNormalizedNamed(c.pulled)
			if err != nil {
				t.Fatal(err)
			}
			got, err := storeNames(named, served)
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func FuzzResolve(f *testing.F) {
	for _, s := range []string{"nginx", "a.example/b:c@" + someDigest, "localhost:5000/x", "", "..", "a//b", "fedora@" + someDigest, "\x00"} {
		f.Add(s)
	}
	r := testResolver(f, "unqualified-search-registries = [\"one.example\"]\n[aliases]\n\"fedora\" = \"f.example/fedora\"\n")
	f.Fuzz(func(t *testing.T, ref string) {
		names, err := r.resolve(ref)
		if err != nil {
			return
		}
		if len(names) == 0 {
			t.Fatalf("%q: neither a name nor an error", ref)
		}
		for _, n := range names {
			// What is stored must be read back as the same name.
			again, err := reference.ParseNormalizedNamed(n.String())
			if err != nil || again.String() != n.String() || reference.IsNameOnly(again) {
				t.Errorf("%q gives %q, which is read as %v, %v", ref, n, again, err)
			}
			tags, digests := splitNames([]string{n.String()})
			if len(tags)+len(digests) != 1 {
				t.Errorf("%q gives %q, which is %d tags and %d digests", ref, n, len(tags), len(digests))
			}
		}
	})
}
