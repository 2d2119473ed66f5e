package oci

import (
	"path"
	"strings"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Namespaces are the pod's, as paths; "" means the host's, except PID where "" with HostPID decides.
type Namespaces struct {
	Net, IPC, UTS string
	// PID is the path of the namespace to join; "" for a new one unless HostPID.
	PID     string
	HostPID bool
	// User is the path of the user namespace to join; "" for none.
	User string
}

// ContainerInput is all that a container's spec is made from. Paths are the host's and were checked.
type ContainerInput struct {
	ID, PodID string
	Config    *runtimeapi.ContainerConfig
	Pod       *runtimeapi.PodSandboxConfig
	Image     ociv1.ImageConfig
	ImageName string // as the user wrote it, for annotations
	// RootFS is the mounted root filesystem.
	RootFS       string
	Handler      *Handler
	CgroupDriver CgroupDriver
	// CgroupParent from the pod's config, may be "".
	CgroupParent string
	Namespaces   Namespaces
	// IDMappings are those of Namespaces.User; nil without.
	IDMappings *IDMappings
	// ImageVolumes are the mounted root filesystems of the images that mounts of the request name, by the mount's index.
	ImageVolumes map[int]string
	// Files bound into the container unless the request mounts something there itself; "" for none.
	// Without Shm the container has a /dev/shm of its own.
	ResolvConf, Hosts, HostnameFile, Shm string
	Hostname                             string
	// DefaultCapabilities, "CAP_…", before add and drop.
	DefaultCapabilities []string
	// SeccompDefault is a profile file for RuntimeDefault; "" for the built-in one.
	SeccompDefault string
	// Defaults from the configuration.
	DefaultUlimits map[string][2]uint64 // "RLIMIT_NOFILE": {soft, hard}
	PidsLimit      int64                // 0 for none
	// DeviceOwnership gives the devices of the request to the user and group that it names.
	DeviceOwnership bool
	// ProcessLabel and MountLabel are SELinux labels, "" for none.
	ProcessLabel, MountLabel string
	// AppArmor has the profiles.
	AppArmor AppArmor
}

// AppArmor is what specs need to know of the profiles of this machine.
type AppArmor interface {
	// Default is the profile of containers that name none, loaded; "" where there can't be any.
	// apparmor.ErrNoDefault for a machine where there should be one and never was.
	Default() (string, error)
	// Loaded tells whether the kernel has the profile. errors.ErrUnsupported says why it can have none.
	Loaded(name string) (bool, error)
}

// User is who a container's first process runs as.
type User struct {
	UID, GID int64
	// AdditionalGroups always holds GID too, first.
	AdditionalGroups []int64
}

// builder is one spec in the making. Its parts are called once each, in ContainerSpec's order.
type builder struct {
	ContainerInput
	host *host
	// sc is the request's security context, nil when it has none.
	sc         *runtimeapi.LinuxContainerSecurityContext
	privileged bool
	spec       *specs.Spec
	user       User
	// base is the handler's base spec, of which each part takes what is its own.
	base *specs.Spec
}

// ContainerSpec makes a container's OCI spec, and tells the user that it
// resolved, for ContainerStatus.user. It reads the root filesystem, the host
// paths of mounts and devices and seccomp profiles, and changes nothing.
//
// Errors are [*InvalidError] for what the request got wrong; they wrap
// errors.ErrUnsupported for what the kernel, the OCI runtime or this engine
// cannot do; all others are the machine's.
func ContainerSpec(in ContainerInput) (*specs.Spec, User, error) {
	h, err := thisHost()
	if err != nil {
		return nil, User{}, err
	}
	return containerSpec(in, h)
}

func containerSpec(in ContainerInput, h *host) (*specs.Spec, User, error) {
	b, err := newBuilder(in, h)
	if err != nil {
		return nil, User{}, err
	}
	for _, part := range []func() error{
		b.checkPrivileged,
		b.command,
		b.environment,
		b.resolveUser,
		b.checkMapped,
		b.capabilities,
		b.namespaces,
		b.mounts,
		b.devices,
		b.resources,
		b.oomScore,
		b.ulimits,
		b.paths,
		b.labels,
		b.seccomp, // after the capabilities, which its rules depend on
		b.annotations,
	} {
		if err := part(); err != nil {
			return nil, User{}, err
		}
	}
	return b.spec, b.user, nil
}

func newBuilder(in ContainerInput, h *host) (*builder, error) {
	sc := in.Config.GetLinux().GetSecurityContext()
	base, err := in.Handler.Base.copy()
	if err != nil {
		return nil, err
	}
	return &builder{
		ContainerInput: in,
		host:           h,
		sc:             sc,
		privileged:     sc.GetPrivileged(),
		base:           base,
		spec: &specs.Spec{
			Version: in.Handler.OCIVersion,
			Root:    &specs.Root{Path: in.RootFS, Readonly: sc.GetReadonlyRootfs() || base.Root.Readonly},
			Hooks:   base.Hooks,
			Process: &specs.Process{
				Terminal:        in.Config.GetTty(),
				NoNewPrivileges: sc.GetNoNewPrivs(),
				Scheduler:       base.Process.Scheduler,
				IOPriority:      base.Process.IOPriority,
				ExecCPUAffinity: base.Process.ExecCPUAffinity,
			},
			Linux: &specs.Linux{
				Resources: &specs.LinuxResources{}, Sysctl: base.Linux.Sysctl, RootfsPropagation: base.Linux.RootfsPropagation,
				IntelRdt: base.Linux.IntelRdt, MemoryPolicy: base.Linux.MemoryPolicy, Personality: base.Linux.Personality,
			},
		},
	}, nil
}

// checkPrivileged refuses a privileged container in a pod that is not: what
// the pod may do was decided when it was made.
func (b *builder) checkPrivileged() error {
	if b.privileged && !b.Pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid(securityContext+"privileged", "", "the pod sandbox is not privileged")
	}
	return nil
}

