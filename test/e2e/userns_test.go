//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

// The user namespaces of these tests.
const (
	usernsHost = 200000
	usernsSize = 65536
)

func idMapping(host, size uint32) []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: host, Length: size}}
}

func ownUsers() *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Uids: idMapping(usernsHost, usernsSize), Gids: idMapping(usernsHost, usernsSize)}
}

// userNS gives a pod a user namespace.
var userNS = namespaces(func(o *runtimeapi.NamespaceOption) { o.UsernsOptions = ownUsers() })

// mapped is a mount whose files are to the pod as they are to the host.
func mapped(m *runtimeapi.Mount) *runtimeapi.Mount {
	m.UidMappings, m.GidMappings = idMapping(usernsHost, usernsSize), idMapping(usernsHost, usernsSize)
	return m
}

// owner is the user and group of a file as the host sees them.
func owner(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// ownerOfNS is the user namespace that owns one of a process's namespaces.
func ownerOfNS(t testing.TB, pid int, kind string) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const nsGetUserns = 0xb701 // ioctl_ns(2), NS_GET_USERNS
	fd, err := unix.IoctlRetInt(int(f.Fd()), nsGetUserns)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// needUserNS skips what this machine's OCI runtime can't do. That it is refused
// then is TestUserNamespacesThatAreRefused's.
func needUserNS(t *testing.T, e *Engine, runtime string) {
	t.Helper()
	if !e.features(t).UserNamespaces {
		t.Skipf("%s, or this kernel, cannot give pods user namespaces", runtime)
	}
}

func TestUserNamespaces(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		needUserNS(t, e, runtime)
		tree := w.treeImage(t)
		for _, image := range []string{tree, volumeImage, userImage} {
			id := e.pull(t, image)
			t.Cleanup(func() { e.removeImage(t, id) })
		}
		p := e.runPod(t, userNS)
		c := p.run(t, busyboxImage, sleeper)
		t.Run("root of a pod is another user on the host, and the pod's namespaces are owned by its user namespace", func(t *testing.T) {
			want := fmt.Sprintf("%10d %10d %10d\n", 0, usernsHost, usernsSize)
			if got := c.exec(t, "cat", "/proc/self/uid_map", "/proc/self/gid_map"); got != want+want {
				t.Errorf("maps %q", got)
			}
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid(t)))
			if err != nil || !strings.Contains(string(status), fmt.Sprintf("Uid:\t%d", usernsHost)) {
				t.Errorf("on the host: %s, %v", status, err)
			}
			own := c.nsOf(t, "user")
			if own == hostNS(t, "user") {
				t.Error("the user namespace is the host's")
			}
			for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt"} {
				if got := ownerOfNS(t, c.pid(t), kind); got != own {
					t.Errorf("the %s namespace is owned by %s, not %s", kind, got, own)
				}
			}
			other := p.run(t, busyboxImage, sleeper)
			defer other.remove(t)
			if other.nsOf(t, "user") != own {
				t.Error("another container of the pod has another user namespace")
			}
		})
		t.Run("the status of pod and container has the mappings", func(t *testing.T) {
			got := p.status(t).GetLinux().GetNamespaces().GetOptions().GetUsernsOptions()
			if len(got.GetUids()) != 1 || got.GetUids()[0].GetHostId() != usernsHost || got.GetGids()[0].GetLength() != usernsSize {
				t.Errorf("status %v", got)
			}
			if u := c.status(t).GetUser().GetLinux(); u.GetUid() != 0 {
				t.Errorf("user %v", u)
			}
		})
		t.Run("files of the image have the owners that the image gives them, and what root writes is root's", func(t *testing.T) {
			got := c.exec(t, "sh", "-c", "stat -c %u:%g /bin/busybox /home/app; touch /new; stat -c %u:%g /new; su app -c 'touch /home/app/mine && stat -c %u:%g /home/app/mine'")
			if got != "0:0\n1000:1000\n0:0\n1000:1000\n" {
				t.Errorf("got %q", got)
			}
			if got := owner(t, fmt.Sprintf("/proc/%d/root/new", c.pid(t))); got != fmt.Sprintf("%d:%d", usernsHost, usernsHost) {
				t.Errorf("to the host the new file is %s's", got)
			}
		})
		t.Run("/etc/resolv.conf, hosts and hostname are root's and can be read, /dev/shm is root's and shared", func(t *testing.T) {
			if got := c.exec(t, "sh", "-c", "cd /etc && cat resolv.conf hosts hostname >/dev/null && stat -c %u:%g resolv.conf hosts hostname /dev/shm; echo shared > /dev/shm/x; stat -c %u /dev/shm/x"); got != strings.Repeat("0:0\n", 4)+"0\n" {
				t.Errorf("got %q", got)
			}
			if got := p.output(t, busyboxImage, shell("cat /dev/shm/x")); got != "shared\n" {
				t.Errorf("another container reads %q", got)
			}
		})
		t.Run("a command and the container's first process can open their streams by name", func(t *testing.T) {
			if got := c.exec(t, "sh", "-c", "echo exec > /dev/stdout"); got != "exec\n" {
				t.Errorf("exec: %q", got)
			}
			if got := p.output(t, busyboxImage, shell("echo first > /dev/stdout; echo err > /dev/stderr")); got != "first\n" {
				t.Errorf("the container: %q", got)
			}
			if got := p.output(t, userImage, shell("id -u; echo app > /dev/stdout")); got != "1000\napp\n" {
				t.Errorf("a user: %q", got)
			}
		})
		t.Run("it has a network like any other pod, and rules over its own", func(t *testing.T) {
			if p.ip(t) == "" {
				t.Error("no address")
			}
			q := e.runPod(t)
			q.run(t, busyboxImage, shell("while true; do echo hello | nc -l -p 80; done"))
			eventuallyOutput(t, c, "hello", "nc", q.ip(t), "80")
			q.remove(t)
			got := p.output(t, busyboxImage, shell("ip addr add 192.0.2.7/32 dev lo && ip addr show lo | grep -o 192.0.2.7; mount | grep -c ' /sys type sysfs'"),
				security(func(s *runtimeapi.LinuxContainerSecurityContext) {
					s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
				}))
			if got != "192.0.2.7\n1\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("an image volume has the image's owners", func(t *testing.T) {
			m := mapped(e.imageMount(tree, "/v", ""))
			if got := p.output(t, busyboxImage, shell("stat -c %u:%g /v/models/weights /v/owned/file; cat /v/owned/file; touch /v/x 2>/dev/null || echo ro"), mounting(m)); got != "0:0\n1000:1000\nro\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a volume that the image declares is root's, also where the root filesystem is read-only", func(t *testing.T) {
			if got := p.output(t, volumeImage, shell("stat -c %u:%g /data; cat /data/seed; echo x > /data/new && cat /data/new; touch /y 2>/dev/null || echo ro"), readonlyRoot); got != "0:0\nseed\nx\nro\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a user that the namespace does not have is refused", func(t *testing.T) {
			p.refused(t, codes.InvalidArgument, []string{"70000"}, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.RunAsUser = &runtimeapi.Int64Value{Value: 70000}
			}))
			p.refused(t, codes.InvalidArgument, []string{"65536"}, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.SupplementalGroups = []int64{65536}
			}))
		})
		t.Run("it outlives the daemon, and containers can be made in it after that", func(t *testing.T) {
			own := c.nsOf(t, "user")
			e.killed(t)
			if p.status(t).State != runtimeapi.PodSandboxState_SANDBOX_READY {
				t.Fatal("the pod is not ready")
			}
			late := p.run(t, busyboxImage, sleeper)
			defer late.remove(t)
			if late.nsOf(t, "user") != own {
				t.Error("the user namespaces differ")
			}
		})
		p.remove(t)
	})
}

