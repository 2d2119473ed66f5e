package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/config"
)

// verdict is what a check came to.
type verdict string

// The verdicts. A fail is what the engine can't work with; a warning is what
// Kubernetes, or a part of the engine, won't.
const (
	verdictOK   verdict = "ok"
	verdictWarn verdict = "warn"
	verdictFail verdict = "fail"
)

// finding is one line of doctor's table.
type finding struct {
	Check  string  `json:"check"`
	Status verdict `json:"status"`
	Detail string  `json:"detail"`
	// Fix is the command that mends it, "" where there is none or nothing to mend.
	Fix string `json:"fix,omitempty"`
}

func ok(format string, args ...any) finding {
	return finding{Status: verdictOK, Detail: fmt.Sprintf(format, args...)}
}

func warn(fix, format string, args ...any) finding {
	return finding{Status: verdictWarn, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

func fail(fix, format string, args ...any) finding {
	return finding{Status: verdictFail, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

// check looks at one thing. What it makes to find out, it removes again.
type check struct {
	name string
	f    func(ctx context.Context, m *machine) finding
}

// checks in the order of the table: what others build on comes first.
var checks = []check{
	{"root", checkRoot},
	{"configuration", checkConfiguration},
	{"kernel", checkKernel},
	{"namespaces", checkNamespaces},
	{"overlay", checkOverlay},
	{"cgroups", checkCgroups},
	{"seccomp", checkSeccomp},
	{"apparmor", checkAppArmor},
	{"selinux", checkSELinux},
	{"oci runtime", checkRuntime},
	{"monitor", checkMonitor},
	{"nftables", checkNftables},
	{"iptables", checkIptables},
	{"pod network", checkNetwork},
	{"forwarding", checkForwarding},
	{"bridge netfilter", checkBridge},
	{"image config", checkImageConfig},
	{"space for images", checkRootSpace},
	{"space for state", checkStateSpace},
	{"inotify", checkInotify},
	{"limits", checkLimits},
	{"swap", checkSwap},
	{"clock", checkClock},
	{"engine", checkEngine},
	{"kubelet", checkKubelet},
}

// doctorOptions are the flags of doctor.
type doctorOptions struct {
	options
	config, root, state string
}

// doctorTimeout bounds each check: a hung plugin or disk is a finding, not a hung doctor.
const doctorTimeout = 20 * time.Second

func doctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what this machine lacks, and tell how to mend it",
		Long: `Look for what this machine lacks to run pods, and tell the command that mends it.

The checks are real: a namespace is made, a filesystem mounted, a container run, and all
of it is undone. The exit code is 1 when something fails that the engine needs.`,
		Example: `  cri-engine doctor
  cri-engine doctor -o json | jq '.[] | select(.status != "ok")'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              run(func(ctx context.Context, cmd *cobra.Command, _ []string) error { return doctor(ctx, cmd, &o) }),
	}
	o.addEndpoint(cmd, doctorTimeout)
	o.addOutput(cmd, "only what is not ok")
	f := cmd.Flags()
	f.Lookup("endpoint").Usage = "`SOCKET` of the engine; default: where the configuration says it listens"
	f.Lookup("timeout").Usage = "how long one check may take"
	f.StringVar(&o.config, "config", "", "configuration `FILE` of the engine; default: "+config.DefaultPath)
	f.StringVar(&o.root, "root", "", "root directory (`DIR`) of the engine; default: the configuration's")
	f.StringVar(&o.state, "state", "", "state directory (`DIR`) of the engine; default: the configuration's")
	return cmd
}

func doctor(ctx context.Context, cmd *cobra.Command, o *doctorOptions) error {
	if err := o.checkOutput(); err != nil {
		return err
	}
	m, err := examine(o, cmd.Flags().Changed("endpoint") || endpointFromEnv() != DefaultEndpoint)
	if err != nil {
		return err
	}
	defer m.close()
	// The engine's own parts, which the checks use, log as they do in the engine.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	findings := runChecks(ctx, m, o.timeout)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return report(cmd.OutOrStdout(), o, findings)
}

// runChecks runs all checks, one after the other: some look at what others do.
func runChecks(ctx context.Context, m *machine, timeout time.Duration) []finding {
	var findings []finding
	for _, c := range checks {
		if timeout <= 0 {
			timeout = doctorTimeout
		}
		checkCtx, cancel := context.WithTimeout(ctx, timeout)
		f := c.f(checkCtx, m)
		cancel()
		f.Check = c.name
		findings = append(findings, f)
	}
	return findings
}

func report(w io.Writer, o *doctorOptions, findings []finding) error {
	count := map[verdict]int{}
	var shown []finding
	for _, f := range findings {
		count[f.Status]++
		if !o.quiet || f.Status != verdictOK {
			shown = append(shown, f)
		}
	}
	err := o.writeFindings(w, shown, count)
	if err == nil && count[verdictFail] > 0 {
		return &ExitError{1}
	}
	return err
}

func (o *doctorOptions) writeFindings(w io.Writer, findings []finding, count map[verdict]int) error {
	if o.structured() {
		if findings == nil {
			findings = []finding{}
		}
		data, err := json.Marshal(findings)
		if err != nil {
			return err
		}
		return printJSON(w, o.output, data)
	}
	if !o.quiet || len(findings) > 0 {
		t := newTable(w, "CHECK", "STATUS", "DETAIL")
		for _, f := range findings {
			t.row(f.Check, string(f.Status), f.Detail)
			if f.Fix != "" {
				t.row("", "", "fix: "+f.Fix)
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if o.quiet {
		return nil
	}
	_, err := fmt.Fprintf(w, "\n%d ok, %d to look at, %d failed\n", count[verdictOK], count[verdictWarn], count[verdictFail])
	return err
}

// machine is what the checks look at.
type machine struct {
	cfg *config.Loaded
	// endpoint is where the engine should answer.
	endpoint string
	// files is prefixed to the paths of /proc, /sys and /etc, for tests; "" on a real machine.
	files string
	// family of the distribution: "debian" (and Ubuntu), "fedora" (and its kin), "" for others.
	family string
	// scratch is a directory of doctor's own beside the state directory; "" until asked for.
	scratch string
	// netns is a network namespace pinned in scratch, "" when none could be made.
	netns string
}

// examine prepares a machine for its checks.
func examine(o *doctorOptions, endpointGiven bool) (*machine, error) {
	cfg, err := config.Load(o.config)
	if err != nil {
		return nil, err
	}
	flags := config.Flags{Root: o.root, State: o.state}
	for _, dir := range []*string{&flags.Root, &flags.State} {
		if *dir != "" {
			if *dir, err = filepath.Abs(*dir); err != nil {
				return nil, err
			}
		}
	}
	cfg.Override(flags)
	m := &machine{cfg: cfg, endpoint: "unix://" + cfg.Listen}
	if endpointGiven {
		m.endpoint = o.endpoint
	}
	m.family = distribution(m.read("/etc/os-release"))
	return m, nil
}

// distribution reads an os-release(5).
func distribution(release string) string {
	ids := ""
	for line := range strings.Lines(release) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key == "ID" || key == "ID_LIKE" {
			ids += " " + strings.Trim(value, `"'`)
		}
	}
	for _, id := range strings.Fields(ids) {
		switch id {
		case "debian", "ubuntu":
			return "debian"
		case "fedora", "rhel", "centos":
			return "fedora"
		}
	}
	return ""
}

// install is the command that installs a package.
func (m *machine) install(debian, fedora string) string {
	switch m.family {
	case "fedora":
		return "dnf install " + fedora
	case "debian":
		return "apt-get install " + debian
	default:
		return "install " + debian
	}
}

// maxRead bounds the files that checks read.
const maxRead = 1 << 20

// read returns a file's text without the last newline, "" when it can't be read.
func (m *machine) read(path string) string {
	f, err := os.Open(m.files + path)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRead))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(data), "\n")
}

// exists tells whether there is a file.
func (m *machine) exists(path string) bool {
	_, err := os.Stat(m.files + path)
	return err == nil
}

// scratchDir makes a directory that close removes.
func (m *machine) scratchDir() (string, error) {
	if m.scratch != "" {
		return m.scratch, nil
	}
	dir, err := os.MkdirTemp(nearest(m.cfg.State), "cri-engine-doctor-")
	if err == nil {
		m.scratch = dir
	}
	return dir, err
}

// nearest is the closest directory above path, or path itself, that exists.
func nearest(path string) string {
	for {
		if info, err := os.Stat(path); err == nil && info.IsDir() || path == "/" || path == "." {
			return path
		}
		path = filepath.Dir(path)
	}
}
