package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	enginev1 "github.com/cri-engine/cri-engine/api/engine/v1"
	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/storage"
)

// wantCode checks an error's gRPC code and that its message holds the text.
func wantCode(t testing.TB, err error, code codes.Code, text string) {
	t.Helper()
	s, _ := status.FromError(err)
	if s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("got %v %q, want %v with %q", s.Code(), s.Message(), code, text)
	}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestVersionIsWhatAKubeletTakes(t *testing.T) {
	c := start(t, &fake{})
	got := must[*runtimeapi.VersionResponse](t)(c.Version(t.Context(), &runtimeapi.VersionRequest{}))
	want := &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "cri-engine", RuntimeVersion: "1.2.3", RuntimeApiVersion: "v1"}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestStatus(t *testing.T) {
	f := &fake{handlers: []*oci.Handler{
		{HandlerConfig: oci.HandlerConfig{Name: "auto"}, RecursiveReadOnlyMounts: true, Binary: "/usr/bin/crun", Version: "crun 1"},
		{HandlerConfig: oci.HandlerConfig{Name: "kata"}},
	}}
	c := start(t, f)
	t.Run("all is well", func(t *testing.T) {
		got := must[*runtimeapi.StatusResponse](t)(c.Status(t.Context(), &runtimeapi.StatusRequest{}))
		for _, cond := range got.GetStatus().GetConditions() {
			if !cond.GetStatus() {
				t.Errorf("%v", cond)
			}
		}
		var names []string
		for _, h := range got.GetRuntimeHandlers() {
			names = append(names, fmt.Sprint(h.GetName(), h.GetFeatures().GetRecursiveReadOnlyMounts()))
		}
		if s := strings.Join(names, " "); s != "true autotrue katafalse" {
			t.Errorf("handlers are %q", s)
		}
		if !got.GetFeatures().GetSupplementalGroupsPolicy() || len(got.GetInfo()) != 0 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("what does not work is told with its reason", func(t *testing.T) {
		f.monitorErr, f.networkErr = errors.New("pump gone"), errors.New("no conflist in /etc/cni/net.d")
		defer func() { f.monitorErr, f.networkErr = nil, nil }()
		got := must[*runtimeapi.StatusResponse](t)(c.Status(t.Context(), &runtimeapi.StatusRequest{}))
		conds := got.GetStatus().GetConditions()
		if len(conds) != 2 || conds[0].GetType() != "RuntimeReady" || conds[0].GetStatus() || conds[0].GetMessage() != "pump gone" || conds[0].GetReason() == "" {
			t.Errorf("got %v", conds)
		}
		if len(conds) != 2 || conds[1].GetType() != "NetworkReady" || conds[1].GetStatus() || conds[1].GetMessage() != "no conflist in /etc/cni/net.d" {
			t.Errorf("got %v", conds)
		}
	})
	t.Run("the verbose one has JSON", func(t *testing.T) {
		got := must[*runtimeapi.StatusResponse](t)(c.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true}))
		for _, key := range []string{"config", "monitor", "versions"} {
			if !json.Valid([]byte(got.GetInfo()[key])) {
				t.Errorf("info %s is %q", key, got.GetInfo()[key])
			}
		}
	})
}

