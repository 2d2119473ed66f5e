package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cri-engine/cri-engine/internal/apparmor"
	"github.com/cri-engine/cri-engine/internal/config"
)

// fakeMachine is a machine whose files are those given.
func fakeMachine(t testing.TB, files map[string]string) *machine {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := &config.Loaded{Config: config.Default()}
	return &machine{cfg: cfg, endpoint: "unix:///run/cri-engine/cri-engine.sock", files: root, family: "debian"}
}

func TestChecks(t *testing.T) {
	type files = map[string]string
	cases := []struct {
		name   string
		f      func(context.Context, *machine) finding
		files  files
		want   verdict
		detail string
		fix    string
	}{
		{"swap on", checkSwap, files{"/proc/swaps": "Filename Type\n/dev/sda2 partition\n"}, verdictWarn, "a kubelet refuses", "swapoff -a"},
		{"swap off", checkSwap, files{"/proc/swaps": "Filename Type\n"}, verdictOK, "off", ""},
		{"forwarding of IPv4 off", checkForwarding,
			files{"/proc/sys/net/ipv4/ip_forward": "0\n", "/proc/sys/net/ipv6/conf/all/forwarding": "1\n"},
			verdictWarn, "net.ipv4.ip_forward off", `printf 'net.ipv4.ip_forward=1\n' >`},
		{"forwarding on, without IPv6", checkForwarding, files{"/proc/sys/net/ipv4/ip_forward": "1\n"}, verdictOK, "forwarded", ""},
		{"bridge netfilter not loaded", checkBridge, files{}, verdictWarn, "off", "modprobe br_netfilter"},
		{"bridge netfilter on", checkBridge, files{"/proc/sys/net/bridge/bridge-nf-call-iptables": "1\n"}, verdictOK, "on", ""},
		{"few inotify instances", checkInotify,
			files{"/proc/sys/fs/inotify/max_user_instances": "128\n", "/proc/sys/fs/inotify/max_user_watches": "1048576\n"},
			verdictWarn, "128 instances", "fs.inotify.max_user_watches=1048576"},
		{"enough of inotify", checkInotify,
			files{"/proc/sys/fs/inotify/max_user_instances": "8192\n", "/proc/sys/fs/inotify/max_user_watches": "524288\n"},
			verdictOK, "8192 instances", ""},
		{"seccomp", checkSeccomp, files{"/proc/sys/kernel/seccomp/actions_avail": "kill_process trap errno user_notif allow\n"}, verdictOK, "filters", ""},
		{"no seccomp", checkSeccomp, files{}, verdictFail, "unconfined", ""},
		{"few processes", checkLimits, files{"/proc/sys/kernel/pid_max": "4096\n"}, verdictWarn, "4096 processes", "kernel.pid_max"},
		{"a kernel without AppArmor", checkAppArmor, files{}, verdictOK, "not enabled in this kernel", ""},
		{"AppArmor's profiles can't be seen", checkAppArmor, files{"/sys/module/apparmor/parameters/enabled": "Y\n"}, verdictOK, "mount securityfs", ""},
		{"a kernel without SELinux", checkSELinux, files{}, verdictOK, "not in this kernel", ""},
		{"SELinux that the engine does not use", checkSELinux, files{"/sys/fs/selinux/enforce": "1"}, verdictWarn, "enforcing, and [runtime] selinux is false", ""},
		{"an old kernel", checkKernel, files{"/proc/sys/kernel/osrelease": "4.19.0-27-amd64\n"}, verdictFail, "older than 5.4", ""},
		{"a broken policy.json", checkImageConfig, files{"/etc/containers/policy.json": "{"}, verdictFail, "/etc/containers/policy.json: unexpected end", ""},
		{"a broken registries.conf", checkImageConfig, files{"/etc/containers/registries.conf": "unqualified = ["}, verdictFail, "/etc/containers/registries.conf: toml", ""},
		{"no files for images", checkImageConfig, files{}, verdictOK, "no policy.json", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := c.f(t.Context(), fakeMachine(t, c.files))
			if f.Status != c.want || !strings.Contains(f.Detail, c.detail) || !strings.Contains(f.Fix, c.fix) {
				t.Errorf("got %+v, want %s, %q and %q", f, c.want, c.detail, c.fix)
			}
		})
	}
}

