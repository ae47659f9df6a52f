//! What a node knows of its cluster: the shard map, and who leads each shard.
//!
//! Both may be old. They only say where to ask: what a shard owns is checked where commands are applied, and a node
//! that is asked in vain says who leads. It leaves out how the map changes (`map_keeper.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::{NodeInfo, ShardMap};
use keevee_core::slots::Slot;
use tokio::sync::watch;

/// The leader of a shard, as this node knows it.
pub(crate) type Leader = Option<NodeId>;

/// Shared by all that route.
pub(crate) struct Directory {
    map: watch::Sender<Arc<ShardMap>>,
    /// The newest epoch that another node has told of.
    told: AtomicU64,
    leaders: RwLock<BTreeMap<ShardId, watch::Sender<Leader>>>,
    /// Those whose replica here has lost its state.
    rebuilding: RwLock<BTreeSet<ShardId>>,
    /// How many looks at the system shard's map have begun, and which one ended last.
    looks_begun: AtomicU64,
    look_ended: watch::Sender<u64>,
}

impl Directory {
    pub(crate) fn new(map: ShardMap) -> Directory {
        let directory = Directory {
            map: watch::Sender::new(Arc::new(map)),
            told: AtomicU64::new(0),
            leaders: RwLock::default(),
            rebuilding: RwLock::default(),
            looks_begun: AtomicU64::new(0),
            look_ended: watch::Sender::new(0),
        };
        directory.add_shards();
        directory
    }

    /// The newest map that this node has taken in.
    pub(crate) fn map(&self) -> Arc<ShardMap> {
        self.map.borrow().clone()
    }

    /// The epoch of that map.
    pub(crate) fn epoch(&self) -> u64 {
        self.map.borrow().epoch
    }

    /// Another node goes by the map of this epoch.
    pub(crate) fn told_of(&self, epoch: u64) {
        self.told.fetch_max(epoch, Ordering::AcqRel);
    }

    /// True if another node has told of a newer map than this node has.
    pub(crate) fn is_behind(&self) -> bool {
        self.told.load(Ordering::Acquire) > self.epoch()
    }

    /// A look at the system shard's map begins: its number.
    pub(crate) fn begin_look(&self) -> u64 {
        self.looks_begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// A look has ended, whatever it brought.
    pub(crate) fn end_look(&self, look: u64) {
        self.look_ended.send_replace(look);
    }

    /// Resolves once this epoch is known here, or a look that begins from now on has ended without it: then there is no
    /// such map, or it can't be had.
    pub(crate) fn looked_for(&self, epoch: u64) -> impl Future<Output = ()> + use<> {
        let look = self.looks_begun.load(Ordering::Acquire) + 1;
        let (mut map, mut ended) = (self.map.subscribe(), self.look_ended.subscribe());
        async move {
            tokio::select! {
                _ = map.wait_for(|map| map.epoch >= epoch) => {}
                _ = ended.wait_for(|ended| *ended >= look) => {}
            }
        }
    }

    /// The shards that own slots, and so may hold keys.
    pub(crate) fn shards_with_slots(&self) -> Vec<ShardId> {
        self.map().slots.counts().into_keys().collect()
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

    /// The shard that owns a slot.
    pub(crate) fn owner_of_slot(&self, slot: Slot) -> ShardId {
        self.map.borrow().slots.owner(slot)
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

    /// True while this node's replica of a shard has no state: it serves nothing, and others must be asked.
    pub(crate) fn is_rebuilding(&self, shard: ShardId) -> bool {
        self.rebuilding.read().unwrap_or_else(|poisoned| poisoned.into_inner()).contains(&shard)
    }

    /// Notes whether it has one.
    pub(crate) fn set_rebuilding(&self, shard: ShardId, is_rebuilding: bool) {
        let mut rebuilding = self.rebuilding.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if is_rebuilding {
            rebuilding.insert(shard);
        } else {
            rebuilding.remove(&shard);
        }
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

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;
    use keevee_core::ids::StoreId;
    use keevee_core::shard_map::Consensus;
    use keevee_core::shard_map::change::{Placement, ShardSpec};

    use super::*;

    fn map() -> ShardMap {
        let store = StoreId(uuid::Uuid::from_u128(1));
        let node = NodeInfo { id: NodeId(1), store, peer: "p:1".into(), http: "h:1".into(), resp: None };
        let placement = Placement::Spread { replicas: 1 };
        let spec = ShardSpec { name: None, load_factor: 1, consensus: Consensus::Paxos, placement };
        ShardMap::bootstrap(vec![node], Consensus::Paxos, &[spec]).unwrap()
    }

    #[test]
    fn who_wants_a_newer_map_waits_for_it_or_for_a_look_that_began_later() {
        let directory = Directory::new(map());
        let earlier = directory.begin_look();
        let mut looked = pin!(directory.looked_for(9));
        directory.end_look(earlier);
        assert!(looked.as_mut().now_or_never().is_none(), "an earlier look may have missed it");
        let later = directory.begin_look();
        assert!(looked.as_mut().now_or_never().is_none());
        directory.end_look(later);
        assert!(looked.now_or_never().is_some());

        let mut looked = pin!(directory.looked_for(9));
        directory.told_of(8);
        assert!(directory.is_behind());
        directory.take_in(ShardMap { epoch: 8, ..map() });
        assert!(!directory.is_behind());
        assert!(looked.as_mut().now_or_never().is_none());
        directory.take_in(ShardMap { epoch: 9, ..map() });
        assert!(looked.now_or_never().is_some());
        assert_eq!((directory.epoch(), directory.shards_with_slots()), (9, vec![ShardId::FIRST_DATA]));
    }
}
