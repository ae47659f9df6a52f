//! A shard's snapshots: when one is sent, brought here, and taken over; and how much of the log is kept.
//!
//! A replica takes a snapshot over by being opened anew, as at a start: the snapshot lies beside the state in force, and one
//! write to the log puts it in force together with a log that begins behind it. A crash finds the one or the other. Between
//! that write and the new start the replica is deaf, so nothing can get between state and log.
//!
//! The log is kept for members that lack some of it while it is not too long. One to which a snapshot was sent is not cut off
//! again before it has caught up: else it might need one snapshot after the other.
//!
//! A replica that has lost its state has a log, and so its promises and votes. It is deaf until the state of another is in
//! force that its log goes on from, and then it is opened anew as well.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::Duration;

use keevee_core::ids::NodeId;
use keevee_mutants::{self as mutants, Mutant};

use super::{Failure, ReplicaMessage, Shard};
use crate::engine::{Engine, EngineStatus};
use crate::request::Refusal;
use crate::snapshot::{Answer, Progress, Receiving, Sending, SnapshotMessage};
use crate::storage::{Intake, SnapshotSource, SnapshotTarget, StateStore, StorageError};

/// Into how many parts a log of full length is divided, each of which is dropped as a whole.
const LOG_PARTS: u64 = 16;
/// How long no snapshot is fetched after one that could not be taken in: the disk may be full, or the sender of another
/// version.
const RETRIED_AFTER: Duration = Duration::from_secs(30);
/// The same after one of which something was damaged here: the next one may be whole. And of a replica that has lost its state, after
/// another that has none for it: the next one may.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What an entry counts for besides its payload.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

pub(super) struct Snapshots<S: StateStore> {
    sending: BTreeMap<NodeId, Sending<S::Source>>,
    receiving: Option<Receiving<S::Target>>,
    /// Who has what this replica lacks, and what was applied here when it said so.
    offered: Option<(NodeId, u64)>,
    /// Until then nothing is fetched.
    retry_at: Duration,
    /// Why the last one could not be taken in, until it is told.
    failed: Option<String>,
    /// Numbers this replica's requests: unlike those of its other lives.
    next_number: u64,
    /// The write that puts a snapshot in force.
    adopting: Option<u64>,
    is_adopted: bool,
    /// True if this replica has no state to go on with.
    is_lost: bool,
    log: LogLength,
}

impl<S: StateStore> Snapshots<S> {
    /// Of a log that begins at `first` and takes so many bytes.
    pub(super) fn new(boot: u64, first: u64, applied: u64, log_bytes: u64) -> Snapshots<S> {
        Snapshots {
            sending: BTreeMap::new(),
            receiving: None,
            offered: None,
            retry_at: Duration::ZERO,
            failed: None,
            next_number: boot,
            adopting: None,
            is_adopted: false,
            is_lost: false,
            log: LogLength::new(first, applied, log_bytes),
        }
    }

    pub(super) fn offered(&mut self, by: NodeId, applied: u64) {
        self.offered = Some((by, applied));
    }

    /// True while one is on its way here.
    pub(super) fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }

    pub(super) fn applied(&mut self, index: u64, payload_bytes: usize, log_bytes_max: u64) {
        self.log.add(index, payload_bytes as u64 + ENTRY_OVERHEAD_BYTES, log_bytes_max / LOG_PARTS);
    }

    /// True while a snapshot is put in force: the replica is deaf.
    pub(super) fn is_adopting(&self) -> bool {
        self.adopting.is_some() && (self.is_adopted || !mutants::is_active(Mutant::InstallRacesApply))
    }

    /// True while the engine is not to be moved: the replica says nothing, and hears of snapshots at most.
    pub(super) fn is_deaf(&self) -> bool {
        self.is_lost || self.is_adopting()
    }

    pub(super) fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// What is on its way here can't be taken in.
    fn give_up(&mut self, now: Duration, retried_after: Duration, why: String) {
        self.receiving = None;
        self.retry_at = now + retried_after;
        self.failed = Some(why);
    }

    /// Whoever was asked has nothing for a replica that has lost its state: others have their turn.
    fn ask_another(&mut self, now: Duration) {
        self.receiving = None;
        if self.is_lost {
            self.retry_at = now + ASKED_AGAIN_AFTER;
        }
    }

    pub(super) fn persisted(&mut self, token: u64) {
        self.is_adopted |= self.adopting.is_some_and(|adopting| adopting <= token);
    }
}

