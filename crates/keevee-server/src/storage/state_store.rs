//! One shard's applied state on `data/`.
//!
//! Write sets are gathered, the later one over the earlier, and then written in one batch with the shard's meta, without
//! a write-ahead log: after a crash the shard stands at the applied index of its meta on disk, and its log replays the
//! rest. Gathered, because a key costs RocksDB's write buffer a search with a cache miss at every step; in the order of
//! keys the next search begins where the last one ended, and of several writes to a key only the last one costs anything.
//! Not here: what is applied and when.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use keevee_core::apply::{ShardMeta, StateView, Take, TakeExpiry, WriteSet};
use keevee_core::codec;
use keevee_core::command::Versioned;
use keevee_core::ids::{Incarnation, Namespace, ShardId};
use keevee_core::range::KeyRange;
use keevee_core::requests::RequestRecord;
use keevee_core::slots::SlotSet;
use keevee_replica::storage::{StateStore, StorageError};
use rocksdb::{IteratorMode, WriteBatch};

use super::snapshot_files::{StateSource, StateTarget, remove_other_incarnations};
use super::{Database, ValueCache, format, options, state_error};

/// The applied state of one incarnation of one shard.
#[derive(Debug)]
pub struct RocksState {
    shard: ShardId,
    incarnation: Incarnation,
    data: Arc<Database>,
    values: Arc<ValueCache>,
    meta: ShardMeta,
    /// True if the owned slots on disk are those of `meta`.
    is_owned_written: bool,
    gathered: RefCell<Gathered>,
}

/// Puts everything written so far to `data/`, of all shards, where a crash leaves it. Blocks for as long as that takes.
pub fn flush_states(data: &Database) -> Result<(), StorageError> {
    data.flush().map_err(|error| state_error("flushing the state", error))
}

/// Bytes of keys and values that are gathered before they are written.
const GATHERED_BYTES_MAX: usize = 256 << 10;

/// What is not written yet: keys of `data/` in order, and their values; `None` is removed.
#[derive(Debug, Default)]
struct Gathered {
    records: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
}

impl Gathered {
    fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.set(key.into(), Some(value.into()));
    }

    fn remove(&mut self, key: impl Into<Vec<u8>>) {
        self.set(key.into(), None);
    }

    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.records.insert(key, value);
    }
}

impl RocksState {
    /// Opens a shard's state at a start, and removes what is left of other incarnations: see [`RocksState::open`].
    pub fn enter(
        shard: ShardId,
        incarnation: Incarnation,
        data: Arc<Database>,
        values: Arc<ValueCache>,
        initial_owned: SlotSet,
    ) -> Result<RocksState, StorageError> {
        let state = RocksState::open(shard, incarnation, data, values, initial_owned)?;
        // What is left of a state that is lost stays until another is in force.
        if !state.is_lost() {
            remove_other_incarnations(shard, incarnation, &state.data)?;
        }
        Ok(state)
    }

    /// True if the log says that there is a state, and there is none: it was given up, or got lost. Nothing of this may be
    /// served.
    pub fn is_lost(&self) -> bool {
        self.incarnation > Incarnation(0) && self.meta.applied == 0
    }

    /// Opens a shard's state; one that was never written owns `initial_owned` and nothing else.
    pub fn open(
        shard: ShardId,
        incarnation: Incarnation,
        data: Arc<Database>,
        values: Arc<ValueCache>,
        initial_owned: SlotSet,
    ) -> Result<RocksState, StorageError> {
        let read = |key| data.get(key).map_err(|error| state_error(READING, error));
        let found = read(format::meta_key(shard, incarnation))?;
        let meta = match &found {
            Some(bytes) => {
                let owned = read(format::owned_key(shard, incarnation))?;
                format::decode_meta(bytes, format::decode_owned(owned.as_deref())?)?
            }
            None => ShardMeta::new(initial_owned),
        };
        let (is_owned_written, gathered) = (found.is_some(), RefCell::default());
        Ok(RocksState { shard, incarnation, data, values, meta, is_owned_written, gathered })
    }

    /// Puts everything written so far, of all shards, where a crash leaves it. Blocks for as long as
    /// that takes.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.write_out()?;
        flush_states(&self.data)
    }

    /// Writes what is gathered.
    fn write_out(&self) -> Result<(), StorageError> {
        let mut gathered = self.gathered.borrow_mut();
        if gathered.records.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for (key, value) in &gathered.records {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        let written = self.data.write_opt(batch, &options::unlogged());
        written.map_err(|error| state_error("writing the state", error))?;
        *gathered = Gathered::default();
        Ok(())
    }

    fn meta_key(&self) -> [u8; 13] {
        format::meta_key(self.shard, self.incarnation)
    }
}

