//! The node: takes commands, finds the shard, reaches its leader, answers.
//!
//! Every protocol is a thin adapter over [`Node::execute`]. It leaves out how a replica works
//! (`executor.rs`) and how nodes reach each other ([`crate::transport`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keevee_core::codec;
use keevee_core::command::{Action, Command, Outcome};
use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::limits::Limits;
use keevee_core::shard_map::view::CarpView;
use keevee_core::shard_map::{Explanation, NodeInfo};
use keevee_replica::{
    Attempt, Attempts, CutRefusal, Heard, Members, Refusal, Route, ScrubStatus, ShardStatus as ReplicaStatus,
};
use prometheus::IntGauge;
use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, oneshot};

use crate::cut::{CUTS_MAX, CutBody, CutFailure, Cuts};
use crate::directory::Directory;
use crate::executor::{Answer, Job, Jobs, Submission};
use crate::forward::{Forwarded, Forwarder};
use crate::transport::{ForwardError, ForwardReply, Transport};

/// How long an attempt waits before the next one, when nothing tells that it would go better now.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How much later than its deadline a request is given up by this node's door, not by its replica.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// How long a request waits for a newer shard map that its caller knows of. The map only routes, so the request goes on
/// without it, too.
const MAP_PATIENCE: Duration = Duration::from_millis(500);

/// How long a cut may wait for its time, and for its entry to be chosen: longer than it may be ahead.
const CUT_PATIENCE: Duration = Duration::from_secs(40);

/// How a command is asked for, and how long the answer may take.
#[derive(Clone, Debug)]
pub struct Context {
    /// No answer is of use after this.
    pub deadline: Instant,
    /// What a read may return.
    pub consistency: Consistency,
    /// True if the caller goes to the leader itself: it is told where that is, instead of being forwarded.
    pub redirect: bool,
    /// Which shard a command of a range is for, since it names no key. Of any other command: which shard the caller
    /// takes its keys to be in.
    pub shard: Option<ShardId>,
    /// The epoch of the shard map that the caller routes by; 0 if it does not say.
    pub epoch: u64,
}

impl Context {
    /// A linearizable request that is forwarded to wherever it is served.
    pub fn until(deadline: Instant) -> Context {
        let consistency = Consistency::Linearizable;
        Context { deadline, consistency, redirect: false, shard: None, epoch: 0 }
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write acknowledged before the read was sent.
    #[default]
    Linearizable,
    /// This node's own applied state, however old.
    Stale,
}

/// Why a command has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct ExecuteError {
    /// What the caller may do next.
    pub kind: ErrorKind,
    /// For people.
    pub detail: String,
    /// When to try again, if that can help.
    pub retry_after: Option<Duration>,
    /// Of [`ErrorKind::NotLeader`] and [`ErrorKind::WrongShard`]: where to go instead.
    pub hint: Option<Box<Hint>>,
}

/// Where a key's requests are served.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Hint {
    /// The shard that owns the key.
    pub shard: u32,
    /// The epoch of the shard map that says so.
    pub epoch: u64,
    /// The node that leads it, if known.
    pub leader: Option<u64>,
    /// Where clients reach that node.
    pub address: Option<String>,
}

impl ExecuteError {
    fn new(kind: ErrorKind, detail: impl Into<String>) -> ExecuteError {
        let retry_after = (kind == ErrorKind::Unavailable).then_some(Duration::from_secs(1));
        ExecuteError { kind, detail: detail.into(), retry_after, hint: None }
    }

    fn stopping() -> ExecuteError {
        ExecuteError::new(ErrorKind::Unavailable, "this node is stopping: ask another one")
    }
}

