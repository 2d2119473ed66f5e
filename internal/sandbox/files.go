package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The files of a pod's directory that its containers see under /etc.
const (
	resolvFile   = "resolv.conf"
	hostsFile    = "hosts"
	hostnameFile = "hostname"
)

// maxEtcFile bounds what is copied from the host's /etc.
const maxEtcFile = 1 << 20

func writePodFiles(dir string, p *pod) error {
	cfg, rec := p.cfg, &p.rec
	hostname := cfg.GetHostname()
	if rec.UTSNS == "" || hostname == "" {
		h, err := os.Hostname()
		if err != nil {
			return err
		}
		hostname = h
	}
	resolv, err := resolvConf(cfg.GetDnsConfig())
	if err != nil {
		return err
	}
	hosts, err := hostsText(hostname, rec)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{resolvFile: resolv, hostsFile: hosts, hostnameFile: hostname + "\n"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if p.idMappings() == nil {
			continue
		}
		uid, gid := p.root()
		if err := os.Chown(path, uid, gid); err != nil {
			return fmt.Errorf("give %s to the pod's root: %w", name, err)
		}
	}
	return nil
}

// resolvConf is resolv.conf(5) of the request, or the host's where it has none.
func resolvConf(d *runtimeapi.DNSConfig) (string, error) {
	if d == nil {
		return hostFile("/etc/resolv.conf")
	}
	for _, s := range slices.Concat(d.GetServers(), d.GetSearches(), d.GetOptions()) {
		if s == "" || strings.ContainsAny(s, " \t\r\n") {
			return "", fmt.Errorf("config.dns_config: %q is not one word: %w", s, ErrInvalid)
		}
	}
	var b strings.Builder
	if s := d.GetSearches(); len(s) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s, " "))
	}
	for _, s := range d.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if o := d.GetOptions(); len(o) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(o, " "))
	}
	return b.String(), nil
}

// hostsText is hosts(5) for a pod with a network of its own; the host's for others.
func hostsText(hostname string, rec *podRecord) (string, error) {
	if rec.NetNS == "" {
		return hostFile("/etc/hosts")
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	if rec.Result != nil {
		for _, ip := range rec.Result.IPs {
			fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
		}
	}
	return b.String(), nil
}

func hostFile(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxEtcFile+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxEtcFile {
		return "", fmt.Errorf("%s is longer than %d bytes", path, maxEtcFile)
	}
	return string(data), nil
}

// containerLogPath is the container's log file, beneath the pod's log
// directory; "" where the request has no log.
func containerLogPath(pod, podOfRequest *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) (string, error) {
	dir := pod.GetLogDirectory()
	if d := podOfRequest.GetLogDirectory(); d != "" {
		dir = d
	}
	if dir == "" || cfg.GetLogPath() == "" {
		return "", nil
	}
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("sandbox_config.log_directory %q: not absolute: %w", dir, ErrInvalid)
	}
	if !filepath.IsLocal(cfg.GetLogPath()) {
		return "", fmt.Errorf("config.log_path %q: leads out of the pod's log directory: %w", cfg.GetLogPath(), ErrInvalid)
	}
	return filepath.Join(dir, cfg.GetLogPath()), nil
}
