// critest runs Kubernetes' conformance suite for CRI against an engine of its own,
// or against the one at an endpoint, and compares what failed and what was skipped
// with a list.
//
//	go run ./test/critest [--mirror HOST:PORT] [--parallel N] [--nri] [--endpoint unix:///path.sock] [-- critest's own flags]
//
// The suite wants images of public registries. A mirror is a registry without TLS that
// has them by the same names. Root is needed, and nothing of the suite's is left: pods
// that it leaves are an error.
package main

import (
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

type options struct {
	critest, bin, mirror, endpoint, known, handler, scratch string
	parallel                                                int
	nri                                                     bool
	more                                                    []string
}

func main() {
	var o options
	flag.StringVar(&o.critest, "critest", "bin/critest", "the suite")
	flag.StringVar(&o.bin, "bin", "bin", "directory of our binaries")
	flag.StringVar(&o.mirror, "mirror", "", "host:port of a registry without TLS that has the suite's images; none: the public ones")
	flag.StringVar(&o.endpoint, "endpoint", "", "socket of a running engine; none: an engine in scratch directories")
	flag.StringVar(&o.known, "known", "test/critest/known.tsv", "what is known to fail or to be skipped, and why")
	flag.StringVar(&o.handler, "handler", "", "runtime handler; none: the engine's default")
	flag.StringVar(&o.scratch, "scratch", "/var/tmp", "directory for scratch files, not on an overlay")
	flag.IntVar(&o.parallel, "parallel", 1, "specs that run at a time; more than one needs ginkgo beside critest")
	flag.BoolVar(&o.nri, "nri", false, "run the specs of NRI too")
	flag.Parse()
	o.more = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "critest:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp(o.scratch, "cri-engine-critest-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil { // users of other user namespaces pass through
		return err
	}
	known, err := readKnown(o.known, o.conditions())
	if err != nil {
		return err
	}
	nri := "/var/run/nri/nri.sock"
	if o.endpoint == "" {
		e, err := start(ctx, o, dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, end(e)) }()
		o.endpoint, nri = "unix://"+e.Socket, filepath.Join(e.State, "nri.sock")
	}
	specs, err := suite(ctx, o, dir, nri)
	return errors.Join(err, compare(specs, known), left(ctx, o.endpoint))
}

// start runs an engine of ours in dir.
func start(ctx context.Context, o options, dir string) (*harness.Engine, error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	eo := harness.EngineOptions{Dir: dir, State: dir + "/state", Bin: bin}
	if o.handler != "" {
		eo.Handlers = []string{o.handler}
	}
	if o.mirror != "" {
		file := filepath.Join(dir, "mirrors.conf")
		if err := os.WriteFile(file, []byte(mirrors(o.mirror)), 0o600); err != nil {
			return nil, err
		}
		eo.RegistriesConf = file
	}
	if o.nri {
		// Some specs answer after 2 s, which is our default limit and that of NRI's own library.
		eo.Config = fmt.Sprintf("[nri]\nenabled = true\nsocket = %q\nrequest_timeout = \"10s\"\n", filepath.Join(eo.State, "nri.sock"))
	}
	e, err := harness.NewEngine(eo)
	if err != nil {
		return nil, err
	}
	return e, e.Start(ctx)
}

func mirrors(at string) string {
	var b strings.Builder
	for _, registry := range []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io", "quay.io"} {
		fmt.Fprintf(&b, "[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", registry, at)
	}
	return "unqualified-search-registries = [\"docker.io\"]\n" + b.String()
}

func end(e *harness.Engine) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return e.Close(ctx)
}

