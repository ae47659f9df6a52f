//! Shards over Multi-Paxos and storage in memory: batching, answers, bounds, restarts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use keevee_core::command::{
    Action, Command, Expect, OnError, Operation, OperationResult, Outcome, Precondition, Versioned,
};
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::requests::RequestId;
use keevee_core::slots::SlotSet;
use keevee_paxos::{Config, Message, QuorumSystem};
use keevee_replica::storage::{LogRecord, LogStore, MemoryLog, MemoryState, StateStore, StorageError};
use keevee_replica::{
    Bounds, ChainHash, Effects, Failure, Now, PaxosEngine, Refusal, Reply, Request, Role, Shard,
};

/// A log that the test and the engine both hold, as a server's writer thread would.
#[derive(Clone, Default)]
struct SharedLog(std::rc::Rc<std::cell::RefCell<MemoryLog>>);

impl LogStore for SharedLog {
    fn submit(&mut self, records: Vec<LogRecord>, token: u64) {
        self.0.borrow_mut().submit(records, token);
    }
    fn persisted(&mut self, token: u64) {
        self.0.borrow_mut().persisted(token);
    }
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, StorageError> {
        self.0.borrow().read(from, to, bytes_max)
    }
    fn hard_state(&self) -> Result<Option<Bytes>, StorageError> {
        self.0.borrow().hard_state()
    }
    fn last(&self) -> Result<u64, StorageError> {
        self.0.borrow().last()
    }
}

type Replica = Shard<PaxosEngine<SharedLog>, MemoryState>;

struct Node {
    shard: Replica,
    log: SharedLog,
}

/// Three nodes on a perfect network, with disks that sync when they are told to.
struct Cluster {
    nodes: BTreeMap<u64, Node>,
    network: VecDeque<(u64, u64, Message)>,
    hashes: VecDeque<(u64, u64, ChainHash)>,
    replies: BTreeMap<u64, Reply>,
    now: Duration,
    tickets: u64,
    bounds: Bounds,
    size: u64,
}

fn open(
    id: u64,
    size: u64,
    boot: u64,
    log: MemoryLog,
    state: MemoryState,
    bounds: Bounds,
    now: Duration,
) -> Node {
    let log = SharedLog(std::rc::Rc::new(std::cell::RefCell::new(log)));
    let config = Config::new(id, QuorumSystem::majority(1..=size), id + 100 * boot);
    let applied = state.meta().expect("memory does not fail").applied;
    let engine = PaxosEngine::open(config, log.clone(), applied, now).expect("a good log");
    let members: BTreeSet<NodeId> = (1..=size).map(NodeId).collect();
    let shard =
        Shard::new(ShardId(1), NodeId(id), members, boot, engine, state, bounds).expect("a good state");
    Node { shard, log }
}

impl Cluster {
    fn new(size: u64, bounds: Bounds) -> Cluster {
        let state = || MemoryState::new(SlotSet::all());
        let node = |id| (id, open(id, size, 1, MemoryLog::default(), state(), bounds, Duration::ZERO));
        Cluster {
            nodes: (1..=size).map(node).collect(),
            network: VecDeque::new(),
            hashes: VecDeque::new(),
            replies: BTreeMap::new(),
            now: Duration::ZERO,
            tickets: 0,
            bounds,
            size,
        }
    }

    fn led(size: u64, bounds: Bounds) -> (Cluster, u64) {
        let mut cluster = Cluster::new(size, bounds);
        let leader = cluster.wait_for_leader();
        (cluster, leader)
    }

    fn now(&self) -> Now {
        Now { monotonic: self.now, wall_micros: 1_700_000_000_000_000 + self.now.as_micros() as u64 }
    }

    fn advance(&mut self, id: u64) -> Result<(), Failure> {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Effects { send, hashes, replies } = node.shard.advance(now)?;
        self.network.extend(send.into_iter().map(|(to, message)| (id, to.0, message)));
        self.hashes.extend(hashes.into_iter().map(|(to, hash)| (id, to.0, hash)));
        for reply in replies {
            assert!(self.replies.insert(reply.ticket, reply.clone()).is_none(), "answered twice: {reply:?}");
        }
        Ok(())
    }

