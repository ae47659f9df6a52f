//! What nodes say to each other.

use bytes::Bytes;
use keevee_core::command::Outcome;
use keevee_core::error::ErrorKind;
use keevee_replica::ReplicaMessage;

use super::network::Way;
use super::watched::Message;
use super::{Event, World, paxos, raft};
use crate::coverage::Counter;

/// What became of a forwarded command.
pub(crate) type ForwardReply = Result<Outcome, (ErrorKind, String)>;

#[derive(Clone)]
pub(crate) enum PeerMessage {
    Replica(Box<ReplicaMessage<Message>>),
    /// Carry this out, you lead.
    Forward {
        number: u64,
        command: Bytes,
        time_left: u64,
    },
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
            PeerMessage::Replica(message) => match &**message {
                ReplicaMessage::Engine(Message::Paxos(message)) => paxos::tag(message),
                ReplicaMessage::Engine(Message::Raft(message)) => raft::tag(message),
                ReplicaMessage::ChainHash(hash) => hash.chain as u64,
                ReplicaMessage::Quiesce { index } => *index,
                ReplicaMessage::Wake => 1,
            },
            PeerMessage::Forward { number, .. } | PeerMessage::Forwarded { number, .. } => *number,
            PeerMessage::Reset => 0,
        };
        number << 16
    }
}

impl World {
    pub(crate) fn send(&mut self, from: u64, to: u64, message: PeerMessage) {
        self.count_message(from, to, &message);
        let is_open = self.network.is_open(from, to);
        if !is_open && let Some(held) = self.afflictions.held(from, to) {
            self.trace.at(self.now, from, || format!("→{to} HELD {}", describe(&message)));
            held.push((from, to, message));
            return self.coverage.note(Counter::Held);
        }
        let way = self.network.send(self.now, from, to, &mut self.random);
        let Way::Arrives { at, again_at } = way else {
            self.coverage.note(if is_open { Counter::Lost } else { Counter::CutOff });
            self.trace.at(self.now, from, || format!("→{to} LOST {}", describe(&message)));
            return;
        };
        // A stream repeats nothing; the protocol itself must not mind.
        if let (Some(again_at), PeerMessage::Replica(_)) = (again_at, &message) {
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
        let PeerMessage::Replica(message) = message else { return };
        match &**message {
            ReplicaMessage::Engine(Message::Paxos(message)) => self.count_paxos_message(message),
            ReplicaMessage::Engine(Message::Raft(message)) => self.count_raft_message(from, to, message),
            ReplicaMessage::ChainHash(_) => self.coverage.note(Counter::HashesCompared),
            ReplicaMessage::Quiesce { .. } | ReplicaMessage::Wake => {}
        }
    }

    pub(crate) fn deliver(&mut self, from: u64, to: u64, message: PeerMessage) {
        let is_up = self.nodes[&to].process.is_some();
        let dead = if is_up { "" } else { "DEAD, " };
        self.trace.at(self.now, to, || format!("←{from} {dead}{}", describe(&message)));
        let Some(node) = self.nodes.get_mut(&to) else { return };
        let Some(process) = &mut node.process else {
            if let PeerMessage::Forward { number, .. } = message {
                self.refuse_forward(from, to, number);
            }
            return;
        };
        let now = node.clock.read(self.now);
        let sender = keevee_core::ids::NodeId(from);
        match message {
            PeerMessage::Replica(message) => match process.shard.receive(now.monotonic, sender, *message) {
                Ok(is_plausible) => assert!(is_plausible, "replicas here are correct"),
                Err(failure) => {
                    return self.break_rule(crate::oracles::REPLICA, format!("node {to}: {failure}"));
                }
            },
            PeerMessage::Reset => process.shard.disconnected(now.monotonic, sender),
            PeerMessage::Forward { number, command, time_left } => {
                self.take_forward(from, to, number, command, time_left);
            }
            PeerMessage::Forwarded { number, reply } => self.take_forwarded(to, number, *reply),
        }
        self.settle(to);
    }
}

/// A message in a few words.
pub(crate) fn describe(message: &PeerMessage) -> String {
    match message {
        PeerMessage::Replica(message) => match &**message {
            ReplicaMessage::Engine(Message::Paxos(message)) => paxos::describe(message),
            ReplicaMessage::Engine(Message::Raft(message)) => raft::describe(message),
            ReplicaMessage::ChainHash(hash) => format!("Hash {} {:08x}", hash.index, hash.chain >> 96),
            ReplicaMessage::Quiesce { index } => format!("Quiesce {index}"),
            ReplicaMessage::Wake => "Wake".to_owned(),
        },
        PeerMessage::Forward { number, .. } => format!("Forward #{number}"),
        PeerMessage::Forwarded { number, reply } => match &**reply {
            Ok(outcome) => format!("Forwarded #{number} {}", brief(outcome)),
            Err((kind, _)) => format!("Forwarded #{number} {kind}"),
        },
        PeerMessage::Reset => "connection reset".to_owned(),
    }
}

/// An outcome in a word or two.
pub(crate) fn brief(outcome: &Outcome) -> String {
    let text = format!("{outcome:?}");
    text.split(['(', '{', ' ']).next().unwrap_or_default().to_lowercase()
}
