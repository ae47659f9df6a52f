//! States that are given up: of shards that have moved away, or of all when `data/` is damaged.
//!
//! An incarnation is put in force of which there is nothing. Hard state and entries, which others count on, stay as they are.

use std::sync::Arc;

use keevee_core::ids::{Incarnation, NodeId, ShardId};
use keevee_core::shard_map::ShardMap;
use keevee_replica::storage::StorageError;
use rocksdb::WriteBatch;

use crate::storage::snapshot_files::remove_other_incarnations;
use crate::storage::{Database, format, options, state_error, storage_error};

/// Frees the room of shards that have moved to other nodes. Logs, and with them what was promised, stay: should such a shard come
/// back, its replica gets the state from another's, as one whose state is damaged.
pub(super) fn give_up_departed(
    map: &ShardMap,
    own: NodeId,
    log: &Database,
    data: &Arc<Database>,
) -> Result<(), StorageError> {
    let is_here = |shard: ShardId| map.shard(shard).is_some_and(|shard| shard.is_on(own));
    let failed = |error| state_error("looking for shards that have moved away", error);
    let (mut with_state, mut without) = (Vec::new(), Vec::new());
    for (shard, incarnation) in shards_begun(log)?.into_iter().filter(|(shard, _)| !is_here(*shard)) {
        let has_state = data.get(format::meta_key(shard, incarnation)).map_err(failed)?.is_some();
        if has_state { &mut with_state } else { &mut without }.push((shard, incarnation));
    }
    let lost = mark(log, with_state)?;
    for (shard, _) in &lost {
        tracing::info!(%shard, "this shard has moved to other nodes: its state is removed here");
    }
    // Of the others, a crash may have brought an earlier removal to nothing.
    let departed = lost.into_iter().chain(without);
    departed
        .into_iter()
        .try_for_each(|(shard, incarnation)| remove_other_incarnations(shard, incarnation, data))
}

/// Gives the states of all shards up.
pub(super) fn give_up_all(log: &Database) -> Result<(), StorageError> {
    mark(log, shards_begun(log)?).map(drop)
}

/// The shards that have been more than named here, and which incarnation of their states is in force. Of others nothing was promised
/// or applied: their replicas are as good as new.
fn shards_begun(log: &Database) -> Result<Vec<(ShardId, Incarnation)>, StorageError> {
    let failed = |error| storage_error("looking which shards are here", error);
    let (mut begun, mut next) = (Vec::new(), Some(ShardId(0)));
    while let Some(shard) = next {
        let mut keys = log.raw_iterator();
        keys.seek(shard.0.to_be_bytes());
        let found = keys.key().and_then(format::shard_of);
        keys.status().map_err(failed)?;
        next = found.and_then(|shard| shard.0.checked_add(1)).map(ShardId);
        let Some(shard) = found else { break };
        if log.get(format::hard_state_key(shard)).map_err(failed)?.is_some() {
            let incarnation = log.get(format::incarnation_key(shard)).map_err(failed)?;
            begun.push((shard, format::incarnation_in_force(incarnation)?));
        }
    }
    Ok(begun)
}

/// Puts incarnations in force that are not there, in one synced write: these.
fn mark(
    log: &Database,
    shards: Vec<(ShardId, Incarnation)>,
) -> Result<Vec<(ShardId, Incarnation)>, StorageError> {
    let mut batch = WriteBatch::default();
    let mut lost = Vec::new();
    for (shard, Incarnation(before)) in shards {
        let incarnation = Incarnation(before + 1);
        batch.put(format::incarnation_key(shard), format::encode_incarnation(incarnation));
        lost.push((shard, incarnation));
    }
    if !lost.is_empty() {
        let marked = log.write_opt(batch, &options::synced());
        marked.map_err(|error| storage_error("marking states as lost", error))?;
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use keevee_core::ids::StoreId;
    use keevee_core::shard_map::change::{Placement, ShardSpec};
    use keevee_core::shard_map::{Consensus, NodeInfo};
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::*;

    /// Shard 1 is on node 1, and shard 2 on node 2.
    fn map() -> ShardMap {
        let node = |id: u64| NodeInfo {
            id: NodeId(id),
            store: StoreId(Uuid::from_u128(id.into())),
            peer: format!("p{id}:1"),
            http: format!("h{id}:1"),
            resp: None,
        };
        let on = |id| ShardSpec {
            name: None,
            load_factor: 1,
            consensus: Consensus::Paxos,
            placement: Placement::Pinned(vec![NodeId(id)]),
        };
        ShardMap::bootstrap(vec![node(1), node(2)], Consensus::Paxos, &[on(1), on(2)]).unwrap()
    }

    #[test]
    fn the_state_of_a_shard_that_is_elsewhere_goes_and_its_log_stays() {
        let temp = TempDir::new().unwrap();
        let log = Database::open(&options::log(true), temp.path().join("log")).unwrap();
        let data = Arc::new(Database::open(&options::data(true), temp.path().join("data")).unwrap());
        let (first, second) = (ShardId(1), ShardId(2));
        let record = |shard, incarnation| format::meta_key(shard, Incarnation(incarnation));
        for shard in [first, second] {
            log.put(format::hard_state_key(shard), b"promises").unwrap();
            log.put(format::entry_key(shard, 9), b"an entry").unwrap();
            data.put(record(shard, 0), b"a state").unwrap();
        }
        let in_force =
            || shards_begun(&log).unwrap().into_iter().map(|(shard, at)| (shard.0, at.0)).collect::<Vec<_>>();
        assert_eq!(in_force(), [(1, 0), (2, 0)]);
        // A second start finds nothing more to do.
        for _ in 0..2 {
            give_up_departed(&map(), NodeId(1), &log, &data).unwrap();
            assert_eq!(in_force(), [(1, 0), (2, 1)]);
            assert!(data.get(record(first, 0)).unwrap().is_some());
            assert!(data.get(record(second, 0)).unwrap().is_none());
        }
        assert!(log.get(format::hard_state_key(second)).unwrap().is_some());
        assert!(log.get(format::entry_key(second, 9)).unwrap().is_some());
        // Back here it got a state, and goes again.
        data.put(record(second, 1), b"a state").unwrap();
        give_up_departed(&map(), NodeId(1), &log, &data).unwrap();
        assert_eq!(in_force(), [(1, 0), (2, 2)]);
    }
}