/// One shard's replica on this node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ShardStatus {
    /// The shard.
    pub shard: u32,
    /// The engine's name: `paxos` or `raft`.
    pub engine: &'static str,
    /// `leader`, `candidate` or `follower`; `rebuilding` while its state is lost, and another replica's is not in force yet.
    pub role: &'static str,
    /// The leader, if known.
    pub leader: Option<u64>,
    /// The highest ballot promised, `round.node`, or the term.
    pub ballot: String,
    /// The last index in the log.
    pub last: u64,
    /// Everything up to here is chosen.
    pub chosen: u64,
    /// Everything up to here is applied.
    pub applied: u64,
    /// Everything up to here survives a crash without the log.
    pub flushed: u64,
    /// The first index still in the log.
    pub first: u64,
    /// Who takes part, as far as this replica knows.
    pub members: MembersView,
    /// The chain hash at `applied`, in hexadecimal.
    pub chain: String,
    /// True while nobody asks the shard anything: its replicas say nothing to each other.
    pub quiesced: bool,
    /// The last scrub that the replica took part in, since it was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubView>,
}

/// What came of a comparison of the replicas' states.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ScrubView {
    /// The index at which they were compared.
    pub index: u64,
    /// When this replica had read its own, in milliseconds since the Unix epoch.
    pub ended_unix_ms: u64,
    /// How many records it held.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Nodes whose states held the same, this one among them.
    pub agree: Vec<u64>,
    /// Nodes whose states did not.
    pub differ: Vec<u64>,
}

/// Who takes part in a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MembersView {
    /// A majority of them decides.
    pub voters: Vec<u64>,
    /// In the middle of a change a majority of these decides as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Vec<u64>>,
    /// They get everything and decide nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learners: Vec<u64>,
}

/// What `/v1/cluster/status` says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NodeStatus {
    /// The cluster.
    pub cluster_id: String,
    /// This node.
    pub node_id: u64,
    /// The version of the program.
    pub version: &'static str,
    /// True while its clock differs from most others', and it therefore leads no shard.
    pub clock_off: bool,
    /// True while its disk is nearly full, so that it leads no shard if others can.
    pub disk_low: bool,
    /// Each shard that has a replica here.
    pub shards: Vec<ShardStatus>,
}

/// A node as another sees it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PeerStatus {
    /// The node.
    pub id: u64,
    /// Its public address.
    pub http: String,
    /// Its address for peers.
    pub peer: String,
    /// Its address for clients that speak the Redis protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resp: Option<String>,
    /// True if it answers (always true of the node asked).
    pub reachable: bool,
    /// True if it was drained: it gets no replicas until it is added again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// How many entries it is behind, in the shard where that is most. A leader knows it of all members, a follower of
    /// itself and of the leader.
    pub lag: Option<u64>,
}

/// What `/v1/explain` says.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Explained {
    /// Where the key belongs.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// Who leads that shard, if that is known.
    pub leader: Option<NodeId>,
}

/// What a node is made of, handed to [`Node::new`].
pub(crate) struct Parts {
    pub(crate) id: NodeId,
    pub(crate) cluster_id: String,
    pub(crate) directory: Arc<Directory>,
    pub(crate) limits: Limits,
    pub(crate) leader_wait: Duration,
    pub(crate) jobs: Jobs,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) forwarder: Forwarder,
    /// Told when this node has changed the cluster's shard map.
    pub(crate) map_changed: Arc<Notify>,
    /// 1 while this node's clock is off.
    pub(crate) clock_off: IntGauge,
    /// 1 while its disk is nearly full.
    pub(crate) disk_low: IntGauge,
    /// The runtime of the executor, if it has one thread.
    pub(crate) only_thread: Option<runtime::Id>,
    pub(crate) cuts: Cuts,
}

/// Who carries a command out.
struct Asked {
    node: NodeId,
    /// True if this node's replica does.
    is_here: bool,
}

