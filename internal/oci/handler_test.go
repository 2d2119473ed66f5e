package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

func linuxWithoutSeccomp() *features.Linux {
	off := false
	return &features.Linux{Seccomp: &features.Seccomp{Enabled: &off}}
}

// fakeRuntime is a script that answers as an OCI runtime would, or would not, and notes each call.
func fakeRuntime(tb testing.TB, name, version, features string) (binary, calls string) {
	tb.Helper()
	dir := tb.TempDir()
	binary, calls = filepath.Join(dir, name), filepath.Join(dir, "calls")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --root ] && shift 2\necho \"$1\" >> %s\ncase \"$1\" in\n--version) %s;;\nfeatures) %s;;\n*) exit 1;;\nesac\n", calls, version, features)
	write(tb, binary, script)
	if err := os.Chmod(binary, 0o755); err != nil {
		tb.Fatal(err)
	}
	return binary, calls
}

const (
	saysVersion  = `printf 'runc version 1.2.3\ncommit: abc\nspec: 1.2.0\n'`
	saysFeatures = `printf '{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.1","mountOptions":["ro","rro"]}'`
)

func TestFindHandlers(t *testing.T) {
	ctx := context.Background()
	t.Run("a runtime is asked for version and features, once until it changes", func(t *testing.T) {
		binary, calls := fakeRuntime(t, "runc", saysVersion, saysFeatures)
		state := t.TempDir()
		find := func() *Handler {
			t.Helper()
			found, err := FindHandlers(ctx, []HandlerConfig{{Name: "mine", Path: binary}}, state, state)
			if err != nil || len(found) != 1 {
				t.Fatalf("found %v, error %v", found, err)
			}
			return found[0]
		}
		for range 2 {
			h := find()
			if h.Binary != binary || h.Version != "runc version 1.2.3" || h.OCIVersion != "1.2.1" || h.Type != typeRunc ||
				h.Root != filepath.Join(state, "runtime", "mine") || h.RecursiveReadOnlyMounts != kernelAtLeast(5, 12) {
				t.Errorf("handler %+v", h)
			}
		}
		if n := strings.Count(readFile(calls), "\n"); n != 2 {
			t.Errorf("%d calls, want 2", n)
		}
		if err := os.Chtimes(binary, time.Time{}, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		find()
		if n := strings.Count(readFile(calls), "\n"); n != 4 {
			t.Errorf("%d calls after the binary changed, want 4", n)
		}
	})
	t.Run("one that does not know features is believed its version", func(t *testing.T) {
		binary, _ := fakeRuntime(t, "crun-9", saysVersion, "exit 1")
		found, err := FindHandlers(ctx, []HandlerConfig{{Name: "mine", Path: binary}}, t.TempDir(), t.TempDir())
		if err != nil || found[0].OCIVersion != "1.2.0" || found[0].Type != typeCrun || found[0].RecursiveReadOnlyMounts {
			t.Errorf("found %+v, error %v", found, err)
		}
	})
	t.Run("features that are no JSON, and a cache that is damaged, are as if not there", func(t *testing.T) {
		binary, _ := fakeRuntime(t, "runc", saysVersion, `echo '{'`)
		state := t.TempDir()
		write(t, state+"/handlers.json", "{\x00")
		if found, err := FindHandlers(ctx, []HandlerConfig{{Name: "mine", Path: binary}}, state, state); err != nil || found[0].OCIVersion != "1.2.0" {
			t.Errorf("found %+v, error %v", found, err)
		}
	})
	t.Run("one that floods us is refused, and the others are found beside it", func(t *testing.T) {
		flood, _ := fakeRuntime(t, "runc", "head -c 5000000 /dev/zero", "exit 1")
		good, _ := fakeRuntime(t, "runc", saysVersion, saysFeatures)
		found, err := FindHandlers(ctx, []HandlerConfig{{Name: "flood", Path: flood}, {Name: "good", Path: good}}, t.TempDir(), t.TempDir())
		if err == nil || !strings.Contains(err.Error(), "handler flood: ") || len(found) != 1 || found[0].Name != "good" {
			t.Errorf("found %v, error %v", found, err)
		}
	})
	t.Run("one that hangs ends with the caller's patience", func(t *testing.T) {
		binary, _ := fakeRuntime(t, "runc", "exec sleep 60", "exit 1")
		ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if _, err := FindHandlers(ctx, []HandlerConfig{{Name: "mine", Path: binary}}, t.TempDir(), t.TempDir()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
	silent, _ := fakeRuntime(t, "runc", "exit 0", "exit 0")
	for name, c := range map[string]HandlerConfig{
		"a binary that does not exist": {Name: "x", Path: "/no/such/runtime"},
		"a name that is a path":        {Name: "../x", Path: "/bin/true"},
		"no name":                      {Path: "/bin/true"},
		"an unknown type":              {Name: "x", Path: "/bin/true", Type: "vm"},
		"auto with a path":             {Name: "x", Path: "/bin/true", Type: "auto"},
		"one that says nothing":        {Name: "x", Path: silent},
	} {
		t.Run(name+" is an error", func(t *testing.T) {
			if found, err := FindHandlers(ctx, []HandlerConfig{c}, t.TempDir(), t.TempDir()); err == nil || len(found) != 0 {
				t.Errorf("found %v", found)
			}
		})
	}
}

func TestOCIVersion(t *testing.T) {
	for _, c := range []struct{ newest, version, want string }{
		{"1.0.2-dev", "", "1.0.2-dev"},
		{"1.2.0", "spec: 1.0.0", "1.2.0"},
		{"9.0.0", "", "1.3.0"},
		{"", "crun version 1.8.1\nspec: 1.0.0\n+SECCOMP", "1.0.0"},
		{"", "runsc version release", "1.0.0"},
		{"one", "", "1.0.0"},
	} {
		if got := ociVersion(c.newest, c.version); got != c.want {
			t.Errorf("ociVersion(%q, %q) = %q, want %q", c.newest, c.version, got, c.want)
		}
	}
}
