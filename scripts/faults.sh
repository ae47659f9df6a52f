#!/bin/sh
# Has real nodes of both engines suffer faults, with several seeds, and writes docs/benchmarks/faults.md from the reports.
# How long each run goes on: 10m if nothing is said; which seeds: 1 2 3. It needs jq, and a machine that does nothing else.
#   ./scripts/faults.sh 10m 1 2 3
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"

command -v jq >/dev/null 2>&1 || { echo "This needs jq: apt-get install jq" >&2; exit 1; }
duration=${1:-10m}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- 1 2 3
prepare_keevee
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for consensus in paxos raft; do
    for seed in "$@"; do
        echo "$consensus, seed $seed" >&2
        # A run that does not pass is reported as well.
        "$keevee" verify --consensus "$consensus" --seed "$seed" --duration "$duration" --output json \
            --report "$work/$consensus-$seed.html" >"$work/$consensus-$seed.json" || true
        [ -s "$work/$consensus-$seed.json" ] || { echo "it has no report" >&2; exit 1; }
    done
done
mutants=$(grep -vc '^#' "$root/crates/keevee-verify/seeds/mutants.txt")
page=$root/docs/benchmarks/faults.md
jq -rs --arg command "./scripts/faults.sh $duration $*" --arg mutants "$mutants" -f "$root/scripts/faults.jq" \
    "$work"/*.json >"$work/faults.md"
mv "$work/faults.md" "$page"
echo "written: $page" >&2
jq -es 'all(.passed)' "$work"/*.json >/dev/null || { echo "not every run passed" >&2; exit 1; }
