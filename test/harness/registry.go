package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a docker-registry process on a loopback port.
type Registry struct {
	// Addr is its host and port, as it is written in image names.
	Addr string
	// User and Password that it wants, "" for none.
	User, Password string

	cmd *exec.Cmd
	log *os.File
}

// RegistryOptions say what a registry serves.
type RegistryOptions struct {
	// Dir holds its blobs, configuration and log.
	Dir string
	// Addr to listen on; "" for a free port of 127.0.0.1.
	Addr string
	// Private lets in nobody but User "alice" with Password "correct horse".
	Private bool
}

// The only password hash that docker-registry takes is bcrypt's. This is that
// of "correct horse", at the lowest cost so that tests are not slow.
const htpasswd = "alice:$2b$04$Hn8QpYAbxDnW9XfZHPoBPeTpXh9aE6YwiUHOyTpO3VV/ttpQaE0i2\n"

// StartRegistry starts docker-registry and waits until it answers.
func StartRegistry(ctx context.Context, o RegistryOptions) (*Registry, error) {
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		return nil, fmt.Errorf("docker-registry: %w (Debian: apt-get install docker-registry)", err)
	}
	addr := o.Addr
	if addr == "" {
		if addr, err = freeAddr(); err != nil {
			return nil, err
		}
	}
	r := &Registry{Addr: addr}
	config := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp: {addr: %q}\n",
		filepath.Join(o.Dir, "blobs"), addr)
	if o.Private {
		r.User, r.Password = "alice", "correct horse"
		users := filepath.Join(o.Dir, "htpasswd")
		if err := os.WriteFile(users, []byte(htpasswd), 0o600); err != nil {
			return nil, err
		}
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}\n", users)
	}
	// The name holds the port: several registries may serve one directory.
	_, port, _ := net.SplitHostPort(addr)
	file := filepath.Join(o.Dir, "config-"+port+".yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	if r.log, err = os.Create(filepath.Join(o.Dir, "log-"+port)); err != nil {
		return nil, err
	}
	r.cmd = exec.Command(bin, "serve", file)
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	r.cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	if err := r.ready(ctx); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (r *Registry) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Slowly(20*time.Second))
	defer cancel()
	for {
		resp, err := r.do(ctx, http.MethodGet, "/v2/", "", nil)
		if err == nil {
			resp.Body.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("docker-registry on %s does not answer: %w (log: %s)", r.Addr, err, r.log.Name())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Stop ends the process. It may be called twice.
func (r *Registry) Stop() {
	if r.cmd.Process != nil && r.cmd.ProcessState == nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	}
	r.log.Close()
}

// Pid of the process.
func (r *Registry) Pid() int { return r.cmd.Process.Pid }

func (r *Registry) do(ctx context.Context, method, path, contentType string, body []byte) (*http.Response, error) {
	url := path
	if len(path) > 0 && path[0] == '/' {
		url = "http://" + r.Addr + path
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if r.User != "" {
		req.SetBasicAuth(r.User, r.Password)
	}
	return http.DefaultClient.Do(req)
}

func (r *Registry) want(ctx context.Context, status int, method, path, contentType string, body []byte) (http.Header, error) {
	resp, err := r.do(ctx, method, path, contentType, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != status {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	return resp.Header, nil
}

// Push uploads an image and tags it; with no tag it can be had by digest alone.
func (r *Registry) Push(ctx context.Context, repo string, p Packed, tags ...string) error {
	for _, blob := range p.Blobs {
		if err := r.pushBlob(ctx, repo, blob); err != nil {
			return err
		}
	}
	return r.pushManifest(ctx, repo, p.MediaType, p.Manifest, tags)
}

// PushIndex uploads images and an index of them, and returns the index's digest.
func (r *Registry) PushIndex(ctx context.Context, repo string, images []Packed, tags ...string) (digest.Digest, error) {
	index := ociv1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ociv1.MediaTypeImageIndex}
	for _, p := range images {
		if err := r.Push(ctx, repo, p); err != nil {
			return "", err
		}
		index.Manifests = append(index.Manifests, p.Descriptor())
	}
	body := encode(index)
	return digest.FromBytes(body), r.pushManifest(ctx, repo, index.MediaType, body, tags)
}

func (r *Registry) pushBlob(ctx context.Context, repo string, blob []byte) error {
	d := digest.FromBytes(blob)
	if _, err := r.want(ctx, http.StatusOK, http.MethodHead, "/v2/"+repo+"/blobs/"+d.String(), "", nil); err == nil {
		return nil
	}
	h, err := r.want(ctx, http.StatusAccepted, http.MethodPost, "/v2/"+repo+"/blobs/uploads/", "", nil)
	if err != nil {
		return err
	}
	location := h.Get("Location")
	if location == "" {
		return errors.New("registry names no upload location")
	}
	_, err = r.want(ctx, http.StatusCreated, http.MethodPut, location+"&digest="+d.String(), "application/octet-stream", blob)
	return err
}

func (r *Registry) pushManifest(ctx context.Context, repo, mediaType string, body []byte, tags []string) error {
	if len(tags) == 0 {
		tags = []string{digest.FromBytes(body).String()}
	}
	for _, tag := range tags {
		if _, err := r.want(ctx, http.StatusCreated, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, mediaType, body); err != nil {
			return err
		}
	}
	return nil
}
