package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// cgroupRoot is where the kernel's cgroups are mounted, in either version.
const cgroupRoot = "/sys/fs/cgroup"

// host is what this machine, and our own place on it, allow. The engine may
// itself run in a container, where less is allowed than a request asks for.
type host struct {
	// bounding is our bounding set: no child can have a capability that is not in it.
	bounding []string
	// resource is CAP_SYS_RESOURCE, which lowering oom_score_adj and raising hard limits takes.
	resource bool
	// oomScoreAdj is our own.
	oomScoreAdj int
	// cgroupV2 is true where cgroup v2 is the only one; false for v1 and for a mix of both.
	cgroupV2 bool
	// cgroupOptions are options that belong to the one superblock of cgroup v2.
	cgroupOptions []string
	// swap is true where the memory controller limits swap, hugetlb where there is a controller for huge pages.
	swap, hugetlb bool
	seccomp       bool
	// recursiveReadOnly is mount_setattr(2), Linux 5.12.
	recursiveReadOnly bool
	// idMappable fails when what is at path cannot be mounted with the ids of a user namespace.
	idMappable func(path, userns string) error
	// hardLimit returns our own hard limit.
	hardLimit func(resource int) (uint64, error)
}

// thisHost looks once: none of it changes while the engine runs.
var thisHost = sync.OnceValues(lookAtHost)

func lookAtHost() (*host, error) {
	h := &host{
		seccomp:           exists("/proc/sys/kernel/seccomp/actions_avail"),
		recursiveReadOnly: kernelAtLeast(5, 12),
		idMappable:        idMappable,
		hardLimit: func(resource int) (uint64, error) {
			var limit unix.Rlimit
			err := unix.Getrlimit(resource, &limit)
			return limit.Max, err
		},
	}
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
	for _, c := range capability.ListKnown() {
		if caps.Get(capability.BOUNDING, c) {
			h.bounding = append(h.bounding, capName(c))
		}
	}
	h.resource = caps.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE)

	if h.oomScoreAdj, err = strconv.Atoi(readWord("/proc/self/oom_score_adj")); err != nil {
		return nil, fmt.Errorf("read own oom_score_adj: %w", err)
	}
	h.lookAtCgroups()
	return h, nil
}

func (h *host) lookAtCgroups() {
	var fs unix.Statfs_t
	h.cgroupV2 = unix.Statfs(cgroupRoot, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
	if !h.cgroupV2 {
		h.swap = exists(cgroupRoot + "/memory/memory.memsw.limit_in_bytes")
		h.hugetlb = exists(cgroupRoot + "/hugetlb/cgroup.procs")
		return
	}
	controllers := strings.Fields(readFile(cgroupRoot + "/cgroup.controllers"))
	h.hugetlb = slices.Contains(controllers, "hugetlb")
	// The root has no memory.swap.max, even where its children do.
	swap, _ := filepath.Glob(cgroupRoot + "/*/memory.swap.max")
	h.swap = len(swap) > 0
	for mount := range strings.Lines(readFile("/proc/self/mountinfo")) {
		if f := strings.Fields(mount); len(f) > 9 && f[4] == cgroupRoot {
			options := strings.Split(f[len(f)-1], ",")
			for _, o := range []string{"nsdelegate", "memory_recursiveprot"} {
				if slices.Contains(options, o) {
					h.cgroupOptions = append(h.cgroupOptions, o)
				}
			}
		}
	}
}

// kernelAtLeast reads the version that uname(2) gives.
func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var haveMajor, haveMinor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &haveMajor, &haveMinor); err != nil {
		return false
	}
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// readFile reads a file of the kernel's; it is empty when that fails.
func readFile(path string) string {
	data, _ := os.ReadFile(path)
	return string(data)
}

func readWord(path string) string { return strings.TrimSpace(readFile(path)) }

func capName(c capability.Cap) string { return "CAP_" + strings.ToUpper(c.String()) }
