//! The shards of a world: the map that says who owns a key, and of each shard its members, what its log holds, and
//! the oracles that watch it. What must hold of a shard holds of each by itself.
//!
//! It leaves out how slots move, which nothing does yet: an earlier map is only what a node may still know. How members
//! change is in `members.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Index, IndexMut};
use std::rc::Rc;

use bytes::Bytes;
use keevee_core::ids::{NodeId, ShardId, StoreId};
use keevee_core::shard_map::change::{Placement, ShardSpec};
use keevee_core::shard_map::{Consensus, NodeInfo, ShardInfo, ShardMap};
use keevee_core::slot_table::SlotTable;
use keevee_core::slots::SlotSet;
use keevee_replica::Members;
use uuid::Uuid;

use crate::oracles::Oracles;
use crate::plan::{EngineKind, Plan};

/// One shard: a group of nodes with replicas of it.
pub(crate) struct Group {
    pub(crate) id: ShardId,
    /// The first members, which know each other from the start.
    pub(crate) founders: BTreeSet<u64>,
    /// Who shall take part.
    pub(crate) members: BTreeSet<u64>,
    /// True until maps say so.
    pub(crate) is_changing: bool,
    /// For how long after the change those who have gone do not hear of it.
    pub(crate) lingers: u64,
    /// Who holds a replica: also those that take part until a change is done, and until they hear of that.
    pub(crate) hosts: BTreeSet<u64>,
    pub(crate) owned: SlotSet,
    pub(crate) oracles: Oracles,
    /// The requests that each chosen entry holds.
    pub(crate) placed: BTreeMap<u64, Vec<u64>>,
    /// What the oracle of progress writes.
    pub(crate) progress_key: Bytes,
    /// What is written and read through every node in the end.
    pub(crate) visited_key: Bytes,
}

/// All shards.
pub(crate) struct Groups {
    groups: Vec<Group>,
    /// The map in force.
    pub(crate) map: Rc<ShardMap>,
    /// The one before it, of an earlier epoch.
    pub(crate) earlier_map: Rc<ShardMap>,
}

impl Groups {
    pub(crate) fn new(plan: &Plan) -> Groups {
        let (map, earlier_map) = maps(plan);
        let groups = map.data_shards().map(|shard| {
            let members: BTreeSet<u64> = shard.members.iter().map(|node| node.0).collect();
            Group {
                id: shard.id,
                owned: map.slots.slots_of(shard.id),
                oracles: Oracles::new(plan, &Members::of_voters(shard.members.iter().copied())),
                founders: members.clone(),
                hosts: members.clone(),
                members,
                is_changing: false,
                lingers: 0,
                placed: BTreeMap::new(),
                progress_key: key_in(&map, shard.id, "progress"),
                visited_key: key_in(&map, shard.id, "register-0"),
            }
        });
        Groups { groups: groups.collect(), map: Rc::new(map), earlier_map: Rc::new(earlier_map) }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.iter_mut()
    }

    /// The shards that have a replica on a node.
    pub(crate) fn on(&self, node: u64) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(move |group| group.hosts.contains(&node))
    }

    /// A change of members is done: maps say so.
    pub(crate) fn set_members(&mut self, shard: ShardId, members: BTreeSet<u64>) {
        for map in [&mut self.map, &mut self.earlier_map] {
            with_members(map, shard, &members);
        }
        let group = &mut self[shard];
        group.is_changing = false;
        group.members = members;
    }

    /// A node that is new.
    pub(crate) fn add_node(&mut self, id: u64) {
        for map in [&mut self.map, &mut self.earlier_map] {
            Rc::make_mut(map).nodes.push(node(id));
        }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (1..=self.groups.len() as u32).map(ShardId)
    }

    /// True if traces must tell shards apart.
    pub(crate) fn are_several(&self) -> bool {
        self.groups.len() > 1
    }
}

impl Index<ShardId> for Groups {
    type Output = Group;

    fn index(&self, shard: ShardId) -> &Group {
        &self.groups[place(shard)]
    }
}

impl IndexMut<ShardId> for Groups {
    fn index_mut(&mut self, shard: ShardId) -> &mut Group {
        &mut self.groups[place(shard)]
    }
}

/// A map in which other nodes hold a shard.
pub(crate) fn with_members(map: &mut Rc<ShardMap>, shard: ShardId, members: &BTreeSet<u64>) {
    let known = Rc::make_mut(map).shards.iter_mut().find(|info| info.id == shard);
    known.into_iter().for_each(|info| info.members = members.iter().copied().map(NodeId).collect());
}

