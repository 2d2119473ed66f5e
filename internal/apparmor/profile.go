package apparmor

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// namePrefix begins the name of every default profile, of whatever version.
// Containers of two versions may share a PID namespace, so the rules about other
// processes name all of them, with whatever is stacked on one: a container with
// no_new_privs has the profile of its OCI runtime too.
const namePrefix = "cri-engine-default-"

// defaultRules confine a container whose request names no profile. What files,
// capabilities and addresses it may use is decided elsewhere, and is all allowed here; the
// rules stand behind the read-only and masked paths, for containers that can
// mount: nothing is mounted, and of /proc and /sys only the processes' own files
// and cgroups are written.
//
// A denial can't be taken back by a later rule, so exceptions are in the patterns:
// /proc/[^1-9] is all that is not a process, and the second pattern is all of /sys but /sys/fs/cgroup.
const defaultRules = `
  capability,
  file,
  network,
  umount,
  unix,

  deny mount,
  deny /proc/[^1-9]** w,
  deny /proc/{kcore,sysrq-trigger} rwklx,
  deny /sys/{[^f],f[^s],fs/[^c],fs/c[^g]}** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,

  ptrace (read, readby, trace, tracedby) peer=` + namePrefix + `**,
  signal (receive, send) peer=` + namePrefix + `**,
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
`

// profile is a default profile, ready for the parser.
type profile struct{ name, text string }

// defaultProfile is the one for a machine that has the ABI file or not, and for
// an engine whose own label is the one given, "" for unconfined.
func defaultProfile(hasABI bool, ownLabel string) profile {
	head := ""
	if hasABI {
		// What a rule's absence means depends on the version of the language: without this line
		// newer ones would deny what is not named here, such as user namespaces.
		head = "abi <" + abi + ">,\n"
	}
	rules := defaultRules
	if ownLabel != "" {
		rules += "  signal (receive) peer=" + ownLabel + ",\n"
	}
	// attach_disconnected: files that were opened outside of the container's mounts, as its stdio is.
	const flags = "flags=(attach_disconnected, mediate_deleted)"
	sum := sha256.Sum256([]byte(head + flags + rules))
	name := namePrefix + hex.EncodeToString(sum[:6])
	var b strings.Builder
	b.WriteString(head + "profile " + name + " " + flags + " {" + rules + "}\n")
	return profile{name: name, text: b.String()}
}

// abi is the version of the language that the rules are written in; its file is
// part of AppArmor 3 and later.
const abi = "abi/3.0"
