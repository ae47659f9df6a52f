# shellcheck shell=sh
# Sourced by the other scripts, which set `root` before: what the build needs, and the keevee program.
# Only what POSIX shells and the tools of both Debian and macOS have.

# rustup's folder, and a compiler cache where there is one.
for folder in "$HOME/.cargo/bin" /usr/lib/ccache; do
    if [ -d "$folder" ]; then PATH="$folder:$PATH"; fi
done
export PATH

# The cluster's folder, unless --data says otherwise.
KEEVEE_DATA=${KEEVEE_DATA:-$root/tmp/data}
export KEEVEE_DATA

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for file in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* \
        /usr/lib/libclang*.so* /usr/lib64/libclang*.so* /usr/local/lib/libclang*.so*; do
        if [ -e "$file" ]; then return 0; fi
    done
    return 1
}

# Installs what the build needs and the machine lacks; says how where it may not.
install_build_tools() {
    missing=''
    command -v c++ >/dev/null 2>&1 || missing="$missing g++"
    command -v make >/dev/null 2>&1 || missing="$missing make"
    if [ "$(uname)" = Darwin ]; then
        [ -z "$missing" ] && return 0
        echo 'The build needs the command line developer tools. Install them with: xcode-select --install' >&2
        return 1
    fi
    has_libclang || missing="$missing libclang-dev"
    [ -z "$missing" ] && return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "The build needs a C++ compiler, make and libclang with its headers; missing:$missing" >&2
        return 1
    fi
    if [ "$(id -u)" -eq 0 ]; then
        as_root='env'
    elif sudo -n true 2>/dev/null; then
        as_root='sudo env'
    else
        echo "The build needs packages that are not installed. Install them with:" >&2
        echo "  sudo apt-get update && sudo apt-get install -y$missing" >&2
        return 1
    fi
    echo "Installing$missing" >&2
    # Both are lists of words.
    # shellcheck disable=SC2086
    $as_root apt-get update -q >&2 &&
        $as_root DEBIAN_FRONTEND=noninteractive apt-get install -q -y $missing >&2
}

require_cargo() {
    command -v cargo >/dev/null 2>&1 && return 0
    echo 'The build needs Rust. Install it with:' >&2
    echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
    return 1
}

# Sets `keevee` to the program: KEEVEE_BIN, or built from this source, with these options of cargo.
prepare_keevee() {
    keevee=${KEEVEE_BIN:-}
    if [ -n "$keevee" ]; then
        [ -x "$keevee" ] && return 0
        echo "There is no program $keevee; build it, or name it with KEEVEE_BIN" >&2
        return 1
    fi
    require_cargo || return 1
    install_build_tools || return 1
    # All of the workspace, as test.sh does: a part of it would be built with other features, RocksDB included.
    cargo build --release --locked --manifest-path "$root/Cargo.toml" "$@" || return 1
    keevee=${CARGO_TARGET_DIR:-$root/target}/release/keevee
}
