//! One peer as this node sees it: how to connect and speak to it, and whether it is there.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Handler;
use super::identity::{Peer, PeerConfig};
use super::wire::Envelope;

/// A peer that does not take a connection within this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Posts on one connection, one after the other.
pub(super) type Requests = http1::SendRequest<Full<Bytes>>;
/// Moves the bytes of one connection; does nothing unless it is polled.
pub(super) type Connection = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// A peer.
pub(super) struct Remote {
    pub(super) peer: Peer,
    /// Of messages to this peer, about no shard yet.
    pub(super) envelope: Envelope,
    authorization: HeaderValue,
    host: HeaderValue,
    /// The last attempt on the control lane succeeded.
    reachable: AtomicBool,
    /// It was heard since the last broken connection: one death breaks several connections, and is told once.
    alive: AtomicBool,
}

impl Remote {
    pub(super) fn new(config: &PeerConfig, peer: &Peer) -> Result<Remote, http::header::InvalidHeaderValue> {
        Ok(Remote {
            peer: peer.clone(),
            envelope: config.envelope(peer),
            authorization: config.authorization()?,
            host: HeaderValue::try_from(&peer.address)?,
            reachable: AtomicBool::new(false),
            alive: AtomicBool::new(false),
        })
    }

    /// A new connection. The caller polls the second part for as long as it uses the first.
    pub(super) async fn connect(&self) -> io::Result<(Requests, Connection)> {
        let connect = TcpStream::connect(&self.peer.address);
        let stream = timeout(CONNECT_TIMEOUT, connect).await.map_err(io::Error::from)??;
        stream.set_nodelay(true)?;
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
    }

    /// A post of JSON to this peer.
    pub(super) fn post(&self, path: &'static str, body: Vec<u8>) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(AUTHORIZATION, self.authorization.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request
    }

    /// True if the last attempt to reach it succeeded.
    pub(super) fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// It answers.
    pub(super) fn reached(&self) {
        if !self.reachable.swap(true, Ordering::Relaxed) {
            tracing::info!(peer = %self.peer.id, address = %self.peer.address, "peer reached");
        }
    }

    /// It does not answer.
    pub(super) fn lost(&self, cause: &dyn std::fmt::Display) {
        if self.reachable.swap(false, Ordering::Relaxed) {
            tracing::info!(peer = %self.peer.id, address = %self.peer.address, %cause, "peer lost");
        }
    }

    /// It said hello on a connection, or answered ours.
    pub(super) fn heard(&self) {
        self.alive.store(true, Ordering::Release);
    }

    /// A connection on which it was heard broke: the first such since it was heard is told.
    pub(super) fn broke(&self, handler: &Handler) {
        if self.alive.swap(false, Ordering::AcqRel) {
            tracing::debug!(peer = %self.peer.id, "connection broke");
            handler.disconnected(self.peer.id);
        }
    }
}
