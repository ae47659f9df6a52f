//! The peer transport over gRPC: `proto/peer_service.proto`.
//!
//! To each peer there are three connections: a lane for what tells that a node is alive, a lane for the rest of
//! consensus, and one for forwarded commands. Each carries one long-lived call in both directions, so that bulk never
//! holds up a heartbeat. The side that has something to say calls: nobody has to agree on who connects, and a
//! connection's end always means the same.
//!
//! The metadata of a call carries the secret, and the first item each way is a handshake: the versions of the
//! protocol that are spoken, the cluster, both nodes and their stores. Nothing else is read before. Who is refused
//! gets a gRPC status whose text says what to mend.
//!
//! What waits for a peer while its stream is busy goes in one item, of all shards; no timer holds anything back. A
//! message is written to the socket by the very task that takes it from its queue (`work.rs`). What waits is bounded
//! on both sides: by the queue here, by the windows of HTTP/2 there. A peer that takes nothing for seconds loses its
//! connection, one that answers no ping too.
//!
//! It leaves out encryption: peers must share a network that nobody else listens to.

pub(super) mod caller;
mod forwards;
pub(super) mod server;
mod socket;
mod work;

use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use keevee_core::ids::{NodeId, ShardId};
use tokio::net::TcpListener;

use self::caller::Caller;
use self::forwards::Forwards;
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

/// An item is allowed to be larger than a body by so much: what surrounds the largest entry.
const ITEM_EXTRA_BYTES: usize = 1 << 20;
/// What may be on its way to a node that is not reading, per connection; each has one stream.
const WINDOW_BYTES: u32 = 4 << 20;
/// What hyper takes from a queue ahead of the window.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Large items are cut into frames of this size.
const FRAME_BYTES: u32 = 256 << 10;

/// The largest item that is taken from a peer.
fn item_bytes_max(config: &PeerConfig) -> usize {
    config.body_bytes_max + ITEM_EXTRA_BYTES
}

/// The transport of one node.
pub(super) struct Grpc {
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
    forwards: Arc<Forwards>,
}

impl Grpc {
    pub(super) fn new(config: PeerConfig, metrics: &Arc<Metrics>) -> Result<Grpc, PeerConfigError> {
        let (authorization, remotes) = (config.authorization()?, remotes(&config)?);
        let grpc = Grpc {
            config,
            authorization,
            links: ByNode::default(),
            remotes: ByNode::default(),
            handler: OnceLock::new(),
            refusals: Arc::new(Refusals::new(metrics)),
            tasks: Tasks::default(),
            metrics: metrics.clone(),
        };
        remotes.into_iter().for_each(|remote| drop(grpc.link(remote)));
        Ok(grpc)
    }

    fn link(&self, remote: Arc<Remote>) -> Arc<Link> {
        let peer = remote.peer.id;
        let forwards = Arc::new(Forwards::new(peer, item_bytes_max(&self.config), &self.metrics));
        let link =
            Arc::new(Link { lanes: Lanes::new(peer, &self.metrics), forwards, remote: remote.clone() });
        self.remotes.insert(peer, remote);
        self.links.insert(peer, link.clone());
        link
    }

    fn call(&self, link: &Link, handler: &Handler) {
        let caller = Caller {
            config: self.config.clone(),
            remote: link.remote.clone(),
            handler: handler.clone(),
            refusals: self.refusals.clone(),
        };
        self.tasks.spawn(caller.clone().run(link.lanes.control.clone()));
        self.tasks.spawn(caller.clone().run(link.lanes.log.clone()));
        self.tasks.spawn(caller.run(link.forwards.clone()));
    }
}

impl PeerTransport for Grpc {
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
        self.links.all().iter().for_each(|link| self.call(link, &handler));
        let _ = self.handler.set(handler);
    }

    fn add_peer(&self, peer: Peer) {
        if peer.id == self.config.node || !self.config.peers.add(&peer) {
            return;
        }
        match Remote::new(&self.config, &peer) {
            Ok(remote) => {
                let link = self.link(Arc::new(remote));
                self.handler.get().into_iter().for_each(|handler| self.call(&link, handler));
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
            link.forwards.end("this node is stopping");
        }
    }
}

impl Transport for Grpc {
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
