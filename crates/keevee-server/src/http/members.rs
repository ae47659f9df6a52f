//! Changes of which nodes hold the shards: `POST /v1/cluster/nodes/:node/add`, `drain`, `replace` and `remove`.
//!
//! An answer says which replicas move, and that the shard map says so; not that they have. `GET /v1/cluster/shards` shows
//! what is still under way (`next`). It leaves out which moves there are ([`keevee_core::shard_map::members`]).

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use bytes::Bytes;
use keevee_core::error::ErrorKind;
use keevee_core::ids::NodeId;
use keevee_core::json::Object;
use keevee_core::shard_map::ShardMap;
use keevee_core::shard_map::change::ChangeError;
use keevee_core::shard_map::members::{Leaving, Move};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{Api, Store};
use crate::map_keeper::MapError;

/// How long a node that shall get something may take to be heard of, and how often it is looked.
const ANSWER_PATIENCE: Duration = Duration::from_millis(1500);
const ANSWER_PAUSE: Duration = Duration::from_millis(100);
/// How long a change is planned anew while others come first.
const RACE_PATIENCE: Duration = Duration::from_secs(2);

/// What a caller may say besides.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    /// Only tell what would be done.
    dry_run: bool,
    /// Of `drain` and `replace`: give up replicas that no other node can take.
    fewer_replicas: bool,
    /// Of `add`: shards with fewer replicas get one more on this node.
    replicas: Option<usize>,
    /// Of `replace`: who takes the node's place.
    with: Option<NodeId>,
}

/// What is done, or would be.
#[derive(Debug, Serialize)]
pub(super) struct Planned {
    moves: Vec<Move>,
    /// Of the shard map that says so.
    epoch: u64,
    dry_run: bool,
}

/// `POST /v1/cluster/nodes/:node/:change`
pub(super) async fn change<S: Store>(
    State(api): State<Api<S>>,
    Path((node, change)): Path<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Planned>, Problem> {
    let asked = asked(&body?)?;
    if asked.with.is_some() != (change == "replace") {
        return Err(Problem::invalid("`with` names the node that takes the place of one that is replaced"));
    }
    if asked.fewer_replicas && change != "drain" && change != "replace" {
        return Err(Problem::invalid("`fewer_replicas` is for `drain` and `replace`"));
    }
    if asked.replicas.is_some() && change != "add" {
        return Err(Problem::invalid("`replicas` is for `add`"));
    }
    let node = node.parse().map(NodeId).map_err(|_| Problem::invalid(format!("`{node}` is no node's id")))?;
    if let Some(newcomer) = if change == "add" { Some(node) } else { asked.with } {
        check_answers(&api.store, newcomer).await?;
    }
    let silent = api.store.nodes().await.into_iter().filter(|node| !node.reachable);
    let leaving = Leaving {
        with: asked.with,
        fewer_replicas: asked.fewer_replicas,
        unreachable: silent.map(|node| NodeId(node.id)).collect(),
    };
    let plan = |map: &ShardMap| -> Result<Vec<Move>, ChangeError> {
        match &*change {
            "add" => map.moves_onto(node, asked.replicas.unwrap_or(1)),
            "drain" | "replace" => map.moves_off(node, &leaving),
            _ => map.remove_node(node).map(|_| Vec::new()),
        }
    };
    if !["add", "drain", "replace", "remove"].contains(&&*change) {
        return Err(Problem::invalid(format!("`{change}` is no change: add, drain, replace or remove")));
    }
    let mut moves = Vec::new();
    let mut planned = |map: &ShardMap| {
        moves = plan(map)?;
        match &*change {
            _ if asked.dry_run => Ok(map.clone()),
            "remove" => map.remove_node(node),
            what => {
                let next = map.move_replicas(&moves)?.with_drained(node, what != "add");
                // Whoever gets something has a part again.
                Ok(moves.iter().filter_map(|one| one.to).fold(next, |next, to| next.with_drained(to, false)))
            }
        }
    };
    let until = Instant::now() + RACE_PATIENCE;
    let changed = loop {
        match api.store.change_map(&mut planned).await {
            Err(MapError::Raced) if Instant::now() < until => {}
            changed => break changed?,
        }
    };
    let epoch = changed.epoch;
    Ok(Json(Planned { moves, epoch, dry_run: asked.dry_run }))
}

/// A change that waits for a node that is not there would wait for ever. One that has just joined may not have been heard of.
async fn check_answers<S: Store>(store: &S, id: NodeId) -> Result<(), Problem> {
    let until = Instant::now() + ANSWER_PATIENCE;
    loop {
        match store.nodes().await.into_iter().find(|node| node.id == id.0) {
            // The map that is about to be changed knows better than this node's copy.
            None => return Ok(()),
            Some(node) if node.reachable => return Ok(()),
            Some(_) if Instant::now() >= until => {
                let detail = format!("node {id} does not answer: start it, or name another node");
                // Not `unavailable`, after which the same would be asked of other nodes, again and again.
                return Err(Problem::new(ErrorKind::Conflict, detail));
            }
            Some(_) => tokio::time::sleep(ANSWER_PAUSE).await,
        }
    }
}

fn asked(body: &Bytes) -> Result<Asked, Problem> {
    if body.is_empty() {
        return Ok(Asked::default());
    }
    let shape = r#"{"dry_run": false, "fewer_replicas": false, "replicas": 3, "with": 4}"#;
    let malformed = |error| Problem::invalid(format!("the body must be like {shape}: {error}"));
    serde_json::from_slice::<Object<Asked>>(body).map(|Object(asked)| asked).map_err(malformed)
}
