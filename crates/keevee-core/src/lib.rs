//! What the keevee store means, without I/O: ids, commands and outcomes, the deterministic
//! [`apply`](apply::apply), slots, request-id memory, the chain hash, the kinds of errors, and the public
//! messages ([`kv`]).
//!
//! Everything here is a pure function of its arguments: no clock, no random numbers, no files, no
//! sockets. Two replicas that apply the same entries in the same order reach the same bytes.
//!
//! It leaves out how replicas agree on the entries (`keevee-paxos`), and how state is kept on disk
//! (`keevee-server`).

#![deny(clippy::iter_over_hash_type)]

pub mod apply;
pub mod carp;
pub mod chain;
pub mod codec;
pub mod command;
pub mod cut;
pub mod digest;
pub mod error;
pub mod ids;
pub mod json;
pub mod kv;
pub mod limits;
pub mod range;
pub mod requests;
pub mod scan;
pub mod shard_map;
pub mod slot_table;
pub mod slots;
pub mod stamp;

#[cfg(test)]
mod tests;