func TestRuntimeConfig(t *testing.T) {
	f := &fake{driver: oci.Systemd}
	c := start(t, f)
	for driver, want := range map[oci.CgroupDriver]runtimeapi.CgroupDriver{oci.Systemd: runtimeapi.CgroupDriver_SYSTEMD, oci.Cgroupfs: runtimeapi.CgroupDriver_CGROUPFS} {
		f.driver = driver
		got := must[*runtimeapi.RuntimeConfigResponse](t)(c.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{}))
		if got.GetLinux().GetCgroupDriver() != want {
			t.Errorf("%s: got %v", driver, got)
		}
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	f := &fake{}
	c := start(t, f)
	update := func(cidr string) error {
		_, err := c.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	wantCode(t, update(""), codes.OK, "")
	if f.last() != nil {
		t.Errorf("an empty range is passed on: %v", f.last())
	}
	wantCode(t, update("10.1.0.0/16,fd00::/64"), codes.OK, "")
	if f.last() != "cidr 10.1.0.0/16,fd00::/64" {
		t.Errorf("got %v", f.last())
	}
	wantCode(t, update("10.1.0.0"), codes.InvalidArgument, "pod_cidr")
}

// calls are the RPCs that change something, with a request that is right.
func calls(c *client) map[string]func(context.Context) error {
	id := strings.Repeat("ab", 32)
	return map[string]func(context.Context) error{
		"run web-0 ": func(ctx context.Context) error {
			_, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: podConfig()})
			return err
		},
		"stop pod " + id: func(ctx context.Context) error {
			_, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"remove pod " + id: func(ctx context.Context) error {
			_, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"create web in " + id + " web-0": func(ctx context.Context) error {
			_, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: containerConfig(), SandboxConfig: podConfig()})
			return err
		},
		"start " + id: func(ctx context.Context) error {
			_, err := c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		},
		"stop " + id + " 30s": func(ctx context.Context) error {
			_, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
			return err
		},
		"remove " + id: func(ctx context.Context) error {
			_, err := c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"reopen " + id: func(ctx context.Context) error {
			_, err := c.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"exec " + id + " ls -l 5s": func(ctx context.Context) error {
			_, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"ls", "-l"}, Timeout: 5})
			return err
		},
		"rmi nginx": func(ctx context.Context) error {
			_, err := c.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "nginx"}})
			return err
		},
	}
}

func TestCallsReachTheEngine(t *testing.T) {
	f := &fake{}
	c := start(t, f)
	for want, call := range calls(c) {
		t.Run(want, func(t *testing.T) {
			f.err = nil
			if err := call(t.Context()); err != nil {
				t.Fatal(err)
			}
			if f.last() != want {
				t.Errorf("the engine was asked %q, want %q", f.last(), want)
			}
			f.err = fmt.Errorf("disk: %w", sandbox.ErrPrecondition)
			wantCode(t, call(t.Context()), codes.FailedPrecondition, "disk: ")
			f.err = sandbox.ErrNotFound
			switch err := call(t.Context()); {
			case strings.HasPrefix(want, "stop"): // what is not there is stopped
				wantCode(t, err, codes.OK, "")
			default:
				wantCode(t, err, codes.NotFound, "")
			}
		})
	}
}

func TestWrongRequestsDoNotReachTheEngine(t *testing.T) {
	f := &fake{}
	c := start(t, f)
	id := strings.Repeat("ab", 32)
	badPod := podConfig()
	badPod.LogDirectory = "relative"
	badContainer := containerConfig()
	badContainer.LogPath = "../../etc/cron.d/x"
	cases := []struct {
		name string
		call func(context.Context) error
		text string
	}{
		{"a pod without configuration", func(ctx context.Context) error {
			_, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{})
			return err
		}, "config: is missing"},
		{"a container of a pod without id", func(ctx context.Context) error {
			_, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{Config: containerConfig()})
			return err
		}, "pod_sandbox_id: is empty"},
		{"a container with a bad log path", func(ctx context.Context) error {
			_, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: badContainer})
			return err
		}, "config.log_path"},
		{"a container with a bad pod", func(ctx context.Context) error {
			_, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: containerConfig(), SandboxConfig: badPod})
			return err
		}, "sandbox_config.log_directory"},
		{"an id with traversal", func(ctx context.Context) error {
			_, err := c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: "../../x"})
			return err
		}, "container_id"},
		{"a negative timeout", func(ctx context.Context) error {
			_, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: -1})
			return err
		}, "timeout"},
		{"a command of nothing", func(ctx context.Context) error {
			_, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id})
			return err
		}, "cmd"},
		{"a pull of nothing", func(ctx context.Context) error {
			_, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{})
			return err
		}, "image"},
		{"a pull for an unknown handler", func(ctx context.Context) error {
			_, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "x", RuntimeHandler: "kata"}})
			return err
		}, "image.runtime_handler"},
		{"a status of no image", func(ctx context.Context) error {
			_, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{}})
			return err
		}, "image.image"},
		{"a NUL byte anywhere", func(ctx context.Context) error {
			_, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "x"}, Auth: &runtimeapi.AuthConfig{Password: "a\x00b"}})
			return err
		}, "auth.password: contains a NUL byte"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			wantCode(t, tc.call(t.Context()), codes.InvalidArgument, tc.text)
		})
	}
	if f.last() != nil {
		t.Errorf("the engine was asked %v", f.last())
	}
	t.Run("a message over the limit", func(t *testing.T) {
		_, err := c.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{Cmd: []string{strings.Repeat("x", maxMessage)}})
		wantCode(t, err, codes.ResourceExhausted, "")
	})
}

