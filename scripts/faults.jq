# The page of scripts/faults.sh, of the reports of `keevee verify --output json` as one list.

# The shortest election timeout by default, `[engine] timeout_min_ms`; the longest is twice that.
def timeout_ms: 600;
def median: sort | if length == 0 then null else .[length / 2 | floor] end;
def rounded: if . == null then "" else (. * 10 | round) / 10 end;
def timeouts: if . == null then "" else . / timeout_ms | rounded end;
def row: "| \(map(tostring) | join(" | ")) |";
def events: [.[].events[]];
def happened: map(select(.happened));

# True of a run that had few kinds alone.
def is_narrow: .faults | length <= 2;
def only: if is_narrow then ", " + (.faults | keys | join(" and ")) else "" end;

def runs: ["passed", "engine", "seed", "minutes", "operations checked", "per minute", "faults", "acknowledged writes"] as $head
    | ([$head, ($head | map("---"))] + map([
        (if .passed then "yes" else "**no**" end), .consensus, "\(.seed)\(only)", (.seconds / 60 | rounded), .checked.operations,
        (.checked.operations * 60 / .seconds | round), (.events | happened | length), .checked.acknowledged_writes]))[] | row;

def violations: map(. as $run | .violations[] | "- \($run.consensus), seed \($run.seed)\($run | only): \(.)")
    | if . == [] then "" else "\nWhat does not hold:\n\n" + join("\n") + "\n" end;

# Of one engine: how often each kind happened, and for how long some shard gave no answer.
def kinds: events | group_by(.kind)[] | length as $tried | happened | select(length > 0)
    | (map(select(.with == null) | .silence_ms)) as $alone
    | (map(select(.with == null and .is_leader) | .silence_ms)) as $leaders
    | [.[0].kind, "\(length) of \($tried)", (map(select(.with != null)) | length), ($leaders | length), ($leaders | median | timeouts),
        ($leaders | max | timeouts), ($alone | median | timeouts), ($alone | max | timeouts)] | row;

# Of narrow runs the median of the p99s of whole seconds: of those in which no fault holds, of those in which a follower's link is slow and
# nothing else is wrong, and of those in which a follower's disk stalls.
def slow_follower: [.[] | select(is_narrow) | .events as $events | .timeline | to_entries[] | .key as $second | .value
        | select(.done > 0) | .leaders_p99_ms as $p99
        | [$events[] | select(.from_ms < ($second + 1) * 1000 and ([.healed_ms, .ready_ms] | max) > $second * 1000)] as $near
        | if $near == [] then {kind: "none", $p99}
          elif ($near | length) == 1 and ($near[0] | (.kind == "slow-link" or .kind == "stall-sync") and .happened
            and (.is_leader | not) and .from_ms <= $second * 1000 and .healed_ms >= ($second + 1) * 1000)
            then {kind: $near[0].kind, $p99}
          else empty end]
    | [(group_by(.kind)[] | {(.[0].kind): map(.p99)})] | add as $of
    | [("none", "slow-link", "stall-sync") as $kind | $of[$kind] // [] | (median | rounded), length];

([.[].consensus] | unique) as $engines
| . as $reports
| def of($engine): $reports | map(select(.consensus == $engine));
"# Faults on real processes

Written by `\($command)`: `keevee verify` with every kind of fault, for each engine and seed, and three minutes of one shard with
`slow-link` and `stall-sync` alone. [testing.md](../testing.md#real-processes) tells what each kind does and what is checked.

\([$reports[].checked.operations] | add) operations were checked, \([$reports[].events[] | select(.happened)] | length) faults really happened, \([$reports[].events[] | select(.happened and .with != null)] | length) of them while another one held.

\([$reports | runs] | join("\n"))
\($reports | violations)
## By kind

How often each really happened of how often it was tried, how often while another one held, and for how long some shard gave no answer, in election timeouts of
\(timeout_ms) ms: the shortest that a node draws by default, the longest is twice that. Times are of faults that came alone, in steps of 50 ms, from the
fault's beginning until the next one, at most ten seconds after it was undone. A fault *of a leader* struck a node that led a data shard. For as long
as no majority is there, as with `kill-all`, nothing can be answered. A silence of less than 100 ms may show as 0.
\($engines | map("
### \(.)

| kind | happened | with another | of a leader, alone | median | worst | all that came alone: median | worst |
| --- | --- | --- | --- | --- | --- | --- | --- |
\([of(.) | kinds] | join("\n"))
") | join(""))
## One slow follower

The median of the p99 latencies of whole seconds of the runs with few kinds, of clients that ask the leaders: those seconds in which no
fault held, and those in which nothing was wrong but that the link of a node that leads no data shard was 40 ms slower, or that its disk
did not answer. Whoever asks the slow node waits for its link twice.

| engine | without, ms | seconds | slow link, ms | seconds | stalled disk, ms | seconds |
| --- | --- | --- | --- | --- | --- | --- |
\($engines | map(. as $engine | [$engine] + (of($engine) | slow_follower) | row) | join("\n"))

A node may lead the shard map's shard and none of the data shards.

## Mutants

\($mutants) known bugs, put back one at a time, are each caught by the simulator with a recorded seed
(`crates/keevee-verify/seeds/mutants.txt`, some with a seed for each engine); the test suite runs all of them. Those of disks are
put back in the simulator's journal, not in the one on RocksDB's side, which is held to its promises by crash points.

## Not covered

- three faults at once, two of the network at once, and a fault while members change, while all nodes restart, or while power is lost;
- the connections of clients, which are never cut; two of three groups that hear each other only in part; lost names of files;
- more load than the nodes can take; values longer than a number; scans, batches and expiry;
- disks that slowly fill up ([0023](../decisions/0023-disks-that-fill-up.md)), which the simulator lacks, and how fast scrubs read;
- machines of their own: here all nodes share cores, a disk and a loopback network."
