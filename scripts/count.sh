#!/bin/sh
# Counts the instructions of the hot paths under callgrind, and prints them beside those of main: of origin/main where
# there is one, else of this checkout. With --write it notes them in docs/benchmarks/instructions.md, to be committed.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/program.sh
. "$root/scripts/program.sh"
# awk shall write points, whatever the reader's language.
export LC_ALL=C

write=''
case "$*" in
'') ;;
--write) write=yes ;;
*)
    echo "usage: $0 [--write]" >&2
    exit 2
    ;;
esac

require_cargo
install_build_tools
cd "$root"
page=docs/benchmarks/instructions.md
if ! command -v valgrind >/dev/null 2>&1; then
    echo 'Counting needs valgrind. Install it with: sudo apt-get install -y valgrind' >&2
    exit 1
fi
# The benchmark asks for the very version that it is built with.
runner=$(sed -n '/^name = "gungraun-runner"$/{n;s/^version = "\(.*\)"$/\1/p;}' Cargo.lock)
if [ "$(gungraun-runner --version 2>/dev/null)" != "gungraun-runner $runner" ]; then
    echo "Counting needs gungraun-runner. Install it with: cargo install --locked gungraun-runner --version $runner" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# All of the workspace in the release profile, as test.sh does, so that they share what is compiled.
GUNGRAUN_COLOR=never cargo bench --profile release --locked --workspace --bench instructions >"$work/output" || {
    cat "$work/output" >&2
    exit 1
}
awk '
    /^instructions::/ { sub(/^instructions::/, ""); sub(/:\(.*/, ""); path = $0 }
    /^ *Instructions:/ { sub(/[|].*/, "", $2); print path "\t" $2 }
' "$work/output" >"$work/now"
if [ ! -s "$work/now" ]; then
    cat "$work/output" >&2
    echo 'No counts are in what gungraun says: scripts/count.sh reads another layout.' >&2
    exit 1
fi
# The C library copies and compares by what the processor can do.
vectors=$(grep -m1 -ow avx2 /proc/cpuinfo || echo 'no avx2')
made_by="$(rustc --version | cut -d' ' -f1,2), $(valgrind --version), $(getconf GNU_LIBC_VERSION), $(uname -m) with $vectors"

git show "origin/main:$page" >"$work/page" 2>/dev/null || cat "$page" >"$work/page" 2>/dev/null || true
awk -F ' *[|] *' '$3 ~ /^[0-9]+$/ { print $2 "\t" $3 }' "$work/page" >"$work/main"
awk -F '\t' '
    function row(path, before, now, change) { printf "%-40s %12s %12s %9s\n", path, before, now, change }
    function change(before, now) { return before == now ? "=" : sprintf("%+.2f%%", 100 * (now / before - 1)) }
    BEGIN { row("path", "main", "now", "change") }
    of == "main" { main[$1] = $2; next }
    $1 in main { row($1, main[$1], $2, change(main[$1], $2)); delete main[$1]; next }
    { row($1, "-", $2, "new") }
    END { for (path in main) row(path, main[path], "-", "gone") }
' of=main "$work/main" of=now "$work/now"
echo "main: $(sed -n 's/^Counted with \(.*\)\.$/\1/p' "$work/page" | grep . || echo not counted)"
echo "now:  $made_by"

[ -n "$write" ] || exit 0
cat >"$page" <<END
<!-- Made by: scripts/count.sh --write -->

# Instructions of the hot paths

As callgrind counts them, in steady state. Keys have 20 bytes, values 128, an entry 64 puts. What each case does is in
\`crates/keevee-counts/benches/instructions/main.rs\`; how to read them is in [CONTRIBUTING.md](../../CONTRIBUTING.md#count-instructions).

Counted with $made_by.

| path | instructions |
| --- | ---: |
$(awk -F '\t' '{ print "| " $1 " | " $2 " |" }' "$work/now")
END
