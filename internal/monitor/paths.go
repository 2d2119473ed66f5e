package monitor

import (
	"fmt"
	"os"
	"path/filepath"
)

// paths are the monitor's files below the engine's state directory.
type paths string

func newPaths(stateDir string) paths { return paths(filepath.Join(stateDir, "monitor")) }

func (p paths) socket() string       { return filepath.Join(string(p), "monitor.sock") }
func (p paths) lock() string         { return filepath.Join(string(p), "lock") }
func (p paths) records() recordFiles { return recordFiles(filepath.Join(string(p), "procs")) }
func (p paths) temp() string         { return filepath.Join(string(p), "tmp") }

// maxSocketPath is sun_path of unix(7) less its NUL. A pty's socket has a path
// as long as the monitor's own.
const maxSocketPath = 107

// make creates the directories, readable by root alone.
func (p paths) make() error {
	if n := len(p.socket()); n > maxSocketPath {
		return fmt.Errorf("the state directory's path is too long: %s has %d bytes, a unix socket's path %d at most", p.socket(), n, maxSocketPath)
	}
	for _, dir := range []string{string(p), string(p.records()), p.temp()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}
