// Package systemd asks systemd for what nobody else may do to its cgroups. It
// talks to it directly, not over the message bus.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// privateSocket is where systemd listens for root.
const privateSocket = "/run/systemd/private"

// stopTime bounds how long systemd may take to stop a slice.
const stopTime = 20 * time.Second

// RemoveSlice stops a slice, with all that is in it, and returns when its cgroup
// is gone. A slice that was started for a scope stays when the scope has ended, as a unit
// and as a cgroup, until somebody stops it. One that does not exist is no error.
func RemoveSlice(ctx context.Context, name string) error {
	if _, err := os.Stat(privateSocket); errors.Is(err, os.ErrNotExist) {
		return nil // no systemd, no slices
	}
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	if err := stop(ctx, name); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	return nil
}

func stop(ctx context.Context, name string) error {
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	done := make(chan string, 1)
	if _, err := conn.StopUnitContext(ctx, name, "replace", done); err != nil {
		if noSuchUnit(err) {
			return nil
		}
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("systemd's job ended as %q", result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func noSuchUnit(err error) bool {
	var said godbus.Error
	return errors.As(err, &said) && said.Name == "org.freedesktop.systemd1.NoSuchUnit"
}
