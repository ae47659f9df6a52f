//! What a leader does to remain one, and when it gives that up: heartbeats, who answers them, silence without a quorum, and the
//! hand-over.

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_core::ids::NodeId;
use keevee_replica::Members;
use keevee_replica::storage::LogStore;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{AsyncRuntime, RaftMetrics, ServerState};
use openraft_rt_sim::SimRuntime;

use super::{GRAIN, RaftEngine};
use crate::types::{Types, ours};

/// How many of the longest election timeouts a leader without a quorum is silent. Within one somebody asks for votes, which may be
/// split, and then within another; and clocks differ, so that two would at times be too few for ever.
const SILENCES: u32 = 3;

/// A leader that is handing over.
pub(super) struct Leaving {
    term: u64,
    /// To whom, if not to whoever holds most.
    wanted: Option<NodeId>,
    told: Duration,
}

impl<L: LogStore + Send + 'static> RaftEngine<L> {
    pub(super) fn note_leadership(&mut self) {
        let term = {
            let metrics = self.metrics.borrow_watched();
            (metrics.state == ServerState::Leader).then_some(metrics.current_term)
        };
        if self.leads_since.map(|(known, _)| known) != term {
            self.leads_since = term.map(|term| (term, self.reached()));
        }
    }

    /// Whether it leads, and a quorum has told so within twice the longest timeout. Slow disks hold answers back. One whose
    /// removal is chosen leads on in openraft for a moment, to hand over.
    pub(super) fn leads(&self, metrics: &RaftMetrics<Types>) -> bool {
        let is_fresh = |unheard: Duration| unheard <= 2 * self.timing.timeout_max;
        metrics.state == ServerState::Leader && self.has_voice() && self.unheard().is_none_or(is_fresh)
    }

    /// Sends the heartbeats of a leader.
    pub(super) fn beat_if_due(&mut self) {
        if self.now < self.heartbeat_at {
            return;
        }
        self.heartbeat_at = self.now + self.timing.heartbeat;
        let raft = self.raft.clone();
        self.spawn(async move { drop(raft.trigger().heartbeat().await) });
    }

    pub(super) fn note_answer(&mut self, from: NodeId) {
        let now = self.reached();
        self.answered.insert(from, now);
        let answered = |voter: &NodeId| match *voter == self.node {
            true => now,
            false => self.answered.get(voter).copied().unwrap_or_default(),
        };
        let by_majority = |voters: &BTreeSet<NodeId>| {
            let mut times: Vec<Duration> = voters.iter().map(answered).collect();
            times.sort_unstable();
            times.get(voters.len().saturating_sub(1) / 2).copied().unwrap_or(now)
        };
        let Members { voters, next, .. } = &self.members;
        let by_quorum = by_majority(voters).min(next.as_ref().map_or(now, by_majority));
        self.quorum_answered = self.quorum_answered.max(by_quorum);
    }

    /// How long ago a member last answered an append or a heartbeat of this leader, if it has.
    fn silence(&self, member: NodeId) -> Option<Duration> {
        let (_, since) = self.leads_since?;
        let heard = self.answered.get(&member).filter(|heard| **heard > since)?;
        Some(self.reached().saturating_sub(*heard))
    }

    /// Whether a member has answered within the shortest timeout.
    fn answers(&self, member: NodeId) -> bool {
        self.silence(member).is_some_and(|silence| silence < self.timing.timeout_min)
    }

    /// Of a leader that needs others: how long no quorum has answered.
    fn unheard(&self) -> Option<Duration> {
        let (_, since) = self.leads_since.filter(|_| !self.is_alone())?;
        Some(self.reached().saturating_sub(self.quorum_answered.max(since)))
    }

    /// A leader that no quorum answers falls silent, so that those who hear it look for another; then it speaks
    /// again for as long, as they may be back.
    pub(super) fn fall_silent_or_speak(&mut self) {
        let timeout_max = self.timing.timeout_max;
        let phase = |unheard: Duration| unheard.as_nanos() / (SILENCES * timeout_max).as_nanos();
        let over = self.unheard().and_then(|unheard| unheard.checked_sub(timeout_max));
        self.exchange.be_silent(over.is_some_and(|over| phase(over) % 2 == 0));
    }

    /// Has openraft send again what was lost on the way to a member which answers once more. It would wait for answers, and
    /// then for a while, though it may take this very member for a majority to hold anything.
    ///
    /// A heartbeat is answered that was sent later than appends without an answer. A slow disk may be why, so that is done
    /// only until the member answers any append.
    pub(super) fn repeat_lost(&mut self, to: NodeId, heartbeat: u64) {
        let led = self.leads_since.map(|(_, since)| self.reached().saturating_sub(since));
        let was_silent = self.silence(to).or(led).is_some_and(|silence| silence > self.timing.timeout_min);
        if was_silent {
            self.lost.insert(to);
        }
        if !self.lost.contains(&to) {
            return;
        }
        self.exchange.appends_are_lost(to, heartbeat);
        let raft = self.raft.clone();
        self.spawn(async move {
            // Once openraft has seen the losses, and begun to wait.
            SimRuntime::sleep(GRAIN / 2).await;
            drop(raft.trigger().reset_backoff([to.0]).await);
        });
    }

    /// A leader whose disk does not answer hands over: it can apply nothing more, and so answers nobody
    /// (etcd#13527). After the shortest timeout if the disks of a quorum of others took half the time for the same: with slower ones
    /// openraft would give up their votes, and nobody lead.
    pub(super) fn leave_if_stalled(&mut self) {
        let now = self.now;
        let oldest = self.log.oldest_write();
        self.oldest_write = oldest.map(|(token, _)| match self.oldest_write {
            Some((known, since)) if known == token => (token, since),
            _ => (token, now),
        });
        // Of what is no entry nobody else has written the same.
        let is_entry = oldest.is_some_and(|(_, has_entries)| has_entries);
        let do_hold_all = is_entry && self.leads_since.is_some() && self.do_others_hold_all();
        self.others_hold_all = do_hold_all.then(|| self.others_hold_all.unwrap_or(now));
        let Some((_, since)) = self.oldest_write else { return };
        let silent = now - since;
        let is_another_faster = self.others_hold_all.is_some_and(|held| now - held >= silent / 2);
        let patience = if is_another_faster { self.timing.timeout_min } else { self.timing.timeout_max };
        if silent >= patience {
            // Once more if it leads still, so much later.
            self.oldest_write = self.oldest_write.map(|(token, _)| (token, now));
            self.hand_over(None);
        }
    }

    /// Whether a quorum that answers holds all that this leader does, without it.
    fn do_others_hold_all(&self) -> bool {
        let (metrics, last) = (self.metrics.borrow_watched(), self.log.last());
        self.members.is_quorum(|voter| {
            let matched = metrics.replication.as_ref().and_then(|matched| matched.get(&voter.0)?.as_ref());
            voter != self.node && self.answers(voter) && matched.map(ours) == last
        })
    }

    pub(super) fn hand_over(&mut self, wanted: Option<NodeId>) {
        let successor = self.successor(wanted);
        // Who is to go goes as soon as anybody answers; for one that is named nobody waits.
        if wanted.is_none() || successor.is_some() {
            self.leaving = self.leads_since.map(|(term, _)| Leaving { term, wanted, told: self.now });
        }
        if let Some(to) = successor {
            let raft = self.raft.clone();
            self.spawn(async move { drop(raft.trigger().transfer_leader(to).await) });
        }
    }

    /// Of those who may take over, the one that holds most. Who does not answer would not take over, and nobody would lead until
    /// others notice.
    fn successor(&self, wanted: Option<NodeId>) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        let may_lead = |member: u64| {
            member != self.node.0
                && self.members.is_voter(NodeId(member))
                && wanted.is_none_or(|wanted| wanted.0 == member)
                && self.answers(NodeId(member))
        };
        let others = metrics.replication.iter().flatten().filter(|(member, _)| may_lead(**member));
        others.max_by_key(|(_, matched)| **matched).map(|(member, _)| *member)
    }

    /// openraft tells the others once and proposes nothing more in this term, though the word may get lost, or come to one that
    /// lacks an entry yet.
    pub(super) fn hand_over_again(&mut self) {
        let term = self.leads_since.map(|(term, _)| term);
        self.leaving.take_if(|leaving| Some(leaving.term) != term);
        if let Some(leaving) = &mut self.leaving
            && self.now >= leaving.told + self.timing.heartbeat
        {
            leaving.told = self.now;
            let wanted = leaving.wanted;
            self.hand_over(wanted);
        }
    }
}
