package apparmor

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeHost is a machine whose files are those given; loading a profile puts it into the kernel's list.
func fakeHost(t testing.TB, files map[string]string) *Host {
	t.Helper()
	h := &Host{root: t.TempDir()}
	for name, text := range files {
		put(t, h, name, text)
	}
	h.parse = func(_ context.Context, text string) error {
		_, rest, _ := strings.Cut(text, "profile ")
		name, _, _ := strings.Cut(rest, " ")
		list, err := os.ReadFile(h.path(profilesFile))
		put(t, h, profilesFile, string(list)+name+" (enforce)\n")
		return err
	}
	return h
}

func put(t testing.TB, h *Host, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.path(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func able() map[string]string {
	return map[string]string{enabledFile: "Y\n", profilesFile: "/usr/sbin/named (complain)\nwith (blanks) in it (enforce)\nsome//child (kill)\n"}
}

func TestAMachineWithoutAppArmor(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		on    bool
		want  string
	}{
		"a kernel that has none":             {map[string]string{}, true, "not enabled in this kernel"},
		"a kernel where it is off":           {map[string]string{enabledFile: "N\n", profilesFile: ""}, true, "not enabled in this kernel"},
		"securityfs is not mounted":          {map[string]string{enabledFile: "Y\n"}, true, "mount securityfs"},
		"the configuration says no":          {able(), false, "[runtime] apparmor"},
		"the configuration says no, and why": {map[string]string{}, false, "[runtime] apparmor"},
	} {
		t.Run(name, func(t *testing.T) {
			p := Open(fakeHost(t, c.files), c.on, "")
			if got, err := p.Default(); got != "" || err != nil {
				t.Errorf("the default is %q, %v", got, err)
			}
			if loaded, err := p.Loaded("x"); loaded || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("a named profile: %v, %v; want %q", loaded, err, c.want)
			}
			if p.Info()["enabled"] != false {
				t.Errorf("info %v", p.Info())
			}
		})
	}
}

func TestLoadedProfilesAreFoundByTheirWholeName(t *testing.T) {
	h := fakeHost(t, able())
	for name, want := range map[string]bool{
		"/usr/sbin/named": true, "with (blanks) in it": true, "some//child": true,
		"some": false, "child": false, "with": false, "": false, "/usr/sbin/named (complain)": false,
	} {
		if got, err := h.Loaded(name); got != want || err != nil {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
}

func TestTheDefaultProfile(t *testing.T) {
	t.Run("is loaded at the start, and again where it was unloaded", func(t *testing.T) {
		h := fakeHost(t, able())
		p := Open(h, true, "")
		name, err := p.Default()
		if loaded, _ := h.Loaded(name); err != nil || !loaded || !strings.HasPrefix(name, namePrefix) {
			t.Fatalf("%q, %v, loaded %v", name, err, loaded)
		}
		put(t, h, profilesFile, "")
		if again, err := p.Default(); again != name || err != nil {
			t.Errorf("%q, %v", again, err)
		}
		if loaded, _ := h.Loaded(name); !loaded {
			t.Error("it was not loaded again")
		}
	})
	t.Run("that can't be loaded again is an error, never left out", func(t *testing.T) {
		h := fakeHost(t, able())
		p := Open(h, true, "")
		put(t, h, profilesFile, "")
		h.parse = func(context.Context, string) error { return errors.New("no parser") }
		if _, err := p.Default(); !errors.Is(err, ErrNotLoaded) || errors.Is(err, ErrNoDefault) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("that could never be loaded says so", func(t *testing.T) {
		h := fakeHost(t, able())
		h.parse = func(context.Context, string) error { return errors.New("no parser") }
		p := Open(h, true, "")
		if _, err := p.Default(); !errors.Is(err, ErrNoDefault) || !strings.Contains(err.Error(), "no parser") {
			t.Errorf("error %v", err)
		}
		if loaded, err := p.Loaded("/usr/sbin/named"); !loaded || err != nil {
			t.Errorf("others can't be used: %v, %v", loaded, err)
		}
	})
	t.Run("is not believed to be loaded because the parser says so", func(t *testing.T) {
		h := fakeHost(t, able())
		h.parse = func(context.Context, string) error { return nil }
		if err := h.load(h.defaultProfile()); err == nil || !strings.Contains(err.Error(), "does not list it") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("can be another, which must be loaded", func(t *testing.T) {
		h := fakeHost(t, able())
		if got, err := Open(h, true, "/usr/sbin/named").Default(); got != "/usr/sbin/named" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if got, err := Open(h, true, Unconfined).Default(); got != "" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := Open(h, true, "mine").Default(); !errors.Is(err, ErrNotLoaded) || !strings.Contains(err.Error(), `"mine"`) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("has a name that changes with its text", func(t *testing.T) {
		plain, other, confined := defaultProfile(true, ""), defaultProfile(false, ""), defaultProfile(true, "engine")
		if plain.name == other.name || plain.name == confined.name || plain != defaultProfile(true, "") {
			t.Errorf("names %s, %s, %s", plain.name, other.name, confined.name)
		}
	})
	t.Run("lets the engine's own profile send signals", func(t *testing.T) {
		for current, want := range map[string]string{
			"unconfined\n": "", "my-engine (enforce)\n": "peer=my-engine,", "a//&:ns:b (enforce)": "", "x, }\nprofile y { (enforce)": "",
		} {
			h := fakeHost(t, map[string]string{"/proc/self/attr/current": current})
			if text := h.defaultProfile().text; want != "" && !strings.Contains(text, want) || want == "" && text != defaultProfile(false, "").text {
				t.Errorf("label %q: %s", current, text)
			}
		}
	})
}

// TestTheDefaultProfileCompiles has the parser compile the profile for a kernel
// of its own choice, so no kernel with AppArmor is needed.
func TestTheDefaultProfileCompiles(t *testing.T) {
	parser := Parser()
	if parser == "" {
		t.Skip("apparmor_parser is not installed")
	}
	features := filepath.Join(policyDir, abi)
	if _, err := os.Stat(features); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache", "--stdout", "--kernel-features", features)
	cmd.Stdin = strings.NewReader(defaultProfile(true, "own").text)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if out, err := cmd.Output(); err != nil || len(out) < 1000 || complaints.Len() > 0 {
		t.Errorf("%d bytes, %v: %s", len(out), err, complaints.String())
	}
}
