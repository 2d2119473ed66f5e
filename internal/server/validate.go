package server

import (
	"fmt"
	"math"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What is checked here is what names, paths and sizes a request may have; what a
// container's process, mounts and limits may be is checked by internal/oci, and
// what a pod's namespaces may be by internal/sandbox.

const (
	maxName       = 253       // of a pod, namespace, container: a DNS subdomain
	maxUID        = 128       // a pod's UID is a UUID, or a hash for static pods
	maxPath       = 4095      // PATH_MAX without the NUL
	maxHostname   = 64        // HOST_NAME_MAX
	maxLabels     = 512 << 10 // bytes of a map of labels or annotations; Kubernetes allows 256 KiB of a pod's own
	maxImageName  = 4 << 10
	maxDNS        = 8 << 10 // bytes of a resolv.conf's list; Kubernetes allows 2 KiB of search domains
	maxSysctls    = 1024
	maxCommand    = 1 << 20 // bytes of an exec's command
	maxCredential = 64 << 10
)

var (
	objectID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_.-]{0,127}$`)
	hostname = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_])?$`)
	sysctl   = regexp.MustCompile(`^[a-zA-Z0-9_*-]+([./][a-zA-Z0-9_*-]+)+$`)
)

// checkID checks the id of a pod or container, or the start of one. One that has
// the form of another engine's is of nothing we know, which is not a wrong request.
func checkID(field, id string) error {
	switch {
	case id == "":
		return invalid(field, "", "is empty")
	case !objectID.MatchString(id):
		return invalid(field, id, "is not an id, which is up to 128 letters, digits, dots, dashes and underscores")
	}
	return nil
}

// seconds is a request's field timeout.
func seconds(n int64) (time.Duration, error) {
	if n < 0 {
		return 0, invalid("timeout", strconv.FormatInt(n, 10), "is negative")
	}
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second, nil
}

func checkPodConfig(field string, c *runtimeapi.PodSandboxConfig) error {
	if c == nil {
		return invalid(field, "", "is missing")
	}
	return first(
		func() error { return checkPodMetadata(field+".metadata", c.GetMetadata()) },
		func() error { return checkHostname(field+".hostname", c.GetHostname()) },
		func() error { return checkLogDirectory(field+".log_directory", c.GetLogDirectory()) },
		func() error { return checkDNS(field+".dns_config", c.GetDnsConfig()) },
		func() error { return checkPorts(field+".port_mappings", c.GetPortMappings()) },
		func() error { return checkMap(field+".labels", c.GetLabels()) },
		func() error { return checkMap(field+".annotations", c.GetAnnotations()) },
		func() error { return checkPodLinux(field+".linux", c.GetLinux()) },
	)
}

func checkPodMetadata(field string, m *runtimeapi.PodSandboxMetadata) error {
	if m == nil {
		return invalid(field, "", "is missing")
	}
	return first(
		func() error { return checkName(field+".name", m.GetName(), maxName) },
		func() error { return checkName(field+".namespace", m.GetNamespace(), maxName) },
		func() error { return checkName(field+".uid", m.GetUid(), maxUID) },
	)
}

func checkContainerConfig(c *runtimeapi.ContainerConfig) error {
	const field = "config"
	if c == nil {
		return invalid(field, "", "is missing")
	}
	if c.GetMetadata() == nil {
		return invalid(field+".metadata", "", "is missing")
	}
	return first(
		func() error { return checkName(field+".metadata.name", c.GetMetadata().GetName(), maxName) },
		func() error { return checkImage(field+".image", c.GetImage()) },
		func() error { return checkLogPath(field+".log_path", c.GetLogPath()) },
		func() error { return checkMap(field+".labels", c.GetLabels()) },
		func() error { return checkMap(field+".annotations", c.GetAnnotations()) },
		func() error { return checkMounts(field+".mounts", c.GetMounts()) },
	)
}

// checkMounts checks the names of images that are mounted.
func checkMounts(field string, mounts []*runtimeapi.Mount) error {
	for i, m := range mounts {
		if m.GetImage().GetImage() == "" {
			continue
		}
		if err := checkImage(fmt.Sprintf("%s[%d].image", field, i), m.GetImage()); err != nil {
			return err
		}
	}
	return nil
}

