//! Storage in memory: what tests and simulations run on. A log keeps what was submitted apart from what is
//! synced, so that a crash can lose the difference.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use keevee_core::apply::{ShardMeta, StateView, WriteSet};
use keevee_core::command::Versioned;
use keevee_core::ids::Namespace;
use keevee_core::requests::{RequestId, RequestRecord};
use keevee_core::slots::SlotSet;

use super::{LogRecord, LogStore, StateStore, StorageError};

#[derive(Clone, Debug, Default)]
struct Contents {
    entries: BTreeMap<u64, Bytes>,
    hard_state: Option<Bytes>,
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
    /// Syncs the oldest submission that waits; its token.
    pub fn sync_next(&mut self) -> Option<u64> {
        let (token, records) = self.waiting.pop_front()?;
        records.into_iter().for_each(|record| self.synced.write(record));
        Some(token)
    }

    /// Syncs everything that waits; the last token, if anything did.
    pub fn sync(&mut self) -> Option<u64> {
        std::iter::from_fn(|| self.sync_next()).last()
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
}

/// A shard's state in memory.
#[derive(Clone, Debug)]
pub struct MemoryState {
    values: BTreeMap<(Namespace, Bytes), Versioned>,
    requests: BTreeMap<RequestId, RequestRecord>,
    meta: ShardMeta,
    flushed: Option<Box<MemoryState>>,
}

impl MemoryState {
    /// An empty state that owns these slots.
    pub fn new(owned: SlotSet) -> MemoryState {
        let meta = ShardMeta::new(owned);
        MemoryState { values: BTreeMap::new(), requests: BTreeMap::new(), meta, flushed: None }
    }

    /// Makes everything written so far survive a crash.
    pub fn flush(&mut self) {
        self.flushed = None;
        self.flushed = Some(Box::new(self.clone()));
    }

    /// The state as a crash leaves it: as of the last flush.
    pub fn crashed(&self) -> MemoryState {
        match &self.flushed {
            Some(flushed) => {
                let mut state = (**flushed).clone();
                state.flush();
                state
            }
            // Owned slots are fixed when the shard is made, before anything is applied.
            None => MemoryState::new(self.meta.owned.clone()),
        }
    }
}

impl StateView for MemoryState {
    type Error = StorageError;

    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, StorageError> {
        Ok(self.values.get(&(namespace, Bytes::copy_from_slice(key))).cloned())
    }
}

impl StateStore for MemoryState {
    fn meta(&self) -> Result<ShardMeta, StorageError> {
        Ok(self.meta.clone())
    }

    fn requests(&self) -> Result<Vec<RequestRecord>, StorageError> {
        Ok(self.requests.values().cloned().collect())
    }

    fn write(&mut self, write_set: WriteSet) -> Result<(), StorageError> {
        for (key, value) in write_set.values {
            match value {
                Some(value) => self.values.insert(key, value),
                None => self.values.remove(&key),
            };
        }
        write_set.requests_removed.iter().for_each(|record| {
            self.requests.remove(&record.id);
        });
        self.requests.extend(write_set.requests_added.into_iter().map(|record| (record.id, record)));
        self.meta = write_set.meta;
        Ok(())
    }

    fn flushed(&self) -> Result<u64, StorageError> {
        Ok(self.flushed.as_ref().map_or(0, |flushed| flushed.meta.applied))
    }
}
