//! The world: production replicas of one shard or several under virtual time, on simulated disks and a simulated
//! network, with clients that write and read through any node, while faults happen.
//!
//! One queue of events decides everything; nothing else moves. The streams of chance are seeded by the plan, so
//! that the same plan gives the same run, event by event.
//!
//! Real here: `keevee-replica` (batching, the engine's driver, apply, request ids, chain hashes, the rule that one
//! answer covers all attempts, where a command goes) and with it `keevee-core` (the shard map too) and one of the
//! engines, `keevee-paxos` or `keevee-raft`. Modelled: what `keevee-server` adds (the log writer's one sync at a
//! time, forwarding, deadlines), disks, clocks, the network. Left out: HTTP, the bytes on the wire, RocksDB, the system
//! shard.

mod clients;
mod clock;
mod damage;
mod disk;
mod ending;
mod faults;
mod groups;
mod ingress;
mod journal;
mod members;
mod network;
mod node;
mod observed;
mod paxos;
mod peers;
mod raft;
mod trace;
mod watched;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use keevee_core::ids::{NodeId, ShardId};
use keevee_replica::Role;

use self::clients::Client;
use self::clock::Clock;
pub(crate) use self::disk::Written;
use self::faults::Afflictions;
use self::groups::Groups;
use self::ingress::{Receipt, Submission};
use self::network::Network;
pub(crate) use self::node::Node;
pub(crate) use self::peers::PeerMessage;
pub use self::trace::Trace;
use crate::coverage::{Counter, Coverage};
use crate::history::History;
use crate::oracles::{Broken, Checked, Demand, Leader, Liveness, REPLICA, Sight};
use crate::plan::{MILLISECOND, Plan, Unsynced};
use crate::random::Random;

/// A rule that a run broke.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// The rule's name.
    pub oracle: &'static str,
    /// When, in microseconds of virtual time.
    pub at_micros: u64,
    /// What happened.
    pub what: String,
}

/// How often the world is looked at for progress.
const LOOK: u64 = 50 * MILLISECOND;

pub(crate) enum Event {
    Tick { node: u64, life: u64 },
    KeepHouse { node: u64, life: u64 },
    Flush { node: u64, life: u64 },
    Synced { node: u64, life: u64 },
    GoesOn { node: u64, life: u64, shard: ShardId },
    Deliver { from: u64, to: u64, message: PeerMessage },
    Submit { to: u64, submission: Box<Submission> },
    Receipt { client: u64, receipt: Box<Receipt> },
    Ingress { node: u64, life: u64, key: u64 },
    ClientTurn { client: u64 },
    ClientPatience { client: u64, request: u64, attempt: u64 },
    FaultBegins { fault: usize },
    FaultTurns { fault: usize, hub: u64, leader: u64 },
    FaultEnds { fault: usize },
    CrashInWrite { node: u64, life: u64, unsynced: Unsynced },
    Restart { node: u64 },
    ReplaceNode { lost: u64 },
    Park { shard: ShardId },
    Look,
}

impl Event {
    /// Tells it from others, for the trace's hash.
    fn tag(&self) -> u64 {
        match self {
            Event::Tick { node, .. } => 0x100 + node,
            Event::KeepHouse { node, .. } => 0x200 + node,
            Event::Flush { node, .. } => 0x300 + node,
            Event::Synced { node, .. } => 0x400 + node,
            Event::Deliver { from, to, message } => 0x500 + 16 * from + to + message.tag(),
            Event::Submit { to, submission } => 0x600 + to + (submission.request << 16),
            Event::Receipt { client, receipt } => 0x700 + client + (receipt.request << 16),
            Event::Ingress { node, key, .. } => 0x800 + node + (key << 16),
            Event::ClientTurn { client } => 0x900 + client,
            Event::ClientPatience { client, request, .. } => 0xa00 + client + (request << 16),
            Event::FaultBegins { fault } => 0xb00 + *fault as u64,
            Event::FaultTurns { fault, .. } => 0xc00 + *fault as u64,
            Event::FaultEnds { fault } => 0xd00 + *fault as u64,
            Event::CrashInWrite { node, .. } => 0xe00 + node,
            Event::Look => 0xf00,
            Event::Restart { node } => 0x1100 + node,
            Event::Park { shard } => 0x1200 + u64::from(shard.0),
            Event::ReplaceNode { lost } => 0x1300 + lost,
            Event::GoesOn { node, .. } => 0x1000 + node,
        }
    }
}

