//! A node's door: takes a client's command to the leader and brings the one answer back, as the server's
//! `Node::execute` does: one hop per attempt, only this node retries, and one answer covers all attempts.

use std::time::Duration;

use keevee_core::codec;
use keevee_core::command::{Command, Outcome};
use keevee_core::error::ErrorKind;
use keevee_replica::{Attempt, Attempts, Refusal, Request};

use super::network::Way;
use super::node::Process;
use super::peers::{ForwardReply, PeerMessage, brief};
use super::{Event, World};
use crate::coverage::Counter;
use crate::oracles::REPLICA;
use crate::plan::{MILLISECOND, SECOND};

/// How long a node works on a request.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long it waits for a leader to be known.
const LEADER_WAIT: Duration = Duration::from_secs(1);
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a client waits for a node.
pub(crate) const PATIENCE: u64 = 3 * SECOND + 500 * MILLISECOND;
/// Where clients are, to the network.
const CLIENTS: u64 = 0;

/// A command on its way from a client to a node.
pub(crate) struct Submission {
    pub(crate) client: u64,
    pub(crate) request: u64,
    /// Which sending of the request this is.
    pub(crate) attempt: u64,
    pub(crate) command: Command,
}

/// What a client is told.
pub(crate) struct Receipt {
    pub(crate) request: u64,
    pub(crate) attempt: u64,
    pub(crate) told: Told,
}

pub(crate) enum Told {
    Outcome(Outcome),
    Error(ErrorKind),
    /// Nobody listens there.
    NotReached,
    /// The connection broke.
    HungUp,
}

/// Who waits for a replica's answer.
pub(crate) enum Owner {
    /// A request that came in here.
    Ingress(u64),
    /// Another node, for a request that came in there.
    Node { node: u64, number: u64 },
    /// The oracle of progress.
    Demand { number: u64, request: u64 },
}

/// A client's request at the node that it came to.
pub(crate) struct Ingress {
    client: u64,
    request: u64,
    attempt: u64,
    command: Command,
    deadline: Duration,
    attempts: Attempts,
    stage: Stage,
}

enum Stage {
    /// For a leader to be known.
    Waiting { until: Duration },
    /// At this node's replica.
    Submitted,
    /// At another node.
    Forwarded { to: u64, number: u64 },
    /// Before the next attempt.
    Pausing,
}

impl World {
    /// A client's command arrives.
    pub(crate) fn take_in(&mut self, id: u64, submission: Submission) {
        let Submission { client, request, attempt, command } = submission;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = node.clock.read(self.now).monotonic;
        let Some(process) = &mut node.process else {
            return self.tell(id, client, Receipt { request, attempt, told: Told::NotReached });
        };
        let key = process.next_number();
        let attempts = Attempts::new(command.request_id.is_some());
        let (deadline, stage) = (now + DEADLINE, Stage::Pausing);
        let ingress = Ingress { client, request, attempt, command, deadline, attempts, stage };
        process.ingress.insert(key, ingress);
        self.trace.at(self.now, id, || format!("request {request}"));
        self.try_once(id, key);
        self.settle(id);
    }

    /// One attempt: here, or at the leader, or none while no leader is known.
    fn try_once(&mut self, id: u64, key: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = node.clock.read(self.now).monotonic;
        let Some(process) = &mut node.process else { return };
        let leader = process.shard.leader().map(|leader| leader.0);
        let number = process.next_number();
        let Some(ingress) = process.ingress.get_mut(&key) else { return };
        let (deadline, command) = (ingress.deadline, ingress.command.clone());
        match leader {
            None => {
                let until = deadline.min(now + LEADER_WAIT).max(now);
                ingress.stage = Stage::Waiting { until };
                self.ingress_timer_after(id, key, until - now);
            }
            Some(leader) if leader == id || command.is_read_only() => {
                ingress.stage = Stage::Submitted;
                self.submit(id, Owner::Ingress(key), command, deadline);
            }
            Some(leader) => {
                ingress.stage = Stage::Forwarded { to: leader, number };
                let left = deadline.saturating_sub(now);
                let command = codec::encode_command(&command);
                self.coverage.note(Counter::Forwards);
                let time_left = left.as_micros() as u64;
                self.send(id, leader, PeerMessage::Forward { number, command, time_left });
                self.ingress_timer_after(id, key, left);
            }
        }
    }

