//! The Redis protocol without I/O.
//!
//! [`parser`] makes requests of bytes, [`command`] makes calls of requests, [`session`] says what a call is for one
//! connection (a transaction holds it back, say), [`data`] makes operations of the store out of calls about keys, and
//! replies out of their results; [`reply`] makes bytes of those. Whoever owns the socket and the store does the rest.
//!
//! `docs/redis.md` lists the commands, and what differs from Redis.

#![cfg_attr(not(test), deny(clippy::iter_over_hash_type))]

mod arguments;
pub mod command;
pub mod data;
pub mod glob;
mod keys;
pub mod parser;
pub mod reply;
mod server;
pub mod session;
mod strings;

/// The version of Redis whose replies these are, as clients are told it.
pub const REDIS_VERSION: &str = "7.0.15";
