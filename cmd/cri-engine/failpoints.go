package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cri-engine/cri-engine/internal/steps"
)

// failpointsCommand is for the fault tests, which kill the engine at each point.
func failpointsCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "failpoints",
		Short:  "List the points at which a binary built for fault tests can be made to die",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, point := range steps.Points() {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), point); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
