//! A node's door: takes a client's command to the leader of its shard and brings the one answer back, as the server's
//! `Node::execute` does: one hop per attempt, only this node retries, and one answer covers all attempts. Where an
//! attempt goes is production code ([`Route`]); the shard is the one that the node's own map names, which may be an
//! old one.

use std::rc::Rc;
use std::time::Duration;

use keevee_core::codec;
use keevee_core::command::{Command, Outcome};
use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::ShardMap;
use keevee_mutants::{Mutant, is_active};
use keevee_replica::{Attempt, Attempts, Heard, Refusal, Request, Route};

use super::network::Way;
use super::node::Process;
use super::peers::{Forward, ForwardReply, PeerMessage, brief};
use super::{Event, World};
use crate::coverage::Counter;
use crate::oracles::{OneHop, REPLICA};
use crate::plan::{MILLISECOND, SECOND};

/// How long a node works on a request.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long it waits for a leader to be known.
const LEADER_WAIT: Duration = Duration::from_secs(1);
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How often a node tries a command at most. Each time but a few, when leadership has just moved, it pauses before.
const ATTEMPTS_MAX: usize = 2 * (DEADLINE.as_millis() / RETRY_PAUSE.as_millis()) as usize;
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
    Demand { shard: ShardId, number: u64, request: u64 },
}

/// A client's request at the node that it came to.
pub(crate) struct Ingress {
    client: u64,
    request: u64,
    attempt: u64,
    command: Command,
    /// As the node's map said when it came.
    shard: ShardId,
    deadline: Duration,
    attempts: Attempts,
    /// How many attempts there were.
    attempted: usize,
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

impl Process {
    /// The request that is forwarded under a number, and its key.
    fn sent(&self, number: u64) -> Option<(u64, &Ingress)> {
        let is_it = |ingress: &Ingress| matches!(ingress.stage, Stage::Forwarded { number: sent, .. } if sent == number);
        self.ingress.iter().find(|(_, ingress)| is_it(ingress)).map(|(key, ingress)| (*key, ingress))
    }
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
        self.trace.at(self.now, id, || format!("request {request}"));
        let Some(shard) = shard_of(&node.map, &command) else {
            let told = Told::Error(ErrorKind::Invalid);
            return self.tell(id, client, Receipt { request, attempt, told });
        };
        let attempts = Attempts::new(command.is_read_only() || command.request_id.is_some());
        let (deadline, attempted, stage) = (now + DEADLINE, 0, Stage::Pausing);
        let ingress =
            Ingress { client, request, attempt, command, shard, deadline, attempts, attempted, stage };
        process.ingress.insert(key, ingress);
        self.try_once(id, key);
        self.settle(id);
    }

    /// One attempt: here, or at the leader, or none while no leader is known.
    fn try_once(&mut self, id: u64, key: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = node.clock.read(self.now).monotonic;
        let Some(process) = &mut node.process else { return };
        let number = process.next_number();
        let Some(ingress) = process.ingress.get_mut(&key) else { return };
        let (shard, deadline, command) = (ingress.shard, ingress.deadline, ingress.command.clone());
        let is_parked = !self.groups[shard].hosts.contains(&id);
        let leader = match process.shards.get(&shard).filter(|_| !is_parked) {
            Some(replica) => replica.leader(),
            None => process.leaders.get(&shard).copied().map(NodeId),
        };
        let members = &node.map.shard(shard).expect("the map names the shard").members;
        let route = Route { own: NodeId(id), members, leader };
        let asked = route.asked(ingress.attempted);
        ingress.attempted += 1;
        match asked {
            None => {
                let until = deadline.min(now + LEADER_WAIT).max(now);
                ingress.stage = Stage::Waiting { until };
                self.ingress_timer_after(id, key, until - now);
            }
            Some(asked) if route.is_here(asked, command.is_read_only()) => {
                ingress.stage = Stage::Submitted;
                self.submit(id, shard, Owner::Ingress(key), command, deadline);
            }
            Some(NodeId(to)) => {
                if !route.hosts() {
                    self.coverage.note(Counter::ForwardsFromOutside);
                }
                ingress.stage = Stage::Forwarded { to, number };
                let left = deadline.saturating_sub(now);
                let (command, time_left) = (codec::encode_command(&command), left.as_micros() as u64);
                self.forward(id, to, Forward { shard, number, command, time_left });
                self.ingress_timer_after(id, key, left);
            }
        }
    }

