//! Cuts: the shard's state as of one time of the hybrid clock, for whoever wants all shards as of the same time.
//!
//! A cut is an entry: one without commands, with the stamp that was asked for. The leader proposes it before the first entry
//! whose stamp would be larger. So all that it stamped before is before it in the log, and all later is behind it. When the
//! entry is applied, its shard is at that time, to the entry; that it was chosen shows that this replica led until then. An
//! entry of an earlier leader whose clock was ahead shows in shard time, and then there is no cut.
//!
//! It leaves out which time is asked for, and what is done with the state's source.

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use bytes::Bytes;
use keevee_core::apply::Entry;
use keevee_core::codec;
use keevee_core::slots::SlotSet;

use super::{Shard, Waiter};
use crate::engine::Engine;
use crate::neighbours::CLOCK_DIFFERENCE_MAX;
use crate::request::{Now, Refusal};
use crate::storage::StateStore;

/// How far ahead a cut may be asked for: more than clocks of nodes that lead may differ.
const AHEAD_MAX_MICROS: u64 = 3 * CLOCK_DIFFERENCE_MAX.as_micros() as u64;
/// Cuts that may wait in one shard.
const WAITING_MAX: usize = 16;

/// A cut that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutRequest {
    /// Comes back in the [`CutReply`].
    pub ticket: u64,
    /// The time, in microseconds since the Unix epoch: ahead of the leader's clock.
    pub time: u64,
    /// When no answer is of use any more, on the monotonic clock.
    pub deadline: Duration,
}

/// The state as of a time.
#[derive(Debug)]
pub struct Cut<S> {
    /// As it was asked for. It is shard time, too: what is to be gone by it is gone.
    pub time: u64,
    /// The slots that the shard owns.
    pub owned: SlotSet,
    /// Reads the state, whatever is written later.
    pub source: S,
}

/// Why there is no cut. Nothing has happened: it may be asked for again, with another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutRefusal {
    /// It was not to be had: this replica does not lead, or there was no room or no time.
    #[error("{0}")]
    Refused(Refusal),
    /// The shard is past this time.
    #[error("the shard's clock is at {clock} already: ask for a later time")]
    Past {
        /// The shard's clock, in microseconds since the Unix epoch.
        clock: u64,
    },
    /// The time is further ahead than any clock that counts.
    #[error("the shard's clock is at {clock}, and a cut may be at most {} seconds ahead of it", AHEAD_MAX_MICROS / 1_000_000)]
    TooFarAhead {
        /// The shard's clock, in microseconds since the Unix epoch.
        clock: u64,
    },
}

/// The answer to a [`CutRequest`].
#[derive(Debug)]
pub struct CutReply<S> {
    /// The request's ticket.
    pub ticket: u64,
    /// What became of it.
    pub result: Result<Cut<S>, CutRefusal>,
}

/// The cuts of a shard that are under way.
pub(super) struct Cuts<S> {
    /// Not proposed yet.
    waiting: Vec<CutRequest>,
    /// By the index of the entry.
    proposed: BTreeMap<u64, CutRequest>,
    replies: Vec<CutReply<S>>,
}

impl<S> Default for Cuts<S> {
    fn default() -> Cuts<S> {
        Cuts { waiting: Vec::new(), proposed: BTreeMap::new(), replies: Vec::new() }
    }
}

impl<S> Cuts<S> {
    /// True while one waits to be proposed.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// True while an answer is owed.
    pub(super) fn is_busy(&self) -> bool {
        self.is_waiting() || !self.proposed.is_empty()
    }

    fn answer(&mut self, CutRequest { ticket, .. }: CutRequest, result: Result<Cut<S>, CutRefusal>) {
        self.replies.push(CutReply { ticket, result });
    }

    /// Tells whoever asked, if there is such a request, that there is no cut.
    pub(super) fn refuse(&mut self, request: impl Into<Option<CutRequest>>, why: Refusal) {
        if let Some(request) = request.into() {
            self.answer(request, Err(CutRefusal::Refused(why)));
        }
    }

    /// There is no leader here to take them.
    pub(super) fn turn_away(&mut self, why: Refusal) {
        mem::take(&mut self.waiting).into_iter().for_each(|request| self.refuse(request, why));
    }

    /// This replica is about to be deaf.
    pub(super) fn refuse_all(&mut self, why: Refusal) {
        self.turn_away(why);
        mem::take(&mut self.proposed).into_values().for_each(|request| self.refuse(request, why));
    }

    /// An entry was proposed at an index: if there was one before, it was dropped from the log.
    pub(super) fn proposed(&mut self, index: u64, request: Option<CutRequest>) {
        let earlier = match request {
            Some(request) => self.proposed.insert(index, request),
            None => self.proposed.remove(&index),
        };
        let why = Refusal::Unavailable("leadership changed before the cut was taken");
        self.refuse(earlier, why);
    }