func TestRPCsThatAreMissingSaySo(t *testing.T) {
	c := start(t, &fake{})
	_, err := c.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{})
	wantCode(t, err, codes.Unimplemented, "CheckpointContainer")
}

func at(s int64) time.Time { return time.Unix(s, 0) }

func world() *fake {
	pod := podConfig()
	return &fake{
		pods: []*sandbox.Pod{
			{ID: "bb", Config: pod, Handler: "kata", CreatedAt: at(2), Ready: true, NetNS: "/run/netns/x", InitPid: 9,
				IPs:  []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")},
				Info: map[string]any{"phase": "ready"}},
			{ID: "ba", Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "old"}, Labels: map[string]string{"app": "db"}}, CreatedAt: at(1)},
		},
		containers: []*sandbox.Container{
			{ID: "cc", PodID: "bb", Config: containerConfig(), Pod: pod, State: runtimeapi.ContainerState_CONTAINER_RUNNING,
				CreatedAt: at(3), StartedAt: at(4), ImageID: "sha256:abc", LogPath: "/l/web/0.log", Pid: 42,
				User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: 5}}},
			{ID: "ca", PodID: "ba", Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "db"}, StopSignal: runtimeapi.Signal_SIGNAL_SIGUSR1},
				State: runtimeapi.ContainerState_CONTAINER_EXITED, CreatedAt: at(1), StartedAt: at(2), FinishedAt: at(3), ExitCode: 137,
				Reason: "OOMKilled", Message: "m", ImageID: "sha256:gone"},
		},
		images: []storage.Image{{
			ID: "sha256:abc", RepoTags: []string{"docker.io/library/nginx:latest"},
			RepoDigests: []string{"a.example/nginx@sha256:1", "nginx@sha256:1"},
			Size:        7, Config: ociv1.ImageConfig{User: "101:101", StopSignal: "SIGRTMIN+3"}, Pinned: true, Created: at(1),
		}, {ID: "sha256:def", Config: ociv1.ImageConfig{User: "www:www"}}},
	}
}

func TestPodSandboxStatus(t *testing.T) {
	c := start(t, world())
	t.Run("a ready pod", func(t *testing.T) {
		got := must[*runtimeapi.PodSandboxStatusResponse](t)(c.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "bb"}))
		pod := podConfig()
		want := &runtimeapi.PodSandboxStatus{
			Id: "bb", Metadata: pod.GetMetadata(), State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: 2e9,
			Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.5", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::5"}}},
			Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{}}},
			Labels:  pod.GetLabels(), Annotations: pod.GetAnnotations(), RuntimeHandler: "kata",
		}
		if !proto.Equal(got.GetStatus(), want) {
			t.Errorf("got  %v\nwant %v", got.GetStatus(), want)
		}
		if len(got.GetContainersStatuses()) != 1 || got.GetContainersStatuses()[0].GetId() != "cc" || got.GetTimestamp() == 0 || len(got.GetInfo()) != 0 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("a stopped pod has no address, and a network none the less", func(t *testing.T) {
		got := must[*runtimeapi.PodSandboxStatusResponse](t)(c.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "ba"}))
		s := got.GetStatus()
		if s.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || s.GetNetwork() == nil || s.GetNetwork().GetIp() != "" {
			t.Errorf("got %v", s)
		}
	})
	t.Run("the verbose one has JSON", func(t *testing.T) {
		got := must[*runtimeapi.PodSandboxStatusResponse](t)(c.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "bb", Verbose: true}))
		var info struct {
			Pid              int
			NetworkNamespace string
			Phase            string
			Config           struct{ Hostname string }
		}
		if err := json.Unmarshal([]byte(got.GetInfo()["info"]), &info); err != nil {
			t.Fatal(err)
		}
		if info.Pid != 9 || info.NetworkNamespace != "/run/netns/x" || info.Phase != "ready" || info.Config.Hostname != "web-0" {
			t.Errorf("got %+v", info)
		}
	})
	t.Run("an unknown pod", func(t *testing.T) {
		_, err := c.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "ff"})
		wantCode(t, err, codes.NotFound, "")
	})
}

