//! Quiescence: a shard that nobody asks anything costs nothing, however many of them a node has.
//!
//! The engine of a quiesced replica is told no time: for it the clock stands still, on the leader and on its followers.
//! So it sends no heartbeats and misses none, and engines need to know nothing of it. Whatever is asked of a replica,
//! and whatever another one says to it, wakes it.
//!
//! What heartbeats were for is done once for each pair of nodes ([`crate::Neighbours`]): a follower that wakes has its
//! engine believe that it heard its leader when that leader's *node* was last heard, so that a dead leader is noticed as
//! soon as ever. Clocks decide nothing but when to look for another leader (`docs/decisions/0013-quiescence.md`).

use std::mem;
use std::time::Duration;

use keevee_core::ids::NodeId;
use keevee_mutants::{self as mutants, Mutant};

use super::{ReplicaMessage, Shard};
use crate::engine::{Engine, EngineStatus, Role};
use crate::storage::StateStore;

/// The clock of one replica's engine, which may stand still. At first it does not.
#[derive(Debug, Default)]
pub(crate) struct Quiescence {
    /// How long it stood still in all.
    stood: Duration,
    /// Since when nobody asked anything.
    idle_since: Duration,
    pause: Option<Pause>,
    /// The leader found the shard idle, and has not looked again since.
    is_due: bool,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    since: Duration,
    leader: NodeId,
    /// When the leader was last known to live.
    vouched: Duration,
}

impl Quiescence {
    /// The engine's time.
    pub(crate) fn time(&self, now: Duration) -> Duration {
        self.pause.map_or(now, |pause| pause.since).saturating_sub(self.stood)
    }

    /// The leader with whom the replica is quiesced.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.pause.map(|pause| pause.leader)
    }

    /// True if nobody has asked anything for so long.
    pub(crate) fn is_idle(&self, now: Duration, span: Duration) -> bool {
        now >= self.idle_since + span
    }

    /// Something was asked.
    pub(crate) fn note_use(&mut self, now: Duration) {
        self.idle_since = now.max(self.idle_since);
        self.is_due = false;
    }

    /// The clock stands still from now on.
    pub(crate) fn begin(&mut self, now: Duration, leader: NodeId) {
        let since = self.pause.map_or(now, |pause| pause.since);
        self.pause = Some(Pause { since, leader, vouched: now });
    }

    /// The leader lives.
    pub(crate) fn vouch(&mut self, now: Duration) {
        self.pause.iter_mut().for_each(|pause| pause.vouched = now);
    }

    /// The clock goes on, as if the leader had been heard when it was last known to live. The leader, if it stood still.
    pub(crate) fn end(&mut self) -> Option<NodeId> {
        let Pause { since, leader, vouched } = self.pause.take()?;
        self.stood += vouched - since;
        Some(leader)
    }
}

impl<E: Engine, S: StateStore> Shard<E, S> {
    /// True while the engine's clock stands still.
    pub fn is_quiesced(&self) -> bool {
        self.quiescence.leader().is_some()
    }

    /// Quiesces the shard if this replica leads it, nobody has asked anything for `idle`, and every member has
    /// everything. Not while a member's node is not known to be alive. It comes about by [`Shard::advance`].
    pub fn quiesce_if_idle(&mut self, now: Duration, idle: Duration) {
        self.quiescence.is_due = !self.is_quiesced() && self.quiescence.is_idle(now, idle);
    }

    /// After all that the engine has to say: a heartbeat behind it would wake the followers.
    pub(super) fn quiesce_if_due(&mut self, now: Duration) {
        if !mem::take(&mut self.quiescence.is_due) || self.has_work() {
            return;
        }
        let EngineStatus { role, last, chosen, acknowledged, .. } = self.engine.status();
        let others = self.hashes.others().count();
        let have_all = acknowledged.iter().filter(|(_, index)| *index == last).count();
        if role == Role::Leader && chosen == last && self.meta.applied == last && have_all == others {
            let told = self.hashes.others().map(|node| (node, ReplicaMessage::Quiesce { index: last }));
            self.effects.send.extend(told);
            self.quiescence.begin(now, self.own());
        }
    }

    /// A node is alive.
    pub fn vouch(&mut self, now: Duration, node: NodeId) {
        if self.quiescence.leader() == Some(node) {
            self.quiescence.vouch(now);
        }
    }

    /// A node was not heard for a while: wakes up if that matters here.
    pub fn missed(&mut self, now: Duration, node: NodeId) {
        if mutants::is_active(Mutant::SilenceNotNoticed) {
            return;
        }
        let leader = self.quiescence.leader();
        if leader == Some(node) || leader == Some(self.own()) && self.hashes.others().any(|one| one == node) {
            self.wake(now);
        }
    }

    /// A follower is quiesced with its leader, or says why the leader can't be.
    pub(super) fn quiesce_with(&mut self, now: Duration, leader: NodeId, index: u64) {
        let follows = self.engine.leader() == Some(leader) && leader != self.own();
        if follows && self.meta.applied == index && !self.has_work() {
            return self.quiescence.begin(now, leader);
        }
        self.wake(now);
        self.effects.send.push((leader, ReplicaMessage::Wake));
    }

    /// The engine's clock goes on, if it stood still. The leader's must too: what woke this replica may be a message that the
    /// leader sent before it came to rest.
    pub(super) fn wake(&mut self, now: Duration) {
        self.quiescence.note_use(now);
        if self.quiescence.leader() == Some(self.own()) {
            // A leader needs nobody to vouch for it.
            self.quiescence.vouch(now);
        }
        let Some(leader) = self.quiescence.end() else { return };
        if leader != self.own() {
            self.effects.send.push((leader, ReplicaMessage::Wake));
        }
    }

    /// True while anything that was asked here is open. An entry that a leader proposed before it was deposed may stay open
    /// for ever: nobody else may have it.
    fn has_work(&self) -> bool {
        self.is_busy()
            || self.expiries.has_work()
            || self.scrubs.is_asked()
            || self.engine.unsynced() > 0
            || self.snapshots.is_receiving()
            || self.is_changing_members()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: NodeId = NodeId(2);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn the_clock_stands_still_and_goes_on_from_when_the_leader_was_last_known_to_live() {
        let mut quiescence = Quiescence::default();
        assert_eq!(quiescence.time(secs(5)), secs(5));
        quiescence.begin(secs(5), LEADER);
        assert_eq!(quiescence.time(secs(90)), secs(5));
        quiescence.vouch(secs(98));
        assert_eq!(quiescence.end(), Some(LEADER));
        assert_eq!(quiescence.time(secs(100)), secs(7), "two seconds without a sign of life");
        quiescence.begin(secs(101), LEADER);
        quiescence.vouch(secs(111));
        assert_eq!(quiescence.end(), Some(LEADER));
        assert_eq!(quiescence.time(secs(111)), secs(8));
        assert_eq!(quiescence.end(), None);
    }

    #[test]
    fn beginning_twice_is_standing_still_all_along() {
        let mut quiescence = Quiescence::default();
        quiescence.begin(secs(5), LEADER);
        quiescence.begin(secs(7), LEADER);
        assert_eq!(quiescence.time(secs(9)), secs(5));
        quiescence.end();
        assert_eq!(quiescence.time(secs(9)), secs(7));
    }
}