    /// Answers what has waited too long.
    pub(super) fn expire(&mut self, now: Duration) {
        let why = Refusal::Unavailable("the cut was not taken in time");
        let late = |request: &CutRequest| request.deadline <= now;
        let waiting: Vec<_> = self.waiting.extract_if(.., |request| late(request)).collect();
        let proposed: Vec<_> = self.proposed.extract_if(.., |_, request| late(request)).collect();
        let proposed = proposed.into_iter().map(|(_, request)| request);
        waiting.into_iter().chain(proposed).for_each(|request| self.refuse(request, why));
    }
}

impl<E: Engine, S: StateStore> Shard<E, S> {
    /// Asks for the state as of a time. Call [`Shard::advance`] afterwards, and [`Shard::take_cuts`] after each of its calls.
    pub fn cut_at(&mut self, now: Now, request: CutRequest) {
        let clock = self.clock.last();
        let refusal = if self.snapshots.is_deaf() {
            CutRefusal::Refused(Refusal::NotLeader(None))
        } else if request.time <= clock {
            CutRefusal::Past { clock: clock.max(now.wall_micros) }
        } else if request.time > clock.max(now.wall_micros).saturating_add(AHEAD_MAX_MICROS) {
            CutRefusal::TooFarAhead { clock: clock.max(now.wall_micros) }
        } else if self.cuts.waiting.len() >= WAITING_MAX {
            CutRefusal::Refused(Refusal::Unavailable("too many cuts wait in this shard"))
        } else {
            self.wake(now.monotonic);
            self.cuts.waiting.push(request);
            return;
        };
        self.cuts.answer(request, Err(refusal));
    }

    /// The cuts that were taken or refused since the last call.
    pub fn take_cuts(&mut self) -> Vec<CutReply<S::Source>> {
        mem::take(&mut self.cuts.replies)
    }

    /// True if the entry of a cut is to be proposed before any that would be stamped now.
    pub(super) fn is_cut_due(&mut self, wall_micros: u64) -> bool {
        let (clock, next) = (self.clock.last(), self.next_stamp(wall_micros));
        // An entry with a later stamp was chosen meanwhile, or proposed for another cut.
        let past: Vec<_> = self.cuts.waiting.extract_if(.., |request| request.time <= clock).collect();
        past.into_iter().for_each(|request| self.cuts.answer(request, Err(CutRefusal::Past { clock: next })));
        self.cuts.waiting.iter().any(|request| request.time <= next)
    }

    /// The first cut that is due: [`Shard::is_cut_due`] has said whether one is.
    pub(super) fn take_due_cut(&mut self, wall_micros: u64) -> Option<CutRequest> {
        let next = self.next_stamp(wall_micros);
        let due = self.cuts.waiting.iter().enumerate().filter(|(_, request)| request.time <= next);
        let (first, _) = due.min_by_key(|(_, request)| request.time)?;
        Some(self.cuts.waiting.swap_remove(first))
    }

    fn next_stamp(&self, wall_micros: u64) -> u64 {
        let mut clock = self.clock;
        clock.tick(wall_micros)
    }

    /// The entry of a cut, also as it is written; nobody waits for its commands, of which there are none.
    pub(super) fn cut_entry(&mut self, CutRequest { time, .. }: CutRequest) -> (Entry, Bytes, Vec<Waiter>) {
        self.clock.observe(time);
        let proposal = self.next_proposal;
        let payload = codec::join_entry(time, proposal, &[]);
        (Entry { stamp: time, proposal, commands: Vec::new() }, payload, Vec::new())
    }

    /// An entry is applied, and written to the state: takes the cut that it is, if it is the one that was proposed here.
    pub(super) fn take_cut(&mut self, index: u64, is_own: bool) {
        let Some(request) = self.cuts.proposed.remove(&index) else { return };
        let CutRequest { time, .. } = request;
        if !is_own {
            let why = Refusal::Unavailable("a new leader took over before the cut was taken");
            return self.cuts.refuse(request, why);
        }
        if self.meta.time > time {
            let clock = self.clock.last();
            return self.cuts.answer(request, Err(CutRefusal::Past { clock }));
        }
        match self.state.snapshot() {
            Ok(source) => {
                let owned = self.meta.owned.clone();
                self.cuts.answer(request, Ok(Cut { time, owned, source }));
            }
            // What this replica itself needs of its storage shows at its next step.
            Err(_) => self.cuts.refuse(request, Refusal::Unavailable("the state can't be read")),
        }
    }
}
