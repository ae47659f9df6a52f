//! The messages of the public service `keevee.v1.Kv` (`proto/kv.proto`), and what they mean as
//! [`Command`]s and results.
//!
//! They live here since the server and the Rust client both speak them, and the client must not depend on the
//! server. They are a second set beside the codec's on purpose: those are what replicas agree on, decoded
//! strictly, and change with the cluster's version; these are what programs send, where unknown fields are
//! skipped, and hold for as long as programs use them.
//!
//! It leaves out the service itself: each side generates what it needs of that from the same file, with these
//! types.

use bytes::Bytes;

use crate::command::{self, Action, Command, Expect, OnError};
use crate::error;
use crate::ids::Namespace;
use crate::range::{DELETE_RANGE_KEYS_MAX, KeyRange, SCAN_BYTES_MAX, SCAN_KEYS_MAX};
use crate::requests::RequestId;

#[allow(missing_docs, clippy::all, reason = "generated; the .proto file says it")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/keevee.v1.rs"));
}

pub use proto::*;

/// Why a message is no command: correct it, sending it again does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCommand {
    /// The oneof is empty, or holds what only a newer version knows.
    #[error("operation {0} has no action that this version knows")]
    UnknownAction(usize),
    /// The oneof is empty, or holds what only a newer version knows.
    #[error("a condition on `{0}` has nothing to expect that this version knows")]
    UnknownCondition(&'static str),
    /// Present, and of no bytes.
    #[error("the idempotency key is empty: leave it out, or give it at least one byte")]
    EmptyIdempotencyKey,
}

impl TryFrom<PutRequest> for Command {
    type Error = NoCommand;

    fn try_from(request: PutRequest) -> Result<Command, NoCommand> {
        let PutRequest { key, value, condition, idempotency_key } = request;
        let preconditions = conditions(&key, condition)?;
        let request_id = request_id(idempotency_key)?;
        Ok(Command { request_id, preconditions, ..Command::single(Action::put(key, value)) })
    }
}

/// The known version is the caller's to look at: whether it holds changes only what the answer says.
impl TryFrom<GetRequest> for Command {
    type Error = NoCommand;

    fn try_from(request: GetRequest) -> Result<Command, NoCommand> {
        let GetRequest { key, condition, .. } = request;
        let preconditions = conditions(&key, condition)?;
        Ok(Command { preconditions, ..Command::single(Action::Get { key }) })
    }
}

impl TryFrom<DeleteRequest> for Command {
    type Error = NoCommand;

    fn try_from(request: DeleteRequest) -> Result<Command, NoCommand> {
        let DeleteRequest { key, condition, idempotency_key } = request;
        let preconditions = conditions(&key, condition)?;
        let request_id = request_id(idempotency_key)?;
        Ok(Command { request_id, preconditions, ..Command::single(Action::Delete { key }) })
    }
}

/// The shard is the caller's to look at: a command does not say where it goes.
impl TryFrom<ExecuteRequest> for Command {
    type Error = NoCommand;

    fn try_from(request: ExecuteRequest) -> Result<Command, NoCommand> {
        let precondition = |precondition: Precondition| {
            let condition = precondition.condition.ok_or(NoCommand::UnknownCondition("preconditions"))?;
            Ok(command::Precondition { key: precondition.key, expect: expect(condition, "preconditions")? })
        };
        let operation = |(position, operation)| operation_of(position, operation);
        Ok(Command {
            namespace: Namespace::DEFAULT,
            request_id: request_id(request.idempotency_key)?,
            preconditions: request.preconditions.into_iter().map(precondition).collect::<Result<_, _>>()?,
            operations: request
                .operations
                .into_iter()
                .enumerate()
                .map(operation)
                .collect::<Result<_, _>>()?,
            answer_bytes_max: None,
        })
    }
}

