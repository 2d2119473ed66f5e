//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// nsOf is the namespace that the container's first process is in.
func (c *Container) nsOf(t testing.TB, kind string) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.pid(t), kind))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func hostNS(t testing.TB, kind string) string {
	t.Helper()
	ns, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

var sleeper = command("sleep", "100000")

func TestNamespaces(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		t.Run("containers of a pod share its network, IPC and UTS namespaces and nothing else", func(t *testing.T) {
			p := e.runPod(t)
			a, b := p.run(t, busyboxImage, sleeper), p.run(t, busyboxImage, sleeper)
			for kind, shared := range map[string]bool{"net": true, "ipc": true, "uts": true, "pid": false, "mnt": false} {
				if got := a.nsOf(t, kind) == b.nsOf(t, kind); got != shared {
					t.Errorf("%s namespace shared: %v", kind, got)
				}
				if a.nsOf(t, kind) == hostNS(t, kind) {
					t.Errorf("the %s namespace is the host's", kind)
				}
			}
			if a.nsOf(t, "user") != hostNS(t, "user") {
				t.Error("a user namespace nobody asked for")
			}
		})
		t.Run("two pods share no namespace", func(t *testing.T) {
			a, b := e.runPod(t).run(t, busyboxImage, sleeper), e.runPod(t).run(t, busyboxImage, sleeper)
			for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt"} {
				if a.nsOf(t, kind) == b.nsOf(t, kind) {
					t.Errorf("the %s namespace is shared", kind)
				}
			}
		})
		t.Run("a pod's PID namespace is shared by its containers and has an init that reaps", func(t *testing.T) {
			p := e.runPod(t, podPID)
			a := p.run(t, busyboxImage, sleeper)
			b := p.run(t, busyboxImage, shell("exec sleep 100001"))
			if a.nsOf(t, "pid") != b.nsOf(t, "pid") {
				t.Error("the PID namespaces differ")
			}
			if out := a.exec(t, "cat", "/proc/1/comm"); !strings.Contains(out, "pause") {
				t.Errorf("process 1 is %q", out)
			}
			if out := a.exec(t, "ps"); !strings.Contains(out, "sleep 100001") {
				t.Errorf("one container does not see the other's processes:\n%s", out)
			}
			// An orphan whose parent died goes to process 1 and must not stay a zombie.
			a.exec(t, "sh", "-c", "sh -c 'sleep 0.01 & exec true'; sleep 0.3; ! grep -l '^State:.Z' /proc/[0-9]*/status")
			if s := p.status(t); s.GetLinux().GetNamespaces().GetOptions().GetPid() != runtimeapi.NamespaceMode_POD {
				t.Errorf("status %v", s.GetLinux())
			}
		})
		t.Run("a request that says nothing of namespaces gets the proto's default, a shared PID namespace", func(t *testing.T) {
			p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux = nil })
			a := p.run(t, busyboxImage, sleeper, func(c *runtimeapi.ContainerConfig) { c.Linux = nil })
			if out := a.exec(t, "cat", "/proc/1/comm"); !strings.Contains(out, "pause") {
				t.Errorf("process 1 is %q", out)
			}
		})
		t.Run("when the shared PID namespace's init dies the pod is not ready", func(t *testing.T) {
			p := e.runPod(t, podPID)
			c := p.run(t, busyboxImage, sleeper)
			init := p.pausePid(t)
			kill(t, init)
			if s := c.wait(t); s.ExitCode != 137 {
				t.Errorf("the container ended with %d", s.ExitCode)
			}
			eventually(t, 5*time.Second, "the pod is not ready", func() bool {
				return p.status(t).State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
			})
		})
		t.Run("a container may target another's PID namespace", func(t *testing.T) {
			p := e.runPod(t)
			a := p.run(t, busyboxImage, sleeper)
			b := p.run(t, busyboxImage, sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, a.ID
			}))
			if a.nsOf(t, "pid") != b.nsOf(t, "pid") {
				t.Error("the PID namespaces differ")
			}
		})
		t.Run("host PID, IPC and network are the host's", func(t *testing.T) {
			p := e.runPod(t, namespaces(func(o *runtimeapi.NamespaceOption) {
				o.Pid, o.Ipc, o.Network = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
			}))
			c := p.run(t, busyboxImage, sleeper)
			for _, kind := range []string{"pid", "ipc", "net", "uts"} {
				if c.nsOf(t, kind) != hostNS(t, kind) {
					t.Errorf("the %s namespace is not the host's", kind)
				}
			}
			host, _ := os.Hostname()
			if out := c.exec(t, "hostname"); out != host+"\n" {
				t.Errorf("hostname %q, the host's is %q", out, host)
			}
		})
		t.Run("the hostname is in uname, in the environment and in /etc/hostname", func(t *testing.T) {
			p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a-name-of-its-own" })
			if got := p.output(t, busyboxImage, shell("hostname; echo $HOSTNAME; cat /etc/hostname")); got != strings.Repeat("a-name-of-its-own\n", 3) {
				t.Errorf("got %q", got)
			}
		})
		t.Run("containers of a pod share /dev/shm, which outlives each of them", func(t *testing.T) {
			p := e.runPod(t)
			p.output(t, busyboxImage, shell("echo shared > /dev/shm/x"))
			if got := p.output(t, busyboxImage, shell("cat /dev/shm/x; stat -f -c %T /dev/shm; df -k /dev/shm | tail -1 | awk '{print $2}'")); got != "shared\ntmpfs\n65536\n" {
				t.Errorf("got %q", got)
			}
			if got := e.runPod(t).output(t, busyboxImage, shell("ls /dev/shm")); got != "" {
				t.Errorf("another pod sees %q", got)
			}
		})
		t.Run("resolv.conf is what the DNS configuration says", func(t *testing.T) {
			p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) {
				c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"192.0.2.1", "2001:db8::1"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5", "edns0"}}
			})
			want := "search a.example b.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:5 edns0\n"
			if got := p.output(t, busyboxImage, shell("cat /etc/resolv.conf")); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
		t.Run("resolv.conf is the host's where the request gives none", func(t *testing.T) {
			host, err := os.ReadFile("/etc/resolv.conf")
			if err != nil {
				t.Skip("this machine has no resolv.conf")
			}
			if got := e.runPod(t).output(t, busyboxImage, shell("cat /etc/resolv.conf")); strings.TrimSpace(got) != strings.TrimSpace(string(host)) {
				t.Errorf("got %q, the host's is %q", got, host)
			}
		})
	})
}

