//! Changes of members, step by step, on a perfect network.

use std::collections::VecDeque;

use keevee_replica::storage::MemoryLog;

use super::*;
use crate::message::Vote;

const NOBODY: [u64; 0] = [];
const TICK: Duration = Duration::from_millis(20);

struct Node {
    engine: RaftEngine<MemoryLog>,
    applied: u64,
    /// Those in force, as it told them.
    members: Members,
    needs_snapshot: Option<NodeId>,
}

#[derive(Default)]
struct Cluster {
    nodes: BTreeMap<u64, Node>,
    network: VecDeque<(u64, u64, RaftMessage)>,
    /// What these send and what is sent to them is lost.
    cut: BTreeSet<u64>,
    /// All that was sent, to whom.
    sent: Vec<(u64, RaftMessage)>,
    now: Duration,
    starts: u64,
}

fn nodes(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn voters(of: &[u64]) -> Members {
    Members::of_voters(nodes(of))
}

fn with_learners(of: &[u64], learners: &[u64]) -> Members {
    Members { learners: nodes(learners), ..voters(of) }
}

fn joint(old: &[u64], next: &[u64]) -> Members {
    Members { next: Some(nodes(next)), ..voters(old) }
}

impl Cluster {
    fn of(ids: &[u64]) -> Cluster {
        let mut cluster = Cluster::default();
        for id in ids {
            cluster.start(*id, ids, MemoryLog::default(), 0);
        }
        cluster
    }

    fn start(&mut self, id: u64, first: &[u64], log: MemoryLog, applied: u64) {
        self.starts += 1;
        let config = Config::new(id, first.iter().copied().collect(), id + 100 * self.starts);
        let engine = RaftEngine::open(config, log, applied, self.now).expect("a good log");
        let members = engine.status().members;
        self.nodes.insert(id, Node { engine, applied, members, needs_snapshot: None });
    }

    /// Loses what is not on disk, and starts again: with what was applied before, or without any of it.
    fn restart(&mut self, id: u64, first: &[u64], applied: u64) {
        let node = self.nodes.remove(&id).expect("it exists");
        let log = node.engine.log.with_store(|store| store.crashed());
        self.start(id, first, log, applied);
    }

    fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("it exists")
    }

    fn step(&mut self, id: u64) {
        let (now, node) = (self.now, self.nodes.get_mut(&id).expect("it exists"));
        if let Some(token) = node.engine.log.with_store(MemoryLog::sync) {
            node.engine.persisted(now, token);
        }
        let events = node.engine.take_events();
        assert_eq!(events.failed, None);
        if let Some((index, _)) = events.chosen.last() {
            node.applied = *index;
            node.engine.applied(now, *index);
        }
        node.members = events.members.unwrap_or(std::mem::take(&mut node.members));
        assert_eq!(node.members, node.engine.status().members, "node {id} tells what it shows");
        node.needs_snapshot = events.needs_snapshot.or(node.needs_snapshot);
        for (to, message) in events.send {
            self.sent.push((to.0, message.clone()));
            self.network.push_back((id, to.0, message));
        }
    }

    fn settle(&mut self) {
        loop {
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            ids.iter().for_each(|id| self.step(*id));
            let is_dirty = |node: &Node| node.engine.log.with_store(|store| store.waiting() > 0);
            if self.network.is_empty() && !self.nodes.values().any(is_dirty) {
                return;
            }
            for (from, to, message) in mem::take(&mut self.network) {
                let is_lost = self.cut.contains(&from) || self.cut.contains(&to);
                if let Some(node) = self.nodes.get_mut(&to).filter(|_| !is_lost) {
                    assert!(
                        node.engine.message(self.now, NodeId(from), message),
                        "replicas here are correct"
                    );
                }
            }
        }
    }

    fn elapse(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += TICK;
            let now = self.now;
            for node in self.nodes.values_mut() {
                node.engine.tick(now);
            }
            self.settle();
        }
    }

    fn leader(&self) -> Option<u64> {
        let leads = |node: &Node| node.engine.status().role == Role::Leader;
        self.nodes.iter().find(|(id, node)| leads(node) && !self.cut.contains(id)).map(|(id, _)| *id)
    }

    fn wait_for_leader(&mut self) -> u64 {
        for _ in 0..300 {
            if let Some(leader) = self.leader() {
                return leader;
            }
            self.elapse(TICK);
        }
        panic!("no leader within six seconds");
    }

    fn term(&self, id: u64) -> u64 {
        self.nodes[&id].engine.log.vote().map_or(0, |vote| vote.term)
    }

    /// Whoever leads asks for these again and again, until they are in force there.
    fn change(&mut self, members: &Members) {
        for _ in 0..300 {
            let (leader, now) = (self.wait_for_leader(), self.now);
            if self.nodes[&leader].members == *members {
                return self.elapse(Duration::from_millis(200));
            }
            self.node(leader).engine.propose_members(now, members.clone());
            self.elapse(TICK);
        }
        panic!("not in force within six seconds: {members:?}");
    }

    fn write(&mut self) -> u64 {
        let (leader, now) = (self.wait_for_leader(), self.now);
        let index = self.node(leader).engine.propose(now, Bytes::from_static(b"data")).expect("it leads");
        self.elapse(Duration::from_millis(200));
        index
    }

    fn flush(&mut self) {
        let now = self.now;
        self.nodes.values_mut().for_each(|node| node.engine.flushed(now, node.applied));
        self.settle();
    }
}

