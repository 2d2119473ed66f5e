package oci

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounts are the kernel's filesystems, the pod's files and what the request
// mounts, in an order in which none hides another.
func (b *builder) mounts() error {
	requested := make([]specs.Mount, 0, len(b.Config.GetMounts()))
	for i, m := range b.Config.GetMounts() {
		mount, err := b.mount(fmt.Sprintf("config.mounts[%d]", i), i, m)
		if err != nil {
			return err
		}
		requested = append(requested, mount)
	}
	// What the request mounts takes the place of ours, with all below it: who mounts the host's
	// /dev or /sys wants to see the host's. (Our files in /etc go over a volume there.)
	hidden := func(m specs.Mount) bool {
		return slices.ContainsFunc(requested, func(r specs.Mount) bool {
			return m.Destination == r.Destination ||
				m.Type != "bind" && strings.HasPrefix(m.Destination, r.Destination+"/") ||
				r.Destination == "/dev" && strings.HasPrefix(m.Destination, "/dev/")
		})
	}
	volumes, err := b.volumes()
	if err != nil {
		return err
	}
	podMounts := b.podMounts()
	base := slices.DeleteFunc(b.base.Mounts, func(m specs.Mount) bool {
		return slices.ContainsFunc(podMounts, func(p specs.Mount) bool { return p.Destination == m.Destination })
	})
	ours := slices.DeleteFunc(slices.Concat(b.systemMounts(), volumes, podMounts, base), hidden)
	b.spec.Mounts = slices.Concat(ours, requested)
	slices.SortStableFunc(b.spec.Mounts, func(x, y specs.Mount) int {
		return strings.Count(x.Destination, "/") - strings.Count(y.Destination, "/")
	})
	return nil
}

// systemMounts are the filesystems that programs expect (OCI runtime spec, "Default Filesystems").
func (b *builder) systemMounts() []specs.Mount {
	mode := "ro"
	if b.privileged {
		mode = "rw"
	}
	cgroup := []string{"nosuid", "noexec", "nodev", "relatime", mode}
	if b.privileged {
		// On v2 such a container has no cgroup namespace, and mounting the host's one superblock
		// again would take these options off for the whole host.
		cgroup = append(cgroup, b.host.cgroupOptions...)
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if b.IDMappings == nil || b.IDMappings.GIDs.Has(ttyGroup) {
		pts = append(pts, fmt.Sprintf("gid=%d", ttyGroup))
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}}
	if b.Namespaces.User != "" && b.Namespaces.Net == "" {
		sys = b.usernsSys(mode)
	}
	return []specs.Mount{
		procMount, devMount,
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
		{Destination: cgroupRoot, Type: "cgroup", Source: "cgroup", Options: cgroup},
	}
}

// ttyGroup is the group of terminals everywhere.
const ttyGroup = 5

var (
	procMount = specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}
	devMount  = specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
		Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}}
)

// podMounts are what the containers of a pod have in common.
func (b *builder) podMounts() []specs.Mount {
	mode := "rw"
	if b.sc.GetReadonlyRootfs() {
		mode = "ro"
	}
	shm := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}}
	if b.Shm != "" {
		shm = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: b.Shm,
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"}}
	}
	mounts := []specs.Mount{shm}
	for _, file := range [][2]string{{"/etc/resolv.conf", b.ResolvConf}, {"/etc/hosts", b.Hosts}, {"/etc/hostname", b.HostnameFile}} {
		if file[1] != "" {
			mounts = append(mounts, specs.Mount{Destination: file[0], Type: "bind", Source: file[1],
				Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", mode}})
		}
	}
	return mounts
}

// mount is one of the request's, its i-th.
func (b *builder) mount(field string, i int, m *runtimeapi.Mount) (specs.Mount, error) {
	destination, err := cleanPath(field+".container_path", m.GetContainerPath())
	if err != nil {
		return specs.Mount{}, err
	}
	if destination == "/" {
		return specs.Mount{}, invalid(field+".container_path", m.GetContainerPath(), "is the root filesystem")
	}
	source, err := b.mountSource(field, i, m)
	if err != nil {
		return specs.Mount{}, err
	}
	propagation, err := b.propagation(field, source, m.GetPropagation())
	if err != nil {
		return specs.Mount{}, err
	}
	access, err := b.access(field, m)
	if err != nil {
		return specs.Mount{}, err
	}
	more, err := b.mountOptions(field, m.GetMountOptions())
	if err != nil {
		return specs.Mount{}, err
	}
	mount := specs.Mount{
		Destination: destination, Type: "bind", Source: source,
		Options: append([]string{"rbind", propagation, access}, more...),
	}
	return mount, b.idMap(field, m, &mount)
}

// mountSource is a path of the host, or of an image's root filesystem.
func (b *builder) mountSource(field string, i int, m *runtimeapi.Mount) (string, error) {
	if m.GetImage().GetImage() != "" {
		source, err := imageSource(field, b.ImageVolumes[i], m)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrImageVolume, err)
		}
		return source, nil
	}
	if m.GetImageSubPath() != "" {
		return "", invalid(field+".image_sub_path", m.GetImageSubPath(), "needs an image")
	}
	return resolveHostPath(field+".host_path", m.GetHostPath())
}