// suite runs the specs and returns how each ended.
func suite(ctx context.Context, o options, dir, nri string) ([]spec, error) {
	reports := filepath.Join(dir, "reports")
	if err := os.Mkdir(reports, 0o755); err != nil {
		return nil, err
	}
	args := []string{"--runtime-endpoint", o.endpoint, "--image-endpoint", o.endpoint, "--ginkgo.junit-report", filepath.Join(reports, "critest.xml"), "--ginkgo.no-color"}
	if o.parallel > 1 {
		args = append(args, "--parallel", fmt.Sprint(o.parallel))
	}
	if o.nri {
		args = append(args, "--nri-socket", nri)
	}
	cmd := exec.CommandContext(ctx, o.critest, append(args, o.more...)...)
	critest, err := filepath.Abs(o.critest)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(critest)+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	began := time.Now()
	ran := cmd.Run()
	specs, err := readReports(reports)
	if err != nil || len(specs) == 0 {
		return nil, errors.Join(ran, err, errors.New("there is no report"))
	}
	fmt.Printf("critest: %s\n", time.Since(began).Round(time.Second))
	return specs, nil // which of them failed says more than its exit code
}

// spec is how one of the suite's ended.
type spec struct{ name, outcome, message string }

func readReports(dir string) ([]spec, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.xml"))
	if err != nil {
		return nil, err
	}
	var all []spec
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var report struct {
			Suites []struct {
				Cases []struct {
					Name    string `xml:"name,attr"`
					Status  string `xml:"status,attr"`
					Skipped *struct {
						Message string `xml:"message,attr"`
					} `xml:"skipped"`
				} `xml:"testcase"`
			} `xml:"testsuite"`
		}
		if err := xml.Unmarshal(data, &report); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
		for _, s := range report.Suites {
			for _, c := range s.Cases {
				if !strings.HasPrefix(c.Name, "[It]") {
					continue
				}
				one := spec{name: strings.TrimPrefix(c.Name, "[It] "), outcome: c.Status}
				if c.Skipped != nil {
					one.outcome, one.message = "skipped", c.Skipped.Message
				}
				all = append(all, one)
			}
		}
	}
	return all, nil
}

// conditions under which lines of the list hold.
func (o options) conditions() map[string]bool {
	apparmor, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return map[string]bool{
		"always":           true,
		"without AppArmor": !strings.HasPrefix(string(apparmor), "Y"),
		"without NRI":      !o.nri,
		"with a mirror":    o.mirror != "",
	}
}

// knownSpec is a line of the list that holds here: an outcome other than passed, and a pattern of names.
type knownSpec struct {
	outcome string
	name    *regexp.Regexp
}

func readKnown(file string, conditions map[string]bool) ([]knownSpec, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var known []knownSpec
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.Split(line, "\t")
		if len(parts) != 4 {
			return nil, fmt.Errorf("%s: want an outcome, a condition, a pattern and a reason: %q", file, line)
		}
		holds, ok := conditions[parts[1]]
		if !ok {
			return nil, fmt.Errorf("%s: there is no condition %q", file, parts[1])
		}
		if !holds {
			continue
		}
		name, err := regexp.Compile(parts[2])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		known = append(known, knownSpec{parts[0], name})
	}
	return known, nil
}

// compare is nil when all specs have passed but for those that are known not to.
func compare(specs []spec, known []knownSpec) error {
	counts := map[string]int{}
	var unknown []error
	for _, s := range specs {
		counts[s.outcome]++
		if s.outcome != "passed" && !slices.ContainsFunc(known, func(k knownSpec) bool { return k.outcome == s.outcome && k.name.MatchString(s.name) }) {
			unknown = append(unknown, fmt.Errorf("%s: %s: %s", s.outcome, s.name, s.message))
		}
	}
	fmt.Printf("critest: %d specs: %v\n", len(specs), counts)
	return errors.Join(unknown...)
}

// left is nil when the suite has removed its pods.
func left(ctx context.Context, endpoint string) error {
	conn, err := harness.Dial(endpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := runtimeapi.NewRuntimeServiceClient(conn).ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	if n := len(resp.Items); n > 0 {
		return fmt.Errorf("the suite left %d pods", n)
	}
	return nil
}
