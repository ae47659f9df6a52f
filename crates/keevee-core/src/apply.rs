//! Deterministic application of a chosen entry to a shard's state.
//!
//! [`apply`] is a function of the state, the meta, the memory of request ids and the entry, and of
//! nothing else. **Shard time** is the largest stamp applied so far: stamps of entries need not be in
//! order, shard time is.
//!
//! **Expiry** goes by shard time and nothing else. A key is *gone* for every command of an entry, and for every read, whose
//! shard time has reached its expiry, whether or not it was removed. [`Action::RemoveExpired`] only makes room: it is no
//! mutation, takes no version, and no client can tell whether it has happened. Which keys it removes follows from the
//! state and shard time.
//!
//! [`apply`] reads state through a [`StateView`] and writes none: it returns a [`WriteSet`], which the
//! caller writes in one atomic batch. The [`RequestMemory`] is the exception: it follows the write set
//! at once, so that it cannot be forgotten. If `apply` returns an error, memory and meta are as they
//! were, and it may be called again. If the *write* fails afterwards, the memory is ahead of the state:
//! stop the replica, and load the memory anew from the state that was written.
//!
//! It leaves out which entries are chosen, how state is kept, and the sizes a client may send
//! ([`crate::limits`]).

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};
use keevee_mutants::{self as mutants, Mutant};

use crate::chain;
use crate::codec::encode_outcome;
use crate::command::{
    Action, Command, Expect, Expiry, ExpiryOnly, OnError, Only, OperationError, OperationResult, Outcome,
    ScannedKey, Versioned,
};
use crate::ids::Namespace;
use crate::range::{
    DELETE_RANGE_BYTES_MAX, DELETE_RANGE_KEYS_MAX, KeyRange, Place, REMOVE_EXPIRED_KEYS_MAX, SCAN_BYTES_MAX,
    SCAN_KEYS_MAX,
};
use crate::requests::{RequestChanges, RequestId, RequestMemory, RequestRecord, payload_hash};
use crate::slots::{SlotSet, slot};

/// The largest value that there is: an append, or a write into a value, makes none that is larger. Replicas diverge if they
/// differ in it: it is no setting.
pub const VALUE_BYTES_MAX_APPLY: usize = 8 << 20;

/// Bytes of values that the gets of one command return at most. Replicas diverge if they differ in it: it is no setting.
pub const ANSWER_BYTES_MAX_APPLY: usize = 16 << 20;

/// An entry of the log as the store reads it: independent commands, and the time of its proposer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The proposer's hybrid-clock time, in microseconds since the Unix epoch.
    pub stamp: u64,
    /// Tells this proposal from every other: node, boot and count of its proposer.
    pub proposal: ProposalId,
    /// Each has its own outcome.
    pub commands: Vec<Command>,
}

/// Tells a proposal from every other, so that a proposer knows its own entry when it is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProposalId {
    /// The proposing node.
    pub node: u64,
    /// Drawn anew at each start of the node.
    pub boot: u64,
    /// Counts the proposals of this boot.
    pub sequence: u64,
}

/// What `apply` keeps of a shard besides its keys; written in one batch with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMeta {
    /// The index of the last entry applied; 0 before the first.
    pub applied: u64,
    /// The largest stamp applied, in microseconds since the Unix epoch.
    pub time: u64,
    /// The count of mutations: the version of the latest.
    pub version: u64,
    /// The hash over all entries applied ([`crate::chain`]).
    pub chain: u128,
    /// The slots that this shard owns.
    pub owned: SlotSet,
    /// Request ids issued before this time are refused, in microseconds since the Unix epoch.
    pub request_horizon: u64,
    /// How many keys have an expiry, those included that are gone and not removed yet. While there are none, a put need
    /// not look at what it replaces.
    pub expiring: u64,
}

impl ShardMeta {
    /// The meta of a shard that has applied nothing yet.
    pub fn new(owned: SlotSet) -> ShardMeta {
        ShardMeta { applied: 0, time: 0, version: 0, chain: 0, owned, request_horizon: 0, expiring: 0 }
    }

