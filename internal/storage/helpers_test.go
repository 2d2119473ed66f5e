package storage

import digest "github.com/opencontainers/go-digest"

func blobDigest(b []byte) string { return digest.FromBytes(b).String() }
