package config

import (
	"errors"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/moby/sys/capability"
)

const (
	// autoHandler is the built-in handler: crun where it works, else runc.
	autoHandler = "auto"
	// maxSocketPath leaves room in sockaddr_un's 108 bytes.
	maxSocketPath = 100
	// maxStatePath leaves room for the sockets beneath it.
	maxStatePath = 80
)

// Validate checks every value. The error names each key that is wrong, one a line.
func (c Config) Validate() error {
	var p problems
	c.validatePaths(&p)
	p.oneOf("log.level", c.Log.Level, "error", "warn", "info", "debug", "trace")
	p.oneOf("log.format", c.Log.Format, "text", "json")
	c.Runtime.validate(&p)
	p.path("monitor.path", c.Monitor.Path, true)
	c.Image.validate(&p)
	c.Network.validate(&p)
	c.Streaming.validate(&p)
	p.paths("cdi.spec_dirs", c.CDI.SpecDirs)
	c.NRI.validate(&p)
	return errors.Join(p...)
}

func (c Config) validatePaths(p *problems) {
	p.path("root", c.Root, false)
	p.path("state", c.State, false)
	p.path("listen", c.Listen, false)
	if len(c.State) > maxStatePath {
		p.add("state", "%q is longer than %d bytes, too long for the sockets in it", c.State, maxStatePath)
	}
	if len(c.Listen) > maxSocketPath {
		p.add("listen", "%q is longer than %d bytes, too long for a socket", c.Listen, maxSocketPath)
	}
	if c.Root == c.State || strings.HasPrefix(c.Root, c.State+"/") {
		p.add("root", "%q lies in state %q, which a reboot may empty", c.Root, c.State)
	}
}

func (r Runtime) validate(p *problems) {
	if _, ok := r.Handlers[r.DefaultHandler]; !ok && r.DefaultHandler != autoHandler {
		p.add("runtime.default_handler", "%q is neither %q nor in [runtime.handlers]", r.DefaultHandler, autoHandler)
	}
	p.oneOf("runtime.cgroup_driver", r.CgroupDriver, "auto", "systemd", "cgroupfs")
	for _, c := range r.DefaultCapabilities {
		if !slices.Contains(capabilities(), c) {
			p.add("runtime.default_capabilities", "%q is no capability", c)
		}
	}
	p.path("runtime.seccomp_profile", r.SeccompProfile, true)
	if strings.ContainsFunc(r.AppArmorProfile, unicode.IsControl) {
		p.add("runtime.apparmor_profile", "%q is not the name of a profile", r.AppArmorProfile)
	}
	if r.PidsLimit < 0 {
		p.add("runtime.pids_limit", "%d is negative; 0 is for no limit", r.PidsLimit)
	}
	if _, err := r.Ulimits(); err != nil {
		p.add("runtime.default_ulimits", "%w", err)
	}
	if _, err := r.Sysctls(); err != nil {
		p.add("runtime.default_sysctls", "%w", err)
	}
	p.paths("runtime.hooks_dirs", r.HooksDirs)
	p.duration("runtime.operation_timeout", r.OperationTimeout)
	names := make([]string, 0, len(r.Handlers))
	for name := range r.Handlers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		r.Handlers[name].validate(p, name)
	}
}

// handlerName is what a RuntimeClass may have as its handler: a DNS label.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (h Handler) validate(p *problems, name string) {
	key := "runtime.handlers." + name
	if !handlerName.MatchString(name) {
		p.add(key, "a handler's name is 1 to 63 of a-z, 0-9 and -, as in a RuntimeClass")
	}
	if name == autoHandler {
		p.add(key, "the name is built in")
	}
	if strings.Contains(h.Path, "/") {
		p.path(key+".path", h.Path, false)
	}
	if h.Path != "" && h.Type == autoHandler {
		p.add(key+".path", "is set, and type %q finds the binary by itself", autoHandler)
	}
	p.oneOf(key+".type", h.Type, "", autoHandler, "runc", "crun")
	p.path(key+".root", h.Root, true)
	p.patterns(key+".annotations", h.Annotations)
	p.path(key+".base_runtime_spec", h.BaseRuntimeSpec, true)
	p.path(key+".cni_conf_dir", h.CNIConfDir, true)
}

func (i Image) validate(p *problems) {
	p.oneOf("image.driver", i.Driver, "overlay", "vfs", "zfs")
	for _, o := range i.DriverOptions {
		if k, _, ok := strings.Cut(o, "="); !ok || k == "" {
			p.add("image.driver_options", "%q is not of the form name=value", o)
		}
	}
	p.path("image.registries_conf", i.RegistriesConf, true)
	p.path("image.registries_conf_dir", i.RegistriesConfDir, true)
	p.path("image.policy", i.Policy, true)
	p.path("image.auth_file", i.AuthFile, true)
	p.path("image.certs_dir", i.CertsDir, true)
	p.patterns("image.pinned", i.Pinned)
	if i.MaxParallelLayers < 1 || i.MaxParallelLayers > 64 {
		p.add("image.max_parallel_layers", "%d is not between 1 and 64", i.MaxParallelLayers)
	}
	if i.ProgressTimeout != 0 {
		p.duration("image.progress_timeout", i.ProgressTimeout)
	}
}