    /// True if the shard owns every key that the command names. A range names none: of it, a shard answers for the
    /// keys that it owns.
    pub fn owns(&self, command: &Command) -> bool {
        self.owned.is_all() || command.keys().all(|key| self.owned.contains(slot(key)))
    }

    /// The meta as it is when the entry at `index` begins.
    fn advanced(&self, index: u64) -> ShardMeta {
        assert_eq!(
            Some(index),
            self.applied.checked_add(1),
            "entries are applied one after another, each once"
        );
        ShardMeta { applied: index, ..self.clone() }
    }
}

/// Reads of a shard's applied state. Errors are the storage's own.
pub trait StateView {
    /// Why a read failed.
    type Error;

    /// What was written to the key last, unless it was removed. It may be gone.
    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, Self::Error>;

    /// Hands the keys of a range that were not removed to `take`, in order, until it breaks off.
    fn scan(&self, namespace: Namespace, range: &KeyRange, take: &mut Take<'_>) -> Result<(), Self::Error>;

    /// Hands the keys that have an expiry up to `latest` to `take`, in order of expiry, then place, until it breaks off.
    fn expiries(&self, latest: u64, take: &mut TakeExpiry<'_>) -> Result<(), Self::Error>;
}

/// Is handed one key of a range after the other, until it breaks off.
pub type Take<'a> = dyn FnMut(Bytes, Versioned) -> ControlFlow<()> + 'a;

/// Is handed one key that expires, and when, after the other, until it breaks off.
pub type TakeExpiry<'a> = dyn FnMut(u64, Place) -> ControlFlow<()> + 'a;

/// All that one entry changes. Whoever writes it writes all of it in one atomic batch, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteSet {
    /// Keys set (`Some`) and removed (`None`), in key order.
    pub values: BTreeMap<Place, Option<Versioned>>,
    /// Expiries that hold no longer. Remove these from the index of expiries, then put in those of the values set.
    pub expiries_removed: Vec<(u64, Place)>,
    /// Request ids remembered by this entry.
    pub requests_added: Vec<RequestRecord>,
    /// Request ids forgotten by this entry. Remove these before writing those added: a free-form id
    /// may be forgotten and remembered anew, with a later time, by one entry.
    pub requests_removed: Vec<RequestRecord>,
    /// The shard's meta after the entry.
    pub meta: ShardMeta,
}

impl WriteSet {
    /// Changes the meta and nothing else.
    pub fn of_meta(meta: ShardMeta) -> WriteSet {
        WriteSet {
            values: BTreeMap::new(),
            expiries_removed: Vec::new(),
            requests_added: Vec::new(),
            requests_removed: Vec::new(),
            meta,
        }
    }

