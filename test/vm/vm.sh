#!/usr/bin/env bash
# Boots a Debian 13 under qemu without KVM, and runs a command in it as root.
#
#   vm.sh build [--variant default|selinux]
#   vm.sh run [--variant V] [--extra DIR] [--results DIR] [--kernel-args ARGS] [--timeout SECONDS] [--memory MB] -- COMMAND [ARG...]
#
# run copies DIR in as /extra, and what the command leaves in /results out to
# the --results directory (./vm-results) with the console's log. What the command writes
# comes out on stdout. The exit code is the command's; 124 when its time was up, 125 when the machine did not run it.
#
# CRI_ENGINE_VM_QEMU_ARGS are more arguments for qemu, such as "-nic user,model=virtio".
#
# The image is made once, by root, from the Debian mirror that apt is configured
# with, and kept in ${XDG_CACHE_HOME:-~/.cache}/cri-engine/vm until the recipe changes. A run does not change it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
guest=$here/guest
. "$here/recipe.sh"
. "$here/image.sh"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
spare=300 # seconds for a boot on a machine that is busy
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cri-engine/vm

fail() {
	echo "vm: $*" >&2
	exit 125
}

usage() {
	sed -n '2,/^set -e/ s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
	exit 2
}

##### A run

# make_extra FILE DIR SECONDS COMMAND...: the disk that brings DIR and the command.
make_extra() {
	local file=$1 dir=$2 limit=$3 size
	shift 3
	mkdir "$file.vm"
	cp "$here/in-vm.sh" "$file.vm/run"
	printf 'timeout --kill-after=20 %d' "$limit" >"$file.vm/command"
	printf ' %q' "$@" >>"$file.vm/command"
	size=$(($(du -sm --apparent-size "$dir" | cut -f1) * 5 / 4 + 64))
	mkfs.ext4 -q -F -O ^has_journal -E lazy_itable_init=0,root_owner=0:0 -d "$dir" "$file" "${size}M" >/dev/null
	debugfs -w -f - "$file" >/dev/null 2>&1 <<-END
		mkdir .vm
		write $file.vm/run .vm/run
		write $file.vm/command .vm/command
	END
}

boot() {
	local image=$1 args=$2 memory=$3
	# A pipe, since qemu takes standard input's end for a cut line.
	mkfifo "$scratch/out"
	cat "$scratch/out" &
	# Westmere has no AVX, with which static programs of glibc die under qemu 7.2. tb-size
	# is megabytes of translated code to keep. The disks may lose what is written when
	# this machine stops (cache=unsafe): they do not outlive the run.
	exec qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine q35,sata=off,smbus=off \
		-accel tcg,thread=multi,tb-size=1024 -cpu Westmere -smp 2 -m "$memory" \
		-kernel "$image/vmlinuz" -initrd "$image/initrd" \
		-append "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 systemd.show_status=0 $args" \
		-serial "file:$scratch/console.log" \
		-drive "file=$image/root.ext4,format=raw,if=virtio,snapshot=on" \
		-drive "file=$scratch/extra.ext4,format=raw,if=virtio,cache=unsafe" \
		-drive "file=$scratch/results.ext4,format=raw,if=virtio,cache=unsafe" \
		-device virtio-rng-pci \
		-device virtio-serial-pci -chardev "file,id=out,path=$scratch/out" -device virtserialport,chardev=out,name=vm.out \
		${CRI_ENGINE_VM_QEMU_ARGS:-}
}

run() {
	local variant=default extra='' results=vm-results args='' limit=3600 memory=3072 image code=0
	while [ $# -gt 0 ]; do
		case $1 in
		--variant) variant=$2 ;;
		--extra) extra=$2 ;;
		--results) results=$2 ;;
		--kernel-args) args=$2 ;;
		--timeout) limit=$2 ;;
		--memory) memory=$2 ;;
		--) break ;;
		*) usage ;;
		esac
		shift 2 || usage
	done
	[ $# -gt 1 ] || usage
	shift
	is_variant "$variant"
	local always="kernel_args_${variant}[*]"
	image=$(image "$variant")

	scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/cri-engine-vm-XXXXXX")
	trap 'rm -rf "$scratch"' EXIT
	[ -n "$extra" ] || extra=$(mkdir "$scratch/nothing" && echo "$scratch/nothing")
	make_extra "$scratch/extra.ext4" "$extra" "$limit" "$@"
	mkfs.ext4 -q -F -O ^has_journal -E root_owner=0:0 "$scratch/results.ext4" 2048M >/dev/null

	# The command has its limit; the machine has some minutes more, to boot and to end.
	export -f boot
	export scratch
	timeout --foreground --kill-after=10 $((limit + spare)) bash -c 'boot "$@"' boot "$image" "${!always} $args" "$memory" &
	qemu=$!
	trap 'kill $qemu' INT TERM
	wait $qemu || code=$?

	mkdir -p "$results"
	debugfs -R "rdump / $results" "$scratch/results.ext4" >/dev/null 2>&1
	rmdir "$results/lost+found" 2>/dev/null || true
	cp "$scratch/console.log" "$results/console.log"
	if [ ! -s "$results/.exit" ]; then
		tail -n 30 "$results/console.log" >&2
		[ "$code" != 124 ] || fail "the machine did not end within $((limit + spare)) seconds"
		fail "the machine ended without a result (qemu: $code); the console's log is $results/console.log"
	fi
	code=$(cat "$results/.exit")
	rm -f "$results/.exit"
	[ "$code" != 124 ] || echo "vm: the command did not end within $limit seconds" >&2
	exit "$code"
}

is_variant() {
	local v
	for v in "${variants[@]}"; do
		[ "$v" != "$1" ] || return 0
	done
	fail "no variant $1: there are ${variants[*]}"
}

case ${1:-} in
build)
	shift
	[ $# = 0 ] || [ "$1" = --variant ] || usage
	is_variant "${2:-default}"
	image "${2:-default}"
	;;
run)
	shift
	run "$@"
	;;
*) usage ;;
esac
