package labels

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Pair are the labels of a pod or container, "" for none.
type Pair struct {
	// Process is the label of processes, Mount that of files. Their level is the same.
	Process string `json:"process,omitempty"`
	Mount   string `json:"mount,omitempty"`
}

// Options are what a request says of its labels, "" for what it leaves open.
type Options struct{ User, Role, Type, Level string }

// OptionError is an option that is wrong.
type OptionError struct {
	// Field is "user", "role", "type" or "level"; "" when only the whole is wrong.
	Field, Value, Reason string
}

// Error names field and value.
func (e *OptionError) Error() string {
	return fmt.Sprintf("SELinux option %s %q: %s", e.Field, e.Value, e.Reason)
}

// Policy is what the kernel and its policy have for containers.
type Policy struct {
	// Base are the policy's own labels for containers, without categories.
	Base Pair
	// Check asks the kernel whether the policy knows a label: EINVAL if not.
	Check func(label string) error
	// Set labels an open file; nil for one that can't be labelled.
	Set func(fd int, label string) error
}

// Labeler gives labels. It is for one process: levels that another one gave are not known to it.
type Labeler struct {
	// off says why there are no labels, "" where there are.
	off    string
	policy Policy

	mu   sync.Mutex     // Protects what is below.
	uses map[string]int // levels, by the pods and containers that have them
}

// Off gives no labels.
func Off(why string) *Labeler { return &Labeler{off: why} }

// Open finds out what the policy has for containers. With wanted false nothing has to do with
// SELinux, the libraries that would use it by themselves included. A policy that does not know containers is an
// error: nothing would keep them apart.
func Open(wanted bool) (*Labeler, error) {
	if !wanted {
		selinux.SetDisabled()
		return Off("SELinux is switched off in the engine's configuration ([runtime] selinux)"), nil
	}
	if !selinux.GetEnabled() {
		klog.InfoS("Containers have no SELinux labels: this kernel has no SELinux, or selinuxfs is not mounted")
		return Off("SELinux is not enabled in this kernel"), nil
	}
	process, mount, err := label.InitLabels(nil)
	if err != nil {
		return nil, fmt.Errorf("SELinux: the policy's labels for containers: %w", err)
	}
	selinux.ReleaseLabel(process)
	if process == "" || mount == "" {
		return nil, errors.New("SELinux: the policy has no labels for containers, which are in contexts/lxc_contexts " +
			"of the policy's directory in /etc/selinux: install container-selinux, or switch [runtime] selinux off")
	}
	return New(Policy{Base: Pair{Process: plain(process), Mount: plain(mount)}, Check: selinux.SecurityCheckContext, Set: setLabel}), nil
}

// plain is a label without the categories of its level.
func plain(label string) string {
	context, err := selinux.NewContext(label)
	if err != nil {
		return label
	}
	context["level"], _, _ = strings.Cut(context["level"], ":")
	return context.Get()
}

// New gives labels as a policy has them.
func New(p Policy) *Labeler { return &Labeler{policy: p, uses: map[string]int{}} }

// On is true where there are labels.
func (l *Labeler) On() bool { return l.off == "" }

