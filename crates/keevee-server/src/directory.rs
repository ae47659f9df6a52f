//! What a node knows of its cluster: the shard map, and who leads each shard.
//!
//! Both may be old. They only say where to ask: what a shard owns is checked where commands are applied, and a node
//! that is asked in vain says who leads. It leaves out how the map changes (`map_keeper.rs`).

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::{NodeInfo, ShardMap};
use tokio::sync::watch;

/// The leader of a shard, as this node knows it.
pub(crate) type Leader = Option<NodeId>;

/// Shared by all that route.
pub(crate) struct Directory {
    map: watch::Sender<Arc<ShardMap>>,
    leaders: RwLock<HashMap<ShardId, watch::Sender<Leader>>>,
}

impl Directory {
    pub(crate) fn new(map: ShardMap) -> Directory {
        let directory = Directory { map: watch::Sender::new(Arc::new(map)), leaders: RwLock::default() };
        directory.add_shards();
        directory
    }

    /// The newest map that this node has taken in.
    pub(crate) fn map(&self) -> Arc<ShardMap> {
        self.map.borrow().clone()
    }

    /// Goes over to a newer map.
    pub(crate) fn take_in(&self, map: ShardMap) {
        self.map.send_replace(Arc::new(map));
        self.add_shards();
    }

    /// The shard that owns a key.
    pub(crate) fn owner(&self, key: &[u8]) -> ShardId {
        self.map.borrow().owner(key)
    }

    /// A node of the map.
    pub(crate) fn node(&self, node: NodeId) -> Option<NodeInfo> {
        self.map.borrow().node(node).cloned()
    }

    /// Who leads a shard, if that is known.
    pub(crate) fn leader(&self, shard: ShardId) -> Leader {
        let leaders = self.leaders.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        leaders.get(&shard).and_then(|leader| *leader.borrow())
    }

    /// Tells of each change of a shard's leader; `None` if the map has no such shard.
    pub(crate) fn watch_leader(&self, shard: ShardId) -> Option<watch::Receiver<Leader>> {
        let leaders = self.leaders.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        leaders.get(&shard).map(watch::Sender::subscribe)
    }

    /// What a replica here sees, or what another node has told.
    pub(crate) fn set_leader(&self, shard: ShardId, leader: Leader) {
        let leaders = self.leaders.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(known) = leaders.get(&shard) {
            known.send_if_modified(|known| std::mem::replace(known, leader) != leader);
        }
    }

    fn add_shards(&self) {
        let map = self.map();
        let mut leaders = self.leaders.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        for shard in &map.shards {
            leaders.entry(shard.id).or_insert_with(|| watch::Sender::new(None));
        }
    }
}
