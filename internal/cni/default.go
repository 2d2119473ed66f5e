package cni

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// The names of the ways to write firewall rules, as the reference plugins have them.
const (
	backendNFTables = "nftables"
	backendIPTables = "iptables"
	backendNone     = ""
)

// hostFacts is what the default network depends on.
type hostFacts struct {
	// Backend that works here: backendNFTables, backendIPTables or backendNone.
	Backend string
	// NoIPv6 is why pods get no IPv6 address; "" when they do.
	NoIPv6 string
	// MTU of the interface that the default route goes out of, 0 for unknown.
	MTU int
}

// defaultNetwork is the engine's own network on this host.
type defaultNetwork struct {
	network
	// dataDir is host-local's: what is allocated, shared by all engines of the machine.
	dataDir string
	bridge  string
	// subnets are masqueraded by the engine itself, in one rule for all pods. Empty
	// when the bridge plugin does it, or nobody.
	subnets  []netip.Prefix
	warnings []string
}

// fitDefault makes the default network out of the conflist as it is delivered:
//
//   - host-local's dataDir, where another is asked for;
//   - without IPv6 where the host has none or would lose its own by forwarding;
//   - the firewall backend that works here;
//   - the MTU of the way out, if that is smaller than Ethernet's;
//   - with nftables, masquerading is taken from the bridge plugin: it writes a rule
//     per pod, which costs most of the time of an ADD and a DEL, and stays behind
//     when a pod's namespace is gone before its DEL. One rule for the subnet does
//     the same (see [masquerade]).
func fitDefault(conflist []byte, dataDir string, facts hostFacts) (*defaultNetwork, error) {
	var conf struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(conflist, &conf); err != nil {
		return nil, fmt.Errorf("default network: %w", err)
	}
	d := &defaultNetwork{dataDir: dataDir}
	for _, plugin := range conf.Plugins {
		switch plugin["type"] {
		case "bridge":
			d.fitBridge(plugin, facts)
		case "portmap":
			if facts.Backend != backendNone {
				plugin["backend"] = facts.Backend
			}
		}
	}
	if facts.NoIPv6 != "" {
		d.warnings = append(d.warnings, "pods get no IPv6 address: "+facts.NoIPv6)
	}
	if facts.Backend == backendNone {
		d.warnings = append(d.warnings, "neither nft nor iptables works here: pods have no host ports, and reach other machines only where their addresses are routed")
	}
	data, err := json.Marshal(map[string]any{
		"cniVersion": conf.CNIVersion, "name": conf.Name, "plugins": conf.Plugins, "loadOnlyInlinedPlugins": true,
	})
	if err != nil {
		return nil, err
	}
	if d.list, err = recordedList(data); err != nil {
		return nil, fmt.Errorf("default network: %w", err)
	}
	return d, nil
}

func (d *defaultNetwork) fitBridge(bridge map[string]any, facts hostFacts) {
	d.bridge, _ = bridge["bridge"].(string)
	if facts.MTU != 0 {
		bridge["mtu"] = facts.MTU
	}
	ipam, _ := bridge["ipam"].(map[string]any)
	if ipam == nil {
		return
	}
	if d.dataDir != "" {
		ipam["dataDir"] = d.dataDir
	}
	d.dataDir, _ = ipam["dataDir"].(string)
	if facts.NoIPv6 != "" {
		withoutIPv6(ipam)
	}
	masq, _ := bridge["ipMasq"].(bool)
	switch facts.Backend {
	case backendNFTables:
		if masq {
			bridge["ipMasq"] = false
			d.subnets = subnetsOf(ipam)
		}
	case backendIPTables:
		bridge["ipMasqBackend"] = backendIPTables
	default:
		bridge["ipMasq"] = false
	}
}

func withoutIPv6(ipam map[string]any) {
	isV6 := func(entry any, key string) bool {
		m, _ := entry.(map[string]any)
		prefix, err := netip.ParsePrefix(fmt.Sprint(m[key]))
		return err == nil && prefix.Addr().Is6()
	}
	if sets, ok := ipam["ranges"].([]any); ok {
		ipam["ranges"] = slices.DeleteFunc(sets, func(set any) bool {
			entries, _ := set.([]any)
			return len(entries) > 0 && isV6(entries[0], "subnet")
		})
	}
	if routes, ok := ipam["routes"].([]any); ok {
		ipam["routes"] = slices.DeleteFunc(routes, func(route any) bool { return isV6(route, "dst") })
	}
}

func subnetsOf(ipam map[string]any) []netip.Prefix {
	var subnets []netip.Prefix
	sets, _ := ipam["ranges"].([]any)
	for _, set := range sets {
		entries, _ := set.([]any)
		for _, entry := range entries {
			m, _ := entry.(map[string]any)
			if prefix, err := netip.ParsePrefix(fmt.Sprint(m["subnet"])); err == nil {
				subnets = append(subnets, prefix.Masked())
			}
		}
	}
	return subnets
}

// confFor is the default network as one pod needs it: a plugin that only acts
// on a capability is left out for a pod that has nothing for it to do. That is
// two processes less in each ADD and DEL. The network is ours, so we may
// configure it per pod; the pod's record has what was used.
func (d *defaultNetwork) confFor(capabilities map[string]any) ([]byte, error) {
	conf := map[string]any{
		"cniVersion": d.list.CNIVersion, "name": d.list.Name, "loadOnlyInlinedPlugins": true,
	}
	var plugins []json.RawMessage
	for _, plugin := range d.list.Plugins {
		if !idle(plugin, capabilities) {
			plugins = append(plugins, plugin.Bytes)
		}
	}
	conf["plugins"] = plugins
	return json.Marshal(conf)
}