// eventuallyOutput repeats a command in the container until it prints the text.
func eventuallyOutput(t *testing.T, c *Container, text string, argv ...string) {
	t.Helper()
	for range 20 {
		resp, err := c.p.e.rt.ExecSync(call(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: argv, Timeout: 5})
		if err == nil && strings.Contains(string(resp.Stdout), text) {
			return
		}
	}
	t.Errorf("%q does not print %q", argv, text)
}

func TestVolumesInUserNamespaces(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		needUserNS(t, e, runtime)
		p := e.runPod(t, userNS)
		host := filepath.Join(w.Dir, "host")
		if err := os.Mkdir(host, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(host) })
		for name, uid := range map[string]int{"roots": 0, "apps": 1000} {
			file := filepath.Join(host, name)
			if err := os.WriteFile(file, []byte(name+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(file, uid, uid); err != nil {
				t.Fatal(err)
			}
		}
		const script = "stat -c %u:%g /m/roots /m/apps; cat /m/apps 2>/dev/null; touch /m/written 2>/dev/null || echo refused"
		t.Run("with mappings a volume's files are to the pod as they are to the host", func(t *testing.T) {
			if got := p.output(t, busyboxImage, shell(script), mounting(mapped(&runtimeapi.Mount{HostPath: host, ContainerPath: "/m"}))); got != "0:0\n1000:1000\napps\n" {
				t.Errorf("got %q", got)
			}
			if got := owner(t, filepath.Join(host, "written")); got != "0:0" {
				t.Errorf("what it wrote is %s's", got)
			}
		})
		t.Run("without mappings they are nobody's", func(t *testing.T) {
			if got := p.output(t, busyboxImage, shell(script), mounting(&runtimeapi.Mount{HostPath: host, ContainerPath: "/m"})); got != "65534:65534\n65534:65534\nrefused\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a file, a read-only and a recursively read-only mount can be mapped, too", func(t *testing.T) {
			got := p.output(t, busyboxImage, shell("stat -c %u:%g /f /r/apps /rr/apps; touch /r/x 2>/dev/null || echo ro; touch /rr/x 2>/dev/null || echo ro"), mounting(
				mapped(&runtimeapi.Mount{HostPath: filepath.Join(host, "apps"), ContainerPath: "/f"}),
				mapped(&runtimeapi.Mount{HostPath: host, ContainerPath: "/r", Readonly: true}),
				mapped(&runtimeapi.Mount{HostPath: host, ContainerPath: "/rr", Readonly: true, RecursiveReadOnly: true})))
			if got != strings.Repeat("1000:1000\n", 3)+"ro\nro\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("the status has the mappings as they were asked for", func(t *testing.T) {
			m := mapped(&runtimeapi.Mount{HostPath: host, ContainerPath: "/m"})
			c := p.create(t, busyboxImage, sleeper, mounting(m))
			wantMounts(t, c, m)
			c.remove(t)
		})
		t.Run("a filesystem that can't be mapped is refused by its name", func(t *testing.T) {
			p.refused(t, codes.Unimplemented, []string{"config.mounts[0].uidMappings", "proc"}, mounting(mapped(&runtimeapi.Mount{HostPath: "/proc/sys", ContainerPath: "/m"})))
		})
		for name, change := range map[string]func(*runtimeapi.Mount){
			"that are not the pod's":  func(m *runtimeapi.Mount) { m.UidMappings = idMapping(usernsHost+1, usernsSize) },
			"of users alone":          func(m *runtimeapi.Mount) { m.GidMappings = nil },
			"of more than one range":  func(m *runtimeapi.Mount) { m.UidMappings = append(m.UidMappings, m.UidMappings...) },
			"that map nothing at all": func(m *runtimeapi.Mount) { m.UidMappings[0].Length = 0 },
		} {
			t.Run("mappings "+name+" are refused", func(t *testing.T) {
				m := mapped(&runtimeapi.Mount{HostPath: host, ContainerPath: "/m"})
				change(m)
				p.refused(t, codes.InvalidArgument, []string{"config.mounts[0]."}, mounting(m))
			})
		}
		t.Run("mappings in a pod without a user namespace are refused", func(t *testing.T) {
			q := e.runPod(t)
			q.refused(t, codes.InvalidArgument, []string{"config.mounts[0].uidMappings"}, mounting(mapped(&runtimeapi.Mount{HostPath: host, ContainerPath: "/m"})))
			q.remove(t)
		})
		p.remove(t)
	})
}