// securityContext is where most fields are.
const securityContext = "config.linux.security_context."

// command merges as Kubernetes does: command replaces the image's entrypoint
// and then its cmd is out of place; args replace its cmd.
func (b *builder) command() error {
	entrypoint, cmd := b.Image.Entrypoint, b.Image.Cmd
	if len(b.Config.GetCommand()) > 0 {
		entrypoint, cmd = b.Config.GetCommand(), nil
	}
	if len(b.Config.GetArgs()) > 0 {
		cmd = b.Config.GetArgs()
	}
	args := append(append([]string{}, entrypoint...), cmd...)
	if len(args) == 0 {
		return invalid("config.command", "", "no command: the request has none, and neither has the image")
	}
	if args[0] == "" {
		return invalid("config.command", "", "the first word is empty")
	}
	for _, a := range args {
		if err := checkText("config.command", a); err != nil {
			return err
		}
	}
	b.spec.Process.Args = args
	return b.workDir()
}

func (b *builder) workDir() error {
	const field = "config.working_dir"
	dir := b.Config.GetWorkingDir()
	if dir != "" && !path.IsAbs(dir) {
		return invalid(field, dir, "not an absolute path")
	}
	if dir == "" {
		// An image's is relative to the root, should it be relative at all.
		dir = path.Join("/", b.Image.WorkingDir)
	}
	b.spec.Process.Cwd = dir
	return checkText(field, dir)
}

// namespaces are the pod's, but for the mounts, often the processes, and the
// cgroups' where a container can have a view of its own (v2).
func (b *builder) namespaces() error {
	if b.Namespaces.User != "" && b.Namespaces.HostPID {
		return invalid(securityContext+"namespace_options.pid", "NODE", "the host's processes cannot be shown in the pod's user namespace")
	}
	b.Namespaces.set(b.spec.Linux, b.IDMappings, b.host.cgroupV2 && !b.privileged)
	return nil
}

// set writes the namespaces and the mappings of the user namespace. A runtime
// could read those from the path, but not all do.
func (n Namespaces) set(l *specs.Linux, m *IDMappings, privateCgroup bool) {
	l.Namespaces = n.list(privateCgroup)
	if n.User != "" && m != nil {
		l.UIDMappings, l.GIDMappings = m.UIDs.spec(), m.GIDs.spec()
	}
}

// list has an entry for each namespace that is not the host's.
func (n Namespaces) list(privateCgroup bool) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if !n.HostPID {
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: n.PID})
	}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.UserNamespace, Path: n.User},
		{Type: specs.NetworkNamespace, Path: n.Net},
		{Type: specs.IPCNamespace, Path: n.IPC},
		{Type: specs.UTSNamespace, Path: n.UTS},
	} {
		if ns.Path != "" {
			list = append(list, ns)
		}
	}
	if privateCgroup {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

// Annotations that other tools, and OCI runtimes with a sandbox of their own
// (gVisor, Kata), read from a spec. The names are the field's.
const (
	annotationType         = "io.kubernetes.cri.container-type"
	annotationSandbox      = "io.kubernetes.cri.sandbox-id"
	annotationPodName      = "io.kubernetes.cri.sandbox-name"
	annotationPodNamespace = "io.kubernetes.cri.sandbox-namespace"
	annotationPodUID       = "io.kubernetes.cri.sandbox-uid"
	annotationPodLogs      = "io.kubernetes.cri.sandbox-log-directory"
	annotationName         = "io.kubernetes.cri.container-name"
	annotationImage        = "io.kubernetes.cri.image-name"
)

func (b *builder) annotations() error {
	all := specAnnotations(b.Handler, b.Pod.GetAnnotations(), b.Config.GetAnnotations(), podAnnotations(b.Pod, map[string]string{
		annotationType:    "container",
		annotationSandbox: b.PodID,
		annotationName:    b.Config.GetMetadata().GetName(),
		annotationImage:   b.ImageName,
	}))
	for key, value := range b.base.Annotations {
		if _, ok := all[key]; !ok {
			all[key] = value
		}
	}
	b.spec.Annotations = all
	return nil
}

func podAnnotations(pod *runtimeapi.PodSandboxConfig, own map[string]string) map[string]string {
	own[annotationPodName] = pod.GetMetadata().GetName()
	own[annotationPodNamespace] = pod.GetMetadata().GetNamespace()
	own[annotationPodUID] = pod.GetMetadata().GetUid()
	return own
}

// specAnnotations adds to our own those that the handler's patterns let
// through: an annotation can change what an OCI runtime does, so none passes
// by itself. A container's come before its pod's, and ours before both.
func specAnnotations(h *Handler, pod, container, own map[string]string) map[string]string {
	all := map[string]string{}
	for _, annotations := range []map[string]string{pod, container} {
		for key, value := range annotations {
			if h.allowsAnnotation(key) {
				all[key] = value
			}
		}
	}
	for key, value := range own {
		if value != "" {
			all[key] = value
		}
	}
	return all
}

func (h *Handler) allowsAnnotation(key string) bool {
	if strings.HasPrefix(key, "io.kubernetes.cri.") {
		return false
	}
	for _, pattern := range h.Annotations {
		if ok, err := path.Match(pattern, key); err == nil && ok {
			return true
		}
	}
	return false
}
