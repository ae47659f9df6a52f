//! A queue of messages to one peer, and the task that posts them in order on one connection.
//!
//! While there is no connection, messages are dropped: consensus repeats what matters, and what waited
//! would be stale. The connection is never closed for being idle; the task watches it all the time, so
//! that its end is noticed at once. A peer that is silent for too long is found by a timeout.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::mem::discriminant;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use keevee_core::ids::ShardId;
use keevee_paxos::{Entry, Message};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::remote::{Remote, Requests};
use super::throttle::Throttle;
use super::wire::{self, HELLO_PATH, Kind, WireError};
use super::{Handler, PeerMessage};
use crate::metrics::LaneMetrics;

/// More payload than this does not wait in one lane.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A post is cut once it carries so much payload: small enough not to hold up the receiver.
const POST_BYTES: usize = 1 << 20;
/// What a message counts for besides its payload.
const MESSAGE_BYTES: usize = 128;
/// A peer that does not answer a post within this time is stopped or cut off…
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// …where a large post may take longer: a second more for so many bytes.
const BYTES_PER_SECOND_MIN: usize = 4 << 20;
/// An idle lane says hello this often, so that a silent peer is found.
const HELLO_INTERVAL: Duration = Duration::from_secs(1);
/// Between attempts to connect: doubles from the first to the second.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A refusal's text is cut here.
const DETAIL_BYTES_MAX: usize = 4096;

/// The two lanes to each peer: what tells that a node is alive must not wait behind a catch-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneKind {
    /// Heartbeats, polls, read rounds: small, and of use only while fresh.
    Control,
    /// All else: what must stay in order with the log.
    Log,
}

impl LaneKind {
    /// Where a message goes.
    pub(super) fn of(message: &PeerMessage) -> LaneKind {
        match message {
            PeerMessage::Paxos(
                Message::Heartbeat { .. }
                | Message::HeartbeatReply { .. }
                | Message::Poll { .. }
                | Message::PollReply { .. }
                | Message::ReadIndex { .. }
                | Message::ReadIndexReply { .. },
            ) => LaneKind::Control,
            _ => LaneKind::Log,
        }
    }

    /// The name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            LaneKind::Control => "control",
            LaneKind::Log => "log",
        }
    }
}

/// A queue to one peer.
pub(super) struct Lane {
    kind: LaneKind,
    queue: Mutex<Queue>,
    filled: Notify,
    metrics: LaneMetrics,
    complaints: Throttle,
}

#[derive(Default)]
struct Queue {
    /// True while there is a connection.
    open: bool,
    bytes: usize,
    messages: VecDeque<(ShardId, PeerMessage)>,
}

