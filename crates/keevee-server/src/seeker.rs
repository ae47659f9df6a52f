//! Finds the peers of which the configuration and the shard map say different addresses.
//!
//! Either may be the newer one. A node that slept while a peer moved has the old address in its file; if many moved at
//! once, each was told the new addresses, and the map can't change before they have met. So the two are tried by turns
//! for as long as the peer is not reached.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use keevee_core::ids::NodeId;

use crate::directory::Directory;
use crate::transport::{Peer, PeerTransport};

/// How long a peer is looked for at an address: longer than an attempt to connect and the pause before it.
const TURN: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Seeker {
    /// Where the configuration has the members.
    pub(crate) configured: BTreeMap<NodeId, String>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) transport: Arc<dyn PeerTransport>,
}

impl Seeker {
    /// Runs for as long as the node does.
    pub(crate) async fn run(self) -> Infallible {
        // A start begins with the configuration.
        let mut is_configured = false;
        loop {
            tokio::time::sleep(TURN).await;
            self.turn(is_configured);
            is_configured = !is_configured;
        }
    }

    fn turn(&self, is_configured: bool) {
        for node in &self.directory.map().nodes {
            let Some(configured) = self.configured.get(&node.id) else { continue };
            if *configured == node.peer || self.transport.is_reachable(node.id) {
                continue;
            }
            let address = if is_configured { configured } else { &node.peer }.clone();
            self.transport.set_peer(Peer { id: node.id, store_id: node.store.to_string(), address });
        }
    }
}
