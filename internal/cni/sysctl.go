package cni

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxSysctls     = 1024
	maxSysctlName  = 256
	maxSysctlValue = 4096
)

// sysctl is one setting: its path below /proc/sys and its value.
type sysctl struct {
	path, value string
}

// parseSysctls checks names and values and sorts them by name. Only sysctls
// that belong to a namespace which the pod has for itself are let through:
// everything else would change the host.
func parseSysctls(values map[string]string, hasNet, hasIPC bool) ([]sysctl, error) {
	if len(values) > maxSysctls {
		return nil, fmt.Errorf("%w: more than %d sysctls", ErrInvalid, maxSysctls)
	}
	var out []sysctl
	for _, name := range slices.Sorted(maps.Keys(values)) {
		path, err := sysctlPath(name)
		if err != nil {
			return nil, err
		}
		owner := sysctlNamespace(path)
		switch {
		case owner == "":
			return nil, fmt.Errorf("%w: sysctl %s does not belong to a namespace of pods", ErrInvalid, name)
		case owner == "net" && !hasNet, owner == "ipc" && !hasIPC:
			return nil, fmt.Errorf("%w: sysctl %s: the pod uses the host's %s namespace", ErrInvalid, name, owner)
		}
		value := values[name]
		if len(value) > maxSysctlValue || strings.ContainsAny(value, "\x00\n") {
			return nil, fmt.Errorf("%w: sysctl %s has an impossible value", ErrInvalid, name)
		}
		out = append(out, sysctl{path, value})
	}
	return out, nil
}

// sysctlPath turns a name into a path below /proc/sys, as sysctl(8) does: the
// first separator in the name, dot or slash, is the one that separates; the
// other one stands for itself, as in net.ipv4.conf.eth0/100.forwarding for the
// interface eth0.100.
func sysctlPath(name string) (string, error) {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	bad := len(name) > maxSysctlName || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f })
	for _, part := range strings.Split(path, "/") {
		bad = bad || part == "" || part == "." || part == ".."
	}
	if bad {
		return "", fmt.Errorf("%w: sysctl name %q", ErrInvalid, truncate(name, maxSysctlName))
	}
	return path, nil
}

// sysctlNamespace says whose sysctl it is: "net", "ipc", or "" for the host's.
func sysctlNamespace(path string) string {
	switch {
	case strings.HasPrefix(path, "net/"):
		return "net"
	case strings.HasPrefix(path, "fs/mqueue/"), path == "kernel/sem":
		return "ipc"
	}
	if rest, ok := strings.CutPrefix(path, "kernel/"); ok && !strings.Contains(rest, "/") &&
		(strings.HasPrefix(rest, "shm") || strings.HasPrefix(rest, "msg")) {
		return "ipc"
	}
	return ""
}

// writeSysctls writes in the namespaces of the calling thread: the kernel
// shows each thread its own under /proc/sys.
func writeSysctls(sysctls []sysctl) error {
	for _, s := range sysctls {
		err := writeSysctl(s)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err) // this kernel has no such name, or refuses the value
		}
		if err != nil {
			return fmt.Errorf("set sysctl %s=%q: %w", strings.ReplaceAll(s.path, "/", "."), s.value, err)
		}
	}
	return nil
}

func writeSysctl(s sysctl) error {
	f, err := os.OpenFile(filepath.Join("/proc/sys", s.path), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s.value)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