// idle is for the two plugins of which we know that they do nothing without
// their capability's value.
func idle(plugin *libcni.PluginConfig, capabilities map[string]any) bool {
	if plugin.Network.Type != "portmap" && plugin.Network.Type != "bandwidth" {
		return false
	}
	for name := range plugin.Network.Capabilities {
		if _, given := capabilities[name]; given {
			return false
		}
	}
	return true
}

// factsOfHost looks at the machine; it runs nft or iptables once to see whether
// they work, with the kernel as well.
func factsOfHost(ctx context.Context) hostFacts {
	return hostFacts{Backend: findBackend(ctx), NoIPv6: noIPv6Reason("/proc"), MTU: uplinkMTU("/proc", "/sys")}
}

func findBackend(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// nft 1.0.1 is the first that the reference plugins' nftables backends take;
	// --check makes the kernel judge the transaction and drop it.
	if runTool(ctx, "add table inet cri_engine_probe\n", "nft", "--check", "-f", "-") == nil {
		return backendNFTables
	}
	if runTool(ctx, "", "iptables", "-w", "5", "-t", "nat", "-S", "POSTROUTING") == nil {
		return backendIPTables
	}
	return backendNone
}

// runTool runs a program of the host's with the plugins' PATH.
func runTool(ctx context.Context, stdin, name string, args ...string) error {
	path := ""
	for _, dir := range filepath.SplitList(withSbin(os.Getenv("PATH"))) {
		candidate := filepath.Join(dir, name)
		if fi, err := os.Stat(candidate); filepath.IsAbs(dir) && err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			path = candidate
			break
		}
	}
	if path == "" {
		return fmt.Errorf("%s: %w", name, exec.ErrNotFound)
	}
	out := &limitedBuffer{max: maxPluginStderr}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = pluginEnv(os.Environ())
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = pipeGrace
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(out.String()))
	}
	return nil
}

// noIPv6Reason says why pods must do without IPv6, "" when they need not.
//
// The bridge plugin turns net.ipv6.conf.all.forwarding on. An interface that
// accepts router advertisements only as a host does (accept_ra=1) ignores them
// from then on, and the machine's own default route expires some minutes later.
// Where the kernel has such a route, IPv6 is not ours to switch on.
func noIPv6Reason(proc string) string {
	conf := filepath.Join(proc, "sys/net/ipv6/conf")
	for _, which := range []string{"all", "default"} {
		switch disabled, err := readInt(filepath.Join(conf, which, "disable_ipv6")); {
		case err != nil:
			return "the kernel has none"
		case disabled != 0:
			return fmt.Sprintf("net.ipv6.conf.%s.disable_ipv6 is set", which)
		}
	}
	if forwarding, err := readInt(filepath.Join(conf, "all/forwarding")); err == nil && forwarding != 0 {
		return ""
	}
	for _, iface := range advertisedDefaults(proc) {
		if accept, err := readInt(filepath.Join(conf, iface, "accept_ra")); err == nil && accept == 1 {
			return fmt.Sprintf("the default route of %s comes from router advertisements, which forwarding would end; set net.ipv6.conf.%s.accept_ra=2", iface, iface)
		}
	}
	return ""
}

// advertisedDefaults lists the interfaces whose default route the kernel
// learned by router advertisement: RTF_DEFAULT and RTF_ADDRCONF in
// /proc/net/ipv6_route (include/uapi/linux/ipv6_route.h).
func advertisedDefaults(proc string) []string {
	const rtfDefault, rtfAddrconf = 0x00010000, 0x00040000
	var ifaces []string
	for _, fields := range procTable(filepath.Join(proc, "net/ipv6_route")) {
		if len(fields) < 10 {
			continue
		}
		flags, err := strconv.ParseUint(fields[8], 16, 32)
		if err == nil && flags&rtfDefault != 0 && flags&rtfAddrconf != 0 && filepath.Base(fields[9]) == fields[9] {
			ifaces = append(ifaces, fields[9])
		}
	}
	return ifaces
}

// uplinkMTU returns the MTU of the interface with the IPv4 default route where
// it is below Ethernet's: in many clouds and overlays pods would otherwise
// send packets that the way out has to refuse. 0 when there is nothing to do.
func uplinkMTU(proc, sys string) int {
	const ethernet, leastForIPv6 = 1500, 1280
	for _, fields := range procTable(filepath.Join(proc, "net/route")) {
		if len(fields) < 8 || fields[1] != "00000000" || fields[7] != "00000000" || filepath.Base(fields[0]) != fields[0] {
			continue
		}
		mtu, err := readInt(filepath.Join(sys, "class/net", fields[0], "mtu"))
		if err == nil && mtu >= leastForIPv6 && mtu < ethernet {
			return mtu
		}
		return 0
	}
	return 0
}

// procTable splits a table of /proc into fields; empty when it can't be read.
// A host may have very many routes: what is looked for is in the first of them.
func procTable(path string) [][]string {
	const maxLines = 4096
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var table [][]string
	for lines := bufio.NewScanner(f); lines.Scan() && len(table) < maxLines; {
		table = append(table, strings.Fields(lines.Text()))
	}
	return table
}

func readInt(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// inUse reports whether pods are attached to the bridge.
func (d *defaultNetwork) inUse() bool {
	ports, _ := os.ReadDir(filepath.Join("/sys/class/net", d.bridge, "brif"))
	return len(ports) > 0
}

// allocated lists the addresses that host-local has given out.
func (d *defaultNetwork) allocated() []string {
	entries, _ := os.ReadDir(filepath.Join(d.dataDir, d.list.Name))
	found := map[string]bool{}
	for _, entry := range entries {
		if _, err := netip.ParseAddr(entry.Name()); err == nil {
			found[entry.Name()] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
