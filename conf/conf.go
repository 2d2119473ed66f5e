// Package conf holds the files that an installation starts from, embedded so
// that the engine works without any of them on disk.
package conf

import _ "embed"

// ConfigTOML is the configuration file with every key and its default.
//
//go:embed config.toml
var ConfigTOML []byte

// DefaultConflist is the network that serves while the node has no conflist.
//
//go:embed cni/10-cri-engine.conflist
var DefaultConflist []byte
