//go:build e2e && kubelet

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vishvananda/netlink"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// Kubelet is a kubelet of its own, without an API server: its pods are the files in a
// directory, and what it says is read from its own endpoints.
type Kubelet struct {
	e              *Engine
	dir, manifests string
	readOnly, port int
	log            string
	cmd            *exec.Cmd
	done           <-chan struct{} // closed when cmd has ended
}

// nodeName is the kubelet's and ends its pods' names.
const nodeName = "e2e"

// kubelet starts one on the engine. Its pods must be gone by the test's end.
func (e *Engine) kubelet(t *testing.T) *Kubelet {
	t.Helper()
	if _, err := os.Stat(filepath.Join(binDir, "kubelet")); err != nil {
		t.Fatalf("no kubelet (make test-kubelet builds it): %v", err)
	}
	keepSysctls(t)
	nodeAddress(t)
	k := &Kubelet{e: e, dir: filepath.Join(e.w.Dir, "kubelet"), readOnly: freePort(t), port: freePort(t)}
	k.manifests, k.log = filepath.Join(k.dir, "manifests"), filepath.Join(k.dir, "kubelet.log")
	for _, dir := range []string{k.manifests, filepath.Join(k.dir, "kubelet.conf.d")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What the project ships, and then what this machine needs.
	shipped, err := filepath.Glob(filepath.Join(repoDir, "conf/kubelet/kubelet.conf.d/*.conf"))
	if err != nil || len(shipped) == 0 {
		t.Fatalf("no drop-in for the kubelet in conf: %v", err)
	}
	for _, file := range shipped {
		if err := copyFile(file, filepath.Join(k.dir, "kubelet.conf.d", filepath.Base(file))); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"config.yaml": kubeletConfig, "kubelet.conf.d/99-test.conf": k.dropIn()} {
		if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the kubelet's log:\n%s", harness.Tail(k.log, 6000))
		}
		k.empty(t)
		k.terminate(t)
		removeKubepods(t)
		unmountBelow(k.dir)
		if err := os.RemoveAll(k.dir); err != nil {
			t.Error(err)
		}
	})
	k.start(t)
	return k
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
`

func (k *Kubelet) dropIn() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%s
staticPodPath: %s
podLogsDir: %s
volumePluginDir: %s
address: 127.0.0.1
port: %d
readOnlyPort: %d
healthzPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
failSwapOn: false
fileCheckFrequency: 1s
syncFrequency: 5s
clusterDNS: [192.0.2.53]
clusterDomain: cluster.local
evictionHard: {memory.available: "1Mi", nodefs.available: "1%%", imagefs.available: "1%%"}
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
maxPods: 200
`, k.e.Socket, k.manifests, filepath.Join(k.dir, "pods"), filepath.Join(k.dir, "plugins"), k.port, k.readOnly)
}

func (k *Kubelet) start(t testing.TB) {
	t.Helper()
	k.cmd = exec.Command(filepath.Join(binDir, "kubelet"), "--config", filepath.Join(k.dir, "config.yaml"), "--config-dir", filepath.Join(k.dir, "kubelet.conf.d"),
		"--root-dir", filepath.Join(k.dir, "root"), "--hostname-override", nodeName, "--node-ip", kubeletAddress, "--v", "3")
	var err error
	if k.done, err = harness.StartLogged(k.cmd, k.log); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the kubelet answers", func() bool {
		select {
		case <-k.done:
			t.Fatalf("the kubelet ended: %s\n%s", k.cmd.ProcessState, harness.Tail(k.log, 4000))
		default:
		}
		_, err := k.get("/pods")
		return err == nil
	})
}

func (k *Kubelet) terminate(t testing.TB) {
	t.Helper()
	_ = k.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-k.done:
	case <-time.After(slowly(20 * time.Second)):
		t.Error("the kubelet ignores SIGTERM")
		_ = k.cmd.Process.Kill()
		<-k.done
	}
}

