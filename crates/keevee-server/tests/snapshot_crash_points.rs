//! Crash points of a replica that leaves its shard, comes back, and takes over a snapshot: as in `crash_points.rs`, what it
//! writes in its folder is cut off at one place after the other, and the next life starts from what is left.
//!
//! Two real replicas of one shard, with logs and states on RocksDB, say everything to each other within one process. The first
//! one's folder is beside the armed one: a killed process costs it nothing. The second one leaves, misses more than the log of
//! the first one holds, is wanted again, and acknowledges with the first one what follows; again and again, until it is cut off.
//!
//! It leaves out the server around a replica, which `crash_points.rs` cuts.
#![cfg(target_os = "linux")]

mod lives;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keevee_core::apply::StateView;
use keevee_core::command::{Action, Command, OnError, Operation};
use keevee_core::ids::{Incarnation, Namespace, NodeId, ShardId};
use keevee_core::shard_map::change::{Placement, ShardSpec};
use keevee_core::shard_map::{Consensus, NodeInfo, ShardMap};
use keevee_core::slots::SlotSet;
use keevee_paxos::QuorumSystem;
use keevee_raft::RaftEngine;
use keevee_replica::storage::{LogStore, StateStore, StorageError};
use keevee_replica::{
    Bounds, Effects, Engine, Members, Now, PaxosEngine, ReplicaMessage, Request, Role, Shard,
};
use keevee_server::storage::{
    DataFolder, LogEvent, LogWriter, LogWriterHandle, OpenFolder, RocksLog, RocksState, ValueCache,
    flush_states,
};
use tempfile::TempDir;
use uuid::Uuid;

const SHARD: ShardId = ShardId(1);
/// Besides the one that counts writes.
const KEYS: u64 = 40;
const COUNT: &str = "count";
/// While the second replica is gone: more than the log holds.
const MISSED: u64 = 60;
const LOG_BYTES_MAX: u64 = 4_000;
/// Which both acknowledge.
const SHARED: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// One life of the two.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
struct Life {
    /// Armed; the second replica's folder is in it.
    folder: PathBuf,
    /// The first one's.
    beside: PathBuf,
    number: u64,
    raft: bool,
    cut_at: Option<u64>,
    unsynced: u8,
    /// What both have acknowledged: the number of the last write, and a ballot.
    acknowledged: (u64, u64),
    /// After so many times that the second one has come back it ends.
    rounds: usize,
}

#[test]
#[ignore = "run by the others, in a process of its own"]
fn a_replica_that_is_cut_off() {
    let Some(life) = lives::told::<Life>() else { return };
    lives::arm(life.folder.clone(), life.cut_at, life.unsynced, life.number, false);
    if life.raft {
        Pair::<RaftEngine<RocksLog>>::live(&life)
    } else {
        Pair::<PaxosEngine<RocksLog>>::live(&life)
    }
    println!("points {}", keevee_faults::points());
}

/// An engine on RocksDB. The second replica joins, so that it is told of nobody.
trait OnDisk: Engine + Sized {
    fn open_on(id: u64, seed: u64, log: RocksLog, applied: u64, now: Duration) -> Result<Self, StorageError>;
}

const TIMING: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(30), Duration::from_millis(60)];

impl OnDisk for PaxosEngine<RocksLog> {
    fn open_on(id: u64, seed: u64, log: RocksLog, applied: u64, now: Duration) -> Result<Self, StorageError> {
        let quorum = QuorumSystem::majority((id == 1).then_some(1));
        let mut config = keevee_paxos::Config::new(id, quorum, seed);
        let [heartbeat, timeout_min, timeout_max] = TIMING;
        config.timing = keevee_paxos::Timing { heartbeat, timeout_min, timeout_max };
        PaxosEngine::open(config, log, applied, now)
    }
}

impl OnDisk for RaftEngine<RocksLog> {
    fn open_on(id: u64, seed: u64, log: RocksLog, applied: u64, now: Duration) -> Result<Self, StorageError> {
        let mut config = keevee_raft::Config::new(id, (id == 1).then_some(1).into_iter().collect(), seed);
        let [heartbeat, timeout_min, timeout_max] = TIMING;
        config.timing = keevee_raft::Timing { heartbeat, timeout_min, timeout_max };
        RaftEngine::open(config, log, applied, now)
    }
}

