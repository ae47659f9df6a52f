//! The replica: state, dispatch of inputs, what every step ends with, and the invariants.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::time::Duration;

use keevee_mutants::{self as mutants, Mutant};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::ballot::{Ballot, Index, NodeId};
use crate::configurations::{Configurations, all_nodes};
use crate::election::{Polling, Preparing};
use crate::leader::Leading;
use crate::log::Log;
use crate::message::{HardState, Input, LogRead, Message, Output, Persist, Record, Restored, Timing};
use crate::quorum::{Configuration, QuorumSystem};
use crate::reads::Reads;

/// So far the chosen mark on disk may fall behind: a record of its own for each entry would cost as much as the entry.
const MARK_STEP: u64 = 64;

/// What a replica is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// All nodes that the group began with, and which sets of them decided. None of a group that this node joins: who
    /// leads will tell.
    pub quorum: QuorumSystem,
    /// How often and how long.
    pub timing: Timing,
    /// Seeds the draws of timeouts, and where the numbers of this life's questions start: must differ between
    /// nodes and between the starts of a node.
    pub seed: u64,
    /// The most payload of one message, in bytes, unless one entry is larger.
    pub page_bytes_max: usize,
    /// The most payload sent to one follower and not yet acknowledged, in bytes.
    pub window_bytes_max: usize,
    /// The most payload of applied entries kept in memory for followers, in bytes.
    pub cache_bytes_max: usize,
}

impl Config {
    /// Defaults for everything but who is who.
    pub fn new(id: NodeId, quorum: QuorumSystem, seed: u64) -> Config {
        Config {
            id,
            quorum,
            timing: Timing::default(),
            seed,
            page_bytes_max: 1 << 20,
            window_bytes_max: 8 << 20,
            cache_bytes_max: 16 << 20,
        }
    }
}

/// What a replica does besides accepting.
pub(crate) enum Role {
    /// Waits for a leader, until `poll_at`.
    Follower,
    /// Asks whether it may raise a ballot.
    Polling(Polling),
    /// Phase 1.
    Preparing(Preparing),
    /// Phase 2.
    Leading(Leading),
}

/// The last sign of life of a leader whose ballot is not below the promise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) ballot: Ballot,
    pub(crate) at: Duration,
    /// The leader's clock in the latest message that was heard, in microseconds.
    pub(crate) sent_at: u64,
    pub(crate) connected: bool,
}

/// The end of the contiguous run above the chosen index that is accepted at `ballot`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefix {
    pub(crate) ballot: Ballot,
    pub(crate) through: Index,
}

/// A write handed out and not reported synced yet.
struct Pending {
    token: u64,
    /// The lowest index that it writes an entry at.
    lowest: Option<Index>,
    since: Duration,
    /// True if it writes a higher promise.
    raises_promise: bool,
}

/// One member's part in a group that agrees on a log: acceptor, learner, and at times leader.
///
/// It moves only by [`Replica::step`]. Invariants, asserted after each step:
///
/// 1. The promise, the chosen index and the first index never decrease.
/// 2. No entry was accepted at a ballot above the promise.
/// 3. `first - 1 <= flushed <= applied <= delivered <= chosen <= last`.
/// 4. An entry is delivered only once it is chosen and synced here.
/// 5. A leader or candidate holds its own ballot as its promise.
/// 6. A leader's log has no holes above its chosen index, all of it at its own ballot.
/// 7. No acknowledgement exceeds the leader's log.
/// 8. The configuration in force is the last one at or below the chosen index, and the disk has it before anything behind
///    it is delivered.
pub struct Replica {
    pub(crate) id: NodeId,
    /// In force.
    pub(crate) quorum: QuorumSystem,
    pub(crate) configurations: Configurations,
    /// The one that the replica was first started with, which is on no disk.
    first_configuration: Configuration,
    /// The place of the first one that came into force in this step.
    pub(crate) entered: Option<Index>,
    /// Everybody of the configuration in force, and of those that may come to be.
    pub(crate) nodes: BTreeSet<NodeId>,
    pub(crate) timing: Timing,
    pub(crate) page_bytes_max: usize,
    pub(crate) window_bytes_max: usize,
    seed: u64,
    random: StdRng,

    // The acceptor.
    pub(crate) promised: Ballot,
    pub(crate) log: Log,
    pub(crate) first: Index,
    pub(crate) prefix: Prefix,
    pending: VecDeque<Pending>,
    next_token: u64,
    /// The chosen index last handed out to be written.
    recorded_mark: Index,

