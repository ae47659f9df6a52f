//! Random entries against a model that is as plain as can be, and against replicas that restart.
//!
//! The model copies the whole state for each command and keeps requests in a list. Whatever `apply`
//! does more cleverly must come out the same.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keevee_core::apply::{
    Entry, ProposalId, ShardMeta, StateView, Take, TakeExpiry, WriteSet, apply, apply_noop, read,
};
use keevee_core::codec;
use keevee_core::command::{
    Action, Command, Expect, Expiry, ExpiryOnly, OnError, Only, Operation, OperationError, OperationResult,
    Outcome, Precondition, ScannedKey, Versioned,
};
use keevee_core::ids::Namespace;
use keevee_core::range::KeyRange;
use keevee_core::requests::{RECORD_BYTES, RequestId, RequestMemory};
use keevee_core::slots::{SlotSet, slot};

const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const START: u64 = 1_700_000_000 * SECOND;
const KEYS: [&str; 6] = ["a", "b", "c", "d", "foreign", "number"];

type Key = (Namespace, Bytes);

// ---- The model ----

#[derive(Clone, Default)]
struct Model {
    values: BTreeMap<Key, Versioned>,
    version: u64,
    time: u64,
    horizon: u64,
    requests: Vec<Remembered>,
    limit: usize,
}

#[derive(Clone)]
struct Remembered {
    time: u64,
    id: RequestId,
    command: Command,
    outcome: Outcome,
}

impl Remembered {
    fn weight(&self) -> usize {
        codec::encode_outcome(&self.outcome).len().div_ceil(RECORD_BYTES).max(1)
    }
}

impl Model {
    fn apply(&mut self, entry: &Entry) -> Vec<Outcome> {
        self.time = self.time.max(entry.stamp);
        let start = self.window_start();
        self.requests.retain(|request| request.time >= start);
        entry.commands.iter().map(|command| self.once(command)).collect()
    }

    fn window_start(&self) -> u64 {
        self.horizon.max(self.time.saturating_sub(10 * MINUTE))
    }

    fn once(&mut self, command: &Command) -> Outcome {
        let reads = |one: &Operation| matches!(one.action, Action::Get { .. } | Action::Scan { .. });
        let is_read = command.operations.iter().all(reads);
        let id = if is_read { None } else { command.request_id };
        if let Some(known) = self.requests.iter().find(|request| Some(request.id) == id) {
            let is_same = known.command == *command;
            return if is_same { known.outcome.clone() } else { Outcome::RequestReused };
        }
        if command.keys().any(|key| key == "foreign") {
            return Outcome::WrongShard;
        }
        let issued_at = id.and_then(|id| id.issued_at_micros()).unwrap_or(self.time);
        if issued_at < self.window_start() || issued_at > self.time + MINUTE {
            return Outcome::RequestExpired;
        }
        let mut after = self.clone();
        let outcome = after.execute(command);
        if !matches!(outcome, Outcome::Done(_)) {
            after = self.clone();
        }
        if let Some(id) = id {
            let (command, outcome) = (command.clone(), outcome.clone());
            if let Err(refusal) = after.remember(Remembered { time: issued_at, id, command, outcome }) {
                return refusal;
            }
        }
        *self = after;
        outcome
    }

    fn remember(&mut self, request: Remembered) -> Result<(), Outcome> {
        let weight = |requests: &[Remembered]| requests.iter().map(Remembered::weight).sum::<usize>();
        while weight(&self.requests) + request.weight() > self.limit {
            let oldest = self.requests.iter().map(|request| request.time).min();
            let oldest = oldest.ok_or(Outcome::RequestMemoryFull)?;
            if oldest + 1 > self.time.saturating_sub(MINUTE) {
                return Err(Outcome::RequestMemoryFull);
            }
            if oldest >= request.time {
                return Err(Outcome::RequestExpired);
            }
            self.horizon = oldest + 1;
            self.requests.retain(|request| request.time > oldest);
        }
        self.requests.push(request);
        Ok(())
    }

