//! The keevee client for Rust programs.
//!
//! A [`Client`] is given some nodes of a cluster. It asks them for the shard map and sends each request straight to
//! the node that leads the key's shard, over one connection per node that carries many requests at once. The map may
//! be old: a node that is asked wrongly names the right one. Every write carries a request id, minted here, and is
//! retried under it: however often it is sent, it takes effect at most once.
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
//! The folder `examples` has a program for each kind of operation.
//!
//! # What an answer means
//!
//! An [`Error`]'s kind says what is known: a refusal says that nothing happened and nothing will;
//! [`ErrorKind::OutcomeUnknown`] says that nobody knows. An answer covers all attempts: if one of them was
//! ambiguous, a refusal of the last one is no answer to the whole, and the call says `outcome_unknown`. Then read the
//! key, or continue the same write under its id ([`Write::request_id`]).
//!
//! No call outlives [`Options::timeout`]. Whoever drops a call's future waits no more, but what was sent stays sent: a
//! write may have happened, or may yet.
//!
//! # Retries
//!
//! Attempts pause between each other, longer each time and at random. All calls of a client share a budget: what
//! they send again is at most a fifth of what they send, and a small reserve. So clients do not bury a cluster that
//! is in trouble.
//!
//! # What it leaves out
//!
//! TLS; watches, which need the servers' support; and blocking calls: it needs a Tokio runtime.

mod answer;
mod attempts;
mod batch;
mod client;
mod connection;
mod endpoint;
mod frames;
mod link;
mod map;
mod ranges;
mod retry;
mod router;
mod server_time;
mod stream;

pub use answer::{Error, FailedOperation, NodeStatus, PeerStatus, ScrubStatus, ShardStatus, Value};
pub use batch::{Appended, Batch, Counter, OperationResult};
pub use client::{Client, Consistency, Options, Write};
pub use connection::{AnswerBody, Connection, SendError};
pub use endpoint::{Endpoint, EndpointError};
pub use keevee_core::command::{Expect, Expiry, ExpiryOnly, Only, OperationError};
pub use keevee_core::error::ErrorKind;
pub use keevee_core::range::KeyRange;
pub use ranges::{Deletion, Entry, Page, Scan};
