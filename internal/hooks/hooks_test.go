package hooks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// file is a hook with an argument to know it by, and a condition.
func file(argument, when string) string {
	return fmt.Sprintf(`{"version": "1.0.0", "hook": {"path": "/bin/sh", "args": ["sh", %q]}, "when": %s, "stages": ["createRuntime"]}`, argument, when)
}

func applied(t testing.TB, h *Hooks, c Container) string {
	t.Helper()
	spec := &specs.Spec{Process: &specs.Process{Args: []string{"/usr/bin/server", "-v"}}}
	if err := h.Apply(spec, c); err != nil {
		t.Fatal(err)
	}
	if spec.Hooks == nil {
		return ""
	}
	var names []string
	for _, hook := range spec.Hooks.CreateRuntime {
		names = append(names, hook.Args[1])
	}
	return strings.Join(names, " ")
}

func TestConditions(t *testing.T) {
	annotated := Container{Annotations: map[string]string{"org.x/level": "high", "other": "low"}}
	for _, c := range []struct {
		name, when string
		container  Container
		want       bool
	}{
		{"always", `{"always": true}`, Container{}, true},
		{"never", `{"always": false}`, Container{}, false},
		{"no condition is none that is met", `{}`, Container{}, false},
		{"an annotation", `{"annotations": {"^org\\.x/level$": "^h"}}`, annotated, true},
		{"an annotation with another value", `{"annotations": {"^org\\.x/level$": "^l"}}`, annotated, false},
		{"all annotations must be there", `{"annotations": {"^org\\.x/level$": ".*", "none": ".*"}}`, annotated, false},
		{"a command", `{"commands": ["^/none$", "server$"]}`, Container{}, true},
		{"another command", `{"commands": ["^server"]}`, Container{}, false},
		{"a bind mount", `{"hasBindMounts": true}`, Container{BindMounts: true}, true},
		{"without a bind mount", `{"hasBindMounts": true}`, Container{}, false},
		{"two conditions, of which one holds", `{"hasBindMounts": true, "commands": ["server"]}`, Container{}, false},
		{"two that hold", `{"hasBindMounts": true, "commands": ["server"]}`, Container{BindMounts: true}, true},
		{"never, and one that holds", `{"always": false, "commands": ["server"]}`, Container{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/a.json", file("a", c.when))
			h, err := New([]string{dir})
			if err != nil {
				t.Fatal(err)
			}
			if got := applied(t, h, c.container) == "a"; got != c.want {
				t.Errorf("runs: %v, want %v", got, c.want)
			}
		})
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	always := `{"always": true}`
	write(t, dir+"/one/20-b.json", file("b", always))
	write(t, dir+"/one/10-a.json", file("a", always))
	write(t, dir+"/two/20-b.json", file("b-of-two", always))
	write(t, dir+"/two/not-a-hook.txt", "x")
	h, err := New([]string{dir + "/one", dir + "/two", dir + "/none"})
	if err != nil {
		t.Fatal(err)
	}
	want := func(want string) {
		t.Helper()
		if got := applied(t, h, Container{}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	want("a b-of-two")
	write(t, dir+"/one/30-c.json", file("c", always))
	want("a b-of-two c") // a new one is seen
	write(t, dir+"/one/10-a.json", "broken")
	write(t, dir+"/one/40-d.json", "broken")
	want("a b-of-two c") // one that became bad holds, one that is new does not
	os.Remove(dir + "/one/10-a.json")
	os.Remove(dir + "/two/20-b.json")
	want("b c")
	if _, err := New([]string{dir + "/one"}); err == nil || !strings.Contains(err.Error(), dir+"/one/40-d.json") {
		t.Errorf("a bad file at the start: %v", err)
	}
}

func TestAHookIsAddedAtEachOfItsStages(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.json", `{"version": "1.0.0", "hook": {"path": "/bin/sh", "env": ["A=b"], "timeout": 7}, "when": {"always": true},
		"stages": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]}`)
	h, err := New([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{Hooks: &specs.Hooks{Poststop: []specs.Hook{{Path: "/before"}}}}
	if err := h.Apply(spec, Container{}); err != nil {
		t.Fatal(err)
	}
	for _, stage := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} {
		list := *stageOf(spec.Hooks, stage)
		if last := list[len(list)-1]; last.Path != "/bin/sh" || *last.Timeout != 7 || last.Env[0] != "A=b" {
			t.Errorf("%s: %+v", stage, list)
		}
	}
	if spec.Hooks.Poststop[0].Path != "/before" {
		t.Error("a hook that was there is gone")
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	with := func(old, text string) string { return strings.Replace(file("a", `{"always": true}`), old, text, 1) }
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "EOF"},
		{"no object", "[]", "array"},
		{"two", file("a", "{}") + "{}", "something follows"},
		{"an old version", with(`"1.0.0"`, `"0.1.0"`), `version: "0.1.0"`},
		{"an unknown field", with(`"when"`, `"wen"`), `unknown field "wen"`},
		{"an unknown condition", with(`"always"`, `"alway"`), `unknown field "alway"`},
		{"no hook", `{"version": "1.0.0", "when": {}, "stages": ["prestart"]}`, "hook: "},
		{"no condition", `{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "stages": ["prestart"]}`, "when: "},
		{"no stages", with(`["createRuntime"]`, `[]`), "stages: "},
		{"an unknown stage", with("createRuntime", "sometime"), `stages[0]: "sometime"`},
		{"a stage twice", with(`["createRuntime"]`, `["poststop", "poststop"]`), "stages[1]: "},
		{"a relative program", with("/bin/sh", "sh"), `hook.path: "sh"`},
		{"a program that is not there", with("/bin/sh", "/nowhere"), "hook.path: "},
		{"no time", with(`"args"`, `"timeout": 0, "args"`), "hook.timeout: 0"},
		{"a variable", with(`"args"`, `"env": ["x"], "args"`), "hook.env[0]: "},
		{"an annotation's key", file("a", `{"annotations": {"(": "x"}}`), "when.annotations: the key"},
		{"an annotation's value", file("a", `{"annotations": {"x": "("}}`), "when.annotations: the value"},
		{"a command", file("a", `{"commands": ["x", "("]}`), "when.commands[1]: "},
	} {
		if _, err := parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(file("a", `{"annotations": {"a": "b"}, "commands": ["c"], "hasBindMounts": true}`)))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if h, err := parse(data); err == nil && h.when.match(&specs.Spec{}, Container{}) {
			h.add(&specs.Spec{})
		}
	})
}
