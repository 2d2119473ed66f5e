// Command cri-engine-monitor is the parent of all containers of a node: it keeps
// their streams, writes their logs and records how they end. See package monitor.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cri-engine/cri-engine/internal/monitor"
)

// version is set at build time.
var version = "unknown"

const usage = `usage: cri-engine-monitor --state DIR
       cri-engine-monitor version

The monitor of one cri-engine: parent of its containers, keeper of their streams.
It runs until SIGTERM, which leaves containers as they are; SIGHUP replaces it in
place by the binary at the path that it was started by.

  --state DIR   the engine's state directory, the same as of "cri-engine serve"
`

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		var wrong usageError
		if errors.As(err, &wrong) {
			fmt.Fprintf(os.Stderr, "cri-engine-monitor: %s\n%s", err, usage)
			os.Exit(2)
		}
		fmt.Fprintf(os.Stderr, "cri-engine-monitor: %s\n", err)
		os.Exit(1)
	}
}

// usageError is a wrong command line.
type usageError string

func (e usageError) Error() string { return string(e) }

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("cri-engine-monitor", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	state := flags.String("state", "", "")
	// The monitor's own, for the processes that it makes of itself.
	role := flags.String("role", "keeper", "")
	handover := flags.Int("handover", -1, "")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, usage)
		return nil
	} else if err != nil {
		return usageError(err.Error())
	}
	switch rest := flags.Args(); {
	case len(rest) == 1 && rest[0] == "version" && *state == "":
		fmt.Fprintln(out, version)
		return nil
	case len(rest) > 0:
		return usageError(fmt.Sprintf("unexpected argument %q", rest[0]))
	case *state == "":
		return usageError("--state is missing")
	case !filepath.IsAbs(*state):
		return usageError(fmt.Sprintf("--state %q is not an absolute path", *state))
	}
	switch *role {
	case "keeper":
		return monitor.RunKeeper(monitor.KeeperOptions{StateDir: filepath.Clean(*state), Handover: *handover, Version: version})
	case "pump":
		return monitor.RunPump(filepath.Clean(*state), version)
	}
	return usageError(fmt.Sprintf("unknown role %q", *role))
}