func TestContainerStatus(t *testing.T) {
	c := start(t, world())
	get := func(id string) *runtimeapi.ContainerStatus {
		return must[*runtimeapi.ContainerStatusResponse](t)(c.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})).GetStatus()
	}
	t.Run("a running container", func(t *testing.T) {
		cfg := containerConfig()
		want := &runtimeapi.ContainerStatus{
			Id: "cc", Metadata: cfg.GetMetadata(), State: runtimeapi.ContainerState_CONTAINER_RUNNING,
			CreatedAt: 3e9, StartedAt: 4e9,
			Image:    &runtimeapi.ImageSpec{Image: "nginx", UserSpecifiedImage: "nginx"},
			ImageRef: "nginx@sha256:1", ImageId: "sha256:abc",
			Labels: cfg.GetLabels(), LogPath: "/l/web/0.log",
			User:       &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: 5}},
			StopSignal: runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3,
		}
		if got := get("cc"); !proto.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	})
	t.Run("an ended container whose image is gone", func(t *testing.T) {
		got := get("ca")
		if got.GetFinishedAt() != 3e9 || got.GetExitCode() != 137 || got.GetReason() != "OOMKilled" || got.GetMessage() != "m" ||
			got.GetImageRef() != "sha256:gone" || got.GetImageId() != "sha256:gone" || got.GetStopSignal() != runtimeapi.Signal_SIGNAL_SIGUSR1 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("the verbose one has JSON", func(t *testing.T) {
		got := must[*runtimeapi.ContainerStatusResponse](t)(c.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "cc", Verbose: true}))
		var info struct {
			Pid       int
			SandboxID string
		}
		if err := json.Unmarshal([]byte(got.GetInfo()["info"]), &info); err != nil || info.Pid != 42 || info.SandboxID != "bb" {
			t.Errorf("got %+v, %v", info, err)
		}
	})
	t.Run("an unknown container", func(t *testing.T) {
		_, err := c.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "ff"})
		wantCode(t, err, codes.NotFound, "")
	})
}

func TestListPodSandbox(t *testing.T) {
	c := start(t, world())
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	cases := []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   string
	}{
		{"all, the newest first", nil, "bb ba"},
		{"by id", &runtimeapi.PodSandboxFilter{Id: "ba"}, "ba"},
		{"by the start of an id", &runtimeapi.PodSandboxFilter{Id: "b"}, "bb ba"},
		{"by an id that is none", &runtimeapi.PodSandboxFilter{Id: "../x"}, ""},
		{"by state", &runtimeapi.PodSandboxFilter{State: ready}, "bb"},
		{"by the other state", &runtimeapi.PodSandboxFilter{State: notReady}, "ba"},
		{"by label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "db"}}, "ba"},
		{"by a label that none has", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": ""}}, ""},
		{"by all at once", &runtimeapi.PodSandboxFilter{Id: "b", State: ready, LabelSelector: map[string]string{"app": "web"}}, "bb"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got := must[*runtimeapi.ListPodSandboxResponse](t)(c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: tc.filter}))
			var ids []string
			for _, p := range got.GetItems() {
				ids = append(ids, p.GetId())
			}
			if s := strings.Join(ids, " "); s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
		})
	}
}

