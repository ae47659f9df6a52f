//! Calls about keys: what the store is to do, and the reply that its results make.

use bytes::Bytes;
use keevee_core::command::{
    Action, Command, Expect, OnError, Operation, OperationError, OperationResult, Precondition,
};
use keevee_core::ids::Namespace;
use keevee_core::limits::{Invalid, Limits};

use crate::reply::Reply;

/// A call about keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// What the store is to do, in order.
    pub operations: Vec<Operation>,
    /// What becomes of the results.
    pub answer: Answer,
    /// True if each operation may be carried out by itself: then the keys may be in different shards.
    pub spreads: bool,
    /// True if nothing may happen unless all keys are absent.
    pub if_absent: bool,
}

/// How results make a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Status OK; null if the put was skipped.
    Status,
    /// What the first operation, a read, has found.
    Value,
    /// What each operation, a read, has found.
    Values,
    /// How many operations have found or removed something, or did not skip it.
    Count,
    /// 1, since all was done.
    AllDone,
    /// The length of the value.
    Length,
    /// A part of the value: its first and its last byte, which count from the end if they are negative.
    Part(i64, i64),
    /// The sum.
    Sum,
    /// What kind of value the key holds.
    Type,
    /// How long the key has to live, in units of so many microseconds.
    Remaining(u64),
    /// When the key is gone, in units of so many microseconds.
    Expires(u64),
}

impl Data {
    /// Operations that are carried out together, in one shard.
    pub(crate) fn together(actions: impl IntoIterator<Item = Action>, answer: Answer) -> Data {
        // Each command of a group has its own error.
        let operation = |action| Operation { action, on_error: OnError::Continue };
        let operations = actions.into_iter().map(operation).collect();
        let mut data = Data { operations, answer, spreads: false, if_absent: false };
        if data.reads_and_writes() {
            refuse_partly_read(&mut data.operations);
        }
        data
    }

    /// The same for each of these keys, wherever they are.
    pub(crate) fn of_each(keys: &[Bytes], action: impl Fn(Bytes) -> Action, answer: Answer) -> Data {
        let spreads = true;
        Data { spreads, ..Data::together(keys.iter().cloned().map(action), answer) }
    }

    /// Looks keys up, wherever they are.
    pub fn look_up(keys: &[Bytes]) -> Data {
        Data::of_each(keys, |key| Action::Get { key }, Answer::Count)
    }

    /// The keys, in order; some may be there more than once.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.operations.iter().filter_map(|operation| operation.action.key())
    }

    /// How many operations read a value, of a size that nobody knows before.
    pub fn reads(&self) -> usize {
        self.operations.iter().filter(|operation| operation.action.is_read()).count()
    }

    /// True if it reads a value and writes.
    pub fn reads_and_writes(&self) -> bool {
        self.reads() > 0 && !self.is_read()
    }

    /// How many bytes the keys and values have.
    pub fn bytes(&self) -> usize {
        self.operations.iter().map(|operation| operation_bytes(&operation.action)).sum()
    }

    /// True if nothing changes.
    pub fn is_read(&self) -> bool {
        self.operations.iter().all(|operation| operation.action.is_read())
    }

    /// Checks the operations against the limits of a command of the store; those that are carried out each by itself, one
    /// by one.
    pub fn check(&mut self, limits: &Limits) -> Result<(), Reply> {
        let unbounded = Limits { operations_max: usize::MAX, command_bytes_max: usize::MAX, ..*limits };
        let command = command(Vec::new(), std::mem::take(&mut self.operations));
        let checked = command.validate(if self.spreads { &unbounded } else { limits });
        self.operations = command.operations;
        checked.map_err(|invalid| match invalid {
            Invalid::ValueTooLarge { max, .. } => {
                Reply::error(format!("string exceeds maximum allowed size of {max} bytes"))
            }
            other => Reply::error(other),
        })
    }

    /// What must hold for it to happen at all.
    pub fn preconditions(&self) -> Vec<Precondition> {
        let keys = self.keys().filter(|_| self.if_absent);
        keys.map(|key| Precondition { key: key.clone(), expect: Expect::Absent }).collect()
    }
}

impl Answer {
    /// True if the bytes of values count for it.
    pub fn shows_value(self) -> bool {
        matches!(self, Answer::Value | Answer::Values | Answer::Length | Answer::Part(..))
    }

