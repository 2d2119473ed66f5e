//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ownProfile begins the name of the engine's default profile.
const ownProfile = "cri-engine-default-"

// denyProfile is a node's own: nothing is written.
const denyProfile = "cri-engine-e2e-deny-write"

func hasAppArmor() bool {
	enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return strings.HasPrefix(string(enabled), "Y")
}

func needsAppArmor(t *testing.T) {
	t.Helper()
	if !hasAppArmor() {
		t.Skip("AppArmor is not enabled in this kernel")
	}
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		t.Skipf("profiles can't be loaded: %v", err)
	}
}

// parseProfile has the kernel know or forget profiles.
func parseProfile(t *testing.T, option, text string) {
	t.Helper()
	cmd := exec.Command("apparmor_parser", option, "--skip-cache")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apparmor_parser %s: %v: %s", option, err, out)
	}
}

func appArmor(kind runtimeapi.SecurityProfile_ProfileType, ref string) containerOption {
	return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	})
}

func oldAppArmor(value string) containerOption {
	return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ApparmorProfile = value }) //nolint:staticcheck // SA1019: older kubelets set it
}

var withSysAdmin = security(func(s *runtimeapi.LinuxContainerSecurityContext) {
	s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN", "NET_ADMIN"}}
})

const confinedBy = "cat /proc/self/attr/current"

// free is no profile, or one that forbids nothing, which distributions have for OCI runtimes.
const free = "unconfined"

func isConfinedBy(label, want string) bool {
	return want == free && strings.Contains(label, free) || want != free && strings.HasPrefix(label, want)
}

func TestAppArmor(t *testing.T) {
	needsAppArmor(t)
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		parseProfile(t, "--replace", "profile "+denyProfile+" flags=(attach_disconnected) {\n  file,\n  network,\n  signal,\n  deny /** w,\n}\n")
		e := w.engine(t, withHandler(runtime))
		p := e.runPod(t)
		const local, unconfined, byDefault = runtimeapi.SecurityProfile_Localhost, runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_RuntimeDefault
		for name, options := range map[string][]containerOption{
			"that names no profile":                            nil,
			"that asks for the default":                        {appArmor(byDefault, "")},
			"that asks for the default in the older field":     {oldAppArmor("runtime/default")},
			"with no_new_privs":                                {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = true })},
			"that is not root":                                 {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1000} })},
			"that says something else in the older field only": {appArmor(byDefault, ""), oldAppArmor("unconfined")},
		} {
			t.Run("a container "+name+" is confined by the engine's profile", func(t *testing.T) {
				// With no_new_privs the runtime's own profile, which forbids nothing, is stacked on it.
				got := p.output(t, busyboxImage, append(options, shell(confinedBy))...)
				if !strings.HasPrefix(got, ownProfile) || !strings.Contains(got, "(enforce)") && !strings.Contains(got, "(mixed)") {
					t.Errorf("confined by %q", got)
				}
			})
		}
		t.Run("a command in a container has the container's profile", func(t *testing.T) {
			for want, c := range map[string]*Container{
				ownProfile:  p.run(t, busyboxImage, sleeper),
				denyProfile: p.run(t, busyboxImage, sleeper, appArmor(local, denyProfile)),
				free:        p.run(t, busyboxImage, sleeper, appArmor(unconfined, "")),
			} {
				if got := c.exec(t, "cat", "/proc/self/attr/current"); !isConfinedBy(got, want) {
					t.Errorf("confined by %q, want %s", got, want)
				}
				c.stop(t, 0)
			}
		})
		const forbidden = "mkdir -p /m; mount -t tmpfs x /m 2>/dev/null && echo mounted; (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null && echo wrote; true"
		t.Run("the engine's profile keeps a container that could from mounting and from writing to /proc/sys", func(t *testing.T) {
			if got := p.output(t, busyboxImage, shell(forbidden), withSysAdmin); got != "" {
				t.Errorf("got %q", got)
			}
			if got := p.output(t, busyboxImage, shell(forbidden), withSysAdmin, appArmor(unconfined, "")); got != "mounted\nwrote\n" {
				t.Errorf("unconfined: got %q", got)
			}
		})
		t.Run("under the engine's profile processes signal and look at each other", func(t *testing.T) {
			script := "sleep 100 & cat /proc/$!/environ >/dev/null && ls -l /proc/$!/exe >/dev/null && kill -9 $! && echo ok; wait"
			for _, nnp := range []bool{false, true} {
				o := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = nnp })
				if got := p.output(t, busyboxImage, shell(script), o); got != "ok\n" {
					t.Errorf("with no_new_privs %v: got %q", nnp, got)
				}
			}
		})
		t.Run("a profile of the node confines, in either field and form", func(t *testing.T) {
			for _, o := range []containerOption{appArmor(local, denyProfile), appArmor(local, "localhost/"+denyProfile), oldAppArmor("localhost/" + denyProfile)} {
				if got := p.output(t, busyboxImage, shell(confinedBy+"; touch /x 2>/dev/null || echo denied"), o); !strings.HasPrefix(got, denyProfile) || !strings.HasSuffix(got, "denied\n") {
					t.Errorf("got %q", got)
				}
			}
		})
		t.Run("the newer field comes before the older", func(t *testing.T) {
			if got := p.output(t, busyboxImage, shell(confinedBy), appArmor(local, denyProfile), oldAppArmor("localhost/none")); !strings.HasPrefix(got, denyProfile) {
				t.Errorf("confined by %q", got)
			}
		})
		t.Run("a profile that is not loaded is refused by its name", func(t *testing.T) {
			for _, o := range []containerOption{appArmor(local, "localhost/not-there"), oldAppArmor("localhost/not-there")} {
				_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config, Config: p.containerConfig(busyboxImage, sleeper, o)})
				wantCode(t, err, codes.InvalidArgument, "localhost_ref", `"not-there"`, "is loaded")
			}
		})
		t.Run("a privileged container has no profile, but for one that it names", func(t *testing.T) {
			q := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
			asPrivileged := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })
			for want, options := range map[string][]containerOption{
				free: {asPrivileged, appArmor(byDefault, "")}, denyProfile: {asPrivileged, appArmor(local, denyProfile)},
			} {
				if got := q.output(t, busyboxImage, append(options, shell(confinedBy))...); !isConfinedBy(got, want) {
					t.Errorf("confined by %q, want %s", got, want)
				}
			}
		})
		t.Run("the engine's profile is loaded again when something has unloaded it", func(t *testing.T) {
			name, _, _ := strings.Cut(p.output(t, busyboxImage, shell(confinedBy)), " ")
			parseProfile(t, "--remove", "profile "+name+" {}\n")
			if got := p.output(t, busyboxImage, shell(confinedBy)); !strings.HasPrefix(got, name) {
				t.Errorf("confined by %q", got)
			}
		})
		t.Run("status says what the profile is", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper, appArmor(local, denyProfile))
			resp, err := e.rt.ContainerStatus(call(t), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
			if err != nil || !strings.Contains(fmt.Sprint(resp.Info), denyProfile) {
				t.Errorf("info %v, %v", resp.GetInfo(), err)
			}
			c.stop(t, 0)
			if got := e.verbose(t)["apparmor"]; !strings.Contains(got, ownProfile) {
				t.Errorf("status says %q", got)
			}
		})
	})
}

