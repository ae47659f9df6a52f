//! The queues of messages to one peer.
//!
//! While there is no connection, messages are dropped: consensus repeats what matters, and what waited
//! would be stale. It leaves out the connections: [`super::grpc`] and [`super::http_json`] take what waits
//! and send it in order.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use keevee_core::ids::{NodeId, ShardId};
use keevee_paxos::Message;
use keevee_raft::RaftMessage;
use keevee_replica::SnapshotMessage;
use prometheus::IntCounter;

use super::PeerMessage;
use crate::metrics::{LaneMetrics, Metrics};

/// More payload than this does not wait in one lane.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// So much payload is taken at once: small enough not to hold up the receiver.
const TAKEN_BYTES: usize = 1 << 20;
/// What a message counts for besides its payload.
const MESSAGE_BYTES: usize = 128;
/// A peer that takes nothing more for so long is stopped or cut off…
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);
/// …where large items may take longer: a second more for so many bytes.
pub(super) const BYTES_PER_SECOND_MIN: usize = 4 << 20;

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
                | Message::ReadIndexReply { .. }
                | Message::Dropped { .. },
            )
            | PeerMessage::Raft(
                RaftMessage::Heartbeat { .. }
                | RaftMessage::HeartbeatReply { .. }
                | RaftMessage::RequestVote { .. }
                | RaftMessage::Voted { .. }
                | RaftMessage::ReadIndex { .. }
                | RaftMessage::ReadIndexReply { .. }
                | RaftMessage::TooFarBehind { .. }
                | RaftMessage::CaughtUp { .. },
            )
            | PeerMessage::Quiesce { .. }
            | PeerMessage::Wake
            | PeerMessage::AdvanceTime { .. }
            | PeerMessage::TimeNotCome { .. }
            | PeerMessage::Snapshot(SnapshotMessage::Ask { .. } | SnapshotMessage::Gone { .. })
            | PeerMessage::Alive { .. } => LaneKind::Control,
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

/// The lanes to one peer.
pub(super) struct Lanes {
    pub(super) control: Arc<Lane>,
    pub(super) log: Arc<Lane>,
}

impl Lanes {
    pub(super) fn new(peer: NodeId, metrics: &Metrics) -> Lanes {
        let lane = |kind: LaneKind| Arc::new(Lane::new(kind, metrics.lane(peer, kind.name())));
        Lanes { control: lane(LaneKind::Control), log: lane(LaneKind::Log) }
    }

    /// Queues each message in its lane.
    pub(super) fn push(&self, messages: Vec<(ShardId, PeerMessage)>) {
        let is_control = |(_, message): &(ShardId, PeerMessage)| LaneKind::of(message) == LaneKind::Control;
        let (control, log): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_control);
        for (lane, messages) in [(&self.control, control), (&self.log, log)] {
            if !messages.is_empty() {
                lane.push(messages);
            }
        }
    }
}

/// A queue to one peer.
pub(super) struct Lane {
    pub(super) kind: LaneKind,
    queue: Mutex<Queue>,
    metrics: LaneMetrics,
}

#[derive(Default)]
struct Queue {
    /// True while there is a connection.
    open: bool,
    bytes: usize,
    messages: VecDeque<(ShardId, PeerMessage)>,
    /// Of the connection, if it waits for messages.
    waker: Option<Waker>,
    progress: Progress,
}

impl Lane {
    pub(super) fn new(kind: LaneKind, metrics: LaneMetrics) -> Lane {
        Lane { kind, queue: Mutex::default(), metrics }
    }