    fn sync(&mut self, id: u64) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let token = node.log.0.borrow_mut().sync();
        if let Some(token) = token {
            node.shard.engine().persisted(now, token);
        }
        self.advance(id).expect("it goes on");
    }

    /// Delivers everything and syncs every disk until nothing moves.
    fn settle(&mut self) {
        loop {
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            ids.iter().for_each(|id| self.sync(*id));
            if self.network.is_empty() && self.hashes.is_empty() {
                return;
            }
            for (from, to, message) in std::mem::take(&mut self.network) {
                if let Some(node) = self.nodes.get_mut(&to) {
                    node.shard.engine().message(self.now, NodeId(from), message);
                    self.advance(to).expect("it goes on");
                }
            }
            for (from, to, hash) in std::mem::take(&mut self.hashes) {
                if let Some(node) = self.nodes.get_mut(&to) {
                    node.shard.compare_hash(NodeId(from), hash).expect("equal hashes");
                }
            }
        }
    }

    fn elapse(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += Duration::from_millis(20);
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            for id in ids {
                let now = self.now;
                let shard = &mut self.nodes.get_mut(&id).expect("it exists").shard;
                shard.engine().tick(now);
                shard.expire(now);
                self.advance(id).expect("it goes on");
            }
            self.settle();
        }
    }

    fn wait_for_leader(&mut self) -> u64 {
        for _ in 0..500 {
            let leads = |node: &Node| node.shard.status().engine.role == Role::Leader;
            if let Some((id, _)) = self.nodes.iter().find(|(_, node)| leads(node)) {
                let id = *id;
                self.settle();
                return id;
            }
            self.elapse(Duration::from_millis(20));
        }
        panic!("no leader within ten seconds of virtual time");
    }

    /// Hands a command to a node without letting anything else happen.
    fn submit(&mut self, id: u64, command: Command) -> u64 {
        self.tickets += 1;
        let deadline = self.now + Duration::from_secs(5);
        let request = Request { ticket: self.tickets, command, deadline, stale: false };
        let now = self.now();
        self.nodes.get_mut(&id).expect("it exists").shard.submit(now, vec![request]).expect("it goes on");
        self.advance(id).expect("it goes on");
        self.tickets
    }

    fn run(&mut self, id: u64, command: Command) -> Result<Outcome, Refusal> {
        let ticket = self.submit(id, command);
        self.settle();
        self.elapse(Duration::from_millis(40));
        self.replies.remove(&ticket).expect("answered").result
    }

    /// Loses what was not synced or flushed, and starts again.
    fn restart(&mut self, id: u64, boot: u64) {
        let node = self.nodes.remove(&id).expect("it exists");
        self.network.retain(|(from, to, _)| *from != id && *to != id);
        let log = node.log.0.borrow().crashed();
        let mut shard = node.shard;
        let state = shard.state().crashed();
        self.nodes.insert(id, open(id, self.size, boot, log, state, self.bounds, self.now));
    }
}

fn put(key: &str, value: &str) -> Command {
    Command::single(Action::Put { key: key.to_owned().into(), value: value.to_owned().into() })
}

fn get(key: &str) -> Command {
    Command::single(Action::Get { key: key.to_owned().into() })
}

fn written(version: u64) -> Result<Outcome, Refusal> {
    Ok(Outcome::Done(vec![OperationResult::Written { version }]))
}

fn value_of(result: Result<Outcome, Refusal>) -> Option<Bytes> {
    match result {
        Ok(Outcome::Done(results)) => match &results[..] {
            [OperationResult::Value(value)] => value.clone().map(|Versioned { value, .. }| value),
            other => panic!("not a value: {other:?}"),
        },
        other => panic!("not done: {other:?}"),
    }
}

#[test]
fn a_write_is_read_from_every_node() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    assert_eq!(cluster.run(leader, put("a", "1")), written(1));
    for node in 1..=3 {
        assert_eq!(value_of(cluster.run(node, get("a"))), Some(Bytes::from("1")), "node {node}");
    }
}

