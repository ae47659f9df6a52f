//! How entries, commands, outcomes and the records of `apply` are written as bytes: in the log, in the
//! state, in snapshots and between nodes. `proto/command.proto` holds the layouts and the rules for
//! changing them.
//!
//! Entries, request records and the shard's meta stand alone and carry a format version. Commands and
//! outcomes live inside them, or in messages between nodes that agreed on a version before.
//!
//! Decoding is strict. A kind or a field that this version does not know is an error even where
//! protobuf would skip it: replicas that skip different things diverge. Decoded keys and values share
//! the buffer they came in and so keep all of it alive; whoever keeps one for long copies it.
//!
//! It leaves out checksums (the log and the transport have their own) and size limits
//! ([`crate::limits`]).

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::apply::{Entry, ProposalId, ShardMeta};
use crate::command::{
    Action, Command, Expect, Expiry, ExpiryOnly, OnError, Only, Operation, OperationError, OperationResult,
    Outcome, Precondition, ScannedKey, Versioned,
};
use crate::ids::Namespace;
use crate::range::KeyRange;
use crate::requests::{RequestId, RequestRecord};
use crate::slots::SlotSet;

#[allow(unreachable_pub, clippy::all, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/keevee.core.v1.rs"));
}

/// The format that this version writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// The field of an entry that holds its commands.
const ENTRY_COMMANDS: u32 = 4;
/// What stands before a command in an entry, at most.
const COMMAND_PREFIX_BYTES_MAX: usize = 11;

