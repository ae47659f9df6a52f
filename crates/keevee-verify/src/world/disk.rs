//! A node's disk: the logs and the states that outlive its process, of all its shards, and what a crash does to them.
//!
//! They keep to the contracts of [`keevee_replica::storage`] and are as forgetful as those allow: a write
//! survives only once it is synced or flushed, and a submission of which half reached the disk is dropped
//! when it is read back, as a database drops a batch whose checksum fails. All logs are one to the disk: what is
//! submitted first, by whichever shard, is synced first. Where a plan has faults that strike what is on the disk, the log
//! has a journal (`journal.rs`), which says at each start what is there.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use keevee_core::apply::{ShardMeta, StateView, Take, TakeExpiry, WriteSet};
use keevee_core::command::Versioned;
use keevee_core::ids::{Incarnation, Namespace, ShardId};
use keevee_core::range::KeyRange;
use keevee_core::requests::{RequestId, RequestRecord};
use keevee_core::slots::SlotSet;
use keevee_mutants::{Mutant, is_active};
use keevee_replica::storage::{
    LogRecord, LogStore, MemoryLog, MemorySource, MemoryState, MemoryTarget, StateStore, StorageError,
};

use super::journal::{Journal, flip_bit};
use crate::oracles::Held;
use crate::plan::{DiskDamage, Unsynced};
use crate::random::Random;

/// What a node keeps when its process dies.
pub(crate) struct Disk {
    log: Arc<Mutex<LogDisk>>,
    states: Rc<RefCell<StatesDisk>>,
}

/// A submission to the log, and whose it is.
pub(crate) type Submitted = (ShardId, Vec<LogRecord>);

/// What a crash lost.
#[derive(Default)]
pub(crate) struct Damage {
    /// Submissions that were found after all, though nobody was told that they are synced.
    pub(crate) found: Vec<Submitted>,
    /// Submissions that are gone.
    pub(crate) lost: Vec<Submitted>,
    pub(crate) torn: bool,
    /// True if a file that was being made is not there.
    pub(crate) is_file_gone: bool,
}

impl Disk {
    /// An empty disk for the replicas of these shards, each with the slots that it owns.
    pub(crate) fn new(shards: impl Iterator<Item = (ShardId, SlotSet)>, journal: Option<Journal>) -> Disk {
        let states = StatesDisk { states: BTreeMap::new(), death: Death::No };
        let log = LogDisk { journal, ..LogDisk::default() };
        let disk = Disk { log: Arc::new(Mutex::new(log)), states: Rc::new(RefCell::new(states)) };
        shards.for_each(|(shard, owned)| disk.add(shard, owned));
        disk
    }

    /// At a start: reads all that is there.
    ///
    /// # Errors
    ///
    /// It can't be read or written, or it is damaged.
    pub(crate) fn open(&self) -> Result<(), StorageError> {
        lock(&self.log).open()?;
        let is_damaged = self.states.borrow().states.values().any(|state| state.is_damaged);
        if is_damaged && !is_active(Mutant::ChecksumNotChecked) {
            return Err(StorageError::Corrupt { what: "the state", cause: "a wrong checksum".to_owned() });
        }
        Ok(())
    }

    /// What is on the disk changes by itself, or will with the next write. False if there is nothing to change.
    pub(crate) fn damage(&self, damage: DiskDamage, random: &mut Random) -> bool {
        let mut log = lock(&self.log);
        let Some(journal) = &mut log.journal else { return false };
        match damage {
            DiskDamage::FlippedLog => journal.flip(),
            DiskDamage::FlippedState => self.states.borrow_mut().flip(random),
            DiskDamage::Misdirected => {
                journal.set_misdirecting(true);
                true
            }
        }
    }

    /// The next write goes where it should, if none has gone elsewhere.
    pub(crate) fn stop_misdirecting(&self) {
        lock(&self.log).journal.iter_mut().for_each(|journal| journal.set_misdirecting(false));
    }

    /// Reads of the log fail from now on, or no longer.
    pub(crate) fn set_unreadable(&self, is_unreadable: bool) {
        lock(&self.log).is_unreadable = is_unreadable;
    }

    /// True while reads of the log fail.
    pub(crate) fn is_unreadable(&self) -> bool {
        lock(&self.log).is_unreadable
    }

