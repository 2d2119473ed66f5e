//go:build e2e

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-engine/cri-engine/test/harness"
)

// Paths as a test in a world sees them.
var (
	binDir     string // the binaries
	faultsBin  string // the daemon with fail points
	scratchDir string // the run's: images, payload
	worldDir   string // the world's own
	repoDir    string
)

func TestMain(m *testing.M) {
	flag.Parse()
	switch os.Getenv(roleEnv) {
	case "init":
		os.Exit(worldInit())
	case "world":
		if err := enterWorld(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: world:", err)
			os.Exit(1)
		}
		code := m.Run()
		if err := writeSent(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: note what was sent:", err)
			code = 1
		}
		os.Exit(code)
	}
	code, err := prepared(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// prepared runs the tests between making the run's scratch directory and removing it.
func prepared(run func() int) (int, error) {
	if err := requirements(); err != nil {
		return 1, err
	}
	base := os.Getenv("CRI_ENGINE_E2E_SCRATCH")
	if base == "" {
		base = "/var/tmp"
	}
	var err error
	if scratchDir, err = os.MkdirTemp(base, "cri-engine-e2e-"); err != nil {
		return 1, err
	}
	if os.Getenv("CRI_ENGINE_E2E_KEEP") == "" {
		defer os.RemoveAll(scratchDir)
	}
	if err := os.Chmod(scratchDir, 0o711); err != nil { // users of other user namespaces pass through
		return 1, err
	}
	if err := errors.Join(prepare(), os.Mkdir(sentDir(), 0o755)); err != nil {
		return 1, err
	}
	code := run()
	if code == 0 && flag.Lookup("test.run").Value.String() == "" {
		return code, checkSent()
	}
	return code, nil
}

// requirements says at once everything that is missing.
func requirements() error {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	packages := map[string]string{"runc": "runc", "crun": "crun", "busybox": "busybox-static", "docker-registry": "docker-registry",
		"nft": "nftables", "iptables": "iptables", "ip": "iproute2"}
	if prebuiltDir() == "" {
		packages["go"] = "golang"
	}
	for tool, pkg := range packages {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool+" (Debian: apt-get install "+pkg+")")
		}
	}
	var err error
	if repoDir, err = filepath.Abs("../.."); err != nil {
		return err
	}
	if dir := prebuiltDir(); dir != "" {
		repoDir = dir
	}
	binDir = os.Getenv("BIN")
	if binDir == "" {
		binDir = filepath.Join(repoDir, "bin")
	}
	for _, file := range []string{"cri-engine", "cri-engine-monitor", "cni/bridge", "cni/host-local", "cni/portmap", "cni/bandwidth"} {
		if _, err := os.Stat(filepath.Join(binDir, file)); err != nil {
			missing = append(missing, filepath.Join(binDir, file)+" (make build; BIN names another directory)")
		}
	}
	if missing != nil {
		return fmt.Errorf("these tests need:\n\t%s", strings.Join(missing, "\n\t"))
	}
	return nil
}

// prebuiltDir holds what is built here otherwise, for a machine without Go: the
// programs in testdata, and the daemon with fail points. It is the repository there, too, as
// far as tests and "make install" need it.
func prebuiltDir() string { return os.Getenv("CRI_ENGINE_E2E_PREBUILT") }

const (
	payloadName = "payload"
	faultsName  = "cri-engine-failpoints"
)

// payload puts the program that tests run inside containers into the run's scratch directory.
func payload() (string, error) {
	out := filepath.Join(scratchDir, payloadName)
	return out, testProgram(payloadName, out)
}

// testProgram puts a program of testdata at out.
func testProgram(name, out string) error {
	if dir := prebuiltDir(); dir != "" {
		return copyFile(filepath.Join(dir, name), out)
	}
	return harness.BuildPayload(filepath.Join(repoDir, "test/e2e/testdata", name), out)
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o755)
}

// prepare makes what all worlds share: a copy of this program that stays where
// it is when /tmp is hidden, the payload, and a registry's directory full of images.
func prepare() error {
	if err := copyFile("/proc/self/exe", filepath.Join(scratchDir, "e2e.test")); err != nil {
		return err
	}
	dir := filepath.Join(scratchDir, "registry")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), slowly(time.Minute))
	defer cancel()
	registry, err := harness.StartRegistry(ctx, harness.RegistryOptions{Dir: dir})
	if err != nil {
		return err
	}
	defer registry.Stop()
	return pushImages(ctx, registry)
}

// buildFaults builds the daemon with fail points. It is for the machine's side
// of a test: a world has no module cache to rely on.
func buildFaults(t *testing.T) {
	t.Helper()
	faultsBin = filepath.Join(scratchDir, faultsName)
	if os.Getenv(roleEnv) != "" {
		return
	}
	if dir := prebuiltDir(); dir != "" {
		if err := copyFile(filepath.Join(dir, faultsName), faultsBin); err != nil {
			t.Fatal(err)
		}
		return
	}
	build := exec.Command("go", "build", "-tags", "failpoints containers_image_openpgp exclude_graphdriver_btrfs nri_no_wasm", "-o", faultsBin, "./cmd/cri-engine")
	build.Dir, build.Env = repoDir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the daemon with fail points: %v\n%s", err, out)
	}
}
