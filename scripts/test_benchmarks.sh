#!/bin/sh
# Carries out each kind of operation through each node and prints the times.
# Uses the cluster that runs in --data DIR (./tmp/data), or one of its own that is gone afterwards.
# Fails on any mismatch. Takes the options of `keevee cluster check benchmarks`: see --help.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
prepare_keevee
exec "$keevee" cluster check benchmarks "$@"