// checkName checks a name that goes into logs, and next to others into the
// names under which objects are kept apart.
func checkName(field, name string, most int) error {
	switch {
	case name == "":
		return invalid(field, "", "is empty")
	case len(name) > most:
		return invalid(field, name, "is longer than %d bytes", most)
	case strings.Contains(name, "/"), name == ".", name == "..":
		return invalid(field, name, "is no name but a path")
	}
	return checkPlain(field, name)
}

// checkPlain refuses characters that would break a line, a log or a terminal.
func checkPlain(field, s string) error {
	if i := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
		return invalid(field, s, "contains a character that cannot be printed")
	}
	return nil
}

func checkImage(field string, i *runtimeapi.ImageSpec) error {
	switch name := i.GetImage(); {
	case i == nil:
		return invalid(field, "", "is missing")
	case name == "":
		return invalid(field+".image", "", "is empty")
	case len(name) > maxImageName:
		return invalid(field+".image", name, "is longer than %d bytes", maxImageName)
	default:
		return first(
			func() error { return checkPlain(field+".image", name) },
			func() error { return checkMap(field+".annotations", i.GetAnnotations()) },
		)
	}
}

func checkHostname(field, name string) error {
	switch {
	case name == "":
		return nil
	case len(name) > maxHostname:
		return invalid(field, name, "is longer than %d bytes", maxHostname)
	case !hostname.MatchString(name):
		return invalid(field, name, "is not made of letters, digits, - and .")
	}
	return nil
}

// checkLogDirectory: the proto's own example ends in a slash, nothing else is unclean.
func checkLogDirectory(field, dir string) error {
	switch {
	case dir == "":
		return nil
	case len(dir) > maxPath:
		return invalid(field, dir, "is longer than %d bytes", maxPath)
	case !path.IsAbs(dir):
		return invalid(field, dir, "is not an absolute path")
	case path.Clean(dir) != strings.TrimSuffix(dir, "/") && dir != "/":
		return invalid(field, dir, "is not a clean path: %q would be", path.Clean(dir))
	}
	return nil
}

func checkLogPath(field, p string) error {
	switch {
	case p == "":
		return nil
	case len(p) > maxPath:
		return invalid(field, p, "is longer than %d bytes", maxPath)
	case path.IsAbs(p):
		return invalid(field, p, "is absolute, and must be relative to the pod's log_directory")
	case strings.HasSuffix(p, "/"), path.Clean(p) == ".":
		return invalid(field, p, "names a directory")
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return invalid(field, p, `contains ".."`)
		}
	}
	return nil
}

// checkDNS checks what becomes lines of a resolv.conf: a blank or a line's end
// in one would be a second entry.
func checkDNS(field string, d *runtimeapi.DNSConfig) error {
	for _, list := range []struct {
		name   string
		values []string
	}{
		{field + ".servers", d.GetServers()},
		{field + ".searches", d.GetSearches()},
		{field + ".options", d.GetOptions()},
	} {
		size := 0
		for _, v := range list.values {
			if size += len(v) + 1; size > maxDNS {
				return invalid(list.name, "", "has more than %d bytes", maxDNS)
			}
			if v == "" || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
				return invalid(list.name, v, "has an entry that is empty or has blanks")
			}
		}
	}
	for _, s := range d.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			return invalid(field+".servers", s, "is not an IP address")
		}
	}
	return nil
}

func checkPorts(field string, ports []*runtimeapi.PortMapping) error {
	for _, p := range ports {
		switch {
		case p.GetContainerPort() < 0 || p.GetContainerPort() > math.MaxUint16:
			return invalid(field+".container_port", strconv.Itoa(int(p.GetContainerPort())), "is no port")
		case p.GetHostPort() < 0 || p.GetHostPort() > math.MaxUint16:
			return invalid(field+".host_port", strconv.Itoa(int(p.GetHostPort())), "is no port")
		case p.GetHostPort() > 0 && p.GetContainerPort() == 0:
			return invalid(field+".container_port", "", "is missing, and host_port %d leads to it", p.GetHostPort())
		}
		if _, known := runtimeapi.Protocol_name[int32(p.GetProtocol())]; !known {
			return invalid(field+".protocol", p.GetProtocol().String(), "is unknown")
		}
		if ip := p.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return invalid(field+".host_ip", ip, "is not an IP address")
			}
		}
	}
	return nil
}

