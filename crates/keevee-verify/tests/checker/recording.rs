//! Histories of one key as clients would record them: commands carried out one after another by
//! `keevee_core::apply`, each at a moment between its call and its return. They are linearizable by construction.

use std::convert::Infallible;

use bytes::Bytes;
use keevee_core::apply::{Entry, ProposalId, ShardMeta, StateView, Take, TakeExpiry, apply};
use keevee_core::command::{
    Action, Command, Expect, OnError, Operation as Asked, Outcome, Precondition, Versioned,
};
use keevee_core::ids::Namespace;
use keevee_core::range::KeyRange;
use keevee_core::requests::RequestMemory;
use keevee_core::slots::SlotSet;
use keevee_verify::checker::{self, Operation, key::Key};
use keevee_verify::random::Random;

/// The key of all commands.
pub(crate) const KEY: Bytes = Bytes::from_static(b"key");

pub(crate) type Recorded = Operation<Command, Outcome>;

/// What a history is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub(crate) clients: usize,
    pub(crate) operations: usize,
    /// From call to effect at most, and again from effect to return, in microseconds.
    pub(crate) latency_max: u64,
    /// Operations that never return, in percent.
    pub(crate) lost_percent: u64,
    /// Operations that return without output, in percent.
    pub(crate) unheard_percent: u64,
    /// Commands with a precondition, in percent.
    pub(crate) conditional_percent: u64,
    /// Commands of several operations, in percent.
    pub(crate) long_percent: u64,
    /// True if many writes write the same.
    pub(crate) has_few_values: bool,
    /// The most versions that other keys of the shard use up between two commands.
    pub(crate) version_gap_max: u64,
}

impl Style {
    /// Twelve clients on one key, all of whose outcomes are known.
    pub(crate) const TWELVE_CLIENTS: Style = Style {
        clients: 12,
        operations: 24_000,
        latency_max: 1_000,
        lost_percent: 0,
        unheard_percent: 0,
        conditional_percent: 10,
        long_percent: 5,
        has_few_values: false,
        version_gap_max: 5,
    };
}

/// Most searches take two or three, whatever the length of the history.
const STEPS_PER_OPERATION_MAX: u64 = 10;

/// So that a search that goes astray among operations that never returned ends.
const STEPS_PER_OPERATION_MAX_LOST: u64 = 1_000;

#[test]
fn what_twelve_clients_record_is_accepted() {
    for seed in 0..2 {
        assert_accepted(Style::TWELVE_CLIENTS, seed);
        assert_accepted(Style { has_few_values: true, ..Style::TWELVE_CLIENTS }, seed);
    }
}

#[test]
fn what_twelve_clients_record_is_accepted_though_some_answers_are_unknown() {
    for seed in 2..4 {
        assert_accepted(Style { unheard_percent: 2, ..Style::TWELVE_CLIENTS }, seed);
    }
}

#[test]
fn what_twelve_clients_record_is_accepted_though_some_operations_never_return() {
    // Few: each may come next at any time, and what several of them can do together is more than can be tried.
    for seed in 0..50 {
        let style = Style { operations: 300, lost_percent: 2, unheard_percent: 2, ..Style::TWELVE_CLIENTS };
        assert_accepted(style, seed);
    }
}

fn assert_accepted(style: Style, seed: u64) {
    let history = record(style, &mut Random::new(seed, 1));
    let per_operation_max =
        if style.lost_percent > 0 { STEPS_PER_OPERATION_MAX_LOST } else { STEPS_PER_OPERATION_MAX };
    let steps_max = per_operation_max * history.len() as u64;
    if let Err(violation) = checker::check(&Key, &history, steps_max) {
        panic!("seed {seed}, {style:?}: {violation}");
    }
}

/// A shard that carries out commands one after another.
#[derive(Clone)]
pub(crate) struct Shard {
    pub(crate) meta: ShardMeta,
    pub(crate) value: Option<Versioned>,
}

impl StateView for Shard {
    type Error = Infallible;

    fn get(&self, _: Namespace, _: &[u8]) -> Result<Option<Versioned>, Infallible> {
        Ok(self.value.clone())
    }

