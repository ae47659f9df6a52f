//! Everything but keys: the state of the node and its cluster, for people and for what watches them.

use std::net::SocketAddr;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId, StoreId};
use keevee_core::json::Object;
use keevee_core::shard_map::change::{ChangeError, Placement, ShardSpec};
use keevee_core::shard_map::view::{CarpView, ShardView};
use keevee_core::shard_map::{Consensus, NodeInfo, ShardMap, codec};
use keevee_core::slot_table::Run;
use serde::{Deserialize, Serialize};
use tokio::net::lookup_host;
use uuid::Uuid;

use super::problem::Problem;
use super::{Api, Settings, Store, conditions, kv, query};
use crate::map_keeper::MapError;
use crate::node::{Explained, NodeStatus, PeerStatus};
use crate::transport::check_secret;

/// How many replicas a new shard has, unless the caller says so or there are fewer nodes.
const REPLICAS_DEFAULT: usize = 3;

/// `GET /v1/cluster/status`
pub(super) async fn status<S: Store>(State(api): State<Api<S>>) -> Result<Json<NodeStatus>, Problem> {
    Ok(Json(api.store.status().await?))
}

/// `GET /v1/cluster/nodes`
pub(super) async fn nodes<S: Store>(State(api): State<Api<S>>) -> Json<Vec<PeerStatus>> {
    Json(api.store.nodes().await)
}

/// `GET /v1/cluster/carp`
pub(super) async fn carp<S: Store>(
    State(api): State<Api<S>>,
    headers: HeaderMap,
) -> Result<Json<CarpView>, Problem> {
    catch_up(&api, &headers).await?;
    Ok(Json(api.store.carp()))
}

/// Sees to it that no map older than the caller's is told.
async fn catch_up<S: Store>(api: &Api<S>, headers: &HeaderMap) -> Result<(), Problem> {
    let epoch = conditions::epoch(headers)?;
    api.store.catch_up(epoch, Instant::now() + api.settings.timeout).await;
    Ok(())
}

/// `GET /v1/cluster/shards`
pub(super) async fn shards<S: Store>(State(api): State<Api<S>>) -> Json<Vec<ShardWithSlots>> {
    let CarpView { shards, slots, .. } = api.store.carp();
    let of = |shard: ShardId| slots.iter().filter(move |run| run.shard == shard);
    let count = |run: &Run| u32::from(run.last.0) - u32::from(run.first.0) + 1;
    let shards = shards.into_iter();
    Json(shards.map(|shard| ShardWithSlots { slots: of(shard.id).map(count).sum(), shard }).collect())
}

/// A shard, and how many slots it owns.
#[derive(Debug, Serialize)]
pub(super) struct ShardWithSlots {
    #[serde(flatten)]
    shard: ShardView,
    slots: u32,
}

/// A shard that is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewShard {
    name: Option<String>,
    /// Else as the system shard, which is the cluster's.
    engine: Option<Consensus>,
    /// How many replicas; or `members`.
    replicas: Option<usize>,
    members: Option<Vec<NodeId>>,
    #[serde(default)]
    load_factor: u32,
}

/// `POST /v1/cluster/shards`
pub(super) async fn add_shard<S: Store>(
    State(api): State<Api<S>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<ShardView>), Problem> {
    let Object(asked) = serde_json::from_slice::<Object<NewShard>>(&body?).map_err(|error| {
        let shape = r#"{"name": "…", "engine": "paxos", "replicas": 3}"#;
        Problem::invalid(format!("the body must be {shape} as JSON: {error}"))
    })?;
    let NewShard { name, engine, replicas, members, load_factor } = asked;
    let nodes = api.store.carp().nodes.len();
    let placement = match (members, replicas) {
        (Some(_), Some(_)) => return Err(Problem::invalid("give `members` or `replicas`, not both")),
        (Some(members), None) => Placement::Pinned(members),
        (None, replicas) => Placement::Spread { replicas: replicas.unwrap_or(nodes.min(REPLICAS_DEFAULT)) },
    };
    let add = move |map: &ShardMap| {
        let usual = map.shard(ShardId::SYSTEM).map(|system| system.consensus);
        let consensus = engine.or(usual).unwrap_or_default();
        map.add_shard(&ShardSpec { name, load_factor, consensus, placement })
    };
    let map = api.store.change_map(add).await?;
    let view = map.carp_view(|_| None).shards.pop();
    // A map always has the shard that was just added to it.
    let added = view.ok_or_else(|| Problem::unexpected(&"no shard"))?;
    Ok((StatusCode::CREATED, Json(added)))
}

