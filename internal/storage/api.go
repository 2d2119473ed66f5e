package storage

import (
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options say where images live and by which rules they are pulled.
type Options struct {
	// Root holds layers and images for good (ROOT/storage); RunRoot what a reboot may take (STATE/storage).
	Root, RunRoot string
	// Driver is the graph driver, "overlay" when empty. DriverOptions are its options as in storage.conf(5).
	Driver        string
	DriverOptions []string
	// RegistriesConf and RegistriesConfDir are a registries.conf(5) and its drop-ins, PolicyPath a
	// containers-policy.json(5), AuthFile a containers-auth.json(5), CertsDir a containers-certs.d(5);
	// empty for the system's own, and when the system has no policy, the policy is insecureAcceptAnything.
	RegistriesConf, RegistriesConfDir, PolicyPath, AuthFile, CertsDir string
	// Pinned are glob patterns (path.Match on the full reference) of images that must not be garbage collected.
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
	// Config is the image's OCI config (Entrypoint, Cmd, Env, User, WorkingDir, Volumes, StopSignal, Labels).
	Config ociv1.ImageConfig
	// Created, Architecture, OS as in the config.
	Created          time.Time
	Architecture, OS string
	Pinned           bool
	// Annotations of its manifest.
	Annotations map[string]string
}

// Auth are a request's credentials (CRI AuthConfig). They never appear in an error or a log.
type Auth struct {
	Username, Password string
	// Auth is base64 of "user:password", used when Username is empty.
	Auth string
	// ServerAddress, when set, limits the credentials to that registry.
	ServerAddress string
	IdentityToken string
	// RegistryToken is a bearer token sent as it is.
	RegistryToken string
}

// PullRequest names an image to pull.
type PullRequest struct {
	// Ref is what the kubelet sent: a short or full name with tag or digest, or an image id (already present).
	Ref  string
	Auth *Auth
	// Namespace of the pod it is for, "" when unknown.
	Namespace string
}

// Progress is one step of a running pull, for those who watch.
type Progress struct {
	Ref   string
	Layer string // the blob's digest, "" for the pull as a whole
	// Offset and Total are bytes; Total is -1 while unknown.
	Offset, Total int64
	State         string // "resolving", "downloading", "done", "cached", "failed"
	Error         string
	At            time.Time
}

// FsUsage is what one filesystem directory of the store uses.
type FsUsage struct {
	Mountpoint string
	UsedBytes  uint64
	InodesUsed uint64
	At         time.Time
}

// RootFSOptions are the options of a container's root filesystem.
type RootFSOptions struct {
	// MountLabel is an SELinux label, "" for none.
	MountLabel string
	// ReadOnly mounts it so that not even the runtime can write.
	ReadOnly bool
}

// RootFS is a container's root filesystem, mounted.
type RootFS struct {
	// Path is where it is mounted on the host.
	Path string
	// Upper is the directory that holds what the container writes, "" when unknown.
	Upper string
}

// The store.
//
//	Open(ctx, Options) (*Store, error)            opens or makes the store, repairs what a crash left, reads all images into memory
//	(*Store) Close() error                        unmounts nothing: containers may be running on it
//	(*Store) Pull(ctx, PullRequest) (Image, error)
//	                                              two pulls of one image at a time are one; a cancelled pull leaves nothing half-done
//	(*Store) Image(ref string) (Image, error)     by id, id prefix (≥ 6 hex digits, if it is only one's), tag, digest or short name;
//	                                              ErrNotFound. From memory.
//	(*Store) Images() []Image                     sorted by id; from memory
//	(*Store) Remove(ctx, ref string) error        the image with all its names, as CRI RemoveImage wants; nil when unknown.
//	                                              An image that root filesystems use loses its names and is deleted with the last one.
//	(*Store) Verify policy etc. come later.
//	(*Store) FsInfo() (images, containers FsUsage)
//	                                              from memory, refreshed off the caller's path; never empty
//	(*Store) Watch(ctx) <-chan Progress           of all pulls; a slow reader misses some, the pull never waits
//
//	(*Store) CreateRootFS(ctx, containerID, imageID string, RootFSOptions) (RootFS, error)
//	                                              creates and mounts; undone entirely when it fails
//	(*Store) MountRootFS(ctx, containerID string) (RootFS, error)
//	                                              mounts again (after a reboot) or returns where it is mounted
//	(*Store) RemoveRootFS(ctx, containerID string) error
//	                                              unmounts and deletes; nil when unknown
//	(*Store) RootFSUsage(containerID string) (FsUsage, error)
//	                                              of the writable layer; refreshed off the caller's path
//	(*Store) RootFSes() []string                  ids of the containers that have one, for the sweep at start
//
// Errors: ErrNotFound; ErrInvalidReference; ErrUnauthorized; ErrRegistryUnavailable;
// ErrSignatureValidation; ErrNoSpace; ErrInUse. errors.Is classifies; texts name the reference, step and cause.