/// The store, as every protocol reaches it. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    parts: Arc<Parts>,
    stopping: Arc<AtomicBool>,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Node {
        Node { parts: Arc::new(parts), stopping: Arc::new(AtomicBool::new(false)) }
    }

    /// Carries out a command through the leader of the shard that owns its keys. One answer covers all
    /// attempts: once one of them was ambiguous, a refusal no longer means that nothing happened.
    pub async fn execute(&self, context: Context, command: Command) -> Result<Outcome, ExecuteError> {
        self.check(&command)?;
        self.catch_up(context.epoch, context.deadline).await;
        let shard = self.route(&command, &context)?;
        self.execute_in(shard, context, &command).await
    }

    /// Checks a command against the limits: for who goes on with [`Node::execute_in`].
    pub(crate) fn check(&self, command: &Command) -> Result<(), ExecuteError> {
        let checked = command.validate(&self.parts.limits);
        checked.map_err(|invalid| ExecuteError::new(invalid.kind(), invalid.to_string()))
    }

    /// Looks for a newer shard map if the caller has one, so that this node does not decide by an older one.
    pub async fn catch_up(&self, epoch: u64, deadline: Instant) {
        let directory = &self.parts.directory;
        if epoch == 0 || epoch <= directory.epoch() {
            return;
        }
        let looked = directory.looked_for(epoch);
        self.parts.map_changed.notify_one();
        let latest = deadline.min(Instant::now() + MAP_PATIENCE);
        // Boxed, so that a request that need not wait has no room for it.
        let _ = Box::pin(tokio::time::timeout_at(latest.into(), looked)).await;
    }

    /// The shard that a command is for.
    fn route(&self, command: &Command, context: &Context) -> Result<ShardId, ExecuteError> {
        let misrouted = |shard, detail: String| {
            // Whoever routes by itself may have another map.
            let kind = if context.redirect { ErrorKind::WrongShard } else { ErrorKind::Invalid };
            Err(ExecuteError { hint: self.hint(shard), ..ExecuteError::new(kind, detail) })
        };
        if command.has_range() {
            let Some(shard) = context.shard else {
                let detail = "every shard holds keys of a range: say which one is asked (`shard`)";
                return Err(ExecuteError::new(ErrorKind::Invalid, detail));
            };
            let is_known = self.parts.directory.map().shard(shard).is_some();
            if shard == ShardId::SYSTEM || !is_known {
                let detail = format!("there is no shard {shard} with keys: GET /v1/cluster/carp lists them");
                return misrouted(shard, detail);
            }
            return Ok(shard);
        }
        let owner = self.shard_of(command, context.redirect)?;
        match context.shard {
            Some(asked) if asked != owner => {
                misrouted(owner, format!("the keys are in shard {owner}, not in shard {asked}"))
            }
            _ => Ok(owner),
        }
    }

    /// The shard that owns all keys of a command.
    fn shard_of(&self, command: &Command, redirect: bool) -> Result<ShardId, ExecuteError> {
        let mut keys = command.keys();
        let Some(first) = keys.next() else { return Ok(ShardId::FIRST_DATA) };
        let shard = self.parts.directory.owner(first);
        let Some(other) = keys.find(|key| self.parts.directory.owner(key) != shard) else { return Ok(shard) };
        let name = |key: &[u8]| key.escape_ascii().to_string();
        let detail = format!(
            "the keys {:?} and {:?} are in different shards, {shard} and {}: one command is of one shard; keys with the \
             same {{hash tag}} are",
            name(first),
            name(other),
            self.parts.directory.owner(other)
        );
        // Whoever routes by itself may have an older map, in which they were together.
        let kind = if redirect { ErrorKind::WrongShard } else { ErrorKind::Invalid };
        Err(ExecuteError { hint: self.hint(shard), ..ExecuteError::new(kind, detail) })
    }

    fn hint(&self, shard: ShardId) -> Option<Box<Hint>> {
        let leader = self.parts.directory.leader(shard);
        let address = leader.and_then(|leader| self.parts.directory.node(leader)).map(|node| node.http);
        let epoch = self.parts.directory.map().epoch;
        Some(Box::new(Hint { shard: shard.0, epoch, leader: leader.map(|leader| leader.0), address }))
    }

    /// Carries out a command in a shard, whoever owns its keys.
    pub(crate) async fn execute_in(
        &self,
        shard: ShardId,
        context: Context,
        command: &Command,
    ) -> Result<Outcome, ExecuteError> {
        let Context { deadline, consistency, redirect, .. } = context;
        let is_read = command.is_read_only();
        if is_read && consistency == Consistency::Stale && self.hosts(shard) {
            return Box::pin(self.read_here(shard, deadline, command.clone())).await;
        }
        let mut attempts = Attempts::new(is_read || command.request_id.is_some());
        for attempted in 0.. {
            let asked = match self.find(shard, attempted, is_read) {
                Ok(None) => Box::pin(self.wait_for_leader(shard, is_read, deadline)).await,
                Ok(Some(asked)) => Ok(asked),
                Err(error) => Err(error),
            };
            let attempt = match asked {
                Ok(Asked { node, .. }) if redirect && node != self.parts.id => {
                    let detail = format!("node {node} leads shard {shard}");
                    let error = ExecuteError::new(ErrorKind::NotLeader, detail);
                    return Err(ExecuteError { hint: self.hint(shard), ..error });
                }
                Ok(Asked { is_here: true, .. }) => self.attempt_here(shard, deadline, command).await,
                Ok(Asked { node, .. }) => Box::pin(self.attempt_there(node, shard, deadline, command)).await,
                Err(ExecuteError { kind, detail, .. }) => Attempt::Refused { kind, detail },
            };
            let attempt = match attempt {
                // Nothing has happened, whatever became of it.
                Attempt::Unknown(why) if is_read => Attempt::Retry(why),
                attempt => attempt,
            };
            if let Some(answer) = attempts.after(attempt) {
                return answer.map_err(|(kind, detail)| ExecuteError::new(kind, detail));
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                let (kind, detail) = attempts.give_up();
                return Err(ExecuteError::new(kind, detail));
            }
            Box::pin(tokio::time::sleep(RETRY_PAUSE)).await;
        }
        unreachable!("the loop ends by its deadline")
    }

    pub(crate) async fn read_here(
        &self,
        shard: ShardId,
        deadline: Instant,
        command: Command,
    ) -> Result<Outcome, ExecuteError> {
        match self.submit(shard, command, deadline, true).await {
            Some(Ok(outcome)) => Ok(outcome),
            Some(Err(refusal)) => Err(ExecuteError::new(ErrorKind::Unavailable, describe(refusal))),
            None => Err(ExecuteError::stopping()),
        }
    }

    /// Decides by what this node knows of a shard; `None` if its map has no such shard.
    fn decide<T>(&self, shard: ShardId, decide: impl FnOnce(Route<'_>) -> T) -> Option<T> {
        let map = self.parts.directory.map();
        let (own, info) = (self.parts.id, map.shard(shard)?);
        // A replica that is about to go may be told nothing any more, and so know neither leader nor what was written.
        let leaves = info.next.as_ref().is_some_and(|next| !next.contains(&own));
        let members = if leaves { info.wanted() } else { &info.members };
        let leader = self.parts.directory.leader(shard);
        if self.parts.directory.is_rebuilding(shard) {
            // It serves nothing, and hears nothing of who leads.
            let others: Vec<NodeId> = members.iter().copied().filter(|member| *member != own).collect();
            if !others.is_empty() {
                return Some(decide(Route { own, members: &others, leader }));
            }
        }
        Some(decide(Route { own, members, leader }))
    }

    /// True if the map gives a replica of the shard to this node.
    pub(crate) fn hosts(&self, shard: ShardId) -> bool {
        self.decide(shard, |route| route.hosts()).unwrap_or(false)
    }

    async fn attempt_here(&self, shard: ShardId, deadline: Instant, command: &Command) -> Attempt {
        match self.submit(shard, command.clone(), deadline, false).await {
            Some(answer) => Attempt::from(answer),
            // The executor took it along when it ended.
            None => Attempt::Unknown("this node stopped before it knew the outcome".to_owned()),
        }
    }

    /// The leader carries it out, and does not forward again.
    async fn attempt_there(
        &self,
        leader: NodeId,
        shard: ShardId,
        deadline: Instant,
        command: &Command,
    ) -> Attempt {
        let encoded = codec::encode_command(command);
        let scanned_bytes = |action: &Action| match action {
            Action::Scan { bytes_max, .. } => *bytes_max as usize,
            _ => 0,
        };
        let answer_bytes = command.operations.iter().map(|operation| scanned_bytes(&operation.action)).sum();
        let forward = self.parts.forwarder.forward(leader, shard, encoded, answer_bytes, deadline);
        let may_ask_another = command.is_read_only() || command.request_id.is_some();
        let forwarded = tokio::select! {
            forwarded = forward => forwarded,
            // The old leader may be paused, and not answer before the time is up. Under a request id the new
            // one can be asked as well.
            () = self.succeeded(shard, leader), if may_ask_another => {
                let cause = "another node leads now".to_owned();
                Err(ForwardError::NoAnswer { node: leader, cause })
            }
        };
        if !self.hosts(shard) {
            self.learn(shard, leader, &forwarded);
        }
        match forwarded {
            Ok(ForwardReply::Outcome(outcome)) => match codec::decode_outcome(outcome) {
                Ok(outcome) => Attempt::Outcome(outcome),
                Err(error) => Attempt::Unknown(format!("node {leader}'s answer: {error}")),
            },
            Ok(ForwardReply::Error { kind, detail, .. }) => Attempt::forwarded(Err((kind, detail))),
            Err(error @ ForwardError::NotSent { .. }) => Attempt::Retry(error.to_string()),
            Err(error @ ForwardError::NoAnswer { .. }) => Attempt::Unknown(error.to_string()),
        }
    }

    /// Notes what a forward tells of the leader of a shard that has no replica here.
    fn learn(&self, shard: ShardId, asked: NodeId, forwarded: &Forwarded) {
        let heard = match forwarded {
            Ok(ForwardReply::Outcome(_)) => Heard::Served,
            Ok(ForwardReply::Error { kind, leader, .. }) => Heard::Refused(*kind, *leader),
            Err(_) => Heard::Nothing,
        };
        let directory = &self.parts.directory;
        directory.set_leader(shard, heard.leader(asked, directory.leader(shard)));
    }

    /// Whom to ask: see [`Route::asked`] and [`Route::is_here`]. `None` while there is nobody.
    fn find(&self, shard: ShardId, attempted: usize, is_read: bool) -> Result<Option<Asked>, ExecuteError> {
        let asked = self.decide(shard, |route| {
            route.asked(attempted).map(|node| Asked { node, is_here: route.is_here(node, is_read) })
        });
        let asked = asked.ok_or_else(|| unknown_shard(shard))?;
        let is_own = asked.as_ref().is_some_and(|asked| asked.node == self.parts.id);
        let is_stopping = is_own && self.stopping.load(Ordering::Relaxed);
        if is_stopping { Err(ExecuteError::stopping()) } else { Ok(asked) }
    }

    /// Waits a little until somebody leads, and can be asked.
    async fn wait_for_leader(
        &self,
        shard: ShardId,
        is_read: bool,
        deadline: Instant,
    ) -> Result<Asked, ExecuteError> {
        let latest = deadline.min(Instant::now() + self.parts.leader_wait);
        let view = self.parts.directory.watch_leader(shard);
        let mut view = view.ok_or_else(|| unknown_shard(shard))?;
        let known = view.wait_for(Option::is_some);
        match tokio::time::timeout_at(latest.into(), known).await {
            Ok(Ok(leader)) => {
                let node = leader.ok_or_else(ExecuteError::stopping)?;
                let is_here = self.decide(shard, |route| route.is_here(node, is_read)).unwrap_or(false);
                Ok(Asked { node, is_here })
            }
            Ok(Err(_)) => Err(ExecuteError::stopping()),
            Err(_) => {
                let detail =
                    format!("shard {shard} has no leader: fewer than a majority of its nodes answer");
                Err(ExecuteError::new(ErrorKind::Unavailable, detail))
            }
        }
    }

    /// Resolves once a node other than this leader leads.
    async fn succeeded(&self, shard: ShardId, old: NodeId) {
        let Some(mut view) = self.parts.directory.watch_leader(shard) else {
            return std::future::pending().await;
        };
        if view.wait_for(|leader| leader.is_some_and(|leader| leader != old)).await.is_err() {
            std::future::pending().await
        }
    }

    /// Hands a command to the executor at once. `None` if that ended and took it along.
    fn submit(
        &self,
        shard: ShardId,
        command: Command,
        deadline: Instant,
        stale: bool,
    ) -> impl Future<Output = Option<Answer>> {
        let (answer, answered) = oneshot::channel();
        self.parts.jobs.send(Job::Submit(shard, Submission { command, deadline, stale, answer }));
        async move {
            // The executor answers in time, unless it is stuck in a database that stalls. On its only thread, a timer would
            // be stuck as well.
            if self.parts.only_thread.is_some_and(|only| only == Handle::current().id()) {
                return answered.await.ok();
            }
            // Boxed, so that a request without a timer has no room for it.
            match Box::pin(tokio::time::timeout_at((deadline + ANSWER_GRACE).into(), answered)).await {
                Ok(answer) => answer.ok(),
                Err(_) => Some(Err(Refusal::OutcomeUnknown("this node did not get to it in time"))),
            }
        }
    }

    /// A shard's keys as of a time of the hybrid clock, in microseconds since the Unix epoch: a little ahead of the shard's
    /// clock. This node must lead the shard.
    ///
    /// # Errors
    ///
    /// [`CutFailure`]: nothing has happened.
    pub async fn cut(&self, shard: ShardId, time: u64) -> Result<CutBody, CutFailure> {
        let refused = |kind, detail: String| ExecuteError::new(kind, detail);
        let is_known = self.parts.directory.map().shard(shard).is_some();
        if shard == ShardId::SYSTEM || !is_known {
            let detail = format!("there is no shard {shard} with keys: GET /v1/cluster/carp lists them");
            return Err(refused(ErrorKind::Invalid, detail).into());
        }
        if self.parts.directory.leader(shard) != Some(self.parts.id) {
            let error = refused(ErrorKind::NotLeader, format!("this node does not lead shard {shard}"));
            return Err(ExecuteError { hint: self.hint(shard), ..error }.into());
        }
        let Some(permit) = self.parts.cuts.make_room() else {
            let detail = format!("{CUTS_MAX} cuts are open on this node, which is all that may be");
            return Err(refused(ErrorKind::Unavailable, detail).into());
        };
        let (answer, answered) = oneshot::channel();
        let deadline = Instant::now() + CUT_PATIENCE;
        self.parts.jobs.send(Job::Cut { shard, time, deadline, answer });
        let cut = answered.await.map_err(|_| ExecuteError::stopping())?;
        let of_time = |kind, refusal: CutRefusal, clock| {
            let detail = refusal.to_string();
            Err(CutFailure::Time { kind, detail, clock })
        };
        match cut {
            Ok(cut) => Ok(self.parts.cuts.send(shard, cut, permit)),
            Err(CutRefusal::Refused(refusal)) => {
                let hint = self.hint(shard).filter(|_| refusal.kind() == ErrorKind::NotLeader);
                Err(ExecuteError { hint, ..refused(refusal.kind(), describe(refusal)) }.into())
            }
            Err(refusal @ CutRefusal::Past { clock }) => of_time(ErrorKind::Conflict, refusal, clock),
            Err(refusal @ CutRefusal::TooFarAhead { clock }) => of_time(ErrorKind::Invalid, refusal, clock),
        }
    }

    /// Has this shard scrubbed, or all, of those that this node leads: one after the other, in the background. Which they are.
    ///
    /// # Errors
    ///
    /// [`ExecuteError`] if the node stops.
    pub async fn scrub(&self, shard: Option<ShardId>) -> Result<Vec<ShardId>, ExecuteError> {
        let (answer, answered) = oneshot::channel();
        self.parts.jobs.send(Job::Scrub { shard, answer });
        answered.await.map_err(|_| ExecuteError::stopping())
    }

    /// Breaks off the cuts that are sent.
    pub(crate) fn end_cuts(&self) {
        self.parts.cuts.end();
    }

    /// Resolves once no cut is open: the executor has ended, and what they read may be closed.
    pub(crate) async fn cuts_ended(&self) {
        self.parts.cuts.ended().await;
    }

    /// The state of this node and its shards: data shards first.
    pub async fn status(&self) -> Result<NodeStatus, ExecuteError> {
        let mut shards = self.shards().await?;
        shards.sort_by_key(|(shard, _)| (*shard == ShardId::SYSTEM, *shard));
        Ok(NodeStatus {
            cluster_id: self.parts.cluster_id.clone(),
            node_id: self.parts.id.0,
            version: env!("CARGO_PKG_VERSION"),
            clock_off: self.parts.clock_off.get() != 0,
            disk_low: self.parts.disk_low.get() != 0,
            shards: shards.into_iter().map(|(shard, status)| describe_shard(shard, status)).collect(),
        })
    }

    /// Every node of the cluster.
    pub async fn nodes(&self) -> Vec<PeerStatus> {
        let shards = self.shards().await.unwrap_or_default();
        let map = self.parts.directory.map();
        let describe = |node: &NodeInfo| PeerStatus {
            id: node.id.0,
            http: node.http.clone(),
            peer: node.peer.clone(),
            resp: node.resp.clone(),
            reachable: self.is_reachable(node.id),
            drained: map.drained.contains(&node.id),
            lag: shards.iter().filter_map(|(_, status)| self.lag(node.id, status)).max(),
        };
        map.nodes.iter().map(describe).collect()
    }

    /// True if a node answers this one, or is this one.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        node == self.parts.id || self.parts.transport.is_reachable(node)
    }

    /// How many entries a node is behind in a shard that has a replica here, if that is known.
    fn lag(&self, node: NodeId, status: &ReplicaStatus) -> Option<u64> {
        if node == self.parts.id {
            return Some(status.engine.chosen.saturating_sub(status.applied));
        }
        if status.engine.leader == Some(node) {
            return Some(0);
        }
        let mut known = status.engine.acknowledged.iter();
        known.find(|(id, _)| *id == node).map(|(_, index)| status.engine.last.saturating_sub(*index))
    }

    /// The epoch of this node's shard map.
    pub fn epoch(&self) -> u64 {
        self.parts.directory.epoch()
    }

    /// The shards that may hold keys.
    pub fn shards_with_keys(&self) -> Vec<ShardId> {
        self.parts.directory.shards_with_slots()
    }

    /// The shard map, and who leads, as this node knows it.
    pub fn carp(&self) -> CarpView {
        self.parts.directory.map().carp_view(|shard| self.parts.directory.leader(shard))
    }

    /// Where a key belongs, and why.
    pub fn explain(&self, key: &[u8]) -> Explained {
        let explanation = self.parts.directory.map().explain(key);
        Explained { leader: self.parts.directory.leader(explanation.shard), explanation }
    }

    pub(crate) async fn shards(&self) -> Result<Vec<(ShardId, ReplicaStatus)>, ExecuteError> {
        let (answer, answered) = oneshot::channel();
        self.parts.jobs.send(Job::Status(answer));
        answered.await.map_err(|_| ExecuteError::stopping())
    }

    /// True if this node leads the shard; `None` if it holds no replica of it.
    pub fn is_leader(&self, shard: ShardId) -> Option<bool> {
        self.hosts(shard).then(|| self.parts.directory.leader(shard) == Some(self.parts.id))
    }

    /// True if a linearizable request could be served now: of all shards with a replica here a leader is known, and this
    /// node is not stopping.
    pub fn is_ready(&self) -> bool {
        let led = self.hosted().all(|shard| self.parts.directory.leader(shard).is_some());
        led && !self.stopping.load(Ordering::Relaxed)
    }

    fn hosted(&self) -> impl Iterator<Item = ShardId> {
        let (map, own) = (self.parts.directory.map(), self.parts.id);
        let hosted = map.shards.iter().filter(|shard| shard.members.contains(&own)).map(|shard| shard.id);
        hosted.collect::<Vec<ShardId>>().into_iter()
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.parts.id
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.parts.directory
    }

    pub(crate) fn send(&self, job: Job) {
        self.parts.jobs.send(job);
    }

    pub(crate) fn map_changed(&self) -> &Notify {
        &self.parts.map_changed
    }

    /// Hands leadership over, waits until other nodes lead or the time is up, and takes no more writes
    /// as a leader.
    pub(crate) async fn step_aside(&self, deadline: Instant) {
        self.parts.jobs.send(Job::TransferLeadership);
        for shard in self.hosted() {
            let map = self.parts.directory.map();
            let is_alone = map.shard(shard).is_none_or(|shard| shard.members.len() < 2);
            let Some(mut view) = self.parts.directory.watch_leader(shard).filter(|_| !is_alone) else {
                continue;
            };
            let other = view.wait_for(|leader| *leader != Some(self.parts.id));
            let _ = tokio::time::timeout_at(deadline.into(), other).await;
        }
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Lets the executor finish what it owes, and end.
    pub(crate) fn stop(&self, latest: Instant) {
        self.parts.jobs.send(Job::Stop { latest });
    }
}

