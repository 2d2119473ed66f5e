#!/bin/sh
# Starts Debian's containerd beside cri-engine, to be measured by test/bench:
# everything of it in one scratch directory, on the same CNI plugins and a
# network of its own.
#
#   test/bench/peers/containerd.sh DIR CNI_BIN_DIR REGISTRY   start; prints --endpoint's value
#   test/bench/peers/containerd.sh stop DIR                   end it and its shims
#
# apt-get install containerd runc provides it. REGISTRY is the host:port that
# test/bench serves its images at, so give that the same address with
# --registry: containerd needs a pause image, which the benchmark builds from our
# own pause program and serves as REGISTRY/bench/pause:1.
set -eu

stop() {
	dir=$1
	[ -f "$dir/pid" ] || return 0
	# Pods are gone by now if the benchmark went well; shims of others are not ours to end.
	kill "$(cat "$dir/pid")" 2>/dev/null || :
	for pid in $(pgrep -f "containerd-shim.* -address $dir/containerd.sock" || :); do
		kill "$pid" 2>/dev/null || :
	done
	rm -f "$dir/pid"
}

if [ "$1" = stop ]; then
	stop "$2"
	exit
fi

dir=$1 cni_bin=$2 registry=$3
command -v containerd >/dev/null || { echo "containerd is not installed: apt-get install containerd" >&2; exit 1; }
mkdir -p "$dir/root" "$dir/state" "$dir/net.d" "$dir/certs.d/$registry" "$dir/ipam"

cat >"$dir/certs.d/$registry/hosts.toml" <<CONF
server = "http://$registry"
CONF

cat >"$dir/net.d/10-bench.conflist" <<CONF
{"cniVersion": "1.0.0", "name": "bench-containerd", "plugins": [
  {"type": "bridge", "bridge": "cri-bench1", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
   "ipam": {"type": "host-local", "dataDir": "$dir/ipam", "ranges": [[{"subnet": "10.199.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}]}
CONF

cat >"$dir/config.toml" <<CONF
version = 2
root = "$dir/root"
state = "$dir/state"
[grpc]
  address = "$dir/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$registry/bench/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "$dir/certs.d"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "$cni_bin"
  conf_dir = "$dir/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
  BinaryName = "crun"
CONF

containerd --config "$dir/config.toml" >"$dir/log" 2>&1 &
echo $! >"$dir/pid"
i=0
until [ -S "$dir/containerd.sock" ]; do
	i=$((i + 1))
	[ $i -lt 100 ] || { echo "containerd does not start, see $dir/log" >&2; exit 1; }
	sleep 0.1
done
echo "containerd=unix://$dir/containerd.sock"
