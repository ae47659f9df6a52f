//! The shard map: nodes, shards, and which shard owns each slot.
//!
//! It is data in the system shard, and changes only through its log: each change is the next map, with the
//! next epoch ([`change`]). Nodes and clients route by copies. A copy may be old and does no harm: what a
//! shard owns is checked where commands are applied.
//!
//! It leaves out who leads now (that is each shard's to know), and how slots and leaders move.

pub mod change;
pub mod codec;
pub mod members;
pub mod placement;
pub mod view;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::carp::ranking::Ranking;
use crate::ids::{NodeId, ShardId, StoreId};
use crate::slot_table::{SHARDS_MAX, SlotTable};
use crate::slots::{Slot, slot};

/// How many nodes hold the system shard at most.
pub const SYSTEM_MEMBERS_MAX: usize = 5;
/// How long a shard's name may be, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The system shard's name.
pub const SYSTEM_NAME: &str = "system";

/// How a shard's replicas agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Consensus {
    /// keevee's own Multi-Paxos.
    #[default]
    Paxos,
    /// Raft, by openraft.
    Raft,
}

impl Consensus {
    /// The name, as configurations and statuses show it.
    pub fn name(self) -> &'static str {
        match self {
            Consensus::Paxos => "paxos",
            Consensus::Raft => "raft",
        }
    }
}

/// The nodes and shards of a cluster.
///
/// What holds of every map that [`ShardMap::validate`] lets pass:
///
/// - the epoch is at least 1;
/// - nodes and shards are in order of their ids, and no id, store or name is there twice;
/// - the system shard is there, owns no slots, and has at most [`SYSTEM_MEMBERS_MAX`] members;
/// - every shard has members, and they are nodes of the map;
/// - every slot is owned by a data shard of the map with a load factor above 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    /// Counts the maps of the cluster, from 1. The higher one is the newer one.
    pub epoch: u64,
    /// How long a client may use a copy before it asks again, in seconds; `None`: until it is sent
    /// elsewhere.
    pub ttl_seconds: Option<u32>,
    /// The shards, the system shard first.
    pub shards: Vec<ShardInfo>,
    /// The nodes.
    pub nodes: Vec<NodeInfo>,
    /// Which shard owns each slot.
    pub slots: SlotTable,
    /// The numbers of nodes that were removed, which no other gets.
    pub removed: BTreeSet<NodeId>,
    /// Nodes that gave up all they held, and get nothing until they are added again.
    pub drained: BTreeSet<NodeId>,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its id, never used again.
    pub id: ShardId,
    /// What people call it: up to [`NAME_BYTES_MAX`] letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Its share of the slots, relative to the other shards'. 0: no slots.
    pub load_factor: u32,
    /// How its replicas agree.
    pub consensus: Consensus,
    /// Who holds a replica, the preferred leader first.
    pub members: Vec<NodeId>,
    /// While that changes: who shall.
    pub next: Option<Vec<NodeId>>,
    /// How often it has changed. The first members know each other; who is told of a shard whose members have changed must
    /// hear from its log who takes part.
    pub changes: u32,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its id, from 1.
    pub id: NodeId,
    /// Its folder: node and store together are a voter.
    pub store: StoreId,
    /// Where its peers reach it: `host:port`.
    pub peer: String,
    /// Where clients reach it, over HTTP and gRPC: `host:port`.
    pub http: String,
    /// Where clients reach it that speak the Redis protocol, if it listens for them: `host:port`.
    pub resp: Option<String>,
}

/// Why a map is not one, and what to correct.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardMapError {
    /// The epoch is 0.
    #[error("the epoch is 0: epochs count from 1")]
    NoEpoch,
    /// A node has no number.
    #[error("node 0: nodes count from 1")]
    NodeZero,
    /// Two nodes have one id, or stand in the wrong order.
    #[error("node {0} is there already, or out of order: give each node an id of its own, in order")]
    DuplicateNode(NodeId),
    /// Two nodes have one store.
    #[error("store {0} is another node's: format a folder of its own for each node")]
    DuplicateStore(StoreId),
    /// Two shards have one id, or stand in the wrong order.
    #[error("shard {0} is there already, or out of order: give each shard an id of its own, in order")]
    DuplicateShard(ShardId),
    /// Two shards have one name.
    #[error("a shard is named {0:?} already: choose another name")]
    DuplicateName(String),
    /// A name is too long, empty, or has other characters.
    #[error("{0:?} is no name of a shard: use 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, '-', '_' and '.'")]
    BadName(String),
    /// The system shard is missing, or owns slots, or is on too many nodes.
    #[error("the first shard must be shard 0, with load factor 0, on at most {SYSTEM_MEMBERS_MAX} nodes")]
    BadSystemShard,
    /// Quotas are sound up to a limit.
    #[error("{0} data shards: at most {SHARDS_MAX} may share the slots")]
    TooManyShards(usize),
    /// Nobody would hold the shard.
    #[error("shard {0} has no members: name at least one node")]
    NoMembers(ShardId),
    /// A node would hold two replicas of a shard.
    #[error("node {node} is a member of shard {shard} twice: name each node once")]
    DuplicateMember {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// A member is no node of the map.
    #[error("node {node}, a member of shard {shard}, is unknown: add the node first")]
    UnknownMember {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// A slot's owner is no shard of the map, or shall own nothing.
    #[error("slot {slot} is owned by shard {shard}, which is unknown or has load factor 0")]
    BadOwner {
        /// The slot.
        slot: Slot,
        /// Its owner.
        shard: ShardId,
    },
}

/// Where a key belongs, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The key's slot.
    pub slot: Slot,
    /// The shard that owns the slot.
    pub shard: ShardId,
    /// Its name.
    pub name: String,
    /// Its members, the preferred leader first.
    pub replicas: Vec<NodeId>,
    /// How the data shards rank for the slot, best first. The owner need not be the first: the table gives
    /// exact shares and moves few slots, the ranking chooses among tables that do.
    pub scores: Vec<ShardScore>,
}

