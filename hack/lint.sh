#!/usr/bin/env bash
# All of the static checks: hack/lint.sh TAGS. Runs every one, even after one found something.
set -uo pipefail

tags=$1
failed=0
fail() {
	echo "lint: $*" >&2
	failed=1
}

unformatted=$(git ls-files -z '*.go' | xargs -0r gofmt -l)
[ -z "$unformatted" ] || fail "gofmt -w would change: $unformatted"

# Once as the product is built, with all end-to-end tests, once with the fail points that they use.
go vet -tags "$tags e2e kubelet" ./... || fail "go vet found something"
go vet -tags "$tags failpoints" ./internal/... || fail "go vet with the tag failpoints found something"

bin/golangci-lint run --allow-parallel-runners ./... || fail "golangci-lint found something"

# What is imported is in docs/dependencies.md, with its reason and the version that go.mod has.
imports=$(go list -tags "$tags e2e kubelet" -f '{{join .Imports "\n"}}
{{join .TestImports "\n"}}
{{join .XTestImports "\n"}}' ./... | grep -F . | sort -u)
# shellcheck disable=SC2086 # one word each
modules=$(go list -tags "$tags" -f '{{with .Module}}{{if not .Main}}{{.Path}} | {{.Version}}{{end}}{{end}}' $imports | grep . | sort -u)
while read -r module; do
	grep -qF "| $module |" docs/dependencies.md || fail "docs/dependencies.md lacks | $module |"
done <<<"$modules"

# Its database is on the network. Where that can't be reached, the check is skipped, and says so.
report=$(bin/govulncheck -tags "$tags" ./... 2>&1)
case $? in
0) echo "govulncheck: no known vulnerability is reached" ;;
3) echo "$report"; fail "govulncheck found something" ;;
*)
	if grep -qE 'fetching vulnerabilities|dial tcp|no such host|timeout' <<<"$report"; then
		echo "govulncheck: skipped, its database cannot be reached"
	else
		echo "$report"
		fail "govulncheck did not run"
	fi
	;;
esac

exit $failed
