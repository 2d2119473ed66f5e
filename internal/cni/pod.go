package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
)

// IfName is the name of a pod's interface on the default network. Kubernetes
// and its tools take it for granted.
const IfName = "eth0"

// Bounds of what a request and a plugin may say.
const (
	maxPorts      = 65535
	maxArg        = 512
	maxDNSEntries = 256
	maxIPs        = 64
	maxInterfaces = 64
)

// PortMapping is one port of the host that leads into the pod.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"` // 0: not mapped, ignored
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // "tcp", "udp", "sctp"
	HostIP        string `json:"hostIP,omitempty"`
}

// Pod is what the plugins are told of a pod. The same value must be given to
// Add and Del, so it is kept in the pod's record. JSON.
type Pod struct {
	ID        string        `json:"id"` // CNI_CONTAINERID
	Name      string        `json:"name"`
	Namespace string        `json:"namespace"`
	UID       string        `json:"uid"`
	NetNS     string        `json:"netns"` // path of the pinned namespace; "" when it is gone (CNI DEL allows that)
	Ports     []PortMapping `json:"ports,omitempty"`
	// Annotations of the pod; bandwidth limits are read from
	// [IngressBandwidthAnnotation] and [EgressBandwidthAnnotation].
	Annotations map[string]string `json:"annotations,omitempty"`
	// CgroupParent is passed as the cgroupPath capability.
	CgroupParent string `json:"cgroupParent,omitempty"`
	// DNS from the request, for plugins with the dns capability.
	DNSServers  []string `json:"dnsServers,omitempty"`
	DNSSearches []string `json:"dnsSearches,omitempty"`
	DNSOptions  []string `json:"dnsOptions,omitempty"`

	// The fields below are set by [Networks.Intent].

	// Network is the name and Conf the configuration list that Add uses, so
	// that Del works after the file changed or went.
	Network string `json:"network,omitempty"`
	Conf    []byte `json:"conf,omitempty"`
	// Default: it is the engine's own default network, not one from ConfDir.
	Default bool `json:"default,omitempty"`
	// PodCIDRs are the node's, for plugins with the ipRanges capability.
	PodCIDRs []string `json:"podCIDRs,omitempty"`
}

// Result is what the pod got.
type Result struct {
	// IPs of the pod's eth0, the primary first: at most one IPv4 and one IPv6 address lead, others follow.
	IPs []netip.Addr `json:"ips"`
	// Interfaces in the pod's namespace, without lo.
	Interfaces []string `json:"interfaces,omitempty"`
	// Raw is the CNI result, JSON, version 1.0.0 or later.
	Raw []byte `json:"raw,omitempty"`
}

// validate checks all that a plugin would otherwise choke on half-way, and what
// would let a request add arguments of its own to CNI_ARGS ("name=value;…").
// It returns the pod with its ports in canonical form, those without a host
// port left out.
func (p Pod) validate() (Pod, error) {
	if err := utils.ValidateContainerID(p.ID); err != nil || len(p.ID) > 128 {
		return p, fmt.Errorf("%w: pod id %q", ErrInvalid, truncate(p.ID, 128))
	}
	for _, arg := range []struct{ field, value string }{
		{"name", p.Name}, {"namespace", p.Namespace}, {"uid", p.UID},
	} {
		if len(arg.value) > maxArg || strings.ContainsFunc(arg.value, func(r rune) bool { return r == ';' || r == '=' || r < ' ' || r == 0x7f }) {
			return p, fmt.Errorf("%w: pod %s %q cannot be passed to a CNI plugin", ErrInvalid, arg.field, truncate(arg.value, 64))
		}
	}
	if len(p.DNSServers)+len(p.DNSSearches)+len(p.DNSOptions) > maxDNSEntries {
		return p, fmt.Errorf("%w: more than %d DNS entries", ErrInvalid, maxDNSEntries)
	}
	if _, err := bandwidthOf(p.Annotations); err != nil {
		return p, err
	}
	ports, err := hostPorts(p.Ports)
	p.Ports = ports
	return p, err
}

func hostPorts(ports []PortMapping) ([]PortMapping, error) {
	if len(ports) > maxPorts {
		return nil, fmt.Errorf("%w: more than %d port mappings", ErrInvalid, maxPorts)
	}
	var out []PortMapping
	seen := map[PortMapping]bool{}
	for i, port := range ports {
		if port.HostPort == 0 {
			continue
		}
		port, err := port.canonical()
		if err != nil {
			return nil, fmt.Errorf("%w: port mapping %d: %w", ErrInvalid, i, err)
		}
		key := PortMapping{HostPort: port.HostPort, Protocol: port.Protocol, HostIP: port.HostIP}
		if seen[key] {
			return nil, fmt.Errorf("%w: port mapping %d: host port %d/%s is mapped twice", ErrInvalid, i, port.HostPort, port.Protocol)
		}
		seen[key] = true
		out = append(out, port)
	}
	return out, nil
}

