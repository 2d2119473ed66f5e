package monitor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-engine/cri-engine/internal/cgroup"
)

func TestAKillInAScopeThatIsGoneIsFoundInItsSlice(t *testing.T) {
	slice := filepath.Join(t.TempDir(), "kubepods-pod1.slice")
	if err := os.Mkdir(slice, 0o755); err != nil {
		t.Fatal(err)
	}
	file := (&record{Cgroups: cgroup.Dirs{"": filepath.Join(slice, "cri-engine-a.scope", "container")}}).sliceEvents()
	if want := filepath.Join(slice, "memory.events"); file != want {
		t.Fatalf("the slice's file is %q, want %q", file, want)
	}
	kills := func(n int) {
		t.Helper()
		if err := os.WriteFile(file, fmt.Appendf(nil, "low 0\noom 9\noom_kill %d\n", n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var s sliceKills
	kills(3) // of containers long ago
	a, b := s.base(file), s.base(file)
	if s.claim(file, *a) {
		t.Error("there was none since")
	}
	kills(4)
	s.note(file, 1) // found in b's own cgroup
	if s.claim(file, *a) {
		t.Error("a has that of b")
	}
	kills(5)
	if !s.claim(file, *a) {
		t.Error("that of a is not found")
	}
	if s.claim(file, *b) {
		t.Error("b has that of a")
	}
	c := s.base(file)
	if s.claim(file, *c) {
		t.Error("one that came later has an older one")
	}
	if s.base("") != nil || s.base(file+".none") != nil {
		t.Error("there is a count where there is no file")
	}
	if got := (&record{Cgroups: cgroup.Dirs{"": "/sys/fs/cgroup/cri-engine/pod1/a"}}).sliceEvents(); got != "" {
		t.Errorf("without systemd the slice's file is %q", got)
	}
	exec := record{Cgroups: cgroup.Dirs{"": filepath.Join(slice, "cri-engine-a.scope")}}
	exec.ExecID = "x"
	if got := exec.sliceEvents(); got != "" {
		t.Errorf("an exec, which shares its container's cgroup, would count its kills again: %q", got)
	}
}
