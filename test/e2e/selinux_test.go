//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

const withSELinux = "[runtime]\nselinux = true\n"

func needsSELinux(t *testing.T) {
	t.Helper()
	if !selinux.GetEnabled() {
		t.Skip("SELinux is not enabled in this kernel")
	}
	if process, _ := selinux.KVMContainerLabels(); process == "" { //nolint:staticcheck // SA1019: the one way to ask without making a level up
		t.Skip("the policy does not know containers")
	}
}

// labelDirs does for an engine's directories what a policy's file contexts do for those
// of an installed one (docs/security.md): a policy lets engines into such alone.
func labelDirs(t testing.TB, e *harness.Engine) {
	t.Helper()
	if !selinux.GetEnabled() {
		return
	}
	for dir, kind := range map[string]string{e.Dir: "container_var_lib_t", e.Root: "container_var_lib_t", e.ConfDir: "container_config_t", e.State: "container_runtime_t"} {
		if err := selinux.Chcon(dir, "system_u:object_r:"+kind+":s0", true); err != nil {
			t.Logf("the policy does not know %s: %v", kind, err)
		}
	}
}

func selinuxOptions(o *runtimeapi.SELinuxOption) containerOption {
	return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SelinuxOptions = o })
}

// labelOf is a process's or file's label without the NUL at its end.
func labelOf(text string) string { return strings.TrimRight(text, "\x00\n") }

func fileLabel(t *testing.T, path string) string {
	t.Helper()
	label, err := selinux.LfileLabel(path)
	if err != nil {
		t.Fatal(err)
	}
	return label
}

// levelOf is what is behind the third colon.
func levelOf(label string) string {
	parts := strings.SplitN(label, ":", 4)
	return parts[len(parts)-1]
}

var ownLevel = regexp.MustCompile(`^s0:c[0-9]+,c[0-9]+$`)

