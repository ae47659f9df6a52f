//! A shard's state on RocksDB, and entries applied to it as a replica does.

use std::sync::Arc;

use keevee_core::apply::{self, Entry, ShardMeta};
use keevee_core::ids::{Incarnation, NodeId, ShardId, StoreId};
use keevee_core::requests::RequestMemory;
use keevee_core::shard_map::change::{Placement, ShardSpec};
use keevee_core::shard_map::{Consensus, NodeInfo, ShardMap};
use keevee_core::slots::SlotSet;
use keevee_replica::storage::StateStore;
use keevee_server::storage::{DataFolder, OpenFolder, RocksState, ValueCache};
use tempfile::TempDir;
use uuid::Uuid;

use crate::inputs;

/// The state is dropped before its folder is.
pub(crate) struct Shard {
    pub(crate) state: RocksState,
    meta: ShardMeta,
    memory: RequestMemory,
    _open: OpenFolder,
    _folder: TempDir,
}

impl Shard {
    /// A shard to which so many entries were applied.
    pub(crate) fn with_applied(entries: u64) -> Shard {
        let folder = TempDir::new().expect("a folder");
        DataFolder::format(folder.path(), Uuid::from_u128(1), NodeId(1)).expect("an empty folder");
        DataFolder::join(folder.path(), &map()).expect("a formatted folder");
        let (open, _journal) = DataFolder::open(folder.path()).expect("a member's folder");
        let data = open.data.clone();
        let values = Arc::new(ValueCache::new(64 << 20));
        let state = RocksState::open(ShardId::FIRST_DATA, Incarnation(1), data, values, SlotSet::all());
        let state = state.expect("an empty state");
        let meta = state.meta().expect("meta");
        let memory = RequestMemory::default();
        let mut shard = Shard { state, meta, memory, _open: open, _folder: folder };
        (1..=entries).for_each(|index| shard.apply(&inputs::entry(index)));
        shard
    }

    /// Applies the next entry.
    pub(crate) fn apply(&mut self, entry: &Entry) {
        let index = self.meta.applied + 1;
        let applied = apply::apply(&self.state, &self.meta, &mut self.memory, index, entry);
        let applied = applied.expect("a state that can be read");
        self.meta = applied.write_set.meta.clone();
        self.state.write(applied.write_set).expect("a state that can be written");
    }
}

/// Some map: what it says is not looked at here.
fn map() -> ShardMap {
    let node = NodeInfo {
        id: NodeId(1),
        store: StoreId(Uuid::from_u128(1)),
        peer: "peer".into(),
        http: "http".into(),
        resp: None,
    };
    let placement = Placement::Spread { replicas: 1 };
    let spec = ShardSpec { name: None, load_factor: 1, consensus: Consensus::Paxos, placement };
    ShardMap::bootstrap(vec![node], Consensus::Paxos, &[spec]).expect("a valid map")
}