    fn execute(&mut self, command: &Command) -> Outcome {
        for (precondition, Precondition { key, expect }) in command.preconditions.iter().enumerate() {
            let version = self.held(&(command.namespace, key.clone())).map(|value| value.version);
            let holds = match expect {
                Expect::Absent => version.is_none(),
                Expect::Present => version.is_some(),
                Expect::Version(expected) => version == Some(*expected),
            };
            if !holds {
                return Outcome::Conflict { precondition, version };
            }
        }
        let mut results = vec![];
        for (operation, Operation { action, on_error }) in command.operations.iter().enumerate() {
            let key = action.key().cloned().unwrap_or_default();
            match self.perform((command.namespace, key), action) {
                Ok(result) => results.push(result),
                Err(error) if *on_error == OnError::Continue => {
                    results.push(OperationResult::Failed(error));
                }
                Err(error) => return Outcome::Aborted { operation, error },
            }
        }
        Outcome::Done(results)
    }

    fn perform(&mut self, key: Key, action: &Action) -> Result<OperationResult, OperationError> {
        let current = self.held(&key);
        let expires = current.as_ref().and_then(|versioned| versioned.expires);
        let bytes = current.as_ref().map(|versioned| versioned.value.to_vec());
        match action {
            Action::Get { .. } => Ok(OperationResult::Value(current)),
            Action::Put { only: Only::IfAbsent, .. } if current.is_some() => Ok(OperationResult::Skipped),
            Action::Put { only: Only::IfPresent, .. } if current.is_none() => Ok(OperationResult::Skipped),
            Action::Put { value, expires: said, .. } => {
                let expires = self.resolve(*said, expires);
                Ok(OperationResult::Written { version: self.set(key, value.to_vec(), expires) })
            }
            Action::SetExpiry { expires: said, only, .. } => {
                let after = self.resolve(*said, expires);
                // No expiry comes after all others.
                let order = [after, expires].map(|expires| (expires.is_none(), expires));
                let is_met = match only {
                    ExpiryOnly::Always => true,
                    ExpiryOnly::IfNone => expires.is_none(),
                    ExpiryOnly::IfSome => expires.is_some(),
                    ExpiryOnly::IfLater => order[0] > order[1],
                    ExpiryOnly::IfSooner => order[0] < order[1],
                    ExpiryOnly::IfSomeAndSooner => expires.is_some() && order[0] < order[1],
                };
                match bytes.filter(|_| is_met) {
                    None => Ok(OperationResult::Skipped),
                    Some(bytes) => Ok(OperationResult::Written { version: self.set(key, bytes, after) }),
                }
            }
            Action::SetRange { offset, bytes: written, .. } => {
                let mut value = bytes.unwrap_or_default();
                let mut version = current.map_or(0, |versioned| versioned.version);
                if !written.is_empty() {
                    let end = *offset as usize + written.len();
                    value.resize(value.len().max(end), 0);
                    value.splice(*offset as usize..end, written.to_vec());
                    version = self.set(key, value.clone(), expires);
                }
                Ok(OperationResult::Appended { length: value.len() as u64, version })
            }
            Action::RemoveExpired { limit } => {
                let keys = self.values.iter().map(|(key, value)| (value.expires, key.clone()));
                let mut gone: Vec<_> = keys.filter(|(_, key)| self.held(key).is_none()).collect();
                gone.sort_unstable();
                gone.truncate(*limit as usize);
                gone.iter().for_each(|(_, key)| _ = self.values.remove(key));
                Ok(OperationResult::RemovedExpired { removed: gone.len() as u64 })
            }
            Action::Delete { .. } => {
                let existed = current.is_some();
                if existed {
                    self.values.remove(&key);
                    self.version += 1;
                }
                Ok(OperationResult::Deleted { existed })
            }
            Action::Increment { by, .. } => {
                let text = String::from_utf8(bytes.unwrap_or(b"0".to_vec()));
                let number = text
                    .ok()
                    .and_then(|text| text.parse::<i64>().ok().filter(|number| number.to_string() == text));
                let value = number.ok_or(OperationError::NotAnInteger)?;
                let value = value.checked_add(*by).ok_or(OperationError::Overflow)?;
                let version = self.set(key, value.to_string().into(), expires);
                Ok(OperationResult::Incremented { value, version })
            }
            Action::Append { suffix, .. } => {
                let value = [bytes.unwrap_or_default(), suffix.to_vec()].concat();
                let length = value.len() as u64;
                Ok(OperationResult::Appended { length, version: self.set(key, value, expires) })
            }
            Action::Scan { range, limit, bytes_max } => {
                let (mut keys, mut bytes) = (vec![], 0);
                for (key, value) in self.keys_in(key.0, range) {
                    bytes += key.len() + value.value.len();
                    let may_exceed = keys.is_empty() && *bytes_max >= 1 << 20;
                    if keys.len() == *limit as usize || bytes > *bytes_max as usize && !may_exceed {
                        return Ok(OperationResult::Scanned { keys, next: Some(key) });
                    }
                    keys.push(ScannedKey { key, value });
                }
                Ok(OperationResult::Scanned { keys, next: None })
            }
            Action::DeleteRange { range, limit } => {
                let keys = self.keys_in(key.0, range);
                let (first, rest) = keys.split_at(keys.len().min(*limit as usize));
                for (name, _) in first {
                    self.values.remove(&(key.0, name.clone()));
                    self.version += 1;
                }
                let next = rest.first().map(|(key, _)| key.clone());
                Ok(OperationResult::DeletedRange { deleted: first.len() as u64, next })
            }
        }
    }

