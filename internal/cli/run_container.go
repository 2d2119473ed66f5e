package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerFlags are the flags of run that describe the container.
type containerFlags struct {
	name, entrypoint, workdir, user string
	env, envFiles, volumes          []string
	capAdd, capDrop                 []string
	memory                          string
	cpus                            float64
	pids                            int64
	privileged, readOnly            bool
}

func (o *containerFlags) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "`NAME` of pod and container; default: one made from the image's")
	f.StringVar(&o.entrypoint, "entrypoint", "", "`COMMAND` instead of the image's: a path, or a JSON list such as [\"sh\",\"-c\"]")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory: `DIR`")
	f.StringVarP(&o.user, "user", "u", "", "user: `UID[:GID]` or NAME[:GID]")
	f.StringArrayVarP(&o.env, "env", "e", nil, "environment variable: `NAME=VALUE`, or NAME for the value it has here")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "`FILE` with lines NAME=VALUE")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "mount: `HOSTPATH:PATH[:OPTIONS]`, with options ro, rslave, rshared, z")
	f.StringArrayVar(&o.capAdd, "cap-add", nil, "`CAPABILITY` to add, or ALL")
	f.StringArrayVar(&o.capDrop, "cap-drop", nil, "`CAPABILITY` to drop, or ALL")
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit: `BYTES`, such as 256m or 1g")
	f.Float64Var(&o.cpus, "cpus", 0, "CPU limit: a `NUMBER`, such as 0.5")
	f.Int64Var(&o.pids, "pids", 0, "`NUMBER` of processes and threads that there may be; needs cgroup v2")
	f.BoolVar(&o.privileged, "privileged", false, "all capabilities and devices, no confinement")
	f.BoolVar(&o.readOnly, "read-only", false, "root filesystem that can't be written to")
}

// cpuPeriod is the kernel's default, in microseconds.
const cpuPeriod = 100_000

// config makes the container's configuration; the image and what it has of its pod are added by the caller.
func (o *containerFlags) config(args []string, pod *podFlags) (*runtimeapi.ContainerConfig, error) {
	env, err := o.environment()
	if err != nil {
		return nil, err
	}
	mounts, err := parseAll("--volume", o.volumes, parseVolume)
	if err != nil {
		return nil, err
	}
	command, err := parseEntrypoint(o.entrypoint)
	if err != nil {
		return nil, err
	}
	resources, err := o.resources()
	if err != nil {
		return nil, err
	}
	labels, err := parsePairs("--label", pod.labels)
	if err != nil {
		return nil, err
	}
	annotations, err := parsePairs("--annotation", pod.annotations)
	if err != nil {
		return nil, err
	}
	security, err := o.security()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: o.name},
		Command:     command,
		Args:        args,
		WorkingDir:  o.workdir,
		Envs:        env,
		Mounts:      mounts,
		Labels:      labels,
		Annotations: annotations,
		LogPath:     o.name + ".log",
		Linux:       &runtimeapi.LinuxContainerConfig{Resources: resources, SecurityContext: security},
	}, nil
}

// maxEnvFile bounds a file of variables: the kernel takes no more in all.
const maxEnvFile = 2 << 20

// environment is that of the files, then that of -e.
func (o *containerFlags) environment() ([]*runtimeapi.KeyValue, error) {
	var env []*runtimeapi.KeyValue
	for _, path := range o.envFiles {
		list, err := readEnvFile(path)
		if err != nil {
			return nil, fmt.Errorf("--env-file %s: %w", path, err)
		}
		env = append(env, list...)
	}
	list, err := parseAll("--env", o.env, parseEnv)
	return append(env, list...), err
}

func readEnvFile(path string) ([]*runtimeapi.KeyValue, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxEnvFile))
	lines.Buffer(nil, maxEnvFile)
	var env []*runtimeapi.KeyValue
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		kv, err := parseEnv(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		env = append(env, kv)
	}
	return env, lines.Err()
}

// parseEnv reads NAME=VALUE, or NAME, which takes the value that the client has.
func parseEnv(text string) (*runtimeapi.KeyValue, error) {
	name, value, ok := strings.Cut(text, "=")
	if name == "" {
		return nil, errors.New("want NAME=VALUE")
	}
	if !ok {
		value = os.Getenv(name)
	}
	return &runtimeapi.KeyValue{Key: name, Value: []byte(value)}, nil
}

