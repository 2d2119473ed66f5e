//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// runHandler runs a pod of a named handler.
func (e *Engine) runHandler(t testing.TB, handler string, options ...podOption) *Pod {
	t.Helper()
	c := e.podConfig(t, options...)
	resp, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("run pod %s with handler %s: %v", c.Metadata.Name, handler, err)
	}
	p := &Pod{e: e, ID: resp.PodSandboxId, Config: c}
	t.Cleanup(func() { p.remove(t) })
	return p
}

// put writes a file of the operator's.
func put(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// ownNetwork is a conflist whose pods get addresses of the range, which are kept in dir.
func ownNetwork(name, bridge, subnet, dir string) string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [{"type": "bridge", "bridge": %q, "isGateway": true,
		"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]]}}]}`, name, bridge, dir, subnet)
}

func inSubnet(t testing.TB, address, subnet string) {
	t.Helper()
	a, err := netip.ParseAddr(address)
	if err != nil || !netip.MustParsePrefix(subnet).Contains(a) {
		t.Errorf("the address is %q, want one of %s", address, subnet)
	}
}

func TestHandlers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		files := filepath.Join(w.Dir, "operator")
		t.Cleanup(func() { os.RemoveAll(files) })
		note := files + "/state"
		hook := put(t, files+"/hook", "#!/bin/sh\ncat >> "+note+"; echo \" $1\" >> "+note+"\n")
		put(t, files+"/lib/mounted", "the operator's\n")
		base := put(t, files+"/base.json", fmt.Sprintf(`{
			"ociVersion": "1.1.0",
			"process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/", "env": ["PATH=/bin", "BASE=base", "FROM=base"],
				"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 321, "hard": 321}], "noNewPrivileges": true},
			"root": {"path": "rootfs"},
			"mounts": [{"destination": "/opt/base", "type": "bind", "source": %q, "options": ["rbind", "ro"]}, {"destination": "/proc", "type": "proc", "source": "proc"}],
			"hooks": {"createRuntime": [{"path": %q, "args": ["hook", "of-base"]}]},
			"linux": {"resources": {"pids": {"limit": 44}}, "namespaces": [{"type": "pid"}]}}`, files+"/lib", hook))
		own := files + "/own.d"
		e := w.engine(t, withHandler("runc"), withConfig(fmt.Sprintf(`
[runtime]
default_ulimits = ["nofile=555:666", "core=0"]
default_sysctls = ["net.ipv4.ip_local_port_range=10000 20000", "kernel.shm_rmid_forced=1"]
device_ownership_from_security_context = true
hooks_dirs = [%q]
[runtime.handlers.tuned]
path = "runc"
base_runtime_spec = %q
annotations = ["org.e2e.*"]
cni_conf_dir = %q
privileged_without_host_devices = true
`, files+"/hooks.d", base, own)))
		t.Cleanup(func() { // what the plugin and the OCI runtime keep for a handler's next pod
			_ = exec.Command("ip", "link", "del", "e2ebr0").Run()
			_ = os.Remove(filepath.Join(e.State, "runtime", "tuned"))
		})
		t.Run("a base_runtime_spec holds under what is asked for", func(t *testing.T) {
			put(t, own+"/10.conflist", ownNetwork("own", "e2ebr0", "10.77.0.0/24", files+"/ipam"))
			eventually(t, 20*time.Second, "the handler's network is there", func() bool { return e.handlerNetworkReady(t, "tuned") })
			p := e.runHandler(t, "tuned")
			c := p.run(t, busyboxImage, sleeper, func(c *runtimeapi.ContainerConfig) {
				c.Envs = []*runtimeapi.KeyValue{{Key: "FROM", Value: []byte("request")}}
			})
			got := c.exec(t, "sh", "-c", "echo $BASE $FROM; ulimit -n; cat /opt/base/mounted; grep NoNewPrivs /proc/self/status")
			if want := "base request\n321\nthe operator's\nNoNewPrivs:\t0\n"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			checkCgroup(t, c, map[string]string{"pids/pids.max": "44"})
			if text, _ := os.ReadFile(note); !strings.Contains(string(text), " of-base\n") {
				t.Errorf("the hook wrote %q", text)
			}
			plain := e.runPod(t).run(t, busyboxImage, sleeper)
			if got := plain.exec(t, "sh", "-c", "echo $BASE; ls /opt 2>/dev/null; ulimit -n"); got != "\n555\n" {
				t.Errorf("a container of another handler has %q", got)
			}
			c.stop(t, 0)
			plain.stop(t, 0)
		})
		t.Run("annotations get to the OCI runtime by the handler's patterns and by no other way", func(t *testing.T) {
			os.Remove(note)
			annotated := func(c *runtimeapi.ContainerConfig) {
				c.Annotations = map[string]string{"org.e2e.wanted": "yes", "org.other": "no", "io.kubernetes.cri.sandbox-id": "forged"}
			}
			p := e.runHandler(t, "tuned", func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{"org.e2e.pod": "pod's"} })
			p.output(t, busyboxImage, command("true"), annotated)
			text, _ := os.ReadFile(note) // the state that the runtime gives to hooks
			for want, there := range map[string]bool{`"org.e2e.wanted":"yes"`: true, `"org.e2e.pod":"pod's"`: true, "org.other": false, "forged": false} {
				if strings.Contains(strings.ReplaceAll(string(text), `": "`, `":"`), want) != there {
					t.Errorf("the runtime's state has %s: %v, in %s", want, !there, text)
				}
			}
		})
		t.Run("privileged_without_host_devices keeps the host's devices from privileged containers", func(t *testing.T) {
			privileged := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })
			pod := func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }
			for handler, want := range map[string]string{"tuned": "none\n", "": "device\n"} {
				p := e.runHandler(t, handler, pod)
				if got := p.output(t, busyboxImage, shell("test -c /dev/fuse && echo device || echo none"), privileged); got != want {
					t.Errorf("handler %q: got %q, want %q", handler, got, want)
				}
			}
		})
		t.Run("default ulimits and sysctls are a container's, and a pod's own sysctls come before", func(t *testing.T) {
			p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "0"}
			})
			got := p.output(t, busyboxImage, shell("ulimit -Sn; ulimit -Hn; ulimit -c; cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced"))
			if want := "555\n666\n0\n10000\t20000\n0\n"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
		t.Run("device_ownership_from_security_context gives devices to the user that is asked for", func(t *testing.T) {
			got := e.runPod(t).output(t, busyboxImage, shell("stat -c '%u %g' /dev/mine"), func(c *runtimeapi.ContainerConfig) {
				c.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/mine", Permissions: "rw"}}
				c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 2000}, &runtimeapi.Int64Value{Value: 2001}
			})
			if got != "2000 2001\n" {
				t.Errorf("the device belongs to %q", got)
			}
		})
		t.Run("OCI hooks run for the containers that they are for, also one that came later", func(t *testing.T) {
			os.Remove(note)
			put(t, files+"/hooks.d/10.json", fmt.Sprintf(`{"version": "1.0.0", "hook": {"path": %q, "args": ["hook", "of-dir"]},
				"when": {"annotations": {"^org\\.e2e\\.hook$": "^please$"}}, "stages": ["createRuntime", "poststop"]}`, hook))
			p := e.runPod(t)
			p.output(t, busyboxImage, command("true"))
			if text, err := os.ReadFile(note); err == nil {
				t.Errorf("it ran for a container that it is not for: %s", text)
			}
			p.output(t, busyboxImage, command("true"), func(c *runtimeapi.ContainerConfig) { c.Annotations = map[string]string{"org.e2e.hook": "please"} })
			if text, _ := os.ReadFile(note); strings.Count(string(text), " of-dir\n") != 2 {
				t.Errorf("the hook wrote %q, want it once at each of two stages", text)
			}
			put(t, files+"/hooks.d/20.json", "broken")
			if got := p.output(t, busyboxImage, shell("echo lives")); got != "lives\n" {
				t.Errorf("with a broken file that came later: %q", got)
			}
			eventually(t, 10*time.Second, "the broken file is in the log", func() bool { return strings.Contains(e.LogTail(20000), "20.json") })
			os.Remove(files + "/hooks.d/20.json")
		})
		t.Run("pods of a handler with a cni_conf_dir get its network, and a DEL after a restart too", func(t *testing.T) {
			p, plain := e.runHandler(t, "tuned"), e.runPod(t)
			inSubnet(t, p.ip(t), "10.77.0.0/24")
			inSubnet(t, plain.ip(t), "10.213.96.0/20")
			reserved := filepath.Join(files, "ipam", "own", p.ip(t))
			if _, err := os.Stat(reserved); err != nil {
				t.Error(err)
			}
			e.Kill()
			if err := os.Remove(own + "/10.conflist"); err != nil {
				t.Fatal(err)
			}
			e.restart(t)
			if ready, reason := e.networkReady(t); !ready {
				t.Errorf("the node is not ready for the sake of one handler: %s", reason)
			}
			_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t), RuntimeHandler: "tuned"})
			wantCode(t, err, codes.Unavailable, own)
			p.stop(t)
			if _, err := os.Stat(reserved); err == nil {
				t.Errorf("the address is still reserved: %s", reserved)
			}
		})
	})
}

