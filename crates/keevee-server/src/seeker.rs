//! Finds the peers of which the configuration and the shard map say different addresses.
//!
//! Either may be the newer one. A node that slept while a peer moved has the old address in its file; if many moved at
//! once, each was told the new addresses, and the map can't change before they have met. So the two are tried by turns
//! for as long as the peer is not reached. One that was reached before is more likely down than elsewhere.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use keevee_core::ids::NodeId;

use crate::directory::Directory;
use crate::transport::{Peer, PeerTransport};

/// How long a peer is looked for at an address: longer than an attempt to connect and the pause before it.
const TURN: Duration = Duration::from_secs(2);

/// For so many turns a peer that was reached is looked for where that was.
const DOWN_TURNS: i32 = 5;

/// See the module.
pub(crate) struct Seeker {
    configured: BTreeMap<NodeId, String>,
    directory: Arc<Directory>,
    transport: Arc<dyn PeerTransport>,
    searches: BTreeMap<NodeId, Search>,
}

impl Seeker {
    /// Where the configuration has the members, and the map.
    pub(crate) fn new(
        configured: BTreeMap<NodeId, String>,
        directory: Arc<Directory>,
        transport: Arc<dyn PeerTransport>,
    ) -> Seeker {
        Seeker { configured, directory, transport, searches: BTreeMap::new() }
    }

    /// Runs for as long as the node does.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            tokio::time::sleep(TURN).await;
            self.turn();
        }
    }

    fn turn(&mut self) {
        for node in &self.directory.map().nodes {
            let Some(configured) = self.configured.get(&node.id).filter(|address| **address != node.peer)
            else {
                continue;
            };
            let is_reachable = self.transport.is_reachable(node.id);
            let address = match self.searches.entry(node.id).or_default().turn(is_reachable) {
                None => continue,
                Some(Place::Configuration) => configured.clone(),
                Some(Place::Map) => node.peer.clone(),
            };
            self.transport.set_peer(Peer { id: node.id, store_id: node.store.to_string(), address });
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Configuration,
    Map,
}

/// For how many turns a peer was looked for at one of two addresses after the other; below 1 it is taken to be down. A start
/// begins with the configuration.
#[derive(Default)]
struct Search(i32);

impl Search {
    /// Where the peer is looked for next, if elsewhere.
    fn turn(&mut self, is_reachable: bool) -> Option<Place> {
        if is_reachable {
            self.0 = -DOWN_TURNS;
            return None;
        }
        self.0 = self.0.saturating_add(1);
        let place = if self.0 % 2 == 0 { Place::Configuration } else { Place::Map };
        (self.0 > 0).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_looked_for_by_turns_but_first_for_longer_where_it_was() {
        let mut search = Search::default();
        let by_turns = [Some(Place::Map), Some(Place::Configuration), Some(Place::Map)];
        assert_eq!([false; 3].map(|is_reachable| search.turn(is_reachable)), by_turns);
        assert_eq!(search.turn(true), None);
        for _ in 0..DOWN_TURNS {
            assert_eq!(search.turn(false), None);
        }
        assert_eq!([false; 3].map(|is_reachable| search.turn(is_reachable)), by_turns);
    }
}
