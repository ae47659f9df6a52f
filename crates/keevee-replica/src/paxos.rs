//! Drives `keevee-paxos` over a log: carries out what a step demands, and brings back what it waits for.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::time::Duration;

use bytes::Bytes;
use keevee_core::ids::{Incarnation, NodeId};
use keevee_mutants::{self as mutants, Mutant};
use keevee_paxos::{
    Config, Configuration, Entry, HardState, Input, LogRead, Message, Output, Persist, QuorumSystem, Record,
    Replica, Restored, RoleName, Value,
};

use crate::engine::{Engine, EngineStatus, Events, Role};
use crate::members::Members;
use crate::records;
use crate::storage::{LogRecord, LogStore, StorageError};

/// A Multi-Paxos replica on a log.
pub struct PaxosEngine<L> {
    replica: Replica,
    disk: Disk<L>,
    /// Writes under way, oldest first.
    writing: VecDeque<Writing>,
    events: Events<Message>,
}

struct Writing {
    token: u64,
    has_entries: bool,
    then_send: Vec<(u64, Message)>,
}

/// The log as the pure replica reads it. A read error is kept aside, and stops the engine.
struct Disk<L> {
    log: L,
    failed: RefCell<Option<StorageError>>,
}

impl<L: LogStore> LogRead for Disk<L> {
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Vec<Entry> {
        let decode = |(index, bytes)| records::decode_entry(index, bytes);
        let entries = self.log.read(from, to, bytes_max);
        let decoded = entries.and_then(|entries| entries.into_iter().map(decode).collect());
        decoded.unwrap_or_else(|error| {
            self.failed.replace(Some(error));
            Vec::new()
        })
    }
}

impl<L: LogStore> PaxosEngine<L> {
    /// A replica as its log left it. `applied` is the applied index of the state machine.
    pub fn open(config: Config, log: L, applied: u64, now: Duration) -> Result<PaxosEngine<L>, StorageError> {
        let hard_state = match log.hard_state()? {
            Some(bytes) => records::decode_hard_state(bytes)?,
            None => HardState::default(),
        };
        let last = log.last()?;
        let stored = log.read(applied + 1, last, usize::MAX)?;
        let entries: Result<Vec<Entry>, StorageError> =
            stored.into_iter().map(|(index, bytes)| records::decode_entry(index, bytes)).collect();
        let entries = entries?;
        check_restored(&hard_state, applied, last, &entries)?;
        let restored = Restored { hard_state, applied, entries };
        let replica = Replica::new(config, restored, now);
        let disk = Disk { log, failed: RefCell::new(None) };
        Ok(PaxosEngine { replica, disk, writing: VecDeque::new(), events: Events::default() })
    }

    fn step(&mut self, now: Duration, input: Input) {
        let output = self.replica.step(now, input, &self.disk);
        self.carry_out(now, output);
    }

    fn carry_out(&mut self, now: Duration, mut output: Output) {
        if let Some(mut persist) = output.persist {
            let is_early = |message: &Message| match message {
                Message::Accepted { .. } => mutants::is_active(Mutant::AcknowledgedBeforeSync),
                Message::Promise { .. } => mutants::is_active(Mutant::PromisedBeforeSync),
                _ => false,
            };
            output.send.extend(persist.then_send.extract_if(.., |(_, message)| is_early(message)));
            self.submit(persist);
        }
        let payload = |value| match value {
            Value::Noop | Value::Configuration(_) => None,
            Value::Data(bytes) => Some(bytes),
        };
        self.events.members = output.configuration.as_ref().map(members).or(self.events.members.take());
        let chosen = output.chosen.into_iter().map(|entry| (entry.index, payload(entry.value)));
        self.events.chosen.extend(chosen);
        self.events.reads_ready.extend(output.reads_ready);
        self.events.needs_snapshot = output.needs_snapshot.map(NodeId).or(self.events.needs_snapshot);
        if let Some(error) = self.disk.failed.take() {
            self.events.failed = Some(error);
        }
        self.deliver(now, output.send);
    }

