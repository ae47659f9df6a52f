//! What the clients asked of each key, and what they were told; and what a key may answer.
//!
//! Every value is written once in a run, so that a read tells which write it saw. Keys are used for a while and then left
//! for new ones: a key's history stays short enough to be checked, and whatever was written last must be there in the end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use keevee_verify::checker::{Model, Operation};
use rand::RngExt;
use rand::rngs::StdRng;

/// After so many operations a key is left…
const OPERATIONS_MAX: usize = 400;
/// …or after so many of which nobody knows what became of them: each doubles what the checker may have to try.
const UNKNOWN_MAX: usize = 12;

/// What is asked of a key. Values are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Get,
    Put(u64),
    PutIfAbsent(u64),
    Delete,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Value(Option<u64>),
    Written,
    /// There was a value already.
    Kept,
    Deleted {
        existed: bool,
    },
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done(Output),
    /// Nothing happened, and nothing will.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// A key that is absent at first.
pub(crate) struct Register;

impl Model for Register {
    type State = Option<u64>;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Option<u64> {
        None
    }

    fn step(&self, state: &Option<u64>, input: &Input, output: Option<&Output>) -> Option<Option<u64>> {
        let (after, result) = match *input {
            Input::Get => (*state, Output::Value(*state)),
            Input::Put(value) => (Some(value), Output::Written),
            Input::PutIfAbsent(_) if state.is_some() => (*state, Output::Kept),
            Input::PutIfAbsent(value) => (Some(value), Output::Written),
            Input::Delete => (None, Output::Deleted { existed: state.is_some() }),
        };
        output.is_none_or(|told| *told == result).then_some(after)
    }

    fn is_neutral(&self, input: &Input, output: Option<&Output>) -> bool {
        *input == Input::Get || output == Some(&Output::Kept)
    }
}

/// A key, and what was asked of it.
pub(crate) struct Key {
    pub(crate) name: String,
    /// Those that were refused are not among them: as if they had never been.
    pub(crate) operations: Vec<Operation<Input, Output>>,
    begun: usize,
    under_way: usize,
    unknown: usize,
}

/// An operation that has begun.
pub(crate) struct Begun {
    place: usize,
    pub(crate) key: String,
    pub(crate) input: Input,
}

/// The histories of all keys.
pub(crate) struct History {
    keys: Mutex<Keys>,
    values: AtomicU64,
    prefix: String,
}

struct Keys {
    all: Vec<Key>,
    /// Those in use, by their place.
    used: Vec<usize>,
}

impl History {
    /// With so many keys in use at a time.
    pub(crate) fn new(prefix: String, used: usize) -> History {
        let mut keys = Keys { all: Vec::new(), used: Vec::new() };
        (0..used).for_each(|_| {
            let place = keys.add(&prefix);
            keys.used.push(place);
        });
        History { keys: Mutex::new(keys), values: AtomicU64::new(1), prefix }
    }

    /// An operation on one of the keys in use.
    pub(crate) fn begin(&self, random: &mut StdRng) -> Begun {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let at = random.random_range(0..keys.used.len());
        let mut place = keys.used[at];
        if keys.all[place].begun >= OPERATIONS_MAX || keys.all[place].unknown >= UNKNOWN_MAX {
            place = keys.add(&self.prefix);
            keys.used[at] = place;
        }
        let key = &mut keys.all[place];
        key.begun += 1;
        key.under_way += 1;
        let value = || self.values.fetch_add(1, Ordering::Relaxed);
        let input = match random.random_range(0..100) {
            0..50 => Input::Get,
            50..85 => Input::Put(value()),
            85..93 => Input::PutIfAbsent(value()),
            _ => Input::Delete,
        };
        Begun { place, key: key.name.clone(), input }
    }

    /// What became of it. Times are in microseconds.
    pub(crate) fn end(&self, begun: &Begun, called: u64, returned: u64, answer: Answer) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let key = &mut keys.all[begun.place];
        key.under_way -= 1;
        let (output, returned) = match answer {
            Answer::Done(output) => (Some(output), Some(returned)),
            // A read of which nothing is known says nothing.
            Answer::Unknown if begun.input != Input::Get => {
                key.unknown += 1;
                (None, None)
            }
            Answer::Refused | Answer::Unknown => return,
        };
        key.operations.push(Operation { input: begun.input, output, called, returned });
    }

    /// All keys.
    ///
    /// # Panics
    ///
    /// If an operation is under way.
    pub(crate) fn into_keys(self) -> Vec<Key> {
        let keys = self.keys.into_inner().unwrap_or_else(PoisonError::into_inner).all;
        assert!(keys.iter().all(|key| key.under_way == 0), "the load has not ended");
        keys
    }
}

impl Keys {
    fn add(&mut self, prefix: &str) -> usize {
        let name = format!("{prefix}-{}", self.all.len());
        self.all.push(Key { name, operations: Vec::new(), begun: 0, under_way: 0, unknown: 0 });
        self.all.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use keevee_verify::checker::check;

    use super::*;

    fn operation(
        input: Input,
        output: Option<Output>,
        called: u64,
        returned: Option<u64>,
    ) -> Operation<Input, Output> {
        Operation { input, output, called, returned }
    }

    #[test]
    fn what_a_register_may_answer() {
        let put = |value, called, returned| {
            operation(Input::Put(value), Some(Output::Written), called, Some(returned))
        };
        let get = |value, called, returned| {
            operation(Input::Get, Some(Output::Value(value)), called, Some(returned))
        };
        let lost = operation(Input::Put(3), None, 25, None);
        let fine = |history: &[_]| check(&Register, history, 10_000).is_ok();
        assert!(fine(&[put(1, 0, 10), get(Some(1), 11, 12)]));
        assert!(!fine(&[put(1, 0, 10), get(None, 11, 12)]), "an acknowledged write is lost");
        assert!(!fine(&[put(1, 0, 10), put(2, 11, 20), get(Some(1), 21, 22)]), "a stale read");
        assert!(fine(&[put(1, 0, 10), lost.clone(), get(Some(3), 50, 60)]), "it may have happened");
        assert!(fine(&[put(1, 0, 10), lost.clone(), get(Some(1), 50, 60)]), "or not");
        assert!(!fine(&[put(1, 0, 10), get(Some(3), 50, 60)]), "refused, and seen all the same");
        let back = [put(1, 0, 10), lost, get(Some(3), 50, 60), get(Some(1), 70, 80)];
        assert!(!fine(&back), "seen, and gone");
        let kept = operation(Input::PutIfAbsent(4), Some(Output::Kept), 20, Some(30));
        assert!(fine(&[put(1, 0, 10), kept.clone()]));
        assert!(!fine(&[kept]), "there was nothing to keep");
        let delete = |existed, called| {
            operation(Input::Delete, Some(Output::Deleted { existed }), called, Some(called + 5))
        };
        assert!(fine(&[put(1, 0, 10), delete(true, 20), delete(false, 30)]));
        assert!(!fine(&[put(1, 0, 10), delete(true, 20), delete(true, 30)]), "removed twice");
    }
}
