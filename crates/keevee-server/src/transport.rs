//! How nodes reach each other: one small interface, so that the node knows no protocol.

mod grpc;
mod http_json;
mod identity;
mod lane;
mod links;
mod listener;
mod messages;
pub(crate) mod refusals;
mod remote;
mod tasks;
#[cfg(test)]
mod tests;
pub(crate) mod throttle;
mod wire;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use keevee_core::ids::{NodeId, ShardId};
use tokio::net::TcpListener;

use self::grpc::Forwards;
use self::http_json::Pool;
use self::links::Links;
use crate::metrics::Metrics;

pub(crate) use identity::check_secret;
pub use identity::{BODY_BYTES_MAX_DEFAULT, Peer, PeerBounds, PeerConfig, Peers};
pub(crate) use lane::message_bytes;
pub use messages::{Forward, ForwardReply, PeerMessage, PeerProtocol};
pub(crate) use wire::is_peer_path;

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

/// The transport of one node. It connects to nobody yet: what is sent before [`PeerTransport::start`] is dropped.
pub fn open(
    protocol: PeerProtocol,
    config: PeerConfig,
    metrics: &Arc<Metrics>,
) -> Result<Arc<dyn PeerTransport>, PeerConfigError> {
    Ok(match protocol {
        PeerProtocol::Grpc => Arc::new(Links::<Forwards>::new(config, metrics)?),
        PeerProtocol::HttpJson => Arc::new(Links::<Pool>::new(config, metrics)?),
    })
}

/// Why a whole [`Forward`] got no replies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// It never left this node: nothing happened.
    #[error("node {node} can't be reached: {cause}")]
    NotSent {
        /// The node meant.
        node: NodeId,
        /// What the connection said.
        cause: String,
    },
    /// It was sent, and no answer came: the commands may take effect.
    #[error("node {node} did not answer: {cause}")]
    NoAnswer {
        /// The node meant.
        node: NodeId,
        /// What the connection said.
        cause: String,
    },
}

/// What [`Transport::forward`] resolves to: a reply for each command, in order.
pub type ForwardResult = Result<Vec<ForwardReply>, ForwardError>;

/// A future on the heap, so that [`Transport`] and [`PeerHandler`] can be used as trait objects.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Sends to peers.
pub trait Transport: Send + Sync {
    /// Queues messages for a node and returns at once: what is queued together travels together, of however many shards.
    /// They may be lost; those that arrive mostly do so in order.
    fn send(&self, to: NodeId, messages: Vec<(ShardId, PeerMessage)>);

    /// Hands commands to another node and waits for its answers.
    fn forward(&self, to: NodeId, forward: Forward) -> BoxFuture<ForwardResult>;

    /// True if the last attempt to reach the node succeeded.
    fn is_reachable(&self, node: NodeId) -> bool;
}

/// The life of a [`Transport`].
pub trait PeerTransport: Transport {
    /// Listens to the peers and keeps connections to all of them, until [`PeerTransport::stop`]. Must be
    /// called within a tokio runtime.
    ///
    /// The tasks hold the handler, which mostly holds this transport: only `stop` parts them.
    fn start(&self, handler: Handler, listener: TcpListener);

    /// A node of the cluster, as the shard map has it now: a new one is spoken with from now on, a known one at this
    /// address. Its store stays what it was.
    fn set_peer(&self, peer: Peer);

    /// Lets peers' connections end once what is under way on them is answered, for a second at most.
    fn drain(&self) -> BoxFuture<()>;

    /// Closes the listener and all connections. Nobody is told that they broke.
    fn stop(&self);
}

/// Receives from peers: the node.
pub trait PeerHandler: Send + Sync {
    /// Messages arrived from a node that proved who it is. Must not block.
    fn receive(&self, from: NodeId, shard: ShardId, messages: Vec<PeerMessage>);

    /// The connection to a node broke: it may be dead.
    fn disconnected(&self, node: NodeId);

    /// Carries out commands that another node forwarded: here, or not at all.
    fn execute_forwarded(&self, from: NodeId, forward: Forward) -> BoxFuture<Vec<ForwardReply>>;
}

/// A [`PeerHandler`] as it is handed around.
pub type Handler = Arc<dyn PeerHandler>;