    fn submit(&mut self, persist: Persist) {
        let Persist { token, records, then_send } = persist;
        let has_entries = records.iter().any(|record| matches!(record, Record::Accepted(_)));
        self.disk.log.submit(records.into_iter().map(encode).collect(), token);
        self.writing.push_back(Writing { token, has_entries, then_send });
    }

    /// Messages to this node itself are delivered on the spot.
    fn deliver(&mut self, now: Duration, messages: Vec<(u64, Message)>) {
        let own = self.replica.id();
        for (to, message) in messages {
            if to == own {
                self.step(now, Input::Message { from: own, message });
            } else {
                self.events.send.push((NodeId(to), message));
            }
        }
    }
}

/// Who takes part, as a configuration of the log says.
pub fn members(configuration: &Configuration) -> Members {
    let nodes = |nodes: &BTreeSet<u64>| nodes.iter().copied().map(NodeId).collect();
    let (voters, next) = match &configuration.quorum {
        QuorumSystem::Joint { old, new } => (nodes(old), Some(nodes(new))),
        QuorumSystem::Majority(members) | QuorumSystem::Flexible { members, .. } => (nodes(members), None),
    };
    Members { voters, next, learners: nodes(&configuration.learners) }
}

fn configuration(members: &Members) -> Configuration {
    let nodes = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.0).collect();
    let voters = nodes(&members.voters);
    let quorum = match &members.next {
        Some(next) => QuorumSystem::Joint { old: voters, new: nodes(next) },
        None => QuorumSystem::Majority(voters),
    };
    Configuration { quorum, learners: nodes(&members.learners) }
}

fn encode(record: Record) -> LogRecord {
    match record {
        Record::Accepted(entry) => {
            LogRecord::Entry { index: entry.index, bytes: records::encode_entry(&entry) }
        }
        Record::HardState(state) => LogRecord::HardState(records::encode_hard_state(&state)),
        Record::DropBelow(first) => LogRecord::DropBelow(first),
        Record::DropFrom(index) => LogRecord::DropFrom(index),
    }
}

/// A log that can't be what this node wrote must not vote.
fn check_restored(
    hard_state: &HardState,
    applied: u64,
    last: u64,
    entries: &[Entry],
) -> Result<(), StorageError> {
    let corrupt = |cause: String| Err(StorageError::Corrupt { what: "the log", cause });
    if applied > last && last > 0 || applied > 0 && last == 0 && hard_state.first <= applied {
        return corrupt(format!("the state is at index {applied}, the log ends at {last}"));
    }
    if hard_state.first > applied + 1 {
        return corrupt(format!("it starts at index {}, the state is at {applied}", hard_state.first));
    }
    let consecutive = entries.iter().zip(applied + 1..).take_while(|(entry, index)| entry.index == *index);
    let end = applied + consecutive.count() as u64;
    if end < hard_state.chosen {
        return corrupt(format!("index {} is marked chosen and missing", end + 1));
    }
    match entries.iter().find(|entry| entry.ballot > hard_state.promised) {
        Some(entry) => corrupt(format!("index {} is above the promise", entry.index)),
        None => Ok(()),
    }
}

impl<L: LogStore> Engine for PaxosEngine<L> {
    type Message = Message;

    fn message(&mut self, now: Duration, from: NodeId, message: Message) -> bool {
        let output = self.replica.step(now, Input::Message { from: from.0, message }, &self.disk);
        let is_plausible = !output.is_implausible;
        self.carry_out(now, output);
        is_plausible
    }

    fn is_acknowledgement(message: &Message) -> bool {
        matches!(message, Message::Accepted { .. } | Message::HeartbeatReply { .. })
    }

    fn tick(&mut self, now: Duration) {
        self.step(now, Input::Tick);
    }

    fn persisted(&mut self, now: Duration, token: u64) {
        self.disk.log.persisted(token);
        self.step(now, Input::Persisted(token));
        while self.writing.front().is_some_and(|writing| writing.token <= token) {
            let Some(writing) = self.writing.pop_front() else { break };
            self.deliver(now, writing.then_send);
        }
    }

