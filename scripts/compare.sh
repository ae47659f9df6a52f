#!/bin/sh
# Measures keevee with both engines beside etcd, Redis, and what this machine could do without consensus: the same load on
# each in turn, three rounds, and writes docs/benchmarks/compare.md with plots. Installs etcd and Redis (Debian's) if they
# are missing. About 40 minutes. Takes the options of `keevee-compare run`: see --help.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"

missing=''
command -v etcd >/dev/null 2>&1 || missing="$missing etcd-server"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" -ne 0 ]; then
        echo "What keevee is compared with is not installed. Install it with:" >&2
        echo "  sudo apt-get update && sudo apt-get install -y$missing" >&2
        exit 1
    fi
    echo "Installing$missing" >&2
    apt-get update -q >&2
    # A list of words. Without its services, which would take ports and time.
    # shellcheck disable=SC2086
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >&2
fi

prepare_keevee --config "$root/.cargo/shipped.toml" --workspace --bin keevee --bin keevee-compare
compare=${KEEVEE_COMPARE_BIN:-$(dirname -- "$keevee")/keevee-compare}
cd "$root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# All systems have their folders there, so on one disk.
TMPDIR=$work "$compare" run --keevee "$keevee" "$@"