#[test]
fn a_replica_joins_as_a_learner_and_votes_in_the_end() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let last = cluster.write();
    cluster.start(4, &NOBODY, MemoryLog::default(), 0);
    cluster.elapse(Duration::from_secs(3));
    assert_eq!((cluster.term(4), &cluster.nodes[&4].members), (0, &Members::default()), "it waits");
    let (now, vote) = (cluster.now, Vote { term: 9, node: 1, committed: false });
    let ask = RaftMessage::RequestVote { call: 1, poll: false, vote, last: None, transfer: false };
    assert!(cluster.node(4).engine.message(now, NodeId(1), ask));
    cluster.settle();
    assert_eq!(cluster.term(4), 0, "it votes for nobody");

    cluster.change(&with_learners(&[1, 2, 3], &[4]));
    assert!(cluster.nodes[&4].applied > last, "it got all");
    let leader = cluster.leader().expect("one leads");
    let acknowledged = cluster.nodes[&leader].engine.status().acknowledged;
    assert!(acknowledged.iter().any(|(node, index)| node.0 == 4 && *index > last), "{acknowledged:?}");
    // A learner is handed nothing, and stands for nothing if it is told to.
    let now = cluster.now;
    cluster.node(leader).engine.transfer_leadership(now, Some(NodeId(4)));
    let vote = cluster.nodes[&leader].engine.log.vote().expect("it voted");
    let transfer = RaftMessage::TransferLeader { vote, to: 4, last: None };
    assert!(cluster.node(4).engine.message(now, NodeId(leader), transfer));
    cluster.elapse(Duration::from_secs(2));
    assert_eq!(cluster.leader(), Some(leader));

    cluster.change(&joint(&[1, 2, 3], &[1, 2, 3, 4]));
    cluster.change(&voters(&[1, 2, 3, 4]));
    for id in 1..=4 {
        assert_eq!(cluster.nodes[&id].members, voters(&[1, 2, 3, 4]), "node {id}");
        let (first, applied) = (if id == 4 { &NOBODY[..] } else { &[1, 2, 3] }, cluster.nodes[&id].applied);
        cluster.restart(id, first, applied);
        assert_eq!(cluster.nodes[&id].members, voters(&[1, 2, 3, 4]), "node {id}, after a start");
    }
    // Two of four are no majority, three are.
    cluster.cut = [1, 2].into();
    cluster.elapse(Duration::from_secs(5));
    assert_eq!(cluster.leader(), None);
    cluster.cut = [1].into();
    cluster.write();
}

#[test]
fn a_change_that_is_half_done_is_finished_after_a_crash_of_all() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.wait_for_leader();
    cluster.start(4, &NOBODY, MemoryLog::default(), 0);
    cluster.change(&with_learners(&[1, 2, 3], &[4]));
    cluster.change(&joint(&[1, 2, 3], &[2, 3, 4]));
    for id in 1..=4 {
        cluster.restart(id, if id == 4 { &NOBODY } else { &[1, 2, 3] }, 0);
    }
    cluster.change(&voters(&[2, 3, 4]));
    cluster.nodes.remove(&1);
    cluster.write();
}

#[test]
fn a_configuration_that_is_not_chosen_decides_after_a_restart() {
    // camunda#57389: node 1 would lead alone.
    let mut cluster = Cluster::of(&[1]);
    for id in [2, 3] {
        cluster.start(id, &NOBODY, MemoryLog::default(), 0);
    }
    cluster.change(&with_learners(&[1], &[2, 3]));
    cluster.cut = [2, 3].into();
    let now = cluster.now;
    cluster.node(1).engine.propose_members(now, joint(&[1], &[1, 2, 3]));
    cluster.elapse(TICK);
    assert_eq!(cluster.nodes[&1].members, with_learners(&[1], &[2, 3]), "it is not chosen");
    cluster.restart(1, &[1], 0);
    cluster.elapse(Duration::from_secs(5));
    assert_eq!(cluster.leader(), None);
    cluster.cut.clear();
    cluster.change(&joint(&[1], &[1, 2, 3]));
    cluster.change(&voters(&[1, 2, 3]));
}

