//! Storage in memory: what tests and simulations run on. A log keeps what was submitted apart from what is
//! synced, so that a crash can lose the difference.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use keevee_core::apply::{ShardMeta, StateView, Take, TakeExpiry, WriteSet};
use keevee_core::codec;
use keevee_core::command::Versioned;
use keevee_core::ids::{Incarnation, Namespace};
use keevee_core::range::{KeyRange, Place};
use keevee_core::requests::{RequestId, RequestRecord};
use keevee_core::slots::SlotSet;
use keevee_mutants::{self as mutants, Mutant};

use super::{
    Intake, LogRecord, LogStore, SnapshotRecord, SnapshotSource, SnapshotTarget, StateStore, StorageError,
};

#[derive(Clone, Debug, Default)]
struct Contents {
    entries: BTreeMap<u64, Bytes>,
    hard_state: Option<Bytes>,
    incarnation: Incarnation,
}

impl Contents {
    fn write(&mut self, record: LogRecord) {
        match record {
            LogRecord::Entry { index, bytes } => {
                self.entries.insert(index, bytes);
            }
            LogRecord::HardState(bytes) => self.hard_state = Some(bytes),
            LogRecord::DropBelow(first) => self.entries = self.entries.split_off(&first),
            LogRecord::DropFrom(index) => {
                self.entries.split_off(&index);
            }
            LogRecord::Incarnation(incarnation) => self.incarnation = incarnation,
        }
    }
}

/// A log in memory. Its owner decides when the disk is done: [`MemoryLog::sync`].
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    current: Contents,
    synced: Contents,
    waiting: VecDeque<(u64, Vec<LogRecord>)>,
}

impl MemoryLog {
    /// Syncs the oldest submission that waits: its token, and the records that survive a crash from now on.
    pub fn sync_next(&mut self) -> Option<(u64, Vec<LogRecord>)> {
        let (token, records) = self.waiting.pop_front()?;
        records.iter().for_each(|record| self.synced.write(record.clone()));
        Some((token, records))
    }

    /// Syncs everything that waits; the last token, if anything did.
    pub fn sync(&mut self) -> Option<u64> {
        std::iter::from_fn(|| self.sync_next()).last().map(|(token, _)| token)
    }

    /// The submissions that wait to be synced, oldest first.
    pub fn unsynced(&self) -> impl Iterator<Item = &[LogRecord]> {
        self.waiting.iter().map(|(_, records)| records.as_slice())
    }

    /// How many submissions wait to be synced.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The log as a crash leaves it: without what was not synced.
    pub fn crashed(&self) -> MemoryLog {
        let synced = self.synced.clone();
        MemoryLog { current: synced.clone(), synced, waiting: VecDeque::new() }
    }
}

impl LogStore for MemoryLog {
    fn submit(&mut self, records: Vec<LogRecord>, token: u64) {
        records.iter().for_each(|record| self.current.write(record.clone()));
        self.waiting.push_back((token, records));
    }

    fn persisted(&mut self, _token: u64) {}

    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let mut bytes = 0;
        let mut page = Vec::new();
        if from > to {
            return Ok(page);
        }
        for (index, entry) in self.current.entries.range(from..=to) {
            bytes += entry.len();
            if !page.is_empty() && bytes > bytes_max {
                break;
            }
            page.push((*index, entry.clone()));
        }
        Ok(page)
    }

    fn hard_state(&self) -> Result<Option<Bytes>, StorageError> {
        Ok(self.current.hard_state.clone())
    }

    fn last(&self) -> Result<u64, StorageError> {
        Ok(self.current.entries.keys().next_back().copied().unwrap_or(0))
    }

    fn bytes(&self) -> Result<u64, StorageError> {
        Ok(self.current.entries.values().map(|bytes| bytes.len() as u64).sum())
    }

    fn incarnation(&self) -> Result<Incarnation, StorageError> {
        Ok(self.current.incarnation)
    }
}