    /// No write finds room from now on, or each does.
    pub(crate) fn set_full(&self, is_full: bool) {
        lock(&self.log).is_full = is_full;
    }

    /// True while no write finds room.
    pub(crate) fn is_full(&self) -> bool {
        lock(&self.log).is_full
    }

    /// `log/` is slow to write out, so that the log makes a file, or no longer.
    pub(crate) fn set_slow_to_write_out(&self, is_slow: bool) {
        lock(&self.log).journal.iter_mut().for_each(|journal| journal.set_slow(is_slow));
    }

    /// True if the next sync makes a file.
    pub(crate) fn would_make_file(&self) -> bool {
        let log = lock(&self.log);
        log.journal.as_ref().is_some_and(|journal| journal.would_make_segment(log.order.len()))
    }

    /// Makes room for a shard, unless there is something of it.
    pub(crate) fn add(&self, shard: ShardId, owned: SlotSet) {
        lock(&self.log).shards.entry(shard).or_default();
        let new = || ShardState {
            memory: MemoryState::new(owned),
            version_before: 0,
            written: Vec::new(),
            is_damaged: false,
        };
        self.states.borrow_mut().states.entry(shard).or_insert_with(new);
    }

    /// The log of a shard that has a replica here.
    pub(crate) fn log(&self, shard: ShardId) -> SharedLog {
        SharedLog { disk: Arc::clone(&self.log), shard }
    }

    /// The state of a shard that has a replica here.
    pub(crate) fn state(&self, shard: ShardId) -> SharedState {
        SharedState { disk: Rc::clone(&self.states), shard }
    }

    /// Loses what a crash loses. `in_flight` submissions were being synced; a state is found as it was after
    /// any of the writes since its last flush.
    pub(crate) fn crash(&mut self, unsynced: Unsynced, in_flight: usize, random: &mut Random) -> Damage {
        let damage = lock(&self.log).crash(unsynced, in_flight, random);
        self.states.borrow_mut().crash(random);
        damage
    }

    /// How many submissions wait to be synced.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.log).order.len()
    }

    /// True if something holds of any submission that waits to be synced.
    pub(crate) fn any_waiting(&self, mut holds: impl FnMut(ShardId, &[LogRecord]) -> bool) -> bool {
        let log = lock(&self.log);
        log.shards.iter().any(|(shard, log)| log.memory.unsynced().any(|records| holds(*shard, records)))
    }

    /// Syncs the oldest submission that waits: whose it is, its token, its records.
    pub(crate) fn sync_next(&self) -> Option<(ShardId, u64, Vec<LogRecord>)> {
        lock(&self.log).sync_next()
    }

    /// Of mutants: as [`Disk::sync_next`], but the disk has nothing of it.
    pub(crate) fn sync_nothing(&self) -> Option<(ShardId, u64, Vec<LogRecord>)> {
        let mut log = lock(&self.log);
        let (shard, token, records) = log.next()?;
        log.journal.iter_mut().for_each(|journal| journal.append_nowhere((shard, records.clone())));
        Some((shard, token, records))
    }

    /// True if a write went elsewhere since the last call.
    pub(crate) fn take_misdirected(&self) -> bool {
        std::mem::take(&mut lock(&self.log).has_misdirected)
    }

    /// What a shard has submitted since the last call, and how often entries of any were read.
    pub(crate) fn take_submitted(&self, shard: ShardId) -> (Vec<LogRecord>, u64) {
        let mut log = lock(&self.log);
        (std::mem::take(&mut log.shard(shard).submitted), std::mem::take(&mut log.reads))
    }

    /// Forgets how often entries were read.
    pub(crate) fn forget_reads(&self) {
        lock(&self.log).reads = 0;
    }

    /// The process that writes next to a state dies of it, or lives on after all.
    pub(crate) fn set_dying(&self, is_dying: bool) {
        self.states.borrow_mut().death = if is_dying { Death::AfterNextWrite } else { Death::No };
    }

    /// True if the process has written to a state for the last time.
    pub(crate) fn is_dead(&self) -> bool {
        self.states.borrow().death == Death::Dead
    }
}

