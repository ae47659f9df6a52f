//! The ceiling: three replicas without consensus, and servers that only echo. What they reach, no store of keevee's design
//! passes by much; the distance says how far keevee is from what the machine can do.
//!
//! One leader for good: nobody votes, nothing is recovered after a crash, a follower that falls behind holds it up. What is
//! the same as in keevee: the Redis protocol on the socket, RocksDB for log and data, a write answered once it is synced
//! on the leader and one follower and applied on the leader. Reads ask nobody else.
//!
//! - [`leader`]: clients, and the one thread that forms batches, one at a time;
//! - [`follower`]: takes batches, syncs them, says so;
//! - [`echo`]: answers without doing anything, to show what sockets, parsing and load generator cost by themselves;
//! - [`store`], [`resp`]: the two databases; the commands.

pub(crate) mod echo;
pub(crate) mod follower;
pub(crate) mod leader;
mod resp;
mod store;

use std::io::{self, Write};
use std::net::SocketAddr;

/// Tells whoever started this process where it listens.
fn announce(address: SocketAddr) -> io::Result<()> {
    println!("listening on {address}");
    io::stdout().flush()
}
