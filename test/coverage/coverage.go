// Package coverage knows what CRI v1 asks of a runtime, from the proto's
// descriptors, and what of it this engine honours, from table.tsv.
package coverage

import (
	"bufio"
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

//go:embed table.tsv
var table string

// Row is what a line of table.tsv says of an RPC or of a field of its request.
type Row struct {
	// Name is "Exec" for an RPC and "ExecRequest.cmd" for a field; "WindowsPodSandboxConfig.*"
	// stands for all fields of a message.
	Name string
	// State is "yes", "no" (nothing happens), "refused" (an error says so) or "part".
	State string
	// Tests are functions of test/e2e, or of a package where it is named: "internal/oci.TestSpec".
	Tests []string
	Note  string
}

// States that a row may have.
var States = []string{"yes", "part", "no", "refused"}

// Table returns the rows of table.tsv: name, state, tests, note, with a tab between
// them. Lines that start with # are comments.
func Table() ([]Row, error) {
	var rows []Row
	lines := bufio.NewScanner(strings.NewReader(table))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.Split(line, "\t")
		if len(parts) != 4 || !slices.Contains(States, parts[1]) {
			return nil, fmt.Errorf("table.tsv:%d: want a name, a state of %v, tests and a note: %q", n, States, line)
		}
		rows = append(rows, Row{Name: parts[0], State: parts[1], Tests: strings.Fields(parts[2]), Note: parts[3]})
	}
	return rows, lines.Err()
}

// RPC is one RPC of the services, with the names of the fields that its request
// brings along and that no RPC before it had.
type RPC struct {
	Name   string
	Fields []string
}

// RPCs returns all RPCs in the proto's order.
func RPCs() []RPC {
	var all []RPC
	seen := map[protoreflect.FullName]bool{}
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			all = append(all, RPC{string(m.Name()), fields(m.Input(), seen)})
		}
	}
	return all
}

// fields are those of a message and of the messages in it, but of those seen.
func fields(m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) []string {
	if seen[m.FullName()] || m.IsMapEntry() {
		return nil
	}
	seen[m.FullName()] = true
	var all []string
	for i := range m.Fields().Len() {
		all = append(all, fieldName(m.Fields().Get(i)))
	}
	for i := range m.Fields().Len() {
		if of := m.Fields().Get(i).Message(); of != nil {
			all = append(all, fields(of, seen)...)
		}
	}
	return all
}

func fieldName(f protoreflect.FieldDescriptor) string {
	return string(f.ContainingMessage().Name()) + "." + string(f.Name())
}

// Sent calls f with the name of each field that a request has set.
func Sent(request proto.Message, f func(name string)) {
	request.ProtoReflect().Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		f(fieldName(d))
		switch {
		case d.Message() == nil || d.IsMap():
		case d.IsList():
			for i := range v.List().Len() {
				Sent(v.List().Get(i).Message().Interface(), f)
			}
		default:
			Sent(v.Message().Interface(), f)
		}
		return true
	})
}