/// Why a lane's connection ended.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error("can't connect: {0}")]
    Unreachable(#[from] io::Error),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("refused with status {status}: {detail}")]
    Refused { status: StatusCode, detail: String },
    #[error("a message can't be written: {0}")]
    Unwritable(#[from] WireError),
}

impl From<hyper::Error> for LaneError {
    fn from(error: hyper::Error) -> LaneError {
        LaneError::Broken(error.to_string())
    }
}

impl Lane {
    pub(super) fn new(kind: LaneKind, metrics: LaneMetrics) -> Lane {
        Lane {
            kind,
            queue: Mutex::default(),
            filled: Notify::new(),
            metrics,
            complaints: Throttle::default(),
        }
    }

    /// Queues a message, or drops it if there is no connection or no room.
    pub(super) fn push(&self, shard: ShardId, message: PeerMessage) {
        let bytes = message_bytes(&message);
        let mut queue = self.lock();
        if !queue.open || queue.bytes + bytes > QUEUE_BYTES_MAX {
            self.metrics.dropped.inc();
            return;
        }
        queue.bytes += bytes;
        queue.messages.push_back((shard, message));
        self.metrics.queued.set(queue.messages.len() as i64);
        self.filled.notify_one();
    }

    /// Everything that waits, as soon as something does.
    async fn take(&self) -> VecDeque<(ShardId, PeerMessage)> {
        loop {
            {
                let mut queue = self.lock();
                if !queue.messages.is_empty() {
                    queue.bytes = 0;
                    self.metrics.queued.set(0);
                    return std::mem::take(&mut queue.messages);
                }
            }
            self.filled.notified().await;
        }
    }

    fn open(&self) {
        self.lock().open = true;
    }

    fn close(&self) {
        let left = std::mem::take(&mut *self.lock());
        self.metrics.dropped.inc_by(left.messages.len() as u64);
        self.metrics.queued.set(0);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held, and a queue is whole at any time.
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Keeps a connection to the peer and posts what is queued, for ever.
pub(super) async fn run(lane: Arc<Lane>, remote: Arc<Remote>, handler: Handler) {
    let mut pause = PAUSE_MIN;
    loop {
        let Err(error) = converse(&lane, &remote, &mut pause).await;
        lane.close();
        if lane.kind == LaneKind::Control {
            remote.lost(&error);
        }
        if let LaneError::Broken(_) = error {
            remote.broke(&handler);
        }
        lane.complain(&remote, &error);
        tokio::time::sleep(rand::random_range(pause / 2..=pause)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

impl Lane {
    /// Logs why the connection ended: loudly where somebody must do something.
    fn complain(&self, remote: &Remote, error: &LaneError) {
        let (peer, lane) = (remote.peer.id, self.kind.name());
        match error {
            LaneError::Refused { .. } | LaneError::Unwritable(_) => {
                if let Some(suppressed) = self.complaints.permit(Instant::now()) {
                    tracing::warn!(%peer, lane, %error, suppressed, "peer does not listen");
                }
            }
            _ => tracing::debug!(%peer, lane, %error, "no connection to peer"),
        }
    }
}

/// One connection's life.
async fn converse(lane: &Lane, remote: &Remote, pause: &mut Duration) -> Result<Infallible, LaneError> {
    let (mut requests, connection) = remote.connect().await?;
    tokio::select! {
        // First, so that an end of the connection is seen as that, not as a failed post.
        biased;
        end = connection => Err(match end {
            Ok(()) => LaneError::Broken("closed by the peer".to_owned()),
            Err(error) => error.into(),
        }),
        failure = post_all(lane, remote, &mut requests, pause) => failure,
    }
}

async fn post_all(
    lane: &Lane,
    remote: &Remote,
    requests: &mut Requests,
    pause: &mut Duration,
) -> Result<Infallible, LaneError> {
    hello(lane, remote, requests).await?;
    *pause = PAUSE_MIN;
    lane.open();
    loop {
        let Ok(messages) = timeout(HELLO_INTERVAL, lane.take()).await else {
            hello(lane, remote, requests).await?;
            continue;
        };
        let mut waiting = messages;
        while let Some((shard, batch)) = next_batch(&mut waiting) {
            let path = batch[0].path();
            let envelope = wire::Envelope { shard: shard.0, ..remote.envelope.clone() };
            let body = wire::write_messages(&envelope, &batch)?;
            let sent = post(requests, remote, path, body).await;
            if sent.is_err() {
                lane.metrics.dropped.inc_by((batch.len() + waiting.len()) as u64);
            }
            sent?;
        }
    }
}

async fn hello(lane: &Lane, remote: &Remote, requests: &mut Requests) -> Result<(), LaneError> {
    post(requests, remote, HELLO_PATH, wire::write_hello(&remote.envelope)?).await?;
    if lane.kind == LaneKind::Control {
        remote.reached();
    }
    Ok(())
}

/// Takes the longest run of messages about one shard, of one kind, that makes a post of moderate size.
fn next_batch(waiting: &mut VecDeque<(ShardId, PeerMessage)>) -> Option<(ShardId, Vec<Kind>)> {
    let (shard, first) = waiting.front()?;
    let mut bytes = message_bytes(first);
    let rest = waiting.iter().skip(1).take_while(|(next_shard, next)| {
        bytes += message_bytes(next);
        next_shard == shard && is_same_kind(next, first) && bytes <= POST_BYTES
    });
    let (shard, count) = (*shard, 1 + rest.count());
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
) -> Result<(), LaneError> {
    let limit = ANSWER_TIMEOUT + Duration::from_secs((body.len() / BYTES_PER_SECOND_MIN) as u64);
    let request = remote.post(path, body);
    timeout(limit, exchange(requests, request)).await.map_err(|_| LaneError::Silent(limit))??;
    remote.heard();
    Ok(())
}

async fn exchange(requests: &mut Requests, request: Request<Full<bytes::Bytes>>) -> Result<(), LaneError> {
    requests.ready().await?;
    let response = requests.send_request(request).await?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = Limited::new(response.into_body(), DETAIL_BYTES_MAX).collect().await;
    let detail = body.map(|body| body.to_bytes()).unwrap_or_default();
    Err(LaneError::Refused { status, detail: String::from_utf8_lossy(&detail).into_owned() })
}

/// What a message counts for in a queue.
pub(crate) fn message_bytes(message: &PeerMessage) -> usize {
    let entries: &[Entry] = match message {
        PeerMessage::Paxos(Message::Accept { entries, .. } | Message::Promise { entries, .. }) => entries,
        _ => &[],
    };
    MESSAGE_BYTES + entries.iter().map(|entry| MESSAGE_BYTES + entry.value.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use keevee_paxos::{Ballot, Value};
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

    fn accept(bytes: usize) -> PeerMessage {
        let ballot = Ballot::ZERO;
        let entry = Entry { index: 1, ballot, value: Value::Data(vec![0; bytes].into()) };
        PeerMessage::Paxos(Message::Accept { ballot, sent_at: 0, entries: vec![entry], chosen: 0 })
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

    #[test]
    fn a_post_is_cut_by_size_but_holds_a_message_of_any_size() {
        let sizes = [POST_BYTES * 3, POST_BYTES / 2, POST_BYTES / 3, POST_BYTES / 3, 10];
        let posts = posts(sizes.map(|bytes| (1, accept(bytes))).to_vec());
        assert_eq!(posts.iter().map(|post| post.2).collect::<Vec<_>>(), [1, 2, 2]);
    }

    #[test]
    fn a_lane_without_connection_or_room_drops_and_counts() {
        let metrics = crate::metrics::Metrics::new().lane(keevee_core::ids::NodeId(2), "log");
        let lane = Lane::new(LaneKind::Log, metrics.clone());
        lane.push(ShardId(1), chain(1));
        assert_eq!((metrics.queued.get(), metrics.dropped.get()), (0, 1));
        lane.open();
        lane.push(ShardId(1), accept(QUEUE_BYTES_MAX / 2));
        lane.push(ShardId(1), accept(QUEUE_BYTES_MAX / 2));
        lane.push(ShardId(1), chain(2));
        assert_eq!((metrics.queued.get(), metrics.dropped.get()), (2, 2));
        lane.close();
        assert_eq!((metrics.queued.get(), metrics.dropped.get()), (0, 4));
    }
}
