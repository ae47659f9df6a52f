//! Moves openraft from outside: see [`RaftEngine`]. When it stands for election is in [`elections`], what it does as the leader in
//! [`leadership`].

mod elections;
mod leadership;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use keevee_core::ids::{Incarnation, NodeId};
use keevee_replica::storage::{LogStore, StorageError};
use keevee_replica::{Engine, EngineStatus, Events, Members, Role};
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, Precondition};
use openraft::{AsyncRuntime, EntryPayload, Raft, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use openraft_rt_sim::{SimInstant, SimRuntime};

use self::leadership::Leaving;
use crate::doubt::Doubt;
use crate::log::{Known, SharedLog};
use crate::machine::Machine;
use crate::message::{AppendResult, LogId, RaftMessage};
use crate::network::{Answer, Exchange, Network, ReadIndex};
use crate::patience::Patience;
use crate::reads::Reads;
use crate::records::{self, Mark};
use crate::types::{
    Proposal, Types, membership, our_append_result, our_vote, ours, their_append, their_transfer,
    their_vote_request, theirs,
};

/// How leaders are kept and replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between a leader's heartbeats.
    pub heartbeat: Duration,
    /// The shortest silence after which a replica looks for another leader. For so long after a heartbeat nobody votes for
    /// another.
    pub timeout_min: Duration,
    /// The longest.
    pub timeout_max: Duration,
}

/// What a replica must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which one it is.
    pub node: u64,
    /// The first voters, this one included: the same on each of them, and for ever, whatever changes follow. Nobody, if it
    /// joins others: it does nothing until their leader turns to it, and learns from the log who they are.
    pub members: BTreeSet<u64>,
    /// How leaders are kept and replaced.
    pub timing: Timing,
    /// Bytes of entries in one message, unless one is larger.
    pub page_bytes_max: usize,
    /// Bytes of entries kept in memory, so that what was just written need not be read from the log.
    pub cache_bytes_max: usize,
    /// Where its random numbers start.
    pub seed: u64,
}

impl Config {
    /// A replica with usual settings.
    pub fn new(node: u64, members: BTreeSet<u64>, seed: u64) -> Config {
        let millis = Duration::from_millis;
        Config {
            node,
            members,
            timing: Timing { heartbeat: millis(100), timeout_min: millis(600), timeout_max: millis(1200) },
            page_bytes_max: 1 << 20,
            cache_bytes_max: 16 << 20,
            seed,
        }
    }

    fn openraft(&self) -> Arc<openraft::Config> {
        let millis = |span: Duration| span.as_millis() as u64;
        let Timing { heartbeat, timeout_min, timeout_max } = self.timing;
        let config = openraft::Config {
            heartbeat_interval: millis(heartbeat),
            election_timeout_min: millis(timeout_min),
            election_timeout_max: millis(timeout_max),
            // The engine tells when to send heartbeats and when to stand.
            enable_tick: false,
            // Entries go to followers before they are on this node's disk. A leader that lost them in a crash and went
            // on in its old term would put others in their places.
            enable_leader_restore: Some(false),
            snapshot_policy: SnapshotPolicy::Never,
            replication_lag_threshold: u64::MAX,
            max_in_snapshot_log_to_keep: 0,
            purge_batch_size: 1,
            max_payload_entries: 1024,
            backoff: format!("{}ms ... {}ms", millis(heartbeat), millis(timeout_min)),
            ..openraft::Config::default()
        };
        Arc::new(config.validate().expect("a checked configuration is one that openraft takes"))
    }
}

/// How far a run goes beyond the time that it was told: openraft collects finished writes for a microsecond before
/// it looks at them. Time that runs ahead so waits for the caller's clock.
const GRAIN: Duration = Duration::from_micros(2);

