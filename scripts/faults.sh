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
unreported=

# Of this name, with these options.
run() {
    name=$1
    shift
    echo "$name" >&2
    # A run that does not pass is reported as well.
    "$keevee" verify "$@" --output json --report "$work/$name.html" >"$work/$name.json" || true
    [ -s "$work/$name.json" ] || { echo "it has no report" >&2; rm -f "$work/$name.json"; unreported=1; }
}

for consensus in paxos raft; do
    for seed in "$@"; do
        run "$consensus-$seed" --consensus "$consensus" --seed "$seed" --duration "$duration"
    done
    # A slow follower and nothing else is rare among all kinds, and where most nodes lead.
    run "$consensus-slow" --consensus "$consensus" --seed 1 --shards 1 --duration 3m --faults slow-link,stall-sync
done
# Some are there once for each engine.
mutants=$(sed '/^#/d; s/^raft //; s/ .*//' "$root/crates/keevee-verify/seeds/mutants.txt" | sort -u | wc -l)
page=$root/docs/benchmarks/faults.md
jq -rs --arg command "./scripts/faults.sh $duration $*" --arg mutants "$mutants" -f "$root/scripts/faults.jq" \
    "$work"/*.json >"$work/faults.md"
mv "$work/faults.md" "$page"
echo "written: $page" >&2
[ -z "$unreported" ] && jq -es 'all(.passed)' "$work"/*.json >/dev/null || { echo "not every run passed" >&2; exit 1; }
