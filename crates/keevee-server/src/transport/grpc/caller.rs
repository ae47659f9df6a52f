//! The task of one connection to a peer: connects, shakes hands, sends what is loaded, and starts over.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, StreamExt};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::IntCounter;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};
use tower_service::Service;

use super::socket::Socket;
use super::work::Work;
use super::{FRAME_BYTES, SEND_BUFFER_BYTES, WINDOW_BYTES, item_bytes_max};
use crate::metrics::RefusalReason;
use crate::transport::Handler;
use crate::transport::identity::{PeerConfig, check_version};
use crate::transport::lane::{Lane, LaneKind};
use crate::transport::refusals::Refusals;
use crate::transport::remote::{ANSWER_TIMEOUT, Backoff, LinkError, Remote};
use crate::transport::throttle::Party;
use crate::transport::wire::proto::{self, peer_client::PeerClient};
use crate::transport::wire::{self, Item};

/// A connection on which nothing came for so long is pinged; without an answer in time the peer is silent.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is seen whether the peer still takes what waits for it.
const STALL_CHECK: Duration = Duration::from_secs(1);

/// What a connection is for: where its items come from, and its answers go.
pub(super) trait Load: Send + Sync + 'static {
    /// The name in logs.
    fn name(&self) -> &'static str;
    /// True if the peer counts as reachable while this connection stands.
    fn tells_reachable(&self) -> bool;
    /// Counts what is written to its connection.
    fn sent_bytes(&self) -> Option<IntCounter> {
        None
    }
    /// The next item, as soon as something waits.
    fn poll_item(&self, context: &mut Context<'_>) -> Poll<proto::Item>;
    /// An attempt to connect starts.
    fn connects(&self) {}
    /// The peer is ready for items.
    fn opens(&self);
    /// The connection is gone, or did not come about.
    fn closes(&self, cause: &LinkError);
    /// The peer answered a forward.
    fn answered(&self, _answer: proto::ForwardAnswer) {}
    /// True if items wait, and none was taken for too long.
    fn is_stalled(&self) -> bool;
}

impl Load for Lane {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn tells_reachable(&self) -> bool {
        self.kind == LaneKind::Control
    }

    fn sent_bytes(&self) -> Option<IntCounter> {
        Some(Lane::sent_bytes(self))
    }

    fn poll_item(&self, context: &mut Context<'_>) -> Poll<proto::Item> {
        self.poll_take(context).map(wire::batch)
    }

    fn opens(&self) {
        self.open();
    }

    fn closes(&self, _cause: &LinkError) {
        self.close();
    }

    fn is_stalled(&self) -> bool {
        Lane::is_stalled(self)
    }
}

/// Calls one peer.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) config: PeerConfig,
    pub(super) remote: Arc<Remote>,
    pub(super) handler: Handler,
    pub(super) refusals: Arc<Refusals>,
}

impl Caller {
    /// Keeps a connection for one load, for ever.
    pub(super) async fn run<L: Load>(self, load: Arc<L>) {
        let mut backoff = Backoff::new(&self.remote);
        loop {
            let started = Instant::now();
            load.connects();
            let Err(error) = self.remote.while_there(self.connect(&load)).await;
            load.closes(&error);
            if load.tells_reachable() {
                self.remote.lost(&error);
            }
            if let LinkError::Broken(_) = error {
                self.remote.broke(&self.handler);
            }
            self.remote.complain(load.name(), &error);
            backoff.pause(started.elapsed(), &error).await;
        }
    }