#[test]
fn a_single_node_is_a_cluster() {
    let (mut cluster, leader) = Cluster::led(1, Bounds::default());
    assert_eq!(cluster.run(leader, put("a", "1")), written(1));
    assert_eq!(value_of(cluster.run(leader, get("a"))), Some(Bytes::from("1")));
}

#[test]
fn a_follower_names_the_leader() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    let follower = (1..=3).find(|id| *id != leader).expect("two others");
    let refusal = Err(Refusal::NotLeader(Some(NodeId(leader))));
    assert_eq!(cluster.run(follower, put("a", "1")), refusal);
}

#[test]
fn commands_that_wait_for_a_sync_share_the_next_entry() {
    let bounds = Bounds { unsynced_entries_max: 1, ..Bounds::default() };
    let (mut cluster, leader) = Cluster::led(3, bounds);
    let before = cluster.nodes[&leader].shard.status().engine.last;
    let tickets: Vec<u64> = (0..100).map(|i| cluster.submit(leader, put("k", &i.to_string()))).collect();
    cluster.settle();
    let entries = cluster.nodes[&leader].shard.status().engine.last - before;
    assert_eq!(entries, 2, "the first alone, the other 99 together");
    let versions: Vec<_> = tickets.iter().map(|ticket| cluster.replies[ticket].result.clone()).collect();
    assert_eq!(versions, (1..=100).map(written).collect::<Vec<_>>());
}

#[test]
fn nothing_is_acknowledged_before_a_majority_has_synced() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    let ticket = cluster.submit(leader, put("a", "1"));
    // The leader's own disk is not enough.
    cluster.sync(leader);
    assert!(!cluster.replies.contains_key(&ticket));
    // A follower that has it in memory does not count either.
    let (leaders, followers): (Vec<_>, Vec<_>) =
        std::mem::take(&mut cluster.network).into_iter().partition(|(_, to, _)| *to == leader);
    assert!(leaders.is_empty());
    for (from, to, message) in followers {
        cluster.nodes.get_mut(&to).expect("it exists").shard.engine().message(
            cluster.now,
            NodeId(from),
            message,
        );
        cluster.advance(to).expect("it goes on");
    }
    assert!(!cluster.network.iter().any(|(_, _, message)| matches!(message, Message::Accepted { .. })));
    cluster.settle();
    assert_eq!(cluster.replies[&ticket].result, written(1));
}

#[test]
fn past_its_bounds_a_shard_refuses_at_once() {
    let bounds = Bounds { waiting_commands_max: 3, unsynced_entries_max: 1, ..Bounds::default() };
    let (mut cluster, leader) = Cluster::led(3, bounds);
    let tickets: Vec<u64> = (0..6).map(|_| cluster.submit(leader, put("a", "1"))).collect();
    let refused = |ticket: &&u64| {
        let reply = cluster.replies.get(ticket);
        reply.is_some_and(|reply| matches!(reply.result, Err(Refusal::Unavailable(_))))
    };
    // One is on its way to the disk, three wait.
    assert_eq!(tickets.iter().filter(refused).count(), 2);
}

#[test]
fn a_write_that_is_proposed_and_not_chosen_is_unknown() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    cluster.nodes.retain(|id, _| *id == leader);
    let ticket = cluster.submit(leader, put("a", "1"));
    cluster.elapse(Duration::from_secs(6));
    assert!(matches!(cluster.replies[&ticket].result, Err(Refusal::OutcomeUnknown(_))));
}

#[test]
fn a_read_without_a_quorum_is_refused_in_time() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    cluster.nodes.retain(|id, _| *id == leader);
    let ticket = cluster.submit(leader, get("a"));
    cluster.elapse(Duration::from_secs(6));
    assert!(matches!(cluster.replies[&ticket].result, Err(Refusal::Unavailable(_))));
}