func TestSELinux(t *testing.T) {
	needsSELinux(t)
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime), withConfig(withSELinux))
		p, q := e.runPod(t), e.runPod(t)
		a := p.run(t, busyboxImage, sleeper)
		label := labelOf(a.exec(t, confinedWords...))
		t.Run("a pod's processes have a level that no other pod's have", func(t *testing.T) {
			if !ownLevel.MatchString(levelOf(label)) {
				t.Errorf("label %q", label)
			}
			if other := labelOf(p.run(t, busyboxImage, sleeper).exec(t, confinedWords...)); other != label {
				t.Errorf("two containers of a pod are %q and %q", label, other)
			}
			if other := labelOf(q.run(t, busyboxImage, sleeper).exec(t, confinedWords...)); levelOf(other) == levelOf(label) {
				t.Errorf("two pods are %q", other)
			}
		})
		t.Run("its files have the level too: the root filesystem, /dev/shm and those in /etc", func(t *testing.T) {
			mounts := a.exec(t, "cat", "/proc/1/mountinfo")
			for _, point := range []string{" / ", " /dev/shm "} {
				line := regexp.MustCompile("(?m)^.*" + regexp.QuoteMeta(point) + ".*$").FindString(mounts)
				if !strings.Contains(line, ":"+levelOf(label)+`"`) && !strings.Contains(line, ":"+strings.ReplaceAll(levelOf(label), ",", `\\054`)) {
					t.Errorf("mount%s is %q, want the level %s", point, line, levelOf(label))
				}
			}
			// The root directory of an image that says nothing of it has the mode 0555.
			a.exec(t, "sh", "-c", "chmod 755 / && touch /x /dev/shm/x && cat /etc/resolv.conf /etc/hosts /etc/hostname")
		})
		t.Run("a volume that is to be relabelled is the pod's, with all that is in it", func(t *testing.T) {
			volume := filepath.Join(w.Dir, "volume")
			if err := os.MkdirAll(filepath.Join(volume, "dir"), 0o777); err != nil {
				t.Fatal(err)
			}
			mount := func(relabel bool) containerOption {
				return func(c *runtimeapi.ContainerConfig) {
					c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/v", SelinuxRelabel: relabel}}
				}
			}
			const use = "touch /v/dir/x 2>/dev/null && echo wrote || echo denied"
			if got := p.output(t, busyboxImage, shell(use), mount(true)); got != "wrote\n" {
				t.Errorf("the pod: %q", got)
			}
			for _, path := range []string{volume, filepath.Join(volume, "dir")} {
				if got := fileLabel(t, path); levelOf(got) != levelOf(label) {
					t.Errorf("%s is %q, want the level %s", path, got, levelOf(label))
				}
			}
			if got := q.output(t, busyboxImage, shell(use), mount(false)); got != "denied\n" && selinux.EnforceMode() == selinux.Enforcing {
				t.Errorf("another pod: %q", got)
			}
			if got := q.output(t, busyboxImage, shell(use), mount(true)); got != "wrote\n" {
				t.Errorf("another pod that relabels it: %q", got)
			}
		})
		t.Run("a path of the system's is not relabelled", func(t *testing.T) {
			before := fileLabel(t, "/etc")
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config,
				Config: p.containerConfig(busyboxImage, sleeper, func(c *runtimeapi.ContainerConfig) {
					c.Mounts = []*runtimeapi.Mount{{HostPath: "/etc", ContainerPath: "/host", SelinuxRelabel: true}}
				})})
			wantCode(t, err, codes.InvalidArgument, "config.mounts[0].selinux_relabel", "/etc")
			if after := fileLabel(t, "/etc"); after != before {
				t.Errorf("/etc was %q and is %q", before, after)
			}
		})
		t.Run("a container can ask for a level, and a pod for one of its own", func(t *testing.T) {
			if got := labelOf(p.output(t, busyboxImage, command(confinedWords...), selinuxOptions(&runtimeapi.SELinuxOption{Level: "s0:c4,c5"}))); levelOf(got) != "s0:c4,c5" {
				t.Errorf("label %q", got)
			}
			r := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c6,c7"}
			})
			if got := labelOf(r.output(t, busyboxImage, command(confinedWords...))); levelOf(got) != "s0:c6,c7" {
				t.Errorf("label %q", got)
			}
		})
		t.Run("options that are wrong, and those that the policy does not know, are refused", func(t *testing.T) {
			for field, o := range map[string]*runtimeapi.SELinuxOption{
				".level": {Level: "s0,c4,c5"}, ".type": {Type: "a b"}, "no_such_t": {Type: "no_such_t"},
			} {
				_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config,
					Config: p.containerConfig(busyboxImage, sleeper, selinuxOptions(o))})
				wantCode(t, err, codes.InvalidArgument, "selinux_options", field)
			}
		})
		t.Run("a privileged container is not confined", func(t *testing.T) {
			r := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
			got := labelOf(r.output(t, busyboxImage, command(confinedWords...), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })))
			if strings.Split(got, ":")[2] == strings.Split(label, ":")[2] {
				t.Errorf("label %q", got)
			}
		})
		t.Run("a pod with a shared PID namespace has an init with the pod's label", func(t *testing.T) {
			r := e.runPod(t, podPID)
			c := r.run(t, busyboxImage, sleeper)
			if init, own := labelOf(c.exec(t, "cat", "/proc/1/attr/current")), labelOf(c.exec(t, confinedWords...)); init != own {
				t.Errorf("the init is %q, the container %q", init, own)
			}
		})
		t.Run("the level is the pod's after the daemon was killed, and status says it", func(t *testing.T) {
			e.Kill()
			e.restart(t)
			if got := labelOf(p.run(t, busyboxImage, sleeper).exec(t, confinedWords...)); got != label {
				t.Errorf("a container made later is %q, the pod's others %q", got, label)
			}
			resp, err := e.rt.ContainerStatus(call(t), &runtimeapi.ContainerStatusRequest{ContainerId: a.ID, Verbose: true})
			if err != nil || !strings.Contains(fmt.Sprint(resp.Info), label) {
				t.Errorf("info %v, %v", resp.GetInfo(), err)
			}
			if got := e.verbose(t)["selinux"]; !strings.Contains(got, `"enabled":true`) {
				t.Errorf("status says %q", got)
			}
		})
	})
}

var confinedWords = []string{"cat", "/proc/self/attr/current"}

func TestAKernelWithoutSELinux(t *testing.T) {
	if selinux.GetEnabled() {
		t.Skip("SELinux is enabled in this kernel")
	}
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t, withConfig(withSELinux))
		t.Run("runs containers whatever labels they ask for", func(t *testing.T) {
			o := &runtimeapi.SELinuxOption{User: "system_u", Role: "system_r", Type: "spc_t", Level: "s0:c4,c5"}
			p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.SelinuxOptions = o })
			volume := filepath.Join(w.Dir, "volume")
			if err := os.Mkdir(volume, 0o755); err != nil {
				t.Fatal(err)
			}
			got := p.output(t, busyboxImage, shell("echo ran"), selinuxOptions(o), func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/v", SelinuxRelabel: true}}
			})
			if got != "ran\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("refuses what no policy would know", func(t *testing.T) {
			p := e.runPod(t)
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config,
				Config: p.containerConfig(busyboxImage, sleeper, selinuxOptions(&runtimeapi.SELinuxOption{Level: "s0,c4,c5"}))})
			wantCode(t, err, codes.InvalidArgument, "selinux_options.level", "s0,c4,c5")
			_, err = e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t, func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "a:b"}
			})})
			wantCode(t, err, codes.InvalidArgument, "selinux_options.type", "a:b")
		})
		t.Run("is said by the status", func(t *testing.T) {
			if got := e.verbose(t)["selinux"]; !strings.Contains(got, "not enabled in this kernel") {
				t.Errorf("status says %q", got)
			}
		})
	})
}
