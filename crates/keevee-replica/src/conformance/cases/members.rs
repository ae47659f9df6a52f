//! Cases of members that change.

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_core::ids::NodeId;
use keevee_core::slots::SlotSet;

use super::{get, put, value_of, written};
use crate::conformance::{Cluster, Maker};
use crate::storage::{MemoryLog, MemoryState};
use crate::{Bounds, Members, Refusal, Role};

/// A step of the time of these cases.
const STEP: Duration = Duration::from_millis(20);

fn voters(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// Starts a node that takes part in nothing yet.
fn join<M: Maker>(cluster: &mut Cluster<'_, M>, id: u64) {
    cluster.start(id, 1, MemoryLog::default(), MemoryState::new(SlotSet::all()));
}

/// Tells whoever leads which voters there shall be.
fn want<M: Maker>(cluster: &mut Cluster<'_, M>, ids: &[u64]) {
    let now = cluster.now;
    for node in cluster.nodes.values_mut() {
        let ballot = node.shard.status().engine.ballot;
        node.shard.want_voters(now, &ballot, voters(ids));
    }
}

/// Lets time pass until a condition holds.
fn wait_for<M: Maker>(cluster: &mut Cluster<'_, M>, what: &str, holds: impl Fn(&mut Cluster<'_, M>) -> bool) {
    for _ in 0..1_000 {
        if holds(cluster) {
            return;
        }
        cluster.elapse(STEP);
    }
    let members: Vec<_> = cluster.nodes.iter().map(|(id, node)| (id, node.shard.status().engine)).collect();
    panic!("{what}: not within twenty seconds: {members:?}");
}

/// Until these alone decide, all that run know it, and one of them leads.
fn wait_for_members<M: Maker>(cluster: &mut Cluster<'_, M>, ids: &[u64]) -> u64 {
    let settled = Members::of_voters(voters(ids));
    wait_for(cluster, "other members", |cluster| {
        want(cluster, ids);
        let mut running = ids.iter().filter_map(|id| cluster.nodes.get(id));
        running.all(|node| *node.shard.members() == settled) && leader(cluster, ids).is_some()
    });
    leader(cluster, ids).expect("just seen")
}

fn leader<M: Maker>(cluster: &Cluster<'_, M>, ids: &[u64]) -> Option<u64> {
    let leads = |id: &&u64| {
        let node = cluster.nodes.get(id);
        node.is_some_and(|node| node.shard.status().engine.role == Role::Leader)
    };
    ids.iter().find(leads).copied()
}

pub fn a_node_that_joins_takes_the_place_of_another<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let gone = cluster.follower(leader);
    let other = (1..=3).find(|id| ![leader, gone].contains(id)).expect("three nodes");
    join(&mut cluster, 4);
    want(&mut cluster, &[leader, other, 4]);
    wait_for_members(&mut cluster, &[leader, other, 4]);
    assert_eq!(value_of(cluster.run(4, get("a"))), Some("1".into()));
    // With the newcomer there is a majority, whoever else is away.
    cluster.nodes.remove(&gone);
    cluster.nodes.remove(&other);
    let leader = cluster.wait_for_leader();
    assert_eq!(cluster.run(leader, put("b", "2")), written(2));
    assert_eq!(value_of(cluster.run(4, get("b"))), Some("2".into()));
}

pub fn a_leader_that_is_not_wanted_hands_over_and_goes<M: Maker>(maker: &M) {
    let (mut cluster, old) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(old, put("a", "1")).expect("written");
    let staying: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    want(&mut cluster, &staying);
    let new = wait_for_members(&mut cluster, &staying);
    assert!(staying.contains(&new));
    cluster.nodes.remove(&old);
    assert_eq!(cluster.run(new, put("b", "2")), written(2));
}

pub fn all_members_may_be_replaced_at_once<M: Maker>(maker: &M) {
    let (mut cluster, old) = Cluster::led(maker, 1, Bounds::default());
    cluster.run(old, put("a", "1")).expect("written");
    (2..=4).for_each(|id| join(&mut cluster, id));
    want(&mut cluster, &[2, 3, 4]);
    let leader = wait_for_members(&mut cluster, &[2, 3, 4]);
    cluster.nodes.remove(&1);
    assert_eq!(cluster.run(leader, put("b", "2")), written(2));
    assert_eq!(value_of(cluster.run(leader, get("a"))), Some("1".into()));
}

pub fn a_node_joins_though_the_log_was_dropped<M: Maker>(maker: &M) {
    let bounds = Bounds { log_bytes_max: 0, snapshot_chunk_bytes: 200, ..Bounds::default() };
    let (mut cluster, leader) = Cluster::led(maker, 3, bounds);
    for number in 0..20 {
        cluster.run(leader, put(&format!("key-{number}"), "value")).expect("written");
    }
    cluster.flush();
    cluster.elapse(Duration::from_secs(3));
    cluster.flush();
    let status = cluster.nodes[&leader].shard.status().engine;
    assert_eq!(status.first, status.last + 1, "nothing is left of the log");
    join(&mut cluster, 4);
    want(&mut cluster, &[1, 2, 3, 4]);
    wait_for_members(&mut cluster, &[1, 2, 3, 4]);
    assert!(!cluster.chunks.is_empty(), "it came as a snapshot");
    assert_eq!(value_of(cluster.run(4, get("key-7"))), Some("value".into()));
    // What the snapshot said of members survives, without a log that would.
    cluster.restart(4, 2);
    assert_eq!(cluster.nodes[&4].shard.members().voters, voters(&[1, 2, 3, 4]));
}

