//! What the world must know of Multi-Paxos: its settings, its messages, what of it is counted.

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_core::ids::ShardId;
use keevee_paxos::{Config, Entry, Message, QuorumSystem, Timing, Value};
use keevee_replica::records;
use keevee_replica::storage::LogRecord;

use super::World;
use crate::coverage::Counter;
use crate::oracles::{Disks, Oracles};
use crate::plan::Plan;

/// A replica's settings.
pub(crate) fn config(plan: &Plan, members: &BTreeSet<u64>, node: u64, seed: u64) -> Config {
    let settings = &plan.settings;
    let micros = Duration::from_micros;
    Config {
        timing: Timing {
            heartbeat: micros(settings.heartbeat),
            timeout_min: micros(settings.timeout_min),
            timeout_max: micros(settings.timeout_max),
        },
        page_bytes_max: settings.page_bytes_max,
        window_bytes_max: settings.window_bytes_max,
        cache_bytes_max: settings.cache_bytes_max,
        ..Config::new(node, QuorumSystem::majority(members.iter().copied()), seed)
    }
}

/// A number that tells a message from others, for the trace's hash.
pub(crate) fn tag(message: &Message) -> u64 {
    match message {
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
        Message::Dropped { ballot, first } => ballot.round ^ first << 20,
    }
}

/// A message in a few words.
pub(crate) fn describe(message: &Message) -> String {
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
        Message::Dropped { ballot, first } => format!("Dropped {ballot} ..{}", first.saturating_sub(1)),
    }
}

impl World {
    pub(crate) fn count_paxos_message(&mut self, message: &Message) {
        match message {
            Message::PollReply { granted: false, .. } => self.coverage.note(Counter::PollsRefused),
            Message::Refused { .. } => self.coverage.note(Counter::Nacks),
            Message::Promise { next: Some(_), .. } => self.coverage.note(Counter::PromisePages),
            Message::TakeOver { .. } => self.coverage.note(Counter::TakeOvers),
            _ => {}
        }
    }

    /// Of a node that does not lead yet: what it writes at its own ballot, it took over from earlier ones.
    pub(crate) fn count_adoptions(&mut self, id: u64, shard: ShardId, submitted: &[LogRecord]) {
        let Oracles { disks, agreement, .. } = &self.groups[shard].oracles;
        let Disks::Paxos { choices, .. } = disks else { return };
        let entries = submitted.iter().filter_map(|record| match record {
            LogRecord::Entry { index, bytes } => records::decode_entry(*index, bytes.clone()).ok(),
            _ => None,
        });
        let mut own: Vec<Entry> = entries.filter(|entry| entry.ballot.node == id).collect();
        // The last is the no-op that starts its ballot.
        own.pop();
        for Entry { index, ballot, value } in own {
            let adopts_noop = choices.had_noop(index, ballot);
            match value {
                Value::Noop if !adopts_noop => self.coverage.note(Counter::HoleFills),
                _ if index <= agreement.last() => self.coverage.note(Counter::LateLeaders),
                _ => self.coverage.note(Counter::Adoptions),
            }
        }
    }
}
