//! Keys that expire: what is shown goes by shard time, clocks only move it on.

use keevee_core::command::{Expiry, Only};

use super::*;
use crate::CLOCK_DIFFERENCE_MAX;
use crate::storage::StateStore;

const SECOND: i64 = 1_000_000;

fn put_for(key: &str, time: Duration) -> Command {
    let expires = Expiry::After(time.as_micros() as u64);
    let (key, value) = (key.to_owned().into(), "1".into());
    Command::single(Action::Put { key, value, expires, only: Only::Always })
}

/// A cluster with a key that expires a second later.
fn with_key<M: Maker>(maker: &M) -> (Cluster<'_, M>, u64) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put_for("a", Duration::from_secs(1))).expect("written");
    (cluster, leader)
}

fn last<M: Maker>(cluster: &Cluster<'_, M>, id: u64) -> u64 {
    cluster.nodes[&id].shard.status().engine.last
}

fn shard_time<M: Maker>(cluster: &mut Cluster<'_, M>, id: u64) -> u64 {
    cluster.node(id).shard.state().meta().expect("memory does not fail").time
}

/// How many keys a node has stored, gone or not.
fn stored<M: Maker>(cluster: &mut Cluster<'_, M>, id: u64) -> usize {
    cluster.node(id).shard.state().values().count()
}

fn look_after_expiries<M: Maker>(cluster: &mut Cluster<'_, M>) {
    for id in 1..=3 {
        let now = cluster.now_of(id);
        cluster.node(id).shard.look_after_expiries(now).expect("memory does not fail");
        cluster.advance(id).expect("it goes on");
    }
    cluster.settle();
    // Followers hear what is chosen.
    cluster.elapse(Duration::from_millis(200));
}

pub fn a_read_shows_nothing_that_is_due_by_the_clock<M: Maker>(maker: &M) {
    let (mut cluster, leader) = with_key(maker);
    let written = last(&cluster, leader);
    for node in 1..=3 {
        assert_eq!(value_of(cluster.run(node, get("a"))), Some(Bytes::from("1")), "node {node}");
    }
    assert_eq!(last(&cluster, leader), written, "as long as nothing is due, a read writes nothing");
    cluster.elapse(Duration::from_secs(1));
    let follower = cluster.follower(leader);
    assert_eq!(value_of(cluster.run(follower, get("a"))), None);
    let scan = Action::Scan { range: KeyRange::default(), limit: 10, bytes_max: 100 };
    let nothing = OperationResult::Scanned { keys: vec![], next: None };
    for node in 1..=3 {
        assert_eq!(value_of(cluster.run(node, get("a"))), None, "node {node}");
        let scanned = cluster.run(node, Command::single(scan.clone()));
        assert_eq!(scanned, Ok(Outcome::Done(vec![nothing.clone()])), "node {node}");
    }
    assert_eq!(last(&cluster, leader), written + 1, "one entry moved shard time for all of them");
}

pub fn a_stale_read_goes_by_shard_time<M: Maker>(maker: &M) {
    let (mut cluster, leader) = with_key(maker);
    cluster.elapse(Duration::from_secs(2));
    for node in 1..=3 {
        let ticket = cluster.submit_as(node, get("a"), true);
        let answer = cluster.replies.remove(&ticket).expect("answered at once").result;
        assert_eq!(value_of(answer), Some(Bytes::from("1")), "nothing has moved shard time");
    }
    cluster.run(leader, put("b", "1")).expect("written");
    for node in 1..=3 {
        let ticket = cluster.submit_as(node, get("a"), true);
        assert_eq!(value_of(cluster.replies.remove(&ticket).expect("answered at once").result), None);
    }
}

pub fn a_read_from_a_follower_goes_by_the_leaders_clock<M: Maker>(maker: &M) {
    let (mut cluster, leader) = with_key(maker);
    let (ahead, written) = (cluster.follower(leader), last(&cluster, leader));
    cluster.node(ahead).skew = 3 * SECOND;
    assert_eq!(value_of(cluster.run(ahead, get("a"))), Some(Bytes::from("1")), "it is due by one clock only");
    assert_eq!(last(&cluster, leader), written);
    cluster.elapse(Duration::from_secs(1));
    assert_eq!(value_of(cluster.run(ahead, get("a"))), None);
}

pub fn a_read_that_waits_for_shard_time_in_vain_is_refused<M: Maker>(maker: &M) {
    let (mut cluster, leader) = with_key(maker);
    cluster.elapse(Duration::from_secs(1));
    // A leader is confirmed by nodes whose disks take nothing in.
    cluster.stall_all_but(leader, true);
    let ticket = cluster.submit(leader, get("a"));
    cluster.settle();
    assert!(!cluster.replies.contains_key(&ticket), "no entry that moves shard time is chosen");
    cluster.elapse(Duration::from_secs(6));
    let answer = &cluster.replies[&ticket].result;
    assert!(matches!(answer, Err(Refusal::Unavailable(_))), "{answer:?}");
    assert!(!cluster.node(leader).shard.is_busy());
}

pub fn a_write_sees_nothing_that_is_due_by_the_leaders_clock<M: Maker>(maker: &M) {
    let (mut cluster, leader) = with_key(maker);
    cluster.elapse(Duration::from_secs(1));
    let increment = Command::single(Action::Increment { key: "a".into(), by: 5 });
    let sum = OperationResult::Incremented { value: 5, version: 2 };
    assert_eq!(cluster.run(leader, increment), Ok(Outcome::Done(vec![sum])));
    cluster.elapse(Duration::from_secs(2));
    assert_eq!(value_of(cluster.run(leader, get("a"))), Some(Bytes::from("5")), "it expires no more");
}

