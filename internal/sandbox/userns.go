package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/monitor"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// usernsField is where the mappings are, in a pod's config and in a container's.
const usernsField = "config.linux.security_context.namespace_options.userns_options"

// idMappings are those of the pod's user namespace; nil for the host's.
func (p *pod) idMappings() *oci.IDMappings {
	m, err := oci.ParseUserNamespace(usernsField, sandboxOptions(p.cfg).GetUsernsOptions())
	if err != nil {
		return nil // RunPod refuses such a pod
	}
	return m
}

// checkPodUserNamespace refuses mappings that are none, and what does not go with a user namespace.
func checkPodUserNamespace(o *runtimeapi.NamespaceOption, h *oci.Handler) error {
	m, err := oci.ParseUserNamespace(usernsField, o.GetUsernsOptions())
	if err != nil || m == nil {
		return err
	}
	// The kernel lets nobody in the user namespace mount what shows the host's.
	for _, ns := range []struct {
		field string
		mode  runtimeapi.NamespaceMode
	}{{"pid", o.GetPid()}, {"ipc", o.GetIpc()}} {
		if ns.mode == runtimeapi.NamespaceMode_NODE {
			return fmt.Errorf("config.linux.security_context.namespace_options.%s %v: the pod has a user namespace: %w", ns.field, ns.mode, ErrInvalid)
		}
	}
	if h.NoUserNamespaces != "" {
		return fmt.Errorf("%s: handler %s: %s: %w", usernsField, h.Name, h.NoUserNamespaces, errors.ErrUnsupported)
	}
	return nil
}

// checkContainerUserNamespace refuses a container that wants another user
// namespace than its pod has; one that says nothing has the pod's.
func checkContainerUserNamespace(p *pod, o *runtimeapi.NamespaceOption) error {
	u := o.GetUsernsOptions()
	if u == nil {
		return nil
	}
	want, err := oci.ParseUserNamespace(usernsField, u)
	if err != nil {
		return err
	}
	have := p.idMappings()
	if (want == nil) != (have == nil) || want != nil && *want != *have {
		return fmt.Errorf("%s: not that of pod sandbox %s: %w", usernsField, p.id, ErrInvalid)
	}
	return nil
}

// userNamespace is what to create; nil where the pod has none of its own.
func (r *podRun) userNamespace() *cni.UserNamespace {
	m := r.p.idMappings()
	if m == nil {
		return nil
	}
	return &cni.UserNamespace{
		Path:   r.p.rec.UserNS,
		UIDs:   syscall.SysProcIDMap{HostID: int(m.UIDs.Host), Size: int(m.UIDs.Size)},
		GIDs:   syscall.SysProcIDMap{HostID: int(m.GIDs.Host), Size: int(m.GIDs.Size)},
		Holder: filepath.Join(r.e.pauseRootFS, "pause"),
	}
}

// root is who a pod's root is on the host.
func (p *pod) root() (uid, gid int) {
	if m := p.idMappings(); m != nil {
		return m.UIDs.OnHost(0), m.GIDs.OnHost(0)
	}
	return 0, 0
}

// streamsOwner is who a container's user is on the host, where the OCI runtime
// can't say so itself.
func (c *container) streamsOwner() *monitor.Owner {
	m := c.pod.idMappings()
	if m == nil {
		return nil
	}
	rec := c.read()
	return &monitor.Owner{UID: m.UIDs.OnHost(rec.UID), GID: m.GIDs.OnHost(rec.GID)}
}

// rootFSOptions are those of all that a container has mounted of images.
func (c *container) rootFSOptions() storage.RootFSOptions {
	o := storage.RootFSOptions{MountLabel: c.read().Labels.Mount}
	if m := c.pod.idMappings(); m != nil {
		o.UIDs, o.GIDs = storage.IDRange(m.UIDs), storage.IDRange(m.GIDs)
	}
	return o
}
