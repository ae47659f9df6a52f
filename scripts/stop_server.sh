#!/bin/sh
# Stops the cluster that start_server.sh started, and nothing else. Its data stays.
#
# Usage: stop_server.sh [--data DIR]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
# Stopping needs no fresh program.
built=${CARGO_TARGET_DIR:-$root/target}/release/keevee
if [ -x "$built" ]; then KEEVEE_BIN=${KEEVEE_BIN:-$built}; fi
prepare_keevee
exec "$keevee" cluster stop "$@"
