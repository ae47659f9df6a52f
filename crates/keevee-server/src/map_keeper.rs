//! Keeps this node's copy of the shard map the newest one, and changes the cluster's.
//!
//! The map is one value in the system shard, under [`KEY`]: it changes by a write that expects the version read before,
//! so of two changes at once one comes first and the other hears of it. Every node looks now and then; what it takes in
//! it keeps in its folder, so that the data shards serve without the system shard.
//!
//! It leaves out what a map may become ([`keevee_core::shard_map::change`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use keevee_core::command::{
    Action, Command, Expect, OnError, Operation, OperationResult, Outcome, Precondition, Versioned,
};
use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::requests::RequestId;
use keevee_core::shard_map::change::ChangeError;
use keevee_core::shard_map::{NodeInfo, ShardMap, codec};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::config::ClusterConfig;
use crate::executor::{Job, Jobs};
use crate::http::cluster::Joining;
use crate::join;
use crate::node::{Consistency, Context, ExecuteError, Node};
use crate::server::ServerError;
use crate::storage::{Database, store_shard_map};
use crate::transport::{Peer, PeerTransport};

/// Where the system shard has the map.
pub(crate) const KEY: &[u8] = b"shard_map";
/// How often a node with a replica of the system shard looks at it…
const LOOK_HERE: Duration = Duration::from_millis(500);
/// …and one without asks for it.
const ASK: Duration = Duration::from_secs(5);
/// After looking for so long at a replica of the system shard that has no leader, or that does not have the map by which
/// others go, other nodes are asked.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a change asks for the first map, which the system shard's leader is about to write.
const BEGIN_PAUSE: Duration = Duration::from_millis(50);
/// How long one of these requests may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the map was not changed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// There is no such next map.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Another change came first.
    #[error("another change of the shard map came first: look at the map, then try again")]
    Raced,
    /// The system shard holds no map yet.
    #[error("the cluster has no shard map yet: it is starting, try again")]
    Starting,
    /// The system shard can't be asked.
    #[error("the system shard: {0}")]
    Execute(#[from] ExecuteError),
    /// What it holds is no map that this program knows.
    #[error("the shard map can't be read: {0}; upgrade this node")]
    Unreadable(String),
}

impl MapError {
    /// What the caller may do next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            MapError::Change(_) => ErrorKind::Invalid,
            MapError::Raced => ErrorKind::Conflict,
            MapError::Starting => ErrorKind::Unavailable,
            MapError::Execute(error) => error.kind,
            MapError::Unreadable(_) => ErrorKind::Fatal,
        }
    }
}

/// Reads the system shard's map, and the version that a change must expect.
pub(crate) async fn read(node: &Node, consistency: Consistency) -> Result<Option<(ShardMap, u64)>, MapError> {
    let context = Context { consistency, ..Context::until(Instant::now() + TIMEOUT) };
    let command = Command::single(Action::Get { key: KEY.into() });
    map_of(node.execute_in(ShardId::SYSTEM, context, &command).await?)
}

/// As the replica here has it, which the map that this node knows may not say is one yet.
async fn read_here(node: &Node) -> Result<Option<(ShardMap, u64)>, MapError> {
    let command = Command::single(Action::Get { key: KEY.into() });
    map_of(node.read_here(ShardId::SYSTEM, Instant::now() + TIMEOUT, command).await?)
}

fn map_of(outcome: Outcome) -> Result<Option<(ShardMap, u64)>, MapError> {
    let Outcome::Done(results) = outcome else { return Ok(None) };
    let [OperationResult::Value(Some(Versioned { version, value, .. }))] = &results[..] else {
        return Ok(None);
    };
    let map = codec::decode(value.clone()).map_err(|error| MapError::Unreadable(error.to_string()))?;
    Ok(Some((map, *version)))
}

/// Writes the system shard's map: false if it is not as expected any more.
async fn write(node: &Node, map: &ShardMap, expect: Expect) -> Result<bool, MapError> {
    let action = Action::put(KEY, codec::encode(map));
    let command = Command {
        request_id: Some(RequestId::Timed(Uuid::now_v7().as_u128())),
        preconditions: vec![Precondition { key: KEY.into(), expect }],
        operations: vec![Operation { action: action.clone(), on_error: OnError::Abort }],
        ..Command::single(action)
    };
    let context = Context::until(Instant::now() + TIMEOUT);
    Ok(matches!(node.execute_in(ShardId::SYSTEM, context, &command).await?, Outcome::Done(_)))
}