/// A shard's state in memory. Its owner decides when a write survives a crash: [`MemoryState::flush`]. Until then
/// the write is kept beside the state.
#[derive(Clone, Debug)]
pub struct MemoryState {
    current: Tables,
    flushed: Tables,
    /// What `current` holds and `flushed` does not, oldest first.
    unflushed: VecDeque<WriteSet>,
    incarnation: Incarnation,
    /// Snapshots that were taken in whole, and are not in force. Shared with those that bring them.
    taken_in: Arc<Mutex<BTreeMap<Incarnation, Tables>>>,
}

impl MemoryState {
    /// An empty state that owns these slots.
    pub fn new(owned: SlotSet) -> MemoryState {
        let tables = Tables {
            values: BTreeMap::new(),
            expiries: BTreeSet::new(),
            requests: BTreeMap::new(),
            meta: ShardMeta::new(owned),
        };
        MemoryState {
            current: tables.clone(),
            flushed: tables,
            unflushed: VecDeque::new(),
            incarnation: Incarnation(0),
            taken_in: Arc::default(),
        }
    }

    /// At a start: goes on with the incarnation that the log says is in force.
    ///
    /// # Errors
    ///
    /// [`StorageError::Corrupt`] if there is no such incarnation.
    pub fn enter(&mut self, incarnation: Incarnation) -> Result<(), StorageError> {
        let mut taken_in = lock(&self.taken_in);
        if incarnation != self.incarnation {
            let missing = || StorageError::Corrupt {
                what: "the state",
                cause: format!("incarnation {} is missing", incarnation.0),
            };
            let tables = taken_in.remove(&incarnation).ok_or_else(missing)?;
            (self.current, self.flushed) = (tables.clone(), tables);
            self.unflushed.clear();
            self.incarnation = incarnation;
        }
        taken_in.clear();
        Ok(())
    }

    /// Gives the state up: there is nothing in the incarnation that this returns, which the log must put in force.
    pub fn give_up(&mut self) -> Incarnation {
        let next = Incarnation(self.incarnation.0 + 1);
        let nothing = MemoryState::new(self.current.meta.owned.clone()).current;
        lock(&self.taken_in).insert(next, nothing);
        next
    }

    /// Makes everything written so far survive a crash.
    pub fn flush(&mut self) {
        self.flush_writes(self.unflushed.len());
    }

    /// Makes every write up to this applied index survive a crash.
    pub fn flush_through(&mut self, index: u64) {
        let through = self.unflushed.iter().take_while(|write_set| write_set.meta.applied <= index);
        self.flush_writes(through.count());
    }

    /// Makes the oldest writes that would not survive a crash survive one: so many of them, or all if there
    /// are fewer. A crash in the middle of a flush is one after any of them.
    pub fn flush_writes(&mut self, count: usize) {
        let count = count.min(self.unflushed.len());
        if mutants::is_active(Mutant::FlushLosesValues) && (1..self.unflushed.len()).contains(&count) {
            self.unflushed[count - 1] = WriteSet::of_meta(self.unflushed[count - 1].meta.clone());
        }
        self.unflushed.drain(..count).for_each(|write_set| self.flushed.write(write_set));
    }

    /// How many writes would not survive a crash.
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// The request ids that are remembered, in order.
    pub fn request_ids(&self) -> impl Iterator<Item = RequestId> {
        self.current.requests.keys().copied()
    }

    /// Every key that holds a value, in order.
    pub fn values(&self) -> impl Iterator<Item = (&(Namespace, Bytes), &Versioned)> {
        self.current.values.iter()
    }

    /// Changes the value of one key, the first being number 0, as a disk may do without telling anybody. The key, if there
    /// are so many.
    pub fn rot(&mut self, number: usize) -> Option<Place> {
        let place = self.current.values.keys().nth(number)?.clone();
        for tables in [&mut self.current, &mut self.flushed] {
            tables
                .values
                .entry(place.clone())
                .and_modify(|value| value.value = Bytes::from_static(b"rotten"));
        }
        Some(place)
    }

