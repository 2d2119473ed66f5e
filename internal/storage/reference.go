package storage

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

const (
	// maxReference is longer than any valid reference: 255 bytes of name, 128 of tag, a digest.
	maxReference = 1024
	// maxResolved bounds the remembered short names.
	maxResolved = 1024
)

var imageID = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{64})$`)

// parseID returns the 64 hex digits of an image id.
func parseID(ref string) (string, bool) {
	m := imageID.FindStringSubmatch(ref)
	if m == nil {
		return "", false
	}
	return m[1], true
}

var imageIDPrefix = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{6,63})$`)

// parseIDPrefix returns the hex digits of what may be the start of an image id.
func parseIDPrefix(ref string) (string, bool) {
	m := imageIDPrefix.FindStringSubmatch(ref)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// resolver finds the full names that a name may stand for, by registries.conf.
// That file is read once.
type resolver struct {
	sys *types.SystemContext

	mu    sync.Mutex // Protects known.
	known map[string][]reference.Named
}

func newResolver(sys *types.SystemContext) (*resolver, error) {
	if _, err := sysregistriesv2.TryUpdatingCache(sys); err != nil {
		return nil, fmt.Errorf("registries.conf: %w", err)
	}
	return &resolver{sys: sys, known: map[string][]reference.Named{}}, nil
}

// resolve returns the full names that ref may stand for, in the order in which
// to try them, each with a tag or a digest. There is at least one.
func (r *resolver) resolve(ref string) ([]reference.Named, error) {
	if len(ref) > maxReference {
		return nil, withKind(ErrInvalidReference, fmt.Errorf("invalid image reference: %d bytes long", len(ref)))
	}
	r.mu.Lock()
	names, ok := r.known[ref]
	r.mu.Unlock()
	if ok {
		return names, nil
	}
	names, err := r.candidates(ref)
	if err != nil {
		return nil, withKind(ErrInvalidReference, fmt.Errorf("image reference %q: %w", ref, err))
	}
	for i, n := range names {
		names[i] = normalize(n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= maxResolved {
		clear(r.known)
	}
	r.known[ref] = names
	return names, nil
}

func (r *resolver) candidates(ref string) ([]reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref) // a short name becomes Docker Hub's
	if err != nil {
		return nil, err
	}
	if !isShortName(ref) {
		return []reference.Named{named}, nil
	}
	names, err := r.search(ref)
	if err == nil && len(names) == 0 {
		// Users of Kubernetes expect that "nginx" is Docker Hub's.
		names = []reference.Named{named}
	}
	return names, err
}

// isShortName: names whose first part could be no host, as registries.conf has it.
func isShortName(ref string) bool {
	host, _, ok := strings.Cut(ref, "/")
	return !ok || !strings.ContainsAny(host, ".:") && host != "localhost"
}

// search asks registries.conf what a short name is; nothing when that says
// nothing. It never prompts: that is what the mode "enforcing" is for, so there
// an ambiguous name is an error.
func (r *resolver) search(ref string) ([]reference.Named, error) {
	short, err := reference.Parse(ref)
	if err != nil {
		return nil, err
	}
	repo, ok := short.(reference.Named)
	if !ok {
		return nil, errors.New("it has no name")
	}
	alias, _, err := sysregistriesv2.ResolveShortNameAlias(r.sys, repo.Name())
	if err != nil {
		return nil, err
	}
	if alias != nil {
		named, err := reference.ParseNormalizedNamed(alias.Name() + strings.TrimPrefix(ref, repo.Name()))
		if err != nil {
			return nil, fmt.Errorf("alias %s: %w", alias, err)
		}
		return []reference.Named{named}, nil
	}
	registries, origin, err := sysregistriesv2.UnqualifiedSearchRegistriesWithOrigin(r.sys)
	if err != nil {
		return nil, err
	}
	mode, err := sysregistriesv2.GetShortNameMode(r.sys)
	if err != nil {
		return nil, err
	}
	if mode == types.ShortNameModeEnforcing && len(registries) > 1 {
		return nil, fmt.Errorf("the short name may be from any of %q, and short-name-mode is \"enforcing\" in %s", registries, origin)
	}
	var names []reference.Named
	for _, host := range registries {
		named, err := reference.ParseNormalizedNamed(host + "/" + ref)
		if err != nil {
			return nil, fmt.Errorf("search registry %q: %w", host, err)
		}
		names = append(names, named)
	}
	return names, nil
}

// normalize makes a name one of "name:tag" or "name@digest": with both, the
// digest alone decides.
func normalize(named reference.Named) reference.Named {
	if d, ok := named.(reference.Digested); ok {
		if canonical, err := reference.WithDigest(reference.TrimNamed(named), d.Digest()); err == nil {
			return canonical
		}
	}
	return reference.TagNameOnly(named)
}

// storeNames are the names an image gets that was pulled by named: a tag, if
// it was pulled by one, and the digest of what the registry served.
func storeNames(named reference.Named, served digest.Digest) ([]string, error) {
	byDigest, err := reference.WithDigest(reference.TrimNamed(named), served)
	if err != nil {
		return nil, err
	}
	names := []string{byDigest.String()}
	if d, ok := named.(reference.Digested); ok && d.Digest() == served {
		return names, nil
	}
	return append(names, named.String()), nil
}

// splitNames sorts an image's names in the store into tags and digests. Names
// that are no references are left out.
func splitNames(names []string) (tags, digests []string) {
	for _, name := range names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		switch named.(type) {
		case reference.Digested:
			digests = append(digests, named.String())
		case reference.Tagged:
			tags = append(tags, named.String())
		}
	}
	slices.Sort(tags)
	slices.Sort(digests)
	return tags, digests
}

// matchesAny tells whether a name fits one of the patterns.
func matchesAny(patterns, names []string) bool {
	for _, pattern := range patterns {
		for _, name := range names {
			if ok, err := path.Match(pattern, name); ok && err == nil {
				return true
			}
		}
	}
	return false
}

// checkPatterns refuses patterns that can't match.
func checkPatterns(patterns []string) error {
	for _, pattern := range patterns {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("pinned image pattern %q: %w", pattern, err)
		}
	}
	return nil
}

// quoteRef shows a reference from outside in an error.
func quoteRef(ref string) string {
	if len(ref) > 256 {
		ref = ref[:256] + "…"
	}
	if strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r == 0x7f }) || ref == "" {
		return fmt.Sprintf("%q", ref)
	}
	return ref
}