    fn keys_in(&self, namespace: Namespace, range: &KeyRange) -> Vec<(Bytes, Versioned)> {
        let all = self.values.keys().filter(|(of, key)| *of == namespace && range.contains(key));
        all.filter_map(|key| Some((key.1.clone(), self.held(key)?))).collect()
    }

    /// What the key holds, unless it is gone.
    fn held(&self, key: &Key) -> Option<Versioned> {
        let value = self.values.get(key)?;
        value.expires.is_none_or(|expires| self.time < expires).then(|| value.clone())
    }

    fn resolve(&self, expires: Expiry, current: Option<u64>) -> Option<u64> {
        match expires {
            Expiry::Never => None,
            Expiry::Keep => current,
            Expiry::At(time) => Some(time),
            Expiry::After(span) => Some(self.time + span),
        }
    }

    fn set(&mut self, key: Key, value: Vec<u8>, expires: Option<u64>) -> u64 {
        self.version += 1;
        if expires.is_some_and(|expires| expires <= self.time) {
            self.values.remove(&key);
            return self.version;
        }
        let versioned = Versioned { version: self.version, stamp: self.time, expires, value: value.into() };
        self.values.insert(key, versioned);
        self.version
    }
}

// ---- A replica: `apply` over a disk that keeps bytes ----

struct Replica {
    disk: Disk,
    meta: ShardMeta,
    memory: RequestMemory,
    limit: usize,
}

#[derive(Default)]
struct Disk {
    values: BTreeMap<Key, Versioned>,
    expiries: BTreeSet<(u64, Key)>,
    requests: BTreeMap<RequestId, Bytes>,
    meta: Bytes,
}