    /// The state as a crash leaves it: without what was not flushed.
    pub fn crashed(&self) -> MemoryState {
        let flushed = self.flushed.clone();
        let taken_in = Arc::new(Mutex::new(lock(&self.taken_in).clone()));
        let (current, incarnation) = (flushed.clone(), self.incarnation);
        MemoryState { current, flushed, unflushed: VecDeque::new(), incarnation, taken_in }
    }
}

fn lock(taken_in: &Mutex<BTreeMap<Incarnation, Tables>>) -> MutexGuard<'_, BTreeMap<Incarnation, Tables>> {
    taken_in.lock().expect("nothing panics while it holds this")
}

impl StateView for MemoryState {
    type Error = StorageError;

    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, StorageError> {
        Ok(self.current.values.get(&(namespace, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(&self, namespace: Namespace, range: &KeyRange, take: &mut Take<'_>) -> Result<(), StorageError> {
        let mut found = self.current.values.range(range.bounds(namespace));
        // How far it went is `take`'s affair.
        let _ = found.try_for_each(|((_, key), value)| take(key.clone(), value.clone()));
        Ok(())
    }

    fn expiries(&self, latest: u64, take: &mut TakeExpiry<'_>) -> Result<(), StorageError> {
        let mut due = self.current.expiries.iter().take_while(|(expires, _)| *expires <= latest);
        let _ = due.try_for_each(|(expires, place)| take(*expires, place.clone()));
        Ok(())
    }
}

impl StateStore for MemoryState {
    type Source = MemorySource;
    type Target = MemoryTarget;

    fn meta(&self) -> Result<ShardMeta, StorageError> {
        Ok(self.current.meta.clone())
    }

    fn requests(&self) -> Result<Vec<RequestRecord>, StorageError> {
        Ok(self.current.requests.values().cloned().collect())
    }

    fn write(&mut self, write_set: WriteSet) -> Result<(), StorageError> {
        self.current.write(write_set.clone());
        self.unflushed.push_back(write_set);
        Ok(())
    }

    fn flushed(&self) -> Result<u64, StorageError> {
        Ok(self.flushed.meta.applied)
    }

    fn snapshot(&self) -> Result<MemorySource, StorageError> {
        Ok(MemorySource { records: self.current.records().collect() })
    }

    fn next_incarnation(&self) -> Result<MemoryTarget, StorageError> {
        let incarnation = Incarnation(self.incarnation.0 + 1);
        let taken_in = Arc::clone(&self.taken_in);
        Ok(MemoryTarget { incarnation, records: Vec::new(), intake: Intake::Ready, taken_in })
    }
}

/// A snapshot of a [`MemoryState`].
#[derive(Clone, Debug)]
pub struct MemorySource {
    records: VecDeque<SnapshotRecord>,
}

impl MemorySource {
    /// The keys that are left to be read, in a source of which nothing was read.
    ///
    /// # Errors
    ///
    /// [`StorageError::Corrupt`] if something was read.
    pub fn values(self) -> Result<BTreeMap<Place, Versioned>, StorageError> {
        Tables::of(self.records.into()).map(|tables| tables.values)
    }
}

impl SnapshotSource for MemorySource {
    const LAYOUT: u32 = 1;

    fn read(&mut self, bytes_max: usize) -> Result<Vec<SnapshotRecord>, StorageError> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max
            && let Some((key, value)) = self.records.pop_front()
        {
            bytes += key.len() + value.len();
            page.push((key, value));
        }
        Ok(page)
    }
}

/// The next incarnation of a [`MemoryState`].
#[derive(Debug)]
pub struct MemoryTarget {
    incarnation: Incarnation,
    records: Vec<SnapshotRecord>,
    intake: Intake,
    taken_in: Arc<Mutex<BTreeMap<Incarnation, Tables>>>,
}

impl SnapshotTarget for MemoryTarget {
    fn write(&mut self, records: Vec<SnapshotRecord>) {
        self.records.extend(records);
    }

    fn end(&mut self) {
        self.intake = match Tables::of(std::mem::take(&mut self.records)) {
            Ok(tables) => {
                lock(&self.taken_in).insert(self.incarnation, tables);
                Intake::Done(self.incarnation)
            }
            Err(error) => Intake::Failed(error),
        };
    }

    fn progress(&mut self) -> Intake {
        self.intake.clone()
    }
}

/// What a record of a snapshot holds: the first byte of its key.
const META: u8 = 1;
const VALUE: u8 = 2;
const REQUEST: u8 = 3;

#[derive(Clone, Debug)]
struct Tables {
    values: BTreeMap<Place, Versioned>,
    expiries: BTreeSet<(u64, Place)>,
    requests: BTreeMap<RequestId, RequestRecord>,
    meta: ShardMeta,
}

impl Tables {
    fn write(&mut self, write_set: WriteSet) {
        for expiry in &write_set.expiries_removed {
            self.expiries.remove(expiry);
        }
        self.expiries.extend(write_set.expiries_added().map(|(expires, place)| (expires, place.clone())));
        for (key, value) in write_set.values {
            match value {
                Some(value) => self.values.insert(key, value),
                None => self.values.remove(&key),
            };
        }
        // Before those added, as `WriteSet` asks: an id may be in both.
        write_set.requests_removed.iter().for_each(|record| {
            self.requests.remove(&record.id);
        });
        self.requests.extend(write_set.requests_added.into_iter().map(|record| (record.id, record)));
        self.meta = write_set.meta;
    }

    /// All of it, as a snapshot's records. Expiries follow from the values.
    fn records(&self) -> impl Iterator<Item = SnapshotRecord> {
        let owned = self.meta.owned.to_bytes();
        let meta = [
            (Bytes::from_static(&[META, 0]), codec::encode_meta(&self.meta)),
            (Bytes::from_static(&[META, 1]), owned),
        ];
        let values = self.values.iter().map(|((namespace, key), value)| {
            let key = [&[VALUE], &namespace.0.to_be_bytes()[..], key].concat();
            let numbers = [value.version, value.stamp, value.expires.unwrap_or(0)].map(u64::to_be_bytes);
            (Bytes::from(key), Bytes::from([&numbers.concat()[..], &value.value].concat()))
        });
        let requests = (0u64..).zip(self.requests.values()).map(|(number, record)| {
            let key = [&[REQUEST][..], &number.to_be_bytes()].concat();
            (Bytes::from(key), codec::encode_request(record))
        });
        meta.into_iter().chain(values).chain(requests)
    }

    fn of(records: Vec<SnapshotRecord>) -> Result<Tables, StorageError> {
        let corrupt = |cause: &str| StorageError::Corrupt { what: "a snapshot", cause: cause.to_owned() };
        let [(_, meta), (_, owned), records @ ..] = &records[..] else { return Err(corrupt("it is empty")) };
        let owned = SlotSet::from_bytes(owned).ok_or_else(|| corrupt("its slots"))?;
        let meta = codec::decode_meta(meta.clone(), owned).map_err(|_| corrupt("its meta"))?;
        let (mut values, mut requests) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in records {
            match key.split_first() {
                Some((&VALUE, place)) if place.len() >= 4 && value.len() >= 24 => {
                    let namespace = u32::from_be_bytes(place[..4].try_into().expect("four bytes"));
                    let number =
                        |at: usize| u64::from_be_bytes(value[at..at + 8].try_into().expect("eight bytes"));
                    let versioned = Versioned {
                        version: number(0),
                        stamp: number(8),
                        expires: Some(number(16)).filter(|expires| *expires > 0),
                        value: value.slice(24..),
                    };
                    values.insert((Namespace(namespace), key.slice(5..)), versioned);
                }
                Some((&REQUEST, _)) => {
                    let record = codec::decode_request(value.clone()).map_err(|_| corrupt("a request"))?;
                    requests.insert(record.id, record);
                }
                _ => return Err(corrupt("a record of an unknown kind")),
            }
        }
        let expiries = values.iter().filter_map(|(place, value): (&Place, &Versioned)| {
            value.expires.map(|expires| (expires, place.clone()))
        });
        let expiries = expiries.collect();
        Ok(Tables { values, expiries, requests, meta })
    }
}

#[cfg(test)]
mod tests {
    use keevee_core::apply::StateView;

    use super::*;

    fn put(index: u64, key: &'static str) -> WriteSet {
        let value =
            Versioned { version: index, stamp: index, expires: None, value: Bytes::from_static(b"value") };
        WriteSet {
            values: [((Namespace(0), Bytes::from_static(key.as_bytes())), Some(value))].into(),
            expiries_removed: Vec::new(),
            requests_added: Vec::new(),
            requests_removed: Vec::new(),
            meta: ShardMeta { applied: index, ..ShardMeta::new(SlotSet::all()) },
        }
    }

    fn state() -> MemoryState {
        let mut state = MemoryState::new(SlotSet::all());
        for (index, key) in (1..).zip(["a", "b", "c", "d"]) {
            state.write(put(index, key)).expect("memory does not fail");
        }
        state
    }

    fn keys(state: &MemoryState) -> Vec<&[u8]> {
        state.values().map(|((_, key), _)| &key[..]).collect()
    }

    #[test]
    fn a_crash_loses_what_was_not_flushed() {
        let mut state = state();
        assert_eq!((keys(&state.crashed()), state.flushed(), state.unflushed()), (vec![], Ok(0), 4));
        state.flush_writes(1);
        assert_eq!((keys(&state.crashed()), state.flushed(), state.unflushed()), (vec![&b"a"[..]], Ok(1), 3));
        state.flush_through(3);
        let crashed = state.crashed();
        assert_eq!(keys(&crashed), [b"a", b"b", b"c"]);
        assert_eq!((crashed.meta().map(|meta| meta.applied), crashed.unflushed()), (Ok(3), 0));
        assert_eq!(keys(&state), [b"a", b"b", b"c", b"d"], "what runs on has everything");
        state.flush();
        assert_eq!((keys(&state.crashed()), state.flushed(), state.unflushed()), (keys(&state), Ok(4), 0));
    }

    #[test]
    fn a_flush_of_more_than_there_is_flushes_all() {
        let mut state = state();
        state.flush_writes(9);
        assert_eq!((state.flushed(), state.unflushed()), (Ok(4), 0));
        state.flush_through(2);
        assert_eq!(state.flushed(), Ok(4), "a flush is never taken back");
    }

    #[test]
    fn a_crashed_state_goes_on_from_where_it_was() {
        let mut state = state();
        state.flush_writes(2);
        let mut crashed = state.crashed();
        crashed.write(put(3, "e")).expect("memory does not fail");
        assert_eq!(keys(&crashed), [b"a", b"b", b"e"]);
        assert_eq!(crashed.get(Namespace(0), b"c"), Ok(None));
        assert_eq!(keys(&crashed.crashed()), [b"a", b"b"]);
    }

    #[test]
    fn a_sync_tells_what_it_made_durable() {
        let mut log = MemoryLog::default();
        let entry = |index| LogRecord::Entry { index, bytes: Bytes::from_static(b"entry") };
        log.submit(vec![entry(1), entry(2)], 7);
        log.submit(vec![entry(3)], 8);
        assert_eq!((log.last(), log.crashed().last(), log.waiting()), (Ok(3), Ok(0), 2));
        assert_eq!(log.sync_next(), Some((7, vec![entry(1), entry(2)])));
        assert_eq!((log.crashed().last(), log.waiting()), (Ok(2), 1));
        assert_eq!((log.sync(), log.sync(), log.waiting()), (Some(8), None, 0));
        assert_eq!(log.crashed().last(), Ok(3));
    }
}
