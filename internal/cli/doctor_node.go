package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/cri-engine/cri-engine/conf"
	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/config"
	"github.com/cri-engine/cri-engine/internal/oci"
)

// lookPath finds a program, also in the directories of administrators, which
// a sudo or a unit may not have in its PATH. "" when there is none.
func lookPath(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

func checkConfiguration(_ context.Context, m *machine) finding {
	if err := m.cfg.Validate(); err != nil {
		return fail(program+" config show", "%v", err)
	}
	if len(m.cfg.Files) == 0 {
		return ok("none: the defaults")
	}
	return ok("%s", strings.Join(m.cfg.Files, ", "))
}

// checkRuntime runs a container with what the configuration's handlers stand for.
func checkRuntime(ctx context.Context, m *machine) finding {
	dir, err := m.scratchDir()
	if err != nil {
		return fail("", "no scratch directory: %v", err)
	}
	driver, err := oci.DetectCgroupDriver(m.cfg.Runtime.CgroupDriver)
	if err != nil {
		return fail("", "%v", err)
	}
	// The container's program must be where programs may run, which /run often is not.
	programs, err := os.MkdirTemp(nearest(m.cfg.Root), "cri-engine-doctor-")
	if err != nil {
		return fail("", "no scratch directory: %v", err)
	}
	defer func() { _ = os.RemoveAll(programs) }()
	found, err := oci.FindHandlers(ctx, handlers(&m.cfg.Config, driver), filepath.Join(dir, "runtime"), programs)
	var names []string
	for _, h := range found {
		version, _, _ := strings.Cut(h.Version, "\n")
		names = append(names, fmt.Sprintf("%s: %s (%s)", h.Name, h.Binary, version))
	}
	if err != nil {
		fix := ""
		if lookPath("crun") == "" && lookPath("runc") == "" {
			fix = m.install("runc", "crun")
		}
		return fail(fix, "%s", strings.Join(append(names, err.Error()), "; "))
	}
	return ok("%s", strings.Join(names, "; "))
}

// handlers are the configuration's, the built-in one first.
func handlers(cfg *config.Config, driver oci.CgroupDriver) []oci.HandlerConfig {
	list := []oci.HandlerConfig{{Name: "auto", CgroupDriver: driver}}
	for name, h := range cfg.Runtime.Handlers {
		list = append(list, oci.HandlerConfig{Name: name, Path: h.Path, Type: h.Type, CgroupDriver: driver})
	}
	slices.SortFunc(list[1:], func(a, b oci.HandlerConfig) int { return strings.Compare(a.Name, b.Name) })
	if cfg.Runtime.DefaultHandler != "auto" && len(list) > 1 {
		// Nobody asks for the built-in one then, unless a pod names it.
		return list[1:]
	}
	return list
}

func checkMonitor(ctx context.Context, m *machine) finding {
	const name = "cri-engine-monitor"
	path := m.cfg.Monitor.Path
	if path == "" {
		if exe, err := os.Executable(); err == nil {
			path = lookPath(filepath.Join(filepath.Dir(exe), name))
		}
		if path == "" {
			path = lookPath(name)
		}
	} else {
		path = lookPath(path)
	}
	if path == "" {
		return fail("make install", "no %s beside %s or in PATH", name, program)
	}
	if !m.cfg.Monitor.Start {
		return ok("%s; not started by the engine: a unit of its own", path)
	}
	return ok("%s; the engine starts it", path)
}

// checkNftables masquerades in a network namespace, as the default network does.
func checkNftables(ctx context.Context, m *machine) finding {
	nft := lookPath("nft")
	if nft == "" {
		return fail(m.install("nftables", "nftables"), "no nft: the default network and port mappings need it")
	}
	if m.netns == "" {
		return warn("", "%s is there; not tried: no network namespace", nft)
	}
	const rules = `table inet cri_engine_doctor {
	chain postrouting {
		type nat hook postrouting priority 100;
		masquerade
	}
}
`
	err := cni.InNetNS(m.netns, func() error {
		cmd := exec.CommandContext(ctx, nft, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		return output(cmd)
	})
	if err != nil {
		return fail("modprobe -a nf_tables nft_masq nft_chain_nat", "%s can't masquerade: %v", nft, err)
	}
	return ok("%s masquerades", nft)
}

// output runs a command and makes an error of what it wrote.
func output(cmd *exec.Cmd) error {
	cmd.WaitDelay = time.Second
	text, err := cmd.CombinedOutput()
	if err != nil && len(text) > 0 {
		return fmt.Errorf("%w: %.300s", err, strings.TrimSpace(string(text)))
	}
	return err
}

func checkIptables(ctx context.Context, m *machine) finding {
	path := lookPath("iptables")
	if path == "" {
		return warn(m.install("iptables", "iptables-nft"), "no iptables: kube-proxy's iptables mode and many CNI plugins need it")
	}
	if m.netns == "" {
		return warn("", "%s is there; not tried: no network namespace", path)
	}
	err := cni.InNetNS(m.netns, func() error {
		return output(exec.CommandContext(ctx, path, "-w", "5", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"))
	})
	if err != nil {
		return warn("modprobe -a ip_tables iptable_nat xt_MASQUERADE", "%s can't masquerade: %v", path, err)
	}
	return ok("%s masquerades", path)
}

// checkNetwork asks the plugins of the network that pods would get.
func checkNetwork(_ context.Context, m *machine) finding {
	dir, err := m.scratchDir()
	if err != nil {
		return fail("", "no scratch directory: %v", err)
	}
	o := cni.Options{
		ConfDir: m.cfg.Network.ConfDir, BinDirs: m.cfg.Network.PluginDirs(),
		CacheDir: filepath.Join(dir, "cni"), Timeout: doctorTimeout,
	}
	if m.cfg.Network.DefaultNetwork {
		o.Default = conf.DefaultConflist
	}
	networks, err := cni.New(o)
	if err != nil {
		return fail("", "%v", err)
	}
	defer func() { _ = networks.Close() }()
	if err := networks.Ready(); err != nil {
		return fail(m.install("containernetworking-plugins", "containernetworking-plugins"), "%v", err)
	}
	s := networks.Status()
	from := s.File
	if s.Default {
		from = "built in"
	}
	if len(s.Warnings) > 0 {
		return warn("", "%s (%s): %s", s.Network, from, strings.Join(s.Warnings, "; "))
	}
	return ok("%s (%s), plugins %s", s.Network, from, strings.Join(s.Plugins, ", "))
}

func checkForwarding(_ context.Context, m *machine) finding {
	var off []string
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
		if n, found := m.number(path); found && n == 0 {
			off = append(off, key)
		}
	}
	if len(off) > 0 {
		return warn("printf '"+strings.Join(off, `=1\n`)+`=1\n' > /etc/sysctl.d/90-forwarding.conf && sysctl --system`,
			"%s off: pods reach each other, but nothing outside of this machine", strings.Join(off, " and "))
	}
	return ok("IPv4 and IPv6 packets are forwarded")
}

func checkBridge(_ context.Context, m *machine) finding {
	const file = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	if n, found := m.number(file); !found || n == 0 {
		return warn("modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1",
			"off: kube-proxy's services may not be reached from pods on the same node")
	}
	return ok("on")
}

// checkImageConfig reads the files that pulls go by.
func checkImageConfig(_ context.Context, m *machine) finding {
	policy := m.cfg.Image.Policy
	registries := m.cfg.Image.RegistriesConf
	var notes []string
	for _, file := range []struct {
		path, standard, missing string
		parse                   func(string) error
	}{
		{policy, "/etc/containers/policy.json", "no policy.json: all images are accepted", func(s string) error {
			var v any
			return json.Unmarshal([]byte(s), &v)
		}},
		{registries, "/etc/containers/registries.conf", "no registries.conf: short names mean docker.io", func(s string) error {
			var v map[string]any
			_, err := toml.Decode(s, &v)
			return err
		}},
	} {
		path := file.path
		if path == "" {
			path = file.standard
		}
		switch {
		case !m.exists(path) && file.path != "":
			return fail("", "%s, which the configuration names, does not exist", path)
		case !m.exists(path):
			notes = append(notes, file.missing)
		default:
			if err := file.parse(m.read(path)); err != nil {
				return fail("", "%s: %v", path, err)
			}
			notes = append(notes, path)
		}
	}
	return ok("%s", strings.Join(notes, "; "))
}

// Below these, images can't be pulled, or a kubelet soon evicts pods.
const (
	failImageBytes = 200 << 20
	warnImageBytes = 5 << 30
	failStateBytes = 5 << 20
	warnStateBytes = 50 << 20
	warnInodes     = 5 // percent
)

func checkRootSpace(_ context.Context, m *machine) finding {
	return checkSpace(m.cfg.Root, failImageBytes, warnImageBytes)
}

func checkStateSpace(_ context.Context, m *machine) finding {
	return checkSpace(m.cfg.State, failStateBytes, warnStateBytes)
}

func checkSpace(dir string, failBelow, warnBelow uint64) finding {
	dir = nearest(dir)
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fail("", "%s: %v", dir, err)
	}
	free := s.Bavail * uint64(s.Bsize)
	detail := fmt.Sprintf("%s of %s free on %s", size(free), size(s.Blocks*uint64(s.Bsize)), dir)
	switch {
	case s.Flags&unix.ST_RDONLY != 0:
		return fail("", "%s is read-only", dir)
	case free < failBelow:
		return fail(program+" rmi --prune", "%s", detail)
	case free < warnBelow:
		return warn(program+" rmi --prune", "%s", detail)
	// Some filesystems have no fixed number of inodes and say 0.
	case s.Files > 0 && s.Ffree*100/s.Files < warnInodes:
		return warn(program+" rmi --prune", "%s, but only %d of %d inodes", detail, s.Ffree, s.Files)
	}
	return ok("%s", detail)
}

func checkClock(_ context.Context, m *machine) finding {
	now := time.Now()
	fix := m.install("systemd-timesyncd", "chrony")
	if now.Year() < 2025 {
		return fail(fix, "it says %s: certificates of registries will not be valid", now.UTC().Format(time.DateOnly))
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil || state == unix.TIME_ERROR {
		return warn(fix, "%s, not kept in step by anybody that the kernel knows of", now.UTC().Format(time.DateTime))
	}
	return ok("%s, kept in step", now.UTC().Format(time.DateTime))
}

// checkEngine asks the engine, or whoever is at the endpoint, for its own view.
func checkEngine(ctx context.Context, m *machine) finding {
	const start = "systemctl enable --now cri-engine, or: " + program + " serve"
	path, err := socketPath(m.endpoint)
	if err != nil {
		return fail("", "%v", err)
	}
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return warn(start, "does not run: no socket at %s", path)
	}
	c, err := dial(ctx, m.endpoint, 0)
	if err != nil {
		return fail(start, "does not answer: %v", err)
	}
	defer c.close()
	version, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return fail("journalctl -u cri-engine", "does not answer at %s: %v", path, err)
	}
	status, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return fail("journalctl -u cri-engine", "does not tell its status: %v", err)
	}
	name := version.GetRuntimeName() + " " + version.GetRuntimeVersion()
	for _, condition := range status.GetStatus().GetConditions() {
		if !condition.GetStatus() {
			return fail("", "%s: %s is false: %s %s", name, condition.GetType(), condition.GetReason(), condition.GetMessage())
		}
	}
	return ok("%s answers at %s and is ready", name, path)
}

