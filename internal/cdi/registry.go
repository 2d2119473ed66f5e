package cdi

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/cri-engine/cri-engine/internal/conffiles"
)

// ErrInvalid says that the request names a device that is none, or that no file defines.
var ErrInvalid = errors.New("invalid CDI device")

// Bounds. A driver of dynamic resources writes a file for each claim.
const (
	maxFile    = 4 << 20
	maxFiles   = 4096
	maxTotal   = 64 << 20
	maxDevices = 1024 // that one container asks for
	// maxProblems is how many broken files an error names.
	maxProblems = 8
)

// Registry knows the devices of a node.
type Registry struct {
	dirs  []string
	files *conffiles.Dirs[*file]
}

// file is one specification.
type file struct {
	spec *cdispecs.Spec
	// devices by their name in the file, as indexes of spec.Devices.
	devices map[string]int
}

// New reads nothing yet. A device that several directories define is that of the last.
func New(dirs []string) *Registry {
	return &Registry{dirs: dirs, files: conffiles.New(conffiles.Options{
		Dirs: dirs, Extensions: []string{".json", ".yaml"}, MaxBytes: maxFile, MaxFiles: maxFiles, MaxTotal: maxTotal,
	}, func(_ string, data []byte) (*file, error) { return parse(data) })}
}

