//! Commands on their way to a leader elsewhere: what waits for the same shard on the same node goes in one message.
//!
//! A few messages are in flight per node and shard; commands that arrive while all are out share the next one. So
//! batches form by waiting for what is in flight, never by a timer. Shards do not wait for each other.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keevee_core::ids::{NodeId, ShardId};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::transport::{Forward, ForwardError, ForwardReply, Transport};

/// Messages in flight to one shard on one node, those not counted that have been without an answer for [`PATIENCE`].
const IN_FLIGHT_MAX: usize = 2;
/// A message without an answer for so long holds no place any more: the node may be gone, or back.
const PATIENCE: Duration = Duration::from_secs(2);
/// Commands in one message.
const COMMANDS_MAX: usize = 512;
/// Bytes of the commands in one message, and of what they scan, unless one is larger.
const BYTES_MAX: usize = 1 << 20;
/// Commands waiting for one shard on one node.
const WAITING_MAX: usize = 16_384;

/// What became of one command.
pub(crate) type Forwarded = Result<ForwardReply, ForwardError>;

struct Parcel {
    command: Bytes,
    /// Of the command, and of what it may read: the answers of one message travel together too.
    bytes: usize,
    deadline: Instant,
    /// Set before it may have left this node.
    sent: Arc<AtomicBool>,
    answer: oneshot::Sender<Forwarded>,
}

/// A queue and a task per node and shard, from the first command on.
pub(crate) struct Forwarder {
    transport: Arc<dyn Transport>,
    queues: RwLock<BTreeMap<(NodeId, ShardId), mpsc::Sender<Parcel>>>,
}

impl Forwarder {
    /// Its tasks end when the forwarder is dropped.
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Forwarder {
        Forwarder { transport, queues: RwLock::default() }
    }

    fn queue(&self, node: NodeId, shard: ShardId) -> mpsc::Sender<Parcel> {
        let to = (node, shard);
        let known = self.queues.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&to).cloned();
        known.unwrap_or_else(|| {
            let mut queues = self.queues.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            let start = || {
                let (sender, receiver) = mpsc::channel(WAITING_MAX);
                tokio::spawn(run(to, Arc::clone(&self.transport), receiver));
                sender
            };
            queues.entry(to).or_insert_with(start).clone()
        })
    }

    /// Hands a command to a node; what it answered. Nothing was sent if the error says so. A scan says how large its
    /// answer may be.
    pub(crate) async fn forward(
        &self,
        to: NodeId,
        shard: ShardId,
        command: Bytes,
        answer_bytes: usize,
        deadline: Instant,
    ) -> Forwarded {
        let not_sent = |cause: &str| ForwardError::NotSent { node: to, cause: cause.to_owned() };
        let queue = self.queue(to, shard);
        let (answer, answered) = oneshot::channel();
        let sent = Arc::new(AtomicBool::new(false));
        let bytes = command.len() + answer_bytes;
        let parcel = Parcel { command, bytes, deadline, sent: Arc::clone(&sent), answer };
        queue.try_send(parcel).map_err(|_| not_sent("too many commands wait for it"))?;
        let no_answer = |cause: &str| ForwardError::NoAnswer { node: to, cause: cause.to_owned() };
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Ok(Ok(forwarded)) => forwarded,
            Ok(Err(_)) => Err(no_answer("this node is stopping")),
            // Marked as sent from here on, it is never sent.
            Err(_) if !sent.swap(true, Ordering::AcqRel) => Err(not_sent("the time was up")),
            Err(_) => Err(no_answer("the time was up")),
        }
    }
}

async fn run(
    (node, shard): (NodeId, ShardId),
    transport: Arc<dyn Transport>,
    mut queue: mpsc::Receiver<Parcel>,
) {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut held = None;
    loop {
        // The slot first: what arrives while none is free shares the next message.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let first = match held.take() {
            Some(parcel) => parcel,
            None => match queue.recv().await {
                Some(parcel) => parcel,
                None => return,
            },
        };
        let mut bytes = first.bytes;
        let mut parcels = vec![first];
        while parcels.len() < COMMANDS_MAX
            && let Ok(parcel) = queue.try_recv()
        {
            bytes += parcel.bytes;
            if bytes > BYTES_MAX {
                held = Some(parcel);
                break;
            }
            parcels.push(parcel);
        }
        let transport = Arc::clone(&transport);
        tokio::spawn(async move {
            let mut delivered = pin!(deliver(node, shard, &*transport, parcels));
            if tokio::time::timeout(PATIENCE, &mut delivered).await.is_err() {
                drop(slot);
                delivered.await;
            }
        });
    }
}

async fn deliver(node: NodeId, shard: ShardId, transport: &dyn Transport, parcels: Vec<Parcel>) {
    let now = Instant::now();
    // Whoever gave up first was told that it was not sent, so it must not be.
    let wanted = |parcel: &Parcel| parcel.deadline > now && !parcel.sent.swap(true, Ordering::AcqRel);
    let (parcels, late): (Vec<Parcel>, Vec<Parcel>) = parcels.into_iter().partition(wanted);
    for parcel in late {
        let cause = "the time was up".to_owned();
        let _ = parcel.answer.send(Err(ForwardError::NotSent { node, cause }));
    }
    let left = parcels.iter().map(|parcel| parcel.deadline - now).max();
    let Some(time_left) = left.filter(|left| *left > Duration::ZERO) else { return };
    let commands = parcels.iter().map(|parcel| parcel.command.clone()).collect();
    let result = transport.forward(node, Forward { shard, time_left, commands }).await;
    let mut replies = result.map(Vec::into_iter);
    for parcel in parcels {
        let reply = match &mut replies {
            Ok(replies) => replies.next().ok_or_else(|| ForwardError::NoAnswer {
                node,
                cause: "it answered fewer commands than it got".to_owned(),
            }),
            Err(error) => Err(error.clone()),
        };
        let _ = parcel.answer.send(reply);
    }
}
