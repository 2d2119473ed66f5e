package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/cri-engine/cri-engine/internal/conffiles"
)

const (
	defaultMaxConfBytes = 1 << 20
	// maxConfFiles is how many files of a directory are looked at; maxPlugins how
	// many plugins a list may chain.
	maxConfFiles = 100
	maxPlugins   = 32
	// maxWarning bounds one message about a file: parsers quote what they read.
	maxWarning = 1024
)

// network is one configuration list, ready for libcni. It isn't changed after
// it was made.
type network struct {
	list *libcni.NetworkConfigList
	// file it was read from; "" for the default network.
	file string
	// extra are files with further plugins (CNI 1.1, "loadOnlyInlinedPlugins").
	extra []string
}

func (n *network) isDefault() bool { return n.file == "" }

func (n *network) same(other *network) bool {
	return n.file == other.file && bytes.Equal(n.list.Bytes, other.list.Bytes)
}

// pluginTypes lists the binaries that the network needs, IPAM included.
func (n *network) pluginTypes() []string {
	var types []string
	for _, plugin := range n.list.Plugins {
		for _, t := range []string{plugin.Network.Type, plugin.Network.IPAM.Type} {
			if t != "" && !slices.Contains(types, t) {
				types = append(types, t)
			}
		}
	}
	return types
}

// loadDir returns the first valid network of a directory, by file name, and
// what was wrong with the files before it. Without any configuration file all
// results are nil; a directory that does not exist has none.
func loadDir(dir string, maxBytes int64) (*network, []string, error) {
	names, err := confFiles(dir)
	if err != nil {
		return nil, nil, err
	}
	var warnings []string
	for _, name := range names {
		n, err := loadFile(filepath.Join(dir, name), maxBytes)
		if err == nil {
			return n, warnings, nil
		}
		warnings = append(warnings, truncate(err.Error(), maxWarning))
	}
	if len(warnings) > 0 {
		return nil, warnings, errors.New(warnings[0])
	}
	return nil, nil, nil
}

// confFiles lists the names of configuration files, sorted. Hidden files are
// left out: they are what editors and atomic writers leave while they work.
func confFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		switch filepath.Ext(entry.Name()) {
		case ".conflist", ".conf", ".json":
			names = append(names, entry.Name())
		}
	}
	return names[:min(len(names), maxConfFiles)], nil
}

func loadFile(path string, maxBytes int64) (*network, error) {
	data, err := conffiles.Read(path, maxBytes)
	if err != nil {
		return nil, err
	}
	list, err := parseList(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	n := &network{list: list, file: path}
	if !list.LoadOnlyInlinedPlugins {
		if err := n.addExtraPlugins(maxBytes); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := checkList(n.list); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// parseList reads a configuration list, or a single plugin's configuration
// (CNI before 1.0), which becomes a list of one. The list's plugins need not
// be complete yet: see [checkList].
func parseList(data []byte) (*libcni.NetworkConfigList, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return nil, err
	}
	_, single := keys["type"]
	if _, list := keys["plugins"]; list || !single {
		list, err := libcni.NetworkConfFromBytes(data)
		if err != nil {
			return nil, err
		}
		return list, checkNetworkName(list.Name)
	}
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	// Marshalled here, since libcni's own ConfListFromConf is on its way out.
	wrapped, err := json.Marshal(map[string]any{
		"name": conf.Network.Name, "cniVersion": conf.Network.CNIVersion,
		"plugins": []json.RawMessage{data}, "loadOnlyInlinedPlugins": true,
	})
	if err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(wrapped)
	if err != nil {
		return nil, err
	}
	return list, checkNetworkName(list.Name)
}

// checkNetworkName matters before any other use: the name becomes part of paths.
func checkNetworkName(name string) error {
	if len(name) > 128 {
		return fmt.Errorf("the network's name has %d bytes", len(name))
	}
	if err := utils.ValidateNetworkName(name); err != nil {
		return err
	}
	return nil
}

func checkList(list *libcni.NetworkConfigList) error {
	if len(list.Plugins) == 0 || len(list.Plugins) > maxPlugins {
		return fmt.Errorf("network %s has %d plugins", list.Name, len(list.Plugins))
	}
	for _, plugin := range list.Plugins {
		if err := checkPluginType(plugin.Network.Type); err != nil {
			return err
		}
		if plugin.Network.IPAM.Type == "" {
			continue
		}
		if err := checkPluginType(plugin.Network.IPAM.Type); err != nil {
			return err
		}
	}
	if list.CNIVersion == "" {
		return nil
	}
	newer, err := version.GreaterThan(list.CNIVersion, version.Current())
	if err != nil {
		return err
	}
	if newer {
		return fmt.Errorf("network %s wants CNI %s, and the newest that is spoken here is %s", list.Name, truncate(list.CNIVersion, 32), version.Current())
	}
	return nil
}

// addExtraPlugins appends the plugins of DIR/NETWORK/*.conf (CNI 1.1) and makes
// them part of the list's bytes, which are what a pod's record keeps.
func (n *network) addExtraPlugins(maxBytes int64) error {
	dir := filepath.Join(filepath.Dir(n.file), n.list.Name)
	names, err := confFiles(dir)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return filepath.Ext(name) != ".conf" })
	if len(names) == 0 {
		return nil
	}
	var whole map[string]any
	if err := json.Unmarshal(n.list.Bytes, &whole); err != nil {
		return err
	}
	plugins, _ := whole["plugins"].([]any)
	for _, name := range names {
		path := filepath.Join(dir, name)
		data, err := conffiles.Read(path, maxBytes)
		if err != nil {
			return err
		}
		var plugin map[string]any
		if err := json.Unmarshal(data, &plugin); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		plugins = append(plugins, plugin)
		n.extra = append(n.extra, path)
	}
	whole["plugins"], whole["loadOnlyInlinedPlugins"] = plugins, true
	data, err := json.Marshal(whole)
	if err != nil {
		return err
	}
	n.list, err = libcni.NetworkConfFromBytes(data)
	return err
}

// recordedList reads the list that a pod's record or libcni's cache has. A
// plugin's configuration alone is what the cache of an older engine may hold.
func recordedList(conf []byte) (*libcni.NetworkConfigList, error) {
	list, err := parseList(conf)
	if err != nil {
		return nil, err
	}
	return list, checkList(list)
}

// fingerprint tells whether a directory may have changed, where inotify does
// not (its instances and watches are few, and some file systems have none).
func fingerprint(dir string) string {
	var b strings.Builder
	add := func(dir string) {
		names, err := confFiles(dir)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
		for _, name := range names {
			fi, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				fmt.Fprintln(&b, err)
				continue
			}
			var inode uint64
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				inode = st.Ino
			}
			fmt.Fprintln(&b, name, fi.Size(), fi.ModTime().UnixNano(), inode)
		}
	}
	add(dir)
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries[:min(len(entries), maxConfFiles)] {
		if entry.IsDir() {
			add(filepath.Join(dir, entry.Name()))
		}
	}
	return b.String()
}
