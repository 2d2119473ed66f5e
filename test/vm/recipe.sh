# The machine that "make test-vm" boots: a Debian 13 as a user has it. Sourced by
# vm.sh; a change here, in image.sh or in guest/ makes another image.
# shellcheck shell=bash disable=SC2034,SC2154 # vm.sh reads these, and sets what is read here

suite=trixie

# In megabytes. The file is sparse.
root_size=8192

# What a node has: systemd with its bus, an OCI runtime, AppArmor's parser, firewall
# tools. What the tests want besides: a registry, a static busybox, runc, a debugger's few tools.
packages=(
	linux-image-cloud-amd64 systemd-sysv systemd udev dbus
	crun runc apparmor nftables iptables iproute2 kmod procps
	ca-certificates busybox-static docker-registry cpio xz-utils zstd
	curl jq less strace psmisc iputils-ping
)

# Per variant: more packages, and kernel arguments that it is always booted with.
variants=(default selinux)
packages_default=()
packages_selinux=(selinux-basics selinux-policy-default policycoreutils selinux-utils checkpolicy semodule-utils attr auditd)
kernel_args_default=(security=apparmor)
kernel_args_selinux=(security=selinux selinux=1 enforcing=1)

# Nothing that runs by itself: a test must find a quiet machine.
masked=(
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
	docker-registry.service systemd-hwdb-update.service ldconfig.service systemd-firstboot.service
	getty@tty1.service serial-getty@ttyS0.service console-getty.service systemd-networkd-wait-online.service
	selinux-autorelabel-mark.service systemd-logind.service
)

# customize ROOT VARIANT: what is done in the new root directory.
customize() {
	local root=$1 variant=$2 unit
	for unit in "${masked[@]}"; do
		ln -sf /dev/null "$root/etc/systemd/system/$unit"
	done
	echo cri-engine-vm >"$root/etc/hostname"
	printf '127.0.0.1 localhost cri-engine-vm\n::1 localhost\n' >"$root/etc/hosts"
	: >"$root/etc/resolv.conf"
	# An id of its own, so that systemd does not take this for a first boot.
	tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
	chroot "$root" passwd -d root >/dev/null
	mkdir -p "$root/etc/systemd/journald.conf.d"
	printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' >"$root/etc/systemd/journald.conf.d/vm.conf"

	# Of AppArmor's profiles only those of OCI runtimes: the hundred others take a minute to load here.
	find "$root/etc/apparmor.d" -maxdepth 1 -type f ! -name crun ! -name runc -delete

	install -D -m 0644 "$guest/vm-run.service" "$root/etc/systemd/system/vm-run.service"
	mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/extra" "$root/results"
	ln -sf ../vm-run.service "$root/etc/systemd/system/multi-user.target.wants/vm-run.service"

	if [ "$variant" = selinux ]; then
		printf 'SELINUX=enforcing\nSELINUXTYPE=default\n' >"$root/etc/selinux/config"
	fi
	rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/man/*
	# Caches that systemd would make anew when these are older than /usr.
	chroot "$root" ldconfig
	touch "$root/etc/.updated" "$root/var/.updated"
	if [ "$variant" = selinux ]; then
		# Labels are extended attributes, which mkfs.ext4 copies.
		chroot "$root" setfiles -F /etc/selinux/default/contexts/files/file_contexts /
	fi
}
