//! A node's disk: the log and the state that outlive its process, and what a crash does to them.
//!
//! Both keep to the contracts of [`keevee_replica::storage`] and are as forgetful as those allow: a write
//! survives only once it is synced or flushed, and a submission of which half reached the disk is dropped
//! when it is read back, as a database drops a batch whose checksum fails.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use keevee_core::apply::{ShardMeta, StateView, WriteSet};
use keevee_core::command::Versioned;
use keevee_core::ids::Namespace;
use keevee_core::requests::{RequestId, RequestRecord};
use keevee_core::slots::SlotSet;
use keevee_mutants::{Mutant, is_active};
use keevee_replica::storage::{LogRecord, LogStore, MemoryLog, MemoryState, StateStore, StorageError};

use crate::oracles::Held;
use crate::plan::Unsynced;
use crate::random::Random;

/// What a node keeps when its process dies.
pub(crate) struct Disk {
    pub(crate) log: SharedLog,
    pub(crate) state: SharedState,
}

/// What a crash lost.
#[derive(Default)]
pub(crate) struct Damage {
    /// Submissions that were found after all, though nobody was told that they are synced.
    pub(crate) found: Vec<Vec<LogRecord>>,
    /// Submissions that are gone.
    pub(crate) lost: Vec<Vec<LogRecord>>,
    pub(crate) torn: bool,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        Disk { log: SharedLog::default(), state: SharedState::new() }
    }

    /// Loses what a crash loses. `in_flight` submissions were being synced; a state is found as it was after
    /// any of the writes since its last flush.
    pub(crate) fn crash(&mut self, unsynced: Unsynced, in_flight: usize, random: &mut Random) -> Damage {
        let mut damage = Damage::default();
        let mut log = self.log.lock();
        let found = match unsynced {
            Unsynced::Lost => 0,
            Unsynced::Kept => in_flight,
            Unsynced::Some | Unsynced::Torn => random.below(in_flight as u64 + 1) as usize,
        };
        damage.found.extend((0..found).filter_map(|_| log.memory.sync_next()).map(|(_, records)| records));
        let mut crashed = log.memory.crashed();
        damage.lost.extend(std::iter::from_fn(|| log.memory.sync_next()).map(|(_, records)| records));
        if let (Unsynced::Torn, Some(torn)) = (unsynced, damage.lost.first()) {
            damage.torn = true;
            if is_active(Mutant::TornBatchKept) {
                crashed.submit(torn[..torn.len().div_ceil(2)].to_vec(), 0);
                crashed.sync();
            }
        }
        log.memory = crashed;
        let mut state = self.state.0.borrow_mut();
        let unflushed = state.memory.unflushed();
        // A flush may also have ended right behind the last write of a process that died of it.
        if state.death == Death::Dead && random.percent(50) {
            state.memory.flush_writes(unflushed);
        } else if random.percent(30) {
            let writes = random.below(unflushed as u64 + 1);
            state.memory.flush_writes(writes as usize);
        }
        state.memory = state.memory.crashed();
        state.written.clear();
        state.death = Death::No;
        damage
    }
}

#[derive(Default)]
struct LogDisk {
    memory: MemoryLog,
    reads: Cell<u64>,
    /// Submitted since the world last looked.
    submitted: Vec<LogRecord>,
}

/// A log, shared by the process that writes it and the world that syncs it. All on one thread, but openraft asks
/// for what could be sent to another.
#[derive(Clone, Default)]
pub(crate) struct SharedLog(Arc<Mutex<LogDisk>>);

impl SharedLog {
    fn lock(&self) -> MutexGuard<'_, LogDisk> {
        self.0.lock().expect("nothing panics while it holds this")
    }

    pub(crate) fn waiting(&self) -> usize {
        self.lock().memory.waiting()
    }

    /// True if something holds of any submission that waits to be synced.
    pub(crate) fn any_waiting(&self, holds: impl FnMut(&[LogRecord]) -> bool) -> bool {
        self.lock().memory.unsynced().any(holds)
    }

    pub(crate) fn sync_next(&self) -> Option<(u64, Vec<LogRecord>)> {
        self.lock().memory.sync_next()
    }

    pub(crate) fn take_submitted(&self) -> Vec<LogRecord> {
        std::mem::take(&mut self.lock().submitted)
    }

    /// How often entries were read since the last call.
    pub(crate) fn take_reads(&self) -> u64 {
        self.lock().reads.take()
    }
}

