#!/usr/bin/env bash
# Tests "make image" without a registry on the network: makes two Debian base
# images with debootstrap, serves them from a registry on loopback, builds the
# image on them twice, and starts what is in it. Needs root and Debian's
# archive. Run by "make test-image"; takes some minutes.
set -euo pipefail

suite=${SUITE:-bookworm}
scratch=$(mktemp -d /var/tmp/cri-engine-image-XXXXXX)
registry_pid=

# Images and containers in a storage of their own. STORAGE_DRIVER=vfs where overlay does not work.
buildah="buildah --root $scratch/storage --runroot $scratch/run --storage-driver ${STORAGE_DRIVER:-overlay}"
# shellcheck disable=SC2086 # words
buildah() { command $buildah "$@"; }

cleanup() {
	[ -z "$registry_pid" ] || kill "$registry_pid"
	buildah rm --all >/dev/null 2>&1 || true
	# buildah leaves its storage mounted on itself.
	awk -v dir="$scratch/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r umount -l
	rm -rf --one-file-system "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

step() { printf '\n== %s\n' "$*" >&2; }
fail() {
	echo "image test: $*" >&2
	exit 1
}

start_registry() {
	local port
	port=$((20000 + RANDOM % 20000))
	registry=127.0.0.1:$port
	cat >"$scratch/registry.yml" <<-END
		version: 0.1
		log: {level: warn}
		storage: {filesystem: {rootdirectory: $scratch/blobs}}
		http: {addr: "$registry"}
	END
	docker-registry serve "$scratch/registry.yml" >"$scratch/registry.log" 2>&1 &
	registry_pid=$!
	for _ in $(seq 100); do
		! curl -sf -o /dev/null "http://$registry/v2/" || return 0
		sleep 0.1
	done
	fail "docker-registry on $registry does not answer: $(cat "$scratch/registry.log")"
}

# bootstrap NAME PACKAGES: a Debian in $scratch/NAME.
bootstrap() {
	debootstrap --variant=minbase --include="$2" "$suite" "$scratch/$1" >"$scratch/$1.log" 2>&1 ||
		fail "debootstrap: $(tail -n 5 "$scratch/$1.log")"
	rm -rf "$scratch/$1"/var/cache/apt/archives/*.deb "$scratch/$1"/var/lib/apt/lists/*
}

# push NAME [ENV]: $scratch/NAME as an image in the registry.
push() {
	local container
	container=$(buildah from scratch)
	buildah add --quiet "$container" "$scratch/$1" / >/dev/null
	[ -z "${2:-}" ] || buildah config --env "$2" "$container"
	buildah commit --quiet "$container" "$1" >/dev/null
	buildah rm "$container" >/dev/null
	buildah push --quiet --disable-compression --tls-verify=false "$1" "docker://$registry/$1"
	buildah rmi "$1" >/dev/null
	rm -rf --one-file-system "${scratch:?}/$1"
}

# build TAG BASE FLAGS: prints the image's id. The modules come from this machine's
# cache, so that the build asks no module proxy. The flags say whether steps that
# were done for another tag are done again.
build() {
	make --no-print-directory -s image IMAGE_TAG="$1" BASE_IMAGE="$2" \
		BUILD_IMAGE="$registry/build" NODE_IMAGE="$registry/node" GOPROXY=off GOFLAGS=-modcacherw=false \
		BUILDAH="$buildah" \
		BUILDAH_FLAGS="$3 --tls-verify=false --volume $(go env GOMODCACHE):/root/go/pkg/mod:ro" \
		>"$scratch/build.log" 2>&1 || fail "build on $2: $(tail -n 30 "$scratch/build.log")"
	buildah inspect --type image --format '{{.FromImageID}}' "$1"
}

step "a registry on loopback"
start_registry

step "base images: $suite with nft, $suite with a C compiler and this machine's Go"
bootstrap node nftables
push node
bootstrap build gcc,libc6-dev,libseccomp-dev,pkg-config,make,ca-certificates
cp -a "$(go env GOROOT)" "$scratch/build/usr/local/go"
push build "PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

step "the image, twice"
first=$(build first node --layers)
second=$(build second node "--layers --no-cache")
[ "$first" = "$second" ] || fail "two builds gave two images: $first, $second"
echo "both are $first"

step "what is in it"
container=$(buildah from first)
in_image() { buildah run --isolation chroot "$container" -- "$@"; }
in_image /usr/local/bin/cri-engine version
in_image /usr/local/bin/cri-engine config show >/dev/null
in_image /usr/local/bin/cri-engine-monitor version
in_image /usr/local/bin/runc --version
in_image /usr/local/libexec/cri-engine/cni/bridge
in_image nft --version
buildah rm "$container" >/dev/null

step "the same programs on nothing at all"
build bare scratch --layers >/dev/null
container=$(buildah from bare)
in_image /usr/local/bin/cri-engine version
buildah rm "$container" >/dev/null

echo "image test: passed"