func TestUserNamespacesWithOtherModes(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		needUserNS(t, e, runtime)
		t.Run("a shared PID namespace is the pod's, and its init has no rights on the host", func(t *testing.T) {
			p := e.runPod(t, userNS, podPID)
			c := p.run(t, busyboxImage, sleeper)
			if got := c.exec(t, "cat", "/proc/1/comm"); !strings.Contains(got, "pause") {
				t.Errorf("process 1 is %q", got)
			}
			if got := ownerOfNS(t, c.pid(t), "pid"); got != c.nsOf(t, "user") {
				t.Errorf("the PID namespace is owned by %s", got)
			}
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pausePid(t)))
			if want := fmt.Sprintf("Uid:\t%d\t", usernsHost+65535); err != nil || !strings.Contains(string(status), want) {
				t.Errorf("the init is %s, %v", status, err)
			}
			p.remove(t)
		})
		t.Run("a container may target another's PID namespace", func(t *testing.T) {
			p := e.runPod(t, userNS)
			a := p.run(t, busyboxImage, sleeper)
			b := p.run(t, busyboxImage, sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, a.ID
			}))
			if a.nsOf(t, "pid") != b.nsOf(t, "pid") {
				t.Error("the PID namespaces differ")
			}
			p.remove(t)
		})
		t.Run("sysctls of network and IPC are set in it", func(t *testing.T) {
			p := e.runPod(t, userNS, func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "40000 40999", "kernel.msgmax": "12345", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "17"}
			})
			got := p.output(t, busyboxImage, shell("cd /proc/sys; cat net/ipv4/ip_local_port_range kernel/msgmax kernel/shm_rmid_forced fs/mqueue/msg_max net/ipv4/ip_unprivileged_port_start; hostname"))
			if got != "40000\t40999\n12345\n1\n17\n0\n"+p.Config.Hostname+"\n" {
				t.Errorf("got %q", got)
			}
			p.remove(t)
		})
		t.Run("a pod on the host's network may have a user namespace, and says that it can", func(t *testing.T) {
			s, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{})
			if err != nil || !s.GetFeatures().GetUserNamespacesHostNetwork() {
				t.Errorf("features %v, %v", s.GetFeatures(), err)
			}
			p := e.runPod(t, userNS, hostNetwork)
			c := p.run(t, busyboxImage, sleeper)
			if c.nsOf(t, "net") != hostNS(t, "net") || c.nsOf(t, "user") == hostNS(t, "user") {
				t.Error("wrong namespaces")
			}
			if got := c.exec(t, "sh", "-c", "ls /sys/class/net | grep -c '^lo$'; touch /sys/class/x 2>/dev/null || echo ro; ls /sys/fs/cgroup >/dev/null && echo cgroups"); got != "1\nro\ncgroups\n" {
				t.Errorf("got %q", got)
			}
			p.remove(t)
		})
		t.Run("a privileged container has all capabilities over the pod's namespaces and none over the host", func(t *testing.T) {
			privileged := func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }
			p := e.runPod(t, userNS, privileged)
			c := p.run(t, busyboxImage, sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
			if got := c.exec(t, "sh", "-c", "mount -t tmpfs none /tmp && echo mounted; ip link add d0 type dummy && ip link del d0 && echo net; echo 1 > /proc/sys/kernel/panic 2>/dev/null || echo refused; cat /proc/1/root/x 2>/dev/null; mknod /d b 254 0 2>/dev/null || echo refused"); !strings.HasPrefix(got, "mounted\n") || strings.Count(got, "refused\n") != 2 {
				t.Errorf("got %q", got)
			}
			p.remove(t)
		})
		t.Run("the mode NODE is the host's user namespace", func(t *testing.T) {
			p := e.runPod(t, namespaces(func(o *runtimeapi.NamespaceOption) {
				o.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
			}))
			c := p.run(t, busyboxImage, sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
			}))
			if c.nsOf(t, "user") != hostNS(t, "user") {
				t.Error("the user namespace is not the host's")
			}
			p.remove(t)
		})
		t.Run("a range that has no room for the usual ids works as far as it goes", func(t *testing.T) {
			p := e.runPod(t, podPID, namespaces(func(o *runtimeapi.NamespaceOption) {
				o.UsernsOptions = &runtimeapi.UserNamespace{Uids: idMapping(usernsHost, 2), Gids: idMapping(usernsHost, 3)}
			}))
			if got := p.output(t, busyboxImage, shell("id -u; test -c /dev/ptmx && echo pty")); got != "0\npty\n" {
				t.Errorf("got %q", got)
			}
			p.remove(t)
		})
		t.Run("containers have the mappings of their pod or are refused", func(t *testing.T) {
			p := e.runPod(t, userNS)
			with := func(u *runtimeapi.UserNamespace) containerOption {
				return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NamespaceOptions.UsernsOptions = u })
			}
			c := p.run(t, busyboxImage, sleeper, with(ownUsers()))
			c.remove(t)
			other := ownUsers()
			other.Uids[0].HostId++
			for name, u := range map[string]*runtimeapi.UserNamespace{"others": other, "the host's": {Mode: runtimeapi.NamespaceMode_NODE}} {
				t.Run(name, func(t *testing.T) {
					p.refused(t, codes.InvalidArgument, []string{"userns_options"}, with(u))
				})
			}
			p.remove(t)
			q := e.runPod(t)
			q.refused(t, codes.InvalidArgument, []string{"userns_options"}, with(ownUsers()))
			q.remove(t)
		})
	})
}

