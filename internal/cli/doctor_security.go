package cli

import (
	"context"
	"fmt"
	"strings"

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

// Where policies say how they label containers: one that Podman's package puts over the
// distribution's, and the distribution's for a policy.
const (
	containerContexts = "/usr/share/containers/selinux/contexts"
	policyContexts    = "/etc/selinux/%s/contexts/lxc_contexts"
)

func checkSELinux(_ context.Context, m *machine) finding {
	wanted := m.cfg.Runtime.SELinux
	if !m.exists("/sys/fs/selinux/enforce") {
		if wanted {
			return warn("", "not in this kernel, or selinuxfs is not mounted: [runtime] selinux does nothing")
		}
		return ok("not in this kernel")
	}
	mode := "permissive"
	if m.read("/sys/fs/selinux/enforce") == "1" {
		mode = "enforcing"
	}
	policy := strings.Trim(m.field("/etc/selinux/config", "SELINUXTYPE="), `"`)
	known := m.exists(containerContexts) || m.exists(fmt.Sprintf(policyContexts, policy))
	switch {
	case !wanted:
		return warn("", "%s, and [runtime] selinux is false: no label keeps containers apart", mode)
	case !known:
		return fail(m.install("selinux-policy-default", "container-selinux"), "%s, and the policy %q does not know containers: the engine does not start with [runtime] selinux", mode, policy)
	}
	return ok("%s; each pod has a level of its own", mode)
}
