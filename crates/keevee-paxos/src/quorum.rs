//! Which sets of nodes decide.
//!
//! Safety asks one thing only of a quorum system: every phase-1 quorum meets every phase-2 quorum
//! (Howard, Malkhi, Spiegelman: Flexible Paxos, 2016). Everything else here is policy.

use std::collections::BTreeSet;

use crate::ballot::NodeId;

/// The nodes of a group, and which sets of them are quorums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuorumSystem {
    /// More than half, in both phases.
    Majority(BTreeSet<NodeId>),
    /// A majority of the old members and a majority of the new ones, in both phases.
    Joint {
        /// The members before the change.
        old: BTreeSet<NodeId>,
        /// The members after it.
        new: BTreeSet<NodeId>,
    },
    /// Quorums by count, with `phase1 + phase2 > members`. For tests: production uses majorities.
    Flexible {
        /// The members.
        members: BTreeSet<NodeId>,
        /// How many promises phase 1 needs.
        phase1: usize,
        /// How many acceptances phase 2 needs.
        phase2: usize,
    },
}

/// Who takes part from some index on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Those that decide.
    pub quorum: QuorumSystem,
    /// They get everything, and decide nothing.
    pub learners: BTreeSet<NodeId>,
}

impl Configuration {
    /// Without learners.
    pub fn of(quorum: QuorumSystem) -> Configuration {
        Configuration { quorum, learners: BTreeSet::new() }
    }

    /// Everybody, in order.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.quorum.members().union(&self.learners).copied().collect()
    }
}

impl QuorumSystem {
    /// Majorities of these nodes.
    pub fn majority(members: impl IntoIterator<Item = NodeId>) -> QuorumSystem {
        QuorumSystem::Majority(members.into_iter().collect())
    }

    /// Quorums by count.
    ///
    /// # Panics
    ///
    /// If a phase-1 quorum could miss a phase-2 quorum.
    pub fn flexible(members: impl IntoIterator<Item = NodeId>, phase1: usize, phase2: usize) -> QuorumSystem {
        let members: BTreeSet<NodeId> = members.into_iter().collect();
        assert!(phase1 + phase2 > members.len(), "quorums of the two phases must intersect");
        QuorumSystem::Flexible { members, phase1, phase2 }
    }

    /// Every node that takes part, in order.
    pub fn members(&self) -> BTreeSet<NodeId> {
        match self {
            QuorumSystem::Majority(members) | QuorumSystem::Flexible { members, .. } => members.clone(),
            QuorumSystem::Joint { old, new } => old.union(new).copied().collect(),
        }
    }

    /// True of a node that takes part.
    pub fn has(&self, node: NodeId) -> bool {
        match self {
            QuorumSystem::Majority(members) | QuorumSystem::Flexible { members, .. } => {
                members.contains(&node)
            }
            QuorumSystem::Joint { old, new } => old.contains(&node) || new.contains(&node),
        }
    }

    /// True if the nodes for which `holds` is true are enough to elect a leader.
    pub fn is_phase1_quorum(&self, holds: impl Fn(NodeId) -> bool) -> bool {
        match self {
            QuorumSystem::Flexible { members, phase1, .. } => count(members, &holds) >= *phase1,
            _ => self.is_majority(&holds),
        }
    }

    /// True if the nodes for which `holds` is true are enough to choose a value.
    pub fn is_phase2_quorum(&self, holds: impl Fn(NodeId) -> bool) -> bool {
        match self {
            QuorumSystem::Flexible { members, phase2, .. } => count(members, &holds) >= *phase2,
            _ => self.is_majority(&holds),
        }
    }

    fn is_majority(&self, holds: &impl Fn(NodeId) -> bool) -> bool {
        let majority = |members: &BTreeSet<NodeId>| count(members, holds) > members.len() / 2;
        match self {
            QuorumSystem::Majority(members) | QuorumSystem::Flexible { members, .. } => majority(members),
            QuorumSystem::Joint { old, new } => majority(old) && majority(new),
        }
    }
}

fn count(members: &BTreeSet<NodeId>, holds: &impl Fn(NodeId) -> bool) -> usize {
    members.iter().filter(|node| holds(**node)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_more_than_half() {
        let three = QuorumSystem::majority([1, 2, 3]);
        assert!(!three.is_phase1_quorum(|node| node == 1));
        assert!(three.is_phase1_quorum(|node| node <= 2));
        let four = QuorumSystem::majority([1, 2, 3, 4]);
        assert!(!four.is_phase2_quorum(|node| node <= 2));
        assert!(four.is_phase2_quorum(|node| node <= 3));
    }

    #[test]
    fn strangers_do_not_count() {
        assert!(!QuorumSystem::majority([1, 2, 3]).is_phase2_quorum(|node| node >= 3));
    }

    #[test]
    fn a_joint_quorum_needs_a_majority_of_both_sides() {
        let joint = QuorumSystem::Joint { old: [1, 2, 3].into(), new: [3, 4, 5].into() };
        assert!(!joint.is_phase2_quorum(|node| node <= 3));
        assert!(!joint.is_phase2_quorum(|node| node >= 3));
        assert!(joint.is_phase2_quorum(|node| [2, 3, 4].contains(&node)));
        assert_eq!(joint.members(), [1, 2, 3, 4, 5].into());
    }

    #[test]
    fn flexible_quorums_differ_by_phase() {
        let flexible = QuorumSystem::flexible([1, 2, 3, 4], 3, 2);
        assert!(!flexible.is_phase1_quorum(|node| node <= 2));
        assert!(flexible.is_phase2_quorum(|node| node <= 2));
    }

    /// The one thing that safety asks of a quorum system, for every pair of sets of five nodes.
    #[test]
    fn quorums_of_the_two_phases_intersect() {
        let systems = [
            QuorumSystem::majority(1..=5),
            QuorumSystem::majority(1..=4),
            QuorumSystem::Joint { old: [1, 2, 3].into(), new: [3, 4, 5].into() },
            QuorumSystem::Joint { old: [1].into(), new: [2, 3, 4, 5].into() },
            QuorumSystem::flexible(1..=5, 4, 2),
            QuorumSystem::flexible(1..=5, 2, 4),
        ];
        for system in systems {
            for (one, two) in (0..32_u64).flat_map(|one| (0..32_u64).map(move |two| (one, two))) {
                let phase1 = system.is_phase1_quorum(|node| one >> (node - 1) & 1 == 1);
                let phase2 = system.is_phase2_quorum(|node| two >> (node - 1) & 1 == 1);
                assert!(!phase1 || !phase2 || one & two != 0, "{system:?}: {one:b} misses {two:b}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "must intersect")]
    fn flexible_quorums_must_intersect() {
        QuorumSystem::flexible([1, 2, 3, 4], 2, 2);
    }
}
