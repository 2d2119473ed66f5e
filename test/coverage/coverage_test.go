package coverage

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cri-engine/cri-engine/test/generated"
)

const (
	docsFile   = "../../docs/cri.md"
	docsMarker = "<!-- From here on made from the proto and test/coverage/table.tsv: UPDATE_DOCS=1 go test ./test/coverage -->\n"
)

// TestTheTableKnowsEveryFieldOfTheProto, and nothing that is not there.
func TestTheTableKnowsEveryFieldOfTheProto(t *testing.T) {
	rows := rowsByName(t)
	used := map[string]bool{}
	for _, rpc := range RPCs() {
		for _, name := range append([]string{rpc.Name}, rpc.Fields...) {
			row, ok := find(rows, name)
			if !ok {
				t.Errorf("%s is in the proto and not in table.tsv", name)
			}
			used[row.Name] = true
		}
	}
	for name := range rows {
		if !used[name] {
			t.Errorf("%s is in table.tsv and not in the proto", name)
		}
	}
}

func rowsByName(t testing.TB) map[string]Row {
	t.Helper()
	rows, err := Table()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Row{}
	for _, row := range rows {
		if _, twice := byName[row.Name]; twice {
			t.Errorf("table.tsv has %s twice", row.Name)
		}
		byName[row.Name] = row
	}
	return byName
}

// find looks for a row of the field's, or of its whole message's.
func find(rows map[string]Row, name string) (Row, bool) {
	if row, ok := rows[name]; ok {
		return row, true
	}
	message, _, isField := strings.Cut(name, ".")
	row, ok := rows[message+".*"]
	return row, ok && isField
}

func TestTheTestsThatTheTableNamesExist(t *testing.T) {
	known := map[string]map[string]bool{}
	for _, row := range rowsByName(t) {
		if len(row.Tests) == 0 && (row.State == "yes" || row.State == "part") {
			t.Errorf("%s is honoured, and no test says so", row.Name)
		}
		if row.State != "yes" && row.Note == "" {
			t.Errorf("%s: a note must say why it is %q", row.Name, row.State)
		}
		for _, test := range row.Tests {
			dir, name := split(test)
			if known[dir] == nil {
				known[dir] = tests(t, filepath.Join("../..", dir))
			}
			if !known[dir][name] {
				t.Errorf("%s: there is no test %s in %s", row.Name, name, dir)
			}
		}
	}
}

// split takes "internal/oci.TestSpec" apart; tests without a directory are of test/e2e.
func split(test string) (dir, name string) {
	if i := strings.LastIndex(test, "."); i >= 0 {
		return test[:i], test[i+1:]
	}
	return "test/e2e", test
}

func tests(t testing.TB, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Test") {
				found[fn.Name.Name] = true
			}
		}
	}
	return found
}

// TestDocs keeps the tables in docs/cri.md equal to the table.
func TestDocs(t *testing.T) {
	generated.Keep(t, docsFile, docsMarker, document(rowsByName(t)))
}

func document(rows map[string]Row) string {
	var b strings.Builder
	counts := map[string]int{}
	b.WriteString("\n## RPCs\n\n| RPC | honoured | tests | |\n|---|---|---|---|\n")
	for _, rpc := range RPCs() {
		row, _ := find(rows, rpc.Name)
		fmt.Fprintf(&b, "| %s | %s |\n", rpc.Name, cells(row))
		counts[row.State]++
	}
	fmt.Fprintf(&b, "\nOf %d: %s.\n", len(RPCs()), summary(counts))
	b.WriteString("\n## Fields of the requests\n\nEach message is listed with the first RPC that has it.\n")
	counts = map[string]int{}
	total := 0
	for _, rpc := range RPCs() {
		if len(rpc.Fields) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n### %s\n\n| field | honoured | tests | |\n|---|---|---|---|\n", rpc.Name)
		for _, name := range rpc.Fields {
			row, _ := find(rows, name)
			fmt.Fprintf(&b, "| %s | %s |\n", name, cells(row))
			counts[row.State]++
			total++
		}
	}
	fmt.Fprintf(&b, "\nOf %d: %s.\n", total, summary(counts))
	return b.String()
}

func cells(row Row) string {
	return row.State + " | " + strings.Join(row.Tests, ", ") + " | " + row.Note
}

func summary(counts map[string]int) string {
	var parts []string
	for _, state := range States {
		if counts[state] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", state, counts[state]))
		}
	}
	return strings.Join(slices.Clip(parts), ", ")
}