/// A node with its one replica.
struct Node<E: Engine> {
    id: u64,
    folder: OpenFolder,
    values: Arc<ValueCache>,
    writer: LogWriter,
    handle: LogWriterHandle,
    /// Taken while it is opened anew.
    replica: Option<Shard<E, RocksState>>,
    /// It takes part no longer.
    is_parked: bool,
}

impl<E: OnDisk> Node<E> {
    fn start(id: u64, path: &Path, events: Sender<(u64, LogEvent)>) -> Node<E> {
        let (folder, journal) = DataFolder::open(path).unwrap();
        let on_event = move |event| {
            let _ = events.send((id, event));
        };
        let (writer, handle) = LogWriter::start(journal, on_event).unwrap();
        let values = Arc::new(ValueCache::new(1 << 20));
        Node { id, folder, values, writer, handle, replica: None, is_parked: false }
    }

    fn log(&self) -> RocksLog {
        RocksLog::open(SHARD, self.folder.log.clone(), self.handle.clone()).unwrap()
    }

    fn enter(&self, incarnation: Incarnation) -> RocksState {
        let (data, values) = (self.folder.data.clone(), self.values.clone());
        RocksState::enter(SHARD, incarnation, data, values, SlotSet::all()).unwrap()
    }

    /// Opens the replica, as a start does.
    fn open(&mut self, boot: u64, now: Duration) {
        let log = self.log();
        let state = self.enter(log.incarnation().unwrap());
        let applied = state.meta().unwrap().applied;
        log.check_fits(applied).unwrap();
        let engine = E::open_on(self.id, boot, log, applied, now).unwrap();
        let bounds =
            Bounds { log_bytes_max: LOG_BYTES_MAX, snapshot_chunk_bytes: 1_000, ..Bounds::default() };
        self.replica = Some(Shard::new(SHARD, NodeId(self.id), boot, engine, state, bounds).unwrap());
    }

    fn replica(&mut self) -> &mut Shard<E, RocksState> {
        self.replica.as_mut().expect("it is open")
    }

    /// What must hold of a folder as a life leaves it: the state is that of one time, no other is left, and what was acknowledged
    /// is in it or in the log behind it.
    fn check(&self, acknowledged: u64) {
        let log = self.log();
        let Incarnation(incarnation) = log.incarnation().unwrap();
        let state = self.enter(Incarnation(incarnation));
        let count = check_whole(&state);
        for other in [incarnation.checked_sub(1), Some(incarnation + 1)].into_iter().flatten() {
            let (data, values) = (self.folder.data.clone(), Arc::new(ValueCache::new(0)));
            let other = RocksState::open(SHARD, Incarnation(other), data, values, SlotSet::all()).unwrap();
            assert_eq!((other.meta().unwrap().applied, count_of(&other)), (0, 0), "a state is left over");
        }
        let applied = state.meta().unwrap().applied;
        let entries = log.read(applied + 1, log.last().unwrap(), usize::MAX).unwrap();
        for number in count + 1..=acknowledged {
            let value = value_of(number);
            let has = |entry: &[u8]| entry.windows(value.len()).any(|window| window == value.as_bytes());
            assert!(
                entries.iter().any(|(_, entry)| has(entry)),
                "write {number} was acknowledged, {count} applied"
            );
        }
    }
}

fn key_of(number: u64) -> String {
    format!("key-{}", number % KEYS)
}

fn value_of(number: u64) -> String {
    format!("write-{number:06}-{}", "x".repeat(100))
}

fn put(key: &str, value: String) -> Operation {
    Operation { action: Action::put(key.to_owned(), value), on_error: OnError::Abort }
}

fn get<S: StateView<Error = StorageError>>(state: &S, key: &str) -> Option<String> {
    let found = state.get(Namespace::DEFAULT, key.as_bytes()).unwrap();
    found.map(|found| String::from_utf8(found.value.to_vec()).unwrap())
}

