package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	storagetransport "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"
	"golang.org/x/sys/unix"

	"github.com/cri-engine/cri-engine/internal/steps"
)

// pull is one try to fetch one full name.
type pull struct {
	s     *Store
	ref   string // as it was asked for
	named reference.Named
	sys   types.SystemContext
	creds *credentials
	guard *guard

	source   types.ImageSource // nil when closed or handed to the copy
	served   digest.Digest     // of the manifest or index that the registry served
	instance *digest.Digest    // the one of an index that fits this machine, else nil
	chosen   digest.Digest     // of the manifest to fetch
	id       string            // 64 hex digits
	present  bool              // the image is in the store already

	image Image
}

func newPull(s *Store, ref string, named reference.Named, creds *credentials) *pull {
	p := &pull{s: s, ref: ref, named: named, sys: s.sys, creds: creds}
	creds.apply(&p.sys, named)
	return p
}

func (p *pull) steps() []steps.Step {
	return []steps.Step{
		{Name: "resolve", Do: p.resolve},
		{Name: "check-policy", Do: p.admit},
		{Name: "read-config", Do: p.inspect},
		{Name: "fetch-layers", Do: p.copy, Undo: p.discard},
		{Name: "write-to-disk", Do: p.sync},
		{Name: "name", Do: p.name},
	}
}

var _ = steps.Register("PullImage", stepNames((*pull)(nil).steps())...)

func stepNames(list []steps.Step) []string {
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names
}

func (p *pull) run(ctx context.Context) error {
	p.guard = newGuard(p.s.opts.ProgressTimeout)
	ctx, stop := p.guard.watch(ctx)
	defer stop()
	defer p.close()
	err := steps.Run(ctx, "PullImage", p.steps())
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		// The guard ended it, or the store was closed: that says more than
		// what the cancellation made of the request that was running.
		err = cause
	}
	return p.error(err)
}

func (p *pull) error(err error) error {
	text := "pull " + quoteRef(p.ref)
	if full := p.named.String(); full != p.ref {
		text += " (" + full + ")"
	}
	text = redact(text+": "+err.Error(), p.creds.secrets())
	return &kindError{kind: kindOf(err), cause: err, text: text}
}

func (p *pull) close() {
	if p.source != nil {
		p.source.Close()
		p.source = nil
	}
}

// resolve asks the registry, or a mirror of it, what the name is, and chooses
// the image for this machine.
func (p *pull) resolve(ctx context.Context) error {
	ref, err := docker.NewReference(p.named)
	if err != nil {
		return err
	}
	source, err := ref.NewImageSource(ctx, &p.sys)
	if err != nil {
		return err // and a source that is not nil, of a nil pointer
	}
	p.source = source
	// This checks the digest, where the name has one.
	raw, mime, err := image.UnparsedInstance(p.source, nil).Manifest(ctx)
	if err != nil {
		return err
	}
	if p.served, err = manifest.Digest(raw); err != nil {
		return err
	}
	p.chosen = p.served
	switch {
	case mime == manifest.DockerV2Schema1MediaType || mime == manifest.DockerV2Schema1SignedMediaType:
		return errors.New("the registry has it in Docker's schema 1 only, a format that was given up")
	case manifest.MIMETypeIsMultiImage(mime):
		return p.choose(raw, mime)
	}
	return nil
}

func (p *pull) choose(raw []byte, mime string) error {
	list, err := manifest.ListFromBlob(raw, mime)
	if err != nil {
		return err
	}
	instance, err := list.ChooseInstance(&p.sys)
	if err != nil {
		return withKind(ErrNotFound, err)
	}
	p.instance, p.chosen = &instance, instance
	return nil
}

// admit asks the policy, before anything of the image but its manifest is looked at.
func (p *pull) admit(ctx context.Context) error {
	policy, err := p.s.policyContext()
	if err != nil {
		return err
	}
	defer func() { _ = policy.Destroy() }()
	allowed, err := policy.IsRunningImageAllowed(ctx, image.UnparsedInstance(p.source, p.instance))
	if err != nil && ctx.Err() == nil && kindOf(err) == nil {
		return withKind(ErrSignatureValidation, err)
	}
	if err == nil && !allowed {
		return ErrSignatureValidation
	}
	return err
}

