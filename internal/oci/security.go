package oci

import (
	"errors"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/apparmor"
)

// DefaultMaskedPaths and DefaultReadonlyPaths protect a container whose
// request has no security context at all. One that has a security context
// names its own: an empty list means an unmasked /proc, and so the kubelet
// sends it.
var (
	DefaultMaskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	DefaultReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// paths masks files of /proc and /sys, or makes them read-only.
func (b *builder) paths() error {
	if b.privileged {
		return nil
	}
	masked, readonly := b.sc.GetMaskedPaths(), b.sc.GetReadonlyPaths()
	if b.sc == nil {
		masked, readonly = DefaultMaskedPaths, DefaultReadonlyPaths
		if b.base.Linux.MaskedPaths != nil {
			masked = b.base.Linux.MaskedPaths
		}
		if b.base.Linux.ReadonlyPaths != nil {
			readonly = b.base.Linux.ReadonlyPaths
		}
	}
	for field, list := range map[string][]string{"masked_paths": masked, "readonly_paths": readonly} {
		for _, p := range list {
			if _, err := cleanPath(securityContext+field, p); err != nil {
				return err
			}
		}
	}
	b.spec.Linux.MaskedPaths, b.spec.Linux.ReadonlyPaths = masked, readonly
	return nil
}

// labels are those of SELinux, which the caller has chosen, and AppArmor's profile.
func (b *builder) labels() error {
	b.spec.Process.SelinuxLabel, b.spec.Linux.MountLabel = b.ProcessLabel, b.MountLabel
	const field = securityContext + "apparmor"
	old := b.sc.GetApparmorProfile() //nolint:staticcheck // SA1019: older kubelets set it
	profile, err := wantedProfile(field, securityContext+"apparmor_profile", b.sc.GetApparmor(), old, runtimeapi.SecurityProfile_RuntimeDefault)
	if err != nil {
		return err
	}
	switch profile.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		b.spec.Process.ApparmorProfile, err = b.defaultAppArmor(field, b.sc.GetApparmor() != nil || old != "")
	case runtimeapi.SecurityProfile_Localhost:
		b.spec.Process.ApparmorProfile, err = b.localAppArmor(field, profile.GetLocalhostRef())
	case runtimeapi.SecurityProfile_Unconfined:
	}
	return err
}

// defaultAppArmor is not for privileged containers, which it would keep from
// what they are privileged for; they have a profile when they name one.
func (b *builder) defaultAppArmor(field string, asked bool) (string, error) {
	if b.privileged || b.AppArmor == nil {
		return "", nil
	}
	name, err := b.AppArmor.Default()
	if errors.Is(err, apparmor.ErrNoDefault) && !asked {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	return name, nil
}

func (b *builder) localAppArmor(field, name string) (string, error) {
	field += ".localhost_ref"
	if b.AppArmor == nil {
		return "", unsupported(field, "the profile %q cannot be applied: the engine runs without AppArmor", name)
	}
	loaded, err := b.AppArmor.Loaded(name)
	if err != nil {
		return "", fmt.Errorf("%s %s: the profile cannot be applied: %w", field, quote(name), err)
	}
	if !loaded {
		return "", invalid(field, name, "no such AppArmor profile is loaded on this node")
	}
	return name, nil
}

// wantedProfile reads a profile from its field or, when that is not set, from
// the older one with values like "localhost/NAME"; unset is what neither means.
func wantedProfile(field, oldField string, p *runtimeapi.SecurityProfile, old string, unset runtimeapi.SecurityProfile_ProfileType) (*runtimeapi.SecurityProfile, error) {
	if p == nil {
		p = &runtimeapi.SecurityProfile{ProfileType: unset}
		ref, localhost := strings.CutPrefix(old, "localhost/")
		switch {
		case localhost:
			p.ProfileType, p.LocalhostRef = runtimeapi.SecurityProfile_Localhost, ref
		case old == "runtime/default" || old == "docker/default":
			p.ProfileType = runtimeapi.SecurityProfile_RuntimeDefault
		case old == "unconfined":
			p.ProfileType = runtimeapi.SecurityProfile_Unconfined
		case old != "":
			return nil, invalid(oldField, old, `not "runtime/default", "unconfined" or "localhost/…"`)
		}
	}
	local := p.GetProfileType() == runtimeapi.SecurityProfile_Localhost
	if ref, prefixed := strings.CutPrefix(p.GetLocalhostRef(), "localhost/"); local && prefixed {
		// The older field's form, which clients write into the newer one too.
		p = &runtimeapi.SecurityProfile{ProfileType: p.GetProfileType(), LocalhostRef: ref}
	}
	switch _, known := runtimeapi.SecurityProfile_ProfileType_name[int32(p.GetProfileType())]; {
	case !known:
		return nil, invalid(field+".profile_type", p.GetProfileType().String(), "unknown type")
	case local && p.GetLocalhostRef() == "":
		return nil, invalid(field+".localhost_ref", "", "empty, and the type is Localhost")
	case !local && p.GetLocalhostRef() != "":
		return nil, invalid(field+".localhost_ref", p.GetLocalhostRef(), "set, and the type is not Localhost")
	}
	return p, checkText(field+".localhost_ref", p.GetLocalhostRef())
}
