package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// list is a conflist of plugins without settings.
func list(name, version string, plugins ...string) string {
	var b strings.Builder
	for i, plugin := range plugins {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, `{"type":%q}`, plugin)
	}
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, version, name, &b)
}

func write(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
}

func TestLoadDir(t *testing.T) {
	good := list("good", "1.0.0", "bridge")
	cases := []struct {
		name     string
		files    map[string]string
		network  string // "" for none
		plugins  []string
		warnings int
		err      string
	}{
		{name: "an empty directory has no network"},
		{name: "the first file by name serves", files: map[string]string{
			"20-b.conflist": list("b", "1.0.0", "bridge"), "10-a.conflist": list("a", "1.0.0", "ptp")},
			network: "a", plugins: []string{"ptp"}},
		{name: "a single plugin's file becomes a list", files: map[string]string{
			"10.conf": `{"cniVersion":"0.3.1","name":"old","type":"bridge","ipam":{"type":"host-local"}}`},
			network: "old", plugins: []string{"bridge", "host-local"}},
		{name: "a list in a .json file is a list", files: map[string]string{"10.json": good}, network: "good", plugins: []string{"bridge"}},
		{name: "other files, hidden files and directories don't count", files: map[string]string{
			"10.conflist.bak": good, ".10.conflist": good, "README": good, "sub.conflist/x": good}},
		{name: "a broken file is passed over and named", files: map[string]string{"10.conflist": "{", "20.conflist": good},
			network: "good", plugins: []string{"bridge"}, warnings: 1},
		{name: "only broken files are an error", files: map[string]string{"10.conflist": `{"name":`, "20.conf": `{"name":"x"}`},
			warnings: 2, err: "10.conflist"},
		{name: "a file that is too large", files: map[string]string{"10.conflist": good + strings.Repeat(" ", 4096)},
			warnings: 1, err: "larger than"},
		{name: "a network's name is no path", files: map[string]string{"10.conflist": list("../../etc", "1.0.0", "bridge")},
			warnings: 1, err: "network name"},
		{name: "a plugin's name is no path", files: map[string]string{"10.conflist": list("x", "1.0.0", "../../bin/sh")},
			warnings: 1, err: "no plugin name"},
		{name: "an IPAM plugin's name is no path", files: map[string]string{"10.conf": `{"name":"x","type":"bridge","ipam":{"type":"/bin/sh"}}`},
			warnings: 1, err: "no plugin name"},
		{name: "a list without plugins", files: map[string]string{"10.conflist": `{"cniVersion":"1.0.0","name":"x"}`},
			warnings: 1, err: "0 plugins"},
		{name: "a list of too many plugins", files: map[string]string{"10.conflist": list("x", "1.0.0", slices.Repeat([]string{"a"}, 33)...)},
			warnings: 1, err: "33 plugins"},
		{name: "a version that is not spoken here", files: map[string]string{"10.conflist": list("x", "9.0.0", "bridge")},
			warnings: 1, err: "newest that is spoken"},
		{name: "a version that is none", files: map[string]string{"10.conflist": list("x", "new", "bridge")},
			warnings: 1, err: "10.conflist"},
		{name: "of several versions the newest that is known serves", files: map[string]string{
			"10.conflist": `{"cniVersions":["0.4.0","1.0.0","7.0.0"],"name":"x","plugins":[{"type":"bridge"}]}`},
			network: "x", plugins: []string{"bridge"}},
		{name: "plugins in the network's own directory are chained", files: map[string]string{
			"10.conflist": list("x", "1.1.0", "bridge"), "x/20.conf": `{"type":"portmap"}`, "x/10.conf": `{"type":"tuning"}`, "x/30.conflist": "{"},
			network: "x", plugins: []string{"bridge", "tuning", "portmap"}},
		{name: "unless the list says that it is complete", files: map[string]string{
			"10.conflist": `{"cniVersion":"1.1.0","name":"x","loadOnlyInlinedPlugins":true,"plugins":[{"type":"bridge"}]}`, "x/20.conf": `{"type":"portmap"}`},
			network: "x", plugins: []string{"bridge"}},
		{name: "a broken plugin in the network's own directory breaks it", files: map[string]string{
			"10.conflist": list("x", "1.1.0", "bridge"), "x/20.conf": `{`},
			warnings: 1, err: "20.conf"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				write(t, filepath.Join(dir, name), text)
			}
			n, warnings, err := loadDir(dir, 4096)
			if len(warnings) != c.warnings {
				t.Errorf("got warnings %q, want %d", warnings, c.warnings)
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got error %v, want one with %q", err, c.err)
			}
			if c.network == "" {
				if n != nil {
					t.Errorf("got network %s, want none", n.list.Name)
				}
				return
			}
			if n == nil || n.list.Name != c.network || !slices.Equal(n.pluginTypes(), c.plugins) {
				t.Fatalf("got %+v, want %s of %v", n, c.network, c.plugins)
			}
			again, err := recordedList(n.list.Bytes)
			if err != nil || len(again.Plugins) != len(n.list.Plugins) {
				t.Errorf("what a record keeps gives %+v, %v", again, err)
			}
		})
	}
	t.Run("a directory that does not exist has no network", func(t *testing.T) {
		if n, warnings, err := loadDir(filepath.Join(t.TempDir(), "none"), 4096); n != nil || warnings != nil || err != nil {
			t.Errorf("got %v, %v, %v", n, warnings, err)
		}
	})
	t.Run("a FIFO and a dangling link do not hang it", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mkfifo(filepath.Join(dir, "10.conflist"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("nowhere", filepath.Join(dir, "20.conflist")); err != nil {
			t.Fatal(err)
		}
		if n, warnings, err := loadDir(dir, 4096); n != nil || len(warnings) != 2 || err == nil {
			t.Errorf("got %v, %v, %v", n, warnings, err)
		}
	})
}

func TestFingerprintSeesEveryKindOfChange(t *testing.T) {
	dir := t.TempDir()
	seen := map[string]string{}
	look := func(what string) {
		t.Helper()
		print := fingerprint(dir)
		if before, ok := seen[print]; ok {
			t.Errorf("%s looks like %s", what, before)
		}
		seen[print] = what
	}
	path := filepath.Join(dir, "10.conflist")
	look("an empty directory")
	write(t, path, "one")
	look("a new file")
	write(t, path, "two, longer")
	look("a longer file")
	write(t, path+".new", "two, LONGER")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	look("a replaced file")
	write(t, filepath.Join(dir, "net", "20.conf"), "x")
	look("a plugin in a network's own directory")
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte(list("a", "1.0.0", "bridge", "portmap")))
	f.Add([]byte(`{"cniVersion":"0.3.1","name":"old","type":"bridge","ipam":{"type":"host-local"}}`))
	f.Add([]byte(`{"cniVersions":["0.4.0",1],"name":"x","disableCheck":"true","plugins":[{"type":"a","capabilities":{"x":true}}]}`))
	f.Add([]byte(`{"plugins":null,"type":7}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseList(data)
		if err != nil {
			return
		}
		if strings.Contains(list.Name, "/") || list.Name == "" {
			t.Errorf("took the name %q", list.Name)
		}
		if checkList(list) != nil {
			return
		}
		for _, plugin := range list.Plugins {
			if strings.Contains(plugin.Network.Type, "/") {
				t.Errorf("took the plugin %q", plugin.Network.Type)
			}
		}
		again, err := recordedList(list.Bytes)
		if err != nil || again.Name != list.Name || len(again.Plugins) != len(list.Plugins) {
			t.Errorf("what a record keeps gives %+v, %v", again, err)
		}
	})
}