impl StateView for Disk {
    type Error = std::convert::Infallible;

    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, Self::Error> {
        Ok(self.values.get(&(namespace, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(&self, namespace: Namespace, range: &KeyRange, take: &mut Take<'_>) -> Result<(), Self::Error> {
        let mut found = self.values.range(range.bounds(namespace));
        let _ = found.try_for_each(|((_, key), value)| take(key.clone(), value.clone()));
        Ok(())
    }

    fn expiries(&self, latest: u64, take: &mut TakeExpiry<'_>) -> Result<(), Self::Error> {
        let mut due = self.expiries.iter().take_while(|(expires, _)| *expires <= latest);
        let _ = due.try_for_each(|(expires, key)| take(*expires, key.clone()));
        Ok(())
    }
}

impl Disk {
    fn write(&mut self, write_set: WriteSet) {
        for expiry in &write_set.expiries_removed {
            assert!(self.expiries.remove(expiry), "only what is stored is removed");
        }
        self.expiries.extend(write_set.expiries_added().map(|(expires, key)| (expires, key.clone())));
        for (key, value) in write_set.values {
            match value {
                Some(value) => self.values.insert(key, value),
                None => self.values.remove(&key),
            };
        }
        for record in write_set.requests_removed {
            assert!(self.requests.remove(&record.id).is_some(), "only what is stored is forgotten");
        }
        for record in write_set.requests_added {
            let before = self.requests.insert(record.id, codec::encode_request(&record));
            assert_eq!(before, None, "only what is new is remembered");
        }
        self.meta = codec::encode_meta(&write_set.meta);
    }
}

impl Replica {
    fn new(limit: usize) -> Replica {
        let mut owned = SlotSet::all();
        owned.remove(slot(b"foreign"));
        let meta = ShardMeta::new(owned);
        let disk = Disk { meta: codec::encode_meta(&meta), ..Disk::default() };
        Replica { disk, meta, memory: RequestMemory::new(limit), limit }
    }

    fn apply(&mut self, entry: Option<&Bytes>) -> Vec<Outcome> {
        let index = self.meta.applied + 1;
        let applied = match entry {
            None => apply_noop(&self.meta, index),
            Some(bytes) => {
                let entry = codec::decode_entry(bytes.clone()).unwrap();
                apply(&self.disk, &self.meta, &mut self.memory, index, &entry).unwrap()
            }
        };
        self.meta = applied.write_set.meta.clone();
        self.disk.write(applied.write_set);
        applied.outcomes
    }

    /// Starts again from what the disk holds, read in another order than it was written.
    fn restart(&mut self) {
        self.meta = codec::decode_meta(self.disk.meta.clone(), self.meta.owned.clone()).unwrap();
        self.memory = RequestMemory::new(self.limit);
        let stored = self.disk.requests.values().rev().cloned();
        self.memory.load(stored.map(|bytes| codec::decode_request(bytes).unwrap())).unwrap();
    }
}

// ---- Random entries ----

/// SplitMix64 (Steele et al., 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Generator {
    random: Random,
    clock: u64,
    /// Commands to send again.
    sent: Vec<Command>,
}

impl Generator {
    fn new(seed: u64) -> Generator {
        Generator { random: Random(seed), clock: START, sent: vec![] }
    }

    /// The next entry; `None` is one without commands.
    fn entry(&mut self) -> Option<Entry> {
        self.clock += match self.random.below(100) {
            0..80 => self.random.below(2 * SECOND),
            80..99 => self.random.below(20 * SECOND),
            _ => self.random.below(8 * MINUTE),
        };
        if self.random.chance(5) {
            return None;
        }
        let behind = if self.random.chance(10) { self.random.below(5 * SECOND) } else { 0 };
        let count = self.random.below(6);
        let commands = (0..count).map(|_| self.command()).collect();
        Some(Entry { stamp: self.clock - behind, proposal: ProposalId::default(), commands })
    }

    fn command(&mut self) -> Command {
        if !self.sent.is_empty() && self.random.chance(25) {
            let which = self.random.below(self.sent.len() as u64) as usize;
            return self.sent[which].clone();
        }
        let operations = 1 + if self.random.chance(40) { self.random.below(4) } else { 0 };
        let preconditions = if self.random.chance(40) { 1 + self.random.below(2) } else { 0 };
        let command = Command {
            namespace: Namespace(self.random.below(8) as u32 / 7),
            request_id: self.random.chance(60).then(|| self.request_id()),
            preconditions: (0..preconditions).map(|_| self.precondition()).collect(),
            operations: (0..operations).map(|_| self.operation()).collect(),
            answer_bytes_max: None,
        };
        self.sent.push(command.clone());
        if self.sent.len() > 60 {
            self.sent.remove(0);
        }
        command
    }

    fn request_id(&mut self) -> RequestId {
        let time = match self.random.below(10) {
            0 => self.clock - self.random.below(12 * MINUTE),
            1 => self.clock + self.random.below(2 * MINUTE),
            2 => return RequestId::Free(self.random.below(40).into()),
            // Many ids of one time.
            3 => self.clock / MINUTE * MINUTE,
            _ => self.clock,
        };
        let random_part = self.random.below(8);
        RequestId::Timed(u128::from(time / 1_000) << 80 | 7 << 76 | 2 << 62 | u128::from(random_part))
    }

    fn key(&mut self) -> Bytes {
        // The foreign key is rare: it refuses the whole command.
        let which = self.random.below(50) as usize;
        let own = [0, 1, 2, 3, 5];
        if which == 49 { KEYS[4].into() } else { KEYS[own[which % own.len()]].into() }
    }

    fn precondition(&mut self) -> Precondition {
        let expect = match self.random.below(3) {
            0 => Expect::Absent,
            1 => Expect::Present,
            _ => Expect::Version(self.random.below(400)),
        };
        Precondition { key: self.key(), expect }
    }

    fn operation(&mut self) -> Operation {
        let key = self.key();
        let action = match self.random.below(13) {
            6 => Action::Scan {
                range: self.range(),
                limit: 1 + self.random.below(4) as u32,
                bytes_max: 1 + self.random.below(2_000) as u32,
            },
            7 => Action::DeleteRange { range: self.range(), limit: 1 + self.random.below(3) as u32 },
            0 => Action::Get { key },
            1 => Action::put(key, self.value()),
            2 | 8 | 9 => {
                let only = [Only::Always, Only::Always, Only::IfAbsent, Only::IfPresent];
                let only = only[self.random.below(4) as usize];
                Action::Put { key, value: self.value(), expires: self.expiry(), only }
            }
            10 => {
                use ExpiryOnly::{Always, IfLater, IfNone, IfSome, IfSomeAndSooner, IfSooner};
                let only = [Always, IfNone, IfSome, IfLater, IfSooner, IfSomeAndSooner]
                    [self.random.below(6) as usize];
                Action::SetExpiry { key, expires: self.expiry(), only }
            }
            11 => Action::SetRange { key, offset: self.random.below(20) as u32, bytes: self.value() },
            12 => Action::RemoveExpired { limit: self.random.below(4) as u32 },
            3 => Action::Delete { key },
            4 => Action::Increment { key, by: self.number() },
            _ => Action::Append { key, suffix: self.value() },
        };
        let on_error = if self.random.chance(30) { OnError::Continue } else { OnError::Abort };
        Operation { action, on_error }
    }

    fn expiry(&mut self) -> Expiry {
        match self.random.below(8) {
            0 => Expiry::Never,
            1 => Expiry::Keep,
            2 => Expiry::After(0),
            3 | 4 => Expiry::After(self.random.below(2 * MINUTE)),
            5 => Expiry::At(self.clock - self.random.below(SECOND)),
            // Many keys of one time.
            6 => Expiry::At(self.clock / (10 * SECOND) * 10 * SECOND + 20 * SECOND),
            _ => Expiry::At(self.clock + self.random.below(MINUTE)),
        }
    }

    fn range(&mut self) -> KeyRange {
        let end = self.random.chance(80).then(|| self.key());
        KeyRange { start: self.key(), end }
    }

    fn value(&mut self) -> Bytes {
        match self.random.below(10) {
            0 => Bytes::new(),
            1 => vec![b'x'; 1 + self.random.below(3_000) as usize].into(),
            2 => "text".into(),
            _ => self.number().to_string().into(),
        }
    }

    fn number(&mut self) -> i64 {
        match self.random.below(10) {
            0 => i64::MAX - self.random.below(3) as i64,
            1 => i64::MIN + self.random.below(3) as i64,
            _ => self.random.below(200) as i64 - 100,
        }
    }
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done(_) => "done",
        Outcome::Conflict { .. } => "conflict",
        Outcome::Aborted { .. } => "aborted",
        Outcome::WrongShard => "wrong shard",
        Outcome::RequestReused => "reused",
        Outcome::RequestExpired => "expired",
        Outcome::RequestMemoryFull => "full",
    }
}

fn removals(outcome: &Outcome) -> u64 {
    let Outcome::Done(results) = outcome else { return 0 };
    let of_one = |result: &OperationResult| match result {
        OperationResult::RemovedExpired { removed } => *removed,
        _ => 0,
    };
    results.iter().map(of_one).sum()
}

// ---- The tests ----

#[test]
fn random_entries_do_what_the_model_does() {
    let mut kinds = BTreeSet::new();
    let mut has_horizon_risen = false;
    let (mut gone, mut removed) = (0, 0);
    for seed in 0..40 {
        let limit = [6, 40, 1_000_000][seed as usize % 3];
        let mut generator = Generator::new(seed);
        let mut model = Model { limit, ..Model::default() };
        let mut replica = Replica::new(limit);
        for step in 0..400 {
            let entry = generator.entry();
            let expected = entry.as_ref().map_or(vec![], |entry| model.apply(entry));
            let bytes = entry.as_ref().map(codec::encode_entry);
            let outcomes = replica.apply(bytes.as_ref());
            assert_eq!(outcomes, expected, "seed {seed}, step {step}");
            check_state(&model, &replica, &format!("seed {seed}, step {step}"));
            kinds.extend(outcomes.iter().map(kind));
            gone += model.values.keys().filter(|key| model.held(key).is_none()).count();
            removed += outcomes.iter().map(removals).sum::<u64>();
        }
        has_horizon_risen |= model.horizon > 0;
    }
    assert_eq!(kinds.len(), 7, "the generator no longer reaches every outcome: {kinds:?}");
    assert!(has_horizon_risen);
    assert!(gone > 1_000 && removed > 100, "{gone} gone keys met, {removed} removed");
}

fn check_state(model: &Model, replica: &Replica, place: &str) {
    assert_eq!(replica.disk.values, model.values, "{place}");
    let expiries = model.values.iter().filter_map(|(key, value)| Some((value.expires?, key.clone())));
    assert_eq!(replica.disk.expiries, expiries.collect(), "{place}");
    assert_eq!(replica.meta.expiring, replica.disk.expiries.len() as u64, "{place}");
    let meta = &replica.meta;
    let fields = (meta.version, meta.time, meta.request_horizon);
    assert_eq!(fields, (model.version, model.time, model.horizon), "{place}");
    let mut expected: Vec<_> = model.requests.iter().map(|request| (request.time, request.id)).collect();
    expected.sort_unstable();
    let remembered: Vec<_> = replica.memory.records().map(|record| (record.time, record.id)).collect();
    assert_eq!(remembered, expected, "{place}");
    assert_eq!(replica.disk.requests.len(), expected.len(), "{place}");
}

#[test]
fn replicas_that_restart_stay_equal() {
    for seed in 100..120 {
        let limit = [6, 40, 1_000_000][seed as usize % 3];
        let mut generator = Generator::new(seed);
        let mut steady = Replica::new(limit);
        let mut restarted = Replica::new(limit);
        for step in 0..300 {
            let entry = generator.entry().as_ref().map(codec::encode_entry);
            if generator.random.chance(20) {
                restarted.restart();
            }
            let outcomes = (steady.apply(entry.as_ref()), restarted.apply(entry.as_ref()));
            assert_eq!(outcomes.0, outcomes.1, "seed {seed}, step {step}");
            assert_eq!(steady.meta, restarted.meta, "seed {seed}, step {step}");
        }
        assert_ne!(steady.meta.chain, 0);
        assert_eq!(steady.disk.requests, restarted.disk.requests);
    }
}

#[test]
fn a_request_takes_effect_at_most_once() {
    for seed in 200..220 {
        let mut generator = Generator::new(seed);
        let mut replica = Replica::new([6, 1_000_000][seed as usize % 2]);
        // Each timed id adds one, whenever it is sent: the sum counts the ids that took effect.
        let mut done = BTreeSet::new();
        let mut ids = vec![];
        for _ in 0..300 {
            generator.clock += generator.random.below(20 * SECOND);
            if let id @ RequestId::Timed(_) = generator.request_id() {
                ids.push(id);
            }
            if ids.is_empty() {
                continue;
            }
            let which = generator.random.below(ids.len() as u64) as usize;
            let mut command = Command::single(Action::Increment { key: "number".into(), by: 1 });
            command.request_id = Some(ids[which]);
            let commands = vec![command];
            let entry = Entry { stamp: generator.clock, proposal: ProposalId::default(), commands };
            if let Outcome::Done(_) = replica.apply(Some(&codec::encode_entry(&entry)))[0] {
                done.insert(ids[which]);
            }
        }
        let get = Command::single(Action::Get { key: "number".into() });
        let Ok(Outcome::Done(results)) = read(&replica.disk, &replica.meta, &get) else { panic!() };
        let OperationResult::Value(Some(sum)) = &results[0] else { panic!() };
        assert_eq!(sum.value, done.len().to_string(), "seed {seed}");
    }
}

#[test]
fn a_replica_that_differs_is_found_by_its_chain() {
    let append = |suffix: &'static str| {
        let commands = vec![Command::single(Action::Append { key: "a".into(), suffix: suffix.into() })];
        codec::encode_entry(&Entry { stamp: START, proposal: ProposalId::default(), commands })
    };
    let (mut sound, mut damaged) = (Replica::new(6), Replica::new(6));
    for replica in [&mut sound, &mut damaged] {
        replica.apply(Some(&append("one")));
    }
    assert_eq!(sound.meta.chain, damaged.meta.chain);
    let key = (Namespace::DEFAULT, Bytes::from("a"));
    damaged.disk.values.get_mut(&key).unwrap().value = "onf".into();
    for replica in [&mut sound, &mut damaged] {
        replica.apply(Some(&append("two")));
        replica.apply(None);
    }
    assert_ne!(sound.meta.chain, damaged.meta.chain);
}
