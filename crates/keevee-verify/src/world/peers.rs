//! What nodes say to each other.

use bytes::Bytes;
use keevee_core::command::Outcome;
use keevee_core::error::ErrorKind;
use keevee_paxos::Message;
use keevee_replica::{ChainHash, Engine};

use super::network::Way;
use super::{Event, World};
use crate::coverage::Counter;

/// What became of a forwarded command.
pub(crate) type ForwardReply = Result<Outcome, (ErrorKind, String)>;

#[derive(Clone)]
pub(crate) enum PeerMessage {
    Paxos(Box<Message>),
    Hash(ChainHash),
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
            PeerMessage::Paxos(message) => match &**message {
                Message::Poll { poll } | Message::PollReply { poll, .. } => *poll,
                Message::Prepare { ballot, from } => ballot.round ^ from << 20,
                Message::Promise { ballot, from, chosen, .. } => ballot.round ^ from << 20 ^ chosen << 40,
                Message::Accept { sent_at, chosen, .. } | Message::Accepted { sent_at, chosen, .. } => {
                    sent_at ^ chosen << 40
                }
                Message::Heartbeat { sent_at, .. } | Message::HeartbeatReply { sent_at, .. } => *sent_at,
                Message::Chosen { chosen, .. } => *chosen,
                Message::Refused { promised, .. } => promised.round,
                Message::ReadIndex { request } | Message::ReadIndexReply { request, .. } => *request,
                Message::TakeOver { ballot } => ballot.round,
            },
            PeerMessage::Hash(hash) => hash.chain as u64,
            PeerMessage::Forward { number, .. } | PeerMessage::Forwarded { number, .. } => *number,
            PeerMessage::Reset => 0,
        };
        number << 16
    }
}

impl World {
    pub(crate) fn send(&mut self, from: u64, to: u64, message: PeerMessage) {
        self.count_message(&message);
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
        if let (Some(again_at), PeerMessage::Paxos(_) | PeerMessage::Hash(_)) = (again_at, &message) {
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

    fn count_message(&mut self, message: &PeerMessage) {
        let PeerMessage::Paxos(message) = message else { return };
        match &**message {
            Message::PollReply { granted: false, .. } => self.coverage.note(Counter::PollsRefused),
            Message::Refused { .. } => self.coverage.note(Counter::Nacks),
            Message::Promise { next: Some(_), .. } => self.coverage.note(Counter::PromisePages),
            Message::TakeOver { .. } => self.coverage.note(Counter::TakeOvers),
            _ => {}
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
            PeerMessage::Paxos(message) => {
                process.shard.engine().message(now.monotonic, sender, *message);
            }
            PeerMessage::Hash(hash) => {
                self.coverage.note(Counter::HashesCompared);
                if let Err(failure) = process.shard.compare_hash(sender, hash) {
                    return self.break_rule(crate::oracles::REPLICA, format!("node {to}: {failure}"));
                }
            }
            PeerMessage::Reset => process.shard.engine().disconnected(now.monotonic, sender),
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
        PeerMessage::Paxos(message) => describe_paxos(message),
        PeerMessage::Hash(hash) => format!("Hash {} {:08x}", hash.index, hash.chain >> 96),
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

fn describe_paxos(message: &Message) -> String {
    match message {
        Message::Poll { .. } => "Poll".to_owned(),
        Message::PollReply { granted: true, .. } => "Poll granted".to_owned(),
        Message::PollReply { granted: false, .. } => "Poll refused".to_owned(),
        Message::Prepare { ballot, from } => format!("Prepare {ballot} from {from}"),
        Message::Promise { ballot, from, entries, next, chosen, .. } => {
            let more = next.map_or(String::new(), |next| format!(", next {next}"));
            format!("Promise {ballot} from {from}: {}{more}, chosen {chosen}", entries.len())
        }
        Message::Accept { ballot, entries, chosen, .. } => {
            let first = entries.first().map_or(0, |entry| entry.index);
            let last = entries.last().map_or(0, |entry| entry.index);
            format!("Accept {ballot} {first}..{last}, chosen {chosen}")
        }
        Message::Accepted { ballot, through, chosen, .. } => {
            format!("Accepted {ballot} ..{through}, chosen {chosen}")
        }
        Message::Heartbeat { ballot, chosen, connected, .. } => {
            let alone = if *connected { "" } else { ", alone" };
            format!("Heartbeat {ballot}, chosen {chosen}{alone}")
        }
        Message::HeartbeatReply { ballot, through, chosen, .. } => {
            format!("Beat {ballot} ..{through}, chosen {chosen}")
        }
        Message::Chosen { ballot, chosen } => format!("Chosen {ballot} ..{chosen}"),
        Message::Refused { ballot, promised } => format!("Refused {ballot}, promised {promised}"),
        Message::ReadIndex { request } => format!("ReadIndex {}", request % 1_000),
        Message::ReadIndexReply { request, index, .. } => {
            format!("ReadIndex {} is {index}", request % 1_000)
        }
        Message::TakeOver { ballot } => format!("TakeOver {ballot}"),
    }
}
