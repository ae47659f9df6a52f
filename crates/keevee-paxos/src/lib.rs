//! Agreement on a log of opaque bytes, by Multi-Paxos.

mod acceptor;
mod ballot;
mod election;
mod leader;
mod log;
mod message;
mod quorum;
mod reads;
mod replica;

pub use ballot::{Ballot, Index, NodeId};
pub use message::{
    Entry, HardState, Input, LogRead, Message, Output, Persist, ReadId, Record, Restored, Timing, Value,
};
pub use quorum::QuorumSystem;
pub use replica::{Config, Replica, RoleName, Status};
