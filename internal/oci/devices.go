package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxDevices bounds what one directory of devices adds to a spec.
const maxDevices = 4096

// devices denies all but what the request names and what every OCI runtime
// allows by itself (null, zero, full, random, urandom, tty, ptmx, console).
func (b *builder) devices() error {
	resources := b.spec.Linux.Resources
	if b.privileged && !b.Handler.PrivilegedWithoutHostDevices {
		all, err := devicesBelow("/dev", "/dev")
		if err != nil {
			return fmt.Errorf("list the host's devices: %w", err)
		}
		b.spec.Linux.Devices = all
		resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
		resources.Devices = append(resources.Devices, b.base.Linux.Resources.Devices...)
	}
	for _, d := range b.base.Linux.Devices {
		b.addDevice(d)
	}
	for i, d := range b.Config.GetDevices() {
		if err := b.device(fmt.Sprintf("config.devices[%d]", i), d.GetHostPath(), d.GetContainerPath(), d.GetPermissions()); err != nil {
			return err
		}
	}
	return nil
}

// device adds one device, or all in a directory.
func (b *builder) device(field, hostPath, containerPath, permissions string) error {
	if permissions == "" || strings.Trim(permissions, "rwm") != "" {
		return invalid(field+".permissions", permissions, `not one or more of "r", "w" and "m"`)
	}
	source, err := resolveHostPath(field+".host_path", hostPath)
	if err != nil {
		return err
	}
	if containerPath == "" {
		containerPath = hostPath
	}
	destination, err := cleanPath(field+".container_path", containerPath)
	if err != nil {
		return err
	}
	found, err := devicesBelow(source, destination)
	if err != nil {
		return fmt.Errorf("%s.host_path: %w", field, err)
	}
	if len(found) == 0 {
		return invalid(field+".host_path", hostPath, "is no device, and holds none")
	}
	linux := b.spec.Linux
	for _, d := range found {
		b.own(&d)
		b.addDevice(d)
		linux.Resources.Devices = append(linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: permissions,
		})
	}
	return nil
}

// own gives a device to the user and group that the request names, as containerd
// and CRI-O do. Root needs none of it, and a username is not theirs to look up.
func (b *builder) own(d *specs.LinuxDevice) {
	if !b.DeviceOwnership {
		return
	}
	if uid := uint32(b.sc.GetRunAsUser().GetValue()); uid != 0 {
		d.UID = &uid
	}
	if gid := uint32(b.sc.GetRunAsGroup().GetValue()); gid != 0 {
		d.GID = &gid
	}
}

// addDevice puts a device in the place of another with its path.
func (b *builder) addDevice(d specs.LinuxDevice) {
	linux := b.spec.Linux
	linux.Devices = slices.DeleteFunc(linux.Devices, func(old specs.LinuxDevice) bool { return old.Path == d.Path })
	linux.Devices = append(linux.Devices, d)
}

// notDevices are directories of /dev with mounts of their own, or with an
// outer container's or udev's things.
var notDevices = []string{"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"}

// devicesBelow returns the device at source, or those in the directory, with
// their paths below destination. Links are not followed, and what vanishes
// while we look was not there.
func devicesBelow(source, destination string) ([]specs.LinuxDevice, error) {
	var devices []specs.LinuxDevice
	err := filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && p != source && slices.Contains(notDevices, d.Name()):
			return fs.SkipDir
		case p == "/dev/console" && p != source: // the OCI runtime makes the container's own
			return nil
		case d.Type()&fs.ModeDevice == 0:
			return nil
		case len(devices) == maxDevices:
			return fmt.Errorf("more than %d devices in %s", maxDevices, source)
		}
		device, err := deviceAt(p)
		if err != nil || device == nil {
			return err
		}
		device.Path = filepath.Join(destination, strings.TrimPrefix(p, source))
		devices = append(devices, *device)
		return nil
	})
	return devices, err
}

// deviceAt returns nil when it is gone.
func deviceAt(p string) (*specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		return nil, fmt.Errorf("look at device %s: %w", p, err)
	}
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	mode := os.FileMode(st.Mode & 0o777)
	return &specs.LinuxDevice{
		Type:  kind,
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, nil
}
