//! Serves one peer's connection: checks who posts, and hands what they post to the node.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;
use tokio::net::TcpStream;

use crate::http::body::{self, BodyError};
use crate::http::problem::Problem;
use crate::metrics::RefusalReason;
use crate::transport::identity::{Refusal, check_secret};
use crate::transport::listener::{Caller, Inbound};
use crate::transport::wire::{self, FORWARD_PATH, HELLO_PATH, WireError};

/// Answers what comes on a connection until it ends.
pub(in crate::transport) async fn serve(stream: TcpStream, caller: Caller, inbound: Arc<Inbound>) {
    let service = service_fn(async |request| {
        let response =
            handle(&inbound, &caller, request).await.unwrap_or_else(|Rejection(reason, problem)| {
                inbound.refusals.note(caller.party(), reason, &problem.detail);
                problem.into_response()
            });
        Ok::<_, Infallible>(response)
    });
    let mut stopping = inbound.stop.subscribe();
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    let end = tokio::select! {
        end = connection.as_mut() => end,
        () = caller.stays_without_secret(inbound.config.bounds.handshake_timeout) => {
            return tracing::debug!("a connection is closed: the secret did not arrive");
        }
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    match end {
        Err(error) if error.is_parse() => {
            let detail = "what it sends is not HTTP/1.1: is `peer_transport` the same on every node?";
            inbound.refusals.note(caller.party(), RefusalReason::Malformed, &detail);
        }
        Err(error) => tracing::debug!(%error, "a peer's connection broke"),
        Ok(()) => {}
    }
    inbound.broke(&caller);
}

/// Why a request is not taken: as it is counted, and as it is answered.
struct Rejection(RefusalReason, Problem);

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Rejection {
        let problem = Problem::invalid(refusal.to_string()).with_status(StatusCode::FORBIDDEN);
        Rejection(refusal.reason(), problem)
    }
}

impl From<WireError> for Rejection {
    fn from(error: WireError) -> Rejection {
        Rejection(RefusalReason::Malformed, Problem::invalid(error.to_string()))
    }
}

impl From<BodyError> for Rejection {
    fn from(error: BodyError) -> Rejection {
        let reason = match error {
            BodyError::TooLarge { .. } => RefusalReason::TooLarge,
            BodyError::Broken(_) => RefusalReason::Malformed,
        };
        Rejection(reason, error.into())
    }
}

async fn handle(
    inbound: &Inbound,
    caller: &Caller,
    request: Request<Incoming>,
) -> Result<Response, Rejection> {
    // The secret comes first: nobody else is told anything, nor makes this node allocate.
    check_secret(request.headers().get(AUTHORIZATION), &inbound.authorization)?;
    caller.has_secret.store(true, Ordering::Relaxed);
    let (head, mut body) = request.into_parts();
    let path = head.uri.path();
    if !wire::is_peer_path(path) {
        let problem = Problem::invalid(WireError::UnknownKind(path.to_owned()).to_string());
        let problem = Problem { kind: ErrorKind::NotFound, ..problem.with_status(StatusCode::NOT_FOUND) };
        return Err(Rejection(RefusalReason::Malformed, problem));
    }
    if head.method != Method::POST {
        return Err(Rejection(RefusalReason::Malformed, Problem::method_not_allowed("POST")));
    }
    let read = body::read(&mut body, inbound.config.body_bytes_max);
    let longest = inbound.config.bounds.body_timeout;
    let body = tokio::time::timeout(longest, read)
        .await
        .unwrap_or_else(|_| Err(BodyError::Broken(format!("it did not arrive within {longest:?}"))))?;
    match path {
        HELLO_PATH => {
            let node = inbound.heard(&wire::read_hello(&body)?)?;
            caller.node.get_or_init(|| node);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        FORWARD_PATH => {
            let (envelope, forward) = wire::read_forward(&body)?;
            drop(body);
            let from = inbound.config.check(&envelope)?;
            let replies = inbound.handler.execute_forwarded(from, forward).await;
            let written = wire::write_replies(replies);
            // The commands were carried out, and their answers are lost.
            let lost = |error: WireError| Problem::new(ErrorKind::OutcomeUnknown, error.to_string());
            let body = match written {
                Ok(written) => Body::from(written),
                Err(error) => return Ok(lost(error).into_response()),
            };
            let mut response = Response::new(body);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok(response)
        }
        path => {
            let (envelope, messages) = wire::read_messages(path, &body)?;
            let from = inbound.heard(&envelope)?;
            inbound.handler.receive(from, ShardId(envelope.shard), messages);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
    }
}
