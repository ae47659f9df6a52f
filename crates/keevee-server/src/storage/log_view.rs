//! The log of a node that is stopped, read without a write: what `log/` has, and over it what only the journal has.
//!
//! A start replays the journal into `log/`. Whoever may change nothing looks at both instead, so the journal's records are taken
//! apart here as RocksDB encodes batches. Not here: what entries say, and a log that is written to ([`super::RocksLog`]).

use std::collections::BTreeMap;

use bytes::Bytes;
use keevee_core::ids::{Incarnation, ShardId};
use keevee_core::shard_map::Consensus;
use keevee_replica::storage::StorageError;
use prost::encoding::decode_varint;
use rocksdb::IteratorMode;

use super::{Database, format, options, storage_error};

/// What stands in front of the records of a batch: a sequence number, and how many there are.
const BATCH_HEAD_BYTES: usize = 12;
/// How RocksDB numbers what a batch does.
const DELETE: u8 = 0;
const PUT: u8 = 1;
const DELETE_RANGE: u8 = 15;

/// The logs of all shards of a folder.
#[derive(Debug)]
pub(crate) struct LogView {
    log: Database,
    /// What the journal says of a key; `None`: removed.
    journaled: BTreeMap<Vec<u8>, Option<Bytes>>,
    /// From where to where the journal removes what `log/` has. None touches another.
    removed: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl LogView {
    /// A view of `log/` alone.
    pub(super) fn new(log: Database) -> LogView {
        LogView { log, journaled: BTreeMap::new(), removed: BTreeMap::new() }
    }

    /// `log/`, without what the journal has.
    pub(super) fn database(&self) -> &Database {
        &self.log
    }

    /// Lays a record of the journal over what is there.
    pub(super) fn replay(&mut self, batch: Vec<u8>) -> Result<(), StorageError> {
        let batch = Bytes::from(batch);
        let mut rest = batch.slice(BATCH_HEAD_BYTES.min(batch.len())..);
        while let Some((&kind, _)) = rest.split_first() {
            rest = rest.slice(1..);
            let key = take_string(&mut rest)?.to_vec();
            match kind {
                PUT => drop(self.journaled.insert(key, Some(take_string(&mut rest)?))),
                DELETE => drop(self.journaled.insert(key, None)),
                DELETE_RANGE => self.remove(key, take_string(&mut rest)?.to_vec()),
                other => return Err(unreadable(format!("a batch does something of kind {other}"))),
            }
        }
        Ok(())
    }

    fn remove(&mut self, mut from: Vec<u8>, mut end: Vec<u8>) {
        if from >= end {
            return;
        }
        let gone: Vec<Vec<u8>> =
            self.journaled.range(from.clone()..end.clone()).map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| drop(self.journaled.remove(key)));
        while let Some((other, its_end)) = self.removed.range(..=end.clone()).next_back()
            && *its_end >= from
        {
            let other = other.clone();
            let its_end = self.removed.remove(&other).unwrap_or_default();
            (from, end) = (from.min(other), end.max(its_end));
        }
        self.removed.insert(from, end);
    }

    /// What a key holds.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if let Some(found) = self.journaled.get(key) {
            return Ok(found.clone());
        }
        if self.is_removed(key) {
            return Ok(None);
        }
        let found = self.log.get(key).map_err(|error| storage_error(READING, error))?;
        Ok(found.map(Bytes::from))
    }

    fn is_removed(&self, key: &[u8]) -> bool {
        let before = self.removed.range(..=key.to_vec()).next_back();
        before.is_some_and(|(_, end)| key < end.as_slice())
    }

    /// A shard's entry.
    pub(crate) fn entry(&self, shard: ShardId, index: u64) -> Result<Option<Bytes>, StorageError> {
        self.get(&format::entry_key(shard, index))
    }

    /// The index of a shard's last entry; 0 if there is none.
    pub(crate) fn last(&self, shard: ShardId) -> Result<u64, StorageError> {
        let (from, end) = (format::entry_key(shard, 0).to_vec(), format::entries_end(shard).to_vec());
        let is_there = |found: &Option<Bytes>| found.is_some();
        let journaled = self.journaled.range(from.clone()..end.clone());
        let journaled = journaled.rev().find(|(_, found)| is_there(found)).map(|(key, _)| key.clone());
        let mut last = journaled.map_or(Ok(0), |key| format::entry_index(&key))?;
        for record in self.log.iterator_opt(IteratorMode::End, options::range(from, end)) {
            let (key, _) = record.map_err(|error| storage_error(READING, error))?;
            if !self.is_removed(&key) && self.journaled.get(&key[..]).is_none_or(is_there) {
                last = last.max(format::entry_index(&key)?);
                break;
            }
        }
        Ok(last)
    }

    /// A shard's hard state, as its engine encoded it.
    pub(crate) fn hard_state(&self, shard: ShardId) -> Result<Option<Bytes>, StorageError> {
        self.get(&format::hard_state_key(shard))
    }

    /// Below which index a shard's entries were removed on purpose.
    pub(crate) fn trimmed(&self, shard: ShardId) -> Result<u64, StorageError> {
        format::trimmed_below(self.get(&format::trimmed_key(shard))?)
    }

    /// Which incarnation of a shard's state is in force.
    pub(crate) fn incarnation(&self, shard: ShardId) -> Result<Incarnation, StorageError> {
        format::incarnation_in_force(self.get(&format::incarnation_key(shard))?)
    }

    /// Which engine writes a shard's log; `None` if there is no such log.
    pub(crate) fn engine(&self, shard: ShardId) -> Result<Option<Consensus>, StorageError> {
        if let Some(mark) = self.get(&format::engine_key(shard))? {
            return format::decode_engine(&mark).map(Some);
        }
        // Logs were written before they were marked, all by Multi-Paxos.
        Ok(self.hard_state(shard)?.map(|_| Consensus::Paxos))
    }
}

