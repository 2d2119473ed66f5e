package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// inspectOptions are the flags of inspect.
type inspectOptions struct {
	options
	kind string
}

func inspectCommand() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect CONTAINER|POD|IMAGE...",
		Short: "Show all that the runtime knows of containers, pods or images",
		Long: `Show all that the runtime knows of containers, pods or images, as JSON unless -o yaml.

A name is looked for among the containers first, then the pods, then the images; --type
settles it where several have the same.`,
		Example: `  cri-engine inspect web
  cri-engine inspect --type pod -o yaml web`,
		Args: cobra.MinimumNArgs(1),
		RunE: o.connected(func(ctx context.Context, c *call) error { return inspect(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	o.addOutput(cmd, "")
	cmd.ValidArgsFunction = o.complete(0, completeAll)
	cmd.Flags().StringVar(&o.kind, "type", "", "`KIND` of object: container, pod or image")
	mustComplete(cmd, "type", "container", "pod", "image")
	return cmd
}

// inspector looks for an object of one kind; errUnknown when there is none.
type inspector struct {
	kind string
	find func(ctx context.Context, name string) (proto.Message, error)
}

func (c *call) inspectors() []inspector {
	return []inspector{
		{"container", c.inspectContainer}, {"pod", c.inspectPod}, {"image", c.inspectImage},
	}
}

func inspect(ctx context.Context, c *call, o *inspectOptions) error {
	var docs []json.RawMessage
	var errs []error
	for _, name := range c.args {
		doc, err := c.inspectOne(ctx, o.kind, name)
		if err != nil {
			errs = append(errs, about("inspect", name, err))
			continue
		}
		docs = append(docs, doc)
	}
	var err error
	switch {
	case len(c.args) == 1 && len(docs) == 1:
		err = c.printJSON(docs[0])
	case len(docs) > 0:
		var all []byte
		if all, err = json.Marshal(docs); err == nil {
			err = c.printJSON(all)
		}
	}
	return errors.Join(append(errs, err)...)
}

func (c *call) inspectOne(ctx context.Context, kind, name string) (json.RawMessage, error) {
	known := false
	for _, i := range c.inspectors() {
		if kind != "" && kind != i.kind {
			continue
		}
		known = true
		m, err := i.find(ctx, name)
		if errors.Is(err, errUnknown) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return withInfo(m)
	}
	switch {
	case !known:
		return nil, fmt.Errorf("--type %s: want container, pod or image", kind)
	case kind != "":
		return nil, fmt.Errorf("no such %s", kind)
	}
	return nil, errors.New("no such container, pod or image")
}

func (c *call) inspectContainer(ctx context.Context, name string) (proto.Message, error) {
	list, err := c.containers(ctx, nil)
	if err != nil {
		return nil, err
	}
	container, err := list.find(name)
	if err != nil {
		return nil, err
	}
	return c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container.GetId(), Verbose: true})
}

func (c *call) inspectPod(ctx context.Context, name string) (proto.Message, error) {
	list, err := c.pods(ctx, nil)
	if err != nil {
		return nil, err
	}
	pod, err := list.find(name)
	if err != nil {
		return nil, err
	}
	return c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.GetId(), Verbose: true})
}

func (c *call) inspectImage(ctx context.Context, name string) (proto.Message, error) {
	image, err := c.findImage(ctx, name)
	if err != nil {
		return nil, err
	}
	return c.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image.GetId()}, Verbose: true})
}

// withInfo makes JSON of a status response, in which values of the verbose
// info that are JSON themselves are part of the document instead of quoted text.
func withInfo(m proto.Message) (json.RawMessage, error) {
	data, err := marshal(m)
	if err != nil {
		return nil, err
	}
	var doc map[string]json.RawMessage
	var info map[string]string
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(doc["info"], &info); err != nil {
		return data, nil // no info in it
	}
	unquoted := map[string]json.RawMessage{}
	for key, text := range info {
		value := json.RawMessage(text)
		if !json.Valid(value) || !bytes.ContainsAny(value[:1], "{[") {
			if value, err = json.Marshal(text); err != nil {
				return nil, err
			}
		}
		unquoted[key] = value
	}
	if doc["info"], err = json.Marshal(unquoted); err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}
