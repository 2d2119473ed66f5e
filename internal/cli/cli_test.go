package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

var (
	idA = "aa11" + strings.Repeat("0", 60)
	idB = "aa22" + strings.Repeat("0", 60)
	idP = "bb11" + strings.Repeat("0", 60)
)

// populated is a fake with two containers of a pod, one of them running.
func populated(t testing.TB) *fakeRuntime {
	f := newFake(t)
	f.addPod(idP, "web", "default", runtimeapi.PodSandboxState_SANDBOX_READY)
	f.addContainer(idA, idP, "app", runtimeapi.ContainerState_CONTAINER_RUNNING)
	f.addContainer(idB, idP, "init", runtimeapi.ContainerState_CONTAINER_EXITED)
	f.images = []*runtimeapi.Image{
		{Id: "sha256:" + strings.Repeat("ab", 32), RepoTags: []string{"localhost:5000/app:1", "docker.io/library/app:latest"},
			RepoDigests: []string{"localhost:5000/app@sha256:" + strings.Repeat("12", 32)}, Size: 4_300_000},
		{Id: "sha256:" + strings.Repeat("ef", 32), RepoDigests: []string{"docker.io/library/old@sha256:" + strings.Repeat("34", 32)}, Size: 77},
		{Id: "sha256:" + strings.Repeat("99", 32), Pinned: true, Size: 1},
	}
	return f
}

func TestTables(t *testing.T) {
	f := populated(t)
	cases := []struct {
		args string
		want string
	}{
		{"ps", `
CONTAINER       IMAGE           CREATED       STATE     NAME    ATTEMPT   POD ID          POD          NAMESPACE
aa11000000000   ababababababa   2 hours ago   Running   app     2         bb11000000000   pod-of-app   default
`},
		{"ps -a --state exited", `
CONTAINER       IMAGE           CREATED       STATE    NAME    ATTEMPT   POD ID          POD           NAMESPACE
aa22000000000   ababababababa   2 hours ago   Exited   init    2         bb11000000000   pod-of-init   default
`},
		{"ps -aq", "\n" + idA + "\n" + idB + "\n"},
		{"ps -a -q --name ini", "\n" + idB + "\n"},
		{"ps -aq --pod default/web -l", "\n" + idA + "\n"},
		{"pods", `
POD ID          CREATED             STATE   NAME    NAMESPACE   ATTEMPT   RUNTIME
bb11000000000   About an hour ago   Ready   web     default     0         (default)
`},
		{"pods -q --state notready", "\n"},
		{"pods -q --namespace default --name we", "\n" + idP + "\n"},
		{"images", `
IMAGE                   TAG      IMAGE ID        SIZE
docker.io/library/app   latest   ababababababa   4.3MB
localhost:5000/app      1        ababababababa   4.3MB
docker.io/library/old   <none>   efefefefefefe   77B
<none>                  <none>   9999999999999   1B
`},
		{"images --digests --pinned", `
IMAGE                   TAG      DIGEST          IMAGE ID        SIZE    PINNED
docker.io/library/app   latest   <none>          ababababababa   4.3MB   false
localhost:5000/app      1        1212121212121   ababababababa   4.3MB   false
docker.io/library/old   <none>   3434343434343   efefefefefefe   77B     false
<none>                  <none>   <none>          9999999999999   1B      true
`},
	}
	for _, c := range cases {
		t.Run(c.args, func(t *testing.T) {
			r := f.try(t, strings.Fields(c.args)...)
			var lines []string
			for _, line := range strings.Split(r.out, "\n") {
				lines = append(lines, strings.TrimRight(line, " "))
			}
			r.out = "\n" + strings.Join(lines, "\n")
			r.want(t, 0, c.want)
		})
	}
}

