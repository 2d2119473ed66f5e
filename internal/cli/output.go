package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/docker/go-units"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// What -o takes.
const (
	outputTable = "table"
	outputJSON  = "json"
	outputYAML  = "yaml"
)

func (o *options) checkOutput() error {
	switch o.output {
	case "", outputTable, outputJSON, outputYAML:
		return nil
	}
	return fmt.Errorf("-o %s: want table, json or yaml", o.output)
}

// structured tells whether the output is for programs.
func (o *options) structured() bool { return o.output == outputJSON || o.output == outputYAML }

// print writes a message of CRI's in the output's format.
func (c *call) print(m proto.Message) error {
	data, err := marshal(m)
	if err != nil {
		return err
	}
	return c.printJSON(data)
}

// printJSON writes a JSON value in the output's format.
func (c *call) printJSON(data []byte) error { return printJSON(c.out, c.output, data) }

func printJSON(w io.Writer, output string, data []byte) error {
	if output == outputYAML {
		data, err := yaml.JSONToYAML(data)
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	}
	// protojson varies its spaces on purpose; scripts and tests like them stable.
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err := b.WriteTo(w)
	return err
}

func marshal(m proto.Message) ([]byte, error) {
	return protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
}

// table writes rows in columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, header ...string) *table {
	t := &table{tabwriter.NewWriter(w, 8, 1, 3, ' ', 0)}
	t.row(header...)
	return t
}

func (t *table) row(cells ...string) {
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	// The writer under it keeps its first error, and flush tells it.
	_, _ = fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t *table) flush() error { return t.w.Flush() }

// clean makes foreign text fit to be shown on one line of a terminal: no
// control characters (a name could move the cursor, set the title), no direction marks.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == ' ' || unicode.IsPrint(r):
			return r
		default:
			return '?'
		}
	}, s)
}

// shortLength is how much of an id tables show, as crictl does.
const shortLength = 13

// shortID is the start of an id, without the digest's algorithm.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), shortLength)]
}

// id is an id as a table shows it.
func idCell(id string, whole bool) string {
	if whole {
		return id
	}
	return shortID(id)
}

// ago tells how long ago a time in nanoseconds since 1970 was.
func ago(nanos int64) string {
	if nanos == 0 {
		return ""
	}
	return units.HumanDuration(max(time.Since(time.Unix(0, nanos)), 0)) + " ago"
}

// size tells bytes in powers of 1000, as crictl does.
func size(n uint64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
