package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
)

const (
	// probeTimeout ends a runtime that does not answer.
	probeTimeout = 10 * time.Second
	// maxOutput bounds what it may print.
	maxOutput = 1 << 20
)

// output runs a command that tells something. The root is named even here: crun
// makes its default one, whatever it is called for.
func output(ctx context.Context, binary, root string, args ...string) ([]byte, error) {
	args = append([]string{"--root", root}, args...)
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	stdout, stderr := &bounded{most: maxOutput}, &bounded{most: 2048}
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// Should it leave a child behind that keeps the pipes open.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil && stdout.over {
		err = fmt.Errorf("printed more than %d bytes", maxOutput)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", binary, strings.Join(args, " "), errors.Join(err, ctx.Err()), bytes.TrimSpace(stderr.kept.Bytes()))
	}
	return stdout.kept.Bytes(), nil
}

// bounded keeps the first bytes and drops the rest. The buffer is a field, not
// embedded: io.Copy would find its ReadFrom, which knows no bound.
type bounded struct {
	kept bytes.Buffer
	most int
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := b.most - b.kept.Len(); len(p) > room {
		b.over = true
		b.kept.Write(p[:room])
		return len(p), nil
	}
	return b.kept.Write(p)
}

// probed is what was found out about a binary.
type probed struct {
	Version  string            `json:"version"`
	Features features.Features `json:"features"`
	// Trial is "" for none yet, trialPassed, or why it failed.
	Trial string `json:"trial,omitempty"`
}

const trialPassed = "ok"

// probeCache is STATE/handlers.json. It only saves time: whatever is wrong
// with it, the binaries are asked again.
type probeCache struct {
	file    string
	changed bool
	known   map[string]probed
}

func openProbeCache(stateDir string) *probeCache {
	c := &probeCache{file: filepath.Join(stateDir, "handlers.json"), known: map[string]probed{}}
	f, err := os.Open(c.file)
	if err != nil {
		return c
	}
	defer f.Close()
	if data, err := readBounded(f, maxOutput); err != nil || json.Unmarshal([]byte(data), &c.known) != nil || c.known == nil {
		c.known = map[string]probed{}
	}
	return c
}

func (c *probeCache) get(key string) probed { return c.known[key] }

func (c *probeCache) put(key string, p probed) {
	if old, ok := c.known[key]; ok && old.Trial == p.Trial && old.Version == p.Version {
		return
	}
	c.known[key], c.changed = p, true
}

// save writes the file when something is new. It may fail: see probeCache.
func (c *probeCache) save() {
	if !c.changed {
		return
	}
	data, err := json.Marshal(c.known)
	if err != nil {
		return
	}
	next := c.file + ".new"
	if os.WriteFile(next, data, 0o600) != nil || os.Rename(next, c.file) != nil {
		_ = os.Remove(next)
	}
}

// probeKey changes when what was found out may be true no more: with the
// binary, the boot, the cgroup driver and how cgroups are mounted.
func probeKey(binary string, driver CgroupDriver) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(binary, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", binary, err)
	}
	var cgroups []string
	for mount := range strings.Lines(readFile("/proc/self/mountinfo")) {
		if _, kind, ok := strings.Cut(mount, " - cgroup"); ok {
			cgroups = append(cgroups, strings.Fields(mount)[4], kind)
		}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %d %d %s %s %q", binary, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec,
		readWord("/proc/sys/kernel/random/boot_id"), driver, cgroups))
	return fmt.Sprintf("%s %x", binary, sum[:8]), nil
}
