package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	testPasswd = `root:x:0:0:root:/root:/bin/sh
broken line
bad:x:abc:0::/:
app:x:1000:1001:App:/home/app:/bin/sh
short:x:7:8
huge:x:4294967295:0::/:/bin/sh
dup:x:1000:2002::/:/bin/sh
42:x:4242:43::/:/bin/sh
`
	testGroup = `root:x:0:
app:x:1001:
wheel:x:10:root,app
bad:x:-5:app
audio:x:29:other,app
huge:x:4294967295:app
none
`
)

func TestUser(t *testing.T) {
	id := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	type sc = runtimeapi.LinuxContainerSecurityContext
	cases := []struct {
		name   string
		image  string
		sc     *sc
		uid    int64
		groups []int64 // the first is the primary one
		field  string  // of the fault
	}{
		{name: "root without any", groups: []int64{0, 10}, sc: &sc{}},
		{name: "the image's name, with its groups", image: "app", sc: &sc{}, uid: 1000, groups: []int64{1001, 10, 29}},
		{name: "the image's number that has an account", image: "1000", sc: &sc{}, uid: 1000, groups: []int64{1001, 10, 29}},
		{name: "the image's number that has none", image: "5000", sc: &sc{}, uid: 5000, groups: []int64{0}},
		{name: "the image's numbers", image: "5000:6000", sc: &sc{}, uid: 5000, groups: []int64{6000}},
		{name: "the image's name and group name", image: "app:wheel", sc: &sc{}, uid: 1000, groups: []int64{10, 29}},
		{name: "the image's number and group name", image: "5000:audio", sc: &sc{}, uid: 5000, groups: []int64{29}},
		{name: "an account without a shell counts", image: "short", sc: &sc{}, uid: 7, groups: []int64{8}},
		{name: "a group alone is root's", image: ":audio", sc: &sc{}, groups: []int64{29, 10}},
		{name: "an image's name that has no account", image: "nobody", sc: &sc{}, field: "the image's user"},
		{name: "an image's name whose account is broken", image: "bad", sc: &sc{}, field: "the image's user"},
		{name: "an image's group that does not exist", image: "app:nogroup", sc: &sc{}, field: "the image's group"},
		{name: "an image's number that is none", image: "4294967295", sc: &sc{}, field: "the image's user"},
		{name: "an image's number beyond 64 bits", image: "99999999999999999999", sc: &sc{}, field: "the image's user"},
		{name: "run_as_user before the image's", image: "app:wheel", sc: &sc{RunAsUser: id(7)}, uid: 7, groups: []int64{8}},
		{name: "run_as_user 0", image: "app", sc: &sc{RunAsUser: id(0)}, uid: 0, groups: []int64{0, 10}},
		{name: "run_as_user and run_as_group", sc: &sc{RunAsUser: id(1000), RunAsGroup: id(3000)}, uid: 1000, groups: []int64{3000, 10, 29}},
		{name: "run_as_username", sc: &sc{RunAsUsername: "app"}, uid: 1000, groups: []int64{1001, 10, 29}},
		{name: "run_as_username that looks like a number is a name", sc: &sc{RunAsUsername: "42"}, uid: 4242, groups: []int64{43}},
		{name: "run_as_username that does not exist", sc: &sc{RunAsUsername: "43"}, field: securityContext + "run_as_username"},
		{name: "both users", sc: &sc{RunAsUser: id(1), RunAsUsername: "app"}, field: securityContext + "run_as_username"},
		{name: "a group without a user", sc: &sc{RunAsGroup: id(1)}, field: securityContext + "run_as_group"},
		{name: "a negative user", sc: &sc{RunAsUser: id(-1)}, field: securityContext + "run_as_user"},
		{name: "the user that means no change to the kernel", sc: &sc{RunAsUser: id(1<<32 - 1)}, field: securityContext + "run_as_user"},
		{name: "the last user there is", sc: &sc{RunAsUser: id(1<<32 - 2)}, uid: 1<<32 - 2, groups: []int64{0}},
		{name: "a group out of range", sc: &sc{RunAsUser: id(1), RunAsGroup: id(1 << 32)}, field: securityContext + "run_as_group"},
		{name: "supplemental groups are merged with the image's", image: "app", sc: &sc{SupplementalGroups: []int64{99, 10}}, uid: 1000, groups: []int64{1001, 10, 29, 99}},
		{name: "supplemental groups only, when strict", image: "app", sc: &sc{SupplementalGroups: []int64{99}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict}, uid: 1000, groups: []int64{1001, 99}},
		{name: "a supplemental group out of range", sc: &sc{SupplementalGroups: []int64{1, -1}}, field: securityContext + "supplemental_groups[1]"},
		{name: "an unknown policy", sc: &sc{SupplementalGroupsPolicy: 7}, field: securityContext + "supplemental_groups_policy"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t)
			write(t, in.RootFS+"/etc/passwd", testPasswd)
			write(t, in.RootFS+"/etc/group", testGroup)
			in.Image.User, in.Config.Linux.SecurityContext = c.image, c.sc
			if c.field != "" {
				refuses(t, in, ableHost(), c.field)
				return
			}
			spec, user := build(t, in, ableHost())
			if user.UID != c.uid || user.GID != c.groups[0] || int64(spec.Process.User.UID) != c.uid || int64(spec.Process.User.GID) != c.groups[0] {
				t.Errorf("user %+v, in the spec %+v", user, spec.Process.User)
			}
			equal(t, "groups", user.AdditionalGroups, c.groups)
			if len(spec.Process.User.AdditionalGids) != len(c.groups) {
				t.Errorf("groups in the spec: %v", spec.Process.User.AdditionalGids)
			}
		})
	}
}