fn count_of(state: &RocksState) -> u64 {
    get(state, COUNT).map_or(0, |count| count.parse().unwrap())
}

/// Every key has the value of its last write up to the one that is counted, which is returned.
fn check_whole(state: &RocksState) -> u64 {
    let count = count_of(state);
    for key in 0..KEYS {
        let last = (1..=count).rev().take(KEYS as usize).find(|number| number % KEYS == key);
        assert_eq!(get(state, &format!("key-{key}")), last.map(value_of), "key {key} of {count}");
    }
    count
}

/// The two, and what is on the way between them.
struct Pair<E: Engine> {
    nodes: BTreeMap<u64, Node<E>>,
    events: Receiver<(u64, LogEvent)>,
    network: VecDeque<(u64, u64, ReplicaMessage<E::Message>)>,
    origin: Instant,
    /// Numbers starts, also of other lives.
    boot: u64,
    tickets: u64,
    done: BTreeMap<u64, bool>,
    /// The last write that was sent.
    count: u64,
}

impl<E: OnDisk> Pair<E> {
    fn live(life: &Life) {
        let (sender, events) = mpsc::channel();
        let paths = [(1, life.beside.clone()), (2, life.folder.join("node"))];
        let nodes = paths.map(|(id, path)| (id, Node::<E>::start(id, &path, sender.clone()))).into();
        let mut pair = Pair {
            nodes,
            events,
            network: VecDeque::new(),
            origin: Instant::now(),
            boot: life.number << 20,
            tickets: 0,
            done: BTreeMap::new(),
            count: 0,
        };
        let (acknowledged, ballot) = life.acknowledged;
        pair.nodes[&2].check(acknowledged);
        (1..=2).for_each(|id| pair.open(id));
        // openraft knows its vote once it has run.
        pair.advance(2);
        let promised = round(&pair.node(2).replica().status().engine.ballot);
        assert!(promised >= ballot, "ballot {ballot} was promised, and is {promised}");
        println!("verified");
        for _ in 0..life.rounds {
            pair.leave_and_come_back();
        }
        pair.stop();
    }

    fn leave_and_come_back(&mut self) {
        self.want([1]);
        self.node(2).replica().retire();
        self.node(2).is_parked = true;
        println!("phase parked");
        // Behind whatever earlier lives have left to be chosen.
        self.put(vec![put("begin", String::new())]);
        self.count = count_of(self.node(1).replica().state());
        self.write(MISSED);
        let data = self.node(1).folder.data.clone();
        let end = self.node(2).replica().status().engine.last;
        self.until("the log to be dropped", |pair| {
            flush_states(&data).unwrap();
            pair.node(1).replica().status().engine.first > end + 1
        });
        self.node(2).is_parked = false;
        println!("phase wanted");
        self.want([1, 2]);
        println!("phase member");
        self.write(SHARED);
        self.until("both to have the same", |pair| {
            let [one, other] = [1, 2].map(|id| pair.node(id).replica().status());
            one.applied == other.applied && one.chain == other.chain
        });
        // Whoever leads has both their promises.
        let ballot =
            self.leader().map_or(0, |leader| round(&self.node(leader).replica().status().engine.ballot));
        println!("acknowledged {} {ballot}", self.count);
        assert_eq!(check_whole(self.node(2).replica().state()), self.count);
        self.node(2).replica().state().flush().unwrap();
    }

    fn node(&mut self, id: u64) -> &mut Node<E> {
        self.nodes.get_mut(&id).expect("there are two")
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn open(&mut self, id: u64) {
        self.boot += 1;
        let (boot, now) = (self.boot, self.now());
        self.node(id).open(boot, now);
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Pair<E>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            self.step();
        }
    }

    /// The one that leads.
    fn leader(&mut self) -> Option<u64> {
        let leads = |node: &&Node<E>| {
            let role = node.replica.as_ref().map(|replica| replica.status().engine.role);
            !node.is_parked && role == Some(Role::Leader)
        };
        self.nodes.values().find(leads).map(|node| node.id)
    }

