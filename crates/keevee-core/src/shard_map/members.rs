//! Replicas that move from node to node: which moves bring about what an operator wants, and how the map tells of them.
//!
//! The map names for each shard who holds it and, while that changes, who shall ([`ShardInfo::next`]). The shard's leader
//! brings it about; then the map is told that it is done. One change at a time for each shard.
//!
//! It leaves out how a shard's replicas change (`keevee-replica`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::change::{ChangeError, checked};
use super::placement::{loads, place_replicas};
use super::{SYSTEM_MEMBERS_MAX, ShardInfo, ShardMap};
use crate::ids::{NodeId, ShardId};

/// With so many members the system shard does without a replica for which there is no other node.
const SYSTEM_MEMBERS_ENOUGH: usize = 3;

/// A replica that goes from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Move {
    /// Of which shard.
    pub shard: ShardId,
    /// Who gives it up; nobody, if there shall be one more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeId>,
    /// Who gets it; nobody, if there shall be one fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
}

/// How a node gives up what it holds.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    /// Who gets what it does not hold already; the rest goes to nodes that hold the fewest.
    pub with: Option<NodeId>,
    /// Replicas for which there is no other node are given up.
    pub fewer_replicas: bool,
    /// These do not answer, and get something only if nobody else can.
    pub unreachable: BTreeSet<NodeId>,
}

impl ShardInfo {
    /// True of a node that holds a replica, or is about to.
    pub fn is_on(&self, node: NodeId) -> bool {
        self.members.contains(&node) || self.next.iter().flatten().any(|next| *next == node)
    }

    /// Who shall hold it once what is under way is done.
    pub fn wanted(&self) -> &[NodeId] {
        self.next.as_deref().unwrap_or(&self.members)
    }
}

impl ShardMap {
    /// Where the replicas of a node may go. The system shard does without one for which there is no other node, while it has
    /// many.
    ///
    /// # Errors
    ///
    /// There is no such node; a shard of it is changing already; or its replicas have nowhere to go.
    pub fn moves_off(&self, node: NodeId, leaving: &Leaving) -> Result<Vec<Move>, ChangeError> {
        for named in leaving.with.iter().chain([&node]) {
            self.node(*named).ok_or(ChangeError::UnknownNode(*named))?;
        }
        if leaving.with == Some(node) {
            return Err(ChangeError::Itself(node));
        }
        let mut next = self.clone();
        let mut moves = Vec::new();
        let on = self.shards.iter().filter(|shard| shard.wanted().contains(&node));
        for shard in on {
            let with = leaving.with.filter(|with| !shard.wanted().contains(with));
            let rest = shard.wanted().len() - 1;
            // A newcomer of which there are enough without it is only left out.
            let is_one_more = !shard.members.contains(&node) && rest >= shard.members.len();
            let place = || next.place_one_more(shard, &leaving.unreachable);
            let to = if is_one_more { with } else { with.or_else(place) };
            // It is on up to five nodes, of which three are enough.
            let is_many = shard.id == ShardId::SYSTEM && rest >= SYSTEM_MEMBERS_ENOUGH;
            let is_spare = is_one_more || is_many || leaving.fewer_replicas && rest > 0;
            if to.is_none() && !is_spare {
                let shard = shard.id;
                return Err(match rest {
                    0 => ChangeError::LastReplica { shard, node },
                    _ => ChangeError::NowhereToGo { shard, node },
                });
            }
            let one = Move { shard: shard.id, from: Some(node), to };
            next = next.move_replicas(&[one])?;
            // For the next shard's choice it is as if this one had moved.
            next = next.end_change(shard.id)?;
            moves.push(one);
        }
        Ok(moves)
    }