struct Queued {
    at: u64,
    /// Events of one time run in the order in which they were put there.
    order: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A run, from its first event to its last.
pub(crate) struct World {
    plan: Plan,
    random: Random,
    now: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    queued: u64,
    events: u64,
    nodes: BTreeMap<u64, Node>,
    network: Network,
    clients: BTreeMap<u64, Client>,
    afflictions: Afflictions,
    healed: bool,
    history: History,
    groups: Groups,
    /// Of each link: when the latest of its messages arrives.
    arrivals: BTreeMap<(u64, u64), u64>,
    /// The latest that any node's clock has shown.
    latest_clock: u64,
    violation: Option<Violation>,
    checked: Checked,
    raft_seen: raft::Seen,
    /// The node whose disk was damaged last. No other one's is while shards need it.
    damaged: Option<u64>,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
}

/// What is left of a run.
pub(crate) struct Ended {
    pub(crate) violation: Option<Violation>,
    pub(crate) events: u64,
    pub(crate) virtual_micros: u64,
    pub(crate) requests: u64,
    pub(crate) checked: Checked,
}

impl World {
    pub(crate) fn new(plan: Plan, trace: Trace) -> World {
        let settings = plan.settings.clone();
        let mut world = World {
            random: Random::new(plan.seed, 2),
            now: 0,
            queue: BinaryHeap::new(),
            queued: 0,
            events: 0,
            nodes: BTreeMap::new(),
            network: Network::new(&settings),
            clients: plan.clients.iter().map(|client| (client.number, Client::new(client.clone()))).collect(),
            afflictions: Afflictions::default(),
            healed: false,
            history: History::default(),
            groups: Groups::new(&plan),
            arrivals: BTreeMap::new(),
            latest_clock: 0,
            violation: None,
            checked: Checked::default(),
            raft_seen: raft::Seen::default(),
            damaged: None,
            coverage: Coverage::default(),
            trace,
            plan,
        };
        for id in 1..=world.plan.nodes {
            let place = id as usize - 1;
            let clock = Clock::new(world.plan.clock_rates[place], world.plan.wall_offsets[place]);
            world.add_node(id, clock);
            world.start(id);
        }
        for client in world.plan.clients.clone() {
            let at = world.random.below(client.think_micros);
            world.at(at, Event::ClientTurn { client: client.number });
        }
        for fault in 0..world.plan.faults.len() {
            world.at(world.plan.faults[fault].at, Event::FaultBegins { fault });
        }
        world.at(LOOK, Event::Look);
        world
    }

    /// Runs both phases: faults, then healing and the demand that everything comes right.
    pub(crate) fn run(&mut self) -> Ended {
        self.run_until(self.plan.faulty_micros, |_| false);
        self.heal();
        self.demand_members();
        let healed_at = self.now;
        // The oracle of progress watches this phase as it watches every calm.
        self.run_until(healed_at + self.plan.settling() + LOOK, |_| false);
        self.end();
        Ended {
            violation: self.violation.take(),
            events: self.events,
            virtual_micros: self.now,
            requests: self.history.next_number() - 1,
            checked: self.checked,
        }
    }

    /// A replica's own assertion failed. Nothing but counters is to be trusted any more.
    pub(crate) fn end_by_panic(&self, what: String) -> Ended {
        Ended {
            violation: Some(Violation { oracle: REPLICA, at_micros: self.now, what }),
            events: self.events,
            virtual_micros: self.now,
            requests: self.history.next_number() - 1,
            checked: Checked::default(),
        }
    }

    /// All nodes, lost ones too.
    fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    fn at(&mut self, at: u64, event: Event) {
        self.queued += 1;
        self.queue.push(Reverse(Queued { at, order: self.queued, event }));
    }

    fn after(&mut self, span: u64, event: Event) {
        self.at(self.now + span, event);
    }

