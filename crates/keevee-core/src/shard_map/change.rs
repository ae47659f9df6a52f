//! Making maps: the first one, and the next one of a change. Each change gives a map with the next epoch,
//! or says what to do instead; the map at hand stays as it is.
//!
//! It leaves out what is not built yet, and refuses it by name: moving slots from shard to shard, and
//! removing shards. How replicas move is in [`members`](super::members).

use std::collections::BTreeSet;

use super::placement::{fewest_leads, loads, place_replicas, prefer, spread_leaders};
use super::{Consensus, NodeInfo, SYSTEM_MEMBERS_MAX, SYSTEM_NAME, ShardInfo, ShardMap, ShardMapError};
use crate::carp::ranking::rank_nodes;
use crate::ids::{NodeId, ShardId};
use crate::slot_table::{SlotTable, SlotTableError};

/// A data shard to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSpec {
    /// Its name; `None`: `shard-` and its id.
    pub name: Option<String>,
    /// Its share of the slots, relative to the other shards'.
    pub load_factor: u32,
    /// How its replicas agree.
    pub consensus: Consensus,
    /// Where its replicas are.
    pub placement: Placement,
}

/// Where a shard's replicas are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On so many nodes, chosen so that nodes hold equally many.
    Spread {
        /// How many.
        replicas: usize,
    },
    /// On these nodes and no others: shards pinned to disjoint nodes share nothing.
    Pinned(Vec<NodeId>),
}