pub fn what_a_learner_acknowledges_decides_nothing<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    join(&mut cluster, 4);
    cluster.node(4).is_stalled = true;
    want(&mut cluster, &[1, 2, 3, 4]);
    wait_for(&mut cluster, "a learner", |cluster| {
        want(cluster, &[1, 2, 3, 4]);
        cluster.nodes[&leader].shard.members().learners == voters(&[4])
    });
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let away: Vec<_> = others.iter().filter_map(|id| cluster.nodes.remove(id)).collect();
    cluster.node(4).is_stalled = false;
    let ticket = cluster.submit(leader, put("a", "1"));
    cluster.elapse(Duration::from_millis(400));
    assert!(!cluster.replies.contains_key(&ticket), "one of three voters is no majority");
    assert_eq!(cluster.nodes[&leader].shard.members().next, None);
    others.into_iter().zip(away).for_each(|(id, node)| drop(cluster.nodes.insert(id, node)));
    wait_for_members(&mut cluster, &[1, 2, 3, 4]);
}

pub fn a_change_that_is_half_done_goes_on_after_a_crash_of_all<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    join(&mut cluster, 4);
    want(&mut cluster, &[1, 2, 3, 4]);
    wait_for(&mut cluster, "a learner", |cluster| {
        want(cluster, &[1, 2, 3, 4]);
        !cluster.nodes[&leader].shard.members().learners.is_empty()
    });
    (1..=4).for_each(|id| cluster.restart(id, 2));
    cluster.wait_for_leader();
    want(&mut cluster, &[1, 2, 3, 4]);
    // Each acknowledgement on its own, so that no step is missed.
    wait_for(&mut cluster, "four voters, or old and new ones", |cluster| {
        want(cluster, &[1, 2, 3, 4]);
        let decides = |node: &_| Members::is_voter(node, NodeId(4));
        cluster.nodes.values().any(|node| decides(node.shard.members()))
    });
    (1..=4).for_each(|id| cluster.restart(id, 3));
    // Nobody says any more what is wanted: what is half done is finished.
    let settled = Members::of_voters(voters(&[1, 2, 3, 4]));
    wait_for(&mut cluster, "the end of it", |cluster| {
        cluster.nodes.values().all(|node| *node.shard.members() == settled)
    });
    let leader = cluster.wait_for_leader();
    assert_eq!(cluster.run(leader, put("b", "2")), written(2));
}

pub fn members_survive_the_log_that_told_of_them<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    join(&mut cluster, 4);
    want(&mut cluster, &[2, 3, 4]);
    let leader = wait_for_members(&mut cluster, &[2, 3, 4]);
    cluster.nodes.remove(&1);
    for number in 0..10 {
        cluster.run(leader, put("b", &number.to_string())).expect("written");
    }
    cluster.flush();
    cluster.elapse(Duration::from_secs(3));
    cluster.flush();
    let status = cluster.nodes[&leader].shard.status().engine;
    assert_eq!(status.first, status.last + 1, "nothing is left of the log");
    [2, 3, 4].into_iter().for_each(|id| cluster.restart(id, 2));
    for id in 2..=4 {
        assert_eq!(*cluster.nodes[&id].shard.members(), Members::of_voters(voters(&[2, 3, 4])), "node {id}");
    }
    // Two of the three that there are, with none of those that there were but one.
    cluster.nodes.remove(&2);
    let leader = cluster.wait_for_leader();
    assert_eq!(cluster.run(leader, put("c", "3")), written(12));
}

pub fn writes_go_on_while_members_change<M: Maker>(maker: &M) {
    let (mut cluster, mut leader) = Cluster::led(maker, 3, Bounds::default());
    let mut count = 0;
    for round in 0..6_u64 {
        let newcomer = 4 + round;
        let kept: Vec<u64> = cluster.nodes.keys().copied().skip(1).collect();
        let wanted: Vec<u64> = kept.iter().copied().chain([newcomer]).collect();
        join(&mut cluster, newcomer);
        want(&mut cluster, &wanted);
        let settled = Members::of_voters(voters(&wanted));
        for _ in 0..500 {
            want(&mut cluster, &wanted);
            let leads = |id: &u64| cluster.nodes[id].shard.status().engine.role == Role::Leader;
            leader = cluster.nodes.keys().copied().find(leads).unwrap_or(leader);
            match cluster.run(leader, put("n", &count.to_string())) {
                Ok(_) => count += 1,
                // Somebody else leads, or will in a moment: nothing happened.
                Err(Refusal::NotLeader(_)) => {}
                Err(other) => panic!("{other:?} for write {count} of round {round}"),
            }
            if wanted.iter().all(|id| *cluster.nodes[id].shard.members() == settled) {
                break;
            }
        }
        leader = wait_for_members(&mut cluster, &wanted);
        let gone: Vec<u64> = cluster.nodes.keys().copied().filter(|id| !wanted.contains(id)).collect();
        gone.iter().for_each(|id| drop(cluster.nodes.remove(id)));
    }
    assert!(count > 6, "writes went on");
    assert_eq!(value_of(cluster.run(leader, get("n"))), Some((count - 1).to_string().into()));
}

pub fn a_replica_that_takes_part_no_longer_disturbs_nobody<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let gone = cluster.follower(leader);
    let staying: Vec<u64> = (1..=3).filter(|id| *id != gone).collect();
    want(&mut cluster, &staying);
    wait_for_members(&mut cluster, &staying);
    let status = cluster.nodes[&leader].shard.status().engine;
    // As after a restart: it does not even know that there is a leader.
    cluster.restart(gone, 2);
    cluster.elapse(Duration::from_secs(10));
    assert_eq!(cluster.nodes[&leader].shard.status().engine, status, "nothing happened");
    assert_ne!(cluster.nodes[&gone].shard.status().engine.role, Role::Leader);
    assert_eq!(cluster.run(leader, put("a", "1")), written(1));
}
