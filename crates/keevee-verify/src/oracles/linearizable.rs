//! Every key's history is linearizable: each request takes effect at one moment between its call and its answer.
//!
//! Herlihy and Wing (1990). The stale reads of etcd#20418, tikv#9208 and consul#54 break this and nothing else.
//!
//! A write whose client never learned its outcome is known to the world: one that no replica executed is left
//! out, and one that was executed had taken effect when the first replica did so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keevee_core::command::{Command, Outcome};

use super::Broken;
use crate::checker::key::Key;
use crate::checker::{self, Operation, Violation};
use crate::history::{Answer, History, Request};

/// What a check is given before it gives up. One that succeeds takes a few steps per operation.
const STEPS_MAX: u64 = 20_000_000;

pub(crate) struct Linearizable;

/// What was checked, for the speed of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    pub(crate) operations: u64,
    pub(crate) took: Duration,
}

impl Linearizable {
    pub(crate) const NAME: &str = "linearizable";

    pub(crate) fn check(history: &History) -> Result<Checked, Broken> {
        let started = Instant::now();
        let mut keys: BTreeMap<Bytes, (Vec<u64>, Vec<_>)> = BTreeMap::new();
        for request in history.iter() {
            for (key, operation) in operations(request) {
                let (numbers, history) = keys.entry(key).or_default();
                numbers.push(request.number);
                history.push(operation);
            }
        }
        let mut count = 0;
        for (key, (numbers, history)) in &keys {
            count += history.len() as u64;
            if let Err(violation) = checker::check(&Key, history, STEPS_MAX) {
                let obstacle = violation.obstacle();
                let requests = |places: &[usize]| {
                    let numbers: Vec<String> =
                        places.iter().map(|place| numbers[*place].to_string()).collect();
                    numbers.join(", ")
                };
                let verdict = match violation {
                    Violation::NotLinearizable(_) => "not linearizable",
                    Violation::GaveUp(_) => "neither proven nor refuted in the steps allowed",
                };
                let key = String::from_utf8_lossy(key);
                let last = &obstacle.linearized[obstacle.linearized.len().saturating_sub(10)..];
                return Err(format!(
                    "{key}: {verdict}: requests ..., {} lead to {:?}, where none of {} can come next",
                    requests(last),
                    obstacle.state,
                    requests(&obstacle.blocked)
                ));
            }
        }
        Ok(Checked { operations: count, took: started.elapsed() })
    }
}

/// A request as the checker sees it: an operation on each key that it names. None if it can have had no effect,
/// or did nothing.
fn operations(request: &Request) -> Vec<(Bytes, Operation<Command, Outcome>)> {
    let (output, returned) = match (&request.answer, request.effect) {
        (Some((at, Answer::Done(outcome))), _) => (Some(outcome.clone()), *at),
        (_, Some((_, at))) => (None, at),
        _ => return Vec::new(),
    };
    let keys: BTreeSet<&Bytes> = request.command.keys().collect();
    let names_one = keys.len() == 1;
    let projected = |key: &Bytes| {
        let (input, output) = match names_one {
            true => (request.command.clone(), output.clone()),
            false => projection(&request.command, output.as_ref(), key),
        };
        let operation = Operation { input, output, called: request.called, returned: Some(returned) };
        (key.clone(), operation)
    };
    keys.into_iter().map(projected).collect()
}

/// What a command over several keys asks of one of them, and was told of it. Clients give such commands no
/// preconditions, nor operations that can fail: what becomes of one key depends on no other.
fn projection(command: &Command, output: Option<&Outcome>, key: &Bytes) -> (Command, Option<Outcome>) {
    assert!(command.preconditions.is_empty(), "a precondition on one key would decide about the others");
    let is_here: Vec<bool> =
        command.operations.iter().map(|operation| operation.action.key() == Some(key)).collect();
    let kept = |place: &usize| is_here[*place];
    let operations = (0..is_here.len()).filter(kept).map(|place| command.operations[place].clone());
    let input = Command { operations: operations.collect(), ..command.clone() };
    let output = output.map(|outcome| match outcome {
        Outcome::Done(results) => {
            Outcome::Done((0..results.len()).filter(kept).map(|place| results[place].clone()).collect())
        }
        other => other.clone(),
    });
    (input, output)
}
