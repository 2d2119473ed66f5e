package apparmor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	// parserTimeout bounds the parser, which takes milliseconds on any machine but an emulated one.
	parserTimeout = 30 * time.Second
	// maxProfiles bounds the kernel's list of profiles, in bytes.
	maxProfiles = 16 << 20
	maxMessage  = 2 << 10
)

// Host is the AppArmor of a machine.
type Host struct {
	// root is put before every path: "" but in tests.
	root string
	// parse loads a profile into the kernel.
	parse func(ctx context.Context, text string) error
}

// ThisHost is the machine we run on.
func ThisHost() *Host { return HostAt("") }

// HostAt is a machine whose files are beneath root.
func HostAt(root string) *Host { return &Host{root: root, parse: runParser} }

const (
	enabledFile  = "/sys/module/apparmor/parameters/enabled"
	securityDir  = "/sys/kernel/security/apparmor"
	profilesFile = securityDir + "/profiles"
	policyDir    = "/etc/apparmor.d"
)

// Why says why no profile can be applied on this machine, "" where they can. The
// OCI runtimes look at the same two files.
func (h *Host) Why() string {
	enabled, _ := os.ReadFile(h.path(enabledFile))
	if !strings.HasPrefix(string(enabled), "Y") {
		return "AppArmor is not enabled in this kernel"
	}
	if _, err := os.Stat(h.path(securityDir)); err != nil {
		return "AppArmor's files are not in " + securityDir + ": mount securityfs"
	}
	return ""
}

// Loaded tells whether the kernel has the profile, in whatever mode.
func (h *Host) Loaded(name string) (bool, error) {
	f, err := os.Open(h.path(profilesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxProfiles))
	for lines.Scan() {
		// "name (enforce)"; a name may have blanks and parentheses of its own.
		line := lines.Text()
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == name {
			return true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	return false, nil
}

// load has the kernel know the profile, and looks whether it does.
func (h *Host) load(p profile) error {
	loaded, err := h.Loaded(p.name)
	if loaded || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), parserTimeout)
	defer cancel()
	if err := h.parse(ctx, p.text); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w", p.name, err)
	}
	loaded, err = h.Loaded(p.name)
	if err == nil && !loaded {
		err = fmt.Errorf("load AppArmor profile %s: the parser succeeded, but the kernel does not list it", p.name)
	}
	return err
}

// DefaultName is the name of the engine's default profile.
func (h *Host) DefaultName() string { return h.defaultProfile().name }

func (h *Host) defaultProfile() profile {
	_, err := os.Stat(h.path(filepath.Join(policyDir, abi)))
	return defaultProfile(err == nil, h.ownLabel())
}

// plainLabel is a label that means only itself in a rule.
var plainLabel = regexp.MustCompile(`^[A-Za-z0-9_./-]+$`)

// ownLabel is the profile that confines us, so that containers take our signals;
// "" where none does, or one whose name can't be written in a rule.
func (h *Host) ownLabel() string {
	for _, file := range []string{"/proc/self/attr/apparmor/current", "/proc/self/attr/current"} {
		text, err := os.ReadFile(h.path(file))
		if err != nil {
			continue
		}
		label, _, _ := strings.Cut(strings.TrimRight(string(text), "\x00\n"), " (")
		if label == "unconfined" || !plainLabel.MatchString(label) {
			return ""
		}
		return label
	}
	return ""
}

func (h *Host) path(name string) string { return filepath.Join("/", h.root, name) }

// Parser is where apparmor_parser is, "" for nowhere. Its directory is not in everyone's PATH.
func Parser() string {
	for _, name := range []string{"apparmor_parser", "/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// runParser loads a profile. Replacing is adding where there is nothing to replace,
// and the cache would only keep what the kernel keeps.
func runParser(ctx context.Context, text string) error {
	parser := Parser()
	if parser == "" {
		return errors.New("there is no apparmor_parser: install the package apparmor")
	}
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader(text)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	message := strings.TrimSpace(string(out[:min(len(out), maxMessage)]))
	return fmt.Errorf("%s: %w: %s", parser, err, message)
}
