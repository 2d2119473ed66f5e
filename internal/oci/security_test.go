package oci

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/apparmor"
)

const testProfile = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`

func profileOf(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
}

const (
	byDefault  = runtimeapi.SecurityProfile_RuntimeDefault
	unconfined = runtimeapi.SecurityProfile_Unconfined
	localhost  = runtimeapi.SecurityProfile_Localhost
)

// allows tells whether a profile lets a system call through whatever its arguments.
func allows(s *specs.LinuxSeccomp, call string) bool {
	for _, rule := range s.Syscalls {
		if contains(rule.Names, call) && rule.Action == specs.ActAllow && len(rule.Args) == 0 {
			return true
		}
	}
	return s.DefaultAction == specs.ActAllow
}

func TestSeccomp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "profile.json")
	write(t, file, testProfile)
	cases := []struct {
		name    string
		profile *runtimeapi.SecurityProfile
		old     string
		want    specs.LinuxSeccompAction // of the default, "" for no profile
		field   string
	}{
		{name: "nothing asked for is unconfined"},
		{name: "unconfined", profile: profileOf(unconfined, "")},
		{name: "the default", profile: profileOf(byDefault, ""), want: specs.ActErrno},
		{name: "a file of the node", profile: profileOf(localhost, file), want: specs.ActAllow},
		{name: "the newer field before the older", profile: profileOf(unconfined, ""), old: "runtime/default"},
		{name: "the older field: the default", old: "runtime/default", want: specs.ActErrno},
		{name: "the older field: the default by its oldest name", old: "docker/default", want: specs.ActErrno},
		{name: "the older field: unconfined", old: "unconfined"},
		{name: "the older field: a file", old: "localhost/" + file, want: specs.ActAllow},
		{name: "a file of the node, in the older field's form", profile: profileOf(localhost, "localhost/"+file), want: specs.ActAllow},
		{name: "the older field: anything else", old: "magic", field: "seccomp_profile_path"},
		{name: "a file without a name", profile: profileOf(localhost, ""), field: "seccomp.localhost_ref"},
		{name: "a name without a file's type", profile: profileOf(byDefault, file), field: "seccomp.localhost_ref"},
		{name: "a relative name", profile: profileOf(localhost, "profile.json"), field: "seccomp.localhost_ref"},
		{name: "a file that does not exist", profile: profileOf(localhost, file+".no"), field: "seccomp.localhost_ref"},
		{name: "an unknown type", profile: profileOf(9, ""), field: "seccomp.profile_type"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t)
			in.Config.Linux.SecurityContext.Seccomp = c.profile
			in.Config.Linux.SecurityContext.SeccompProfilePath = c.old //nolint:staticcheck // SA1019: older kubelets set it
			if c.field != "" {
				refuses(t, in, ableHost(), securityContext+c.field)
				return
			}
			spec, _ := build(t, in, ableHost())
			if (spec.Linux.Seccomp == nil) != (c.want == "") || spec.Linux.Seccomp != nil && spec.Linux.Seccomp.DefaultAction != c.want {
				t.Errorf("profile %+v, want the default %q", spec.Linux.Seccomp, c.want)
			}
		})
	}
	for name, content := range map[string]string{
		"is empty": "", "is no JSON": "{", "confines nothing by saying nothing": "{}", "has no default": `{"syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`,
		"is too large": `{"defaultAction":"SCMP_ACT_ALLOW","x":"` + strings.Repeat("x", maxProfile) + `"}`,
	} {
		t.Run("a profile that "+name+" is refused", func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), "bad.json")
			write(t, bad, content)
			in := testInput(t)
			in.Config.Linux.SecurityContext.Seccomp = profileOf(localhost, bad)
			refuses(t, in, ableHost(), securityContext+"seccomp.localhost_ref")
		})
	}
	t.Run("a FIFO for a profile is refused at once", func(t *testing.T) {
		bad := filepath.Join(t.TempDir(), "fifo")
		fifo(t, bad)
		in := testInput(t)
		in.Config.Linux.SecurityContext.Seccomp = profileOf(localhost, bad)
		refuses(t, in, ableHost(), securityContext+"seccomp.localhost_ref")
	})
	t.Run("the default's rules follow the capabilities", func(t *testing.T) {
		in := testInput(t)
		in.Config.Linux.SecurityContext.Seccomp = profileOf(byDefault, "")
		if spec, _ := build(t, in, ableHost()); allows(spec.Linux.Seccomp, "mount") || !allows(spec.Linux.Seccomp, "openat") {
			t.Error("mount is allowed, or openat is not")
		}
		in.Config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		if spec, _ := build(t, in, ableHost()); !allows(spec.Linux.Seccomp, "mount") {
			t.Error("mount is not allowed with CAP_SYS_ADMIN")
		}
	})
	t.Run("the default can be a file of the configuration", func(t *testing.T) {
		in := testInput(t)
		in.Config.Linux.SecurityContext.Seccomp = profileOf(byDefault, "")
		in.SeccompDefault = file
		if spec, _ := build(t, in, ableHost()); spec.Linux.Seccomp.DefaultAction != specs.ActAllow {
			t.Errorf("profile %+v", spec.Linux.Seccomp)
		}
	})
	t.Run("a kernel or a runtime without seccomp is not taken for confinement", func(t *testing.T) {
		in, h := testInput(t), ableHost()
		in.Config.Linux.SecurityContext.Seccomp = profileOf(byDefault, "")
		h.seccomp = false
		unsupports(t, in, h, "kernel")
		in.Handler.Features.Linux = linuxWithoutSeccomp()
		unsupports(t, in, ableHost(), in.Handler.Binary)
	})
}