    /// Queues messages, or drops them if there is no connection or no room. Those pushed together are taken
    /// together, if they are not too large.
    pub(super) fn push(&self, messages: impl IntoIterator<Item = (ShardId, PeerMessage)>) {
        let mut guard = self.lock();
        let queue = &mut *guard;
        for (shard, message) in messages {
            let bytes = message_bytes(&message);
            if !queue.open || queue.bytes + bytes > QUEUE_BYTES_MAX {
                self.metrics.dropped.inc();
                continue;
            }
            if queue.messages.is_empty() {
                queue.progress.starts();
            }
            queue.bytes += bytes;
            queue.messages.push_back((shard, message));
        }
        self.metrics.queued.set(queue.messages.len() as i64);
        let waker = if queue.messages.is_empty() { None } else { queue.waker.take() };
        drop(guard);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What waits, or the first of it where that is much, as soon as something does. One task may ask.
    pub(super) fn poll_take(&self, context: &mut Context<'_>) -> Poll<Vec<(ShardId, PeerMessage)>> {
        let mut queue = self.lock();
        if queue.messages.is_empty() {
            queue.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let mut bytes = 0;
        let fits = |(_, message): &&(ShardId, PeerMessage)| {
            let is_first = bytes == 0;
            bytes += message_bytes(message);
            is_first || bytes <= TAKEN_BYTES
        };
        let count = queue.messages.iter().take_while(fits).count();
        let taken: Vec<_> = queue.messages.drain(..count).collect();
        let bytes = taken.iter().map(|(_, message)| message_bytes(message)).sum();
        queue.bytes -= bytes;
        queue.progress.took(bytes);
        self.metrics.sent.inc_by(count as u64);
        self.metrics.queued.set(queue.messages.len() as i64);
        Poll::Ready(taken)
    }

    /// Counts what is written to its connection.
    pub(super) fn sent_bytes(&self) -> IntCounter {
        self.metrics.sent_bytes.clone()
    }

    /// As [`Lane::poll_take`].
    pub(super) async fn take(&self) -> Vec<(ShardId, PeerMessage)> {
        poll_fn(|context| self.poll_take(context)).await
    }

    /// True if messages wait, and none was taken for too long.
    pub(super) fn is_stalled(&self) -> bool {
        let queue = self.lock();
        !queue.messages.is_empty() && queue.progress.is_late()
    }

    /// There is a connection: messages are queued from here on.
    pub(super) fn open(&self) {
        self.lock().open = true;
    }

    /// There is none any more: what waits is dropped.
    pub(super) fn close(&self) {
        let left = std::mem::take(&mut *self.lock());
        self.dropped(left.messages.len());
        self.metrics.queued.set(0);
    }

    /// So many messages that were taken did not leave.
    pub(super) fn dropped(&self, count: usize) {
        self.metrics.dropped.inc_by(count as u64);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held, and a queue is whole at any time.
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// When something last went from a queue towards the peer.
pub(super) struct Progress {
    since: Instant,
    /// Of what was taken then: while it is written, nothing more is taken.
    bytes: usize,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress { since: Instant::now(), bytes: 0 }
    }
}

impl Progress {
    /// Something waits where nothing did.
    pub(super) fn starts(&mut self) {
        self.since = Instant::now();
    }

    /// So many bytes are on their way.
    pub(super) fn took(&mut self, bytes: usize) {
        *self = Progress { since: Instant::now(), bytes };
    }

    /// True if the next should have been taken long ago.
    pub(super) fn is_late(&self) -> bool {
        let limit = PROGRESS_TIMEOUT + Duration::from_secs((self.bytes / BYTES_PER_SECOND_MIN) as u64);
        self.since.elapsed() > limit
    }
}

/// What a message counts for in a queue.
pub(crate) fn message_bytes(message: &PeerMessage) -> usize {
    let entry_bytes: usize = match message {
        PeerMessage::Paxos(Message::Accept { entries, .. } | Message::Promise { entries, .. }) => {
            entries.iter().map(|entry| MESSAGE_BYTES + entry.value.len()).sum()
        }
        PeerMessage::Raft(RaftMessage::Append { entries, .. }) => {
            entries.iter().map(|entry| MESSAGE_BYTES + entry.payload.len()).sum()
        }
        PeerMessage::Snapshot(SnapshotMessage::Chunk(chunk)) => {
            chunk.records.iter().map(|(key, value)| MESSAGE_BYTES + key.len() + value.len()).sum()
        }
        _ => 0,
    };
    MESSAGE_BYTES + entry_bytes
}

#[cfg(test)]
mod tests {
    use keevee_paxos::{Ballot, Entry, Value};
    use keevee_replica::ChainHash;

    use super::*;

    fn chain(index: u64) -> PeerMessage {
        PeerMessage::ChainHash(ChainHash { index, chain: 0 })
    }

    fn accept(bytes: usize) -> PeerMessage {
        let ballot = Ballot::ZERO;
        let entry = Entry { index: 1, ballot, value: Value::Data(vec![0; bytes].into()) };
        PeerMessage::Paxos(Message::Accept { ballot, sent_at: 0, entries: vec![entry], chosen: 0 })
    }

    fn lane() -> Lane {
        Lane::new(LaneKind::Log, Metrics::new().lane(NodeId(2), "log"))
    }

    fn push(lane: &Lane, message: PeerMessage) {
        lane.push([(ShardId(1), message)]);
    }

    #[tokio::test]
    async fn what_waits_is_taken_together_but_not_too_much_of_it() {
        let lane = lane();
        lane.open();
        let sizes = [TAKEN_BYTES * 3, TAKEN_BYTES / 2, TAKEN_BYTES / 3, TAKEN_BYTES / 3, 10];
        lane.push(sizes.into_iter().map(|size| (ShardId(1), accept(size))));
        let mut counts = Vec::new();
        for _ in 0..3 {
            counts.push(lane.take().await.len());
        }
        assert_eq!(counts, [1, 2, 2]);
        assert_eq!((lane.lock().bytes, lane.metrics.queued.get()), (0, 0));
    }

    #[test]
    fn a_lane_without_connection_or_room_drops_and_counts() {
        let lane = lane();
        push(&lane, chain(1));
        assert_eq!((lane.metrics.queued.get(), lane.metrics.dropped.get()), (0, 1));
        lane.open();
        for message in [accept(QUEUE_BYTES_MAX / 2), accept(QUEUE_BYTES_MAX / 2), chain(2)] {
            push(&lane, message);
        }
        assert_eq!((lane.metrics.queued.get(), lane.metrics.dropped.get()), (2, 2));
        lane.close();
        assert_eq!((lane.metrics.queued.get(), lane.metrics.dropped.get()), (0, 4));
    }

    #[test]
    fn a_lane_is_stalled_once_what_waits_is_not_taken_in_time() {
        let lane = lane();
        lane.open();
        let long_ago = |bytes| Progress { since: Instant::now() - PROGRESS_TIMEOUT, bytes };
        lane.lock().progress = long_ago(0);
        assert!(!lane.is_stalled(), "nothing waits");
        push(&lane, chain(1));
        assert!(!lane.is_stalled(), "it has just come");
        lane.lock().progress = long_ago(0);
        assert!(lane.is_stalled());
        lane.lock().progress = long_ago(BYTES_PER_SECOND_MIN);
        assert!(!lane.is_stalled(), "a large item takes its time");
    }
}
