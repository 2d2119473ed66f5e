package storage

import (
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options say where images live and by which rules they are pulled.
type Options struct {
	// Root holds layers and images for good, RunRoot what a reboot may take. Both
	// are the store's alone.
	Root, RunRoot string
	// Driver is the graph driver, "overlay" when empty. DriverOptions are its
	// options as in containers-storage.conf(5), such as "overlay.mountopt=nodev".
	Driver        string
	DriverOptions []string
	// RegistriesConf and RegistriesConfDir are a containers-registries.conf(5)
	// and its drop-ins, PolicyPath a containers-policy.json(5), AuthFile a
	// containers-auth.json(5), CertsDir a containers-certs.d(5); empty for the
	// system's own. When the system has no policy, any image is accepted.
	RegistriesConf, RegistriesConfDir, PolicyPath, AuthFile, CertsDir string
	// Pinned are glob patterns (path.Match on the full reference) of images that
	// must not be garbage collected.
	Pinned []string
	// MaxParallelLayers bounds the layers one pull fetches at a time; 0 for 3.
	MaxParallelLayers int
	// ProgressTimeout ends a pull that makes no progress for so long; 0 for never.
	ProgressTimeout time.Duration
	// UserAgent is sent to registries.
	UserAgent string
}

// Image is an image in the store. It is never changed after it was handed out.
type Image struct {
	// ID is the digest of the image's config, "sha256:" and 64 hex digits:
	// the one id in every field where CRI wants an image's id.
	ID string
	// RepoTags are "host/name:tag", RepoDigests "host/name@sha256:…", both sorted.
	RepoTags, RepoDigests []string
	// Size in bytes of all its layers, unpacked.
	Size uint64
	// Config is the image's OCI config (Entrypoint, Cmd, Env, User, WorkingDir,
	// Volumes, StopSignal, Labels).
	Config ociv1.ImageConfig
	// Created, Architecture, OS as in the config.
	Created          time.Time
	Architecture, OS string
	// Pinned: one of its names matches a pattern of [Options.Pinned].
	Pinned bool
	// Annotations of its manifest.
	Annotations map[string]string
}

// Auth are a request's credentials (CRI AuthConfig). They never appear in an
// error or a log.
type Auth struct {
	Username, Password string
	// Auth is base64 of "user:password", used when Username is empty.
	Auth string
	// ServerAddress, when set, limits the credentials to that registry.
	ServerAddress string
	// IdentityToken is exchanged for an access token, RegistryToken is a bearer
	// token sent as it is.
	IdentityToken, RegistryToken string
}

// PullRequest names an image to pull.
type PullRequest struct {
	// Ref is what the kubelet sent: a short or full name with tag or digest, or
	// the id of an image that is there already.
	Ref string
	// Auth may be nil.
	Auth *Auth
	// Namespace of the pod it is for, "" when unknown.
	Namespace string
}

// Progress is one step of a running pull, for those who watch.
type Progress struct {
	// Ref is the request's.
	Ref string
	// Layer is the blob's digest, "" for the pull as a whole.
	Layer string
	// Offset and Total are bytes; Total is -1 while unknown.
	Offset, Total int64
	// State is "resolving", "downloading", "done", "cached" or "failed".
	State string
	// Error says why it failed.
	Error string
	At    time.Time
}

// FsUsage is what one directory of the store uses.
type FsUsage struct {
	// Mountpoint is the directory.
	Mountpoint string
	// UsedBytes are those of allocated blocks.
	UsedBytes  uint64
	InodesUsed uint64
	// At is when it was measured.
	At time.Time
}

// RootFSOptions are the options of a container's root filesystem.
type RootFSOptions struct {
	// MountLabel is an SELinux label, "" for none.
	MountLabel string
	// UIDs and GIDs map the ids of its files: those from 0 on in the image are others on the host. Zero for none.
	UIDs, GIDs IDRange
	// ReadOnly mounts it so that not even the runtime can write.
	ReadOnly bool
}

// IDRange are the ids 0 to Size-1, which are Host and those after it on the host.
type IDRange struct{ Host, Size uint32 }

// RootFS is a container's root filesystem, mounted.
type RootFS struct {
	// Path is where it is mounted on the host.
	Path string
	// Upper is the directory that holds what the container writes, "" when unknown.
	Upper string
}
