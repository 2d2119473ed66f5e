package cni

import "net/netip"

// Options say where networks are defined.
type Options struct {
	// ConfDir holds *.conflist, *.conf, *.json; the first by name is the default network. Watched.
	ConfDir string
	// BinDirs are searched for plugins in order.
	BinDirs []string
	// CacheDir is this engine's own libcni cache.
	CacheDir string
	// Default is a conflist (JSON) that serves while ConfDir has none; nil for none.
	Default []byte
	// LockDir-like state of plugins we configure ourselves (host-local's dataDir of the default network) goes here.
	DataDir string
	// MaxConfBytes bounds a configuration file; 0 for 1 MiB.
	MaxConfBytes int64
}

// PortMapping is one port of the host that leads into the pod.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
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
	// Annotations of the pod; bandwidth limits are read from kubernetes.io/ingress-bandwidth and egress-bandwidth.
	Annotations map[string]string `json:"annotations,omitempty"`
	// CgroupParent is passed as the cgroupPath capability.
	CgroupParent string `json:"cgroupParent,omitempty"`
	// DNS from the request, for plugins with the dns capability.
	DNSServers  []string `json:"dnsServers,omitempty"`
	DNSSearches []string `json:"dnsSearches,omitempty"`
	DNSOptions  []string `json:"dnsOptions,omitempty"`
	// Network is the name and Conf the configuration list that Add used, so that Del works after the
	// file changed or went. Intent sets them.
	Network string `json:"network,omitempty"`
	Conf    []byte `json:"conf,omitempty"`
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

// The networks of a node.
//
//	New(Options) (*Networks, error)           reads and watches ConfDir
//	(*Networks) Close() error
//	(*Networks) Ready() error                 nil when the default network can serve; else the reason, for NetworkReady
//	                                          (no conflist, unreadable conflist, plugin binary missing, CNI STATUS failed)
//	(*Networks) Intent(Pod) (Pod, error)      the pod with the network it will get; checks ports, bandwidth; record it before Add
//	(*Networks) Add(ctx, Pod) (Result, error) CNI ADD; on failure DEL was called, nothing is left
//	(*Networks) Del(ctx, Pod) error           CNI DEL; nil when there is nothing left; works without Conf too (as the cache has it)
//	(*Networks) Check(ctx, Pod) error
//	(*Networks) SetPodCIDR(cidr string) error for UpdateRuntimeConfig
//	(*Networks) Status() Status               for Status(verbose): name, file, last reload, last error
//
// Namespaces (netns.go), which need a locked thread each, are here too:
//
//	NewNamespaces(NamespaceSpec) error        creates and pins the namespaces asked for, lo up, hostname and sysctls set; all or nothing
//	Unpin(path string) error                  nil when gone
//	InNetNS(path string, f func() error) error
//	Pinned(path string) bool                  whether the path still is a namespace (nsfs)

// NamespaceSpec says which namespaces to create and where to pin them. Empty path: not this one.
type NamespaceSpec struct {
	Net, IPC, UTS string // paths of files that do not exist yet
	Hostname      string // set in UTS, if any
	// Sysctls are written inside: "net.*" needs Net, "kernel.shm*", "kernel.msg*", "kernel.sem", "fs.mqueue.*" need IPC.
	Sysctls map[string]string
}