// restart ends the kubelet with SIGKILL and starts it again.
func (k *Kubelet) restart(t testing.TB) {
	t.Helper()
	_ = k.cmd.Process.Kill()
	<-k.done
	k.start(t)
}

// get reads from the kubelet's read-only port.
func (k *Kubelet) get(path string) (string, error) {
	return answer(http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", k.readOnly, path)))
}

// insecure takes any certificate: the kubelet's is of its own making.
var insecure = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

// do talks to the kubelet's main port.
func (k *Kubelet) do(method, path string, query url.Values) (string, error) {
	req, err := http.NewRequest(method, fmt.Sprintf("https://127.0.0.1:%d%s?%s", k.port, path, query.Encode()), nil)
	if err != nil {
		return "", err
	}
	return answer(insecure.Do(req))
}

func answer(resp *http.Response, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return string(text), err
}

// The part of the Kubernetes API's objects that tests look at.
type (
	kubePod struct {
		Metadata struct{ Name, UID string }
		Status   struct {
			Phase, PodIP          string
			Conditions            []struct{ Type, Status string }
			InitContainerStatuses []kubeContainer
			ContainerStatuses     []kubeContainer
		}
	}
	kubeContainer struct {
		Name, ContainerID, ImageID string
		Ready                      bool
		RestartCount               int
		State, LastState           kubeState
	}
	kubeState struct {
		Running    *struct{ StartedAt time.Time }
		Waiting    *struct{ Reason, Message string }
		Terminated *struct {
			ExitCode        int
			Reason, Message string
		}
	}
)

func (k *Kubelet) pods(t testing.TB) []kubePod {
	t.Helper()
	text, err := k.get("/pods")
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Items []kubePod }
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// pod is the kubelet's view of a pod; of one that it has not, an empty one.
func (k *Kubelet) pod(t testing.TB, name string) kubePod {
	t.Helper()
	for _, p := range k.pods(t) {
		if p.Metadata.Name == name+"-"+nodeName {
			return p
		}
	}
	return kubePod{}
}

func (p kubePod) condition(name string) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c struct{ Type, Status string }) bool { return c.Type == name && c.Status == "True" })
}

func (p kubePod) container(name string) kubeContainer {
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if c.Name == name {
			return c
		}
	}
	return kubeContainer{}
}

// apply gives the kubelet a pod: the spec's YAML, in which IMAGE is an image with a shell.
func (k *Kubelet) apply(t testing.TB, name, spec string) {
	t.Helper()
	text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  namespace: e2e\n  labels: {app: %s}\nspec:\n", name, name)
	for line := range strings.Lines(strings.TrimSpace(strings.ReplaceAll(spec, "IMAGE", k.e.w.ref(busyboxImage))) + "\n") {
		text += "  " + line
	}
	// The kubelet reads what is in the directory at any moment.
	hidden := filepath.Join(k.manifests, "."+name)
	if err := os.WriteFile(hidden, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(hidden, filepath.Join(k.manifests, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

// remove takes pods away and waits until they have ended. The kubelet removes their
// sandboxes later, once a minute.
func (k *Kubelet) remove(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(k.manifests, name+".yaml")); err != nil {
			t.Fatal(err)
		}
	}
	ours := &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}
	eventually(t, 2*time.Minute, fmt.Sprintf("pods %v have ended", names), func() bool {
		return !slices.ContainsFunc(k.e.pods(t, ours), func(p *runtimeapi.PodSandbox) bool { return slices.Contains(names, p.Labels["app"]) }) &&
			!slices.ContainsFunc(names, func(name string) bool { return k.pod(t, name).Metadata.Name != "" })
	})
}

// empty takes all pods away; it is for the end of a test, which may have failed.
func (k *Kubelet) empty(t testing.TB) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(k.manifests, "*.yaml"))
	for _, file := range files {
		_ = os.Remove(file)
	}
	for deadline := time.Now().Add(slowly(2 * time.Minute)); len(k.e.pods(t, nil)) > 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("the kubelet does not remove its pods")
			return
		}
	}
	// Volumes go after the sandboxes.
	eventually(t, time.Minute, "the kubelet has removed the pods' directories", func() bool {
		left, _ := filepath.Glob(filepath.Join(k.dir, "root/pods/*"))
		return len(left) == 0
	})
}