/// How a shard ranks for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ShardScore {
    /// The shard.
    pub shard: ShardId,
    /// Its score, from 0 to 1.
    pub score: f64,
}

impl ShardMap {
    /// The shard of an id.
    pub fn shard(&self, id: ShardId) -> Option<&ShardInfo> {
        self.shards.binary_search_by_key(&id, |shard| shard.id).ok().map(|at| &self.shards[at])
    }

    /// The node of an id.
    pub fn node(&self, id: NodeId) -> Option<&NodeInfo> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok().map(|at| &self.nodes[at])
    }

    /// All shards but the system shard.
    pub fn data_shards(&self) -> impl Iterator<Item = &ShardInfo> {
        self.shards.iter().filter(|shard| shard.id != ShardId::SYSTEM)
    }

    /// The data shards with their load factors: what slot tables are computed from.
    pub fn load_factors(&self) -> Vec<(ShardId, u32)> {
        self.data_shards().map(|shard| (shard.id, shard.load_factor)).collect()
    }

    /// The shard that owns a key.
    pub fn owner(&self, key: &[u8]) -> ShardId {
        self.slots.owner_of_key(key)
    }

    /// Where a key belongs, and why.
    pub fn explain(&self, key: &[u8]) -> Explanation {
        let slot = slot(key);
        let shard = self.slots.owner(slot);
        let owner = self.shard(shard);
        let ranked = Ranking::new(&self.load_factors()).ranked(slot);
        let scores = ranked.into_iter().map(|(shard, score)| ShardScore { shard, score: score.fraction() });
        Explanation {
            slot,
            shard,
            name: owner.map(|owner| owner.name.clone()).unwrap_or_default(),
            replicas: owner.map(|owner| owner.members.clone()).unwrap_or_default(),
            scores: scores.collect(),
        }
    }

    /// Checks all that holds of a map. Whoever takes one from outside calls this first.
    pub fn validate(&self) -> Result<(), ShardMapError> {
        if self.epoch == 0 {
            return Err(ShardMapError::NoEpoch);
        }
        self.validate_nodes()?;
        self.validate_shards()?;
        for (slot, shard) in self.slots.iter() {
            let owns = self.shard(shard).is_some_and(|owner| owner.load_factor > 0);
            if !owns {
                return Err(ShardMapError::BadOwner { slot, shard });
            }
        }
        Ok(())
    }

    fn validate_nodes(&self) -> Result<(), ShardMapError> {
        if self.nodes.iter().any(|node| node.id == NodeId(0)) {
            return Err(ShardMapError::NodeZero);
        }
        if let Some(pair) = self.nodes.windows(2).find(|pair| pair[0].id >= pair[1].id) {
            return Err(ShardMapError::DuplicateNode(pair[1].id));
        }
        let mut stores = BTreeSet::new();
        match self.nodes.iter().find(|node| !stores.insert(node.store)) {
            Some(node) => Err(ShardMapError::DuplicateStore(node.store)),
            None => Ok(()),
        }
    }

    fn validate_shards(&self) -> Result<(), ShardMapError> {
        let is_system = |shard: &ShardInfo| {
            let count = shard.members.len().max(shard.wanted().len());
            shard.id == ShardId::SYSTEM && shard.load_factor == 0 && count <= SYSTEM_MEMBERS_MAX
        };
        if !self.shards.first().is_some_and(is_system) {
            return Err(ShardMapError::BadSystemShard);
        }
        if let Some(pair) = self.shards.windows(2).find(|pair| pair[0].id >= pair[1].id) {
            return Err(ShardMapError::DuplicateShard(pair[1].id));
        }
        if self.shards.len() - 1 > SHARDS_MAX {
            return Err(ShardMapError::TooManyShards(self.shards.len() - 1));
        }
        let mut names = BTreeSet::new();
        for shard in &self.shards {
            if !is_name(&shard.name) {
                return Err(ShardMapError::BadName(shard.name.clone()));
            }
            if !names.insert(shard.name.as_str()) {
                return Err(ShardMapError::DuplicateName(shard.name.clone()));
            }
            self.validate_members(shard, &shard.members)?;
            self.validate_members(shard, shard.wanted())?;
        }
        Ok(())
    }

    fn validate_members(&self, shard: &ShardInfo, nodes: &[NodeId]) -> Result<(), ShardMapError> {
        if nodes.is_empty() {
            return Err(ShardMapError::NoMembers(shard.id));
        }
        let mut members = BTreeSet::new();
        for &node in nodes {
            if self.node(node).is_none() {
                return Err(ShardMapError::UnknownMember { shard: shard.id, node });
            }
            if !members.insert(node) {
                return Err(ShardMapError::DuplicateMember { shard: shard.id, node });
            }
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests;
