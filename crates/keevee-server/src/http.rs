//! The public HTTP interface: a thin adapter over [`Node::execute`].
//!
//! | | |
//! | --- | --- |
//! | `PUT /kv/{key}/{value}`, `PUT /kv/{key}` with a body | 200 `{"version":n}` and `ETag: "n"` |
//! | `GET /kv/{key}`, `HEAD` | 200, the value's bytes and `ETag: "n"`; 404 |
//! | `DELETE /kv/{key}` | 200 `{"deleted":true}` or `false` |
//! | `POST /v1/kv/{key}/increment?by=` | 200 `{"value":n,"version":n}` |
//! | `GET /v1/kv?prefix=`, or `?start=&end=` | 200, a page of keys in order, and a cursor |
//! | `DELETE /v1/kv?prefix=`, or `?start=&end=` | 200 `{"deleted":n}` |
//! | `POST /v1/batch` | 200, a result for each operation |
//! | `GET /v1/cluster/status`, `/v1/cluster/nodes` | this node and its shards; all nodes |
//! | `GET /v1/cluster/carp` | the shard map: what a client needs to route by itself |
//! | `GET`, `POST /v1/cluster/shards` | the shards; one shard more |
//! | `POST /v1/cluster/nodes` | one node more, which proves that it knows the secret |
//! | `POST /v1/cluster/nodes/:node/add`, `drain`, `replace`, `remove` | which nodes hold the shards |
//! | `POST /v1/cluster/scrub?shard=` | has the replicas of this shard, or all, that the node leads compare their states |
//! | `POST /v1/cluster/cut?shard=&time=` | a shard's keys as of a time, as `keevee_core::cut` lays them out: of its leader, for backups |
//! | `GET /v1/explain?key=` | where a key belongs, and why |
//! | `GET /is_leader` | `true` or `false`: of the first data shard, or of `?shard=` |
//! | `GET /healthz`, `/readyz`, `/metrics` | alive; able to serve; Prometheus text |
//!
//! `If-Match` and `If-None-Match` make a request conditional, `Idempotency-Key` makes a write safe to
//! repeat, `?timeout_ms=` bounds the wait, `?consistency=stale` reads this node's own state. Every error
//! is a [`Problem`]. `Keevee-Epoch` says which shard map the caller routes by, and in every response which one the
//! node has.
//!
//! What is wrong with a request is found before anything is proposed, in the order path, query, headers,
//! body. This module leaves out what the operations mean (`keevee-core`) and who carries them out.

mod activity;
mod batch;
pub(crate) mod body;
pub(crate) mod cluster;
pub(crate) mod conditions;
mod heads;
pub(crate) mod kv;
mod members;
mod path;
pub mod problem;
pub(crate) mod query;
mod ranges;
pub(crate) mod server;
mod socket;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::HeaderValue;
use keevee_core::command::{Command, Outcome};
use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;
use keevee_core::limits::Limits;
use keevee_core::shard_map::ShardMap;
use keevee_core::shard_map::change::ChangeError;
use keevee_core::shard_map::view::CarpView;
use tokio::sync::Semaphore;
use uuid::Uuid;

pub use server::serve;
pub(crate) use server::{Bounds, serve_within};

use self::problem::Problem;
use crate::cut::{CutBody, CutFailure};
use crate::map_keeper::MapError;
use crate::metrics::Metrics;
use crate::node::{Context, ExecuteError, Explained, Node, NodeStatus, PeerStatus};
use crate::transport::is_peer_path;

/// What the interface needs of a node; tests put something smaller in its place.
pub trait Store: Clone + Send + Sync + 'static {
    /// As [`Node::execute`].
    fn execute(
        &self,
        context: Context,
        command: Command,
    ) -> impl Future<Output = Result<Outcome, ExecuteError>> + Send;

    /// As [`Node::catch_up`].
    fn catch_up(&self, epoch: u64, deadline: Instant) -> impl Future<Output = ()> + Send;

    /// As [`Node::epoch`].
    fn epoch(&self) -> u64;

    /// As [`Node::shards_with_keys`].
    fn shards_with_keys(&self) -> Vec<ShardId>;

    /// As [`Node::status`].
    fn status(&self) -> impl Future<Output = Result<NodeStatus, ExecuteError>> + Send;

    /// As [`Node::nodes`].
    fn nodes(&self) -> impl Future<Output = Vec<PeerStatus>> + Send;

    /// As [`Node::carp`].
    fn carp(&self) -> CarpView;

    /// As [`Node::explain`].
    fn explain(&self, key: &[u8]) -> Explained;

    /// As [`Node::change_map`].
    fn change_map(
        &self,
        change: impl FnOnce(&ShardMap) -> Result<ShardMap, ChangeError> + Send,
    ) -> impl Future<Output = Result<ShardMap, MapError>> + Send;

    /// As [`Node::cut`].
    fn cut(&self, shard: ShardId, time: u64) -> impl Future<Output = Result<CutBody, CutFailure>> + Send;

    /// As [`Node::scrub`].
    fn scrub(
        &self,
        shard: Option<ShardId>,
    ) -> impl Future<Output = Result<Vec<ShardId>, ExecuteError>> + Send;

    /// As [`Node::is_leader`].
    fn is_leader(&self, shard: ShardId) -> Option<bool>;

    /// As [`Node::is_ready`].
    fn is_ready(&self) -> bool;
}

