package cli

import (
	"context"

	"github.com/cri-engine/cri-engine/internal/apparmor"
)

// checkAppArmor asks what the engine asks when it starts, and loads nothing.
func checkAppArmor(_ context.Context, m *machine) finding {
	host := apparmor.HostAt(m.files)
	if why := host.Why(); why != "" {
		return ok("%s", why)
	}
	r := m.cfg.Runtime
	if !r.AppArmor {
		return warn("", "on in this kernel, and switched off by [runtime] apparmor: containers have no profile")
	}
	name := r.AppArmorProfile
	if name == apparmor.Unconfined {
		return ok("on; only containers that name a profile have one")
	}
	if name == "" {
		name = host.DefaultName()
	}
	switch loaded, err := host.Loaded(name); {
	case err != nil:
		return warn("", "on, and its profiles can't be listed: %v", err)
	case loaded:
		return ok("on; the default profile %s is loaded", name)
	case r.AppArmorProfile != "":
		return fail("apparmor_parser --replace /etc/apparmor.d/FILE", "the profile %s of [runtime] apparmor_profile is not loaded", name)
	case apparmor.Parser() == "":
		return warn(m.install("apparmor", "apparmor-parser"), "on, but the engine can't load its profile: no apparmor_parser")
	}
	return ok("on; the engine loads its profile when it starts")
}

func checkSELinux(_ context.Context, m *machine) finding {
	if !m.exists("/sys/fs/selinux/enforce") {
		return ok("not in this kernel")
	}
	mode := "permissive"
	if m.read("/sys/fs/selinux/enforce") == "1" {
		mode = "enforcing"
	}
	if !m.exists("/etc/selinux/targeted/contexts/lxc_contexts") {
		return warn(m.install("selinux-policy-default", "container-selinux"), "%s, without a policy for containers", mode)
	}
	return ok("%s", mode)
}
