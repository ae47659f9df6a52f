//! Who takes part in a shard, and how it gets from one set of voters to another.
//!
//! A change goes through the shard's log, in steps that each leave a sound configuration behind: newcomers are learners
//! first, which get everything and decide nothing; once they have nearly all of it, majorities of the old and the new
//! voters decide together (Ongaro 2014, section 4.3); then the new ones alone. Whoever leads looks at what is in force and
//! takes the next step, so a change that is half done goes on after any crash.
//!
//! It leaves out how an engine makes a step safe, and who wants the change: the shard map says so.

use std::collections::BTreeSet;

use keevee_core::ids::NodeId;
use keevee_mutants::{self as mutants, Mutant};

/// Who takes part in a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// A majority of them decides.
    pub voters: BTreeSet<NodeId>,
    /// In the middle of a change a majority of these decides as well: the voters after it.
    pub next: Option<BTreeSet<NodeId>>,
    /// They get everything and decide nothing.
    pub learners: BTreeSet<NodeId>,
}

impl Members {
    /// Voters, and no change under way.
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Members {
        Members { voters: voters.into_iter().collect(), next: None, learners: BTreeSet::new() }
    }

    /// Everybody who takes part, in order.
    pub fn all(&self) -> BTreeSet<NodeId> {
        let next = self.next.iter().flatten();
        self.voters.iter().chain(next).chain(&self.learners).copied().collect()
    }

    /// True if the nodes for which `holds` is true decide.
    pub fn is_quorum(&self, holds: impl Fn(NodeId) -> bool) -> bool {
        let is_majority =
            |nodes: &BTreeSet<NodeId>| nodes.iter().filter(|node| holds(**node)).count() > nodes.len() / 2;
        is_majority(&self.voters) && self.next.as_ref().is_none_or(is_majority)
    }

    /// True of one whose vote counts.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.next.as_ref().is_some_and(|next| next.contains(&node))
    }
}

/// What a leader does for its shard to have the voters that it shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: it has them.
    Done,
    /// Nothing yet: learners are behind.
    Wait,
    /// These are to be in force next.
    Propose(Members),
    /// Leadership goes to this member, which stays.
    HandOver(NodeId),
}