/// A node that wants to join, or that moved: where others reach it, and which folder it has.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Joining {
    pub(crate) cluster_id: Uuid,
    pub(crate) id: u64,
    pub(crate) store_id: Uuid,
    pub(crate) http: String,
    pub(crate) peer: String,
    /// A node of an older version does not know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resp: Option<String>,
}

impl Joining {
    pub(crate) fn new(cluster_id: Uuid, node: NodeInfo) -> Joining {
        let NodeInfo { id, store, peer, http, resp } = node;
        Joining { cluster_id, id: id.0, store_id: store.0, http, peer, resp }
    }
}

/// `POST /v1/cluster/nodes`: answered by the shard map with the node in it, as nodes keep it; by 410 and the map that says so
/// if the node was removed.
pub(super) async fn add_node<S: Store>(
    State(api): State<Api<S>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Settings { cluster_id, authorization, .. } = &*api.settings;
    check_secret(headers.get(AUTHORIZATION), authorization)
        .map_err(|refusal| Problem::invalid(refusal.to_string()).with_status(StatusCode::FORBIDDEN))?;
    let malformed = |error| Problem::invalid(format!("the body does not describe a node: {error}"));
    let Object(Joining { cluster_id: theirs, id, store_id, http, peer, resp }) =
        serde_json::from_slice(&body?).map_err(malformed)?;
    if theirs != *cluster_id {
        return Err(Problem::invalid(format!("the node is of cluster {theirs}, this is {cluster_id}")));
    }
    for other in api.store.nodes().await.iter().filter(|other| other.id != id) {
        for (own, theirs) in
            [&http, &peer].into_iter().flat_map(|own| [(own, &other.http), (own, &other.peer)])
        {
            if is_same_place(own, theirs).await {
                let other = other.id;
                return Err(Problem::invalid(format!(
                    "{own} leads to node {other}: advertise another address"
                )));
            }
        }
    }
    let node = NodeInfo { id: NodeId(id), store: StoreId(store_id), peer, http, resp };
    let mut known = None;
    let changed = api.store.change_map(|map| {
        known = Some(map.clone());
        map.set_node(node)
    });
    let (status, map) = match (changed.await, known) {
        // The map is the proof.
        (Err(MapError::Change(ChangeError::Removed(_))), Some(known)) => (StatusCode::GONE, known),
        (changed, _) => (StatusCode::OK, changed?),
    };
    Ok((status, [(CONTENT_TYPE, "application/x-protobuf")], codec::encode(&map)).into_response())
}

/// True if two addresses lead to one place, by whatever names. Of one that can't be looked up from here nothing is known.
async fn is_same_place(one: &str, other: &str) -> bool {
    let places = async |address: &str| -> Vec<SocketAddr> {
        lookup_host(address).await.map_or_else(|_| Vec::new(), Iterator::collect)
    };
    let (one, other) = (places(one).await, places(other).await);
    one.iter().any(|place| other.contains(place))
}

/// `POST /v1/cluster/cut?shard=&time=`
pub(super) async fn cut<S: Store>(
    State(api): State<Api<S>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let (shard, time) = query::cut(query.as_deref())?;
    let body = Body::new(api.store.cut(shard, time).await?);
    Ok(([(CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Shards of which a scrub begins, one after the other.
#[derive(Debug, Serialize)]
pub(super) struct ScrubsBegun {
    shards: Vec<ShardId>,
}

/// `POST /v1/cluster/scrub?shard=`: what comes of it is in the status of the replicas.
pub(super) async fn scrub<S: Store>(
    State(api): State<Api<S>>,
    RawQuery(query): RawQuery,
) -> Result<(StatusCode, Json<ScrubsBegun>), Problem> {
    let shard = query::shard(query.as_deref())?;
    if let Some(shard) = shard.filter(|shard| api.store.carp().shards.iter().all(|known| known.id != *shard))
    {
        let detail = format!("there is no shard {shard}: GET /v1/cluster/shards lists them");
        return Err(Problem::new(ErrorKind::NotFound, detail));
    }
    let shards = api.store.scrub(shard).await?;
    Ok((StatusCode::ACCEPTED, Json(ScrubsBegun { shards })))
}

/// `GET /v1/explain?key=`
pub(super) async fn explain<S: Store>(
    State(api): State<Api<S>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Explained>, Problem> {
    let key = query::key(query.as_deref())?;
    kv::check_key(&api, &key)?;
    catch_up(&api, &headers).await?;
    Ok(Json(api.store.explain(&key)))
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
