package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statsOptions are the flags of stats.
type statsOptions struct {
	options
	all, watch, noTrunc bool
	sample              time.Duration
}

func statsCommand() *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use:   "stats [CONTAINER...]",
		Short: "Show what containers use",
		Long: `Show what containers use: CPU over the sampling time (100 is one CPU), memory without
caches that can be dropped, and the writable layer.`,
		Example: `  cri-engine stats
  cri-engine stats --watch --sample 5s web
  cri-engine stats -o json`,
		RunE: o.connected(func(ctx context.Context, c *call) error { return stats(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	o.addOutput(cmd, "")
	cmd.ValidArgsFunction = o.complete(0, completeContainers)
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "containers that do not run too")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on until interrupted")
	f.DurationVarP(&o.sample, "sample", "s", time.Second, "how long CPU use is measured for")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "show whole ids")
	return cmd
}

func stats(ctx context.Context, c *call, o *statsOptions) error {
	if o.sample <= 0 {
		return errors.New("--sample must be more than 0")
	}
	before, err := c.listStats(ctx)
	if err != nil {
		return err
	}
	if o.structured() && !o.watch {
		return c.print(&runtimeapi.ListContainerStatsResponse{Stats: before})
	}
	for {
		if err := pause(ctx, o.sample); err != nil {
			return err
		}
		now, err := c.listStats(ctx)
		if err != nil {
			return err
		}
		switch {
		case o.structured():
			err = c.print(&runtimeapi.ListContainerStatsResponse{Stats: now})
		default:
			if o.watch && isTerminal(c.out) {
				// Home, then clear to the end of the screen.
				_, _ = io.WriteString(c.out, "\x1b[H\x1b[J")
			}
			err = statsTable(c.out, o, before, now)
		}
		if err != nil || !o.watch {
			return err
		}
		before = now
	}
}

// listStats returns the figures of the containers named, of all when none is.
func (c *call) listStats(ctx context.Context) ([]*runtimeapi.ContainerStats, error) {
	r, err := c.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	all := r.GetStats()
	slices.SortFunc(all, func(a, b *runtimeapi.ContainerStats) int {
		return strings.Compare(a.GetAttributes().GetId(), b.GetAttributes().GetId())
	})
	if len(c.args) == 0 {
		return all, nil
	}
	candidates := make([]candidate, len(all))
	for i, s := range all {
		candidates[i] = candidate{s.GetAttributes().GetId(), []string{s.GetAttributes().GetMetadata().GetName()}}
	}
	var chosen []*runtimeapi.ContainerStats
	var errs []error
	for _, name := range c.args {
		i, err := find("container", name, candidates)
		if err != nil {
			errs = append(errs, about("stats", name, err))
			continue
		}
		chosen = append(chosen, all[i])
	}
	return chosen, errors.Join(errs...)
}

func statsTable(w io.Writer, o *statsOptions, before, now []*runtimeapi.ContainerStats) error {
	old := map[string]*runtimeapi.ContainerStats{}
	for _, s := range before {
		old[s.GetAttributes().GetId()] = s
	}
	t := newTable(w, "CONTAINER", "NAME", "CPU %", "MEM", "DISK", "INODES", "SWAP")
	for _, s := range now {
		if !o.all && s.GetCpu() == nil && s.GetMemory() == nil {
			continue
		}
		id := s.GetAttributes().GetId()
		t.row(
			idCell(id, o.noTrunc), s.GetAttributes().GetMetadata().GetName(),
			strconv.FormatFloat(cpuPercent(old[id].GetCpu(), s.GetCpu()), 'f', 2, 64),
			size(s.GetMemory().GetWorkingSetBytes().GetValue()),
			size(s.GetWritableLayer().GetUsedBytes().GetValue()),
			strconv.FormatUint(s.GetWritableLayer().GetInodesUsed().GetValue(), 10),
			size(s.GetSwap().GetSwapUsageBytes().GetValue()),
		)
	}
	return t.flush()
}

// cpuPercent is the use of CPU between two samples, 100 for one CPU. A
// runtime that refreshes its figures more seldom than we ask, or a container
// that is new, leaves only what the runtime itself says of the moment.
func cpuPercent(before, now *runtimeapi.CpuUsage) float64 {
	from, to := before.GetUsageCoreNanoSeconds().GetValue(), now.GetUsageCoreNanoSeconds().GetValue()
	elapsed := now.GetTimestamp() - before.GetTimestamp()
	if before == nil || elapsed <= 0 || to < from {
		return float64(now.GetUsageNanoCores().GetValue()) / 1e7
	}
	return float64(to-from) / float64(elapsed) * 100
}

// pause sleeps, and returns ctx's error when it ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