impl LogStore for SharedLog {
    fn submit(&mut self, records: Vec<LogRecord>, token: u64) {
        let mut log = self.lock();
        log.submitted.extend(records.iter().cloned());
        log.memory.submit(records, token);
    }

    fn persisted(&mut self, token: u64) {
        self.lock().memory.persisted(token);
    }

    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let log = self.lock();
        log.reads.set(log.reads.get() + 1);
        log.memory.read(from, to, bytes_max)
    }

    fn hard_state(&self) -> Result<Option<Bytes>, StorageError> {
        self.lock().memory.hard_state()
    }

    fn last(&self) -> Result<u64, StorageError> {
        self.lock().memory.last()
    }
}

/// What the world sees of one write to a state.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) index: u64,
    pub(crate) chain: u128,
    /// The shard's count of mutations before the entry and after it.
    pub(crate) versions: (u64, u64),
    /// The values written.
    pub(crate) values: BTreeMap<(Namespace, Bytes), Option<Versioned>>,
    /// The requests executed.
    pub(crate) executed: Vec<RequestId>,
}

struct StateDisk {
    memory: MemoryState,
    /// The count of mutations before the last entry written.
    version_before: u64,
    /// Written since the world last looked.
    written: Vec<Written>,
    death: Death,
}

/// How a process dies in the middle of applying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// It does not.
    No,
    /// The next write is its last.
    AfterNextWrite,
    /// It has written for the last time.
    Dead,
}

/// A state, shared by the process that writes it and the world that flushes it.
#[derive(Clone)]
pub(crate) struct SharedState(Rc<RefCell<StateDisk>>);

impl SharedState {
    fn new() -> SharedState {
        let memory = MemoryState::new(SlotSet::all());
        SharedState(Rc::new(RefCell::new(StateDisk {
            memory,
            version_before: 0,
            written: Vec::new(),
            death: Death::No,
        })))
    }

    /// The process that writes next dies of it, or lives on after all.
    pub(crate) fn set_dying(&self, is_dying: bool) {
        self.0.borrow_mut().death = if is_dying { Death::AfterNextWrite } else { Death::No };
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.borrow().death == Death::Dead
    }

    pub(crate) fn take_written(&self) -> Vec<Written> {
        std::mem::take(&mut self.0.borrow_mut().written)
    }

    /// Flushes some of what is not flushed yet.
    pub(crate) fn flush_some(&self, random: &mut Random) {
        let memory = &mut self.0.borrow_mut().memory;
        let writes = memory.unflushed() as u64;
        // Mostly all of it; a flush may also have begun before the latest writes.
        let writes = if random.percent(70) { writes } else { random.below(writes + 1) };
        memory.flush_writes(writes as usize);
    }

    pub(crate) fn applied(&self) -> u64 {
        self.0.borrow().memory.meta().map_or(0, |meta| meta.applied)
    }

    /// All that it holds.
    pub(crate) fn held(&self) -> Held {
        let state = self.0.borrow();
        let values = state.memory.values().map(|(key, value)| (key.clone(), value.clone())).collect();
        let meta = state.memory.meta().expect("a simulated state is always readable");
        Held { meta, values, request_ids: state.memory.request_ids().collect() }
    }
}

impl StateView for SharedState {
    type Error = StorageError;

    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, StorageError> {
        self.0.borrow().memory.get(namespace, key)
    }
}

impl StateStore for SharedState {
    fn meta(&self) -> Result<ShardMeta, StorageError> {
        self.0.borrow().memory.meta()
    }

    fn requests(&self) -> Result<Vec<RequestRecord>, StorageError> {
        self.0.borrow().memory.requests()
    }

    fn write(&mut self, write_set: WriteSet) -> Result<(), StorageError> {
        let mut state = self.0.borrow_mut();
        match state.death {
            Death::No => {}
            Death::AfterNextWrite => state.death = Death::Dead,
            // A dead process writes nothing. The error ends what the world still lets it do.
            Death::Dead => {
                return Err(StorageError::Io { what: "writing", cause: "the process is dead".to_owned() });
            }
        }
        let meta = state.memory.meta()?;
        if meta.applied != write_set.meta.applied {
            state.version_before = meta.version;
        }
        let before = state.version_before;
        state.written.push(Written {
            index: write_set.meta.applied,
            chain: write_set.meta.chain,
            versions: (before, write_set.meta.version),
            values: write_set.values.clone(),
            executed: write_set.requests_added.iter().map(|record| record.id).collect(),
        });
        state.memory.write(write_set)
    }

    fn flushed(&self) -> Result<u64, StorageError> {
        self.0.borrow().memory.flushed()
    }
}
