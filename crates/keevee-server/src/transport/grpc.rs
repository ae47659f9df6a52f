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

pub(super) use self::forwards::Forwards;
use super::identity::PeerConfig;

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
