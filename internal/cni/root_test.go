package cni

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pluginDirs says where the reference plugins are: where `make build` puts them.
func pluginDir(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("CRI_ENGINE_CNI_BIN")
	if dir == "" {
		dir = "../../bin/cni"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bridge")); err != nil {
		tb.Skip("the CNI plugins are not built: make build")
	}
	return dir
}

// onMachine runs the test a second time as root of a machine of its own: new
// network and mount namespaces, so that bridges and firewall rules are nobody
// else's and go with it. It returns true in there.
func onMachine(tb testing.TB) bool {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root")
	}
	const marker = "CRI_ENGINE_TEST_MACHINE"
	if os.Getenv(marker) != "" {
		return true
	}
	args := []string{"-test.run=^" + tb.Name() + "$", "-test.v"}
	if b, ok := tb.(*testing.B); ok {
		args = []string{"-test.run=^$", "-test.bench=^" + b.Name() + "$", "-test.benchtime=1x"}
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	tb.Logf("%s", out)
	if err != nil {
		tb.Fatalf("on a machine of its own: %v", err)
	}
	return false
}

// sh runs a command of the host's and returns what it wrote.
func sh(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// machine prepares the namespaces that onMachine made.
func machine(tb testing.TB) {
	tb.Helper()
	for _, fs := range []struct{ kind, dir string }{{"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(fs.kind, fs.dir, fs.kind, 0, ""); err != nil {
			tb.Fatal(err)
		}
	}
	if err := linkUp("lo"); err != nil {
		tb.Fatal(err)
	}
}

func conflist(tb testing.TB) []byte {
	tb.Helper()
	data, err := os.ReadFile("../../conf/cni/10-cri-engine.conflist")
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// realNetworks are the default network with real plugins in a directory of the test's.
func realNetworks(tb testing.TB, facts func(hostFacts) hostFacts) *Networks {
	tb.Helper()
	dir := tb.TempDir()
	n, err := prepare(Options{
		ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{pluginDir(tb)}, CacheDir: filepath.Join(dir, "cache"),
		DataDir: filepath.Join(dir, "data"), Default: conflist(tb), Timeout: 30 * time.Second,
	})
	if err != nil {
		tb.Fatal(err)
	}
	if facts != nil {
		n.facts = func(ctx context.Context) hostFacts { return facts(factsOfHost(ctx)) }
	}
	n.start()
	return n
}

func newPod(tb testing.TB, i int) Pod {
	tb.Helper()
	pod := Pod{
		ID: fmt.Sprintf("%064x", i+1), Name: fmt.Sprint("pod-", i), Namespace: "default", UID: fmt.Sprint("uid-", i),
		NetNS: filepath.Join(tb.TempDir(), fmt.Sprint("netns-", i)),
	}
	if err := NewNamespaces(NamespaceSpec{Net: pod.NetNS}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := Unpin(pod.NetNS); err != nil {
			tb.Error(err)
		}
	})
	return pod
}

func mustIntent(tb testing.TB, n *Networks, pod Pod) Pod {
	tb.Helper()
	pod, err := n.Intent(pod)
	if err != nil {
		tb.Fatal(err)
	}
	return pod
}

func mustAdd(tb testing.TB, n *Networks, pod Pod) Result {
	tb.Helper()
	result, err := n.Add(tb.Context(), pod)
	if err != nil {
		tb.Fatal(err)
	}
	return result
}

func mustDel(tb testing.TB, n *Networks, pod Pod) {
	tb.Helper()
	if err := n.Del(tb.Context(), pod); err != nil {
		tb.Fatal(err)
	}
}

// serve answers each connection in the pod with its remote address, until stopped.
func serve(tb testing.TB, pod Pod, addr string) (stop func()) {
	tb.Helper()
	var listener net.Listener
	err := InNetNS(pod.NetNS, func() (err error) {
		listener, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
		}
	}()
	return func() { listener.Close() }
}

// ask returns whom the server at addr takes us for.
func ask(tb testing.TB, addr string) string {
	tb.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	data, err := io.ReadAll(c)
	if err != nil {
		tb.Fatal(err)
	}
	host, _, err := net.SplitHostPort(string(data))
	if err != nil {
		tb.Fatal(err)
	}
	return host
}

func TestDefaultNetworkServesPods(t *testing.T) {
	pluginDir(t)
	if !onMachine(t) {
		return
	}
	machine(t)
	n := realNetworks(t, nil)
	if err := n.Ready(); err != nil {
		t.Fatal(err)
	}
	t.Log(n.Status())

	a := mustIntent(t, n, newPod(t, 1))
	ra := mustAdd(t, n, a)
	if len(ra.IPs) != 2 || !ra.IPs[0].Is4() || !ra.IPs[1].Is6() {
		t.Fatalf("got addresses %v, want an IPv4 and an IPv6 one", ra.IPs)
	}
	if !slices.Equal(ra.Interfaces, []string{"eth0"}) {
		t.Errorf("got interfaces %v", ra.Interfaces)
	}

	b := newPod(t, 2)
	b.Ports = []PortMapping{{HostPort: 18080, ContainerPort: 80, Protocol: "TCP"}, {HostPort: 0, ContainerPort: 81}}
	b.Annotations = map[string]string{IngressBandwidthAnnotation: "100M", EgressBandwidthAnnotation: "50M"}
	b = mustIntent(t, n, b)
	rb := mustAdd(t, n, b)
	if rb.IPs[0] == ra.IPs[0] {
		t.Fatalf("two pods have the address %v", rb.IPs[0])
	}
	stop := serve(t, b, ":80")

	t.Run("CHECK finds both pods well", func(t *testing.T) {
		for _, pod := range []Pod{a, b} {
			if err := n.Check(t.Context(), pod); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("bandwidth limits are set on the pod's interface", func(t *testing.T) {
		qdiscs := sh(t, "tc", "qdisc", "show")
		if !strings.Contains(qdiscs, "tbf") || !strings.Contains(qdiscs, "rate 100Mbit") || !strings.Contains(qdiscs, "rate 50Mbit") {
			t.Errorf("got %s", qdiscs)
		}
	})
	t.Run("a pod reaches another by IPv4 and IPv6 under its own address", func(t *testing.T) {
		for i, ip := range rb.IPs {
			var got string
			err := InNetNS(a.NetNS, func() error { got = ask(t, netip.AddrPortFrom(ip, 80).String()); return nil })
			if err != nil || got != ra.IPs[i].String() {
				t.Errorf("got %q, %v", got, err)
			}
		}
	})
	t.Run("the host's port leads into the pod, from the host by any address and from the pod itself", func(t *testing.T) {
		ask(t, "127.0.0.1:18080")
		gateway := netip.MustParseAddr("10.213.96.1")
		ask(t, netip.AddrPortFrom(gateway, 18080).String())
		for _, pod := range []Pod{a, b} {
			if err := InNetNS(pod.NetNS, func() error { ask(t, netip.AddrPortFrom(gateway, 18080).String()); return nil }); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("pods reach other machines under the host's address", func(t *testing.T) {
		sh(t, "ip", "netns", "add", "cri-engine-outside")
		defer sh(t, "ip", "netns", "del", "cri-engine-outside")
		sh(t, "ip", "link", "add", "out0", "type", "veth", "peer", "name", "in0", "netns", "cri-engine-outside")
		sh(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "out0")
		sh(t, "ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "out0", "nodad")
		sh(t, "ip", "link", "set", "out0", "up")
		sh(t, "ip", "-n", "cri-engine-outside", "addr", "add", "192.0.2.2/24", "dev", "in0")
		sh(t, "ip", "-n", "cri-engine-outside", "-6", "addr", "add", "2001:db8::2/64", "dev", "in0", "nodad")
		sh(t, "ip", "-n", "cri-engine-outside", "link", "set", "in0", "up")
		defer serve(t, Pod{NetNS: "/run/netns/cri-engine-outside"}, ":80")()
		for addr, host := range map[string]string{"192.0.2.2:80": "192.0.2.1", "[2001:db8::2]:80": "2001:db8::1"} {
			var got string
			err := InNetNS(a.NetNS, func() error { got = ask(t, addr); return nil })
			if err != nil || got != host {
				t.Errorf("%s sees %q, want %s (%v)", addr, got, host, err)
			}
		}
	})
	t.Run("closing with pods attached leaves their network", func(t *testing.T) {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		ask(t, netip.AddrPortFrom(rb.IPs[0], 80).String())
	})

	mustDel(t, n, a)
	t.Run("DEL without the namespace frees addresses, rules and devices", func(t *testing.T) {
		stop() // a socket would keep the namespace and its devices alive
		if err := Unpin(b.NetNS); err != nil {
			t.Fatal(err)
		}
		mustDel(t, n, b)
		mustDel(t, n, b)
		if got := n.state().builtin.allocated(); len(got) > 0 {
			t.Errorf("still allocated: %v", got)
		}
		if rules := sh(t, "nft", "list", "ruleset"); strings.Contains(rules, b.ID) || strings.Contains(rules, "dport") {
			t.Errorf("rules are left: %s", rules)
		}
	})
	t.Run("the last Close takes bridge, rule and files from the host", func(t *testing.T) {
		waitFor(t, func() bool { return !n.state().builtin.inUse() })
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if links := sh(t, "ip", "-o", "link"); strings.Contains(links, "cri-engine0") || strings.Contains(links, "bwp") {
			t.Errorf("left: %s", links)
		}
		if rules := sh(t, "nft", "list", "ruleset"); strings.Contains(rules, masqueradeTable) {
			t.Errorf("left: %s", rules)
		}
		if _, err := os.Stat(n.opts.DataDir); !os.IsNotExist(err) {
			t.Errorf("left: %s: %v", n.opts.DataDir, err)
		}
		t.Logf("what the plugins leave:\n%s", sh(t, "nft", "list", "ruleset"))
	})
}

func waitFor(tb testing.TB, cond func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatal("it did not happen within 10 s")
		}
	}
}

// BenchmarkDefaultNetwork times what a pod's start and stop wait for.
func BenchmarkDefaultNetwork(b *testing.B) {
	pluginDir(b)
	if !onMachine(b) {
		return
	}
	machine(b)
	v4 := func(f hostFacts) hostFacts { f.NoIPv6 = "as the case wants"; return f }
	cases := []struct {
		name  string
		facts func(hostFacts) hostFacts
		ports []PortMapping
		whole bool // every plugin of the list, the bridge plugin masquerades
	}{
		{name: "dual-stack"},
		{name: "IPv4"},
		{name: "dual-stack-port", ports: []PortMapping{{HostPort: 18080, ContainerPort: 80}}},
		{name: "dual-stack-as-written", whole: true},
		{name: "IPv4-as-written", whole: true},
	}
	for _, c := range cases {
		if strings.HasPrefix(c.name, "IPv4") {
			c.facts = v4
		}
		n := realNetworks(b, c.facts)
		pod := newPod(b, 1)
		pod.Ports = c.ports
		pod = mustIntent(b, n, pod)
		if c.whole {
			pod.Default, pod.Conf = false, asWritten(b, c.facts != nil, n.opts.DataDir)
		}
		var add, del, addCPU, delCPU []time.Duration
		const rounds = 30
		for range rounds {
			start, cpu := time.Now(), pluginCPU(b)
			mustAdd(b, n, pod)
			added, addedCPU := time.Now(), pluginCPU(b)
			mustDel(b, n, pod)
			add, addCPU = append(add, added.Sub(start)), append(addCPU, addedCPU-cpu)
			del, delCPU = append(del, time.Since(added)), append(delCPU, pluginCPU(b)-addedCPU)
		}
		fmt.Printf("%-24s ADD %5.1f ms (CPU %5.1f)  DEL %5.1f ms (CPU %5.1f)\n", c.name, ms(median(add)), ms(median(addCPU)), ms(median(del)), ms(median(delCPU)))
		waitFor(b, func() bool { return !n.state().builtin.inUse() })
		if err := n.Close(); err != nil {
			b.Fatal(err)
		}
	}
	var total time.Duration
	const rounds = 50
	dir := b.TempDir()
	for i := range rounds {
		path := filepath.Join(dir, strconv.Itoa(i))
		start := time.Now()
		err := NewNamespaces(NamespaceSpec{Net: path + "n", IPC: path + "i", UTS: path + "u", Hostname: "bench",
			Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}})
		total += time.Since(start)
		if err != nil {
			b.Fatal(err)
		}
		for _, kind := range []string{"n", "i", "u"} {
			if err := Unpin(path + kind); err != nil {
				b.Fatal(err)
			}
		}
	}
	fmt.Printf("%-24s %5.2f ms\n", "NewNamespaces", ms(total/rounds))
}

// pluginCPU is the CPU time of all children so far, which a busy machine does not stretch.
func pluginCPU(tb testing.TB) time.Duration {
	tb.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &usage); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func asWritten(tb testing.TB, v4 bool, dataDir string) []byte {
	tb.Helper()
	facts := hostFacts{Backend: backendIPTables}
	if v4 {
		facts.NoIPv6 = "as the case wants"
	}
	d, err := fitDefault(conflist(tb), dataDir, facts)
	if err != nil {
		tb.Fatal(err)
	}
	return []byte(strings.ReplaceAll(string(d.list.Bytes), `"iptables"`, `"nftables"`))
}
