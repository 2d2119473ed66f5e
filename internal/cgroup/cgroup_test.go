package cgroup

import (
	"maps"
	"os"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	mounts := Dirs{"memory": "/sys/fs/cgroup/memory", "cpu": "/c/cpu,cpuacct", "cpuacct": "/c/cpu,cpuacct", "": "/sys/fs/cgroup/unified"}
	cases := []struct {
		name, text string
		want       Dirs
	}{
		{"a v1 hierarchy with two controllers", "5:cpu,cpuacct:/a/b\n", Dirs{"cpu": "/c/cpu,cpuacct/a/b", "cpuacct": "/c/cpu,cpuacct/a/b"}},
		{"the v2 hierarchy", "0::/x\n", Dirs{"": "/sys/fs/cgroup/unified/x"}},
		{"one that is not mounted", "7:hugetlb:/x\n", Dirs{}},
		{"a path with a colon", "3:memory:/a:b\n", Dirs{"memory": "/sys/fs/cgroup/memory/a:b"}},
		{"a path that climbs stays beneath the mount", "3:memory:/../../etc\n", Dirs{"memory": "/sys/fs/cgroup/etc"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := parse(strings.NewReader(c.text), mounts)
			if c.name == "a path that climbs stays beneath the mount" {
				if err == nil {
					t.Errorf("got %v, want an error", got)
				}
				return
			}
			if err != nil || !maps.Equal(got, c.want) {
				t.Errorf("got %v, %v; want %v", got, err, c.want)
			}
		})
	}
	if _, err := parse(strings.NewReader("nonsense\n"), mounts); err == nil {
		t.Error("a line without colons was accepted")
	}
}

func TestParseMounts(t *testing.T) {
	text := `30 25 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 25 0:28 / /sys/fs/cgroup/systemd rw shared:1 - cgroup cgroup rw,xattr,name=systemd
33 25 0:29 / /proc rw - proc proc rw
`
	got, err := parseMounts(strings.NewReader(text))
	want := Dirs{"": "/sys/fs/cgroup/unified", "cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "name=systemd": "/sys/fs/cgroup/systemd"}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestOfSelf(t *testing.T) {
	dirs, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for controller, dir := range dirs {
		if _, err := os.Stat(dir); err != nil && !strings.Contains(dir, "..") {
			t.Logf("the %q cgroup %s of this process is not visible here (a cgroup namespace): %v", controller, dir, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0::/x\n5:cpu:/y\n")
	f.Fuzz(func(t *testing.T, text string) {
		mounts := Dirs{"": "/m", "cpu": "/c"}
		dirs, err := parse(strings.NewReader(text), mounts)
		if err != nil {
			return
		}
		for c, d := range dirs {
			if d != mounts[c] && !strings.HasPrefix(d, mounts[c]+"/") {
				t.Errorf("%q leads to %q, out of %q", text, d, mounts[c])
			}
		}
	})
}
