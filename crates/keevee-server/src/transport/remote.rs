//! One peer as this node sees it: where it is, what it is told, whether it is there.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use http::{HeaderValue, Uri};
use keevee_core::ids::NodeId;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::identity::{Peer, PeerConfig};
use super::throttle::Throttle;
use super::wire::{Envelope, WireError};
use super::{Handler, PeerConfigError};

/// A peer that does not take a connection within this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that does not answer within this time is stopped or cut off.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Between attempts to connect: doubles from the first to the second.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A peer.
pub(super) struct Remote {
    pub(super) id: NodeId,
    place: watch::Sender<Place>,
    /// Of messages to this peer, about no shard yet.
    pub(super) envelope: Envelope,
    pub(super) authorization: HeaderValue,
    /// The last attempt on the control lane succeeded.
    reachable: AtomicBool,
    /// It was heard since the last broken connection: one death breaks several connections, and is told once.
    alive: AtomicBool,
    /// Changes when it is heard while it does not count as reachable.
    back: watch::Sender<()>,
    complaints: Throttle,
}

/// Where a peer listens.
#[derive(Clone)]
struct Place {
    address: String,
    /// `http://host:port`
    origin: Uri,
}

/// Why a connection to a peer ended, or did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("can't connect: {0}")]
    Unreachable(#[from] io::Error),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("no sign of life within {0:?}")]
    Silent(Duration),
    #[error("given up, since it does not answer as it should: {0}")]
    GivenUp(String),
    #[error("it takes nothing of what waits for it")]
    Stalled,
    #[error("refused: {0}")]
    Refused(String),
    #[error("the node moved to another address")]
    Moved,
    #[error("a message can't be written: {0}")]
    Unwritable(#[from] WireError),
}

/// The peers of a configuration: all nodes but the own one.
pub(super) fn remotes(config: &PeerConfig) -> Result<Vec<Arc<Remote>>, PeerConfigError> {
    let others = config.peers.all().into_iter().filter(|peer| peer.id != config.node);
    others.map(|peer| Remote::new(config, &peer).map(Arc::new)).collect()
}

/// What each transport has for each peer. Clones share what is added.
pub(super) struct ByNode<T>(Arc<RwLock<BTreeMap<NodeId, Arc<T>>>>);

impl<T> Clone for ByNode<T> {
    fn clone(&self) -> ByNode<T> {
        ByNode(Arc::clone(&self.0))
    }
}

impl<T> Default for ByNode<T> {
    fn default() -> ByNode<T> {
        ByNode(Arc::default())
    }
}

impl<T> ByNode<T> {
    pub(super) fn get(&self, node: NodeId) -> Option<Arc<T>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&node).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).values().cloned().collect()
    }

    pub(super) fn insert(&self, node: NodeId, value: Arc<T>) {
        self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(node, value);
    }
}

impl Remote {
    pub(super) fn new(config: &PeerConfig, peer: &Peer) -> Result<Remote, PeerConfigError> {
        Ok(Remote {
            id: peer.id,
            place: watch::Sender::new(Place::new(peer.id, &peer.address)?),
            envelope: config.envelope(peer),
            authorization: config.authorization()?,
            reachable: AtomicBool::new(false),
            alive: AtomicBool::new(false),
            back: watch::Sender::new(()),
            complaints: Throttle::default(),
        })
    }

    /// Where it listens now.
    pub(super) fn address(&self) -> String {
        self.place.borrow().address.clone()
    }

    pub(super) fn origin(&self) -> Uri {
        self.place.borrow().origin.clone()
    }

    /// It listens elsewhere from now on: connections to the old address end.
    pub(super) fn move_to(&self, address: &str) -> Result<(), PeerConfigError> {
        self.place.send_replace(Place::new(self.id, address)?);
        // Where it is found is told when it is reached.
        tracing::debug!(peer = %self.id, address, "peer looked for at another address");
        Ok(())
    }

