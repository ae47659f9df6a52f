//! `/kv/{key}`: get, put, delete. The hot path. And `/v1/kv/{key}/increment`.

use std::time::Instant;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, EXPECT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, request};
use keevee_core::command::{Action, Command, Only, OperationResult, Versioned};
use keevee_core::error::ErrorKind;
use keevee_core::limits::Invalid;
use tokio::sync::SemaphorePermit;

use super::conditions::{self, Unmet};
use super::path::{self, Target};
use super::problem::{self, Problem};
use super::query::{self, Options};
use super::{Api, Store, body};
use crate::metrics::{Operation, Protocol};
use crate::node::Context;

const PREFIX: &str = "/kv/";
const INCREMENT: (&str, &str) = ("/v1/kv/", "/increment");

/// True if the path is that of a key.
pub(super) fn is_kv(uri: &Uri) -> bool {
    uri.path().starts_with(PREFIX)
}

/// True if the path is that of an increment.
pub(super) fn is_increment(uri: &Uri) -> bool {
    increment_key(uri).is_some()
}

/// The encoded key in such a path. Slashes in it are encoded, or they are not part of a key.
fn increment_key(uri: &Uri) -> Option<&str> {
    let key = uri.path().strip_prefix(INCREMENT.0)?.strip_suffix(INCREMENT.1)?;
    (!key.contains('/')).then_some(key)
}

/// Answers a request for which [`is_increment`] holds.
pub(super) async fn handle_increment<S: Store>(api: &Api<S>, request: Request<Body>) -> Response {
    let started = Instant::now();
    let (head, mut body) = request.into_parts();
    if head.method != Method::POST {
        return Problem::method_not_allowed("POST").into_response();
    }
    let result = increment(api, &head, &mut body).await;
    let error = result.as_ref().err().map(|problem| problem.kind);
    api.metrics.request(Protocol::Http, Operation::Execute, error, started.elapsed());
    discard_if_refused(api, &head, body, error);
    result.unwrap_or_else(Problem::into_response)
}

async fn increment<S: Store>(
    api: &Api<S>,
    head: &request::Parts,
    body: &mut Body,
) -> Result<Response, Problem> {
    let encoded = increment_key(&head.uri).unwrap_or_default();
    let key = path::decode(encoded, "key").map_err(|error| Problem::invalid(error.to_string()))?;
    check_key(api, &key)?;
    let (options, by) = query::increment(head.uri.query())?;
    let options = with_headers(options, &head.headers)?;
    // It might be meant to say by how much.
    let no_body = |_| Problem::invalid("the body must be empty: `?by=` says how much is added, 1 without it");
    read_in_time(api, body, 0, &options).await.map_err(no_body)?;
    let preconditions = conditions::of_write(&head.headers, &key)?;
    let request_id = conditions::request_id(&head.headers)?;
    let command = Command { request_id, preconditions, ..Command::single(Action::Increment { key, by }) };
    match execute(api, options, command).await? {
        OperationResult::Incremented { value, version } => {
            let mut response = json(format!("{{\"value\":{value},\"version\":{version}}}"));
            response.headers_mut().insert(ETAG, conditions::etag(version));
            Ok(response)
        }
        other => Err(Problem::unexpected(&other)),
    }
}

/// Answers a request for which [`is_kv`] holds.
pub(super) async fn handle<S, B>(api: &Api<S>, request: Request<B>) -> Response
where
    S: Store,
    B: hyper::body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: std::fmt::Display,
{
    let started = Instant::now();
    let (head, mut body) = request.into_parts();
    let (operation, result) = match head.method {
        Method::GET | Method::HEAD => (Operation::Get, get(api, &head).await),
        Method::PUT => (Operation::Put, put(api, &head, &mut body).await),
        Method::DELETE => (Operation::Delete, delete(api, &head).await),
        _ => return Problem::method_not_allowed("GET, HEAD, PUT, DELETE").into_response(),
    };
    let error = result.as_ref().err().map(|problem| problem.kind);
    api.metrics.request(Protocol::Http, operation, error, started.elapsed());
    discard_if_refused(api, &head, body, error);
    result.unwrap_or_else(Problem::into_response)
}

