//! Batches are atomic: who reads two keys at once sees all that a write of both has made, or nothing.
//!
//! Linearizability is judged key by key, which says nothing of this. Versions do: of one key they only grow, so a read
//! that shows one key of a write, or a later value, must show the same of the other. (Adya 1999, *fractured reads* as
//! Bailis et al. 2014 call them.)

use std::collections::BTreeMap;

use bytes::Bytes;
use keevee_core::command::{Command, OperationResult, Outcome};

use super::Broken;
use crate::history::{Answer, History};

pub(crate) struct Atomic;

/// What a request tells of two keys: their versions.
struct Pair {
    number: u64,
    versions: [u64; 2],
}

impl Atomic {
    pub(crate) const NAME: &str = "batches are atomic";

    pub(crate) fn check(history: &History) -> Result<(), Broken> {
        let mut pairs: BTreeMap<[Bytes; 2], (Vec<Pair>, Vec<Pair>)> = BTreeMap::new();
        for request in history.iter() {
            let Some((_, Answer::Done(Outcome::Done(results)))) = &request.answer else { continue };
            let Some((keys, versions)) = told(&request.command, results) else { continue };
            let (writes, reads) = pairs.entry(keys).or_default();
            let kind = if request.is_read() { reads } else { writes };
            kind.push(Pair { number: request.number, versions });
        }
        for (keys, (writes, reads)) in &pairs {
            for (write, read) in writes.iter().flat_map(|write| reads.iter().map(move |read| (write, read))) {
                let sees = [0, 1].map(|place| read.versions[place] >= write.versions[place]);
                if sees[0] != sees[1] {
                    let (read, write) = (read.number, write.number);
                    let [one, other] = keys.each_ref().map(|key| String::from_utf8_lossy(key));
                    return Err(format!(
                        "request {read} read {one} and {other} at once and saw only half of request {write}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The keys of a command over two, in order, and their versions; none if one of them was absent, which has no version.
fn told(command: &Command, results: &[OperationResult]) -> Option<([Bytes; 2], [u64; 2])> {
    let [one, other] = &command.operations[..] else { return None };
    let version = |result: &OperationResult| match result {
        OperationResult::Value(value) => value.as_ref().map(|value| value.version),
        OperationResult::Written { version }
        | OperationResult::Incremented { version, .. }
        | OperationResult::Appended { version, .. } => Some(*version),
        _ => None,
    };
    let [first, second] = results else { return None };
    let mut told = [(one.action.key()?, version(first)?), (other.action.key()?, version(second)?)];
    told.sort();
    (told[0].0 != told[1].0).then(|| (told.map(|(key, _)| key.clone()), told.map(|(_, version)| version)))
}

#[cfg(test)]
mod tests {
    use keevee_core::command::{Action, OnError, Operation, Versioned};

    use super::*;

    #[test]
    fn a_read_that_sees_half_of_a_write_is_told() {
        let keys = ["a", "b"];
        let command = |action: fn(&'static str) -> Action| Command {
            operations: keys.map(|key| Operation { action: action(key), on_error: OnError::Abort }).to_vec(),
            ..Command::single(action("a"))
        };
        let put = command(|key| Action::put(key, "1"));
        let get = command(|key| Action::Get { key: key.into() });
        let check = |read: [u64; 2]| {
            let mut history = History::default();
            let written = [5, 6].map(|version| OperationResult::Written { version }).to_vec();
            let value = |version| Versioned { version, stamp: 0, expires: None, value: "1".into() };
            let read = read.map(|version| OperationResult::Value(Some(value(version)))).to_vec();
            for (command, results) in [(&put, written), (&get, read)] {
                let number = history.begin(0, 1, command.clone(), false);
                history.get_mut(number).answer = Some((1, Answer::Done(Outcome::Done(results))));
            }
            Atomic::check(&history)
        };
        for whole in [[1, 2], [5, 6], [9, 6], [8, 9]] {
            assert_eq!(check(whole), Ok(()), "{whole:?}");
        }
        for half in [[5, 2], [1, 6], [9, 5]] {
            assert!(check(half).is_err(), "{half:?}");
        }
    }
}
