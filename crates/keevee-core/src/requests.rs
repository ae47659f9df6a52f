//! Request ids and the memory that makes a retry take effect at most once.
//!
//! **The window.** An id that carries its time of issue is valid from 10 minutes before to 1 minute
//! after the shard time of the entry that holds it. Outside it is refused
//! ([`Outcome::RequestExpired`]), never executed: nobody could
//! tell whether it was executed before. A record therefore lives until the id's *own* time leaves the
//! window; counted from its execution, an id dated in the future could be executed twice.
//!
//! **What is remembered.** The outcomes of commands that were executed: done, conflict, aborted. A
//! refusal (wrong shard, expired, memory full) leaves no trace, and neither does a command that changes
//! nothing whatever the state.
//!
//! **When the memory is full,** the oldest records go, and the *horizon* rises with them: ids issued
//! before it are refused, so a forgotten id is still never executed. The horizon stays 60 seconds or
//! more behind the shard time, so that a client has that long to retry; if that leaves no room, the new
//! command is refused ([`Outcome::RequestMemoryFull`]).
//!
//! A free-form id carries no time, so a forgotten one cannot be told from a new one: it is at most once
//! within the window only, and the window shrinks, to 60 seconds at the least, when the memory is full.
//!
//! Everything here follows from the records, the horizon and the limit, which are the same on all
//! replicas; a memory rebuilt from the stored records behaves like the one that was lost.
//!
//! It leaves out keeping the records on disk: `apply` lists them in its write set.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use uuid::{Uuid, Variant, Version};
use xxhash_rust::xxh3::xxh3_128;

use crate::apply::ShardMeta;
use crate::codec::{DecodeError, decode_outcome};
use crate::command::{Action, Command, Expect, Expiry, ExpiryOnly, OnError, Only, Outcome};
use crate::digest::Digest;
use crate::ids::ShardId;
use crate::range::KeyRange;

/// How much a memory holds unless told otherwise, in records of up to [`RECORD_BYTES`] of outcome.
///
/// All replicas of a shard must use the same limit, or they diverge.
pub const REQUEST_MEMORY_RECORDS: usize = 1_000_000;

/// A record counts once against the limit for each of these bytes of outcome begun: a few large
/// outcomes must not fill the memory unnoticed.
pub const RECORD_BYTES: usize = 1024;

/// How far an id's time may lie before the shard time, in microseconds.
pub const WINDOW_BEFORE_MICROS: u64 = 600_000_000;

/// How far an id's time may lie after the shard time, in microseconds.
pub const WINDOW_AFTER_MICROS: u64 = 60_000_000;

/// How far behind the shard time the horizon stays, in microseconds.
pub const HORIZON_DISTANCE_MIN_MICROS: u64 = 60_000_000;

/// Names one request of one client, so that it takes effect at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestId {
    /// A UUIDv7 (RFC 9562, section 5.7), as its 128 bits: it carries the time of its issue.
    Timed(u128),
    /// A hash of free-form bytes: at most once within the window only.
    Free(u128),
}

impl RequestId {
    /// The id that an `Idempotency-Key` names: the text of a UUIDv7 carries its time, anything else is
    /// free-form. Quotes around it are not part of it (draft-ietf-httpapi-idempotency-key-header, section 2.1,
    /// where the header is a string item).
    pub fn from_idempotency_key(key: &[u8]) -> RequestId {
        let bare = key.strip_prefix(b"\"").and_then(|key| key.strip_suffix(b"\"")).unwrap_or(key);
        match Uuid::try_parse_ascii(bare) {
            Ok(uuid) if is_version_7(&uuid) => RequestId::Timed(uuid.as_u128()),
            _ => RequestId::Free(xxh3_128(bare)),
        }
    }

    /// The id of one step of a request that is carried out as several commands: it follows from the request's own, so
    /// that a retry of the whole is a retry of each step, and has its time. `start` is where in the shard's keys the
    /// step begins, and `None` of the first: for all ranges that has one id, so that each shard finds a reuse out.
    pub fn of_step(self, shard: ShardId, start: Option<&[u8]>) -> RequestId {
        let mut digest = Digest::new();
        digest.request_id(self);
        digest.number(shard.0.into());
        // No step but the first could begin at an empty key.
        digest.bytes(start.unwrap_or_default());
        // Of a UUIDv7, the 48 bits of time, the version and the variant stay.
        const KEPT: u128 = 0xffff_ffff_ffff_f000_c000_0000_0000_0000;
        match self {
            RequestId::Timed(bits) => RequestId::Timed(bits & KEPT | digest.finish() & !KEPT),
            RequestId::Free(_) => RequestId::Free(digest.finish()),
        }
    }

    /// When the id was issued, in microseconds since the Unix epoch, if it says so.
    pub fn issued_at_micros(&self) -> Option<u64> {
        match self {
            // The first 48 bits are milliseconds.
            RequestId::Timed(bits) => Some((bits >> 80) as u64 * 1_000),
            RequestId::Free(_) => None,
        }
    }

