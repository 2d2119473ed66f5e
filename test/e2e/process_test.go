//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

func kill(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// pausePid is the init of the pod's shared PID namespace.
func (p *Pod) pausePid(t testing.TB) int {
	t.Helper()
	pids := harness.Processes(func(q harness.Process) bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", q.Pid))
		return err == nil && strings.Contains(string(text), p.ID) && strings.Contains(q.Comm, "pause")
	})
	if len(pids) != 1 {
		t.Fatalf("pod %s has the pause processes %v, want one", p.Config.Metadata.Name, pids)
	}
	return pids[0]
}

func args(argv ...string) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Args = argv }
}

func env(pairs ...string) containerOption {
	return func(c *runtimeapi.ContainerConfig) {
		for _, p := range pairs {
			k, v, _ := strings.Cut(p, "=")
			c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: k, Value: []byte(v)})
		}
	}
}

func TestTheProcess(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		for _, image := range []string{userImage, entrypointImage, volumeImage, emptyImage} {
			e.pull(t, image)
		}
		e.idle = settled(t, w, e)
		p := e.runPod(t)
		uid := func(n int64) containerOption {
			return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: n} })
		}
		gid := func(n int64) containerOption {
			return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsGroup = &runtimeapi.Int64Value{Value: n} })
		}
		username := func(name string) containerOption {
			return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = name })
		}
		show := shell("id -u; id -g; id -G; pwd; echo $HOME")
		for _, c := range []struct {
			name, image string
			options     []containerOption
			want        string
		}{
			{"entrypoint and command are the image's where the request has neither", entrypointImage, nil, "entry default args\n"},
			{"args alone replace the image's command and keep its entrypoint", entrypointImage, []containerOption{args("mine")}, "entry mine\n"},
			{"a command alone drops the image's entrypoint and its command", entrypointImage, []containerOption{command("/bin/echo", "all")}, "all\n"},
			{"command and args replace both", entrypointImage, []containerOption{command("/bin/echo"), args("a", "b")}, "a b\n"},
			{"the environment is the image's, and the request's wins", entrypointImage,
				[]containerOption{shell("echo $FROM $ONLY $MORE"), env("FROM=request", "MORE=request")}, "request image request\n"},
			{"a value of the environment may hold blanks, equals signs and newlines", busyboxImage,
				[]containerOption{shell(`printf '%s|' "$A" "$B"`), env("A=x=y z", "B=1\n2")}, "x=y z|1\n2|\n"},
			{"the working directory is the image's and is made when it is missing", entrypointImage, []containerOption{shell("pwd")}, "/work/here\n"},
			{"the request's working directory wins", entrypointImage,
				[]containerOption{shell("pwd"), func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/made/for/it" }}, "/made/for/it\n"},
			{"the user is root where nobody says", busyboxImage, []containerOption{show}, "0\n0\n0\n/\n/root\n"},
			{"the image's user, with its groups and home", userImage, []containerOption{show}, "1000\n1000\n1000 44 50\n/\n/home/app\n"},
			{"a user id of the request wins and brings the group from passwd", userImage, []containerOption{show, uid(1001)}, "1001\n1000\n1000\n/\n/\n"},
			{"a user id that passwd does not know", busyboxImage, []containerOption{show, uid(4321)}, "4321\n0\n0\n/\n/\n"},
			{"a user id and a group id", busyboxImage, []containerOption{show, uid(4321), gid(50)}, "4321\n50\n50\n/\n/\n"},
			{"a user's name", busyboxImage, []containerOption{show, username("app")}, "1000\n1000\n1000 44 50\n/\n/home/app\n"},
			{"supplemental groups are added", busyboxImage, []containerOption{show, uid(1000), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.SupplementalGroups = []int64{7000, 7001}
			})}, "1000\n1000\n1000 44 50 7000 7001\n/\n/home/app\n"},
			{"the strict policy takes no groups from the image", busyboxImage, []containerOption{show, uid(1000), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{7000}, runtimeapi.SupplementalGroupsPolicy_Strict
			})}, "1000\n1000\n1000 7000\n/\n/home/app\n"},
			{"stdin is at its end where the request does not want it", busyboxImage, []containerOption{shell("cat; echo end")}, "end\n"},
			{"a volume of the image holds what the image has there", volumeImage, []containerOption{shell("cat /data/seed")}, "seed\n"},
			{"PATH finds the program where the image sets it", busyboxImage, []containerOption{command("echo", "found")}, "found\n"},
		} {
			t.Run(c.name, func(t *testing.T) {
				if got := p.output(t, c.image, c.options...); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
			})
		}
		t.Run("the status tells the user", func(t *testing.T) {
			c := p.run(t, userImage, sleeper)
			u := c.status(t).GetUser().GetLinux()
			if u.GetUid() != 1000 || u.GetGid() != 1000 || fmt.Sprint(u.GetSupplementalGroups()) != "[44 50 1000]" && fmt.Sprint(u.GetSupplementalGroups()) != "[1000 44 50]" && fmt.Sprint(u.GetSupplementalGroups()) != "[44 50]" {
				t.Errorf("user %v", u)
			}
			if out := c.exec(t, "id", "-u"); out != "1000\n" {
				t.Errorf("an exec runs as %q", out)
			}
			c.stop(t, 0)
		})
		t.Run("a container without a command is refused and leaves nothing", func(t *testing.T) {
			before := settled(t, w, e)
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: p.containerConfig(emptyImage), SandboxConfig: p.Config})
			wantCode(t, err, codes.InvalidArgument, "command")
			leaks(t, w, e, before)
		})
		t.Run("a user name that the image does not have is refused and named", func(t *testing.T) {
			before := settled(t, w, e)
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: p.containerConfig(busyboxImage, show, username("nobody-here")), SandboxConfig: p.Config})
			wantCode(t, err, codes.InvalidArgument, "nobody-here")
			leaks(t, w, e, before)
		})
		t.Run("a terminal is one, and its log has no stderr", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("test -t 0 && test -t 1 && test -t 2 && echo tty; echo err >&2"), func(c *runtimeapi.ContainerConfig) { c.Tty = true })
			if s := c.wait(t); s.ExitCode != 0 {
				t.Errorf("exit code %d", s.ExitCode)
			}
			if got := c.stdout(t); got != "tty\r\nerr\r\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("an open stdin that nobody attaches to gives no end of file", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("read x; echo end"), func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
			c.exec(t, "sleep", "0.3")
			if s := c.status(t); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("state %v, log %q", s.State, c.stdout(t))
			}
			c.stop(t, 0)
		})
		t.Run("exec: streams, codes, time-out", func(t *testing.T) { execs(t, e, p) })
	})
}

