package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// says returns a program that writes a line and ends with a code.
func says(t testing.TB, line string, code int32) func(string) int32 {
	return func(logPath string) int32 {
		text := "2026-01-02T03:04:05Z stdout F " + line + "\n"
		if err := os.WriteFile(logPath, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
		return code
	}
}

// runs is a fake with an image, and a directory for logs.
func runs(t testing.TB) (f *fakeRuntime, logDir string) {
	f = newFake(t)
	f.images = []*runtimeapi.Image{{Id: "sha256:" + strings.Repeat("ab", 32), RepoTags: []string{"docker.io/library/app:latest"}}}
	return f, filepath.Join(t.TempDir(), "logs")
}

// wantNothingLeft wants no pod, no container and no log.
func wantNothingLeft(t testing.TB, f *fakeRuntime, logDir string) {
	t.Helper()
	if pods, containers := f.left(); pods+containers != 0 {
		t.Errorf("%d pods and %d containers are left", pods, containers)
	}
	if entries, _ := os.ReadDir(logDir); len(entries) != 0 {
		t.Errorf("%d log directories are left", len(entries))
	}
}

func TestRun(t *testing.T) {
	t.Run("the output and the exit code are the container's, and --rm leaves nothing", func(t *testing.T) {
		f, logDir := runs(t)
		f.program = says(t, "hello", 42)
		f.try(t, "run", "--rm", "--log-dir", logDir, "app", "echo", "-n", "hello").want(t, 42, "hello\n")
		wantNothingLeft(t, f, logDir)
	})
	t.Run("without --rm pod, container and log stay, until rmp", func(t *testing.T) {
		f, logDir := runs(t)
		f.program = says(t, "hello", 0)
		f.try(t, "run", "--name", "web", "--log-dir", logDir, "app").want(t, 0, "hello\n")
		f.try(t, "logs", "web").want(t, 0, "hello\n")
		if pods, containers := f.left(); pods != 1 || containers != 1 {
			t.Errorf("%d pods and %d containers are left, want one each", pods, containers)
		}
		if r := f.try(t, "rmp", "-f", "web"); r.code != 0 {
			t.Errorf("rmp: %s", r.err)
		}
		wantNothingLeft(t, f, logDir)
	})
	t.Run("-d shows the ids", func(t *testing.T) {
		f, logDir := runs(t)
		r := f.try(t, "run", "-d", "--log-dir", logDir, "app")
		if want := "pod\t\t" + f.pods[0].GetId() + "\ncontainer\t" + f.containers[0].GetId() + "\n"; r.code != 0 || r.out != want {
			t.Errorf("got %d %q %q, want %q", r.code, r.out, r.err, want)
		}
		if r := f.try(t, "run", "-dq", "--log-dir", logDir, "app"); r.out != f.containers[1].GetId()+"\n" {
			t.Errorf("-q: got %q", r.out)
		}
		if r := f.try(t, "run", "-d", "-o", "json", "--log-dir", logDir, "app"); !strings.Contains(r.out, `"containerId": "`+f.containers[2].GetId()) {
			t.Errorf("-o json: got %q", r.out)
		}
	})
	t.Run("a missing image is pulled, one that is here only when asked to", func(t *testing.T) {
		f, logDir := runs(t)
		f.program = says(t, "x", 0)
		common := []string{"run", "--rm", "-q", "--log-dir", logDir}
		f.try(t, append(common, "app")...).want(t, 0, "x\n")
		if f.called("PullImage") != 0 {
			t.Error("it was pulled though it is here")
		}
		f.try(t, append(common, "--pull", "never", "other")...).want(t, 1, "", "run other: image: no such image here, and --pull never")
		f.try(t, append(common, "other")...).want(t, 0, "x\n")
		f.try(t, append(common, "--pull", "always", "app")...).want(t, 0, "x\n")
		if n := f.called("PullImage"); n != 2 {
			t.Errorf("pulled %d times, want 2", n)
		}
	})
	t.Run("--pod puts a second container into a pod, and --rm takes only that", func(t *testing.T) {
		f, logDir := runs(t)
		if r := f.try(t, "run", "-d", "--name", "web", "--log-dir", logDir, "app"); r.code != 0 {
			t.Fatal(r.err)
		}
		f.program = says(t, "side", 0)
		f.try(t, "run", "--rm", "--pod", "web", "--name", "side", "app").want(t, 0, "side\n")
		if pods, containers := f.left(); pods != 1 || containers != 1 {
			t.Errorf("%d pods and %d containers are left, want one each", pods, containers)
		}
		f.try(t, "run", "--pod", "web", "--hostname", "h", "app").want(t, 1, "", "--hostname describes a new pod, and --pod names one that exists")
	})
	t.Run("Ctrl-C with --rm stops and removes", func(t *testing.T) {
		f, logDir := runs(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(300*time.Millisecond, cancel)
		f.tryContext(ctx, t, "", "run", "--rm", "--log-dir", logDir, "app").want(t, interrupted, "")
		wantNothingLeft(t, f, logDir)
	})
	t.Run("Ctrl-C without --rm says that it runs on", func(t *testing.T) {
		f, logDir := runs(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(300*time.Millisecond, cancel)
		f.tryContext(ctx, t, "", "run", "--log-dir", logDir, "app").want(t, interrupted, "", "is left running")
		if _, containers := f.left(); containers != 1 {
			t.Errorf("%d containers are left, want 1", containers)
		}
	})
}

func TestRunInteractive(t *testing.T) {
	interactive := func(t *testing.T) (*fakeRuntime, string) {
		f, logDir := runs(t)
		withStreams(t, f)
		return f, logDir
	}
	for name, late := range map[string]bool{"attached before the start": false, "attached after it, where the runtime can't before": true} {
		t.Run(name, func(t *testing.T) {
			t.Run("-i gives it our stdin and its end, and shows the log", func(t *testing.T) {
				f, logDir := interactive(t)
				f.attachToRunning = late
				f.tryContext(t.Context(), t, "typed\n", "run", "--rm", "-i", "--log-dir", logDir, "app").want(t, 3, "typed\n")
				wantNothingLeft(t, f, logDir)
			})
			t.Run("-it goes over the connection, and the exit code is the container's", func(t *testing.T) {
				f, logDir := interactive(t)
				f.attachToRunning = late
				f.tryContext(t.Context(), t, "typed\n", "run", "--rm", "-it", "--log-dir", logDir, "app").want(t, 5, "typed\n")
				wantNothingLeft(t, f, logDir)
			})
		})
	}
	t.Run("stdin ends with ours, a terminal's does not, and with -d nobody attaches", func(t *testing.T) {
		f, logDir := interactive(t)
		for _, c := range []struct {
			flags            []string
			stdin, once, tty bool
		}{{[]string{"-i"}, true, true, false}, {[]string{"-it"}, true, false, true}, {[]string{"-d", "-it"}, true, false, true}, {[]string{"-d", "-i"}, true, false, false}, {[]string{"-d"}, false, false, false}} {
			before := f.called("Attach")
			f.tryContext(t.Context(), t, "", append(append([]string{"run"}, c.flags...), "--log-dir", logDir, "app")...)
			cfg := f.configs[f.containers[len(f.containers)-1].GetId()]
			if cfg.GetStdin() != c.stdin || cfg.GetStdinOnce() != c.once || cfg.GetTty() != c.tty {
				t.Errorf("%v: stdin %v, once %v, tty %v", c.flags, cfg.GetStdin(), cfg.GetStdinOnce(), cfg.GetTty())
			}
			if attached := f.called("Attach") > before; attached == (c.flags[0] == "-d") {
				t.Errorf("%v: attached: %v", c.flags, attached)
			}
		}
	})
	t.Run("the detach keys leave it running", func(t *testing.T) {
		f, logDir := interactive(t)
		r := f.tryContext(t.Context(), t, "a\x10\x11b", "run", "-it", "--log-dir", logDir, "app")
		if r.code != 0 || !strings.Contains(r.err, "detached; container") {
			t.Errorf("code %d, stderr %q", r.code, r.err)
		}
		if _, containers := f.left(); containers != 1 {
			t.Errorf("%d containers are left, want 1", containers)
		}
	})
	t.Run("with --rm there are none", func(t *testing.T) {
		f, logDir := interactive(t)
		f.tryContext(t.Context(), t, "a\x10\x11b", "run", "--rm", "-it", "--log-dir", logDir, "app").want(t, 5, "a\x10\x11b")
		wantNothingLeft(t, f, logDir)
	})
	t.Run("a program that has ended before it could be attached to is shown all the same", func(t *testing.T) {
		for _, flag := range []string{"-i", "-it"} {
			f, logDir := interactive(t)
			f.attachToRunning, f.program = true, says(t, "hello", 42)
			f.tryContext(t.Context(), t, "typed\n", "run", "--rm", flag, "--log-dir", logDir, "app").want(t, 42, "hello\n")
			wantNothingLeft(t, f, logDir)
		}
	})
	t.Run("a runtime that cannot attach leaves nothing behind", func(t *testing.T) {
		f, logDir := interactive(t)
		f.fail["Attach"] = status.Error(codes.Unimplemented, "no streams")
		f.tryContext(t.Context(), t, "", "run", "-i", "--log-dir", logDir, "app").want(t, 1, "", "run app: attach after the start: this runtime does not support it: no streams")
		wantNothingLeft(t, f, logDir)
	})
	t.Run("wrong detach keys are refused before anything is made", func(t *testing.T) {
		f, logDir := interactive(t)
		f.try(t, "run", "-it", "--detach-keys", "ctrl-1", "--log-dir", logDir, "app").want(t, 1, "", "there is no ctrl-1")
		wantNothingLeft(t, f, logDir)
	})
}

func TestRunFailsWithoutATrace(t *testing.T) {
	for rpc, step := range map[string]string{
		"ImageStatus": "image", "RunPodSandbox": "pod", "CreateContainer": "create", "StartContainer": "start",
	} {
		t.Run(rpc, func(t *testing.T) {
			f, logDir := runs(t)
			f.fail[rpc] = status.Error(codes.Internal, "boom")
			f.try(t, "run", "--log-dir", logDir, "app").want(t, 1, "", "cri-engine: run app: "+step+": boom\n")
			wantNothingLeft(t, f, logDir)
		})
	}
	t.Run("a pod whose making was not answered in time", func(t *testing.T) {
		f, logDir := runs(t)
		f.loseAnswer = "RunPodSandbox"
		f.try(t, "run", "--timeout", "1s", "--log-dir", logDir, "app").want(t, 1, "", "run app: pod: ")
		wantNothingLeft(t, f, logDir)
	})
}

func TestRunConfigs(t *testing.T) {
	f, logDir := runs(t)
	envFile := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(envFile, []byte("# comment\n\nA=1\nB=x=y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FROM_HERE", "here")
	r := f.try(t, "run", "-d", "--log-dir", logDir, "--name", "web", "--namespace", "shop",
		"-e", "C=3", "-e", "FROM_HERE", "--env-file", envFile,
		"-v", logDir+"/..:/data:ro,rslave", "-p", "8080:80", "-p", "[::1]:53:5353/udp",
		"--cpus", "1.5", "--memory", "256m", "--pids", "100", "--user", "1000:50",
		"--read-only", "--hostname", "h", "--share-pid", "--host-ipc", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL",
		"--sysctl", "net.core.somaxconn=9", "--dns", "10.0.0.1", "--dns-search", "example.com", "--dns-option", "ndots:2",
		"--label", "a=b", "--annotation", "c=d", "--runtime", "crun", "--cgroup-parent", "/p",
		"--entrypoint", `["sh","-c"]`, "--workdir", "/w", "-t", "app", "--", "-x")
	if r.code != 0 {
		t.Fatal(r.err)
	}
	pod, container := f.podConfigs[f.pods[0].GetId()], f.configs[f.containers[0].GetId()]
	uid := pod.GetMetadata().GetUid()
	labels := map[string]string{"a": "b", labelPodName: "web", labelPodNamespace: "shop", labelPodUID: uid}
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD, Ipc: runtimeapi.NamespaceMode_NODE}
	dir := filepath.Join(logDir, "shop_web_"+uid)
	wantPod := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "shop", Uid: uid},
		Hostname: "h", LogDirectory: dir,
		DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"10.0.0.1"}, Searches: []string{"example.com"}, Options: []string{"ndots:2"}},
		PortMappings: []*runtimeapi.PortMapping{
			{HostPort: 8080, ContainerPort: 80}, {Protocol: runtimeapi.Protocol_UDP, HostIp: "::1", HostPort: 53, ContainerPort: 5353},
		},
		Labels: labels, Annotations: map[string]string{"c": "d", annotationLogs: dir},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/p", Sysctls: map[string]string{"net.core.somaxconn": "9"},
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}
	if !proto.Equal(pod, wantPod) {
		t.Errorf("pod\n%v\nwant\n%v", pod, wantPod)
	}
	wantContainer := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:" + strings.Repeat("ab", 32), UserSpecifiedImage: "app"},
		Command:  []string{"sh", "-c"}, Args: []string{"--", "-x"}, WorkingDir: "/w",
		Envs: []*runtimeapi.KeyValue{
			{Key: "A", Value: []byte("1")}, {Key: "B", Value: []byte("x=y")}, {Key: "C", Value: []byte("3")}, {Key: "FROM_HERE", Value: []byte("here")},
		},
		Mounts: []*runtimeapi.Mount{{
			HostPath: filepath.Dir(logDir), ContainerPath: "/data", Readonly: true,
			Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		}},
		Labels:      map[string]string{"a": "b", labelPodName: "web", labelPodNamespace: "shop", labelPodUID: uid, labelContainerName: "web"},
		Annotations: map[string]string{"c": "d"},
		LogPath:     "web.log", Tty: true,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 150000, CpuShares: 1536, MemoryLimitInBytes: 256 << 20,
				Unified: map[string]string{"pids.max": "100"},
			},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				Capabilities:     &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}},
				NamespaceOptions: namespaces,
				RunAsUser:        &runtimeapi.Int64Value{Value: 1000}, RunAsGroup: &runtimeapi.Int64Value{Value: 50},
				ReadonlyRootfs: true, MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths,
				Seccomp: &runtimeapi.SecurityProfile{},
			},
		},
	}
	if !proto.Equal(container, wantContainer) {
		t.Errorf("container\n%v\nwant\n%v", container, wantContainer)
	}
}

