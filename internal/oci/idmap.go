package oci

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// idMappable tries whether the kernel can mount what is at path with the ids of
// a user namespace, which is the filesystem's to allow. The mount is attached nowhere.
func idMappable(path, userns string) error {
	ns, err := unix.Open(userns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the user namespace %s: %w", userns, err)
	}
	defer unix.Close(ns)
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("this kernel cannot map the ids of files on %s", filesystem(path))
	}
	if err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// filesystem names the kind that path is on, for an error.
func filesystem(path string) string {
	names := map[int64]string{
		unix.NFS_SUPER_MAGIC: "NFS", unix.FUSE_SUPER_MAGIC: "FUSE", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "XFS", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP2_SUPER_MAGIC: "cgroup v2", unix.V9FS_MAGIC: "9p",
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "its filesystem"
	}
	if name, ok := names[st.Type]; ok {
		return name
	}
	return fmt.Sprintf("a filesystem of type %#x", st.Type)
}
