//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// httpServer serves the image's /www on the given port of the pod.
func (p *Pod) httpServer(t testing.TB, port int) *Container {
	t.Helper()
	c := p.run(t, busyboxImage, command("httpd", "-f", "-p", fmt.Sprint(port), "-h", "/www"))
	address := p.ip(t)
	if address == "" {
		address = "127.0.0.1" // the host's network
	}
	eventually(t, 10*time.Second, "the server in the pod listens", func() bool {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(address, fmt.Sprint(port)), slowly(time.Second))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return c
}

func get(t testing.TB, url string) string {
	t.Helper()
	client := http.Client{Timeout: slowly(10 * time.Second), Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Errorf("%v", err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(body)
}

const page = "hello from the pod\n"

func TestNetworks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		t.Run("the host and another pod reach a pod at its address", func(t *testing.T) {
			server, client := e.runPod(t), e.runPod(t)
			server.httpServer(t, 80)
			if got := get(t, "http://"+server.ip(t)+"/"); got != page {
				t.Errorf("the host gets %q", got)
			}
			if got := client.output(t, busyboxImage, command("wget", "-qO-", "http://"+server.ip(t)+"/")); got != page {
				t.Errorf("another pod gets %q", got)
			}
			if server.ip(t) == client.ip(t) {
				t.Errorf("two pods have the address %s", server.ip(t))
			}
		})
		t.Run("a pod has the addresses of its status on eth0 and a loopback that is up", func(t *testing.T) {
			p := e.runPod(t)
			got := p.output(t, busyboxImage, shell("ip -o addr show eth0; ip -o addr show lo"))
			if !strings.Contains(got, p.ip(t)+"/") || !strings.Contains(got, "127.0.0.1/8") {
				t.Errorf("status says %s, the pod\n%s", p.ip(t), got)
			}
			for _, extra := range p.status(t).GetNetwork().GetAdditionalIps() {
				if !strings.Contains(got, extra.Ip+"/") {
					t.Errorf("status says %s too, the pod\n%s", extra.Ip, got)
				}
			}
		})
		t.Run("a host port leads into the pod, from the host and from another pod", func(t *testing.T) {
			port := int32(freePort(t))
			p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) {
				c.PortMappings = []*runtimeapi.PortMapping{{HostPort: port, ContainerPort: 8080, Protocol: runtimeapi.Protocol_TCP}}
			})
			p.httpServer(t, 8080)
			if got := get(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); got != page {
				t.Errorf("the host gets %q", got)
			}
			other := e.runPod(t)
			gateway := strings.Fields(other.output(t, busyboxImage, shell("ip -4 route show default")))[2]
			if got := other.output(t, busyboxImage, command("wget", "-qO-", fmt.Sprintf("http://%s:%d/", gateway, port))); got != page {
				t.Errorf("another pod gets %q", got)
			}
			p.remove(t)
			if conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), slowly(time.Second)); err == nil {
				conn.Close()
				t.Error("the host port answers after the pod was removed")
			}
		})
		t.Run("a host port may be of UDP, and of one of the host's addresses", func(t *testing.T) {
			bridge := e.runPod(t)
			gateway := strings.Fields(bridge.output(t, busyboxImage, shell("ip -4 route show default")))[2]
			port := int32(freePort(t))
			p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) {
				c.PortMappings = []*runtimeapi.PortMapping{{HostPort: port, ContainerPort: 7007, Protocol: runtimeapi.Protocol_UDP, HostIp: gateway}}
			})
			p.run(t, busyboxImage, command("payload", "echo-udp", ":7007"))
			answered := func(host string) bool {
				c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Second))
				buf := make([]byte, 8)
				if _, err := c.Write([]byte("ping")); err != nil {
					return false
				}
				n, err := c.Read(buf)
				return err == nil && string(buf[:n]) == "ping"
			}
			eventually(t, 30*time.Second, "the pod answers", func() bool { return answered(gateway) })
			if answered("127.0.0.1") {
				t.Error("it answers on an address that was not asked for")
			}
		})
		t.Run("a host-network pod is in the host's namespace and has no address of its own", func(t *testing.T) {
			p := e.runPod(t, hostNetwork)
			port := freePort(t)
			p.httpServer(t, port)
			if got := get(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); got != page {
				t.Errorf("got %q", got)
			}
			if ip := p.ip(t); ip != "" {
				t.Errorf("the status gives the address %q", ip)
			}
			if mode := p.status(t).GetLinux().GetNamespaces().GetOptions().GetNetwork(); mode != runtimeapi.NamespaceMode_NODE {
				t.Errorf("network mode %v", mode)
			}
		})
		t.Run("a pod with bandwidth annotations has a network that works, and leaves nothing", func(t *testing.T) {
			p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) {
				c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "10M"}
			})
			p.httpServer(t, 80)
			if got := get(t, "http://"+p.ip(t)+"/"); got != page {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a bandwidth annotation that is no quantity is refused", func(t *testing.T) {
			c := e.podConfig(t, func(c *runtimeapi.PodSandboxConfig) {
				c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "fast"}
			})
			_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: c})
			wantCode(t, err, codes.InvalidArgument, "kubernetes.io/ingress-bandwidth", "fast")
		})
	})
}

