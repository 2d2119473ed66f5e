package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podFlags are the flags of run that describe the pod.
type podFlags struct {
	id                                 string
	namespace, hostname, handler       string
	cgroupParent, logDir               string
	ports, sysctls                     []string
	dns, dnsSearch, dnsOptions         []string
	labels, annotations                []string
	hostNetwork, hostPID, hostIPC, pid bool

	// flags tells which of them were given.
	flags *cobra.Command
}

// podOnly are the flags that make no sense with a pod that exists.
var podOnly = []string{
	"namespace", "hostname", "runtime", "cgroup-parent", "log-dir", "publish", "sysctl",
	"dns", "dns-search", "dns-option", "host-network", "host-pid", "host-ipc", "share-pid",
}

func (o *podFlags) addFlags(cmd *cobra.Command) {
	o.flags = cmd
	f := cmd.Flags()
	f.StringVar(&o.id, "pod", "", "run in this `POD` instead of a new one: id or name")
	f.StringVar(&o.namespace, "namespace", "default", "`NAMESPACE` of the pod, a part of its name")
	f.StringVar(&o.hostname, "hostname", "", "host `NAME` of the pod; default: its name")
	f.StringVar(&o.handler, "runtime", "", "runtime `HANDLER`; default: the runtime's default")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "`CGROUP` that the pod's containers are put in")
	f.StringVar(&o.logDir, "log-dir", defaultLogDir, "`DIR` of log directories: the pod's is DIR/NAMESPACE_NAME_UID")
	f.StringArrayVarP(&o.ports, "publish", "p", nil, "port of the host that leads to one of the pod: `[IP:]HOSTPORT:PORT[/PROTOCOL]`")
	f.StringArrayVar(&o.sysctls, "sysctl", nil, "kernel parameter of the pod's namespaces: `NAME=VALUE`")
	f.StringArrayVar(&o.dns, "dns", nil, "`IP` address of a name server; default: the host's resolv.conf")
	f.StringArrayVar(&o.dnsSearch, "dns-search", nil, "`DOMAIN` to search names in")
	f.StringArrayVar(&o.dnsOptions, "dns-option", nil, "`OPTION` of resolv.conf, such as ndots:5")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "label of pod and container: `KEY=VALUE`")
	f.StringArrayVar(&o.annotations, "annotation", nil, "annotation of pod and container: `KEY=VALUE`")
	f.BoolVar(&o.hostNetwork, "host-network", false, "the host's network instead of one of the pod's own")
	f.BoolVar(&o.hostPID, "host-pid", false, "the host's processes are visible")
	f.BoolVar(&o.hostIPC, "host-ipc", false, "the host's IPC objects are visible")
	f.BoolVar(&o.pid, "share-pid", false, "one PID namespace for all containers of the pod")
}

// refuseWithPod wants none of the flags that describe a new pod.
func (o *podFlags) refuseWithPod() error {
	for _, name := range podOnly {
		if o.flags.Flags().Changed(name) {
			return fmt.Errorf("--%s describes a new pod, and --pod names one that exists", name)
		}
	}
	return nil
}

// config makes the pod's configuration.
func (o *podFlags) config(name string, privileged bool) (*runtimeapi.PodSandboxConfig, error) {
	if err := checkName("--namespace", o.namespace); err != nil {
		return nil, err
	}
	logDir, err := filepath.Abs(o.logDir)
	if err != nil {
		return nil, fmt.Errorf("--log-dir %s: %w", o.logDir, err)
	}
	ports, err := parseAll("--publish", o.ports, parsePort)
	if err != nil {
		return nil, err
	}
	sysctls, err := parsePairs("--sysctl", o.sysctls)
	if err != nil {
		return nil, err
	}
	labels, err := parsePairs("--label", o.labels)
	if err != nil {
		return nil, err
	}
	annotations, err := parsePairs("--annotation", o.annotations)
	if err != nil {
		return nil, err
	}
	dns, err := o.dnsConfig()
	if err != nil {
		return nil, err
	}
	namespaces, err := o.namespaceOptions()
	if err != nil {
		return nil, err
	}
	meta := &runtimeapi.PodSandboxMetadata{Name: name, Namespace: o.namespace, Uid: uuid.NewString()}
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:     meta,
		Hostname:     o.podHostname(name),
		LogDirectory: filepath.Join(logDir, logDirName(meta)),
		DnsConfig:    dns,
		PortMappings: ports,
		Labels:       labels,
		Annotations:  annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    o.cgroupParent,
			Sysctls:         sysctls,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces, Privileged: privileged},
		},
	}
	pod.Annotations[annotationLogs] = pod.GetLogDirectory()
	pod.Labels[labelPodName], pod.Labels[labelPodNamespace], pod.Labels[labelPodUID] = meta.Name, meta.Namespace, meta.Uid
	return pod, nil
}

