#!/usr/bin/env bash
# Builds the container image with buildah; called by "make image". From the environment:
#
#   VERSION                            what the binaries call themselves
#   IMAGE_TAG                          the image's name
#   BUILD_IMAGE NODE_IMAGE BASE_IMAGE  other bases than the Dockerfile's
#   GOPROXY GOSUMDB GOFLAGS            for the Go command in the build stage
#   BUILDAH, BUILDAH_FLAGS             the command with its global flags; flags of its "build"
#
# The same commit on the same bases gives the same image, bit for bit.
set -euo pipefail

# The commit's time stands for the time of the build in files and metadata.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

args=(--timestamp "$SOURCE_DATE_EPOCH" --tag "${IMAGE_TAG:-localhost/cri-engine:${VERSION:?}}")
for name in VERSION BUILD_IMAGE NODE_IMAGE BASE_IMAGE GOPROXY GOSUMDB GOFLAGS; do
	[ -z "${!name:-}" ] || args+=(--build-arg "$name=${!name}")
done

# A build needs no privileges of a container's: chroot isolation works inside one, too.
# shellcheck disable=SC2086 # flags are words
exec ${BUILDAH:-buildah} build --isolation chroot "${args[@]}" ${BUILDAH_FLAGS:-} .
