package cni

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/conffiles"
)

// templated is the file that a template becomes, in ConfDir. While there is a
// template the file is the engine's to write.
const templated = "10-cri-engine.conflist"

// templateValues are what a template can use; the names are containerd's, so its
// templates work here.
type templateValues struct {
	PodCIDR       string   // the first of
	PodCIDRRanges []string // the node's, one or one per family
	Routes        []string // a default route for each family among them
}

// writeTemplated writes ConfDir's file from the template for the node's CIDRs. It
// does nothing without either, and leaves a directory alone in which another file
// comes first: some other component brings the network then.
func (n *Networks) writeTemplated(cidrs []string) error {
	if n.opts.ConfTemplate == "" || len(cidrs) == 0 {
		return nil
	}
	target := filepath.Join(n.opts.ConfDir, templated)
	if other, _, err := loadDir(n.opts.ConfDir, n.opts.MaxConfBytes); err == nil && other != nil && other.file != target {
		klog.V(2).InfoS("A network is there already; none is made from the template", "file", other.file, "template", n.opts.ConfTemplate)
		return nil
	}
	conf, err := n.render(cidrs)
	if err != nil {
		return fmt.Errorf("network.conf_template: %w", err)
	}
	if have, err := conffiles.Read(target, n.opts.MaxConfBytes); err == nil && bytes.Equal(have, conf) {
		return nil
	}
	if err := os.MkdirAll(n.opts.ConfDir, 0o755); err != nil {
		return fmt.Errorf("network.conf_template: %w", err)
	}
	// A hidden name while it is written: nobody takes half of it for a network.
	tmp := filepath.Join(n.opts.ConfDir, "."+templated)
	if err := os.WriteFile(tmp, conf, 0o644); err != nil {
		return fmt.Errorf("network.conf_template: %w", err)
	}
	if err := os.Rename(tmp, target); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("network.conf_template: %w", err)
	}
	klog.InfoS("Network is made from the template", "file", target, "template", n.opts.ConfTemplate, "podCIDRs", cidrs)
	return nil
}

// render returns the network that the template makes, checked.
func (n *Networks) render(cidrs []string) ([]byte, error) {
	file := n.opts.ConfTemplate
	data, err := conffiles.Read(file, n.opts.MaxConfBytes)
	if err != nil {
		return nil, err
	}
	t, err := template.New(filepath.Base(file)).Parse(string(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %s", file, strings.TrimPrefix(err.Error(), "template: "))
	}
	out := &limited{most: n.opts.MaxConfBytes}
	if err := t.Execute(out, templateValues{PodCIDR: cidrs[0], PodCIDRRanges: cidrs, Routes: defaultRoutes(cidrs)}); err != nil {
		return nil, fmt.Errorf("%s: %s", file, strings.TrimPrefix(err.Error(), "template: "))
	}
	list, err := parseList(out.Bytes())
	if err == nil {
		err = checkList(list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s does not make a network of %s: %w", file, strings.Join(cidrs, ", "), err)
	}
	return out.Bytes(), nil
}

func defaultRoutes(cidrs []string) []string {
	var v4, v6 bool
	for _, cidr := range cidrs {
		if p, err := netip.ParsePrefix(cidr); err == nil {
			v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
		}
	}
	var routes []string
	if v4 {
		routes = append(routes, "0.0.0.0/0")
	}
	if v6 {
		routes = append(routes, "::/0")
	}
	return routes
}

// limited is a buffer that a template without end can't grow.
type limited struct {
	buf  bytes.Buffer
	most int64
}

func (l *limited) Bytes() []byte { return l.buf.Bytes() }

func (l *limited) Write(p []byte) (int, error) {
	if int64(l.buf.Len()+len(p)) > l.most {
		return 0, errors.New("it makes too large a file")
	}
	return l.buf.Write(p)
}