fn operation_of(position: usize, operation: Operation) -> Result<command::Operation, NoCommand> {
    let action = match operation.action.ok_or(NoCommand::UnknownAction(position))? {
        operation::Action::Get(Get { key }) => Action::Get { key },
        operation::Action::Put(Put { key, value }) => Action::put(key, value),
        operation::Action::Delete(Delete { key }) => Action::Delete { key },
        operation::Action::Increment(Increment { key, by }) => Action::Increment { key, by },
        operation::Action::Append(Append { key, suffix }) => Action::Append { key, suffix },
        operation::Action::Scan(Scan { start, end, limit, bytes_max }) => Action::Scan {
            range: KeyRange { start, end },
            limit: told_or(limit, SCAN_KEYS_MAX),
            bytes_max: told_or(bytes_max, SCAN_BYTES_MAX),
        },
        operation::Action::DeleteRange(DeleteRange { start, end, limit }) => {
            let limit = told_or(limit, DELETE_RANGE_KEYS_MAX);
            Action::DeleteRange { range: KeyRange { start, end }, limit }
        }
        operation::Action::PutWith(PutWith { key, value, expiry, only }) => {
            let only = match Only::try_from(only) {
                Ok(Only::Always) => command::Only::Always,
                Ok(Only::IfAbsent) => command::Only::IfAbsent,
                Ok(Only::IfPresent) => command::Only::IfPresent,
                Err(_) => return Err(NoCommand::UnknownAction(position)),
            };
            let expires = expiry_of(expiry).ok_or(NoCommand::UnknownAction(position))?;
            Action::Put { key, value, expires, only }
        }
        operation::Action::SetExpiry(SetExpiry { key, expiry, only }) => {
            let only = match ExpiryOnly::try_from(only) {
                Ok(ExpiryOnly::Always) => command::ExpiryOnly::Always,
                Ok(ExpiryOnly::IfNone) => command::ExpiryOnly::IfNone,
                Ok(ExpiryOnly::IfSome) => command::ExpiryOnly::IfSome,
                Ok(ExpiryOnly::IfLater) => command::ExpiryOnly::IfLater,
                Ok(ExpiryOnly::IfSooner) => command::ExpiryOnly::IfSooner,
                Ok(ExpiryOnly::IfSomeAndSooner) => command::ExpiryOnly::IfSomeAndSooner,
                Err(_) => return Err(NoCommand::UnknownAction(position)),
            };
            let expires = expiry_of(expiry).ok_or(NoCommand::UnknownAction(position))?;
            Action::SetExpiry { key, expires, only }
        }
        operation::Action::SetRange(SetRange { key, offset, bytes }) => {
            Action::SetRange { key, offset, bytes }
        }
    };
    let on_error = if operation.continue_on_error { OnError::Continue } else { OnError::Abort };
    Ok(command::Operation { action, on_error })
}

/// `None` if this version does not know what is meant.
fn expiry_of(expiry: Option<Expiry>) -> Option<command::Expiry> {
    let Some(Expiry { when }) = expiry else { return Some(command::Expiry::Never) };
    Some(match when? {
        expiry::When::Keep(Nothing {}) => command::Expiry::Keep,
        expiry::When::AtUnixMs(time) => command::Expiry::At(time.saturating_mul(1_000)),
        expiry::When::AfterMs(span) => command::Expiry::After(span.saturating_mul(1_000)),
    })
}

/// In milliseconds, rounded up: nothing goes early that is written back with the expiry that was read.
impl From<command::Expiry> for Option<Expiry> {
    fn from(expires: command::Expiry) -> Option<Expiry> {
        let when = match expires {
            command::Expiry::Never => return None,
            command::Expiry::Keep => expiry::When::Keep(Nothing {}),
            command::Expiry::At(time) => expiry::When::AtUnixMs(time.div_ceil(1_000)),
            command::Expiry::After(span) => expiry::When::AfterMs(span.div_ceil(1_000)),
        };
        Some(Expiry { when: Some(when) })
    }
}

impl From<command::Only> for Only {
    fn from(only: command::Only) -> Only {
        match only {
            command::Only::Always => Only::Always,
            command::Only::IfAbsent => Only::IfAbsent,
            command::Only::IfPresent => Only::IfPresent,
        }
    }
}

impl From<command::ExpiryOnly> for ExpiryOnly {
    fn from(only: command::ExpiryOnly) -> ExpiryOnly {
        match only {
            command::ExpiryOnly::Always => ExpiryOnly::Always,
            command::ExpiryOnly::IfNone => ExpiryOnly::IfNone,
            command::ExpiryOnly::IfSome => ExpiryOnly::IfSome,
            command::ExpiryOnly::IfLater => ExpiryOnly::IfLater,
            command::ExpiryOnly::IfSooner => ExpiryOnly::IfSooner,
            command::ExpiryOnly::IfSomeAndSooner => ExpiryOnly::IfSomeAndSooner,
        }
    }
}