    /// Has whoever leads bring these about, until all of it is known.
    fn want<const N: usize>(&mut self, voters: [u64; N]) {
        let wanted: BTreeSet<NodeId> = voters.map(NodeId).into();
        let members = Members::of_voters(wanted.iter().copied());
        self.until("the members", |pair| {
            let (leader, now) = (pair.leader(), pair.now());
            let Some(leader) = leader else { return false };
            let replica = pair.node(leader).replica();
            let status = replica.status().engine;
            replica.want_voters(now, &status.ballot, wanted.clone());
            status.members == members && status.are_members_known && wanted.contains(&NodeId(leader))
        });
    }

    /// So many writes, one after the other.
    fn write(&mut self, writes: u64) {
        for _ in 0..writes {
            self.count += 1;
            let number = self.count;
            self.put(vec![put(&key_of(number), value_of(number)), put(COUNT, number.to_string())]);
        }
    }

    /// Until it is known that all of it is written: what may have been is written again.
    fn put(&mut self, operations: Vec<Operation>) {
        let mut ticket = None;
        self.until("a write", |pair| {
            let is_done = ticket.map(|ticket| pair.done.get(&ticket).copied());
            if matches!(is_done, None | Some(Some(false))) {
                ticket = pair.submit(operations.clone());
            }
            is_done == Some(Some(true))
        });
    }

    fn submit(&mut self, operations: Vec<Operation>) -> Option<u64> {
        let leader = self.leader()?;
        self.tickets += 1;
        let (ticket, now) = (self.tickets, self.wall());
        let command = Command { operations, ..Command::single(Action::put("", "")) };
        let request = Request { ticket, command, deadline: now.monotonic + PATIENCE, stale: false };
        self.node(leader).replica().submit(now, [request]).unwrap();
        Some(ticket)
    }

    fn wall(&self) -> Now {
        let monotonic = self.now();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Now { monotonic, wall_micros: wall.as_micros() as u64 }
    }

    /// Lets both go on until there is nothing to do, and waits a moment for their disks.
    fn step(&mut self) {
        let first = self.events.recv_timeout(Duration::from_millis(1)).ok();
        let events: Vec<_> = first.into_iter().chain(self.events.try_iter()).collect();
        let now = self.now();
        for (id, event) in events {
            match event {
                LogEvent::Persisted { token, .. } => self.node(id).replica().persisted(now, token),
                LogEvent::Synced { .. } | LogEvent::WritesOutSoon => {}
                LogEvent::Failed { error } => panic!("{error}"),
            }
        }
        for id in [1, 2] {
            self.keep_house(id);
            self.advance(id);
        }
        while let Some((from, to, message)) = self.network.pop_front() {
            if self.nodes[&to].is_parked {
                continue;
            }
            let is_plausible = self.node(to).replica().receive(now, NodeId(from), message);
            assert_eq!(is_plausible, Ok(true));
            self.advance(to);
        }
    }

    fn keep_house(&mut self, id: u64) {
        let now = self.now();
        let node = self.node(id);
        if node.is_parked {
            return;
        }
        let replica = node.replica();
        replica.tick(now).unwrap();
        replica.expire(now);
        replica.note_flushed(now).unwrap();
        assert_eq!(replica.take_snapshot_failure(), None);
        if replica.needs_snapshot(now) {
            replica.fetch_snapshot(now).unwrap();
            println!("phase receiving");
        }
    }

    fn advance(&mut self, id: u64) {
        let now = self.wall();
        loop {
            let effects = self.node(id).replica().advance(now).unwrap();
            let Effects { send, replies, has_more, is_replaced } = effects;
            self.network.extend(send.into_iter().map(|(to, message)| (id, to.0, message)));
            self.done.extend(replies.into_iter().map(|reply| (reply.ticket, reply.result.is_ok())));
            if is_replaced {
                // Before the new one looks at what it wrote.
                self.node(id).replica = None;
                println!("phase taken-over");
                self.open(id);
                check_whole(self.node(id).replica().state());
            } else if !has_more {
                return;
            }
        }
    }

