// Command nriplugin is an NRI plugin that the engine starts. Its configuration is
// the name of a file that it adds a line to for what it is told.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type plugin struct{ log string }

func main() {
	s, err := stub.New(&plugin{})
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (p *plugin) write(format string, args ...any) error {
	f, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, format+"\n", args...)
	return err
}

// Configure gets the file's name.
func (p *plugin) Configure(_ context.Context, config, _, _ string) (stub.EventMask, error) {
	p.log = config
	return 0, nil
}

// Synchronize writes the ids.
func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	line := "synchronized"
	for _, pod := range pods {
		line += " " + pod.GetId()
	}
	for _, c := range containers {
		line += " " + c.GetId()
	}
	return nil, p.write("%s", line)
}

// CreateContainer adds a variable.
func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	a := &api.ContainerAdjustment{}
	a.AddEnv("STARTED_WITH", "the engine")
	return a, nil, p.write("create %s", c.GetId())
}

// StopContainer writes the id.
func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.write("stop %s", c.GetId())
}