func TestCheckAppArmor(t *testing.T) {
	const enabled, list = "/sys/module/apparmor/parameters/enabled", "/sys/kernel/security/apparmor/profiles"
	on := map[string]string{enabled: "Y\n", list: "mine (complain)\n"}
	check := func(name string, want verdict, detail string, change func(m *machine)) {
		t.Helper()
		m := fakeMachine(t, on)
		change(m)
		if f := checkAppArmor(t.Context(), m); f.Status != want || !strings.Contains(f.Detail, detail) {
			t.Errorf("%s: %+v", name, f)
		}
	}
	check("switched off", verdictWarn, "[runtime] apparmor", func(m *machine) { m.cfg.Runtime.AppArmor = false })
	check("a profile that is loaded", verdictOK, "mine is loaded", func(m *machine) { m.cfg.Runtime.AppArmorProfile = "mine" })
	check("a profile that is not", verdictFail, "yours", func(m *machine) { m.cfg.Runtime.AppArmorProfile = "yours" })
	check("no profile by default", verdictOK, "only containers that name", func(m *machine) { m.cfg.Runtime.AppArmorProfile = "unconfined" })
	t.Setenv("PATH", "")
	want := verdictWarn
	if apparmor.Parser() != "" {
		want = verdictOK
	}
	check("the built-in one", want, "on", func(*machine) {})
}

