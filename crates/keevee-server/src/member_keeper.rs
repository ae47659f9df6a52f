//! Brings about what the shard map says of members: tells the leaders on this node which voters their shards shall have, and
//! the map when they have them.
//!
//! A copy of the map may be old, and what it wants may have been done and changed again: so before a leader is told, the map
//! is read from the system shard, and the leader is told only if it leads under the same ballot as before that. In between
//! members change by that leader alone, and the map is told of a change's end by its node.
//!
//! It leaves out the steps of a change (`keevee-replica`), and which changes there are
//! ([`keevee_core::shard_map::members`]).

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::change::ChangeError;
use keevee_core::shard_map::{ShardInfo, ShardMap};
use keevee_replica::{EngineStatus, Members, Role};

use crate::executor::Job;
use crate::map_keeper;
use crate::node::{Consistency, Node};

/// How often it is looked whether members are as the map has them.
const LOOK: Duration = Duration::from_millis(250);

/// A shard that this node leads and whose members are not, or shall not be, as the map says.
struct Led {
    shard: ShardId,
    ballot: String,
    members: Members,
    /// True once those that have gone are not needed any more.
    are_known: bool,
}

/// Looks after the members of the shards that `node` leads, for ever.
pub(crate) async fn run(node: Node) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        let led = led(&node, &node.directory().map()).await;
        if led.is_empty() {
            continue;
        }
        match map_keeper::read(&node, Consistency::Linearizable).await {
            Ok(Some((map, _))) => {
                // What is in force is looked at once more: the map may tell of what another leader has done.
                let still =
                    |now: &Led| led.iter().any(|led| (led.shard, &led.ballot) == (now.shard, &now.ballot));
                for led in self::led(&node, &map).await.into_iter().filter(still) {
                    look_after(&node, &map, led).await;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "the shard map can't be read now, members wait"),
        }
    }
}

async fn led(node: &Node, map: &ShardMap) -> Vec<Led> {
    let Ok(statuses) = node.shards().await else { return Vec::new() };
    let is_due = |shard: ShardId, members: &Members| {
        map.shard(shard).is_some_and(|info| info.next.is_some() || !is_as_told(members, &info.members))
    };
    let led = statuses.into_iter().filter_map(|(shard, status)| {
        let EngineStatus { role, ballot, members, are_members_known: are_known, .. } = status.engine;
        (role == Role::Leader && is_due(shard, &members)).then_some(Led { shard, ballot, members, are_known })
    });
    led.collect()
}

async fn look_after(node: &Node, map: &ShardMap, Led { shard, ballot, members, are_known }: Led) {
    let Some(info) = map.shard(shard) else { return };
    let is_done = info.next.as_deref().is_some_and(|next| is_as_told(&members, next));
    if is_done {
        if !are_known {
            return;
        }
        let seen = info.clone();
        let ended = node.change_map(move |map| end_change(map, &seen)).await;
        match ended {
            Ok(map) => {
                tracing::info!(%shard, members = ?info.wanted(), epoch = map.epoch, "the members have changed")
            }
            Err(error) => tracing::debug!(%shard, %error, "the end of a change of members is not told yet"),
        }
    } else {
        // Also to have go of whom the map says nothing.
        node.send(Job::WantVoters { shard, ballot, voters: voters(info.wanted()) });
    }
}

/// Unless somebody else has told of it.
fn end_change(map: &ShardMap, seen: &ShardInfo) -> Result<ShardMap, ChangeError> {
    let is_same =
        map.shard(seen.id).is_some_and(|info| info.next == seen.next && info.changes == seen.changes);
    if is_same { map.end_change(seen.id) } else { Ok(map.clone()) }
}

fn is_as_told(members: &Members, told: &[NodeId]) -> bool {
    *members == Members::of_voters(told.iter().copied())
}

fn voters(nodes: &[NodeId]) -> BTreeSet<NodeId> {
    nodes.iter().copied().collect()
}
