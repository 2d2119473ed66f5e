// Package registry is an OCI registry in the test's own process. It serves
// images that harness builds, and can be told to do so badly: slowly, wrongly,
// or not at all, for one blob or for all requests.
//
// [Start] listens on loopback without TLS. [Registry.Add] puts an image or an
// index under names; [Registry.Twist] says what goes wrong from then on. What
// was asked for is counted: [Registry.Requests].
package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// Registry serves images. Its methods may be called while it serves.
type Registry struct {
	server *httptest.Server
	ended  chan struct{} // closed when the test ends: lets handlers go that hang on purpose

	mu        sync.Mutex // Protects the fields below.
	manifests map[string]content
	blobs     map[digest.Digest][]byte
	requests  map[string]int
	twists    []Twist
	auth      func(r *http.Request) bool
	challenge string
}

type content struct {
	body      []byte
	mediaType string
}

// Request is one that a twist may answer.
type Request struct {
	*http.Request
	// Kind is "ping", "manifest", "blob" or "token"; Name is the tag or digest.
	Kind, Name string
	// Body and MediaType are the honest answer, nil when there is none.
	Body      []byte
	MediaType string
	// Ended is closed when the test ends.
	Ended <-chan struct{}
}

// Twist is called before the honest answer; true means that it has answered.
type Twist func(w http.ResponseWriter, r Request) bool

// Start serves until the test ends.
func Start(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{
		ended: make(chan struct{}), manifests: map[string]content{}, blobs: map[digest.Digest][]byte{}, requests: map[string]int{},
	}
	r.server = httptest.NewServer(r)
	t.Cleanup(func() {
		close(r.ended)
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

// Host is its host and port, as written in image names.
func (r *Registry) Host() string { return r.server.Listener.Addr().String() }

// Ref is the full name of repo, which has its tag or digest with it.
func (r *Registry) Ref(repo string) string { return r.Host() + "/" + repo }

// Add serves an image as repo under its digest and the tags.
func (r *Registry) Add(repo string, p harness.Packed, tags ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range p.Blobs {
		r.blobs[digest.FromBytes(b)] = b
	}
	r.addManifest(repo, content{p.Manifest, p.MediaType}, tags)
}

// AddIndex serves an index of images as repo under its digest and the tags, and
// returns the digest.
func (r *Registry) AddIndex(repo string, images []harness.Packed, tags ...string) digest.Digest {
	for _, p := range images {
		r.Add(repo, p)
	}
	index := ociv1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ociv1.MediaTypeImageIndex}
	for _, p := range images {
		index.Manifests = append(index.Manifests, p.Descriptor())
	}
	body, err := json.Marshal(index)
	if err != nil {
		panic(err) // of plain data
	}
	return r.AddManifest(repo, index.MediaType, body, tags...)
}

// AddManifest serves any bytes as a manifest.
func (r *Registry) AddManifest(repo, mediaType string, body []byte, tags ...string) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addManifest(repo, content{body, mediaType}, tags)
}

func (r *Registry) addManifest(repo string, c content, tags []string) digest.Digest {
	d := digest.FromBytes(c.body)
	for _, name := range append([]string{d.String()}, tags...) {
		r.manifests[repo+"/manifests/"+name] = c
	}
	return d
}

// Twist adds a misbehaviour; the latest is asked first. Nil removes all.
func (r *Registry) Twist(t Twist) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t == nil {
		r.twists = nil
		return
	}
	r.twists = append(r.twists, t)
}

// RequireBasic lets in nobody but who knows the password.
func (r *Registry) RequireBasic(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.challenge = `Basic realm="test"`
	r.auth = func(q *http.Request) bool {
		u, p, ok := q.BasicAuth()
		return ok && u == user && p == password
	}
}

// RequireToken lets in who has the bearer token, and gives one to whom grant
// lets have it, who may ask at the path /token.
func (r *Registry) RequireToken(token string, grant func(r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.challenge = fmt.Sprintf(`Bearer realm="%s/token",service="test"`, r.server.URL)
	r.auth = func(q *http.Request) bool { return q.Header.Get("Authorization") == "Bearer "+token }
	r.twists = append(r.twists, func(w http.ResponseWriter, q Request) bool {
		if q.Kind != "token" {
			return false
		}
		if !grant(q.Request) {
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}`, http.StatusUnauthorized)
			return true
		}
		fmt.Fprintf(w, `{"token":%q}`, token)
		return true
	})
}

// Requests counts the requests for a manifest or blob by its tag or digest.
func (r *Registry) Requests(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[name]
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	req, twists, denied := r.read(q)
	for i := len(twists) - 1; i >= 0; i-- {
		if twists[i](w, req) {
			return
		}
	}
	switch {
	case denied:
		w.Header().Set("WWW-Authenticate", r.challenge)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	case req.Kind == "ping":
	case req.Body == nil:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
	default:
		w.Header().Set("Content-Type", req.MediaType)
		w.Header().Set("Content-Length", fmt.Sprint(len(req.Body)))
		if q.Method != http.MethodHead {
			_, _ = w.Write(req.Body)
		}
	}
}

func (r *Registry) read(q *http.Request) (req Request, twists []Twist, denied bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	req = Request{Request: q, Kind: "ping", Ended: r.ended}
	path, isV2 := strings.CutPrefix(q.URL.Path, "/v2/")
	switch {
	case q.URL.Path == "/token":
		req.Kind = "token"
	case isV2 && strings.Contains(path, "/manifests/"):
		c := r.manifests[path]
		req.Kind, req.Body, req.MediaType = "manifest", c.body, c.mediaType
	case isV2 && strings.Contains(path, "/blobs/"):
		_, d, _ := strings.Cut(path, "/blobs/")
		req.Kind, req.Body, req.MediaType = "blob", r.blobs[digest.Digest(d)], "application/octet-stream"
	}
	req.Name = path[strings.LastIndexByte(path, '/')+1:]
	r.requests[req.Name]++
	return req, r.twists, r.auth != nil && req.Kind != "token" && !r.auth(q)
}