fn take_string(rest: &mut Bytes) -> Result<Bytes, StorageError> {
    let length = decode_varint(rest).ok().and_then(|length| usize::try_from(length).ok());
    match length.filter(|length| *length <= rest.len()) {
        Some(length) => Ok(rest.split_to(length)),
        None => Err(unreadable("a batch ends too early".to_owned())),
    }
}

fn unreadable(cause: String) -> StorageError {
    StorageError::Corrupt { what: "the journal", cause }
}

const READING: &str = "reading the log";

#[cfg(test)]
mod tests {
    use rocksdb::WriteBatch;
    use tempfile::TempDir;

    use super::*;

    const SHARD: ShardId = ShardId(1);

    fn key(index: u64) -> [u8; 13] {
        format::entry_key(SHARD, index)
    }

    /// The same batches in a database, and laid over an empty one.
    fn both(batches: &[WriteBatch]) -> (Database, LogView, [TempDir; 2]) {
        let folders = [(); 2].map(|()| TempDir::new().expect("a folder"));
        let [there, empty] =
            folders.each_ref().map(|folder| Database::open(&options::log(true), folder.path()).expect("new"));
        // Half of them are in `log/` as well: the journal may tell again what is there.
        let mut view = LogView::new(empty);
        for (at, batch) in batches.iter().enumerate() {
            let copy = || WriteBatch::from_data(batch.data());
            there.write(copy()).expect("written");
            if at < batches.len() / 2 {
                view.log.write(copy()).expect("written");
            }
            view.replay(batch.data().to_vec()).expect("a batch");
        }
        (there, view, folders)
    }

    fn put(indexes: impl IntoIterator<Item = u64>, value: &[u8]) -> WriteBatch {
        let mut batch = WriteBatch::default();
        indexes.into_iter().for_each(|index| batch.put(key(index), value));
        batch
    }

    fn drop_range(from: u64, end: u64) -> WriteBatch {
        let mut batch = WriteBatch::default();
        batch.delete_range(key(from), key(end));
        batch
    }

    #[test]
    fn what_the_journal_has_is_seen_as_a_replay_would_leave_it() {
        let mut deleted = WriteBatch::default();
        deleted.delete(key(25));
        deleted.put(format::trimmed_key(SHARD), format::encode_index(5));
        let mut to_the_end = WriteBatch::default();
        to_the_end.delete_range(&key(27)[..], &format::entries_end(SHARD)[..]);
        let long = vec![7; 300];
        let batches = [
            put(1..=30, b"first"),
            drop_range(0, 3),
            drop_range(10, 12),
            drop_range(3, 5),
            put([11, 40], &long),
            drop_range(2, 4),
            deleted,
            to_the_end,
            put([27], b"again"),
        ];
        let (there, view, _folders) = both(&batches);
        for index in 0..=50 {
            let expected = there.get(key(index)).expect("readable").map(Bytes::from);
            assert_eq!(view.entry(SHARD, index), Ok(expected), "{index}");
        }
        assert_eq!((view.last(SHARD), view.trimmed(SHARD)), (Ok(27), Ok(5)));
        assert_eq!((view.last(ShardId(2)), view.engine(ShardId(2))), (Ok(0), Ok(None)));
    }

    #[test]
    fn a_batch_that_does_what_no_log_writer_asks_for_is_refused() {
        let mut merged = put([1], b"x").data().to_vec();
        merged[BATCH_HEAD_BYTES] = 2;
        let whole = put([1], b"x").data().to_vec();
        for wrong in [merged, whole[..whole.len() - 1].to_vec()] {
            let (_, mut view, _folders) = both(&[]);
            assert!(matches!(view.replay(wrong), Err(StorageError::Corrupt { .. })));
        }
    }
}