    /// True if a shard with this meta may execute the id, having no record of it.
    pub fn is_in_window(&self, meta: &ShardMeta) -> bool {
        let latest = meta.time.saturating_add(WINDOW_AFTER_MICROS);
        match self.issued_at_micros() {
            Some(issued_at) => (window_start(meta)..=latest).contains(&issued_at),
            None => true,
        }
    }
}

fn is_version_7(uuid: &Uuid) -> bool {
    uuid.get_version() == Some(Version::SortRand) && uuid.get_variant() == Variant::RFC4122
}

/// Ids and records older than this are forgotten.
fn window_start(meta: &ShardMeta) -> u64 {
    meta.time.saturating_sub(WINDOW_BEFORE_MICROS).max(meta.request_horizon)
}

/// What is remembered of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// When it leaves the window, counted from: the id's own time, or for a free-form id the shard time
    /// at which it was first applied. Microseconds since the Unix epoch.
    pub time: u64,
    /// The request.
    pub id: RequestId,
    /// A hash of what it asked, to tell a retry from a reuse.
    pub payload_hash: u128,
    /// The answer, as [`crate::codec`] encodes it.
    pub outcome: Bytes,
}

impl RequestRecord {
    /// The answer that the record keeps.
    pub fn decode_outcome(&self) -> Result<Outcome, DecodeError> {
        decode_outcome(self.outcome.clone())
    }

    fn place(&self) -> (u64, RequestId) {
        (self.time, self.id)
    }

    fn weight(&self) -> usize {
        self.outcome.len().div_ceil(RECORD_BYTES).max(1)
    }
}

/// The hash that tells a retry from another command under the same id: over all of the command but the
/// id. Stored in records, so it is the same in every version.
pub fn payload_hash(command: &Command) -> u128 {
    let mut digest = Digest::new();
    digest.number(command.namespace.0.into());
    digest.number(command.preconditions.len() as u64);
    for precondition in &command.preconditions {
        digest.bytes(&precondition.key);
        match precondition.expect {
            Expect::Absent => digest.tag(1),
            Expect::Present => digest.tag(2),
            Expect::Version(version) => {
                digest.tag(3);
                digest.number(version);
            }
        }
    }
    digest.number(command.operations.len() as u64);
    for operation in &command.operations {
        add_action(&mut digest, &operation.action);
        digest.tag(match operation.on_error {
            OnError::Abort => 0,
            OnError::Continue => 1,
        });
    }
    digest.finish()
}

fn add_action(digest: &mut Digest, action: &Action) {
    digest.tag(match action {
        Action::Get { .. } => 1,
        Action::Put { expires: Expiry::Never, only: Only::Always, .. } => 2,
        // What puts could say from the beginning is hashed as it was then.
        Action::Put { .. } => 8,
        Action::Delete { .. } => 3,
        Action::Increment { .. } => 4,
        Action::Append { .. } => 5,
        Action::Scan { .. } => 6,
        Action::DeleteRange { .. } => 7,
        Action::SetExpiry { .. } => 9,
        Action::SetRange { .. } => 10,
        Action::RemoveExpired { .. } => 11,
    });
    if let Some(key) = action.key() {
        digest.bytes(key);
    }
    if let Some(KeyRange { start, end }) = action.range() {
        digest.bytes(start);
        digest.tag(u8::from(end.is_some()));
        digest.bytes(end.as_deref().unwrap_or_default());
    }
    match action {
        Action::Get { .. } | Action::Delete { .. } => {}
        Action::Put { value, expires: Expiry::Never, only: Only::Always, .. } => digest.bytes(value),
        Action::Put { value, expires, only, .. } => {
            digest.bytes(value);
            add_expiry(digest, *expires);
            digest.tag(match only {
                Only::Always => 0,
                Only::IfAbsent => 1,
                Only::IfPresent => 2,
            });
        }
        Action::SetExpiry { expires, only, .. } => {
            add_expiry(digest, *expires);
            digest.tag(match only {
                ExpiryOnly::Always => 0,
                ExpiryOnly::IfNone => 1,
                ExpiryOnly::IfSome => 2,
                ExpiryOnly::IfLater => 3,
                ExpiryOnly::IfSooner => 4,
                ExpiryOnly::IfSomeAndSooner => 5,
            });
        }
        Action::SetRange { offset, bytes, .. } => {
            digest.number((*offset).into());
            digest.bytes(bytes);
        }
        Action::Increment { by, .. } => digest.number(*by as u64),
        Action::Append { suffix, .. } => digest.bytes(suffix),
        Action::Scan { limit, bytes_max, .. } => {
            digest.number((*limit).into());
            digest.number((*bytes_max).into());
        }
        Action::DeleteRange { limit, .. } | Action::RemoveExpired { limit } => digest.number((*limit).into()),
    }
}

fn add_expiry(digest: &mut Digest, expires: Expiry) {
    let (tag, micros) = match expires {
        Expiry::Never => (0, 0),
        Expiry::Keep => (1, 0),
        Expiry::At(time) => (2, time),
        Expiry::After(span) => (3, span),
    };
    digest.tag(tag);
    digest.number(micros);
}

