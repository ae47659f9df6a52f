//! The listener for peers: checks who posts, and hands what they post to the node.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Handler;
use super::identity::{PeerConfig, Refusal, check_secret};
use super::remote::Remote;
use super::throttle::Throttle;
use super::wire::{self, Envelope, FORWARD_PATH, HELLO_PATH, WireError};
use crate::http::body;
use crate::http::problem::Problem;

/// After a failed accept (no file descriptor is free, mostly), something must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every connection needs.
pub(super) struct Inbound {
    pub(super) config: PeerConfig,
    pub(super) authorization: HeaderValue,
    pub(super) remotes: BTreeMap<NodeId, Arc<Remote>>,
    pub(super) handler: Handler,
    pub(super) bounds: Bounds,
    pub(super) complaints: Throttle,
    /// Sent once: connections end as soon as what is under way on them is answered.
    pub(super) stop: watch::Sender<()>,
}

/// What somebody without the secret may hold here.
pub(super) struct Bounds {
    /// Connections open at once; more are closed at once. Each peer has two lanes and its forwards.
    pub(super) connections_max: usize,
    /// A connection on which the secret has not arrived after this time is closed.
    pub(super) secret_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { connections_max: 1024, secret_timeout: Duration::from_secs(10) }
    }
}

/// What is known of the other end of a connection.
#[derive(Default)]
struct Caller {
    /// It has sent the secret.
    has_secret: AtomicBool,
    /// The lane's sender, once it said hello: the end of its connection tells that it may be dead.
    node: OnceLock<NodeId>,
}

impl Caller {
    /// Resolves once so much time has passed without the secret. With it there is no limit: lanes are idle
    /// between elections, and must not end for that.
    async fn stays_without_secret(&self, limit: Duration) {
        tokio::time::sleep(limit).await;
        if self.has_secret.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

/// Serves peers for ever. Dropping the future closes their connections.
pub(super) async fn run(listener: TcpListener, inbound: Arc<Inbound>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < inbound.bounds.connections_max => {
                    connections.spawn(serve_connection(stream, inbound.clone()));
                }
                Ok(_) => {
                    if let Some(suppressed) = inbound.complaints.permit(Instant::now()) {
                        tracing::warn!(open = connections.len(), suppressed, "too many connections from peers");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a peer's connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(stream: TcpStream, inbound: Arc<Inbound>) {
    // Only costs time where it fails.
    let _ = stream.set_nodelay(true);
    let caller = Caller::default();
    let service = service_fn(async |request| {
        let response = handle(&inbound, &caller, request).await;
        Ok::<_, Infallible>(response.unwrap_or_else(|problem| inbound.refuse(problem)))
    });
    let mut stopping = inbound.stop.subscribe();
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    let end = tokio::select! {
        end = connection.as_mut() => end,
        () = caller.stays_without_secret(inbound.bounds.secret_timeout) => {
            return tracing::debug!("a connection is closed: the secret did not arrive");
        }
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = end {
        tracing::debug!(%error, "a peer's connection broke");
    }
    if let Some(remote) = caller.node.get().and_then(|node| inbound.remotes.get(node)) {
        remote.broke(&inbound.handler);
    }
}

impl Inbound {
    /// The sender of an envelope on a lane, if it is one of the peers.
    fn heard(&self, envelope: &Envelope) -> Result<NodeId, Refusal> {
        let node = self.config.check(envelope)?;
        if let Some(remote) = self.remotes.get(&node) {
            remote.heard();
        }
        Ok(node)
    }

    fn refuse(&self, problem: Problem) -> Response {
        if let Some(suppressed) = self.complaints.permit(Instant::now()) {
            tracing::warn!(status = %problem.status, detail = problem.detail, suppressed, "peer refused");
        }
        problem.into_response()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        Problem::invalid(refusal.to_string()).with_status(StatusCode::FORBIDDEN)
    }
}

impl From<WireError> for Problem {
    fn from(error: WireError) -> Problem {
        Problem::invalid(error.to_string())
    }
}

async fn handle(inbound: &Inbound, caller: &Caller, request: Request<Incoming>) -> Result<Response, Problem> {
    // The secret comes first: nobody else is told anything, nor makes this node allocate.
    check_secret(request.headers().get(AUTHORIZATION), &inbound.authorization)?;
    caller.has_secret.store(true, Ordering::Relaxed);
    let (head, mut body) = request.into_parts();
    let path = head.uri.path();
    if !wire::is_peer_path(path) {
        let problem = Problem::from(WireError::UnknownKind(path.to_owned()));
        return Err(Problem { kind: ErrorKind::NotFound, ..problem.with_status(StatusCode::NOT_FOUND) });
    }
    if head.method != Method::POST {
        return Err(Problem::method_not_allowed("POST"));
    }
    let body = body::read(&mut body, inbound.config.body_bytes_max).await?;
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
            let mut response = Response::new(Body::from(wire::write_replies(replies).map_err(unwritable)?));
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

/// The commands were carried out, and their answers are lost.
fn unwritable(error: WireError) -> Problem {
    Problem::new(ErrorKind::OutcomeUnknown, error.to_string())
}
