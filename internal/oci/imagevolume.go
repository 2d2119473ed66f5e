package oci

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckImageVolume checks a mount that names an image, but for what can be told
// from the image only. Errors are [*InvalidError].
func CheckImageVolume(field string, m *runtimeapi.Mount) error {
	sub := m.GetImageSubPath()
	switch {
	case m.GetHostPath() != "":
		return invalid(field+".host_path", m.GetHostPath(), "must be empty when an image is mounted")
	case !m.GetReadonly():
		return invalid(field+".readonly", "false", "must be true when an image is mounted")
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+".propagation", m.GetPropagation().String(), "must be private when an image is mounted")
	case path.IsAbs(sub):
		return invalid(field+".image_sub_path", sub, "not a relative path")
	case slices.Contains(strings.Split(sub, "/"), ".."):
		return invalid(field+".image_sub_path", sub, `contains ".."`)
	}
	return checkText(field+".image_sub_path", sub)
}

// imageSource is the mount's directory or file in the image's root filesystem,
// with links followed inside of that only. Nothing writes there, so the path
// stays what it is.
func imageSource(field, root string, m *runtimeapi.Mount) (string, error) {
	if err := CheckImageVolume(field, m); err != nil {
		return "", err
	}
	sub := m.GetImageSubPath()
	if root == "" {
		return "", fmt.Errorf("%s.image: %s is not mounted", field, m.GetImage().GetImage())
	}
	if sub == "" {
		return root, nil
	}
	field += ".image_sub_path"
	handle, err := pathrs.OpenInRoot(root, sub)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", invalid(field, sub, "does not exist in the image %s", m.GetImage().GetImage())
	case errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG):
		return "", invalid(field, sub, "can't be resolved in the image %s: %v", m.GetImage().GetImage(), err)
	case err != nil:
		return "", fmt.Errorf("%s: open in %s: %w", field, root, err)
	}
	defer handle.Close()
	st, err := handle.Stat()
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	if !st.IsDir() && !st.Mode().IsRegular() {
		return "", invalid(field, sub, "is neither a directory nor a regular file")
	}
	return handlePath(handle)
}
