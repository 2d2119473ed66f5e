package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestParseSignal(t *testing.T) {
	cases := map[string]syscall.Signal{
		"SIGTERM": 15, "term": 15, "15": 15, "SIGQUIT": 3, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMIN+3": 37,
		"SIGRTMINPLUS3": 37, "SIGRTMAX-1": 63, "SIGRTMAXMINUS1": 63, "SIGRTMAX": 64, "64": 64,
		"": 0, "0": 0, "65": 0, "-1": 0, "SIGNONE": 0, "SIGRTMIN+40": 0, "SIGRTMAX+1": 0, "SIGRTMINx": 0,
	}
	for text, want := range cases {
		got, err := parseSignal(text)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: got %d, %v; want %d", text, got, err, want)
		}
	}
}

func TestEverySignalOfCRIIsKnown(t *testing.T) {
	for n, name := range runtimeapi.Signal_name {
		if n == int32(runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT) {
			continue
		}
		if _, err := parseSignal(strings.TrimPrefix(name, "SIGNAL_")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestContainerLogPath(t *testing.T) {
	cases := []struct{ dir, path, want string }{
		{"/var/log/pods/x", "c/0.log", "/var/log/pods/x/c/0.log"},
		{"/var/log/pods/x", "", ""},
		{"", "c/0.log", ""},
		{"/var/log/pods/x", "../y/0.log", "error"},
		{"/var/log/pods/x", "/etc/passwd", "error"},
		{"/var/log/pods/x", "a/../../b", "error"},
		{"relative", "0.log", "error"},
	}
	for _, c := range cases {
		got, err := containerLogPath(&runtimeapi.PodSandboxConfig{LogDirectory: c.dir}, nil, &runtimeapi.ContainerConfig{LogPath: c.path})
		if c.want == "error" {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%q in %q: got %q, %v; want ErrInvalid", c.path, c.dir, got, err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%q in %q: got %q, %v; want %q", c.path, c.dir, got, err, c.want)
		}
	}
}

func TestMakeLogDir(t *testing.T) {
	dir, outside := filepath.Join(t.TempDir(), "pod"), t.TempDir()
	if err := makeLogDir(filepath.Join(dir, "c", "0.log"), "c/0.log"); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"out": outside, "dangling": filepath.Join(outside, "new"), "up": ".."} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		rel := name + "/x/0.log"
		if err := makeLogDir(filepath.Join(dir, rel), rel); !errors.Is(err, ErrInvalid) {
			t.Errorf("through the link %s: got %v, want ErrInvalid", name, err)
		}
		rel = name + "/0.log"
		if err := makeLogDir(filepath.Join(dir, rel), rel); !errors.Is(err, ErrInvalid) {
			t.Errorf("in the link %s: got %v, want ErrInvalid", name, err)
		}
	}
	if err := os.Symlink("c", filepath.Join(dir, "inside")); err != nil {
		t.Fatal(err)
	}
	if err := makeLogDir(filepath.Join(dir, "inside/0.log"), "inside/0.log"); err != nil {
		t.Errorf("a link that stays inside: %v", err)
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("made outside: %v", left)
	}
}

func TestResolvConf(t *testing.T) {
	got, err := resolvConf(&runtimeapi.DNSConfig{Servers: []string{"10.0.0.10", "fd00::a"}, Searches: []string{"a.svc", "b"}, Options: []string{"ndots:5"}})
	want := "search a.svc b\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
	if err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := resolvConf(&runtimeapi.DNSConfig{Servers: []string{"1.1.1.1\nnameserver 6.6.6.6"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a server with a line break: got %v, want ErrInvalid", err)
	}
}

func TestLoadAll(t *testing.T) {
	r, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	good, broken, foreign := strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)
	if err := r.saveContainer(&containerRecord{Version: recordVersion, ID: good}); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(r.containers, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(broken+".json", `{"version":1,"id":"bbb`)
	write(foreign+".json", `{"version":99,"id":"`+foreign+`"}`)
	write("README", "what is this doing here")
	write(tmpPrefix+good, "half of a reco")
	if err := os.Symlink("/etc/passwd", filepath.Join(r.containers, strings.Repeat("d", 64)+".json")); err != nil {
		t.Fatal(err)
	}
	var damaged []string
	got, err := loadAll(r, r.containers, func(rec *containerRecord, id string) error {
		if rec.Version != recordVersion || rec.ID != id {
			return ErrInvalid
		}
		return nil
	}, func(id string) { damaged = append(damaged, id[:1]) })
	if err != nil || len(got) != 1 || got[0].ID != good {
		t.Fatalf("got %v, %v; want the good record", got, err)
	}
	if strings.Join(damaged, "") != "bcd" {
		t.Errorf("told damaged %q, want b, c and d", damaged)
	}
	left, _ := os.ReadDir(r.containers)
	aside, _ := os.ReadDir(r.damaged)
	if len(left) != 1 || len(aside) != 4 {
		t.Errorf("%d files left and %d set aside, want 1 and 4: none may be deleted", len(left), len(aside))
	}
}
