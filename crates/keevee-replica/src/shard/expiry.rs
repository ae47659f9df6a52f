//! Keys that expire, as far as clocks come in: they decide when shard time moves on, and nothing else.
//!
//! What is shown goes by shard time alone ([`keevee_core::apply`]). But a linearizable read must not show what is due by
//! the clock of the node that serves it: it is held until shard time has come so far. The leader proposes an entry
//! without commands for it, whose stamp moves shard time; a follower asks the leader to
//! ([`ReplicaMessage::AdvanceTime`]), who does so, or says that by its own clock nothing is due yet
//! ([`ReplicaMessage::TimeNotCome`]): then the read is served as it is. A read that may be stale waits for nothing.
//!
//! Keys that are gone are removed by a command that the leader adds to an entry now and then: to one of clients if
//! there is one, so that it costs no sync of its own, else to one of its own. Each removes a bounded number.
//!
//! A node whose clock is off ([`crate::Neighbours`]) draws no stamps and hands leadership over. It may win an election, as
//! engines know of no clocks; it proposes nothing then. Not here: what is shown and what is removed
//! (`docs/decisions/0014-expiry.md`).

use std::mem;
use std::ops::ControlFlow;

use keevee_core::apply::{self, Entry, ShardMeta, StateView, WriteSet};
use keevee_core::command::{Action, Command, OperationResult, Outcome};
use keevee_core::ids::NodeId;
use keevee_mutants::{self as mutants, Mutant};

use super::{ReplicaMessage, Shard};
use crate::engine::Engine;
use crate::request::{Now, Refusal, Reply, Request};
use crate::storage::{StateStore, StorageError};

/// Keys that one removal removes at most: so many that removals keep up, so few that no command waits long behind one.
pub(crate) const REMOVAL_KEYS: u32 = 256;

/// What one replica knows of expiries, and what waits for them.
#[derive(Debug, Default)]
pub(crate) struct Expiries {
    /// No key of the state expires before this.
    first: u64,
    /// The next entry removes keys that are gone.
    is_removal_due: bool,
    /// Shard time shall come so far, for this replica's own reads if it leads, or for those of others.
    wanted: Option<u64>,
    /// Who asked that it come how far.
    asked: Vec<(NodeId, u64)>,
    held: Vec<HeldRead>,
}

/// A read that would show what is due.
#[derive(Debug)]
struct HeldRead {
    request: Request,
    /// The clock when it could have been served: what is due later may be shown.
    as_of: u64,
    /// It is served once shard time has come so far.
    until: u64,
}

impl Expiries {
    /// Of a state that was just opened.
    pub(crate) fn open<S: StateView>(state: &S) -> Result<Expiries, S::Error> {
        Ok(Expiries { first: first_expiry(state)?, ..Expiries::default() })
    }

    /// How many reads wait.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// True while there is something to do for this replica.
    pub(crate) fn has_work(&self) -> bool {
        !self.held.is_empty() || self.is_removal_due || self.wanted.is_some() || !self.asked.is_empty()
    }

    /// This replica does not lead: whoever wants something asks the leader.
    pub(crate) fn forget_wishes(&mut self) {
        (self.is_removal_due, self.wanted) = (false, None);
        self.asked.clear();
    }

    /// Notes that shard time shall come so far.
    fn want(&mut self, time: u64) {
        self.wanted = self.wanted.max(Some(time));
    }

    /// Another replica asks that shard time come so far.
    pub(crate) fn ask(&mut self, from: NodeId, to: u64) {
        self.asked.push((from, to));
    }

    /// What the next entry removes, if anything is due.
    pub(crate) fn take_removal(&mut self) -> Option<Command> {
        let removal = || Command::single(Action::RemoveExpired { limit: REMOVAL_KEYS });
        mem::take(&mut self.is_removal_due).then(removal)
    }

