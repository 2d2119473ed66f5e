package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// fakePlugin writes a plugin that notes each call in DIR/calls as "COMMAND
// NETNS", and then does what the script says. $CNI_COMMAND and the like are set.
func fakePlugin(tb testing.TB, dir, name, script string) {
	tb.Helper()
	path := filepath.Join(dir, name)
	text := fmt.Sprintf("#!/bin/sh\necho \"$CNI_COMMAND $CNI_NETNS\" >> %s/calls\ncat > %s/$CNI_COMMAND.stdin\n%s\n", dir, dir, script)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		tb.Fatal(err)
	}
}

const goodResult = `echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}'`

// fakeNetworks has one network "fake" of one plugin that does what the script says.
func fakeNetworks(tb testing.TB, version, script string) (n *Networks, dir string) {
	tb.Helper()
	dir = tb.TempDir()
	fakePlugin(tb, dir, "fake", script)
	write(tb, dir+"/net.d/10.conflist", list("fake", version, "fake"))
	return startNetworks(tb, dir, nil), dir
}

func startNetworks(tb testing.TB, dir string, change func(*Networks)) *Networks {
	tb.Helper()
	n, err := prepare(Options{ConfDir: dir + "/net.d", BinDirs: []string{dir}, CacheDir: dir + "/cache", Timeout: 20 * time.Second})
	if err != nil {
		tb.Fatal(err)
	}
	n.facts = func(context.Context) hostFacts { return hostFacts{} }
	if change != nil {
		change(n)
	}
	n.start()
	tb.Cleanup(func() {
		if err := n.Close(); err != nil {
			tb.Error(err)
		}
	})
	return n
}

func calls(tb testing.TB, dir string) string {
	tb.Helper()
	data, err := os.ReadFile(dir + "/calls")
	if err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	return strings.Join(strings.Fields(string(data)), " ")
}

func fakePod() Pod {
	return Pod{ID: podID, Name: "n", Namespace: "ns", UID: "u", NetNS: "/not/there"}
}

func TestPluginsThatFail(t *testing.T) {
	cases := []struct {
		name, version, script string
		timeout               time.Duration
		want                  string
		code                  uint
	}{
		{name: "a CNI error comes through with its code", version: "1.0.0",
			script: `[ $CNI_COMMAND = DEL ] || { echo '{"cniVersion":"1.0.0","code":11,"msg":"busy","details":"later"}'; exit 1; }`, want: "busy", code: 11},
		{name: "stderr tells where stdout does not", version: "1.0.0", script: `[ $CNI_COMMAND = DEL ] || { echo broken >&2; exit 3; }`, want: "broken"},
		{name: "a plugin that says nothing", version: "1.0.0", script: `[ $CNI_COMMAND = DEL ] || exit 3`, want: "exit status 3"},
		{name: "a result that is garbage", version: "1.0.0", script: `echo garbage`, want: "result"},
		{name: "a result that is null", version: "1.0.0", script: `echo null`, want: "no address"},
		{name: "a result without addresses", version: "1.0.0", script: `echo '{"cniVersion":"1.0.0"}'`, want: "no address"},
		{name: "a result of an unknown version", version: "1.0.0", script: `echo '{"cniVersion":"9.9.9"}'`, want: "version"},
		{name: "a result that makes the CNI library panic", version: "0.4.0",
			script: `echo '{"cniVersion":"0.4.0","interfaces":[null],"ips":[{"version":"4","address":"10.0.0.2/24"}]}'`, want: "could not be read"},
		{name: "ten megabytes of output", version: "1.0.0",
			script: `[ $CNI_COMMAND = DEL ] || { head -c 10485760 /dev/zero; sleep 60; }`, want: "wrote more than"},
		{name: "a plugin that hangs with a child that holds its output", version: "1.0.0", timeout: time.Second,
			script: `[ $CNI_COMMAND = DEL ] || { sleep 60 & sleep 60; }`, want: "deadline"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n, dir := fakeNetworks(t, c.version, c.script)
			if c.timeout != 0 {
				n.opts.Timeout = c.timeout
			}
			start := time.Now()
			_, err := n.Add(t.Context(), mustIntent(t, n, fakePod()))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
			var said *types.Error
			if c.code != 0 && (!errors.As(err, &said) || said.Code != c.code) {
				t.Errorf("the plugin's error code is lost: %v", err)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			if got := calls(t, dir); got != "ADD /not/there DEL" {
				t.Errorf("plugin calls were %q, want ADD, then DEL without the namespace that is gone", got)
			}
			if left, _ := os.ReadDir(dir + "/cache/results"); len(left) > 0 {
				t.Errorf("the cache keeps %v", left)
			}
		})
	}
}