func TestSysctls(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		sysctls := func(m map[string]string) podOption {
			return func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = m }
		}
		t.Run("namespaced ones are set in the pod alone", func(t *testing.T) {
			p := e.runPod(t, sysctls(map[string]string{"net.ipv4.ip_local_port_range": "40000 40999", "kernel.shm_rmid_forced": "1", "kernel.msgmax": "12345"}))
			got := p.output(t, busyboxImage, shell("cd /proc/sys; cat net/ipv4/ip_local_port_range kernel/shm_rmid_forced kernel/msgmax"))
			if got != "40000\t40999\n1\n12345\n" {
				t.Errorf("got %q", got)
			}
			host, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
			if err != nil || strings.Contains(string(host), "40999") {
				t.Errorf("the host has %q, %v", host, err)
			}
		})
		t.Run("a non-root server may listen on port 80 and ping works without NET_RAW", func(t *testing.T) {
			got := e.runPod(t).output(t, busyboxImage, shell("cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range"))
			if got != "0\n0\t2147483647\n" {
				t.Errorf("got %q", got)
			}
		})
		for name, c := range map[string]struct {
			sysctl  string
			options []podOption
		}{
			"one that is not namespaced is refused":                      {"kernel.panic", nil},
			"one with a path in its name is refused":                     {"net/../../kernel.panic", nil},
			"one that does not exist is refused":                         {"net.no.such.sysctl", nil},
			"one of the network is refused in a host-network pod":        {"net.ipv4.ip_forward", []podOption{hostNetwork}},
			"one of IPC is refused in a host-IPC pod":                    {"kernel.msgmax", []podOption{namespaces(func(o *runtimeapi.NamespaceOption) { o.Ipc = runtimeapi.NamespaceMode_NODE })}},
			"one whose value the kernel does not take fails the request": {"net.ipv4.ip_local_port_range", nil},
		} {
			t.Run(name, func(t *testing.T) {
				config := e.podConfig(t, append(c.options, sysctls(map[string]string{c.sysctl: "7 no"}))...)
				_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: config})
				wantCode(t, err, codes.InvalidArgument, c.sysctl)
				leaks(t, w, e, e.idle)
			})
		}
	})
}