    fn ingress_timer_after(&mut self, id: u64, key: u64, span: Duration) {
        let node = &self.nodes[&id];
        let (life, span) = (node.life, node.clock.true_span(span.as_micros() as u64));
        self.after(span, Event::Ingress { node: id, life, key });
    }

    pub(crate) fn submit(&mut self, id: u64, owner: Owner, command: Command, deadline: Duration) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = node.clock.read(self.now);
        let Some(process) = &mut node.process else { return };
        let ticket = process.next_number();
        process.tickets.insert(ticket, owner);
        let submitted = process.shard.submit(now, vec![Request { ticket, command, deadline, stale: false }]);
        if let Err(failure) = submitted {
            self.break_rule(REPLICA, format!("node {id}: {failure}"));
        }
    }

    /// A timer of a request went off. It may be an old one: only what holds now counts.
    pub(crate) fn ingress_timer(&mut self, id: u64, life: u64, key: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.life == life) else { return };
        let now = node.clock.read(self.now).monotonic;
        let Some(process) = &mut node.process else { return };
        let leader = process.leader;
        let Some(ingress) = process.ingress.get(&key) else { return };
        let late = now >= ingress.deadline;
        match ingress.stage {
            Stage::Waiting { .. } if leader.is_some() => self.try_once(id, key),
            Stage::Waiting { until } if now >= until => {
                let detail = "no leader was found in time".to_owned();
                self.attempted(id, key, Attempt::Refused { kind: ErrorKind::Unavailable, detail });
            }
            Stage::Forwarded { .. } if late => {
                self.attempted(id, key, Attempt::Unknown("the time was up".to_owned()));
            }
            Stage::Forwarded { to, .. }
                if leader.is_some_and(|leader| leader != to) && ingress.command.request_id.is_some() =>
            {
                self.attempted(id, key, Attempt::Unknown("another node leads now".to_owned()));
            }
            Stage::Pausing => {
                self.coverage.note(Counter::NodeRetries);
                self.try_once(id, key);
            }
            _ => return,
        }
        self.settle(id);
    }

    /// This node's replica names another leader than before: what waits for that goes on.
    pub(crate) fn leader_changed(&mut self, id: u64) {
        let node = &self.nodes[&id];
        let (life, Some(process)) = (node.life, &node.process) else { return };
        let waits =
            |ingress: &Ingress| matches!(ingress.stage, Stage::Waiting { .. } | Stage::Forwarded { .. });
        let waiting = process.ingress.iter().filter(|(_, ingress)| waits(ingress)).map(|(key, _)| *key);
        for key in waiting.collect::<Vec<_>>() {
            self.after(0, Event::Ingress { node: id, life, key });
        }
    }

    /// What one attempt came to.
    fn attempted(&mut self, id: u64, key: u64, attempt: Attempt) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = node.clock.read(self.now).monotonic;
        let Some(ingress) = node.process.as_mut().and_then(|process| process.ingress.get_mut(&key)) else {
            return;
        };
        let result = match ingress.attempts.after(attempt) {
            Some(result) => result,
            None if now + RETRY_PAUSE >= ingress.deadline => Err(ingress.attempts.give_up()),
            None => {
                ingress.stage = Stage::Pausing;
                return self.ingress_timer_after(id, key, RETRY_PAUSE);
            }
        };
        self.answer_client(id, key, result.map_err(|(kind, _)| kind));
    }

    fn answer_client(&mut self, id: u64, key: u64, result: Result<Outcome, ErrorKind>) {
        let Some(process) = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut()) else { return };
        let Some(Ingress { client, request, attempt, command, .. }) = process.ingress.remove(&key) else {
            return;
        };
        if command.is_read_only() && result.is_ok() && process.leader != Some(id) {
            self.coverage.note(Counter::FollowerReads);
        }
        let told = match result {
            Ok(outcome) => Told::Outcome(outcome),
            Err(kind) => Told::Error(kind),
        };
        self.tell(id, client, Receipt { request, attempt, told });
    }

    fn tell(&mut self, id: u64, client: u64, receipt: Receipt) {
        self.trace.at(self.now, id, || {
            let told = match &receipt.told {
                Told::Outcome(outcome) => brief(outcome),
                Told::Error(kind) => kind.to_string(),
                Told::NotReached => "not reached".to_owned(),
                Told::HungUp => "hung up".to_owned(),
            };
            format!("request {}: {told}", receipt.request)
        });
        let way = self.network.send(self.now, id, CLIENTS, &mut self.random);
        match way {
            Way::Arrives { at, .. } => self.at(at, Event::Receipt { client, receipt: Box::new(receipt) }),
            Way::Lost => self.coverage.note(Counter::Lost),
        }
    }

    /// A client sends to a node.
    pub(crate) fn send_to_node(&mut self, to: u64, submission: Submission) {
        let way = self.network.send(self.now, CLIENTS, to, &mut self.random);
        match way {
            Way::Arrives { at, .. } => self.at(at, Event::Submit { to, submission: Box::new(submission) }),
            Way::Lost => self.coverage.note(Counter::Lost),
        }
    }

    /// The replica of this node answered.
    pub(crate) fn answer_owner(&mut self, id: u64, owner: Owner, result: Result<Outcome, Refusal>) {
        match owner {
            Owner::Demand { number, request } => self.demand_answered(number, request, Some(result)),
            Owner::Node { node, number } => {
                let reply = Box::new(result.map_err(|refusal| (refusal.kind(), refusal.to_string())));
                self.send(id, node, PeerMessage::Forwarded { number, reply });
            }
            Owner::Ingress(key) => {
                let process = self.nodes.get(&id).and_then(|node| node.process.as_ref());
                let ingress = process.and_then(|process| process.ingress.get(&key));
                match ingress {
                    Some(ingress) if ingress.command.is_read_only() => {
                        self.answer_client(id, key, result.map_err(|_| ErrorKind::Unavailable));
                    }
                    Some(_) => self.attempted(id, key, Attempt::from(result)),
                    None => {}
                }
            }
        }
    }

    /// Another node hands a command over.
    pub(crate) fn take_forward(
        &mut self,
        from: u64,
        id: u64,
        number: u64,
        command: bytes::Bytes,
        time_left: u64,
    ) {
        let now = self.nodes[&id].clock.read(self.now).monotonic;
        let deadline = now + Duration::from_micros(time_left);
        match codec::decode_command(command) {
            Ok(command) => self.submit(id, Owner::Node { node: from, number }, command, deadline),
            Err(error) => self.break_rule(REPLICA, format!("a forwarded command does not decode: {error}")),
        }
    }

    /// The other node answered.
    pub(crate) fn take_forwarded(&mut self, id: u64, number: u64, reply: ForwardReply) {
        let process = self.nodes.get(&id).and_then(|node| node.process.as_ref());
        let is_it =
            |ingress: &Ingress| matches!(ingress.stage, Stage::Forwarded { number: n, .. } if n == number);
        let key = process.and_then(|process| {
            process.ingress.iter().find(|(_, ingress)| is_it(ingress)).map(|(key, _)| *key)
        });
        if let Some(key) = key {
            self.attempted(id, key, Attempt::forwarded(reply));
        }
    }

    /// A forward reached a place where nobody listens: nothing was sent.
    pub(crate) fn refuse_forward(&mut self, from: u64, to: u64, number: u64) {
        let reply = Box::new(Err((ErrorKind::NotLeader, "nobody listens there".to_owned())));
        self.send(to, from, PeerMessage::Forwarded { number, reply });
    }

    /// A process is gone: whoever waits for it finds its connection broken.
    pub(crate) fn hang_up(&mut self, id: u64, process: Process) {
        for ingress in process.ingress.into_values() {
            let (request, attempt) = (ingress.request, ingress.attempt);
            self.tell(id, ingress.client, Receipt { request, attempt, told: Told::HungUp });
        }
        for owner in process.tickets.into_values() {
            match owner {
                Owner::Node { node, number } => {
                    let broken = (ErrorKind::OutcomeUnknown, "the connection broke".to_owned());
                    self.send(id, node, PeerMessage::Forwarded { number, reply: Box::new(Err(broken)) });
                }
                Owner::Demand { number, request } => self.demand_answered(number, request, None),
                Owner::Ingress(_) => {}
            }
        }
    }
}
