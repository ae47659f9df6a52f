//! The engine of a shard: Multi-Paxos or Raft, as its log says.
//!
//! Both are moved in the same way. Here is only which one it is, and how it is opened; it leaves out what they do
//! (`keevee-replica`, `keevee-raft`).

use std::time::Duration;

use bytes::Bytes;
use keevee_core::ids::{Incarnation, NodeId};
use keevee_core::shard_map::{Consensus, ShardInfo};
use keevee_paxos::QuorumSystem;
use keevee_raft::{RaftEngine, RaftMessage};
use keevee_replica::storage::StorageError;
use keevee_replica::{Engine, EngineStatus, Events, Members, Neighbours, PaxosEngine, ReplicaMessage};

use crate::storage::RocksLog;
use crate::transport::PeerMessage;

/// How leaders are kept and replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between a leader's heartbeats.
    pub heartbeat: Duration,
    /// The shortest silence after which a replica looks for another leader.
    pub timeout_min: Duration,
    /// The longest.
    pub timeout_max: Duration,
}

impl Timing {
    /// How nodes tell each other that they are alive, so that quiesced shards need not.
    pub(crate) fn neighbours(&self) -> Neighbours {
        Neighbours::new(self.heartbeat, self.timeout_min * 2 / 3)
    }
}

/// What an engine says to its counterparts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EngineMessage {
    Paxos(keevee_paxos::Message),
    Raft(RaftMessage),
}

impl From<ReplicaMessage<EngineMessage>> for PeerMessage {
    fn from(message: ReplicaMessage<EngineMessage>) -> PeerMessage {
        match message {
            ReplicaMessage::Engine(EngineMessage::Paxos(message)) => PeerMessage::Paxos(message),
            ReplicaMessage::Engine(EngineMessage::Raft(message)) => PeerMessage::Raft(message),
            ReplicaMessage::ChainHash(hash) => PeerMessage::ChainHash(hash),
            ReplicaMessage::Quiesce { index } => PeerMessage::Quiesce { index },
            ReplicaMessage::Wake => PeerMessage::Wake,
            ReplicaMessage::AdvanceTime { to } => PeerMessage::AdvanceTime { to },
            ReplicaMessage::TimeNotCome { to } => PeerMessage::TimeNotCome { to },
            ReplicaMessage::Snapshot(message) => PeerMessage::Snapshot(message),
            ReplicaMessage::Scrub(message) => PeerMessage::Scrub(message),
        }
    }
}

impl PeerMessage {
    /// What a replica is told; `None` of what is about the whole node.
    pub(crate) fn for_replica(self) -> Option<ReplicaMessage<EngineMessage>> {
        Some(match self {
            PeerMessage::Paxos(message) => ReplicaMessage::Engine(EngineMessage::Paxos(message)),
            PeerMessage::Raft(message) => ReplicaMessage::Engine(EngineMessage::Raft(message)),
            PeerMessage::ChainHash(hash) => ReplicaMessage::ChainHash(hash),
            PeerMessage::Quiesce { index } => ReplicaMessage::Quiesce { index },
            PeerMessage::Wake => ReplicaMessage::Wake,
            PeerMessage::AdvanceTime { to } => ReplicaMessage::AdvanceTime { to },
            PeerMessage::TimeNotCome { to } => ReplicaMessage::TimeNotCome { to },
            PeerMessage::Snapshot(message) => ReplicaMessage::Snapshot(message),
            PeerMessage::Scrub(message) => ReplicaMessage::Scrub(message),
            PeerMessage::Alive { .. } => return None,
        })
    }
}

/// One of the two.
pub(crate) enum ShardEngine {
    Paxos(Box<PaxosEngine<RocksLog>>),
    Raft(Box<RaftEngine<RocksLog>>),
}

impl ShardEngine {
    /// A replica as its log left it.
    pub(crate) fn open(
        shard: &ShardInfo,
        node: NodeId,
        timing: Timing,
        seed: u64,
        log: RocksLog,
        applied: u64,
        now: Duration,
    ) -> Result<ShardEngine, StorageError> {
        let Timing { heartbeat, timeout_min, timeout_max } = timing;
        // The first members know each other. Whoever comes later, or has heard nothing since, is told by who leads.
        let knows = shard.changes == 0 && shard.members.contains(&node);
        let members = shard.members.iter().filter(|_| knows).map(|node| node.0);
        match shard.consensus {
            Consensus::Paxos => {
                let mut config = keevee_paxos::Config::new(node.0, QuorumSystem::majority(members), seed);
                config.timing = keevee_paxos::Timing { heartbeat, timeout_min, timeout_max };
                let engine = PaxosEngine::open(config, log, applied, now)?;
                Ok(ShardEngine::Paxos(Box::new(engine)))
            }
            Consensus::Raft => {
                let mut config = keevee_raft::Config::new(node.0, members.collect(), seed);
                config.timing = keevee_raft::Timing { heartbeat, timeout_min, timeout_max };
                let engine = RaftEngine::open(config, log, applied, now)?;
                Ok(ShardEngine::Raft(Box::new(engine)))
            }
        }
    }
}