/// A client that waits for permission to send the body gets the answer instead.
fn discard_if_refused<S, B>(api: &Api<S>, head: &request::Parts, body: B, error: Option<ErrorKind>)
where
    B: hyper::body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: std::fmt::Display,
{
    if error.is_some() && !body.is_end_stream() && !head.headers.contains_key(EXPECT) {
        tokio::spawn(body::discard(body, api.settings.body_timeout));
    }
}

async fn get<S: Store>(api: &Api<S>, head: &request::Parts) -> Result<Response, Problem> {
    let key = key_alone(api, head)?;
    let options = options(head)?;
    // Before the read, so that broken conditions are told even where the key is absent.
    conditions::of_read(&head.headers, None)?;
    let command = Command::single(Action::Get { key });
    let found = match execute(api, options, command).await? {
        OperationResult::Value(found) => found,
        other => return Err(Problem::unexpected(&other)),
    };
    let version = found.as_ref().map(|found| found.version);
    match (conditions::of_read(&head.headers, version)?, found) {
        (Some(Unmet::Conflict), _) => Err(Problem::conflict(version)),
        (_, None) => Err(Problem::new(ErrorKind::NotFound, "the key is absent")),
        (Some(Unmet::NotModified), Some(found)) => {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            response.headers_mut().insert(ETAG, conditions::etag(found.version));
            conditions::tell_expiry(response.headers_mut(), &found);
            Ok(response)
        }
        (None, Some(found)) => Ok(value_response(found, head.method == Method::HEAD)),
    }
}

async fn put<S, B>(api: &Api<S>, head: &request::Parts, body: &mut B) -> Result<Response, Problem>
where
    S: Store,
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let Target { key, value } = target(api, head)?;
    let (options, ttl) = query::put(head.uri.query())?;
    let options = with_headers(options, &head.headers)?;
    let expires = conditions::expiry(&head.headers, ttl)?;
    let preconditions = conditions::of_write(&head.headers, &key)?;
    let request_id = conditions::request_id(&head.headers)?;
    let max = api.settings.limits.value_bytes_max;
    let body_bytes_max = if value.is_some() { 0 } else { max };
    // Held until the answer: so long the value is in memory.
    let _room = room(api, body, body_bytes_max)?;
    let value = match value {
        None => read_in_time(api, body, body_bytes_max, &options).await?,
        Some(value) if value.len() > max => {
            return Err(Invalid::ValueTooLarge { bytes: value.len(), max }.into());
        }
        Some(value) => {
            let in_path = |_| Problem::invalid("the value is in the path, so the body must be empty");
            read_in_time(api, body, body_bytes_max, &options).await.map_err(in_path)?;
            value
        }
    };
    let action = Action::Put { key, value, expires, only: Only::Always };
    let command = Command { request_id, preconditions, ..Command::single(action) };
    match execute(api, options, command).await? {
        OperationResult::Written { version } => {
            let mut response = json(format!("{{\"version\":{version}}}"));
            response.headers_mut().insert(ETAG, conditions::etag(version));
            Ok(response)
        }
        other => Err(Problem::unexpected(&other)),
    }
}

async fn delete<S: Store>(api: &Api<S>, head: &request::Parts) -> Result<Response, Problem> {
    let key = key_alone(api, head)?;
    let options = write_options(head)?;
    let preconditions = conditions::of_write(&head.headers, &key)?;
    let request_id = conditions::request_id(&head.headers)?;
    let command = Command { request_id, preconditions, ..Command::single(Action::Delete { key }) };
    match execute(api, options, command).await? {
        OperationResult::Deleted { existed } => Ok(json(format!("{{\"deleted\":{existed}}}"))),
        other => Err(Problem::unexpected(&other)),
    }
}

