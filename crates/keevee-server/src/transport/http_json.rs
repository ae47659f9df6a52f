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

mod forward;
mod posts;
pub(super) mod server;
pub(super) mod text;

use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use keevee_core::ids::{NodeId, ShardId};
use tokio::net::TcpListener;

use self::forward::Pool;
use super::identity::PeerConfig;
use super::lane::Lanes;
use super::listener::{self, Bounds, Inbound};
use super::refusals::Refusals;
use super::remote::{ByNode, Remote, remotes};
use super::tasks::Tasks;
use super::{
    BoxFuture, Forward, ForwardResult, Handler, Peer, PeerConfigError, PeerMessage, PeerTransport, Transport,
    unknown_node,
};
use crate::metrics::Metrics;

/// The transport of one node.
pub(super) struct HttpJson {
    config: PeerConfig,
    authorization: HeaderValue,
    links: ByNode<Link>,
    remotes: ByNode<Remote>,
    /// Set once this node listens.
    handler: OnceLock<Handler>,
    refusals: Arc<Refusals>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

/// All that leads to one peer.
struct Link {
    remote: Arc<Remote>,
    lanes: Lanes,
    forwards: Arc<Pool>,
}

impl HttpJson {
    pub(super) fn new(config: PeerConfig, metrics: &Arc<Metrics>) -> Result<HttpJson, PeerConfigError> {
        let (authorization, remotes) = (config.authorization()?, remotes(&config)?);
        let http_json = HttpJson {
            config,
            authorization,
            links: ByNode::default(),
            remotes: ByNode::default(),
            handler: OnceLock::new(),
            refusals: Arc::new(Refusals::new(metrics)),
            tasks: Tasks::default(),
            metrics: metrics.clone(),
        };
        remotes.into_iter().for_each(|remote| drop(http_json.link(remote)));
        Ok(http_json)
    }

    fn link(&self, remote: Arc<Remote>) -> Arc<Link> {
        let peer = remote.peer.id;
        let forwards = Arc::new(Pool::new(remote.clone(), self.config.body_bytes_max, &self.metrics));
        let link =
            Arc::new(Link { lanes: Lanes::new(peer, &self.metrics), forwards, remote: remote.clone() });
        self.remotes.insert(peer, remote);
        self.links.insert(peer, link.clone());
        link
    }

    fn post(&self, link: &Link, handler: &Handler) {
        for lane in [&link.lanes.control, &link.lanes.log] {
            self.tasks.spawn(posts::run(lane.clone(), link.remote.clone(), handler.clone()));
        }
    }
}

impl PeerTransport for HttpJson {
    fn start(&self, handler: Handler, listener: TcpListener) {
        let inbound = Inbound {
            authorization: self.authorization.clone(),
            config: self.config.clone(),
            remotes: self.remotes.clone(),
            handler: handler.clone(),
            bounds: Bounds::default(),
            refusals: self.refusals.clone(),
            stop: self.tasks.stop.clone(),
        };
        self.tasks.spawn(listener::run(listener, Arc::new(inbound), server::serve));
        self.links.all().iter().for_each(|link| self.post(link, &handler));
        let _ = self.handler.set(handler);
    }

    fn add_peer(&self, peer: Peer) {
        if peer.id == self.config.node || !self.config.peers.add(&peer) {
            return;
        }
        match Remote::new(&self.config, &peer) {
            Ok(remote) => {
                let link = self.link(Arc::new(remote));
                self.handler.get().into_iter().for_each(|handler| self.post(&link, handler));
            }
            Err(error) => tracing::error!(%error, "a new node can't be spoken with"),
        }
    }

    fn drain(&self) -> BoxFuture<()> {
        self.tasks.drain()
    }

    fn stop(&self) {
        self.tasks.abort();
        for link in self.links.all() {
            link.forwards.clear();
        }
    }
}

impl Transport for HttpJson {
    fn send(&self, to: NodeId, messages: Vec<(ShardId, PeerMessage)>) {
        match self.links.get(to) {
            Some(link) => link.lanes.push(messages),
            None => tracing::debug!(%to, "messages to an unknown node are dropped"),
        }
    }

    fn forward(&self, to: NodeId, forward: Forward) -> BoxFuture<ForwardResult> {
        let Some(link) = self.links.get(to) else { return unknown_node(to) };
        let forwards = link.forwards.clone();
        Box::pin(async move { forwards.forward(forward).await })
    }

    fn is_reachable(&self, node: NodeId) -> bool {
        self.links.get(node).is_some_and(|link| link.remote.is_reachable())
    }
}