    /// The expiries of the values set.
    pub fn expiries_added(&self) -> impl Iterator<Item = (u64, &Place)> {
        self.values.iter().filter_map(|(place, value)| Some((value.as_ref()?.expires?, place)))
    }
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What to write.
    pub write_set: WriteSet,
    /// What became of each command, in order.
    pub outcomes: Vec<Outcome>,
}

/// Applies the entry at `index` to the state that `view` and `meta` show.
///
/// # Errors
///
/// The view's own, with `memory` as it was before.
///
/// # Panics
///
/// If `index` does not follow the one applied last.
pub fn apply<V: StateView>(
    view: &V,
    meta: &ShardMeta,
    memory: &mut RequestMemory,
    index: u64,
    entry: &Entry,
) -> Result<Applied, V::Error> {
    let mut after = meta.advanced(index);
    after.time = after.time.max(entry.stamp);
    let mut changes = RequestChanges::default();
    memory.forget_expired(&after, &mut changes);

    let mut state = Overlay::new(view, after);
    let mut outcomes = Vec::with_capacity(entry.commands.len());
    for command in &entry.commands {
        match execute_once(&mut state, memory, &mut changes, command) {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => {
                memory.undo(changes);
                return Err(error);
            }
        }
    }

    let expiries_removed = state.count_expiries();
    let mut write_set = WriteSet {
        values: state.values,
        expiries_removed,
        requests_added: changes.added.into_values().collect(),
        requests_removed: changes.removed,
        meta: state.meta,
    };
    write_set.meta.chain = chain::next(meta.chain, index, Some(entry.stamp), &write_set);
    Ok(Applied { write_set, outcomes })
}

/// Applies an entry without commands at `index`: a new leader's no-op, or a configuration. Only the
/// applied index and the chain move on; having no stamp, it does not move shard time.
///
/// # Panics
///
/// If `index` does not follow the one applied last.
pub fn apply_noop(meta: &ShardMeta, index: u64) -> Applied {
    let mut write_set = WriteSet::of_meta(meta.advanced(index));
    write_set.meta.chain = chain::next(meta.chain, index, None, &write_set);
    Applied { write_set, outcomes: Vec::new() }
}

/// Answers a read-only command from applied state. Its request id counts for nothing: a read may be
/// repeated.
///
/// # Errors
///
/// The view's own.
///
/// # Panics
///
/// If the command is not read-only ([`Command::is_read_only`]).
pub fn read<V: StateView>(view: &V, meta: &ShardMeta, command: &Command) -> Result<Outcome, V::Error> {
    assert!(command.is_read_only(), "a command that may change state goes through the log");
    if !meta.owns(command) {
        return Ok(Outcome::WrongShard);
    }
    Overlay::new(view, meta.clone()).execute(command)
}

/// Executes a command unless its request id forbids it, and remembers the outcome.
fn execute_once<V: StateView>(
    state: &mut Overlay<'_, V>,
    memory: &mut RequestMemory,
    changes: &mut RequestChanges,
    command: &Command,
) -> Result<Outcome, V::Error> {
    // A repeated read does no harm, and its outcome may be large.
    let request_id = command.request_id.filter(|_| !command.is_read_only());
    // Before the fence: what this shard once did for a request, it did, whoever owns the slot now.
    let asked = request_id.filter(|_| !mutants::is_active(Mutant::RetryExecutedTwice));
    let is_known = |record: &&RequestRecord| {
        !mutants::is_active(Mutant::MemoryMissesEntry)
            || !changes.added.values().any(|added| added.id == record.id)
    };
    if let Some(record) = asked.and_then(|id| memory.lookup(id)).filter(is_known) {
        return Ok(remembered(record, command));
    }
    if !state.meta.owns(command) {
        return Ok(Outcome::WrongShard);
    }
    let Some(id) = request_id else {
        return state.execute(command);
    };
    if !id.is_in_window(&state.meta) {
        return Ok(Outcome::RequestExpired);
    }
    let outcome = state.execute(command)?;
    let record = new_record(id, state.meta.time, command, &outcome);
    // How much room the record needs is known only now; without room, nothing has happened.
    match memory.admit(record, &mut state.meta, changes) {
        Ok(()) => Ok(outcome),
        Err(refusal) => {
            state.roll_back();
            Ok(refusal)
        }
    }
}

fn remembered(record: &RequestRecord, command: &Command) -> Outcome {
    if record.payload_hash != payload_hash(command) {
        return Outcome::RequestReused;
    }
    record.decode_outcome().expect("the memory takes in no outcome that does not decode")
}

fn new_record(id: RequestId, shard_time: u64, command: &Command, outcome: &Outcome) -> RequestRecord {
    RequestRecord {
        time: id.issued_at_micros().unwrap_or(shard_time),
        id,
        payload_hash: payload_hash(command),
        outcome: encode_outcome(outcome),
    }
}

/// A key, and what the overlay said of it before a write: nothing, or a value or its absence.
type Undo = (Place, Option<Option<Versioned>>);

/// The state as the entry has made it so far: the view, and over it what the entry has written.
struct Overlay<'a, V> {
    view: &'a V,
    meta: ShardMeta,
    values: BTreeMap<Place, Option<Versioned>>,
    /// The expiries that the view has for keys that were read: of every key written that has one.
    stored_expiries: BTreeMap<Place, u64>,
    /// The writes of the command at hand, oldest first, and the version before them.
    undo: Vec<Undo>,
    version_before: u64,
    /// Bytes of values that the command at hand may still return; `None` once one of them had no room.
    answer_room: Option<usize>,
}

