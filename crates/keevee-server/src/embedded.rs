//! A whole cluster in this process, on free ports: for the tests of a program that embeds keevee, and for trying it out.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::{Duration, Instant};
//! use keevee_core::command::{Action, Command};
//! use keevee_server::embedded::EmbeddedCluster;
//! use keevee_server::node::Context;
//!
//! let cluster = EmbeddedCluster::start("./tmp/three".as_ref(), 3, &[]).await?;
//! let within = || Context::until(Instant::now() + Duration::from_secs(5));
//! let put = Action::put("color", "green");
//! cluster.node(1).execute(within(), Command::single(put)).await?;
//! let get = Action::Get { key: "color".into() };
//! println!("{:?}", cluster.node(2).execute(within(), Command::single(get)).await?);
//! cluster.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Clients reach it at [`EmbeddedCluster::addresses`]. It leaves out starting again what was stopped: its addresses are
//! gone then. A node that shall last has a configuration of its own ([`crate::server`]).

use std::path::Path;

use keevee_core::ids::NodeId;
use keevee_core::shard_map::change::{ChangeError, ShardSpec};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::config::{
    ClusterConfig, Config, EngineConfig, HttpConfig, LimitsConfig, LogConfig, MemberConfig, NodeConfig,
    PeersConfig, RespConfig,
};
use crate::node::Node;
use crate::server::{Listeners, Server, ServerError};
use crate::storage::{DataFolder, FolderError};
use crate::transport::PeerProtocol;

/// Why a cluster did not start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// A node's folder can't be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The shards asked for make no map.
    #[error("the first shard map: {0}")]
    Shards(#[from] ChangeError),
    /// A node did not start.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Nodes that run until they are stopped. Dropped, it tells them to stop and does not wait for that.
pub struct EmbeddedCluster {
    nodes: Vec<Running>,
}

struct Running {
    node: Node,
    /// Where clients reach it.
    http: String,
    /// Dropped or sent, it ends the node.
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServerError>>,
}

impl EmbeddedCluster {
    /// Formats a folder for each of so many nodes within `folder` and starts them: with these data shards, or with one on
    /// all nodes, five at most. Requests wait until there are leaders. Must be called within a tokio runtime, which the
    /// nodes use.
    pub async fn start(
        folder: &Path,
        nodes: u64,
        shards: &[ShardSpec],
    ) -> Result<EmbeddedCluster, EmbeddedError> {
        let cluster = ClusterConfig {
            id: Uuid::new_v4(),
            secret: Uuid::new_v4().to_string(),
            peer_transport: PeerProtocol::default(),
        };
        // All addresses are known, and kept, before any node is told of them.
        let (mut listeners, mut members, mut stores) = (Vec::new(), Vec::new(), Vec::new());
        for id in 1..=nodes {
            let bound = Listeners::bind("127.0.0.1:0", "127.0.0.1:0", None).await?;
            let [http, peer] = bound.addresses()?;
            let identity = DataFolder::format(&data(folder, id), cluster.id, NodeId(id))?;
            stores.push((NodeId(id), identity.store_id));
            members.push(MemberConfig { id, http, peer, resp: None });
            listeners.push(bound);
        }
        let mut running = Vec::new();
        for (member, bound) in members.iter().zip(listeners) {
            let config = Config {
                cluster: cluster.clone(),
                node: NodeConfig {
                    id: member.id,
                    data: data(folder, member.id),
                    http: member.http.clone(),
                    peer: member.peer.clone(),
                    resp: None,
                    io_threads: 0,
                },
                members: members.clone(),
                engine: EngineConfig::default(),
                limits: LimitsConfig::default(),
                http: HttpConfig::default(),
                peers: PeersConfig::default(),
                resp: RespConfig::default(),
                log: LogConfig::default(),
            };
            let map = config.first_map(&stores, shards)?;
            DataFolder::set_first_members(&config.node.data, &stores, &map)?;
            running.push(Running::start(&config, bound).await?);
        }
        Ok(EmbeddedCluster { nodes: running })
    }

    /// A node, by its id from 1.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn node(&self, id: u64) -> &Node {
        let running = self.nodes.iter().find(|running| running.node.id() == NodeId(id));
        &running.expect("the cluster has nodes from 1 on").node
    }

    /// Where clients reach the nodes, over HTTP and gRPC: `host:port`.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|running| running.http.as_str())
    }

    /// Stops all nodes, one after the other.
    pub async fn stop(self) -> Result<(), ServerError> {
        for Running { stop, ended, .. } in self.nodes {
            // One that stopped by itself says why.
            let _ = stop.send(());
            ended.await.map_err(|_| ServerError::Panicked)??;
        }
        Ok(())
    }
}

impl Running {
    async fn start(config: &Config, listeners: Listeners) -> Result<Running, ServerError> {
        let server = Server::start_on(config, listeners).await?;
        let (node, http) = (server.node().clone(), config.node.http.clone());
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Ok(Running { node, http, stop, ended })
    }
}

fn data(folder: &Path, id: u64) -> std::path::PathBuf {
    folder.join(format!("node{id}"))
}