    /// Runs all events up to a time, or until something holds. True if it does.
    fn run_until(&mut self, end: u64, mut done: impl FnMut(&mut World) -> bool) -> bool {
        while self.violation.is_none() {
            match self.queue.peek() {
                Some(Reverse(next)) if next.at <= end => {}
                _ => break,
            }
            let Some(Reverse(Queued { at, event, .. })) = self.queue.pop() else { break };
            self.now = at;
            self.events += 1;
            self.trace.fold(at);
            self.trace.fold(event.tag());
            self.dispatch(event);
            if done(self) {
                return true;
            }
        }
        if self.violation.is_none() {
            self.now = end;
        }
        false
    }

    fn dispatch(&mut self, event: Event) {
        let Some(event) = self.hold_if_paused(event) else { return };
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::KeepHouse { node, life } => self.keep_house(node, life),
            Event::Flush { node, life } => self.flush(node, life),
            Event::Synced { node, life } => self.synced(node, life),
            Event::Deliver { from, to, message } => self.deliver(from, to, message),
            Event::Submit { to, submission } => self.take_in(to, *submission),
            Event::Receipt { client, receipt } => self.receipt(client, *receipt),
            Event::Ingress { node, life, key } => self.ingress_timer(node, life, key),
            Event::ClientTurn { client } => self.client_turn(client),
            Event::ClientPatience { client, request, attempt } => {
                self.client_patience(client, request, attempt);
            }
            Event::FaultBegins { fault } => self.begin_fault(fault),
            Event::FaultTurns { fault, hub, leader } => self.turn_fault(fault, hub, leader),
            Event::FaultEnds { fault } => self.end_fault(fault),
            Event::CrashInWrite { node, life, unsynced } => self.crash_in_write(node, life, unsynced),
            Event::Restart { node } => self.start(node),
            Event::ReplaceNode { lost } => self.replace_node(lost),
            Event::Park { shard } => self.park(shard),
            Event::GoesOn { node, life, shard } => self.go_on(node, life, shard),
            Event::Look => self.look(),
        }
    }

    /// A paused process finds everything waiting when it wakes.
    fn hold_if_paused(&mut self, event: Event) -> Option<Event> {
        let node = match &event {
            Event::Tick { node, .. }
            | Event::KeepHouse { node, .. }
            | Event::Synced { node, .. }
            | Event::GoesOn { node, .. }
            | Event::Ingress { node, .. } => *node,
            Event::Deliver { to, .. } | Event::Submit { to, .. } => *to,
            _ => return Some(event),
        };
        match self.nodes.get_mut(&node) {
            Some(node) if node.pauses > 0 => {
                node.held.push(event);
                None
            }
            _ => Some(event),
        }
    }

