package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/cri-engine/cri-engine/internal/config"
	"github.com/cri-engine/cri-engine/internal/daemon"
	"github.com/cri-engine/cri-engine/internal/logging"
)

func serveCommand() *cobra.Command {
	var file string
	var flags config.Flags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the engine, until SIGTERM; pods run on without it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return errors.New("serve makes namespaces, mounts and cgroups: it must be run by root")
			}
			l, err := config.Load(file)
			if err != nil {
				return err
			}
			l.Override(flags)
			if err := l.Validate(); err != nil {
				return err
			}
			if err := logging.Setup(l.Log.Level, l.Log.Format); err != nil {
				return err
			}
			return daemon.Run(cmd.Context(), daemon.Options{Config: l.Config, Version: version, ConfigFiles: l.Files})
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "configuration file (default "+config.DefaultPath+", if it exists); drop-ins are in conf.d beside it")
	f.StringVar(&flags.Root, "root", "", "directory for what lasts: images and records")
	f.StringVar(&flags.State, "state", "", "directory for what a reboot may take; the socket is in it unless --listen says otherwise")
	f.StringVar(&flags.Listen, "listen", "", "path of the CRI socket")
	f.StringVar(&flags.LogLevel, "log-level", "", "error, warn, info, debug or trace")
	f.StringVar(&flags.LogFormat, "log-format", "", "text or json")
	return cmd
}
