package sandbox

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/labels"
	"github.com/cri-engine/cri-engine/internal/oci"
)

const (
	processType = "system_u:system_r:container_t:"
	fileType    = "system_u:object_r:container_file_t:"
)

// selinuxWorld is a world whose kernel has SELinux; what it labels is in files.
type selinuxWorld struct {
	*world
	mu    sync.Mutex // Protects files.
	files map[string]string
}

func newSELinuxWorld(t testing.TB) *selinuxWorld {
	w := &selinuxWorld{world: newWorld(t), files: map[string]string{}}
	w.boot()
	t.Cleanup(selinux.ClearLabels)
	return w
}

// boot forgets which levels are in use, as the end of the process does.
func (w *selinuxWorld) boot() {
	selinux.ClearLabels()
	w.labels = labels.New(labels.Policy{
		Base:  labels.Pair{Process: processType + "s0", Mount: fileType + "s0"},
		Check: func(string) error { return nil },
		Set: func(fd int, label string) error {
			path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.files[path] = label
			return err
		},
	})
}

func (w *selinuxWorld) levels() any { return w.labels.Info()["levels"] }

func (w *selinuxWorld) label(path string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.files[path]
}

func (w *selinuxWorld) spec(id string) (process, mount string) {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.state, "containers", id, "config.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		w.t.Fatal(err)
	}
	return spec.Process.SelinuxLabel, spec.Linux.MountLabel
}

// confined asks for a type: the pods of these tests see the host's IPC.
func confined(c *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "container_t"}
	return c
}

func TestAPodsContainersShareALevelThatNoOtherPodHas(t *testing.T) {
	w := newSELinuxWorld(t)
	e := w.engine()
	p := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
	q := must(e.RunPod(t.Context(), podConfig("q"), ""))(t)
	a := must(e.CreateContainer(t.Context(), p, confined(containerConfig("a")), podConfig("p")))(t)
	b := must(e.CreateContainer(t.Context(), p, confined(containerConfig("b")), podConfig("p")))(t)
	c := must(e.CreateContainer(t.Context(), q, confined(containerConfig("c")), podConfig("q")))(t)
	process, mount := w.spec(a)
	level, isOurs := strings.CutPrefix(process, processType)
	if !isOurs || !strings.HasPrefix(level, "s0:c") || mount != fileType+level {
		t.Errorf("labels %q and %q", process, mount)
	}
	if other, _ := w.spec(b); other != process {
		t.Errorf("two containers of a pod have %q and %q", process, other)
	}
	if other, _ := w.spec(c); other == process {
		t.Errorf("two pods have %q", other)
	}
	if len(w.labelled) != 3 || w.labelled[0] != mount {
		t.Errorf("root filesystems are labelled %q", w.labelled)
	}
	for _, name := range []string{resolvFile, hostsFile, hostnameFile} {
		if got := w.label(filepath.Join(w.state, "pods", p, name)); got != mount {
			t.Errorf("%s is labelled %q, want %q", name, got, mount)
		}
	}
	if got := w.label(e.pauseRootFS); got != fileType+"s0" {
		t.Errorf("the init's root is labelled %q", got)
	}
	t.Run("over a restart of the daemon", func(t *testing.T) {
		e.Close()
		w.boot()
		e = w.engine()
		if w.levels() != 2 {
			t.Errorf("%v levels are in use by two pods", w.levels())
		}
		d := must(e.CreateContainer(t.Context(), p, confined(containerConfig("d")), podConfig("p")))(t)
		if got, _ := w.spec(d); got != process {
			t.Errorf("a container made later has %q, the pod's others %q", got, process)
		}
	})
	t.Run("until the pod is removed", func(t *testing.T) {
		for _, id := range []string{p, q} {
			if err := e.RemovePod(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if w.levels() != 0 {
			t.Errorf("%v levels are in use by no pod", w.levels())
		}
	})
}

func TestWhatSELinuxDoesNotConfine(t *testing.T) {
	w := newSELinuxWorld(t)
	e := w.engine()
	cfg := podConfig("p")
	cfg.Linux.SecurityContext.Privileged = true
	p := must(e.RunPod(t.Context(), cfg, ""))(t)
	for name, c := range map[string]struct {
		change func(*runtimeapi.LinuxContainerSecurityContext)
		want   string
	}{
		"privileged, whatever type it asks for": {func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Privileged, sc.SelinuxOptions = true, &runtimeapi.SELinuxOption{Type: "my_t"}
		}, ""},
		"the hosts-ipc": {func(*runtimeapi.LinuxContainerSecurityContext) {}, ""},
		"the hosts-processes and a type of its own": {func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.NamespaceOptions.Pid, sc.SelinuxOptions = runtimeapi.NamespaceMode_NODE, &runtimeapi.SELinuxOption{Type: "my_t", Level: "s0:c9"}
		}, "system_u:system_r:my_t:s0:c9"},
	} {
		t.Run(name, func(t *testing.T) {
			cc := containerConfig(strings.ReplaceAll(name, " ", "-"))
			c.change(cc.Linux.SecurityContext)
			id := must(e.CreateContainer(t.Context(), p, cc, cfg))(t)
			process, mount := w.spec(id)
			if process != c.want || !strings.HasPrefix(mount, fileType+"s0:c") {
				t.Errorf("labels %q and %q, want %q", process, mount, c.want)
			}
		})
	}
}