/// How many bytes of applied entries the log holds, in parts.
struct LogLength {
    /// The last index of each part, and its bytes.
    parts: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl LogLength {
    /// What there is at a start, as if all entries were of one size.
    fn new(first: u64, applied: u64, bytes: u64) -> LogLength {
        let before = first.saturating_sub(1);
        let end = |part: u64| before + (applied.saturating_sub(before) * part) / LOG_PARTS;
        let parts: VecDeque<_> = (1..=LOG_PARTS).map(|part| (end(part), bytes / LOG_PARTS)).collect();
        let bytes = parts.iter().map(|(_, bytes)| bytes).sum();
        LogLength { parts, bytes }
    }

    fn add(&mut self, index: u64, bytes: u64, part_bytes: u64) {
        self.bytes += bytes;
        match self.parts.back_mut() {
            Some((last, part)) if *part < part_bytes => (*last, *part) = (index, *part + bytes),
            _ => self.parts.push_back((index, bytes)),
        }
    }

    /// The log begins behind this index now.
    fn dropped(&mut self, through: u64) {
        while let Some((_, bytes)) = self.parts.pop_front_if(|(last, _)| *last <= through) {
            self.bytes -= bytes;
        }
    }

    /// The end of the parts without which it is short enough.
    fn surplus(&self, bytes_max: u64) -> Option<u64> {
        let mut left = self.bytes;
        let surplus = self.parts.iter().take_while(|(_, bytes)| {
            let is_too_long = left > bytes_max;
            left -= bytes;
            is_too_long
        });
        surplus.last().map(|(last, _)| *last)
    }
}

impl<E: Engine, S: StateStore> Shard<E, S> {
    /// The state is lost: nothing of it may be served. To be said of a replica that was just opened, by an engine that takes
    /// all below its log for applied. From now on it is deaf until it has another's: see [`Shard::offer_snapshots`].
    pub fn lose_state(&mut self) {
        self.snapshots.is_lost = true;
    }

    /// True while the state is lost, and another is not in force yet.
    pub fn is_rebuilding(&self) -> bool {
        self.snapshots.is_lost
    }

    /// Names the nodes that may have a snapshot, to a replica that has lost its state and hears nobody say so. Each time it asks, it
    /// is another one's turn.
    pub fn offer_snapshots(&mut self, by: &[NodeId]) {
        let turn = self.snapshots.next_number as usize;
        if self.snapshots.is_lost
            && !self.snapshots.is_adopting()
            && let Some(by) = by.get(turn % by.len().max(1))
        {
            self.snapshots.offered(*by, self.meta.applied);
        }
    }

    /// True if only a snapshot helps this replica, and none is on its way: see [`Shard::fetch_snapshot`].
    pub fn needs_snapshot(&self, now: Duration) -> bool {
        // Whoever offered it may lead no longer, and the log of another may have brought what was missing.
        let is_offered = self.snapshots.offered.is_some_and(|(_, applied)| applied == self.meta.applied);
        // While one is put in force another would be taken in under the same number.
        is_offered && !self.is_fetching_snapshot() && now >= self.snapshots.retry_at
    }

    /// Why a snapshot could not be taken in, once for each time. The replica goes on without it, and tries again.
    pub fn take_snapshot_failure(&mut self) -> Option<String> {
        self.snapshots.failed.take()
    }

    /// True while a snapshot is on its way here.
    pub fn is_fetching_snapshot(&self) -> bool {
        self.snapshots.receiving.is_some() || self.snapshots.is_adopting()
    }

    /// True while one that is here waits to be in force.
    pub(crate) fn is_adopting_snapshot(&self) -> bool {
        self.snapshots.is_adopting()
    }