    fn scan(&self, _: Namespace, _: &KeyRange, _: &mut Take<'_>) -> Result<(), Infallible> {
        unimplemented!("histories are of one key")
    }

    fn expiries(&self, _: u64, _: &mut TakeExpiry<'_>) -> Result<(), Infallible> {
        unimplemented!("nobody removes expired keys here")
    }
}

impl Shard {
    pub(crate) fn new() -> Shard {
        Shard { meta: ShardMeta::new(SlotSet::all()), value: None }
    }

    pub(crate) fn execute(&mut self, command: &Command) -> Outcome {
        let entry = Entry { stamp: 0, proposal: ProposalId::default(), commands: vec![command.clone()] };
        let index = self.meta.applied + 1;
        let Ok(mut applied) = apply(self, &self.meta, &mut RequestMemory::default(), index, &entry);
        self.meta = applied.write_set.meta;
        if let Some((_, value)) = applied.write_set.values.pop_first() {
            self.value = value;
        }
        applied.outcomes.remove(0)
    }
}

/// When an operation was called, took effect if it did, and returned if it did.
struct Times {
    called: u64,
    effect: Option<u64>,
    returned: Option<u64>,
}

/// Records a history.
pub(crate) fn record(style: Style, random: &mut Random) -> Vec<Recorded> {
    let mut all = times(style, random);
    all.sort_by_key(|times| times.effect);
    let mut shard = Shard::new();
    let operations = all.into_iter().enumerate().map(|(index, Times { called, effect, returned })| {
        let input = command(style, &shard, index, random);
        shard.meta.version += random.between(0, style.version_gap_max);
        let outcome = effect.map(|_| shard.execute(&input));
        let is_heard = returned.is_some() && !random.percent(style.unheard_percent);
        Operation { input, output: outcome.filter(|_| is_heard), called, returned }
    });
    operations.collect()
}

fn times(style: Style, random: &mut Random) -> Vec<Times> {
    let latency = style.latency_max;
    let mut free_at: Vec<u64> = (0..style.clients).map(|_| random.between(0, latency)).collect();
    let times = (0..style.operations).map(|_| {
        let client = free_at.iter_mut().min().expect("there are clients");
        let called = *client;
        let effect = called + random.between(0, latency);
        let returned = effect + random.between(0, latency);
        *client = returned;
        if random.percent(style.lost_percent) {
            let late = called + random.between(0, 20 * latency);
            let effect = random.pick(&[None, Some(effect), Some(effect), Some(late)]);
            return Times { called, effect, returned: None };
        }
        Times { called, effect: Some(effect), returned: Some(returned) }
    });
    times.collect()
}

fn command(style: Style, shard: &Shard, index: usize, random: &mut Random) -> Command {
    let count = if random.percent(style.long_percent) { random.between(2, 3) } else { 1 };
    let operations = (0..count).map(|_| Asked {
        action: action(style, index, random),
        on_error: random.pick(&[OnError::Abort, OnError::Continue]),
    });
    let operations = operations.collect();
    let mut preconditions = Vec::new();
    while random.percent(style.conditional_percent) {
        let version = shard.value.as_ref().map_or(shard.meta.version, |value| value.version);
        let nearby = (version + random.below(3)).saturating_sub(random.below(4));
        let expect = [Expect::Absent, Expect::Present, Expect::Version(version), Expect::Version(nearby)];
        preconditions.push(Precondition { key: KEY, expect: random.pick(&expect) });
    }
    Command { preconditions, operations, ..Command::single(Action::Get { key: KEY }) }
}

/// Half of them read.
fn action(style: Style, index: usize, random: &mut Random) -> Action {
    let few = random.pick(&["", "1", "2", "a", "9223372036854775807", "-"]);
    let value: Bytes = if style.has_few_values { few.into() } else { format!("<{index}>").into() };
    match random.below(20) {
        0..10 => Action::Get { key: KEY },
        10..15 => Action::put(KEY, value),
        15 => Action::Delete { key: KEY },
        16..18 => Action::Increment { key: KEY, by: random.between(1, 3) as i64 },
        _ => Action::Append { key: KEY, suffix: value },
    }
}
