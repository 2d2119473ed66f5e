package oci

import (
	"strings"
	"testing"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCommand(t *testing.T) {
	cases := []struct {
		name                          string
		entrypoint, cmd, command, arg []string
		want                          string
	}{
		{"the image's entrypoint and cmd serve when the request has neither", []string{"ep"}, []string{"c"}, nil, nil, "ep c"},
		{"args replace the image's cmd", []string{"ep"}, []string{"c"}, nil, []string{"a"}, "ep a"},
		{"command replaces the entrypoint, and the image's cmd goes", []string{"ep"}, []string{"c"}, []string{"x"}, nil, "x"},
		{"command and args replace both", []string{"ep"}, []string{"c"}, []string{"x"}, []string{"a", "b"}, "x a b"},
		{"an image with a cmd only runs it", nil, []string{"c", "d"}, nil, nil, "c d"},
		{"nothing anywhere is refused", nil, nil, nil, nil, ""},
		{"an empty first word is refused", nil, nil, []string{""}, []string{"a"}, ""},
		{"a NUL byte is refused", nil, nil, []string{"a\x00b"}, nil, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t)
			in.Image.Entrypoint, in.Image.Cmd = c.entrypoint, c.cmd
			in.Config.Command, in.Config.Args = c.command, c.arg
			if c.want == "" {
				refuses(t, in, ableHost(), "config.command")
				return
			}
			spec, _ := build(t, in, ableHost())
			equal(t, "args", spec.Process.Args, strings.Split(c.want, " "))
			if len(c.entrypoint) > 0 && c.entrypoint[0] != "ep" {
				t.Error("the image's entrypoint was written to")
			}
		})
	}
}

func TestWorkDir(t *testing.T) {
	for _, c := range []struct{ name, image, request, want string }{
		{"the root without any", "", "", "/"},
		{"the image's", "/srv", "", "/srv"},
		{"the request's before the image's", "/srv", "/data", "/data"},
		{"an image's relative one is below the root", "srv", "", "/srv"},
		{"a request's relative one is refused", "", "data", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t)
			in.Image.WorkingDir, in.Config.WorkingDir = c.image, c.request
			if c.want == "" {
				refuses(t, in, ableHost(), "config.working_dir")
				return
			}
			if spec, _ := build(t, in, ableHost()); spec.Process.Cwd != c.want {
				t.Errorf("got %q, want %q", spec.Process.Cwd, c.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	env := func(pairs ...string) (list []*runtimeapi.KeyValue) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, &runtimeapi.KeyValue{Key: pairs[i], Value: []byte(pairs[i+1])})
		}
		return list
	}
	t.Run("later ones win, each key is there once, and PATH is never missing", func(t *testing.T) {
		in := testInput(t)
		in.Config.Tty = true
		in.Image.Env = []string{"A=image", "B=image", "no variable", "=neither"}
		in.Config.Envs = env("B", "request=with=signs", "C", "", "C", "last", "TERM", "vt100")
		spec, _ := build(t, in, ableHost())
		equal(t, "env", spec.Process.Env, []string{defaultPath, "HOSTNAME=pod", "TERM=vt100", "A=image", "B=request=with=signs", "C=last", "HOME=/"})
	})
	t.Run("the image's PATH replaces ours", func(t *testing.T) {
		in := testInput(t)
		in.Image.Env = []string{"PATH=/x"}
		spec, _ := build(t, in, ableHost())
		equal(t, "env", spec.Process.Env, []string{"PATH=/x", "HOSTNAME=pod", "HOME=/"})
	})
	for _, c := range []struct{ name, key, value, field string }{
		{"an empty key is refused", "", "v", "config.envs[0].key"},
		{"a key with a sign is refused", "a=b", "v", "config.envs[0].key"},
		{"a value with a NUL byte is refused without being told", "K", "secret\x00", "config.envs[0].value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t)
			in.Config.Envs = env(c.key, c.value)
			refuses(t, in, ableHost(), c.field)
			if _, _, err := containerSpec(in, ableHost()); err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells the value: %v", err)
			}
		})
	}
	t.Run("a value that JSON cannot hold is refused rather than changed", func(t *testing.T) {
		in := testInput(t)
		in.Config.Envs = env("K", "\xff")
		unsupports(t, in, ableHost(), "UTF-8")
	})
}

func TestNamespaces(t *testing.T) {
	const base = "mount: pid: "
	cases := []struct {
		name       string
		ns         Namespaces
		v1         bool
		privileged bool
		want       string
	}{
		{"the pod's, and a PID and a cgroup namespace of its own", Namespaces{Net: "/n", IPC: "/i", UTS: "/u"}, false, false, base + "network:/n ipc:/i uts:/u cgroup:"},
		{"the pod's PID namespace", Namespaces{PID: "/p"}, false, false, "mount: pid:/p cgroup:"},
		{"the host's everything", Namespaces{HostPID: true}, false, false, "mount: cgroup:"},
		{"the host's cgroups on v1", Namespaces{}, true, false, "mount: pid:"},
		{"the host's cgroups for a privileged container", Namespaces{}, false, true, "mount: pid:"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in, h := testInput(t), ableHost()
			in.Namespaces, h.cgroupV2 = c.ns, !c.v1
			in.Config.Linux.SecurityContext.Privileged = c.privileged
			spec, _ := build(t, in, h)
			var got []string
			for _, ns := range spec.Linux.Namespaces {
				got = append(got, string(ns.Type)+":"+ns.Path)
			}
			equal(t, "namespaces", got, strings.Fields(c.want))
		})
	}
}

