//! What the world must know of Raft: its settings, its messages, what of it is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keevee_core::ids::ShardId;
use keevee_raft::{AppendResult, Config, LogId, RaftMessage, Timing, records};
use keevee_replica::storage::LogStore;

use super::World;
use super::disk::SharedLog;
use crate::coverage::Counter;
use crate::plan::{EngineKind, Plan};

/// A replica's settings. Raft has no window: up to 64 appends are under way, of a page each.
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
        cache_bytes_max: settings.cache_bytes_max,
        ..Config::new(node, members.clone(), seed)
    }
}

/// A number that tells a message from others, for the trace's hash.
pub(crate) fn tag(message: &RaftMessage) -> u64 {
    let index = |id: &Option<LogId>| id.map_or(0, |id| id.index + 1);
    match message {
        RaftMessage::Append { call, vote, previous, entries, committed } => {
            let sizes = (entries.len() as u64) << 8 ^ index(previous) << 16 ^ index(committed) << 32;
            call ^ vote.term << 4 ^ sizes
        }
        RaftMessage::Heartbeat { call, vote, previous, committed } => {
            call ^ vote.term << 4 ^ index(previous) << 16 ^ index(committed) << 32
        }
        RaftMessage::Appended { call, result } | RaftMessage::HeartbeatReply { call, result } => match result
        {
            AppendResult::Success => *call,
            AppendResult::Conflict => call ^ 1 << 40,
            AppendResult::HigherVote(vote) => call ^ vote.term << 32,
        },
        RaftMessage::RequestVote { call, poll, vote, last, .. } => {
            call ^ u64::from(*poll) << 8 ^ vote.term << 16 ^ index(last) << 32
        }
        RaftMessage::Voted { call, vote, granted, .. } => {
            call ^ u64::from(*granted) << 8 ^ vote.term << 16 ^ vote.node << 32
        }
        RaftMessage::TransferLeader { vote, .. } => vote.term,
        RaftMessage::ReadIndex { call } => *call,
        RaftMessage::ReadIndexReply { call, index } => call ^ index.unwrap_or(0) << 16,
        RaftMessage::Flushed { index } => *index,
        RaftMessage::TooFarBehind { call, through, .. } => call ^ through << 16,
        RaftMessage::CaughtUp { call, has_all } => call ^ u64::from(*has_all) << 8,
    }
}

/// A message in a few words.
pub(crate) fn describe(message: &RaftMessage) -> String {
    let place = |id: &Option<LogId>| id.map_or("nothing".to_owned(), |id| id.to_string());
    let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
    match message {
        RaftMessage::Append { vote, previous, entries, committed, .. } => {
            let what = match (entries.first(), entries.last()) {
                (Some(first), Some(last)) => format!("Append {} {}..{}", vote.term, first.id, last.id),
                _ => format!("Append {} nothing at {}", vote.term, place(previous)),
            };
            format!("{what}, chosen {}", index(committed))
        }
        RaftMessage::Heartbeat { vote, previous, committed, .. } => {
            format!("Heartbeat {} at {}, chosen {}", vote.term, place(previous), index(committed))
        }
        RaftMessage::Appended { result, .. } | RaftMessage::HeartbeatReply { result, .. } => match result {
            AppendResult::Success => "Appended".to_owned(),
            AppendResult::Conflict => "Conflict".to_owned(),
            AppendResult::HigherVote(vote) => format!("Refused, voted {vote}"),
        },
        RaftMessage::RequestVote { poll, vote, last, transfer, .. } => {
            let what = if *poll { "Poll" } else { "RequestVote" };
            let why = if *transfer { ", transferred" } else { "" };
            format!("{what} {vote} at {}{why}", place(last))
        }
        RaftMessage::Voted { vote, granted, last, .. } => {
            let what = if *granted { "granted" } else { "refused" };
            format!("Vote {what}, voted {vote} at {}", place(last))
        }
        RaftMessage::TransferLeader { vote, to, last } => {
            format!("TransferLeader {vote} to {to} at {}", place(last))
        }
        RaftMessage::ReadIndex { call } => format!("ReadIndex {call}"),
        RaftMessage::ReadIndexReply { call, index } => match index {
            Some(index) => format!("ReadIndex {call} is {index}"),
            None => format!("ReadIndex {call} refused"),
        },
        RaftMessage::Flushed { index } => format!("Flushed ..{index}"),
        RaftMessage::TooFarBehind { vote, through, .. } => {
            format!("TooFarBehind {vote}, dropped ..{through}")
        }
        RaftMessage::CaughtUp { has_all: true, .. } => "CaughtUp".to_owned(),
        RaftMessage::CaughtUp { has_all: false, .. } => "not CaughtUp".to_owned(),
    }
}

/// What of earlier messages tells how later ones are counted.
#[derive(Default)]
pub(crate) struct Seen {
    /// Polls, by shard, who asked and the number of the call.
    polls: BTreeSet<(ShardId, u64, u64)>,
    /// Of each shard and link: when entries were last sent on it.
    appends: BTreeMap<(ShardId, u64, u64), u64>,
}

impl World {
    pub(crate) fn count_raft_message(&mut self, shard: ShardId, from: u64, to: u64, message: &RaftMessage) {
        match message {
            RaftMessage::Append { entries, .. } if !entries.is_empty() => {
                let last = self.raft_seen.appends.insert((shard, from, to), self.now);
                // No answer can have come so soon.
                if last.is_some_and(|last| self.now < last + 2 * self.plan.settings.latency_min) {
                    self.coverage.note(Counter::Pipelined);
                }
            }
            RaftMessage::RequestVote { call, poll: true, .. } => {
                self.raft_seen.polls.insert((shard, from, *call));
            }
            RaftMessage::Voted { call, granted: false, .. }
                if self.raft_seen.polls.contains(&(shard, to, *call)) =>
            {
                self.coverage.note(Counter::PollsRefused);
            }
            RaftMessage::Appended { result: AppendResult::Conflict, .. } => {
                self.coverage.note(Counter::AppendConflicts);
            }
            RaftMessage::TransferLeader { .. } => self.coverage.note(Counter::TakeOvers),
            _ => {}
        }
    }
}

impl World {
    /// Whether a node's vote may go to another one. In Raft only to whose log is at least as complete (5.4.1), and so
    /// nobody can lead where the one node that reaches a majority lacks what all others have (Omni-Paxos 2023, section
    /// 2: constrained election). In Multi-Paxos whoever leads fetches what it lacks.
    pub(crate) fn may_follow(&self, shard: ShardId, working: &[u64]) -> impl Fn(u64, u64) -> bool + use<> {
        let lasts: BTreeMap<u64, LogId> = match self.plan.engine {
            EngineKind::Paxos => BTreeMap::new(),
            EngineKind::Raft => {
                working.iter().map(|id| (*id, last(&self.nodes[id].disk.log(shard)))).collect()
            }
        };
        move |voter, candidate| lasts.get(&voter) <= lasts.get(&candidate)
    }
}

/// The end of a log, synced or not: its last entry, or the last that was dropped if there is none.
fn last(log: &SharedLog) -> LogId {
    let stored = log.last().and_then(|last| log.read(last, last, usize::MAX)).unwrap_or_default();
    let entry = stored.into_iter().next().map(|(index, bytes)| records::decode_entry(index, bytes));
    let dropped = || records::decode_hard_state(log.hard_state().ok()??).ok()?.purged;
    let last = entry.and_then(Result::ok).map(|entry| entry.id).or_else(dropped);
    last.unwrap_or(LogId { term: 0, index: 0 })
}
