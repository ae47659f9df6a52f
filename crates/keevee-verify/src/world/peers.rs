//! What nodes say to each other.

use bytes::Bytes;
use keevee_core::command::Outcome;
use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_replica::{Refusal, ReplicaMessage, ScrubMessage, SnapshotMessage};

use super::network::Way;
use super::watched::Message;
use super::{Event, World, paxos, raft};
use crate::coverage::Counter;
use crate::oracles::Fetches;

/// A command for another node: carry this out, you lead.
#[derive(Clone)]
pub(crate) struct Forward {
    pub(crate) shard: ShardId,
    pub(crate) number: u64,
    pub(crate) command: Bytes,
    pub(crate) time_left: u64,
}

/// What became of a forwarded command.
#[derive(Clone)]
pub(crate) enum ForwardReply {
    Outcome(Outcome),
    Error {
        kind: ErrorKind,
        detail: String,
        /// Of [`ErrorKind::NotLeader`]: who leads, if that is known.
        leader: Option<NodeId>,
    },
}

impl ForwardReply {
    pub(crate) fn error(kind: ErrorKind, detail: &str) -> ForwardReply {
        ForwardReply::Error { kind, detail: detail.to_owned(), leader: None }
    }
}

impl From<Result<Outcome, Refusal>> for ForwardReply {
    fn from(result: Result<Outcome, Refusal>) -> ForwardReply {
        match result {
            Ok(outcome) => ForwardReply::Outcome(outcome),
            Err(refusal) => {
                let leader = match refusal {
                    Refusal::NotLeader(leader) => leader,
                    Refusal::Unavailable(_) | Refusal::OutcomeUnknown(_) => None,
                };
                ForwardReply::Error { kind: refusal.kind(), detail: refusal.to_string(), leader }
            }
        }
    }
}

/// What is large is boxed: events are moved around a lot.
#[derive(Clone)]
pub(crate) enum PeerMessage {
    /// From a replica to its counterpart in the same shard.
    Replica(ShardId, Box<ReplicaMessage<Message>>),
    /// The node is alive, and what its clock shows.
    Alive {
        boot: u64,
        wall_micros: u64,
    },
    Forward(Box<Forward>),
    Forwarded {
        number: u64,
        reply: Box<ForwardReply>,
    },
    /// The connection is gone.
    Reset,
}

impl PeerMessage {
    /// Tells it from others, for the trace's hash.
    pub(crate) fn tag(&self) -> u64 {
        let number = match self {
            PeerMessage::Replica(_, message) => match &**message {
                ReplicaMessage::Engine(Message::Paxos(message)) => paxos::tag(message),
                ReplicaMessage::Engine(Message::Raft(message)) => raft::tag(message),
                ReplicaMessage::ChainHash(hash) => hash.chain as u64,
                ReplicaMessage::Quiesce { index } => *index,
                ReplicaMessage::Wake => 1,
                ReplicaMessage::AdvanceTime { to } | ReplicaMessage::TimeNotCome { to } => *to,
                ReplicaMessage::Snapshot(message) => match message {
                    SnapshotMessage::Ask { snapshot, chunk } => snapshot ^ chunk << 8,
                    SnapshotMessage::Chunk(chunk) => chunk.digest as u64,
                    SnapshotMessage::Gone { snapshot } => *snapshot,
                },
                ReplicaMessage::Scrub(message) => match message {
                    ScrubMessage::Begin { index } => *index,
                    ScrubMessage::Content { digest, .. } => *digest as u64,
                },
            },
            PeerMessage::Alive { boot, .. } => *boot,
            PeerMessage::Forward(forward) => forward.number,
            PeerMessage::Forwarded { number, .. } => *number,
            PeerMessage::Reset => 0,
        };
        let shard = match self {
            PeerMessage::Replica(shard, _) => *shard,
            _ => ShardId::FIRST_DATA,
        };
        (number << 16) ^ u64::from(shard.0 - ShardId::FIRST_DATA.0) << 60
    }
}

impl World {
    pub(crate) fn send(&mut self, from: u64, to: u64, message: PeerMessage) {
        self.count_message(from, to, &message);
        let marks = self.groups.are_several();
        let is_open = self.network.is_open(from, to);
        if !is_open && let Some(held) = self.afflictions.held(from, to) {
            self.trace.at(self.now, from, || format!("→{to} HELD {}", describe(&message, marks)));
            held.push((from, to, message));
            return self.coverage.note(Counter::Held);
        }
        let way = self.network.send(self.now, from, to, &mut self.random);
        let Way::Arrives { at, again_at } = way else {
            self.coverage.note(if is_open { Counter::Lost } else { Counter::CutOff });
            self.trace.at(self.now, from, || format!("→{to} LOST {}", describe(&message, marks)));
            return;
        };
        // A stream repeats nothing; the protocol itself must not mind.
        if let (Some(again_at), PeerMessage::Replica(..)) = (again_at, &message) {
            self.coverage.note(Counter::Duplicated);
            self.at(again_at, Event::Deliver { from, to, message: message.clone() });
        }
        let last = self.arrivals.entry((from, to)).or_default();
        if at < *last {
            self.coverage.note(Counter::Reordered);
        }
        *last = at.max(*last);
        self.at(at, Event::Deliver { from, to, message });
    }