func TestListContainers(t *testing.T) {
	c := start(t, world())
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	cases := []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   string
	}{
		{"all, the newest first", nil, "cc ca"},
		{"by id", &runtimeapi.ContainerFilter{Id: "ca"}, "ca"},
		{"by pod", &runtimeapi.ContainerFilter{PodSandboxId: "bb"}, "cc"},
		{"by state", &runtimeapi.ContainerFilter{State: running}, "cc"},
		{"by label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "web"}}, "cc"},
		{"by what does not go together", &runtimeapi.ContainerFilter{PodSandboxId: "ba", State: running}, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got := must[*runtimeapi.ListContainersResponse](t)(c.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: tc.filter}))
			var ids []string
			for _, p := range got.GetContainers() {
				ids = append(ids, p.GetId())
				if p.GetImageId() == "" || p.GetPodSandboxId() == "" || p.GetCreatedAt() == 0 {
					t.Errorf("got %v", p)
				}
			}
			if s := strings.Join(ids, " "); s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
		})
	}
}

func TestContainerStats(t *testing.T) {
	f := world()
	c := start(t, f)
	t.Run("a running container", func(t *testing.T) {
		got := must[*runtimeapi.ContainerStatsResponse](t)(c.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "cc"})).GetStats()
		if got.GetCpu().GetTimestamp() != 77 || got.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 11 || got.GetMemory().GetAvailableBytes().GetValue() != 98 ||
			got.GetWritableLayer().GetUsedBytes().GetValue() != 3 || got.GetAttributes().GetMetadata().GetName() != "web" || got.GetSwap().GetSwapUsageBytes().GetValue() != 6 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("an ended container uses disk only", func(t *testing.T) {
		got := must[*runtimeapi.ContainerStatsResponse](t)(c.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "ca"})).GetStats()
		if got.GetCpu() != nil || got.GetWritableLayer() == nil {
			t.Errorf("got %v", got)
		}
	})
	t.Run("an unknown container", func(t *testing.T) {
		_, err := c.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "ff"})
		wantCode(t, err, codes.NotFound, "")
	})
	t.Run("the list has running ones, and leaves out what can't be read", func(t *testing.T) {
		list := func() []*runtimeapi.ContainerStats {
			return must[*runtimeapi.ListContainerStatsResponse](t)(c.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})).GetStats()
		}
		if got := list(); len(got) != 1 || got[0].GetAttributes().GetId() != "cc" {
			t.Errorf("got %v", got)
		}
		f.statsErr = errors.New("gone")
		defer func() { f.statsErr = nil }()
		if got := list(); len(got) != 0 {
			t.Errorf("got %v", got)
		}
	})
}

