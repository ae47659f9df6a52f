//! All server I/O of keevee: node, log writer, RocksDB, transport, HTTP, gRPC, the Redis protocol, metrics.
//!
//! A node is part of the program that embeds it: [`server::Server`] is one node, [`embedded::EmbeddedCluster`] a whole
//! cluster in one process.

pub mod config;
pub mod cut;
mod directory;
pub mod embedded;
pub mod engine;
mod executor;
mod forward;
pub mod grpc;
pub mod http;
mod inbox;
pub mod join;
mod map_keeper;
mod member_keeper;
pub mod metrics;
pub mod node;
#[cfg(test)]
mod rapid_resets;
pub mod recover;
mod resp;
mod room;
mod scrub;
mod seeker;
pub mod server;
pub mod storage;
pub mod transport;

pub use executor::FatalError;