#[test]
fn everything_acknowledged_survives_a_crash_of_all_nodes() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    for i in 0..200 {
        cluster.run(leader, put(&format!("k{i}"), &i.to_string())).expect("written");
    }
    // Half of it is flushed on one node, nothing on the others: the logs bring the rest.
    cluster.nodes.get_mut(&1).expect("it exists").shard.state().flush();
    (1..=3).for_each(|id| cluster.restart(id, 2));
    let leader = cluster.wait_for_leader();
    for i in 0..200 {
        let value = value_of(cluster.run(leader, get(&format!("k{i}"))));
        assert_eq!(value, Some(Bytes::from(i.to_string())));
    }
    let chains: BTreeSet<u128> = cluster.nodes.values().map(|node| node.shard.status().chain).collect();
    assert_eq!(chains.len(), 1, "all replicas hold the same");
}

#[test]
fn a_retry_after_a_failover_takes_effect_once() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    let increment = Command {
        request_id: Some(RequestId::from_idempotency_key(b"once")),
        ..Command::single(Action::Increment { key: "n".into(), by: 1 })
    };
    let first = cluster.run(leader, increment.clone());
    assert_eq!(first, Ok(Outcome::Done(vec![OperationResult::Incremented { value: 1, version: 1 }])));
    cluster.nodes.remove(&leader);
    let next = cluster.wait_for_leader();
    assert_ne!(next, leader);
    assert_eq!(cluster.run(next, increment), first);
    assert_eq!(value_of(cluster.run(next, get("n"))), Some(Bytes::from("1")));
}

#[test]
fn a_failed_precondition_changes_nothing() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let conditional = Command {
        preconditions: vec![Precondition { key: "a".into(), expect: Expect::Absent }],
        operations: vec![Operation {
            action: Action::Put { key: "a".into(), value: "2".into() },
            on_error: OnError::Abort,
        }],
        ..put("a", "2")
    };
    let conflict = Ok(Outcome::Conflict { precondition: 0, version: Some(1) });
    assert_eq!(cluster.run(leader, conditional), conflict);
    assert_eq!(value_of(cluster.run(leader, get("a"))), Some(Bytes::from("1")));
}

#[test]
fn a_deposed_leader_answers_its_proposals_truly() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    // Proposed, but nobody else hears of it.
    let lost = cluster.submit(leader, put("a", "lost"));
    cluster.network.clear();
    let old = cluster.nodes.remove(&leader).expect("it exists");
    let next = cluster.wait_for_leader();
    cluster.run(next, put("a", "kept")).expect("written");
    cluster.nodes.insert(leader, old);
    cluster.elapse(Duration::from_secs(2));
    let reply = cluster.replies.get(&lost).expect("answered");
    assert!(matches!(reply.result, Err(Refusal::Unavailable(_))), "{reply:?}");
    for node in 1..=3 {
        assert_eq!(value_of(cluster.run(node, get("a"))), Some(Bytes::from("kept")), "node {node}");
    }
}

#[test]
fn a_replica_that_differs_from_a_majority_stops() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    for _ in 0..70 {
        cluster.run(leader, put("a", "1")).expect("written");
    }
    let shard = &mut cluster.nodes.get_mut(&leader).expect("it exists").shard;
    let wrong = ChainHash { index: 64, chain: 1 };
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).map(NodeId).collect();
    shard.compare_hash(others[0], wrong).expect("one against two is wrong itself");
    assert_eq!(shard.compare_hash(others[1], wrong), Err(Failure::Diverged { index: 64 }));
}

#[test]
fn leadership_is_handed_over_without_an_election_timeout() {
    let (mut cluster, leader) = Cluster::led(3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let now = cluster.now;
    use keevee_replica::Engine;
    cluster.nodes.get_mut(&leader).expect("it exists").shard.engine().transfer_leadership(now);
    cluster.advance(leader).expect("it goes on");
    cluster.settle();
    let leaders: Vec<u64> = cluster
        .nodes
        .iter()
        .filter(|(_, node)| node.shard.status().engine.role == Role::Leader)
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(leaders.len(), 1);
    assert_ne!(leaders[0], leader);
    assert_eq!(cluster.now, now);
}
