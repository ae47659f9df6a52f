//! What a follower does when the connection to its leader is reset, and the leader's process has probably died; or when it has
//! not heard the leader for as long as it is patient.
//!
//! openraft's followers protect a leader until the longest election timeout after its last heartbeat, whatever else they know.
//! A follower in doubt does not: it asks the others whether they doubt as well, and stands for election once a majority
//! does; and it grants the polls and votes of others. The next sign of life of the leader ends the doubt. Nothing of
//! this is about safety: who may be elected is decided by votes and logs as ever.

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_core::ids::NodeId;
use keevee_replica::Members;

use crate::message::{LogId, Vote};

/// A doubt about one leader.
#[derive(Clone, Debug)]
pub(crate) struct Doubt {
    leader: NodeId,
    /// What this replica had voted for: with another vote the doubt is of the past.
    vote: Vote,
    /// When to ask the others.
    poll_at: Option<Duration>,
    /// The poll's number, and who has granted it.
    poll: Option<(u64, BTreeSet<NodeId>)>,
}

impl Doubt {
    /// About the leader of this vote. The voters ask one after the other, so that they do not split the votes.
    pub(crate) fn new(
        leader: NodeId,
        vote: Vote,
        own_rank: u32,
        now: Duration,
        heartbeat: Duration,
    ) -> Doubt {
        Doubt { leader, vote, poll_at: Some(now + own_rank * heartbeat / 2), poll: None }
    }

    /// What this replica had voted for when it began.
    pub(crate) fn vote(&self) -> Vote {
        self.vote
    }

    /// True if a message from this node ends the doubt.
    pub(crate) fn is_about(&self, node: NodeId) -> bool {
        self.leader == node
    }

    /// Whether to ask the others now: once.
    pub(crate) fn is_due(&mut self, now: Duration) -> bool {
        self.poll_at.take_if(|at| *at <= now).is_some()
    }

    /// Another one has asked first: this one asks no more, unless it loses its patience.
    pub(crate) fn give_way(&mut self) {
        self.poll_at = None;
    }

    /// The others were asked.
    pub(crate) fn asked(&mut self, call: u64, own: NodeId) {
        self.poll = Some((call, [own].into()));
    }

    /// A node granted a poll: true if that makes a majority of the poll under way; in the middle of a change, both.
    pub(crate) fn granted(&mut self, call: u64, node: NodeId, members: &Members) -> bool {
        let Some((_, granted)) = self.poll.as_mut().filter(|(own, _)| *own == call) else { return false };
        let has_majority = |granted: &BTreeSet<NodeId>| members.is_quorum(|voter| granted.contains(&voter));
        let had_majority = has_majority(granted);
        granted.insert(node);
        !had_majority && has_majority(granted)
    }
}

/// Whether a candidate could be voted for by who has this vote and this end of the log.
pub(crate) fn would_vote(
    own: Vote,
    wanted: Vote,
    candidates_last: Option<LogId>,
    last: Option<LogId>,
) -> bool {
    wanted.term > own.term && candidates_last >= last
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTE: Vote = Vote { term: 3, node: 2, committed: true };

    #[test]
    fn a_majority_is_told_of_once_and_late_grants_are_of_another_poll() {
        let mut doubt = Doubt::new(NodeId(2), VOTE, 1, Duration::from_secs(1), Duration::from_millis(100));
        assert!(!doubt.is_due(Duration::from_millis(1049)));
        assert!(doubt.is_due(Duration::from_millis(1050)));
        assert!(!doubt.is_due(Duration::from_millis(1051)), "once");
        let members = Members::of_voters((1..=5).map(NodeId));
        doubt.asked(7, NodeId(1));
        assert!(!doubt.granted(6, NodeId(3), &members));
        assert!(!doubt.granted(7, NodeId(3), &members));
        assert!(!doubt.granted(7, NodeId(3), &members), "the same again");
        assert!(!doubt.granted(7, NodeId(6), &members), "no voter");
        assert!(doubt.granted(7, NodeId(4), &members));
        assert!(!doubt.granted(7, NodeId(5), &members), "it stands already");
    }

    #[test]
    fn in_the_middle_of_a_change_both_majorities_count() {
        let mut doubt = Doubt::new(NodeId(2), VOTE, 0, Duration::ZERO, Duration::from_millis(100));
        let next = Some([3, 4, 5].map(NodeId).into());
        let members = Members { next, ..Members::of_voters([1, 2, 3].map(NodeId)) };
        doubt.asked(7, NodeId(1));
        assert!(!doubt.granted(7, NodeId(3), &members), "one of the next");
        assert!(doubt.granted(7, NodeId(4), &members));
    }

    #[test]
    fn only_a_higher_term_with_as_long_a_log_is_voted_for() {
        let id = |term, index| Some(LogId { term, index });
        let wanted = |term| Vote { term, node: 1, committed: false };
        assert!(would_vote(VOTE, wanted(4), id(3, 7), id(3, 7)));
        assert!(!would_vote(VOTE, wanted(3), id(3, 7), id(3, 7)));
        assert!(!would_vote(VOTE, wanted(4), id(2, 9), id(3, 7)));
    }
}
