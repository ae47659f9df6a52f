#!/bin/sh
# Stops the cluster that start_server.sh started, and nothing else. Its data stays.
#
# Usage: stop_server.sh [--data DIR] [--config Config.toml]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
# Whatever runs was started by a program that is there: stopping must not wait for a build.
KEEVEE_BIN=${KEEVEE_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/keevee}
prepare_keevee
exec "$keevee" cluster stop "$@"
