//! The public gRPC interface, `keevee.v1.Kv` and `grpc.health.v1.Health`: a thin adapter over
//! [`Node::execute`](crate::node::Node::execute), as [`crate::http`] is, on the same port.
//!
//! The service and its messages are in `crates/keevee-core/proto/kv.proto`: the Rust client speaks them too and
//! must not depend on the server, so the core has them ([`keevee_core::kv`]) and each side generates its own
//! end.
//!
//! What HTTP has, this has: preconditions, versions, idempotency keys, stale reads, deadlines, the same kinds of
//! errors by one mapping ([`failure::code`]), the same limits. Besides, `Execute` carries out any command, and
//! `Pipeline` many requests on one stream.
//!
//! Requests are read by `messages.rs` and not by tonic's generated server. That takes a message in whole before
//! anyone is asked, so that room in memory for all bodies together, and a time in which a body must arrive,
//! could only be had by taking its framing apart beside it. What remains of tonic here is its statuses, the
//! health service, and the clients that the tests generate.
//!
//! It leaves out connections (`http/server.rs`), reflection and compression.

pub mod failure;
mod health;
mod messages;
mod operations;
mod pipeline;
#[cfg(test)]
mod tests;
mod transit;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use keevee_core::kv::{request, response};
use tokio::sync::watch;

use self::failure::Failure;
use self::health::Health;
use self::messages::{Messages, Patience};
use self::transit::Pulse;
use crate::http::conditions;
use crate::http::problem::Problem;
use crate::http::query::TIMEOUT_MAX;
use crate::http::{Api, Store};
use crate::node::Context;

/// Sent by every client, with or without the format of the messages.
const MEDIA_TYPE: &str = "application/grpc";
const TIMEOUT: &str = "grpc-timeout";
const ENCODING: &str = "grpc-encoding";

/// The interface of one node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Grpc<S> {
    api: Api<S>,
    health: Health<S>,
    /// True once the node stops: what could go on for ever ends.
    stopping: watch::Receiver<bool>,
    pulse: Arc<Pulse>,
}

/// True if the request is one of gRPC's, well-formed or not.
pub(crate) fn is_grpc<B>(request: &Request<B>) -> bool {
    let media_type = request.headers().get(CONTENT_TYPE);
    media_type.is_some_and(|value| value.as_bytes().starts_with(MEDIA_TYPE.as_bytes()))
}

impl<S: Store> Grpc<S> {
    /// Beside the HTTP interface of the same node.
    pub(crate) fn new(api: Api<S>, stopping: watch::Receiver<bool>) -> Grpc<S> {
        let health = Health::new(api.store.clone(), api.settings.body_timeout, stopping.clone());
        Grpc { api, health, stopping, pulse: Pulse::start() }
    }

    /// Answers a request for which [`is_grpc`] holds.
    pub(crate) async fn handle(&self, request: Request<Incoming>) -> Response {
        if let Some(refusal) = refusal(&request) {
            return refusal;
        }
        let unary = match request.uri().path() {
            "/keevee.v1.Kv/Put" => Unary::Put,
            "/keevee.v1.Kv/Get" => Unary::Get,
            "/keevee.v1.Kv/Delete" => Unary::Delete,
            "/keevee.v1.Kv/Execute" => Unary::Execute,
            "/keevee.v1.Kv/Pipeline" => {
                return match conditions::redirect(request.headers()) {
                    Ok(redirect) => {
                        let (api, stopping) = (self.api.clone(), self.stopping.clone());
                        pipeline::respond(
                            api,
                            request.into_body(),
                            redirect,
                            Arc::clone(&self.pulse),
                            stopping,
                        )
                    }
                    Err(problem) => Failure::from(problem).into_response(),
                };
            }
            path if path.starts_with("/grpc.health.v1.Health/") => return self.health.handle(request).await,
            _ => return Failure::unimplemented("there is no such method").into_response(),
        };
        match self.unary(unary, request).await {
            Ok(result) => single_response(&result),
            Err(failure) => failure.into_response(),
        }
    }

