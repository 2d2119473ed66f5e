package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"
	storagetypes "go.podman.io/storage/types"
)

const (
	defaultDriver    = "overlay"
	defaultParallel  = 3
	defaultUserAgent = "cri-engine"
	// closeTimeout bounds how long Close waits for pulls to end: what unpacks a
	// layer can't be interrupted.
	closeTimeout = 10 * time.Second
)

// Init must be the first call of main. It returns true in a process that was
// started to unpack a layer and has done so: main must return then.
func Init() bool {
	if reexec.Init() {
		return true
	}
	// The library parses the storage.conf of Podman and its like even when it is
	// given all options. Neither a mistake there nor a setting may touch us.
	for _, name := range []string{"CONTAINERS_STORAGE_CONF_OVERRIDE", "STORAGE_DRIVER", "STORAGE_OPTS"} {
		_ = os.Unsetenv(name)
	}
	_ = os.Setenv("CONTAINERS_STORAGE_CONF", os.DevNull)
	return false
}

// Store is the images and root filesystems of one engine. It may be used by
// many goroutines at a time, and by one process.
type Store struct {
	opts  Options
	store storage.Store
	sys   types.SystemContext // a copy of it is changed for each pull
	names *resolver
	hub   *hub
	usage *usage
	// noIDMaps says why root filesystems can't have their ids mapped; "" when they can.
	noIDMaps string
	images   atomic.Pointer[index]

	ctx     context.Context // ends at Close; pulls and the measuring live in it
	cancel  context.CancelCauseFunc
	running sync.WaitGroup

	// byImage holds a lock for each image id: what gives an image its names and
	// what deletes it take turns.
	byImage keyLocks
	// byContainer holds a lock for each container id: its root filesystem is
	// made, mounted and removed by one call at a time.
	byContainer keyLocks
	// removals counts deleted images. A pull that failed while one was deleted
	// may have relied on its layers, and tries again.
	removals atomic.Uint64

	publishing sync.Mutex // Held while the index is replaced: read, change, store.

	flights flights
	orphans orphans

	mu         sync.Mutex // Protects containers.
	containers map[string]container
}

// Open opens or makes the store, repairs what a crash left, and reads all
// images into memory. [Init] must have been called.
func Open(ctx context.Context, o Options) (*Store, error) {
	o = withDefaults(o)
	if err := checkPatterns(o.Pinned); err != nil {
		return nil, err
	}
	s := &Store{opts: o, sys: systemContext(o), hub: newHub(), containers: map[string]container{}}
	redirectLogs()
	if _, err := s.policy(); err != nil {
		return nil, err
	}
	var err error
	if s.names, err = newResolver(&s.sys); err != nil {
		return nil, err
	}
	if err := detachAllMapped(o); err != nil {
		return nil, fmt.Errorf("open the image store in %s: %w", o.Root, err)
	}
	if err := mendLinks(o); err != nil {
		return nil, fmt.Errorf("open the image store in %s: %w", o.Root, err)
	}
	if s.store, err = openLibrary(o); err != nil {
		return nil, fmt.Errorf("open the image store in %s: %w", o.Root, err)
	}
	s.noIDMaps = whyNoIDMaps(s.store)
	if err := s.repair(ctx); err != nil {
		s.store.Free()
		return nil, fmt.Errorf("repair the image store in %s: %w", o.Root, err)
	}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	s.usage = newUsage(s)
	s.running.Go(func() { s.usage.run(s.ctx) })
	return s, nil
}

func withDefaults(o Options) Options {
	if o.Driver == "" {
		o.Driver = defaultDriver
	}
	if o.MaxParallelLayers <= 0 {
		o.MaxParallelLayers = defaultParallel
	}
	if o.UserAgent == "" {
		o.UserAgent = defaultUserAgent
	}
	return o
}

