package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-engine/cri-engine/internal/conffiles"
)

// maxBaseSpec bounds the file.
const maxBaseSpec = 1 << 20

// BaseSpec is what a handler's base_runtime_spec adds to its containers: a file
// like the one that `ctr oci spec` or `runc spec` prints. What the request, the
// pod or the engine decides is not taken from it (see [LoadBaseSpec]).
type BaseSpec struct {
	// data is the specification with what holds of it only, as JSON: each container gets a copy.
	data []byte
}

// LoadBaseSpec reads and checks a file. Errors name it, with the line or the field.
//
// Of it hold: environment, limits, the bounding set as the capabilities before
// add and drop, mounts, hooks, annotations, sysctls, devices, resources, RDT,
// scheduling. What others decide (command, user, namespaces, paths) is passed over
// where such files usually have it, and an error where it would be missed.
func LoadBaseSpec(file string) (*BaseSpec, error) {
	data, err := conffiles.Read(file, maxBaseSpec)
	if err != nil {
		return nil, err
	}
	spec, err := decodeBase(data)
	if err == nil {
		err = checkBase(spec)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	data, err = json.Marshal(keptOfBase(spec))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &BaseSpec{data: data}, nil
}

// copy returns a specification that is the caller's. Process, Linux and its Resources are never nil.
func (b *BaseSpec) copy() (*specs.Spec, error) {
	spec := &specs.Spec{}
	if b != nil {
		if err := json.Unmarshal(b.data, spec); err != nil {
			return nil, fmt.Errorf("copy base_runtime_spec: %w", err)
		}
	}
	if spec.Root == nil {
		spec.Root = &specs.Root{}
	}
	if spec.Process == nil {
		spec.Process = &specs.Process{}
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	return spec, nil
}

// decodeBase reads JSON that has fields of the specification only: a typing error
// would otherwise be a limit that does not hold.
func decodeBase(data []byte) (*specs.Spec, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	spec := &specs.Spec{}
	err := d.Decode(spec)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the specification")
		}
	}
	if err == nil {
		return spec, nil
	}
	offset := d.InputOffset()
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &mismatch):
		return nil, fmt.Errorf("line %d: %s: a JSON %s does not fit", lineAt(data, mismatch.Offset), mismatch.Field, mismatch.Value)
	case errors.Is(err, io.ErrUnexpectedEOF):
		offset = int64(len(data))
	}
	text := strings.TrimPrefix(err.Error(), "json: ")
	if strings.HasPrefix(text, "unknown field") { // the decoder does not tell where
		return nil, errors.New(text)
	}
	return nil, fmt.Errorf("line %d: %s", lineAt(data, offset), text)
}

func lineAt(data []byte, offset int64) int {
	offset = max(0, min(offset, int64(len(data))))
	return 1 + bytes.Count(data[:offset], []byte("\n"))
}

// checkBase checks the fields that hold, and refuses those that can't.
func checkBase(s *specs.Spec) error {
	if s.Version != "" && !strings.HasPrefix(s.Version, "1.") {
		return fmt.Errorf("ociVersion: %s is not 1.x", quote(s.Version))
	}
	for field, there := range map[string]bool{
		"windows": s.Windows != nil, "solaris": s.Solaris != nil, "vm": s.VM != nil, "zos": s.ZOS != nil, "freebsd": s.FreeBSD != nil,
	} {
		if there {
			return fmt.Errorf("%s: is not for Linux containers", field)
		}
	}
	for i, m := range s.Mounts {
		if err := checkBasePath(fmt.Sprintf("mounts[%d].destination", i), m.Destination); err != nil {
			return err
		}
	}
	if err := checkBaseProcess(s.Process); err != nil {
		return err
	}
	if err := checkBaseHooks(s.Hooks); err != nil {
		return err
	}
	return checkBaseLinux(s.Linux)
}

func checkBaseProcess(p *specs.Process) error {
	if p == nil {
		return nil
	}
	const decided = "is the request's to decide"
	switch {
	case p.ApparmorProfile != "":
		return errors.New("process.apparmorProfile: " + decided)
	case p.SelinuxLabel != "":
		return errors.New("process.selinuxLabel: " + decided)
	case p.OOMScoreAdj != nil && *p.OOMScoreAdj != 0:
		return errors.New("process.oomScoreAdj: " + decided)
	}
	for i, e := range p.Env {
		if strings.IndexByte(e, '=') <= 0 || strings.ContainsRune(e, 0) {
			return fmt.Errorf("process.env[%d]: is not of the form NAME=value", i)
		}
	}
	seen := map[string]bool{}
	for i, l := range p.Rlimits {
		field := fmt.Sprintf("process.rlimits[%d]", i)
		switch _, known := rlimits[l.Type]; {
		case !known:
			return fmt.Errorf("%s.type: %s is not a limit of getrlimit(2)", field, quote(l.Type))
		case l.Soft > l.Hard:
			return fmt.Errorf("%s.soft: %d is above the hard limit %d", field, l.Soft, l.Hard)
		case seen[l.Type]:
			return fmt.Errorf("%s.type: %s is there twice", field, l.Type)
		}
		seen[l.Type] = true
	}
	if p.Capabilities != nil {
		for i, c := range p.Capabilities.Bounding {
			if !slices.Contains(knownCaps, c) {
				return fmt.Errorf("process.capabilities.bounding[%d]: %s is no capability", i, quote(c))
			}
		}
	}
	return nil
}

func checkBaseHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	for stage, hooks := range map[string][]specs.Hook{
		"prestart":      h.Prestart, //nolint:staticcheck // SA1019: files have it, and the runtimes run it
		"createRuntime": h.CreateRuntime, "createContainer": h.CreateContainer,
		"startContainer": h.StartContainer, "poststart": h.Poststart, "poststop": h.Poststop,
	} {
		for i, hook := range hooks {
			field := fmt.Sprintf("hooks.%s[%d].", stage, i)
			if err := checkBasePath(field+"path", hook.Path); err != nil {
				return err
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return fmt.Errorf("%stimeout: %d is not above zero", field, *hook.Timeout)
			}
		}
	}
	return nil
}

func checkBaseLinux(l *specs.Linux) error {
	if l == nil {
		return nil
	}
	switch {
	case len(l.UIDMappings)+len(l.GIDMappings) > 0:
		return errors.New("linux.uidMappings: are the pod's to decide")
	case l.MountLabel != "":
		return errors.New("linux.mountLabel: is the request's to decide")
	case len(l.TimeOffsets) > 0:
		return errors.New("linux.timeOffsets: containers have no time namespace")
	case len(l.NetDevices) > 0:
		return errors.New("linux.netDevices: a device of the host can be in one container only; ask for it by CDI")
	case l.Seccomp != nil && l.Seccomp.DefaultAction == "":
		return errors.New("linux.seccomp.defaultAction: is missing")
	}
	for i, d := range l.Devices {
		field := fmt.Sprintf("linux.devices[%d].", i)
		if err := checkBasePath(field+"path", d.Path); err != nil {
			return err
		}
		if !slices.Contains([]string{"c", "b", "u", "p"}, d.Type) {
			return fmt.Errorf(`%stype: %s is not "c", "b", "u" or "p"`, field, quote(d.Type))
		}
	}
	if l.Resources != nil {
		for i, r := range l.Resources.Devices {
			if r.Access != "" && strings.Trim(r.Access, "rwm") != "" {
				return fmt.Errorf(`linux.resources.devices[%d].access: %s is not of "r", "w" and "m"`, i, quote(r.Access))
			}
		}
	}
	return nil
}

func checkBasePath(field, p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%s: %s is not an absolute and clean path", field, quote(p))
	}
	return nil
}

// keptOfBase leaves out what the request, the pod or the engine decides.
func keptOfBase(s *specs.Spec) *specs.Spec {
	kept := &specs.Spec{Hooks: s.Hooks, Annotations: s.Annotations, Mounts: slices.DeleteFunc(slices.Clone(s.Mounts), oursInBase)}
	if s.Root != nil {
		kept.Root = &specs.Root{Readonly: s.Root.Readonly}
	}
	if p := s.Process; p != nil {
		kept.Process = &specs.Process{
			Env: p.Env, Rlimits: p.Rlimits, Capabilities: p.Capabilities,
			Scheduler: p.Scheduler, IOPriority: p.IOPriority, ExecCPUAffinity: p.ExecCPUAffinity,
		}
	}
	if l := s.Linux; l != nil {
		kept.Linux = &specs.Linux{
			Sysctl: l.Sysctl, Resources: l.Resources, Devices: l.Devices, Seccomp: l.Seccomp, RootfsPropagation: l.RootfsPropagation,
			MaskedPaths: l.MaskedPaths, ReadonlyPaths: l.ReadonlyPaths, IntelRdt: l.IntelRdt, MemoryPolicy: l.MemoryPolicy, Personality: l.Personality,
		}
	}
	return kept
}

// oursInBase: the filesystems that every container has are mounted as its rights
// want them. The tmpfs at /run that `ctr oci spec` prints would hide an image's files
// there; containerd leaves it out too.
func oursInBase(m specs.Mount) bool {
	switch m.Destination {
	case "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", cgroupRoot:
		return true
	case "/run":
		return m.Type == "tmpfs"
	}
	return false
}

// OverlayResources lays limits over others: what the upper does not say stays as
// the lower has it. The rules for devices are the lower's. Neither is changed.
func OverlayResources(lower, upper *specs.LinuxResources) (*specs.LinuxResources, error) {
	over := *upper
	over.Devices = lower.Devices
	over.HugepageLimits = slices.Clone(upper.HugepageLimits)
	for _, l := range lower.HugepageLimits {
		if !slices.ContainsFunc(over.HugepageLimits, func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == l.Pagesize }) {
			over.HugepageLimits = append(over.HugepageLimits, l)
		}
	}
	result := &specs.LinuxResources{}
	for _, r := range []*specs.LinuxResources{lower, &over} {
		data, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("merge resources: %w", err)
		}
		// Fields that the JSON does not have stay, a map's keys and a pointer's fields too; lists are replaced.
		if err := json.Unmarshal(data, result); err != nil {
			return nil, fmt.Errorf("merge resources: %w", err)
		}
	}
	return result, nil
}
