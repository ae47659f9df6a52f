//! Replicas compare what they have applied: the chain hash at every 64th index. Those that differ from a
//! majority have diverged, whatever the cause, and must stop rather than answer.

use std::collections::{BTreeMap, BTreeSet};

use keevee_core::ids::NodeId;

/// How many entries lie between two comparisons.
const INTERVAL: u64 = 64;
/// How many comparisons are kept open for replicas that are behind.
const OPEN_MAX: usize = 64;

/// A replica's chain hash at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainHash {
    /// The applied index.
    pub index: u64,
    /// The hash there.
    pub chain: u128,
}

pub(crate) struct Hashes {
    own: NodeId,
    members: BTreeSet<NodeId>,
    open: BTreeMap<u64, BTreeMap<NodeId, u128>>,
}

impl Hashes {
    pub(crate) fn new(own: NodeId, members: BTreeSet<NodeId>) -> Hashes {
        Hashes { own, members, open: BTreeMap::new() }
    }

    /// Others take part now.
    pub(crate) fn set_members(&mut self, members: BTreeSet<NodeId>) {
        self.open.values_mut().for_each(|votes| votes.retain(|node, _| members.contains(node)));
        self.members = members;
    }

    /// The own hash after an entry, if it is time to compare it: to be noted here and told to the others.
    pub(crate) fn due(index: u64, chain: u128) -> Option<ChainHash> {
        index.is_multiple_of(INTERVAL).then_some(ChainHash { index, chain })
    }

    /// Notes a hash. The index at which this replica differs from what a majority agrees on, if it does.
    pub(crate) fn note(&mut self, from: NodeId, hash: ChainHash) -> Option<u64> {
        if !self.members.contains(&from) {
            return None;
        }
        self.open.entry(hash.index).or_default().insert(from, hash.chain);
        while self.open.len() > OPEN_MAX {
            self.open.pop_first();
        }
        let votes = self.open.get(&hash.index)?;
        let own = votes.get(&self.own)?;
        let agree = |chain: &u128| votes.values().filter(|other| *other == chain).count();
        let differs = votes.values().any(|chain| chain != own && agree(chain) > self.members.len() / 2);
        differs.then_some(hash.index)
    }

    /// Every other member.
    pub(crate) fn others(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().copied().filter(|node| *node != self.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: ChainHash = ChainHash { index: 64, chain: 7 };

    fn hashes() -> Hashes {
        Hashes::new(NodeId(1), [NodeId(1), NodeId(2), NodeId(3)].into())
    }

    #[test]
    fn only_every_64th_index_is_told() {
        let told: Vec<u64> = (1..=130).filter(|index| Hashes::due(*index, 7).is_some()).collect();
        assert_eq!(told, [64, 128]);
    }

    #[test]
    fn a_replica_that_differs_from_a_majority_knows() {
        let mut hashes = hashes();
        assert_eq!(hashes.note(NodeId(1), OWN), None);
        assert_eq!(hashes.note(NodeId(2), ChainHash { index: 64, chain: 8 }), None);
        assert_eq!(hashes.note(NodeId(3), ChainHash { index: 64, chain: 8 }), Some(64));
    }

    #[test]
    fn a_replica_that_agrees_with_one_is_right() {
        let mut hashes = hashes();
        assert_eq!(hashes.note(NodeId(1), OWN), None);
        assert_eq!(hashes.note(NodeId(2), ChainHash { index: 64, chain: 8 }), None);
        assert_eq!(hashes.note(NodeId(3), ChainHash { index: 64, chain: 7 }), None);
    }

    #[test]
    fn hashes_that_come_early_are_compared_later() {
        let mut hashes = hashes();
        hashes.note(NodeId(2), ChainHash { index: 64, chain: 8 });
        assert_eq!(hashes.note(NodeId(3), ChainHash { index: 64, chain: 8 }), None);
        assert_eq!(hashes.note(NodeId(1), OWN), Some(64));
    }
}
