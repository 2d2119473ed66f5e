#!/usr/bin/env bash
# The life of a pod, from the pull of its image to its removal, with the monitor
# and the daemon killed in between. Run by "make demo", as root.
#
#   demo/demo.sh [IMAGE]   an image with a web server on port 80 (PORT=…) for the pod "web"
#
# Prints each command before it runs it. Ends with 0 only if all of it worked;
# whatever happens, nothing of it is left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PATH=$PWD/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin
image=${1:-}
port=${PORT:-80}
bin=$PWD/bin
daemon=

# ---- what it prints

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' green='' red='' plain=''; fi

step() { printf '\n%s# %s%s\n' "$green" "$*" "$plain"; }
note() { printf '  %s\n' "$*"; }
die() {
	printf '%sdemo: %s%s\n' "$red" "$*" "$plain" >&2
	exit 1
}

# show COMMAND…: prints it as one would type it.
show() {
	local word line=
	for word; do
		case $word in
		'&') ;;
		'' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/\'\\\'\'}'" ;;
		esac
		line+=" $word"
	done
	printf '%s$%s%s\n' "$bold" "$line" "$plain"
}

run() {
	show "$@"
	"$@"
}

# ---- what it waits for and looks at

# eventually SECONDS COMMAND…: until the command succeeds.
eventually() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.05
	done
}

alive() { [ -e "/proc/$1/stat" ] && ! grep -q '^State:.*[ZX]' "/proc/$1/status" 2>/dev/null; }
dead() { ! alive "$1"; }

# monitor_pids: the pids of this engine's monitor, each with its parent's.
monitor_pids() {
	local file dir
	grep -las -e "cri-engine-monitor.*$scratch" /proc/[0-9]*/cmdline | while read -r file; do
		dir=${file%/cmdline}
		[ "$(readlink "$dir/exe")" != "$bin/cri-engine-monitor" ] ||
			awk '/^Pid:/ { pid = $2 } /^PPid:/ { print pid, $2 }' "$dir/status"
	done 2>/dev/null || true # processes come and go
}

# keeper_and_pump: sets both. The pump is the one whose parent is the other.
keeper_and_pump() {
	local pids
	pids=$(monitor_pids)
	read -r keeper pump < <(awk '{ parent[$1] = $2 } END { for (p in parent) if (parent[p] in parent) print parent[p], p }' <<<"$pids") || true
	[ -n "${keeper:-}" ] && [ -n "${pump:-}" ] && [ "$(wc -l <<<"$pids")" = 2 ]
}

no_monitor() { [ -z "$(monitor_pids)" ]; }

# two_anew PID: both roles are filled, without PID.
two_anew() { keeper_and_pump && [ "$keeper" != "$1" ] && [ "$pump" != "$1" ]; }

answers() { cri-engine ps --timeout 2s >/dev/null 2>&1; }

# text NAME OBJECT, number NAME OBJECT: the first field of this name and kind in what inspect says.
text() { cri-engine inspect "$2" | sed -n 's/^ *"'"$1"'": *"\([^"]*\)",\{0,1\}$/\1/p' | sed -n 1p; }
number() { cri-engine inspect "$2" | sed -n 's/^ *"'"$1"'": *\([0-9]\{1,\}\),\{0,1\}$/\1/p' | sed -n 1p; }

lines() { wc -l <"$log"; }

# check_log: every number from 1 on is there once and in order. The counter wrote them.
check_log() {
	awk '$3 != "F" || $4 != NR { print "line " NR ": " $0; exit 1 }' "$log" ||
		die "the log of the pod has a gap or a line twice: see above"
	note "the log has the lines 1 to $(lines): none is missing, none is there twice"
}

# check_same: the containers are the processes they were.
check_same() {
	[ "$(number pid web)$(alive "$web_pid" || echo ' is gone')" = "$web_pid" ] || die "web is not process $web_pid any more"
	[ "$(number pid counter)$(alive "$counter_pid" || echo ' is gone')" = "$counter_pid" ] ||
		die "counter is not process $counter_pid any more"
	note "both containers are the processes they were: $web_pid and $counter_pid"
}