func (m PortMapping) canonical() (PortMapping, error) {
	for _, port := range []int32{m.HostPort, m.ContainerPort} {
		if port < 1 || port > 65535 {
			return m, fmt.Errorf("%d is no port", port)
		}
	}
	switch m.Protocol = strings.ToLower(m.Protocol); m.Protocol {
	case "tcp", "udp", "sctp":
	case "":
		m.Protocol = "tcp"
	default:
		return m, fmt.Errorf("%q is no protocol that ports can be mapped for", truncate(m.Protocol, 32))
	}
	if m.HostIP == "" {
		return m, nil
	}
	addr, err := netip.ParseAddr(m.HostIP)
	if err != nil || addr.Zone() != "" {
		return m, fmt.Errorf("%q is no host address", truncate(m.HostIP, 64))
	}
	m.HostIP = addr.Unmap().String()
	return m, nil
}

// runtimeConf is what libcni is told; netns is "" where the namespace is gone.
func (p Pod) runtimeConf(netns string) (*libcni.RuntimeConf, error) {
	capabilities, err := p.capabilities()
	if err != nil {
		return nil, err
	}
	return &libcni.RuntimeConf{
		ContainerID: p.ID,
		NetNS:       netns,
		IfName:      IfName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
			{"K8S_POD_UID", p.UID},
		},
		CapabilityArgs: capabilities,
	}, nil
}

// capabilities are the values that plugins can ask for (CNI's CONVENTIONS.md,
// and containerd's key for the pod's annotations). libcni passes to each plugin
// only those that its configuration names.
func (p Pod) capabilities() (map[string]any, error) {
	args := map[string]any{}
	if len(p.Ports) > 0 {
		args["portMappings"] = p.Ports
	}
	limits, err := bandwidthOf(p.Annotations)
	if err != nil {
		return nil, err
	}
	if limits != nil {
		args["bandwidth"] = limits
	}
	if len(p.DNSServers)+len(p.DNSSearches)+len(p.DNSOptions) > 0 {
		args["dns"] = map[string][]string{"servers": p.DNSServers, "searches": p.DNSSearches, "options": p.DNSOptions}
	}
	if p.CgroupParent != "" {
		args["cgroupPath"] = p.CgroupParent
	}
	if len(p.Annotations) > 0 {
		args["io.kubernetes.cri.pod-annotations"] = p.Annotations
	}
	if len(p.PodCIDRs) > 0 {
		args["ipRanges"] = ipRanges(p.PodCIDRs)
	}
	return args, nil
}

// ipRanges makes one set of ranges per CIDR: host-local takes an address of each set.
func ipRanges(cidrs []string) [][]map[string]string {
	sets := make([][]map[string]string, 0, len(cidrs))
	for _, cidr := range cidrs {
		sets = append(sets, []map[string]string{{"subnet": cidr}})
	}
	return sets
}

// resultOf checks what the plugins gave and puts the addresses in order.
func resultOf(r *types100.Result) (Result, error) {
	if len(r.IPs) == 0 {
		return Result{}, fmt.Errorf("the plugins gave the pod no address")
	}
	if len(r.IPs) > maxIPs || len(r.Interfaces) > maxInterfaces {
		return Result{}, fmt.Errorf("the plugins gave the pod %d addresses and %d interfaces", len(r.IPs), len(r.Interfaces))
	}
	var out Result
	for _, iface := range r.Interfaces {
		if iface == nil {
			return Result{}, fmt.Errorf("the result has an empty interface")
		}
		if iface.Sandbox == "" {
			continue
		}
		if err := utils.ValidateInterfaceName(iface.Name); err != nil {
			return Result{}, fmt.Errorf("the result has interface %q: %w", truncate(iface.Name, 64), err)
		}
		if !slices.Contains(out.Interfaces, iface.Name) {
			out.Interfaces = append(out.Interfaces, iface.Name)
		}
	}
	addrs, err := addressesOf(r)
	if err != nil {
		return Result{}, err
	}
	out.IPs = leadingFamilies(addrs)
	if out.Raw, err = json.Marshal(r); err != nil {
		return Result{}, err
	}
	return out, nil
}

// addressesOf lists eth0's addresses in the order of the result. Plugins that
// name no interface for an address mean the one they were asked to make.
func addressesOf(r *types100.Result) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, ip := range r.IPs {
		if ip == nil {
			return nil, fmt.Errorf("the result has an empty address")
		}
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(r.Interfaces) {
				return nil, fmt.Errorf("the result has an address of interface %d of %d", *i, len(r.Interfaces))
			}
			if iface := r.Interfaces[*i]; iface.Name != IfName || iface.Sandbox == "" {
				continue
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		addr = addr.Unmap()
		if !ok || addr.IsUnspecified() || addr.IsMulticast() {
			return nil, fmt.Errorf("the result has the address %q", ip.Address.IP)
		}
		addrs = append(addrs, addr)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("the plugins gave %s no address", IfName)
	}
	return addrs, nil
}

// leadingFamilies keeps the first address first, puts the first of the other
// family second, and lets the others follow: the kubelet takes the first two as
// the pod's addresses and wants one of each family.
func leadingFamilies(addrs []netip.Addr) []netip.Addr {
	out := []netip.Addr{addrs[0]}
	other := -1
	for i, addr := range addrs[1:] {
		if addr.Is4() != addrs[0].Is4() {
			other = i + 1
			out = append(out, addr)
			break
		}
	}
	for i, addr := range addrs {
		if i != 0 && i != other {
			out = append(out, addr)
		}
	}
	return out
}
