package oci

import (
	"errors"
	"fmt"
	"os"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxProfile bounds a seccomp profile's file.
const maxProfile = 1 << 20

// seccomp: none for privileged containers, and none where the request has no
// profile (the proto's default for the older field, "identical with unconfined")
// and the handler's base spec has none either.
func (b *builder) seccomp() error {
	const field = securityContext + "seccomp"
	profile, err := wantedProfile(field, securityContext+"seccomp_profile_path", b.sc.GetSeccomp(), b.sc.GetSeccompProfilePath(), runtimeapi.SecurityProfile_Unconfined) //nolint:staticcheck // SA1019: older kubelets set it
	if asked := b.sc.GetSeccomp() != nil || b.sc.GetSeccompProfilePath() != ""; err == nil && !asked && !b.privileged {                                                  //nolint:staticcheck // SA1019: as above
		b.spec.Linux.Seccomp = b.base.Linux.Seccomp
		return nil
	}
	if err != nil || b.privileged || profile.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return err
	}
	if err := b.seccompAvailable(field); err != nil {
		return err
	}
	if profile.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
		b.spec.Linux.Seccomp, err = defaultSeccomp(b.SeccompDefault, b.spec)
		return err
	}
	file, err := resolveHostPath(field+".localhost_ref", profile.GetLocalhostRef())
	if err != nil {
		return err
	}
	b.spec.Linux.Seccomp, err = loadSeccomp(file, b.spec)
	if err != nil {
		return invalid(field+".localhost_ref", profile.GetLocalhostRef(), "%v", err)
	}
	return nil
}

func (b *builder) seccompAvailable(field string) error {
	if !b.host.seccomp {
		return unsupported(field, "this kernel has no seccomp filters")
	}
	if !b.Handler.hasSeccomp() {
		return unsupported(field, "%s was built without seccomp", b.Handler.Binary)
	}
	return nil
}

// hasSeccomp is true unless the runtime says otherwise.
func (h *Handler) hasSeccomp() bool {
	return h.Features.Linux == nil || h.Features.Linux.Seccomp == nil ||
		h.Features.Linux.Seccomp.Enabled == nil || *h.Features.Linux.Seccomp.Enabled
}

// defaultSeccomp is the RuntimeDefault profile for a spec whose capabilities are set.
func defaultSeccomp(file string, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	if file == "" {
		return seccomp.GetDefaultProfile(spec)
	}
	return loadSeccomp(file, spec)
}

// loadSeccomp reads a profile, in the format of the OCI runtime spec or in the
// one with conditions that the container tools share, for a spec whose
// capabilities are set.
func loadSeccomp(file string, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	// A FIFO must not make us wait for a writer.
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("seccomp profile %s: not a regular file", file))
	}
	data, err := readBounded(f, maxProfile)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", file, err)
	}
	profile, err := seccomp.LoadProfile(data, spec)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", file, err)
	}
	// An empty object would quietly mean no confinement at all.
	if profile == nil || profile.DefaultAction == "" {
		return nil, fmt.Errorf("seccomp profile %s: no defaultAction", file)
	}
	return profile, nil
}