/// Why bytes could not be decoded, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are damaged, or never were what they are taken for.
    #[error("not a valid record: the bytes are damaged, replace this replica from the others")]
    Malformed(#[source] prost::DecodeError),
    /// The format version is one that this keevee does not read.
    #[error("format {0} is unknown here: written by a newer keevee: upgrade this node")]
    UnknownFormat(u32),
    /// A thing is of a kind that this keevee does not know.
    #[error("unknown kind of {0}: written by a newer keevee: upgrade this node")]
    UnknownKind(&'static str),
    /// There are fields that this keevee does not know.
    #[error("unknown fields: written by a newer keevee: upgrade this node")]
    UnknownField,
    /// A part that every version writes is missing or is not of its form.
    #[error("bad {0}: the bytes are damaged, replace this replica from the others")]
    BadField(&'static str),
}

/// Encodes an entry of the log.
pub fn encode_entry(entry: &Entry) -> Bytes {
    let commands: Vec<Bytes> = entry.commands.iter().map(encode_command).collect();
    join_entry(entry.stamp, entry.proposal, &commands)
}

/// Encodes an entry of commands that [`encode_command`] has encoded.
pub fn join_entry(stamp: u64, proposal: ProposalId, commands: &[Bytes]) -> Bytes {
    let proposal =
        proto::ProposalId { node: proposal.node, boot: proposal.boot, sequence: proposal.sequence };
    let head = proto::Entry { format: FORMAT, stamp, proposal: Some(proposal), commands: Vec::new() };
    let length: usize = commands.iter().map(|command| command.len() + COMMAND_PREFIX_BYTES_MAX).sum();
    let mut bytes = Vec::with_capacity(head.encoded_len() + length);
    head.encode(&mut bytes).expect("a vector grows");
    // The commands are the last field of an entry, and as messages they stand behind their lengths.
    for command in commands {
        encode_key(ENTRY_COMMANDS, WireType::LengthDelimited, &mut bytes);
        encode_varint(command.len() as u64, &mut bytes);
        bytes.extend_from_slice(command);
    }
    bytes.into()
}

/// Decodes an entry of the log.
pub fn decode_entry(bytes: Bytes) -> Result<Entry, DecodeError> {
    decode(bytes, |message: proto::Entry| {
        check_format(message.format)?;
        let proposal = message.proposal.ok_or(DecodeError::BadField("proposal id"))?;
        Ok(Entry {
            stamp: message.stamp,
            proposal: ProposalId { node: proposal.node, boot: proposal.boot, sequence: proposal.sequence },
            commands: each(message.commands, command_from_proto)?,
        })
    })
}

/// Encodes a command.
pub fn encode_command(command: &Command) -> Bytes {
    command_to_proto(command).encode_to_vec().into()
}

/// Decodes a command.
pub fn decode_command(bytes: Bytes) -> Result<Command, DecodeError> {
    decode(bytes, command_from_proto)
}

/// Encodes an outcome.
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    outcome_to_proto(outcome).encode_to_vec().into()
}

/// Decodes an outcome.
pub fn decode_outcome(bytes: Bytes) -> Result<Outcome, DecodeError> {
    decode(bytes, outcome_from_proto)
}

/// Encodes what is remembered of a request.
pub fn encode_request(record: &RequestRecord) -> Bytes {
    let message = proto::RequestRecord {
        format: FORMAT,
        time: record.time,
        id: Some(request_id_to_proto(record.id)),
        payload_hash: wide_to_bytes(record.payload_hash),
        outcome: record.outcome.clone(),
    };
    message.encode_to_vec().into()
}

/// Decodes what is remembered of a request. The outcome in it stays encoded, and is not looked at.
pub fn decode_request(bytes: Bytes) -> Result<RequestRecord, DecodeError> {
    decode(bytes, |message: proto::RequestRecord| {
        check_format(message.format)?;
        Ok(RequestRecord {
            time: message.time,
            id: request_id_from_proto(message.id.ok_or(DecodeError::BadField("request id"))?)?,
            payload_hash: wide_from_bytes(&message.payload_hash, "payload hash")?,
            outcome: message.outcome,
        })
    })
}

/// Encodes a shard's meta, all but the slots that it owns.
pub fn encode_meta(meta: &ShardMeta) -> Bytes {
    let message = proto::ShardMeta {
        format: FORMAT,
        applied: meta.applied,
        time: meta.time,
        version: meta.version,
        chain: wide_to_bytes(meta.chain),
        request_horizon: meta.request_horizon,
        expiring: meta.expiring,
    };
    message.encode_to_vec().into()
}

/// Decodes a shard's meta; the slots that it owns are kept apart.
pub fn decode_meta(bytes: Bytes, owned: SlotSet) -> Result<ShardMeta, DecodeError> {
    decode(bytes, |message: proto::ShardMeta| {
        check_format(message.format)?;
        Ok(ShardMeta {
            applied: message.applied,
            time: message.time,
            version: message.version,
            chain: wide_from_bytes(&message.chain, "chain hash")?,
            owned,
            request_horizon: message.request_horizon,
            expiring: message.expiring,
        })
    })
}

fn decode<M: Message + Default, T>(
    bytes: Bytes,
    convert: impl FnOnce(M) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    decode_known(bytes, FORMAT, convert)
}

/// Decodes strictly: `convert` refuses unknown kinds, and a length that does not come out the same
/// again betrays fields that were skipped. `known` is the newest format that is known.
pub(crate) fn decode_known<M: Message + Default, T>(
    bytes: Bytes,
    known: u32,
    convert: impl FnOnce(M) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let message = match M::decode(bytes.clone()) {
        Ok(message) => message,
        Err(error) => return Err(newer_format(bytes, known).unwrap_or(DecodeError::Malformed(error))),
    };
    let is_all_known = message.encoded_len() == bytes.len();
    let value = convert(message)?;
    if is_all_known { Ok(value) } else { Err(DecodeError::UnknownField) }
}

/// A newer format may give other types to known fields: if so, its number is the error to report.
fn newer_format(bytes: Bytes, known: u32) -> Option<DecodeError> {
    let format = proto::Header::decode(bytes).ok()?.format;
    (format > known).then_some(DecodeError::UnknownFormat(format))
}

fn check_format(format: u32) -> Result<(), DecodeError> {
    check_format_is(FORMAT, format)
}

pub(crate) fn check_format_is(known: u32, format: u32) -> Result<(), DecodeError> {
    match format {
        0 => Err(DecodeError::BadField("format version")),
        format if format == known => Ok(()),
        newer => Err(DecodeError::UnknownFormat(newer)),
    }
}

pub(crate) fn each<M, T>(
    messages: Vec<M>,
    convert: impl Fn(M) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    messages.into_iter().map(convert).collect()
}

fn command_to_proto(command: &Command) -> proto::Command {
    proto::Command {
        namespace: command.namespace.0,
        request_id: command.request_id.map(request_id_to_proto),
        preconditions: command.preconditions.iter().map(precondition_to_proto).collect(),
        operations: command.operations.iter().map(operation_to_proto).collect(),
        answer_bytes_max: command.answer_bytes_max,
    }
}

fn command_from_proto(message: proto::Command) -> Result<Command, DecodeError> {
    Ok(Command {
        namespace: Namespace(message.namespace),
        request_id: message.request_id.map(request_id_from_proto).transpose()?,
        preconditions: each(message.preconditions, precondition_from_proto)?,
        operations: each(message.operations, operation_from_proto)?,
        answer_bytes_max: message.answer_bytes_max,
    })
}

fn request_id_to_proto(id: RequestId) -> proto::RequestId {
    use proto::request_id::Id;
    let id = match id {
        RequestId::Timed(bits) => Id::Timed(wide_to_bytes(bits)),
        RequestId::Free(bits) => Id::Free(wide_to_bytes(bits)),
    };
    proto::RequestId { id: Some(id) }
}

fn request_id_from_proto(message: proto::RequestId) -> Result<RequestId, DecodeError> {
    use proto::request_id::Id;
    match message.id.ok_or(DecodeError::UnknownKind("request id"))? {
        Id::Timed(bits) => Ok(RequestId::Timed(wide_from_bytes(&bits, "request id")?)),
        Id::Free(bits) => Ok(RequestId::Free(wide_from_bytes(&bits, "request id")?)),
    }
}

fn precondition_to_proto(precondition: &Precondition) -> proto::Precondition {
    let expect = match precondition.expect {
        Expect::Absent => proto::precondition::Expect::Absent(proto::Nothing {}),
        Expect::Present => proto::precondition::Expect::Present(proto::Nothing {}),
        Expect::Version(version) => proto::precondition::Expect::Version(version),
    };
    proto::Precondition { key: precondition.key.clone(), expect: Some(expect) }
}

fn precondition_from_proto(message: proto::Precondition) -> Result<Precondition, DecodeError> {
    let expect = match message.expect.ok_or(DecodeError::UnknownKind("precondition"))? {
        proto::precondition::Expect::Absent(_) => Expect::Absent,
        proto::precondition::Expect::Present(_) => Expect::Present,
        proto::precondition::Expect::Version(version) => Expect::Version(version),
    };
    Ok(Precondition { key: message.key, expect })
}

fn operation_to_proto(operation: &Operation) -> proto::Operation {
    use proto::operation::Action as Kind;
    let action = match &operation.action {
        Action::Get { key } => Kind::Get(proto::Get { key: key.clone() }),
        Action::Put { key, value, expires, only } => Kind::Put(proto::Put {
            key: key.clone(),
            value: value.clone(),
            expires: expiry_to_proto(*expires),
            only: only_to_proto(*only).into(),
        }),
        Action::Delete { key } => Kind::Delete(proto::Delete { key: key.clone() }),
        Action::Increment { key, by } => Kind::Increment(proto::Increment { key: key.clone(), by: *by }),
        Action::Append { key, suffix } => {
            Kind::Append(proto::Append { key: key.clone(), suffix: suffix.clone() })
        }
        Action::Scan { range, limit, bytes_max } => {
            let range = Some(range_to_proto(range));
            Kind::Scan(proto::Scan { range, limit: *limit, bytes_max: *bytes_max })
        }
        Action::DeleteRange { range, limit } => {
            Kind::DeleteRange(proto::DeleteRange { range: Some(range_to_proto(range)), limit: *limit })
        }
        Action::SetExpiry { key, expires, only } => Kind::SetExpiry(proto::SetExpiry {
            key: key.clone(),
            expires: expiry_to_proto(*expires),
            only: expiry_only_to_proto(*only).into(),
        }),
        Action::SetRange { key, offset, bytes } => {
            Kind::SetRange(proto::SetRange { key: key.clone(), offset: *offset, bytes: bytes.clone() })
        }
        Action::RemoveExpired { limit } => Kind::RemoveExpired(proto::RemoveExpired { limit: *limit }),
    };
    let continue_on_error = operation.on_error == OnError::Continue;
    proto::Operation { action: Some(action), continue_on_error }
}

fn operation_from_proto(message: proto::Operation) -> Result<Operation, DecodeError> {
    use proto::operation::Action as Kind;
    let action = match message.action.ok_or(DecodeError::UnknownKind("operation"))? {
        Kind::Get(get) => Action::Get { key: get.key },
        Kind::Put(proto::Put { key, value, expires, only }) => {
            let (expires, only) = (expiry_from_proto(expires)?, only_from_proto(only)?);
            Action::Put { key, value, expires, only }
        }
        Kind::Delete(delete) => Action::Delete { key: delete.key },
        Kind::Increment(increment) => Action::Increment { key: increment.key, by: increment.by },
        Kind::Append(append) => Action::Append { key: append.key, suffix: append.suffix },
        Kind::Scan(proto::Scan { range, limit, bytes_max }) => {
            Action::Scan { range: range_from_proto(range)?, limit, bytes_max }
        }
        Kind::DeleteRange(proto::DeleteRange { range, limit }) => {
            Action::DeleteRange { range: range_from_proto(range)?, limit }
        }
        Kind::SetExpiry(proto::SetExpiry { key, expires, only }) => {
            let (expires, only) = (expiry_from_proto(expires)?, expiry_only_from_proto(only)?);
            Action::SetExpiry { key, expires, only }
        }
        Kind::SetRange(proto::SetRange { key, offset, bytes }) => Action::SetRange { key, offset, bytes },
        Kind::RemoveExpired(proto::RemoveExpired { limit }) => Action::RemoveExpired { limit },
    };
    let on_error = if message.continue_on_error { OnError::Continue } else { OnError::Abort };
    Ok(Operation { action, on_error })
}

fn expiry_to_proto(expires: Expiry) -> Option<proto::Expiry> {
    use proto::expiry::When;
    let when = match expires {
        Expiry::Never => return None,
        Expiry::Keep => When::Keep(proto::Nothing {}),
        Expiry::At(time) => When::At(time),
        Expiry::After(span) => When::After(span),
    };
    Some(proto::Expiry { when: Some(when) })
}

fn expiry_from_proto(message: Option<proto::Expiry>) -> Result<Expiry, DecodeError> {
    use proto::expiry::When;
    let Some(proto::Expiry { when }) = message else { return Ok(Expiry::Never) };
    Ok(match when.ok_or(DecodeError::UnknownKind("expiry"))? {
        When::Keep(proto::Nothing {}) => Expiry::Keep,
        When::At(time) => Expiry::At(time),
        When::After(span) => Expiry::After(span),
    })
}

fn only_to_proto(only: Only) -> proto::Only {
    match only {
        Only::Always => proto::Only::Always,
        Only::IfAbsent => proto::Only::IfAbsent,
        Only::IfPresent => proto::Only::IfPresent,
    }
}

fn only_from_proto(only: i32) -> Result<Only, DecodeError> {
    match proto::Only::try_from(only) {
        Ok(proto::Only::Always) => Ok(Only::Always),
        Ok(proto::Only::IfAbsent) => Ok(Only::IfAbsent),
        Ok(proto::Only::IfPresent) => Ok(Only::IfPresent),
        Err(_) => Err(DecodeError::UnknownKind("condition of a put")),
    }
}

fn expiry_only_to_proto(only: ExpiryOnly) -> proto::ExpiryOnly {
    match only {
        ExpiryOnly::Always => proto::ExpiryOnly::Always,
        ExpiryOnly::IfNone => proto::ExpiryOnly::IfNone,
        ExpiryOnly::IfSome => proto::ExpiryOnly::IfSome,
        ExpiryOnly::IfLater => proto::ExpiryOnly::IfLater,
        ExpiryOnly::IfSooner => proto::ExpiryOnly::IfSooner,
        ExpiryOnly::IfSomeAndSooner => proto::ExpiryOnly::IfSomeAndSooner,
    }
}

fn expiry_only_from_proto(only: i32) -> Result<ExpiryOnly, DecodeError> {
    match proto::ExpiryOnly::try_from(only) {
        Ok(proto::ExpiryOnly::Always) => Ok(ExpiryOnly::Always),
        Ok(proto::ExpiryOnly::IfNone) => Ok(ExpiryOnly::IfNone),
        Ok(proto::ExpiryOnly::IfSome) => Ok(ExpiryOnly::IfSome),
        Ok(proto::ExpiryOnly::IfLater) => Ok(ExpiryOnly::IfLater),
        Ok(proto::ExpiryOnly::IfSooner) => Ok(ExpiryOnly::IfSooner),
        Ok(proto::ExpiryOnly::IfSomeAndSooner) => Ok(ExpiryOnly::IfSomeAndSooner),
        Err(_) => Err(DecodeError::UnknownKind("condition of an expiry")),
    }
}

fn range_to_proto(range: &KeyRange) -> proto::KeyRange {
    proto::KeyRange { start: range.start.clone(), end: range.end.clone() }
}

fn range_from_proto(range: Option<proto::KeyRange>) -> Result<KeyRange, DecodeError> {
    let proto::KeyRange { start, end } = range.ok_or(DecodeError::BadField("range"))?;
    Ok(KeyRange { start, end })
}

fn outcome_to_proto(outcome: &Outcome) -> proto::Outcome {
    use proto::outcome::Kind;
    let nothing = proto::Nothing {};
    let kind = match outcome {
        Outcome::Done(results) => {
            Kind::Done(proto::Done { results: results.iter().map(result_to_proto).collect() })
        }
        Outcome::Conflict { precondition, version } => {
            Kind::Conflict(proto::Conflict { precondition: *precondition as u64, version: *version })
        }
        Outcome::Aborted { operation, error } => {
            Kind::Aborted(proto::Aborted { operation: *operation as u64, error: error_to_proto(*error) })
        }
        Outcome::WrongShard => Kind::WrongShard(nothing),
        Outcome::RequestReused => Kind::RequestReused(nothing),
        Outcome::RequestExpired => Kind::RequestExpired(nothing),
        Outcome::RequestMemoryFull => Kind::RequestMemoryFull(nothing),
    };
    proto::Outcome { kind: Some(kind) }
}

fn outcome_from_proto(message: proto::Outcome) -> Result<Outcome, DecodeError> {
    use proto::outcome::Kind;
    Ok(match message.kind.ok_or(DecodeError::UnknownKind("outcome"))? {
        Kind::Done(done) => Outcome::Done(each(done.results, result_from_proto)?),
        Kind::Conflict(conflict) => {
            Outcome::Conflict { precondition: position(conflict.precondition)?, version: conflict.version }
        }
        Kind::Aborted(aborted) => Outcome::Aborted {
            operation: position(aborted.operation)?,
            error: error_from_proto(aborted.error)?,
        },
        Kind::WrongShard(_) => Outcome::WrongShard,
        Kind::RequestReused(_) => Outcome::RequestReused,
        Kind::RequestExpired(_) => Outcome::RequestExpired,
        Kind::RequestMemoryFull(_) => Outcome::RequestMemoryFull,
    })
}

fn position(number: u64) -> Result<usize, DecodeError> {
    usize::try_from(number).map_err(|_| DecodeError::BadField("position"))
}

fn result_to_proto(result: &OperationResult) -> proto::OperationResult {
    use proto::operation_result::Kind;
    let kind = match result {
        OperationResult::Value(value) => {
            Kind::Value(proto::Value { versioned: value.as_ref().map(versioned_to_proto) })
        }
        OperationResult::Written { version } => Kind::Written(*version),
        OperationResult::Deleted { existed } => Kind::Deleted(*existed),
        OperationResult::Incremented { value, version } => {
            Kind::Incremented(proto::Incremented { value: *value, version: *version })
        }
        OperationResult::Appended { length, version } => {
            Kind::Appended(proto::Appended { length: *length, version: *version })
        }
        OperationResult::Scanned { keys, next } => {
            let key = |found: &ScannedKey| proto::ScannedKey {
                key: found.key.clone(),
                value: Some(versioned_to_proto(&found.value)),
            };
            Kind::Scanned(proto::Scanned { keys: keys.iter().map(key).collect(), next: next.clone() })
        }
        OperationResult::DeletedRange { deleted, next } => {
            Kind::DeletedRange(proto::DeletedRange { deleted: *deleted, next: next.clone() })
        }
        OperationResult::Skipped => Kind::Skipped(proto::Nothing {}),
        OperationResult::RemovedExpired { removed } => Kind::RemovedExpired(*removed),
        OperationResult::Failed(error) => Kind::Failed(error_to_proto(*error)),
    };
    proto::OperationResult { kind: Some(kind) }
}

fn result_from_proto(message: proto::OperationResult) -> Result<OperationResult, DecodeError> {
    use proto::operation_result::Kind;
    Ok(match message.kind.ok_or(DecodeError::UnknownKind("operation result"))? {
        Kind::Value(value) => OperationResult::Value(value.versioned.map(versioned_from_proto)),
        Kind::Written(version) => OperationResult::Written { version },
        Kind::Deleted(existed) => OperationResult::Deleted { existed },
        Kind::Incremented(proto::Incremented { value, version }) => {
            OperationResult::Incremented { value, version }
        }
        Kind::Appended(proto::Appended { length, version }) => OperationResult::Appended { length, version },
        Kind::Scanned(proto::Scanned { keys, next }) => {
            let key = |found: proto::ScannedKey| {
                let value = found.value.ok_or(DecodeError::BadField("value"))?;
                Ok(ScannedKey { key: found.key, value: versioned_from_proto(value) })
            };
            OperationResult::Scanned { keys: each(keys, key)?, next }
        }
        Kind::DeletedRange(proto::DeletedRange { deleted, next }) => {
            OperationResult::DeletedRange { deleted, next }
        }
        Kind::Skipped(proto::Nothing {}) => OperationResult::Skipped,
        Kind::RemovedExpired(removed) => OperationResult::RemovedExpired { removed },
        Kind::Failed(error) => OperationResult::Failed(error_from_proto(error)?),
    })
}

fn versioned_to_proto(versioned: &Versioned) -> proto::Versioned {
    let Versioned { version, stamp, expires, value } = versioned;
    proto::Versioned { version: *version, stamp: *stamp, value: value.clone(), expires: *expires }
}

fn versioned_from_proto(versioned: proto::Versioned) -> Versioned {
    let proto::Versioned { version, stamp, value, expires } = versioned;
    Versioned { version, stamp, expires, value }
}

fn error_to_proto(error: OperationError) -> i32 {
    let error = match error {
        OperationError::NotAnInteger => proto::OperationError::NotAnInteger,
        OperationError::Overflow => proto::OperationError::Overflow,
        OperationError::ValueTooLarge => proto::OperationError::ValueTooLarge,
        OperationError::AnswerTooLarge => proto::OperationError::AnswerTooLarge,
    };
    error.into()
}

fn error_from_proto(error: i32) -> Result<OperationError, DecodeError> {
    match proto::OperationError::try_from(error) {
        Ok(proto::OperationError::NotAnInteger) => Ok(OperationError::NotAnInteger),
        Ok(proto::OperationError::Overflow) => Ok(OperationError::Overflow),
        Ok(proto::OperationError::ValueTooLarge) => Ok(OperationError::ValueTooLarge),
        Ok(proto::OperationError::AnswerTooLarge) => Ok(OperationError::AnswerTooLarge),
        Ok(proto::OperationError::Unspecified) => Err(DecodeError::BadField("operation error")),
        Err(_) => Err(DecodeError::UnknownKind("operation error")),
    }
}

fn wide_to_bytes(number: u128) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn wide_from_bytes(bytes: &[u8], what: &'static str) -> Result<u128, DecodeError> {
    let bytes = bytes.try_into().map_err(|_| DecodeError::BadField(what))?;
    Ok(u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests;