func TestAPluginThatLeavesADaemonBehindIsDone(t *testing.T) {
	n, _ := fakeNetworks(t, "1.0.0", goodResult+"\n[ $CNI_COMMAND = DEL ] || { sleep 5 & }")
	start := time.Now()
	result := mustAdd(t, n, mustIntent(t, n, fakePod()))
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
	if fmt.Sprint(result.IPs) != "[10.0.0.2]" {
		t.Errorf("got %v", result.IPs)
	}
}

func TestACallThatIsCancelledStillCleansUp(t *testing.T) {
	n, dir := fakeNetworks(t, "1.0.0", `[ $CNI_COMMAND = DEL ] || sleep 60`)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	if _, err := n.Add(ctx, mustIntent(t, n, fakePod())); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := calls(t, dir); got != "ADD /not/there DEL" {
		t.Errorf("plugin calls were %q", got)
	}
}

func TestAFailedDelIsToldAndCanBeRepeated(t *testing.T) {
	n, dir := fakeNetworks(t, "1.0.0", goodResult+"\n[ $CNI_COMMAND != DEL ] || exit 1")
	pod := mustIntent(t, n, fakePod())
	mustAdd(t, n, pod)
	if err := n.Del(t.Context(), pod); err == nil {
		t.Fatal("the failure is lost")
	}
	fakePlugin(t, dir, "fake", "true")
	mustDel(t, n, pod)
	mustDel(t, n, pod)
}

func TestDelFindsTheNetwork(t *testing.T) {
	t.Run("in the pod's record when the file has changed", func(t *testing.T) {
		n, dir := fakeNetworks(t, "1.0.0", goodResult)
		pod := mustIntent(t, n, fakePod())
		mustAdd(t, n, pod)
		write(t, dir+"/net.d/10.conflist", list("other", "1.0.0", "gone"))
		waitFor(t, func() bool { return n.Status().Network == "other" })
		mustDel(t, n, pod)
		if got := calls(t, dir); got != "ADD /not/there DEL" {
			t.Errorf("plugin calls were %q", got)
		}
	})
	t.Run("in libcni's cache when the record has none", func(t *testing.T) {
		n, dir := fakeNetworks(t, "1.0.0", goodResult)
		mustAdd(t, n, mustIntent(t, n, fakePod()))
		write(t, dir+"/net.d/10.conflist", list("other", "1.0.0", "gone"))
		waitFor(t, func() bool { return n.Status().Network == "other" })
		mustDel(t, n, fakePod())
		if got := calls(t, dir); got != "ADD /not/there DEL" {
			t.Errorf("plugin calls were %q", got)
		}
		stdin, err := os.ReadFile(dir + "/DEL.stdin")
		if err != nil || !strings.Contains(string(stdin), `"prevResult"`) {
			t.Errorf("DEL was not given the result of ADD: %s, %v", stdin, err)
		}
	})
	t.Run("in the current configuration when nothing is recorded", func(t *testing.T) {
		n, dir := fakeNetworks(t, "1.0.0", goodResult)
		mustDel(t, n, fakePod())
		if got := calls(t, dir); got != "DEL" {
			t.Errorf("plugin calls were %q", got)
		}
	})
	t.Run("nowhere, and then there is nothing to do", func(t *testing.T) {
		n := startNetworks(t, t.TempDir(), nil)
		mustDel(t, n, fakePod())
	})
}