// parseEntrypoint reads a path or a JSON list.
func parseEntrypoint(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	if !strings.HasPrefix(text, "[") {
		return []string{text}, nil
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("--entrypoint %s: not a JSON list of strings", text)
	}
	return list, nil
}

// parseVolume reads HOSTPATH:PATH[:OPTIONS].
func parseVolume(text string) (*runtimeapi.Mount, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !filepath.IsAbs(parts[1]) {
		return nil, errors.New("want HOSTPATH:PATH[:OPTIONS] with an absolute PATH")
	}
	host, err := filepath.Abs(parts[0])
	if err != nil {
		return nil, err
	}
	// Runtimes make missing directories, which hides a misspelled path.
	if _, err := os.Stat(host); err != nil {
		return nil, err
	}
	m := &runtimeapi.Mount{HostPath: host, ContainerPath: parts[1]}
	if len(parts) < 3 {
		return m, nil
	}
	for _, option := range strings.Split(parts[2], ",") {
		switch option {
		case "rw", "rprivate":
		case "ro":
			m.Readonly = true
		case "rslave":
			m.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case "rshared":
			m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		case "z", "Z":
			m.SelinuxRelabel = true
		default:
			return nil, fmt.Errorf("unknown option %q: want ro, rw, rprivate, rslave, rshared or z", option)
		}
	}
	return m, nil
}

// minMemory is what no container can live below.
const minMemory = 4 << 20

func (o *containerFlags) resources() (*runtimeapi.LinuxContainerResources, error) {
	r := &runtimeapi.LinuxContainerResources{}
	if o.memory != "" {
		n, err := units.RAMInBytes(o.memory)
		if err != nil || n < minMemory {
			return nil, fmt.Errorf("--memory %s: want at least 4m, such as 256m or 1g", o.memory)
		}
		r.MemoryLimitInBytes = n
	}
	switch {
	case o.cpus < 0 || math.IsNaN(o.cpus) || o.cpus > 1<<16:
		return nil, fmt.Errorf("--cpus %v: want more than 0", o.cpus)
	case o.cpus > 0:
		r.CpuPeriod = cpuPeriod
		// The kernel's smallest quota is a millisecond.
		r.CpuQuota = max(int64(o.cpus*cpuPeriod), 1000)
		r.CpuShares = max(int64(o.cpus*1024), 2)
	}
	switch {
	case o.pids < 0:
		return nil, fmt.Errorf("--pids %d: want more than 0", o.pids)
	case o.pids > 0:
		// CRI has no field for it: this is the file of cgroup v2.
		r.Unified = map[string]string{"pids.max": strconv.FormatInt(o.pids, 10)}
	}
	return r, nil
}

func (o *containerFlags) security() (*runtimeapi.LinuxContainerSecurityContext, error) {
	s := &runtimeapi.LinuxContainerSecurityContext{
		Privileged:     o.privileged,
		ReadonlyRootfs: o.readOnly,
		Capabilities:   &runtimeapi.Capability{AddCapabilities: o.capAdd, DropCapabilities: o.capDrop},
		Seccomp:        &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	// No AppArmor profile: then a runtime takes its default where the machine has AppArmor, while
	// asking for the default is an error elsewhere.
	if o.privileged {
		s.Seccomp.ProfileType = runtimeapi.SecurityProfile_Unconfined
	} else {
		s.MaskedPaths, s.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	return s, o.setUser(s)
}

// What a kubelet asks for in containers that are not privileged (its default ProcMount).
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
		"/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// setUser reads UID[:GID] or NAME[:GID].
func (o *containerFlags) setUser(s *runtimeapi.LinuxContainerSecurityContext) error {
	if o.user == "" {
		return nil
	}
	user, group, hasGroup := strings.Cut(o.user, ":")
	if id, err := strconv.ParseUint(user, 10, 31); err == nil {
		s.RunAsUser = &runtimeapi.Int64Value{Value: int64(id)}
	} else {
		s.RunAsUsername = user
	}
	if user == "" {
		return fmt.Errorf("--user %s: want UID[:GID] or NAME[:GID]", o.user)
	}
	if hasGroup {
		id, err := strconv.ParseUint(group, 10, 31)
		if err != nil {
			return fmt.Errorf("--user %s: the group must be a number", o.user)
		}
		s.RunAsGroup = &runtimeapi.Int64Value{Value: int64(id)}
	}
	return nil
}