func TestRunRefuses(t *testing.T) {
	f, logDir := runs(t)
	cases := []struct{ args, err string }{
		{"-d --rm", "--rm and -d exclude each other"},
		{"-o json", "-o is for -d"},
		{"--pull sometimes", "--pull sometimes: want missing, always or never"},
		{"--name ../../etc", `--name "../../etc": want at most 63`},
		{"--namespace a/b", `--namespace "a/b": want`},
		{"-v /nonexistent:/x", "--volume /nonexistent:/x: stat /nonexistent: no such file"},
		{"-v /etc:x", "want HOSTPATH:PATH[:OPTIONS]"},
		{"-v /etc:/x:rw,quick", `unknown option "quick"`},
		{"-p 80", "--publish 80: want HOSTPORT:PORT"},
		{"-p 0:80", `"0" is not a port`},
		{"-p 70000:80", `"70000" is not a port`},
		{"-p 1.2.3:80:80", `"1.2.3" is not an IP address`},
		{"-p 80:80/icmp", "want tcp, udp or sctp"},
		{"-p 80:80 --host-network", "--publish makes no sense with --host-network"},
		{"--host-pid --share-pid", "--host-pid and --share-pid exclude each other"},
		{"--memory 1k", "--memory 1k: want at least 4m"},
		{"--memory lots", "--memory lots: want"},
		{"--cpus -1", "--cpus -1: want more than 0"},
		{"--pids -1", "--pids -1: want more than 0"},
		{"--user :5", "--user :5: want UID[:GID]"},
		{"--user 5:staff", "the group must be a number"},
		{"--env =x", "--env =x: want NAME=VALUE"},
		{"--env-file /nonexistent", "--env-file /nonexistent"},
		{"--sysctl x", "--sysctl x: want NAME=VALUE"},
		{"--dns example.com", "--dns example.com: not an IP address"},
		{"--entrypoint [1", "--entrypoint [1: not a JSON list"},
		{"--pod nope", "--pod nope: no such pod"},
	}
	for _, c := range cases {
		t.Run(c.args, func(t *testing.T) {
			args := append([]string{"run", "--log-dir", logDir}, strings.Fields(c.args)...)
			if strings.HasPrefix(c.args, "--pod ") {
				args = append([]string{"run"}, strings.Fields(c.args)...)
			}
			f.try(t, append(args, "app")...).want(t, 1, "", c.err)
		})
	}
	wantNothingLeft(t, f, logDir)
	if f.called("RunPodSandbox") != 0 {
		t.Error("a pod was made for a command line that is wrong")
	}
}