    fn disconnected(&mut self, now: Duration, node: NodeId) {
        self.step(now, Input::Disconnected(node.0));
    }

    fn propose(&mut self, now: Duration, payload: Bytes) -> Option<u64> {
        let output = self.replica.step(now, Input::Propose(payload), &self.disk);
        let proposed = output.proposed;
        self.carry_out(now, output);
        proposed
    }

    fn read_barrier(&mut self, now: Duration, read: u64) {
        self.step(now, Input::Read(read));
    }

    fn cancel_read(&mut self, now: Duration, read: u64) {
        self.step(now, Input::CancelRead(read));
    }

    fn applied(&mut self, now: Duration, index: u64) {
        self.step(now, Input::Applied(index));
    }

    fn flushed(&mut self, now: Duration, index: u64) {
        self.step(now, Input::Flushed(index));
    }

    fn compact(&mut self, now: Duration, index: u64) {
        self.step(now, Input::Compact(index));
    }

    fn snapshot_mark(&mut self, applied: u64) -> Result<Bytes, StorageError> {
        // After a start a later one may be known, and this one not yet.
        let unknown = || StorageError::Io {
            what: "a snapshot can't be sent yet",
            cause: format!("who took part at index {applied} is known once what follows is applied"),
        };
        let (place, configuration) = self.replica.configuration_at(applied).ok_or_else(unknown)?;
        Ok(records::encode_mark(&(place, configuration.clone())))
    }

    fn may_adopt_snapshot(&self, index: u64, mark: &Bytes) -> bool {
        index > self.replica.status().chosen && records::decode_mark(index, mark.clone()).is_ok()
    }

    fn may_restore_snapshot(&self, index: u64, mark: &Bytes) -> bool {
        index + 1 >= self.replica.status().first && records::decode_mark(index, mark.clone()).is_ok()
    }

    fn adopt_snapshot(
        &mut self,
        index: u64,
        mark: &Bytes,
        incarnation: Incarnation,
    ) -> Result<u64, StorageError> {
        let configuration = records::decode_mark(index, mark.clone())?;
        let Persist { token, records, .. } = self.replica.adopt_snapshot(index, configuration);
        let records = records.into_iter().map(encode).chain([LogRecord::Incarnation(incarnation)]);
        self.disk.log.submit(records.collect(), token);
        Ok(token)
    }

    fn propose_members(&mut self, now: Duration, members: Members) {
        self.step(now, Input::ProposeConfiguration(configuration(&members)));
    }

    fn is_changing_members(&self) -> bool {
        self.replica.is_changing_configuration()
    }

    fn transfer_leadership(&mut self, now: Duration, to: Option<NodeId>) {
        self.step(now, Input::TransferLeadership(to.map(|to| to.0)));
    }

    fn log_bytes(&self) -> Result<u64, StorageError> {
        self.disk.log.bytes()
    }

    fn unsynced(&self) -> usize {
        self.writing.iter().filter(|writing| writing.has_entries).count()
    }

    fn leader(&self) -> Option<NodeId> {
        self.replica.leader().map(NodeId)
    }

    fn status(&self) -> EngineStatus {
        let status = self.replica.status();
        let role = match status.role {
            RoleName::Follower => Role::Follower,
            RoleName::Candidate => Role::Candidate,
            RoleName::Leader => Role::Leader,
        };
        EngineStatus {
            engine: "paxos",
            role,
            leader: status.leader.map(NodeId),
            ballot: status.promised.to_string(),
            first: status.first,
            last: status.last,
            chosen: status.chosen,
            flushed: status.flushed,
            members: members(&status.configuration),
            are_members_known: status.is_configuration_known,
            acknowledged: status
                .acknowledged
                .into_iter()
                .map(|(node, index)| (NodeId(node), index))
                .collect(),
        }
    }

    fn take_events(&mut self) -> Events<Message> {
        mem::take(&mut self.events)
    }
}
