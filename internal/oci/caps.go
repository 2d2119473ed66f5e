package oci

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// capabilities are the defaults, with the request's added and then dropped;
// a privileged container has all. What is not in our own bounding set nobody
// can be given, so it is left out: the same request works in an outer
// container too, with what that one has.
//
// They are the bounding, permitted and effective sets. The inheritable set is
// empty (CVE-2022-24769) but for ambient ones, so a process that does not run
// as root keeps only those over its first exec.
func (b *builder) capabilities() error {
	request := b.sc.GetCapabilities()
	const field = securityContext + "capabilities."
	add, addAll, err := capNames(field+"add_capabilities", request.GetAddCapabilities())
	if err != nil {
		return err
	}
	drop, dropAll, err := capNames(field+"drop_capabilities", request.GetDropCapabilities())
	if err != nil {
		return err
	}
	ambient, ambientAll, err := capNames(field+"add_ambient_capabilities", request.GetAddAmbientCapabilities())
	if err != nil {
		return err
	}
	set := b.DefaultCapabilities
	if own := b.base.Process.Capabilities; own != nil {
		set = own.Bounding
	}
	if addAll {
		set = b.host.bounding
	}
	if dropAll {
		set = nil
	}
	set = append(append(slices.Clone(set), add...), ambient...)
	set = slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) })
	if b.privileged {
		set = b.host.bounding
	}
	set = b.host.clamp(set)
	if ambientAll {
		ambient = set
	}
	ambient = slices.DeleteFunc(b.host.clamp(ambient), func(c string) bool { return !slices.Contains(set, c) })
	b.spec.Process.Capabilities = capSets(set, ambient)
	return nil
}

func capSets(set, ambient []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{
		// Empty, not nil: a seccomp profile's conditions look at it.
		Bounding:  append([]string{}, set...),
		Effective: append([]string{}, set...), Permitted: append([]string{}, set...),
		Inheritable: append([]string{}, ambient...), Ambient: append([]string{}, ambient...),
	}
}

// clamp returns those of the set that we can pass on, in the kernel's order.
func (h *host) clamp(set []string) []string {
	return slices.DeleteFunc(slices.Clone(h.bounding), func(c string) bool { return !slices.Contains(set, c) })
}

// capNames brings names to the form "CAP_NET_ADMIN" and takes "ALL" out.
func capNames(field string, names []string) (list []string, all bool, err error) {
	for i, name := range names {
		full := strings.ToUpper(name)
		if full == "ALL" || full == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(full, "CAP_") {
			full = "CAP_" + full
		}
		if !slices.Contains(knownCaps, full) {
			return nil, false, invalid(fmt.Sprintf("%s[%d]", field, i), name, "unknown capability")
		}
		list = append(list, full)
	}
	return list, all, nil
}

var knownCaps = func() (names []string) {
	for _, c := range capability.ListKnown() {
		names = append(names, capName(c))
	}
	return names
}()