// kubeletFiles are where a kubelet's endpoint may be set, later ones win.
var kubeletFiles = []string{"/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet.conf.d/*.conf"}

// kubeletDropIn is where the file of conf/kubelet/kubelet.conf.d goes.
const kubeletDropIn = "/etc/kubernetes/kubelet.conf.d/10-cri-engine.conf"

func checkKubelet(_ context.Context, m *machine) finding {
	if lookPath("kubelet") == "" {
		return ok("none on this machine")
	}
	endpoint, from := m.kubeletEndpoint()
	fix := "install -D conf/kubelet/kubelet.conf.d/10-cri-engine.conf " + kubeletDropIn + " && systemctl restart kubelet (with --config-dir " + filepath.Dir(kubeletDropIn) + ")"
	switch path, err := socketPath(endpoint); {
	case endpoint == "":
		return warn(fix, "no containerRuntimeEndpoint in its configuration")
	case err != nil || path != strings.TrimPrefix(m.endpoint, "unix://"):
		return warn(fix, "%s sends it to %s", from, endpoint)
	default:
		return ok("%s sends it here", from)
	}
}

// kubeletEndpoint is the last endpoint set in a kubelet's files.
func (m *machine) kubeletEndpoint() (endpoint, from string) {
	for _, pattern := range kubeletFiles {
		files, _ := filepath.Glob(m.files + pattern) // the patterns are sound
		for _, file := range files {
			file = strings.TrimPrefix(file, m.files)
			var doc struct {
				ContainerRuntimeEndpoint string `json:"containerRuntimeEndpoint"`
			}
			if yaml.Unmarshal([]byte(m.read(file)), &doc) == nil && doc.ContainerRuntimeEndpoint != "" {
				endpoint, from = doc.ContainerRuntimeEndpoint, file
			}
		}
	}
	return endpoint, from
}
