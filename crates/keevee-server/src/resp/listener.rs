//! Accepts connections of the Redis protocol until told to stop; then finishes the groups under way.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Resp;
use super::connection::Connection;
use crate::metrics::RespEnd;
use crate::transport::throttle::Throttle;

/// Groups in flight get this long to finish once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no file descriptor is free, mostly), something must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown` is ready. Then nothing new is accepted, and this returns once what was read is answered, or
/// after ten seconds.
pub(crate) async fn serve(listener: TcpListener, resp: Arc<Resp>, shutdown: impl Future<Output = ()>) {
    let complaints = Throttle::default();
    // Every connection holds a receiver, and so does this function.
    let (stop, stopping) = watch::channel(());
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) if stop.receiver_count() <= resp.connections_max => {
                    // Only costs time where it fails.
                    let _ = stream.set_nodelay(true);
                    let id = resp.accepted.fetch_add(1, Ordering::Relaxed) + 1;
                    let mut connection = Connection::new(stream, id, address, &resp);
                    let (resp, mut stopping) = (Arc::clone(&resp), stopping.clone());
                    tokio::spawn(async move { connection.serve(&resp, &mut stopping).await });
                }
                Ok((stream, _)) => {
                    resp.metrics.resp.ended(RespEnd::TooMany);
                    // As Redis tells it; if the client can't be told at once, it sees the end.
                    let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
                    if let Some(suppressed) = complaints.permit(Instant::now()) {
                        let connections_max = resp.connections_max;
                        tracing::warn!(connections_max, suppressed, "too many RESP connections: the newest are closed");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a RESP connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = &mut shutdown => break,
        }
    }
    drop((listener, stopping));
    stop.send_replace(());
    if tokio::time::timeout(DRAIN_TIMEOUT, stop.closed()).await.is_err() {
        tracing::warn!(connections = stop.receiver_count(), "RESP connections are cut off");
    }
}
