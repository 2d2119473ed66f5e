// Command cri-engine is the engine, and the client for people.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/cri-engine/cri-engine/internal/cli"
	"github.com/cri-engine/cri-engine/internal/storage"
)

func main() {
	// Parts of the store run in processes of their own, which are this program
	// under another name.
	if storage.Init() {
		return
	}
	os.Exit(run())
}

func run() int {
	err := rootCommand().Execute()
	var told *cli.ExitError
	if err != nil && !errors.As(err, &told) {
		fmt.Fprintf(os.Stderr, "cri-engine: %v\n", err)
	}
	return cli.ExitCode(err)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "cri-engine",
		Short:         "A container engine for Kubernetes nodes, and its client",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
	}
	root.AddCommand(serveCommand(), configCommand(), versionCommand(), failpointsCommand())
	root.AddCommand(cli.Commands()...)
	return root
}
