//! Raft behind the engine seam: openraft, run as if it were a state machine.
//!
//! openraft owns tasks and timers. [`RaftEngine`] gives it a runtime that has no thread and no clock of its own:
//! openraft runs when the engine is moved, on the caller's thread, up to the time that the caller tells, until
//! nothing is left to do. So both engines are moved in the same way, one simulator drives both, and a run under
//! it depends on its seed alone.
//!
//! | file | holds |
//! | --- | --- |
//! | `engine.rs` | [`RaftEngine`]: time, messages and finished writes in, messages and committed entries out |
//! | `doubt.rs` | what follows when the connection to the leader is reset, or it falls silent |
//! | `log.rs` | openraft's log over a [`keevee_replica::storage::LogStore`] |
//! | `machine.rs` | openraft's state machine, which hands committed entries on |
//! | `network.rs` | openraft's network: requests, answers, pipelined appends |
//! | `patience.rs` | when a replica stands for election |
//! | `reads.rs` | linearizable reads |
//! | `message.rs`, `types.rs`, `records.rs` | messages; openraft's type parameters; bytes on disk |
//!
//! It leaves out what an entry means (`keevee-core`), batching and answers (`keevee-replica`), sockets and disks
//! (`keevee-server`), which members a shard shall have, and how a snapshot travels (`keevee-replica`). No type of openraft
//! leaves it.

mod doubt;
mod engine;
mod log;
mod machine;
mod message;
mod network;
mod patience;
mod reads;
pub mod records;
mod types;

pub use engine::{Config, RaftEngine, Timing};
pub use message::{AppendResult, Configured, LogEntry, LogId, Payload, RaftMessage, Vote};
