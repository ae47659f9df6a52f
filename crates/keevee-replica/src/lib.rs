//! One shard's replica without I/O.
//!
//! [`Shard`] takes commands, cuts them into entries, has an [`Engine`] agree on them, applies what is
//! chosen, and answers. [`PaxosEngine`] drives `keevee-paxos` over a [`storage::LogStore`]. Time, messages
//! and finished disk writes are inputs; messages and answers are outputs; the server and the simulator run
//! the same code.
//!
//! It leaves out sockets and disks (`keevee-server`), and what a command means (`keevee-core`).

mod attempts;
pub mod conformance;
pub mod engine;
mod hashes;
mod members;
mod neighbours;
mod paxos;
pub mod records;
mod request;
mod route;
mod shard;
mod snapshot;
pub mod storage;

pub use attempts::{Attempt, Attempts};
pub use engine::{Engine, EngineStatus, Events, Role};
pub use hashes::ChainHash;
pub use members::Members;
pub use neighbours::{CLOCK_DIFFERENCE_MAX, Neighbours};
pub use paxos::PaxosEngine;
pub use request::{Bounds, Now, Refusal, Reply, Request, Room};
pub use route::{Heard, Route};
pub use shard::{
    Content, Cut, CutRefusal, CutReply, CutRequest, Difference, Effects, Failure, ReplicaMessage, Scrub,
    ScrubMessage, ScrubProgress, ScrubStatus, Shard, ShardStatus,
};
pub use snapshot::{SnapshotChunk, SnapshotMessage};
