package sandbox

import (
	"errors"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/oci"
)

func users(host uint32) *runtimeapi.UserNamespace {
	m := []*runtimeapi.IDMapping{{HostId: host, Length: 65536}}
	return &runtimeapi.UserNamespace{Uids: m, Gids: m}
}

func TestCheckPodUserNamespace(t *testing.T) {
	able, unable := &oci.Handler{}, &oci.Handler{NoUserNamespaces: "no"}
	node := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
	for _, c := range []struct {
		name string
		o    *runtimeapi.NamespaceOption
		h    *oci.Handler
		want error
	}{
		{"none, with a handler that has none", &runtimeapi.NamespaceOption{}, unable, nil},
		{"the host's, with a handler that has none", &runtimeapi.NamespaceOption{UsernsOptions: node, Pid: runtimeapi.NamespaceMode_NODE}, unable, nil},
		{"the pod's", &runtimeapi.NamespaceOption{UsernsOptions: users(1000)}, able, nil},
		{"the pod's, on the host's network", &runtimeapi.NamespaceOption{UsernsOptions: users(1000), Network: runtimeapi.NamespaceMode_NODE}, able, nil},
		{"the pod's, with a handler that has none", &runtimeapi.NamespaceOption{UsernsOptions: users(1000)}, unable, errors.ErrUnsupported},
		{"the pod's, with the host's processes", &runtimeapi.NamespaceOption{UsernsOptions: users(1000), Pid: runtimeapi.NamespaceMode_NODE}, able, ErrInvalid},
		{"the pod's, with the host's IPC", &runtimeapi.NamespaceOption{UsernsOptions: users(1000), Ipc: runtimeapi.NamespaceMode_NODE}, able, ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := checkPodUserNamespace(c.o, c.h); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestAContainersUserNamespaceIsItsPods(t *testing.T) {
	podWith := func(u *runtimeapi.UserNamespace) *pod {
		return &pod{cfg: &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: u}},
		}}}
	}
	node := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
	for _, c := range []struct {
		name           string
		pod, container *runtimeapi.UserNamespace
		ok             bool
	}{
		{"none and none", nil, nil, true}, {"the host's and none", node, nil, true}, {"none and the host's", nil, node, true},
		{"a pod's and none", users(1000), nil, true}, {"a pod's and the same", users(1000), users(1000), true},
		{"a pod's and others", users(1000), users(2000), false}, {"a pod's and the host's", users(1000), node, false},
		{"none and its own", nil, users(1000), false}, {"the host's and its own", node, users(1000), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkContainerUserNamespace(podWith(c.pod), &runtimeapi.NamespaceOption{UsernsOptions: c.container})
			if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}