    // The learner.
    pub(crate) chosen: Index,
    delivered: Index,
    pub(crate) applied: Index,
    pub(crate) flushed: Index,
    /// What the leader last told: applied and flushed on every member up to here.
    pub(crate) flushed_everywhere_heard: Index,
    /// The log need not be kept up to here, whoever lacks some of it.
    compactable: Index,

    // Who leads.
    pub(crate) role: Role,
    pub(crate) heard: Option<Heard>,
    pub(crate) poll_at: Duration,
    pub(crate) poll_count: u64,
    pub(crate) round_seen: u64,
    pub(crate) reads: Reads,

    // The step at hand.
    pub(crate) now: Duration,
    pub(crate) output: Output,
    pub(crate) records: Vec<Record>,
    pub(crate) after_sync: Vec<(NodeId, Message)>,
    before: (Ballot, Index, Index),
}

impl Replica {
    /// A replica as it was when it last wrote.
    pub fn new(config: Config, restored: Restored, now: Duration) -> Replica {
        let HardState { promised, chosen, first, configuration } = restored.hard_state.clone();
        let first_configuration = Configuration::of(config.quorum);
        let (place, configuration) = configuration.unwrap_or((0, first_configuration.clone()));
        let applied = restored.applied;
        // What is applied was chosen, even if the mark had not been written yet.
        let chosen = chosen.max(applied);
        let chosen = if mutants::is_active(Mutant::RestartTakesAllForChosen) {
            let consecutive = restored.entries.iter().zip(applied + 1..);
            applied + consecutive.take_while(|(entry, index)| entry.index == *index).count() as u64
        } else {
            chosen
        };
        let mut random = StdRng::seed_from_u64(config.seed);
        // Numbers of questions start anywhere, so that no two lives of a node share one.
        let (poll_count, question_count) = (random.random::<u64>() / 2, random.random::<u64>() / 2);
        let log = Log::new(restored, config.cache_bytes_max);
        let mut replica = Replica {
            id: config.id,
            quorum: configuration.quorum.clone(),
            nodes: all_nodes(&configuration, &log),
            configurations: Configurations::new(place, configuration),
            first_configuration,
            entered: None,
            timing: config.timing,
            page_bytes_max: config.page_bytes_max,
            window_bytes_max: config.window_bytes_max,
            seed: config.seed,
            random,
            promised,
            log,
            first: first.max(1),
            prefix: Prefix { ballot: Ballot::ZERO, through: chosen },
            pending: VecDeque::new(),
            next_token: 1,
            recorded_mark: chosen,
            chosen: 0,
            delivered: applied,
            applied,
            flushed: applied,
            flushed_everywhere_heard: 0,
            compactable: 0,
            role: Role::Follower,
            heard: None,
            poll_at: now,
            poll_count,
            round_seen: promised.round,
            reads: Reads::new(question_count),
            now,
            output: Output::default(),
            records: Vec::new(),
            after_sync: Vec::new(),
            before: (promised, chosen, first.max(1)),
        };
        replica.poll_at = now + replica.draw_timeout();
        replica.advance_chosen(chosen);
        replica.assert_invariants();
        replica
    }

    /// Moves by one input. `now` counts from any origin that stays the same, and does not go back.
    pub fn step(&mut self, now: Duration, input: Input, disk: &dyn LogRead) -> Output {
        self.now = self.now.max(now);
        match input {
            Input::Message { from, message } => self.receive(from, message, disk),
            Input::Tick => self.tick(disk),
            Input::Propose(bytes) => self.propose(bytes, disk),
            Input::Read(read) => self.read(read),
            Input::CancelRead(read) => self.reads.cancel(read),
            Input::Persisted(token) => self.persisted(token),
            Input::Applied(index) => self.applied(index),
            Input::Flushed(index) => self.flushed = self.flushed.max(index.min(self.applied)),
            Input::Compact(index) => self.compactable = self.compactable.max(index),
            Input::Disconnected(node) => self.disconnected(node, disk),
            Input::TransferLeadership(to) => self.transfer(to),
            Input::ProposeConfiguration(configuration) => self.propose_configuration(configuration, disk),
        }
        self.finish()
    }