/// How late openraft's clock may be, on top of the time between ticks: one that has just run need not run for a tick. What
/// begins on a late clock is given less time.
const LATE: Duration = Duration::from_millis(10);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A Raft replica on a log.
///
/// openraft's tasks run in a runtime of their own, which stands still between two calls. Each call leaves them
/// at the time that it tells, with nothing left to do but to wait.
pub struct RaftEngine<L: LogStore + Send + 'static> {
    runtime: SimRuntime,
    raft: Raft<Types, Machine<L>>,
    metrics: WatchReceiverOf<Types, RaftMetrics<Types>>,
    log: SharedLog<L>,
    exchange: Exchange,
    node: NodeId,
    /// Those who decide: of the last configuration in the log.
    members: Members,
    known: Known,
    /// True if others are in force than the caller was told.
    is_news: bool,
    timing: Timing,
    /// The caller's time at which the runtime's began.
    origin: Duration,
    now: Duration,
    /// What came and was not started yet.
    tasks: Vec<Task>,
    /// True if openraft may have something to do.
    is_stirred: bool,
    /// When it last ran.
    ran: Duration,
    reads: Reads,
    tag: u64,
    applied: u64,
    /// Of each member: what survives a crash without its log.
    flushed: BTreeMap<u64, u64>,
    told_flushed: Option<Duration>,
    /// The oldest write that the log has not reported, and since when it is the oldest.
    oldest_write: Option<(u64, Duration)>,
    /// Since when a quorum that answers holds the whole log of this leader, without it.
    others_hold_all: Option<Duration>,
    /// The term in which it leads, and since when on the runtime's clock.
    leads_since: Option<(u64, Duration)>,
    leaving: Option<Leaving>,
    /// Those to whom appends may have been lost: a connection was, or they were silent. Until they answer one.
    lost: BTreeSet<NodeId>,
    /// When others last answered an append or a heartbeat, on the runtime's clock. openraft counts no answer that takes longer
    /// than heartbeats are apart, as with a slow disk.
    answered: BTreeMap<NodeId, Duration>,
    /// When so many had answered that they are a quorum with this replica, on the runtime's clock.
    quorum_answered: Duration,
    /// When its leader was last heard, by the caller's clock. A start counts too: the leader may not know of it yet.
    heard_leader: Duration,
    /// How long it waits before it stands for election.
    patience: Patience,
    /// When to send heartbeats, if it leads.
    heartbeat_at: Duration,
    doubt: Option<Doubt>,
    /// The log need not be kept up to here, whoever lacks some of it.
    compactable: u64,
    needs_snapshot: Option<NodeId>,
}