impl Node {
    /// Changes the cluster's shard map: the new one. Every node takes it in soon after.
    pub async fn change_map(
        &self,
        change: impl FnOnce(&ShardMap) -> Result<ShardMap, ChangeError>,
    ) -> Result<ShardMap, MapError> {
        let until = Instant::now() + TIMEOUT;
        let (map, version) = loop {
            match read(self, Consistency::Linearizable).await? {
                Some(found) => break found,
                // Its leader writes the first map as soon as it looks again.
                None if Instant::now() < until => tokio::time::sleep(BEGIN_PAUSE).await,
                None => return Err(MapError::Starting),
            }
        };
        let next = change(&map)?;
        if next == (ShardMap { epoch: next.epoch, ..map.clone() }) {
            return Ok(map);
        }
        if !write(self, &next, Expect::Version(version)).await? {
            return Err(MapError::Raced);
        }
        self.map_changed().notify_one();
        Ok(next)
    }
}

/// See the module.
pub(crate) struct MapKeeper {
    pub(crate) node: Node,
    /// This node as its configuration has it.
    pub(crate) own: NodeInfo,
    /// Where the configuration has nodes.
    pub(crate) configured: BTreeMap<NodeId, String>,
    pub(crate) cluster: ClusterConfig,
    pub(crate) log: Arc<Database>,
    pub(crate) jobs: Jobs,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) changed: Arc<Notify>,
}

impl MapKeeper {
    /// Runs until the node must stop: why.
    pub(crate) async fn run(self) -> ServerError {
        // What the replica here says is of the time at which this node ended, until the shard itself has answered: others may have
        // its replica meanwhile.
        let (mut is_asked, mut is_sure, mut told_at) = (false, false, Instant::now());
        loop {
            let look = self.node.directory().begin_look();
            if let Err(error) = self.look_ahead().await {
                return error;
            }
            let is_here = self.node.hosts(ShardId::SYSTEM);
            // Somebody knows of a newer map: the replica here may not have it yet.
            let is_stale_enough = is_here && is_sure && !is_asked;
            let consistency = if is_stale_enough { Consistency::Stale } else { Consistency::Linearizable };
            let found = read(&self.node, consistency).await;
            let is_answered = found.is_ok();
            is_sure |= is_answered;
            match found {
                Ok(Some((map, _))) => {
                    if let Err(error) = self.look_at(map).await {
                        return error;
                    }
                }
                Ok(None) => self.begin().await,
                Err(error) => tracing::debug!(%error, "the shard map can't be read now"),
            }
            self.node.directory().end_look(look);
            let directory = self.node.directory();
            // A replica that left the system shard while it was quiesced, and missed the word, knows a leader for ever.
            let follows = || directory.leader(ShardId::SYSTEM).is_some() && !directory.is_behind();
            let is_told = if is_here { is_sure && follows() } else { is_answered };
            let patience = if is_here && is_sure { PATIENCE } else { Duration::ZERO };
            if is_told || told_at.elapsed() >= patience {
                told_at = Instant::now();
                if !is_told && let Err(error) = self.ask_others().await {
                    return error;
                }
            }
            self.announce_a_move().await;
            let pause = if is_here { LOOK_HERE } else { ASK };
            is_asked = tokio::time::timeout(pause, self.changed.notified()).await.is_ok();
        }
    }

    /// A newcomer's replica of the system shard may decide already, and whoever the map says has one be gone.
    async fn look_ahead(&self) -> Result<(), ServerError> {
        let map = self.node.directory().map();
        let system = map.shard(ShardId::SYSTEM);
        let is_coming =
            system.is_some_and(|shard| shard.is_on(self.own.id) && !shard.members.contains(&self.own.id));
        if is_coming && let Ok(Some((map, _))) = read_here(&self.node).await {
            return self.look_at(map).await;
        }
        Ok(())
    }