    fn receive(&mut self, from: NodeId, message: Message, disk: &dyn LogRead) {
        // Who leads may take part since a change that this replica has not heard of. Whose answers count is in force here.
        if !message.is_plausible() {
            self.output.is_implausible = true;
            return;
        }
        match message {
            Message::Poll { poll } => self.on_poll(from, poll),
            Message::PollReply { poll, granted } => self.on_poll_reply(from, poll, granted, disk),
            Message::Prepare { ballot, from: index } => self.on_prepare(from, ballot, index, disk),
            Message::Promise { ballot, from: page, entries, next, chosen, first } => {
                let page = crate::election::PromisePage { page, entries, next, chosen, first };
                self.on_promise(from, ballot, page, disk);
            }
            Message::Accept { ballot, sent_at, entries, chosen } => {
                self.on_accept(from, ballot, sent_at, entries, chosen);
            }
            Message::Accepted { ballot, sent_at, through, chosen } => {
                self.on_acknowledgement(from, ballot, sent_at, through, chosen, disk);
            }
            Message::Heartbeat { ballot, sent_at, chosen, connected, flushed } => {
                self.on_heartbeat(from, ballot, sent_at, chosen, connected, flushed);
            }
            Message::HeartbeatReply { ballot, sent_at, through, chosen, flushed } => {
                self.on_flushed(from, ballot, flushed);
                self.on_acknowledgement(from, ballot, sent_at, through, chosen, disk);
            }
            Message::Chosen { ballot, chosen } => self.learn(ballot, chosen),
            Message::Refused { ballot, promised } => self.on_refused(from, ballot, promised, disk),
            Message::ReadIndex { request } => self.on_read_index(from, request),
            Message::ReadIndexReply { request, ballot, index } => {
                self.on_read_index_reply(request, ballot, index);
            }
            Message::TakeOver { ballot } => self.on_take_over(from, ballot, disk),
            Message::Dropped { ballot, first } => self.on_dropped(from, ballot, first),
        }
    }

    fn tick(&mut self, disk: &dyn LogRead) {
        match &self.role {
            Role::Leading(_) => self.tick_leader(disk),
            // Another ballot would wait for the same disk, and the answer to this one would come in vain.
            Role::Preparing(preparing) if self.waits_for_disk_since(preparing.since) => {}
            Role::Preparing(preparing) if self.now < preparing.until => self.resend_prepare(),
            _ if self.now >= self.poll_at => self.poll(disk),
            _ => {}
        }
        self.tick_reads();
    }

    fn persisted(&mut self, token: u64) {
        while self.pending.front().is_some_and(|pending| pending.token <= token) {
            self.pending.pop_front();
        }
    }

    fn applied(&mut self, index: Index) {
        assert!(index <= self.delivered, "applied past what was delivered");
        self.applied = self.applied.max(index);
    }

