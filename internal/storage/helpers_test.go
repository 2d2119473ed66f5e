package storage

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/test/harness"
)

func blobDigest(b []byte) string { return digest.FromBytes(b).String() }

// repack gives an image whose config was changed a manifest that fits it.
func repack(p harness.Packed) harness.Packed {
	var m ociv1.Manifest
	if err := json.Unmarshal(p.Manifest, &m); err != nil {
		panic(err) // it was made here
	}
	old := m.Config.Digest
	m.Config.Digest, m.Config.Size = p.ID(), int64(len(p.Config))
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	p.Manifest = raw
	for i, b := range p.Blobs {
		if digest.FromBytes(b) == old {
			p.Blobs[i] = p.Config
		}
	}
	return p
}

// layerDiffID is the first that the config names.
func layerDiffID(p harness.Packed) string {
	var c ociv1.Image
	if err := json.NewDecoder(bytes.NewReader(p.Config)).Decode(&c); err != nil {
		panic(err)
	}
	return c.RootFS.DiffIDs[0].String()
}

func mountTmpfs(t testing.TB, dir, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the tmpfs: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
}
