#!/usr/bin/env bash
# The end-to-end tests on a machine that systemd runs: "make test-vm".
#
#   test.sh TAGS     after "make build runc"
#
# ALL=1 runs the whole suite, RUN=PATTERN one test (WHERE=world: in a world), VARIANT=selinux
# what is to be seen where SELinux is enforcing.
#
# Builds what the machine has no Go for, boots it, and prints the result. What
# the tests wrote is left in ./vm-results.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
tags=$1 variant=${VARIANT:-default}
export CGO_ENABLED=0

scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/cri-engine-test-vm-XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# The repository as far as tests and "make install" need it, and programs.
tree=$scratch/tree
mkdir "$tree" "$tree/bin"
cp -r bin/cri-engine bin/cri-engine-monitor bin/runc bin/cni "$tree/bin/"
cp -r --parents README.md LICENSE CONTRIBUTING.md conf docs hack/install.sh "$tree/"
cp "$here/suite.sh" "$tree/"
go test -c -trimpath -ldflags '-s -w' -tags "$tags e2e" -o "$tree/e2e.test" ./test/e2e
go build -trimpath -ldflags '-s -w' -tags "$tags failpoints" -o "$tree/cri-engine-failpoints" ./cmd/cri-engine
for program in payload nriplugin; do
	(cd "test/e2e/testdata/$program" && go build -trimpath -ldflags '-s -w' -o "$tree/$program" .)
done

limit=2400
if [ -n "${RUN:-}" ]; then
	printf '%s %s\n' "${WHERE:-machine}" "$RUN" >"$tree/selection"
elif [ -n "${ALL:-}" ]; then
	limit=36000
	printf 'machine .\nworld .\n' >"$tree/selection"
else
	cp "$here/selection.$variant" "$tree/selection"
fi

# The repository of the machine that builds has modes and owners of its own.
chmod -R u=rwX,go=rX "$tree"
rm -rf vm-results
code=0
test/vm/vm.sh run --variant "$variant" --extra "$tree" --timeout $limit -- bash /extra/suite.sh /extra/selection || code=$?
if [ $code != 0 ]; then
	echo "test-vm: failed ($code); what was said is in vm-results/"
	exit 1
fi
echo "test-vm: passed"