impl StateView for RocksState {
    type Error = StorageError;

    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, StorageError> {
        let key = format::value_key(self.shard, self.incarnation, namespace, key);
        if let Some(found) = self.values.get(&key) {
            return Ok(Some(found));
        }
        let found = if let Some(gathered) = self.gathered.borrow().records.get(&key[..]) {
            gathered.as_deref().map(format::decode_value).transpose()?
        } else {
            let found = self.data.get_pinned(&key).map_err(|error| state_error(READING, error))?;
            found.map(|bytes| format::decode_value(&bytes)).transpose()?
        };
        if let Some(found) = &found {
            self.values.add(key, found);
        }
        Ok(found)
    }

    fn scan(&self, namespace: Namespace, range: &KeyRange, take: &mut Take<'_>) -> Result<(), StorageError> {
        self.write_out()?;
        let (from, end) = format::value_bounds(self.shard, self.incarnation, namespace, range);
        let mut keys = self.data.raw_iterator_opt(options::range(from, end));
        keys.seek_to_first();
        while let Some((key, value)) = keys.item() {
            if take(format::user_key(key)?, format::decode_value(value)?).is_break() {
                return Ok(());
            }
            keys.next();
        }
        keys.status().map_err(|error| state_error(READING, error))
    }

    fn expiries(&self, latest: u64, take: &mut TakeExpiry<'_>) -> Result<(), StorageError> {
        self.write_out()?;
        let (from, end) = format::expiry_bounds(self.shard, self.incarnation, latest);
        let mut keys = self.data.raw_iterator_opt(options::range(from, end));
        keys.seek_to_first();
        while let Some(key) = keys.key() {
            let (expires, place) = format::decode_expiry(key)?;
            if take(expires, place).is_break() {
                return Ok(());
            }
            keys.next();
        }
        keys.status().map_err(|error| state_error(READING, error))
    }
}

impl StateStore for RocksState {
    type Source = StateSource;
    type Target = StateTarget;

    fn meta(&self) -> Result<ShardMeta, StorageError> {
        Ok(self.meta.clone())
    }

    fn requests(&self) -> Result<Vec<RequestRecord>, StorageError> {
        self.write_out()?;
        let (from, end) = format::request_bounds(self.shard, self.incarnation);
        let records = self.data.iterator_opt(IteratorMode::Start, options::range(from, end));
        let decoded = records.map(|record| {
            let (_, bytes) = record.map_err(|error| state_error(READING, error))?;
            format::decode_request(&bytes)
        });
        decoded.collect()
    }

    fn write(&mut self, write_set: WriteSet) -> Result<(), StorageError> {
        let gathered = self.gathered.get_mut();
        for ((namespace, key), value) in &write_set.values {
            let key = format::value_key(self.shard, self.incarnation, *namespace, key);
            self.values.set(&key, value.as_ref());
            match value {
                Some(value) => gathered.put(key, format::encode_value(value)),
                None => gathered.remove(key),
            }
        }
        // Before those added, as `WriteSet` asks.
        for (expires, place) in &write_set.expiries_removed {
            gathered.remove(format::expiry_key(self.shard, self.incarnation, *expires, place));
        }
        for (expires, place) in write_set.expiries_added() {
            gathered.put(format::expiry_key(self.shard, self.incarnation, expires, place), []);
        }
        // Before those added, as `WriteSet` asks: an id may be in both. What an entry has added and forgotten
        // again is in neither.
        for record in &write_set.requests_removed {
            gathered.remove(format::request_key(self.shard, self.incarnation, record));
        }
        for record in &write_set.requests_added {
            let key = format::request_key(self.shard, self.incarnation, record);
            gathered.put(key, codec::encode_request(record));
        }
        gathered.put(format::meta_key(self.shard, self.incarnation), codec::encode_meta(&write_set.meta));
        if !self.is_owned_written || write_set.meta.owned != self.meta.owned {
            let key = format::owned_key(self.shard, self.incarnation);
            gathered.put(key, write_set.meta.owned.to_bytes());
        }
        let is_full = gathered.bytes >= GATHERED_BYTES_MAX;
        self.meta = write_set.meta;
        self.is_owned_written = true;
        if is_full { self.write_out() } else { Ok(()) }
    }

    fn flushed(&self) -> Result<u64, StorageError> {
        // Or what is gathered of a shard that nobody writes to any more would never be flushed.
        self.write_out()?;
        let found = self.data.get_opt(self.meta_key(), &options::persisted());
        match found.map_err(|error| state_error(READING, error))? {
            Some(bytes) => Ok(format::decode_meta(&bytes, self.meta.owned.clone())?.applied),
            None => Ok(0),
        }
    }

    fn snapshot(&self) -> Result<StateSource, StorageError> {
        self.write_out()?;
        StateSource::start(self.shard, self.incarnation, Arc::clone(&self.data))
    }

    fn next_incarnation(&self) -> Result<StateTarget, StorageError> {
        StateTarget::start(self.shard, Incarnation(self.incarnation.0 + 1), Arc::clone(&self.data))
    }
}

impl Drop for RocksState {
    fn drop(&mut self) {
        // The log has it too.
        let _ = self.write_out();
    }
}

const READING: &str = "reading the state";