// handlerNetworkReady asks the engine's verbose status.
func (e *Engine) handlerNetworkReady(t testing.TB, handler string) bool {
	t.Helper()
	r, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	text := r.GetInfo()["cniHandlers"]
	return strings.Contains(text, `"`+handler+`"`) && strings.Contains(text, `"network"`) && !strings.Contains(text, `"error"`)
}

func TestAHandlersOwnNetworkDecidesForTheDefaultHandler(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		dir := filepath.Join(w.Dir, "own.d")
		e := w.engineNotStarted(t, withHandler("runc"), withConfig(fmt.Sprintf("[runtime.handlers.runc]\ncni_conf_dir = %q\n", dir)))
		e.start(t)
		if ready, reason := e.networkReady(t); ready || !strings.Contains(reason, dir) {
			t.Errorf("ready: %v, %q", ready, reason)
		}
		put(t, dir+"/10.conflist", ownNetwork("own", "e2ebr0", "10.78.0.0/24", filepath.Join(w.Dir, "ipam")))
		eventually(t, 20*time.Second, "the node is ready", func() bool { ready, _ := e.networkReady(t); return ready })
		os.RemoveAll(dir)
	})
}

func TestTheKubeletsPodCIDRsBecomeANetworkByTheTemplate(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		template := put(t, filepath.Join(w.Dir, "template"), fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "made", "plugins": [{"type": "bridge", "bridge": "e2ebr0", "isGateway": true,
			"ipam": {"type": "host-local", "dataDir": %q, "ranges": [{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$r}}"}]{{end}}],
			"routes": [{{range $i, $r := .Routes}}{{if $i}}, {{end}}{"dst": "{{$r}}"}{{end}}]}}]}`, filepath.Join(w.Dir, "ipam")))
		e := w.engineNotStarted(t, withConfig(fmt.Sprintf("[network]\nconf_template = %q\n", template)))
		e.start(t)
		e.pull(t, busyboxImage)
		tell := func(cidr string) error {
			_, err := e.rt.UpdateRuntimeConfig(call(t), &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}})
			return err
		}
		awaitNetwork := func(name string) {
			t.Helper()
			eventually(t, 20*time.Second, "the network is "+name, func() bool {
				r, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{Verbose: true})
				return err == nil && strings.Contains(r.GetInfo()["cni"], `"`+name+`"`)
			})
		}
		for _, cidr := range []string{"10.79.1.0/24,fd79:1::/64", "10.79.2.0/24"} {
			if err := tell(cidr); err != nil {
				t.Fatal(err)
			}
			v4, _, _ := strings.Cut(cidr, ",")
			awaitNetwork("made")
			time.Sleep(time.Second) // the file is watched: a moment later it is read
			eventually(t, 20*time.Second, "pods get addresses of it", func() bool {
				p := e.runPod(t)
				defer p.remove(t)
				return netip.MustParsePrefix(v4).Contains(netip.MustParseAddr(p.ip(t)))
			})
			_ = exec.Command("ip", "link", "del", "e2ebr0").Run() // it keeps the address that it got first
		}
		if err := os.WriteFile(template, []byte("{{.None}}"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := tell("10.79.3.0/24"); err == nil || !strings.Contains(statusMessage(err), "network.conf_template: "+template) {
			t.Errorf("a template that is no good: %v", err)
		}
		os.RemoveAll(filepath.Join(w.Dir, "ipam"))
		os.Remove(template)
	})
}

func TestTheEngineDoesNotStartWithOperatorsFilesThatAreWrong(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		dir := filepath.Join(w.Dir, "wrong")
		t.Cleanup(func() { os.RemoveAll(dir) })
		for _, c := range []struct {
			name, config string
			want         []string
		}{
			{"a base_runtime_spec with a limit that is none", fmt.Sprintf("[runtime.handlers.x]\npath = \"runc\"\nbase_runtime_spec = %q\n",
				put(t, dir+"/base.json", `{"process": {"rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}}`)),
				[]string{"runtime.handlers.x.base_runtime_spec", dir + "/base.json", "process.rlimits[0].type"}},
			{"an OCI hook with a condition that is none", fmt.Sprintf("[runtime]\nhooks_dirs = [%q]\n",
				filepath.Dir(put(t, dir+"/hooks/10.json", `{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": {"alway": true}, "stages": ["prestart"]}`))),
				[]string{"runtime.hooks_dirs", dir + "/hooks/10.json", "alway"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				e := w.engineNotStarted(t, withConfig(c.config), func(*harness.EngineOptions) {})
				if err := e.Spawn(); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				select {
				case <-e.Done():
				case <-ctx.Done():
					t.Fatal("it runs")
				}
				for _, want := range c.want {
					if !strings.Contains(e.LogTail(8000), want) {
						t.Errorf("its last words do not say %q: %s", want, e.LogTail(2000))
					}
				}
			})
		}
	})
}
