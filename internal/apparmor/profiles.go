package apparmor

import (
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"
)

// ErrNoDefault is returned for the default profile where the kernel has AppArmor
// and the engine could not load its profile when it started. Who did not ask for a
// profile by name goes without; the log has said why.
var ErrNoDefault = errors.New("there is no default profile")

// ErrNotLoaded is returned for the default profile when it is not in the kernel
// and can't be brought there. Nobody goes without it then.
var ErrNotLoaded = errors.New("the default profile is not loaded")

// Unconfined names no profile: containers that name none themselves have none.
const Unconfined = "unconfined"

// Profiles are the profiles that containers of this engine can have.
type Profiles struct {
	host *Host
	// off says why there are none, "" where there are.
	off string
	// named is the default that the configuration names; "" for ours, [Unconfined] for none.
	named string

	mu    sync.Mutex // Held while the default profile is loaded, which only containers that need it wait for.
	ours  profile
	noway error // why ours could not be loaded at the start
}

// Open finds out what the machine can do, and loads the default profile. named is
// another one to use as the default, which is loaded by who names it; with
// enabled false the engine has nothing to do with AppArmor. A machine on which
// nothing works is no error: it is logged, and said by [Profiles.Info].
func Open(host *Host, enabled bool, named string) *Profiles {
	p := &Profiles{host: host, named: named, off: host.Why()}
	if !enabled {
		p.off = "AppArmor is switched off in the engine's configuration ([runtime] apparmor)"
	}
	if p.off != "" {
		klog.V(2).InfoS("Containers have no AppArmor profile", "reason", p.off)
		return p
	}
	if named == Unconfined {
		return p
	}
	if named != "" {
		if loaded, err := host.Loaded(named); !loaded || err != nil {
			klog.ErrorS(err, "The AppArmor profile that the configuration names is not loaded: containers that need it are refused", "profile", named)
		}
		return p
	}
	p.ours = host.defaultProfile()
	if p.noway = host.load(p.ours); p.noway != nil {
		klog.ErrorS(p.noway, "Containers that name no AppArmor profile run without one")
	}
	return p
}

// Default is the profile of containers that name none, loaded; "" on a machine
// that can't have any. [ErrNoDefault] where there should be one and never was.
func (p *Profiles) Default() (string, error) {
	switch {
	case p.off != "" || p.named == Unconfined:
		return "", nil
	case p.named != "":
		loaded, err := p.host.Loaded(p.named)
		if err == nil && !loaded {
			err = fmt.Errorf("AppArmor profile %q of [runtime] apparmor_profile: %w", p.named, ErrNotLoaded)
		}
		return p.named, err
	case p.noway != nil:
		return "", fmt.Errorf("%w: %w", ErrNoDefault, p.noway)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.host.load(p.ours); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	return p.ours.name, nil
}

// Loaded tells whether the kernel has the profile. An error that wraps
// errors.ErrUnsupported says why it can have none.
func (p *Profiles) Loaded(name string) (bool, error) {
	if p.off != "" {
		return false, fmt.Errorf("%s: %w", p.off, errors.ErrUnsupported)
	}
	return p.host.Loaded(name)
}

// Info is for people: what the default is, or why there is none.
func (p *Profiles) Info() map[string]any {
	switch {
	case p.off != "":
		return map[string]any{"enabled": false, "reason": p.off}
	case p.named != "":
		return map[string]any{"enabled": true, "default": p.named}
	case p.noway != nil:
		return map[string]any{"enabled": true, "reason": p.noway.Error()}
	}
	return map[string]any{"enabled": true, "default": p.ours.name}
}