// Annotated returns the devices that annotations "cdi.k8s.io/…" ask for, in the
// order of the keys: what device plugins used before CRI had a field for it.
func Annotated(annotations map[string]string) ([]string, error) {
	var keys []string
	for key := range annotations {
		if strings.HasPrefix(key, cdi.AnnotationPrefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	var names []string
	for _, key := range keys {
		for name := range strings.SplitSeq(annotations[key], ",") {
			if !parser.IsQualifiedName(name) {
				return nil, fmt.Errorf("%w: annotation %q: %s is not of the form vendor/class=name", ErrInvalid, key, quote(name))
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// Inject edits a container's specification so that it has the devices, each once
// however often it is named. On an error the specification is not to be used.
func (r *Registry) Inject(spec *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if len(names) > maxDevices {
		return fmt.Errorf("%w: %d devices, more than %d", ErrInvalid, len(names), maxDevices)
	}
	edits, err := r.edits(names)
	if err != nil {
		return err
	}
	if err := edits.Apply(spec); err != nil {
		return fmt.Errorf("inject CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}

// edits are what the devices are made of: for each file what it has in common,
// once, and then what its device has.
func (r *Registry) edits(names []string) (*cdi.ContainerEdits, error) {
	files, dirErr := r.files.Read()
	all := &cdi.ContainerEdits{}
	var used []*file
	var seen []string
	for _, name := range names {
		if slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		vendor, class, device, err := parser.ParseQualifiedName(name)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, quote(name), err)
		}
		f, err := find(files, vendor+"/"+class, device)
		if err != nil {
			return nil, fmt.Errorf("%w: %s %w", ErrInvalid, quote(name), r.explain(err, files, dirErr))
		}
		if !slices.Contains(used, f) {
			used = append(used, f)
			if err := add(all, f.spec.ContainerEdits); err != nil {
				return nil, err
			}
		}
		if err := add(all, f.spec.Devices[f.devices[device]].ContainerEdits); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// errNone is the end of a search that found nothing.
var errNone = errors.New("is not defined")

// find returns the file that defines a device: of several the one in the last
// directory, and none where two of the same directory do.
func find(files []conffiles.File[*file], kind, device string) (*file, error) {
	var found *conffiles.File[*file]
	for i, f := range files {
		if f.Err != nil || f.Value.spec.Kind != kind {
			continue
		}
		if _, ok := f.Value.devices[device]; !ok {
			continue
		}
		if found != nil && found.Dir == f.Dir {
			return nil, fmt.Errorf("is defined by both %s and %s", found.Path, f.Path)
		}
		found = &files[i]
	}
	if found == nil {
		return nil, errNone
	}
	return found.Value, nil
}

// explain says where a device was looked for, and what could not be read there.
func (r *Registry) explain(err error, files []conffiles.File[*file], dirErr error) error {
	if !errors.Is(err, errNone) {
		return err
	}
	var problems []string
	if dirErr != nil {
		problems = append(problems, dirErr.Error())
	}
	for _, f := range files {
		if f.Err != nil {
			problems = append(problems, f.Err.Error())
		}
	}
	text := ""
	if len(problems) > 0 {
		more := ""
		if n := len(problems) - maxProblems; n > 0 {
			problems, more = problems[:maxProblems], fmt.Sprintf("; and %d more", n)
		}
		text = " (not all there can be used: " + strings.Join(problems, "; ") + more + ")"
	}
	return fmt.Errorf("%w in %s%s", errNone, strings.Join(r.dirs, ", "), text)
}

// add appends a copy: applying edits fills in what it finds of the host's device
// nodes, and the next container is to be given what is there then.
func add(all *cdi.ContainerEdits, edits cdispecs.ContainerEdits) error {
	data, err := json.Marshal(edits)
	if err != nil {
		return fmt.Errorf("copy CDI edits: %w", err)
	}
	own := &cdispecs.ContainerEdits{}
	if err := json.Unmarshal(data, own); err != nil {
		return fmt.Errorf("copy CDI edits: %w", err)
	}
	all.Append(&cdi.ContainerEdits{ContainerEdits: own})
	return nil
}

// parse reads and checks one specification, in JSON or YAML.
func parse(data []byte) (*file, error) {
	spec, err := cdi.ParseSpec(data)
	if err != nil {
		return nil, err
	}
	if spec == nil {
		return nil, errors.New("has no specification")
	}
	if err := checkEdits("containerEdits", spec.ContainerEdits, false); err != nil {
		return nil, err
	}
	f := &file{spec: spec, devices: map[string]int{}}
	for i, d := range spec.Devices {
		field := fmt.Sprintf("devices[%d]", i)
		if err := parser.ValidateDeviceName(d.Name); err != nil {
			return nil, fmt.Errorf("%s.name: %w", field, err)
		}
		if _, twice := f.devices[d.Name]; twice {
			return nil, fmt.Errorf("%s.name: %s is there twice", field, quote(d.Name))
		}
		f.devices[d.Name] = i
		if err := checkEdits(field+".containerEdits", d.ContainerEdits, true); err != nil {
			return nil, err
		}
	}
	if len(spec.Devices) == 0 {
		return nil, errors.New("devices: there are none")
	}
	vendor, class := parser.ParseQualifier(spec.Kind)
	if err := errors.Join(parser.ValidateVendorName(vendor), parser.ValidateClassName(class)); err != nil {
		return nil, fmt.Errorf("kind %s: %w", quote(spec.Kind), err)
	}
	// Last: it looks through all of the edits, and takes none of them to be missing.
	if err := cdispecs.ValidateVersion(spec); err != nil {
		return nil, fmt.Errorf("cdiVersion: %w", err)
	}
	return f, nil
}

// checkEdits checks what a device consists of; one that consists of nothing is a mistake.
func checkEdits(field string, e cdispecs.ContainerEdits, needed bool) error {
	if slices.Contains(e.DeviceNodes, nil) || slices.Contains(e.NetDevices, nil) || slices.Contains(e.Hooks, nil) || slices.Contains(e.Mounts, nil) {
		return fmt.Errorf("%s: an entry is empty", field)
	}
	if needed && len(e.Env)+len(e.DeviceNodes)+len(e.NetDevices)+len(e.Hooks)+len(e.Mounts)+len(e.AdditionalGIDs) == 0 && e.IntelRdt == nil {
		return fmt.Errorf("%s: there are none", field)
	}
	for i, n := range e.DeviceNodes {
		if !filepath.IsAbs(n.Path) || n.HostPath != "" && !filepath.IsAbs(n.HostPath) {
			return fmt.Errorf("%s.deviceNodes[%d]: %s or %s is not an absolute path", field, i, quote(n.Path), quote(n.HostPath))
		}
	}
	for i, h := range e.Hooks {
		if !filepath.IsAbs(h.Path) {
			return fmt.Errorf("%s.hooks[%d].path: %s is not an absolute path", field, i, quote(h.Path))
		}
	}
	for i, m := range e.Mounts {
		if !filepath.IsAbs(m.ContainerPath) {
			return fmt.Errorf("%s.mounts[%d].containerPath: %s is not an absolute path", field, i, quote(m.ContainerPath))
		}
	}
	if err := (&cdi.ContainerEdits{ContainerEdits: &e}).Validate(); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}

func quote(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return fmt.Sprintf("%q", s)
}