    fn stop(self) {
        for Node { handle, replica, writer, .. } in self.nodes.into_values() {
            drop((handle, replica));
            assert!(writer.join());
        }
    }
}

/// The number by which ballots are ordered.
fn round(ballot: &str) -> u64 {
    ballot.split('.').next().and_then(|round| round.parse().ok()).unwrap_or(0)
}

/// A folder of a cluster's first node, or of one that joins.
fn format(path: &Path, id: u64) {
    let cluster = Uuid::from_u128(1);
    let identity = DataFolder::format(path, cluster, NodeId(id)).unwrap();
    let (id, store) = (identity.node_id, identity.store_id);
    let node = NodeInfo { id, store, peer: "p".into(), http: "h".into(), resp: None };
    let placement = Placement::Spread { replicas: 1 };
    let spec = ShardSpec { name: None, load_factor: 1, consensus: Consensus::Paxos, placement };
    let map = ShardMap::bootstrap(vec![node], Consensus::Paxos, &[spec]).unwrap();
    DataFolder::set_first_members(path, &[(id, store)], &map).unwrap();
}

/// What one life after the other came to.
struct Lives {
    temp: TempDir,
    next: Life,
    /// Where lives were cut, by what they had last said.
    cuts: BTreeMap<String, usize>,
}

impl Lives {
    fn new(raft: bool) -> Lives {
        let temp = TempDir::new().unwrap();
        let (folder, beside) = (temp.path().join("armed"), temp.path().join("beside"));
        fs::create_dir(&folder).unwrap();
        format(&beside, 1);
        format(&folder.join("node"), 2);
        let next = Life {
            folder,
            beside,
            number: 1,
            raft,
            cut_at: None,
            unsynced: 0,
            acknowledged: (0, 0),
            rounds: usize::MAX,
        };
        Lives { temp, next, cuts: BTreeMap::new() }
    }

    /// Lives once. False if it came to its end.
    fn live(&mut self) -> bool {
        let log = self.temp.path().join("output");
        let (mut phase, mut said) = ("start".to_owned(), Vec::new());
        let (life, acknowledged) = (self.next.clone(), &mut self.next.acknowledged);
        let status = lives::run("a_replica_that_is_cut_off", &life, &log, |line| {
            if let Some((_, name)) = line.split_once("phase ") {
                phase = name.to_owned();
            } else if let Some((_, told)) = line.split_once("acknowledged ") {
                let (number, ballot) = told.split_once(' ').unwrap();
                *acknowledged = (number.parse().unwrap(), acknowledged.1.max(ballot.parse().unwrap()));
            } else if line.ends_with("verified") {
                phase = "leaving".to_owned();
            }
            said.push(line);
        });
        self.next.number += 1;
        let is_cut = lives::is_cut(status);
        if !is_cut && !status.success() {
            panic!("{:?}\n{status:?}\n{said:#?}\n{}", self.next, fs::read_to_string(log).unwrap());
        }
        if is_cut {
            *self.cuts.entry(phase).or_default() += 1;
        }
        is_cut
    }
}

/// Cut at each of so many points, in turn, on one folder; then it comes back once more.
fn cut_at_each(raft: bool, points: u64) {
    let mut lives = Lives::new(raft);
    for point in 1..=points {
        (lives.next.cut_at, lives.next.unsynced) = (Some(point), (point % 3) as u8);
        assert!(lives.live(), "a life ended before point {point}");
    }
    (lives.next.cut_at, lives.next.rounds) = (None, 1);
    assert!(!lives.live());
    println!("{points} cuts: {:?}, {} writes", lives.cuts, lives.next.acknowledged.0);
    for phase in ["start", "receiving", "taken-over"] {
        let cuts = lives.cuts.get(phase).copied().unwrap_or(0);
        assert!(cuts >= 10, "{cuts} cuts in phase {phase}");
    }
}

#[test]
fn paxos_holds_the_old_or_the_new_state() {
    cut_at_each(false, 200);
}

#[test]
fn raft_holds_the_old_or_the_new_state() {
    cut_at_each(true, 200);
}