// TestNamespaceModes goes through the modes that the others do not: those that a
// pod or a container can't have.
func TestNamespaceModes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		type option = func(*runtimeapi.NamespaceOption)
		network := func(m runtimeapi.NamespaceMode) option {
			return func(o *runtimeapi.NamespaceOption) { o.Network = m }
		}
		ipc := func(m runtimeapi.NamespaceMode) option { return func(o *runtimeapi.NamespaceOption) { o.Ipc = m } }
		pid := func(m runtimeapi.NamespaceMode) option { return func(o *runtimeapi.NamespaceOption) { o.Pid = m } }
		const (
			own    = runtimeapi.NamespaceMode_CONTAINER
			node   = runtimeapi.NamespaceMode_NODE
			target = runtimeapi.NamespaceMode_TARGET
			none   = runtimeapi.NamespaceMode(9)
		)
		for name, c := range map[string]struct {
			option option
			text   string
		}{
			"a network of each container's own": {network(own), "network"}, "another's network": {network(target), "network"}, "a network mode that does not exist": {network(none), "network"},
			"IPC of each container's own": {ipc(own), "ipc"}, "another's IPC": {ipc(target), "ipc"}, "an IPC mode that does not exist": {ipc(none), "ipc"},
			"another's processes": {pid(target), "pid"}, "a PID mode that does not exist": {pid(none), "pid"},
		} {
			t.Run("a pod with "+name+" is refused", func(t *testing.T) {
				_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t, namespaces(c.option))})
				wantCode(t, err, codes.InvalidArgument, "namespace_options."+c.text)
				leaks(t, w, e, e.idle)
			})
		}
		p := e.runPod(t)
		with := func(options ...option) containerOption {
			return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				for _, o := range options {
					o(s.NamespaceOptions)
				}
			})
		}
		targets := func(id string) option {
			return func(o *runtimeapi.NamespaceOption) { o.Pid, o.TargetId = target, id }
		}
		for name, c := range map[string]struct {
			option option
			text   string
		}{
			"the host's network": {network(node), "network"}, "a network of its own": {network(own), "network"},
			"the host's IPC": {ipc(node), "ipc"}, "IPC of its own": {ipc(own), "ipc"},
			"the pod's processes where those are each container's own": {pid(runtimeapi.NamespaceMode_POD), "pid POD"},
			"another's processes, and does not say whose":              {targets(""), "pid TARGET: target_id"},
			"the processes of one that does not exist":                 {targets(strings.Repeat("0", 64)), "pid TARGET: target_id"},
			"a PID mode that does not exist":                           {pid(none), "pid"},
		} {
			t.Run("a container that asks for "+name+" is refused", func(t *testing.T) {
				p.refused(t, codes.InvalidArgument, []string{"namespace_options." + c.text}, with(c.option))
			})
		}
		t.Run("the processes of a container that does not run, or of another pod's, are refused", func(t *testing.T) {
			created := p.create(t, busyboxImage, sleeper)
			p.refused(t, codes.FailedPrecondition, []string{created.ID}, with(targets(created.ID)))
			created.remove(t)
			q := e.runPod(t)
			foreign := q.run(t, busyboxImage, sleeper)
			p.refused(t, codes.InvalidArgument, []string{foreign.ID}, with(targets(foreign.ID)))
			q.remove(t)
		})
		t.Run("a container of its own processes may be in a pod that shares them", func(t *testing.T) {
			q := e.runPod(t, podPID)
			c := q.run(t, busyboxImage, sleeper, with(pid(own)))
			if got := strings.TrimSpace(c.exec(t, "cat", "/proc/1/comm")); got != "sleep" {
				t.Errorf("process 1 is %q", got)
			}
			q.remove(t)
		})
		t.Run("a debug container sees its target's processes, and leaves it running when it goes", func(t *testing.T) {
			a := p.run(t, busyboxImage, command("sleep", "77777"))
			b := p.run(t, busyboxImage, sleeper, with(targets(a.ID)))
			if out := b.exec(t, "ps"); !strings.Contains(out, "sleep 77777") {
				t.Errorf("processes:\n%s", out)
			}
			if a.nsOf(t, "mnt") == b.nsOf(t, "mnt") {
				t.Error("they share the mount namespace, too")
			}
			b.remove(t)
			if s := a.status(t); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the target is %v after its debug container went", s.State)
			}
			a.remove(t)
		})
		p.remove(t)
	})
}
