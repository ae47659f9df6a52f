//! The keevee client for Rust programs.
//!
//! A [`Client`] knows the cluster's endpoints and needs no more: any node answers any request, so it
//! goes to one that works and moves on to the next when that one fails. Every write carries a request
//! id, minted here, and is retried under it: however often it is sent, it takes effect at most once.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use keevee_client::{Client, Consistency, Expect, Options, Write};
//!
//! let client = Client::new(vec!["http://127.0.0.1:8001".parse()?], Options::default())?;
//! let version = client.put(b"color", "green", Write::default()).await?;
//! client.put(b"color", "blue", Write::only_if(Expect::Version(version))).await?;
//! let value = client.get(b"color", Consistency::Linearizable).await?;
//! assert_eq!(value.expect("it was just written").bytes, "blue");
//! # Ok(())
//! # }
//! ```
//!
//! What an answer means is [`Error`]'s kind: a refusal says that nothing happened and nothing will;
//! `outcome_unknown` says that nobody knows. An answer covers all attempts.
//!
//! This version speaks HTTP/1.1 without TLS. It leaves out the shard map and so direct routing to the
//! leader, and gRPC; both change nothing in this interface.

mod answer;
mod client;
mod connection;
mod endpoint;
mod server_time;

pub use answer::{Error, NodeStatus, PeerStatus, ShardStatus, Value};
pub use client::{Client, Consistency, Options, Write};
pub use connection::{Connection, SendError};
pub use endpoint::{Endpoint, EndpointError};
pub use keevee_core::command::Expect;
pub use keevee_core::error::ErrorKind;
