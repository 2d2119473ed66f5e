package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// HandlerConfig is one OCI runtime as configured.
type HandlerConfig struct {
	Name string
	// Path is a binary's name or absolute path; "" looks up Type, or Name when that is empty too.
	Path string
	// Type is "runc" or "crun": which command line it speaks; "" guesses from the binary's name.
	// "auto", or the name "auto" with neither path nor type, is crun where it works, else runc.
	Type string
	// Root is the runtime's --root; "" for STATE/runtime/NAME.
	Root string
	// Annotations of pods and containers that are let through to the spec, as path.Match patterns.
	Annotations []string
	// Sandbox: the handler needs a sandbox process of its own (gVisor, VMs) even without a shared PID namespace.
	Sandbox                      bool
	PrivilegedWithoutHostDevices bool
	// Base is what the handler's containers have beside what the request says; nil for nothing.
	Base *BaseSpec
	// CgroupDriver that containers will have, for the trial; "" for what "auto" detects.
	CgroupDriver CgroupDriver
}

// The types of handlers.
const (
	typeAuto = "auto"
	typeRunc = "runc"
	typeCrun = "crun"
)

// Handler is an OCI runtime that was found and asked what it can do. It does
// not change.
type Handler struct {
	HandlerConfig
	// Binary is the absolute path, Version what it says of itself.
	Binary, Version string
	// Features is what it says it can do; of an older runtime that does not say, the zero value.
	Features features.Features
	// RecursiveReadOnlyMounts as CRI's RuntimeHandlerFeatures want it.
	RecursiveReadOnlyMounts bool
	// NoUserNamespaces says why pods can't have a user namespace with this handler; "" when they can.
	NoUserNamespaces string
	// OCIVersion to write into specs: the newest that both sides know.
	OCIVersion string
}

// FindHandlers returns the handlers that work here, in the order given. For
// type auto, a container is really run (and removed) with crun and, when that
// fails, with runc; of others, version and features are asked. What was found
// out is kept in stateDir until a binary, the cgroups or the boot changes, so
// only the first call takes its 0.1 s or so. The container's program is put beneath
// rootDir: stateDir may be where nothing is executed (Debian mounts /run noexec).
//
// A handler that was configured and does not work is an error that says why;
// the errors of all such are joined, and the handlers that do work are
// returned beside it.
func FindHandlers(ctx context.Context, configs []HandlerConfig, stateDir, rootDir string) ([]*Handler, error) {
	p := &prober{stateDir: stateDir, rootDir: rootDir, cache: openProbeCache(stateDir)}
	defer p.cache.save()
	var found []*Handler
	var errs []error
	for _, c := range configs {
		h, err := p.find(ctx, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("handler %s: %w", c.Name, err))
			continue
		}
		found = append(found, h)
	}
	return found, errors.Join(errs...)
}

// prober finds handlers for one call.
type prober struct {
	stateDir string
	rootDir  string
	cache    *probeCache
}