impl<L: LogStore + Send + 'static> RaftEngine<L> {
    /// A replica as its log left it. `applied` is the applied index of the state machine.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if the log can't be read, or can't be what this replica wrote.
    pub fn open(config: Config, log: L, applied: u64, now: Duration) -> Result<RaftEngine<L>, StorageError> {
        let log =
            SharedLog::open(log, applied, &config.members, config.page_bytes_max, config.cache_bytes_max)?;
        // Index 0 holds the members, and means the same as nothing.
        let applied_id = if applied > 0 { Some(log.id_at(applied)?) } else { None };
        // Far below where counting on would overflow.
        let first_number = config.seed >> 2;
        let exchange = Exchange::new(first_number);
        let network = Network { exchange: exchange.clone(), append_timeout: config.timing.timeout_max };
        let machine = Machine::new(log.clone(), applied_id);
        let mut runtime = SimRuntime::with_seed(config.seed);
        let started = Raft::new(config.node, config.openraft(), network, log.clone(), machine);
        let raft = runtime.block_on(started).map_err(|fatal| {
            let corrupt = StorageError::Corrupt { what: "the log", cause: fatal.to_string() };
            log.failed().unwrap_or(corrupt)
        })?;
        let metrics = raft.metrics();
        let mut engine = RaftEngine {
            runtime,
            raft,
            metrics,
            log,
            exchange,
            node: NodeId(config.node),
            members: Members::default(),
            known: Known::default(),
            is_news: false,
            timing: config.timing,
            origin: now,
            now,
            tasks: Vec::new(),
            is_stirred: true,
            ran: now,
            reads: Reads::new(first_number),
            tag: 0,
            applied,
            flushed: BTreeMap::new(),
            told_flushed: None,
            oldest_write: None,
            others_hold_all: None,
            leads_since: None,
            leaving: None,
            lost: BTreeSet::new(),
            answered: BTreeMap::new(),
            quorum_answered: Duration::ZERO,
            heard_leader: now,
            patience: Patience::new(config.timing, config.seed, now),
            heartbeat_at: now,
            doubt: None,
            compactable: 0,
            needs_snapshot: None,
        };
        engine.note_members();
        engine.is_news = false;
        Ok(engine)
    }

    /// Lets openraft go on until it waits for the time, the disk or a peer.
    fn run(&mut self) {
        self.is_stirred = false;
        self.ran = self.now;
        let tasks = mem::take(&mut self.tasks);
        let time = self.reached();
        self.runtime.block_on(async {
            for task in tasks {
                SimRuntime::spawn(task);
            }
            let reached = SimInstant::try_now().map_or(Duration::ZERO, SimInstant::elapsed_since_start);
            // The runtime's clock moves only when nothing else is left to do.
            SimRuntime::sleep(time.saturating_sub(reached) + GRAIN).await;
        });
        self.note_members();
        self.note_leadership();
        if self.exchange.take_granted_poll() {
            self.patience.give_way(self.now);
        }
        for ReadIndex { from, round, index } in self.exchange.take_read_indexes() {
            self.reads.answered(from, round, index, self.applied);
        }
    }

    /// Runs until no read is left to be started.
    fn run_with_reads(&mut self, now: Duration) {
        self.now = self.now.max(now);
        loop {
            if let Some(leader) = self.leader()
                && let Some(round) = self.reads.start(self.now, leader)
            {
                self.start_read_round(round, leader);
            }
            if !self.is_stirred {
                return;
            }
            self.run();
        }
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(Box::pin(task));
        self.is_stirred = true;
    }

    fn start_read_round(&mut self, round: u64, leader: NodeId) {
        if leader != self.node {
            return self.exchange.send(leader, RaftMessage::ReadIndex { call: round });
        }
        let (raft, exchange) = (self.raft.clone(), self.exchange.clone());
        self.spawn(async move { exchange.answer_read(leader, round, read_index(&raft).await) });
    }

    fn take(&mut self, from: NodeId, message: RaftMessage) {
        let (raft, exchange) = (self.raft.clone(), self.exchange.clone());
        match message {
            RaftMessage::Append { call, vote, previous, entries, committed } => {
                let request = their_append(vote, previous, entries, committed);
                self.append(from, request, move |result| RaftMessage::Appended { call, result });
            }
            RaftMessage::Heartbeat { call, vote, previous, committed } => {
                let request = their_append(vote, previous, Vec::new(), committed);
                self.append(from, request, move |result| RaftMessage::HeartbeatReply { call, result });
            }
            RaftMessage::RequestVote { call, poll, vote, last, transfer } => {
                let request = their_vote_request(vote, last, transfer);
                self.spawn(async move {
                    let response = if poll { raft.pre_vote(request).await } else { raft.vote(request).await };
                    if let Ok(response) = response {
                        let (vote, granted) = (our_vote(&response.vote), response.vote_granted);
                        let last = response.last_log_id.as_ref().map(ours);
                        if poll && granted {
                            exchange.note_granted_poll();
                        }
                        exchange.send(from, RaftMessage::Voted { call, vote, granted, last });
                    }
                });
            }
            RaftMessage::TransferLeader { vote, to, last } => {
                // openraft would stand for election, and without members it needs no votes.
                if to == self.node.0 && !self.members.is_voter(self.node) {
                    return;
                }
                let request = their_transfer(vote, to, last);
                if to == self.node.0 && self.log.vote() == Some(vote) {
                    self.patience.draw(self.now);
                }
                self.spawn(async move { drop(raft.handle_transfer_leader(request).await) });
            }
            RaftMessage::ReadIndex { call } => self.spawn(async move {
                let index = read_index(&raft).await;
                exchange.send(from, RaftMessage::ReadIndexReply { call, index });
            }),
            RaftMessage::Appended { call, result } => {
                self.lost.remove(&from);
                self.note_answer(from);
                exchange.answer(from, call, Answer::Appended(result));
            }
            RaftMessage::HeartbeatReply { call, result } => {
                self.repeat_lost(from, call);
                self.note_answer(from);
                exchange.answer(from, call, Answer::Appended(result));
            }
            RaftMessage::Voted { call, vote, granted, last } => {
                if granted {
                    self.stand_if_granted(from, call);
                }
                exchange.answer(from, call, Answer::Voted { vote, granted, last });
            }
            RaftMessage::ReadIndexReply { call, index } => exchange.answer_read(from, call, index),
            // What openraft has to do with it is a task of its own.
            RaftMessage::Flushed { index } => return self.note_flushed(from.0, index),
            RaftMessage::TooFarBehind { call, vote, through } => {
                // A leader of long ago may know less than its successor, and must not take this for a sign that it leads.
                if self.log.vote() == Some(vote) && !self.log.is_saving_vote() {
                    let has_all = self.applied >= through;
                    exchange.send(from, RaftMessage::CaughtUp { call, has_all });
                    if !has_all {
                        self.needs_snapshot = Some(from);
                    }
                }
            }
            RaftMessage::CaughtUp { call, has_all } => {
                exchange.answer(from, call, Answer::CaughtUp { has_all });
                // It was away for long: openraft would wait before it sends the next entries.
                self.spawn(async move { drop(raft.trigger().reset_backoff([from.0]).await) });
            }
        }
        self.is_stirred = true;
    }

    fn append(
        &mut self,
        from: NodeId,
        request: AppendEntriesRequest<Types>,
        answer: impl FnOnce(AppendResult) -> RaftMessage + Send + 'static,
    ) {
        let (raft, exchange) = (self.raft.clone(), self.exchange.clone());
        self.spawn(async move {
            if let Ok(response) = raft.append_entries(request).await {
                exchange.send(from, answer(our_append_result(&response)));
            }
        });
    }

    /// The time on the runtime's clock.
    fn reached(&self) -> Duration {
        self.now.saturating_sub(self.origin)
    }

    /// Follows the members as the log has them.
    fn note_members(&mut self) {
        let (is_last_other, is_chosen_other) = self.log.follow_members(&mut self.known);
        self.is_news |= is_chosen_other;
        if is_last_other {
            self.members = self.known.last.as_ref().map(|last| last.members.clone()).unwrap_or_default();
            // Another quorum has all its time to answer.
            self.quorum_answered = self.reached();
            // One that comes back later comes without what it had.
            let (members, own) = (self.members.all(), self.node);
            self.flushed.retain(|node, _| *node == own.0 || members.contains(&NodeId(*node)));
        }
    }

    /// Those in force.
    fn chosen_members(&self) -> Option<&Members> {
        self.known.chosen.as_ref().map(|chosen| &chosen.members)
    }

    /// Whether it votes, or its removal is not chosen: it may be the only one that has the removal and can finish it.
    fn has_voice(&self) -> bool {
        let is_voter = |members: &Members| members.is_voter(self.node);
        is_voter(&self.members) || self.chosen_members().is_some_and(is_voter)
    }

    /// The other members.
    fn others(&self) -> impl Iterator<Item = NodeId> {
        let own = self.node;
        self.members.all().into_iter().filter(move |member| *member != own)
    }

    fn note_flushed(&mut self, member: u64, index: u64) {
        let flushed = self.flushed.entry(member).or_default();
        *flushed = index.max(*flushed);
        self.drop_flushed();
    }

    /// Drops the log below what every member has flushed, or what a snapshot would bring to those that have not.
    fn drop_flushed(&mut self) {
        let flushed_by = |member: NodeId| self.flushed.get(&member.0).copied().unwrap_or(0);
        let own = flushed_by(self.node);
        let by_all = self.others().map(flushed_by).min().unwrap_or(own).min(self.matched());
        let through = by_all.max(self.compactable).min(own).min(self.applied);
        let dropped = self.log.droppable().map_or(0, |id| id.index);
        // An error shows itself at the next look: the log keeps it.
        if through > dropped
            && let Ok(id) = self.log.id_at(through)
        {
            self.log.set_droppable(id);
            let raft = self.raft.clone();
            self.spawn(async move { drop(raft.trigger().snapshot().await) });
        }
    }

    /// Of a leader: what it knows all to hold. What a follower holds and the leader does not know of it, it would
    /// want to send as a snapshot.
    fn matched(&self) -> u64 {
        let metrics = self.metrics.borrow_watched();
        let Some(replication) = &metrics.replication else { return u64::MAX };
        let matched = |id: &Option<_>| id.as_ref().map_or(0, |id| ours(id).index);
        replication.values().map(matched).min().unwrap_or(u64::MAX)
    }

    /// True if it decides without others.
    fn is_alone(&self) -> bool {
        self.members.is_quorum(|voter| voter == self.node)
    }

    fn failure(&self) -> Option<StorageError> {
        if let Some(error) = self.log.failed() {
            return Some(error);
        }
        if let Err(fatal) = &self.metrics.borrow_watched().running_state {
            // It stops for what its storage says, which was looked at, and for a broken invariant of its own.
            panic!("openraft stopped: {fatal}");
        }
        None
    }
}

