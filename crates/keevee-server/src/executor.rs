//! The thread that runs a node's replicas: inputs come in by one queue, and everything that one round of
//! inputs brought about goes out together.
//!
//! A replica is only ever touched here, so that it needs no lock. It leaves out where inputs come from
//! (HTTP, peers, the log writer) and where effects go (the transport).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keevee_core::command::{Command, Outcome};
use keevee_core::ids::{NodeId, ShardId};
use keevee_replica::storage::{StateStore, StorageError};
use keevee_replica::{
    Effects, Engine, Failure, Now, Refusal, Request, Role, Shard, ShardStatus as ReplicaStatus,
};
use tokio::sync::{oneshot, watch};

use crate::engine::{EngineMessage, ShardEngine};
use crate::metrics::{LogMetrics, RefusalReason, ShardMetrics};
use crate::storage::LogEvent;
use crate::storage::RocksState;
use crate::transport::refusals::Refusals;
use crate::transport::throttle::Party;
use crate::transport::{PeerMessage, Transport};

/// The replicas that a node runs.
pub(crate) type Replica = Shard<ShardEngine, RocksState>;

/// How often replicas are told the time.
const TICK: Duration = Duration::from_millis(20);
/// How often late requests are looked for, flushes noted and gauges set.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// Inputs taken from the queue before their effects are carried out.
const ROUND_MAX: usize = 4096;

/// What a command is answered with.
pub(crate) type Answer = Result<Outcome, Refusal>;

/// A command on its way to a replica.
pub(crate) struct Submission {
    pub(crate) command: Command,
    pub(crate) deadline: Instant,
    pub(crate) stale: bool,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// An input of the executor.
pub(crate) enum Job {
    Submit(ShardId, Vec<Submission>),
    Peer {
        from: NodeId,
        shard: ShardId,
        messages: Vec<PeerMessage>,
        /// What they count in `peer_bytes`.
        bytes: usize,
    },
    Log(LogEvent),
    Disconnected(NodeId),
    Status(oneshot::Sender<Vec<(ShardId, ReplicaStatus)>>),
    TransferLeadership,
    /// Ends the thread once no answer is owed, or at this time.
    Stop {
        latest: Instant,
    },
}

impl Job {
    /// Tells whoever waits for it that nothing happened.
    fn turn_away(self) {
        if let Job::Submit(_, submissions) = self {
            for submission in submissions {
                let _ = submission.answer.send(Err(Refusal::NotLeader(None)));
            }
        }
    }
}

/// What the rest of the node may see of a shard at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaderView {
    pub(crate) leader: Option<NodeId>,
}

/// Why an executor ended before it was told to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FatalError {
    /// A replica must not go on.
    #[error("shard {shard}: {failure}")]
    Replica {
        /// The shard.
        shard: ShardId,
        /// Why.
        failure: Failure,
    },
    /// The log can't be written.
    #[error(transparent)]
    Log(StorageError),
}

pub(crate) struct Executor {
    pub(crate) origin: Instant,
    pub(crate) jobs: Receiver<Job>,
    pub(crate) shards: BTreeMap<ShardId, Replica>,
    pub(crate) views: BTreeMap<ShardId, watch::Sender<LeaderView>>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) log_metrics: LogMetrics,
    pub(crate) shard_metrics: BTreeMap<ShardId, ShardMetrics>,
    pub(crate) tickets: Tickets,
    /// Shared with the inbox: what waits in `jobs`.
    pub(crate) peer_bytes: Arc<AtomicUsize>,
    pub(crate) refusals: Refusals,
    pub(crate) stop: Option<Instant>,
}

/// The answers that are owed.
#[derive(Default)]
pub(crate) struct Tickets {
    next: u64,
    owed: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Tickets {
    fn issue(&mut self, answer: oneshot::Sender<Answer>) -> u64 {
        self.next += 1;
        self.owed.insert(self.next, answer);
        self.next
    }

    fn redeem(&mut self, ticket: u64, result: Answer) {
        if let Some(answer) = self.owed.remove(&ticket) {
            // Whoever asked may have gone away.
            let _ = answer.send(result);
        }
    }
}

impl Executor {
    /// Runs until it is stopped or a replica fails. What it has not taken in by then never happened.
    pub(crate) fn run(mut self) -> Result<(), FatalError> {
        let result = self.run_until_stopped();
        self.jobs.try_iter().for_each(Job::turn_away);
        result
    }