func execs(t *testing.T, e *Engine, p *Pod) {
	c := p.run(t, busyboxImage, sleeper)
	request := func(timeout int64, argv ...string) (*runtimeapi.ExecSyncResponse, error) {
		return e.rt.ExecSync(call(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: argv, Timeout: timeout})
	}
	resp, err := request(10, "sh", "-c", "echo out; echo err >&2; exit 42")
	if err != nil || string(resp.Stdout) != "out\n" || string(resp.Stderr) != "err\n" || resp.ExitCode != 42 {
		t.Errorf("got %v, %v", resp, err)
	}
	if resp, err := request(10, "sh", "-c", "kill -9 $$"); err != nil || resp.ExitCode != 137 {
		t.Errorf("killed by signal 9: %v, %v", resp, err)
	}
	_, err = request(1, "sleep", "7654")
	wantCode(t, err, codes.DeadlineExceeded)
	eventually(t, 5*time.Second, "the process of an exec that timed out is gone", func() bool {
		return len(harness.Processes(func(q harness.Process) bool { return strings.Contains(q.Cmdline, "sleep 7654") && q.State != "Z" })) == 0
	})
	resp, err = request(60, "head", "-c", strconv.Itoa(32<<20), "/dev/zero")
	if err != nil || len(resp.Stdout) < 1<<20 || len(resp.Stdout) >= 16<<20 {
		t.Errorf("32 MiB of output: %d bytes, %v", len(resp.GetStdout()), err)
	}
	if _, err = request(10, "no-such-program"); err == nil {
		t.Error("a program that does not exist is run")
	}
	// An exec whose child keeps the streams open ends when the exec's own process does.
	if resp, err := request(20, "sh", "-c", "sleep 7655 & echo started"); err != nil || string(resp.Stdout) != "started\n" {
		t.Errorf("with a child left behind: %v, %v", resp, err)
	}
	c.stop(t, 0)
	_, err = request(10, "true")
	wantCode(t, err, codes.FailedPrecondition)
}

