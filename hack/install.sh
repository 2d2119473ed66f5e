#!/usr/bin/env bash
# hack/install.sh install|uninstall, called by make with PREFIX, SYSCONFDIR and DESTDIR.
#
# A file under SYSCONFDIR belongs to the operator once it is there: one that
# differs from ours is never written or removed. The new default is then put
# beside it as FILE.new.
set -euo pipefail

prefix=${PREFIX:?}
etc=${DESTDIR:-}${SYSCONFDIR:?}
root=${DESTDIR:-}$prefix
share=$root/share

# What the programs are, and where they find each other: the engine looks for
# its monitor beside itself and for plugins in ../libexec/cri-engine/cni.
bin=$root/bin
plugins=$root/libexec/cri-engine/cni
units=$root/lib/systemd/system
doc=$share/doc/cri-engine

programs() { find bin -maxdepth 1 -type f -name 'cri-engine*' | sort; }
docs() { printf '%s\n' README.md LICENSE CONTRIBUTING.md; find docs -name '*.md' | sort; }
samples() { find conf -type f ! -name '*.go' ! -name '*.service' | sort; }
completions() {
	cat <<-END
		bash $share/bash-completion/completions/cri-engine
		zsh $share/zsh/site-functions/_cri-engine
		fish $share/fish/vendor_completions.d/cri-engine.fish
	END
}

# What is put under SYSCONFDIR. The drop-in for systemd says that the monitor is a
# unit: true for a package, and on a machine that systemd runs.
confs() {
	echo conf/config.toml "$etc/cri-engine/config.toml"
	if [ -n "${DESTDIR:-}" ] || [ -d /run/systemd/system ]; then
		echo conf/conf.d/10-systemd.toml "$etc/cri-engine/conf.d/10-systemd.toml"
	fi
}

# put_conf FROM TO: an operator's file.
put_conf() {
	if [ -e "$2" ] && ! cmp -s "$1" "$2"; then
		install -D -m 0644 "$1" "$2.new"
		echo "$2 differs from the default and stays; the default is $2.new"
		return
	fi
	install -D -m 0644 "$1" "$2"
}

# drop_conf FROM TO: takes back what put_conf put, unless it was edited.
drop_conf() {
	rm -f "$2.new"
	if [ -e "$2" ] && ! cmp -s "$1" "$2"; then
		echo "$2 was edited and stays"
		return
	fi
	rm -f "$2"
}

do_install() {
	local f shell path
	for f in $(programs); do
		install -D -m 0755 "$f" "$bin/${f##*/}"
	done
	for f in bin/cni/*; do
		install -D -m 0755 "$f" "$plugins/${f##*/}"
	done
	for f in conf/systemd/*.service; do
		install -d "$units"
		sed "s|/usr/local/bin/|$prefix/bin/|g" "$f" >"$units/${f##*/}"
		chmod 0644 "$units/${f##*/}"
	done
	completions | while read -r shell path; do
		install -d "${path%/*}"
		bin/cri-engine completion "$shell" >"$path"
	done
	for f in $(docs) $(samples); do
		install -D -m 0644 "$f" "$doc/$f"
	done
	confs | while read -r f path; do
		put_conf "$f" "$path"
	done
}

do_uninstall() {
	local f shell path
	for f in $(programs); do
		rm -f "$bin/${f##*/}"
	done
	for f in conf/systemd/*.service; do
		rm -f "$units/${f##*/}"
	done
	completions | while read -r shell path; do
		rm -f "$path"
	done
	rm -rf "$plugins" "$doc"
	confs | while read -r f path; do
		drop_conf "$f" "$path"
	done
	for f in "$root/libexec/cri-engine" "$etc/cri-engine/conf.d" "$etc/cri-engine"; do
		[ ! -d "$f" ] || rmdir --ignore-fail-on-non-empty "$f"
	done
}

case ${1:-} in
install) do_install ;;
uninstall) do_uninstall ;;
*)
	echo "usage: hack/install.sh install|uninstall" >&2
	exit 2
	;;
esac