func TestOutputForPrograms(t *testing.T) {
	f := populated(t)
	for _, args := range []string{"ps -a", "pods", "images", "stats"} {
		t.Run(args, func(t *testing.T) {
			asJSON := f.try(t, append(strings.Fields(args), "-o", "json")...)
			asYAML := f.try(t, append(strings.Fields(args), "-o", "yaml")...)
			fromYAML, err := yaml.YAMLToJSON([]byte(asYAML.out))
			if err != nil {
				t.Fatal(err)
			}
			var a, b any
			if err := json.Unmarshal([]byte(asJSON.out), &a); err != nil {
				t.Fatalf("%v in %s", err, asJSON.out)
			}
			if err := json.Unmarshal(fromYAML, &b); err != nil {
				t.Fatal(err)
			}
			if x, y := mustJSON(t, a), mustJSON(t, b); x != y {
				t.Errorf("JSON says %s, YAML %s", x, y)
			}
		})
	}
	if r := f.try(t, "ps", "-o", "json"); !strings.Contains(r.out, `"state": "CONTAINER_RUNNING"`) || !strings.Contains(r.out, `"podSandboxId": "`+idP+`"`) {
		t.Errorf("fields are not named as in CRI's JSON: %s", r.out)
	}
	f.try(t, "ps", "-o", "xml").want(t, 1, "", "-o xml: want table, json or yaml")
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestForeignTextCannotReachTheTerminal(t *testing.T) {
	f := newFake(t)
	f.addPod(idP, "we\x1b]0;owned\x07b\nfake row", "default", runtimeapi.PodSandboxState_SANDBOX_READY)
	f.fail["StopPodSandbox"] = status.Error(codes.Internal, "bad\x1b[2Jthing\nsecond line")
	if r := f.try(t, "pods"); strings.ContainsAny(r.out, "\x1b\x07") || strings.Count(r.out, "\n") != 2 {
		t.Errorf("got %q", r.out)
	}
	if r := f.try(t, "stop", idP); strings.Contains(r.err, "\x1b") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("got %q", r.err)
	}
}

func TestNames(t *testing.T) {
	f := populated(t)
	f.addContainer("cc"+strings.Repeat("1", 62), idP, "app2", runtimeapi.ContainerState_CONTAINER_RUNNING)
	f.addContainer("cc"+strings.Repeat("2", 62), idP, "app2", runtimeapi.ContainerState_CONTAINER_RUNNING)
	cases := []struct {
		name, arg string
		want, err string
	}{
		{"a whole id", idA, idA, ""},
		{"a prefix that is only one's", "aa1", idA, ""},
		{"a prefix of two", "aa", "", "stop aa: 2 containers answer to that: aa11000000000, aa22000000000"},
		{"a container's name", "app", idA, ""},
		{"a pod's and a container's name", "pod-of-app/app", idA, ""},
		{"a name of two", "app2", "", "stop app2: 2 containers answer to that"},
		{"a pod's name", "web", idP, ""},
		{"a pod's name with its namespace", "default/web", idP, ""},
		{"nothing's name", "3f2a", "", "stop 3f2a: no such container"},
		{"an empty name", "", "", "the name is empty"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := f.try(t, "stop", c.arg)
			if c.err != "" {
				r.want(t, 1, "", "cri-engine: ", c.err)
				return
			}
			r.want(t, 0, c.want+"\n")
		})
	}
}

func TestSeveralObjects(t *testing.T) {
	t.Run("what can be done is done, and each failure is told", func(t *testing.T) {
		f := populated(t)
		f.try(t, "rm", "nope", "init", "app").want(t, 1, idB+"\n",
			"cri-engine: rm nope: no such container\n", "cri-engine: rm app: is running: stop it first, or give -f\n")
		if _, left := f.left(); left != 1 {
			t.Errorf("%d containers are left, want 1", left)
		}
	})
	t.Run("rm -f stops first, and what does not exist is no error", func(t *testing.T) {
		f := populated(t)
		f.try(t, "rm", "-f", "nope", "app").want(t, 0, idA+"\n")
		if f.called("StopContainer") != 1 {
			t.Error("the container was not stopped")
		}
	})
	t.Run("rm -a takes all, and names beside it are refused", func(t *testing.T) {
		f := populated(t)
		f.try(t, "rm", "-af").want(t, 0, idA+"\n"+idB+"\n")
		f.try(t, "rm", "-a", "x").want(t, 1, "", "either name containers or give --all")
		f.try(t, "rm").want(t, 1, "", "name at least one container, or give --all")
	})
	t.Run("rmp wants -f for a pod that is ready", func(t *testing.T) {
		f := populated(t)
		f.try(t, "rmp", "web").want(t, 1, "", "rmp web: is running")
		f.try(t, "rmp", "-f", "web").want(t, 0, idP+"\n")
		if pods, containers := f.left(); pods != 0 || containers != 0 {
			t.Errorf("%d pods and %d containers are left", pods, containers)
		}
	})
	t.Run("rmi takes any of an image's names", func(t *testing.T) {
		f := populated(t)
		f.try(t, "rmi", "app", "efef", "nope").want(t, 1, "Deleted: localhost:5000/app:1\nDeleted: docker.io/library/old@sha256:"+strings.Repeat("34", 32)+"\n",
			"rmi nope: no such image")
	})
	t.Run("rmi --prune leaves what is used or pinned", func(t *testing.T) {
		f := populated(t)
		f.try(t, "rmi", "--prune").want(t, 0, "Deleted: docker.io/library/old@sha256:"+strings.Repeat("34", 32)+"\n")
	})
}