func TestALevelIsReleasedByWhatCouldNotBeMade(t *testing.T) {
	w := newSELinuxWorld(t)
	e := w.engine()
	p := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
	cc := confined(containerConfig("c"))
	cc.Linux.SecurityContext.SelinuxOptions.Level = "s0:c1,c2"
	w.fail["CreateRootFS"] = errors.New("disk full")
	if _, err := e.CreateContainer(t.Context(), p, cc, podConfig("p")); err == nil {
		t.Fatal("it was made")
	}
	if w.levels() != 1 {
		t.Errorf("%v levels are in use by one pod", w.levels())
	}
	var wrong *oci.InvalidError
	bad := podConfig("q")
	bad.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0,c4,c5"}
	if _, err := e.RunPod(t.Context(), bad, ""); !errors.As(err, &wrong) || wrong.Field != selinuxField+".level" {
		t.Errorf("error %v", err)
	}
	cc.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{User: "a:b"}
	if _, err := e.CreateContainer(t.Context(), p, cc, podConfig("p")); !errors.As(err, &wrong) || wrong.Field != selinuxField+".user" {
		t.Errorf("error %v", err)
	}
	if w.levels() != 1 || len(e.Containers()) != 0 || len(e.Pods()) != 1 {
		t.Errorf("%v levels, pods %v, containers %v", w.levels(), e.Pods(), e.Containers())
	}
}

func TestVolumesAreRelabelledWhereAskedFor(t *testing.T) {
	w := newSELinuxWorld(t)
	e := w.engine()
	p := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
	volume := filepath.Join(t.TempDir(), "volume")
	if err := os.MkdirAll(filepath.Join(volume, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	number := 0
	create := func(sc *runtimeapi.SELinuxOption, m ...*runtimeapi.Mount) (string, error) {
		number++
		cc := containerConfig("c" + strconv.Itoa(number))
		cc.Mounts, cc.Linux.SecurityContext.SelinuxOptions = m, sc
		return e.CreateContainer(t.Context(), p, cc, podConfig("p"))
	}
	mount := func(path string, relabel bool) *runtimeapi.Mount {
		return &runtimeapi.Mount{HostPath: path, ContainerPath: "/m" + path, SelinuxRelabel: relabel}
	}
	t.Run("not otherwise, and not for a type that needs none", func(t *testing.T) {
		must(create(nil, mount(volume, false)))(t)
		must(create(&runtimeapi.SELinuxOption{Type: superPrivileged}, mount(volume, true)))(t)
		if got := w.label(volume); got != "" {
			t.Errorf("labelled %q", got)
		}
	})
	t.Run("with all that is in them", func(t *testing.T) {
		id := must(create(nil, mount(volume, true)))(t)
		_, want := w.spec(id)
		for _, path := range []string{volume, filepath.Join(volume, "dir")} {
			if got := w.label(path); got != want {
				t.Errorf("%s is labelled %q, want %q", path, got, want)
			}
		}
	})
	t.Run("never what the system or the engine lives on", func(t *testing.T) {
		before := len(e.Containers())
		for _, path := range []string{"/etc", "/usr", "/", w.root, filepath.Dir(w.state)} {
			_, err := create(nil, mount(volume, true), mount(path, true))
			var refused *oci.InvalidError
			if !errors.As(err, &refused) || refused.Field != "config.mounts[1].selinux_relabel" {
				t.Errorf("%s: %v", path, err)
			}
			if got := w.label(path); got != "" {
				t.Errorf("%s is labelled %q", path, got)
			}
		}
		if after := len(e.Containers()); after != before {
			t.Errorf("%d containers, before it were %d", after, before)
		}
	})
}
