#!/bin/sh
# Creates, reads, updates and deletes through every node.
# Uses the cluster that runs in --data DIR (./tmp/data), or one of its own that is gone afterwards.
# Fails on any mismatch. Takes the options of `keevee cluster check crud`: see --help.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
prepare_keevee
exec "$keevee" cluster check crud "$@"