func TestErrors(t *testing.T) {
	f := populated(t)
	t.Run("a runtime's error is one line without gRPC's own words", func(t *testing.T) {
		f.fail["StopContainer"] = status.Error(codes.FailedPrecondition, "the cgroup is frozen")
		f.try(t, "stop", "app").want(t, 1, "", "cri-engine: stop app: the cgroup is frozen\n")
	})
	t.Run("what a runtime can't do is said so", func(t *testing.T) {
		f.fail["ListContainerStats"] = status.Error(codes.Unimplemented, "method not implemented")
		f.try(t, "stats").want(t, 1, "", "cri-engine: stats: this runtime does not support it")
	})
	t.Run("no socket", func(t *testing.T) {
		execute(t.Context(), "", "ps", "--endpoint", "unix:///nonexistent/s").want(t, 1, "",
			"no runtime answers at /nonexistent/s: there is no such socket (`cri-engine doctor` looks for the cause)")
	})
	t.Run("a socket that nobody listens on", func(t *testing.T) {
		path := filepath.Join(filepath.Dir(f.socket), "dead")
		leaveSocket(t, path)
		execute(t.Context(), "", "ps", "--endpoint", path).want(t, 1, "", path+": nobody listens on it")
	})
	t.Run("an endpoint that is none", func(t *testing.T) {
		execute(t.Context(), "", "ps", "--endpoint", "tcp://1.2.3.4:5").want(t, 1, "", `--endpoint "tcp://1.2.3.4:5": want unix:///PATH or /PATH`)
	})
	t.Run("a runtime that does not answer in time", func(t *testing.T) {
		f.slow = 2 * time.Second
		f.try(t, "pull", "--timeout", "100ms", "x").want(t, 1, "", "pull x: no answer within 100ms (--timeout)")
	})
	t.Run("Ctrl-C ends a call", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		if r := f.tryContext(ctx, t, "", "pull", "y"); r.code != 1 && r.code != interrupted {
			t.Errorf("got code %d, stderr %q", r.code, r.err)
		}
	})
}

func TestExec(t *testing.T) {
	f := populated(t)
	f.try(t, "exec", "--timeout", "1500ms", "app", "true").want(t, 7, "true\n", "timeout 2\n")
	f.try(t, "exec", "--timeout", "5", "app", "true").want(t, 7, "true\n", "timeout 5\n")
	f.try(t, "exec", "init", "true").want(t, 1, "", "exec init: no such running container")
}

func TestInspect(t *testing.T) {
	f := populated(t)
	for arg, part := range map[string]string{"app": `"exitCode": 0`, "web": `"info": {`, "efef": `"repoDigests"`} {
		r := f.try(t, "inspect", arg)
		if r.code != 0 || !strings.Contains(r.out, part) || !json.Valid([]byte(r.out)) {
			t.Errorf("inspect %s: code %d, %s%s", arg, r.code, r.out, r.err)
		}
	}
	r := f.try(t, "inspect", "web")
	if !strings.Contains(r.out, `"pid": 7`) || !strings.Contains(r.out, `"note": "plain"`) {
		t.Errorf("JSON in the verbose info is not part of the document: %s", r.out)
	}
	r = f.try(t, "inspect", "web", "nope", "app")
	var docs []any
	if err := json.Unmarshal([]byte(r.out), &docs); err != nil || len(docs) != 2 || r.code != 1 {
		t.Errorf("got code %d, %v, %d documents", r.code, err, len(docs))
	}
	f.try(t, "inspect", "nope").want(t, 1, "", "inspect nope: no such container, pod or image")
	f.try(t, "inspect", "--type", "pod", "app").want(t, 1, "", "inspect app: no such pod")
	f.try(t, "inspect", "--type", "node", "app").want(t, 1, "", "--type node: want container, pod or image")
}

