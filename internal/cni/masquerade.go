package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// masqueradeTable is the nftables table of the default network, shared by all
// engines of the machine.
const masqueradeTable = "cri_engine_masquerade"

// masqueradeFresh is how long the rule is taken to be there since it was last
// written. Firewalls that are reloaded flush what they don't know.
const masqueradeFresh = 30 * time.Second

// masquerade keeps the rule that lets the default network's pods talk to other
// machines under the host's address. It is written again whenever it may have
// been lost; that is one atomic transaction which changes nothing if it wasn't.
type masquerade struct {
	// turn has one token: who holds it may run nft and touch written.
	turn    chan struct{}
	written time.Time
}

func newMasquerade() *masquerade {
	m := &masquerade{turn: make(chan struct{}, 1)}
	m.turn <- struct{}{}
	return m
}

// ensure returns when the rule for the subnets is there.
func (m *masquerade) ensure(ctx context.Context, subnets []netip.Prefix) error {
	if len(subnets) == 0 {
		return nil
	}
	select {
	case <-m.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { m.turn <- struct{}{} }()
	if time.Since(m.written) < masqueradeFresh {
		return nil
	}
	if err := runTool(ctx, masqueradeRules(subnets), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("masquerade the default network: %w", err)
	}
	m.written = time.Now()
	return nil
}

// masqueradeRules only ever adds subnets: an engine of another version may have
// pods on others.
func masqueradeRules(subnets []netip.Prefix) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("add table inet %s", masqueradeTable)
	line("add set inet %s pods4 { type ipv4_addr; flags interval; }", masqueradeTable)
	line("add set inet %s pods6 { type ipv6_addr; flags interval; }", masqueradeTable)
	line("add chain inet %s postrouting { type nat hook postrouting priority 100; policy accept; }", masqueradeTable)
	line("flush chain inet %s postrouting", masqueradeTable)
	for _, subnet := range subnets {
		set := "pods4"
		if subnet.Addr().Is6() {
			set = "pods6"
		}
		line("add element inet %s %s { %s }", masqueradeTable, set, subnet)
	}
	line("add rule inet %s postrouting ip saddr @pods4 ip daddr != @pods4 ip daddr != 224.0.0.0/4 masquerade", masqueradeTable)
	line("add rule inet %s postrouting ip6 saddr @pods6 ip6 daddr != @pods6 ip6 daddr != ff00::/8 masquerade", masqueradeTable)
	return b.String()
}

// shareDir makes the default network's data directory and locks it, shared, so
// that no engine takes the network down while another adds a pod to it.
func (d *defaultNetwork) shareDir(ctx context.Context) (release func(), err error) {
	for {
		if err := os.MkdirAll(d.dataDir, 0o755); err != nil {
			return nil, err
		}
		dir, err := lockDir(d.dataDir, unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		select { // another engine is taking the network down, which takes it milliseconds
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// lockDir locks a directory, and makes sure that it still is the one at path:
// its last user may have removed it meanwhile.
func lockDir(path string, how int) (*os.File, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), how); err != nil {
		dir.Close()
		return nil, err
	}
	locked, err := dir.Stat()
	if err != nil {
		dir.Close()
		return nil, err
	}
	now, err := os.Stat(path)
	if err != nil || !os.SameFile(locked, now) {
		dir.Close()
		return nil, fs.ErrNotExist
	}
	return dir, nil
}

// tearDown removes what the default network keeps on the host (the bridge, the
// masquerading rule, host-local's files), unless a pod of any engine is
// on it. Nothing of it is needed by an engine that starts again.
func (d *defaultNetwork) tearDown(ctx context.Context) error {
	if d.dataDir == "" || d.bridge == "" {
		return nil
	}
	dir, err := lockDir(d.dataDir, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if d.inUse() || len(d.allocated()) > 0 {
		return nil
	}
	return errors.Join(deleteBridge(d.bridge), d.deleteRule(ctx), d.deleteFiles())
}

// deleteBridge leaves alone what isn't a bridge, or does not exist.
func deleteBridge(name string) error {
	if _, err := os.Stat(filepath.Join("/sys/class/net", name, "bridge")); err != nil {
		return nil
	}
	return linkDel(name)
}

func (d *defaultNetwork) deleteRule(ctx context.Context) error {
	if len(d.subnets) == 0 {
		return nil
	}
	// "add" first makes the deletion of a table that isn't there no error.
	script := fmt.Sprintf("add table inet %s\ndelete table inet %s\n", masqueradeTable, masqueradeTable)
	return runTool(ctx, script, "nft", "-f", "-")
}

// deleteFiles removes host-local's own files by their names, and the
// directories if nothing else is in them.
func (d *defaultNetwork) deleteFiles() error {
	dir := filepath.Join(d.dataDir, d.list.Name)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if name := entry.Name(); name == "lock" || strings.HasPrefix(name, "last_reserved_ip.") {
			_ = os.Remove(filepath.Join(dir, name))
		}
	}
	for _, path := range []string{dir, d.dataDir} {
		if err := syscall.Rmdir(path); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("remove %s: %w", path, err)
		}
	}
	return nil
}