pub fn keys_that_are_gone_are_removed_in_bounded_batches<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    for key in 0..600 {
        cluster.submit(leader, put_for(&key.to_string(), Duration::from_secs(1)));
    }
    cluster.run(leader, put("stays", "1")).expect("written");
    look_after_expiries(&mut cluster);
    assert_eq!(stored(&mut cluster, leader), 601, "nothing is due");
    cluster.elapse(Duration::from_secs(1));
    let before = last(&cluster, leader);
    look_after_expiries(&mut cluster);
    for node in 1..=3 {
        assert_eq!(stored(&mut cluster, node), 1, "node {node}");
    }
    assert_eq!(last(&cluster, leader) - before, 3, "256, 256, and the rest");
    look_after_expiries(&mut cluster);
    assert_eq!(last(&cluster, leader) - before, 3, "then there is nothing to do");
    assert_eq!(cluster.run(leader, put("b", "1")), written(602), "removals take no versions");
}

pub fn removals_go_with_the_commands_of_clients<M: Maker>(maker: &M) {
    let (mut cluster, leader) = with_key(maker);
    cluster.elapse(Duration::from_secs(1));
    let before = last(&cluster, leader);
    let now = cluster.now_of(leader);
    cluster.node(leader).shard.look_after_expiries(now).expect("memory does not fail");
    assert_eq!(cluster.run(leader, put("b", "1")), written(2));
    assert_eq!((last(&cluster, leader) - before, stored(&mut cluster, leader)), (1, 1));
}

pub fn a_quiesced_shard_wakes_to_remove_what_is_due<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put_for("a", Duration::from_secs(60))).expect("written");
    cluster.elapse(Duration::from_secs(1));
    quiescence::quiesce(&mut cluster, leader);
    assert!(quiescence::is_quiesced(&cluster, leader));
    look_after_expiries(&mut cluster);
    assert!(quiescence::is_quiesced(&cluster, leader), "nothing is due yet");
    cluster.elapse(Duration::from_secs(60));
    look_after_expiries(&mut cluster);
    for node in 1..=3 {
        assert_eq!(stored(&mut cluster, node), 0, "node {node}");
    }
    cluster.elapse(Duration::from_secs(1));
    quiescence::quiesce(&mut cluster, leader);
    assert!(quiescence::is_quiesced(&cluster, leader));
}

pub fn keys_that_are_gone_stay_gone_after_a_failover_to_a_clock_that_is_behind<M: Maker>(maker: &M) {
    let (mut cluster, old) = with_key(maker);
    for id in (1..=3).filter(|id| *id != old) {
        cluster.node(id).skew = -5 * SECOND;
    }
    cluster.elapse(Duration::from_secs(1));
    assert_eq!(value_of(cluster.run(old, get("a"))), None);
    cluster.nodes.remove(&old);
    let new = cluster.wait_for_leader();
    assert_eq!(value_of(cluster.run(new, get("a"))), None);
    let expires = Expiry::Keep;
    let add = Action::Put { key: "a".into(), value: "2".into(), expires, only: Only::IfPresent };
    assert_eq!(cluster.run(new, Command::single(add)), Ok(Outcome::Done(vec![OperationResult::Skipped])));
}

pub fn a_leader_whose_clock_is_off_stamps_nothing_and_hands_over<M: Maker>(maker: &M) {
    let (mut cluster, old) = with_key(maker);
    let time = shard_time(&mut cluster, old);
    cluster.node(old).skew = CLOCK_DIFFERENCE_MAX.as_micros() as i64 + SECOND;
    let now = cluster.now_of(old);
    cluster.node(old).shard.mind_clock(now, true);
    let ticket = cluster.submit(old, put("b", "1"));
    let refused = cluster.replies[&ticket].result.clone();
    assert!(matches!(refused, Err(Refusal::NotLeader(_))), "{refused:?}");
    cluster.settle();
    let new = cluster.wait_for_leader();
    assert_ne!(new, old);
    assert_eq!(shard_time(&mut cluster, new), time);
    assert_eq!(value_of(cluster.run(old, get("a"))), Some(Bytes::from("1")), "its clock counts for nothing");
    cluster.run(new, put("b", "1")).expect("written");
    cluster.node(old).skew = 0;
    let now = cluster.now_of(old);
    cluster.node(old).shard.mind_clock(now, false);
    cluster.elapse(Duration::from_secs(1));
    assert_eq!(value_of(cluster.run(old, get("a"))), None);
}

pub fn writes_of_far_offsets_do_not_share_an_entry<M: Maker>(maker: &M) {
    let bounds = Bounds { entry_bytes_max: 1_000, ..Bounds::default() };
    let (mut cluster, leader) = Cluster::led(maker, 3, bounds);
    let before = last(&cluster, leader);
    let set_range = |offset| Command::single(Action::SetRange { key: "k".into(), offset, bytes: "x".into() });
    for offset in [1, 600, 601, 1, 2_000] {
        cluster.submit(leader, set_range(offset));
    }
    cluster.settle();
    assert_eq!(last(&cluster, leader) - before, 4, "the first, one of 600, one of 602, the last");
}