/// The logs of a node's shards, which share each sync.
#[derive(Default)]
struct LogDisk {
    shards: BTreeMap<ShardId, ShardLog>,
    /// Whose the submissions are that wait to be synced, oldest first.
    order: VecDeque<ShardId>,
    /// How often entries were read.
    reads: u64,
    /// Where the records lie, if that matters.
    journal: Option<Journal>,
    has_misdirected: bool,
    is_unreadable: bool,
    is_full: bool,
}

#[derive(Default)]
struct ShardLog {
    memory: MemoryLog,
    /// Submitted since the world last looked.
    submitted: Vec<LogRecord>,
}

impl LogDisk {
    fn shard(&mut self, shard: ShardId) -> &mut ShardLog {
        self.shards.get_mut(&shard).expect("a replica has a log on its disk")
    }

    fn open(&mut self) -> Result<(), StorageError> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let refuse = |what, cause: &str| Err(StorageError::Io { what, cause: cause.to_owned() });
        let mut logs = match self.is_unreadable {
            true if is_active(Mutant::ReadErrorTakenForEmpty) => BTreeMap::new(),
            true => return refuse("reading the journal", "input/output error"),
            false if self.is_full => return refuse("writing the log", "no space left on device"),
            false => journal.open()?,
        };
        for (shard, log) in &mut self.shards {
            log.memory = logs.remove(shard).unwrap_or_default();
        }
        Ok(())
    }

    /// The oldest submission that waits is synced, as far as the process knows.
    fn next(&mut self) -> Option<(ShardId, u64, Vec<LogRecord>)> {
        let shard = self.order.pop_front()?;
        let (token, records) = self.shard(shard).memory.sync_next()?;
        Some((shard, token, records))
    }

    fn sync_next(&mut self) -> Option<(ShardId, u64, Vec<LogRecord>)> {
        let (shard, token, records) = self.next()?;
        if let Some(journal) = &mut self.journal {
            self.has_misdirected |= journal.append((shard, records.clone()));
        }
        Some((shard, token, records))
    }

    fn crash(&mut self, unsynced: Unsynced, in_flight: usize, random: &mut Random) -> Damage {
        let mut damage = Damage::default();
        let found = match unsynced {
            Unsynced::Lost => 0,
            Unsynced::Kept => in_flight,
            Unsynced::Some | Unsynced::Torn => random.below(in_flight as u64 + 1) as usize,
        };
        let submission = |(shard, _, records)| (shard, records);
        damage.found.extend((0..found).filter_map(|_| self.sync_next()).map(submission));
        let mut crashed: BTreeMap<ShardId, MemoryLog> =
            self.shards.iter().map(|(shard, log)| (*shard, log.memory.crashed())).collect();
        damage.lost.extend(std::iter::from_fn(|| self.next()).map(submission));
        if let Some(journal) = &mut self.journal
            && unsynced != Unsynced::Kept
        {
            damage.is_file_gone = journal.lose_names() || journal.would_make_segment(in_flight - found);
        }
        if let (Unsynced::Torn, Some((shard, torn))) = (unsynced, damage.lost.first()) {
            damage.torn = true;
            self.journal.iter_mut().for_each(|journal| journal.append_torn((*shard, torn.clone())));
            if is_active(Mutant::TornBatchKept)
                && let Some(log) = crashed.get_mut(shard)
            {
                log.submit(torn[..torn.len().div_ceil(2)].to_vec(), 0);
                log.sync();
            }
        }
        for (shard, memory) in crashed {
            self.shard(shard).memory = memory;
        }
        damage
    }
}

fn lock(log: &Mutex<LogDisk>) -> MutexGuard<'_, LogDisk> {
    log.lock().expect("nothing panics while it holds this")
}

/// The log of a shard, shared by the process that writes it and the world that syncs it. All on one thread, but
/// openraft asks for what could be sent to another.
#[derive(Clone)]
pub(crate) struct SharedLog {
    disk: Arc<Mutex<LogDisk>>,
    shard: ShardId,
}

impl SharedLog {
    /// Does something with the log of the shard.
    fn with<T>(&self, act: impl FnOnce(&mut ShardLog) -> T) -> T {
        act(lock(&self.disk).shard(self.shard))
    }
}

