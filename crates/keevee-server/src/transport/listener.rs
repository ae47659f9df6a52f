//! Accepts connections from peers, and what every such connection needs, whatever is spoken on it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::HeaderValue;
use keevee_core::ids::NodeId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Handler;
use super::identity::{PeerConfig, Refusal};
use super::refusals::Refusals;
use super::remote::{ByNode, Remote};
use super::throttle::{Party, Throttle};
use super::wire::Envelope;

/// After a failed accept (no file descriptor is free, mostly), something must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every connection needs.
pub(super) struct Inbound {
    pub(super) config: PeerConfig,
    pub(super) authorization: HeaderValue,
    pub(super) remotes: ByNode<Remote>,
    pub(super) handler: Handler,
    pub(super) refusals: Arc<Refusals>,
    /// Sent once: connections end as soon as what is under way on them is answered.
    pub(super) stop: watch::Sender<()>,
}

impl Inbound {
    /// The sender of an envelope on a lane, if it is one of the peers.
    pub(super) fn heard(&self, envelope: &Envelope) -> Result<NodeId, Refusal> {
        let node = self.config.check(envelope)?;
        if let Some(remote) = self.remotes.get(node) {
            remote.heard();
        }
        Ok(node)
    }

    /// The connection of a caller ended.
    pub(super) fn broke(&self, caller: &Caller) {
        if let Some(remote) = caller.node.get().and_then(|node| self.remotes.get(*node)) {
            remote.broke(&self.handler);
        }
    }
}

/// What is known of the other end of a connection.
pub(super) struct Caller {
    address: SocketAddr,
    /// It has sent the secret.
    pub(super) has_secret: AtomicBool,
    /// The lane's sender, once it said hello: the end of its connection tells that it may be dead.
    pub(super) node: OnceLock<NodeId>,
}

impl Caller {
    pub(super) fn new(address: SocketAddr) -> Caller {
        Caller { address, has_secret: AtomicBool::new(false), node: OnceLock::new() }
    }

    /// What it is called in complaints.
    pub(super) fn party(&self) -> Party {
        match self.node.get() {
            Some(node) => Party::Node(*node),
            None => Party::Stranger(self.address.ip()),
        }
    }

    /// Resolves once so much time has passed without the secret. With it there is no limit: lanes are idle
    /// between elections, and must not end for that.
    pub(super) async fn stays_without_secret(&self, limit: Duration) {
        tokio::time::sleep(limit).await;
        if self.has_secret.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

/// Serves peers for ever. Dropping the future closes their connections.
pub(super) async fn run<F>(
    listener: TcpListener,
    inbound: Arc<Inbound>,
    serve: impl Fn(TcpStream, Caller, Arc<Inbound>) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let complaints = Throttle::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) if connections.len() < inbound.config.bounds.connections_max => {
                    // Only costs time where it fails.
                    let _ = stream.set_nodelay(true);
                    connections.spawn(serve(stream, Caller::new(address), inbound.clone()));
                }
                Ok(_) => {
                    if let Some(suppressed) = complaints.permit(Instant::now()) {
                        tracing::warn!(open = connections.len(), suppressed, "too many connections from peers");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a peer's connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
