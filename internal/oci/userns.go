package oci

import (
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// IDMappings are the ids of a pod's user namespace: one range of users and one of
// groups, from 0 on, that are others on the host.
type IDMappings struct{ UIDs, GIDs IDRange }

// IDRange are the ids 0 to Size-1 of a user namespace, which are Host and those
// after it on the host.
type IDRange struct{ Host, Size uint32 }

// Has reports whether the user namespace has the id.
func (r IDRange) Has(id int64) bool { return id >= 0 && id < int64(r.Size) }

// OnHost is what an id of the user namespace, which has it, is on the host.
func (r IDRange) OnHost(id int64) int { return int(r.Host) + int(id) }

func (r IDRange) spec() []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: r.Host, Size: r.Size}}
}

// ParseUserNamespace returns the mappings of a pod's or a container's user
// namespace; nil for none of its own. Errors are [*InvalidError].
func ParseUserNamespace(field string, u *runtimeapi.UserNamespace) (*IDMappings, error) {
	if u == nil {
		return nil, nil
	}
	switch u.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return nil, invalid(field+".mode", u.GetMode().String(), "the host's user namespace takes no mappings")
		}
		return nil, nil
	case runtimeapi.NamespaceMode_POD:
		return parseIDMappings(field+".uids", u.GetUids(), field+".gids", u.GetGids())
	}
	return nil, invalid(field+".mode", u.GetMode().String(), "a user namespace is the POD's or the NODE's")
}

func parseIDMappings(uidField string, uids []*runtimeapi.IDMapping, gidField string, gids []*runtimeapi.IDMapping) (*IDMappings, error) {
	u, err := parseIDRange(uidField, uids)
	if err != nil {
		return nil, err
	}
	g, err := parseIDRange(gidField, gids)
	if err != nil {
		return nil, err
	}
	return &IDMappings{UIDs: u, GIDs: g}, nil
}

func parseIDRange(field string, list []*runtimeapi.IDMapping) (IDRange, error) {
	if len(list) != 1 {
		return IDRange{}, invalid(field, "", "%d mappings: there must be one", len(list))
	}
	m := list[0]
	switch {
	case m.GetContainerId() != 0:
		return IDRange{}, invalid(field+"[0].container_id", strconv.FormatUint(uint64(m.GetContainerId()), 10), "not 0: root would not be mapped")
	case m.GetLength() == 0:
		return IDRange{}, invalid(field+"[0].length", "0", "maps nothing")
	case uint64(m.GetHostId())+uint64(m.GetLength())-1 > maxID:
		return IDRange{}, invalid(field+"[0].length", strconv.FormatUint(uint64(m.GetLength()), 10),
			"from %d on there are no so many ids: the last is %d", m.GetHostId(), uint32(maxID))
	}
	return IDRange{Host: m.GetHostId(), Size: m.GetLength()}, nil
}

// checkMapped refuses a user whom the pod's user namespace does not have: the OCI
// runtime would say "invalid argument".
func (b *builder) checkMapped() error {
	m := b.IDMappings
	if m == nil {
		return nil
	}
	if !m.UIDs.Has(b.user.UID) {
		return invalid("the container's user", strconv.FormatInt(b.user.UID, 10), "the pod's user namespace has the users 0 to %d", m.UIDs.Size-1)
	}
	for _, g := range append([]int64{b.user.GID}, b.user.AdditionalGroups...) {
		if !m.GIDs.Has(g) {
			return invalid("the container's group", strconv.FormatInt(g, 10), "the pod's user namespace has the groups 0 to %d", m.GIDs.Size-1)
		}
	}
	return nil
}

// idMap gives a mount of the request the mappings that it asks for: the files on
// it are then to the container as they are to the host.
func (b *builder) idMap(field string, m *runtimeapi.Mount, mount *specs.Mount) error {
	if len(m.GetUidMappings())+len(m.GetGidMappings()) == 0 {
		return nil
	}
	want, err := parseIDMappings(field+".uidMappings", m.GetUidMappings(), field+".gidMappings", m.GetGidMappings())
	if err != nil {
		return err
	}
	field += ".uidMappings"
	if b.IDMappings == nil {
		return invalid(field, "", "the pod has no user namespace")
	}
	if *want != *b.IDMappings {
		return invalid(field, "", "not the mappings of the pod's user namespace")
	}
	if m.GetImage().GetImage() != "" {
		return nil // its root filesystem was mounted so
	}
	if err := b.host.idMappable(mount.Source, b.Namespaces.User); err != nil {
		return unsupported(field, "%s: %v", mount.Source, err)
	}
	mount.UIDMappings, mount.GIDMappings = want.UIDs.spec(), want.GIDs.spec()
	return nil
}

// usernsSys is /sys where it can't be mounted anew: that takes a network namespace
// which the pod's user namespace owns.
func (b *builder) usernsSys(mode string) specs.Mount {
	if mode == "ro" && b.Handler.RecursiveReadOnlyMounts {
		mode = "rro"
	}
	return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", mode}}
}

// noUserNamespaces says why a handler can't give a pod a user namespace of its
// own; "" when it can.
func noUserNamespaces(h *Handler) string {
	f := h.Features.Linux
	switch {
	case readWord("/proc/sys/user/max_user_namespaces") == "0":
		return "the kernel allows no user namespaces (user.max_user_namespaces is 0)"
	case !exists("/proc/self/ns/user"):
		return "the kernel has no user namespaces"
	case f == nil || f.MountExtensions == nil || f.MountExtensions.IDMap == nil || f.MountExtensions.IDMap.Enabled == nil || !*f.MountExtensions.IDMap.Enabled:
		return fmt.Sprintf("%s (%s) cannot make id-mapped mounts", h.Binary, h.Version)
	}
	return ""
}
