//! `/v1/kv`: scans and deletes of ranges of keys.
//!
//! A range lies over all shards, so each is asked; what one command does is bounded, so each is asked until it is done.
//! A scan answers with one page: [`keevee_core::scan`] says what holds of it. A delete removes everything, step by step.

use std::time::Instant;

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use http::HeaderMap;
use keevee_core::command::{Action, Command, OperationResult, ScannedKey};
use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;
use keevee_core::json::Entry;
use keevee_core::limits::Invalid;
use keevee_core::range::{DELETE_RANGE_KEYS_MAX, KeyRange, SCAN_KEYS_MAX};
use keevee_core::requests::RequestId;
use keevee_core::scan::{self, Merge, Page};
use uuid::Uuid;

use super::problem::{self, Problem};
use super::query::{self, RangeQuery};
use super::{Api, Store, conditions, kv};
use crate::metrics::{Operation, Protocol};
use crate::node::Context;

pub(super) const PATH: &str = "/v1/kv";

/// Shards that one request asks at once.
const SHARDS_AT_ONCE: usize = 16;

/// Neither a scan nor a delete.
pub(super) async fn other() -> Problem {
    Problem::method_not_allowed("GET, HEAD, DELETE")
}

/// `GET /v1/kv`
pub(super) async fn scan<S: Store>(
    State(api): State<Api<S>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let started = Instant::now();
    let result = scan_page(&api, query.as_deref(), &headers).await;
    answered(&api, Operation::Scan, started, result)
}

/// `DELETE /v1/kv`
pub(super) async fn delete<S: Store>(
    State(api): State<Api<S>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let started = Instant::now();
    let result = delete_all(&api, query.as_deref(), &headers).await;
    answered(&api, Operation::DeleteRange, started, result)
}

fn answered<S>(
    api: &Api<S>,
    operation: Operation,
    started: Instant,
    result: Result<String, Problem>,
) -> Response {
    let error = result.as_ref().err().map(|problem| problem.kind);
    api.metrics.request(Protocol::Http, operation, error, started.elapsed());
    result.map_or_else(Problem::into_response, kv::json)
}