// until waits for a pod to be as wanted.
func (k *Kubelet) until(t testing.TB, name, what string, ok func(p kubePod) bool) kubePod {
	t.Helper()
	var p kubePod
	for deadline := time.Now().Add(slowly(2 * time.Minute)); ; time.Sleep(50 * time.Millisecond) {
		if p = k.pod(t, name); ok(p) {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("pod %s: not %s: %+v", name, what, p.Status)
		}
	}
}

func (k *Kubelet) ready(t testing.TB, name string) kubePod {
	t.Helper()
	return k.until(t, name, "ready", func(p kubePod) bool { return p.condition("Ready") })
}

// exec runs a command in a container by the kubelet.
func (k *Kubelet) exec(t testing.TB, pod, container string, argv ...string) string {
	t.Helper()
	out, err := k.do(http.MethodPost, fmt.Sprintf("/run/e2e/%s-%s/%s", pod, nodeName, container), url.Values{"cmd": {strings.Join(argv, " ")}})
	if err != nil {
		t.Errorf("exec %q in %s/%s: %v", argv, pod, container, err)
	}
	return out
}

func (k *Kubelet) logs(t testing.TB, pod, container string, query url.Values) string {
	t.Helper()
	out, err := k.do(http.MethodGet, fmt.Sprintf("/containerLogs/e2e/%s-%s/%s", pod, nodeName, container), query)
	if err != nil {
		t.Errorf("logs of %s/%s: %v", pod, container, err)
	}
	return out
}

// kubeletAddress is the node's, of a range for documentation.
const kubeletAddress = "192.0.2.1"

// nodeAddress gives this network namespace an interface with the node's address.
func nodeAddress(t *testing.T) {
	t.Helper()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "node0"}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	addr, err := netlink.ParseAddr(kubeletAddress + "/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

// keepSysctls: a kubelet sets some of the machine's, see its flag --protect-kernel-defaults.
func keepSysctls(t *testing.T) {
	t.Helper()
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		file := "/proc/sys/" + name
		value, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		t.Cleanup(func() {
			if err := os.WriteFile(file, value, 0o644); err != nil {
				t.Error(err)
			}
		})
	}
}

// removeKubepods removes the kubelet's own cgroups, which it leaves.
func removeKubepods(t testing.TB) {
	t.Helper()
	for _, name := range []string{"kubepods", "kubepods.slice", "kubelet"} {
		removeCgroupDir(t, name)
	}
}

func TestKubeletRunsPods(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		k := e.kubelet(t)
		k.lifecycle(t)
		k.configuration(t)
		k.endpoints(t)
		k.images(t)
	})
}