func TestCheckSELinux(t *testing.T) {
	const enforce, config = "/sys/fs/selinux/enforce", "/etc/selinux/config"
	for name, c := range map[string]struct {
		files  map[string]string
		want   verdict
		detail string
	}{
		"asked for and not there":        {nil, verdictWarn, "does nothing"},
		"a policy that knows containers": {map[string]string{enforce: "1", config: "SELINUXTYPE=default\n", "/etc/selinux/default/contexts/lxc_contexts": ""}, verdictOK, "enforcing"},
		"another policy's containers":    {map[string]string{enforce: "0", config: "SELINUXTYPE=mls\n", "/etc/selinux/default/contexts/lxc_contexts": ""}, verdictFail, `permissive, and the policy "mls"`},
		"the package of Podman's":        {map[string]string{enforce: "0", containerContexts: ""}, verdictOK, "permissive"},
	} {
		m := fakeMachine(t, c.files)
		m.cfg.Runtime.SELinux = true
		if f := checkSELinux(t.Context(), m); f.Status != c.want || !strings.Contains(f.Detail, c.detail) {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestCheckSpace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	if f := checkSpace(dir, 0, 0); f.Status != verdictOK {
		t.Errorf("a directory that is still to be made: %+v", f)
	}
	const all = 1 << 62
	if f := checkSpace(dir, all, all); f.Status != verdictFail || f.Fix == "" {
		t.Errorf("a full disk: %+v", f)
	}
	if f := checkSpace(dir, 0, all); f.Status != verdictWarn {
		t.Errorf("a disk that fills up: %+v", f)
	}
}

func TestCheckEngine(t *testing.T) {
	f := newFake(t)
	m := fakeMachine(t, nil)
	m.endpoint = f.socket
	if got := checkEngine(t.Context(), m); got.Status != verdictOK || !strings.Contains(got.Detail, "fake 1 answers") {
		t.Errorf("an engine that is ready: %+v", got)
	}
	f.fail["Status"] = status.Error(codes.Unavailable, "starting")
	if got := checkEngine(t.Context(), m); got.Status != verdictFail || !strings.Contains(got.Detail, "starting") {
		t.Errorf("an engine that is not: %+v", got)
	}
	m.endpoint = f.socket + ".none"
	if got := checkEngine(t.Context(), m); got.Status != verdictWarn || !strings.Contains(got.Fix, "systemctl enable --now cri-engine") {
		t.Errorf("no engine: %+v", got)
	}
	m.endpoint = f.socket + ".dead"
	leaveSocket(t, m.endpoint)
	if got := checkEngine(t.Context(), m); got.Status != verdictFail {
		t.Errorf("a dead socket: %+v", got)
	}
}

func TestKubeletEndpoint(t *testing.T) {
	m := fakeMachine(t, map[string]string{
		"/var/lib/kubelet/config.yaml":                       "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n",
		"/etc/kubernetes/kubelet.conf.d/20-x.conf":           "maxPods: 5\n",
		"/etc/kubernetes/kubelet.conf.d/10-cri-engine.conf":  "containerRuntimeEndpoint: unix:///run/cri-engine/cri-engine.sock\n",
		"/etc/kubernetes/kubelet.conf.d/30-broken.conf":      ": [",
		"/etc/kubernetes/kubelet.conf.d/40-not-read.conf.db": "containerRuntimeEndpoint: unix:///x\n",
	})
	endpoint, from := m.kubeletEndpoint()
	if endpoint != "unix:///run/cri-engine/cri-engine.sock" || from != kubeletDropIn {
		t.Errorf("got %q from %q", endpoint, from)
	}
}

func TestDistribution(t *testing.T) {
	for release, want := range map[string]string{
		"ID=debian\n": "debian", "NAME=x\nID=ubuntu\nID_LIKE=debian\n": "debian", `ID="rocky"` + "\n" + `ID_LIKE="rhel centos fedora"`: "fedora",
		"ID=alpine\n": "", "": "", "ID_LIKE=\n": "",
	} {
		if got := distribution(release); got != want {
			t.Errorf("%q: got %q, want %q", release, got, want)
		}
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.1.0-18-amd64": {6, 1}, "5.14": {5, 14}, "6.18.44-fc-v782": {6, 18}, "7": {7, 0}, "": {0, 0}, "x.y": {0, 0}, "5.4-rc1": {5, 4},
	} {
		if got := kernelVersion(release); got != want {
			t.Errorf("%q: got %v, want %v", release, got, want)
		}
	}
}

func TestReport(t *testing.T) {
	findings := []finding{
		{Check: "a", Status: verdictOK, Detail: "fine"},
		{Check: "b", Status: verdictWarn, Detail: "so so", Fix: "mend b"},
		{Check: "c", Status: verdictFail, Detail: "broken\x1b[2J"},
	}
	var exit *ExitError
	var out bytes.Buffer
	err := report(&out, &doctorOptions{}, findings)
	want := "CHECK   STATUS   DETAIL\n" +
		"a       ok       fine\n" +
		"b       warn     so so\n" +
		"                 fix: mend b\n" +
		"c       fail     broken?[2J\n" +
		"\n1 ok, 1 to look at, 1 failed\n"
	if out.String() != want || !errors.As(err, &exit) || exit.Code != 1 {
		t.Errorf("got %v\n%s\nwant\n%s", err, out.String(), want)
	}

	out.Reset()
	if err := report(&out, &doctorOptions{options: options{quiet: true}}, findings[:1]); err != nil || out.Len() != 0 {
		t.Errorf("quiet, nothing wrong: %v %q", err, out.String())
	}

	out.Reset()
	if err := report(&out, &doctorOptions{options: options{output: outputJSON}}, findings[:2]); err != nil {
		t.Error(err)
	}
	var read []finding
	if err := json.Unmarshal(out.Bytes(), &read); err != nil || len(read) != 2 || read[1] != findings[1] {
		t.Errorf("%v: %s", err, out.String())
	}
}

// TestDoctorLeavesNothing runs the real checks on the machine that the test
// is run on, whatever they come to.
func TestDoctorLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	mounts := func() int { return strings.Count(string(must(os.ReadFile("/proc/self/mountinfo"))), "doctor") }
	before := mounts()
	m, err := examine(&doctorOptions{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state")}, false)
	if err != nil {
		t.Fatal(err)
	}
	findings := runChecks(t.Context(), m, 30*time.Second)
	m.close()
	for i, f := range findings {
		t.Logf("%-18s %-4s %s", f.Check, f.Status, f.Detail)
		if f.Check != checks[i].name || f.Detail == "" {
			t.Errorf("%+v", f)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%d files are left in %s", len(left), dir)
	}
	if n := mounts(); n != before {
		t.Errorf("%d mounts are left", n-before)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
