//! What a run came to: as JSON for machines, and as text.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::Plan;
use super::schedule::Kind;
use super::timeline::{Second, Timeline};
use super::verdict::Verdict;

/// A silence after a fault that was undone counts as its doing for so long.
const AFTERMATH: Duration = Duration::from_secs(10);

/// A fault as it came. Times count from the load's beginning.
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) target: u64,
    /// True if it led a data shard.
    pub(crate) is_leader: bool,
    /// The other one, of two faults at once.
    pub(crate) with: Option<Kind>,
    pub(crate) happened: bool,
    pub(crate) from: Duration,
    /// When it was undone.
    pub(crate) healed: Duration,
    /// When every node could serve again.
    pub(crate) ready: Duration,
}

/// A node said that it led a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leadership {
    pub(crate) at: Duration,
    pub(crate) shard: u32,
    pub(crate) node: u64,
}

/// All that was seen.
pub(crate) struct Outcome {
    /// Operations done, by HTTP, RESP and gRPC.
    pub(crate) done: [u64; 3],
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    /// One after another; the faults of one at once.
    pub(crate) blows: Vec<Vec<Fault>>,
    /// Why no more came, if one could not be done or undone.
    pub(crate) broken_off: Option<String>,
    pub(crate) leaderships: Vec<Leadership>,
    pub(crate) timeline: Timeline,
    pub(crate) ended: Duration,
    pub(crate) verdict: Verdict,
}

/// The report.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) passed: bool,
    pub(crate) consensus: String,
    pub(crate) nodes: u64,
    pub(crate) shards: u16,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) checked: Checked,
    pub(crate) answers: Answers,
    pub(crate) faults: BTreeMap<Kind, KindReport>,
    /// What does not hold.
    pub(crate) violations: Vec<String>,
    pub(crate) events: Vec<Event>,
    /// What was done in each second.
    pub(crate) timeline: Vec<Second>,
    pub(crate) leaders: Vec<Leader>,
    /// Each time that it was looked.
    #[serde(skip)]
    pub(crate) leaderships: Vec<Leadership>,
}

#[derive(Serialize)]
pub(crate) struct Checked {
    pub(crate) operations: usize,
    pub(crate) keys: usize,
    pub(crate) acknowledged_writes: usize,
    pub(crate) unknown_writes: usize,
    pub(crate) shards: usize,
    pub(crate) replicas: usize,
}

#[derive(Serialize)]
pub(crate) struct Answers {
    pub(crate) done: u64,
    pub(crate) http: u64,
    pub(crate) resp: u64,
    pub(crate) grpc: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
}

/// Of one kind of fault.
#[derive(Serialize)]
pub(crate) struct KindReport {
    /// How often it was tried, and really happened.
    pub(crate) tried: usize,
    pub(crate) happened: usize,
    /// How often it happened while another fault held.
    pub(crate) overlapped: usize,
    /// For how long some shard answered nothing, in milliseconds; of those faults that came alone.
    pub(crate) silence_ms_median: u64,
    pub(crate) silence_ms_worst: u64,
}

#[derive(Serialize)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    pub(crate) node: u64,
    /// True if it led a data shard.
    pub(crate) is_leader: bool,
    /// The other one, of two faults at once.
    pub(crate) with: Option<Kind>,
    pub(crate) happened: bool,
    pub(crate) from_ms: u64,
    pub(crate) healed_ms: u64,
    pub(crate) ready_ms: u64,
    pub(crate) silence_ms: u64,
}

/// Who said to lead a shard, after another one or first of all.
#[derive(Serialize)]
pub(crate) struct Leader {
    pub(crate) at_ms: u64,
    pub(crate) shard: u32,
    pub(crate) node: u64,
}