    /// Who may get one more replica of a shard: whoever is about to give one up, else of those that were not drained the one that
    /// holds the fewest.
    fn place_one_more(&self, shard: &ShardInfo, unreachable: &BTreeSet<NodeId>) -> Option<NodeId> {
        let is_free = |node: &NodeId| !shard.wanted().contains(node);
        let mut stayers = shard.members.iter().copied().filter(is_free);
        if let Some(stays) = stayers.find(|node| !unreachable.contains(node)) {
            return Some(stays);
        }
        let nodes = self.nodes.iter().map(|node| node.id);
        let free: BTreeSet<NodeId> =
            nodes.filter(|node| is_free(node) && !self.drained.contains(node)).collect();
        let place = |free: &mut dyn Iterator<Item = NodeId>| {
            // The system shard is nearly idle, and counts for nothing.
            let (replicas, _) = loads(free, self.data_shards().map(|data| &data.members));
            place_replicas(&replicas, shard.id, 1).and_then(|nodes| nodes.first().copied())
        };
        let reachable = place(&mut free.difference(unreachable).copied());
        reachable.or_else(|| place(&mut free.iter().copied()))
    }

    /// Which replicas go to a node that has fewer than others, so that all hold equally many, to within one. Before that, data
    /// shards with fewer than `replicas_min` replicas get one more there. The system shard gets one more if it has fewer than it
    /// may have.
    ///
    /// # Errors
    ///
    /// There is no such node, or the members of a shard that it does not hold are changing already.
    pub fn moves_onto(&self, node: NodeId, replicas_min: usize) -> Result<Vec<Move>, ChangeError> {
        self.node(node).ok_or(ChangeError::UnknownNode(node))?;
        // What is under way leaves open who holds how much.
        if let Some(shard) = self.shards.iter().find(|shard| shard.next.is_some() && !shard.is_on(node)) {
            return Err(ChangeError::Changing(shard.id));
        }
        let mut next = self.clone();
        let mut moves = Vec::new();
        let system = next.shards.first().filter(|system| {
            let count = system.members.len();
            !system.is_on(node) && count < SYSTEM_MEMBERS_MAX && count < next.nodes.len()
        });
        moves.extend(system.map(|system| Move { shard: system.id, from: None, to: Some(node) }));
        let has_too_few = |shard: &&ShardInfo| {
            shard.next.is_none() && !shard.is_on(node) && shard.members.len() < replicas_min
        };
        let poor: Vec<ShardId> = self.data_shards().filter(has_too_few).map(|shard| shard.id).collect();
        for shard in poor {
            let one = Move { shard, from: None, to: Some(node) };
            next = next.move_replicas(&[one])?.end_change(shard)?;
            moves.push(one);
        }
        loop {
            let nodes = next.nodes.iter().map(|node| node.id);
            let (replicas, _) = loads(nodes, next.data_shards().map(|data| &data.members));
            // Those with the most give first.
            let may_move = |shard: &&ShardInfo| shard.next.is_none() && !shard.is_on(node);
            let candidates = next
                .data_shards()
                .filter(may_move)
                .flat_map(|shard| shard.members.iter().map(move |from| (shard.id, *from)));
            let best = candidates.max_by_key(|(shard, from)| (replicas[from], std::cmp::Reverse(*shard)));
            let Some((shard, from)) = best.filter(|(_, from)| replicas[from] > replicas[&node] + 1) else {
                return Ok(moves);
            };
            let one = Move { shard, from: Some(from), to: Some(node) };
            next = next.move_replicas(&[one])?.end_change(shard)?;
            moves.push(one);
        }
    }

    /// With these moves under way.
    ///
    /// # Errors
    ///
    /// A shard is unknown or changing already, who gives a replica up has none, or who gets one has one.
    pub fn move_replicas(&self, moves: &[Move]) -> Result<ShardMap, ChangeError> {
        let mut next = self.next();
        for &Move { shard, from, to } in moves {
            let at = next.shards.iter().position(|info| info.id == shard);
            let info = &mut next.shards[at.ok_or(ChangeError::UnknownShard(shard))?];
            // Who was to come and is lost may be left out, or another come instead: the change goes on to that.
            let is_newcomer = from.is_some_and(|node| info.is_on(node) && !info.members.contains(&node));
            if info.next.is_some() && !is_newcomer {
                return Err(ChangeError::Changing(shard));
            }
            if let Some(node) = from.filter(|node| !info.wanted().contains(node)) {
                return Err(ChangeError::HoldsNone { shard, node });
            }
            if let Some(node) = to.filter(|node| info.wanted().contains(node)) {
                return Err(ChangeError::HoldsIt { shard, node });
            }
            let kept = info.wanted().iter().copied().filter(|member| Some(*member) != from);
            info.next = Some(kept.chain(to).collect());
        }
        checked(next)
    }

