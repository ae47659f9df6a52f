//! The node: takes commands, finds the shard, reaches its leader, answers.
//!
//! Every protocol is a thin adapter over [`Node::execute`]. It leaves out how a replica works
//! (`executor.rs`) and how nodes reach each other ([`crate::transport`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keevee_core::codec;
use keevee_core::command::{Command, Outcome};
use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::limits::Limits;
use keevee_replica::{Attempt, Attempts, Refusal, ShardStatus as ReplicaStatus};
use tokio::sync::{oneshot, watch};

use crate::config::MemberConfig;
use crate::executor::{Answer, Job, Jobs, LeaderView, Submission};
use crate::forward::Forwarder;
use crate::transport::{ForwardError, ForwardReply, Transport};

/// How long an attempt waits before the next one, when nothing tells that it would go better now.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How much later than its deadline a request is given up by this node's door, not by its replica.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// How a command is asked for, and how long the answer may take.
#[derive(Clone, Debug)]
pub struct Context {
    /// No answer is of use after this.
    pub deadline: Instant,
    /// What a read may return.
    pub consistency: Consistency,
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
}

impl ExecuteError {
    fn new(kind: ErrorKind, detail: impl Into<String>) -> ExecuteError {
        let retry_after = (kind == ErrorKind::Unavailable).then_some(Duration::from_secs(1));
        ExecuteError { kind, detail: detail.into(), retry_after }
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
    /// `leader`, `candidate` or `follower`.
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
    /// The chain hash at `applied`, in hexadecimal.
    pub chain: String,
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
    /// True if it answers (always true of the node asked).
    pub reachable: bool,
    /// How many entries it is behind the leader in the first data shard. The leader knows it of all nodes,
    /// a follower of itself and of the leader.
    pub lag: Option<u64>,
}

/// What a node is made of, handed to [`Node::new`].
pub(crate) struct Parts {
    pub(crate) id: NodeId,
    pub(crate) cluster_id: String,
    pub(crate) members: Vec<MemberConfig>,
    pub(crate) limits: Limits,
    pub(crate) leader_wait: Duration,
    pub(crate) jobs: Jobs,
    pub(crate) views: BTreeMap<ShardId, watch::Receiver<LeaderView>>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) forwarder: Forwarder,
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
        if let Err(invalid) = command.validate(&self.parts.limits) {
            return Err(ExecuteError::new(invalid.kind(), invalid.to_string()));
        }
        let shard = ShardId::FIRST_DATA;
        if command.is_read_only() {
            return self.read(shard, context, command).await;
        }
        self.write(shard, context.deadline, command).await
    }

    async fn read(
        &self,
        shard: ShardId,
        context: Context,
        command: Command,
    ) -> Result<Outcome, ExecuteError> {
        let stale = context.consistency == Consistency::Stale;
        if !stale {
            self.wait_for_leader(shard, context.deadline).await?;
        }
        match self.submit(shard, command, context.deadline, stale).await {
            Some(Ok(outcome)) => Ok(outcome),
            Some(Err(refusal)) => Err(ExecuteError::new(ErrorKind::Unavailable, describe(refusal))),
            None => Err(ExecuteError::stopping()),
        }
    }

    async fn write(
        &self,
        shard: ShardId,
        deadline: Instant,
        command: Command,
    ) -> Result<Outcome, ExecuteError> {
        let mut attempts = Attempts::new(command.request_id.is_some());
        loop {
            let attempt = match self.wait_for_leader(shard, deadline).await {
                Ok(leader) => self.attempt(leader, shard, deadline, &command).await,
                Err(ExecuteError { kind, detail, .. }) => Attempt::Refused { kind, detail },
            };
            if let Some(answer) = attempts.after(attempt) {
                return answer.map_err(|(kind, detail)| ExecuteError::new(kind, detail));
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                let (kind, detail) = attempts.give_up();
                return Err(ExecuteError::new(kind, detail));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// One hop at most: here, or at the leader, which does not forward again.
    async fn attempt(&self, leader: NodeId, shard: ShardId, deadline: Instant, command: &Command) -> Attempt {
        if leader == self.parts.id {
            return match self.submit(shard, command.clone(), deadline, false).await {
                Some(answer) => Attempt::from(answer),
                // The executor took it along when it ended.
                None => Attempt::Unknown("this node stopped before it knew the outcome".to_owned()),
            };
        }
        let encoded = codec::encode_command(command);
        let forward = self.parts.forwarder.forward(leader, shard, encoded, deadline);
        let forwarded = tokio::select! {
            forwarded = forward => forwarded,
            // The old leader may be paused, and not answer before the time is up. Under a request id the new
            // one can be asked as well.
            () = self.succeeded(shard, leader), if command.request_id.is_some() => {
                let cause = "another node leads now".to_owned();
                Err(ForwardError::NoAnswer { node: leader, cause })
            }
        };
        match forwarded {
            Ok(ForwardReply::Outcome(outcome)) => match codec::decode_outcome(outcome) {
                Ok(outcome) => Attempt::Outcome(outcome),
                Err(error) => Attempt::Unknown(format!("node {leader}'s answer: {error}")),
            },
            Ok(ForwardReply::Error { kind, detail }) => Attempt::forwarded(Err((kind, detail))),
            Err(error @ ForwardError::NotSent { .. }) => Attempt::Retry(error.to_string()),
            Err(error @ ForwardError::NoAnswer { .. }) => Attempt::Unknown(error.to_string()),
        }
    }

    /// The shard's leader, waiting a little while there is none.
    async fn wait_for_leader(&self, shard: ShardId, deadline: Instant) -> Result<NodeId, ExecuteError> {
        if self.stopping.load(Ordering::Relaxed) && self.leader(shard) == Some(self.parts.id) {
            return Err(ExecuteError::stopping());
        }
        if let Some(leader) = self.leader(shard) {
            return Ok(leader);
        }
        let Some(view) = self.parts.views.get(&shard) else {
            return Err(ExecuteError::new(ErrorKind::Unavailable, "this node has no replica of the shard"));
        };
        let latest = deadline.min(Instant::now() + self.parts.leader_wait);
        let mut view = view.clone();
        let known = view.wait_for(|view| view.leader.is_some());
        match tokio::time::timeout_at(latest.into(), known).await {
            Ok(Ok(view)) => view.leader.ok_or_else(ExecuteError::stopping),
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
        let Some(view) = self.parts.views.get(&shard) else { return std::future::pending().await };
        let other = |view: &LeaderView| view.leader.is_some_and(|leader| leader != old);
        if view.clone().wait_for(other).await.is_err() {
            std::future::pending().await
        }
    }

    async fn submit(
        &self,
        shard: ShardId,
        command: Command,
        deadline: Instant,
        stale: bool,
    ) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        let submission = Submission { command, deadline, stale, answer };
        self.parts.jobs.send(Job::Submit(shard, vec![submission]));
        // The executor answers in time, unless it is stuck in a database that stalls.
        match tokio::time::timeout_at((deadline + ANSWER_GRACE).into(), answered).await {
            Ok(answer) => answer.ok(),
            Err(_) => Some(Err(Refusal::OutcomeUnknown("this node did not get to it in time"))),
        }
    }

    /// The state of this node and its shards.
    pub async fn status(&self) -> Result<NodeStatus, ExecuteError> {
        let shards = self.shards().await?;
        Ok(NodeStatus {
            cluster_id: self.parts.cluster_id.clone(),
            node_id: self.parts.id.0,
            version: env!("CARGO_PKG_VERSION"),
            shards: shards.into_iter().map(|(shard, status)| describe_shard(shard, status)).collect(),
        })
    }

    /// Every node that the configuration names.
    pub async fn nodes(&self) -> Vec<PeerStatus> {
        let shards = self.shards().await.unwrap_or_default();
        let first = shards.into_iter().find(|(shard, _)| *shard == ShardId::FIRST_DATA);
        let lag = |node: NodeId| {
            let (_, status) = first.as_ref()?;
            if node == self.parts.id {
                return Some(status.engine.chosen.saturating_sub(status.applied));
            }
            if status.engine.leader == Some(node) {
                return Some(0);
            }
            let mut known = status.engine.acknowledged.iter();
            known.find(|(id, _)| *id == node).map(|(_, index)| status.engine.last.saturating_sub(*index))
        };
        let describe = |member: &MemberConfig| {
            let id = NodeId(member.id);
            PeerStatus {
                id: member.id,
                http: member.http.clone(),
                peer: member.peer.clone(),
                reachable: id == self.parts.id || self.parts.transport.is_reachable(id),
                lag: lag(id),
            }
        };
        self.parts.members.iter().map(describe).collect()
    }

    async fn shards(&self) -> Result<Vec<(ShardId, ReplicaStatus)>, ExecuteError> {
        let (answer, answered) = oneshot::channel();
        self.parts.jobs.send(Job::Status(answer));
        answered.await.map_err(|_| ExecuteError::stopping())
    }

    /// True if this node leads the shard; `None` if it holds no replica of it.
    pub fn is_leader(&self, shard: ShardId) -> Option<bool> {
        let view = self.parts.views.get(&shard)?;
        Some(view.borrow().leader == Some(self.parts.id))
    }

    /// True if a linearizable request could be served now: a leader is known, and this node is not
    /// stopping.
    pub fn is_ready(&self) -> bool {
        let led = self.parts.views.values().all(|view| view.borrow().leader.is_some());
        led && !self.stopping.load(Ordering::Relaxed)
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.parts.id
    }

    fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.parts.views.get(&shard)?.borrow().leader
    }

    /// Hands leadership over, waits until another node leads or the time is up, and takes no more writes
    /// as a leader.
    pub(crate) async fn step_aside(&self, deadline: Instant) {
        if self.parts.members.len() > 1 {
            self.parts.jobs.send(Job::TransferLeadership);
            for view in self.parts.views.values() {
                let mut view = view.clone();
                let other = view.wait_for(|view| view.leader != Some(self.parts.id));
                let _ = tokio::time::timeout_at(deadline.into(), other).await;
            }
        }
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Lets the executor finish what it owes, and end.
    pub(crate) fn stop(&self, latest: Instant) {
        self.parts.jobs.send(Job::Stop { latest });
    }
}

pub(crate) fn describe(refusal: Refusal) -> String {
    refusal.to_string()
}

fn describe_shard(shard: ShardId, status: ReplicaStatus) -> ShardStatus {
    ShardStatus {
        shard: shard.0,
        engine: status.engine.engine,
        role: status.engine.role.name(),
        leader: status.engine.leader.map(|node| node.0),
        ballot: status.engine.ballot,
        last: status.engine.last,
        chosen: status.engine.chosen,
        applied: status.applied,
        flushed: status.engine.flushed,
        first: status.engine.first,
        chain: format!("{:032x}", status.chain),
    }
}
