//! One shard's log on `log/`: writes go through the log writer, reads see them at once.
//!
//! What is submitted and not yet known to be persisted is kept in memory and covers what is on disk. The
//! disk may be ahead of what this store was told, so it is looked at only within a window: indexes that
//! no pending drop has removed. Entries that were persisted widen the window again. That is sound: had a
//! later drop removed an entry or one between it and the window, it would have left the memory too.
//! Not here: what the entries say.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use keevee_core::ids::{Incarnation, ShardId};
use keevee_replica::storage::{LogRecord, LogStore, StorageError};
use rocksdb::{Direction, IteratorMode};

use keevee_core::shard_map::Consensus;

use super::log_writer::LogWriterHandle;
use super::{Database, format, options, storage_error};

/// The log of one shard.
#[derive(Debug)]
pub struct RocksLog {
    shard: ShardId,
    log: Arc<Database>,
    writer: LogWriterHandle,
    hard_state: Option<Bytes>,
    incarnation: Incarnation,
    /// Entries below this index were removed on purpose, and none was written there since.
    trimmed: u64,
    /// Entries not known to be persisted, with the token that will tell.
    pending: BTreeMap<u64, (u64, Bytes)>,
    /// Which indexes the tokens on their way are for, in order.
    in_flight: VecDeque<(u64, Vec<u64>)>,
    /// Which entries on disk count.
    window: Range<u64>,
}

impl RocksLog {
    /// Opens a shard's log; an empty one if the shard never wrote any.
    pub fn open(
        shard: ShardId,
        log: Arc<Database>,
        writer: LogWriterHandle,
    ) -> Result<RocksLog, StorageError> {
        let read = |key: [u8; 5]| log.get(key).map_err(|error| storage_error(READING, error));
        let hard_state = read(format::hard_state_key(shard))?.map(Bytes::from);
        let incarnation = format::incarnation_in_force(read(format::incarnation_key(shard))?)?;
        let trimmed = format::trimmed_below(read(format::trimmed_key(shard))?)?;
        let mut store = RocksLog {
            shard,
            log,
            writer,
            hard_state,
            incarnation,
            trimmed,
            pending: BTreeMap::new(),
            in_flight: VecDeque::new(),
            window: 0..u64::MAX,
        };
        if let Some(last) = store.last_on_disk()? {
            let first = store.disk(0, last, Direction::Forward).next().transpose()?;
            store.window = first.map_or(0, |(index, _)| index)..last.saturating_add(1);
            store.trimmed = store.trimmed.min(store.window.start);
        } else {
            store.window = 0..0;
        }
        Ok(store)
    }

    /// Refuses a log that does not fit the state applied from it. A state has applied only what its own
    /// log had persisted, and a log is trimmed only below what its state had flushed; so a log that ends
    /// below the applied index has lost its end, and a state that stands below the log's start has lost
    /// what it flushed. Call it before a shard's replica starts.
    pub fn check_fits(&self, applied: u64) -> Result<(), StorageError> {
        let end = self.last()?.max(self.trimmed.saturating_sub(1));
        if end < applied {
            let cause = format!("it ends at {end}, but entry {applied} was applied");
            return Err(StorageError::Corrupt { what: "the log", cause });
        }
        if self.trimmed > applied.saturating_add(1) {
            let cause = format!("the log starts at {}, but it stands at {applied}", self.trimmed);
            return Err(StorageError::Damaged { what: "fitting it to the log", cause });
        }
        Ok(())
    }

    /// All below the log was applied, whatever became of that: for a replica that has lost its state.
    pub fn applied_at_least(&self) -> u64 {
        self.trimmed.saturating_sub(1)
    }

    /// The engine that writes this log. A new log is marked with the one wanted, before anything else is written.
    pub fn engine(&self, wanted: Consensus) -> Result<Consensus, StorageError> {
        let key = format::engine_key(self.shard);
        if let Some(mark) = self.log.get(key).map_err(|error| storage_error(READING, error))? {
            return format::decode_engine(&mark);
        }
        // Logs were written before they were marked, all by Multi-Paxos.
        if self.hard_state.is_some() || !self.window.is_empty() {
            return Ok(Consensus::Paxos);
        }
        let marked = self.log.put_opt(key, format::encode_engine(wanted), &options::synced());
        marked.map_err(|error| storage_error("marking the log", error))?;
        Ok(wanted)
    }

    fn take(&mut self, record: &LogRecord, token: u64, indexes: &mut Vec<u64>) {
        match record {
            LogRecord::Entry { index, bytes } => {
                self.trimmed = self.trimmed.min(*index);
                self.pending.insert(*index, (token, bytes.clone()));
                indexes.push(*index);
            }
            LogRecord::HardState(bytes) => self.hard_state = Some(bytes.clone()),
            LogRecord::DropBelow(index) => {
                self.trimmed = *index;
                self.pending = self.pending.split_off(index);
                self.window.start = self.window.start.max(*index);
            }
            LogRecord::DropFrom(index) => {
                self.pending.split_off(index);
                self.window.end = self.window.end.min(*index);
            }
            LogRecord::Incarnation(incarnation) => self.incarnation = *incarnation,
        }
    }

