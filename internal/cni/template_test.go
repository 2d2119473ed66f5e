package cni

import (
	"os"
	"strings"
	"testing"
)

const goodTemplate = `{"cniVersion": "1.0.0", "name": "made", "plugins": [{"type": "fake", "ipam": {"type": "host-local",
 "ranges": [{{range $i, $r := .PodCIDRRanges}}{{if $i}},{{end}}[{"subnet": "{{$r}}"}]{{end}}],
 "routes": [{{range $i, $r := .Routes}}{{if $i}},{{end}}{"dst": "{{$r}}"}{{end}}]}, "first": "{{.PodCIDR}}"}]}`

func TestTemplate(t *testing.T) {
	setUp := func(t *testing.T, text string) (*Networks, string) {
		dir := t.TempDir()
		fakePlugin(t, dir, "fake", goodResult)
		fakePlugin(t, dir, "host-local", goodResult)
		write(t, dir+"/template", text)
		return startNetworks(t, dir, func(n *Networks) { n.opts.ConfTemplate = dir + "/template" }), dir + "/net.d/" + templated
	}
	t.Run("the pod CIDRs become a network, and new ones another", func(t *testing.T) {
		n, file := setUp(t, goodTemplate)
		if _, err := os.Stat(file); err == nil {
			t.Fatal("there is a network before there are CIDRs")
		}
		for cidrs, want := range map[string][]string{
			"10.1.0.0/24, fd00:1::/64": {`"first": "10.1.0.0/24"`, `[[{"subnet": "10.1.0.0/24"}],[{"subnet": "fd00:1::/64"}]]`, `[{"dst": "0.0.0.0/0"},{"dst": "::/0"}]`},
			"10.2.0.0/24":              {`"first": "10.2.0.0/24"`, `[[{"subnet": "10.2.0.0/24"}]]`, `[{"dst": "0.0.0.0/0"}]`},
		} {
			if err := n.SetPodCIDR(cidrs); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range want {
				if !strings.Contains(string(text), w) {
					t.Errorf("%s: %s does not have %s", cidrs, text, w)
				}
			}
		}
		waitFor(t, func() bool { return n.Ready() == nil && n.Status().Network == "made" })
	})
	t.Run("where another network is, none is made", func(t *testing.T) {
		n, file := setUp(t, goodTemplate)
		write(t, n.opts.ConfDir+"/20-other.conflist", list("other", "1.0.0", "fake"))
		if err := n.SetPodCIDR("10.1.0.0/24"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(file); err == nil {
			t.Error("one was made")
		}
	})
	t.Run("what was told before the start is made into a network at the start", func(t *testing.T) {
		n, file := setUp(t, goodTemplate)
		if err := n.SetPodCIDR("10.1.0.0/24"); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		again, err := prepare(n.opts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(file); err != nil || len(again.podCIDRs()) != 1 {
			t.Errorf("%v, CIDRs %v", err, again.podCIDRs())
		}
	})
	t.Run("a template that is no good is named, and writes nothing", func(t *testing.T) {
		for text, want := range map[string]string{
			"{{.PodCIDR":   "template:1: ",
			"{{.PodCDIR}}": "PodCDIR",
			"{}":           "does not make a network of 10.1.0.0/24",
			`{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "../../bin/sh"}]}`: "does not make a network",
			`{{define "x"}}{{template "x"}}{{end}}{{template "x"}}`:                       "depth",
			`{{range .PodCIDRRanges}}` + strings.Repeat("x", 2000) + `{{end}}`:            "too large",
		} {
			n, file := setUp(t, text)
			if strings.HasPrefix(want, "too") {
				n.opts.MaxConfBytes = 2100 // more than the template, less than what it makes
			}
			cidrs := "10.1.0.0/24"
			if want == "too large" {
				cidrs += ",fd00::/64"
			}
			err := n.SetPodCIDR(cidrs)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "network.conf_template: "+n.opts.ConfTemplate) {
				t.Errorf("%s: error %v, want %q", text[:min(len(text), 40)], err, want)
			}
			if _, err := os.Stat(file); err == nil {
				t.Errorf("%s: a file was written", text[:min(len(text), 40)])
			}
		}
	})
}

func TestAHandlersNetworksAreItsDirectorys(t *testing.T) {
	n, dir := fakeNetworks(t, "1.0.0", goodResult)
	own := n.ForHandler(dir + "/own.d")
	t.Cleanup(func() { own.Close() })
	if err := own.Ready(); err == nil || !strings.Contains(err.Error(), dir+"/own.d") {
		t.Errorf("ready without a network: %v", err)
	}
	if _, err := own.Intent(Pod{ID: "x"}); err == nil {
		t.Error("the node's network serves in its place")
	}
	write(t, dir+"/own.d/10.conflist", strings.Replace(list("own", "1.0.0", "fake"), `"type"`, `"capabilities": {"ipRanges": true}, "type"`, 1))
	waitFor(t, func() bool { return own.Ready() == nil })
	if err := n.SetPodCIDR("10.9.0.0/24"); err != nil {
		t.Fatal(err)
	}
	pod, err := own.Intent(Pod{ID: "x"})
	if err != nil || pod.Network != "own" || len(pod.PodCIDRs) != 1 {
		t.Errorf("got %+v, %v", pod, err)
	}
	if pod, err := n.Intent(Pod{ID: "x"}); err != nil || pod.Network != "fake" {
		t.Errorf("the node's: %+v, %v", pod, err)
	}
}
