package storage

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.podman.io/storage"
	"k8s.io/klog/v2"
)

const (
	// usageAge is how old a figure may be before it is measured again.
	usageAge = 10 * time.Second
	// usageShare is the part of one core, and of the disk's time, that measuring
	// may take: it rests this many times as long as it worked.
	usageShare = 9
	// usageIdle: what nobody has asked for so long is not measured.
	usageIdle = 5 * time.Minute
)

// usage measures what layers use on disk, in one goroutine.
type usage struct {
	s    *Store
	wake chan struct{} // of capacity 1

	mu         sync.Mutex // Protects the fields below.
	images     FsUsage
	layers     map[string]measured // by layer id; those of images never change
	containers map[string]*upperUsage
	asked      time.Time // when anybody last asked for all containers' usage
	stale      bool      // images have changed since they were measured
}

type measured struct{ bytes, inodes uint64 }

type upperUsage struct {
	FsUsage
	asked time.Time
}

func newUsage(s *Store) *usage {
	u := &usage{s: s, wake: make(chan struct{}, 1), layers: map[string]measured{}, containers: map[string]*upperUsage{}, stale: true}
	u.images = FsUsage{Mountpoint: s.opts.Root, At: time.Now()}
	// Until it is measured: what the layers were when they were unpacked.
	if layers, err := s.store.Layers(); err == nil {
		for _, l := range layers {
			u.images.UsedBytes += uint64(max(l.UncompressedSize, 0))
		}
	}
	return u
}

// FsInfo is what images and containers' writable layers use. It answers from
// memory with what was measured last, a few seconds ago as a rule; figures of
// containers begin at zero after a start.
func (s *Store) FsInfo() (images, containers FsUsage) {
	u := s.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = time.Now()
	u.wakeUp()
	containers = FsUsage{Mountpoint: s.opts.Root, At: u.asked}
	for _, c := range u.containers {
		containers.UsedBytes += c.UsedBytes
		containers.InodesUsed += c.InodesUsed
		if c.At.Before(containers.At) {
			containers.At = c.At
		}
	}
	return u.images, containers
}

// RootFSUsage is what a container has written to its root filesystem. It
// answers as [Store.FsInfo] does. ErrNotFound when there is none.
func (s *Store) RootFSUsage(id string) (FsUsage, error) {
	u := s.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	// Looked up with mu held, so that one that is being removed is not
	// remembered after it was forgotten.
	c, ok := s.container(id)
	if !ok {
		return FsUsage{}, noRootFS(id)
	}
	now := time.Now()
	e := u.containers[id]
	if e == nil {
		e = &upperUsage{FsUsage: FsUsage{Mountpoint: s.upper(c.layer), At: now}}
		u.containers[id] = e
	}
	e.asked = now
	u.wakeUp()
	return e.FsUsage, nil
}

// poke tells that images have changed.
func (u *usage) poke() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stale = true
	u.wakeUp()
}

func (u *usage) wakeUp() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

func (u *usage) forget(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.containers, id)
}

// run measures when there is something to measure, until ctx ends.
func (u *usage) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.wake:
		}
		start := time.Now()
		u.measureImages(ctx)
		u.measureContainers(ctx)
		rest := max(usageShare*time.Since(start), time.Second)
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// measureImages walks layers that it has not seen before.
func (u *usage) measureImages(ctx context.Context) {
	u.mu.Lock()
	stale := u.stale
	u.stale = false
	u.mu.Unlock()
	if !stale {
		return
	}
	layers, err := u.s.imageLayers()
	if err != nil {
		klog.ErrorS(err, "Cannot measure what images use")
		return
	}
	total := FsUsage{Mountpoint: u.s.opts.Root}
	next := make(map[string]measured, len(layers))
	for _, l := range layers {
		m, ok := u.layers[l.ID]
		if !ok {
			m = measure(ctx, u.s.upper(l.ID))
		}
		if ctx.Err() != nil {
			return
		}
		next[l.ID] = m
		total.UsedBytes += m.bytes
		total.InodesUsed += m.inodes
	}
	total.At = time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.layers, u.images = next, total
}

// imageLayers are those that are no container's own.
func (s *Store) imageLayers() ([]storage.Layer, error) {
	all, err := s.store.MultiList(storage.MultiListOptions{Layers: true, Containers: true})
	if err != nil {
		return nil, err
	}
	own := map[string]bool{}
	for _, c := range all.Containers {
		own[c.LayerID] = true
	}
	return slices.DeleteFunc(all.Layers, func(l storage.Layer) bool { return own[l.ID] }), nil
}

func (u *usage) measureContainers(ctx context.Context) {
	for id, upper := range u.due(time.Now()) {
		m := measure(ctx, upper)
		if ctx.Err() != nil {
			return
		}
		u.mu.Lock()
		// Removed meanwhile, it stays forgotten.
		if _, ok := u.s.container(id); ok {
			e := u.containers[id]
			if e == nil {
				e = &upperUsage{}
				u.containers[id] = e
			}
			e.FsUsage = FsUsage{Mountpoint: upper, UsedBytes: m.bytes, InodesUsed: m.inodes, At: time.Now()}
		}
		u.mu.Unlock()
	}
}

// due are the containers whose figures are old and asked for, with their
// writable directories.
func (u *usage) due(now time.Time) map[string]string {
	u.s.mu.Lock()
	all := maps.Clone(u.s.containers)
	u.s.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	due := map[string]string{}
	for id, c := range all {
		e := u.containers[id]
		wanted := now.Sub(u.asked) < usageIdle || e != nil && now.Sub(e.asked) < usageIdle
		fresh := e != nil && e.UsedBytes+e.InodesUsed > 0 && now.Sub(e.At) < usageAge
		if wanted && !fresh {
			due[id] = u.s.upper(c.layer)
		}
	}
	return due
}

// measure adds up what a layer's directory uses: zero where there is none.
func measure(ctx context.Context, dir string) measured {
	if dir == "" {
		return measured{}
	}
	m, err := diskUsage(ctx, dir)
	if err != nil && ctx.Err() == nil {
		klog.V(2).InfoS("Cannot measure a layer", "dir", filepath.Base(filepath.Dir(dir)), "err", err)
	}
	return m
}
