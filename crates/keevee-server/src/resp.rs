//! The Redis protocol: a thin adapter over [`Node::execute`] and its last part, `Node::execute_in`, on a port of its own.
//!
//! What requests mean is `keevee-resp`'s to know; this is sockets, room, and the way to the store. `docs/redis.md` lists
//! the commands and what differs from Redis.
//!
//! A connection hands over all the commands that it has read as one group: of each shard one command of the store, with
//! the operations of all of them in order. So a group costs one entry of the log, its commands take effect in order
//! whatever is repeated or forwarded on the way, and a read follows the connection's earlier writes. Commands that can't
//! be part of a group (a transaction, say, or what asks all shards) are carried out between groups.

mod cluster;
mod connection;
mod group;
mod keyspace;
mod listener;
mod status;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keevee_core::error::ErrorKind;
use keevee_core::ids::NodeId;
use keevee_core::slots::Slot;
use keevee_resp::parser::ParserLimits;
use keevee_resp::reply::Reply;
use keevee_resp::session;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::keyspace::Cursors;
pub(crate) use self::listener::serve;
use crate::config::{Config, Redirect};
use crate::metrics::Metrics;
use crate::node::{Consistency, Context, ExecuteError, Node};

/// Arguments of one request.
const ARGUMENTS_MAX: usize = 65_536;
/// Bytes of a request beside its keys and values.
const EXTRA_BYTES: usize = 2 << 20;

/// How long what is large waits for room.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// What all connections share.
pub(crate) struct Resp {
    node: Node,
    metrics: Arc<Metrics>,
    settings: session::Settings,
    parser_limits: ParserLimits,
    redirect: Redirect,
    timeout: Duration,
    stalled: Duration,
    /// How long a request may take to arrive, from its first bytes.
    request_patience: Duration,
    connections_max: usize,
    /// A permit for each byte.
    room: Arc<Semaphore>,
    /// The same for large replies.
    replies_room: Arc<Semaphore>,
    replies_bytes_max: usize,
    cursors: Cursors,
    started: Instant,
    /// Connections so far: their numbers.
    accepted: AtomicU64,
}

impl Resp {
    pub(crate) fn new(node: Node, config: &Config, metrics: Arc<Metrics>) -> Resp {
        let limits = config.limits();
        let maxclients = config.resp.connections_max.to_string();
        // What clients ask for to find out how they may use a server, and to tell what they measured.
        let told = [
            ("appendfsync", "always"),
            ("appendonly", "yes"),
            ("databases", "1"),
            ("maxclients", &maxclients),
            ("maxmemory", "0"),
            ("maxmemory-policy", "noeviction"),
            ("proto-max-bulk-len", &limits.value_bytes_max.to_string()),
            ("save", ""),
            ("timeout", "0"),
        ];
        let replies_bytes_max = config.resp.replies_bytes_max.min(u32::MAX as usize);
        Resp {
            node,
            metrics,
            settings: session::Settings {
                limits,
                config: told.into_iter().map(|(name, value)| (name, value.to_owned())).collect(),
            },
            parser_limits: ParserLimits {
                arguments_max: ARGUMENTS_MAX,
                bulk_bytes_max: limits.value_bytes_max.max(limits.key_bytes_max),
                request_bytes_max: limits.command_bytes_max + EXTRA_BYTES,
            },
            redirect: config.resp.redirect,
            timeout: Duration::from_millis(config.limits.request_timeout_ms),
            stalled: Duration::from_millis(config.resp.stalled_ms),
            request_patience: Duration::from_millis(config.resp.request_ms),
            connections_max: config.resp.connections_max,
            room: Arc::new(Semaphore::new(config.resp.requests_bytes_max.min(u32::MAX as usize))),
            replies_room: Arc::new(Semaphore::new(replies_bytes_max)),
            replies_bytes_max,
            cursors: Cursors::new(),
            started: Instant::now(),
            accepted: AtomicU64::new(0),
        }
    }

    /// How the store is asked for what was asked for at `asked`.
    fn context(&self, is_stale: bool, asked: Instant) -> Context {
        let consistency = if is_stale { Consistency::Stale } else { Consistency::Linearizable };
        Context { consistency, redirect: self.redirects(), ..Context::until(asked + self.timeout) }
    }

    /// True if clients are sent to where a key is led.
    fn redirects(&self) -> bool {
        self.redirect == Redirect::Moved
    }

    /// Where a node speaks the Redis protocol.
    fn address(&self, node: NodeId) -> Option<String> {
        self.node.directory().node(node)?.resp
    }

    /// What a client is told of a command that has no outcome.
    fn failure(&self, error: &ExecuteError, slot: Slot) -> Reply {
        match error.kind {
            ErrorKind::NotLeader | ErrorKind::WrongShard => {
                let leader = error.hint.as_ref().and_then(|hint| hint.leader);
                match leader.and_then(|leader| self.address(NodeId(leader))) {
                    Some(address) => moved(slot, &address),
                    None => Reply::Error(format!("CLUSTERDOWN {}", error.detail)),
                }
            }
            // Clients that know clusters try again.
            ErrorKind::Unavailable => Reply::Error(format!("CLUSTERDOWN {}", error.detail)),
            // And of this they must not.
            ErrorKind::OutcomeUnknown => Reply::Error(format!("UNKNOWN {}", error.detail)),
            _ => Reply::error(&error.detail),
        }
    }
}

/// Takes so many bytes of shared room; `None` if there are not so many in time.
async fn acquire(room: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let acquired = Arc::clone(room).acquire_many_owned(u32::try_from(bytes).ok()?);
    tokio::time::timeout(ROOM_PATIENCE, acquired).await.ok()?.ok()
}

fn moved(slot: Slot, address: &str) -> Reply {
    Reply::Error(format!("MOVED {slot} {address}"))
}

fn crossslot() -> Reply {
    Reply::Error("CROSSSLOT Keys in request don't hash to the same slot".to_owned())
}

/// A shard that owns other slots now than the map here says.
fn try_again() -> Reply {
    Reply::Error("TRYAGAIN the keys have moved to another shard".to_owned())
}

/// The wall clock, in microseconds since the Unix epoch. It only dresses replies: what is gone, the store decides.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
