// Package config reads the engine's TOML configuration.
//
// [Load] starts from [Default], reads the configuration file over it and then
// the drop-ins (*.toml in the directory conf.d beside that file) in the order
// of their names: tables merge, lists and single values replace. A key that
// does not exist is an error with file and line. The command line's flags are
// laid over with [Loaded.Override], and [Config.Validate] checks the whole.
// [Loaded.Write] shows the result and where each value came from.
package config
