//! A group of replicas that moves only as a script says, and tells everything that happens.
//!
//! Nothing is delivered, synced or ticked unless a command does it. Each node has a clock of its own, so that
//! a script can let time pass at one node and not at another: the protocol must be safe under that too.

pub(crate) mod format;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use keevee_paxos::{
    Config, Configuration, Index, Input, Message, NodeId, Output, QuorumSystem, ReadId, Replica, RoleName,
};

use crate::disk::Disk;

/// Time passes in steps of this length, with a tick after each.
const STEP: Duration = Duration::from_millis(20);

pub(crate) struct Node {
    pub(crate) replica: Option<Replica>,
    disk: Disk,
    clock: Duration,
    paused: bool,
    stalled: bool,
    applied: Index,
    flushed: Index,
    starts: u64,
}

#[derive(Clone)]
pub(crate) struct Envelope {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) message: Message,
    pub(crate) held: bool,
}

pub(crate) struct Cluster {
    config: Config,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// Sent and not delivered, in the order of sending.
    network: VecDeque<Envelope>,
    cut: BTreeSet<(NodeId, NodeId)>,
    read_count: ReadId,
    trace: String,
    /// Traces what becomes of the group, but no messages and writes.
    brief: bool,
}

impl Cluster {
    pub(crate) fn new(count: u64, members: u64, page: usize, cache: usize) -> Cluster {
        let mut config = Config::new(1, QuorumSystem::majority(1..=members), 0);
        config.page_bytes_max = page;
        config.cache_bytes_max = cache;
        let node = || Node {
            replica: None,
            disk: Disk::default(),
            clock: Duration::ZERO,
            paused: false,
            stalled: false,
            applied: 0,
            flushed: 0,
            starts: 0,
        };
        let mut cluster = Cluster {
            config,
            nodes: (1..=count).map(|id| (id, node())).collect(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            read_count: 0,
            trace: String::new(),
            brief: false,
        };
        cluster.ids().into_iter().for_each(|id| cluster.start(id));
        cluster
    }

    pub(crate) fn take_trace(&mut self) -> String {
        std::mem::take(&mut self.trace)
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    pub(crate) fn note(&mut self, line: impl AsRef<str>) {
        let _ = writeln!(self.trace, "{}", line.as_ref());
    }

    fn detail(&mut self, line: impl AsRef<str>) {
        if !self.brief {
            self.note(line);
        }
    }

    pub(crate) fn start(&mut self, id: NodeId) {
        let template = self.config.clone();
        let node = self.node(id);
        node.starts += 1;
        let seed = 100 * id + node.starts;
        let is_member = template.quorum.members().contains(&id);
        let quorum = if is_member { template.quorum } else { QuorumSystem::majority([]) };
        let config = Config { id, seed, quorum, ..template };
        let restored = node.disk.restore(node.applied);
        let restarts = node.starts > 1;
        let replica = Replica::new(config, restored, node.clock);
        let status = format::status(&replica.status());
        node.replica = Some(replica);
        if restarts {
            self.note(format!("{id} restarts: {status}"));
        }
    }

    /// The node loses its memory, what its disk did not sync, and what its state machine did not flush.
    pub(crate) fn crash(&mut self, id: NodeId) {
        let node = self.node(id);
        let lost = node.disk.queued_through(u64::MAX);
        node.replica = None;
        node.disk.crash();
        node.applied = node.flushed;
        let applied = node.applied;
        self.note(format!("{id} crashes: loses {lost} writes; its state machine falls back to {applied}"));
    }

    pub(crate) fn step(&mut self, id: NodeId, input: Input) -> Option<Index> {
        let node = self.node(id);
        let clock = node.clock;
        let replica = node.replica.as_mut()?;
        let before = replica.status();
        let output = replica.step(clock, input, &node.disk);
        let after = replica.status();
        if before.role != after.role {
            let at = match after.role {
                RoleName::Leader | RoleName::Candidate => format!(", promised {}", after.promised),
                RoleName::Follower => String::new(),
            };
            self.note(format!("    {id} is now {:?}{at}", after.role));
        }
        self.carry_out(id, output)
    }

    fn carry_out(&mut self, id: NodeId, output: Output) -> Option<Index> {
        if let Some(persist) = output.persist {
            self.detail(format!("    {id} writes {}", format::write(&persist)));
            self.node(id).disk.write(persist);
        }
        for (to, message) in output.send {
            self.send(id, to, message);
        }
        if output.needs_snapshot.is_some() {
            self.note(format!("    {id} needs a snapshot"));
        }
        for read in output.reads_ready {
            let applied = self.node(id).applied;
            self.note(format!("    {id} serves read {read} at {applied}"));
        }
        if let Some(last) = output.chosen.last().map(|entry| entry.index) {
            for entry in &output.chosen {
                let value = format::value(&entry.value);
                self.note(format!("    {id} applies {}={value}", entry.index));
            }
            self.node(id).applied = last;
            self.step(id, Input::Applied(last));
        }
        output.proposed
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        let line = format!("    {from} sends {to} {}", format::message(&message));
        if self.cut.contains(&(from, to)) {
            return self.detail(format!("{line} (lost)"));
        }
        self.detail(line);
        self.network.push_back(Envelope { from, to, message, held: false });
    }

    /// Delivers the oldest message that can be delivered and matches. False if there is none.
    pub(crate) fn deliver_one(&mut self, matches: &impl Fn(&Envelope) -> bool) -> bool {
        let deaf = |id: NodeId| self.nodes[&id].paused;
        let found = self.network.iter().position(|envelope| matches(envelope) && !deaf(envelope.to));
        let Some(envelope) = found.and_then(|position| self.network.remove(position)) else { return false };
        let Envelope { from, to, message, .. } = envelope;
        if self.nodes[&to].replica.is_none() {
            self.detail(format!("{from} -> {to} {} (down)", format::message(&message)));
            return true;
        }
        self.detail(format!("{from} -> {to} {}", format::message(&message)));
        self.step(to, Input::Message { from, message });
        true
    }

    /// How many messages under way match.
    pub(crate) fn count_matching(&self, matches: &impl Fn(&Envelope) -> bool) -> usize {
        self.network.iter().filter(|envelope| !envelope.held && matches(envelope)).count()
    }

    pub(crate) fn drop_matching(&mut self, matches: impl Fn(&Envelope) -> bool) {
        let (dropped, kept): (VecDeque<_>, _) =
            self.network.drain(..).partition(|envelope| !envelope.held && matches(envelope));
        self.network = kept;
        for Envelope { from, to, message, .. } in dropped {
            self.note(format!("{from} -> {to} {} (dropped)", format::message(&message)));
        }
    }

    /// Copies matching messages; the copies are held until they are released.
    pub(crate) fn duplicate_matching(&mut self, matches: impl Fn(&Envelope) -> bool) {
        let originals = self.network.iter().filter(|envelope| matches(envelope));
        let copies: Vec<Envelope> =
            originals.map(|envelope| Envelope { held: true, ..envelope.clone() }).collect();
        for copy in copies {
            let line = format!("{} -> {} {}", copy.from, copy.to, format::message(&copy.message));
            self.note(format!("{line} (a copy is held)"));
            self.network.push_back(copy);
        }
    }

    /// Holds matching messages back, or lets held ones go, behind everything else.
    pub(crate) fn hold_matching(&mut self, hold: bool, matches: impl Fn(&Envelope) -> bool) {
        let (moved, kept): (VecDeque<_>, VecDeque<_>) =
            self.network.drain(..).partition(|envelope| envelope.held != hold && matches(envelope));
        self.network = kept;
        for envelope in moved {
            let what = if hold { "held" } else { "released" };
            let line = format!("{} -> {} {}", envelope.from, envelope.to, format::message(&envelope.message));
            self.note(format!("{line} ({what})"));
            self.network.push_back(Envelope { held: hold, ..envelope });
        }
    }

    /// Syncs everything that a node has written so far, and releases what waited for it.
    pub(crate) fn persist(&mut self, id: NodeId) -> bool {
        let disk = &mut self.node(id).disk;
        let synced = disk.sync(disk.queued_through(u64::MAX));
        let Some(token) = synced.last().map(|persist| persist.token) else { return false };
        self.detail(format!("{id} syncs"));
        self.step(id, Input::Persisted(token));
        for (to, message) in synced.into_iter().flat_map(|persist| persist.then_send) {
            self.send(id, to, message);
        }
        true
    }

    fn persist_all(&mut self) -> bool {
        let able = |node: &Node| node.replica.is_some() && !node.stalled && !node.paused;
        let ids: Vec<NodeId> = self.nodes.iter().filter(|(_, node)| able(node)).map(|(id, _)| *id).collect();
        ids.into_iter().filter(|id| self.persist(*id)).count() > 0
    }

    /// Delivers and syncs until nothing is left to do. No time passes.
    pub(crate) fn settle(&mut self) {
        self.settle_now();
        // Leaders tell what is chosen at their next tick.
        let able = |node: &Node| node.replica.is_some() && !node.paused;
        let ids: Vec<NodeId> = self.nodes.iter().filter(|(_, node)| able(node)).map(|(id, _)| *id).collect();
        for id in ids {
            self.step(id, Input::Tick);
        }
        self.settle_now();
    }

    fn settle_now(&mut self) {
        while self.deliver_one(&|envelope| !envelope.held) || self.persist_all() {}
    }

    /// Lets time pass at some nodes, with ticks, and nothing else.
    pub(crate) fn elapse(&mut self, span: Duration, ids: &[NodeId]) {
        let mut left = span;
        while !left.is_zero() {
            let step = left.min(STEP);
            left -= step;
            for id in ids {
                self.node(*id).clock += step;
                if !self.nodes[id].paused {
                    self.step(*id, Input::Tick);
                }
            }
        }
    }

    /// Lets time pass at one node until it is a candidate.
    pub(crate) fn time_out(&mut self, id: NodeId) {
        let longest = self.config.timing.timeout_max * 2;
        let end = self.nodes[&id].clock + longest;
        while self.nodes[&id].clock < end {
            self.elapse(STEP, &[id]);
            let role = self.nodes[&id].replica.as_ref().map(|replica| replica.status().role);
            if role == Some(RoleName::Candidate) {
                return;
            }
        }
        panic!("node {id} never times out");
    }

    /// Lets time pass everywhere, with everything delivered and synced at once. Traces only what becomes of
    /// the group.
    pub(crate) fn run(&mut self, span: Duration) {
        self.brief = true;
        let mut passed = Duration::ZERO;
        while passed < span {
            passed += STEP;
            let before = self.trace.len();
            let ids = self.ids();
            self.elapse(STEP, &ids);
            self.settle();
            if self.trace.len() > before {
                let stamp = format!("after {} ms:\n", passed.as_millis());
                self.trace.insert_str(before, &stamp);
            }
        }
        self.brief = false;
    }

    pub(crate) fn propose(&mut self, id: NodeId, value: &str) {
        match self.step(id, Input::Propose(Bytes::copy_from_slice(value.as_bytes()))) {
            Some(index) => self.note(format!("    {value} is proposed at {index}")),
            None => self.note(format!("    {value} is not proposed")),
        }
    }

    pub(crate) fn read(&mut self, id: NodeId) {
        self.read_count += 1;
        let read = self.read_count;
        self.note(format!("read {read} at {id}"));
        self.step(id, Input::Read(read));
    }

    pub(crate) fn flush(&mut self, id: NodeId) {
        let node = self.node(id);
        node.flushed = node.applied;
        let flushed = node.flushed;
        self.step(id, Input::Flushed(flushed));
    }

    pub(crate) fn configure(&mut self, id: NodeId, configuration: &Configuration) {
        let proposed = self.step(id, Input::ProposeConfiguration(configuration.clone()));
        let place = proposed.map_or("not proposed".to_owned(), |index| format!("proposed at {index}"));
        self.note(format!("    {} is {place}", format::configuration(configuration)));
    }

    pub(crate) fn compact(&mut self, id: NodeId) {
        self.step(id, Input::Compact(Index::MAX));
    }

    /// One node goes on from the state of another, as a new start.
    pub(crate) fn take_over(&mut self, id: NodeId, from: NodeId) {
        let index = self.node(from).applied;
        let sender = self.node(from).replica.as_ref().expect("it runs");
        let (place, configuration) = sender.configuration_at(index).expect("it is known");
        let configuration = (place, configuration.clone());
        let node = self.node(id);
        let persist = node.replica.as_mut().expect("it runs").adopt_snapshot(index, configuration);
        let (token, written) = (persist.token, format::write(&persist));
        node.disk.write(persist);
        // What earlier writes were to say is never said.
        node.disk.sync(node.disk.queued_through(token));
        (node.applied, node.flushed) = (index, index);
        self.note(format!("    {id} takes over the state of {from} at {index}: writes {written}"));
        self.start(id);
    }

    pub(crate) fn pause(&mut self, id: NodeId, paused: bool) {
        self.node(id).paused = paused;
    }

    pub(crate) fn stall(&mut self, id: NodeId, stalled: bool) {
        self.node(id).stalled = stalled;
    }

    /// Cuts links; what is already under way on them is lost too.
    pub(crate) fn cut(&mut self, links: &[(NodeId, NodeId)]) {
        self.cut.extend(links);
        let cut = &self.cut;
        self.network.retain(|envelope| !cut.contains(&(envelope.from, envelope.to)));
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// What a node's disk holds for certain.
    pub(crate) fn durable_log(&mut self, id: NodeId) {
        let content = &self.nodes[&id].disk.durable;
        let entry = |(index, (ballot, value)): (&Index, &(keevee_paxos::Ballot, keevee_paxos::Value))| {
            format!(" {index}={}@{ballot}", format::value(value))
        };
        let entries: String = content.entries.iter().map(entry).collect();
        self.note(format!("{id} on disk: promised {}{entries}", content.hard_state.promised));
    }

    pub(crate) fn status(&mut self, id: NodeId) {
        let line = match &self.nodes[&id].replica {
            Some(replica) => format::status(&replica.status()),
            None => "down".to_owned(),
        };
        self.note(format!("{id}: {line}"));
    }
}
