//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func cdiDevices(names ...string) containerOption {
	return func(c *runtimeapi.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: name})
		}
	}
}

// createError is what CreateContainer answers, nil if it is made (and removed again).
func (p *Pod) createError(t testing.TB, image string, options ...containerOption) error {
	t.Helper()
	r, err := p.e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: p.containerConfig(image, options...), SandboxConfig: p.Config})
	if err == nil {
		(&Container{p: p, ID: r.ContainerId, Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{}}}).remove(t)
	}
	return err
}

func TestCDIDevices(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		static, dynamic, shared := filepath.Join(w.Dir, "cdi"), filepath.Join(w.Dir, "cdi-run"), filepath.Join(w.Dir, "shared")
		file := func(path, text string) {
			t.Helper()
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() {
			for _, dir := range []string{static, dynamic, shared} {
				os.RemoveAll(dir)
			}
		})
		file(shared+"/lib", "the driver's\n")
		file(shared+"/hook", "#!/bin/sh\ncat > /dev/null\necho \"$1 $KIND\" >> "+shared+"/hooks\n")
		file(static+"/vendor.yaml", fmt.Sprintf(`
cdiVersion: "0.7.0"
kind: "vendor.com/dev"
containerEdits:
  env: ["COMMON=yes"]
  additionalGids: [4242]
devices:
- name: one
  containerEdits:
    env: ["ONE=1"]
    deviceNodes: [{path: /dev/one, hostPath: /dev/fuse, permissions: r}]
    mounts: [{hostPath: %[1]s/lib, containerPath: /opt/lib/driver, options: [ro, bind, nosuid]}]
    hooks: [{hookName: createRuntime, path: %[1]s/hook, args: [hook, one], env: ["KIND=cdi", "PATH=/bin:/usr/bin"]}]
- name: two
  containerEdits: {env: ["TWO=2"]}
`, shared))
		e := w.engine(t, withHandler(runtime), withConfig(fmt.Sprintf("[cdi]\nspec_dirs = [%q, %q]\n", static, dynamic)))
		p := e.runPod(t)
		t.Run("a device brings its nodes, mounts, environment, hooks and groups", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper, cdiDevices("vendor.com/dev=one"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 2000}, &runtimeapi.Int64Value{Value: 2001}
			}))
			got := c.exec(t, "sh", "-c", "echo $COMMON $ONE $TWO; id -G; cat /opt/lib/driver; stat -c '%F %u %g' /dev/one; : < /dev/one && echo read; (: > /dev/one) 2>/dev/null || echo refused")
			if want := "yes 1\n2001 4242\nthe driver's\ncharacter special file 2000 2001\nread\nrefused\n"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if text, _ := os.ReadFile(shared + "/hooks"); string(text) != "one cdi\n" {
				t.Errorf("the hook wrote %q", text)
			}
			if groups := c.status(t).GetUser().GetLinux().GetSupplementalGroups(); !slices.Equal(groups, []int64{2001, 4242}) {
				t.Errorf("status says the groups %v", groups)
			}
			c.stop(t, 0)
		})
		t.Run("annotations of device plugins are the same as the field, and nothing is there twice", func(t *testing.T) {
			os.Remove(shared + "/hooks")
			got := p.output(t, busyboxImage, shell("echo $COMMON $ONE $TWO"), cdiDevices("vendor.com/dev=one"), func(c *runtimeapi.ContainerConfig) {
				c.Annotations = map[string]string{"cdi.k8s.io/plugin_1": "vendor.com/dev=one,vendor.com/dev=two"}
			})
			text, _ := os.ReadFile(shared + "/hooks")
			if got != "yes 1 2\n" || string(text) != "one cdi\n" {
				t.Errorf("got %q, the hook wrote %q", got, text)
			}
		})
		t.Run("what a driver writes is there for the next container, its removal too", func(t *testing.T) {
			claim := `{"cdiVersion": "0.6.0", "kind": "dra.com/claim", "devices": [{"name": "c1", "containerEdits": {"env": ["CLAIM=%s"]}}]}`
			wantCode(t, p.createError(t, busyboxImage, cdiDevices("dra.com/claim=c1")), codes.InvalidArgument, "dra.com/claim=c1")
			for _, value := range []string{"first", "second one"} {
				file(dynamic+"/claim.json", fmt.Sprintf(claim, value))
				if got := p.output(t, busyboxImage, shell("echo $CLAIM"), cdiDevices("dra.com/claim=c1")); got != value+"\n" {
					t.Errorf("got %q, want %q", got, value)
				}
			}
			os.Remove(dynamic + "/claim.json")
			wantCode(t, p.createError(t, busyboxImage, cdiDevices("dra.com/claim=c1")), codes.InvalidArgument, "dra.com/claim=c1")
		})
		t.Run("an unknown device is refused by name with the files that are broken, and those hurt no other device", func(t *testing.T) {
			file(static+"/broken.json", `{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "devcies": []}`)
			file(static+"/large.json", strings.Repeat(" ", 5<<20))
			err := p.createError(t, busyboxImage, cdiDevices("vendor.com/gpu=0"))
			wantCode(t, err, codes.InvalidArgument, "config.CDI_devices", `"vendor.com/gpu=0" is not defined in `+static, static+"/broken.json", "devcies", static+"/large.json is larger than")
			if got := p.output(t, busyboxImage, shell("echo $TWO"), cdiDevices("vendor.com/dev=two")); got != "2\n" {
				t.Errorf("got %q", got)
			}
			wantCode(t, p.createError(t, busyboxImage, cdiDevices("gpu0")), codes.InvalidArgument, `"gpu0"`)
			wantCode(t, p.createError(t, busyboxImage, func(c *runtimeapi.ContainerConfig) {
				c.Annotations = map[string]string{"cdi.k8s.io/x": "gpu0"}
			}), codes.InvalidArgument, "config.annotations", "cdi.k8s.io/x", `"gpu0"`)
		})
		t.Run("a device whose node is gone is an error that names the node, and leaves nothing", func(t *testing.T) {
			file(dynamic+"/gone.json", `{"cdiVersion": "0.6.0", "kind": "vendor.com/gone", "devices": [{"name": "x", "containerEdits": {"deviceNodes": [{"path": "/dev/gone"}]}}]}`)
			if err := p.createError(t, busyboxImage, cdiDevices("vendor.com/gone=x")); err == nil || !strings.Contains(statusMessage(err), "/dev/gone") {
				t.Errorf("error %v", err)
			}
		})
		t.Run("a network device is moved into the container, or the runtime that can't is named", func(t *testing.T) {
			file(dynamic+"/net.json", `{"cdiVersion": "1.1.0", "kind": "vendor.com/net", "devices": [{"name": "x", "containerEdits": {"netDevices": [{"hostInterfaceName": "cdihost0", "name": "net1"}]}}]}`)
			// The runtime itself says whether it can; old ones do not know the question.
			if features, _ := exec.Command(runtime, "features").Output(); !regexp.MustCompile(`"netDevices":\s*{\s*"enabled":\s*true`).Match(features) {
				wantCode(t, p.createError(t, busyboxImage, cdiDevices("vendor.com/net=x")), codes.Unimplemented, runtime, "network devices")
				return
			}
			if out, err := exec.Command("ip", "link", "add", "cdihost0", "type", "veth", "peer", "name", "cdihost1").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			q := e.runPod(t)
			if got := q.output(t, busyboxImage, shell("ls /sys/class/net"), cdiDevices("vendor.com/net=x")); !slices.Contains(strings.Fields(got), "net1") {
				t.Errorf("the container's interfaces are %q", got)
			}
			q.remove(t)
			_ = exec.Command("ip", "link", "del", "cdihost1").Run()
		})
	})
}

func TestCDIIsSwitchedOffByItsKey(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t, withConfig("[cdi]\nenabled = false\n"))
		p := e.runPod(t)
		wantCode(t, p.createError(t, busyboxImage, cdiDevices("vendor.com/dev=one")), codes.FailedPrecondition, "vendor.com/dev=one", "[cdi] enabled")
	})
}