func TestAppArmorCanBeSwitchedOffAndItsDefaultChosen(t *testing.T) {
	needsAppArmor(t)
	inWorld(t, func(t *testing.T, w *World) {
		parseProfile(t, "--replace", "profile "+denyProfile+" flags=(attach_disconnected) {\n  file,\n  network,\n  signal,\n  deny /** w,\n}\n")
		local := appArmor(runtimeapi.SecurityProfile_Localhost, denyProfile)
		t.Run("off: no profile for anyone, and one that is named is refused", func(t *testing.T) {
			e := w.engine(t, withConfig("[runtime]\napparmor = false\n"))
			p := e.runPod(t)
			if got := p.output(t, busyboxImage, shell(confinedBy)); !isConfinedBy(got, free) {
				t.Errorf("confined by %q", got)
			}
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config, Config: p.containerConfig(busyboxImage, sleeper, local)})
			wantCode(t, err, codes.Unimplemented, denyProfile, "[runtime] apparmor")
		})
		t.Run("a profile of the node as the default", func(t *testing.T) {
			p := w.engine(t, withConfig(fmt.Sprintf("[runtime]\napparmor_profile = %q\n", denyProfile))).runPod(t)
			if got := p.output(t, busyboxImage, shell(confinedBy)); !strings.HasPrefix(got, denyProfile) {
				t.Errorf("confined by %q", got)
			}
		})
		t.Run("a default that is not loaded is not left out", func(t *testing.T) {
			e := w.engineNotStarted(t, withConfig("[runtime]\napparmor_profile = \"not-there\"\n"))
			e.start(t)
			e.pull(t, busyboxImage)
			p := e.runPod(t)
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config, Config: p.containerConfig(busyboxImage, sleeper)})
			wantCode(t, err, codes.FailedPrecondition, `"not-there"`, "not loaded")
			if got := p.output(t, busyboxImage, shell(confinedBy), local); !strings.HasPrefix(got, denyProfile) {
				t.Errorf("confined by %q", got)
			}
		})
		t.Run("unconfined as the default", func(t *testing.T) {
			p := w.engine(t, withConfig("[runtime]\napparmor_profile = \"unconfined\"\n")).runPod(t)
			if got := p.output(t, busyboxImage, shell(confinedBy)); !isConfinedBy(got, free) {
				t.Errorf("confined by %q", got)
			}
			if got := p.output(t, busyboxImage, shell(confinedBy), local); !strings.HasPrefix(got, denyProfile) {
				t.Errorf("confined by %q", got)
			}
		})
	})
}

func TestAKernelWithoutAppArmor(t *testing.T) {
	if hasAppArmor() {
		t.Skip("AppArmor is enabled in this kernel")
	}
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		t.Run("runs containers that ask for the default or for none", func(t *testing.T) {
			for _, o := range []containerOption{
				appArmor(runtimeapi.SecurityProfile_RuntimeDefault, ""), appArmor(runtimeapi.SecurityProfile_Unconfined, ""), oldAppArmor("runtime/default"),
			} {
				if got := p.output(t, busyboxImage, shell("echo ran"), o); got != "ran\n" {
					t.Errorf("got %q", got)
				}
			}
		})
		t.Run("refuses a profile that is named, and says why", func(t *testing.T) {
			for _, o := range []containerOption{appArmor(runtimeapi.SecurityProfile_Localhost, "mine"), oldAppArmor("localhost/mine")} {
				_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config, Config: p.containerConfig(busyboxImage, sleeper, o)})
				wantCode(t, err, codes.Unimplemented, "localhost_ref", `"mine"`, "AppArmor is not enabled in this kernel")
			}
		})
		t.Run("is said by the status", func(t *testing.T) {
			if got := e.verbose(t)["apparmor"]; !strings.Contains(got, "not enabled in this kernel") {
				t.Errorf("status says %q", got)
			}
		})
	})
}

// verbose is the engine's status for people.
func (e *Engine) verbose(t testing.TB) map[string]string {
	t.Helper()
	resp, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Info
}