impl LogStore for SharedLog {
    fn submit(&mut self, records: Vec<LogRecord>, token: u64) {
        let mut disk = lock(&self.disk);
        disk.order.push_back(self.shard);
        let log = disk.shard(self.shard);
        log.submitted.extend(records.iter().cloned());
        log.memory.submit(records, token);
    }

    fn persisted(&mut self, token: u64) {
        self.with(|log| log.memory.persisted(token));
    }

    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let mut disk = lock(&self.disk);
        disk.reads += 1;
        if disk.is_unreadable && !is_active(Mutant::ReadErrorTakenForEmpty) {
            return Err(StorageError::Io { what: "reading the log", cause: "input/output error".to_owned() });
        }
        disk.shard(self.shard).memory.read(from, to, bytes_max)
    }

    fn hard_state(&self) -> Result<Option<Bytes>, StorageError> {
        self.with(|log| log.memory.hard_state())
    }

    fn last(&self) -> Result<u64, StorageError> {
        self.with(|log| log.memory.last())
    }

    fn bytes(&self) -> Result<u64, StorageError> {
        self.with(|log| log.memory.bytes())
    }

    fn incarnation(&self) -> Result<Incarnation, StorageError> {
        self.with(|log| log.memory.incarnation())
    }
}

/// What the world sees of one write to a state.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) index: u64,
    pub(crate) chain: u128,
    /// Shard time after it.
    pub(crate) time: u64,
    /// The shard's count of mutations before the entry and after it.
    pub(crate) versions: (u64, u64),
    /// The values written.
    pub(crate) values: BTreeMap<(Namespace, Bytes), Option<Versioned>>,
    /// The requests executed.
    pub(crate) executed: Vec<RequestId>,
}

/// The states of a node's shards.
struct StatesDisk {
    states: BTreeMap<ShardId, ShardState>,
    death: Death,
}

struct ShardState {
    memory: MemoryState,
    /// The count of mutations before the last entry written.
    version_before: u64,
    /// Written since the world last looked.
    written: Vec<Written>,
    /// True if some of it is not what was written.
    is_damaged: bool,
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

impl StatesDisk {
    fn begin_write(&mut self) -> Result<(), StorageError> {
        match self.death {
            Death::No => {}
            Death::AfterNextWrite => self.death = Death::Dead,
            // A dead process writes nothing. The error ends what the world still lets it do.
            Death::Dead => {
                return Err(StorageError::Io { what: "writing", cause: "the process is dead".to_owned() });
            }
        }
        Ok(())
    }

    /// A bit of a value changes. False if there is no value, or nothing of it to change.
    fn flip(&mut self, random: &mut Random) -> bool {
        let places = |state: &ShardState| state.memory.values().map(|(place, _)| place.clone()).collect();
        let places = self.states.iter().map(|(shard, state)| (*shard, places(state)));
        let places: Vec<(ShardId, Vec<(Namespace, Bytes)>)> =
            places.filter(|(_, places): &(_, Vec<_>)| !places.is_empty()).collect();
        let Some(which) = (places.len() as u64).checked_sub(1) else { return false };
        let (shard, places) = &places[random.between(0, which) as usize];
        let place = places[random.below(places.len() as u64) as usize].clone();
        let state = self.states.get_mut(shard).expect("it was found there");
        state.flip(place, random).is_ok()
    }

    fn crash(&mut self, random: &mut Random) {
        for state in self.states.values_mut() {
            let unflushed = state.memory.unflushed();
            // A flush may also have ended right behind the last write of a process that died of it.
            if self.death == Death::Dead && random.percent(50) {
                state.memory.flush_writes(unflushed);
            } else if random.percent(30) {
                let writes = random.below(unflushed as u64 + 1);
                state.memory.flush_writes(writes as usize);
            }
            state.memory = state.memory.crashed();
            state.written.clear();
        }
        self.death = Death::No;
    }
}

/// The state of a shard, shared by the process that writes it and the world that flushes it.
#[derive(Clone)]
pub(crate) struct SharedState {
    disk: Rc<RefCell<StatesDisk>>,
    shard: ShardId,
}

impl SharedState {
    fn read<T>(&self, read: impl FnOnce(&ShardState) -> T) -> T {
        read(&self.disk.borrow().states[&self.shard])
    }