impl Report {
    pub(crate) fn new(plan: &Plan, outcome: Outcome) -> Report {
        let Outcome {
            done: [http, resp, grpc],
            refused,
            unknown,
            blows,
            broken_off,
            leaderships,
            timeline,
            ended,
            verdict,
        } = outcome;
        let begin = |blow: &Vec<Fault>| blow.iter().map(|fault| fault.from).min().unwrap_or(ended);
        let nexts = blows.iter().skip(1).map(begin).chain([ended]);
        let events: Vec<Event> = (blows.iter().zip(nexts))
            .flat_map(|(blow, next)| blow.iter().map(move |fault| (fault, next)))
            .map(|(fault, next)| event(fault, next, &timeline))
            .collect();
        let kinds: BTreeMap<Kind, KindReport> =
            plan.kinds.iter().map(|kind| (*kind, of_kind(*kind, &events))).collect();
        let mut violations = verdict.violations;
        if let Some(why) = broken_off {
            // What else does not hold may be its doing.
            violations.insert(0, format!("broken off: {why}"));
        } else {
            let missing = kinds.iter().filter(|(_, kind)| kind.happened == 0).map(|(kind, _)| kind);
            let told = |kind| format!("no fault of kind {kind} really happened: let it run for longer");
            violations.extend(missing.map(told));
        }
        for (protocol, done) in [("HTTP", http), ("RESP", resp), ("gRPC", grpc)] {
            if done == 0 {
                violations.push(format!("nothing was done over {protocol}"));
            }
        }
        Report {
            passed: violations.is_empty(),
            consensus: plan.consensus.clone(),
            nodes: plan.nodes,
            shards: plan.shards,
            seed: plan.seed,
            seconds: ended.as_secs_f64(),
            checked: Checked {
                operations: verdict.operations,
                keys: verdict.keys,
                acknowledged_writes: verdict.acknowledged_writes,
                unknown_writes: verdict.unknown_writes,
                shards: verdict.shards,
                replicas: verdict.replicas,
            },
            answers: Answers { done: http + resp + grpc, http, resp, grpc, refused, unknown },
            faults: kinds,
            violations,
            events,
            timeline: timeline.seconds,
            leaders: changes(&leaderships),
            leaderships,
        }
    }
}

fn event(fault: &Fault, next: Duration, timeline: &Timeline) -> Event {
    let millis = |time: Duration| time.as_millis() as u64;
    let until = next.min(fault.healed + AFTERMATH);
    Event {
        kind: fault.kind,
        node: fault.target,
        is_leader: fault.is_leader,
        with: fault.with,
        happened: fault.happened,
        from_ms: millis(fault.from),
        healed_ms: millis(fault.healed),
        ready_ms: millis(fault.ready),
        silence_ms: millis(timeline.silence(fault.from, until)),
    }
}

fn changes(leaderships: &[Leadership]) -> Vec<Leader> {
    let mut last = BTreeMap::new();
    let is_new = |one: &&Leadership| last.insert(one.shard, one.node) != Some(one.node);
    let seen = leaderships.iter().filter(is_new);
    seen.map(|one| Leader { at_ms: one.at.as_millis() as u64, shard: one.shard, node: one.node }).collect()
}

fn of_kind(kind: Kind, events: &[Event]) -> KindReport {
    let of_kind = || events.iter().filter(|event| event.kind == kind);
    let happened = || of_kind().filter(|event| event.happened);
    let alone = happened().filter(|event| event.with.is_none());
    let mut silences: Vec<u64> = alone.map(|event| event.silence_ms).collect();
    silences.sort_unstable();
    KindReport {
        tried: of_kind().count(),
        happened: happened().count(),
        overlapped: happened().count() - silences.len(),
        silence_ms_median: silences.get(silences.len() / 2).copied().unwrap_or_default(),
        silence_ms_worst: silences.last().copied().unwrap_or_default(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { consensus, nodes, shards, seed, seconds, checked, answers, .. } = self;
        writeln!(formatter, "{nodes} nodes, {shards} data shards, {consensus}, seed {seed}, {seconds:.0} s")?;
        writeln!(
            formatter,
            "\n{:<16}{:>9}{:>13}{:>22}{:>18}",
            "fault", "happened", "with another", "silence median, ms", "worst, ms"
        )?;
        for (kind, KindReport { tried, happened, overlapped, silence_ms_median, silence_ms_worst }) in
            &self.faults
        {
            let (kind, happened) = (kind.name(), format!("{happened}/{tried}"));
            writeln!(
                formatter,
                "{kind:<16}{happened:>9}{overlapped:>13}{silence_ms_median:>22}{silence_ms_worst:>18}"
            )?;
        }
        let Answers { done, http, resp, grpc, refused, unknown } = answers;
        writeln!(
            formatter,
            "\n{done} operations done ({http} HTTP, {resp} RESP, {grpc} gRPC), {refused} refused, {unknown} of unknown outcome"
        )?;
        let Checked { operations, keys, acknowledged_writes, replicas, shards, .. } = checked;
        let what = format!(
            "{operations} operations on {keys} keys, {acknowledged_writes} acknowledged writes among them, and {replicas} \
             replicas of {shards} shards"
        );
        if self.passed {
            return writeln!(
                formatter,
                "passed: {what}: every key is linearizable, nothing acknowledged is lost, nothing refused is seen, and \
                 the replicas agree"
            );
        }
        writeln!(formatter, "FAILED, of {what}:")?;
        self.violations.iter().try_for_each(|violation| writeln!(formatter, "  {violation}"))
    }
}