    /// An entry changed the state.
    pub(crate) fn applied(&mut self, write_set: &WriteSet) {
        if write_set.meta.expiring == 0 {
            self.first = u64::MAX;
            return;
        }
        let first = write_set.expiries_added().map(|(expires, _)| expires).min();
        self.first = self.first.min(first.unwrap_or(u64::MAX));
    }

    /// What became of an entry of this replica's own: if a removal found as many keys as it may remove, there are more.
    pub(crate) fn answered(&mut self, outcomes: &[Outcome]) {
        if let Some(Outcome::Done(results)) = outcomes.last()
            && let [OperationResult::RemovedExpired { removed }] = results[..]
        {
            self.is_removal_due |= removed == REMOVAL_KEYS.into();
        }
    }

    /// Takes out the reads whose deadline has come.
    pub(crate) fn take_late(&mut self, is_late: impl Fn(&Request) -> bool) -> Vec<Request> {
        self.held.extract_if(.., |held| is_late(&held.request)).map(|held| held.request).collect()
    }
}

fn first_expiry<S: StateView>(state: &S) -> Result<u64, S::Error> {
    let mut first = u64::MAX;
    state.expiries(u64::MAX, &mut |expires, _| {
        first = expires;
        ControlFlow::Break(())
    })?;
    Ok(first)
}

/// True if an entry removes keys.
fn removes(entry: &Entry) -> bool {
    let of_removal = |command: &Command| matches!(command.operations[..], [ref one] if matches!(one.action, Action::RemoveExpired { .. }));
    entry.commands.last().is_some_and(of_removal)
}

/// The latest expiry up to a time of what an outcome shows.
fn shown_until(outcome: &Outcome, latest: u64) -> Option<u64> {
    let Outcome::Done(results) = outcome else { return None };
    let expiries = results.iter().flat_map(|result| match result {
        OperationResult::Value(Some(value)) => vec![value.expires],
        OperationResult::Scanned { keys, .. } => keys.iter().map(|key| key.value.expires).collect(),
        _ => Vec::new(),
    });
    expiries.flatten().filter(|expires| *expires <= latest).max()
}

impl<E: Engine, S: StateStore> Shard<E, S> {
    /// Has keys removed that are due by the clock, if this replica leads. Call it a few times per second, of a quiesced
    /// replica less often, and [`Shard::advance`] afterwards.
    pub fn look_after_expiries(&mut self, now: Now) -> Result<(), StorageError> {
        let due = now.wall_micros.max(self.meta.time);
        if self.expiries.first > due {
            return Ok(());
        }
        if mutants::is_active(Mutant::RemovalNotInLog) {
            self.remove_here(due)?;
        }
        self.expiries.first = first_expiry(&self.state)?;
        let leads = self.engine.leader() == Some(self.own()) && !self.is_clock_off;
        let is_under_way = self.proposed.values().any(|proposed| removes(&proposed.entry));
        if leads && self.expiries.first <= due && !is_under_way {
            self.wake(now.monotonic);
            self.expiries.is_removal_due = true;
        }
        Ok(())
    }

    /// What [`Mutant::RemovalNotInLog`] does.
    fn remove_here(&mut self, due: u64) -> Result<(), StorageError> {
        let mut gone = WriteSet::of_meta(self.meta.clone());
        self.state.expiries(due, &mut |expires, place| {
            gone.values.insert(place.clone(), None);
            gone.expiries_removed.push((expires, place));
            ControlFlow::Continue(())
        })?;
        gone.meta.expiring -= gone.values.len() as u64;
        self.meta = gone.meta.clone();
        self.state.write(gone)
    }

    /// Notes whether this node's clock is off: then it draws no stamps, and hands leadership over. Call it when that
    /// changes, and a few times per second while it is so; [`Shard::advance`] afterwards.
    pub fn mind_clock(&mut self, now: Now, is_off: bool) {
        self.is_clock_off = is_off;
        if is_off && self.engine.leader() == Some(self.own()) {
            self.transfer_leadership(now.monotonic, None);
        }
    }

