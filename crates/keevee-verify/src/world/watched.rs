//! The production engine, with a window in it: the world sees what it hands out as chosen.

use std::time::Duration;

use bytes::Bytes;
use keevee_core::ids::NodeId;
use keevee_paxos::Message;
use keevee_replica::{Engine, EngineStatus, Events, PaxosEngine};

use super::disk::SharedLog;

pub(crate) struct Watched {
    paxos: PaxosEngine<SharedLog>,
    /// Handed out as chosen since the world last looked.
    pub(crate) chosen: Vec<(u64, Option<Bytes>)>,
}

impl Watched {
    pub(crate) fn new(paxos: PaxosEngine<SharedLog>) -> Watched {
        Watched { paxos, chosen: Vec::new() }
    }
}

impl Engine for Watched {
    type Message = Message;

    fn message(&mut self, now: Duration, from: NodeId, message: Message) {
        self.paxos.message(now, from, message);
    }

    fn tick(&mut self, now: Duration) {
        self.paxos.tick(now);
    }

    fn persisted(&mut self, now: Duration, token: u64) {
        self.paxos.persisted(now, token);
    }

    fn disconnected(&mut self, now: Duration, node: NodeId) {
        self.paxos.disconnected(now, node);
    }

    fn propose(&mut self, now: Duration, payload: Bytes) -> Option<u64> {
        self.paxos.propose(now, payload)
    }

    fn read_barrier(&mut self, now: Duration, read: u64) {
        self.paxos.read_barrier(now, read);
    }

    fn cancel_read(&mut self, now: Duration, read: u64) {
        self.paxos.cancel_read(now, read);
    }

    fn applied(&mut self, now: Duration, index: u64) {
        self.paxos.applied(now, index);
    }

    fn flushed(&mut self, now: Duration, index: u64) {
        self.paxos.flushed(now, index);
    }

    fn transfer_leadership(&mut self, now: Duration) {
        self.paxos.transfer_leadership(now);
    }

    fn unsynced(&self) -> usize {
        self.paxos.unsynced()
    }

    fn leader(&self) -> Option<NodeId> {
        self.paxos.leader()
    }

    fn status(&self) -> EngineStatus {
        self.paxos.status()
    }

    fn take_events(&mut self) -> Events<Message> {
        let events = self.paxos.take_events();
        self.chosen.extend(events.chosen.iter().cloned());
        events
    }
}
