//! Cases of replicas that lack what no log holds any more.

use std::time::Duration;

use super::{get, put, value_of};
use crate::Bounds;
use crate::conformance::{Cluster, Maker, Node};

/// Logs are kept for nobody, and a snapshot takes a while: its chunks hold a record or two.
const SHORT: Bounds = {
    let mut bounds = Bounds::DEFAULT;
    bounds.log_bytes_max = 0;
    bounds.snapshot_chunk_bytes = 60;
    bounds.snapshot_bytes_per_second = 10_000;
    bounds
};
/// More than one page of the log.
const KEYS: u64 = 40;
/// Their snapshot has more chunks.
const CHUNKS_MIN: u64 = KEYS / 3;

fn key(number: u64) -> String {
    format!("key-{number}")
}

/// A cluster whose leader, which is told, has dropped what one follower lacks, which is away.
fn led_without<M: Maker>(maker: &M) -> (Cluster<'_, M>, u64, u64, Node<M>) {
    let (mut cluster, leader) = Cluster::led(maker, 3, SHORT);
    let follower = cluster.follower(leader);
    cluster.run(leader, put("key-0", "of old")).expect("written");
    let away = cluster.nodes.remove(&follower).expect("it exists");
    for number in 0..KEYS {
        cluster.run(leader, put(&key(number), &number.to_string())).expect("written");
    }
    // Until whoever sends to the one that is away has noticed.
    cluster.flush();
    cluster.elapse(Duration::from_secs(3));
    cluster.flush();
    let status = cluster.nodes[&leader].shard.status().engine;
    assert_eq!((status.first, status.chosen), (status.last + 1, status.last), "nothing is left of the log");
    (cluster, leader, follower, away)
}

fn holds_all<M: Maker>(cluster: &mut Cluster<'_, M>, node: u64) {
    for number in 0..KEYS {
        let ticket = cluster.submit_as(node, get(&key(number)), true);
        let found = cluster.replies.remove(&ticket).expect("answered at once").result;
        assert_eq!(value_of(found), Some(number.to_string().into()), "node {node}, {}", key(number));
    }
}

pub fn a_replica_that_lacks_what_logs_have_dropped_takes_over_a_snapshot<M: Maker>(maker: &M) {
    let (mut cluster, leader, follower, away) = led_without(maker);
    cluster.nodes.insert(follower, away);
    cluster.restart(follower, 2);
    cluster.elapse(Duration::from_secs(3));
    holds_all(&mut cluster, follower);
    let of = |node: u64| cluster.nodes[&node].shard.status();
    assert_eq!((of(follower).applied, of(follower).chain), (of(leader).applied, of(leader).chain));
    assert!(cluster.chunks.len() as u64 > CHUNKS_MIN, "it came in chunks: {:?}", cluster.chunks);
    // It goes on with the others, and counts in a quorum.
    let other = (1..=3).find(|node| ![leader, follower].contains(node)).expect("a third node");
    cluster.nodes.remove(&other);
    cluster.run(leader, put("later", "too")).expect("written");
    assert_eq!(value_of(cluster.run(follower, get("later"))), Some("too".into()));
    // What it was given survives it.
    cluster.restart(follower, 3);
    cluster.elapse(Duration::from_secs(3));
    holds_all(&mut cluster, follower);
}

pub fn a_chunk_that_is_lost_costs_a_chunk<M: Maker>(maker: &M) {
    let (mut cluster, _, follower, away) = led_without(maker);
    cluster.nodes.insert(follower, away);
    cluster.restart(follower, 2);
    cluster.lost_chunk = Some(CHUNKS_MIN);
    cluster.elapse(Duration::from_secs(4));
    holds_all(&mut cluster, follower);
    assert_eq!(cluster.lost_chunk, None, "it was lost");
    let numbers: Vec<u64> = (0..cluster.chunks.len() as u64).collect();
    assert_eq!(cluster.chunks, numbers, "each once, in order");
}

pub fn a_crash_before_a_snapshot_is_in_force_leaves_the_old_state<M: Maker>(maker: &M) {
    let (mut cluster, leader, follower, away) = led_without(maker);
    cluster.nodes.insert(follower, away);
    cluster.restart(follower, 2);
    let before = cluster.applied(follower);
    // Until the write that puts it in force waits for the disk.
    let mut patience = 0..200;
    while !cluster.node(follower).shard.is_adopting_snapshot() {
        patience.next().expect("the snapshot comes");
        cluster.elapse(Duration::from_millis(20));
        cluster.node(follower).is_stalled = !cluster.chunks.is_empty();
    }
    cluster.restart(follower, 3);
    assert_eq!(cluster.applied(follower), before);
    cluster.elapse(Duration::from_secs(4));
    holds_all(&mut cluster, follower);
    assert_eq!(cluster.applied(follower), cluster.applied(leader));
}

pub fn a_log_is_kept_behind_a_snapshot_until_its_receiver_has_caught_up<M: Maker>(maker: &M) {
    let (mut cluster, leader, follower, away) = led_without(maker);
    cluster.nodes.insert(follower, away);
    cluster.restart(follower, 2);
    let mut patience = 0..200;
    while cluster.chunks.is_empty() {
        patience.next().expect("the snapshot comes");
        cluster.elapse(Duration::from_millis(20));
    }
    let begun_at = cluster.applied(leader);
    cluster.run(leader, put("meanwhile", "written")).expect("written");
    cluster.flush();
    let first = cluster.nodes[&leader].shard.status().engine.first;
    assert!(first <= begun_at + 1, "the log begins at {first}, the snapshot is of {begun_at}");
    cluster.elapse(Duration::from_secs(4));
    assert_eq!(cluster.applied(follower), cluster.applied(leader));
    cluster.flush();
    cluster.elapse(Duration::from_secs(3));
    cluster.flush();
    let status = cluster.nodes[&leader].shard.status().engine;
    assert_eq!(status.first, status.last + 1, "then it goes");
    assert_eq!(cluster.chunks.iter().filter(|number| **number == 0).count(), 1, "one was enough");
}

