package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventsOptions are the flags of events.
type eventsOptions struct {
	options
	noTrunc bool
}

func eventsCommand() *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens to pods and containers, until interrupted",
		Example: `  cri-engine events
  cri-engine events -o json`,
		Args: cobra.NoArgs,
		RunE: o.connected(func(ctx context.Context, c *call) error { return runEvents(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	f := cmd.Flags()
	f.StringVarP(&o.output, "output", "o", outputTable, "output `FORMAT`: table, or json, an object a line")
	mustComplete(cmd, "output", outputTable, outputJSON)
	f.BoolVar(&o.noTrunc, "no-trunc", false, "show whole ids")
	return cmd
}

func runEvents(ctx context.Context, c *call, o *eventsOptions) error {
	events, err := c.runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return plainError(err)
	}
	for {
		e, err := events.Recv()
		switch {
		case ctx.Err() != nil:
			return nil // interrupted: that is how it ends
		case errors.Is(err, io.EOF):
			return errors.New("the runtime ended the events")
		case err != nil:
			return plainError(err)
		}
		if err := printEvent(c.out, e, o); err != nil {
			return err
		}
	}
}

func printEvent(out io.Writer, e *runtimeapi.ContainerEventResponse, o *eventsOptions) error {
	if o.output != outputTable {
		data, err := protojson.Marshal(e)
		if err == nil {
			_, err = fmt.Fprintf(out, "%s\n", data)
		}
		return err
	}
	id := e.GetContainerId()
	if !o.noTrunc {
		id = id[:min(len(id), 13)]
	}
	kind := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(e.GetContainerEventType().String(), "CONTAINER_"), "_EVENT"))
	pod := e.GetPodSandboxStatus().GetMetadata()
	what := "pod"
	if e.GetContainerId() != e.GetPodSandboxStatus().GetId() {
		what = "container"
		for _, s := range e.GetContainersStatuses() {
			if s.GetId() == e.GetContainerId() {
				what += " " + s.GetMetadata().GetName()
			}
		}
	}
	_, err := fmt.Fprintf(out, "%s  %-7s  %s  %s\n", time.Unix(0, e.GetCreatedAt()).Format(time.RFC3339Nano),
		kind, clean(id), clean(fmt.Sprintf("%s of %s/%s", what, pod.GetNamespace(), pod.GetName())))
	return err
}