/// Calls the engine that it is.
macro_rules! each {
    ($self:ident, $engine:ident => $call:expr) => {
        match $self {
            ShardEngine::Paxos($engine) => $call,
            ShardEngine::Raft($engine) => $call,
        }
    };
}

impl Engine for ShardEngine {
    type Message = EngineMessage;

    fn message(&mut self, now: Duration, from: NodeId, message: EngineMessage) -> bool {
        match (self, message) {
            (ShardEngine::Paxos(engine), EngineMessage::Paxos(message)) => engine.message(now, from, message),
            (ShardEngine::Raft(engine), EngineMessage::Raft(message)) => engine.message(now, from, message),
            (ShardEngine::Paxos(_), EngineMessage::Raft(_))
            | (ShardEngine::Raft(_), EngineMessage::Paxos(_)) => false,
        }
    }

    fn is_acknowledgement(message: &EngineMessage) -> bool {
        match message {
            EngineMessage::Paxos(message) => PaxosEngine::<RocksLog>::is_acknowledgement(message),
            EngineMessage::Raft(message) => RaftEngine::<RocksLog>::is_acknowledgement(message),
        }
    }

    fn tick(&mut self, now: Duration) {
        each!(self, engine => engine.tick(now));
    }

    fn persisted(&mut self, now: Duration, token: u64) {
        each!(self, engine => engine.persisted(now, token));
    }

    fn disconnected(&mut self, now: Duration, node: NodeId) {
        each!(self, engine => engine.disconnected(now, node));
    }

    fn propose(&mut self, now: Duration, payload: Bytes) -> Option<u64> {
        each!(self, engine => engine.propose(now, payload))
    }

    fn read_barrier(&mut self, now: Duration, read: u64) {
        each!(self, engine => engine.read_barrier(now, read));
    }

    fn cancel_read(&mut self, now: Duration, read: u64) {
        each!(self, engine => engine.cancel_read(now, read));
    }

    fn applied(&mut self, now: Duration, index: u64) {
        each!(self, engine => engine.applied(now, index));
    }

    fn flushed(&mut self, now: Duration, index: u64) {
        each!(self, engine => engine.flushed(now, index));
    }

    fn transfer_leadership(&mut self, now: Duration, to: Option<NodeId>) {
        each!(self, engine => engine.transfer_leadership(now, to));
    }

    fn compact(&mut self, now: Duration, index: u64) {
        each!(self, engine => engine.compact(now, index));
    }

    fn snapshot_mark(&mut self, applied: u64) -> Result<Bytes, StorageError> {
        each!(self, engine => engine.snapshot_mark(applied))
    }

    fn may_adopt_snapshot(&self, index: u64, mark: &Bytes) -> bool {
        each!(self, engine => engine.may_adopt_snapshot(index, mark))
    }

    fn may_restore_snapshot(&self, index: u64, mark: &Bytes) -> bool {
        each!(self, engine => engine.may_restore_snapshot(index, mark))
    }

    fn adopt_snapshot(
        &mut self,
        index: u64,
        mark: &Bytes,
        incarnation: Incarnation,
    ) -> Result<u64, StorageError> {
        each!(self, engine => engine.adopt_snapshot(index, mark, incarnation))
    }

    fn propose_members(&mut self, now: Duration, members: Members) {
        each!(self, engine => engine.propose_members(now, members));
    }

    fn is_changing_members(&self) -> bool {
        each!(self, engine => engine.is_changing_members())
    }

    fn log_bytes(&self) -> Result<u64, StorageError> {
        each!(self, engine => engine.log_bytes())
    }

    fn unsynced(&self) -> usize {
        each!(self, engine => engine.unsynced())
    }

    fn leader(&self) -> Option<NodeId> {
        each!(self, engine => engine.leader())
    }

    fn status(&self) -> EngineStatus {
        each!(self, engine => engine.status())
    }

    fn take_events(&mut self) -> Events<EngineMessage> {
        match self {
            ShardEngine::Paxos(engine) => engine.take_events().map(EngineMessage::Paxos),
            ShardEngine::Raft(engine) => engine.take_events().map(EngineMessage::Raft),
        }
    }
}
