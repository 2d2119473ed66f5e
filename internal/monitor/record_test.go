package monitor

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestRecordsOfWhatWasForgottenGoWithAHandover(t *testing.T) {
	d := recordFiles(t.TempDir())
	kept, gone := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for _, id := range []string{kept, gone} {
		if err := d.write(&record{Info: Info{ID: id, State: StateExited}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.keepOnly(func(name key) bool { return name == makeKey(kept, "") }); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(string(d))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{kept + ".json"}) {
		t.Errorf("left: %q", names)
	}
}