func TestExecSync(t *testing.T) {
	f := &fake{execResult: sandbox.ExecResult{Stdout: []byte("out\xff"), Stderr: []byte("err"), ExitCode: 3}}
	c := start(t, f)
	request := &runtimeapi.ExecSyncRequest{ContainerId: "cc", Cmd: []string{"x"}}
	t.Run("output and exit code", func(t *testing.T) {
		got := must[*runtimeapi.ExecSyncResponse](t)(c.ExecSync(t.Context(), request))
		if string(got.GetStdout()) != "out\xff" || string(got.GetStderr()) != "err" || got.GetExitCode() != 3 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("as much output as the engine keeps fits the client's messages", func(t *testing.T) {
		f.execResult.Stdout = bytes.Repeat([]byte{'x'}, sandbox.MaxExecOutput)
		got := must[*runtimeapi.ExecSyncResponse](t)(c.ExecSync(t.Context(), request))
		if len(got.GetStdout()) != sandbox.MaxExecOutput {
			t.Errorf("got %d bytes", len(got.GetStdout()))
		}
	})
	t.Run("a timeout", func(t *testing.T) {
		f.err = fmt.Errorf("exec: %w", context.DeadlineExceeded)
		_, err := c.ExecSync(t.Context(), request)
		wantCode(t, err, codes.DeadlineExceeded, "exec")
	})
}

func TestImages(t *testing.T) {
	f := world()
	c := start(t, f)
	list := func(name string) string {
		r := &runtimeapi.ListImagesRequest{}
		if name != "" {
			r.Filter = &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: name}}
		}
		var ids []string
		for _, i := range must[*runtimeapi.ListImagesResponse](t)(c.images.ListImages(t.Context(), r)).GetImages() {
			ids = append(ids, i.GetId())
		}
		return strings.Join(ids, " ")
	}
	t.Run("the list and its filter", func(t *testing.T) {
		for name, want := range map[string]string{
			"": "sha256:abc sha256:def", "docker.io/library/nginx:latest": "sha256:abc", "none": "",
		} {
			if got := list(name); got != want {
				t.Errorf("%q: got %q, want %q", name, got, want)
			}
		}
	})
	status := func(name string, verbose bool) *runtimeapi.ImageStatusResponse {
		return must[*runtimeapi.ImageStatusResponse](t)(c.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}, Verbose: verbose}))
	}
	t.Run("an image whose user is a number", func(t *testing.T) {
		got := status("sha256:abc", false).GetImage()
		if got.GetUid().GetValue() != 101 || got.GetUsername() != "" || !got.GetPinned() || got.GetSize() != 7 || len(got.GetRepoDigests()) != 2 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("an image whose user is a name", func(t *testing.T) {
		got := status("sha256:def", false).GetImage()
		if got.GetUid() != nil || got.GetUsername() != "www" || got.GetSize() == 0 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("an unknown image is an answer without one", func(t *testing.T) {
		if got := status("none", true); got.GetImage() != nil {
			t.Errorf("got %v", got)
		}
	})
	t.Run("the verbose one has the image's config", func(t *testing.T) {
		info := status("sha256:abc", true).GetInfo()["info"]
		if !strings.Contains(info, `"User":"101:101"`) {
			t.Errorf("got %q", info)
		}
	})
	t.Run("a name that cannot be", func(t *testing.T) {
		f.imageErr = storage.ErrInvalidReference
		defer func() { f.imageErr = nil }()
		_, err := c.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "UPPER:!"}})
		wantCode(t, err, codes.InvalidArgument, "")
	})
	t.Run("what filesystems use", func(t *testing.T) {
		got := must[*runtimeapi.ImageFsInfoResponse](t)(c.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{}))
		i, fs := got.GetImageFilesystems()[0], got.GetContainerFilesystems()[0]
		if i.GetFsId().GetMountpoint() != "/i" || i.GetUsedBytes().GetValue() != 5 || i.GetTimestamp() != 9 || fs.GetTimestamp() == 0 {
			t.Errorf("got %v", got)
		}
	})
}

func TestPullImage(t *testing.T) {
	f := &fake{}
	c := start(t, f)
	var log syncBuffer
	captureLog(t, &log)
	request := &runtimeapi.PullImageRequest{
		Image:         &runtimeapi.ImageSpec{Image: "r.example/x:1"},
		Auth:          &runtimeapi.AuthConfig{Username: "u", Password: "top-secret", Auth: "dG9wLXNlY3JldA==", IdentityToken: "id-secret", RegistryToken: "reg-secret", ServerAddress: "r.example"},
		SandboxConfig: podConfig(),
	}
	got := must[*runtimeapi.PullImageResponse](t)(c.images.PullImage(t.Context(), request))
	if got.GetImageRef() != "sha256:1" {
		t.Errorf("got %v", got)
	}
	pull, _ := f.last().(storage.PullRequest)
	want := storage.Auth{Username: "u", Password: "top-secret", Auth: "dG9wLXNlY3JldA==", IdentityToken: "id-secret", RegistryToken: "reg-secret", ServerAddress: "r.example"}
	if pull.Ref != "r.example/x:1" || pull.Namespace != "default" || pull.Auth == nil || *pull.Auth != want {
		t.Errorf("the store was asked %+v", pull)
	}
	f.err = fmt.Errorf("pull r.example/x:1: %w", storage.ErrRegistryUnavailable)
	_, err := c.images.PullImage(t.Context(), request)
	s, _ := status.FromError(err)
	if s.Code() != codes.Unknown || !strings.HasPrefix(s.Message(), "RegistryUnavailable") {
		t.Errorf("got %v", s)
	}
	if text := log.String(); strings.Contains(text, "secret") || strings.Contains(text, "dG9w") || !strings.Contains(text, "r.example/x:1") {
		t.Errorf("the log has secrets, or no image:\n%s", text)
	}
}

