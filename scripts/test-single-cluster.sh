#!/bin/sh
# One group of three nodes: create, read, update and delete through every node, a leader that is killed, a restart, a stop.
# The cluster is its own, on free ports, and gone afterwards. Fails on any mismatch.
#
# Usage: test-single-cluster.sh [raft|paxos]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
prepare_keevee
# shellcheck source=scripts/clusters.sh
. "$root/scripts/clusters.sh"

start_clusters <<CONFIG
num_clusters = 1
nodes_per_cluster = 3
engine = "${1:-raft}"
CONFIG
check_crud
kill_leader_of color
stop_clusters
echo 'passed'
