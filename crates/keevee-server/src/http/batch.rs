//! `POST /v1/batch`: several operations on the keys of one shard, all or none ([`keevee_core::json`] has their form).

use std::time::Instant;

use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use keevee_core::json;

use super::problem::{self, Problem};
use super::{Api, Store, conditions, kv, query};
use crate::metrics::{Operation, Protocol};

pub(super) const PATH: &str = "/v1/batch";

/// What a batch's text may have beside its keys and values, and for what JSON and base64 add to them.
const OVERHEAD_BYTES_MAX: usize = 1 << 20;

/// Another method than POST, which other paths take as well.
pub(super) async fn other() -> Problem {
    Problem::method_not_allowed("POST")
}

/// `POST /v1/batch`
pub(super) async fn run<S: Store>(
    State(api): State<Api<S>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    request: Request<Body>,
) -> Response {
    let started = Instant::now();
    let result = execute(&api, query.as_deref(), &headers, request.into_body()).await;
    let error = result.as_ref().err().map(|problem| problem.kind);
    api.metrics.request(Protocol::Http, Operation::Execute, error, started.elapsed());
    result.map_or_else(Problem::into_response, kv::json)
}

async fn execute<S: Store>(
    api: &Api<S>,
    query: Option<&str>,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<String, Problem> {
    let options = kv::with_headers(query::options(query)?, headers)?;
    conditions::none(headers)?;
    let request_id = conditions::request_id(headers)?;
    let max = api.settings.limits.command_bytes_max * 4 / 3 + OVERHEAD_BYTES_MAX;
    let _room = kv::room(api, &body, max)?;
    let text = kv::read_in_time(api, &mut body, max, &options).await?;
    let batch: json::Batch = serde_json::from_slice(&text)
        .map_err(|error| Problem::invalid(format!("the body is no batch: {error}")))?;
    let mut command = batch.command().map_err(|error| Problem::invalid(error.to_string()))?;
    command.request_id = request_id;
    let options = if command.is_read_only() { options } else { query::of_write(options)? };
    let operations = command.operations.len();
    let outcome = api.store.execute(kv::context(api, options), command).await?;
    let place = problem::failed_part(&outcome);
    let results = problem::results(outcome).map_err(|problem| match place {
        Some(place) => Problem { detail: format!("{place}: {}", problem.detail), ..problem },
        None => problem,
    })?;
    if results.len() != operations {
        return Err(Problem::unexpected(&results));
    }
    let results: Vec<json::Result> = results.into_iter().map(json::Result::from).collect();
    // Strings and numbers only: this can't fail.
    let results = serde_json::to_string(&results).unwrap_or_default();
    Ok(format!("{{\"results\":{results}}}"))
}
