package monitor

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxResources bounds the limits of one update, as JSON, in bytes.
const maxResources = 256 << 10

// updateParams has a container's new limits: the OCI runtime spec's linux.resources.
type updateParams struct {
	target
	Resources []byte `json:"resources"`
}

// update has the OCI runtime change a container's limits.
func (pu *pump) update(ctx context.Context, q updateParams) error {
	p, err := pu.find(q.ID, "")
	if err != nil {
		return err
	}
	if len(q.Resources) > maxResources || !isObject(q.Resources) {
		return fmt.Errorf("%w: the resources are not a JSON object of at most %d bytes", ErrInvalid, maxResources)
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	r := p.record()
	if r.State != StateRunning && r.State != StateCreated {
		return fmt.Errorf("%w: update container %s: it is %s", ErrState, q.ID, r.State)
	}
	file := pu.runtimes.tempFile(".json")
	defer removeTemp(file)
	if err := os.WriteFile(file, q.Resources, 0o600); err != nil {
		return fmt.Errorf("update container %s: %w", q.ID, err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	args := []string{"update", "--resources", file, q.ID}
	if err := pu.runtimes.run(ctx, call{rt: r.Runtime, args: args, in: null, out: -1, err: -1}); err != nil {
		return fmt.Errorf("update container %s: %w", q.ID, err)
	}
	return nil
}

// Update has the OCI runtime change a container's limits; resources is the OCI
// runtime spec's linux.resources as JSON, and what it does not name stays. ErrState when it has ended.
func (c *Client) Update(ctx context.Context, id string, resources []byte) error {
	return c.call(ctx, "update", true, updateParams{target{ID: id}, resources}, &none{})
}
