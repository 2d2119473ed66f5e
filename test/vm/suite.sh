#!/bin/bash
# Inside the machine: runs end-to-end tests, one line of a selection after the other,
# and says of each how it went.
#
#   suite.sh FILE
#
# A line is "machine" or "world", as test/e2e/doc.go says, and a pattern for -test.run.
# The tests' own words are in /results, those of the ones that failed on stdout too.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if selinuxenabled 2>/dev/null; then
	# The disk with the tests has no labels, and the policy knows no paths of ours: docs/security.md.
	cp -r "$here" /opt/e2e && here=/opt/e2e
	chcon -R -t bin_t $here && chcon -t container_engine_exec_t $here/bin/{cri-engine,cri-engine-monitor,runc}
	export CRI_ENGINE_E2E_SCRATCH=/var/lib/cri-engine-e2e
	mkdir -p $CRI_ENGINE_E2E_SCRATCH && chcon -t container_var_lib_t $CRI_ENGINE_E2E_SCRATCH
	# Debian's policy lets engines neither use systemd nor connect to a registry at any port. Containers stay confined.
	echo '(typepermissive container_engine_t)' >/tmp/engine.cil && semodule -i /tmp/engine.cil || exit
	modprobe -a overlay br_netfilter # an engine may not ask for modules; its unit does
fi
export BIN=$here/bin CRI_ENGINE_E2E_PREBUILT=$here PATH=$here/bin:$PATH
# Without KVM this is many times slower than the machine below it, which may be busy.
export CRI_ENGINE_E2E_SLOW=20 KILLS=5 STREAM_CUTS=5

count() { grep -Ec "^ *--- $1: " "$2"; }

number=0 failed=0 passed=0 skipped=0
while read -r where pattern; do
	[[ $where && $where != '#'* ]] || continue
	number=$((number + 1))
	log=/results/$(printf %02d $number)-$(tr -c 'A-Za-z0-9\n' _ <<<"$pattern" | cut -c1-60).log
	host=
	[ "$where" != machine ] || host=1
	SECONDS=0
	CRI_ENGINE_E2E_HOST=$host "$here/e2e.test" -test.v -test.timeout=3h -test.run "$pattern" >"$log" 2>&1 </dev/null
	code=$?
	passed=$((passed + $(count PASS "$log"))) skipped=$((skipped + $(count SKIP "$log")))
	result=ok
	if [ $code != 0 ]; then
		result=FAIL failed=$((failed + 1))
	elif ! grep -q '^--- \(PASS\|SKIP\)' "$log"; then
		result='FAIL (no such test)' failed=$((failed + 1))
	fi
	echo "$result $where $pattern ${SECONDS}s"
	[ "$result" = ok ] || tail -c 20000 "$log"
done <"$1"
echo "$passed passed, $skipped skipped (subtests are counted); $failed of $number lines of the selection failed"
[ $number != 0 ] && [ $failed = 0 ]