// Each of these would be a user namespace that is none, or not the one that was meant.
var badUserNamespaces = map[string]struct {
	options *runtimeapi.UserNamespace
	text    string
}{
	"no mappings":                {&runtimeapi.UserNamespace{}, "uids"},
	"no mapping of groups":       {&runtimeapi.UserNamespace{Uids: idMapping(1000, 10)}, "gids"},
	"two mappings":               {&runtimeapi.UserNamespace{Uids: append(idMapping(1000, 10), idMapping(2000, 10)...), Gids: idMapping(1000, 10)}, "uids"},
	"a mapping of nothing":       {&runtimeapi.UserNamespace{Uids: idMapping(1000, 0), Gids: idMapping(1000, 10)}, "uids[0].length"},
	"a mapping without root":     {&runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{{HostId: 1, ContainerId: 1, Length: 1}}, Gids: idMapping(1000, 10)}, "uids[0].container_id"},
	"a range that overflows":     {&runtimeapi.UserNamespace{Uids: idMapping(1<<32-1, 2), Gids: idMapping(1000, 10)}, "uids[0].length"},
	"a range with the id -1":     {&runtimeapi.UserNamespace{Uids: idMapping(1000, 10), Gids: idMapping(1<<32-10, 10)}, "gids[0].length"},
	"the host's with mappings":   {&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE, Uids: idMapping(1000, 10)}, "mode"},
	"the mode CONTAINER":         {&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER}, "mode"},
	"the mode TARGET":            {&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_TARGET}, "mode"},
	"a mode that does not exist": {&runtimeapi.UserNamespace{Mode: 9}, "mode"},
}

