#!/bin/sh
# Measures keevee, with each of its engines, beside a three-node etcd on this machine: the same requests over HTTP, made
# by wrk, to the leader of each, in turn, on the same disk. Needs etcd, wrk and curl (Debian: etcd-server, wrk).
# Usage: bench/etcd/compare.sh [SECONDS]   (seconds of each measurement; takes KEEVEE_BIN, else target/release/keevee)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
keevee=${KEEVEE_BIN:-$here/../../target/release/keevee}
seconds=${1:-10}
for program in etcd wrk curl "$keevee"; do
    command -v "$program" >/dev/null || { echo "missing: $program (apt-get install etcd-server wrk curl)" >&2; exit 1; }
done
folder=$(mktemp -d "${TMPDIR:-/tmp}/keevee-compare.XXXXXX")
etcd_pids=

clean_up() {
    for engine in paxos raft; do "$keevee" cluster stop --data "$folder/$engine" >/dev/null 2>&1 || true; done
    for pid in $etcd_pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $etcd_pids; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

start_etcd() {
    members='e1=http://127.0.0.1:23801,e2=http://127.0.0.1:23802,e3=http://127.0.0.1:23803'
    for i in 1 2 3; do
        etcd --name "e$i" --data-dir "$folder/etcd$i" --initial-cluster "$members" \
            --listen-client-urls "http://127.0.0.1:2379$i" --advertise-client-urls "http://127.0.0.1:2379$i" \
            --listen-peer-urls "http://127.0.0.1:2380$i" --initial-advertise-peer-urls "http://127.0.0.1:2380$i" \
            >"$folder/etcd$i.log" 2>&1 &
        etcd_pids="$etcd_pids $!"
    done
}

# The port of etcd's leader: the member whose id is the leader's.
etcd_leader() {
    tries=0
    while [ $tries -lt 100 ]; do
        for port in 23791 23792 23793; do
            status=$(curl -s -X POST -d '{}' "http://127.0.0.1:$port/v3/maintenance/status" || true)
            own=$(printf %s "$status" | sed -n 's/.*"member_id":"\([0-9]*\)".*/\1/p')
            leader=$(printf %s "$status" | sed -n 's/.*"leader":"\([0-9]*\)".*/\1/p')
            if [ -n "$own" ] && [ "$own" = "$leader" ]; then echo "$port"; return; fi
        done
        tries=$((tries + 1))
        sleep 0.1
    done
    echo "etcd has no leader; see $folder/etcd1.log" >&2
    exit 1
}

keevee_leader() { # keevee_leader FIRST_PORT
    for port in "$1" $(($1 + 1)) $(($1 + 2)); do
        if [ "$(curl -s "http://127.0.0.1:$port/is_leader")" = true ]; then echo "$port"; return; fi
    done
    echo "keevee has no leader" >&2
    exit 1
}

run() { # run STORE OPERATION CONNECTIONS PORT: operations per second, p50 and p99 in ms, failed ones
    wrk -t1 -c"$3" -d"$seconds" -s "$here/load.lua" "http://127.0.0.1:$4" -- "$1" "$2" | tail -n 1
}

"$keevee" cluster start --data "$folder/paxos" --consensus paxos --http-port 18001 --peer-port 19001 --resp-port 17001 >/dev/null
"$keevee" cluster start --data "$folder/raft" --consensus raft --http-port 18011 --peer-port 19011 --resp-port 17011 >/dev/null
start_etcd
etcd_port=$(etcd_leader)
paxos_port=$(keevee_leader 18001)
raft_port=$(keevee_leader 18011)

printf '%-4s %5s  %22s  %29s  %29s\n' '' '' 'etcd' 'keevee, Multi-Paxos' 'keevee, Raft'
printf '%-4s %5s  %7s %6s %7s' '' conns '/s' 'p50 ms' 'p99 ms'
for _ in paxos raft; do printf '  %7s %6s %7s %6s' '/s' 'p50 ms' 'p99 ms' 'ratio'; done
printf '\n'
for operation in put get; do
    for connections in 1 64 256; do
        # In turn, so that what else the machine does meets all of them.
        { run etcd $operation $connections "$etcd_port"
          run keevee $operation $connections "$paxos_port"
          run keevee $operation $connections "$raft_port"
        } | awk -v operation=$operation -v connections=$connections '
            { if (NR == 1) { base = $1; printf "%-4s %5d", operation, connections }
              printf "  %7d %6.2f %7.2f", $1, $2, $3
              if (NR > 1) printf " %6.2f", $1 / base
              failed += $4 }
            END { print (failed > 0 ? "  " failed " failed" : "") }'
    done
done