    /// Asks for the snapshot that this replica needs. Whoever runs several replicas lets one at a time do so.
    pub fn fetch_snapshot(&mut self, now: Duration) -> Result<(), Failure> {
        let Some((from, _)) = self.snapshots.offered.take() else { return Ok(()) };
        self.wake(now);
        self.snapshots.next_number = self.snapshots.next_number.wrapping_add(1);
        match self.state.next_incarnation() {
            Ok(target) => {
                let receiving = Receiving::new(now, from, self.snapshots.next_number, target);
                self.snapshots.receiving = Some(receiving);
            }
            Err(error) => self.snapshots.give_up(now, RETRIED_AFTER, error.to_string()),
        }
        self.tick_snapshots(now)
    }

    /// Asks for the next chunk if it is due, goes on from the snapshot if all of it is there, or gives up.
    pub(super) fn tick_snapshots(&mut self, now: Duration) -> Result<(), Failure> {
        let Some(receiving) = &mut self.snapshots.receiving else { return Ok(()) };
        let EngineStatus { chosen, first, .. } = self.engine.status();
        let is_lost = self.snapshots.is_lost;
        let useless_through = if is_lost { first.saturating_sub(2) } else { chosen.max(self.meta.applied) };
        let offered_by = self.snapshots.offered.map(|(by, _)| by);
        let is_useless = receiving.index().is_some_and(|index| index <= useless_through);
        if is_useless || receiving.is_given_up(now, offered_by) {
            // The log has brought as much; or whoever has what is missing says so again.
            self.snapshots.ask_another(now);
            return Ok(());
        }
        let from = receiving.from;
        let asked = receiving.ask(now).map(|ask| (from, ReplicaMessage::Snapshot(ask)));
        self.effects.send.extend(asked);
        match receiving.target.progress() {
            Intake::Ready | Intake::Busy => {}
            Intake::Failed(error) => {
                let retried_after = if matches!(error, StorageError::Corrupt { .. }) {
                    ASKED_AGAIN_AFTER
                } else {
                    RETRIED_AFTER
                };
                self.snapshots.give_up(now, retried_after, error.to_string());
            }
            Intake::Done(incarnation) => {
                let Some((index, mark)) = receiving.end() else { return Ok(()) };
                self.snapshots.ask_another(now);
                let may_adopt = if is_lost {
                    self.engine.may_restore_snapshot(index, &mark)
                } else {
                    self.engine.may_adopt_snapshot(index, &mark)
                };
                if may_adopt {
                    let token = self.engine.adopt_snapshot(index, &mark, incarnation)?;
                    self.snapshots.adopting = Some(token);
                    self.refuse_all();
                }
            }
        }
        Ok(())
    }

    pub(super) fn receive_snapshot(
        &mut self,
        now: Duration,
        from: NodeId,
        message: SnapshotMessage,
    ) -> Result<(), Failure> {
        match message {
            SnapshotMessage::Ask { snapshot, .. }
                if self.snapshots.is_lost || !self.hashes.others().any(|member| member == from) =>
            {
                // There is no state here to send, or: it took part once, or this replica has not heard yet that it does.
                let gone = ReplicaMessage::Snapshot(SnapshotMessage::Gone { snapshot });
                self.effects.send.push((from, gone));
            }
            SnapshotMessage::Ask { snapshot, chunk } => self.send_chunk(now, from, snapshot, chunk)?,
            SnapshotMessage::Gone { snapshot } => {
                // Whoever has what is missing says so again.
                let is_this =
                    |receiving: &mut Receiving<_>| receiving.from == from && receiving.snapshot == snapshot;
                if self.snapshots.receiving.as_mut().is_some_and(is_this) {
                    self.snapshots.ask_another(now);
                }
            }
            SnapshotMessage::Chunk(chunk) => {
                let receiving = self.snapshots.receiving.as_mut().filter(|receiving| receiving.from == from);
                let Some(receiving) = receiving else { return Ok(()) };
                let rate = self.bounds.snapshot_bytes_per_second;
                match receiving.take(now, S::Source::LAYOUT, rate, chunk) {
                    Progress::Nothing => {}
                    Progress::Taken => self.tick_snapshots(now)?,
                    Progress::Unfit => {
                        let why = format!(
                            "node {from} sent a chunk that is damaged, or of another version's format: is one to be upgraded?"
                        );
                        self.snapshots.give_up(now, RETRIED_AFTER, why);
                    }
                }
            }
        }
        Ok(())
    }

