package oci

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ableHost allows everything, on cgroup v2.
func ableHost() *host {
	return &host{
		bounding: slices.Clone(knownCaps), resource: true, cgroupV2: true, cgroupOptions: []string{"nsdelegate"},
		swap: true, hugetlb: true, seccomp: true, recursiveReadOnly: true,
		hardLimit: func(int) (uint64, error) { return math.MaxUint64, nil },
	}
}

// testCaps are the engine's defaults.
var testCaps = strings.Fields("CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_SETGID CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE")

// testInput is the least that makes a spec, with a security context and an empty root filesystem.
func testInput(tb testing.TB) ContainerInput {
	tb.Helper()
	return ContainerInput{
		ID: "c0ffee", PodID: "90d",
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
			Command:  []string{"/bin/true"},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources:       &runtimeapi.LinuxContainerResources{},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{},
			},
		},
		Pod: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "ns", Uid: "uid"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{
				SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{Privileged: true},
			},
		},
		Image:  ociv1.ImageConfig{},
		RootFS: tb.TempDir(),
		Handler: &Handler{
			HandlerConfig: HandlerConfig{Name: "runc"}, Binary: "/usr/bin/runc", OCIVersion: "1.1.0",
			RecursiveReadOnlyMounts: true,
		},
		CgroupDriver: Cgroupfs, DefaultCapabilities: testCaps, Hostname: "pod",
		Namespaces: Namespaces{Net: "/run/netns/x", IPC: "/p/ipc", UTS: "/p/uts"},
	}
}

func build(tb testing.TB, in ContainerInput, h *host) (*specs.Spec, User) {
	tb.Helper()
	spec, user, err := containerSpec(in, h)
	if err != nil {
		tb.Fatal(err)
	}
	return spec, user
}

// refuses fails the test unless the spec is refused as invalid in the field.
func refuses(tb testing.TB, in ContainerInput, h *host, field string) {
	tb.Helper()
	_, _, err := containerSpec(in, h)
	var inv *InvalidError
	if !errors.As(err, &inv) || inv.Field != field {
		tb.Errorf("error %v, want an InvalidError for %s", err, field)
	}
}

// unsupports fails the test unless the spec is refused as unsupported, with the words in the message.
func unsupports(tb testing.TB, in ContainerInput, h *host, words string) {
	tb.Helper()
	_, _, err := containerSpec(in, h)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), words) {
		tb.Errorf("error %v, want ErrUnsupported with %q", err, words)
	}
}

func equal[T comparable](tb testing.TB, what string, got, want []T) {
	tb.Helper()
	if !slices.Equal(got, want) {
		tb.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func write(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		tb.Fatal(err)
	}
}

func mountAt(spec *specs.Spec, destination string) (m specs.Mount, index int) {
	index = slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == destination })
	if index >= 0 {
		m = spec.Mounts[index]
	}
	return m, index
}