fn unknown_shard(shard: ShardId) -> ExecuteError {
    ExecuteError::new(ErrorKind::Unavailable, format!("there is no shard {shard} yet"))
}

pub(crate) fn describe(refusal: Refusal) -> String {
    refusal.to_string()
}

fn describe_members(members: &Members) -> MembersView {
    let list = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.0).collect();
    MembersView {
        voters: list(&members.voters),
        next: members.next.as_ref().map(list),
        learners: list(&members.learners),
    }
}

fn describe_shard(shard: ShardId, status: ReplicaStatus) -> ShardStatus {
    ShardStatus {
        shard: shard.0,
        engine: status.engine.engine,
        role: if status.is_rebuilding { "rebuilding" } else { status.engine.role.name() },
        leader: status.engine.leader.map(|node| node.0),
        ballot: status.engine.ballot,
        last: status.engine.last,
        chosen: status.engine.chosen,
        applied: status.applied,
        flushed: status.engine.flushed,
        first: status.engine.first,
        members: describe_members(&status.engine.members),
        chain: format!("{:032x}", status.chain),
        quiesced: status.is_quiesced,
        scrub: status.scrub.map(describe_scrub),
    }
}

fn describe_scrub(scrub: ScrubStatus) -> ScrubView {
    let list = |nodes: BTreeSet<NodeId>| nodes.into_iter().map(|node| node.0).collect();
    ScrubView {
        index: scrub.index,
        ended_unix_ms: scrub.ended / 1_000,
        records: scrub.content.records,
        bytes: scrub.content.bytes,
        agree: list(scrub.agree),
        differ: list(scrub.differ),
    }
}