func TestCheck(t *testing.T) {
	t.Run("a network before CNI 0.4.0 has no CHECK and is taken to be well", func(t *testing.T) {
		n, _ := fakeNetworks(t, "0.3.1", `echo '{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}]}'`)
		pod := mustIntent(t, n, fakePod())
		mustAdd(t, n, pod)
		if err := n.Check(t.Context(), pod); err != nil {
			t.Error(err)
		}
	})
	t.Run("what CHECK finds is told", func(t *testing.T) {
		n, _ := fakeNetworks(t, "1.0.0", goodResult+"\n[ $CNI_COMMAND != CHECK ] || { echo eth0 is gone >&2; exit 1; }")
		pod := mustIntent(t, n, fakePod())
		mustAdd(t, n, pod)
		if err := n.Check(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "eth0 is gone") {
			t.Errorf("got %v", err)
		}
	})
}

func TestReady(t *testing.T) {
	notReady := func(t *testing.T, n *Networks, want string) {
		t.Helper()
		waitFor(t, func() bool {
			err := n.Ready()
			return errors.Is(err, ErrNotReady) && strings.Contains(err.Error(), want)
		})
		if got := n.Status().Error; !strings.Contains(got, want) {
			t.Errorf("status says %q", got)
		}
	}
	quick := func(n *Networks) { n.pollPeriod, n.statusPeriod = 20*time.Millisecond, 20*time.Millisecond }

	t.Run("a directory that does not exist yet is waited for", func(t *testing.T) {
		dir := t.TempDir()
		n := startNetworks(t, dir, nil)
		notReady(t, n, "no CNI configuration")
		if _, err := n.Intent(fakePod()); !errors.Is(err, ErrNotReady) {
			t.Errorf("a pod is let in: %v", err)
		}
		fakePlugin(t, dir, "fake", "")
		write(t, dir+"/net.d/10.conflist", list("fake", "1.0.0", "fake"))
		waitFor(t, func() bool { return n.Ready() == nil })
	})
	t.Run("a directory that is replaced is followed", func(t *testing.T) {
		n, dir := fakeNetworks(t, "1.0.0", "")
		if err := os.Rename(dir+"/net.d", dir+"/old.d"); err != nil {
			t.Fatal(err)
		}
		notReady(t, n, "no CNI configuration")
		write(t, dir+"/net.d/20.conflist", list("new", "1.0.0", "fake"))
		waitFor(t, func() bool { return n.Ready() == nil && n.Status().Network == "new" })
	})
	t.Run("a broken configuration is told, and the default network does not take its place", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir+"/net.d/10.conflist", "{")
		n := startNetworks(t, dir, func(n *Networks) { n.opts.Default = conflist(t) })
		notReady(t, n, "10.conflist")
	})
	t.Run("a file that is passed over is told by a network that serves", func(t *testing.T) {
		n, dir := fakeNetworks(t, "1.0.0", "")
		write(t, dir+"/net.d/05.conflist", "{")
		waitFor(t, func() bool { return len(n.Status().Warnings) == 1 })
		if err := n.Ready(); err != nil || n.Status().Network != "fake" {
			t.Errorf("got %+v, %v", n.Status(), err)
		}
	})
	t.Run("a plugin that is missing is told, and found when it comes", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir+"/net.d/10.conflist", list("fake", "1.0.0", "fake"))
		n := startNetworks(t, dir, quick)
		notReady(t, n, `plugin "fake" is not in`)
		fakePlugin(t, dir, "fake", "")
		waitFor(t, func() bool { return n.Ready() == nil })
		if err := os.Remove(dir + "/fake"); err != nil {
			t.Fatal(err)
		}
		notReady(t, n, `plugin "fake" is not in`)
	})
	t.Run("a plugin's STATUS counts from CNI 1.1.0 on", func(t *testing.T) {
		dir := t.TempDir()
		fakePlugin(t, dir, "fake", "[ -e "+dir+`/up ] || { echo '{"code":50,"msg":"agent is down"}'; exit 1; }`)
		write(t, dir+"/net.d/10.conflist", list("fake", "1.1.0", "fake"))
		n := startNetworks(t, dir, quick)
		if n.Ready() == nil {
			t.Error("ready before the first STATUS")
		}
		notReady(t, n, "agent is down")
		write(t, dir+"/up", "")
		waitFor(t, func() bool { return n.Ready() == nil })
		if err := os.Remove(dir + "/up"); err != nil {
			t.Fatal(err)
		}
		notReady(t, n, "agent is down")
	})
	t.Run("a STATUS that hangs holds up neither Ready nor Close", func(t *testing.T) {
		n, _ := fakeNetworks(t, "1.1.0", "sleep 60")
		notReady(t, n, "not told their status")
	})
	t.Run("without inotify the directory is polled", func(t *testing.T) {
		dir := t.TempDir()
		fakePlugin(t, dir, "fake", "")
		n, err := prepare(Options{ConfDir: dir + "/net.d", BinDirs: []string{dir}, CacheDir: dir + "/cache"})
		if err != nil {
			t.Fatal(err)
		}
		quick(n)
		ctx, cancel := context.WithCancel(context.Background())
		n.stop = cancel
		w := &watcher{n: n, watched: map[string]bool{}}
		w.reload(ctx)
		go w.run(ctx)
		write(t, dir+"/net.d/10.conflist", list("fake", "1.0.0", "fake"))
		waitFor(t, func() bool { return n.Ready() == nil })
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPodCIDRsReachPluginsThatWantThem(t *testing.T) {
	dir := t.TempDir()
	fakePlugin(t, dir, "fake", goodResult)
	write(t, dir+"/net.d/10.conflist", `{"cniVersion":"1.0.0","name":"fake","plugins":[{"type":"fake","capabilities":{"ipRanges":true}}]}`)
	n := startNetworks(t, dir, nil)
	if err := n.SetPodCIDR("10.1.2.3/24, fd00:1::/64"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"10.1.0.0", "x", "10.0.0.0/33", strings.Repeat("10.0.0.0/8,", 9)} {
		if err := n.SetPodCIDR(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	pod := mustIntent(t, n, fakePod())
	mustAdd(t, n, pod)
	stdin, err := os.ReadFile(dir + "/ADD.stdin")
	if want := `"runtimeConfig":{"ipRanges":[[{"subnet":"10.1.2.0/24"}],[{"subnet":"fd00:1::/64"}]]}`; err != nil || !strings.Contains(string(stdin), want) {
		t.Errorf("the plugin was given %s, %v", stdin, err)
	}
	t.Run("they last over a restart, and DEL gets those of the ADD", func(t *testing.T) {
		again := startNetworks(t, dir, nil)
		if got := again.Status().PodCIDRs; !slices.Equal(got, []string{"10.1.2.0/24", "fd00:1::/64"}) {
			t.Errorf("got %v", got)
		}
		if err := again.SetPodCIDR(""); err != nil {
			t.Fatal(err)
		}
		mustDel(t, again, pod)
		stdin, err := os.ReadFile(dir + "/DEL.stdin")
		if err != nil || !strings.Contains(string(stdin), "10.1.2.0/24") {
			t.Errorf("the plugin was given %s, %v", stdin, err)
		}
	})
}

func TestPluginsGetAnEnvironmentOfTheirOwn(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Setenv("PATH", "/usr/bin:/bin")
	n, _ := fakeNetworks(t, "1.0.0", goodResult+"\n[ -z \"$NOTIFY_SOCKET\" ] || exit 1\ncase $PATH in */usr/sbin*) ;; *) exit 1;; esac\n[ \"$(pwd)\" = / ] || exit 1")
	mustAdd(t, n, mustIntent(t, n, fakePod()))
}

// TestPluginsEndWithTheDaemon runs a daemon of its own, this test again, and kills it.
func TestPluginsEndWithTheDaemon(t *testing.T) {
	const marker = "CRI_ENGINE_TEST_DAEMON"
	if dir := os.Getenv(marker); dir != "" {
		_, _ = (&pluginExec{}).ExecPlugin(t.Context(), dir+"/fake", nil, os.Environ())
		t.Fatal("the plugin ended by itself")
	}
	dir := t.TempDir()
	fakePlugin(t, dir, "fake", "echo $$ > "+dir+"/pid.new; mv "+dir+"/pid.new "+dir+"/pid; exec sleep 600")
	daemon := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	daemon.Env = append(os.Environ(), marker+"="+dir)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	var pid string
	waitFor(t, func() bool {
		data, err := os.ReadFile(dir + "/pid")
		pid = strings.TrimSpace(string(data))
		return err == nil
	})
	if _, err := os.Stat("/proc/" + pid); err != nil {
		t.Fatal("the plugin ended before the daemon: ", err)
	}
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait()
	waitFor(t, func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat") // a zombie is waiting for the machine's init
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}
