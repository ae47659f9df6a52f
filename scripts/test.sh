#!/bin/sh
# The whole test: formatting, clippy, documentation, all tests. Takes no options.
#
# Everything in the release profile, so that RocksDB is compiled once for all steps and for start_server.sh.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
require_cargo
install_build_tools
cd "$root"

step() {
    echo "== $*"
    "$@"
}

step cargo fmt --all --check
# Compiled by a build script, so that cargo does not know it.
step rustfmt --edition 2024 --check crates/keevee-shim/preload/shim.rs
step cargo clippy --release --locked --workspace --all-targets -- -D warnings
# The mutants are no part of the workspace's usual build.
step cargo clippy --release --locked -p keevee-verify --features mutants --all-targets -- -D warnings
step env RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --workspace --no-deps
step cargo test --release --locked --workspace --doc
# Last, so that their summaries close the output.
if cargo nextest --version >/dev/null 2>&1; then
    step cargo nextest run --release --locked --workspace
    step cargo nextest run --release --locked -p keevee-verify --features mutants --test mutants
else
    step cargo test --release --locked --workspace --lib --bins --tests
    step cargo test --release --locked -p keevee-verify --features mutants --test mutants
fi
