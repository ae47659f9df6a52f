//! The part of an acceptor's log that is in memory: every entry above what is applied, and a bounded
//! cache of applied ones. Older entries are read back through [`LogRead`].
//!
//! The log may have holes: an acceptor accepts what reaches it.

use std::collections::BTreeMap;

use crate::ballot::{Ballot, Index};
use crate::message::{Entry, LogRead, Restored, Value};

/// Bytes that an entry is counted with besides its payload.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// What an entry is counted with, in pages, windows and the cache.
pub(crate) fn entry_bytes(value: &Value) -> usize {
    value.len() + ENTRY_OVERHEAD_BYTES
}

pub(crate) struct Log {
    entries: BTreeMap<Index, (Ballot, Value)>,
    /// Entries up to here may be missing in memory.
    evicted: Index,
    bytes: usize,
    bytes_max: usize,
    last: Index,
    ballot_max: Ballot,
}

impl Log {
    pub(crate) fn new(restored: Restored, bytes_max: usize) -> Log {
        let evicted = restored.applied;
        let mut log = Log {
            entries: BTreeMap::new(),
            evicted,
            bytes: 0,
            bytes_max,
            last: restored.applied.max(restored.hard_state.chosen),
            ballot_max: Ballot::ZERO,
        };
        for entry in restored.entries {
            log.insert(entry);
        }
        log
    }

    /// The highest index that holds an entry.
    pub(crate) fn last(&self) -> Index {
        self.last
    }

    /// The highest ballot of any entry inserted since the start.
    pub(crate) fn ballot_max(&self) -> Ballot {
        self.ballot_max
    }

    /// The ballot at which the entry was accepted, if it is in memory.
    pub(crate) fn ballot_at(&self, index: Index) -> Option<Ballot> {
        self.entries.get(&index).map(|(ballot, _)| *ballot)
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        assert!(entry.index > self.evicted, "an applied entry is never accepted again");
        self.bytes += entry_bytes(&entry.value);
        self.last = self.last.max(entry.index);
        self.ballot_max = self.ballot_max.max(entry.ballot);
        if let Some((_, old)) = self.entries.insert(entry.index, (entry.ballot, entry.value)) {
            self.bytes -= entry_bytes(&old);
        }
    }

    /// Consecutive entries that are in memory for certain, since they are not applied yet.
    pub(crate) fn unapplied(&self, from: Index, to: Index, bytes_max: usize) -> Vec<Entry> {
        assert!(from > self.evicted, "entries that are not applied stay in memory");
        let page = self.page(from, to, bytes_max);
        let consecutive = page.iter().zip(from..).all(|(entry, index)| entry.index == index);
        assert!(consecutive, "a chosen prefix has no holes");
        page
    }

    /// The entries from `from` to `to`: at least one if there is any, then no more than `bytes_max`.
    pub(crate) fn read(&self, from: Index, to: Index, bytes_max: usize, disk: &dyn LogRead) -> Vec<Entry> {
        if from > to {
            return Vec::new();
        }
        if from <= self.evicted {
            let old = disk.read(from, to.min(self.evicted), bytes_max);
            if !old.is_empty() {
                return old;
            }
        }
        self.page(from, to, bytes_max)
    }

    fn page(&self, from: Index, to: Index, bytes_max: usize) -> Vec<Entry> {
        let mut page = Vec::new();
        let mut bytes = 0;
        if from > to {
            return page;
        }
        for (index, (ballot, value)) in self.entries.range(from..=to) {
            bytes += entry_bytes(value);
            if !page.is_empty() && bytes > bytes_max {
                break;
            }
            page.push(Entry { index: *index, ballot: *ballot, value: value.clone() });
        }
        page
    }

    /// Forgets entries up to `through`, oldest first, while there are too many bytes of them.
    pub(crate) fn evict(&mut self, through: Index) {
        while self.bytes > self.bytes_max {
            let Some(entry) = self.entries.first_entry() else { return };
            if *entry.key() > through {
                return;
            }
            self.evicted = *entry.key();
            let (_, value) = entry.remove();
            self.bytes -= entry_bytes(&value);
        }
    }

    /// Forgets entries that are dropped from the disk too.
    pub(crate) fn drop_below(&mut self, first: Index) {
        while let Some(entry) = self.entries.first_entry() {
            if *entry.key() >= first {
                return;
            }
            self.evicted = self.evicted.max(*entry.key());
            let (_, value) = entry.remove();
            self.bytes -= entry_bytes(&value);
        }
    }
}
