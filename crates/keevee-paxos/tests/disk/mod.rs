//! A disk in memory, as a replica's caller has to provide it: writes are visible at once, survive a crash
//! only once they are synced, and are synced in order.

use std::collections::{BTreeMap, VecDeque};

use keevee_paxos::{Ballot, Entry, HardState, Index, LogRead, Persist, Record, Restored, Value};

/// Bytes that an entry is counted with besides its value, as a replica counts it.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// What a disk holds.
#[derive(Clone, Default)]
pub(crate) struct Content {
    pub(crate) hard_state: HardState,
    pub(crate) entries: BTreeMap<Index, (Ballot, Value)>,
}

impl Content {
    fn write(&mut self, record: &Record) {
        match record {
            Record::Accepted(Entry { index, ballot, value }) => {
                self.entries.insert(*index, (*ballot, value.clone()));
            }
            Record::HardState(hard_state) => self.hard_state = hard_state.clone(),
            Record::DropFrom(index) => drop(self.entries.split_off(index)),
            Record::DropBelow(first) => self.entries = self.entries.split_off(first),
        }
    }
}

/// A disk, and the writes that it has not synced.
#[derive(Default)]
pub(crate) struct Disk {
    /// What reads see: synced or not.
    pub(crate) visible: Content,
    /// What a crash leaves.
    pub(crate) durable: Content,
    queue: VecDeque<Persist>,
}

impl Disk {
    /// Takes a write; it is visible, and not durable.
    pub(crate) fn write(&mut self, persist: Persist) {
        persist.records.iter().for_each(|record| self.visible.write(record));
        self.queue.push_back(persist);
    }

    /// Syncs the oldest writes, in order.
    pub(crate) fn sync(&mut self, count: usize) -> Vec<Persist> {
        let synced: Vec<Persist> = self.queue.drain(..count).collect();
        for persist in &synced {
            persist.records.iter().for_each(|record| self.durable.write(record));
        }
        synced
    }

    /// Writes that are not synced, up to a token.
    pub(crate) fn queued_through(&self, token: u64) -> usize {
        self.queue.iter().filter(|persist| persist.token <= token).count()
    }

    /// Loses what is not synced.
    pub(crate) fn crash(&mut self) {
        self.queue.clear();
        self.visible = self.durable.clone();
    }

    /// What a replica starts from, with a state machine that stands at `applied`.
    pub(crate) fn restore(&self, applied: Index) -> Restored {
        let entries = self.durable.entries.range(applied + 1..);
        let entries = entries
            .map(|(index, (ballot, value))| Entry { index: *index, ballot: *ballot, value: value.clone() })
            .collect();
        Restored { hard_state: self.durable.hard_state.clone(), applied, entries }
    }
}

impl LogRead for Disk {
    fn read(&self, from: Index, to: Index, bytes_max: usize) -> Vec<Entry> {
        let mut page = Vec::new();
        let mut bytes = 0;
        if from > to {
            return page;
        }
        for (index, (ballot, value)) in self.visible.entries.range(from..=to) {
            bytes += value.len() + ENTRY_OVERHEAD_BYTES;
            if !page.is_empty() && bytes > bytes_max {
                break;
            }
            page.push(Entry { index: *index, ballot: *ballot, value: value.clone() });
        }
        page
    }
}