    /// An entry is on disk, and nothing submitted later has removed or replaced it.
    fn widen(&mut self, index: u64) {
        if self.window.is_empty() {
            self.window = index..index.saturating_add(1);
            return;
        }
        self.window.start = self.window.start.min(index);
        self.window.end = self.window.end.max(index.saturating_add(1));
    }

    fn last_on_disk(&self) -> Result<Option<u64>, StorageError> {
        if self.window.is_empty() {
            return Ok(None);
        }
        let mut entries = self.disk(self.window.start, self.window.end - 1, Direction::Reverse);
        entries.next().transpose().map(|entry| entry.map(|(index, _)| index))
    }

    /// The entries on disk from `from` to `to`, both included.
    fn disk(
        &self,
        from: u64,
        to: u64,
        direction: Direction,
    ) -> impl Iterator<Item = Result<(u64, Bytes), StorageError>> {
        let start = format::entry_key(self.shard, from);
        // One byte more than the last key, since the end is not included.
        let end = [format::entry_key(self.shard, to).as_slice(), &[0]].concat();
        let mode = match direction {
            Direction::Forward => IteratorMode::Start,
            Direction::Reverse => IteratorMode::End,
        };
        let entries = self.log.iterator_opt(mode, options::range(start.to_vec(), end));
        entries.map(|entry| {
            let (key, value) = entry.map_err(|error| storage_error(READING, error))?;
            Ok((format::entry_index(&key)?, Bytes::from(value)))
        })
    }

    /// Reads from disk what counts of `from` to `to`; false if the page is full.
    fn read_disk(&self, from: u64, to: u64, page: &mut Page) -> Result<bool, StorageError> {
        let from = from.max(self.window.start);
        if self.window.is_empty() || from > to || from >= self.window.end {
            return Ok(true);
        }
        for entry in self.disk(from, to.min(self.window.end - 1), Direction::Forward) {
            let (index, bytes) = entry?;
            if !page.add(index, bytes) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl LogStore for RocksLog {
    fn submit(&mut self, mut records: Vec<LogRecord>, token: u64) {
        let mut indexes = Vec::new();
        records.retain(|record| {
            // The mark on disk of what was trimmed must not fall back.
            let is_done = matches!(record, LogRecord::DropBelow(index) if *index <= self.trimmed);
            if !is_done {
                self.take(record, token, &mut indexes);
            }
            !is_done
        });
        self.in_flight.push_back((token, indexes));
        self.writer.submit(self.shard, records, token);
    }

    fn persisted(&mut self, token: u64) {
        while let Some((_, indexes)) = self.in_flight.pop_front_if(|front| front.0 <= token) {
            for index in indexes {
                if self.pending.get(&index).is_some_and(|(needed, _)| *needed <= token) {
                    self.pending.remove(&index);
                    self.widen(index);
                }
            }
        }
    }

    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let mut page = Page { entries: Vec::new(), bytes_left: bytes_max };
        if from > to {
            return Ok(page.entries);
        }
        let mut next = from;
        for (&index, (_, bytes)) in self.pending.range(from..=to) {
            let is_gap = next < index;
            if is_gap && !self.read_disk(next, index - 1, &mut page)? {
                return Ok(page.entries);
            }
            if !page.add(index, bytes.clone()) || index == to {
                return Ok(page.entries);
            }
            next = index + 1;
        }
        self.read_disk(next, to, &mut page)?;
        Ok(page.entries)
    }

    fn hard_state(&self) -> Result<Option<Bytes>, StorageError> {
        Ok(self.hard_state.clone())
    }

    fn last(&self) -> Result<u64, StorageError> {
        let pending = self.pending.last_key_value().map_or(0, |(index, _)| *index);
        if pending >= self.window.end {
            return Ok(pending);
        }
        Ok(pending.max(self.last_on_disk()?.unwrap_or(0)))
    }

    fn bytes(&self) -> Result<u64, StorageError> {
        // What is removed lies there for some time still.
        let (from, end) = (format::entry_key(self.shard, self.trimmed), format::entries_end(self.shard));
        Ok(self.log.get_approximate_sizes(&[rocksdb::Range::new(&from, &end)]).iter().sum())
    }

    fn incarnation(&self) -> Result<Incarnation, StorageError> {
        Ok(self.incarnation)
    }
}

const READING: &str = "reading the log";

/// The entries of one read, up to a size.
struct Page {
    entries: Vec<(u64, Bytes)>,
    bytes_left: usize,
}

impl Page {
    /// Adds an entry; false, and nothing happens, if it does not fit. The first one always fits.
    fn add(&mut self, index: u64, bytes: Bytes) -> bool {
        let left = self.bytes_left.checked_sub(bytes.len());
        if left.is_none() && !self.entries.is_empty() {
            return false;
        }
        self.bytes_left = left.unwrap_or(0);
        self.entries.push((index, bytes));
        true
    }
}

#[cfg(test)]
mod tests;
