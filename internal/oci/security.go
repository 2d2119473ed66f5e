package oci

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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
	profile, err := wantedProfile(field, securityContext+"apparmor_profile", b.sc.GetApparmor(), b.sc.GetApparmorProfile(), runtimeapi.SecurityProfile_RuntimeDefault) //nolint:staticcheck // SA1019: older kubelets set it
	if err != nil {
		return err
	}
	switch {
	case b.privileged || profile.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
	case profile.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault:
		b.spec.Process.ApparmorProfile = b.AppArmorProfile
	case !b.host.apparmor:
		return unsupported(field, "the profile %q cannot be applied: AppArmor is not enabled in this kernel", profile.GetLocalhostRef())
	default:
		b.spec.Process.ApparmorProfile = profile.GetLocalhostRef()
	}
	return nil
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