func TestWatchPulls(t *testing.T) {
	f := &fake{progress: []storage.Progress{
		{Ref: "a", State: "resolving", Total: -1, At: time.Unix(0, 5)},
		{Ref: "b", State: "downloading"},
		{Ref: "a", Layer: "sha256:1", State: "downloading", Offset: 3, Total: 9},
		{Ref: "a", State: "failed", Error: "no"},
	}}
	c := start(t, f)
	s, err := c.engine.WatchPulls(t.Context(), &enginev1.WatchPullsRequest{Image: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []*enginev1.PullProgress{
		{Image: "a", State: enginev1.PullProgress_STATE_RESOLVING, Total: -1, At: 5},
		{Image: "a", Layer: "sha256:1", State: enginev1.PullProgress_STATE_DOWNLOADING, Offset: 3, Total: 9},
		{Image: "a", State: enginev1.PullProgress_STATE_FAILED, Error: "no"},
	} {
		got, err := s.Recv()
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
	begin := time.Now()
	c.server.Stop()
	if _, err := s.Recv(); err == nil {
		t.Error("the stream goes on after the server has stopped")
	}
	if took := time.Since(begin); took > finishTime/2 {
		t.Errorf("a watcher held the server's stop up for %v", took)
	}
}

func TestAPanicIsOneCallsError(t *testing.T) {
	f := &fake{hook: func(context.Context) error { panic("boom") }}
	c := start(t, f)
	var log syncBuffer
	captureLog(t, &log)
	_, err := c.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: "cc"})
	wantCode(t, err, codes.Internal, "StartContainer")
	if !strings.Contains(log.String(), "boom") || !strings.Contains(log.String(), "server_test.go") {
		t.Errorf("the log has not the panic and its stack:\n%s", log.String())
	}
	if _, err := c.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestStopLetsCallsFinish(t *testing.T) {
	entered, goOn := make(chan struct{}), make(chan struct{})
	f := &fake{hook: func(context.Context) error { close(entered); <-goOn; return nil }}
	c := start(t, f)
	result := make(chan error, 1)
	go func() {
		_, err := c.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: "cc"})
		result <- err
	}()
	<-entered
	stopped := make(chan struct{})
	go func() { c.server.Stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Fatal("Stop did not wait for the call")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-result; err != nil {
		t.Errorf("the call under way got %v", err)
	}
	<-stopped
}

func TestListen(t *testing.T) {
	t.Run("for root and its group only", func(t *testing.T) {
		c := start(t, &fake{})
		info, err := os.Stat(c.path)
		if err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("got %v, %v", info.Mode(), err)
		}
	})
	t.Run("a socket that answers is left alone", func(t *testing.T) {
		c := start(t, &fake{})
		if _, err := Listen(c.path); !errors.Is(err, ErrInUse) {
			t.Errorf("got %v", err)
		}
		if _, err := c.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a socket that was left behind is replaced", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		old.SetUnlinkOnClose(false)
		_ = old.Close()
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the socket's file is still there: %v", err)
		}
	})
	t.Run("a file is not a socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path); err == nil {
			t.Error("it was replaced")
		}
		if text, _ := os.ReadFile(path); string(text) != "precious" {
			t.Errorf("the file has %q", text)
		}
	})
	t.Run("closing leaves another server's socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		first, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		second, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		_ = first.Close()
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	})
}

// captureLog leads klog's records of all levels into out until the test ends.
func captureLog(t testing.TB, out *syncBuffer) {
	t.Helper()
	state := klog.CaptureState()
	t.Cleanup(state.Restore)
	setKlog(t, "logtostderr", "false")
	setKlog(t, "v", "9")
	klog.SetOutput(out)
	t.Cleanup(func() { klog.SetOutput(os.Stderr) })
}