// podHostname: a pod in the host's network has the host's name.
func (o *podFlags) podHostname(name string) string {
	switch {
	case o.hostname != "":
		return o.hostname
	case o.hostNetwork:
		return ""
	default:
		return strings.ReplaceAll(name, ".", "-")
	}
}

func (o *podFlags) namespaceOptions() (*runtimeapi.NamespaceOption, error) {
	n := &runtimeapi.NamespaceOption{
		Network: runtimeapi.NamespaceMode_POD, Ipc: runtimeapi.NamespaceMode_POD, Pid: runtimeapi.NamespaceMode_CONTAINER,
	}
	if o.hostNetwork {
		if len(o.ports) > 0 {
			return nil, errors.New("--publish makes no sense with --host-network: the container's ports are the host's")
		}
		n.Network = runtimeapi.NamespaceMode_NODE
	}
	if o.hostIPC {
		n.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case o.hostPID && o.pid:
		return nil, errors.New("--host-pid and --share-pid exclude each other")
	case o.hostPID:
		n.Pid = runtimeapi.NamespaceMode_NODE
	case o.pid:
		n.Pid = runtimeapi.NamespaceMode_POD
	}
	return n, nil
}

// dnsConfig is nil when nothing was said: then the pod gets the host's.
func (o *podFlags) dnsConfig() (*runtimeapi.DNSConfig, error) {
	for _, server := range o.dns {
		if _, err := netip.ParseAddr(server); err != nil {
			return nil, fmt.Errorf("--dns %s: not an IP address", server)
		}
	}
	if len(o.dns)+len(o.dnsSearch)+len(o.dnsOptions) == 0 {
		return nil, nil
	}
	return &runtimeapi.DNSConfig{Servers: o.dns, Searches: o.dnsSearch, Options: o.dnsOptions}, nil
}

// protocols by the names that --publish takes.
var protocols = map[string]runtimeapi.Protocol{
	"tcp": runtimeapi.Protocol_TCP, "udp": runtimeapi.Protocol_UDP, "sctp": runtimeapi.Protocol_SCTP,
}

// parsePort reads [IP:]HOSTPORT:PORT[/PROTOCOL]; an IPv6 address is in brackets.
func parsePort(text string) (*runtimeapi.PortMapping, error) {
	ports, name, ok := strings.Cut(text, "/")
	if !ok {
		name = "tcp"
	}
	protocol, ok := protocols[strings.ToLower(name)]
	if !ok {
		return nil, errors.New("want tcp, udp or sctp behind the slash")
	}
	rest, inside, ok := cutLast(ports, ":")
	if !ok {
		return nil, errors.New("want HOSTPORT:PORT")
	}
	ip, outside, ok := cutLast(rest, ":")
	if !ok {
		ip, outside = "", rest
	}
	if ip != "" {
		addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]"))
		if err != nil {
			return nil, fmt.Errorf("%q is not an IP address", ip)
		}
		ip = addr.String()
	}
	host, err := portNumber(outside)
	if err != nil {
		return nil, err
	}
	container, err := portNumber(inside)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortMapping{Protocol: protocol, HostIp: ip, HostPort: host, ContainerPort: container}, nil
}

func portNumber(text string) (int32, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port: want 1 to 65535", text)
	}
	return int32(n), nil
}

// cutLast is strings.Cut around the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// parseAll parses every value of a flag that may be repeated.
func parseAll[T any](flag string, values []string, parse func(string) (T, error)) ([]T, error) {
	var all []T
	for _, value := range values {
		t, err := parse(value)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", flag, value, err)
		}
		all = append(all, t)
	}
	return all, nil
}

// parsePairs reads NAME=VALUE values, whose value may hold anything.
func parsePairs(flag string, values []string) (map[string]string, error) {
	pairs := map[string]string{}
	for _, text := range values {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%s %s: want NAME=VALUE", flag, text)
		}
		pairs[name] = value
	}
	return pairs, nil
}

// maxName is what a hostname and thus a pod's name may have.
const maxName = 63

var nameFormat = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// checkName wants what Kubernetes takes for names. They become parts of paths.
func checkName(flag, name string) error {
	if len(name) > maxName || !nameFormat.MatchString(name) {
		return fmt.Errorf("%s %q: want at most %d lower-case letters, digits, '-' and '.', with a letter or digit at both ends", flag, name, maxName)
	}
	return nil
}

// inventName makes a name from an image's: the last part of its path and some random digits.
func inventName(ref string) string {
	base, _, _ := strings.Cut(ref, "@")
	base = base[strings.LastIndexByte(base, '/')+1:]
	base, _, _ = strings.Cut(base, ":")
	kept := slices.DeleteFunc([]byte(strings.ToLower(base)), func(b byte) bool {
		return !(b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '-')
	})
	base = strings.Trim(string(kept[:min(len(kept), 40)]), "-")
	if base == "" {
		base = "run"
	}
	return base + "-" + uuid.NewString()[:6]
}