    fn run_until_stopped(&mut self) -> Result<(), FatalError> {
        let mut tick_at = Instant::now();
        let mut housekeeping_at = tick_at;
        loop {
            let wait = tick_at.saturating_duration_since(Instant::now());
            let mut touched = BTreeSet::new();
            match self.jobs.recv_timeout(wait) {
                Ok(job) => self.round(job, &mut touched)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let now = Instant::now();
            if now >= tick_at {
                tick_at = now + TICK;
                touched.extend(self.tick());
            }
            if now >= housekeeping_at {
                housekeeping_at = now + HOUSEKEEPING;
                self.keep_house()?;
            }
            for shard in touched {
                self.advance(shard)?;
            }
            if self.stop.is_some_and(|latest| now >= latest || self.is_idle()) {
                return Ok(());
            }
        }
    }

    /// Takes everything that waits, so that it shares the syncs and messages that follow.
    fn round(&mut self, first: Job, touched: &mut BTreeSet<ShardId>) -> Result<(), FatalError> {
        // Where threads wait for a core, those that are about to bring more go first; else this is nothing.
        thread::yield_now();
        let mut next = Some(first);
        for _ in 0..ROUND_MAX {
            let Some(job) = next.take().or_else(|| self.jobs.try_recv().ok()) else { break };
            self.take(job, touched)?;
        }
        Ok(())
    }

    fn take(&mut self, job: Job, touched: &mut BTreeSet<ShardId>) -> Result<(), FatalError> {
        let now = self.now();
        match job {
            Job::Submit(shard, submissions) => {
                self.submit(shard, submissions)?;
                touched.insert(shard);
            }
            Job::Peer { from, shard, messages, bytes } => {
                self.peer_bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.receive(from, shard, messages)?;
                touched.insert(shard);
            }
            Job::Log(LogEvent::Persisted { shard, token }) => {
                if let Some(replica) = self.shards.get_mut(&shard) {
                    replica.engine().persisted(now.monotonic, token);
                    touched.insert(shard);
                }
            }
            Job::Log(LogEvent::Synced { took, records, .. }) => {
                self.log_metrics.syncs.inc();
                self.log_metrics.sync_seconds.observe(took.as_secs_f64());
                self.log_metrics.sync_records.observe(records as f64);
            }
            Job::Log(LogEvent::Failed { error }) => return Err(FatalError::Log(error)),
            Job::Disconnected(node) => {
                for (id, replica) in &mut self.shards {
                    replica.engine().disconnected(now.monotonic, node);
                    touched.insert(*id);
                }
            }
            Job::Status(answer) => {
                let statuses = self.shards.iter().map(|(id, replica)| (*id, replica.status()));
                let _ = answer.send(statuses.collect());
            }
            Job::TransferLeadership => {
                for (id, replica) in &mut self.shards {
                    replica.engine().transfer_leadership(now.monotonic);
                    touched.insert(*id);
                }
            }
            Job::Stop { latest } => self.stop = Some(latest),
        }
        Ok(())
    }

    fn submit(&mut self, shard: ShardId, submissions: Vec<Submission>) -> Result<(), FatalError> {
        let (now, origin) = (self.now(), self.origin);
        let Some(replica) = self.shards.get_mut(&shard) else {
            let refusal = Refusal::Unavailable("this node has no replica of the shard");
            submissions.into_iter().for_each(|submission| {
                let _ = submission.answer.send(Err(refusal));
            });
            return Ok(());
        };
        let tickets = &mut self.tickets;
        let requests = submissions.into_iter().map(|submission| Request {
            ticket: tickets.issue(submission.answer),
            command: submission.command,
            deadline: submission.deadline.saturating_duration_since(origin),
            stale: submission.stale,
        });
        let requests = requests.collect();
        replica.submit(now, requests).map_err(|failure| FatalError::Replica { shard, failure })
    }

    fn receive(
        &mut self,
        from: NodeId,
        shard: ShardId,
        messages: Vec<PeerMessage>,
    ) -> Result<(), FatalError> {
        let now = self.now();
        let Some(replica) = self.shards.get_mut(&shard) else {
            let detail = format!("this node has no replica of shard {shard}");
            self.refusals.note(Party::Node(from), RefusalReason::UnknownShard, &detail);
            return Ok(());
        };
        for message in messages {
            match message {
                PeerMessage::Paxos(message) => {
                    replica.engine().message(now.monotonic, from, EngineMessage::Paxos(message));
                }
                PeerMessage::Raft(message) => {
                    replica.engine().message(now.monotonic, from, EngineMessage::Raft(message));
                }
                PeerMessage::ChainHash(hash) => replica
                    .compare_hash(from, hash)
                    .map_err(|failure| FatalError::Replica { shard, failure })?,
            }
        }
        Ok(())
    }

    fn tick(&mut self) -> Vec<ShardId> {
        let now = self.now();
        self.shards.values_mut().for_each(|replica| replica.engine().tick(now.monotonic));
        self.shards.keys().copied().collect()
    }

    fn advance(&mut self, shard: ShardId) -> Result<(), FatalError> {
        let now = self.now();
        let Some(replica) = self.shards.get_mut(&shard) else { return Ok(()) };
        let effects = replica.advance(now).map_err(|failure| FatalError::Replica { shard, failure })?;
        let view = LeaderView { leader: replica.leader() };
        if let Some(sender) = self.views.get(&shard) {
            sender.send_if_modified(|seen| {
                let changed = *seen != view;
                *seen = view;
                changed
            });
        }
        self.carry_out(shard, effects);
        Ok(())
    }

    fn carry_out(&mut self, shard: ShardId, effects: Effects<EngineMessage>) {
        let mut outgoing: BTreeMap<NodeId, Vec<PeerMessage>> = BTreeMap::new();
        for (to, message) in effects.send {
            outgoing.entry(to).or_default().push(message.into());
        }
        for (to, hash) in effects.hashes {
            outgoing.entry(to).or_default().push(PeerMessage::ChainHash(hash));
        }
        for (to, messages) in outgoing {
            self.transport.send(to, shard, messages);
        }
        for reply in effects.replies {
            self.tickets.redeem(reply.ticket, reply.result);
        }
    }

    /// What need not be done at every step: late requests, flushed marks, gauges.
    fn keep_house(&mut self) -> Result<(), FatalError> {
        let now = self.now();
        for (id, replica) in &mut self.shards {
            replica.expire(now.monotonic);
            let flushed = replica.state().flushed();
            let failed = |error| FatalError::Replica { shard: *id, failure: Failure::Storage(error) };
            replica.engine().flushed(now.monotonic, flushed.map_err(failed)?);
            if let Some(metrics) = self.shard_metrics.get(id) {
                set_gauges(metrics, &replica.status());
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.shards.values().all(|replica| !replica.is_busy())
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic: self.origin.elapsed(),
            wall_micros: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

fn set_gauges(metrics: &ShardMetrics, status: &ReplicaStatus) {
    let gauge = |index: u64| i64::try_from(index).unwrap_or(i64::MAX);
    let leads = status.engine.role == Role::Leader;
    if leads && metrics.leader.get() == 0 {
        metrics.elections.inc();
    }
    metrics.leader.set(i64::from(leads));
    metrics.applied.set(gauge(status.applied));
    metrics.chosen.set(gauge(status.engine.chosen));
    metrics.last.set(gauge(status.engine.last));
}

/// Sends inputs to the executor. Once it has ended, inputs go nowhere, and answers never come.
#[derive(Clone)]
pub(crate) struct Jobs(pub(crate) Sender<Job>);

impl Jobs {
    pub(crate) fn send(&self, job: Job) {
        if let Err(SendError(job)) = self.0.send(job) {
            job.turn_away();
        }
    }
}
