//! The read barrier: a read sees everything that was acknowledged before it was sent.
//!
//! A leader fixes the index when a round starts, then asks a quorum whether it still holds the promise
//! (the answers must be to messages sent after the reads arrived), then waits until that index is applied.
//! No clock is trusted. A follower asks the leader for the index and serves the read itself. (Ongaro 2014,
//! section 6.4, in Paxos's words.)
//!
//! One round serves all reads that waited when it started, and none that came later: sharing a round that
//! is already under way answered reads with an index fixed before they were sent (etcd#20418).

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use keevee_mutants::{self as mutants, Mutant};

use crate::ballot::{Ballot, Index, NodeId};
use crate::message::{Message, ReadId};
use crate::replica::{Replica, Role};

#[derive(Default)]
pub(crate) struct Reads {
    /// Waiting for a round (at the leader), or for a leader to ask.
    waiting: Vec<ReadId>,
    /// At the leader: other nodes' questions waiting for a round. Only the latest of a node matters.
    asked: BTreeMap<NodeId, u64>,
    round: Option<Round>,
    /// At a follower: the question that the leader has not answered yet.
    question: Option<Question>,
    /// Numbers the questions. It starts anywhere: the answer to a question asked before a restart must not
    /// pass for the answer to one asked after it, whose reads came later.
    question_count: u64,
    /// Waiting until an index is applied.
    confirmed: BTreeMap<Index, Vec<ReadId>>,
}

struct Round {
    sent_at: u64,
    index: Index,
    reads: Vec<ReadId>,
    asked: BTreeMap<NodeId, u64>,
}

struct Question {
    request: u64,
    reads: Vec<ReadId>,
    asked_at: Duration,
}

impl Reads {
    pub(crate) fn new(question_count: u64) -> Reads {
        Reads { question_count, ..Reads::default() }
    }

    /// A new leader need not ask anyone else.
    pub(crate) fn take_back_question(&mut self) {
        if let Some(question) = self.question.take() {
            self.waiting.extend(question.reads);
        }
    }

    /// Forgets a read, wherever it waits.
    pub(crate) fn cancel(&mut self, read: ReadId) {
        let question = self.question.iter_mut().map(|question| &mut question.reads);
        let round = self.round.iter_mut().map(|round| &mut round.reads);
        let places = question.chain(round).chain(self.confirmed.values_mut());
        for reads in places.chain([&mut self.waiting]) {
            reads.retain(|waiting| *waiting != read);
        }
    }

    pub(crate) fn stop_leading(&mut self) {
        if let Some(round) = self.round.take() {
            self.waiting.extend(round.reads);
        }
        self.asked.clear();
    }
}

impl Replica {
    pub(crate) fn read(&mut self, read: ReadId) {
        self.reads.waiting.push(read);
    }

    /// Every step ends here: starts what can start, and hands out what is ready.
    pub(crate) fn serve_reads(&mut self) {
        match self.role {
            Role::Leading(_) => self.start_round(),
            _ => self.ask(),
        }
        let later = self.reads.confirmed.split_off(&(self.applied + 1));
        let ready = mem::replace(&mut self.reads.confirmed, later);
        self.output.reads_ready.extend(ready.into_values().flatten());
    }

    fn start_round(&mut self) {
        let Role::Leading(leading) = &self.role else { return };
        if mutants::is_active(Mutant::StaleReadRound)
            && let Some(round) = &mut self.reads.round
        {
            round.reads.append(&mut self.reads.waiting);
            round.asked.append(&mut self.reads.asked);
        }
        let barrier = if mutants::is_active(Mutant::BarrierSkipped) { 0 } else { leading.barrier };
        let settled =
            if mutants::is_active(Mutant::BarrierNotApplied) { self.synced_through() } else { self.applied };
        let idle = self.reads.waiting.is_empty() && self.reads.asked.is_empty();
        // Before the ballot's no-op is applied, the chosen index may miss what an earlier leader acknowledged.
        if idle || self.reads.round.is_some() || settled < barrier {
            return;
        }
        let index = self.chosen;
        let sent_at = self.heartbeat();
        let reads = mem::take(&mut self.reads.waiting);
        let asked = mem::take(&mut self.reads.asked);
        self.reads.round = Some(Round { sent_at, index, reads, asked });
        self.confirm_round();
    }

    /// Ends the round if a quorum answered it.
    pub(crate) fn confirm_round(&mut self) {
        let (Role::Leading(leading), Some(round)) = (&self.role, &self.reads.round) else { return };
        let answers = |node| node == self.id || leading.has_answered(node, round.sent_at);
        // The quorum must meet every phase-1 quorum that could have elected another leader.
        if !self.quorum.is_phase2_quorum(answers) {
            return;
        }
        let ballot = leading.ballot;
        let Some(Round { index, reads, asked, .. }) = self.reads.round.take() else { return };
        self.reads.confirmed.entry(index).or_default().extend(reads);
        for (node, request) in asked {
            self.send(node, Message::ReadIndexReply { request, ballot, index });
        }
    }

    pub(crate) fn on_read_index(&mut self, from: NodeId, request: u64) {
        if let Role::Leading(_) = self.role {
            self.reads.asked.insert(from, request);
        }
    }

    /// Asks the leader, if there is one and no question is open.
    pub(crate) fn ask(&mut self) {
        let Some(leader) = self.leader_to_ask() else { return };
        if self.reads.question.is_some() || self.reads.waiting.is_empty() {
            return;
        }
        self.reads.question_count += 1;
        let request = self.reads.question_count;
        let reads = mem::take(&mut self.reads.waiting);
        self.reads.question = Some(Question { request, reads, asked_at: self.now });
        self.send(leader, Message::ReadIndex { request });
    }

    pub(crate) fn on_read_index_reply(&mut self, request: u64, ballot: Ballot, index: Index) {
        if self.reads.question.as_ref().is_none_or(|question| question.request != request) {
            return;
        }
        let Some(question) = self.reads.question.take() else { return };
        self.reads.confirmed.entry(index).or_default().extend(question.reads);
        self.learn(ballot, index);
    }

    fn leader_to_ask(&self) -> Option<NodeId> {
        match (&self.role, self.heard) {
            (Role::Follower, Some(heard)) => Some(heard.ballot.node),
            _ => None,
        }
    }

    /// Repeats the open question, under the same number: whoever answers it, and whenever, fixed the index
    /// after its reads came. Under a new number each time, a slow answer would never be in time.
    pub(crate) fn ask_again(&mut self) {
        let now = self.now;
        let (Some(leader), Some(question)) = (self.leader_to_ask(), &mut self.reads.question) else { return };
        question.asked_at = now;
        let request = question.request;
        self.send(leader, Message::ReadIndex { request });
    }

    /// What was not answered within two heartbeats may be lost.
    pub(crate) fn tick_reads(&mut self) {
        let patience = self.timing.heartbeat * 2;
        if self.reads.question.as_ref().is_some_and(|question| self.now - question.asked_at >= patience) {
            self.ask_again();
        }
    }
}