/// The next step from what is in force to the voters wanted, at the leader. `has_caught_up` tells of a member whether it
/// has nearly everything; `gave_back` is one that was given leadership for this and could not keep it.
pub(crate) fn next_step(
    members: &Members,
    wanted: &BTreeSet<NodeId>,
    own: NodeId,
    gave_back: Option<NodeId>,
    has_caught_up: impl Fn(NodeId) -> bool,
) -> Step {
    let successor = |nodes: &BTreeSet<NodeId>| {
        let mut others = nodes.iter().copied().filter(|node| Some(*node) != gave_back);
        others.find(|node| has_caught_up(*node))
    };
    if let Some(next) = &members.next {
        // What is half done is finished first, whatever is wanted by now. The old voters get nothing more.
        let alone = Members::of_voters(next.iter().copied());
        return match successor(next).filter(|_| !next.contains(&own)) {
            Some(successor) => Step::HandOver(successor),
            None if next.contains(&own) || gave_back.is_some() => Step::Propose(alone),
            None => Step::Wait,
        };
    }
    let newcomers: BTreeSet<NodeId> = wanted.difference(&members.voters).copied().collect();
    if newcomers != members.learners {
        return Step::Propose(Members { learners: newcomers, ..members.clone() });
    }
    if *wanted == members.voters || wanted.is_empty() {
        return Step::Done;
    }
    if !newcomers.iter().all(|node| has_caught_up(*node)) {
        return Step::Wait;
    }
    let staying: BTreeSet<NodeId> = wanted.intersection(&members.voters).copied().collect();
    match successor(&staying).filter(|_| !wanted.contains(&own)) {
        Some(successor) => Step::HandOver(successor),
        None if mutants::is_active(Mutant::JointSkipped) => {
            Step::Propose(Members::of_voters(wanted.iter().copied()))
        }
        None => Step::Propose(Members {
            voters: members.voters.clone(),
            next: Some(wanted.clone()),
            learners: BTreeSet::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes<const N: usize>(nodes: [u64; N]) -> BTreeSet<NodeId> {
        nodes.map(NodeId).into()
    }

    /// The steps that leaders take one after the other, of which the first is node 1.
    fn steps<const N: usize, const M: usize>(from: [u64; N], to: [u64; M]) -> (Vec<Members>, NodeId) {
        let (mut members, mut leader, mut seen) = (Members::of_voters(nodes(from)), NodeId(1), Vec::new());
        loop {
            match next_step(&members, &nodes(to), leader, None, |_| true) {
                Step::Propose(next) => members = next,
                Step::HandOver(to) => leader = to,
                Step::Done => return (seen, leader),
                Step::Wait => panic!("all have caught up"),
            }
            seen.push(members.clone());
            assert!(seen.len() < 10, "it comes to an end: {seen:?}");
        }
    }

    #[test]
    fn a_node_is_added_as_a_learner_first() {
        let (seen, _) = steps([1, 2, 3], [1, 2, 3, 4]);
        let old = Members::of_voters(nodes([1, 2, 3]));
        let expected = [
            Members { learners: nodes([4]), ..old.clone() },
            Members { next: Some(nodes([1, 2, 3, 4])), ..old },
            Members::of_voters(nodes([1, 2, 3, 4])),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_leader_that_goes_hands_over_first() {
        let (seen, leader) = steps([1, 2, 3], [2, 3, 4]);
        assert_eq!(leader, NodeId(2));
        assert_eq!(seen.last(), Some(&Members::of_voters(nodes([2, 3, 4]))));
    }

    #[test]
    fn all_voters_may_go_at_once() {
        let (seen, leader) = steps([1], [2, 3]);
        assert!(nodes([2, 3]).contains(&leader));
        assert_eq!(seen.last(), Some(&Members::of_voters(nodes([2, 3]))));
    }

    #[test]
    fn learners_that_are_behind_are_waited_for() {
        let members = Members { learners: nodes([4]), ..Members::of_voters(nodes([1, 2, 3])) };
        let wanted = nodes([1, 2, 4]);
        let step = |behind: u64| next_step(&members, &wanted, NodeId(1), None, |node| node != NodeId(behind));
        assert_eq!(step(4), Step::Wait);
        assert!(matches!(step(3), Step::Propose(_)), "nobody waits for one that goes");
    }

    #[test]
    fn what_is_half_done_is_finished_before_anything_else() {
        let half = Members { next: Some(nodes([2, 3])), ..Members::of_voters(nodes([1, 2])) };
        let step = |own: u64| next_step(&half, &nodes([7]), NodeId(own), None, |node| node == NodeId(3));
        assert_eq!(step(2), Step::Propose(Members::of_voters(nodes([2, 3]))));
        assert_eq!(step(1), Step::HandOver(NodeId(3)));
    }

    #[test]
    fn a_leader_to_whom_leadership_comes_back_goes_on_by_itself() {
        let pair = Members { learners: nodes([3]), ..Members::of_voters(nodes([1, 2])) };
        let step = |members: &Members, gave_back: Option<u64>| {
            next_step(members, &nodes([2, 3]), NodeId(1), gave_back.map(NodeId), |_| true)
        };
        assert_eq!(step(&pair, None), Step::HandOver(NodeId(2)));
        let joint = Members { next: Some(nodes([2, 3])), ..Members::of_voters(nodes([1, 2])) };
        assert_eq!(step(&pair, Some(2)), Step::Propose(joint.clone()));
        assert_eq!(step(&joint, Some(2)), Step::HandOver(NodeId(3)));
    }

    #[test]
    fn a_learner_that_is_not_wanted_any_more_goes() {
        let members = Members { learners: nodes([4]), ..Members::of_voters(nodes([1, 2, 3])) };
        let step = next_step(&members, &members.voters, NodeId(1), None, |_| true);
        assert_eq!(step, Step::Propose(Members::of_voters(nodes([1, 2, 3]))));
    }
}