    async fn unary(&self, unary: Unary, request: Request<Incoming>) -> Result<response::Result, Failure> {
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let outcome = async {
            let timeout = timeout(&head.headers)?;
            let longest = self.api.settings.body_timeout;
            let patience = Patience::Refuse { timeout: timeout.unwrap_or(longest).min(longest) };
            let mut messages = Messages::new(body, &self.api, patience);
            let absent = || Problem::invalid("the request has no message");
            let message = messages.next().await?.ok_or_else(absent)?;
            if messages.next().await?.is_some() {
                return Err(Problem::invalid("the request has more than one message").into());
            }
            // The message has its room until the answer.
            let (_room, operation) = (message.room, unary.decode(message.bytes)?);
            let deadline = started + timeout.unwrap_or(self.api.settings.timeout);
            let (redirect, epoch) = (conditions::redirect(&head.headers)?, conditions::epoch(&head.headers)?);
            let context = Context { redirect, epoch, ..Context::until(deadline) };
            operations::carry_out(&self.api, operation, context).await
        };
        let outcome = outcome.await;
        operations::count(&self.api, unary.metric(), &outcome, started);
        outcome
    }
}

/// The methods that take one message and give one.
#[derive(Clone, Copy)]
enum Unary {
    Put,
    Get,
    Delete,
    Execute,
}

impl Unary {
    fn decode(self, bytes: Bytes) -> Result<request::Operation, Problem> {
        match self {
            Unary::Put => Ok(request::Operation::Put(messages::decode(bytes)?)),
            Unary::Get => Ok(request::Operation::Get(messages::decode(bytes)?)),
            Unary::Delete => Ok(request::Operation::Delete(messages::decode(bytes)?)),
            Unary::Execute => Ok(request::Operation::Execute(messages::decode(bytes)?)),
        }
    }

    fn metric(self) -> crate::metrics::Operation {
        match self {
            Unary::Put => crate::metrics::Operation::Put,
            Unary::Get => crate::metrics::Operation::Get,
            Unary::Delete => crate::metrics::Operation::Delete,
            Unary::Execute => crate::metrics::Operation::Execute,
        }
    }
}

/// Why the request is no call, whatever its method: what the protocol itself demands.
fn refusal<B>(request: &Request<B>) -> Option<Response> {
    if request.method() != Method::POST {
        return Some(Problem::method_not_allowed("POST").into_response());
    }
    let media_type = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let format = media_type.and_then(|value| value.strip_prefix(MEDIA_TYPE.as_bytes()));
    // Parameters may follow; other formats (`+json`) and other protocols (`-web`) may not.
    if !format.is_some_and(|format| matches!(format, [] | [b';', ..]) || format.starts_with(b"+proto")) {
        let problem = Problem::invalid("gRPC is spoken here as application/grpc or application/grpc+proto");
        return Some(problem.with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE).into_response());
    }
    let is_encoded = request.headers().get(ENCODING).is_some_and(|encoding| encoding != "identity");
    is_encoded.then(|| Failure::unimplemented("messages must not be compressed here").into_response())
}

/// The time that the client gives the call. More than the longest is as good as the longest.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse_timeout);
    let invalid = || Problem::invalid("`grpc-timeout` takes up to eight digits and one of H, M, S, m, u, n");
    parsed.map(|timeout| Some(timeout.min(TIMEOUT_MAX))).ok_or_else(invalid)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn single_response(result: &response::Result) -> Response {
    let mut message = BytesMut::new();
    match result {
        response::Result::Put(answer) => messages::write(answer, &mut message),
        response::Result::Get(answer) => messages::write(answer, &mut message),
        response::Result::Delete(answer) => messages::write(answer, &mut message),
        response::Result::Execute(answer) => messages::write(answer, &mut message),
        response::Result::Error(error) => unreachable!("{error:?} is a failure"),
    }
    let frames = [Frame::data(message.freeze()), Frame::trailers(success())];
    response(Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)))))
}

/// Resolves once the node stops.
async fn stops(stopping: &mut watch::Receiver<bool>) {
    // Without its sender the node has stopped.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// The trailers of what went well.
fn success() -> HeaderMap {
    HeaderMap::from_iter([(tonic::Status::GRPC_STATUS, HeaderValue::from_static("0"))])
}

fn response(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}
