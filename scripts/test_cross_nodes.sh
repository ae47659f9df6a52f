#!/bin/sh
# Writes through leaders and followers at random, then compares every key on every node, stale and linearizable.
# Uses the cluster that runs in --data DIR (./tmp/data), or one of its own that is gone afterwards.
# Fails on any mismatch. Takes the options of `keevee cluster check cross-nodes`: see --help.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
prepare_keevee
exec "$keevee" cluster check cross-nodes "$@"