func TestInventedNamesAreValid(t *testing.T) {
	for _, ref := range []string{
		"app", "docker.io/library/nginx:1.29", "localhost:5000/a_b.c@sha256:0123", "Sha256:ABC", "--", "", "x/" + strings.Repeat("long", 40),
	} {
		if err := checkName("--name", inventName(ref)); err != nil {
			t.Errorf("of %q: %v", ref, err)
		}
	}
}

func TestRemoveLogsBelievesNoAnnotation(t *testing.T) {
	meta := &runtimeapi.PodSandboxMetadata{Name: "n", Namespace: "ns", Uid: "u"}
	base := t.TempDir()
	own := filepath.Join(base, "ns_n_u")
	other := filepath.Join(base, "other")
	for _, dir := range []string{own, other, filepath.Join(own, "sub.log")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{filepath.Join(own, "a.log"), filepath.Join(own, "a.log.1.gz"), filepath.Join(own, "data"), filepath.Join(other, "a.log")} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(other, "a.log"), filepath.Join(own, "link.log")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{other, own + "/../other", "ns_n_u", "", own + "/", "/"} {
		pod := &runtimeapi.PodSandbox{Metadata: meta, Annotations: map[string]string{annotationLogs: dir}}
		if err := removeLogs(pod); err != nil {
			t.Errorf("%q: %v", dir, err)
		}
	}
	// Of its own directory only logs go; the rest keeps it, which is told.
	pod := &runtimeapi.PodSandbox{Metadata: meta, Annotations: map[string]string{annotationLogs: own}}
	if err := removeLogs(pod); err == nil {
		t.Error("a directory with foreign files in it was said to be removed")
	}
	for path, want := range map[string]bool{
		filepath.Join(other, "a.log"): true, filepath.Join(own, "data"): true, filepath.Join(own, "sub.log"): true,
		filepath.Join(own, "a.log"): false, filepath.Join(own, "a.log.1.gz"): false,
	} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s exists: %v, want %v", path, err == nil, want)
		}
	}
}