// Info is for people.
func (l *Labeler) Info() map[string]any {
	if !l.On() {
		return map[string]any{"enabled": false, "reason": l.off}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return map[string]any{"enabled": true, "enforcing": selinux.EnforceMode() == selinux.Enforcing, "levels": len(l.uses), "base": l.policy.Base}
}

// Pod gives a pod its labels: the policy's with the request's options, and with a level of its
// own unless that is an option. The level is in use until [Labeler.Release].
// An [OptionError] for what no policy would know, or the kernel's does not; the former
// without SELinux too.
func (l *Labeler) Pod(o Options) (Pair, error) {
	if err := o.check(); err != nil || !l.On() {
		return Pair{}, err
	}
	pair, err := l.compose(l.policy.Base, o)
	if err != nil {
		return Pair{}, err
	}
	if o.Level == "" {
		if pair, err = l.ownLevel(pair); err != nil {
			return Pair{}, err
		}
	} else {
		l.Reserve(pair)
	}
	if err := l.known(pair, o); err != nil {
		l.Release(pair)
		return Pair{}, err
	}
	return pair, nil
}

// Container gives a container of the pod its labels: the pod's, with the options over them.
// Like those of [Labeler.Pod] they are to be released.
func (l *Labeler) Container(pod Pair, o Options) (Pair, error) {
	if err := o.check(); err != nil || !l.On() || pod.Mount == "" {
		return Pair{}, err
	}
	pair, err := l.compose(pod, o)
	if err != nil {
		return Pair{}, err
	}
	if err := l.known(pair, o); err != nil {
		return Pair{}, err
	}
	l.Reserve(pair)
	return pair, nil
}

// compose lays the options over a pair. The type is that of processes; what
// their files are is the policy's to say.
func (l *Labeler) compose(base Pair, o Options) (Pair, error) {
	process, err := selinux.NewContext(base.Process)
	if err != nil {
		return Pair{}, fmt.Errorf("SELinux label %q: %w", base.Process, err)
	}
	mount, err := selinux.NewContext(base.Mount)
	if err != nil {
		return Pair{}, fmt.Errorf("SELinux label %q: %w", base.Mount, err)
	}
	set := func(part, value string, contexts ...selinux.Context) {
		if value == "" {
			return
		}
		for _, c := range contexts {
			c[part] = value
		}
	}
	set("user", o.User, process, mount)
	set("role", o.Role, process)
	set("type", o.Type, process)
	set("level", o.Level, process, mount)
	return Pair{Process: process.Get(), Mount: mount.Get()}, nil
}

const (
	// categories are those of the policies that keep containers apart (MCS).
	categories = 1024
	levelTries = 1 << 14
)

// ownLevel gives the pair a level that nobody has. A policy without levels has none to give.
func (l *Labeler) ownLevel(pair Pair) (Pair, error) {
	process, err := selinux.NewContext(pair.Process)
	if err != nil || process["level"] == "" {
		return pair, err
	}
	sensitivity, _, _ := strings.Cut(process["level"], ":")
	for range levelTries {
		low, high := rand.IntN(categories), rand.IntN(categories) //nolint:gosec // G404: a level is no secret, only different from all others
		if low == high {
			continue
		}
		level := fmt.Sprintf("%s:c%d,c%d", sensitivity, min(low, high), max(low, high))
		if l.take(level) {
			return l.compose(pair, Options{Level: level})
		}
	}
	return Pair{}, errors.New("SELinux: no level is free: there are as many pods as pairs of categories")
}

// take is true when nobody had the level. The library's own list is asked too: what it made up
// elsewhere in this process is not free either.
func (l *Labeler) take(level string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.uses[level] > 0 || selinux.ReserveLabelV2(anyLabel+level) != nil {
		return false
	}
	l.uses[level] = 1
	return true
}

// anyLabel is put before a level where the library wants a whole label.
const anyLabel = "u:r:t:"

// Reserve counts another use of the pair's level: at start, one for each pod
// and container that is recorded.
func (l *Labeler) Reserve(pair Pair) {
	level := levelOf(pair)
	if level == "" || !l.On() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.uses[level]++; l.uses[level] == 1 {
		// That it was reserved already is what sharing a level looks like from here.
		if err := selinux.ReserveLabelV2(anyLabel + level); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) {
			klog.ErrorS(err, "SELinux level can't be reserved", "level", level)
		}
	}
}

// Release gives a use of the pair's level back. With the last one the level is free.
func (l *Labeler) Release(pair Pair) {
	level := levelOf(pair)
	if level == "" || !l.On() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.uses[level] == 0 {
		return
	}
	if l.uses[level]--; l.uses[level] == 0 {
		delete(l.uses, level)
		selinux.ReleaseLabel(anyLabel + level)
	}
}

func levelOf(pair Pair) string {
	context, err := selinux.NewContext(pair.Mount)
	if err != nil {
		return ""
	}
	return context["level"]
}

// Shared is the files' label without categories: what has it is open to all
// containers that the policy lets have it at all. "" without labels.
func (l *Labeler) Shared() string {
	return l.policy.Base.Mount
}

// known asks the kernel. Where we may not ask, the OCI runtime will be told.
func (l *Labeler) known(pair Pair, o Options) error {
	for _, name := range []string{pair.Process, pair.Mount} {
		err := l.policy.Check(name)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL):
			return &OptionError{Value: name, Reason: "the policy of this node does not know this label: " + o.String()}
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			klog.V(2).InfoS("The SELinux policy does not let the engine check labels", "err", err)
		default:
			return fmt.Errorf("check SELinux label %q: %w", name, err)
		}
	}
	return nil
}

// String names the options that are set.
func (o Options) String() string {
	var set []string
	for _, part := range o.parts() {
		if part.value != "" {
			set = append(set, part.name+" "+part.value)
		}
	}
	return strings.Join(set, ", ")
}

type part struct {
	name, value string
	form        *regexp.Regexp
}

func (o Options) parts() []part {
	return []part{{"user", o.User, identifier}, {"role", o.Role, identifier}, {"type", o.Type, identifier}, {"level", o.Level, levelForm}}
}

var (
	// identifier is what policy languages take as a name.
	identifier = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,255}$`)
	// levelForm is a level or a range of two, such as "s0:c1,c5" or "s0-s0:c0.c1023".
	levelForm = regexp.MustCompile(`^` + oneLevel + `(-` + oneLevel + `)?$`)
)

const oneLevel = `s[0-9]{1,4}(:c[0-9]{1,4}([.,]c[0-9]{1,4})*)?`

// maxLevel bounds a level's text, which the kernel would bound by a page with the rest.
const maxLevel = 2048

func (o Options) check() error {
	for _, part := range o.parts() {
		switch {
		case part.value == "":
		case len(part.value) > maxLevel:
			return &OptionError{Field: part.name, Reason: fmt.Sprintf("longer than %d bytes", maxLevel)}
		case !part.form.MatchString(part.value) && part.name == "level":
			return &OptionError{Field: part.name, Value: part.value, Reason: `not a level such as "s0:c1,c2"`}
		case !part.form.MatchString(part.value):
			return &OptionError{Field: part.name, Value: part.value, Reason: "not a name of an SELinux policy"}
		}
	}
	return nil
}