# check_counting: the counter writes up to 100 lines a second, fewer where the machine is busy.
check_counting() {
	local before start=$EPOCHREALTIME
	before=$(lines)
	eventually 20 grown "$((before + 50))" || die "only $(($(lines) - before)) lines were logged in 20 seconds"
	note "$(($(lines) - before)) lines were logged in the $(((${EPOCHREALTIME/./} - ${start/./}) / 1000)) ms after"
}
grown() { [ "$(lines)" -ge "$1" ]; }

# ---- start and end

start_daemon() {
	show cri-engine serve --config "$scratch/config.toml" '&'
	cri-engine serve --config "$scratch/config.toml" >>"$scratch/daemon.log" 2>&1 &
	daemon=$!
	eventually 30 answers_or_gone || true
	alive $daemon || die "the daemon has ended"
	answers || die "the daemon does not answer"
}
answers_or_gone() { dead $daemon || answers; }

# end_monitor: its processes guard each other, so they are stopped before they are killed.
end_monitor() {
	local pids
	for _ in 1 2 3 4 5; do
		pids=$(monitor_pids | cut -d ' ' -f 1)
		[ -n "$pids" ] || return 0
		# shellcheck disable=SC2086 # one word each
		{ kill -STOP $pids && kill -KILL $pids; } 2>/dev/null || true
		sleep 0.1
	done
}

# own_bridge: the network's bridge is there, was not before, and has no pod of anybody's.
own_bridge() { [ -z "$had_bridge" ] && [ -e $bridge ] && [ -z "$(ls $bridge/brif)" ]; }

# drop_bridge: CNI's bridge plugin leaves it to the node, for its next pod.
drop_bridge() { ! own_bridge || ip link delete "${bridge##*/}"; }

# undo takes away what is left after a failure, in whatever state it is.
undo() {
	local id
	if [ -n "$daemon" ] && alive "$daemon"; then
		for id in $(cri-engine pods -q 2>/dev/null); do
			cri-engine rmp -f "$id" >/dev/null 2>&1 || true
		done
		kill "$daemon" 2>/dev/null || true
		eventually 10 dead "$daemon" || kill -9 "$daemon" 2>/dev/null || true
	fi
	end_monitor
	drop_bridge
	awk -v dir="$scratch/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r id; do
		umount -l "$id" || true
	done
}

finish() {
	local code=$?
	trap '' INT TERM
	set +e
	if [ $code != 0 ]; then
		for file in "$scratch"/daemon.log "$scratch"/state/monitor/*.log; do
			[ ! -s "$file" ] || { printf '\n--- %s\n' "$file"; tail -n 25 "$file"; } >&2
		done
	fi
	undo
	[ -z "${REGISTRY_PID:-}" ] || kill "$REGISTRY_PID" 2>/dev/null
	wait 2>/dev/null
	rm -rf --one-file-system "$scratch"
	exit $code
}

# leftovers: what there still is of the pods, the containers and the engine. Most
# of the looks find nothing, and so fail.
leftovers() {
	local id
	set +e
	for id in "${ids[@]}"; do
		grep -F "$id" /proc/self/mountinfo | sed 's/^/mount /'
		find /sys/fs/cgroup -type d -name "*$id*" | sed 's/^/cgroup /'
		find /run/netns -name "*${id:0:20}*" 2>/dev/null | sed 's/^/network namespace /'
	done
	grep -F "$scratch/" /proc/self/mountinfo | sed 's/^/mount /'
	for id in $web_pid $counter_pid; do dead "$id" || echo "process $id"; done
	monitor_pids | sed 's/^/process /'
	for id in "${links[@]}"; do grep -xl "$id" /sys/class/net/*/ifindex | sed 's/^/interface /'; done
	! own_bridge || echo "bridge ${bridge##*/}"
	[ -z "$address" ] || nft list ruleset 2>/dev/null | grep -F "$address" | sed 's/^/firewall rule /'
	find "$scratch/root/pods" "$scratch/root/containers" "$scratch/logs" -type f | sed 's/^/file /'
	find "$scratch/state" -type s | grep -v /monitor/ | sed 's/^/socket /'
}

[ "$(id -u)" = 0 ] || die "needs root"
# The default network's bridge, which other engines of this machine share.
bridge=/sys/class/net/cri-engine0
had_bridge=$(ls -d $bridge 2>/dev/null || true)
scratch=$(mktemp -d /var/tmp/cri-engine-demo-XXXXXX)
trap finish EXIT
trap 'exit 130' INT TERM
export CRI_ENGINE_ENDPOINT=unix://$scratch/state/cri-engine.sock
address='' web_pid='' counter_pid='' ids=() links=()

