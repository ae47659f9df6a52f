//! The peer transport as readable JSON over HTTP/1.1: for teaching and debugging, and sound enough to
//! run on.
//!
//! Every request is a `POST` with `authorization: Bearer <secret>` and a body of `proto/peer.proto`'s
//! types as JSON. Messages go as `{"envelope":{…},"messages":[…]}`, each kind to its own path, and are
//! answered by 204 as soon as the node has them; what the node says to them comes as posts of its own.
//!
//! | path | messages |
//! | --- | --- |
//! | `/heartbeat`, `/heartbeat/reply` | a leader's heartbeat; what a follower has |
//! | `/paxos/poll`, `/paxos/poll/reply` | may I stand for leader |
//! | `/paxos/prepare`, `/paxos/promise` | phase 1 |
//! | `/paxos/accept`, `/paxos/accepted` | phase 2 |
//! | `/paxos/chosen`, `/paxos/refused` | more is chosen; a higher ballot is promised |
//! | `/paxos/read_index`, `/paxos/read_index/reply` | which index a linearizable read must have applied |
//! | `/paxos/take_over` | leadership is handed over |
//! | `/chain_hash` | a replica's chain hash at an index |
//! | `/hello` | the first post of a lane, and one now and then: `{"envelope":{…}}` |
//! | `/forward` | commands for a leader; answered by 200 and a reply to each, when they are done |
//!
//! To each peer there are two lanes, one for what tells that a node is alive (heartbeats, polls, read
//! indexes) and one for the rest, each one keep-alive connection on which posts keep their order; and a
//! few connections for forwards. Who does not prove to be a peer gets 403; every error is an
//! `application/problem+json` that says what is wrong.
//!
//! It leaves out encryption: peers must share a network that nobody else listens to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::HeaderValue;
use keevee_core::ids::{NodeId, ShardId};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::forward::Pool;
use super::identity::PeerConfig;
use super::lane::{self, Lane, LaneKind};
use super::listener::{self, Bounds, Inbound};
use super::remote::Remote;
use super::throttle::Throttle;
use super::{BoxFuture, Forward, ForwardError, ForwardResult, Handler, PeerMessage, Transport};
use crate::metrics::Metrics;

/// Why the transport can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum PeerConfigError {
    /// The secret or an address holds a character that a header can't.
    #[error(
        "the secret or the address of node {node} holds a character that HTTP does not allow: use visible ASCII"
    )]
    NotAHeader {
        /// The peer whose configuration it is.
        node: NodeId,
    },
}

/// How long a stopping node waits until its answers to peers are written.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The transport of one node.
pub struct HttpJson {
    config: PeerConfig,
    authorization: HeaderValue,
    links: BTreeMap<NodeId, Link>,
    tasks: Mutex<JoinSet<()>>,
    stop: watch::Sender<()>,
}

/// All that leads to one peer.
struct Link {
    remote: Arc<Remote>,
    control: Arc<Lane>,
    log: Arc<Lane>,
    forwards: Arc<Pool>,
}

impl HttpJson {
    /// Connects to nobody yet: what is sent before [`HttpJson::start`] is dropped.
    pub fn new(config: PeerConfig, metrics: &Metrics) -> Result<HttpJson, PeerConfigError> {
        let node = config.node;
        let authorization = config.authorization().map_err(|_| PeerConfigError::NotAHeader { node })?;
        let mut links = BTreeMap::new();
        for peer in config.peers.iter().filter(|peer| peer.id != config.node) {
            let remote =
                Remote::new(&config, peer).map_err(|_| PeerConfigError::NotAHeader { node: peer.id })?;
            let remote = Arc::new(remote);
            let lane = |kind: LaneKind| Arc::new(Lane::new(kind, metrics.lane(peer.id, kind.name())));
            let link = Link {
                control: lane(LaneKind::Control),
                log: lane(LaneKind::Log),
                forwards: Arc::new(Pool::new(remote.clone(), config.body_bytes_max, metrics)),
                remote,
            };
            links.insert(peer.id, link);
        }
        let (tasks, stop) = (Mutex::default(), watch::Sender::new(()));
        Ok(HttpJson { config, authorization, links, tasks, stop })
    }

    /// Listens to the peers and keeps connections to all of them, until [`HttpJson::stop`]. Must be
    /// called within a tokio runtime.
    ///
    /// The tasks hold the handler, which mostly holds this transport: only `stop` parts them.
    pub fn start(&self, handler: Handler, listener: TcpListener) {
        let inbound = Inbound {
            authorization: self.authorization.clone(),
            config: self.config.clone(),
            remotes: self.links.iter().map(|(node, link)| (*node, link.remote.clone())).collect(),
            handler: handler.clone(),
            bounds: Bounds::default(),
            complaints: Throttle::default(),
            stop: self.stop.clone(),
        };
        let mut tasks = self.tasks();
        tasks.spawn(listener::run(listener, Arc::new(inbound)));
        for link in self.links.values() {
            for lane in [&link.control, &link.log] {
                tasks.spawn(lane::run(lane.clone(), link.remote.clone(), handler.clone()));
            }
        }
    }

    /// Lets peers' connections end once what is under way on them is answered, for a second at most.
    pub async fn drain(&self) {
        self.stop.send_replace(());
        let _ = timeout(DRAIN_TIMEOUT, self.stop.closed()).await;
    }

    /// Closes the listener and all connections. Nobody is told that they broke.
    pub fn stop(&self) {
        self.tasks().abort_all();
        for link in self.links.values() {
            link.forwards.clear();
        }
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Transport for HttpJson {
    fn send(&self, to: NodeId, shard: ShardId, messages: Vec<PeerMessage>) {
        let Some(link) = self.links.get(&to) else {
            tracing::debug!(%to, "messages to an unknown node are dropped");
            return;
        };
        for message in messages {
            let lane = match LaneKind::of(&message) {
                LaneKind::Control => &link.control,
                LaneKind::Log => &link.log,
            };
            lane.push(shard, message);
        }
    }

    fn forward(&self, to: NodeId, forward: Forward) -> BoxFuture<ForwardResult> {
        let Some(link) = self.links.get(&to) else {
            let cause = "the configuration does not name it".to_owned();
            return Box::pin(std::future::ready(Err(ForwardError::NotSent { node: to, cause })));
        };
        let forwards = link.forwards.clone();
        Box::pin(async move { forwards.forward(forward).await })
    }

    fn is_reachable(&self, node: NodeId) -> bool {
        self.links.get(&node).is_some_and(|link| link.remote.is_reachable())
    }
}
