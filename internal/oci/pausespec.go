package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PauseInput is what the spec of a sandbox's init is made from.
type PauseInput struct {
	ID                       string
	Pod                      *runtimeapi.PodSandboxConfig
	RootFS                   string // a directory that holds /pause
	Handler                  *Handler
	CgroupDriver             CgroupDriver
	CgroupParent             string
	Namespaces               Namespaces
	IDMappings               *IDMappings // of Namespaces.User; nil without
	ProcessLabel, MountLabel string
}

const (
	// pauseUser is nobody in particular, and not root.
	pauseUser = 65535
	// pauseOOMScore: without its init a pod is lost, and there is next to nothing to be had by killing it.
	pauseOOMScore = -998
)

// pauseUserIn is that user, or as near to it as the user namespace's ids go.
func pauseUserIn(m *IDMappings) specs.User {
	u := specs.User{UID: pauseUser, GID: pauseUser}
	if m != nil {
		u.UID, u.GID = min(u.UID, m.UIDs.Size-1), min(u.GID, m.GIDs.Size-1)
	}
	return u
}

// PauseSpec makes the spec of a sandbox's init: our pause program in a new PID
// namespace and the pod's others, with a read-only root, no capabilities and
// nothing mounted but what OCI runtimes need.
func PauseSpec(in PauseInput) (*specs.Spec, error) {
	h, err := thisHost()
	if err != nil {
		return nil, err
	}
	return pauseSpec(in, h)
}

func pauseSpec(in PauseInput, h *host) (*specs.Spec, error) {
	if err := CheckCgroupParent(in.CgroupDriver, in.CgroupParent); err != nil {
		return nil, err
	}
	spec := &specs.Spec{
		Version: in.Handler.OCIVersion,
		Root:    &specs.Root{Path: in.RootFS, Readonly: true},
		Process: &specs.Process{
			Args: []string{"/pause"}, Cwd: "/", Env: []string{defaultPath},
			User:            pauseUserIn(in.IDMappings),
			Capabilities:    capSets(nil, nil),
			NoNewPrivileges: true,
			OOMScoreAdj:     h.clampOOMScore(pauseOOMScore),
			SelinuxLabel:    in.ProcessLabel,
		},
		Mounts: []specs.Mount{procMount, devMount},
		Linux: &specs.Linux{
			CgroupsPath: CgroupsPath(in.CgroupDriver, in.CgroupParent, in.ID),
			// No limits, and the usual CPU weight: the program needs next to nothing, but the OCI
			// runtime's own part of the start happens in this cgroup, and with the least weight it
			// takes half a minute on a busy machine.
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			},
			MaskedPaths: DefaultMaskedPaths, ReadonlyPaths: DefaultReadonlyPaths,
			MountLabel: in.MountLabel,
		},
		Annotations: specAnnotations(in.Handler, in.Pod.GetAnnotations(), nil, podAnnotations(in.Pod, map[string]string{
			annotationType:    "sandbox",
			annotationSandbox: in.ID,
			annotationPodLogs: in.Pod.GetLogDirectory(),
		})),
	}
	own := in.Namespaces
	own.PID, own.HostPID = "", false
	own.set(spec.Linux, in.IDMappings, h.cgroupV2)
	if h.seccomp && in.Handler.hasSeccomp() {
		var err error
		if spec.Linux.Seccomp, err = defaultSeccomp("", spec); err != nil {
			return nil, err
		}
	}
	return spec, nil
}