func TestPrivileged(t *testing.T) {
	t.Run("it needs a privileged pod", func(t *testing.T) {
		in := testInput(t)
		in.Config.Linux.SecurityContext.Privileged = true
		in.Pod.Linux.SecurityContext.Privileged = false
		refuses(t, in, ableHost(), securityContext+"privileged")
	})
	t.Run("it lifts every confinement and mounts the kernel's filesystems for writing", func(t *testing.T) {
		in := testInput(t)
		sc := in.Config.Linux.SecurityContext
		sc.Privileged, sc.MaskedPaths, sc.ReadonlyPaths = true, []string{"/proc/kcore"}, []string{"/proc/sys"}
		sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		in.AppArmor = profiles{def: "ours"}
		spec, _ := build(t, in, ableHost())
		if spec.Linux.Seccomp != nil || spec.Process.ApparmorProfile != "" || spec.Linux.MaskedPaths != nil || spec.Linux.ReadonlyPaths != nil {
			t.Errorf("confined: seccomp %v, AppArmor %q, masked %v, read-only %v",
				spec.Linux.Seccomp, spec.Process.ApparmorProfile, spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths)
		}
		equal(t, "capabilities", spec.Process.Capabilities.Effective, knownCaps)
		if d := spec.Linux.Resources.Devices; len(d) != 1 || !d[0].Allow || d[0].Access != "rwm" {
			t.Errorf("device rules %+v", d)
		}
		for _, dest := range []string{"/sys", cgroupRoot} {
			if m, _ := mountAt(spec, dest); m.Options[len(m.Options)-1] == "ro" || !contains(m.Options, "rw") {
				t.Errorf("%s is mounted %v", dest, m.Options)
			}
		}
		if m, _ := mountAt(spec, cgroupRoot); !contains(m.Options, "nsdelegate") {
			t.Errorf("the host's cgroup options would be lost: %v", m.Options)
		}
	})
	t.Run("a handler can keep the host's devices from it", func(t *testing.T) {
		in := testInput(t)
		in.Config.Linux.SecurityContext.Privileged = true
		in.Handler.PrivilegedWithoutHostDevices = true
		spec, _ := build(t, in, ableHost())
		if len(spec.Linux.Devices) != 0 || spec.Linux.Resources.Devices[0].Allow {
			t.Errorf("devices %v, rules %+v", spec.Linux.Devices, spec.Linux.Resources.Devices)
		}
	})
}

