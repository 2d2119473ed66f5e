package sandbox

import (
	"os"
	"strings"
	"testing"

	"github.com/cri-engine/cri-engine/internal/steps"
)

func TestTheArchitectureNamesEveryStep(t *testing.T) {
	doc, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(doc)) {
		if cells := strings.Split(line, "|"); len(cells) == 4 {
			rows[strings.TrimSpace(cells[1])] = strings.TrimSpace(cells[2])
		}
	}
	lists := map[string][]string{}
	for _, point := range steps.Points() {
		op, step, _ := strings.Cut(strings.TrimSuffix(point, ":after"), "/")
		if strings.HasSuffix(point, ":after") {
			lists[op] = append(lists[op], step)
		}
	}
	for op, names := range lists {
		if want := strings.Join(names, ", "); op != "PullImage" && op != "RemoveImage" && rows[op] != want {
			t.Errorf("docs/architecture.md has %q for %s, want %q", rows[op], op, want)
		}
	}
}