    fn send_chunk(&mut self, now: Duration, to: NodeId, snapshot: u64, chunk: u64) -> Result<(), Failure> {
        let answer = match self.snapshots.sending.get_mut(&to) {
            Some(sending) if sending.snapshot() == snapshot => sending.answer(now, chunk)?,
            // It comes late, or is asked again.
            Some(sending) if sending.is_under_way(now) => Answer::Ignored,
            _ if chunk == 0 && self.meta.applied > 0 => match self.begin_sending(now, to, snapshot) {
                Ok(sending) => {
                    let first = sending.last();
                    self.snapshots.sending.insert(to, sending);
                    Answer::Chunk(first)
                }
                Err(error) if error.is_damage() => return Err(error.into()),
                // What this replica itself needs of its storage shows at its next step.
                Err(_) => Answer::Gone,
            },
            _ => Answer::Gone,
        };
        let answer = match answer {
            Answer::Chunk(chunk) => SnapshotMessage::Chunk(chunk),
            Answer::Gone => SnapshotMessage::Gone { snapshot },
            Answer::Ignored => return Ok(()),
        };
        self.effects.send.push((to, ReplicaMessage::Snapshot(answer)));
        Ok(())
    }

    fn begin_sending(
        &mut self,
        now: Duration,
        to: NodeId,
        snapshot: u64,
    ) -> Result<Sending<S::Source>, StorageError> {
        let index = self.meta.applied;
        let known = self.engine.status().acknowledged.into_iter().find(|(node, _)| *node == to);
        let acknowledged = known.map_or(0, |(_, acknowledged)| acknowledged);
        let mark = self.engine.snapshot_mark(index)?;
        let (source, chunk_bytes) = (self.state.snapshot()?, self.bounds.snapshot_chunk_bytes);
        Sending::new(now, snapshot, index, acknowledged, mark, source, chunk_bytes)
    }

    /// What waits here is answered before the replica is deaf.
    pub(super) fn refuse_all(&mut self) {
        self.turn_away(None);
        let barrier = self.barrier.take().into_iter().flat_map(|barrier| barrier.reads);
        let reads: Vec<_> = mem::take(&mut self.new_reads).into_iter().chain(barrier).collect();
        self.reads_waiting = 0;
        reads.into_iter().for_each(|request| self.refuse(request.ticket, Refusal::NotLeader(None)));
        self.look_after_held(|_| true);
        self.cuts.refuse_all(Refusal::NotLeader(None));
        self.scrubs.give_way();
        for (_, proposed) in mem::take(&mut self.proposed) {
            self.displace(proposed);
        }
    }

    /// Gives up what is on its way here, or offered.
    pub(super) fn forget_snapshots(&mut self) {
        (self.snapshots.receiving, self.snapshots.offered) = (None, None);
    }

    /// Forgets snapshots that nobody needs any more.
    pub(super) fn look_after_sent(&mut self, now: Duration) {
        if self.snapshots.sending.is_empty() {
            return;
        }
        let EngineStatus { last, acknowledged, .. } = self.engine.status();
        let acknowledged: BTreeMap<NodeId, u64> = acknowledged.into_iter().collect();
        let is_needed = |node: &NodeId, sending: &mut Sending<_>| {
            sending.is_needed(now, acknowledged.get(node).copied(), last)
        };
        self.snapshots.sending.retain(is_needed);
    }

    /// Lets the engine drop what of the log is too much.
    pub(super) fn bound_log(&mut self, now: Duration) {
        let first = self.engine.status().first;
        let snapshots = &mut self.snapshots;
        snapshots.log.dropped(first.saturating_sub(1));
        let kept_behind = snapshots.sending.values().map(Sending::needs_behind).min().unwrap_or(u64::MAX);
        if let Some(surplus) = snapshots.log.surplus(self.bounds.log_bytes_max) {
            let through = surplus.min(kept_behind);
            self.engine.compact(self.quiescence.time(now), through);
        }
    }
}