func TestAnnotations(t *testing.T) {
	in := testInput(t)
	in.ImageName = "docker.io/library/nginx"
	in.Handler.Annotations = []string{"example.com/*", "io.katacontainers.*", "*"}
	in.Pod.Annotations = map[string]string{"example.com/a": "pod", "example.com/b": "pod", "other.org/x/y": "pod", annotationSandbox: "forged"}
	in.Config.Annotations = map[string]string{"example.com/a": "container", annotationType: "sandbox"}
	spec, _ := build(t, in, ableHost())
	for key, want := range map[string]string{
		annotationType: "container", annotationSandbox: "90d", annotationName: "web", annotationImage: "docker.io/library/nginx",
		annotationPodName: "pod", annotationPodNamespace: "ns", annotationPodUID: "uid",
		"example.com/a": "container", "example.com/b": "pod", "other.org/x/y": "",
	} {
		if got := spec.Annotations[key]; got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	t.Run("none passes a handler that lets none through", func(t *testing.T) {
		in.Handler.Annotations = nil
		if spec, _ := build(t, in, ableHost()); spec.Annotations["example.com/a"] != "" {
			t.Error("it passed")
		}
	})
}

func TestEmptyRequest(t *testing.T) {
	t.Run("a request with nothing but a command gets a confined container", func(t *testing.T) {
		in := testInput(t)
		in.Config = &runtimeapi.ContainerConfig{Command: []string{"/bin/true"}}
		in.Pod, in.Image = nil, ociv1.ImageConfig{}
		spec, user := build(t, in, ableHost())
		if user.UID != 0 || user.GID != 0 {
			t.Errorf("user %+v", user)
		}
		equal(t, "masked paths", spec.Linux.MaskedPaths, DefaultMaskedPaths)
		equal(t, "read-only paths", spec.Linux.ReadonlyPaths, DefaultReadonlyPaths)
		equal(t, "capabilities", spec.Process.Capabilities.Bounding, sorted(testCaps))
		if len(spec.Process.Capabilities.Inheritable)+len(spec.Process.Capabilities.Ambient) != 0 {
			t.Errorf("capabilities %+v", spec.Process.Capabilities)
		}
		if d := spec.Linux.Resources.Devices; len(d) != 1 || d[0].Allow || d[0].Access != "rwm" {
			t.Errorf("device rules %+v", d)
		}
		if spec.Process.OOMScoreAdj == nil || *spec.Process.OOMScoreAdj != 0 {
			t.Errorf("oom_score_adj %v would be inherited", spec.Process.OOMScoreAdj)
		}
		if spec.Linux.CgroupsPath != "/cri-engine/c0ffee" {
			t.Errorf("cgroup %q", spec.Linux.CgroupsPath)
		}
	})
	t.Run("what the security context says of the root, new privileges and labels is there", func(t *testing.T) {
		in := testInput(t)
		in.Config.Linux.SecurityContext.ReadonlyRootfs = true
		in.Config.Linux.SecurityContext.NoNewPrivs = true
		in.ProcessLabel, in.MountLabel = "p", "m"
		spec, _ := build(t, in, ableHost())
		if !spec.Root.Readonly || !spec.Process.NoNewPrivileges || spec.Process.SelinuxLabel != "p" || spec.Linux.MountLabel != "m" {
			t.Errorf("root %+v, process %+v", spec.Root, spec.Process)
		}
		if spec.Linux.MaskedPaths != nil {
			t.Errorf("masked %v, although the request unmasks all", spec.Linux.MaskedPaths)
		}
	})
}

func TestExecProcess(t *testing.T) {
	in := testInput(t)
	in.Config.Linux.SecurityContext.NoNewPrivs = true
	in.Config.WorkingDir = "/srv"
	in.AppArmor, in.ProcessLabel = profiles{def: "profile"}, "label"
	in.Config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	in.Config.Tty = true
	spec, _ := build(t, in, ableHost())
	spec.Process.ConsoleSize = &specs.Box{Height: 1}

	p, err := ExecProcess(spec, []string{"ls", "-l"}, false)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "args", p.Args, []string{"ls", "-l"})
	if p.User.UID != 1000 || p.Cwd != "/srv" || !p.NoNewPrivileges || p.ApparmorProfile != "profile" || p.SelinuxLabel != "label" || p.Terminal || p.ConsoleSize != nil {
		t.Errorf("process %+v", p)
	}
	equal(t, "capabilities", p.Capabilities.Bounding, spec.Process.Capabilities.Bounding)
	p.Env[0], p.Capabilities.Bounding[0] = "changed", "changed"
	if spec.Process.Env[0] == "changed" || spec.Process.Capabilities.Bounding[0] == "changed" || spec.Process.Args[0] != "/bin/true" {
		t.Error("the container's spec was changed")
	}
	t.Run("a terminal brings TERM, unless there is one", func(t *testing.T) {
		in.Config.Tty = false
		spec, _ := build(t, in, ableHost())
		p, err := ExecProcess(spec, []string{"sh"}, true)
		if err != nil || !p.Terminal || !contains(p.Env, "TERM=xterm") {
			t.Errorf("process %+v, error %v", p, err)
		}
		spec.Process.Env = []string{"TERM=vt100"}
		p, err = ExecProcess(spec, []string{"sh"}, true)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "env", p.Env, []string{"TERM=vt100"})
	})
	for name, command := range map[string][]string{"no command": nil, "an empty word": {""}, "a NUL byte": {"a", "\x00"}} {
		t.Run(name+" is refused", func(t *testing.T) {
			if _, err := ExecProcess(spec, command, false); err == nil {
				t.Error("it is not")
			}
		})
	}
}

func TestPauseSpec(t *testing.T) {
	in := PauseInput{
		ID: "90d", Pod: testInput(t).Pod, RootFS: "/rootfs", Handler: testInput(t).Handler,
		CgroupDriver: Systemd, CgroupParent: "/kubepods.slice",
		Namespaces: Namespaces{Net: "/n", IPC: "/i", UTS: "/u", PID: "/not/this", HostPID: true},
	}
	spec, err := pauseSpec(in, ableHost())
	if err != nil {
		t.Fatal(err)
	}
	p := spec.Process
	if !spec.Root.Readonly || !p.NoNewPrivileges || p.User.UID == 0 || len(p.Capabilities.Bounding) != 0 || *p.OOMScoreAdj != -998 || spec.Linux.Seccomp == nil {
		t.Errorf("root %+v, process %+v", spec.Root, p)
	}
	if ns := spec.Linux.Namespaces[1]; ns.Type != specs.PIDNamespace || ns.Path != "" {
		t.Errorf("namespaces %+v", spec.Linux.Namespaces)
	}
	if spec.Linux.CgroupsPath != "kubepods.slice:cri-engine:90d" || spec.Annotations[annotationType] != "sandbox" {
		t.Errorf("cgroup %q, annotations %v", spec.Linux.CgroupsPath, spec.Annotations)
	}
}
