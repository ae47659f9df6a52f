//! Who a node is to its peers, and the checks of who they claim to be.
//!
//! A voter is a node id together with the id of its store: a node that lost its disk comes back with
//! another store id, and is refused until the configuration says so. All checks here are pure.

use std::hint::black_box;
use std::ops::RangeInclusive;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use http::HeaderValue;
use keevee_core::ids::NodeId;

use super::PeerConfigError;
use super::wire::{Envelope, VERSIONS};
use crate::metrics::RefusalReason;

/// A limit for the bodies of peers that fits the default limits of values, as base64 and with room.
pub const BODY_BYTES_MAX_DEFAULT: usize = 64 << 20;

/// What somebody who connects to the port for peers may hold there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerBounds {
    /// Connections open at once; more are closed at once. Each peer has two lanes and its forwards.
    pub connections_max: usize,
    /// A connection on which the secret has not arrived after this time is closed, and a call that has not said who calls is
    /// ended.
    pub handshake_timeout: Duration,
    /// A body over HTTP that has not arrived after this time never will: whoever sends it is dead, or cut off.
    pub body_timeout: Duration,
}

impl Default for PeerBounds {
    fn default() -> PeerBounds {
        PeerBounds {
            connections_max: 1024,
            handshake_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
        }
    }
}

/// What a node must know to speak with its peers.
#[derive(Clone)]
pub struct PeerConfig {
    /// The same on every node of the cluster.
    pub cluster_id: String,
    /// Shared by the nodes of the cluster and by nobody else.
    pub secret: String,
    /// This node.
    pub node: NodeId,
    /// This node's store.
    pub store_id: String,
    /// The other nodes; this one may be among them.
    pub peers: Peers,
    /// The largest body taken from a peer: [`BODY_BYTES_MAX_DEFAULT`], or more where larger values are allowed.
    pub body_bytes_max: usize,
    /// What strangers may hold.
    pub bounds: PeerBounds,
}

/// The nodes that are listened to. Clones share what is added.
#[derive(Clone, Debug)]
pub struct Peers(Arc<RwLock<Vec<Peer>>>);

impl FromIterator<Peer> for Peers {
    fn from_iter<I: IntoIterator<Item = Peer>>(peers: I) -> Peers {
        Peers(Arc::new(RwLock::new(peers.into_iter().collect())))
    }
}

impl Peers {
    /// Each of them now.
    pub(super) fn all(&self) -> Vec<Peer> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// A node more.
    pub(super) fn add(&self, peer: Peer) {
        self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()).push(peer);
    }

    fn has(&self, id: NodeId, store: &str) -> bool {
        let peers = self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        peers.iter().any(|peer| peer.id == id && peer.store_id == store)
    }
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: NodeId,
    /// The id of its store.
    pub store_id: String,
    /// Where its peer listener is: `host:port`.
    pub address: String,
}

/// Written by hand: the secret stays out of logs.
impl std::fmt::Debug for PeerConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let PeerConfig { cluster_id, secret: _, node, store_id, peers, body_bytes_max, bounds } = self;
        formatter
            .debug_struct("PeerConfig")
            .field("cluster_id", cluster_id)
            .field("node", node)
            .field("store_id", store_id)
            .field("peers", peers)
            .field("body_bytes_max", body_bytes_max)
            .field("bounds", bounds)
            .field("bounds", bounds)
            .finish_non_exhaustive()
    }
}

/// Why a peer is not listened to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the `authorization` header does not carry this cluster's secret: compare the nodes' configurations"
    )]
    Secret,
    #[error("the sender is of cluster `{theirs}`, this node is of `{ours}`")]
    Cluster { theirs: String, ours: String },
    #[error(
        "node {node} with store `{store}` is not a member of this cluster, as far as this node's configuration says"
    )]
    Sender { node: NodeId, store: String },
    #[error(
        "the sender claims to be node {node}, which is this one: give each node an id and a folder of its own"
    )]
    Own { node: NodeId },
    #[error(
        "the message is for store `{theirs}`, and this node has store `{ours}`: the sender has an outdated address or store id"
    )]
    Receiver { theirs: String, ours: String },
    #[error(
        "the sender speaks {}, this node speaks {}: upgrade whichever has the lower",
        versions(theirs),
        versions(ours)
    )]
    Version { theirs: RangeInclusive<u32>, ours: RangeInclusive<u32> },
}

fn versions(range: &RangeInclusive<u32>) -> String {
    format!("versions {} to {} of the peer protocol", range.start(), range.end())
}

impl Refusal {
    /// As it is counted.
    pub(super) fn reason(&self) -> RefusalReason {
        match self {
            Refusal::Secret => RefusalReason::Secret,
            Refusal::Cluster { .. } => RefusalReason::Cluster,
            Refusal::Sender { .. } | Refusal::Own { .. } | Refusal::Receiver { .. } => {
                RefusalReason::Identity
            }
            Refusal::Version { .. } => RefusalReason::Version,
        }
    }
}

