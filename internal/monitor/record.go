package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cri-engine/cri-engine/internal/cgroup"
)

// record is all that is known of one process but its fds. The pump changes it, the
// keeper holds it and writes it to a file of its own in DIR/monitor/procs, for
// the case that both die. JSON.
type record struct {
	Info
	Runtime   Runtime `json:"runtime"`
	Bundle    string  `json:"bundle,omitempty"`
	Terminal  bool    `json:"terminal,omitempty"`
	StdinOnce bool    `json:"stdinOnce,omitempty"`
	// PidFile is where the OCI runtime writes the pid; it matters while the state is creating.
	PidFile string `json:"pidFile,omitempty"`
	// Slot is its place in the shared memory.
	Slot int `json:"slot"`
	// Cgroups are its cgroups that are not also the monitor's; OOMBase the count of the OOM killer's
	// victims in them when it was created.
	Cgroups cgroup.Dirs `json:"cgroups,omitempty"`
	OOMBase uint64      `json:"oomBase,omitempty"`
	// Forgotten: nobody will ask; it leaves the table when it ends.
	Forgotten bool      `json:"forgotten,omitempty"`
	Created   time.Time `json:"created"`
}

// key names a process: a container's id, or that and "." and the exec's.
type key string

func makeKey(id, execID string) key {
	if execID == "" {
		return key(id)
	}
	return key(id + "." + execID)
}

func (r *record) key() key { return makeKey(r.ID, r.ExecID) }

// The roles of the fds in custody.
const (
	roleStdin  = "stdin"
	roleStdout = "stdout" // or the pty's master
	roleStderr = "stderr"
	roleLog    = "log"
	rolePidfd  = "pidfd"
)

var roles = []string{roleStdin, roleStdout, roleStderr, roleLog, rolePidfd}

// maxRecord bounds a record's file, in bytes.
const maxRecord = 64 << 10

// recordFiles is the directory that mirrors the keeper's records.
type recordFiles string

func (d recordFiles) path(k key) string { return filepath.Join(string(d), string(k)+".json") }

// write replaces a record's file. The directory is a tmpfs: what it must survive is
// processes, not power cuts.
func (d recordFiles) write(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temp := d.path(r.key()) + ".new"
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, d.path(r.key()))
}

func (d recordFiles) remove(k key) {
	_ = os.Remove(d.path(k))
}

// keepOnly removes the records of all other processes.
func (d recordFiles) keepOnly(known func(key) bool) error {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && !known(key(name)) {
			d.remove(key(name))
		}
	}
	return nil
}

// read returns all records. A file that cannot be read is told of by bad and set
// aside, out of the way of a process with the same name.
func (d recordFiles) read(bad func(name string, err error)) ([]record, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	var list []record
	for _, e := range entries {
		name := e.Name()
		if strings.HasSuffix(name, ".new") || strings.HasSuffix(name, ".bad") {
			if strings.HasSuffix(name, ".new") {
				_ = os.Remove(filepath.Join(string(d), name))
			}
			continue
		}
		r, err := readRecord(filepath.Join(string(d), name))
		if err == nil && string(r.key())+".json" != name {
			err = fmt.Errorf("it is of %s", r.key())
		}
		if err != nil {
			bad(name, err)
			_ = os.Rename(filepath.Join(string(d), name), filepath.Join(string(d), name+".bad"))
			continue
		}
		list = append(list, r)
	}
	return list, nil
}

func readRecord(path string) (record, error) {
	f, err := os.Open(path)
	if err != nil {
		return record{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return record{}, err
	}
	return parseRecord(data)
}

func parseRecord(data []byte) (record, error) {
	var r record
	if len(data) > maxRecord {
		return r, errTooLong
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, err
	}
	switch {
	case !validID(r.ID) || r.ExecID != "" && !validExecID(r.ExecID):
		return r, errors.New("it has no valid id")
	case r.Slot < 0 || r.Slot >= shmSlots:
		return r, fmt.Errorf("slot %d does not exist", r.Slot)
	case r.State == StateExited && r.Exit == nil:
		return r, errors.New("it has ended without an exit")
	case r.Pid < 0:
		return r, fmt.Errorf("pid %d", r.Pid)
	}
	return r, nil
}
