//! Serves one peer's connection: checks who calls, hands what comes to the node, and sends its answers.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{BoxStream, FuturesUnordered, StreamExt, unfold};
use http::header::AUTHORIZATION;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use keevee_core::ids::NodeId;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::{Code, Status, Streaming};
use tower_service::Service;

use super::socket::{Fate, Socket};
use super::work::Work;
use super::{FRAME_BYTES, SEND_BUFFER_BYTES, WINDOW_BYTES, item_bytes_max};
use crate::metrics::RefusalReason;
use crate::transport::BoxFuture;
use crate::transport::identity::{Refusal, check_secret, check_version};
use crate::transport::listener::{Caller, Inbound};
use crate::transport::wire::proto::peer_server::{Peer, PeerServer};
use crate::transport::wire::{self, Item, WireError, proto};

/// A caller pings. One that has vanished is found by this node's own pings, so that its connection does not stay.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A peer makes one call per connection.
const CALLS_MAX: u32 = 4;
/// Calls that a peer took back before they were looked at, and calls that broke the protocol.
const RESETS_MAX: usize = 20;
/// Metadata takes no more than this.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// So many forwards of one peer may be under way; further ones are not read meanwhile.
const FORWARDS_MAX: usize = 1024;

/// Answers what comes on a connection until it ends.
pub(in crate::transport) async fn serve(stream: TcpStream, caller: Caller, inbound: Arc<Inbound>) {
    let (socket, fate) = Socket::new(stream, None);
    let caller = Arc::new(caller);
    let mut work = Work::default();
    let service = {
        let (inbound, caller) = (inbound.clone(), caller.clone());
        service_fn(move |request| answer(inbound.clone(), caller.clone(), request))
    };
    let connection = http2::Builder::new(work.crew.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_streams(CALLS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = pin!(connection);
    let mut stopping = inbound.stop.subscribe();
    let end = tokio::select! {
        end = work.until(connection.as_mut()) => end,
        () = caller.stays_without_secret(inbound.config.bounds.handshake_timeout) => {
            return tracing::debug!("a connection is closed: the secret did not arrive");
        }
        _ = stopping.changed() => {
            // The calls end by themselves, once they have answered.
            connection.as_mut().graceful_shutdown();
            work.until(connection.as_mut()).await
        }
    };
    if let Err(error) = end {
        tracing::debug!(%error, "a peer's connection broke");
        note_garbage(&inbound, &caller, &fate, &error);
    }
    // A connection that this node gave up says nothing of the peer's life.
    if fate.end().is_some() {
        inbound.broke(&caller);
    }
}

/// Notes what is no HTTP/2; a connection that only ended is nothing to note.
fn note_garbage(inbound: &Inbound, caller: &Caller, fate: &Fate, error: &hyper::Error) {
    let knows_no_secret = !caller.has_secret.load(Ordering::Relaxed) && fate.has_received();
    if knows_no_secret || (fate.end().is_none() && !error.is_timeout()) {
        let detail =
            format!("what it sends is not gRPC; is `peer_transport` the same on every node? ({error})");
        inbound.refusals.note(caller.party(), RefusalReason::Malformed, &detail);
    }
}

/// Answers one call. The secret comes first: nobody else makes this node read any of a body.
async fn answer(
    inbound: Arc<Inbound>,
    caller: Arc<Caller>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    if let Err(refusal) = check_secret(request.headers().get(AUTHORIZATION), &inbound.authorization) {
        return Ok(refuse(&inbound, &caller, &refusal).into_http());
    }
    caller.has_secret.store(true, Ordering::Relaxed);
    let bytes_max = item_bytes_max(&inbound.config);
    let mut peer = PeerServer::new(Calls { inbound, caller }).max_decoding_message_size(bytes_max);
    peer.call(request).await
}

/// Counts and logs a refusal: as the caller is told of it.
fn refuse(inbound: &Inbound, caller: &Caller, refusal: &Refusal) -> Status {
    inbound.refusals.note(caller.party(), refusal.reason(), refusal);
    let text = refusal.to_string();
    match refusal {
        Refusal::Secret => Status::unauthenticated(text),
        Refusal::Version { .. } => Status::failed_precondition(text),
        _ => Status::permission_denied(text),
    }
}

/// The calls on one connection.
struct Calls {
    inbound: Arc<Inbound>,
    caller: Arc<Caller>,
}

#[tonic::async_trait]
impl Peer for Calls {
    type ConverseStream = BoxStream<'static, Result<proto::Item, Status>>;

    async fn converse(
        &self,
        request: tonic::Request<Streaming<proto::Item>>,
    ) -> Result<tonic::Response<Self::ConverseStream>, Status> {
        let (inbound, caller) = (self.inbound.clone(), self.caller.clone());
        let mut incoming = request.into_inner();
        let timeout = inbound.config.bounds.handshake_timeout;
        let first = tokio::time::timeout(timeout, incoming.message()).await;
        let first = first.map_err(|_| note_malformed(&inbound, &caller, &"no handshake came in time"))?;
        let first = first.map_err(|status| note_fault(&inbound, &caller, status))?;
        let (from, envelope) = shake_hands(&inbound, &caller, first)?;
        let stop = inbound.stop.subscribe();
        let conversation = Conversation {
            inbound,
            caller,
            from,
            handshake: Some(wire::handshake(envelope)),
            incoming: Some(incoming),
            forwards: FuturesUnordered::new(),
            stop,
            is_stopping: false,
        };
        let answers = unfold(conversation, |mut conversation| async move {
            conversation.next().await.map(|answer| (answer, conversation))
        });
        Ok(tonic::Response::new(answers.boxed()))
    }
}

/// Who calls, and the envelope of what it is told.
fn shake_hands(
    inbound: &Inbound,
    caller: &Caller,
    first: Option<proto::Item>,
) -> Result<(NodeId, wire::Envelope), Status> {
    let malformed = |error: WireError| note_malformed(inbound, caller, &format!("the handshake: {error}"));
    let (versions, envelope) = wire::read_handshake(first).map_err(malformed)?;
    // The version first: it says how to read the rest.
    check_version(versions).map_err(|refusal| refuse(inbound, caller, &refusal))?;
    let envelope = envelope.ok_or_else(|| malformed(WireError::Missing("envelope")))?;
    let from = inbound.heard(&envelope).map_err(|refusal| refuse(inbound, caller, &refusal))?;
    caller.node.get_or_init(|| from);
    let answer = inbound.remotes.get(from).map(|remote| remote.envelope.clone());
    Ok((from, answer.unwrap_or_default()))
}

/// An accepted call.
struct Conversation {
    inbound: Arc<Inbound>,
    caller: Arc<Caller>,
    from: NodeId,
    /// What this node says first.
    handshake: Option<proto::Item>,
    /// `None` once the caller has said all.
    incoming: Option<Streaming<proto::Item>>,
    /// Under way here.
    forwards: FuturesUnordered<BoxFuture<proto::Item>>,
    stop: watch::Receiver<()>,
    is_stopping: bool,
}

impl Conversation {
    /// The next item for the caller. Takes in what comes meanwhile.
    async fn next(&mut self) -> Option<Result<proto::Item, Status>> {
        if let Some(handshake) = self.handshake.take() {
            return Some(Ok(handshake));
        }
        loop {
            if self.forwards.is_empty() && (self.is_stopping || self.incoming.is_none()) {
                return None;
            }
            let reads = self.forwards.len() < FORWARDS_MAX;
            tokio::select! {
                biased;
                Some(answer) = self.forwards.next() => return Some(Ok(answer)),
                _ = self.stop.changed(), if !self.is_stopping => self.is_stopping = true,
                item = read(&mut self.incoming), if reads && self.incoming.is_some() => match item {
                    Ok(Some(item)) => {
                        if let Err(status) = self.take_in(item) {
                            return self.fail(status);
                        }
                    }
                    Ok(None) => self.incoming = None,
                    Err(status) => {
                        let status = note_fault(&self.inbound, &self.caller, status);
                        return self.fail(status);
                    }
                },
            }
        }
    }

    /// The last word: what is under way is not answered.
    fn fail(&mut self, status: Status) -> Option<Result<proto::Item, Status>> {
        self.incoming = None;
        self.forwards.clear();
        Some(Err(status))
    }

    fn take_in(&mut self, item: proto::Item) -> Result<(), Status> {
        let unknown = |count: usize| {
            let detail = format!("{count} of a kind that this version does not know: upgrade this node");
            self.inbound.refusals.note(self.caller.party(), RefusalReason::UnknownKind, &detail);
        };
        match item.item {
            Some(Item::Batch(batch)) => {
                for messages in batch.shards {
                    let read = wire::read_shard(messages);
                    let (shard, messages, skipped) =
                        read.map_err(|error| note_malformed(&self.inbound, &self.caller, &error))?;
                    if skipped > 0 {
                        unknown(skipped);
                    }
                    if !messages.is_empty() {
                        self.inbound.handler.receive(self.from, shard, messages);
                    }
                }
            }
            Some(Item::Request(request)) => {
                let (number, forward) = wire::read_forward_request(request);
                let replies = self.inbound.handler.execute_forwarded(self.from, forward);
                self.forwards.push(Box::pin(async move { wire::forward_answer(number, replies.await) }));
            }
            Some(Item::Handshake(_)) => {
                return Err(note_malformed(&self.inbound, &self.caller, &"a second handshake"));
            }
            Some(Item::Answer(_)) => {
                return Err(note_malformed(&self.inbound, &self.caller, &"an answer to nothing"));
            }
            None => unknown(1),
        }
        Ok(())
    }
}

async fn read(incoming: &mut Option<Streaming<proto::Item>>) -> Result<Option<proto::Item>, Status> {
    match incoming {
        Some(incoming) => incoming.message().await,
        None => Ok(None),
    }
}

fn note_malformed(inbound: &Inbound, caller: &Caller, detail: &dyn std::fmt::Display) -> Status {
    inbound.refusals.note(caller.party(), RefusalReason::Malformed, detail);
    Status::invalid_argument(detail.to_string())
}

/// Notes why an item was not read, unless it is only that the connection ended.
fn note_fault(inbound: &Inbound, caller: &Caller, status: Status) -> Status {
    if status.source().is_none() {
        let reason = match status.code() {
            Code::OutOfRange => RefusalReason::TooLarge,
            _ => RefusalReason::Malformed,
        };
        inbound.refusals.note(caller.party(), reason, &status.message());
    }
    status
}
