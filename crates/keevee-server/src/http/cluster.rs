//! Everything but keys: the state of the node and its cluster, for people and for what watches them.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;

use super::problem::Problem;
use super::{Api, Store, query};
use crate::node::{NodeStatus, PeerStatus};

/// `GET /v1/cluster/status`
pub(super) async fn status<S: Store>(State(api): State<Api<S>>) -> Result<Json<NodeStatus>, Problem> {
    Ok(Json(api.store.status().await?))
}

/// `GET /v1/cluster/nodes`
pub(super) async fn nodes<S: Store>(State(api): State<Api<S>>) -> Json<Vec<PeerStatus>> {
    Json(api.store.nodes().await)
}

/// `GET /is_leader`
pub(super) async fn is_leader<S: Store>(
    State(api): State<Api<S>>,
    RawQuery(query): RawQuery,
) -> Result<Json<bool>, Problem> {
    match query::shard(query.as_deref())? {
        None => Ok(Json(api.store.is_leader(ShardId::FIRST_DATA).unwrap_or(false))),
        Some(shard) => {
            let absent = || Problem::new(ErrorKind::NotFound, format!("no replica of shard {shard} is here"));
            api.store.is_leader(shard).map(Json).ok_or_else(absent)
        }
    }
}

/// `GET /healthz`
pub(super) async fn healthz() -> &'static str {
    "alive\n"
}

/// `GET /readyz`
pub(super) async fn readyz<S: Store>(State(api): State<Api<S>>) -> Result<&'static str, Problem> {
    if api.store.is_ready() {
        return Ok("ready\n");
    }
    Err(Problem::new(ErrorKind::Unavailable, "no leader is known"))
}

/// `GET /metrics`
pub(super) async fn metrics<S: Store>(State(api): State<Api<S>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.metrics.text()).into_response()
}

/// What peers say to each other has a listener of its own.
pub(super) fn peers_only<S>(api: &Api<S>) -> Problem {
    let address = &api.settings.peer_address;
    let detail = format!("this path is for nodes of the cluster: their listener is at {address}");
    Problem::invalid(detail).with_status(StatusCode::FORBIDDEN)
}
