package cli

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cri-engine/cri-engine/test/generated"
)

const (
	docsFile   = "../../docs/cli.md"
	docsMarker = "<!-- From here on made from the commands: UPDATE_DOCS=1 go test ./internal/cli -run TestDocs -->\n"
)

// TestDocs keeps the reference in docs/cli.md equal to the commands.
func TestDocs(t *testing.T) {
	t.Setenv("CRI_ENGINE_ENDPOINT", "")
	t.Setenv("CONTAINER_RUNTIME_ENDPOINT", "")
	generated.Keep(t, docsFile, docsMarker, reference())
}

// reference is the part of docs/cli.md that the commands know themselves.
func reference() string {
	var b strings.Builder
	for _, cmd := range Commands() {
		fmt.Fprintf(&b, "\n## cri-engine %s\n\n%s\n", cmd.Name(), description(cmd))
		fmt.Fprintf(&b, "\n    cri-engine %s [FLAGS]%s\n\n", cmd.Name(), strings.TrimPrefix(cmd.Use, cmd.Name()))
		b.WriteString("| Flag | |\n|---|---|\n")
		cmd.Flags().VisitAll(func(f *pflag.Flag) { b.WriteString(flagRow(f)) })
		fmt.Fprintf(&b, "\n```console\n")
		for line := range strings.Lines(cmd.Example) {
			fmt.Fprintf(&b, "# %s\n", strings.TrimSpace(line))
		}
		b.WriteString("```\n")
	}
	return b.String()
}

func description(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return cmd.Long
	}
	return cmd.Short + "."
}

func flagRow(f *pflag.Flag) string {
	value, usage := pflag.UnquoteUsage(f)
	name := "`--" + f.Name
	if f.Shorthand != "" {
		name = "`-" + f.Shorthand + "`, " + name
	}
	if value != "" {
		name += " " + value
	}
	if d := f.DefValue; d != "" && d != "false" && d != "[]" && d != "0" && d != "0s" {
		usage += fmt.Sprintf(" (default `%s`)", d)
	}
	return fmt.Sprintf("| %s` | %s |\n", name, strings.ReplaceAll(usage, "|", `\|`))
}