    /// One connection's life.
    async fn connect<L: Load>(&self, load: &Arc<L>) -> Result<Infallible, LinkError> {
        let (socket, fate) = Socket::new(self.remote.connect().await?, load.sent_bytes());
        let mut work = Work::default();
        let handshake = http2::Builder::new(work.crew.clone())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(ANSWER_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .handshake(TokioIo::new(socket))
            .await;
        let (requests, connection) = handshake.map_err(|error| LinkError::Broken(error.to_string()))?;
        let mut connection = Box::pin(connection);
        let over = async move {
            // It takes no more calls from here on; the one under way may go on.
            let _ = work.until(connection.as_mut()).await;
            // One that it had not begun with would never hear of it.
            drop(connection);
            work.rest().await;
            // The call takes what came last, and ends by itself.
            tokio::time::sleep(ANSWER_TIMEOUT).await;
        };
        let ended = tokio::select! {
            Err(error) = self.converse(load, Calls(requests)) => error,
            () = stalls(&**load) => LinkError::Stalled,
            () = over => LinkError::GivenUp("the call outlived its connection".to_owned()),
        };
        Err(match (ended, fate.end()) {
            (refused @ LinkError::Refused(_), _) => refused,
            (_, Some(end)) => LinkError::Broken(end.to_owned()),
            (other, None) => other,
        })
    }

    /// The one call of a connection.
    async fn converse<L: Load>(&self, load: &Arc<L>, calls: Calls) -> Result<Infallible, LinkError> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, self.remote.authorization.clone());
        let handshake = Some(wire::handshake(self.remote.envelope.clone()));
        let mut request = tonic::Request::new(Outgoing { handshake, load: load.clone() });
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        let mut client = PeerClient::with_origin(calls, self.remote.origin())
            .max_decoding_message_size(item_bytes_max(&self.config));
        let answered = async {
            let mut incoming = client.converse(request).await?.into_inner();
            let first = incoming.message().await?;
            Ok::<_, Status>((incoming, first))
        };
        let answered = timeout(ANSWER_TIMEOUT, answered).await;
        let (mut incoming, first) = answered.map_err(|_| LinkError::Silent(ANSWER_TIMEOUT))??;
        self.check(first)?;
        self.remote.heard();
        if load.tells_reachable() {
            self.remote.reached();
        }
        load.opens();
        self.listen(&**load, &mut incoming).await
    }

    /// Hands answers on until the call ends.
    async fn listen<L: Load>(
        &self,
        load: &L,
        incoming: &mut Streaming<proto::Item>,
    ) -> Result<Infallible, LinkError> {
        while let Some(item) = incoming.next().await {
            if let Some(Item::Answer(answer)) = item?.item {
                load.answered(answer);
            }
        }
        Err(LinkError::Broken("the peer ended the call".to_owned()))
    }

    /// Whoever answers must be the peer that was called.
    fn check(&self, first: Option<proto::Item>) -> Result<(), LinkError> {
        let refuse = |reason, text: String| {
            self.refusals.note(Party::Node(self.remote.id), reason, &text);
            Err(LinkError::Refused(text))
        };
        let (versions, envelope) = match wire::read_handshake(first) {
            Ok(handshake) => handshake,
            Err(error) => return refuse(RefusalReason::Malformed, format!("its handshake: {error}")),
        };
        if let Err(refusal) = check_version(versions) {
            return refuse(refusal.reason(), refusal.to_string());
        }
        match self.config.check(&envelope.unwrap_or_default()) {
            Err(refusal) => refuse(refusal.reason(), refusal.to_string()),
            Ok(node) if node != self.remote.id => {
                let (address, meant) = (self.remote.address(), self.remote.id);
                let text = format!("at {address} is node {node}, not node {meant}: correct the [[member]]s");
                refuse(RefusalReason::Identity, text)
            }
            Ok(_) => Ok(()),
        }
    }
}

/// Resolves once the peer takes nothing more.
async fn stalls(load: &impl Load) {
    while !load.is_stalled() {
        tokio::time::sleep(STALL_CHECK).await;
    }
}

impl From<Status> for LinkError {
    fn from(status: Status) -> LinkError {
        match status.source() {
            // Of the connection, not of the peer: how it ended, the socket knows.
            Some(_) => LinkError::GivenUp(status.message().to_owned()),
            None => LinkError::Refused(format!("{:?}: {}", status.code(), status.message())),
        }
    }
}

/// What the caller sends: the handshake, then items as long as there are any.
struct Outgoing<L> {
    handshake: Option<proto::Item>,
    load: Arc<L>,
}

impl<L: Load> Stream for Outgoing<L> {
    type Item = proto::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<proto::Item>> {
        match self.handshake.take() {
            Some(handshake) => Poll::Ready(Some(handshake)),
            None => self.load.poll_item(context).map(Some),
        }
    }
}

/// One connection, as tonic wants it.
pub(in crate::transport) struct Calls(pub(in crate::transport) http2::SendRequest<tonic::body::Body>);

impl Service<Request<tonic::body::Body>> for Calls {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use keevee_core::ids::{NodeId, ShardId};
    use keevee_paxos::Message;

    use super::*;
    use crate::metrics::Metrics;
    use crate::transport::PeerMessage;

    #[tokio::test]
    async fn what_waits_for_a_peer_goes_in_one_item_whatever_its_shard() {
        let lane = Lane::new(LaneKind::Control, Metrics::new().lane(NodeId(2), "control"));
        lane.open();
        for shard in 1..=100 {
            let poll = PeerMessage::Paxos(Message::Poll { poll: shard.into() });
            lane.push([(ShardId(shard), poll.clone()), (ShardId(shard), poll)]);
        }
        let item = poll_fn(|context| lane.poll_item(context)).await;
        let Some(Item::Batch(batch)) = item.item else { panic!("a batch") };
        let shards: Vec<_> = batch.shards.iter().map(|shard| (shard.shard, shard.messages.len())).collect();
        assert_eq!(shards, (1..=100).map(|shard| (shard, 2)).collect::<Vec<_>>());
    }
}