func TestUserNamespacesThatAreRefused(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		refused := func(t *testing.T, code codes.Code, texts []string, options ...podOption) {
			t.Helper()
			_, err := e.rt.RunPodSandbox(call(t), &runtimeapi.RunPodSandboxRequest{Config: e.podConfig(t, options...)})
			wantCode(t, err, code, texts...)
			leaks(t, w, e, e.idle)
		}
		for name, c := range badUserNamespaces {
			t.Run(name+" is refused", func(t *testing.T) {
				refused(t, codes.InvalidArgument, []string{"userns_options." + c.text}, namespaces(func(o *runtimeapi.NamespaceOption) { o.UsernsOptions = c.options }))
			})
		}
		t.Run("with the host's processes or IPC it is refused", func(t *testing.T) {
			refused(t, codes.InvalidArgument, []string{"namespace_options.pid"}, userNS, namespaces(func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_NODE }))
			refused(t, codes.InvalidArgument, []string{"namespace_options.ipc"}, userNS, namespaces(func(o *runtimeapi.NamespaceOption) { o.Ipc = runtimeapi.NamespaceMode_NODE }))
		})
		if !e.features(t).UserNamespaces {
			t.Run("where the OCI runtime can't it is refused, and the runtime named", func(t *testing.T) {
				refused(t, codes.Unimplemented, []string{"userns_options", runtime}, userNS)
			})
		}
	})
}