    /// Sends at once; for what promises nothing about the disk.
    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        self.output.send.push((to, message));
    }

    /// Sends to every other member at once.
    pub(crate) fn broadcast(&mut self, message: &Message) {
        for node in self.others() {
            self.send(node, message.clone());
        }
    }

    /// Sends once everything written so far, by this step too, is on disk.
    pub(crate) fn send_when_synced(&mut self, to: NodeId, message: Message) {
        self.after_sync.push((to, message));
    }

    pub(crate) fn others(&self) -> Vec<NodeId> {
        self.nodes.iter().copied().filter(|node| *node != self.id).collect()
    }

    /// A time between the shortest and the longest timeout, drawn anew at each call: equal draws for ever
    /// would mean no leader for ever.
    pub(crate) fn draw_timeout(&mut self) -> Duration {
        let Timing { timeout_min, timeout_max, .. } = self.timing;
        if mutants::is_active(Mutant::TimeoutDrawnOnce) {
            return StdRng::seed_from_u64(self.seed).random_range(timeout_min..=timeout_max);
        }
        self.random.random_range(timeout_min..=timeout_max)
    }

    /// True if the disk has kept a write waiting for longer than the longest timeout, and others may do better.
    pub(crate) fn is_stalled(&self) -> bool {
        let alone = |node| node == self.id;
        let is_alone = self.quorum.is_phase1_quorum(alone) && self.quorum.is_phase2_quorum(alone);
        !is_alone && self.disk_silent_for(|_| true) > self.timing.timeout_max
    }

    /// True if not all is on disk yet that was written by then.
    fn waits_for_disk_since(&self, since: Duration) -> bool {
        self.pending.front().is_some_and(|pending| pending.since <= since)
    }

    /// For how long the oldest write has waited for the disk, if it is of entries.
    pub(crate) fn entries_unsynced_for(&self) -> Duration {
        self.disk_silent_for(|pending| pending.lowest.is_some())
    }

    fn disk_silent_for(&self, counts: impl Fn(&Pending) -> bool) -> Duration {
        let oldest = self.pending.front().filter(|pending| counts(pending));
        let silent = oldest.map_or(Duration::ZERO, |pending| self.now - pending.since);
        if mutants::is_active(Mutant::StalledLeaderStays) { Duration::ZERO } else { silent }
    }

    /// Everything up to here that this node accepted is on its disk.
    pub(crate) fn synced_through(&self) -> Index {
        let lowest = self.pending.iter().filter_map(|pending| pending.lowest).min();
        lowest.map_or(Index::MAX, |index| index - 1)
    }

    /// True if the disk knows the promise.
    pub(crate) fn is_promise_synced(&self) -> bool {
        let (promised_before, ..) = self.before;
        self.promised == promised_before && !self.pending.iter().any(|pending| pending.raises_promise)
    }

    fn finish(&mut self) -> Output {
        self.write();
        self.drop_flushed();
        self.persist();
        self.deliver();
        self.log.evict(self.applied.min(self.synced_through()));
        self.serve_reads();
        self.assert_invariants();
        mem::take(&mut self.output)
    }

    /// Adds the hard state to this step's records if the promise moved, if a configuration came into force, or if the chosen
    /// mark moved far and something is written anyway. A mark that is behind costs a restart nothing but to learn again what was chosen.
    fn write(&mut self) {
        let promise_moved = self.promised > self.before.0;
        let mark_moved = self.chosen >= self.recorded_mark + MARK_STEP && !self.records.is_empty();
        if promise_moved || mark_moved || self.entered.is_some() {
            self.record_hard_state();
        }
    }

    fn record_hard_state(&mut self) {
        self.recorded_mark = self.chosen;
        let hard_state = self.hard_state();
        self.records.push(Record::HardState(hard_state));
    }

    fn hard_state(&self) -> HardState {
        let (place, configuration) = self.configurations.in_force();
        let configuration = self.to_be_kept((place, configuration.clone()));
        HardState { promised: self.promised, chosen: self.chosen, first: self.first, configuration }
    }

    fn to_be_kept(&self, configuration: (Index, Configuration)) -> Option<(Index, Configuration)> {
        Some(configuration).filter(|(place, kept)| *place > 0 || *kept != self.first_configuration)
    }

    /// Drops the log below what every member has applied and flushed, or what a snapshot would bring to those that have
    /// not.
    fn drop_flushed(&mut self) {
        let first = self.flushed_everywhere().max(self.compactable).min(self.flushed) + 1;
        if first > self.first {
            self.first = first;
            self.log.drop_below(first);
            self.record_hard_state();
            self.records.push(Record::DropBelow(first));
        }
    }

    /// The write that puts a snapshot in the place of the log up to `index`, which is above what is known to be chosen
    /// here. What was accepted above it stays: an acceptor forgets nothing that may yet be chosen. The replica
    /// must not move any more: whoever holds the snapshot starts another one on what is written then. The configuration is
    /// the one in force at the index, and its place.
    pub fn adopt_snapshot(&mut self, index: Index, configuration: (Index, Configuration)) -> Persist {
        assert!(index + 1 >= self.first, "the log goes on behind a snapshot");
        let token = self.next_token;
        self.next_token += 1;
        if index <= self.chosen {
            // The state alone was lost: the log stands as a crash leaves it whose state lags behind.
            return Persist { token, records: Vec::new(), then_send: Vec::new() };
        }
        let configuration = self.to_be_kept(configuration);
        let hard_state =
            HardState { promised: self.promised, chosen: index, first: index + 1, configuration };
        let mut records = vec![Record::HardState(hard_state), Record::DropBelow(index + 1)];
        if mutants::is_active(Mutant::AcceptedBehindSnapshotDropped) {
            records.push(Record::DropFrom(index + 1));
        }
        Persist { token, records, then_send: Vec::new() }
    }

    fn persist(&mut self) {
        let records = mem::take(&mut self.records);
        let then_send = mem::take(&mut self.after_sync);
        if records.is_empty() && (then_send.is_empty() || self.pending.is_empty()) {
            self.output.send.extend(then_send);
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        // What is applied behind a configuration must not be on a disk that does not have the configuration.
        let entered = self.entered.take();
        let indexes = records.iter().filter_map(|record| match record {
            Record::Accepted(entry) => Some(entry.index),
            _ => None,
        });
        let (promised_before, ..) = self.before;
        let raises_promise = self.promised > promised_before;
        self.pending.push_back(Pending {
            token,
            lowest: indexes.chain(entered).min(),
            since: self.now,
            raises_promise,
        });
        self.output.persist = Some(Persist { token, records, then_send });
    }

    /// Hands out what is chosen and synced, one page at a time: the next follows when this one is applied.
    fn deliver(&mut self) {
        let is_early = mutants::is_active(Mutant::AppliedBeforeSync);
        let synced = if is_early { Index::MAX } else { self.synced_through() };
        let through = self.chosen.min(synced);
        if self.delivered > self.applied || self.delivered >= through {
            return;
        }
        let page = self.log.unapplied(self.delivered + 1, through, 4 * self.page_bytes_max);
        self.delivered += page.len() as u64;
        self.output.chosen = page;
    }

    fn assert_invariants(&mut self) {
        let (promised, chosen, first) = self.before;
        assert!(self.promised >= promised, "a promise never shrinks");
        assert!(self.chosen >= chosen, "what is chosen stays chosen");
        assert!(self.first >= first, "what was dropped stays dropped");
        assert!(self.log.ballot_max() <= self.promised, "accepted above the promise");
        assert!(self.first <= self.flushed + 1, "dropped what is not flushed");
        assert!(self.flushed <= self.applied, "flushed what is not applied");
        assert!(self.applied <= self.delivered, "applied what was not delivered");
        assert!(self.delivered <= self.chosen, "delivered what is not chosen");
        assert!(self.chosen <= self.log.last(), "chose what is not in the log");
        assert!(self.prefix.through <= self.log.last(), "a prefix longer than the log");
        match &self.role {
            Role::Preparing(preparing) => assert_eq!(preparing.ballot, self.promised),
            Role::Leading(leading) => {
                assert_eq!(leading.ballot, self.promised);
                assert_eq!(leading.ballot.node, self.id);
                assert_eq!(self.prefix.ballot, leading.ballot);
                assert_eq!(self.prefix.through, self.log.last(), "a leader's log has no holes");
                assert!(leading.acknowledged_max() <= self.log.last(), "acknowledged the unknown");
            }
            Role::Follower | Role::Polling(_) => {}
        }
        self.before = (self.promised, self.chosen, self.first);
    }
}