    /// The reply that these results make, one for each operation. `now` tells the time, in microseconds since the
    /// Unix epoch: most replies need none.
    pub fn reply(self, results: &[OperationResult], now: fn() -> u64) -> Reply {
        let failed = results.iter().find_map(|result| match result {
            OperationResult::Failed(error) => Some(failure(*error)),
            _ => None,
        });
        if let Some(failure) = failed {
            return failure;
        }
        let first = results.first();
        match self {
            Answer::Status if results.contains(&OperationResult::Skipped) => Reply::Null,
            Answer::Status => Reply::OK,
            Answer::Value => value(first),
            Answer::Values => Reply::Array(results.iter().map(|result| value(Some(result))).collect()),
            Answer::Count => Reply::Integer(results.iter().filter(|result| has_done(result)).count() as i64),
            Answer::AllDone => Reply::Integer(1),
            Answer::Length => match first {
                Some(OperationResult::Appended { length, .. }) => Reply::Integer(*length as i64),
                found => Reply::Integer(bytes_of(found).map_or(0, |bytes| bytes.len() as i64)),
            },
            Answer::Part(start, end) => Reply::Bulk(part(bytes_of(first), start, end)),
            Answer::Sum => match first {
                Some(OperationResult::Incremented { value, .. }) => Reply::Integer(*value),
                other => unexpected(other),
            },
            Answer::Type => Reply::Simple(if bytes_of(first).is_some() { "string" } else { "none" }),
            Answer::Remaining(unit) => time(first, |expires| {
                // As Redis rounds: the nearest second.
                (expires.saturating_sub(now()).div_ceil(1_000) * 1_000 + unit / 2) / unit
            }),
            Answer::Expires(unit) => {
                time(first, |expires| (expires.div_ceil(1_000) * 1_000 + unit / 2) / unit)
            }
        }
    }
}

fn failure(error: OperationError) -> Reply {
    match error {
        OperationError::NotAnInteger => Reply::error("value is not an integer or out of range"),
        OperationError::Overflow => Reply::error("increment or decrement would overflow"),
        OperationError::ValueTooLarge => {
            Reply::error("string exceeds maximum allowed size (proto-max-bulk-len)")
        }
        OperationError::AnswerTooLarge => {
            Reply::error("the values read are too large for one answer: read fewer keys at once")
        }
    }
}

/// Nothing may be written if there is no room to answer what was read.
pub fn refuse_partly_read(operations: &mut [Operation]) {
    for operation in operations.iter_mut().filter(|operation| operation.action.is_read()) {
        operation.on_error = OnError::Abort;
    }
}

/// Operations as a command of the store.
pub fn command(preconditions: Vec<Precondition>, operations: Vec<Operation>) -> Command {
    Command {
        namespace: Namespace::DEFAULT,
        request_id: None,
        preconditions,
        operations,
        answer_bytes_max: None,
    }
}

fn operation_bytes(action: &Action) -> usize {
    let key = action.key().map_or(0, Bytes::len);
    let value = match action {
        Action::Put { value, .. } => value.len(),
        Action::Append { suffix, .. } => suffix.len(),
        Action::SetRange { offset, bytes, .. } => *offset as usize + bytes.len(),
        _ => 0,
    };
    key + value
}

fn bytes_of(result: Option<&OperationResult>) -> Option<&Bytes> {
    match result {
        Some(OperationResult::Value(Some(found))) => Some(&found.value),
        _ => None,
    }
}

fn value(result: Option<&OperationResult>) -> Reply {
    bytes_of(result).map_or(Reply::Null, |bytes| Reply::Bulk(bytes.clone()))
}

fn has_done(result: &OperationResult) -> bool {
    !matches!(
        result,
        OperationResult::Value(None) | OperationResult::Deleted { existed: false } | OperationResult::Skipped
    )
}

/// -2 if there is no key, -1 if it stays.
fn time(result: Option<&OperationResult>, shown: impl Fn(u64) -> u64) -> Reply {
    match result {
        Some(OperationResult::Value(None)) => Reply::Integer(-2),
        Some(OperationResult::Value(Some(found))) => {
            Reply::Integer(found.expires.map_or(-1, |expires| shown(expires) as i64))
        }
        other => unexpected(other),
    }
}

fn part(bytes: Option<&Bytes>, start: i64, end: i64) -> Bytes {
    let Some(bytes) = bytes else { return Bytes::new() };
    let length = bytes.len() as i64;
    if start < 0 && end < 0 && start > end {
        return Bytes::new();
    }
    let from_end = |at: i64| if at < 0 { at.saturating_add(length).max(0) } else { at };
    let (start, end) = (from_end(start), from_end(end).min(length - 1));
    if start > end || length == 0 { Bytes::new() } else { bytes.slice(start as usize..=end as usize) }
}

/// A node of another version answers what this one does not know: nothing here panics for it.
fn unexpected(result: Option<&OperationResult>) -> Reply {
    Reply::error(format!("the store answered {result:?}: upgrade its nodes"))
}
