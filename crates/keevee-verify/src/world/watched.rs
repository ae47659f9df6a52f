//! The production engines, with a window in them: the world sees what they hand out as chosen.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use keevee_core::ids::{Incarnation, NodeId};
use keevee_raft::{RaftEngine, RaftMessage};
use keevee_replica::storage::StorageError;
use keevee_replica::{Engine, EngineStatus, Events, Members, PaxosEngine};

use super::disk::SharedLog;
use super::{paxos, raft};
use crate::plan::{EngineKind, Plan};

/// The engine of a replica. All replicas of a run have the same.
pub(crate) struct Watched {
    engine: Running,
    /// Handed out as chosen since the world last looked.
    pub(crate) chosen: Vec<(u64, Option<Bytes>)>,
}

enum Running {
    Paxos(Box<PaxosEngine<SharedLog>>),
    Raft(Box<RaftEngine<SharedLog>>),
}

/// What replicas say to each other.
#[derive(Clone)]
pub(crate) enum Message {
    Paxos(keevee_paxos::Message),
    Raft(RaftMessage),
}

macro_rules! with {
    ($watched:expr, $engine:ident => $call:expr) => {
        match $watched {
            Running::Paxos($engine) => $call,
            Running::Raft($engine) => $call,
        }
    };
}

impl Watched {
    /// A replica of one of a plan's groups on its log.
    pub(crate) fn open(
        plan: &Plan,
        members: &BTreeSet<u64>,
        node: u64,
        seed: u64,
        log: SharedLog,
        applied: u64,
        now: Duration,
    ) -> Result<Watched, StorageError> {
        let engine = match plan.engine {
            EngineKind::Paxos => {
                let config = paxos::config(plan, members, node, seed);
                Running::Paxos(Box::new(PaxosEngine::open(config, log, applied, now)?))
            }
            EngineKind::Raft => {
                let config = raft::config(plan, members, node, seed);
                Running::Raft(Box::new(RaftEngine::open(config, log, applied, now)?))
            }
        };
        Ok(Watched { engine, chosen: Vec::new() })
    }

    fn note<M>(&mut self, events: Events<M>, wrap: fn(M) -> Message) -> Events<Message> {
        let Events { send, chosen, reads_ready, members, needs_snapshot, failed } = events;
        self.chosen.extend(chosen.iter().cloned());
        let send = send.into_iter().map(|(to, message)| (to, wrap(message))).collect();
        Events { send, chosen, reads_ready, members, needs_snapshot, failed }
    }
}

impl Engine for Watched {
    type Message = Message;

    fn message(&mut self, now: Duration, from: NodeId, message: Message) -> bool {
        match (&mut self.engine, message) {
            (Running::Paxos(engine), Message::Paxos(message)) => engine.message(now, from, message),
            (Running::Raft(engine), Message::Raft(message)) => engine.message(now, from, message),
            _ => unreachable!("all replicas of a run have the same engine"),
        }
    }

    fn is_acknowledgement(message: &Message) -> bool {
        match message {
            Message::Paxos(message) => PaxosEngine::<SharedLog>::is_acknowledgement(message),
            Message::Raft(message) => RaftEngine::<SharedLog>::is_acknowledgement(message),
        }
    }

    fn tick(&mut self, now: Duration) {
        with!(&mut self.engine, engine => engine.tick(now));
    }

    fn persisted(&mut self, now: Duration, token: u64) {
        with!(&mut self.engine, engine => engine.persisted(now, token));
    }

    fn disconnected(&mut self, now: Duration, node: NodeId) {
        with!(&mut self.engine, engine => engine.disconnected(now, node));
    }

    fn propose(&mut self, now: Duration, payload: Bytes) -> Option<u64> {
        with!(&mut self.engine, engine => engine.propose(now, payload))
    }

    fn read_barrier(&mut self, now: Duration, read: u64) {
        with!(&mut self.engine, engine => engine.read_barrier(now, read));
    }

    fn cancel_read(&mut self, now: Duration, read: u64) {
        with!(&mut self.engine, engine => engine.cancel_read(now, read));
    }

    fn applied(&mut self, now: Duration, index: u64) {
        with!(&mut self.engine, engine => engine.applied(now, index));
    }

    fn flushed(&mut self, now: Duration, index: u64) {
        with!(&mut self.engine, engine => engine.flushed(now, index));
    }

    fn transfer_leadership(&mut self, now: Duration, to: Option<NodeId>) {
        with!(&mut self.engine, engine => engine.transfer_leadership(now, to));
    }

    fn compact(&mut self, now: Duration, index: u64) {
        with!(&mut self.engine, engine => engine.compact(now, index));
    }

    fn snapshot_mark(&mut self, applied: u64) -> Result<Bytes, StorageError> {
        with!(&mut self.engine, engine => engine.snapshot_mark(applied))
    }

    fn may_adopt_snapshot(&self, index: u64, mark: &Bytes) -> bool {
        with!(&self.engine, engine => engine.may_adopt_snapshot(index, mark))
    }

    fn may_restore_snapshot(&self, index: u64, mark: &Bytes) -> bool {
        with!(&self.engine, engine => engine.may_restore_snapshot(index, mark))
    }

    fn adopt_snapshot(
        &mut self,
        index: u64,
        mark: &Bytes,
        incarnation: Incarnation,
    ) -> Result<u64, StorageError> {
        with!(&mut self.engine, engine => engine.adopt_snapshot(index, mark, incarnation))
    }

    fn propose_members(&mut self, now: Duration, members: Members) {
        with!(&mut self.engine, engine => engine.propose_members(now, members));
    }

    fn is_changing_members(&self) -> bool {
        with!(&self.engine, engine => engine.is_changing_members())
    }

    fn log_bytes(&self) -> Result<u64, StorageError> {
        with!(&self.engine, engine => engine.log_bytes())
    }

    fn unsynced(&self) -> usize {
        with!(&self.engine, engine => engine.unsynced())
    }

    fn leader(&self) -> Option<NodeId> {
        with!(&self.engine, engine => engine.leader())
    }

    fn status(&self) -> EngineStatus {
        with!(&self.engine, engine => engine.status())
    }

    fn take_events(&mut self) -> Events<Message> {
        match &mut self.engine {
            Running::Paxos(engine) => {
                let events = engine.take_events();
                self.note(events, Message::Paxos)
            }
            Running::Raft(engine) => {
                let events = engine.take_events();
                self.note(events, Message::Raft)
            }
        }
    }
}
