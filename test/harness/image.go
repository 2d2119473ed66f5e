package harness

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of a layer. A name that ends in "/" is a directory, one
// with a Link a symbolic link.
type File struct {
	Name     string
	Mode     int64 // 0 for 0755
	UID, GID int
	Body     []byte
	Link     string
}

// Layer is a layer as a registry serves it.
type Layer struct {
	Blob   []byte        // gzip
	DiffID digest.Digest // of the tar inside
}

// NewLayer packs files into a layer. The same files give the same bytes.
func NewLayer(files ...File) Layer {
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	for _, f := range files {
		must(tw.WriteHeader(header(f)))
		_, err := tw.Write(f.Body)
		must(err)
	}
	must(tw.Close())
	var packed bytes.Buffer
	gz, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	must(err)
	_, err = gz.Write(raw.Bytes())
	must(err)
	must(gz.Close())
	return Layer{Blob: packed.Bytes(), DiffID: digest.FromBytes(raw.Bytes())}
}

func header(f File) *tar.Header {
	h := &tar.Header{Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Size: int64(len(f.Body)), Typeflag: tar.TypeReg}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	switch {
	case f.Link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
	case strings.HasSuffix(f.Name, "/"):
		h.Typeflag = tar.TypeDir
	}
	return h
}

// must is for writes into memory, which do not fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Image is an image for one platform.
type Image struct {
	Layers []Layer
	Config ociv1.ImageConfig
	Arch   string // "" for amd64
	// Docker writes Docker's schema 2 media types in place of OCI's.
	Docker bool
}

// The media types of Docker's image manifest, version 2, schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Packed is an image in the form a registry keeps it in.
type Packed struct {
	Manifest  []byte
	MediaType string // of Manifest
	Config    []byte
	Blobs     [][]byte // config and layers
	Platform  ociv1.Platform
}

// Digest of the manifest.
func (p Packed) Digest() digest.Digest { return digest.FromBytes(p.Manifest) }

// ID is the image's id: the digest of its config.
func (p Packed) ID() digest.Digest { return digest.FromBytes(p.Config) }

// Descriptor of the manifest, for an index.
func (p Packed) Descriptor() ociv1.Descriptor {
	return ociv1.Descriptor{MediaType: p.MediaType, Digest: p.Digest(), Size: int64(len(p.Manifest)), Platform: &p.Platform}
}

// Pack writes the image's config and manifest.
func (img Image) Pack() Packed {
	config, layer, manifest := ociv1.MediaTypeImageConfig, ociv1.MediaTypeImageLayerGzip, ociv1.MediaTypeImageManifest
	if img.Docker {
		config, layer, manifest = dockerConfig, dockerLayer, dockerManifest
	}
	arch := img.Arch
	if arch == "" {
		arch = "amd64"
	}
	platform := ociv1.Platform{OS: "linux", Architecture: arch}
	c := ociv1.Image{Platform: platform, Config: img.Config, RootFS: ociv1.RootFS{Type: "layers"}}
	m := ociv1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest}
	p := Packed{MediaType: manifest, Platform: platform}
	for _, l := range img.Layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.DiffID)
		m.Layers = append(m.Layers, ociv1.Descriptor{MediaType: layer, Digest: digest.FromBytes(l.Blob), Size: int64(len(l.Blob))})
		p.Blobs = append(p.Blobs, l.Blob)
	}
	p.Config = encode(c)
	p.Blobs = append(p.Blobs, p.Config)
	m.Config = ociv1.Descriptor{MediaType: config, Digest: digest.FromBytes(p.Config), Size: int64(len(p.Config))}
	p.Manifest = encode(m)
	return p
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	must(err)
	return b
}

// BusyboxLayer is a root filesystem around the machine's static busybox, with
// a link for each of its applets, users root, app (1000) and web (1001), and
// app in the groups staff (50) and video (44).
func BusyboxLayer() (Layer, error) {
	bin, err := exec.LookPath("busybox")
	if err != nil {
		return Layer{}, fmt.Errorf("busybox: %w (Debian: apt-get install busybox-static)", err)
	}
	body, err := os.ReadFile(bin)
	if err != nil {
		return Layer{}, err
	}
	list, err := exec.Command(bin, "--list").Output()
	if err != nil {
		return Layer{}, fmt.Errorf("busybox --list: %w", err)
	}
	files := []File{
		{Name: "bin/"}, {Name: "etc/"}, {Name: "proc/"}, {Name: "sys/"}, {Name: "dev/"}, {Name: "root/", Mode: 0o700},
		{Name: "tmp/", Mode: 0o1777}, {Name: "home/"}, {Name: "home/app/", UID: 1000, GID: 1000}, {Name: "var/"}, {Name: "www/"},
		{Name: "etc/passwd", Mode: 0o644, Body: []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\nweb:x:1001:1000::/:/bin/sh\n")},
		{Name: "etc/group", Mode: 0o644, Body: []byte("root:x:0:\napp:x:1000:\nvideo:x:44:app\nstaff:x:50:app\n")},
		{Name: "www/index.html", Mode: 0o644, Body: []byte("hello from the pod\n")},
		{Name: "bin/busybox", Body: body},
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if name := path.Base(applet); name != "busybox" {
			files = append(files, File{Name: "bin/" + name, Link: "busybox"})
		}
	}
	return NewLayer(files...), nil
}

// BuildPayload compiles the program that tests run inside containers to a
// static binary at out. src is its package directory.
func BuildPayload(src, out string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, ".")
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", src, err, msg)
	}
	return nil
}