    /// A connection's life, which ends where the peer moves.
    pub(super) async fn while_there(
        &self,
        life: impl Future<Output = Result<Infallible, LinkError>>,
    ) -> Result<Infallible, LinkError> {
        // Before the connection looks up the address.
        let mut place = self.place.subscribe();
        tokio::select! {
            end = life => end,
            // The sender is this very peer's.
            _ = place.changed() => Err(LinkError::Moved),
        }
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> io::Result<TcpStream> {
        let connect = TcpStream::connect(self.address());
        let stream = timeout(CONNECT_TIMEOUT, connect).await.map_err(io::Error::from)??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// True if the last attempt to reach it succeeded.
    pub(super) fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// It answers.
    pub(super) fn reached(&self) {
        if !self.reachable.swap(true, Ordering::Relaxed) {
            tracing::info!(peer = %self.id, address = self.address(), "peer reached");
        }
    }

    /// It does not answer.
    pub(super) fn lost(&self, cause: &LinkError) {
        if self.reachable.swap(false, Ordering::Relaxed) {
            tracing::info!(peer = %self.id, address = self.address(), %cause, "peer lost");
        }
    }

    /// It said hello on a connection, or answered ours.
    pub(super) fn heard(&self) {
        self.alive.store(true, Ordering::Release);
        if !self.is_reachable() {
            self.back.send_replace(());
        }
    }

    /// A connection on which it was heard broke: the first such since it was heard is told.
    pub(super) fn broke(&self, handler: &Handler) {
        if self.alive.swap(false, Ordering::AcqRel) {
            tracing::debug!(peer = %self.id, "connection broke");
            handler.disconnected(self.id);
        }
    }

    /// Logs why a connection ended: loudly where somebody must do something.
    pub(super) fn complain(&self, lane: &str, error: &LinkError) {
        let peer = self.id;
        match error {
            LinkError::Refused(_) | LinkError::Unwritable(_) => {
                if let Some(suppressed) = self.complaints.permit(Instant::now()) {
                    tracing::warn!(%peer, lane, %error, suppressed, "peer does not listen");
                }
            }
            _ => tracing::debug!(%peer, lane, %error, "no connection to peer"),
        }
    }
}

impl Place {
    fn new(node: NodeId, address: &str) -> Result<Place, PeerConfigError> {
        let origin = Uri::try_from(format!("http://{address}"));
        let origin = origin.map_err(|_| PeerConfigError::NotAHeader { node })?;
        Ok(Place { address: address.to_owned(), origin })
    }
}

/// The pauses between attempts to connect to a peer: longer each time, never the same for two nodes, and over as soon as the
/// peer is back.
pub(super) struct Backoff {
    next: Duration,
    back: watch::Receiver<()>,
}

impl Backoff {
    pub(super) fn new(remote: &Remote) -> Backoff {
        Backoff { next: PAUSE_MIN, back: remote.back.subscribe() }
    }

    /// Pauses after a connection, or an attempt, that lasted so long and ended so.
    pub(super) async fn pause(&mut self, lasted: Duration, end: &LinkError) {
        // One that is taken and soon dropped again, over and over, is no success.
        if lasted > PAUSE_MAX {
            self.next = PAUSE_MIN;
        }
        // What was heard while a connection stood says nothing of the time after it.
        if !matches!(end, LinkError::Unreachable(_)) {
            self.back.mark_unchanged();
        }
        let pause = rand::random_range(self.next / 2..=self.next);
        // Whoever is heard again and again, and never reached, is not called all the time.
        let shortest = PAUSE_MIN / 2;
        tokio::time::sleep(shortest).await;
        self.next = match timeout(pause - shortest, self.back.changed()).await {
            Ok(_) => PAUSE_MIN,
            Err(_) => (self.next * 2).min(PAUSE_MAX),
        };
        self.back.mark_unchanged();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    const ADDRESS: &str = "127.0.0.1:1";

    /// What the pause after the next one would be, at most.
    async fn pause(backoff: &mut Backoff, end: &LinkError) -> Duration {
        backoff.next = PAUSE_MAX;
        backoff.pause(Duration::ZERO, end).await;
        backoff.next
    }

    #[tokio::test]
    async fn a_peer_that_is_back_is_called_again_without_the_rest_of_the_pause() {
        let peer = Peer { id: NodeId(2), store_id: "store-2".into(), address: ADDRESS.into() };
        let remote = Remote::new(&config(1, &[]), &peer).expect("a peer");
        let refused = LinkError::Unreachable(io::ErrorKind::ConnectionRefused.into());
        let broken = LinkError::Broken("closed by the peer".to_owned());
        let mut backoff = Backoff::new(&remote);
        assert_eq!(pause(&mut backoff, &refused).await, PAUSE_MAX);
        remote.heard();
        assert_eq!(pause(&mut backoff, &refused).await, PAUSE_MIN);
        assert_eq!(pause(&mut backoff, &refused).await, PAUSE_MAX, "it was heard once");
        remote.heard();
        assert_eq!(pause(&mut backoff, &broken).await, PAUSE_MAX, "it was heard before the end");
        remote.reached();
        remote.heard();
        assert_eq!(pause(&mut backoff, &refused).await, PAUSE_MAX, "it was reached all the time");
    }
}
