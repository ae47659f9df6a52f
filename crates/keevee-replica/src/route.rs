//! Where a command goes: to a replica of this node, to the leader elsewhere, or nowhere until somebody leads.
//!
//! One hop at most: whoever is asked carries the command out or refuses, and tells who leads if it knows. Only the node
//! that a client sent it to tries again.
//!
//! It leaves out which shard a key belongs to (the shard map's to say), how nodes are reached, and how often and how long
//! it is tried ([`crate::Attempts`] says when an answer is final).

use keevee_core::error::ErrorKind;
use keevee_core::ids::NodeId;

/// What a node knows of a shard when it decides where a command goes.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// This node.
    pub own: NodeId,
    /// Who holds a replica. As in every shard map, somebody does.
    pub members: &'a [NodeId],
    /// Who leads, as the own replica says, or as others have told where there is none.
    pub leader: Option<NodeId>,
}

impl Route<'_> {
    /// True if this node holds a replica.
    pub fn hosts(&self) -> bool {
        self.members.contains(&self.own)
    }

    /// Whom to ask after so many attempts in vain. `None`: nobody until this node's replica knows a leader. Of a shard
    /// without a replica here nobody tells of one: its members are asked in turn.
    pub fn asked(&self, attempted: usize) -> Option<NodeId> {
        match self.leader {
            Some(leader) => Some(leader),
            None if self.hosts() => None,
            None => Some(self.members[attempted % self.members.len()]),
        }
    }

    /// True if this node's replica carries the command out, where `asked` shall: a replica reads by itself, by asking
    /// the leader for the index alone.
    pub fn is_here(&self, asked: NodeId, is_read: bool) -> bool {
        asked == self.own || is_read && self.hosts()
    }
}

/// What a node heard from whom it forwarded to, as far as it tells who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It carried the command out.
    Served,
    /// It refused, and says who leads if it knows.
    Refused(ErrorKind, Option<NodeId>),
    /// It was not reached, or did not answer.
    Nothing,
}

impl Heard {
    /// Who leads after this, as far as a node knows that has no replica of its own: from whom it asked, and whom it took
    /// for the leader when the answer came. Others may have told it of a new one since it asked.
    pub fn leader(self, asked: NodeId, known: Option<NodeId>) -> Option<NodeId> {
        let known_meanwhile = known.filter(|known| *known != asked);
        match self {
            Heard::Served => Some(asked),
            Heard::Refused(ErrorKind::NotLeader, leader) => leader.or(known_meanwhile),
            Heard::Refused(..) => known,
            Heard::Nothing => known_meanwhile,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: &[NodeId] = &[NodeId(1), NodeId(2), NodeId(3)];

    fn route(own: u64, leader: Option<u64>) -> Route<'static> {
        Route { own: NodeId(own), members: MEMBERS, leader: leader.map(NodeId) }
    }

    #[test]
    fn a_known_leader_is_asked_at_every_attempt() {
        for own in [1, 2, 9] {
            let asked = (0..4).map(|attempted| route(own, Some(2)).asked(attempted));
            assert!(asked.into_iter().all(|asked| asked == Some(NodeId(2))), "node {own}");
        }
    }

    #[test]
    fn without_a_leader_a_member_waits_and_others_ask_all_members_in_turn() {
        assert_eq!(route(1, None).asked(0), None);
        let asked: Vec<_> = (0..4).filter_map(|attempted| route(9, None).asked(attempted)).collect();
        assert_eq!(asked, [1, 2, 3, 1].map(NodeId));
    }

    #[test]
    fn only_a_member_reads_by_itself() {
        let leader = NodeId(2);
        let here = |own, is_read| route(own, Some(2)).is_here(leader, is_read);
        assert!(here(2, false) && here(2, true), "the leader");
        assert!(!here(1, false) && here(1, true), "a follower");
        assert!(!here(9, false) && !here(9, true), "a node without a replica");
    }

    #[test]
    fn who_leads_is_learned_from_who_serves_and_who_refuses() {
        let (asked, known) = (NodeId(1), Some(NodeId(1)));
        let hint = Some(NodeId(3));
        assert_eq!(Heard::Served.leader(asked, None), Some(asked));
        assert_eq!(Heard::Refused(ErrorKind::NotLeader, hint).leader(asked, known), hint);
        assert_eq!(Heard::Refused(ErrorKind::NotLeader, None).leader(asked, known), None);
        assert_eq!(Heard::Refused(ErrorKind::Unavailable, None).leader(asked, known), known, "it may lead");
        assert_eq!(Heard::Nothing.leader(asked, known), None);
    }

    #[test]
    fn a_leader_that_was_learned_meanwhile_is_not_forgotten() {
        let meanwhile = Some(NodeId(2));
        for heard in [Heard::Nothing, Heard::Refused(ErrorKind::NotLeader, None)] {
            assert_eq!(heard.leader(NodeId(1), meanwhile), meanwhile, "{heard:?}");
        }
    }
}