    fn forward(&mut self, id: u64, to: u64, forward: Forward) {
        let process = self.nodes.get(&id).and_then(|node| node.process.as_ref());
        let sent = process.and_then(|process| process.sent(forward.number));
        let hop = OneHop::forwarded(id, sent.map(|(_, ingress)| ingress.attempted), ATTEMPTS_MAX);
        self.hold(OneHop::NAME, hop);
        self.coverage.note(Counter::Forwards);
        self.send(id, to, PeerMessage::Forward(Box::new(forward)));
    }

    fn ingress_timer_after(&mut self, id: u64, key: u64, span: Duration) {
        let node = &self.nodes[&id];
        let (life, span) = (node.life, node.clock.true_span(span.as_micros() as u64));
        self.after(span, Event::Ingress { node: id, life, key });
    }

    pub(crate) fn submit(
        &mut self,
        id: u64,
        shard: ShardId,
        owner: Owner,
        command: Command,
        deadline: Duration,
    ) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = node.clock.read(self.now);
        let Some(process) = &mut node.process else { return };
        let ticket = process.next_number();
        let Some(replica) = process.touch(shard) else {
            return self.answer_owner(id, owner, Err(Refusal::NotLeader(None)));
        };
        let submitted = replica.submit(now, vec![Request { ticket, command, deadline, stale: false }]);
        process.tickets.insert(ticket, owner);
        if let Err(failure) = submitted {
            self.end_by(id, shard, &failure);
        }
    }

    /// A timer of a request went off. It may be an old one: only what holds now counts.
    pub(crate) fn ingress_timer(&mut self, id: u64, life: u64, key: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.life == life) else { return };
        let now = node.clock.read(self.now).monotonic;
        let Some(process) = &mut node.process else { return };
        let Some(ingress) = process.ingress.get(&key) else { return };
        let shard = ingress.shard;
        let leader = process.leaders.get(&shard).copied();
        let may_ask_another = ingress.command.is_read_only() || ingress.command.request_id.is_some();
        let late = now >= ingress.deadline;
        match ingress.stage {
            Stage::Waiting { .. } if leader.is_some() => self.try_once(id, key),
            Stage::Waiting { until } if now >= until => {
                let detail = "no leader was found in time".to_owned();
                self.attempted(id, key, Attempt::Refused { kind: ErrorKind::Unavailable, detail });
            }
            Stage::Forwarded { to, .. } if late => {
                self.attempted(id, key, Attempt::Unknown("the time was up".to_owned()));
                self.learn(id, shard, to, Heard::Nothing);
            }
            Stage::Forwarded { to, .. } if leader.is_some_and(|leader| leader != to) && may_ask_another => {
                self.attempted(id, key, Attempt::Unknown("another node leads now".to_owned()));
                self.learn(id, shard, to, Heard::Nothing);
            }
            Stage::Pausing => {
                self.coverage.note(Counter::NodeRetries);
                self.try_once(id, key);
            }
            _ => return,
        }
        self.settle(id);
    }

    /// Notes what a forward tells of the leader of a shard that has no replica here.
    fn learn(&mut self, id: u64, shard: ShardId, asked: u64, heard: Heard) {
        let Some(process) = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut()) else { return };
        if process.shards.contains_key(&shard) {
            return;
        }
        if matches!(heard, Heard::Refused(ErrorKind::NotLeader, Some(_))) {
            self.coverage.note(Counter::HintsFollowed);
        }
        let known = process.leaders.get(&shard).copied().map(NodeId);
        let leader = heard.leader(NodeId(asked), known).map(|leader| leader.0);
        if process.learn_leader(shard, leader) {
            self.leader_changed(id, shard);
        }
    }

    /// This node knows of another leader of a shard than before: what waits for that goes on.
    pub(crate) fn leader_changed(&mut self, id: u64, shard: ShardId) {
        let node = &self.nodes[&id];
        let (life, Some(process)) = (node.life, &node.process) else { return };
        let waits = |ingress: &Ingress| {
            let waits = matches!(ingress.stage, Stage::Waiting { .. } | Stage::Forwarded { .. });
            waits && ingress.shard == shard
        };
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
        let attempt = match attempt {
            // Nothing has happened, whatever became of it.
            Attempt::Unknown(why) if ingress.command.is_read_only() => Attempt::Retry(why),
            attempt => attempt,
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
        let Some(Ingress { client, request, attempt, command, shard, .. }) = process.ingress.remove(&key)
        else {
            return;
        };
        let is_follower = process.shards.contains_key(&shard) && process.leaders.get(&shard) != Some(&id);
        if command.is_read_only() && result.is_ok() && is_follower {
            self.coverage.note(Counter::FollowerReads);
        }
        if result == Ok(Outcome::WrongShard) {
            self.refresh_map(id);
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
            Owner::Demand { shard, number, request } => {
                self.demand_answered(shard, number, request, Some(result));
            }
            Owner::Node { node, number } => {
                let reply = Box::new(ForwardReply::from(result));
                self.send(id, node, PeerMessage::Forwarded { number, reply });
            }
            Owner::Ingress(key) => self.attempted(id, key, Attempt::from(result)),
        }
    }

    /// A shard has turned a command away that is not its own: the node's map is an old one, and it gets the new one.
    fn refresh_map(&mut self, id: u64) {
        self.coverage.note(Counter::WrongShards);
        let map = Rc::clone(&self.groups.map);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.map = map;
    }

    /// Another node hands a command over, to be carried out here or not at all.
    pub(crate) fn take_forward(&mut self, from: u64, id: u64, forward: Forward) {
        let Forward { shard, number, command, time_left } = forward;
        let node = &self.nodes[&id];
        let deadline = node.clock.read(self.now).monotonic + Duration::from_micros(time_left);
        let leader = node.process.as_ref().and_then(|process| process.leaders.get(&shard).copied());
        if is_active(Mutant::ForwardedAgain)
            && let Some(leader) = leader.filter(|leader| *leader != id)
        {
            return self.forward(id, leader, Forward { shard, number, command, time_left });
        }
        match codec::decode_command(command) {
            Ok(command) => self.submit(id, shard, Owner::Node { node: from, number }, command, deadline),
            Err(error) => self.break_rule(REPLICA, format!("a forwarded command does not decode: {error}")),
        }
    }

    /// The other node answered.
    pub(crate) fn take_forwarded(&mut self, id: u64, number: u64, reply: ForwardReply) {
        let process = self.nodes.get(&id).and_then(|node| node.process.as_ref());
        let sent = process.and_then(|process| process.sent(number));
        let Some((key, Ingress { shard, stage: Stage::Forwarded { to, .. }, .. })) = sent else { return };
        let (key, shard, to) = (key, *shard, *to);
        let (heard, attempt) = match reply {
            ForwardReply::Outcome(outcome) => (Heard::Served, Attempt::Outcome(outcome)),
            ForwardReply::Error { kind, detail, leader } => {
                (Heard::Refused(kind, leader), Attempt::forwarded(Err((kind, detail))))
            }
        };
        self.attempted(id, key, attempt);
        self.learn(id, shard, to, heard);
    }

    /// A forward reached a place where nobody listens: nothing was sent.
    pub(crate) fn refuse_forward(&mut self, from: u64, to: u64, number: u64) {
        let reply = Box::new(ForwardReply::error(ErrorKind::NotLeader, "nobody listens there"));
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
                    let broken = ForwardReply::error(ErrorKind::OutcomeUnknown, "the connection broke");
                    self.send(id, node, PeerMessage::Forwarded { number, reply: Box::new(broken) });
                }
                Owner::Demand { shard, number, request } => {
                    self.demand_answered(shard, number, request, None)
                }
                Owner::Ingress(_) => {}
            }
        }
    }
}

/// The shard that owns all keys of a command, by a map; `None` if they are of several.
fn shard_of(map: &ShardMap, command: &Command) -> Option<ShardId> {
    let mut owners = command.keys().map(|key| map.owner(key));
    let shard = owners.next().expect("commands of clients name keys");
    owners.all(|owner| owner == shard).then_some(shard)
}