    /// The system shard is empty: its leader writes the map that all nodes began with.
    async fn begin(&self) {
        if self.node.is_leader(ShardId::SYSTEM) != Some(true) {
            return;
        }
        let map = self.node.directory().map();
        if let Err(error) = write(&self.node, &map, Expect::Absent).await {
            tracing::debug!(%error, "the first shard map is not written yet");
        }
    }

    async fn look_at(&self, map: ShardMap) -> Result<(), ServerError> {
        let known = self.node.directory().map();
        if map.epoch == known.epoch && map != *known {
            return Err(ServerError::OtherShards { epoch: map.epoch });
        }
        if map.epoch > known.epoch { self.take_in(map).await } else { Ok(()) }
    }

    /// The system shard tells nothing: perhaps this node takes part no longer, and was away when the map said so. Any other
    /// node tells its map to one that says who it is, or that it was removed. One that knows no newer map may be as alone.
    async fn ask_others(&self) -> Result<(), ServerError> {
        let map = self.node.directory().map();
        let joining = Joining::new(self.cluster.id, self.own.clone());
        for other in map.nodes.iter().filter(|other| other.id != self.own.id) {
            let asked = join::ask(&self.cluster.secret, &other.http, &joining);
            let answer = tokio::time::timeout(TIMEOUT, asked).await;
            // Whoever has taken that address since may answer anything: the map alone counts.
            if let Ok(Ok((StatusCode::OK | StatusCode::GONE, body))) = answer
                && let Ok(newer) = codec::decode(body)
                && newer.epoch > map.epoch
            {
                return self.look_at(newer).await;
            }
        }
        Ok(())
    }

    /// Of the map that this node has: one that moved may read no other.
    async fn announce_a_move(&self) {
        let map = self.node.directory().map();
        let listed = map.node(self.own.id);
        if listed.is_some_and(|listed| *listed != self.own && listed.store == self.own.store) {
            match self.announce(&map).await {
                Ok(()) => tracing::info!("the shard map has this node's new addresses"),
                Err(error) => tracing::debug!(%error, "this node's new addresses are not in the map yet"),
            }
        }
    }

    /// Puts this node's new addresses into the map. While the others send to the old ones it hears of no leader, so any
    /// node that answers is asked to do it. If all moved at once nobody does, but then all configurations are new.
    async fn announce(&self, map: &ShardMap) -> Result<(), MapError> {
        let joining = Joining::new(self.cluster.id, self.own.clone());
        for other in map.nodes.iter().filter(|other| other.id != self.own.id) {
            let asked = join::ask(&self.cluster.secret, &other.http, &joining);
            if let Ok(Ok((StatusCode::OK, _))) = tokio::time::timeout(TIMEOUT, asked).await {
                return Ok(());
            }
        }
        let own = self.own.clone();
        self.node.change_map(move |map| map.set_node(own)).await.map(|_| ())
    }

    async fn take_in(&self, map: ShardMap) -> Result<(), ServerError> {
        let (log, stored) = (Arc::clone(&self.log), map.clone());
        let kept = tokio::task::spawn_blocking(move || store_shard_map(&log, &stored)).await;
        kept.map_err(|_| ServerError::Panicked)??;
        tracing::info!(
            epoch = map.epoch,
            shards = map.shards.len(),
            nodes = map.nodes.len(),
            "a newer shard map"
        );
        if map.removed.contains(&self.own.id) {
            return Err(ServerError::Removed(self.own.id));
        }
        let known = self.node.directory().map();
        // Those alone that this change is about: of the others the configuration may know more, if many move at once…
        for node in map.nodes.iter().filter(|node| known.node(node.id) != Some(node)) {
            // …as it may of a newcomer.
            let configured = self.configured.get(&node.id).filter(|_| known.node(node.id).is_none());
            let (store_id, address) = (node.store.to_string(), configured.unwrap_or(&node.peer).clone());
            self.transport.set_peer(Peer { id: node.id, store_id, address });
        }
        self.node.directory().take_in(map);
        self.jobs.send(Job::Host(self.node.directory().map()));
        Ok(())
    }
}