    /// As [`World::hold`], of one of several rules.
    fn hold_one(&mut self, kept: Result<(), (&'static str, Broken)>) {
        if let Err((oracle, what)) = kept {
            self.break_rule(oracle, what);
        }
    }

    /// The latest that any node's clock has shown so far, in microseconds since the Unix epoch.
    fn note_clocks(&mut self) -> u64 {
        let shown = self.nodes.values().map(|node| node.clock.read(self.now).wall_micros).max();
        self.latest_clock = self.latest_clock.max(shown.unwrap_or(0));
        self.latest_clock
    }

    /// A rule is kept, or the run ends here.
    fn hold(&mut self, oracle: &'static str, kept: Result<(), Broken>) {
        if let Err(what) = kept {
            self.break_rule(oracle, what);
        }
    }

    fn break_rule(&mut self, oracle: &'static str, what: String) {
        self.trace.note(self.now, || format!("VIOLATION of \"{oracle}\": {what}"));
        self.violation.get_or_insert(Violation { oracle, at_micros: self.now, what });
    }

    fn look(&mut self) {
        self.after(LOOK, Event::Look);
        let mut leaders = BTreeSet::new();
        for shard in self.groups.ids() {
            let leader = self.leading(shard);
            leaders.extend(leader.map(|leader| leader.node));
            self.end_change_of_members(shard, leader.map(|leader| leader.node));
            self.look_at(shard, leader);
        }
        if leaders.len() > 1 {
            self.coverage.note(Counter::LedApart);
        }
    }

    fn look_at(&mut self, shard: ShardId, leader: Option<Leader>) {
        let sight = Sight {
            now: self.now,
            is_quiet: self.afflictions.are_quiet()
                && self.network.is_prompt(self.now)
                && !self.is_changing_members(shard),
            patience: self.afflictions.patience(self.plan.engine),
            has_connected: self.has_connected(shard),
            leader,
        };
        match self.groups[shard].oracles.liveness.look(sight) {
            Err(what) => self.break_rule(Liveness::NAME, format!("shard {shard}: {what}")),
            Ok(Demand::Nothing) => {}
            Ok(Demand::Write { leader, number }) => self.write_at(shard, leader, number),
        }
        if self.groups[shard].oracles.liveness.take_judged() {
            let calms = if self.healed { vec![Counter::HealingsJudged] } else { self.afflictions.calms() };
            calms.into_iter().for_each(|counter| self.coverage.note(counter));
        }
    }

    /// Who leads a shard at the highest ballot, of the nodes that run. Its disk may stall: whoever leads idly on such a
    /// one is found out by the first write.
    fn leading(&self, shard: ShardId) -> Option<Leader> {
        let leads = |(id, node): (&u64, &Node)| {
            let status = node.process.as_ref()?.shards.get(&shard)?.status().engine;
            let leads = node.pauses == 0 && status.role == Role::Leader;
            leads.then(|| Leader { round: ballot_round(&status.ballot), node: *id })
        };
        self.nodes.iter().filter_map(leads).max()
    }

    /// True if a node runs, and its disk answers.
    fn works(&self, id: u64) -> bool {
        let node = &self.nodes[&id];
        node.process.is_some() && node.pauses == 0 && node.stalls == 0
    }

    /// True if some member of a shard that works could lead: it reaches a majority both ways that may follow it, and its
    /// clock is not off, for which it would hand over.
    fn has_connected(&mut self, shard: ShardId) -> bool {
        let members = self.groups[shard].oracles.disks.members().clone();
        let working: Vec<u64> =
            members.all().into_iter().map(|NodeId(id)| id).filter(|id| self.works(*id)).collect();
        let both_ways = |a: u64, b: u64| a == b || (self.network.is_open(a, b) && self.network.is_open(b, a));
        let may_follow = self.may_follow(shard, &working);
        let has_majority = |counts: &dyn Fn(u64, u64) -> bool| {
            let supports = |other: u64, id: u64| working.contains(&other) && counts(other, id);
            let voters = working.iter().filter(|id| members.is_voter(NodeId(**id)));
            voters.copied().any(|id| members.is_quorum(|NodeId(other)| supports(other, id)))
        };
        if !has_majority(&both_ways) {
            return false;
        }
        let is_electable = |other, id| both_ways(other, id) && may_follow(other, id);
        if !has_majority(&is_electable) {
            self.coverage.note(Counter::NobodyElectable);
            return false;
        }
        let may_lead =
            |id: u64| self.nodes[&id].process.as_ref().is_some_and(|process| !process.is_clock_off);
        has_majority(&|other, id| is_electable(other, id) && may_lead(id))
    }

    /// How traces mark what is about a shard: not at all where there is one only.
    fn mark(&self, shard: ShardId) -> String {
        if self.groups.are_several() { format!("[{shard}] ") } else { String::new() }
    }

    fn describe_nodes(&self) -> String {
        let describe = |(id, node): (&u64, &Node)| match &node.process {
            None => format!("{id}: down"),
            Some(process) => {
                let replicas = process.shards.values().map(|replica| {
                    let status = replica.status();
                    let (role, ballot) = (status.engine.role.name(), &status.engine.ballot);
                    let (chosen, applied, waiting) = (status.engine.chosen, status.applied, status.waiting);
                    let mark = self.mark(replica.id());
                    format!("{mark}{role} {ballot}, chosen {chosen}, applied {applied}, {waiting} waiting, ")
                });
                let (replicas, owed) = (replicas.collect::<String>(), process.owed());
                format!("{id}: {replicas}{owed} owed")
            }
        };
        self.nodes.iter().map(describe).collect::<Vec<_>>().join("; ")
    }
}

/// The number by which ballots are ordered, from how statuses write it.
fn ballot_round(ballot: &str) -> u64 {
    ballot.split('.').next().and_then(|round| round.parse().ok()).unwrap_or(0)
}
