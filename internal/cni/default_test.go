package cni

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestFitDefault(t *testing.T) {
	cases := []struct {
		name          string
		facts         hostFacts
		with, without []string
		subnets       int
		warnings      int
	}{
		{"with nftables the engine masquerades", hostFacts{Backend: backendNFTables},
			[]string{`"ipMasq":false`, `"backend":"nftables"`, "fd5c:", `"::/0"`}, []string{`"mtu"`}, 2, 0},
		{"with iptables the bridge plugin does", hostFacts{Backend: backendIPTables},
			[]string{`"ipMasq":true`, `"ipMasqBackend":"iptables"`, `"backend":"iptables"`}, nil, 0, 0},
		{"with neither nobody does, and it is told", hostFacts{}, []string{`"ipMasq":false`}, nil, 0, 1},
		{"without IPv6 there are neither addresses nor routes of it", hostFacts{Backend: backendNFTables, NoIPv6: "the kernel has none"},
			[]string{"10.213.96.0/20", "0.0.0.0/0"}, []string{"fd5c:", "::/0"}, 1, 1},
		{"the MTU of the way out is the pods'", hostFacts{Backend: backendNFTables, MTU: 1400}, []string{`"mtu":1400`}, nil, 2, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d, err := fitDefault(conflist(t), "/data", c.facts)
			if err != nil {
				t.Fatal(err)
			}
			text := string(d.list.Bytes)
			for _, want := range append(c.with, `"dataDir":"/data"`) {
				if !strings.Contains(text, want) {
					t.Errorf("%s is missing in %s", want, text)
				}
			}
			for _, bad := range c.without {
				if strings.Contains(text, bad) {
					t.Errorf("%s is in %s", bad, text)
				}
			}
			if len(d.subnets) != c.subnets || len(d.warnings) != c.warnings || d.bridge != "cri-engine0" || d.dataDir != "/data" {
				t.Errorf("got %+v", d)
			}
		})
	}
	t.Run("the directory of addresses is the machine's unless another is asked for", func(t *testing.T) {
		d, err := fitDefault(conflist(t), "", hostFacts{})
		if err != nil || d.dataDir != "/run/cri-engine-cni" {
			t.Errorf("got %+v, %v", d, err)
		}
	})
	t.Run("a default that is broken is an error", func(t *testing.T) {
		for _, text := range []string{"", "{", `{"name":"x"}`, `{"name":"x","plugins":[{"type":"bridge","ipam":[]}]}`} {
			if d, err := fitDefault([]byte(text), "", hostFacts{}); err == nil {
				t.Errorf("%q gave %+v", text, d)
			}
		}
	})
}

func TestDefaultNetworkLeavesOutIdlePlugins(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"bridge", "host-local", "portmap", "bandwidth"} {
		fakePlugin(t, dir, name, "")
	}
	n := startNetworks(t, dir, func(n *Networks) {
		n.opts.Default = conflist(t)
		n.opts.DataDir = dir + "/data"
		n.facts = func(context.Context) hostFacts { return hostFacts{Backend: backendNFTables} }
	})
	if err := n.Ready(); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name    string
		change  func(*Pod)
		plugins []string
	}{
		{"a plain pod", func(*Pod) {}, []string{"bridge", "host-local"}},
		{"a pod with a host port", func(p *Pod) { p.Ports = []PortMapping{{HostPort: 80, ContainerPort: 80}} }, []string{"bridge", "host-local", "portmap"}},
		{"a pod whose ports aren't the host's", func(p *Pod) { p.Ports = []PortMapping{{ContainerPort: 80}} }, []string{"bridge", "host-local"}},
		{"a pod with a limit", func(p *Pod) { p.Annotations = map[string]string{EgressBandwidthAnnotation: "1M"} }, []string{"bridge", "host-local", "bandwidth"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			pod := fakePod()
			c.change(&pod)
			pod = mustIntent(t, n, pod)
			list, err := recordedList(pod.Conf)
			if err != nil {
				t.Fatal(err)
			}
			if got := (&network{list: list}).pluginTypes(); !slices.Equal(got, c.plugins) || !pod.Default || pod.Network != "cri-engine" {
				t.Errorf("got %v, %+v", got, pod)
			}
		})
	}
}

func TestNoIPv6Reason(t *testing.T) {
	conf := func(all, def, forwarding string) map[string]string {
		return map[string]string{
			"sys/net/ipv6/conf/all/disable_ipv6": all, "sys/net/ipv6/conf/default/disable_ipv6": def,
			"sys/net/ipv6/conf/all/forwarding": forwarding,
		}
	}
	const advertised = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0\n"
	const fixed = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n"
	cases := []struct {
		name  string
		files map[string]string
		route string
		ra    string
		want  string
	}{
		{"a kernel without IPv6", nil, "", "", "the kernel has none"},
		{"IPv6 switched off", conf("1", "1", "0"), "", "", "all.disable_ipv6"},
		{"IPv6 switched off for new interfaces", conf("0", "1", "0"), "", "", "default.disable_ipv6"},
		{"a fixed route", conf("0", "0", "0"), fixed, "1", ""},
		{"a route that forwarding would end", conf("0", "0", "0"), advertised, "1", "accept_ra=2"},
		{"a route that forwarding leaves", conf("0", "0", "0"), advertised, "2", ""},
		{"a host that forwards already", conf("0", "0", "1"), advertised, "1", ""},
		{"a table that is garbage", conf("0", "0", "0"), "x y\n\x00\n" + strings.Repeat("z ", 12), "1", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			proc := t.TempDir()
			for name, text := range c.files {
				write(t, proc+"/"+name, text+"\n")
			}
			write(t, proc+"/net/ipv6_route", c.route)
			if c.ra != "" {
				write(t, proc+"/sys/net/ipv6/conf/eth0/accept_ra", c.ra+"\n")
			}
			got := noIPv6Reason(proc)
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestUplinkMTU(t *testing.T) {
	const header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
	cases := []struct {
		name, route, mtu string
		want             int
	}{
		{"a cloud's smaller MTU", "eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", "1460", 1460},
		{"Ethernet's", "eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", "1500", 0},
		{"jumbo frames are not for everyone", "eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", "9000", 0},
		{"too small for IPv6", "eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", "576", 0},
		{"no default route", "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", "1400", 0},
		{"half of everything is no default route", "tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n", "1400", 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/net/route", header+c.route)
			for _, iface := range []string{"eth0", "tun0"} {
				write(t, dir+"/class/net/"+iface+"/mtu", c.mtu+"\n")
			}
			if got := uplinkMTU(dir, dir); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestMasqueradeRules(t *testing.T) {
	rules := masqueradeRules([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64")})
	for _, want := range []string{"pods4 { 10.0.0.0/8 }", "pods6 { fd00::/64 }"} {
		if !strings.Contains(rules, want) {
			t.Errorf("%s is missing in %s", want, rules)
		}
	}
}
