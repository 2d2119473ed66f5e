package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cri-engine/cri-engine/conf"
	"github.com/cri-engine/cri-engine/internal/config"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print and check the engine's configuration",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(configDefaultCommand(), configValidateCommand(), configShowCommand())
	return cmd
}

func configDefaultCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "default",
		Short: "Print a configuration file with every key at its default",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(conf.ConfigTOML)
			return err
		},
	}
}

func configValidateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE",
		Short: "Check a configuration file, without drop-ins",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := config.LoadFile(args[0])
			if err != nil {
				return err
			}
			if err := l.Validate(); err != nil {
				return fmt.Errorf("%s:\n%w", args[0], err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", args[0])
			return err
		},
	}
}

func configShowCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print the configuration that holds, and where each value comes from",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := config.Load(file)
			if err != nil {
				return err
			}
			if err := l.Write(cmd.OutOrStdout()); err != nil {
				return err
			}
			return l.Validate()
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default "+config.DefaultPath+", if it exists)")
	return cmd
}
