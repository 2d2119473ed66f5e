// Package generated keeps documents whose tail is made by a program equal to what
// that makes.
package generated

import (
	"os"
	"strings"
	"testing"
)

// Keep fails when what follows the marker in the file is not want, or with
// UPDATE_DOCS set writes it there. The marker is a line that says what to run.
func Keep(t testing.TB, file, marker, want string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	intro, have, found := strings.Cut(string(data), marker)
	if !found {
		t.Fatalf("%s has no line %q", file, marker)
	}
	if have == want {
		return
	}
	if os.Getenv("UPDATE_DOCS") == "" {
		t.Fatalf("%s is not what it should be: %s", file, marker)
	}
	if err := os.WriteFile(file, []byte(intro+marker+want), 0o644); err != nil {
		t.Fatal(err)
	}
}