#[test]
fn a_leader_that_is_removed_leads_no_more() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.wait_for_leader();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    cluster.change(&joint(&[1, 2, 3], &others));
    assert_eq!(cluster.leader(), Some(leader));
    let now = cluster.now;
    cluster.node(leader).engine.propose_members(now, voters(&others));
    cluster.settle();
    cluster.elapse(TICK);
    assert_eq!(cluster.nodes[&leader].members, voters(&others));
    let status = cluster.nodes[&leader].engine.status();
    assert!(status.role != Role::Leader && status.leader != Some(NodeId(leader)), "{status:?}");
    assert_eq!(cluster.node(leader).engine.propose(now, Bytes::new()), None);
    // It hands over, without an election timeout.
    cluster.elapse(Duration::from_millis(500));
    assert!(others.contains(&cluster.leader().expect("another leads")));
    cluster.write();
}

/// Its log is the longest, so who stays gets no vote of it: it leads once more, finishes its removal and hands over.
#[test]
fn a_removal_that_nobody_but_the_removed_replica_has_is_finished() {
    let mut cluster = Cluster::of(&[1, 2]);
    let removed = cluster.wait_for_leader();
    let stays = 3 - removed;
    cluster.change(&joint(&[1, 2], &[stays]));
    cluster.cut = [stays].into();
    let now = cluster.now;
    cluster.node(removed).engine.propose_members(now, voters(&[stays]));
    cluster.settle();
    cluster.cut.clear();
    cluster.restart(removed, &[1, 2], 0);
    assert_eq!(cluster.wait_for_leader(), stays);
    assert_eq!(cluster.nodes[&stays].members, voters(&[stays]));
    cluster.write();
}

#[test]
fn a_replica_that_was_removed_disturbs_nobody() {
    let mut cluster = Cluster::of(&[1, 2, 3, 4]);
    let leader = cluster.wait_for_leader();
    let gone = if leader == 4 { 3 } else { 4 };
    let staying: Vec<u64> = (1..=4).filter(|id| *id != gone).collect();
    cluster.change(&joint(&[1, 2, 3, 4], &staying));
    cluster.change(&voters(&staying));
    let term = cluster.term(leader);
    cluster.sent.clear();
    // One of the others has lost the leader for a moment, and this one too.
    let (now, doubting) = (cluster.now, staying.iter().copied().find(|id| *id != leader));
    for id in doubting.into_iter().chain([gone]) {
        cluster.node(id).engine.disconnected(now, NodeId(leader));
    }
    cluster.elapse(Duration::from_secs(10));
    cluster.flush();
    assert_eq!((cluster.leader(), cluster.term(leader)), (Some(leader), term));
    let is_answer = |message: &RaftMessage| matches!(message, RaftMessage::Voted { granted: false, .. });
    let told: Vec<_> =
        cluster.sent.iter().filter(|(to, message)| *to == gone && !is_answer(message)).collect();
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn a_replica_that_joins_takes_over_a_snapshot_with_its_members() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.wait_for_leader();
    cluster.change(&with_learners(&[1, 2, 3], &[5]));
    cluster.change(&voters(&[1, 2, 3]));
    cluster.write();
    cluster.flush();
    assert!(cluster.nodes[&leader].engine.status().first > 3, "the log is dropped");
    cluster.start(4, &NOBODY, MemoryLog::default(), 0);
    cluster.change(&with_learners(&[1, 2, 3], &[4]));
    cluster.elapse(Duration::from_secs(2));
    assert_eq!(cluster.nodes[&4].needs_snapshot, Some(NodeId(leader)));

    let applied = cluster.nodes[&leader].applied;
    let mark = cluster.node(leader).engine.snapshot_mark(applied).expect("memory does not fail");
    let joiner = &mut cluster.node(4).engine;
    assert!(joiner.may_adopt_snapshot(applied, &mark));
    joiner.adopt_snapshot(applied, &mark, Incarnation(1)).expect("memory does not fail");
    joiner.log.with_store(MemoryLog::sync);
    cluster.restart(4, &NOBODY, applied);
    assert_eq!(
        cluster.nodes[&4].members,
        with_learners(&[1, 2, 3], &[4]),
        "it knows them before anybody speaks"
    );
    cluster.elapse(Duration::from_secs(2));
    let last = cluster.write();
    assert_eq!(cluster.nodes[&4].applied, last);
    cluster.change(&joint(&[1, 2, 3], &[1, 2, 4]));
    cluster.change(&voters(&[1, 2, 4]));
}