impl<'a, V: StateView> Overlay<'a, V> {
    fn new(view: &'a V, meta: ShardMeta) -> Overlay<'a, V> {
        let version_before = meta.version;
        Overlay {
            view,
            meta,
            values: BTreeMap::new(),
            stored_expiries: BTreeMap::new(),
            undo: Vec::new(),
            version_before,
            answer_room: None,
        }
    }

    /// The expiries of the view that hold no longer. Brings their count in the meta up to date.
    fn count_expiries(&mut self) -> Vec<(u64, Place)> {
        let mut removed = Vec::new();
        for (place, value) in &self.values {
            let before = self.stored_expiries.get(place).copied();
            let after = value.as_ref().and_then(|value| value.expires);
            if before == after {
                continue;
            }
            self.meta.expiring += u64::from(after.is_some());
            if let Some(expires) = before {
                self.meta.expiring -= 1;
                removed.push((expires, place.clone()));
            }
        }
        removed
    }

    /// Carries out a command: all of it, or nothing.
    fn execute(&mut self, command: &Command) -> Result<Outcome, V::Error> {
        self.undo.clear();
        self.version_before = self.meta.version;
        let room = command.answer_bytes_max.map_or(usize::MAX, |bytes| bytes as usize);
        self.answer_room = Some(room.min(ANSWER_BYTES_MAX_APPLY));
        let namespace = command.namespace;
        for (position, precondition) in command.preconditions.iter().enumerate() {
            let version = self.get(namespace, &precondition.key)?.map(|value| value.version);
            if !holds(precondition.expect, version) {
                return Ok(Outcome::Conflict { precondition: position, version });
            }
        }
        let mut results = Vec::with_capacity(command.operations.len());
        for (position, operation) in command.operations.iter().enumerate() {
            let result = match (self.perform(namespace, &operation.action)?, operation.on_error) {
                (Ok(result), _) => result,
                (Err(error), OnError::Continue) => OperationResult::Failed(error),
                (Err(error), OnError::Abort) => {
                    self.roll_back();
                    return Ok(Outcome::Aborted { operation: position, error });
                }
            };
            results.push(result);
        }
        Ok(Outcome::Done(results))
    }

    /// Takes back what the command at hand has written, and the versions that it used.
    fn roll_back(&mut self) {
        self.meta.version = self.version_before;
        while let Some((key, before)) = self.undo.pop() {
            match before {
                Some(value) => self.values.insert(key, value),
                None => self.values.remove(&key),
            };
        }
    }

    /// Carries out one action; if it fails, it has done nothing.
    fn perform(
        &mut self,
        namespace: Namespace,
        action: &Action,
    ) -> Result<Result<OperationResult, OperationError>, V::Error> {
        Ok(match action {
            Action::Get { key } => self.get_for_answer(namespace, key)?.map(OperationResult::Value),
            Action::Put { key, value, expires, only } => {
                Ok(self.put(namespace, key, value, *expires, *only)?)
            }
            Action::SetExpiry { key, expires, only } => Ok(self.set_expiry(namespace, key, *expires, *only)?),
            Action::Delete { key } => {
                let existed = self.get(namespace, key)?.is_some();
                if existed {
                    self.write(namespace, key, |_| None);
                }
                Ok(OperationResult::Deleted { existed })
            }
            Action::Increment { key, by } => {
                let current = self.get(namespace, key)?;
                sum(current.as_ref(), *by).map(|value| {
                    let version = self.set(namespace, key, value.to_string().into(), expiry(&current));
                    OperationResult::Incremented { value, version }
                })
            }
            Action::Append { key, suffix } => {
                let current = self.get(namespace, key)?;
                joined(current.as_ref(), suffix).map(|value| {
                    let length = value.len() as u64;
                    let version = self.set(namespace, key, value, expiry(&current));
                    OperationResult::Appended { length, version }
                })
            }
            Action::SetRange { key, offset, bytes } => {
                let current = self.get(namespace, key)?;
                overwritten(current.as_ref(), *offset, bytes).map(|value| {
                    let length = value.len() as u64;
                    let version = match &current {
                        Some(current) if bytes.is_empty() => current.version,
                        None if bytes.is_empty() => 0,
                        _ => self.set(namespace, key, value, expiry(&current)),
                    };
                    OperationResult::Appended { length, version }
                })
            }
            Action::Scan { range, limit, bytes_max } => {
                let (limit, bytes_max) = ((*limit).min(SCAN_KEYS_MAX), (*bytes_max).min(SCAN_BYTES_MAX));
                let (keys, next) = self.first_keys(namespace, range, limit, bytes_max as usize)?;
                Ok(OperationResult::Scanned { keys, next })
            }
            Action::DeleteRange { range, limit } => {
                let limit = (*limit).min(DELETE_RANGE_KEYS_MAX);
                let (keys, next) = self.first_keys(namespace, range, limit, DELETE_RANGE_BYTES_MAX)?;
                for ScannedKey { key, value } in &keys {
                    self.note_expiry(namespace, key, value);
                    self.write(namespace, key, |_| None);
                }
                Ok(OperationResult::DeletedRange { deleted: keys.len() as u64, next })
            }
            Action::RemoveExpired { limit } => {
                let removed = self.remove_expired((*limit).min(REMOVE_EXPIRED_KEYS_MAX))?;
                Ok(OperationResult::RemovedExpired { removed })
            }
        })
    }

    /// What the key holds, if the answer has room for it. Once one had none, none has: what is not told is not read.
    fn get_for_answer(
        &mut self,
        namespace: Namespace,
        key: &Bytes,
    ) -> Result<Result<Option<Versioned>, OperationError>, V::Error> {
        let found = if self.answer_room.is_some() { self.get(namespace, key)? } else { None };
        let bytes = found.as_ref().map_or(0, |found| found.value.len());
        self.answer_room = self.answer_room.and_then(|room| room.checked_sub(bytes));
        Ok(self.answer_room.map(|_| found).ok_or(OperationError::AnswerTooLarge))
    }

    fn put(
        &mut self,
        namespace: Namespace,
        key: &Bytes,
        value: &Bytes,
        expires: Expiry,
        only: Only,
    ) -> Result<OperationResult, V::Error> {
        // Most puts need not know what they replace: a read of the state less.
        let looks = only != Only::Always || expires == Expiry::Keep || self.meta.expiring > 0;
        let current = if looks { self.get(namespace, key)? } else { None };
        let is_met = match only {
            Only::Always => true,
            Only::IfAbsent => current.is_none(),
            Only::IfPresent => current.is_some(),
        };
        if !is_met {
            return Ok(OperationResult::Skipped);
        }
        let expires = self.resolve(expires, expiry(&current));
        let version = self.set(namespace, key, value.clone(), expires);
        Ok(OperationResult::Written { version })
    }

    fn set_expiry(
        &mut self,
        namespace: Namespace,
        key: &Bytes,
        expires: Expiry,
        only: ExpiryOnly,
    ) -> Result<OperationResult, V::Error> {
        let Some(current) = self.get(namespace, key)? else { return Ok(OperationResult::Skipped) };
        let expires = self.resolve(expires, current.expires);
        let rank = |expires: Option<u64>| expires.unwrap_or(u64::MAX);
        let is_met = match only {
            ExpiryOnly::Always => true,
            ExpiryOnly::IfNone => current.expires.is_none(),
            ExpiryOnly::IfSome => current.expires.is_some(),
            ExpiryOnly::IfLater => rank(expires) > rank(current.expires),
            ExpiryOnly::IfSooner => rank(expires) < rank(current.expires),
            ExpiryOnly::IfSomeAndSooner => current.expires.is_some() && rank(expires) < rank(current.expires),
        };
        if !is_met {
            return Ok(OperationResult::Skipped);
        }
        let version = self.set(namespace, key, current.value, expires);
        Ok(OperationResult::Written { version })
    }

    /// The expiry that is meant.
    fn resolve(&self, expires: Expiry, current: Option<u64>) -> Option<u64> {
        match expires {
            Expiry::Never => None,
            Expiry::Keep => current,
            Expiry::At(time) => Some(time),
            Expiry::After(span) => Some(self.meta.time.saturating_add(span)),
        }
    }

    /// Removes the first keys that are gone: no mutation, since to every command they were absent before.
    fn remove_expired(&mut self, limit: u32) -> Result<u64, V::Error> {
        let mut due = Vec::new();
        let written = &self.values;
        let early = if mutants::is_active(Mutant::RemovedTooEarly) { 1_000_000 } else { 0 };
        self.view.expiries(self.meta.time + early, &mut |expires, place| {
            if due.len() == limit as usize {
                return ControlFlow::Break(());
            }
            // What this entry has written is not gone, or it was removed.
            if !written.contains_key(&place) {
                due.push((expires, place));
            }
            ControlFlow::Continue(())
        })?;
        let removed = due.len() as u64;
        for (expires, place) in due {
            self.stored_expiries.insert(place.clone(), expires);
            self.values.insert(place.clone(), None);
            self.undo.push((place, None));
        }
        Ok(removed)
    }

    /// The first keys of a range that this shard owns, and the one that follows them. Only with room for a page is a
    /// first key taken that does not fit.
    fn first_keys(
        &self,
        namespace: Namespace,
        range: &KeyRange,
        limit: u32,
        bytes_max: usize,
    ) -> Result<(Vec<ScannedKey>, Option<Bytes>), V::Error> {
        let (mut keys, mut bytes, mut next) = (Vec::new(), 0, None);
        self.scan(namespace, range, &mut |key, value| {
            if !self.meta.owned.contains(slot(&key)) {
                return ControlFlow::Continue(());
            }
            let found = ScannedKey { key, value };
            let may_exceed = keys.is_empty() && bytes_max >= SCAN_BYTES_MAX as usize;
            let has_room = may_exceed || bytes + found.bytes() <= bytes_max;
            if keys.len() == limit as usize || !has_room {
                next = Some(found.key);
                return ControlFlow::Break(());
            }
            bytes += found.bytes();
            keys.push(found);
            ControlFlow::Continue(())
        })?;
        Ok((keys, next))
    }

    /// The keys of a range that hold values, of the view and what the entry has written over it.
    fn scan(&self, namespace: Namespace, range: &KeyRange, take: &mut Take<'_>) -> Result<(), V::Error> {
        let written = self.values.range(range.bounds(namespace));
        let mut written = written.map(|((_, key), value)| (key, value)).peekable();
        let mut hand = |key: &Bytes, value: &Option<Versioned>| match value {
            Some(value) if !value.is_gone(self.meta.time) => take(key.clone(), value.clone()),
            _ => ControlFlow::Continue(()),
        };
        let mut flow = ControlFlow::Continue(());
        self.view.scan(namespace, range, &mut |key, value| {
            while flow.is_continue()
                && let Some((before, written)) = written.next_if(|(written, _)| **written < key)
            {
                flow = hand(before, written);
            }
            if flow.is_continue() {
                flow = match written.next_if(|(written, _)| **written == key) {
                    Some((key, written)) => hand(key, written),
                    None => hand(&key, &Some(value)),
                };
            }
            flow
        })?;
        while flow.is_continue()
            && let Some((key, written)) = written.next()
        {
            flow = hand(key, written);
        }
        Ok(())
    }

    /// What the key holds, unless it is gone.
    fn get(&mut self, namespace: Namespace, key: &Bytes) -> Result<Option<Versioned>, V::Error> {
        let place = (namespace, key.clone());
        let found = match self.values.get(&place) {
            Some(written) => written.clone(),
            None => {
                let stored = self.view.get(namespace, key)?;
                if let Some(expires) = expiry(&stored) {
                    self.stored_expiries.insert(place, expires);
                }
                stored
            }
        };
        Ok(found.filter(|value| !value.is_gone(self.meta.time)))
    }

    /// Notes what a scan found out about a key that is to be written.
    fn note_expiry(&mut self, namespace: Namespace, key: &Bytes, value: &Versioned) {
        let place = (namespace, key.clone());
        if let Some(expires) = value.expires
            && !self.values.contains_key(&place)
        {
            self.stored_expiries.insert(place, expires);
        }
    }

    /// Sets a key; what would be gone at once is not kept.
    fn set(&mut self, namespace: Namespace, key: &Bytes, value: Bytes, expires: Option<u64>) -> u64 {
        let stamp = self.meta.time;
        self.write(namespace, key, |version| {
            Some(Versioned { version, stamp, expires, value }).filter(|value| !value.is_gone(stamp))
        })
    }

    /// One mutation: every write of a command comes through here, so each gets a version of its own. Where the shard has
    /// keys that expire, this one was read before.
    fn write(
        &mut self,
        namespace: Namespace,
        key: &Bytes,
        value: impl FnOnce(u64) -> Option<Versioned>,
    ) -> u64 {
        if self.values.is_empty() || !mutants::is_active(Mutant::VersionsEqualInEntry) {
            self.meta.version += 1;
        }
        let place = (namespace, key.clone());
        let before = self.values.insert(place.clone(), value(self.meta.version));
        self.undo.push((place, before));
        self.meta.version
    }
}

fn holds(expect: Expect, version: Option<u64>) -> bool {
    match expect {
        Expect::Absent => version.is_none(),
        Expect::Present => version.is_some(),
        Expect::Version(expected) => version == Some(expected),
    }
}

fn expiry(value: &Option<Versioned>) -> Option<u64> {
    value.as_ref()?.expires
}

fn sum(current: Option<&Versioned>, by: i64) -> Result<i64, OperationError> {
    let current = match current {
        Some(versioned) => parse_integer(&versioned.value).ok_or(OperationError::NotAnInteger)?,
        None => 0,
    };
    current.checked_add(by).ok_or(OperationError::Overflow)
}

/// Reads decimal text as an increment writes it: no sign but that of a negative number, no zeros in front.
fn parse_integer(text: &[u8]) -> Option<i64> {
    let is_canonical = match text {
        [b'-', digits @ ..] => matches!(digits.first(), Some(b'1'..=b'9')),
        [b'0'] => true,
        digits => matches!(digits.first(), Some(b'1'..=b'9')),
    };
    std::str::from_utf8(text).ok().filter(|_| is_canonical)?.parse().ok()
}

fn joined(current: Option<&Versioned>, suffix: &Bytes) -> Result<Bytes, OperationError> {
    let current = current.map_or(&[][..], |versioned| &versioned.value);
    let length = current.len().saturating_add(suffix.len());
    if length > VALUE_BYTES_MAX_APPLY {
        return Err(OperationError::ValueTooLarge);
    }
    if current.is_empty() {
        return Ok(suffix.clone());
    }
    let mut value = BytesMut::with_capacity(length);
    value.extend_from_slice(current);
    value.extend_from_slice(suffix);
    Ok(value.freeze())
}

/// The value with bytes written over it.
fn overwritten(current: Option<&Versioned>, offset: u32, bytes: &Bytes) -> Result<Bytes, OperationError> {
    let current = current.map_or_else(Bytes::new, |versioned| versioned.value.clone());
    if bytes.is_empty() {
        return Ok(current);
    }
    let offset = offset as usize;
    let end = offset.saturating_add(bytes.len());
    if end > VALUE_BYTES_MAX_APPLY {
        return Err(OperationError::ValueTooLarge);
    }
    let mut value = vec![0; end.max(current.len())];
    value[..current.len()].copy_from_slice(&current);
    value[offset..end].copy_from_slice(bytes);
    Ok(value.into())
}

#[cfg(test)]
mod tests;
