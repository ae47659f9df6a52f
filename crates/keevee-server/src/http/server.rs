//! Accepts connections and serves them until told to stop; then finishes what is in flight.
//!
//! One port speaks HTTP/1.1, HTTP/2 (to clients that begin with its preface) and, over that, gRPC
//! ([`crate::grpc`]). A connection of HTTP/2 carries many requests at a time, so it has bounds of its own.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::CONNECTION;
use http::{HeaderValue, Request, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tower_service::Service;

use super::activity::{Activity, OpenBody};
use super::conditions::EPOCH;
use super::problem::Problem;
use super::socket::Socket;
use super::{Api, Store, kv, router};
use crate::config::HttpConfig;
use crate::grpc::{self, Grpc};
use crate::transport::throttle::Throttle;

/// Requests in flight get this long to finish once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no file descriptor is free, mostly), something must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Requests under way at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 256;
/// Bytes of one body that may wait to be read: enough for full speed on a local network.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes of all bodies of a connection that may wait to be read.
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
/// Bytes of one answer that may wait to be written, besides the frame that goes over it.
const SEND_BYTES_MAX: usize = 256 << 10;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: u32 = 64 << 10;
/// The same over HTTP/1, with room for what a body is read through.
const PLAIN_BUFFER_BYTES_MAX: usize = 128 << 10;
/// Lines of a request's head over HTTP/1.
const HEAD_LINES_MAX: usize = 100;
/// Requests of HTTP/2 that a client took back before they were looked at, and requests that broke the protocol: with more the
/// connection is closed. It costs a client nothing to take back, so that is how one could ask for more than it may have under
/// way at once (CVE-2023-44487).
const TAKEN_BACK_MAX: usize = 20;
const BROKEN_MAX: usize = 100;
/// What a connection is told that finds no room, if it can be told at once.
const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 53\r\n\
    retry-after: 1\r\nconnection: close\r\n\r\ntoo many connections: try again, or ask another node\n";
/// A client of HTTP/2 that is silent for so long is asked whether it is there…
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// …and has so long to say so.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How much strangers may hold here, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections open at once.
    pub(crate) connections_max: usize,
    /// From a head's first byte to its last.
    pub(crate) head_timeout: Duration,
    /// Without a request.
    pub(crate) idle_timeout: Duration,
    /// Without taking anything of an answer.
    pub(crate) stalled_timeout: Duration,
}

impl From<&HttpConfig> for Bounds {
    fn from(config: &HttpConfig) -> Bounds {
        Bounds {
            connections_max: config.connections_max,
            head_timeout: Duration::from_millis(config.head_ms),
            idle_timeout: Duration::from_millis(config.idle_ms),
            stalled_timeout: Duration::from_millis(config.stalled_ms),
        }
    }
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds::from(&HttpConfig::default())
    }
}

/// Serves the interface until `shutdown` is ready. Then nothing new is accepted, and this returns once
/// every request in flight is answered, or after ten seconds.
pub async fn serve<S: Store>(listener: TcpListener, api: Api<S>, shutdown: impl Future<Output = ()>) {
    serve_within(Bounds::default(), listener, api, shutdown).await;
}

/// As [`serve`], within other bounds.
pub(crate) async fn serve_within<S: Store>(
    bounds: Bounds,
    listener: TcpListener,
    api: Api<S>,
    shutdown: impl Future<Output = ()>,
) {
    let (ending, ends) = watch::channel(false);
    let service = Arc::new(Services { router: router(api.clone()), grpc: Grpc::new(api.clone(), ends), api });
    let complaints = Throttle::default();
    // Every connection holds a receiver, and so does this function.
    let (stop, stopping) = watch::channel(());
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if stop.receiver_count() <= bounds.connections_max => {
                    let service = Arc::clone(&service);
                    tokio::spawn(serve_connection(stream, service, bounds, stopping.clone()));
                }
                Ok((stream, _)) => {
                    let _ = stream.try_write(TOO_MANY);
                    if let Some(suppressed) = complaints.permit(Instant::now()) {
                        let connections_max = bounds.connections_max;
                        tracing::warn!(connections_max, suppressed, "too many connections: the newest are closed");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = &mut shutdown => break,
        }
    }
    drop((listener, stopping));
    stop.send_replace(());
    ending.send_replace(true);
    if tokio::time::timeout(DRAIN_TIMEOUT, stop.closed()).await.is_err() {
        tracing::warn!(connections = stop.receiver_count(), "connections are cut off");
    }
}

async fn serve_connection<S: Store>(
    stream: TcpStream,
    services: Arc<Services<S>>,
    bounds: Bounds,
    mut stopping: watch::Receiver<()>,
) {
    // Only costs time where it fails.
    let _ = stream.set_nodelay(true);
    let Bounds { head_timeout, idle_timeout, stalled_timeout, .. } = bounds;
    let activity = Arc::new(Activity::new(stalled_timeout));
    let socket = Socket::new(stream, Arc::clone(&activity), head_timeout);
    let service = service_fn(|request| {
        let (services, activity) = (Arc::clone(&services), Arc::clone(&activity));
        async move { Ok::<_, Infallible>(services.respond(&activity, request).await) }
    });
    let builder = connection_builder(idle_timeout);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
    let end = tokio::select! {
        end = &mut connection => end,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = activity.ceases(idle_timeout) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(head_timeout, connection).await.unwrap_or(Ok(()))
        }
        () = activity.stalls() => return tracing::debug!("a client takes nothing of its answer: it is cut off"),
    };
    if let Err(error) = end {
        tracing::debug!(%error, "a connection broke");
    }
}

fn connection_builder(idle_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // It runs from the end of the request before. The time of a head alone is the socket's to tell.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .max_headers(HEAD_LINES_MAX)
        .max_buf_size(PLAIN_BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_pending_accept_reset_streams(TAKEN_BACK_MAX)
        .max_local_error_reset_streams(BROKEN_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// All that the port speaks.
struct Services<S> {
    api: Api<S>,
    router: Router,
    grpc: Grpc<S>,
}

impl<S: Store> Services<S> {
    /// Every response says which shard map the node has, so that a caller with an older one gets it.
    async fn respond(&self, activity: &Arc<Activity>, request: Request<Incoming>) -> Response {
        let mut response = self.respond_by_protocol(activity, request).await;
        response.headers_mut().insert(EPOCH, HeaderValue::from(self.api.store.epoch()));
        response
    }

    async fn respond_by_protocol(&self, activity: &Arc<Activity>, request: Request<Incoming>) -> Response {
        if request.version() != Version::HTTP_2 {
            let has_two_lengths = activity.begin_plain();
            return if has_two_lengths { two_lengths() } else { self.respond_plainly(request).await };
        }
        let open = activity.begin();
        // Boxed, so that a request of HTTP/1 does not carry the room for this.
        let response = if grpc::is_grpc(&request) {
            Box::pin(self.grpc.handle(request)).await
        } else {
            Box::pin(self.respond_plainly(request)).await
        };
        response.map(|body| Body::new(OpenBody::new(body, open)))
    }

    /// Requests for keys go past the router: they are nearly all there are.
    async fn respond_plainly(&self, request: Request<Incoming>) -> Response {
        if kv::is_kv(request.uri()) {
            return kv::handle(&self.api, request).await;
        }
        match self.router.clone().call(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// Whoever is between the client and this node may believe the other length, and take a part of the body for a request
/// (RFC 9112, section 6.3).
fn two_lengths() -> Response {
    let detail = "the head has `content-length` and `transfer-encoding`: send one of them";
    let mut response = Problem::invalid(detail).into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