// inspect reads the config: the image's id is its digest, and it says for which
// system the image is.
func (p *pull) inspect(ctx context.Context) error {
	img, err := image.FromUnparsedImage(ctx, &p.sys, image.UnparsedInstance(p.source, p.instance))
	if err != nil {
		return err
	}
	// The library bounds both manifest and config to 4 MiB and checks their digests.
	config, err := img.OCIConfig(ctx)
	if err != nil {
		return err
	}
	if os := config.OS; os != "linux" && os != "" {
		return withKind(ErrNotFound, fmt.Errorf("the image is for %q, and containers here are Linux", os))
	}
	info := img.ConfigInfo()
	if err := info.Digest.Validate(); err != nil || info.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("the config's digest %q is not of SHA-256", info.Digest)
	}
	p.id = info.Digest.Encoded()
	for _, layer := range img.LayerInfos() {
		if layer.Size < 0 {
			return fmt.Errorf("the manifest gives layer %s the size %d", layer.Digest, layer.Size)
		}
	}
	_, p.present = p.s.images.Load().byID(p.id)
	return nil
}

// copy fetches the layers and records the image, without a name.
func (p *pull) copy(ctx context.Context) error {
	if p.present {
		p.s.hub.send(Progress{Ref: p.ref, State: StateCached, Total: -1})
		return nil
	}
	policy, err := p.s.policyContext()
	if err != nil {
		return err
	}
	defer func() { _ = policy.Destroy() }()
	dest, err := storagetransport.Transport.NewStoreReference(p.s.store, nil, p.id)
	if err != nil {
		return err
	}
	events := make(chan types.ProgressProperties)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		p.follow(events)
	}()
	source := openSource{p.source.Reference(), p.source}
	p.source = nil // the copy closes it
	raw, err := copy.Image(ctx, policy, dest, source, &copy.Options{
		SourceCtx:      &p.sys,
		DestinationCtx: &p.sys,
		Progress:       events,
		// Each read is an event: the guard must know how far a layer has come.
		ProgressInterval:     1,
		MaxParallelDownloads: uint(p.s.opts.MaxParallelLayers),
		// The names we give it hold digests, so the manifest must stay as it is.
		PreserveDigests: true,
		// What [manifest.List.ChooseInstance] prefers, so that both choose the same.
		PreferGzipInstances: types.OptionalBoolFalse,
	})
	close(events)
	<-watched
	if err != nil {
		return err
	}
	return p.checkCopied(raw)
}

// checkCopied guards the id, which was made from the config that inspect read.
func (p *pull) checkCopied(raw []byte) error {
	got, err := manifest.Digest(raw)
	if err == nil && got != p.chosen {
		err = fmt.Errorf("fetched manifest %s in place of %s", got, p.chosen)
	}
	if err != nil {
		return errors.Join(err, p.s.reap(p.id))
	}
	return nil
}

// openSource is a reference whose source is open already, so that the manifest
// is asked for once.
type openSource struct {
	types.ImageReference
	source types.ImageSource
}

func (r openSource) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return r.source, nil
}

// discard takes back what copy recorded, unless it has a name by now.
func (p *pull) discard(context.Context) error { return p.s.reap(p.id) }

// sync has the kernel write out all of the image before it gets a name. After a
// power cut an image is there with every byte, or not at all.
func (p *pull) sync(context.Context) error {
	if p.present {
		return nil
	}
	dir, err := os.Open(p.s.opts.Root)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", dir.Name(), err)
	}
	return nil
}

// name gives the image its names, takes them from those that had them, and lists it.
func (p *pull) name(context.Context) error {
	names, err := storeNames(p.named, p.served)
	if err != nil {
		return err
	}
	changed := []string{p.id}
	for _, name := range names {
		if img, ok := p.s.images.Load().name(name); ok {
			hex, _ := parseID(img.ID)
			changed = append(changed, hex)
		}
	}
	slices.Sort(changed)
	changed = slices.Compact(changed)
	if err := p.addNames(names, changed); err != nil {
		return err
	}
	for _, id := range changed {
		if err := p.s.reap(id); err != nil {
			return err
		}
	}
	img, ok := p.s.images.Load().byID(p.id)
	if !ok {
		return withKind(ErrNotFound, errors.New("the image was removed meanwhile"))
	}
	p.image = img
	return nil
}

func (p *pull) addNames(names, changed []string) error {
	defer p.s.byImage.lock(p.id)()
	if err := p.s.store.AddNames(p.id, names); err != nil {
		return err
	}
	if err := p.s.publish(changed...); err != nil {
		return errors.Join(err, p.s.store.RemoveNames(p.id, names))
	}
	return nil
}

// policy reads which images may be pulled. It is read for each pull, so that a
// change holds at once.
func (s *Store) policy() (*signature.Policy, error) {
	policy, err := signature.DefaultPolicy(&s.sys)
	if s.opts.PolicyPath == "" && isAny(err, os.ErrNotExist, configfile.ErrConfigFileNotFound) {
		return &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("signature policy: %w", err)
	}
	return policy, nil
}

func (s *Store) policyContext() (*signature.PolicyContext, error) {
	policy, err := s.policy()
	if err != nil {
		return nil, err
	}
	return signature.NewPolicyContext(policy)
}