/// The index that a linearizable read must have applied, if this replica leads.
async fn read_index<L: LogStore + Send + 'static>(raft: &Raft<Types, Machine<L>>) -> Option<u64> {
    let confirmed = raft.get_read_log_id(ReadPolicy::ReadIndex).await;
    confirmed.ok().map(|(read, _)| read.index())
}

impl<L: LogStore + Send + 'static> Engine for RaftEngine<L> {
    type Message = RaftMessage;

    fn message(&mut self, now: Duration, from: NodeId, message: RaftMessage) -> bool {
        self.now = self.now.max(now);
        let term = self.log.vote().map_or(0, |vote| vote.term);
        if !message.is_plausible(from.0, term) {
            return false;
        }
        // Who knows no members has lost what a replica before it may have acknowledged here.
        if self.known.last.is_none() && matches!(message, RaftMessage::RequestVote { .. }) {
            return true;
        }
        self.note_sign_of_life(from, &message);
        if let Some(message) = self.doubtful(from, message) {
            self.take(from, message);
        }
        true
    }

    fn is_acknowledgement(message: &RaftMessage) -> bool {
        let (RaftMessage::Appended { result, .. } | RaftMessage::HeartbeatReply { result, .. }) = message
        else {
            return false;
        };
        *result == AppendResult::Success
    }

    fn tick(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.reads.tick(self.now, self.leader(), self.timing.timeout_min);
        self.poll_if_due();
        self.leave_if_stalled();
        self.hand_over_again();
        self.fall_silent_or_speak();
        let state = self.metrics.borrow_watched().state;
        // Who waits for its disk waits for no leader, and whoever gets this vote needs time to tell.
        let is_saving = self.log.is_saving_vote();
        if is_saving || state == ServerState::Leader {
            self.patience.renew(self.now);
        }
        match state {
            _ if is_saving => {}
            ServerState::Leader => self.beat_if_due(),
            _ => self.stand_if_due(state),
        }
        self.is_stirred |= self.now >= self.ran + LATE;
    }

    fn persisted(&mut self, now: Duration, token: u64) {
        self.now = self.now.max(now);
        self.log.persisted(token);
        self.is_stirred = true;
    }

    fn disconnected(&mut self, now: Duration, node: NodeId) {
        self.now = self.now.max(now);
        self.exchange.appends_are_lost(node, u64::MAX);
        self.lost.insert(node);
        if self.leader() == Some(node) && node != self.node {
            self.doubt_leader(node);
        }
        self.is_stirred = true;
    }

    fn propose(&mut self, now: Duration, payload: Bytes) -> Option<u64> {
        self.run_with_reads(now);
        // While it waits for the disk it would take the proposal in later, when nobody knows of it.
        if self.leader() != Some(self.node) || self.log.is_saving_vote() || self.failure().is_some() {
            return None;
        }
        self.tag += 1;
        let proposal = Proposal { tag: self.tag, payload };
        let raft = self.raft.clone();
        self.spawn(async move { drop(raft.client_write_ff(proposal, None).await) });
        self.run();
        self.log.take_appended(self.tag)
    }

    fn read_barrier(&mut self, now: Duration, read: u64) {
        self.now = self.now.max(now);
        self.reads.push(read);
    }

    fn cancel_read(&mut self, _now: Duration, read: u64) {
        self.reads.cancel(read);
    }

    fn applied(&mut self, now: Duration, index: u64) {
        self.now = self.now.max(now);
        self.applied = index;
        self.reads.applied(index);
    }

    fn flushed(&mut self, now: Duration, index: u64) {
        self.now = self.now.max(now);
        let known = self.flushed.get(&self.node.0).copied();
        // Messages get lost, so it is told again now and then.
        let is_due = self.told_flushed.is_none_or(|told| self.now >= told + self.timing.timeout_max);
        if known == Some(index) && !is_due {
            return;
        }
        self.told_flushed = Some(self.now);
        for member in self.others() {
            self.exchange.send(member, RaftMessage::Flushed { index });
        }
        self.note_flushed(self.node.0, index);
    }

    fn compact(&mut self, now: Duration, index: u64) {
        self.now = self.now.max(now);
        self.compactable = self.compactable.max(index);
        self.drop_flushed();
    }

    fn snapshot_mark(&mut self, applied: u64) -> Result<Bytes, StorageError> {
        let (id, configured) = (self.log.id_at(applied)?, self.log.members_at(applied));
        Ok(records::encode_mark(&Mark { id, configured }))
    }

    fn may_adopt_snapshot(&self, index: u64, mark: &Bytes) -> bool {
        let is_wanted = |mark: Mark| mark.id.index > self.applied && self.log.may_adopt(&mark);
        records::decode_mark(index, mark).is_ok_and(is_wanted)
    }

    fn may_restore_snapshot(&self, index: u64, mark: &Bytes) -> bool {
        records::decode_mark(index, mark).is_ok_and(|mark| self.log.may_restore(&mark))
    }

    fn adopt_snapshot(
        &mut self,
        index: u64,
        mark: &Bytes,
        incarnation: Incarnation,
    ) -> Result<u64, StorageError> {
        let mark = records::decode_mark(index, mark)?;
        self.log.adopt_snapshot(mark, incarnation)
    }

    fn log_bytes(&self) -> Result<u64, StorageError> {
        self.log.bytes()
    }

    fn propose_members(&mut self, now: Duration, members: Members) {
        self.now = self.now.max(now);
        let Some(chosen) = self.known.chosen.as_ref().filter(|_| self.leader() == Some(self.node)) else {
            return;
        };
        // openraft refuses what is no sound step from the last configuration, and all while that is not chosen.
        let unless_changed =
            Precondition::LastMembershipLogId { last_membership_log_id: Some(theirs(chosen.id)) };
        let (raft, membership) = (self.raft.clone(), membership(&members));
        self.spawn(async move {
            let proposed = raft.append_membership(membership, EntryPayload::Blank, [unless_changed]);
            // It is handed over at the first look. What becomes of it the log tells.
            drop(proposed.now_or_never());
        });
    }

    fn is_changing_members(&self) -> bool {
        // Entries may follow a configuration that is not chosen: it decides from its place in the log on.
        false
    }

    fn transfer_leadership(&mut self, now: Duration, to: Option<NodeId>) {
        self.now = self.now.max(now);
        self.hand_over(to);
    }

    fn unsynced(&self) -> usize {
        self.log.unsynced()
    }

    fn leader(&self) -> Option<NodeId> {
        let metrics = self.metrics.borrow_watched();
        let leader = metrics.current_leader.map(NodeId);
        // openraft names whoever won the last vote that it knows, for ever.
        let is_heard = self.now.saturating_sub(self.heard_leader) <= 2 * self.timing.timeout_max;
        leader.filter(|leader| if *leader == self.node { self.leads(&metrics) } else { is_heard })
    }

    fn status(&self) -> EngineStatus {
        let metrics = self.metrics.borrow_watched();
        let (committed, purged) = self.log.committed_and_purged();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let replication = metrics.replication.clone().unwrap_or_default();
        let matched = |(member, id): (u64, Option<_>)| (NodeId(member), index(id.as_ref().map(ours)));
        EngineStatus {
            engine: "raft",
            role: match metrics.state {
                ServerState::Leader if self.leads(&metrics) => Role::Leader,
                ServerState::Candidate => Role::Candidate,
                _ => Role::Follower,
            },
            leader: self.leader(),
            ballot: metrics.current_term.to_string(),
            first: purged.map_or(1, |purged| purged.index + 1),
            last: index(self.log.last()),
            chosen: index(committed),
            flushed: self.flushed.get(&self.node.0).copied().unwrap_or(0),
            members: self.chosen_members().cloned().unwrap_or_default(),
            // Who has them in its log goes by them, chosen or not.
            are_members_known: true,
            acknowledged: replication
                .into_iter()
                .filter(|(member, _)| *member != self.node.0)
                .map(matched)
                .collect(),
        }
    }

    fn take_events(&mut self) -> Events<RaftMessage> {
        self.run_with_reads(self.now);
        Events {
            send: self.exchange.take_outgoing(),
            chosen: self.log.take_chosen(),
            reads_ready: self.reads.take_ready(),
            members: mem::take(&mut self.is_news).then(|| self.chosen_members().cloned().unwrap_or_default()),
            needs_snapshot: self.needs_snapshot.take(),
            failed: self.failure(),
        }
    }
}

#[cfg(test)]
mod tests;