func TestStats(t *testing.T) {
	f := populated(t)
	usage := func(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
	f.stats = []*runtimeapi.ContainerStats{{
		Attributes:    &runtimeapi.ContainerAttributes{Id: idA, Metadata: &runtimeapi.ContainerMetadata{Name: "app"}},
		Cpu:           &runtimeapi.CpuUsage{Timestamp: 5, UsageCoreNanoSeconds: usage(9), UsageNanoCores: usage(250_000_000)},
		Memory:        &runtimeapi.MemoryUsage{WorkingSetBytes: usage(1_500_000)},
		WritableLayer: &runtimeapi.FilesystemUsage{UsedBytes: usage(4096), InodesUsed: usage(12)},
	}, {
		Attributes: &runtimeapi.ContainerAttributes{Id: idB, Metadata: &runtimeapi.ContainerMetadata{Name: "init"}},
	}}
	want := "CONTAINER       NAME    CPU %   MEM     DISK    INODES   SWAP\n" +
		"aa11000000000   app     25.00   1.5MB   4.1kB   12       0B\n"
	f.try(t, "stats", "--sample", "10ms").want(t, 0, want)
	f.try(t, "stats", "--sample", "10ms", "app").want(t, 0, want)
	f.try(t, "stats", "nope").want(t, 1, "", "stats nope: no such container")
	if r := f.try(t, "stats", "-a", "--sample", "10ms"); strings.Count(r.out, "\n") != 3 {
		t.Errorf("-a shows %s", r.out)
	}

	cpu := func(at int64, used uint64) *runtimeapi.CpuUsage {
		return &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: usage(used)}
	}
	for _, c := range []struct {
		name        string
		before, now *runtimeapi.CpuUsage
		want        float64
	}{
		{"half a CPU", cpu(0, 0), cpu(1000, 500), 50},
		{"two CPUs", cpu(100, 100), cpu(1100, 2100), 200},
		{"a counter that began anew", cpu(0, 500), cpu(1000, 5), 0},
		{"no sample before", nil, cpu(1000, 5), 0},
		{"the same sample twice", cpu(7, 5), cpu(7, 5), 0},
		{"nothing", nil, nil, 0},
	} {
		if got := cpuPercent(c.before, c.now); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestLogs(t *testing.T) {
	f := populated(t)
	path := filepath.Join(t.TempDir(), "app.log")
	const stamp = "2026-01-02T03:04:05.000000006Z "
	log := "rubbish\n" + stamp + "stdout F one\n" + stamp + "stderr F two\n" + stamp + "stdout P th\n" + stamp + "stdout F ree\n"
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	f.containers[0].LogPath = path
	f.try(t, "logs", "app").want(t, 0, "one\nthree\n", "two\n", "lines of "+path)
	f.try(t, "logs", "--tail", "1", "app").want(t, 0, "three\n")
	f.try(t, "logs", "--tail", "1", "--timestamps", "app").want(t, 0, stamp+"three\n")
	f.try(t, "logs", "--since", "1h", "app").want(t, 0, "", "left out: 1")
	f.try(t, "logs", "--since", "2026-01-01T00:00:00Z", "--tail", "1", "app").want(t, 0, "three\n")
	f.try(t, "logs", "--since", "yesterday", "app").want(t, 1, "", "--since yesterday: want a duration")
	f.try(t, "logs", "init").want(t, 1, "", "logs init: the container has no log file")
	f.containers[1].LogPath = path + ".none"
	f.try(t, "logs", "init").want(t, 1, "", "logs init: no log file at "+path+".none")

	t.Run("follow ends with the container", func(t *testing.T) {
		time.AfterFunc(200*time.Millisecond, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			appendTo(t, path, stamp+"stdout F last\n")
			f.containers[0].State = runtimeapi.ContainerState_CONTAINER_EXITED
		})
		f.try(t, "logs", "-f", "--tail", "1", "app").want(t, 0, "three\nlast\n")
	})
}

func TestCompletion(t *testing.T) {
	f := populated(t)
	r := f.try(t, "__complete", "stop", "")
	for _, want := range []string{"aa11000000000\tapp, Running", "app\tRunning", "web\tReady"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not offered: %s", want, r.out)
		}
	}
	if r := f.try(t, "__complete", "rmi", ""); !strings.Contains(r.out, "localhost:5000/app:1\t") {
		t.Errorf("images are not offered: %s", r.out)
	}
	if r := f.try(t, "__complete", "ps", "-o", ""); !strings.Contains(r.out, "yaml") {
		t.Errorf("formats are not offered: %s", r.out)
	}
}
