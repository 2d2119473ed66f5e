package labels

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
)

const (
	processType = "system_u:system_r:container_t:"
	fileType    = "system_u:object_r:container_file_t:"
)

// onPolicy is a Labeler under a policy whose kernel refuses the types in unknown.
func onPolicy(t testing.TB, unknown ...string) *Labeler {
	t.Helper()
	selinux.ClearLabels()
	t.Cleanup(selinux.ClearLabels)
	check := func(label string) error {
		for _, u := range unknown {
			if strings.Contains(label, ":"+u) {
				return &os.PathError{Op: "write", Path: "/sys/fs/selinux/context", Err: unix.EINVAL}
			}
		}
		return nil
	}
	return New(Policy{Base: Pair{processType + "s0", fileType + "s0"}, Check: check})
}

func pod(t testing.TB, l *Labeler, o Options) Pair {
	t.Helper()
	pair, err := l.Pod(o)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func container(t testing.TB, l *Labeler, p Pair, o Options) Pair {
	t.Helper()
	pair, err := l.Container(p, o)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestLabels(t *testing.T) {
	l := onPolicy(t)
	levelled := regexp.MustCompile(`^s0:c[0-9]+,c[0-9]+$`)
	a := pod(t, l, Options{})
	t.Run("a pod has the policy's labels with a level of its own", func(t *testing.T) {
		b := pod(t, l, Options{})
		for _, p := range []Pair{a, b} {
			level := levelOf(p)
			if p.Process != processType+level || p.Mount != fileType+level || !levelled.MatchString(level) {
				t.Errorf("labels %+v", p)
			}
		}
		if levelOf(a) == levelOf(b) {
			t.Errorf("two pods have the level of %+v", a)
		}
	})
	t.Run("its containers have its labels", func(t *testing.T) {
		if c := container(t, l, a, Options{}); c != a {
			t.Errorf("got %+v, the pod has %+v", c, a)
		}
	})
	t.Run("options replace parts of it", func(t *testing.T) {
		level := levelOf(a)
		for want, o := range map[Pair]Options{
			{"system_u:system_r:spc_t:" + level, fileType + level}:                            {Type: "spc_t"},
			{"me_u:system_r:container_t:" + level, "me_u:object_r:container_file_t:" + level}: {User: "me_u"},
			{"system_u:me_r:container_t:" + level, fileType + level}:                          {Role: "me_r"},
			{processType + "s0", fileType + "s0"}:                                             {Level: "s0"},
			{"u:r:t.x:s0-s0:c0.c1023", "u:object_r:container_file_t:s0-s0:c0.c1023"}:          {User: "u", Role: "r", Type: "t.x", Level: "s0-s0:c0.c1023"},
		} {
			if got := container(t, l, a, o); got != want {
				t.Errorf("%v: got %+v, want %+v", o, got, want)
			}
		}
	})
	t.Run("a pod's options are those of its containers, which can have others", func(t *testing.T) {
		p := pod(t, l, Options{Type: "pod_t", Level: "s0:c4,c5"})
		if c := container(t, l, p, Options{}); c.Process != "system_u:system_r:pod_t:s0:c4,c5" || c.Mount != fileType+"s0:c4,c5" {
			t.Errorf("got %+v", c)
		}
		if c := container(t, l, p, Options{Type: "other_t"}); c.Process != "system_u:system_r:other_t:s0:c4,c5" {
			t.Errorf("got %+v", c)
		}
	})
}

func TestLevelsAreNobodyElsesUntilTheLastUseIsReleased(t *testing.T) {
	l := onPolicy(t)
	p := pod(t, l, Options{})
	c := container(t, l, p, Options{})
	level := levelOf(p)
	l.Release(p)
	if l.take(level) {
		t.Error("the level of a container is free")
	}
	l.Release(c)
	if !l.take(level) {
		t.Error("a level that nobody has is not free")
	}
	t.Run("one too many releases do no harm", func(t *testing.T) {
		q := pod(t, l, Options{Level: "s0:c1,c2"})
		l.Release(q)
		l.Release(q)
		l.Reserve(q)
		if l.take("s0:c1,c2") {
			t.Error("a level in use is free")
		}
	})
	t.Run("a level that is recorded is reserved at start", func(t *testing.T) {
		again := onPolicy(t)
		again.Reserve(p)
		if again.take(level) {
			t.Error("a recorded level is free")
		}
	})
	t.Run("all are given before there is none", func(t *testing.T) {
		few := onPolicy(t)
		for range 2000 {
			pod(t, few, Options{})
		}
		if n := few.Info()["levels"]; n != 2000 {
			t.Errorf("%v levels for 2000 pods", n)
		}
	})
}

func TestWrongOptionsAreRefused(t *testing.T) {
	l := onPolicy(t, "no_such_t")
	p := pod(t, l, Options{})
	before := l.Info()["levels"]
	for name, o := range map[string]Options{
		"level": {Level: "s0,c4,c5"}, "user": {User: "a:b"}, "role": {Role: "r r"}, "type": {Type: "t\x00"}, "": {Type: "no_such_t", Level: "s0:c7,c8"},
	} {
		for kind, give := range map[string]func() (Pair, error){
			"a pod": func() (Pair, error) { return l.Pod(o) }, "a container": func() (Pair, error) { return l.Container(p, o) },
		} {
			var wrong *OptionError
			if pair, err := give(); !errors.As(err, &wrong) || wrong.Field != name || pair != (Pair{}) {
				t.Errorf("%s with %v: %+v, %v", kind, o, pair, err)
			}
		}
	}
	if after := l.Info()["levels"]; after != before {
		t.Errorf("%v levels in use, before it were %v", after, before)
	}
	for _, level := range []string{"s", "s0:", "s0:c", "s0:c1,", "0:c1", "s0:c1-", "s0:c1-c2", "x", "s0:c1 ", strings.Repeat("s0", maxLevel)} {
		if _, err := l.Pod(Options{Level: level}); err == nil {
			t.Errorf("the level %q is taken", level)
		}
	}
}

func TestWithoutSELinux(t *testing.T) {
	l := Off("not here")
	for _, o := range []Options{{}, {Type: "spc_t", Level: "s0:c1,c2"}} {
		if p, err := l.Pod(o); p != (Pair{}) || err != nil {
			t.Errorf("a pod has %+v, %v", p, err)
		}
		if p, err := l.Container(Pair{}, o); p != (Pair{}) || err != nil {
			t.Errorf("a container has %+v, %v", p, err)
		}
	}
	if _, err := l.Container(Pair{}, Options{Level: "s0,c4,c5"}); err == nil {
		t.Error("what is no level is taken")
	}
	l.Reserve(Pair{Mount: fileType + "s0:c1,c2"})
	l.Release(Pair{Mount: fileType + "s0:c1,c2"})
	if l.Shared() != "" || l.Info()["reason"] != "not here" {
		t.Errorf("shared %q, info %v", l.Shared(), l.Info())
	}
}

func TestAContainerOfAPodFromBeforeSELinuxHasNoLabels(t *testing.T) {
	if p, err := onPolicy(t).Container(Pair{}, Options{Type: "spc_t"}); p != (Pair{}) || err != nil {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestPathsOfTheSystemAreNotRelabelled(t *testing.T) {
	own := []string{"/data/engine/root", "/run/cri-engine"}
	for path, want := range map[string]bool{
		"/": false, "/etc": false, "/etc/app": false, "/usr/share/x": false, "/proc/1": false, "/sys/fs": false, "/dev/shm/x": false, "/var": false, "/var/lib": false,
		"/var/lib/kubelet": false, "/home": false, "/home/me": false, "/root": false, "/tmp": false, "/run": false,
		"/data": false, "/data/engine": false, "/data/engine/root": false, "/data/engine/root/storage": false, "/run/cri-engine/pods": false,
		"/data/engine/rooted": true, "/data/other": true, "/home/me/data": true, "/tmp/x": true, "/var/lib/kubelet/pods/u/volumes/v": true, "/var/lib/app": true,
		"/mnt/disk": true, "/etcetera": true, "/run/x": true,
	} {
		err := CheckPath(path, own...)
		var refused *PathError
		if want != (err == nil) || err != nil && !errors.As(err, &refused) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// labelled walks a tree and returns what would be labelled, relative to it, in order.
func labelled(ctx context.Context, t testing.TB, root string, each func(path string)) ([]string, error) {
	t.Helper()
	var list []string
	w := &walk{ctx: ctx, set: func(fd int) error {
		path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		list = append(list, rel)
		if each != nil {
			each(rel)
		}
		return err
	}}
	return list, w.start(root)
}

func TestAVolumeIsLabelledWhole(t *testing.T) {
	root := filepath.Join(t.TempDir(), "volume")
	outside := filepath.Join(filepath.Dir(root), "outside")
	for _, dir := range []string{"a/b", "c"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(outside, "secret"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(root, "a/b/file"), nil, 0o600),
		os.Symlink(outside, filepath.Join(root, "link")),
		unix.Mkfifo(filepath.Join(root, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Run("with links and FIFOs themselves, and the top last", func(t *testing.T) {
		got, err := labelled(t.Context(), t, root, nil)
		if err != nil || got[len(got)-1] != "." {
			t.Fatalf("%v, %v", got, err)
		}
		slices.Sort(got)
		if want := []string{".", "a", "a/b", "a/b/file", "c", "fifo", "link"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	t.Run("a directory that turns into a link meanwhile leads nowhere", func(t *testing.T) {
		swapped := false
		got, err := labelled(t.Context(), t, root, func(path string) {
			if !swapped {
				swapped = true
				for _, dir := range []string{"a", "c"} {
					_ = os.Rename(filepath.Join(root, dir), filepath.Join(outside, dir))
					_ = os.Symlink(outside, filepath.Join(root, dir))
				}
			}
		})
		if err != nil || slices.ContainsFunc(got, func(p string) bool { return strings.Contains(p, "secret") }) {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("a link for a volume is not followed", func(t *testing.T) {
		if got, err := labelled(t.Context(), t, filepath.Join(root, "link"), nil); err != nil || len(got) != 1 {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("who gives up is not kept waiting", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := labelled(ctx, t, root, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a tree without end has one", func(t *testing.T) {
		deep := filepath.Join(filepath.Dir(root), "deep")
		path := deep
		for range maxDepth + 1 {
			path += "/d"
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := labelled(t.Context(), t, deep, nil); err == nil || !strings.Contains(err.Error(), "nested more than") {
			t.Errorf("error %v", err)
		}
	})
}

func FuzzLevels(f *testing.F) {
	for _, s := range []string{"s0", "s0:c1,c2", "s0-s0:c0.c1023", "s0,c4,c5", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, level string) {
		l := onPolicy(t)
		pair, err := l.Pod(Options{Level: level})
		if err == nil && level != "" && (pair.Process != processType+level || levelOf(pair) != level) {
			t.Errorf("level %q gives %+v", level, pair)
		}
		l.Release(pair)
		if n := l.Info()["levels"]; n != 0 {
			t.Errorf("%v levels are left of %q", n, level)
		}
	})
}