impl PeerConfig {
    /// The value of the `authorization` header that every request to a peer carries.
    ///
    /// # Errors
    ///
    /// If the secret holds characters that a header can't.
    pub(crate) fn authorization(&self) -> Result<HeaderValue, PeerConfigError> {
        let unusable = |_| PeerConfigError::NotAHeader { node: self.node };
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.secret)).map_err(unusable)?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// An envelope to a peer, about no shard.
    pub(super) fn envelope(&self, to: &Peer) -> Envelope {
        Envelope {
            cluster_id: self.cluster_id.clone(),
            from_node: self.node.0,
            from_store: self.store_id.clone(),
            to_store: to.store_id.clone(),
            shard: 0,
        }
    }

    /// The sender of an envelope, if it is one of the peers and means this node.
    pub(super) fn check(&self, envelope: &Envelope) -> Result<NodeId, Refusal> {
        if envelope.cluster_id != self.cluster_id {
            let (theirs, ours) = (envelope.cluster_id.clone(), self.cluster_id.clone());
            return Err(Refusal::Cluster { theirs, ours });
        }
        let node = NodeId(envelope.from_node);
        // This node may be among the peers, and speaks to itself without the network.
        if node == self.node {
            return Err(Refusal::Own { node });
        }
        if !self.peers.has(node, &envelope.from_store) {
            return Err(Refusal::Sender { node, store: envelope.from_store.clone() });
        }
        if envelope.to_store != self.store_id {
            let (theirs, ours) = (envelope.to_store.clone(), self.store_id.clone());
            return Err(Refusal::Receiver { theirs, ours });
        }
        Ok(node)
    }
}

/// Checks that there is a version of the protocol that both sides speak.
pub(super) fn check_version(theirs: RangeInclusive<u32>) -> Result<(), Refusal> {
    let ours = VERSIONS;
    if theirs.start() <= ours.end() && ours.start() <= theirs.end() {
        return Ok(());
    }
    Err(Refusal::Version { theirs, ours })
}

/// Compares a request's `authorization` header with the right one, in a time that tells nothing of how
/// many bytes are right.
pub(crate) fn check_secret(given: Option<&HeaderValue>, right: &HeaderValue) -> Result<(), Refusal> {
    let given = given.map(HeaderValue::as_bytes).unwrap_or_default();
    let right = right.as_bytes();
    let mut difference = u8::from(given.len() != right.len());
    for (position, byte) in right.iter().enumerate() {
        difference = black_box(difference | (byte ^ given.get(position).copied().unwrap_or_default()));
    }
    if difference == 0 { Ok(()) } else { Err(Refusal::Secret) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PeerConfig {
        let peer = |id: u64| Peer { id: NodeId(id), store_id: format!("store-{id}"), address: "-".into() };
        PeerConfig {
            cluster_id: "blue".into(),
            secret: "sesame".into(),
            node: NodeId(1),
            store_id: "store-1".into(),
            // As in production: this node is among them.
            peers: (1..=3).map(peer).collect(),
            body_bytes_max: BODY_BYTES_MAX_DEFAULT,
            bounds: PeerBounds::default(),
        }
    }

    fn envelope() -> Envelope {
        Envelope {
            cluster_id: "blue".into(),
            from_node: 2,
            from_store: "store-2".into(),
            to_store: "store-1".into(),
            shard: 1,
        }
    }

    #[test]
    fn a_member_that_means_this_node_is_heard() {
        assert_eq!(config().check(&envelope()), Ok(NodeId(2)));
    }

    #[test]
    fn everyone_else_is_told_what_is_wrong() {
        let cluster = Envelope { cluster_id: "red".into(), ..envelope() };
        let (theirs, ours) = ("red".into(), "blue".into());
        assert_eq!(config().check(&cluster), Err(Refusal::Cluster { theirs, ours }));
        for (node, store) in [(4, "store-4"), (2, "store-3"), (2, "")] {
            let sender = Envelope { from_node: node, from_store: store.into(), ..envelope() };
            let refusal = Refusal::Sender { node: NodeId(node), store: store.into() };
            assert_eq!(config().check(&sender), Err(refusal));
        }
        let own = Envelope { from_node: 1, from_store: "store-1".into(), ..envelope() };
        assert_eq!(config().check(&own), Err(Refusal::Own { node: NodeId(1) }));
        let receiver = Envelope { to_store: "store-9".into(), ..envelope() };
        let (theirs, ours) = ("store-9".into(), "store-1".into());
        assert_eq!(config().check(&receiver), Err(Refusal::Receiver { theirs, ours }));
    }

    #[test]
    fn a_version_in_common_is_needed() {
        assert_eq!(check_version(0..=1), Ok(()));
        assert_eq!(check_version(1..=9), Ok(()));
        for (theirs, named) in [(0..=0, "versions 0 to 0"), (2..=3, "versions 2 to 3")] {
            let refusal = check_version(theirs).unwrap_err().to_string();
            assert!(
                refusal.contains(named) && refusal.contains("this node speaks versions 1 to 1"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn only_the_whole_secret_opens() {
        let right = config().authorization().unwrap();
        assert_eq!(check_secret(Some(&right), &right), Ok(()));
        assert_eq!(check_secret(None, &right), Err(Refusal::Secret));
        for wrong in ["", "Bearer ", "Bearer sesam", "Bearer sesame1", "Bearer Sesame", "sesame"] {
            let wrong = HeaderValue::from_static(wrong);
            assert_eq!(check_secret(Some(&wrong), &right), Err(Refusal::Secret), "{wrong:?}");
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert!(!format!("{:?} {:?}", config(), config().authorization()).contains("sesame"));
    }
}