/// What the path names; its key is neither empty nor too long.
fn target<S>(api: &Api<S>, head: &request::Parts) -> Result<Target, Problem> {
    let rest = head.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let target = path::parse(rest).map_err(|error| Problem::invalid(error.to_string()))?;
    check_key(api, &target.key)?;
    Ok(target)
}

/// As of any command: a key that is empty or too long is refused.
pub(super) fn check_key<S>(api: &Api<S>, key: &Bytes) -> Result<(), Problem> {
    let (bytes, max) = (key.len(), api.settings.limits.key_bytes_max);
    match bytes {
        0 => Err(Invalid::EmptyKey.into()),
        bytes if bytes > max => Err(Invalid::KeyTooLong { bytes, max }.into()),
        _ => Ok(()),
    }
}

/// The key of a request that takes no value.
fn key_alone<S>(api: &Api<S>, head: &request::Parts) -> Result<Bytes, Problem> {
    match target(api, head)? {
        Target { key, value: None } => Ok(key),
        _ => {
            let detail = "only PUT takes a value after the key: a slash within a key is written %2F";
            Err(Problem::invalid(detail))
        }
    }
}

fn options(head: &request::Parts) -> Result<Options, Problem> {
    with_headers(query::options(head.uri.query())?, &head.headers)
}

/// The options of a request about a key, with what its headers say.
pub(super) fn with_headers(options: Options, headers: &HeaderMap) -> Result<Options, Problem> {
    let (redirect, epoch) = (conditions::redirect(headers)?, conditions::epoch(headers)?);
    Ok(Options { redirect, epoch, ..options })
}

fn write_options(head: &request::Parts) -> Result<Options, Problem> {
    query::of_write(options(head)?)
}

/// Room in memory for the body that is to be read: what is declared, or the most that it may be.
pub(super) fn room<'a, S, B>(api: &'a Api<S>, body: &B, max: usize) -> Result<SemaphorePermit<'a>, Problem>
where
    B: hyper::body::Body,
{
    let declared = body.size_hint();
    // One that is too large is refused as that, and not read.
    let bytes = if declared.lower() > max as u64 { 0 } else { declared.upper().unwrap_or(max as u64) };
    let bytes = u32::try_from(bytes.min(max as u64)).unwrap_or(u32::MAX);
    let busy = |_| Problem::new(ErrorKind::Unavailable, "too many bodies are in memory: try again");
    api.body_room.try_acquire_many(bytes).map_err(busy)
}

/// Reads a body within the time that the request itself set, if it did.
pub(super) async fn read_in_time<S, B>(
    api: &Api<S>,
    body: &mut B,
    max: usize,
    options: &Options,
) -> Result<Bytes, Problem>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let longest = api.settings.body_timeout;
    let limit = options.timeout.map_or(longest, |timeout| timeout.min(longest));
    match tokio::time::timeout(limit, body::read(body, max)).await {
        Ok(read) => Ok(read?),
        Err(_) => {
            let problem = Problem::invalid(format!("the body did not arrive within {limit:?}"));
            Err(problem.with_status(StatusCode::REQUEST_TIMEOUT))
        }
    }
}

/// The result of the command's only operation.
async fn execute<S: Store>(
    api: &Api<S>,
    options: Options,
    command: Command,
) -> Result<OperationResult, Problem> {
    let outcome = api.store.execute(context(api, options), command).await?;
    problem::only_result(problem::results(outcome)?)
}

/// What the options mean from now on.
pub(super) fn context<S>(api: &Api<S>, options: Options) -> Context {
    let Options { consistency, timeout, redirect, epoch } = options;
    let deadline = Instant::now() + timeout.unwrap_or(api.settings.timeout);
    Context { consistency: consistency.unwrap_or_default(), redirect, epoch, ..Context::until(deadline) }
}

fn value_response(found: Versioned, is_head: bool) -> Response {
    let length = found.value.len();
    let body = if is_head { Body::empty() } else { Body::from(found.value.clone()) };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(ETAG, conditions::etag(found.version));
    conditions::tell_expiry(headers, &found);
    response
}

pub(super) fn json(text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
