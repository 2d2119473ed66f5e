#!/usr/bin/env bash
# Installs what the build, the demo and the tests need from Debian or Ubuntu,
# and nothing that is there already: where all is there, neither apt nor a
# network is touched.
#
#   hack/setup.sh build|demo|test|image|vm ...
set -euo pipefail

# Each line: the package, then what shows that it is there: a command on PATH,
# static:COMMAND where it must not need shared libraries (it runs in images that
# have none), or the pattern of an absolute path.
build_needs() {
	cat <<-'END'
		make make
		gcc gcc
		libc6-dev /usr/include/stdlib.h
		pkg-config pkg-config
		libseccomp-dev /usr/lib/*/libseccomp.a
		ca-certificates /etc/ssl/certs/ca-certificates.crt
	END
}

demo_needs() {
	build_needs
	cat <<-'END'
		nftables nft
		iptables iptables
		iproute2 ip
		busybox-static static:busybox
		curl curl
		docker-registry docker-registry
	END
}

test_needs() {
	demo_needs
	cat <<-'END'
		crun crun
	END
}

image_needs() {
	build_needs
	cat <<-'END'
		buildah buildah
		curl curl
		debootstrap debootstrap
		docker-registry docker-registry
	END
}

vm_needs() {
	build_needs
	cat <<-'END'
		qemu-system-x86 qemu-system-x86_64
		debootstrap debootstrap
		debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg
		e2fsprogs mkfs.ext4
		e2fsprogs debugfs
		kmod modprobe
		xz-utils xz
		zstd zstd
	END
}

there() {
	case $1 in
	/*) compgen -G "$1" >/dev/null ;;
	static:*) command -v "${1#static:}" >/dev/null && ! ldd "$(command -v "${1#static:}")" >/dev/null 2>&1 ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

# Prints the packages of the groups that are missing, one a line.
missing() {
	local group package sign
	for group; do
		"${group}_needs"
	done | sort -u | while read -r package sign; do
		there "$sign" || echo "$package"
	done
}

install_packages() {
	if ! command -v apt-get >/dev/null; then
		echo "setup: please install: $*" >&2
		return 1
	fi
	if [ "$(id -u)" != 0 ]; then
		echo "setup: run as root once, or: sudo apt-get install $*" >&2
		return 1
	fi
	echo "setup: installing $*" >&2
	export DEBIAN_FRONTEND=noninteractive
	# Debian starts docker-registry as a service where there is an init; nobody asked for one.
	local policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	fi
	local quiet=(-qq -o Dpkg::Use-Pty=0)
	apt-get "${quiet[@]}" update >&2
	local said
	if ! said=$(apt-get "${quiet[@]}" install --no-install-recommends -y "$@" 2>&1); then
		echo "$said" >&2
		return 1
	fi
}

main() {
	local group packages
	for group; do
		case $group in
		build | demo | test | image | vm) ;;
		*)
			echo "usage: hack/setup.sh build|demo|test|image|vm ..." >&2
			return 2
			;;
		esac
	done
	# sbin is not on every user's PATH, and nft, ip and iptables live there.
	PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
	if ! command -v go >/dev/null; then
		echo "setup: Go is missing: see https://go.dev/doc/install (go.mod says which version)" >&2
		return 1
	fi
	packages=$(missing "$@")
	[ -n "$packages" ] || return 0
	# shellcheck disable=SC2086 # one word each
	install_packages $packages
	packages=$(missing "$@")
	if [ -n "$packages" ]; then
		echo "setup: still missing after the installation: ${packages//$'\n'/ }" >&2
		return 1
	fi
}

main "$@"
