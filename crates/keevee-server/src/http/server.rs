//! Accepts connections and serves them until told to stop; then finishes what is in flight.
//!
//! One port speaks HTTP/1.1, HTTP/2 (to clients that begin with its preface) and, over that, gRPC
//! ([`crate::grpc`]). A connection of HTTP/2 carries many requests at a time, so it has bounds of its own.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Request, Version};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tower_service::Service;

use super::conditions::EPOCH;
use super::{Api, Store, kv, router};
use crate::grpc::{self, Grpc};
use crate::transport::throttle::Throttle;

/// A connection on which no request's head arrives for so long is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Connections open at once; more are closed at once.
const CONNECTIONS_MAX: usize = 10_000;
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
/// A client of HTTP/2 that is silent for so long is asked whether it is there…
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// …and has so long to say so.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How much strangers may hold here, and for how long.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) connections_max: usize,
    pub(crate) head_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { connections_max: CONNECTIONS_MAX, head_timeout: HEAD_TIMEOUT }
    }
}

/// Serves the interface until `shutdown` is ready. Then nothing new is accepted, and this returns once
/// every request in flight is answered, or after ten seconds.
pub async fn serve<S: Store>(listener: TcpListener, api: Api<S>, shutdown: impl Future<Output = ()>) {
    serve_within(Bounds::default(), listener, api, shutdown).await;
}

/// As [`serve`], with no more connections than these.
#[cfg(test)]
pub(super) async fn serve_up_to<S: Store>(
    connections_max: usize,
    listener: TcpListener,
    api: Api<S>,
    shutdown: impl Future<Output = ()>,
) {
    serve_within(Bounds { connections_max, ..Bounds::default() }, listener, api, shutdown).await;
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
                    tokio::spawn(serve_connection(stream, service, bounds.head_timeout, stopping.clone()));
                }
                Ok(_) => {
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
    head_timeout: Duration,
    mut stopping: watch::Receiver<()>,
) {
    // Only costs time where it fails.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::default());
    let service = service_fn(|request| {
        let (services, activity) = (Arc::clone(&services), Arc::clone(&activity));
        async move { Ok::<_, Infallible>(services.respond(&activity, request).await) }
    });
    let builder = connection_builder(head_timeout);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let end = tokio::select! {
        end = &mut connection => end,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = activity.ceases(head_timeout) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(head_timeout, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = end {
        tracing::debug!(%error, "a connection broke");
    }
}

fn connection_builder(head_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
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
    async fn respond(&self, activity: &Activity, request: Request<Incoming>) -> Response {
        let mut response = self.respond_by_protocol(activity, request).await;
        response.headers_mut().insert(EPOCH, HeaderValue::from(self.api.store.epoch()));
        response
    }

    async fn respond_by_protocol(&self, activity: &Activity, request: Request<Incoming>) -> Response {
        if request.version() != Version::HTTP_2 {
            activity.times_itself.store(true, Ordering::Relaxed);
            return self.respond_plainly(request).await;
        }
        let open = activity.begin();
        // Boxed, so that a request of HTTP/1 does not carry the room for this.
        let response = if grpc::is_grpc(&request) {
            Box::pin(self.grpc.handle(request)).await
        } else {
            Box::pin(self.respond_plainly(request)).await
        };
        response.map(|body| Body::new(OpenBody { body, _open: open }))
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

/// Whether anything goes on on a connection. HTTP/1 has a timeout of hyper's own for each head; HTTP/2 has none,
/// and neither has a connection that does not say which it is.
#[derive(Default)]
struct Activity {
    /// It is HTTP/1.
    times_itself: AtomicBool,
    /// Requests of HTTP/2 so far.
    begun: AtomicUsize,
    /// Held by each request of HTTP/2 until its answer is written.
    open: Arc<()>,
}

impl Activity {
    fn begin(&self) -> Arc<()> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&self.open)
    }

    /// Resolves once there was no request for so long, or up to twice as long.
    async fn ceases(&self, timeout: Duration) {
        let mut seen = 0;
        loop {
            tokio::time::sleep(timeout).await;
            if self.times_itself.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let begun = self.begun.load(Ordering::Relaxed);
            if begun == seen && Arc::strong_count(&self.open) == 1 {
                return;
            }
            seen = begun;
        }
    }
}

/// The body of an answer of HTTP/2, which tells when it was written.
struct OpenBody {
    body: Body,
    _open: Arc<()>,
}

impl hyper::body::Body for OpenBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