// lifecycle: containers of all kinds, in order, restarted as the pod says.
func (k *Kubelet) lifecycle(t *testing.T) {
	t.Run("init containers, a sidecar and two containers start in order and are ready", func(t *testing.T) {
		k.apply(t, "multi", `
terminationGracePeriodSeconds: 2
initContainers:
- {name: first, image: IMAGE, command: [sh, -c, "echo first >> /v/order"], volumeMounts: [{name: v, mountPath: /v}]}
- {name: sidecar, image: IMAGE, restartPolicy: Always, command: [sh, -c, "echo sidecar >> /v/order; sleep 100000"], volumeMounts: [{name: v, mountPath: /v}]}
- {name: second, image: IMAGE, command: [sh, -c, "sleep 1; echo second >> /v/order"], volumeMounts: [{name: v, mountPath: /v}]}
containers:
- {name: a, image: IMAGE, command: [sh, -c, "echo a >> /v/order; sleep 100000"], volumeMounts: [{name: v, mountPath: /v}]}
- {name: b, image: IMAGE, command: [httpd, -f, -p, "8080"]}
volumes:
- {name: v, emptyDir: {}}`)
		p := k.ready(t, "multi")
		for _, name := range []string{"first", "second"} {
			if c := p.container(name); c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 || c.State.Terminated.Reason != "Completed" {
				t.Errorf("init container %s: %+v", name, c)
			}
		}
		for _, name := range []string{"sidecar", "a", "b"} {
			if c := p.container(name); c.State.Running == nil || !c.Ready || !strings.HasPrefix(c.ContainerID, "cri-engine://") || c.RestartCount != 0 {
				t.Errorf("container %s: %+v", name, c)
			}
		}
		if got := k.exec(t, "multi", "a", "cat", "/v/order"); got != "first\nsidecar\nsecond\na\n" {
			t.Errorf("the order is %q", got)
		}
		if addr, err := netip.ParseAddr(p.Status.PodIP); err != nil || addr.IsLoopback() {
			t.Errorf("its address is %q", p.Status.PodIP)
		}
		if got := k.exec(t, "multi", "a", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/etc/hosts"); !strings.Contains(got, p.Status.PodIP) {
			t.Errorf("the server of the other container answers %q", got)
		}
		k.remove(t, "multi")
	})
	t.Run("containers restart as the pod's policy says, with counts, last states and previous logs", func(t *testing.T) {
		k.apply(t, "always", `{terminationGracePeriodSeconds: 1, restartPolicy: Always, containers: [{name: c, image: IMAGE, command: [sh, -c, "echo run; exit 3"]}]}`)
		k.apply(t, "onfailure", `{restartPolicy: OnFailure, containers: [{name: c, image: IMAGE, command: [sh, -c, "test -e /v/x && exit 0; touch /v/x; exit 4"], volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {}}]}`)
		k.apply(t, "never", `{restartPolicy: Never, containers: [{name: c, image: IMAGE, command: [sh, -c, "echo done > /dev/termination-log; exit 5"]}]}`)
		p := k.until(t, "always", "restarted", func(p kubePod) bool { return p.container("c").RestartCount >= 1 })
		if c := p.container("c"); c.LastState.Terminated == nil || c.LastState.Terminated.ExitCode != 3 || c.LastState.Terminated.Reason != "Error" {
			t.Errorf("its last state: %+v", c.LastState)
		}
		// Just after the next one has ended too, the kubelet knows one whose log it has deleted.
		eventually(t, time.Minute, "the previous log is there", func() bool {
			return k.logs(t, "always", "c", url.Values{"previous": {"true"}}) == "run\n"
		})
		p = k.until(t, "onfailure", "succeeded", func(p kubePod) bool { return p.Status.Phase == "Succeeded" })
		if c := p.container("c"); c.RestartCount != 1 || c.LastState.Terminated == nil || c.LastState.Terminated.ExitCode != 4 {
			t.Errorf("the one that failed once: %+v", c)
		}
		p = k.until(t, "never", "failed", func(p kubePod) bool { return p.Status.Phase == "Failed" })
		if c := p.container("c"); c.RestartCount != 0 || c.State.Terminated == nil || c.State.Terminated.ExitCode != 5 || c.State.Terminated.Message != "done\n" {
			t.Errorf("the one that failed: %+v", c)
		}
		k.remove(t, "always", "onfailure", "never")
	})
	t.Run("probes by exec, HTTP and TCP make ready and restart", func(t *testing.T) {
		k.apply(t, "probes", `
terminationGracePeriodSeconds: 1
containers:
- name: web
  image: IMAGE
  command: [httpd, -f, -p, "8080", -h, /etc]
  startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
  readinessProbe: {httpGet: {path: /hosts, port: 8080}, periodSeconds: 1}
- name: sick
  image: IMAGE
  command: [sh, -c, "touch /healthy; sleep 3; rm /healthy; sleep 100000"]
  livenessProbe: {exec: {command: [cat, /healthy]}, periodSeconds: 1, failureThreshold: 1}`)
		p := k.until(t, "probes", "restarted by its probe", func(p kubePod) bool { return p.container("sick").RestartCount >= 1 })
		if c := p.container("sick"); c.LastState.Terminated == nil || c.LastState.Terminated.ExitCode != 137 {
			t.Errorf("the one whose probe failed: %+v", c.LastState)
		}
		if c := k.until(t, "probes", "probed", func(p kubePod) bool { return p.container("web").Ready }).container("web"); c.RestartCount != 0 {
			t.Errorf("the server was restarted: %+v", c)
		}
		k.remove(t, "probes")
	})
	t.Run("hooks run after the start and before the stop", func(t *testing.T) {
		host := filepath.Join(k.dir, "hooks")
		if err := os.Mkdir(host, 0o777); err != nil {
			t.Fatal(err)
		}
		k.apply(t, "hooks", `
terminationGracePeriodSeconds: 10
containers:
- name: c
  image: IMAGE
  command: [sh, -c, "trap 'echo stopped >> /h/order; exit 0' TERM; while :; do sleep 0.1; done"]
  lifecycle: {postStart: {exec: {command: [sh, -c, "echo started >> /h/order"]}}, preStop: {exec: {command: [sh, -c, "echo stopping >> /h/order"]}}}
  volumeMounts: [{name: h, mountPath: /h}]
volumes:
- {name: h, hostPath: {path: `+host+`}}`)
		k.ready(t, "hooks")
		k.remove(t, "hooks")
		if got, err := os.ReadFile(filepath.Join(host, "order")); err != nil || string(got) != "started\nstopping\nstopped\n" {
			t.Errorf("the order is %q, %v", got, err)
		}
	})
	t.Run("a container killed for memory is OOMKilled and restarts", func(t *testing.T) {
		k.apply(t, "oom", `{terminationGracePeriodSeconds: 1, containers: [{name: c, image: IMAGE, command: [payload, eat, "200"], resources: {limits: {memory: 32Mi, cpu: 500m}}}]}`)
		p := k.until(t, "oom", "killed", func(p kubePod) bool {
			return p.container("c").LastState.Terminated != nil || p.container("c").State.Terminated != nil
		})
		ended := p.container("c").LastState.Terminated
		if ended == nil {
			ended = p.container("c").State.Terminated
		}
		if ended.ExitCode != 137 || ended.Reason != "OOMKilled" {
			t.Errorf("it ended as %+v", ended)
		}
		k.remove(t, "oom")
	})
}