func checkMap(field string, m map[string]string) error {
	size := 0
	for k, v := range m {
		if k == "" {
			return invalid(field, "", "has an empty key")
		}
		if size += len(k) + len(v); size > maxLabels {
			return invalid(field, "", "has more than %d bytes", maxLabels)
		}
	}
	return nil
}

func checkPodLinux(field string, l *runtimeapi.LinuxPodSandboxConfig) error {
	if err := checkPodUser(field+".security_context.", l.GetSecurityContext()); err != nil {
		return err
	}
	if len(l.GetSysctls()) > maxSysctls {
		return invalid(field+".sysctls", "", "has more than %d entries", maxSysctls)
	}
	for name, value := range l.GetSysctls() {
		if len(name) > maxName || !sysctl.MatchString(name) {
			return invalid(field+".sysctls", name, "is not the name of a sysctl")
		}
		if len(value) > maxPath || checkPlain("", value) != nil {
			return invalid(field+".sysctls["+name+"]", value, "is not the value of a sysctl: one line")
		}
	}
	return checkCgroupParent(field+".cgroup_parent", l.GetCgroupParent())
}

// checkPodUser checks a pod's user, which no process of ours runs as: a request that is
// refused for a container is not taken for its pod.
func checkPodUser(field string, sc *runtimeapi.LinuxSandboxSecurityContext) error {
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid(field+"run_as_group", "", "needs run_as_user")
	}
	return first(
		func() error { return checkUID(field+"run_as_user", sc.GetRunAsUser().GetValue()) },
		func() error { return checkUID(field+"run_as_group", sc.GetRunAsGroup().GetValue()) },
		func() error {
			for i, g := range sc.GetSupplementalGroups() {
				if err := checkUID(fmt.Sprintf("%ssupplemental_groups[%d]", field, i), g); err != nil {
					return err
				}
			}
			return nil
		},
		func() error {
			policy := sc.GetSupplementalGroupsPolicy()
			if _, known := runtimeapi.SupplementalGroupsPolicy_name[int32(policy)]; !known {
				return invalid(field+"supplemental_groups_policy", policy.String(), "is unknown")
			}
			return nil
		},
	)
}

// checkUID checks a user's or group's number; all ones means "no change" to the kernel.
func checkUID(field string, id int64) error {
	if id < 0 || id >= math.MaxUint32 {
		return invalid(field, strconv.FormatInt(id, 10), "is not between 0 and %d", uint32(math.MaxUint32-1))
	}
	return nil
}

// checkCgroupParent keeps the path below the cgroups' root; the driver's own
// rules come later.
func checkCgroupParent(field, parent string) error {
	if len(parent) > maxPath {
		return invalid(field, parent, "is longer than %d bytes", maxPath)
	}
	for part := range strings.SplitSeq(parent, "/") {
		if part == ".." {
			return invalid(field, parent, `contains ".."`)
		}
	}
	return checkPlain(field, parent)
}

func checkCommand(command []string) error {
	const field = "cmd"
	if len(command) == 0 || command[0] == "" {
		return invalid(field, "", "is empty")
	}
	size := 0
	for _, arg := range command {
		if size += len(arg) + 1; size > maxCommand {
			return invalid(field, "", "has more than %d bytes", maxCommand)
		}
	}
	return nil
}

func checkAuth(field string, a *runtimeapi.AuthConfig) error {
	for name, value := range map[string]string{
		"username": a.GetUsername(), "password": a.GetPassword(), "auth": a.GetAuth(),
		"server_address": a.GetServerAddress(), "identity_token": a.GetIdentityToken(), "registry_token": a.GetRegistryToken(),
	} {
		if len(value) > maxCredential {
			return invalid(field+"."+name, "", "is longer than %d bytes", maxCredential)
		}
	}
	return nil
}

// first returns the first error of checks that are in the order of the fields.
func first(checks ...func() error) error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}