    fn change<T>(&self, change: impl FnOnce(&mut ShardState) -> T) -> T {
        let mut disk = self.disk.borrow_mut();
        change(disk.states.get_mut(&self.shard).expect("a replica has a state on its disk"))
    }

    pub(crate) fn take_written(&self) -> Vec<Written> {
        self.change(|state| std::mem::take(&mut state.written))
    }

    pub(crate) fn flush_all(&self) {
        self.change(|state| state.memory.flush());
    }

    /// Flushes some of what is not flushed yet.
    pub(crate) fn flush_some(&self, random: &mut Random) {
        self.change(|state| {
            let writes = state.memory.unflushed() as u64;
            // Mostly all of it; a flush may also have begun before the latest writes.
            let writes = if random.percent(70) { writes } else { random.below(writes + 1) };
            state.memory.flush_writes(writes as usize);
        });
    }

    /// At a start: goes on with the incarnation that the log says is in force.
    pub(crate) fn enter(&self, incarnation: Incarnation) -> Result<(), StorageError> {
        self.change(|state| state.memory.enter(incarnation))
    }

    pub(crate) fn applied(&self) -> u64 {
        self.read(|state| state.memory.meta().map_or(0, |meta| meta.applied))
    }

    /// All that it holds.
    pub(crate) fn held(&self) -> Held {
        self.read(|state| {
            let values = state.memory.values().map(|(key, value)| (key.clone(), value.clone())).collect();
            let meta = state.memory.meta().expect("a simulated state is always readable");
            Held { meta, values, request_ids: state.memory.request_ids().collect() }
        })
    }
}

impl StateView for SharedState {
    type Error = StorageError;

    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, StorageError> {
        self.read(|state| state.memory.get(namespace, key))
    }

    fn scan(&self, namespace: Namespace, range: &KeyRange, take: &mut Take<'_>) -> Result<(), StorageError> {
        self.read(|state| state.memory.scan(namespace, range, take))
    }

    fn expiries(&self, latest: u64, take: &mut TakeExpiry<'_>) -> Result<(), StorageError> {
        self.read(|state| state.memory.expiries(latest, take))
    }
}

impl StateStore for SharedState {
    type Source = MemorySource;
    type Target = MemoryTarget;

    fn meta(&self) -> Result<ShardMeta, StorageError> {
        self.read(|state| state.memory.meta())
    }

    fn requests(&self) -> Result<Vec<RequestRecord>, StorageError> {
        self.read(|state| state.memory.requests())
    }

    fn write(&mut self, write_set: WriteSet) -> Result<(), StorageError> {
        self.disk.borrow_mut().begin_write()?;
        self.change(|state| state.write(write_set))
    }

    fn flushed(&self) -> Result<u64, StorageError> {
        self.read(|state| state.memory.flushed())
    }

    fn snapshot(&self) -> Result<MemorySource, StorageError> {
        self.read(|state| state.memory.snapshot())
    }

    fn next_incarnation(&self) -> Result<MemoryTarget, StorageError> {
        self.read(|state| state.memory.next_incarnation())
    }
}

impl ShardState {
    fn flip(&mut self, place: (Namespace, Bytes), random: &mut Random) -> Result<(), StorageError> {
        let value = self.memory.get(place.0, &place.1)?.map(|mut value| {
            flip_bit(&mut value.value, random);
            value
        });
        let mut write_set = WriteSet::of_meta(self.memory.meta()?);
        write_set.values.insert(place, value);
        self.memory.write(write_set)?;
        self.memory.flush();
        self.is_damaged = true;
        Ok(())
    }

    fn write(&mut self, write_set: WriteSet) -> Result<(), StorageError> {
        let meta = self.memory.meta()?;
        if meta.applied != write_set.meta.applied {
            self.version_before = meta.version;
        }
        self.written.push(Written {
            index: write_set.meta.applied,
            chain: write_set.meta.chain,
            time: write_set.meta.time,
            versions: (self.version_before, write_set.meta.version),
            values: write_set.values.clone(),
            executed: write_set.requests_added.iter().map(|record| record.id).collect(),
        });
        self.memory.write(write_set)
    }
}
