//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

type containerSecurity = runtimeapi.LinuxContainerSecurityContext

func value(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

func TestUsersAndGroups(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		p := e.runPod(t)
		t.Run("the status tells the groups that each policy gives", func(t *testing.T) {
			for policy, want := range map[runtimeapi.SupplementalGroupsPolicy][]int64{
				runtimeapi.SupplementalGroupsPolicy_Merge: {44, 50, 1000, 7000}, runtimeapi.SupplementalGroupsPolicy_Strict: {1000, 7000},
			} {
				c := p.run(t, busyboxImage, sleeper, security(func(s *containerSecurity) {
					s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = value(1000), []int64{7000}, policy
				}))
				u := c.status(t).GetUser().GetLinux()
				slices.Sort(u.SupplementalGroups)
				if u.GetUid() != 1000 || u.GetGid() != 1000 || !slices.Equal(u.SupplementalGroups, want) {
					t.Errorf("%s: user %v, want the groups %v", policy, u, want)
				}
				if got := strings.Fields(c.exec(t, "id", "-G")); len(got) != len(want) {
					t.Errorf("%s: a command has the groups %v, want %v", policy, got, want)
				}
				c.stop(t, 0)
			}
		})
		t.Run("a group without a user is refused, of a container and of a pod", func(t *testing.T) {
			p.refused(t, codes.InvalidArgument, []string{"run_as_group", "run_as_user"}, security(func(s *containerSecurity) { s.RunAsGroup = value(50) }))
			_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.RunAsGroup = value(50) })})
			wantCode(t, err, codes.InvalidArgument, "run_as_group", "run_as_user")
		})
		t.Run("numbers that are no user's or group's are refused", func(t *testing.T) {
			const noChange = 1<<32 - 1
			for _, c := range []struct {
				field  string
				change func(*containerSecurity)
			}{
				{"run_as_user", func(s *containerSecurity) { s.RunAsUser = value(-1) }},
				{"run_as_user", func(s *containerSecurity) { s.RunAsUser = value(noChange) }},
				{"run_as_group", func(s *containerSecurity) { s.RunAsUser, s.RunAsGroup = value(1), value(1<<32) }},
				{"supplemental_groups[1]", func(s *containerSecurity) { s.SupplementalGroups = []int64{1, noChange} }},
			} {
				p.refused(t, codes.InvalidArgument, []string{c.field, "between 0 and 4294967294"}, security(c.change))
			}
			for field, change := range map[string]func(*runtimeapi.LinuxSandboxSecurityContext){
				"run_as_user":            func(s *runtimeapi.LinuxSandboxSecurityContext) { s.RunAsUser = value(noChange) },
				"supplemental_groups[0]": func(s *runtimeapi.LinuxSandboxSecurityContext) { s.SupplementalGroups = []int64{-5} },
			} {
				_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t, func(c *runtimeapi.PodSandboxConfig) { change(c.Linux.SecurityContext) })})
				wantCode(t, err, codes.InvalidArgument, field, "between 0 and 4294967294")
			}
		})
		t.Run("a name is looked up in the image, where a link leads to the host's file too", func(t *testing.T) {
			outside := filepath.Join(w.Dir, "passwd")
			if err := os.WriteFile(outside, []byte("outsider:x:4242:4242::/:/bin/sh\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			base, err := harness.BusyboxLayer()
			if err != nil {
				t.Fatal(err)
			}
			for name, target := range map[string]string{"absolute": outside, "upwards": "../../../../../../../../../../.." + outside} {
				img := harness.Image{Layers: []harness.Layer{base, harness.NewLayer(harness.File{Name: "etc/passwd", Link: target})}, Config: ociv1.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}}
				if err := w.Registry.Push(t.Context(), "e2e/link-"+name, img.Pack(), "1"); err != nil {
					t.Fatal(err)
				}
				e.pull(t, "e2e/link-"+name+":1")
				config := p.containerConfig("e2e/link-"+name+":1", sleeper, security(func(s *containerSecurity) { s.RunAsUsername = "outsider" }))
				_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config, Config: config})
				wantCode(t, err, codes.InvalidArgument, "run_as_username", "outsider")
				e.removeImage(t, w.ref("e2e/link-"+name+":1"))
			}
		})
	})
}

func TestAmbientCapabilitiesAndSeccompFiles(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		p := e.runPod(t)
		t.Run("an ambient capability is one of a process that is not root, and no other is", func(t *testing.T) {
			script := shell("grep -E 'CapEff|CapAmb' /proc/self/status")
			user := security(func(s *containerSecurity) { s.RunAsUser = value(1000) })
			ambient := security(func(s *containerSecurity) {
				s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
			})
			for want, options := range map[string][]containerOption{"0000000000000000": {script, user}, "0000000000000400": {script, user, ambient}} {
				if got := p.output(t, busyboxImage, options...); got != "CapEff:\t"+want+"\nCapAmb:\t"+want+"\n" {
					t.Errorf("got %q, want %s", got, want)
				}
			}
		})
		t.Run("a seccomp profile of the node holds, in either field and form", func(t *testing.T) {
			file := filepath.Join(w.Dir, "no-mkdir.json")
			profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`
			if err := os.WriteFile(file, []byte(profile), 0o644); err != nil {
				t.Fatal(err)
			}
			localhost := func(ref string) containerOption {
				return security(func(s *containerSecurity) {
					s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
				})
			}
			older := security(func(s *containerSecurity) {
				s.SeccompProfilePath = "localhost/" + file //nolint:staticcheck // SA1019: older kubelets set it
			})
			for _, o := range []containerOption{localhost(file), localhost("localhost/" + file), older} {
				if got := p.output(t, busyboxImage, shell("mkdir /x 2>/dev/null && echo made; touch /y && echo touched"), o); got != "touched\n" {
					t.Errorf("got %q", got)
				}
			}
			p.refused(t, codes.InvalidArgument, []string{"seccomp.localhost_ref", "does not exist"}, localhost(file+".none"))
			if err := os.WriteFile(file, []byte("{}"), 0o644); err != nil {
				t.Fatal(err)
			}
			p.refused(t, codes.InvalidArgument, []string{"seccomp.localhost_ref", fmt.Sprintf("%q", file)}, localhost(file))
		})
	})
}