    fn count_message(&mut self, from: u64, to: u64, message: &PeerMessage) {
        let PeerMessage::Replica(shard, message) = message else { return };
        match &**message {
            ReplicaMessage::Engine(Message::Paxos(message)) => self.count_paxos_message(message),
            ReplicaMessage::Engine(Message::Raft(message)) => {
                self.count_raft_message(*shard, from, to, message);
            }
            ReplicaMessage::Wake => self.coverage.note(Counter::Wakes),
            ReplicaMessage::AdvanceTime { .. } => self.coverage.note(Counter::TimeAdvances),
            ReplicaMessage::TimeNotCome { .. } => self.coverage.note(Counter::TimesNotCome),
            ReplicaMessage::Snapshot(SnapshotMessage::Chunk(_)) => self.coverage.note(Counter::Chunks),
            ReplicaMessage::Snapshot(SnapshotMessage::Ask { snapshot, chunk }) => {
                let goes_on = self.groups[*shard].oracles.fetches.asks(from, *snapshot, *chunk);
                self.hold(Fetches::NAME, goes_on);
            }
            ReplicaMessage::ChainHash(_)
            | ReplicaMessage::Quiesce { .. }
            | ReplicaMessage::Snapshot(_)
            | ReplicaMessage::Scrub(_) => {}
        }
    }

    pub(crate) fn deliver(&mut self, from: u64, to: u64, message: PeerMessage) {
        let is_up = self.nodes[&to].process.is_some();
        let dead = if is_up { "" } else { "DEAD, " };
        let marks = self.groups.are_several();
        self.trace.at(self.now, to, || format!("←{from} {dead}{}", describe(&message, marks)));
        let Some(node) = self.nodes.get_mut(&to) else { return };
        let Some(process) = &mut node.process else {
            if let PeerMessage::Forward(forward) = message {
                self.refuse_forward(from, to, forward.number);
            }
            return;
        };
        let now = node.clock.read(self.now);
        let sender = NodeId(from);
        match message {
            PeerMessage::Replica(shard, message) => {
                if matches!(&*message, ReplicaMessage::ChainHash(_)) {
                    self.coverage.note(Counter::HashesCompared);
                }
                // Who took part until a moment ago is still written to.
                if !self.groups[shard].hosts.contains(&to) {
                    return;
                }
                let Some(replica) = process.touch(shard) else { return };
                match replica.receive(now.monotonic, sender, *message) {
                    Ok(is_plausible) => assert!(is_plausible, "replicas here are correct"),
                    Err(failure) => return self.end_by(to, shard, &failure),
                }
            }
            PeerMessage::Alive { boot, wall_micros } => {
                let is_known = process.neighbours.heard(now.monotonic, sender, boot, Some(wall_micros));
                for replica in process.touch_all() {
                    if is_known {
                        replica.vouch(now.monotonic, sender);
                    } else {
                        replica.disconnected(now.monotonic, sender);
                    }
                }
            }
            PeerMessage::Reset => {
                process.neighbours.lost(sender);
                process.touch_all().for_each(|replica| replica.disconnected(now.monotonic, sender));
            }
            PeerMessage::Forward(forward) => self.take_forward(from, to, *forward),
            PeerMessage::Forwarded { number, reply } => self.take_forwarded(to, number, *reply),
        }
        self.settle(to);
    }
}

/// A message in a few words, marked with its shard where there are several.
pub(crate) fn describe(message: &PeerMessage, marks: bool) -> String {
    let marked = |shard: &ShardId, text: String| if marks { format!("[{shard}] {text}") } else { text };
    match message {
        PeerMessage::Replica(shard, message) => {
            let text = match &**message {
                ReplicaMessage::Engine(Message::Paxos(message)) => paxos::describe(message),
                ReplicaMessage::Engine(Message::Raft(message)) => raft::describe(message),
                ReplicaMessage::ChainHash(hash) => format!("Hash {} {:08x}", hash.index, hash.chain >> 96),
                ReplicaMessage::Quiesce { index } => format!("Quiesce {index}"),
                ReplicaMessage::Wake => "Wake".to_owned(),
                ReplicaMessage::AdvanceTime { to } => format!("AdvanceTime {to}"),
                ReplicaMessage::TimeNotCome { to } => format!("TimeNotCome {to}"),
                ReplicaMessage::Snapshot(SnapshotMessage::Ask { snapshot, chunk }) => {
                    format!("Ask {:04x}.{chunk}", snapshot & 0xffff)
                }
                ReplicaMessage::Snapshot(SnapshotMessage::Chunk(chunk)) => {
                    let end = if chunk.mark.is_some() { ", the last" } else { "" };
                    let (snapshot, records) = (chunk.snapshot & 0xffff, chunk.records.len());
                    format!("Chunk {snapshot:04x}.{} of {}: {records}{end}", chunk.number, chunk.index)
                }
                ReplicaMessage::Snapshot(SnapshotMessage::Gone { snapshot }) => {
                    format!("Gone {:04x}", snapshot & 0xffff)
                }
                ReplicaMessage::Scrub(ScrubMessage::Begin { index }) => format!("Scrub {index}"),
                ReplicaMessage::Scrub(ScrubMessage::Content { index, digest, .. }) => {
                    format!("Content {index} {:08x}", digest >> 96)
                }
            };
            marked(shard, text)
        }
        PeerMessage::Alive { boot, .. } => format!("Alive {:04x}", boot >> 48),
        PeerMessage::Forward(forward) => marked(&forward.shard, format!("Forward #{}", forward.number)),
        PeerMessage::Forwarded { number, reply } => match &**reply {
            ForwardReply::Outcome(outcome) => format!("Forwarded #{number} {}", brief(outcome)),
            ForwardReply::Error { kind, .. } => format!("Forwarded #{number} {kind}"),
        },
        PeerMessage::Reset => "connection reset".to_owned(),
    }
}

/// An outcome in a word or two.
pub(crate) fn brief(outcome: &Outcome) -> String {
    let text = format!("{outcome:?}");
    text.split(['(', '{', ' ']).next().unwrap_or_default().to_lowercase()
}