/// What the query and the headers ask, with a map that is not older than the caller's.
async fn read<S: Store>(
    api: &Api<S>,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<(RangeQuery, Context), Problem> {
    let asked = query::range(query)?;
    conditions::none(headers)?;
    let options = kv::with_headers(asked.options, headers)?;
    if options.redirect {
        let detail =
            "a range is in all shards: there is no one node to go to, so leave `Keevee-Redirect` out";
        return Err(Problem::invalid(detail));
    }
    let context = kv::context(api, options);
    let max = api.settings.limits.key_bytes_max;
    let ends = [Some(&asked.range.start), asked.range.end.as_ref()];
    if let Some(end) = ends.into_iter().flatten().find(|end| end.len() > max) {
        return Err(Invalid::KeyTooLong { bytes: end.len(), max }.into());
    }
    Ok((asked, context))
}

async fn scan_page<S: Store>(
    api: &Api<S>,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<String, Problem> {
    let (RangeQuery { range, limit, cursor, .. }, context) = read(api, query, headers).await?;
    let rest = cursor.map_or(Ok(range.clone()), |cursor| scan::rest(&range, &cursor));
    let rest = rest.map_err(|error| Problem::invalid(error.to_string()))?;
    api.store.catch_up(context.epoch, context.deadline).await;
    let mut merge = Merge::new(&rest, api.store.shards_with_keys(), limit.unwrap_or(SCAN_KEYS_MAX));
    loop {
        let asks = merge.asks();
        if asks.is_empty() {
            break;
        }
        let answers = stream::iter(asks).map(async |ask| {
            let context = Context { shard: Some(ask.shard), ..context.clone() };
            match only_result(api, context, Command::single(ask.action())).await? {
                OperationResult::Scanned { keys, next } => Ok((ask, keys, next)),
                other => Err(Problem::unexpected(&other)),
            }
        });
        let answers: Vec<_> = answers.buffer_unordered(SHARDS_AT_ONCE).try_collect().await?;
        for (ask, keys, next) in answers {
            let taken = merge.take_in(&ask, keys, next);
            taken.map_err(|error| Problem::new(ErrorKind::Unavailable, error.to_string()))?;
        }
    }
    Ok(page_json(&range, &merge.finish()))
}

fn page_json(range: &KeyRange, page: &Page) -> String {
    #[derive(serde::Serialize)]
    struct PageJson {
        entries: Vec<Entry>,
        cursor: Option<String>,
    }
    let entries = page.keys.iter().map(|ScannedKey { key, value }| {
        Entry::new(key, value.version, &value.value, value.expires_unix_ms())
    });
    let cursor = page.next.as_ref().map(|next| scan::cursor(range, next));
    // Strings and numbers only: this can't fail.
    serde_json::to_string(&PageJson { entries: entries.collect(), cursor }).unwrap_or_default()
}

async fn delete_all<S: Store>(
    api: &Api<S>,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<String, Problem> {
    let (RangeQuery { options, range, limit, cursor }, context) = read(api, query, headers).await?;
    query::of_write(options)?;
    if limit.is_some() || cursor.is_some() {
        return Err(Problem::invalid("`limit` and `cursor` are for scans: a delete removes the whole range"));
    }
    if range.is_all() {
        let detail = "say what to delete: `prefix`, or `start` or `end`, of at least one byte";
        return Err(Problem::invalid(detail));
    }
    // With an id, each step is safe to be sent again by this node.
    let minted = || RequestId::Timed(Uuid::now_v7().as_u128());
    let id = conditions::request_id(headers)?.unwrap_or_else(minted);
    api.store.catch_up(context.epoch, context.deadline).await;
    let shards = stream::iter(api.store.shards_with_keys());
    let parts = shards.map(|shard| delete_in(api, &context, shard, range.clone(), id));
    let parts: Vec<(u64, Option<Problem>)> = parts.buffer_unordered(SHARDS_AT_ONCE).collect().await;
    let deleted: u64 = parts.iter().map(|(deleted, _)| deleted).sum();
    let mut problems: Vec<Problem> = parts.into_iter().filter_map(|(_, problem)| problem).collect();
    // What is unknown of one shard is unknown of the whole.
    problems.sort_by_key(|problem| problem.kind != ErrorKind::OutcomeUnknown);
    match problems.into_iter().next() {
        None => Ok(format!("{{\"deleted\":{deleted}}}")),
        Some(problem) if deleted == 0 => Err(problem),
        Some(Problem { detail, .. }) => {
            let detail = format!("{deleted} keys were deleted, and then: {detail}; ask again for the rest");
            Err(Problem::new(ErrorKind::OutcomeUnknown, detail))
        }
    }
}

/// Deletes a shard's keys of a range: how many, and why not all.
async fn delete_in<S: Store>(
    api: &Api<S>,
    context: &Context,
    shard: ShardId,
    mut range: KeyRange,
    id: RequestId,
) -> (u64, Option<Problem>) {
    let (mut sum, mut start) = (0, None);
    loop {
        let action = Action::DeleteRange { range: range.clone(), limit: DELETE_RANGE_KEYS_MAX };
        let request_id = Some(id.of_step(shard, start.as_deref()));
        let context = Context { shard: Some(shard), ..context.clone() };
        let command = Command { request_id, ..Command::single(action) };
        match only_result(api, context, command).await {
            Ok(OperationResult::DeletedRange { deleted, next }) => {
                sum += deleted;
                match next {
                    Some(next) => {
                        start = Some(next.clone());
                        range = range.rest(next);
                    }
                    None => return (sum, None),
                }
            }
            Ok(other) => return (sum, Some(Problem::unexpected(&other))),
            Err(problem) => return (sum, Some(problem)),
        }
    }
}

async fn only_result<S: Store>(
    api: &Api<S>,
    context: Context,
    command: Command,
) -> Result<OperationResult, Problem> {
    let outcome = api.store.execute(context, command).await?;
    problem::only_result(problem::results(outcome)?)
}