/// What a replica is, as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it does besides accepting.
    pub role: RoleName,
    /// The leader that it knows, perhaps itself.
    pub leader: Option<NodeId>,
    /// The highest ballot promised.
    pub promised: Ballot,
    /// The first index in the log.
    pub first: Index,
    /// The last index in the log.
    pub last: Index,
    /// Everything up to here is chosen.
    pub chosen: Index,
    /// Everything up to here is applied.
    pub applied: Index,
    /// Everything up to here survives a crash without the log.
    pub flushed: Index,
    /// Who takes part.
    pub configuration: Configuration,
    /// True once something behind the configuration is chosen, so that a quorum of it knows that it is in force.
    pub is_configuration_known: bool,
    /// Of a leader: what each other member acknowledged at its ballot.
    pub acknowledged: Vec<(NodeId, Index)>,
}

/// The name of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// Follows, or looks for a leader to follow.
    Follower,
    /// Polls, or runs phase 1.
    Candidate,
    /// Leads.
    Leader,
}

impl Replica {
    /// This node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The leader that this replica knows, perhaps itself.
    pub fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower => self.heard.map(|heard| heard.ballot.node),
            Role::Polling(_) | Role::Preparing(_) => None,
            Role::Leading(_) => Some(self.id),
        }
    }

    /// What this replica is now.
    pub fn status(&self) -> Status {
        let role = match &self.role {
            Role::Follower => RoleName::Follower,
            Role::Polling(_) | Role::Preparing(_) => RoleName::Candidate,
            Role::Leading(_) => RoleName::Leader,
        };
        let acknowledged = match &self.role {
            Role::Leading(leading) => leading.acknowledged(self.id),
            _ => Vec::new(),
        };
        Status {
            role,
            leader: self.leader(),
            promised: self.promised,
            first: self.first,
            last: self.log.last(),
            chosen: self.chosen,
            applied: self.applied,
            flushed: self.flushed,
            configuration: self.configurations.in_force().1.clone(),
            is_configuration_known: match self.configurations.in_force() {
                (0, _) => true,
                (place, _) => self.chosen > place,
            },
            acknowledged,
        }
    }
}
