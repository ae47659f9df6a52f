#!/bin/sh
# Two groups of three nodes, each with a shard of the keys: create, read, update and delete through every node, the
# leader of each group killed, a restart, a stop. The cluster is its own, on free ports, and gone afterwards. Fails on
# any mismatch.
#
# Usage: test-multiple-clusters.sh [raft|paxos]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
prepare_keevee
# shellcheck source=scripts/clusters.sh
. "$root/scripts/clusters.sh"

# Sets `found` to a key of the group.
find_key() {
    number=0
    found=''
    until [ -n "$found" ]; do
        number=$((number + 1))
        case $(explain shard "color-$number") in *"(group-$1)") found=color-$number ;; esac
    done
}

start_clusters <<CONFIG
num_clusters = 2
nodes_per_cluster = 3
engine = "${1:-raft}"
CONFIG
check_crud
find_key 1
[ "$(explain nodes "$found")" = 1,2,3 ] || fail "$found is not on the nodes of group 1"
kill_leader_of "$found"
find_key 2
[ "$(explain nodes "$found")" = 4,5,6 ] || fail "$found is not on the nodes of group 2"
kill_leader_of "$found"
stop_clusters
echo 'passed'