    /// True if an entry is due even if no command waits.
    pub(super) fn is_entry_due(&mut self, wall_micros: u64) -> bool {
        if self.expiries.is_removal_due {
            return true;
        }
        let Some(wanted) = self.expiries.wanted else { return false };
        let on_its_way = self.proposed.last_key_value().map_or(0, |(_, proposed)| proposed.entry.stamp);
        let is_due = wanted > self.meta.time.max(on_its_way) && wanted <= wall_micros;
        if !is_due {
            self.expiries.wanted = None;
        }
        is_due
    }

    /// Takes in what replicas, this one too, asked of the leader, if that is still this one.
    pub(super) fn take_asked(&mut self, wall_micros: u64) -> Result<(), StorageError> {
        let leads = self.engine.leader() == Some(self.own()) && !self.is_clock_off;
        for (node, to) in mem::take(&mut self.expiries.asked).into_iter().filter(|_| leads) {
            if to <= wall_micros {
                self.expiries.want(to);
            } else if node == self.own() {
                // Its clock went back meanwhile.
                self.serve_not_due(to)?;
            } else {
                self.effects.send.push((node, ReplicaMessage::TimeNotCome { to }));
            }
        }
        Ok(())
    }

    /// By the leader's clock nothing is due that expires at a time or later: reads that wait for it are served as things
    /// are.
    pub(super) fn serve_not_due(&mut self, to: u64) -> Result<(), StorageError> {
        let early: Vec<HeldRead> = self.expiries.held.extract_if(.., |held| held.until >= to).collect();
        early.into_iter().try_for_each(|held| self.serve_read(held.request, None))
    }

    /// Answers a read that may be served: at once, or when shard time has come as far as the clock `as_of`, if it would
    /// show what is due by then.
    pub(super) fn serve_read(&mut self, request: Request, as_of: Option<u64>) -> Result<(), StorageError> {
        let outcome = apply::read(&self.state, &self.meta, &request.command)?;
        if let Some(as_of) = as_of
            && mutants::is_active(Mutant::ExpiryByOwnClock)
        {
            let meta = ShardMeta { time: as_of.max(self.meta.time), ..self.meta.clone() };
            let result = Ok(apply::read(&self.state, &meta, &request.command)?);
            self.effects.replies.push(Reply { ticket: request.ticket, result });
            return Ok(());
        }
        if let Some(as_of) = as_of
            && self.expiries.first <= as_of
            && self.meta.time < as_of
        {
            let meta = ShardMeta { time: as_of, ..self.meta.clone() };
            if apply::read(&self.state, &meta, &request.command)? != outcome {
                let until = shown_until(&outcome, as_of).unwrap_or(as_of);
                self.expiries.held.push(HeldRead { request, as_of, until });
                self.ask_for_time(until);
                return Ok(());
            }
        }
        self.effects.replies.push(Reply { ticket: request.ticket, result: Ok(outcome) });
        Ok(())
    }

    /// Serves the reads that waited for shard time.
    pub(super) fn serve_held(&mut self) -> Result<(), StorageError> {
        let time = self.meta.time;
        let ready: Vec<HeldRead> = self.expiries.held.extract_if(.., |held| held.until <= time).collect();
        ready.into_iter().try_for_each(|held| self.serve_read(held.request, Some(held.as_of)))
    }

    /// Refuses the reads that have waited too long, and asks again for those that wait on.
    pub(super) fn look_after_held(&mut self, is_late: impl Fn(&Request) -> bool) {
        for request in self.expiries.take_late(is_late) {
            self.refuse(request.ticket, Refusal::Unavailable("shard time did not come far enough in time"));
        }
        if let Some(until) = self.expiries.held.iter().map(|held| held.until).min() {
            self.ask_for_time(until);
        }
    }

    fn ask_for_time(&mut self, to: u64) {
        match self.engine.leader() {
            Some(leader) if leader == self.own() => self.expiries.ask(leader, to),
            Some(leader) => self.effects.send.push((leader, ReplicaMessage::AdvanceTime { to })),
            // It is asked again.
            None => {}
        }
    }
}