// profiles are those of a machine: the default, or why there is none, and those that are loaded.
type profiles struct {
	def    string
	err    error
	loaded []string
	off    error
}

func (p profiles) Default() (string, error)         { return p.def, p.err }
func (p profiles) Loaded(name string) (bool, error) { return contains(p.loaded, name), p.off }

func TestAppArmor(t *testing.T) {
	const ours, other = "cri-engine-default", "other"
	cases := []struct {
		name       string
		profile    *runtimeapi.SecurityProfile
		old        string
		privileged bool
		want       string
		field      string
	}{
		{name: "nothing asked for is the default", want: ours},
		{name: "the default", profile: profileOf(byDefault, ""), want: ours},
		{name: "none", profile: profileOf(unconfined, "")},
		{name: "one of the node", profile: profileOf(localhost, other), want: other},
		{name: "one of the node, in the older field's form", profile: profileOf(localhost, "localhost/"+other), want: other},
		{name: "one that is not loaded", profile: profileOf(localhost, "missing"), field: "apparmor.localhost_ref"},
		{name: "one without a name", profile: profileOf(localhost, "localhost/"), field: "apparmor.localhost_ref"},
		{name: "a name without its type", profile: profileOf(byDefault, other), field: "apparmor.localhost_ref"},
		{name: "an unknown type", profile: profileOf(9, ""), field: "apparmor.profile_type"},
		{name: "the older field: the default", old: "runtime/default", want: ours},
		{name: "the older field: one of the node", old: "localhost/" + other, want: other},
		{name: "the older field: one that is not loaded", old: "localhost/missing", field: "apparmor.localhost_ref"},
		{name: "the older field: none", old: "unconfined"},
		{name: "the older field: anything else", old: other, field: "apparmor_profile"},
		{name: "the newer field before the older", profile: profileOf(localhost, other), old: "localhost/missing", want: other},
		{name: "a privileged container has none", privileged: true},
		{name: "a privileged container has not the default", privileged: true, profile: profileOf(byDefault, "")},
		{name: "a privileged container has the one it names", privileged: true, profile: profileOf(localhost, other), want: other},
		{name: "a privileged container that names one that is not loaded", privileged: true, profile: profileOf(localhost, "missing"), field: "apparmor.localhost_ref"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t)
			in.AppArmor = profiles{def: ours, loaded: []string{ours, other}}
			in.Config.Linux.SecurityContext.Privileged = c.privileged
			in.Config.Linux.SecurityContext.Apparmor = c.profile
			in.Config.Linux.SecurityContext.ApparmorProfile = c.old //nolint:staticcheck // SA1019: older kubelets set it
			if c.field != "" {
				refuses(t, in, ableHost(), securityContext+c.field)
				return
			}
			if spec, _ := build(t, in, ableHost()); spec.Process.ApparmorProfile != c.want {
				t.Errorf("got %q, want %q", spec.Process.ApparmorProfile, c.want)
			}
		})
	}
	t.Run("a kernel without AppArmor has nothing for the default, and refuses what is named", func(t *testing.T) {
		in := testInput(t)
		in.AppArmor = profiles{off: fmt.Errorf("not in this kernel: %w", errors.ErrUnsupported)}
		for _, p := range []*runtimeapi.SecurityProfile{nil, profileOf(byDefault, ""), profileOf(unconfined, "")} {
			in.Config.Linux.SecurityContext.Apparmor = p
			if spec, _ := build(t, in, ableHost()); spec.Process.ApparmorProfile != "" {
				t.Errorf("%v: got %q", p, spec.Process.ApparmorProfile)
			}
		}
		in.Config.Linux.SecurityContext.Apparmor = profileOf(localhost, other)
		unsupports(t, in, ableHost(), `"other": the profile cannot be applied: not in this kernel`)
		in.AppArmor = nil
		unsupports(t, in, ableHost(), "without AppArmor")
	})
	t.Run("a default that was never there is missed only by who asks for it", func(t *testing.T) {
		in := testInput(t)
		in.AppArmor = profiles{err: fmt.Errorf("%w: no parser", apparmor.ErrNoDefault)}
		if spec, _ := build(t, in, ableHost()); spec.Process.ApparmorProfile != "" {
			t.Errorf("got %q", spec.Process.ApparmorProfile)
		}
		in.Config.Linux.SecurityContext.Apparmor = profileOf(byDefault, "")
		if _, _, err := containerSpec(in, ableHost()); !errors.Is(err, apparmor.ErrNoDefault) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a default that went away is missed by all", func(t *testing.T) {
		in := testInput(t)
		in.AppArmor = profiles{err: apparmor.ErrNotLoaded}
		if _, _, err := containerSpec(in, ableHost()); !errors.Is(err, apparmor.ErrNotLoaded) {
			t.Errorf("error %v", err)
		}
	})
}

func TestPaths(t *testing.T) {
	in := testInput(t)
	in.Config.Linux.SecurityContext.MaskedPaths = []string{"/proc/kcore"}
	in.Config.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/sys"}
	spec, _ := build(t, in, ableHost())
	equal(t, "masked", spec.Linux.MaskedPaths, []string{"/proc/kcore"})
	equal(t, "read-only", spec.Linux.ReadonlyPaths, []string{"/proc/sys"})
	in.Config.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/../etc"}
	refuses(t, in, ableHost(), securityContext+"readonly_paths")
}
