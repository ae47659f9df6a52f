//! Accepts connections and serves them until told to stop; then finishes what is in flight.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tower_service::Service;

use super::{Api, Store, kv, router};
use crate::transport::throttle::Throttle;

/// A connection on which no request's head arrives for so long is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Connections open at once; more are closed at once.
const CONNECTIONS_MAX: usize = 10_000;
/// Requests in flight get this long to finish once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no file descriptor is free, mostly), something must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves the interface until `shutdown` is ready. Then nothing new is accepted, and this returns once
/// every request in flight is answered, or after ten seconds.
pub async fn serve<S: Store>(listener: TcpListener, api: Api<S>, shutdown: impl Future<Output = ()>) {
    serve_up_to(CONNECTIONS_MAX, listener, api, shutdown).await;
}

/// As [`serve`], with no more connections than these.
pub(super) async fn serve_up_to<S: Store>(
    connections_max: usize,
    listener: TcpListener,
    api: Api<S>,
    shutdown: impl Future<Output = ()>,
) {
    let router = router(api.clone());
    let complaints = Throttle::default();
    // Every connection holds a receiver, and so does this function.
    let (stop, stopping) = watch::channel(());
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if stop.receiver_count() <= connections_max => {
                    tokio::spawn(serve_connection(stream, api.clone(), router.clone(), stopping.clone()));
                }
                Ok(_) => {
                    if let Some(suppressed) = complaints.permit(Instant::now()) {
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
    if tokio::time::timeout(DRAIN_TIMEOUT, stop.closed()).await.is_err() {
        tracing::warn!(connections = stop.receiver_count(), "connections are cut off");
    }
}

async fn serve_connection<S: Store>(
    stream: TcpStream,
    api: Api<S>,
    router: Router,
    mut stopping: watch::Receiver<()>,
) {
    // Only costs time where it fails.
    let _ = stream.set_nodelay(true);
    let service = service_fn(async |request| Ok::<_, Infallible>(respond(&api, &router, request).await));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let end = tokio::select! {
        end = &mut connection => end,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = end {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Requests for keys go past the router: they are nearly all there are.
async fn respond<S: Store>(api: &Api<S>, router: &Router, request: Request<Incoming>) -> Response {
    if kv::is_kv(request.uri()) {
        return kv::handle(api, request).await;
    }
    match router.clone().call(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