    /// With a shard's members as they shall be: the change is done.
    pub fn end_change(&self, shard: ShardId) -> Result<ShardMap, ChangeError> {
        let mut next = self.next();
        let at = next.shards.iter().position(|info| info.id == shard);
        let info = &mut next.shards[at.ok_or(ChangeError::UnknownShard(shard))?];
        if let Some(members) = info.next.take() {
            info.members = members;
            info.changes += 1;
        }
        checked(next)
    }

    /// With a node to which nothing goes until it is added again, or with one that is.
    #[must_use]
    pub fn with_drained(mut self, node: NodeId, is_drained: bool) -> ShardMap {
        match is_drained {
            true => self.drained.insert(node),
            false => self.drained.remove(&node),
        };
        self
    }

    /// Without a node that holds nothing. Its number is not given again: whoever has not heard that it is gone would take
    /// another folder for it.
    pub fn remove_node(&self, node: NodeId) -> Result<ShardMap, ChangeError> {
        self.node(node).ok_or(ChangeError::UnknownNode(node))?;
        if let Some(shard) = self.shards.iter().find(|shard| shard.is_on(node)) {
            return Err(ChangeError::StillHolds { node, shard: shard.id });
        }
        let mut next = self.next();
        next.nodes.retain(|info| info.id != node);
        next.drained.remove(&node);
        next.removed.insert(node);
        checked(next)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::change::{Placement, ShardSpec};
    use super::super::{Consensus, NodeInfo};
    use super::*;
    use crate::ids::StoreId;

    fn node(id: u64) -> NodeInfo {
        let (peer, http) = (format!("p:{id}"), format!("h:{id}"));
        NodeInfo { id: NodeId(id), store: StoreId(Uuid::from_u128(id.into())), peer, http, resp: None }
    }

    fn spec(replicas: usize) -> ShardSpec {
        let placement = Placement::Spread { replicas };
        ShardSpec { name: None, load_factor: 1, consensus: Consensus::Paxos, placement }
    }

    fn map(nodes: u64, shards: usize) -> ShardMap {
        ShardMap::bootstrap((1..=nodes).map(node).collect(), Consensus::Paxos, &vec![spec(3); shards])
            .unwrap()
    }

    fn done(map: &ShardMap, moves: &[Move]) -> ShardMap {
        let map = map.move_replicas(moves).unwrap();
        moves.iter().fold(map, |map, one| map.end_change(one.shard).unwrap())
    }

    fn replicas(map: &ShardMap, node: u64) -> usize {
        map.data_shards().filter(|shard| shard.members.contains(&NodeId(node))).count()
    }

    #[test]
    fn a_new_node_gets_its_share() {
        let map = map(3, 4).add_node(node(4)).unwrap();
        let moves = map.moves_onto(NodeId(4), 1).unwrap();
        assert_eq!(moves[0], Move { shard: ShardId::SYSTEM, from: None, to: Some(NodeId(4)) });
        let map = done(&map, &moves);
        assert_eq!((1..=4).map(|node| replicas(&map, node)).collect::<Vec<_>>(), [3, 3, 3, 3]);
        assert!(map.data_shards().all(|shard| shard.members.len() == 3 && shard.changes <= 1));
        assert_eq!(map.moves_onto(NodeId(4), 1), Ok(vec![]), "it has its share");
    }

    #[test]
    fn a_new_node_gets_a_replica_of_each_shard_that_has_too_few() {
        let mut map = ShardMap::bootstrap(vec![node(1)], Consensus::Paxos, &vec![spec(1); 4]).unwrap();
        for id in 2..=4 {
            map = map.add_node(node(id)).unwrap();
            let moves = map.moves_onto(NodeId(id), 3).unwrap();
            map = done(&map, &moves);
        }
        assert!(map.data_shards().all(|shard| shard.members.len() == 3), "no more than asked for");
        assert_eq!((1..=4).map(|node| replicas(&map, node)).collect::<Vec<_>>(), [3, 3, 3, 3]);
    }

    #[test]
    fn a_drained_node_holds_nothing_and_may_be_removed() {
        let map = map(5, 5);
        let refused = map.remove_node(NodeId(2));
        assert!(matches!(refused, Err(ChangeError::StillHolds { node: NodeId(2), .. })), "{refused:?}");
        // The system shard is on all five.
        let moves = map.moves_off(NodeId(2), &Leaving::default()).unwrap();
        assert_eq!(moves[0], Move { shard: ShardId::SYSTEM, from: Some(NodeId(2)), to: None });
        let map = done(&map, &moves);
        let held: Vec<usize> = [1, 3, 4, 5].map(|node| replicas(&map, node)).into();
        assert_eq!((replicas(&map, 2), held.iter().sum::<usize>()), (0, 15));
        assert!(held.iter().all(|held| (3..=4).contains(held)), "{held:?}");
        let map = map.remove_node(NodeId(2)).unwrap();
        assert!(map.node(NodeId(2)).is_none());
        assert_eq!(map.set_node(node(2)), Err(ChangeError::Removed(NodeId(2))), "its number is gone with it");
    }

    #[test]
    fn replicas_with_nowhere_to_go_stay() {
        let map = map(3, 1);
        let nowhere = Err(ChangeError::NowhereToGo { shard: ShardId::SYSTEM, node: NodeId(1) });
        assert_eq!(map.moves_off(NodeId(1), &Leaving::default()), nowhere);
    }

    #[test]
    fn one_node_takes_the_place_of_another() {
        let map = map(3, 2).add_node(node(4)).unwrap();
        let with = Leaving { with: Some(NodeId(4)), ..Leaving::default() };
        let moves = map.moves_off(NodeId(1), &with).unwrap();
        assert_eq!(moves.len(), 3, "with the system shard");
        let changing = map.move_replicas(&moves).unwrap();
        for shard in &changing.shards {
            assert!(shard.is_on(NodeId(1)) && shard.is_on(NodeId(4)), "both until it is done");
            let again = changing.move_replicas(&[Move { shard: shard.id, from: Some(NodeId(2)), to: None }]);
            assert_eq!(again, Err(ChangeError::Changing(shard.id)));
            // The newcomer is lost: without it.
            let without = Move { shard: shard.id, from: Some(NodeId(4)), to: None };
            let without = changing.move_replicas(&[without]).unwrap();
            let wanted = without.shard(shard.id).unwrap().wanted().to_vec();
            assert!(!wanted.contains(&NodeId(4)) && !wanted.contains(&NodeId(1)), "{wanted:?}");
        }
        let map = done(&map, &moves);
        assert!(map.shards.iter().all(|shard| !shard.is_on(NodeId(1)) && shard.is_on(NodeId(4))));
        let nowhere = Err(ChangeError::NowhereToGo { shard: ShardId::SYSTEM, node: NodeId(2) });
        assert_eq!(map.with_drained(NodeId(1), true).moves_off(NodeId(2), &with), nowhere, "it holds them");
    }

    #[test]
    fn what_the_replacement_holds_already_goes_elsewhere() {
        let map = map(5, 5);
        let with = Leaving { with: Some(NodeId(4)), ..Leaving::default() };
        let moves = map.moves_off(NodeId(2), &with).unwrap();
        for Move { shard, from, to } in &moves {
            let held = map.shard(*shard).unwrap().is_on(NodeId(4));
            assert_eq!(*from, Some(NodeId(2)));
            assert_eq!(*to == Some(NodeId(4)), !held, "shard {shard}");
        }
        assert!(moves.iter().any(|one| one.to == Some(NodeId(4))), "{moves:?}");
        let data = |one: &&Move| one.shard != ShardId::SYSTEM;
        assert!(moves.iter().filter(data).any(|one| one.to.is_some_and(|to| to != NodeId(4))), "{moves:?}");
        let itself = Leaving { with: Some(NodeId(2)), ..Leaving::default() };
        assert_eq!(map.moves_off(NodeId(2), &itself), Err(ChangeError::Itself(NodeId(2))));
    }

    #[test]
    fn nothing_goes_to_a_drained_node_or_to_one_that_does_not_answer() {
        let map = map(5, 5);
        let moves = map.moves_off(NodeId(2), &Leaving::default()).unwrap();
        let map = done(&map, &moves).with_drained(NodeId(2), true);
        let leaving = Leaving { unreachable: [NodeId(3)].into(), ..Leaving::default() };
        let moves = map.moves_off(NodeId(4), &leaving).unwrap();
        let mut targets = moves.iter().filter_map(|one| one.to);
        assert!(targets.clone().count() > 0);
        // Node 3 gets what nodes 1 and 5 hold already.
        assert!(targets.all(|to| to != NodeId(2)), "{moves:?}");
        for one in moves.iter().filter(|one| one.to == Some(NodeId(3))) {
            let info = map.shard(one.shard).unwrap();
            assert!(info.is_on(NodeId(1)) && info.is_on(NodeId(5)), "{one:?}");
        }
        let spec = ShardSpec { load_factor: 0, ..spec(4) };
        assert!(!map.add_shard(&spec).unwrap().shards[6].is_on(NodeId(2)));
        let again = map.moves_onto(NodeId(2), 1).unwrap();
        let map = done(&map, &again).with_drained(NodeId(2), false);
        assert!(replicas(&map, 2) >= 2 && map.drained.is_empty(), "it is added again");
    }

    #[test]
    fn without_a_lost_newcomer_who_was_to_go_stays() {
        let map = map(3, 1).add_node(node(4)).unwrap();
        let lost = Leaving { unreachable: [NodeId(4)].into(), ..Leaving::default() };
        let with = Leaving { with: Some(NodeId(4)), ..Leaving::default() };
        let changing = map.move_replicas(&map.moves_off(NodeId(2), &with).unwrap()).unwrap();
        assert!(
            matches!(changing.moves_onto(NodeId(3), 1), Ok(moves) if moves.is_empty()),
            "it holds all of them"
        );
        let later = changing.add_node(node(5)).unwrap().moves_onto(NodeId(5), 1);
        assert_eq!(later, Err(ChangeError::Changing(ShardId::SYSTEM)));
        let back = changing.moves_off(NodeId(4), &lost).unwrap();
        assert!(back.iter().all(|one| one.to == Some(NodeId(2))), "{back:?}");
        let map = done(&changing, &back);
        assert!(map.shards.iter().all(|shard| !shard.is_on(NodeId(4)) && shard.members.len() == 3));
        // One more is only left out, also where there is but one.
        for mut map in [map, ShardMap::bootstrap(vec![node(1)], Consensus::Paxos, &[spec(1)]).unwrap()] {
            if map.node(NodeId(4)).is_none() {
                map = map.add_node(node(4)).unwrap();
            }
            let more = map.moves_onto(NodeId(4), 4).unwrap();
            assert!(more.iter().all(|one| one.from.is_none()) && more.len() == 2, "{more:?}");
            let changing = map.move_replicas(&more).unwrap();
            let out = changing.moves_off(NodeId(4), &lost).unwrap();
            assert!(out.iter().all(|one| one.to.is_none()) && out.len() == 2, "{out:?}");
            let after = done(&changing, &out);
            let members =
                |map: &ShardMap| map.shards.iter().map(|shard| shard.members.clone()).collect::<Vec<_>>();
            assert_eq!(members(&after), members(&map));
        }
    }

    #[test]
    fn a_move_of_what_is_not_there_is_refused() {
        let map = map(4, 1);
        let outside = (1..=4).map(NodeId).find(|node| !map.shards[1].is_on(*node)).unwrap();
        let from_outside = Move { shard: ShardId(1), from: Some(outside), to: None };
        let refused = map.move_replicas(&[from_outside]);
        assert_eq!(refused, Err(ChangeError::HoldsNone { shard: ShardId(1), node: outside }));
        let unknown = Move { shard: ShardId(1), from: None, to: Some(NodeId(9)) };
        assert!(matches!(map.move_replicas(&[unknown]), Err(ChangeError::Invalid(_))));
    }
}
