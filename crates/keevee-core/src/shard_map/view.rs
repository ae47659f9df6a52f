//! The shard map as the JSON API shows it (`GET /v1/cluster/carp`): what a client needs to route by itself.
//!
//! ```json
//! {"epoch": 1,
//!  "ttl_seconds": 60,
//!  "shards": [{"id": 1, "name": "shard-1", "load_factor": 1, "multiplier": 1.0, "engine": "paxos",
//!              "members": [2, 3, 1], "leader": 2}],
//!  "nodes": [{"id": 1, "http": "10.0.0.1:8001"}, …],
//!  "slots": [[0, 16383, 1]]}
//! ```
//!
//! It leaves out what only nodes need of each other: stores and peer addresses.

use serde::{Deserialize, Serialize};

use super::{Consensus, ShardMap};
use crate::carp::ranking::multipliers;
use crate::ids::{NodeId, ShardId};
use crate::slot_table::Run;

/// A map as JSON.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct CarpView {
    /// The map's epoch.
    pub epoch: u64,
    /// How long the answer may be used, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// The shards, the system shard too.
    pub shards: Vec<ShardView>,
    /// The nodes.
    pub nodes: Vec<NodeView>,
    /// Who owns the slots: [`SlotTable::from_runs`](crate::slot_table::SlotTable::from_runs) makes a table
    /// of them.
    pub slots: Vec<Run>,
}

/// A node as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Where clients reach it, over HTTP and gRPC: `host:port`.
    pub http: String,
}

/// A shard as JSON.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ShardView {
    /// Its id.
    pub id: ShardId,
    /// Its name.
    pub name: String,
    /// Its share of the slots, relative to the other shards'.
    pub load_factor: u32,
    /// What CARP multiplies its hashes by.
    pub multiplier: f64,
    /// How its replicas agree.
    pub engine: Consensus,
    /// Who holds a replica, the preferred leader first.
    pub members: Vec<NodeId>,
    /// While that changes: who shall.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Vec<NodeId>>,
    /// Who leads, as far as the node that answers knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<NodeId>,
}

impl ShardMap {
    /// The map as JSON. `leader` says who leads a shard, if that is known.
    pub fn carp_view(&self, leader: impl Fn(ShardId) -> Option<NodeId>) -> CarpView {
        let load_factors: Vec<u32> = self.shards.iter().map(|shard| shard.load_factor).collect();
        let shards = self.shards.iter().zip(multipliers(&load_factors));
        let shards = shards.map(|(shard, multiplier)| ShardView {
            id: shard.id,
            name: shard.name.clone(),
            load_factor: shard.load_factor,
            multiplier,
            engine: shard.consensus,
            members: shard.members.clone(),
            next: shard.next.clone(),
            leader: leader(shard.id),
        });
        CarpView {
            epoch: self.epoch,
            ttl_seconds: self.ttl_seconds,
            shards: shards.collect(),
            nodes: self.nodes.iter().map(|node| NodeView { id: node.id, http: node.http.clone() }).collect(),
            slots: self.slots.runs(),
        }
    }
}
