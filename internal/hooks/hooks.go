package hooks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/conffiles"
)

// Bounds of the files and of what one says.
const (
	maxFile  = 256 << 10
	maxFiles = 1024
	maxTotal = 4 << 20
	// version of the format that is read.
	version = "1.0.0"
)

// Hooks are those of a node's directories.
type Hooks struct {
	files *conffiles.Dirs[*hook]

	mu   sync.Mutex        // Protects told.
	told map[string]string // what was logged last, by file
}

// hook is a file.
type hook struct {
	specs.Hook
	stages []string
	when   when
}

// when says for which containers: those that meet all conditions that are there.
type when struct {
	always, hasBindMounts *bool
	annotations           []pair
	commands              []*regexp.Regexp
}

type pair struct{ key, value *regexp.Regexp }

// New reads the directories; a file that can't be used is an error. A later
// directory's file comes in the place of an earlier one's with the same name.
func New(dirs []string) (*Hooks, error) {
	h := &Hooks{told: map[string]string{}, files: conffiles.New(conffiles.Options{
		Dirs: dirs, Extensions: []string{".json"}, MaxBytes: maxFile, MaxFiles: maxFiles, MaxTotal: maxTotal,
	}, func(_ string, data []byte) (*hook, error) { return parse(data) })}
	files, err := h.files.Read()
	errs := []error{err}
	for _, f := range files {
		errs = append(errs, f.Err)
	}
	return h, errors.Join(errs...)
}

// Container is what conditions look at, beside the command.
type Container struct {
	// Annotations of the container and its pod.
	Annotations map[string]string
	// BindMounts: it has mounts of the host's that were asked for.
	BindMounts bool
}

// Apply adds the hooks that are for this container to its specification, in the
// order of the files' names.
func (h *Hooks) Apply(spec *specs.Spec, c Container) error {
	files, err := h.files.Read()
	if err != nil {
		// What was not read may be what confines the container.
		return fmt.Errorf("OCI hooks: %w", err)
	}
	byName := map[string]*hook{}
	for _, f := range files {
		h.tell(f.Path, f.Err)
		if f.Err == nil || f.Stale {
			byName[filepath.Base(f.Path)] = f.Value
		}
	}
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if hook := byName[name]; hook.when.match(spec, c) {
			hook.add(spec)
		}
	}
	return nil
}

// tell logs what is wrong with a file, once.
func (h *Hooks) tell(path string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	h.mu.Lock()
	told := h.told[path]
	h.told[path] = text
	if text == "" {
		delete(h.told, path)
	}
	h.mu.Unlock()
	if text != "" && text != told {
		klog.ErrorS(err, "OCI hook's file cannot be used; what it said before holds, if anything")
	}
}

func (h *hook) add(spec *specs.Spec) {
	if spec.Hooks == nil {
		spec.Hooks = &specs.Hooks{}
	}
	for _, stage := range h.stages {
		to := stageOf(spec.Hooks, stage)
		*to = append(*to, h.Hook)
	}
}

// stageOf returns nil for what is no stage.
func stageOf(h *specs.Hooks, stage string) *[]specs.Hook {
	switch stage {
	case "prestart":
		return &h.Prestart //nolint:staticcheck // SA1019: oci-hooks(5) has it, and the runtimes run it
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "startContainer":
		return &h.StartContainer
	case "poststart":
		return &h.Poststart
	case "poststop":
		return &h.Poststop
	}
	return nil
}

// match: all conditions that are there must hold, and one must be there.
func (w *when) match(spec *specs.Spec, c Container) bool {
	some := false
	if w.always != nil {
		if !*w.always {
			return false
		}
		some = true
	}
	if w.hasBindMounts != nil && *w.hasBindMounts {
		if !c.BindMounts {
			return false
		}
		some = true
	}
	for _, p := range w.annotations {
		if !p.matches(c.Annotations) {
			return false
		}
		some = true
	}
	if len(w.commands) > 0 {
		if spec.Process == nil || len(spec.Process.Args) == 0 ||
			!slices.ContainsFunc(w.commands, func(r *regexp.Regexp) bool { return r.MatchString(spec.Process.Args[0]) }) {
			return false
		}
		some = true
	}
	return some
}

func (p pair) matches(annotations map[string]string) bool {
	for key, value := range annotations {
		if p.key.MatchString(key) && p.value.MatchString(value) {
			return true
		}
	}
	return false
}

// document is a file's JSON.
type document struct {
	Version string      `json:"version"`
	Hook    *specs.Hook `json:"hook"`
	When    *struct {
		Always        *bool             `json:"always"`
		Annotations   map[string]string `json:"annotations"`
		Commands      []string          `json:"commands"`
		HasBindMounts *bool             `json:"hasBindMounts"`
	} `json:"when"`
	Stages []string `json:"stages"`
}

// parse reads a file and checks all of it.
func parse(data []byte) (*hook, error) {
	var doc document
	d := json.NewDecoder(bytes.NewReader(data))
	// A condition with a typing error would not hold anyone back.
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the hook")
	}
	switch {
	case doc.Version != version:
		return nil, fmt.Errorf("version: %.40q is not %q", doc.Version, version)
	case doc.Hook == nil:
		return nil, errors.New("hook: is missing")
	case doc.When == nil:
		return nil, errors.New("when: is missing")
	case len(doc.Stages) == 0:
		return nil, errors.New("stages: are missing")
	}
	h := &hook{Hook: *doc.Hook, stages: doc.Stages, when: when{always: doc.When.Always, hasBindMounts: doc.When.HasBindMounts}}
	if err := h.check(); err != nil {
		return nil, err
	}
	for key, value := range doc.When.Annotations {
		k, err := regexp.Compile(key)
		if err != nil {
			return nil, fmt.Errorf("when.annotations: the key %.200q: %w", key, err)
		}
		v, err := regexp.Compile(value)
		if err != nil {
			return nil, fmt.Errorf("when.annotations: the value %.200q: %w", value, err)
		}
		h.when.annotations = append(h.when.annotations, pair{k, v})
	}
	for i, command := range doc.When.Commands {
		r, err := regexp.Compile(command)
		if err != nil {
			return nil, fmt.Errorf("when.commands[%d]: %w", i, err)
		}
		h.when.commands = append(h.when.commands, r)
	}
	return h, nil
}

func (h *hook) check() error {
	if !filepath.IsAbs(h.Path) {
		return fmt.Errorf("hook.path: %.200q is not an absolute path", h.Path)
	}
	if _, err := os.Stat(h.Path); err != nil {
		return fmt.Errorf("hook.path: %w", err)
	}
	if h.Timeout != nil && *h.Timeout <= 0 {
		return fmt.Errorf("hook.timeout: %d is not above zero", *h.Timeout)
	}
	for i, e := range h.Env {
		if strings.IndexByte(e, '=') <= 0 {
			return fmt.Errorf("hook.env[%d]: is not of the form NAME=value", i)
		}
	}
	for i, stage := range h.stages {
		if stageOf(&specs.Hooks{}, stage) == nil {
			return fmt.Errorf("stages[%d]: %.40q is not a stage of oci-hooks(5)", i, stage)
		}
		if slices.Contains(h.stages[:i], stage) {
			return fmt.Errorf("stages[%d]: %q is there twice", i, stage)
		}
	}
	return nil
}