// conflist is a network of its own bridge, with or without a plugin that the test wrote.
func conflist(name, subnet, extra string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"bridge","bridge":"cri-%s0","isGateway":true,
		"ipam":{"type":"host-local","dataDir":"/run/e2e/world/ipam","ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}}%s]}`, name, name, subnet, extra)
}

// plugin writes a CNI plugin as a shell script; $CNI_COMMAND is what it is asked for.
func plugin(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := "#!/bin/sh\nif [ $CNI_COMMAND = VERSION ]; then echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\",\"1.1.0\"]}'; exit; fi\nconf=$(cat)\n" + script
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (e *Engine) networkReady(t testing.TB) (bool, string) {
	t.Helper()
	resp, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Status.Conditions {
		if c.Type == "NetworkReady" {
			return c.Status, c.Reason + ": " + c.Message
		}
	}
	t.Fatal("the status has no NetworkReady condition")
	return false, ""
}

func TestNetworkConfiguration(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		plugins := filepath.Join(w.Dir, "plugins")
		e := w.engineNotStarted(t, func(o *harness.EngineOptions) { o.BinDirs = []string{plugins} },
			withConfig("[network]\ndefault_network = false\ntimeout = \"3s\"\n"))
		os.MkdirAll(filepath.Join(w.Dir, "ipam"), 0o755)
		e.start(t)
		e.pull(t, busyboxImage)
		file := filepath.Join(e.ConfDir, "10-test.conflist")
		write := func(t *testing.T, text string) {
			t.Helper()
			if err := os.WriteFile(file+".tmp", []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file+".tmp", file); err != nil {
				t.Fatal(err)
			}
		}
		awaitReady := func(t *testing.T, want bool) string {
			t.Helper()
			reason := ""
			eventually(t, 10*time.Second, fmt.Sprintf("NetworkReady becomes %v", want), func() bool {
				var ready bool
				ready, reason = e.networkReady(t)
				return ready == want
			})
			return reason
		}
		refused := func(t *testing.T, texts ...string) {
			t.Helper()
			before := settled(t, w, e)
			c := e.podConfig(t)
			_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: c})
			if err == nil {
				t.Fatal("RunPodSandbox succeeds")
			}
			for _, text := range texts {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("the error %v does not say %q", err, text)
				}
			}
			if pods := e.pods(t, nil); len(pods) > 0 {
				t.Errorf("listed: %v", pods)
			}
			leaks(t, w, e, before)
		}

		t.Run("without any configuration the network is not ready and says where it looked", func(t *testing.T) {
			if ready, reason := e.networkReady(t); ready || !strings.Contains(reason, e.ConfDir) {
				t.Errorf("ready %v, reason %q", ready, reason)
			}
			refused(t)
		})
		t.Run("a host-network pod runs without any network", func(t *testing.T) {
			if got := e.runPod(t, hostNetwork).output(t, busyboxImage, shell("echo runs")); got != "runs\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a file that is no JSON is named in the reason", func(t *testing.T) {
			write(t, `{"name": broken`)
			eventually(t, 10*time.Second, "the reason names the file", func() bool {
				ready, reason := e.networkReady(t)
				return !ready && strings.Contains(reason, filepath.Base(file))
			})
			refused(t)
		})
		t.Run("a plugin that does not exist is named in the reason", func(t *testing.T) {
			write(t, `{"cniVersion":"1.0.0","name":"nosuch","plugins":[{"type":"no-such-plugin"}]}`)
			eventually(t, 10*time.Second, "the reason names the plugin", func() bool {
				ready, reason := e.networkReady(t)
				return !ready && strings.Contains(reason, "no-such-plugin")
			})
			refused(t, "no-such-plugin")
		})
		t.Run("the network is ready when its conflist appears", func(t *testing.T) {
			write(t, conflist("good", "10.123.0.0/24", ""))
			awaitReady(t, true)
			p := e.runPod(t)
			if ip := p.ip(t); !strings.HasPrefix(ip, "10.123.0.") {
				t.Errorf("the pod's address is %q", ip)
			}
		})
		t.Run("a pod is removed with the configuration it was added with", func(t *testing.T) {
			p := e.runPod(t)
			before, _ := os.ReadDir(filepath.Join(w.Dir, "ipam", "good"))
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			awaitReady(t, false)
			p.remove(t)
			after, _ := os.ReadDir(filepath.Join(w.Dir, "ipam", "good"))
			if len(after) != len(before)-1 {
				t.Errorf("address reservations before %v, after %v", before, after)
			}
			write(t, conflist("good", "10.123.0.0/24", ""))
			awaitReady(t, true)
		})
		t.Run("when the second plugin's ADD fails the first is undone", func(t *testing.T) {
			plugin(t, plugins, "refuse", `if [ $CNI_COMMAND = ADD ]; then echo '{"cniVersion":"1.0.0","code":11,"msg":"the plugin refuses"}'; exit 1; fi`)
			write(t, conflist("good", "10.123.0.0/24", `,{"type":"refuse"}`))
			time.Sleep(500 * time.Millisecond) // the watch has no sign that it has read a file whose network has the same name
			refused(t, "the plugin refuses")
		})
		t.Run("a plugin that hangs is ended at the time-out and its processes too", func(t *testing.T) {
			plugin(t, plugins, "hang", `if [ $CNI_COMMAND = ADD ]; then sleep 1000 & sleep 1000; fi`)
			write(t, conflist("good", "10.123.0.0/24", `,{"type":"hang"}`))
			time.Sleep(500 * time.Millisecond)
			start := time.Now()
			refused(t)
			if took := time.Since(start); took > slowly(15*time.Second) {
				t.Errorf("it took %v with a time-out of 3s", took)
			}
		})
		t.Run("a caller that gives up on a plugin that hangs leaves nothing", func(t *testing.T) {
			before := settled(t, w, e)
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			defer cancel()
			_, err := e.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t)})
			if err == nil {
				t.Error("RunPodSandbox succeeds")
			}
			leaks(t, w, e, before)
		})
		t.Run("a plugin that answers garbage fails the pod cleanly", func(t *testing.T) {
			plugin(t, plugins, "garbage", `if [ $CNI_COMMAND = ADD ]; then head -c 2000000 /dev/zero | tr '\0' x; fi`)
			write(t, conflist("good", "10.123.0.0/24", `,{"type":"garbage"}`))
			time.Sleep(500 * time.Millisecond)
			refused(t)
		})
		t.Run("a DEL that fails is told, keeps the pod, and works when the plugin does", func(t *testing.T) {
			flag := filepath.Join(w.Dir, "del-fails")
			// libcni writes the keys of a plugin's configuration in order: prevResult is the last but type.
			plugin(t, plugins, "stubborn", `if [ $CNI_COMMAND = DEL ] && [ -e `+flag+` ]; then echo '{"cniVersion":"1.0.0","code":11,"msg":"not now"}'; exit 1; fi
if [ $CNI_COMMAND = ADD ]; then echo "$conf" | sed 's/.*"prevResult"://; s/,"type":"stubborn"}$//'; fi`)
			write(t, conflist("good", "10.123.0.0/24", `,{"type":"stubborn"}`))
			time.Sleep(500 * time.Millisecond)
			p := e.runPod(t)
			if err := os.WriteFile(flag, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := e.rt.StopPodSandbox(call(t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID})
			if err == nil || !strings.Contains(err.Error(), "not now") {
				t.Errorf("StopPodSandbox says %v", err)
			}
			if len(e.pods(t, nil)) != 1 {
				t.Error("the pod is not listed any more")
			}
			if err := os.Remove(flag); err != nil {
				t.Fatal(err)
			}
			p.remove(t)
		})
		removeBridges(t)
		_ = os.Remove(file)
	})
}
