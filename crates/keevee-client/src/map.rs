//! Where keys are: a snapshot of the cluster's shard map, as far as routing needs it.
//!
//! It leaves out how it is fetched and kept up to date, and who leads now: `router.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::view::CarpView;
use keevee_core::slot_table::{SlotTable, SlotTableError};
use keevee_core::slots::{Slot, slot};
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::link::Link;

/// How long a map is used if the cluster does not say.
const TTL_DEFAULT: Duration = Duration::from_secs(60);
/// A map is not fetched more often than that because of its age.
const TTL_MIN: Duration = Duration::from_secs(1);

/// Which nodes serve which keys, as of an epoch.
#[derive(Debug)]
pub(crate) struct Map {
    pub(crate) epoch: u64,
    slots: SlotTable,
    /// Who holds a replica, the preferred leader first.
    members: HashMap<ShardId, Vec<Arc<Link>>>,
    /// Who led when the map was fetched, as far as the node that was asked knew.
    pub(crate) leaders: HashMap<ShardId, Arc<Link>>,
    /// When it is time to fetch it again; never if `None`.
    pub(crate) expires: Option<Instant>,
}

/// Why an answer is no map: something is wrong with the node that gave it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMap {
    #[error("it is not the JSON of a shard map: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its slots: {0}")]
    Slots(#[from] SlotTableError),
    #[error("shard {0} owns slots, and no node with an address holds it")]
    Nowhere(ShardId),
}

/// The keys of one call, with their slots. One at least, but for a batch that does nothing.
#[derive(Clone, Debug)]
pub(crate) struct Keys(Vec<(Slot, Bytes)>);

/// Two keys of one call that live in different shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Apart {
    pub(crate) keys: [Bytes; 2],
    pub(crate) shards: [ShardId; 2],
}

impl Keys {
    pub(crate) fn new(keys: impl IntoIterator<Item = Bytes>) -> Keys {
        Keys(keys.into_iter().map(|key| (slot(&key), key)).collect())
    }
}

impl Map {
    /// The map for nodes that tell none, or are not to be asked: all of them serve every key.
    pub(crate) fn of_one_shard(nodes: &[Arc<Link>], expires: bool) -> Map {
        Map {
            epoch: 0,
            slots: SlotTable::of_one(ShardId::FIRST_DATA),
            members: HashMap::from([(ShardId::FIRST_DATA, nodes.to_vec())]),
            leaders: HashMap::new(),
            expires: expires.then(|| Instant::now() + TTL_DEFAULT),
        }
    }

    /// Reads what a node answered. `link` gives the link to an address.
    pub(crate) fn from_json(json: &[u8], link: impl Fn(Endpoint) -> Arc<Link>) -> Result<Map, BadMap> {
        let view: CarpView = serde_json::from_slice(json)?;
        let slots = SlotTable::from_runs(&view.slots)?;
        // A node whose address can't be read is as good as none.
        let parsed = view.nodes.iter().filter_map(|node| Some((node.id, node.http.parse().ok()?)));
        let nodes: HashMap<NodeId, Arc<Link>> = parsed.map(|(id, endpoint)| (id, link(endpoint))).collect();
        let (mut members, mut leaders) = (HashMap::new(), HashMap::new());
        for shard in &view.shards {
            let links = shard.members.iter().filter_map(|id| nodes.get(id).cloned());
            members.insert(shard.id, links.collect::<Vec<_>>());
            if let Some(leader) = shard.leader.and_then(|id| nodes.get(&id)) {
                leaders.insert(shard.id, leader.clone());
            }
        }
        let is_nowhere = |shard: &ShardId| members.get(shard).is_none_or(Vec::is_empty);
        if let Some(shard) = slots.counts().into_keys().find(is_nowhere) {
            return Err(BadMap::Nowhere(shard));
        }
        let ttl = view.ttl_seconds.map_or(TTL_DEFAULT, |seconds| Duration::from_secs(seconds.into()));
        let expires = Some(Instant::now() + ttl.max(TTL_MIN));
        Ok(Map { epoch: view.epoch, slots, members, leaders, expires })
    }

    /// The shard that owns all these keys.
    pub(crate) fn shard(&self, keys: &Keys) -> Result<ShardId, Box<Apart>> {
        let Some(((first, key), others)) = keys.0.split_first() else { return Ok(ShardId::FIRST_DATA) };
        let owner = self.slots.owner(*first);
        let stray = others.iter().find(|(slot, _)| self.slots.owner(*slot) != owner);
        match stray {
            None => Ok(owner),
            Some((slot, other)) => Err(Box::new(Apart {
                keys: [key.clone(), other.clone()],
                shards: [owner, self.slots.owner(*slot)],
            })),
        }
    }

    /// The shards that own slots, and so may hold keys.
    pub(crate) fn shards_with_slots(&self) -> Vec<ShardId> {
        self.slots.counts().into_keys().collect()
    }

    pub(crate) fn members(&self, shard: ShardId) -> &[Arc<Link>] {
        self.members.get(&shard).map_or(&[], Vec::as_slice)
    }

    /// Every node that holds something, in no order, some of them more than once.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.members.values().flatten()
    }

    pub(crate) fn has_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Instant::now())
    }
}
