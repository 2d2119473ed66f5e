#!/bin/bash
# Inside the machine: vm.sh puts this on the second disk, and guest/vm-run.service
# starts it. It runs the command as root, and leaves its exit code and what it left in
# /results on the third disk. Then the machine is switched off.
set -u

# The port that vm.sh reads: udev makes it some time after the device was found.
modprobe virtio_console
out=/dev/console
for _ in $(seq 100); do
	port=$(grep -lsx vm.out /sys/class/virtio-ports/*/name)
	port=/dev/$(basename "${port%/name}")
	[ ! -c "$port" ] || { out=$port; break; }
	sleep 0.1
done
exec >"$out" 2>&1 </dev/null

finish() {
	echo "$1" >/results/.exit
	umount -l /extra
	sync
	umount /results || mount -o remount,ro -f /results
	systemctl poweroff --force --force >/dev/null
}

mount -t ext4 -o noatime /dev/vdc /results || {
	echo "vm: no disk for results"
	finish 125
}

export HOME=/root USER=root LOGNAME=root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /root || finish 125
bash /extra/.vm/command
finish $?
