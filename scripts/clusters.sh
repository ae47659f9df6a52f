# shellcheck shell=sh
# Sourced by test-single-cluster.sh and test-multiple-clusters.sh, which set `keevee` before: clusters of their own, from a
# Config.toml of their own, on free ports, in a folder of which nothing is left.

work=$(mktemp -d)
data=$work/data

end_clusters() {
    if [ -d "$data" ]; then "$keevee" cluster stop --data "$data" >/dev/null 2>&1 || true; fi
    rm -rf "$work"
}
trap end_clusters EXIT
trap 'exit 130' INT TERM

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# Starts what the Config.toml on the standard input describes.
start_clusters() {
    {
        cat
        printf 'http_port = 0\npeer_port = 0\nresp_port = 0\ndata = "data"\n'
    } >"$work/Config.toml"
    tries=0
    until "$keevee" cluster start --config "$work/Config.toml" >"$work/output" 2>&1; do
        tries=$((tries + 1))
        # Another program may take a port between the choice and the start.
        if [ $tries -ge 5 ] || ! grep -q 'in use' "$work/output"; then
            cat "$work/output" >&2
            fail 'the cluster does not start'
        fi
        rm -rf "$data"
    done
    cat "$work/output"
    KEEVEE_ENDPOINTS=$("$keevee" cluster status --data "$data" |
        sed -n 's/^node .* \(http:.*\)$/\1/p' | paste -s -d , -)
    export KEEVEE_ENDPOINTS
}

check_crud() {
    "$keevee" cluster check crud --data "$data"
    "$keevee" cluster check cross-nodes --data "$data" --writes 400 --keys 80
}

# Prints one line of what `keevee explain` says of a key.
explain() {
    "$keevee" explain "$2" | sed -n "s/^$1  *//p"
}

# Kills the leader of a key's shard in the middle of everything: the key is read and written as before.
kill_leader_of() {
    key=$1
    "$keevee" put "$key" before >/dev/null
    leader=$(explain leader "$key")
    kill -9 "$(cat "$data/node$leader/keevee.pid")"
    [ "$("$keevee" get "$key" --timeout 60s)" = before ] || fail "$key was lost with node $leader"
    "$keevee" put "$key" after --timeout 60s >/dev/null
    echo "ok  node $leader killed, which led $(explain shard "$key"): $key is read and written"
    "$keevee" cluster start --config "$work/Config.toml" >/dev/null
    endpoint=$(echo "$KEEVEE_ENDPOINTS" | cut -d , -f "$leader")
    [ "$("$keevee" get "$key" --endpoint "$endpoint")" = after ] || fail "node $leader came back without $key"
    echo "ok  node $leader started again, and serves $key"
}

stop_clusters() {
    "$keevee" cluster stop --config "$work/Config.toml"
    if "$keevee" cluster status --data "$data" | grep -q 'runs as process'; then fail 'a node still runs'; fi
}