func TestSecurity(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		p := e.runPod(t)
		privileged := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
		caps := func(add, drop []string) containerOption {
			return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.Capabilities = &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop}
			})
		}
		const showCaps = "grep -E 'CapEff|CapBnd' /proc/self/status | sort -u"
		holds := func(out string, bit uint) bool {
			_, hex, _ := strings.Cut(strings.TrimSpace(out), "CapEff:\t")
			mask, err := strconv.ParseUint(strings.Fields(hex + " x")[0], 16, 64)
			if err != nil {
				t.Errorf("no capabilities in %q", out)
			}
			return mask&(1<<bit) != 0
		}
		const netRaw, netAdmin, chown, sysAdmin, netBind = 13, 12, 0, 21, 10
		t.Run("the default capabilities have CHOWN and NET_BIND_SERVICE, not NET_RAW, NET_ADMIN or SYS_ADMIN", func(t *testing.T) {
			out := p.output(t, busyboxImage, shell(showCaps))
			for bit, want := range map[uint]bool{chown: true, netBind: true, netRaw: false, netAdmin: false, sysAdmin: false} {
				if holds(out, bit) != want {
					t.Errorf("capability %d: %v in %q", bit, !want, out)
				}
			}
		})
		t.Run("capabilities are added and dropped by name, with or without CAP_", func(t *testing.T) {
			out := p.output(t, busyboxImage, shell(showCaps), caps([]string{"NET_RAW", "CAP_NET_ADMIN"}, []string{"chown"}))
			for bit, want := range map[uint]bool{chown: false, netRaw: true, netAdmin: true} {
				if holds(out, bit) != want {
					t.Errorf("capability %d: %v in %q", bit, !want, out)
				}
			}
		})
		t.Run("ALL dropped and one added leaves one", func(t *testing.T) {
			out := p.output(t, busyboxImage, shell(showCaps), caps([]string{"NET_BIND_SERVICE"}, []string{"ALL"}))
			if !strings.Contains(out, "CapEff:\t0000000000000400") {
				t.Errorf("got %q", out)
			}
		})
		t.Run("a capability that does not exist is refused", func(t *testing.T) {
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config,
				Config: p.containerConfig(busyboxImage, sleeper, caps([]string{"NO_SUCH"}, nil))})
			wantCode(t, err, codes.InvalidArgument, "NO_SUCH")
		})
		t.Run("no_new_privs is off unless asked for", func(t *testing.T) {
			for _, want := range []bool{false, true} {
				out := p.output(t, busyboxImage, shell("grep NoNewPrivs /proc/self/status"), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = want }))
				if strings.Contains(out, "1") != want {
					t.Errorf("asked for %v, got %q", want, out)
				}
			}
		})
		t.Run("seccomp: the default profile where asked for, none where unconfined, none in a privileged container", func(t *testing.T) {
			profile := func(kind runtimeapi.SecurityProfile_ProfileType) containerOption {
				return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
					s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind}
				})
			}
			script := shell("grep '^Seccomp:' /proc/self/status; unshare -U true && echo allowed || echo refused")
			if out := p.output(t, busyboxImage, script, profile(runtimeapi.SecurityProfile_RuntimeDefault)); !strings.Contains(out, "Seccomp:\t2") || !strings.Contains(out, "refused") {
				t.Errorf("the default profile gives %q", out)
			}
			if out := p.output(t, busyboxImage, script, profile(runtimeapi.SecurityProfile_Unconfined)); !strings.Contains(out, "Seccomp:\t0") || !strings.Contains(out, "allowed") {
				t.Errorf("unconfined gives %q", out)
			}
		})
		t.Run("masked paths show nothing, read-only ones take no write, and the root is read-only where asked", func(t *testing.T) {
			out := p.output(t, busyboxImage, shell("wc -c < /proc/meminfo; ls /sys/firmware | wc -l; echo x > /proc/sys/kernel/domainname || echo ro; echo x > /x || echo rootro"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.MaskedPaths, s.ReadonlyPaths, s.ReadonlyRootfs = []string{"/proc/meminfo", "/sys/firmware"}, []string{"/proc/sys"}, true
			}))
			if out != "0\n0\nro\nrootro\n" {
				t.Errorf("got %q", out)
			}
		})
		t.Run("/sys is read-only in a container without privileges", func(t *testing.T) {
			if out := p.output(t, busyboxImage, shell("mkdir /sys/x 2>/dev/null || echo ro; awk '$5==\"/sys\"{print $6}' /proc/self/mountinfo | cut -c1-2")); out != "ro\nro\n" {
				t.Errorf("got %q", out)
			}
		})
		t.Run("a privileged container has the bounding set's capabilities, the host's devices and writable /sys", func(t *testing.T) {
			asPrivileged := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })
			out := privileged.output(t, busyboxImage, shell(showCaps+"; grep '^Seccomp:' /proc/self/status; test -c /dev/kmsg && echo kmsg; awk '$5==\"/sys\"{print $6}' /proc/self/mountinfo | cut -c1-2"), asPrivileged)
			own, err := os.ReadFile("/proc/self/status")
			if err != nil {
				t.Fatal(err)
			}
			_, bounding, _ := strings.Cut(string(own), "CapBnd:\t")
			if !strings.Contains(out, "CapEff:\t"+strings.Fields(bounding)[0]) || !strings.Contains(out, "Seccomp:\t0") || !strings.Contains(out, "kmsg") || !strings.Contains(out, "\nrw\n") {
				t.Errorf("got %q", out)
			}
		})
		t.Run("a privileged container in a pod without privileges is refused", func(t *testing.T) {
			_, err := e.rt.CreateContainer(call(t), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.Config,
				Config: p.containerConfig(busyboxImage, sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))})
			wantCode(t, err, codes.InvalidArgument, "privileged")
		})
	})
}