/// The records of one shard, by id and by time.
///
/// Invariants: both indexes hold the same records; `weight` is the sum of theirs; every outcome
/// decodes.
#[derive(Clone, Debug)]
pub struct RequestMemory {
    limit: usize,
    weight: usize,
    by_id: BTreeMap<RequestId, RequestRecord>,
    by_time: BTreeSet<(u64, RequestId)>,
}

impl Default for RequestMemory {
    fn default() -> RequestMemory {
        RequestMemory::new(REQUEST_MEMORY_RECORDS)
    }
}

impl RequestMemory {
    /// An empty memory for so many records of up to [`RECORD_BYTES`] of outcome each.
    pub fn new(limit: usize) -> RequestMemory {
        RequestMemory { limit, weight: 0, by_id: BTreeMap::new(), by_time: BTreeSet::new() }
    }

    /// Takes in records that were stored, in any order, at a start or from a snapshot.
    ///
    /// # Errors
    ///
    /// If a record's outcome does not decode. The memory is then of no use: without it a retry might
    /// be executed twice.
    pub fn load(&mut self, records: impl IntoIterator<Item = RequestRecord>) -> Result<(), DecodeError> {
        for record in records {
            record.decode_outcome()?;
            self.insert(record);
        }
        Ok(())
    }

    /// What is remembered of a request.
    pub fn lookup(&self, id: RequestId) -> Option<&RequestRecord> {
        self.by_id.get(&id)
    }

    /// All records, oldest first.
    pub fn records(&self) -> impl Iterator<Item = &RequestRecord> {
        self.by_time.iter().filter_map(|(_, id)| self.by_id.get(id))
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True if nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Forgets what has left the window.
    pub(crate) fn forget_expired(&mut self, meta: &ShardMeta, changes: &mut RequestChanges) {
        self.forget_before(window_start(meta), changes);
    }

    /// Remembers a request that was executed, and raises the horizon in `meta` if older ones must go
    /// for it. Refuses, and then changes nothing, if there is no room or the request itself would be
    /// the next to go.
    pub(crate) fn admit(
        &mut self,
        record: RequestRecord,
        meta: &mut ShardMeta,
        changes: &mut RequestChanges,
    ) -> Result<(), Outcome> {
        if let Some(horizon) = self.horizon_with_room_for(&record, meta.time)? {
            self.forget_before(horizon, changes);
            meta.request_horizon = meta.request_horizon.max(horizon);
        }
        changes.added.insert(record.place(), record.clone());
        self.insert(record);
        Ok(())
    }

    /// The time before which records must go to make room, if any must.
    fn horizon_with_room_for(&self, record: &RequestRecord, shard_time: u64) -> Result<Option<u64>, Outcome> {
        let needed = self.weight + record.weight();
        let horizon_max = shard_time.saturating_sub(HORIZON_DISTANCE_MIN_MICROS);
        let mut freed = 0;
        let mut horizon = None;
        for (time, id) in &self.by_time {
            if needed <= self.limit + freed {
                return Ok(horizon);
            }
            if *time >= horizon_max {
                return Err(Outcome::RequestMemoryFull);
            }
            if *time >= record.time {
                return Err(Outcome::RequestExpired);
            }
            freed += self.by_id.get(id).map_or(0, RequestRecord::weight);
            // With this record go all of its time: the horizon cannot part them.
            horizon = Some(time + 1);
        }
        if needed <= self.limit + freed { Ok(horizon) } else { Err(Outcome::RequestMemoryFull) }
    }

    fn forget_before(&mut self, time: u64, changes: &mut RequestChanges) {
        while let Some(&(oldest, id)) = self.by_time.first()
            && oldest < time
        {
            let Some(record) = self.remove(id) else { return };
            // What comes and goes within one entry is not worth writing.
            if changes.added.remove(&record.place()).is_none() {
                changes.removed.push(record);
            }
        }
    }

    /// Takes back changes, so that the memory is as it was before them.
    pub(crate) fn undo(&mut self, changes: RequestChanges) {
        for record in changes.added.into_values() {
            self.remove(record.id);
        }
        for record in changes.removed {
            self.insert(record);
        }
    }

    fn insert(&mut self, record: RequestRecord) {
        self.remove(record.id);
        self.weight += record.weight();
        self.by_time.insert(record.place());
        self.by_id.insert(record.id, record);
    }

    fn remove(&mut self, id: RequestId) -> Option<RequestRecord> {
        let record = self.by_id.remove(&id)?;
        self.by_time.remove(&record.place());
        self.weight -= record.weight();
        Some(record)
    }
}

/// What one entry changes in the memory. A record is in one of the two at most, but an id may be in
/// both: a free-form one, forgotten and executed again.
#[derive(Debug, Default)]
pub(crate) struct RequestChanges {
    pub(crate) added: BTreeMap<(u64, RequestId), RequestRecord>,
    pub(crate) removed: Vec<RequestRecord>,
}

#[cfg(test)]
mod tests;