func openLibrary(o Options) (storage.Store, error) {
	options := slices.Clone(o.DriverOptions)
	if o.Driver == "overlay" {
		// Without this the driver bind-mounts its directory on itself, for good.
		// First, so that the configuration may say otherwise.
		options = append([]string{"overlay.skip_mount_home=true"}, options...)
	}
	store, err := storage.GetStore(storagetypes.StoreOptions{
		GraphRoot:          o.Root,
		RunRoot:            o.RunRoot,
		GraphDriverName:    o.Driver,
		GraphDriverOptions: options,
		// Layers come whole: so every one is known by the digest of its content,
		// and an image's id is that of its config.
		PullOptions: map[string]string{"enable_partial_images": "false"},
	})
	if err != nil {
		return nil, err
	}
	return store, os.MkdirAll(tempDir(o), 0o700)
}

// tempDir holds layers while they are fetched. It is on the store's
// filesystem, since /var/tmp may be small.
func tempDir(o Options) string { return filepath.Join(o.Root, "tmp") }

func systemContext(o Options) types.SystemContext {
	return types.SystemContext{
		OSChoice:                    "linux",
		SystemRegistriesConfPath:    o.RegistriesConf,
		SystemRegistriesConfDirPath: o.RegistriesConfDir,
		SignaturePolicyPath:         o.PolicyPath,
		AuthFilePath:                o.AuthFile,
		DockerPerHostCertDirPath:    o.CertsDir,
		DockerRegistryUserAgent:     o.UserAgent,
		BigFilesTemporaryDir:        tempDir(o),
		// What another program remembers of names and blobs is its own.
		UserShortNameAliasConfPath: filepath.Join(o.RunRoot, "short-name-aliases.conf"),
		BlobInfoCacheDir:           filepath.Join(o.RunRoot, "blob-info-cache"),
	}
}

// Close ends pulls and the measuring. It unmounts nothing: containers may be
// running. It waits a moment for a layer that is being unpacked; one that takes
// longer is put right at the next [Open].
func (s *Store) Close() error {
	s.flights.close()
	s.cancel(errClosing)
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		s.store.Free()
		return nil
	case <-time.After(closeTimeout):
		return errors.New("close the image store: a layer is still being unpacked")
	}
}

// Image finds an image by its id, the start of an id (6 hex digits or more, if
// it is only one's), or a name: with tag, with digest, full or short.
// ErrNotFound, ErrInvalidReference. From memory.
func (s *Store) Image(ref string) (Image, error) {
	images := s.images.Load()
	if hex, ok := parseID(ref); ok {
		if img, ok := images.byID(hex); ok {
			return img, nil
		}
		return Image{}, withKind(ErrNotFound, fmt.Errorf("image %s: not found", ref))
	}
	hex, isPrefix := parseIDPrefix(ref)
	names, err := s.names.resolve(ref)
	if err != nil && !isPrefix {
		return Image{}, err
	}
	for _, named := range names {
		if img, ok := images.name(named.String()); ok {
			return img, nil
		}
	}
	if isPrefix {
		if img, ok := images.byPrefix(hex); ok {
			return img, nil
		}
	}
	return Image{}, withKind(ErrNotFound, fmt.Errorf("image %s: not found", quoteRef(ref)))
}

// Images lists all images, sorted by id. From memory.
func (s *Store) Images() []Image { return slices.Clone(s.images.Load().images) }

// publish reads these images (64 hex digits each) from the store again and
// puts them into the index, or takes them out of it: without a name an image is
// not there.
func (s *Store) publish(ids ...string) error {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	changed := map[string]*Image{}
	var errs []error
	for _, id := range ids {
		img, err := s.read(id)
		if err != nil {
			errs = append(errs, fmt.Errorf("image %s: %w", id, err))
		}
		changed["sha256:"+id] = img
	}
	s.images.Store(s.images.Load().with(changed))
	return errors.Join(errs...)
}

// read is nil without an error for an image that is gone or has no name.
func (s *Store) read(id string) (*Image, error) {
	record, err := s.store.Image(id)
	if errors.Is(err, storage.ErrImageUnknown) || err == nil && len(record.Names) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s.describe(record, s.store.Layer)
}