# ---- the demo

step "A registry on loopback, with a small image"
mkdir "$scratch/registry"
coproc REGISTRY { exec go run ./demo/registry "$scratch/registry"; }
read -r demo_image <&"${REGISTRY[0]}" || die "the registry does not start"
note "$demo_image"

step "The engine: defaults, in directories of its own, and a registry without TLS"
cat >"$scratch/config.toml" <<END
root = "$scratch/root"
state = "$scratch/state"
[image]
registries_conf = "$scratch/registries.conf"
END
cat >"$scratch/registries.conf" <<END
[[registry]]
location = "${demo_image%%/*}"
insecure = true
END
run cat "$scratch/config.toml"
start_daemon

step "An image"
run cri-engine pull "$demo_image"
[ -z "$image" ] || run cri-engine pull "$image"
run cri-engine images

step "Two pods: a web server, and one that counts and ends with code 7 when it is told to"
run cri-engine run -d --name web --log-dir "$scratch/logs" "${image:-$demo_image}"
# shellcheck disable=SC2016 # the shell in the container expands it
run cri-engine run -d --name counter --log-dir "$scratch/logs" "$demo_image" \
	sh -c 'trap "exit 7" TERM; i=0; while :; do i=$((i + 1)); echo $i; usleep 10000; done'
run cri-engine pods
run cri-engine ps
run cri-engine exec counter ps
run cri-engine logs --tail 3 counter
run cri-engine stats

web_pid=$(number pid web) counter_pid=$(number pid counter) log=$(text logPath counter)
# In a container's /sys an interface tells the index of its other end on the host.
mapfile -t links < <(cat /proc/{"$web_pid","$counter_pid"}/root/sys/class/net/eth0/iflink)
mapfile -t ids < <(cri-engine pods -q --no-trunc; cri-engine ps -q --no-trunc)
address=$(text ip "$(cri-engine pods -q --name web)")
[ -n "$address" ] || die "the pod has no address"

step "A request to the web server at its pod's address"
show curl -sS "http://$address:$port/"
page=$(curl -sS --fail --max-time 5 "http://$address:$port/") || die "the web server does not answer"
head -n 6 <<<"$page"

step "The monitor's pump is killed: the keeper starts another"
eventually 5 keeper_and_pump || die "the monitor is not two processes: $(monitor_pids)"
run kill -9 "$pump"
eventually 5 two_anew "$pump" || die "no new pump"
check_counting
check_same
check_log

step "The monitor's keeper is killed: the pump takes its place"
run kill -9 "$keeper"
eventually 5 two_anew "$keeper" || die "no new keeper"
check_counting
check_same
check_log

step "The daemon is killed: pods run on, and are logged, without it"
run kill -9 $daemon
wait $daemon 2>/dev/null || true
check_counting
run curl -sS --fail --max-time 5 -o /dev/null -w '  the web server answers: %{http_code}\n' "http://$address:$port/"
start_daemon
run cri-engine ps
check_same
check_log

step "Stop: the exit code is the one the container ended with"
run cri-engine stop -t 2 counter web
run cri-engine ps -a
[ "$(number exitCode counter)" = 7 ] || die "the exit code of counter is $(number exitCode counter), not 7"
check_log

step "Remove"
run cri-engine rmp -f counter web
[ -z "$(cri-engine pods -q)$(cri-engine ps -a -q)" ] || die "pods or containers are still listed"
run cri-engine rmi "$demo_image"
[ -z "$image" ] || run cri-engine rmi "$image"
run kill $daemon
eventually 10 dead $daemon || die "the daemon does not end"
wait $daemon || die "the daemon ended with code $?"
eventually 5 keeper_and_pump || die "the monitor is not two processes: $(monitor_pids)"
run kill "$keeper"
eventually 10 no_monitor || die "the monitor does not end, though it has no container: $(monitor_pids)"

step "Nothing is left"
drop_bridge
left=$(leftovers || true)
[ -z "$left" ] || die "left behind:"$'\n'"$left"
note "no mount, namespace, process, cgroup, interface or firewall rule"
printf '\n%sAll of it worked, in %d seconds.%s\n' "$green" $SECONDS "$plain"