impl Store for Node {
    fn execute(
        &self,
        context: Context,
        command: Command,
    ) -> impl Future<Output = Result<Outcome, ExecuteError>> + Send {
        Node::execute(self, context, command)
    }

    fn catch_up(&self, epoch: u64, deadline: Instant) -> impl Future<Output = ()> + Send {
        Node::catch_up(self, epoch, deadline)
    }

    fn epoch(&self) -> u64 {
        Node::epoch(self)
    }

    fn shards_with_keys(&self) -> Vec<ShardId> {
        Node::shards_with_keys(self)
    }

    fn status(&self) -> impl Future<Output = Result<NodeStatus, ExecuteError>> + Send {
        Node::status(self)
    }

    fn nodes(&self) -> impl Future<Output = Vec<PeerStatus>> + Send {
        Node::nodes(self)
    }

    fn carp(&self) -> CarpView {
        Node::carp(self)
    }

    fn explain(&self, key: &[u8]) -> Explained {
        Node::explain(self, key)
    }

    fn change_map(
        &self,
        change: impl FnOnce(&ShardMap) -> Result<ShardMap, ChangeError> + Send,
    ) -> impl Future<Output = Result<ShardMap, MapError>> + Send {
        Node::change_map(self, change)
    }

    fn cut(&self, shard: ShardId, time: u64) -> impl Future<Output = Result<CutBody, CutFailure>> + Send {
        Node::cut(self, shard, time)
    }

    fn scrub(
        &self,
        shard: Option<ShardId>,
    ) -> impl Future<Output = Result<Vec<ShardId>, ExecuteError>> + Send {
        Node::scrub(self, shard)
    }

    fn is_leader(&self, shard: ShardId) -> Option<bool> {
        Node::is_leader(self, shard)
    }

    fn is_ready(&self) -> bool {
        Node::is_ready(self)
    }
}

/// What a person may want otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of keys and values.
    pub limits: Limits,
    /// How long a request may take that does not say so itself.
    pub timeout: Duration,
    /// A body that has not arrived after this time never will.
    pub body_timeout: Duration,
    /// The address of the peer listener, to be named to those who look for it here.
    pub peer_address: String,
    /// The cluster, which a new node must name.
    pub cluster_id: Uuid,
    /// What the `authorization` header of a new node must say: it carries the cluster's secret.
    pub authorization: HeaderValue,
}

/// Bodies in memory, of all requests together. A request is refused before more is read.
const BODY_BYTES_IN_MEMORY_MAX: usize = 256 << 20;

/// The interface of one node. Cheap to clone.
#[derive(Clone)]
pub struct Api<S> {
    pub(crate) store: S,
    pub(crate) settings: Arc<Settings>,
    pub(crate) metrics: Arc<Metrics>,
    /// A permit for each byte.
    pub(crate) body_room: Arc<Semaphore>,
}

impl<S: Store> Api<S> {
    /// Over a store.
    pub fn new(store: S, settings: Settings, metrics: Arc<Metrics>) -> Api<S> {
        let body_room = Arc::new(Semaphore::new(BODY_BYTES_IN_MEMORY_MAX));
        Api { store, settings: Arc::new(settings), metrics, body_room }
    }
}

/// Everything of the interface, to be mounted in another axum server; [`serve`] is faster.
pub fn router<S: Store>(api: Api<S>) -> Router {
    Router::new()
        .route(ranges::PATH, get(ranges::scan::<S>).delete(ranges::delete::<S>).fallback(ranges::other))
        .route(batch::PATH, post(batch::run::<S>).fallback(batch::other))
        .route("/v1/cluster/status", get(cluster::status::<S>))
        .route("/v1/cluster/nodes", get(cluster::nodes::<S>).post(cluster::add_node::<S>))
        .route("/v1/cluster/nodes/{node}/{change}", post(members::change::<S>))
        .route("/v1/cluster/carp", get(cluster::carp::<S>))
        .route("/v1/cluster/shards", get(cluster::shards::<S>).post(cluster::add_shard::<S>))
        .route("/v1/cluster/scrub", post(cluster::scrub::<S>).fallback(batch::other))
        .route("/v1/cluster/cut", post(cluster::cut::<S>).fallback(batch::other))
        .route("/v1/explain", get(cluster::explain::<S>))
        .route("/is_leader", get(cluster::is_leader::<S>))
        .route("/healthz", get(cluster::healthz))
        .route("/readyz", get(cluster::readyz::<S>))
        .route("/metrics", get(cluster::metrics::<S>))
        .method_not_allowed_fallback(async || Problem::method_not_allowed("GET, HEAD"))
        .fallback(keys_or_nothing::<S>)
        .with_state(api)
}

/// Keys are taken from the raw path: axum's own routes would decode it, and must be UTF-8.
async fn keys_or_nothing<S: Store>(State(api): State<Api<S>>, request: Request<Body>) -> Response {
    if kv::is_kv(request.uri()) {
        return kv::handle(&api, request).await;
    }
    if kv::is_increment(request.uri()) {
        return kv::handle_increment(&api, request).await;
    }
    if is_peer_path(request.uri().path()) {
        return cluster::peers_only(&api).into_response();
    }
    Problem::new(ErrorKind::NotFound, "no such path: keys are under /kv/, the rest under /v1/")
        .into_response()
}
