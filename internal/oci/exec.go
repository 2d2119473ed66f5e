package oci

import (
	"encoding/json"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ExecProcess makes the process of an exec from its container's spec: same
// user, environment, directory, capabilities, labels and limits. The spec is
// not changed, and shares nothing with the result.
func ExecProcess(spec *specs.Spec, command []string, tty bool) (*specs.Process, error) {
	if len(command) == 0 || command[0] == "" {
		return nil, invalid("cmd", "", "empty")
	}
	for _, word := range command {
		if err := checkText("cmd", word); err != nil {
			return nil, err
		}
	}
	if spec.Process == nil {
		return nil, errors.New("the container's spec has no process")
	}
	data, err := json.Marshal(spec.Process)
	if err != nil {
		return nil, fmt.Errorf("copy process: %w", err)
	}
	process := &specs.Process{}
	if err := json.Unmarshal(data, process); err != nil {
		return nil, fmt.Errorf("copy process: %w", err)
	}
	process.Args = append([]string{}, command...)
	process.Terminal = tty
	process.ConsoleSize = nil
	if tty {
		var env environment
		for _, e := range append([]string{defaultTerm}, process.Env...) {
			env.set(e)
		}
		process.Env = env.list
	}
	return process, nil
}