func (p *prober) find(ctx context.Context, c HandlerConfig) (*Handler, error) {
	if c.Name == "" || c.Name != filepath.Base(c.Name) || strings.HasPrefix(c.Name, ".") {
		return nil, fmt.Errorf("%s is no name for a handler", quote(c.Name))
	}
	if c.Root == "" {
		c.Root = filepath.Join(p.stateDir, "runtime", c.Name)
	}
	if c.CgroupDriver == "" {
		var err error
		if c.CgroupDriver, err = DetectCgroupDriver("auto"); err != nil {
			return nil, err
		}
	}
	if c.Type != typeAuto && (c.Name != typeAuto || c.Path != "" || c.Type != "") {
		return p.probe(ctx, c, false)
	}
	if c.Path != "" {
		return nil, errors.New(`type "auto" looks for a binary itself, and takes no path`)
	}
	var errs []error
	for _, c.Type = range []string{typeCrun, typeRunc} {
		h, err := p.probe(ctx, c, true)
		if err == nil {
			return h, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// probe asks one binary, and runs the trial with it when told to.
func (p *prober) probe(ctx context.Context, c HandlerConfig, trial bool) (*Handler, error) {
	binary, err := lookUp(c)
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case typeRunc, typeCrun:
	case "":
		c.Type = typeRunc
		if strings.Contains(filepath.Base(binary), typeCrun) {
			c.Type = typeCrun
		}
	default:
		return nil, fmt.Errorf("type %s: not %q, %q or %q", quote(c.Type), typeAuto, typeRunc, typeCrun)
	}
	key, err := probeKey(binary, c.CgroupDriver)
	if err != nil {
		return nil, err
	}
	known := p.cache.get(key)
	if known.Version == "" {
		if known.Version, known.Features, err = ask(ctx, binary, p.stateDir); err != nil {
			return nil, err
		}
	}
	h := newHandler(c, binary, known)
	if trial && known.Trial == "" {
		switch err := runTrial(ctx, h, p.stateDir, p.rootDir); {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
			// That says more about the moment than about the binary.
			return nil, fmt.Errorf("a trial container with %s took too long: %w", binary, err)
		case err != nil:
			known.Trial = err.Error()
		default:
			known.Trial = trialPassed
		}
	}
	p.cache.put(key, known)
	if trial && known.Trial != trialPassed {
		return nil, fmt.Errorf("a trial container failed with %s: %s", binary, known.Trial)
	}
	return h, nil
}

func newHandler(c HandlerConfig, binary string, known probed) *Handler {
	version, _, _ := strings.Cut(known.Version, "\n")
	h := &Handler{
		HandlerConfig: c, Binary: binary, Version: version, Features: known.Features,
		RecursiveReadOnlyMounts: slices.Contains(known.Features.MountOptions, "rro") && kernelAtLeast(5, 12),
		OCIVersion:              ociVersion(known.Features.OCIVersionMax, known.Version),
	}
	h.NoUserNamespaces = noUserNamespaces(h)
	return h
}

// MovesNetDevices is true where the runtime says that it moves the host's network
// devices into containers (linux.netDevices, OCI runtime spec 1.3).
func (h *Handler) MovesNetDevices() bool {
	l := h.Features.Linux
	return l != nil && l.NetDevices != nil && l.NetDevices.Enabled != nil && *l.NetDevices.Enabled
}

// sbin are where OCI runtimes are, should our PATH not say so.
var sbin = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// lookUp returns the absolute path of the handler's binary.
func lookUp(c HandlerConfig) (string, error) {
	name := c.Path
	for _, or := range []string{c.Type, c.Name} {
		if name == "" {
			name = or
		}
	}
	binary, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(binary)
	}
	if filepath.Base(name) == name {
		for _, dir := range sbin {
			if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return found, nil
			}
		}
	}
	return "", fmt.Errorf("find OCI runtime: %w", err)
}

// ask has a binary tell its version and its features; not all know the latter.
func ask(ctx context.Context, binary, stateDir string) (version string, f features.Features, err error) {
	if err := os.MkdirAll(stateDir, 0o711); err != nil {
		return "", f, err
	}
	root, err := os.MkdirTemp(stateDir, "probe-")
	if err != nil {
		return "", f, err
	}
	defer func() { _ = os.RemoveAll(root) }()
	out, err := output(ctx, binary, root, "--version")
	if err != nil {
		return "", f, err
	}
	version = strings.TrimSpace(string(out))
	if version == "" {
		return "", f, fmt.Errorf("%s --version: printed nothing", binary)
	}
	out, err = output(ctx, binary, root, "features")
	if ctx.Err() != nil {
		return "", f, ctx.Err()
	}
	if err == nil && json.Unmarshal(out, &f) != nil {
		f = features.Features{}
	}
	return version, f, nil
}

// oldestVersion is what every OCI runtime reads.
const oldestVersion = "1.0.0"

// ociVersion is the newest version that we write and the runtime reads: what
// its features say, else the "spec:" line that runc and crun print with their version.
func ociVersion(newest, version string) string {
	if newest == "" {
		for line := range strings.Lines(version) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "spec:"); ok {
				newest = strings.TrimSpace(v)
			}
		}
	}
	var theirs, ours [3]int
	if _, err := fmt.Sscanf(newest, "%d.%d.%d", &theirs[0], &theirs[1], &theirs[2]); err != nil {
		return oldestVersion
	}
	if _, err := fmt.Sscanf(specs.Version, "%d.%d.%d", &ours[0], &ours[1], &ours[2]); err != nil {
		return oldestVersion
	}
	if slices.Compare(theirs[:], ours[:]) < 0 {
		return newest
	}
	return specs.Version
}

// tail returns the end of a runtime's output, for an error.
func tail(file string) string {
	const most = 2048
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	data = data[max(0, len(data)-most):]
	return strings.TrimSpace(strings.ToValidUTF8(string(data), "?"))
}