/// A cluster whose logs lack what came first, its leader, and a follower.
fn led_with_short_logs<M: Maker>(maker: &M) -> (Cluster<'_, M>, u64, u64) {
    let (mut cluster, leader) = Cluster::led(maker, 3, SHORT);
    let follower = cluster.follower(leader);
    let (flushed, rest) = (0..KEYS / 2, KEYS / 2..KEYS);
    flushed.for_each(|number| drop(cluster.run(leader, put(&key(number), &number.to_string()))));
    cluster.flush();
    cluster.elapse(Duration::from_secs(3));
    cluster.flush();
    rest.for_each(|number| drop(cluster.run(leader, put(&key(number), &number.to_string()))));
    let status = cluster.nodes[&follower].shard.status().engine;
    assert!(status.first > KEYS / 2 && status.first < status.last, "{status:?}");
    (cluster, leader, follower)
}

/// It has all that the others have, and counts with one of them.
fn is_rebuilt<M: Maker>(cluster: &mut Cluster<'_, M>, node: u64) {
    assert!(!cluster.nodes[&node].shard.is_rebuilding());
    holds_all(cluster, node);
    let leader = cluster.wait_for_leader();
    let of = |node: u64| cluster.nodes[&node].shard.status();
    assert_eq!((of(node).applied, of(node).chain), (of(leader).applied, of(leader).chain));
    let gone = (1..=3).find(|other| ![leader, node].contains(other));
    gone.into_iter().for_each(|gone| drop(cluster.nodes.remove(&gone)));
    cluster.elapse(Duration::from_secs(3));
    let leader = cluster.wait_for_leader();
    cluster.run(leader, put("later", "too")).expect("written");
    assert_eq!(value_of(cluster.run(node, get("later"))), Some("too".into()));
    cluster.restart(node, 9);
    cluster.elapse(Duration::from_secs(3));
    holds_all(cluster, node);
}

pub fn a_replica_that_has_lost_its_state_is_rebuilt_within_its_log<M: Maker>(maker: &M) {
    let (mut cluster, _, follower) = led_with_short_logs(maker);
    let before = cluster.nodes[&follower].shard.status().engine;
    cluster.lose_state(follower, 2);
    let ticket = cluster.submit_as(follower, get(&key(1)), true);
    assert!(cluster.replies.remove(&ticket).expect("answered at once").result.is_err(), "it serves nothing");
    cluster.elapse(Duration::from_secs(4));
    assert_eq!(
        cluster.nodes[&follower].shard.status().engine.last,
        before.last,
        "nothing of its log is lost"
    );
    is_rebuilt(&mut cluster, follower);
}

pub fn a_replica_that_has_lost_its_state_is_rebuilt_by_a_leader_whose_log_it_has<M: Maker>(maker: &M) {
    let (mut cluster, leader, follower) = led_with_short_logs(maker);
    cluster.lose_state(follower, 2);
    let gone = (1..=3).find(|node| ![leader, follower].contains(node)).expect("a third");
    cluster.nodes.remove(&gone);
    // It has acknowledged all that is in the snapshot, and the leader looks now and then who needs what it sends.
    cluster.lost_chunk = Some(1);
    for _ in 0..200 {
        cluster.elapse(Duration::from_millis(20));
        cluster.flush();
    }
    assert!(!cluster.nodes[&follower].shard.is_rebuilding());
    holds_all(&mut cluster, follower);
    assert_eq!(cluster.chunks.iter().filter(|number| **number == 0).count(), 1, "one snapshot was enough");
}

pub fn a_replica_that_has_lost_its_state_is_rebuilt_though_others_were_elected_meanwhile<M: Maker>(
    maker: &M,
) {
    let (mut cluster, leader, follower) = led_with_short_logs(maker);
    cluster.lose_state(follower, 2);
    let away = cluster.nodes.remove(&follower).expect("it exists");
    // A later ballot, of which the one that is away hears nothing.
    cluster.restart(leader, 2);
    cluster.elapse(Duration::from_secs(4));
    let leader = cluster.wait_for_leader();
    cluster.run(leader, put("of-another", "leader")).expect("written");
    cluster.nodes.insert(follower, away);
    cluster.elapse(Duration::from_secs(5));
    is_rebuilt(&mut cluster, follower);
}

pub fn a_replica_that_has_lost_its_state_is_no_part_of_a_majority<M: Maker>(maker: &M) {
    let (mut cluster, leader, follower) = led_with_short_logs(maker);
    cluster.lose_state(follower, 2);
    let gone = (1..=3).find(|node| ![leader, follower].contains(node)).expect("a third");
    cluster.nodes.remove(&gone);
    // The one that is left may have all that was chosen, and is asked for it.
    let ticket = cluster.submit(leader, put("key", "value"));
    assert!(cluster.replies.remove(&ticket).is_none(), "nothing is chosen without it");
    cluster.settle();
    assert!(cluster.replies.remove(&ticket).is_none(), "it acknowledges nothing while it has no state");
    cluster.elapse(Duration::from_secs(4));
    assert!(!cluster.nodes[&follower].shard.is_rebuilding(), "a snapshot needs no majority");
    holds_all(&mut cluster, follower);
}
