//! The task of a lane: posts what is queued, in order, on one connection.
//!
//! The connection is never closed for being idle; the task watches it all the time, so that its end is
//! noticed at once. A peer that is silent for too long is found by a timeout.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::mem::discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use keevee_core::ids::ShardId;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::transport::lane::{BYTES_PER_SECOND_MIN, Lane, LaneKind};
use crate::transport::remote::{ANSWER_TIMEOUT, Backoff, LinkError, Remote};
use crate::transport::wire::{self, HELLO_PATH, Kind};
use crate::transport::{Handler, PeerMessage};

/// An idle lane says hello this often, so that a silent peer is found.
const HELLO_INTERVAL: Duration = Duration::from_secs(1);
/// A refusal's text is cut here.
const DETAIL_BYTES_MAX: usize = 4096;

/// Posts on one connection, one after the other.
pub(super) type Requests = http1::SendRequest<Full<Bytes>>;
/// Moves the bytes of one connection; does nothing unless it is polled.
pub(super) type Connection = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

impl From<hyper::Error> for LinkError {
    fn from(error: hyper::Error) -> LinkError {
        LinkError::Broken(error.to_string())
    }
}

/// A new connection. The caller polls the second part for as long as it uses the first.
pub(super) async fn connect(remote: &Remote) -> io::Result<(Requests, Connection)> {
    let stream = remote.connect().await?;
    http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
}

/// A post of JSON to a peer.
pub(super) fn request(remote: &Remote, path: &'static str, body: Vec<u8>) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(path);
    let headers = request.headers_mut();
    if let Ok(host) = HeaderValue::from_str(&remote.address()) {
        headers.insert(HOST, host);
    }
    headers.insert(AUTHORIZATION, remote.authorization.clone());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

/// Keeps a connection to the peer and posts what is queued, for ever.
pub(super) async fn run(lane: Arc<Lane>, remote: Arc<Remote>, handler: Handler) {
    let mut backoff = Backoff::new(&remote);
    loop {
        let started = Instant::now();
        let Err(error) = remote.while_there(converse(&lane, &remote)).await;
        lane.close();
        if lane.kind == LaneKind::Control {
            remote.lost(&error);
        }
        if let LinkError::Broken(_) = error {
            remote.broke(&handler);
        }
        remote.complain(lane.kind.name(), &error);
        backoff.pause(started.elapsed(), &error).await;
    }
}

/// One connection's life.
async fn converse(lane: &Lane, remote: &Remote) -> Result<Infallible, LinkError> {
    let (mut requests, connection) = connect(remote).await?;
    tokio::select! {
        // First, so that an end of the connection is seen as that, not as a failed post.
        biased;
        end = connection => Err(match end {
            Ok(()) => LinkError::Broken("closed by the peer".to_owned()),
            Err(error) => error.into(),
        }),
        failure = post_all(lane, remote, &mut requests) => failure,
    }
}

async fn post_all(lane: &Lane, remote: &Remote, requests: &mut Requests) -> Result<Infallible, LinkError> {
    hello(lane, remote, requests).await?;
    lane.open();
    loop {
        let Ok(messages) = timeout(HELLO_INTERVAL, lane.take()).await else {
            hello(lane, remote, requests).await?;
            continue;
        };
        let mut waiting = VecDeque::from(messages);
        while let Some((shard, batch)) = next_batch(&mut waiting) {
            let path = batch[0].path();
            let envelope = wire::Envelope { shard: shard.0, ..remote.envelope.clone() };
            let body = wire::write_messages(&envelope, &batch)?;
            let sent = post(requests, remote, path, body).await;
            if sent.is_err() {
                lane.dropped(batch.len() + waiting.len());
            }
            sent?;
        }
    }
}

async fn hello(lane: &Lane, remote: &Remote, requests: &mut Requests) -> Result<(), LinkError> {
    post(requests, remote, HELLO_PATH, wire::write_hello(&remote.envelope)?).await?;
    if lane.kind == LaneKind::Control {
        remote.reached();
    }
    Ok(())
}

/// Takes the longest run of messages about one shard, of one kind.
fn next_batch(waiting: &mut VecDeque<(ShardId, PeerMessage)>) -> Option<(ShardId, Vec<Kind>)> {
    let (shard, first) = waiting.front()?;
    let is_alike =
        |(next_shard, next): &&(ShardId, PeerMessage)| next_shard == shard && is_same_kind(next, first);
    let (shard, count) = (*shard, waiting.iter().take_while(is_alike).count());
    Some((shard, waiting.drain(..count).map(|(_, message)| Kind::from(message)).collect()))
}

fn is_same_kind(one: &PeerMessage, other: &PeerMessage) -> bool {
    match (one, other) {
        (PeerMessage::Paxos(one), PeerMessage::Paxos(other)) => discriminant(one) == discriminant(other),
        _ => discriminant(one) == discriminant(other),
    }
}

async fn post(
    requests: &mut Requests,
    remote: &Remote,
    path: &'static str,
    body: Vec<u8>,
) -> Result<(), LinkError> {
    let limit = ANSWER_TIMEOUT + Duration::from_secs((body.len() / BYTES_PER_SECOND_MIN) as u64);
    let request = request(remote, path, body);
    timeout(limit, exchange(requests, request)).await.map_err(|_| LinkError::Silent(limit))??;
    remote.heard();
    Ok(())
}

async fn exchange(requests: &mut Requests, request: Request<Full<Bytes>>) -> Result<(), LinkError> {
    requests.ready().await?;
    let response = requests.send_request(request).await?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = Limited::new(response.into_body(), DETAIL_BYTES_MAX).collect().await;
    let detail = body.map(|body| body.to_bytes()).unwrap_or_default();
    Err(LinkError::Refused(format!("status {status}: {}", String::from_utf8_lossy(&detail))))
}

#[cfg(test)]
mod tests {
    use keevee_paxos::Message;
    use keevee_replica::ChainHash;

    use super::*;

    fn poll(poll: u64) -> PeerMessage {
        PeerMessage::Paxos(Message::Poll { poll })
    }

    fn read_index(request: u64) -> PeerMessage {
        PeerMessage::Paxos(Message::ReadIndex { request })
    }

    fn chain(index: u64) -> PeerMessage {
        PeerMessage::ChainHash(ChainHash { index, chain: 0 })
    }

    /// The shard, path and number of messages of each post.
    fn posts(messages: Vec<(u32, PeerMessage)>) -> Vec<(u32, &'static str, usize)> {
        let mut waiting = messages.into_iter().map(|(shard, message)| (ShardId(shard), message)).collect();
        let batches = std::iter::from_fn(|| next_batch(&mut waiting));
        batches.map(|(shard, batch)| (shard.0, batch[0].path(), batch.len())).collect()
    }

    #[test]
    fn neighbours_of_one_kind_and_shard_share_a_post() {
        let messages = vec![
            (1, poll(1)),
            (1, poll(2)),
            (2, poll(3)),
            (1, poll(4)),
            (1, read_index(1)),
            (1, poll(5)),
            (1, chain(1)),
            (1, chain(2)),
        ];
        let expected = [
            (1, "/paxos/poll", 2),
            (2, "/paxos/poll", 1),
            (1, "/paxos/poll", 1),
            (1, "/paxos/read_index", 1),
            (1, "/paxos/poll", 1),
            (1, "/chain_hash", 2),
        ];
        assert_eq!(posts(messages), expected);
    }
}