/// A limit of 0 is one that was left out.
fn told_or(limit: u32, most: u32) -> u32 {
    if limit == 0 { most } else { limit }
}

fn conditions(key: &Bytes, condition: Option<Condition>) -> Result<Vec<command::Precondition>, NoCommand> {
    let Some(condition) = condition else { return Ok(Vec::new()) };
    Ok(vec![command::Precondition { key: key.clone(), expect: expect(condition, "condition")? }])
}

fn expect(condition: Condition, field: &'static str) -> Result<Expect, NoCommand> {
    match condition.expect {
        Some(condition::Expect::Absent(Nothing {})) => Ok(Expect::Absent),
        Some(condition::Expect::Present(Nothing {})) => Ok(Expect::Present),
        Some(condition::Expect::Version(version)) => Ok(Expect::Version(version)),
        None => Err(NoCommand::UnknownCondition(field)),
    }
}

fn request_id(idempotency_key: Option<Bytes>) -> Result<Option<RequestId>, NoCommand> {
    match idempotency_key {
        None => Ok(None),
        Some(key) if key.is_empty() => Err(NoCommand::EmptyIdempotencyKey),
        Some(key) => Ok(Some(RequestId::from_idempotency_key(&key))),
    }
}

impl From<command::OperationResult> for OperationResult {
    fn from(result: command::OperationResult) -> OperationResult {
        use operation_result::Result;
        let result = match result {
            command::OperationResult::Value(None) => Result::Value(Value::default()),
            command::OperationResult::Value(Some(found)) => {
                let expires_unix_ms = found.expires_unix_ms();
                Result::Value(Value { value: Some(found.value), version: found.version, expires_unix_ms })
            }
            command::OperationResult::Written { version } => Result::Written(Written { version }),
            command::OperationResult::Deleted { existed } => Result::Deleted(Deleted { existed }),
            command::OperationResult::Incremented { value, version } => {
                Result::Incremented(Incremented { value, version })
            }
            command::OperationResult::Appended { length, version } => {
                Result::Appended(Appended { length, version })
            }
            command::OperationResult::Scanned { keys, next } => {
                let key = |found: command::ScannedKey| {
                    let expires_unix_ms = found.value.expires_unix_ms();
                    let command::Versioned { version, value, .. } = found.value;
                    ScannedKey { key: found.key, value, version, expires_unix_ms }
                };
                Result::Scanned(Scanned { keys: keys.into_iter().map(key).collect(), next })
            }
            command::OperationResult::DeletedRange { deleted, next } => {
                Result::DeletedRange(DeletedRange { deleted, next })
            }
            command::OperationResult::Skipped => Result::Skipped(Nothing {}),
            command::OperationResult::RemovedExpired { .. } => unreachable!("no client can ask for it"),
            command::OperationResult::Failed(error) => Result::Failed(OperationError::from(error).into()),
        };
        OperationResult { result: Some(result) }
    }
}

impl From<command::OperationError> for OperationError {
    fn from(error: command::OperationError) -> OperationError {
        match error {
            command::OperationError::NotAnInteger => OperationError::NotAnInteger,
            command::OperationError::Overflow => OperationError::Overflow,
            command::OperationError::ValueTooLarge => OperationError::ValueTooLarge,
            command::OperationError::AnswerTooLarge => OperationError::AnswerTooLarge,
        }
    }
}

impl From<error::ErrorKind> for ErrorKind {
    fn from(kind: error::ErrorKind) -> ErrorKind {
        match kind {
            error::ErrorKind::Invalid => ErrorKind::Invalid,
            error::ErrorKind::TooLarge => ErrorKind::TooLarge,
            error::ErrorKind::NotFound => ErrorKind::NotFound,
            error::ErrorKind::Conflict => ErrorKind::Conflict,
            error::ErrorKind::RequestReused => ErrorKind::RequestReused,
            error::ErrorKind::RequestExpired => ErrorKind::RequestExpired,
            error::ErrorKind::NotLeader => ErrorKind::NotLeader,
            error::ErrorKind::WrongShard => ErrorKind::WrongShard,
            error::ErrorKind::Unavailable => ErrorKind::Unavailable,
            error::ErrorKind::OutcomeUnknown => ErrorKind::OutcomeUnknown,
            error::ErrorKind::Fatal => ErrorKind::Fatal,
        }
    }
}

#[cfg(test)]
mod tests;
