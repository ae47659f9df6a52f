#!/bin/sh
# Builds keevee and starts a cluster on this machine. Node i keeps all it has in ./tmp/data/node<i>/.
#
# Usage: start_server.sh [--nodes 3] [--shards 1] [--replicas 3] [--consensus paxos|raft] [--data DIR]
#                        [--http-port 8001] [--peer-port 9001] [--resp-port 7001] [--watch]
#        start_server.sh --config Config.toml [--data DIR] [--watch]
#
# The cluster manager does it: see `keevee cluster start --help`, and docs/operations.md for the keys of Config.toml.
# Installs what the build lacks, where it may. KEEVEE_BIN names a program to take instead of building one.
# Stop the cluster with stop_server.sh; started again, it has its data.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
prepare_keevee
exec "$keevee" cluster start "$@"