// cleanPath checks a path inside of the container. The OCI runtime resolves
// links on the way to it beneath the root filesystem.
func cleanPath(field, p string) (string, error) {
	switch {
	case p == "":
		return "", invalid(field, "", "empty")
	case !path.IsAbs(p):
		return "", invalid(field, p, "not an absolute path")
	case slices.Contains(strings.Split(p, "/"), ".."):
		return "", invalid(field, p, `contains ".."`)
	}
	return path.Clean(p), checkText(field, p)
}

// resolveHostPath follows links, as the CRI wants it, to what exists on the host.
func resolveHostPath(field, p string) (string, error) {
	if p == "" {
		return "", invalid(field, "", "empty")
	}
	if !filepath.IsAbs(p) {
		return "", invalid(field, p, "not an absolute path")
	}
	if err := checkText(field, p); err != nil {
		return "", err
	}
	resolved, err := filepath.EvalSymlinks(p)
	if errors.Is(err, os.ErrNotExist) {
		return "", invalid(field, p, "does not exist on the host")
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) {
		return "", invalid(field, p, "can't be resolved on the host: %v", err)
	}
	if err != nil {
		return "", fmt.Errorf("%s: resolve host path: %w", field, err)
	}
	return resolved, nil
}

// propagation returns the mount option, and lets the root filesystem's
// propagation follow: mounts can get no further than their parent lets them.
func (b *builder) propagation(field, source string, p runtimeapi.MountPropagation) (string, error) {
	root := &b.spec.Linux.RootfsPropagation
	switch p {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if *root == "" {
			*root = "rslave"
		}
		return "rslave", checkPropagation(field, source, "shared:", "master:")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		*root = "rshared"
		return "rshared", checkPropagation(field, source, "shared:")
	default:
		return "", invalid(field+".propagation", p.String(), "unknown propagation")
	}
}

// checkPropagation fails when the mount that holds source has none of the
// tags: the kernel would take the option and propagate nothing.
func checkPropagation(field, source string, tags ...string) error {
	above, err := mountinfo.GetMounts(mountinfo.ParentsFilter(source))
	if err != nil {
		return fmt.Errorf("%s: read mounts: %w", field, err)
	}
	if len(above) == 0 {
		return fmt.Errorf("%s: %s is on no mount", field, source)
	}
	// Among equals the last hides the others.
	mount := above[0]
	for _, m := range above[1:] {
		if len(m.Mountpoint) >= len(mount.Mountpoint) {
			mount = m
		}
	}
	for _, tag := range strings.Fields(mount.Optional) {
		if slices.ContainsFunc(tags, func(t string) bool { return strings.HasPrefix(tag, t) }) {
			return nil
		}
	}
	return fmt.Errorf("%s.propagation: %s is on the mount %s, which is not %s: make it so with mount --make-rshared: %w",
		field, source, mount.Mountpoint, strings.NewReplacer("shared:", "shared", "master:", "a slave").Replace(strings.Join(tags, " or ")), ErrNotShared)
}

// access returns the option for reading or writing.
func (b *builder) access(field string, m *runtimeapi.Mount) (string, error) {
	field += ".recursive_read_only"
	switch {
	case !m.GetRecursiveReadOnly() && m.GetReadonly():
		return "ro", nil
	case !m.GetRecursiveReadOnly():
		return "rw", nil
	case !m.GetReadonly():
		return "", invalid(field, "true", "needs readonly too")
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "", invalid(field, "true", "needs private propagation, not %s", m.GetPropagation())
	case !b.Handler.RecursiveReadOnlyMounts:
		return "", fmt.Errorf("%w: %w", ErrRecursiveReadOnly, unsupported(field, "%s and this kernel cannot make mounts recursively read-only", b.Handler.Binary))
	}
	return "rro", nil
}

// restrictions are the mount options that a request may add. None gives the
// container anything that it would not have without.
var restrictions = []string{"noexec", "nodev", "nosuid", "nosymfollow", "noatime", "nodiratime", "relatime", "strictatime"}

func (b *builder) mountOptions(field string, options []string) ([]string, error) {
	for i, o := range options {
		field := fmt.Sprintf("%s.mount_options[%d]", field, i)
		if !slices.Contains(restrictions, o) {
			return nil, invalid(field, o, "not one of %s", strings.Join(restrictions, ", "))
		}
		if known := b.Handler.Features.MountOptions; known != nil && !slices.Contains(known, o) {
			return nil, unsupported(field, "%s does not know %q", b.Handler.Binary, o)
		}
	}
	return options, nil
}

// Relabel is a volume that is to have its container's SELinux label.
type Relabel struct {
	// Field is the one that asks for it, Path the volume on the host, without links.
	Field, Path string
}

// Relabels returns the volumes whose mounts ask for a label (selinux_relabel).
// [ContainerSpec] has checked the same mounts; setting the labels is the caller's.
func Relabels(config *runtimeapi.ContainerConfig) ([]Relabel, error) {
	var list []Relabel
	for i, m := range config.GetMounts() {
		if !m.GetSelinuxRelabel() || m.GetHostPath() == "" {
			continue
		}
		field := fmt.Sprintf("config.mounts[%d]", i)
		p, err := resolveHostPath(field+".host_path", m.GetHostPath())
		if err != nil {
			return nil, err
		}
		list = append(list, Relabel{Field: field + ".selinux_relabel", Path: p})
	}
	return list, nil
}