// configuration: what a pod's spec says is what its processes see.
func (k *Kubelet) configuration(t *testing.T) {
	host := filepath.Join(k.dir, "host")
	if err := os.MkdirAll(filepath.Join(host, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "sub", "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	k.apply(t, "config", `
terminationGracePeriodSeconds: 1
hostname: named
hostAliases: [{ip: 192.0.2.7, hostnames: [alias]}]
dnsPolicy: None
dnsConfig: {nameservers: [192.0.2.9], searches: [search.example], options: [{name: ndots, value: "3"}]}
shareProcessNamespace: true
securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456, supplementalGroups: [4567], sysctls: [{name: net.ipv4.ip_local_port_range, value: "20000 30000"}]}
containers:
- name: c
  image: IMAGE
  command: [sleep, "100000"]
  env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
  resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
  securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}
  volumeMounts:
  - {name: disk, mountPath: /disk}
  - {name: memory, mountPath: /memory}
  - {name: host, mountPath: /host/file, subPath: sub/file, readOnly: true}
  - {name: info, mountPath: /info}
- {name: other, image: IMAGE, command: [sleep, "100001"]}
volumes:
- {name: disk, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
- {name: host, hostPath: {path: `+host+`}}
- {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}`)
	p := k.ready(t, "config")
	for what, c := range map[string]struct{ command, want string }{
		"its hostname":                    {"hostname", "named\n"},
		"a host alias":                    {"grep alias /etc/hosts", "192.0.2.7\talias\n"},
		"its name servers":                {"cat /etc/resolv.conf", "search search.example\nnameserver 192.0.2.9\noptions ndots:3\n"},
		"its user and groups":             {"id", "uid=1234 gid=2345 groups=2345,3456,4567\n"},
		"a sysctl":                        {"cat /proc/sys/net/ipv4/ip_local_port_range", "20000\t30000\n"},
		"the downward API's environment":  {"sh -c echo$IFS$NAME/$IP", "config-" + nodeName + "/" + p.Status.PodIP + "\n"},
		"the downward API's files":        {"cat /info/labels", `app="config"`},
		"a subpath":                       {"cat /host/file", "from the host\n"},
		"no capabilities":                 {"grep CapBnd /proc/self/status", "CapBnd:\t0000000000000000\n"},
		"no new privileges":               {"grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"},
		"a seccomp filter":                {"grep Seccomp: /proc/self/status", "Seccomp:\t2\n"},
		"processes of its other":          {"ps", "100001"},
		"a volume on disk, of its group":  {"stat -c %g /disk", "3456\n"},
		"a volume in memory, of its size": {"df -m /memory", " 16 "},
	} {
		t.Run("a container has "+what, func(t *testing.T) {
			if got := k.exec(t, "config", "c", strings.Fields(c.command)...); !strings.Contains(got, c.want) {
				t.Errorf("%s says %q, want %q", c.command, got, c.want)
			}
		})
	}
	t.Run("a container and its pod have their limits in their cgroups", func(t *testing.T) {
		id := strings.TrimPrefix(p.container("c").ContainerID, "cri-engine://")
		pids := harness.Processes(func(q harness.Process) bool {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", q.Pid))
			return err == nil && bytes.Contains(text, []byte(id)) && bytes.Contains(text, []byte("kubepods"))
		})
		if len(pids) == 0 {
			t.Fatal("no process of the container is below kubepods")
		}
		groups := cgroupsOf(t, pids[0])
		dir, file := groups["memory"], "memory.limit_in_bytes"
		if dir == "" {
			dir, file = groups[""], "memory.max"
		}
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || strings.TrimSpace(string(got)) != fmt.Sprint(64<<20) {
			t.Errorf("the container's limit is %q, %v", got, err)
		}
	})
	k.remove(t, "config")

	t.Run("pods on the host's network, and its ports", func(t *testing.T) {
		k.apply(t, "hostnet", `{terminationGracePeriodSeconds: 1, hostNetwork: true, hostPID: true, containers: [{name: c, image: IMAGE, command: [sleep, "100000"]}]}`)
		k.apply(t, "hostport", `{terminationGracePeriodSeconds: 1, containers: [{name: c, image: IMAGE, command: [httpd, -f, -p, "8080", -h, /etc], ports: [{containerPort: 8080, hostPort: 18080}]}]}`)
		k.ready(t, "hostnet")
		if got := k.exec(t, "hostnet", "c", "cat", "/proc/net/fib_trie"); !strings.Contains(got, kubeletAddress) {
			t.Errorf("its addresses are %q", got)
		}
		if got := k.exec(t, "hostnet", "c", "cat", "/proc/1/comm"); strings.TrimSpace(got) == "sleep" {
			t.Error("it has a PID namespace of its own")
		}
		k.ready(t, "hostport")
		eventually(t, 10*time.Second, "the port of the host is the pod's", func() bool {
			out, err := answer(http.Get("http://" + kubeletAddress + ":18080/hostname"))
			return err == nil && strings.HasPrefix(out, "hostport")
		})
		k.remove(t, "hostnet", "hostport")
	})
}

// endpoints: what the kubelet serves comes from the engine.
func (k *Kubelet) endpoints(t *testing.T) {
	k.apply(t, "figures", `{terminationGracePeriodSeconds: 1, containers: [{name: c, image: IMAGE, command: [sh, -c, "echo hello; while :; do :; done"], resources: {limits: {cpu: 100m}}}]}`)
	k.ready(t, "figures")
	t.Run("logs", func(t *testing.T) {
		if got := k.logs(t, "figures", "c", nil); got != "hello\n" {
			t.Errorf("got %q", got)
		}
		links, err := filepath.Glob("/var/log/containers/figures-*.log")
		if err != nil || len(links) != 1 {
			t.Fatalf("/var/log/containers has %v, %v", links, err)
		}
		if text, err := os.ReadFile(links[0]); err != nil || !strings.HasSuffix(string(text), " stdout F hello\n") {
			t.Errorf("the log there is %q, %v", text, err)
		}
	})
	t.Run("stats/summary has the pod and its container", func(t *testing.T) {
		type usage struct{ UsageNanoCores, UsageCoreNanoSeconds, WorkingSetBytes *uint64 }
		var summary struct {
			Pods []struct {
				PodRef  struct{ Name string }
				CPU     usage
				Memory  usage
				Network struct {
					Name    string
					RxBytes *uint64
				}
				Containers []struct {
					Name        string
					CPU, Memory usage
				}
			}
		}
		eventually(t, time.Minute, "figures of the pod", func() bool {
			text, err := k.get("/stats/summary")
			if err != nil || json.Unmarshal([]byte(text), &summary) != nil {
				return false
			}
			for _, p := range summary.Pods {
				if p.PodRef.Name == "figures-"+nodeName && len(p.Containers) == 1 {
					c := p.Containers[0]
					return c.CPU.UsageNanoCores != nil && *c.CPU.UsageNanoCores > 10e6 && *c.CPU.UsageNanoCores < 400e6 &&
						c.Memory.WorkingSetBytes != nil && *c.Memory.WorkingSetBytes > 0 && p.CPU.UsageCoreNanoSeconds != nil && p.Network.RxBytes != nil
				}
			}
			return false
		})
	})
	t.Run("metrics/resource and metrics/cadvisor name the container", func(t *testing.T) {
		for path, metric := range map[string]string{"/metrics/resource": "container_cpu_usage_seconds_total", "/metrics/cadvisor": "container_memory_working_set_bytes"} {
			eventually(t, time.Minute, path+" has "+metric, func() bool {
				text, _ := k.do(http.MethodGet, path, nil)
				for line := range strings.Lines(text) {
					if strings.HasPrefix(line, metric+"{") && strings.Contains(line, `pod="figures-`+nodeName+`"`) && strings.Contains(line, `container="c"`) {
						return true
					}
				}
				return false
			})
		}
	})
	k.remove(t, "figures")
}

// images: those that are missing are waited for.
func (k *Kubelet) images(t *testing.T) {
	t.Run("a pod waits for an image that is missing and runs when it has come", func(t *testing.T) {
		late := k.e.w.ref("e2e/late:1")
		k.apply(t, "late", `{terminationGracePeriodSeconds: 1, containers: [{name: c, image: `+late+`, command: [sleep, "100000"]}]}`)
		k.until(t, "late", "held back", func(p kubePod) bool {
			w := p.container("c").State.Waiting
			return w != nil && w.Reason == "ImagePullBackOff"
		})
		ctx, cancel := context.WithTimeout(context.Background(), slowly(time.Minute))
		defer cancel()
		base, err := harness.BusyboxLayer()
		if err != nil {
			t.Fatal(err)
		}
		image := harness.Image{Layers: []harness.Layer{base}, Config: ociv1.ImageConfig{Env: []string{"PATH=/bin"}}}
		if err := k.e.w.Registry.Push(ctx, "e2e/late", image.Pack(), "1"); err != nil {
			t.Fatal(err)
		}
		k.ready(t, "late")
		k.remove(t, "late")
		k.e.removeImage(t, late)
	})
}

// TestKubeletAndDisturbances: whatever dies, no container restarts that should not,
// none stays dead, and none that has completed runs again.
func TestKubeletAndDisturbances(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		const steady = 5
		e := w.engine(t)
		k := e.kubelet(t)
		host := filepath.Join(k.dir, "runs")
		if err := os.Mkdir(host, 0o777); err != nil {
			t.Fatal(err)
		}
		var names []string
		for i := range steady {
			name := fmt.Sprintf("steady-%d", i)
			names = append(names, name)
			k.apply(t, name, `{terminationGracePeriodSeconds: 1, containers: [{name: c, image: IMAGE, command: [sh, -c, "n=0; while :; do echo $n; n=$((n+1)); sleep 0.1; done"]}]}`)
		}
		once := func(name, policy, code string) {
			k.apply(t, name, `{restartPolicy: `+policy+`, containers: [{name: c, image: IMAGE, command: [sh, -c, "echo run >> /h/`+name+`; exit `+code+`"], volumeMounts: [{name: h, mountPath: /h}]}], volumes: [{name: h, hostPath: {path: `+host+`}}]}`)
			names = append(names, name)
		}
		once("done", "OnFailure", "0")
		once("failed", "Never", "7")
		for _, name := range names[:steady] {
			k.ready(t, name)
		}
		k.until(t, "done", "succeeded", func(p kubePod) bool { return p.Status.Phase == "Succeeded" })
		k.until(t, "failed", "failed", func(p kubePod) bool { return p.Status.Phase == "Failed" })
		ids := map[string]string{}
		for _, name := range names {
			ids[name] = k.pod(t, name).container("c").ContainerID
		}
		keeperPid := func() int { k, _ := e.monitorPids(t); return k }
		pumpPid := func() int { _, p := e.monitorPids(t); return p }
		for _, d := range []struct {
			what   string
			strike func()
		}{
			{"the engine is killed", func() { e.Kill(); e.restart(t) }},
			{"the engine is away for a while", func() { e.Kill(); time.Sleep(slowly(5 * time.Second)); e.restart(t) }},
			{"the pump is killed", func() { e.killAndWaitForNew(t, pumpPid(), pumpPid) }},
			{"the keeper is killed", func() { e.killAndWaitForNew(t, keeperPid(), keeperPid) }},
			{"the kubelet is killed", func() { k.restart(t) }},
			{"the kubelet and the engine are killed", func() { e.Kill(); _ = k.cmd.Process.Kill(); e.restart(t); k.restart(t) }},
		} {
			t.Run(d.what+", and every pod is what it was", func(t *testing.T) {
				d.strike()
				time.Sleep(slowly(8 * time.Second)) // more than a sync of the kubelet's
				for _, name := range names {
					p := k.until(t, name, "known again", func(p kubePod) bool {
						return p.condition("Ready") || p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed"
					})
					if c := p.container("c"); c.ContainerID != ids[name] || c.RestartCount != 0 {
						t.Errorf("%s was %s and is %+v", name, ids[name], c)
					}
				}
				for name, code := range map[string]int{"done": 0, "failed": 7} {
					if got, err := os.ReadFile(filepath.Join(host, name)); err != nil || string(got) != "run\n" {
						t.Errorf("%s ran as %q, %v", name, got, err)
					}
					if c := k.pod(t, name).container("c"); c.State.Terminated == nil || c.State.Terminated.ExitCode != code {
						t.Errorf("%s: %+v", name, c.State)
					}
				}
			})
		}
		for _, name := range names[:steady] {
			t.Run("the log of "+name+" has every line once", func(t *testing.T) {
				for i, line := range strings.Split(strings.TrimSpace(k.logs(t, name, "c", nil)), "\n") {
					if line != fmt.Sprint(i) {
						t.Fatalf("line %d is %q", i, line)
					}
				}
			})
		}
		k.remove(t, names...)
	})
}