// usernsPoints are steps at which a pod or container in a user namespace has more
// to be undone than another.
var usernsPoints = map[string][]string{
	"RunPodSandbox":   {"namespaces:before", "namespaces:after", "shm:after", "init:after"},
	"CreateContainer": {"root-filesystem:before", "root-filesystem:after", "image-volumes:after"},
	"StopPodSandbox":  {"namespaces:before", "namespaces:after"},
	"RemoveContainer": {"root-filesystem:before", "root-filesystem:after"},
}

var usernsTriggers = map[string]trigger{
	"RunPodSandbox": func(t *testing.T, e *Engine) func(context.Context) error {
		config := e.podConfig(t, userNS, podPID)
		return func(ctx context.Context) error {
			_, err := e.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			return err
		}
	},
	"CreateContainer": func(t *testing.T, e *Engine) func(context.Context) error {
		p := e.runPod(t, userNS)
		config := p.containerConfig(busyboxImage, sleeper, mounting(mapped(e.imageMount(busyboxImage, "/v", ""))))
		return func(ctx context.Context) error {
			_, err := e.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
			return err
		}
	},
	"StopPodSandbox": func(t *testing.T, e *Engine) func(context.Context) error {
		p := e.runPod(t, userNS, podPID)
		p.run(t, busyboxImage, sleeper)
		return func(ctx context.Context) error {
			_, err := e.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID})
			return err
		}
	},
	"RemoveContainer": func(t *testing.T, e *Engine) func(context.Context) error {
		c := e.runPod(t, userNS).run(t, busyboxImage, sleeper, mounting(mapped(e.imageMount(busyboxImage, "/v", ""))))
		return func(ctx context.Context) error {
			_, err := e.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
			return err
		}
	},
}

func TestTheDaemonDiesWithUserNamespacesAndTheImageStaysWhole(t *testing.T) {
	buildFaults(t)
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime), func(o *harness.EngineOptions) { o.Binary = faultsBin })
		needUserNS(t, e, runtime)
		for op, steps := range usernsPoints {
			for i, step := range steps {
				next := op + "/" + steps[(i+1)%len(steps)]
				t.Run(op+" "+step, func(t *testing.T) { dieAt(t, e, op+"/"+step, next, usernsTriggers[op]) })
			}
		}
		p := e.runPod(t)
		if got := p.output(t, busyboxImage, shell("id -u; stat -c %u:%g /bin/busybox /home/app")); got != "0\n0:0\n1000:1000\n" {
			t.Errorf("after all that the image is %q", got)
		}
		p.remove(t)
	})
}
