//! `check` and the model of a key against brute force: small histories, every order of their operations, and
//! the store itself (`keevee_core::apply`) to say what each order would have answered.
//!
//! The store has real versions. Which ones other keys of the shard have used up is unknown, so an order leads
//! to all the states that it leads to with any gaps between versions.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keevee_core::command::{Command, Expect, OperationResult, Outcome, Precondition, Versioned};
use keevee_verify::checker::{self, Violation, key::Key};
use keevee_verify::random::Random;

use crate::recording::{KEY, Recorded, Shard, Style, record};

const HISTORIES: u64 = 100_000;
const OPERATIONS_MAX: u64 = 6;

#[test]
fn the_verdict_is_that_of_trying_every_order() {
    let mut linearizable = 0;
    for seed in 0..HISTORIES {
        let history = small_history(&mut Random::new(seed, 2));
        let expected = Orders::new(&history).any_is_possible();
        let verdict = match checker::check(&Key, &history, u64::MAX) {
            Ok(_) => true,
            Err(Violation::NotLinearizable(_)) => false,
            Err(Violation::GaveUp(_)) => unreachable!("it may take all the steps there are"),
        };
        assert_eq!(verdict, expected, "seed {seed}: {history:#?}");
        linearizable += u64::from(verdict);
    }
    println!("{linearizable} of {HISTORIES} histories are linearizable");
    assert!((HISTORIES / 10..=HISTORIES * 9 / 10).contains(&linearizable), "{linearizable}");
}

/// Recorded, and often changed afterwards.
fn small_history(random: &mut Random) -> Vec<Recorded> {
    let mixed = Style {
        clients: random.between(2, 4) as usize,
        operations: random.between(2, OPERATIONS_MAX) as usize,
        latency_max: random.between(1, 5),
        lost_percent: random.pick(&[0, 15, 30]),
        unheard_percent: random.pick(&[0, 20, 40]),
        conditional_percent: random.pick(&[0, 30, 50]),
        long_percent: random.pick(&[0, 20]),
        has_few_values: random.percent(70),
        version_gap_max: random.pick(&[0, 1, 3]),
    };
    // One after another, and mostly unheard: what then is known of versions is the model's business.
    let guessing = Style { clients: 1, lost_percent: 0, unheard_percent: 60, long_percent: 0, ..mixed };
    let mut history = record(if random.percent(40) { guessing } else { mixed }, random);
    for _ in 0..random.below(4) {
        let index = random.below(history.len() as u64) as usize;
        match random.below(10) {
            0..5 => change_output(&mut history, index, random),
            5..8 => change_expectation(&mut history, index, random),
            _ => change_times(&mut history[index], random),
        }
    }
    history
}

/// It is told what it would have been told if some other operations had come before it.
fn change_output(history: &mut [Recorded], index: usize, random: &mut Random) {
    if history[index].output.is_none() {
        return;
    }
    let mut shard = Shard::new();
    for _ in 0..random.below(4) {
        shard.meta.version += random.below(3);
        shard.execute(&history[random.below(history.len() as u64) as usize].input);
    }
    shard.meta.version += random.below(3);
    history[index].output = Some(shard.execute(&history[index].input));
}

/// It expects a version that some operation expects or was told.
fn change_expectation(history: &mut [Recorded], index: usize, random: &mut Random) {
    let versions: Vec<u64> = history.iter().flat_map(versions_named).collect();
    if !versions.is_empty() {
        let expect = Expect::Version(random.pick(&versions));
        history[index].input.preconditions = vec![Precondition { key: KEY, expect }];
    }
}

fn change_times(operation: &mut Recorded, random: &mut Random) {
    let later = random.below(10);
    operation.called = (operation.called + later).saturating_sub(5);
    if let Some(returned) = &mut operation.returned {
        *returned = (*returned + later).saturating_sub(5).max(operation.called);
    }
}

/// A state of the key: its value, and the version of its latest mutation.
type State = (Option<Bytes>, u64);

/// All orders of a history.
struct Orders<'a> {
    history: &'a [Recorded],
    /// Larger versions are all alike.
    version_max: u64,
    /// Where each operation leads from each state.
    transitions: BTreeMap<(usize, State), BTreeSet<State>>,
}

impl<'a> Orders<'a> {
    fn new(history: &'a [Recorded]) -> Orders<'a> {
        let named = history.iter().flat_map(versions_named).max().unwrap_or(0);
        let mutations: usize = history.iter().map(|operation| operation.input.operations.len()).sum();
        Orders { history, version_max: named + mutations as u64, transitions: BTreeMap::new() }
    }

    fn any_is_possible(&mut self) -> bool {
        self.some_order_continues(&mut vec![false; self.history.len()], &BTreeSet::from([(None, 0)]))
    }

    /// True if the operations that are not taken can follow in some order, with or without those that never
    /// returned.
    fn some_order_continues(&mut self, taken: &mut [bool], states: &BTreeSet<State>) -> bool {
        let left: Vec<usize> = (0..taken.len()).filter(|index| !taken[*index]).collect();
        let first_return = left.iter().filter_map(|index| self.history[*index].returned).min();
        let Some(first_return) = first_return else { return true };
        left.into_iter().filter(|index| self.history[*index].called <= first_return).any(|index| {
            let after = states.iter().flat_map(|state| self.after(index, state)).collect::<BTreeSet<State>>();
            taken[index] = true;
            let is_possible = !after.is_empty() && self.some_order_continues(taken, &after);
            taken[index] = false;
            is_possible
        })
    }

    fn after(&mut self, index: usize, state: &State) -> BTreeSet<State> {
        let Recorded { input, output, .. } = &self.history[index];
        let version_max = self.version_max;
        let transition = self.transitions.entry((index, state.clone()));
        transition.or_insert_with(|| possible_after(state, input, output.as_ref(), version_max)).clone()
    }
}

fn possible_after(
    (value, version): &State,
    input: &Command,
    output: Option<&Outcome>,
    version_max: u64,
) -> BTreeSet<State> {
    let mut after = BTreeSet::new();
    for used_up in *version..=version_max {
        let mut shard = Shard::new();
        shard.value =
            value.clone().map(|value| Versioned { version: *version, stamp: 0, expires: None, value });
        shard.meta.version = used_up;
        let outcome = shard.execute(input);
        if output.is_none_or(|told| *told == outcome) {
            let has_mutated = shard.meta.version > used_up;
            let version = if has_mutated { shard.meta.version } else { *version };
            after.insert((shard.value.map(|value| value.value), version));
        }
    }
    after
}

/// The versions that an operation expects or was told.
fn versions_named(operation: &Recorded) -> Vec<u64> {
    let expected =
        operation.input.preconditions.iter().filter_map(|precondition| match precondition.expect {
            Expect::Version(version) => Some(version),
            Expect::Absent | Expect::Present => None,
        });
    let told = |result: &OperationResult| match result {
        OperationResult::Value(value) => value.as_ref().map(|value| value.version),
        OperationResult::Written { version }
        | OperationResult::Incremented { version, .. }
        | OperationResult::Appended { version, .. } => Some(*version),
        _ => None,
    };
    match &operation.output {
        Some(Outcome::Done(results)) => expected.chain(results.iter().filter_map(told)).collect(),
        Some(Outcome::Conflict { version, .. }) => expected.chain(*version).collect(),
        _ => expected.collect(),
    }
}
