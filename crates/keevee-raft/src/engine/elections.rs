//! Whether the leader is missed, and what a replica does then: it asks the others, stands for election, or lets another one do so.

use keevee_core::ids::NodeId;
use keevee_replica::storage::LogStore;
use openraft::ServerState;

use super::RaftEngine;
use crate::doubt::{Doubt, would_vote};
use crate::message::{RaftMessage, Vote};

impl<L: LogStore + Send + 'static> RaftEngine<L> {
    /// Stands for election if it has heard of no leader for long enough, once a majority says that it would vote for it.
    pub(super) fn stand_if_due(&mut self, state: ServerState) {
        let is_alone = self.is_alone() && state != ServerState::Candidate;
        if !self.has_voice() || !(is_alone || self.patience.is_over(self.now)) {
            return;
        }
        self.patience.draw(self.now);
        // openraft polls the others by itself, but not as soon after a heartbeat, which it may have seen later than this.
        if self.members.is_voter(self.node)
            && let Some(vote) = self.log.vote().filter(|vote| vote.committed && !is_alone)
            && self.now <= self.heard_leader + self.timing.timeout_max + self.timing.heartbeat
        {
            self.doubt = Some(Doubt::new(NodeId(vote.node), vote, 0, self.now, self.timing.heartbeat));
            return self.poll_if_due();
        }
        let raft = self.raft.clone();
        self.spawn(async move { drop(raft.trigger().elect(!is_alone).await) });
    }

    /// True of a follower that has not heard its leader for the shortest timeout.
    fn misses_leader(&self) -> bool {
        let is_follower = self.leads_since.is_none() && self.log.vote().is_some_and(|vote| vote.committed);
        is_follower && self.now >= self.heard_leader + self.timing.timeout_min
    }

    pub(super) fn doubt_leader(&mut self, leader: NodeId) {
        let Some(vote) = self.log.vote() else { return };
        let is_before =
            |member: &NodeId| *member < self.node && *member != leader && self.members.is_voter(*member);
        let rank = self.others().filter(is_before).count() as u32;
        self.doubt = Some(Doubt::new(leader, vote, rank, self.now, self.timing.heartbeat));
        self.poll_if_due();
    }

    /// A sign of life of the leader, with which a doubt ends.
    pub(super) fn note_sign_of_life(&mut self, from: NodeId, message: &RaftMessage) {
        if let RaftMessage::Append { vote, .. } | RaftMessage::Heartbeat { vote, .. } = message {
            self.doubt.take_if(|doubt| doubt.is_about(from));
            if self.log.vote().is_none_or(|known| vote.term >= known.term) {
                self.heard_leader = self.now;
                self.patience.renew(self.now);
            }
        }
    }

    /// The doubt, unless it is of the past: it ends with another vote too. Only a voter has any.
    fn standing_doubt(&mut self) -> Option<&mut Doubt> {
        let vote = self.log.vote().filter(|_| self.members.is_voter(self.node));
        self.doubt.take_if(|doubt| vote != Some(doubt.vote()));
        self.doubt.as_mut()
    }

    /// Asks the others whether they doubt the leader as well, or miss it.
    pub(super) fn poll_if_due(&mut self) {
        let (now, own) = (self.now, self.node);
        if !self.standing_doubt().is_some_and(|doubt| doubt.is_due(now)) {
            return;
        }
        let (call, last) = (self.exchange.number(), self.log.last());
        let Some(doubt) = &mut self.doubt else { return };
        doubt.asked(call, own);
        let vote = Vote { term: doubt.vote().term + 1, node: own.0, committed: false };
        for voter in self.others().filter(|member| self.members.is_voter(*member)) {
            let poll = RaftMessage::RequestVote { call, poll: true, vote, last, transfer: false };
            self.exchange.send(voter, poll);
        }
    }

    /// Answers a request for a vote as one in doubt, or that misses its leader, if it does: grants polls, and lets a vote pass openraft's protection
    /// of the leader. One that was removed may believe that it votes, and doubt for long.
    pub(super) fn doubtful(&mut self, from: NodeId, message: RaftMessage) -> Option<RaftMessage> {
        let own_last = self.log.last();
        if !self.members.is_voter(from) {
            return Some(message);
        }
        let RaftMessage::RequestVote { call, poll, vote, last, .. } = message else { return Some(message) };
        let Some(own) = self.log.vote().filter(|_| self.standing_doubt().is_some() || self.misses_leader())
        else {
            return Some(message);
        };
        // Else openraft tells why not.
        if !would_vote(own, vote, last, own_last) {
            return Some(message);
        }
        if !poll {
            return Some(RaftMessage::RequestVote { call, poll, vote, last, transfer: true });
        }
        if let Some(doubt) = &mut self.doubt {
            doubt.give_way();
        }
        self.patience.give_way(self.now);
        self.exchange.send(from, RaftMessage::Voted { call, vote: own, granted: true, last: own_last });
        None
    }

    pub(super) fn stand_if_granted(&mut self, from: NodeId, call: u64) {
        if self.standing_doubt().is_none() {
            return;
        }
        let members = &self.members;
        if self.doubt.as_mut().is_some_and(|doubt| doubt.granted(call, from, members)) {
            let raft = self.raft.clone();
            self.patience.draw(self.now);
            self.spawn(async move { drop(raft.trigger().elect(false).await) });
        }
    }
}