fn place(shard: ShardId) -> usize {
    (shard.0 - ShardId::FIRST_DATA.0) as usize
}

/// The map in force, and the one before it: without the last shard, whose slots others had.
fn maps(plan: &Plan) -> (ShardMap, ShardMap) {
    let consensus = match plan.engine {
        EngineKind::Paxos => Consensus::Paxos,
        EngineKind::Raft => Consensus::Raft,
    };
    if plan.shards.count == 1 {
        let map = map_of_one(plan, consensus);
        return (map.clone(), map);
    }
    // Equal shares: where scores are compared, no machine rounds differently.
    let placement = Placement::Spread { replicas: plan.shards.replicas as usize };
    let spec = ShardSpec { name: None, load_factor: 1, consensus, placement };
    let specs = vec![spec; plan.shards.count as usize];
    let map = ShardMap::bootstrap(nodes(plan), consensus, &specs);
    let map = map.expect("plans have as many nodes as replicas");
    let mut earlier = map.clone();
    earlier.shards.pop();
    earlier.slots = table(None, &earlier);
    let slots = table(Some(&earlier.slots), &map);
    (ShardMap { epoch: earlier.epoch + 1, slots, ..map }, earlier)
}

/// What `bootstrap` would make but for the system shard, without ranking slots: that takes a twentieth of a run.
fn map_of_one(plan: &Plan, consensus: Consensus) -> ShardMap {
    let (id, members) = (ShardId::FIRST_DATA, (1..=plan.nodes).map(NodeId).collect());
    let name = "shard-1".to_owned();
    let shard = ShardInfo { id, name, load_factor: 1, consensus, members, next: None, changes: 0 };
    let slots = SlotTable::of_one(id);
    ShardMap {
        epoch: 1,
        ttl_seconds: None,
        shards: vec![shard],
        nodes: nodes(plan),
        slots,
        removed: BTreeSet::new(),
        drained: BTreeSet::new(),
    }
}

fn nodes(plan: &Plan) -> Vec<NodeInfo> {
    (1..=plan.nodes).map(node).collect()
}

fn node(id: u64) -> NodeInfo {
    let (peer, http) = (format!("node-{id}:7001"), format!("node-{id}:8001"));
    NodeInfo { id: NodeId(id), store: StoreId(Uuid::from_u128(id.into())), peer, http, resp: None }
}

fn table(in_force: Option<&SlotTable>, map: &ShardMap) -> SlotTable {
    SlotTable::compute(in_force, &map.load_factors()).expect("plans have at least one shard")
}

/// The first key of this name that a shard owns.
fn key_in(map: &ShardMap, shard: ShardId, name: &str) -> Bytes {
    let numbered = (1..).map(|number: u64| format!("{name}{number}"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    names.find(|name| map.owner(name.as_bytes()) == shard).expect("names do not end").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_its_members_and_keys_and_the_last_one_is_new() {
        let several = (0..200).map(Plan::draw).filter(|plan| plan.shards.count > 1);
        for plan in several {
            let seed = plan.seed;
            let groups = Groups::new(&plan);
            assert_eq!(groups.map.validate(), Ok(()), "seed {seed}");
            assert_eq!(groups.iter().count(), plan.shards.count as usize, "seed {seed}");
            for group in groups.iter() {
                assert_eq!(group.members.len() as u64, plan.shards.replicas, "seed {seed}");
                for key in [&group.progress_key, &group.visited_key] {
                    assert_eq!(groups.map.owner(key), group.id, "seed {seed}: {key:?}");
                }
            }
            let new = groups.ids().last().expect("a shard");
            let earlier = &groups.earlier_map;
            assert!(earlier.epoch < groups.map.epoch && earlier.shard(new).is_none(), "seed {seed}");
            let moves: Vec<_> = earlier.slots.moves_to(&groups.map.slots).collect();
            assert!(!moves.is_empty() && moves.iter().all(|slot| slot.to == new), "seed {seed}");
        }
    }

    #[test]
    fn the_map_of_one_shard_is_as_bootstrap_makes_it() {
        let plan = (0..).map(Plan::draw).find(|plan| plan.shards.count == 1).expect("most plans have one");
        let map = map_of_one(&plan, Consensus::Paxos);
        let placement = Placement::Spread { replicas: plan.nodes as usize };
        let spec = ShardSpec { name: None, load_factor: 1, consensus: Consensus::Paxos, placement };
        let mut made = ShardMap::bootstrap(nodes(&plan), Consensus::Paxos, &[spec]).expect("a map");
        made.shards.remove(0);
        made.shards[0].members.sort();
        assert_eq!(map, made);
    }
}