func (s Streaming) validate(p *problems) {
	host, port, err := net.SplitHostPort(s.Address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err == nil && net.ParseIP(host) == nil {
		err = fmt.Errorf("%q is no IP address", host)
	}
	if err != nil {
		p.add("streaming.address", "%q is not of the form address:port: %w", s.Address, err)
	}
	p.path("streaming.tls_cert_file", s.TLSCertFile, true)
	p.path("streaming.tls_key_file", s.TLSKeyFile, true)
	p.path("streaming.tls_client_ca_file", s.TLSClientCAFile, true)
	if (s.TLSCertFile == "") != (s.TLSKeyFile == "") {
		p.add("streaming.tls_key_file", "a certificate and its key are given together")
	}
	if s.TLSClientCAFile != "" && s.TLSCertFile == "" {
		p.add("streaming.tls_client_ca_file", "is of use with tls_cert_file only")
	}
	p.duration("streaming.idle_timeout", s.IdleTimeout)
	p.duration("streaming.creation_timeout", s.CreationTimeout)
}

func (n NRI) validate(p *problems) {
	p.path("nri.socket", n.Socket, false)
	if len(n.Socket) > maxSocketPath {
		p.add("nri.socket", "%q is longer than %d bytes, too long for a socket", n.Socket, maxSocketPath)
	}
	p.path("nri.plugin_path", n.PluginPath, false)
	p.path("nri.plugin_config_path", n.PluginConfigPath, false)
	p.duration("nri.registration_timeout", n.RegistrationTimeout)
	p.duration("nri.request_timeout", n.RequestTimeout)
}

func (n Network) validate(p *problems) {
	p.path("network.conf_dir", n.ConfDir, false)
	p.path("network.conf_template", n.ConfTemplate, true)
	for _, dir := range n.BinDirs {
		if rest, ok := strings.CutPrefix(dir, exeDir); ok {
			// One step up is no detour: an installation has PREFIX/bin and PREFIX/libexec.
			if up, ok := strings.CutPrefix(rest, "/.."); ok {
				rest = up
			}
			dir = "/exe" + rest
		}
		p.path("network.bin_dirs", dir, false)
	}
	p.duration("network.timeout", n.Timeout)
}

// Ulimits reads DefaultUlimits: "nofile=1024:524288" (soft and hard) and
// "nofile=1024" (both) become "RLIMIT_NOFILE": {1024, 524288}. "unlimited" is
// the largest number.
func (r Runtime) Ulimits() (map[string][2]uint64, error) {
	limits := map[string][2]uint64{}
	for _, entry := range r.DefaultUlimits {
		name, value, ok := strings.Cut(entry, "=")
		name = "RLIMIT_" + strings.ToUpper(strings.TrimPrefix(strings.ToLower(name), "rlimit_"))
		if !ok || !slices.Contains(rlimits, name) {
			return nil, fmt.Errorf("%q is not of the form name=soft:hard with a name of setrlimit(2)", entry)
		}
		soft, hard, two := strings.Cut(value, ":")
		if !two {
			hard = soft
		}
		s, err1 := parseLimit(soft)
		h, err2 := parseLimit(hard)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%q: a limit is a number or \"unlimited\"", entry)
		}
		if s > h {
			return nil, fmt.Errorf("%q: the soft limit is above the hard one", entry)
		}
		limits[name] = [2]uint64{s, h}
	}
	return limits, nil
}

func parseLimit(s string) (uint64, error) {
	if s == "unlimited" || s == "-1" {
		return 1<<64 - 1, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// rlimits are those of getrlimit(2).
var rlimits = []string{
	"RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS",
	"RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC",
	"RLIMIT_RSS", "RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
}

var sysctlName = regexp.MustCompile(`^[a-zA-Z0-9_*-]+([./][a-zA-Z0-9_*-]+)+$`)

// Sysctls reads DefaultSysctls by name. Whether a sysctl belongs to a
// namespace is not checked here.
func (r Runtime) Sysctls() (map[string]string, error) {
	sysctls := map[string]string{}
	for _, entry := range r.DefaultSysctls {
		name, value, ok := strings.Cut(entry, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || len(name) > 256 || !sysctlName.MatchString(name) {
			return nil, fmt.Errorf("%q is not of the form name=value", entry)
		}
		if value == "" || strings.ContainsAny(value, "\n\x00") {
			return nil, fmt.Errorf("%q: the value is empty or has more than one line", entry)
		}
		sysctls[name] = value
	}
	return sysctls, nil
}

func capabilities() []string {
	var names []string
	for _, c := range capability.ListKnown() {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names
}

// problems are what is wrong with a configuration.
type problems []error

func (p *problems) add(key, format string, args ...any) {
	*p = append(*p, fmt.Errorf(key+": "+format, args...))
}

func (p *problems) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		p.add(key, "%q is not one of %q", value, allowed)
	}
}

// path checks an absolute path that needs no cleaning: paths are compared and
// cut by their text.
func (p *problems) path(key, value string, mayBeEmpty bool) {
	switch {
	case value == "" && mayBeEmpty:
	case value == "":
		p.add(key, "is empty")
	case !filepath.IsAbs(value):
		p.add(key, "%q is not an absolute path", value)
	case filepath.Clean(value) != value:
		p.add(key, "%q should be written %q", value, filepath.Clean(value))
	case value == "/" || strings.ContainsAny(value, "\x00\n"):
		p.add(key, "%q cannot be used", value)
	}
}

// paths checks a list of directories.
func (p *problems) paths(key string, list []string) {
	for i, dir := range list {
		p.path(fmt.Sprintf("%s[%d]", key, i), dir, false)
	}
}

func (p *problems) patterns(key string, list []string) {
	for _, pattern := range list {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			p.add(key, "%q is not a pattern of *, ? and [a-z]", pattern)
		}
	}
}

func (p *problems) duration(key string, d Duration) {
	if least := time.Second; time.Duration(d) < least {
		p.add(key, "%s is shorter than %s", time.Duration(d), least)
	}
}
