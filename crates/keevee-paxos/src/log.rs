//! The part of an acceptor's log that is in memory: every entry above what is applied, and a bounded
//! cache of applied ones. Older entries are read back through [`LogRead`].
//!
//! The log may have holes: an acceptor accepts what reaches it.

use std::collections::BTreeMap;

use keevee_mutants::{self as mutants, Mutant};

use crate::ballot::{Ballot, Index};
use crate::message::{Entry, LogRead, Restored, Value};
use crate::quorum::Configuration;

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
    /// Those among the entries that are not known to be chosen.
    configurations: BTreeMap<Index, Configuration>,
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
            configurations: BTreeMap::new(),
        };
        for entry in restored.entries {
            log.insert(entry);
        }
        if mutants::is_active(Mutant::ConfigurationForgotten) {
            log.configurations.split_off(&(restored.hard_state.chosen + 1));
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
        match &entry.value {
            Value::Configuration(configuration) => {
                self.configurations.insert(entry.index, Configuration::clone(configuration));
            }
            Value::Noop | Value::Data(_) => drop(self.configurations.remove(&entry.index)),
        }
        if let Some((_, old)) = self.entries.insert(entry.index, (entry.ballot, entry.value)) {
            self.bytes -= entry_bytes(&old);
        }
    }

    /// The configurations that are not known to be chosen, in order.
    pub(crate) fn configurations(&self) -> impl Iterator<Item = (Index, &Configuration)> {
        self.configurations.iter().map(|(index, configuration)| (*index, configuration))
    }

    /// Hands out those up to an index, which are chosen now.
    pub(crate) fn take_configurations(&mut self, through: Index) -> BTreeMap<Index, Configuration> {
        let later = self.configurations.split_off(&(through + 1));
        std::mem::replace(&mut self.configurations, later)
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
            // All of it was chosen, so there are no holes: nothing is read only if the disk fails.
            return disk.read(from, to.min(self.evicted), bytes_max);
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

    /// Forgets entries above `last` that are not applied. Nothing but a mutant does so: an acceptor keeps what it
    /// accepted.
    pub(crate) fn truncate_after(&mut self, last: Index) {
        for (_, value) in self.entries.split_off(&(last + 1)).into_values() {
            self.bytes -= entry_bytes(&value);
        }
        self.configurations.split_off(&(last + 1));
        self.last = self.last.min(last);
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use bytes::Bytes;

    use super::*;
    use crate::message::HardState;

    const BALLOT: Ballot = Ballot { round: 1, node: 1 };

    /// A disk with every entry up to an index, which counts the reads.
    struct Disk {
        last: Index,
        reads: Cell<u64>,
    }

    impl LogRead for Disk {
        fn read(&self, from: Index, to: Index, _: usize) -> Vec<Entry> {
            assert!(from <= to, "an empty range is no business of the disk");
            self.reads.set(self.reads.get() + 1);
            (from..=to.min(self.last)).map(entry).collect()
        }
    }

    fn entry(index: Index) -> Entry {
        Entry { index, ballot: BALLOT, value: Value::Data(Bytes::from_static(b"ten bytes.")) }
    }

    fn log(applied: Index, entries: std::ops::Range<Index>, bytes_max: usize) -> Log {
        let hard_state = HardState { chosen: applied, ..HardState::default() };
        Log::new(Restored { hard_state, applied, entries: entries.map(entry).collect() }, bytes_max)
    }

    fn indexes(page: &[Entry]) -> Vec<Index> {
        page.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn a_page_holds_one_entry_even_if_it_is_too_large() {
        let disk = Disk { last: 0, reads: Cell::new(0) };
        let log = log(0, 1..4, usize::MAX);
        assert_eq!(indexes(&log.read(1, 3, 1, &disk)), [1]);
        assert_eq!(indexes(&log.read(1, 3, 2 * entry_bytes(&entry(1).value), &disk)), [1, 2]);
        assert_eq!(disk.reads.get(), 0);
    }

    #[test]
    fn applied_entries_are_evicted_oldest_first_and_read_from_disk() {
        let disk = Disk { last: 4, reads: Cell::new(0) };
        let mut log = log(0, 1..5, 2 * entry_bytes(&entry(1).value));
        log.evict(1);
        assert_eq!(log.ballot_at(2), Some(BALLOT), "what is not applied stays");
        log.evict(4);
        assert_eq!((log.ballot_at(2), log.ballot_at(3)), (None, Some(BALLOT)));
        assert_eq!(indexes(&log.read(1, 4, usize::MAX, &disk)), [1, 2], "from disk, as far as needed");
        assert_eq!(disk.reads.get(), 1);
        assert_eq!(indexes(&log.read(3, 4, usize::MAX, &disk)), [3, 4]);
        assert_eq!(disk.reads.get(), 1);
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let disk = Disk { last: 4, reads: Cell::new(0) };
        let log = log(4, 5..5, 0);
        assert_eq!(log.last(), 4);
        assert!(log.read(5, 4, usize::MAX, &disk).is_empty());
        assert!(log.read(4, 3, usize::MAX, &disk).is_empty());
    }

    #[test]
    fn an_entry_takes_the_place_of_an_older_one() {
        let mut log = log(0, 1..3, usize::MAX);
        let bytes = log.bytes;
        let higher = Ballot { round: 2, node: 1 };
        log.insert(Entry { ballot: higher, value: Value::Noop, ..entry(2) });
        assert_eq!(log.ballot_at(2), Some(higher));
        assert_eq!((log.ballot_max(), log.last()), (higher, 2));
        assert_eq!(log.bytes, bytes - 10);
    }

    #[test]
    #[should_panic(expected = "never accepted again")]
    fn an_applied_entry_is_never_replaced() {
        log(2, 3..4, usize::MAX).insert(entry(2));
    }

    #[test]
    fn dropped_entries_are_forgotten() {
        let mut log = log(0, 1..5, usize::MAX);
        log.drop_below(3);
        assert_eq!((log.ballot_at(2), log.ballot_at(3), log.last()), (None, Some(BALLOT), 4));
    }
}