func TestUserOfHostileImage(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	write(t, outside, "app:x:1:1::/:/bin/sh\n")
	cases := []struct {
		name    string
		prepare func(t *testing.T, etc string)
		want    string // of the error, "" for no such user
	}{
		{"without accounts", func(*testing.T, string) {}, ""},
		{"with a link to the host's file", func(t *testing.T, etc string) { link(t, outside, etc+"/passwd") }, ""},
		{"with a link upwards", func(t *testing.T, etc string) { link(t, "../../../../../../.."+outside, etc+"/passwd") }, ""},
		{"with a link in a circle", func(t *testing.T, etc string) { link(t, "passwd", etc+"/passwd") }, "too many levels"},
		{"with a directory for a file", func(t *testing.T, etc string) { write(t, etc+"/passwd/x", "") }, "not a regular file"},
		{"with a FIFO that nobody writes to", func(t *testing.T, etc string) { fifo(t, etc+"/passwd") }, "not a regular file"},
		{"with a file that is too large", func(t *testing.T, etc string) {
			write(t, etc+"/passwd", strings.Repeat("#\n", maxAccountFile))
		}, "more than the 1048576"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t)
			if err := os.Mkdir(in.RootFS+"/etc", 0o755); err != nil {
				t.Fatal(err)
			}
			c.prepare(t, in.RootFS+"/etc")
			in.Image.User = "app"
			if c.want == "" {
				refuses(t, in, ableHost(), "the image's user")
				return
			}
			if _, _, err := containerSpec(in, ableHost()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	t.Run("a link that stays inside is followed", func(t *testing.T) {
		in := testInput(t)
		write(t, in.RootFS+"/usr/share/accounts", testPasswd)
		if err := os.Mkdir(in.RootFS+"/etc", 0o755); err != nil {
			t.Fatal(err)
		}
		link(t, "/usr/share/accounts", in.RootFS+"/etc/passwd")
		in.Image.User = "app"
		if _, user := build(t, in, ableHost()); user.UID != 1000 {
			t.Errorf("user %+v", user)
		}
	})
}

func TestHomeIsTheAccountsUnlessItIsSet(t *testing.T) {
	cases := []struct {
		name, user, want string
		env              []string
	}{
		{"the home that passwd has", "app", "HOME=/home/app", nil},
		{"the root directory for a number without an account", "4242", "HOME=/", nil},
		{"the image's own", "app", "HOME=/srv", []string{"HOME=/srv"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t)
			write(t, in.RootFS+"/etc/passwd", "app:x:1000:1000::/home/app:/bin/sh\n")
			in.Image.User, in.Image.Env = c.user, c.env
			spec, _ := build(t, in, ableHost())
			var homes []string
			for _, e := range spec.Process.Env {
				if strings.HasPrefix(e, "HOME=") {
					homes = append(homes, e)
				}
			}
			if len(homes) != 1 || homes[0] != c.want {
				t.Errorf("got %q, want %q", homes, c.want)
			}
		})
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add(testPasswd, "app")
	f.Add(testGroup, "app")
	f.Add("a:b:1:2:c,d\n\n:::\n", "d")
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, data, name string) {
		for r := range records(data, 4) {
			if len(r) < 4 || r[0] == "" {
				t.Fatalf("record %q", r)
			}
		}
		for _, gid := range groupsOf(data, name) {
			if gid < 0 || gid > maxID {
				t.Errorf("group %d", gid)
			}
		}
		if len(data) > maxAccountFile {
			return
		}
		write(t, root+"/etc/passwd", data)
		u, err := userWanted{user: name}.lookUp(&accounts{root: root})
		if err == nil && (u.uid < 0 || u.uid > maxID || u.gid < 0 || u.gid > maxID) {
			t.Errorf("user %+v", u)
		}
	})
}