func TestMountsAndDevices(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		p := e.runPod(t)
		host := filepath.Join(w.Dir, "host")
		if err := os.MkdirAll(host, 0o777); err != nil {
			t.Fatal(err)
		}
		mounts := func(m ...*runtimeapi.Mount) containerOption {
			return func(c *runtimeapi.ContainerConfig) { c.Mounts = m }
		}
		t.Run("a mount is the host's directory, written through", func(t *testing.T) {
			p.output(t, busyboxImage, shell("echo hi > /m/deep/x"), mounts(&runtimeapi.Mount{HostPath: host, ContainerPath: "/m/deep"}))
			if got, err := os.ReadFile(filepath.Join(host, "x")); string(got) != "hi\n" {
				t.Errorf("got %q, %v", got, err)
			}
		})
		t.Run("a read-only mount takes no write", func(t *testing.T) {
			if got := p.output(t, busyboxImage, shell("echo no > /m/x || echo ro"), mounts(&runtimeapi.Mount{HostPath: host, ContainerPath: "/m", Readonly: true})); got != "ro\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("a file can be mounted, and a link in the image does not lead out of the root", func(t *testing.T) {
			file := filepath.Join(host, "file")
			if err := os.WriteFile(file, []byte("content\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := p.output(t, busyboxImage, shell("cat /etc/some.conf"), mounts(&runtimeapi.Mount{HostPath: file, ContainerPath: "/etc/some.conf"})); got != "content\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("mounts are made in the order of their depth", func(t *testing.T) {
			inner := filepath.Join(w.Dir, "inner")
			if err := os.MkdirAll(inner, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(inner, "in"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			got := p.output(t, busyboxImage, shell("ls /m/sub"), mounts(&runtimeapi.Mount{HostPath: inner, ContainerPath: "/m/sub"}, &runtimeapi.Mount{HostPath: host, ContainerPath: "/m"}))
			if got != "in\n" {
				t.Errorf("got %q", got)
			}
			os.Remove(filepath.Join(host, "sub")) // the mount point that the runtime made
		})
		t.Run("propagation is private, from the host, or both ways", func(t *testing.T) { propagation(t, e, host) })
		t.Run("a device of the host with its permissions, and no other", func(t *testing.T) {
			device := func(perm string) containerOption {
				return func(c *runtimeapi.ContainerConfig) {
					c.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/mine", Permissions: perm}}
				}
			}
			if got := p.output(t, busyboxImage, shell("test -c /dev/mine && (: < /dev/mine) && echo read; (: > /dev/mine) || echo refused; test -e /dev/fuse || echo none"), device("r")); got != "read\nrefused\nnone\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("the standard devices are there and a container cannot make others", func(t *testing.T) {
			got := p.output(t, busyboxImage, shell("for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; echo x > /dev/null && (mknod /tmp/d c 1 11 && : < /tmp/d) 2>/dev/null || echo refused"))
			if got != "refused\n" {
				t.Errorf("got %q", got)
			}
		})
		if err := os.RemoveAll(host); err != nil {
			t.Fatal(err)
		}
	})
}

func propagation(t *testing.T, e *Engine, host string) {
	share(t, host)
	for name, c := range map[string]struct {
		mode            runtimeapi.MountPropagation
		privileged      bool
		wantIn, wantOut string
	}{
		"private":           {runtimeapi.MountPropagation_PROPAGATION_PRIVATE, true, "no", "no"},
		"host to container": {runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, "yes", "no"},
		"bidirectional":     {runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, "yes", "yes"},
	} {
		t.Run(name, func(t *testing.T) {
			p := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
			ct := p.run(t, busyboxImage, sleeper, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }), func(cc *runtimeapi.ContainerConfig) {
				cc.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/m", Propagation: c.mode}}
			})
			mountTmpfs(t, filepath.Join(host, "in"), "marker")
			in := strings.TrimSpace(ct.exec(t, "sh", "-c", "test -e /m/in/marker && echo yes || echo no"))
			ct.exec(t, "sh", "-c", "mkdir -p /m/out && mount -t tmpfs tmpfs /m/out && touch /m/out/marker")
			out := "no"
			if _, err := os.Stat(filepath.Join(host, "out", "marker")); err == nil {
				out = "yes"
			}
			if in != c.wantIn || out != c.wantOut {
				t.Errorf("the container sees the host's mount: %s, the host the container's: %s; want %s, %s", in, out, c.wantIn, c.wantOut)
			}
			ct.stop(t, 0)
			unmountBelow(filepath.Join(host, "in"))
			unmountBelow(filepath.Join(host, "out"))
		})
	}
	unmountBelow(host)
}

func TestResources(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, w *World, runtime string) {
		e := w.engine(t, withHandler(runtime))
		p := e.runPod(t)
		t.Run("limits are in the container's cgroup", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper, resources(&runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 150000, CpuShares: 2048, MemoryLimitInBytes: 100 << 20, OomScoreAdj: 500}))
			checkCgroup(t, c, map[string]string{"memory/memory.limit_in_bytes": fmt.Sprint(100 << 20), "cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.shares": "2048"})
			if got := c.exec(t, "cat", "/proc/1/oom_score_adj"); got != "500\n" {
				t.Errorf("oom_score_adj is %q", got)
			}
			c.stop(t, 0)
		})
		t.Run("a container killed for memory says OOMKilled and 137", func(t *testing.T) {
			c := p.run(t, busyboxImage, command("payload", "eat", "200"), resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 30 << 20, MemorySwapLimitInBytes: 30 << 20}))
			if s := c.wait(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
				t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
			}
		})
		t.Run("a container that lives on after one of its processes was killed for memory ends with its own code", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("payload eat 200; exit 5"), resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 30 << 20, MemorySwapLimitInBytes: 30 << 20}))
			if s := c.wait(t); s.ExitCode != 5 {
				t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
			}
		})
		t.Run("one that lives on and ends well has not been killed for memory", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("payload eat 200; exit 0"), resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 30 << 20, MemorySwapLimitInBytes: 30 << 20}))
			if s := c.wait(t); s.ExitCode != 0 || s.Reason != "Completed" {
				t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
			}
		})
		t.Run("the pod's cgroup parent is used", func(t *testing.T) {
			parent, path := "/kubepods/burstable/pod123", "/kubepods/burstable/pod123/"
			if e.underSystemd(t) {
				parent, path = "kubepods-burstable-pod123.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod123.slice/cri-engine-"
			}
			q := e.runPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = parent })
			c := q.run(t, busyboxImage, sleeper)
			for controller, dir := range cgroupsOf(t, c.pid(t)) {
				// In a mix of v1 and v2, the latter has no controllers and no path of ours.
				_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
				if (controller != "" || err == nil) && controller != "name=systemd" && !strings.Contains(dir, path) {
					t.Errorf("%s: %s", controller, dir)
				}
			}
			q.remove(t)
			// A parent is the kubelet's to make and to remove; the runtime made it here because nobody had.
			if e.underSystemd(t) {
				stopUnit(t, "kubepods.slice")
				return
			}
			removeCgroupDir(t, "kubepods")
		})
		t.Run("oom_score_adj that this machine does not allow is raised to what it does", func(t *testing.T) {
			c := p.run(t, busyboxImage, sleeper, resources(&runtimeapi.LinuxContainerResources{OomScoreAdj: -998}))
			if _, err := strconv.Atoi(strings.TrimSpace(c.exec(t, "cat", "/proc/1/oom_score_adj"))); err != nil {
				t.Error(err)
			}
			c.stop(t, 0)
		})
	})
}

func TestTheConfiguredPidsLimitHolds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t, withConfig("[runtime]\npids_limit = 50\n"))
		c := e.runPod(t).run(t, busyboxImage, sleeper)
		checkCgroup(t, c, map[string]string{"pids/pids.max": "50"})
	})
}
