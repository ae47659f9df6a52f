//! What other nodes ask of this one: replicas' messages, and commands for the leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use keevee_core::codec;
use keevee_core::command::Command;
use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::limits::Limits;
use keevee_replica::Refusal;
use tokio::sync::oneshot;

use crate::executor::{Answer, Job, Jobs, Submission};
use crate::metrics::RefusalReason;
use crate::node::describe;
use crate::transport::refusals::Refusals;
use crate::transport::throttle::Party;
use crate::transport::{BoxFuture, Forward, ForwardReply, PeerHandler, PeerMessage, message_bytes};

/// Payload from peers that may wait for the executor. A disk that stalls holds the executor up; peers repeat
/// what matters.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Hands what arrives from peers to the executor.
pub(crate) struct Inbox {
    pub(crate) jobs: Jobs,
    pub(crate) limits: Limits,
    /// What waits now: the executor takes off what it has taken in.
    pub(crate) waiting_bytes: Arc<AtomicUsize>,
    pub(crate) refusals: Refusals,
}

impl PeerHandler for Inbox {
    fn receive(&self, from: NodeId, shard: ShardId, messages: Vec<PeerMessage>) {
        let bytes = messages.iter().map(message_bytes).sum();
        if self.waiting_bytes.load(Ordering::Relaxed) > WAITING_BYTES_MAX {
            let detail = "its messages are dropped: so much waits here, perhaps for the disk";
            return self.refusals.note(Party::Node(from), RefusalReason::Overloaded, &detail);
        }
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.jobs.send(Job::Peer { from, shard, messages, bytes });
    }

    fn disconnected(&self, node: NodeId) {
        self.jobs.send(Job::Disconnected(node));
    }

    fn execute_forwarded(&self, _from: NodeId, forward: Forward) -> BoxFuture<Vec<ForwardReply>> {
        let deadline = Instant::now() + forward.time_left;
        let mut answers = Vec::with_capacity(forward.commands.len());
        for command in forward.commands {
            answers.push(self.check(command).map(|command| {
                let (answer, answered) = oneshot::channel();
                let submission = Submission { command, deadline, stale: false, answer };
                self.jobs.send(Job::Submit(forward.shard, submission));
                answered
            }));
        }
        Box::pin(async move {
            let mut replies = Vec::with_capacity(answers.len());
            for answer in answers {
                replies.push(match answer {
                    Ok(answered) => into_reply(answered.await),
                    Err(refusal) => refusal,
                });
            }
            replies
        })
    }
}

impl Inbox {
    fn check(&self, command: Bytes) -> Result<Command, ForwardReply> {
        let refuse = |kind, detail: String| ForwardReply::Error { kind, detail, leader: None };
        let command = codec::decode_command(command)
            .map_err(|error| refuse(ErrorKind::Invalid, format!("the forwarded command: {error}")))?;
        match command.validate(&self.limits) {
            Ok(()) => Ok(command),
            Err(error) => Err(refuse(error.kind(), error.to_string())),
        }
    }
}

fn into_reply(answer: Result<Answer, oneshot::error::RecvError>) -> ForwardReply {
    match answer {
        Ok(Ok(outcome)) => ForwardReply::Outcome(codec::encode_outcome(&outcome)),
        Ok(Err(refusal)) => {
            let leader = match refusal {
                Refusal::NotLeader(leader) => leader,
                Refusal::Unavailable(_) | Refusal::OutcomeUnknown(_) => None,
            };
            ForwardReply::Error { kind: refusal.kind(), detail: describe(refusal), leader }
        }
        Err(_) => ForwardReply::Error {
            kind: ErrorKind::OutcomeUnknown,
            detail: "the leader stopped before it knew the outcome".to_owned(),
            leader: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use keevee_replica::ChainHash;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn what_comes_while_too_much_waits_is_dropped_and_counted() {
        let metrics = Metrics::new();
        let (sender, mut receiver) = unbounded_channel();
        let inbox = Inbox {
            jobs: Jobs(sender),
            limits: Limits::default(),
            waiting_bytes: Arc::new(AtomicUsize::new(WAITING_BYTES_MAX)),
            refusals: Refusals::new(&metrics),
        };
        let message = || vec![PeerMessage::ChainHash(ChainHash { index: 1, chain: 2 })];
        inbox.receive(NodeId(2), ShardId(1), message());
        assert!(receiver.try_recv().is_ok(), "up to the bound it is taken in");
        inbox.waiting_bytes.store(WAITING_BYTES_MAX + 1, Ordering::Relaxed);
        inbox.receive(NodeId(2), ShardId(1), message());
        assert!(receiver.try_recv().is_err());
        assert!(metrics.text().contains("keevee_peer_refused_total{reason=\"overloaded\"} 1\n"));
    }
}
