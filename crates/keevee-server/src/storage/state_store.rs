//! One shard's applied state on `data/`.
//!
//! Every write set goes into one batch with the shard's meta, without a write-ahead log: after a crash
//! the shard stands at the applied index of its meta on disk, and its log replays the rest. Not here:
//! what is applied and when.

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

use super::{Database, format, options, storage_error};

/// The applied state of one incarnation of one shard.
#[derive(Debug)]
pub struct RocksState {
    shard: ShardId,
    incarnation: Incarnation,
    data: Arc<Database>,
    meta: ShardMeta,
    /// True if the owned slots on disk are those of `meta`.
    is_owned_written: bool,
}

impl RocksState {
    /// Opens a shard's state; one that was never written owns `initial_owned` and nothing else.
    pub fn open(
        shard: ShardId,
        incarnation: Incarnation,
        data: Arc<Database>,
        initial_owned: SlotSet,
    ) -> Result<RocksState, StorageError> {
        let read = |key| data.get(key).map_err(|error| storage_error(READING, error));
        let found = read(format::meta_key(shard, incarnation))?;
        let meta = match &found {
            Some(bytes) => {
                let owned = read(format::owned_key(shard, incarnation))?;
                format::decode_meta(bytes, format::decode_owned(owned.as_deref())?)?
            }
            None => ShardMeta::new(initial_owned),
        };
        Ok(RocksState { shard, incarnation, data, meta, is_owned_written: found.is_some() })
    }

    /// Puts everything written so far, of all shards, where a crash leaves it. Blocks for as long as
    /// that takes.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.data.flush().map_err(|error| storage_error("flushing the state", error))
    }

    fn meta_key(&self) -> [u8; 13] {
        format::meta_key(self.shard, self.incarnation)
    }
}

impl StateView for RocksState {
    type Error = StorageError;

    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, StorageError> {
        let key = format::value_key(self.shard, self.incarnation, namespace, key);
        let found = self.data.get_pinned(key).map_err(|error| storage_error(READING, error))?;
        found.map(|bytes| format::decode_value(&bytes)).transpose()
    }

    fn scan(&self, namespace: Namespace, range: &KeyRange, take: &mut Take<'_>) -> Result<(), StorageError> {
        let (from, end) = format::value_bounds(self.shard, self.incarnation, namespace, range);
        let mut keys = self.data.raw_iterator_opt(options::range(from, end));
        keys.seek_to_first();
        while let Some((key, value)) = keys.item() {
            if take(format::user_key(key)?, format::decode_value(value)?).is_break() {
                return Ok(());
            }
            keys.next();
        }
        keys.status().map_err(|error| storage_error(READING, error))
    }

    fn expiries(&self, latest: u64, take: &mut TakeExpiry<'_>) -> Result<(), StorageError> {
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
        keys.status().map_err(|error| storage_error(READING, error))
    }
}

impl StateStore for RocksState {
    fn meta(&self) -> Result<ShardMeta, StorageError> {
        Ok(self.meta.clone())
    }

    fn requests(&self) -> Result<Vec<RequestRecord>, StorageError> {
        let (from, end) = format::request_bounds(self.shard, self.incarnation);
        let records = self.data.iterator_opt(IteratorMode::Start, options::range(from, end));
        let decoded = records.map(|record| {
            let (_, bytes) = record.map_err(|error| storage_error(READING, error))?;
            format::decode_request(&bytes)
        });
        decoded.collect()
    }

    fn write(&mut self, write_set: WriteSet) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        for ((namespace, key), value) in &write_set.values {
            let key = format::value_key(self.shard, self.incarnation, *namespace, key);
            match value {
                Some(value) => batch.put(key, format::encode_value(value)),
                None => batch.delete(key),
            }
        }
        // Before those added, as `WriteSet` asks.
        for (expires, place) in &write_set.expiries_removed {
            batch.delete(format::expiry_key(self.shard, self.incarnation, *expires, place));
        }
        for (expires, place) in write_set.expiries_added() {
            batch.put(format::expiry_key(self.shard, self.incarnation, expires, place), b"");
        }
        // Before those added, as `WriteSet` asks: an id may be in both. What an entry has added and forgotten
        // again is in neither.
        for record in &write_set.requests_removed {
            batch.delete(format::request_key(self.shard, self.incarnation, record));
        }
        for record in &write_set.requests_added {
            let key = format::request_key(self.shard, self.incarnation, record);
            batch.put(key, codec::encode_request(record));
        }
        batch.put(self.meta_key(), codec::encode_meta(&write_set.meta));
        if !self.is_owned_written || write_set.meta.owned != self.meta.owned {
            let key = format::owned_key(self.shard, self.incarnation);
            batch.put(key, write_set.meta.owned.to_bytes());
        }
        let written = self.data.write_opt(batch, &options::unlogged());
        written.map_err(|error| storage_error("writing the state", error))?;
        self.meta = write_set.meta;
        self.is_owned_written = true;
        Ok(())
    }

    fn flushed(&self) -> Result<u64, StorageError> {
        let found = self.data.get_opt(self.meta_key(), &options::persisted());
        match found.map_err(|error| storage_error(READING, error))? {
            Some(bytes) => Ok(format::decode_meta(&bytes, self.meta.owned.clone())?.applied),
            None => Ok(0),
        }
    }
}

const READING: &str = "reading the state";