/// Why there is no next map, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The next map would not be one.
    #[error(transparent)]
    Invalid(#[from] ShardMapError),
    /// Nobody would own the slots, or too many would.
    #[error(transparent)]
    Slots(#[from] SlotTableError),
    /// There are fewer nodes than replicas.
    #[error(
        "{replicas} replicas of shard {shard} need as many nodes, there are {nodes}: ask for fewer or add nodes"
    )]
    NotEnoughNodes {
        /// The shard.
        shard: ShardId,
        /// How many replicas were asked for.
        replicas: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// Another node is there.
    #[error("node {node} of the cluster has the address {address}: give the new node addresses of its own")]
    AddressTaken {
        /// The address asked for.
        address: String,
        /// Whose it is.
        node: NodeId,
    },
    /// Slots cannot move yet.
    #[error(
        "load factor {load_factor} for shard {shard} would move {slots} slots, which is not possible yet: \
         leave the load factors as they are, and add shards with load factor 0"
    )]
    WouldMoveSlots {
        /// The shard.
        shard: ShardId,
        /// The load factor asked for.
        load_factor: u32,
        /// How many slots would move.
        slots: usize,
    },
    /// There is no such shard.
    #[error("there is no data shard {0}: see the map for those there are")]
    UnknownShard(ShardId),
    /// There is no such node.
    #[error(
        "there is no node {0}: `keevee node list` shows those there are; a new one joins with `keevee server --join`"
    )]
    UnknownNode(NodeId),
    /// Shards cannot be removed yet.
    #[error("shard {0} cannot be removed: that is not possible yet; leave it: without slots it costs little")]
    CannotRemoveShard(ShardId),
    /// The node is needed still.
    #[error("node {node} holds a replica of shard {shard}: drain it first, with `keevee node drain {node}`")]
    StillHolds {
        /// The node.
        node: NodeId,
        /// A shard that it holds.
        shard: ShardId,
    },
    /// Another folder had this number.
    #[error("node {0} was removed, and its number is not given again: give the new node another id")]
    Removed(NodeId),
    /// The members of the shard are changing.
    #[error("the members of shard {0} are changing already: wait until that is done (`keevee node list`)")]
    Changing(ShardId),
    /// No other node could hold the replica.
    #[error(
        "no other node can take the replica of shard {shard} on node {node}: add a node first (one that was drained, \
         with `keevee node add`), or give the replica up with `--fewer-replicas`"
    )]
    NowhereToGo {
        /// The shard.
        shard: ShardId,
        /// Who holds it.
        node: NodeId,
    },
    /// Nobody would hold the shard.
    #[error(
        "node {node} holds the last replica of shard {shard}: give it to another node first, with `keevee node add`"
    )]
    LastReplica {
        /// The shard.
        shard: ShardId,
        /// Who holds it.
        node: NodeId,
    },
    /// Another folder has this number.
    #[error(
        "the cluster has a node {0} with another folder: join under a number that was never given, and if that folder is lost, \
         have the new node take its place (`keevee node replace {0} --with`)"
    )]
    OtherFolder(NodeId),
    /// Nothing would change.
    #[error("node {0} cannot take its own place: name another node")]
    Itself(NodeId),
    /// The node has one replica already.
    #[error("node {node} holds a replica of shard {shard} already: name another node")]
    HoldsIt {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The node has none to give.
    #[error("node {node} holds no replica of shard {shard}: see the map for those that do")]
    HoldsNone {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
}

impl ShardMap {
    /// The first map, of epoch 1. The system shard is on up to five nodes and agrees as `system` says, the data shards
    /// get ids from 1 in the order of the specs.
    ///
    /// Of data shards that are not pinned, nodes hold equally many replicas to within one. Preferred leaders are as
    /// even as the members allow: to within one, if all shards have equally many replicas and none is pinned.
    pub fn bootstrap(
        mut nodes: Vec<NodeInfo>,
        system: Consensus,
        specs: &[ShardSpec],
    ) -> Result<ShardMap, ChangeError> {
        nodes.sort_by_key(|node| node.id);
        let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
        let mut members = rank_nodes(ShardId::SYSTEM, &ids);
        members.truncate(SYSTEM_MEMBERS_MAX);
        let mut shards = vec![ShardInfo {
            id: ShardId::SYSTEM,
            name: SYSTEM_NAME.to_owned(),
            load_factor: 0,
            consensus: system,
            members,
            next: None,
            changes: 0,
        }];
        let mut members = place(&ids, specs)?;
        spread_leaders(&mut members);
        let numbered = (1..).map(ShardId).zip(specs.iter().zip(members));
        shards.extend(numbered.map(|(id, (spec, members))| spec.shard(id, members)));
        let data: Vec<_> = shards[1..].iter().map(|shard| (shard.id, shard.load_factor)).collect();
        let slots = SlotTable::compute(None, &data)?;
        checked(ShardMap {
            epoch: 1,
            ttl_seconds: None,
            shards,
            nodes,
            slots,
            removed: BTreeSet::new(),
            drained: BTreeSet::new(),
        })
    }

    /// With one node more. It holds nothing until a shard is placed on it.
    pub fn add_node(&self, node: NodeInfo) -> Result<ShardMap, ChangeError> {
        if self.removed.contains(&node.id) {
            return Err(ChangeError::Removed(node.id));
        }
        let mut next = self.next();
        next.nodes.push(node);
        next.nodes.sort_by_key(|node| node.id);
        checked(next)
    }

    /// With a node as it says it is: new, or known and elsewhere now. Its store stays the same, and no other node may have
    /// its addresses: what is sent to it would reach that one.
    pub fn set_node(&self, node: NodeInfo) -> Result<ShardMap, ChangeError> {
        for other in self.nodes.iter().filter(|other| other.id != node.id) {
            let taken = |address: &&String| addresses(other).any(|known| known == *address);
            if let Some(address) = addresses(&node).find(taken) {
                return Err(ChangeError::AddressTaken { address: address.clone(), node: other.id });
            }
        }
        let mut next = self.next();
        match next.nodes.iter_mut().find(|known| known.id == node.id && known.store == node.store) {
            Some(known) => *known = node,
            None if self.node(node.id).is_some() => return Err(ChangeError::OtherFolder(node.id)),
            None => return self.add_node(node),
        }
        checked(next)
    }

    /// With one data shard more, of the next id, on the least loaded nodes or where it is pinned.
    ///
    /// Its load factor must be 0: it gets no slots, since slots cannot move yet.
    pub fn add_shard(&self, spec: &ShardSpec) -> Result<ShardMap, ChangeError> {
        let mut next = self.next();
        let id = ShardId(self.shards.last().map_or(0, |shard| shard.id.0) + 1);
        let nodes = self.nodes.iter().map(|node| node.id).filter(|node| !self.drained.contains(node));
        let (replicas, leads) = loads(nodes, self.data_shards().map(|shard| &shard.members));
        let mut members = match &spec.placement {
            Placement::Pinned(nodes) => nodes.clone(),
            Placement::Spread { replicas: count } => place_replicas(&replicas, id, *count)
                .ok_or(ChangeError::NotEnoughNodes { shard: id, replicas: *count, nodes: replicas.len() })?,
        };
        if let Some(leader) = fewest_leads(&leads, &members) {
            prefer(&mut members, leader);
        }
        next.shards.push(spec.shard(id, members));
        next.keep_slots(id, spec.load_factor)?;
        checked(next)
    }

    /// With another load factor of a data shard. Only one that moves no slots is possible yet.
    pub fn set_load_factor(&self, shard: ShardId, load_factor: u32) -> Result<ShardMap, ChangeError> {
        let mut next = self.next();
        let at = self.data_shard(shard)?;
        next.shards[at].load_factor = load_factor;
        next.keep_slots(shard, load_factor)?;
        checked(next)
    }

    /// Not possible yet.
    pub fn remove_shard(&self, shard: ShardId) -> Result<ShardMap, ChangeError> {
        self.data_shard(shard)?;
        Err(ChangeError::CannotRemoveShard(shard))
    }

    pub(super) fn next(&self) -> ShardMap {
        ShardMap { epoch: self.epoch + 1, ..self.clone() }
    }

    /// The place of a data shard.
    fn data_shard(&self, shard: ShardId) -> Result<usize, ChangeError> {
        let at = self.shards.iter().position(|info| info.id == shard && shard != ShardId::SYSTEM);
        at.ok_or(ChangeError::UnknownShard(shard))
    }

    /// Refuses load factors for which slots would have to move.
    fn keep_slots(&self, shard: ShardId, load_factor: u32) -> Result<(), ChangeError> {
        let wanted = SlotTable::compute(Some(&self.slots), &self.load_factors())?;
        match self.slots.moves_to(&wanted).count() {
            0 => Ok(()),
            slots => Err(ChangeError::WouldMoveSlots { shard, load_factor, slots }),
        }
    }
}

/// Where a node is reached, by whomever.
fn addresses(node: &NodeInfo) -> impl Iterator<Item = &String> {
    [Some(&node.peer), Some(&node.http), node.resp.as_ref()].into_iter().flatten()
}

impl ShardSpec {
    fn shard(&self, id: ShardId, members: Vec<NodeId>) -> ShardInfo {
        let name = self.name.clone().unwrap_or_else(|| format!("shard-{id}"));
        let (load_factor, consensus) = (self.load_factor, self.consensus);
        ShardInfo { id, name, load_factor, consensus, members, next: None, changes: 0 }
    }
}

/// The members of each shard. Those of pinned shards are given; the others are placed around them.
fn place(nodes: &[NodeId], specs: &[ShardSpec]) -> Result<Vec<Vec<NodeId>>, ChangeError> {
    let pinned = |spec: &ShardSpec| match &spec.placement {
        Placement::Pinned(nodes) => nodes.clone(),
        Placement::Spread { .. } => Vec::new(),
    };
    let mut placed: Vec<Vec<NodeId>> = specs.iter().map(pinned).collect();
    let (mut replicas, _) = loads(nodes.iter().copied(), placed.iter());
    for (at, spec) in specs.iter().enumerate() {
        let Placement::Spread { replicas: count } = spec.placement else { continue };
        let shard = ShardId(at as u32 + 1);
        let members = place_replicas(&replicas, shard, count).ok_or(ChangeError::NotEnoughNodes {
            shard,
            replicas: count,
            nodes: nodes.len(),
        })?;
        for member in &members {
            replicas.entry(*member).and_modify(|count| *count += 1);
        }
        placed[at] = members;
    }
    Ok(placed)
}

pub(super) fn checked(map: ShardMap) -> Result<ShardMap, ChangeError> {
    map.validate()?;
    Ok(map)
}
