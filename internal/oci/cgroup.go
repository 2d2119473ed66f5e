package oci

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// CgroupDriver says who makes a container's cgroup.
type CgroupDriver string

// The cgroup drivers. "auto" in the configuration is resolved by [DetectCgroupDriver] before it gets anywhere else.
const (
	Cgroupfs CgroupDriver = "cgroupfs"
	Systemd  CgroupDriver = "systemd"
)

// The parents of pods that name none.
const (
	defaultParent = "/cri-engine"
	defaultSlice  = "system.slice"
)

// DetectCgroupDriver resolves the configuration's cgroup_driver. "auto" is
// systemd where PID 1 is systemd and its cgroup hierarchy is there, else
// cgroupfs. "systemd" where it does not run is an error.
func DetectCgroupDriver(setting string) (CgroupDriver, error) {
	// sd_booted(3); and a container may have the directory of its host, but another PID 1.
	running := exists("/run/systemd/system") && readWord("/proc/1/comm") == "systemd" &&
		(exists(cgroupRoot+"/cgroup.controllers") || exists(cgroupRoot+"/systemd/cgroup.procs"))
	switch setting {
	case "", "auto":
		if running {
			return Systemd, nil
		}
		return Cgroupfs, nil
	case string(Cgroupfs):
		return Cgroupfs, nil
	case string(Systemd):
		if !running {
			return "", errors.New("cgroup driver systemd: PID 1 is not systemd, or its cgroup hierarchy is not mounted")
		}
		return Systemd, nil
	}
	return "", fmt.Errorf(`cgroup driver %s: not "auto", "systemd" or "cgroupfs"`, quote(setting))
}

const parentField = "config.linux.cgroup_parent"

// CheckCgroupParent checks a pod's cgroup_parent, "" included. It is a clean
// absolute path; under systemd its last part is a slice, and the parts before
// are the slices that this one's name says ("a-b.slice" is in "a.slice").
// Errors are [*InvalidError].
func CheckCgroupParent(driver CgroupDriver, parent string) error {
	if parent == "" {
		return nil
	}
	if err := checkText(parentField, parent); err != nil {
		return err
	}
	parts := strings.Split(strings.TrimSuffix(strings.TrimPrefix(parent, "/"), "/"), "/")
	if slices.ContainsFunc(parts, func(p string) bool { return p == "" || p == "." || p == ".." }) {
		return invalid(parentField, parent, "not a clean path")
	}
	if driver != Systemd {
		if !path.IsAbs(parent) {
			return invalid(parentField, parent, "not an absolute path")
		}
		return nil
	}
	name := parts[len(parts)-1]
	want, ok := expandSlice(name)
	if !ok {
		return invalid(parentField, parent, "the cgroup driver is systemd, and this is no name of a slice")
	}
	if len(parts) > 1 && !slices.Equal(parts, want) {
		return invalid(parentField, parent, "the slice %s is at %s", name, strings.Join(want, "/"))
	}
	return nil
}

// expandSlice returns the slices from the root down to the named one
// (systemd.slice(5)); false for a name that is not well-formed.
func expandSlice(name string) ([]string, bool) {
	stem, ok := strings.CutSuffix(name, ".slice")
	// A ":" would end the name in the form that OCI runtimes take.
	if !ok || stem == "" || strings.ContainsAny(stem, "/: ") {
		return nil, false
	}
	if stem == "-" {
		return []string{name}, true
	}
	var path []string
	prefix := ""
	for part := range strings.SplitSeq(stem, "-") {
		if part == "" {
			return nil, false
		}
		path = append(path, prefix+part+".slice")
		prefix += part + "-"
	}
	return path, true
}

// CgroupsPath returns a container's linux.cgroupsPath in the form that the OCI
// runtimes take for the driver: a path, or "slice:prefix:name". The parent has
// passed [CheckCgroupParent].
func CgroupsPath(driver CgroupDriver, parent, id string) string {
	if driver == Systemd {
		if parent == "" {
			parent = defaultSlice
		}
		return path.Base(parent) + ":cri-engine:" + id
	}
	if parent == "" {
		parent = defaultParent
	}
	return path.Join("/", parent, id)
}

// CgroupPath returns where a pod's cgroup_parent is below each hierarchy's root:
// systemd has the slices from the root down to the named one. "" for none.
func CgroupPath(parent string) string {
	if parent == "" {
		return ""
	}
	if slices, ok := expandSlice(path.Base(parent)); ok {
		return "/" + path.Join(slices...)
	}
	return path.Join("/", parent)
}
