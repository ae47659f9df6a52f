//! The cases. Each panics unless what its name says holds.

mod cuts;
mod expiry;
mod members;
mod quiescence;
mod scrubs;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use keevee_core::command::{
    Action, Command, Expect, OnError, Operation, OperationResult, Outcome, Precondition, Versioned,
};
use keevee_core::ids::NodeId;
use keevee_core::range::KeyRange;
use keevee_core::requests::RequestId;

pub use cuts::*;
pub use expiry::*;
pub use members::*;
pub use quiescence::*;
pub use scrubs::*;
pub use snapshots::*;

use super::{Cluster, Maker, SharedLog};
use crate::storage::{LogRecord, LogStore};
use crate::{Bounds, ChainHash, Engine, Failure, Refusal, ReplicaMessage, Reply, Request, Role, Room};

fn put(key: &str, value: &str) -> Command {
    Command::single(Action::put(key.to_owned(), value.to_owned()))
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

pub fn a_write_is_read_from_every_node<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    assert_eq!(cluster.run(leader, put("a", "1")), written(1));
    for node in 1..=3 {
        assert_eq!(value_of(cluster.run(node, get("a"))), Some(Bytes::from("1")), "node {node}");
    }
}

pub fn a_single_node_is_a_cluster<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 1, Bounds::default());
    assert_eq!(cluster.run(leader, put("a", "1")), written(1));
    assert_eq!(value_of(cluster.run(leader, get("a"))), Some(Bytes::from("1")));
}

pub fn a_follower_names_the_leader<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let follower = cluster.follower(leader);
    let refusal = Err(Refusal::NotLeader(Some(NodeId(leader))));
    assert_eq!(cluster.run(follower, put("a", "1")), refusal);
}

pub fn commands_that_wait_for_a_sync_share_the_next_entry<M: Maker>(maker: &M) {
    let bounds = Bounds { unsynced_entries_max: 1, ..Bounds::default() };
    let (mut cluster, leader) = Cluster::led(maker, 3, bounds);
    let before = cluster.nodes[&leader].shard.status().engine.last;
    let tickets: Vec<u64> = (0..100).map(|i| cluster.submit(leader, put("k", &i.to_string()))).collect();
    cluster.settle();
    let entries = cluster.nodes[&leader].shard.status().engine.last - before;
    assert_eq!(entries, 2, "the first alone, the other 99 together");
    let versions: Vec<_> = tickets.iter().map(|ticket| cluster.replies[ticket].result.clone()).collect();
    assert_eq!(versions, (1..=100).map(written).collect::<Vec<_>>());
}

pub fn what_waits_begins_after_the_answers<M: Maker>(maker: &M) {
    let (mut cluster, leader) =
        Cluster::led(maker, 1, Bounds { unsynced_entries_max: 1, ..Bounds::default() });
    let first = cluster.submit(leader, put("k", "1"));
    let second = cluster.submit(leader, put("k", "2"));
    let now = cluster.now_of(leader);
    let node = cluster.node(leader);
    let before = node.shard.status().engine.last;
    let token = node.log.lock().sync().expect("the first is on its way");
    node.shard.persisted(now.monotonic, token);
    let answered = node.shard.advance(now).expect("it goes on");
    assert_eq!(answered.replies, [Reply { ticket: first, result: written(1) }]);
    assert_eq!((answered.has_more, node.shard.status().engine.last), (true, before));
    let begun = node.shard.advance(now).expect("it goes on");
    assert_eq!((begun.has_more, node.shard.status().engine.last), (false, before + 1));
    cluster.settle();
    assert_eq!(cluster.replies[&second].result, written(2));
}

pub fn answers_at_the_door_hold_nothing_up<M: Maker>(maker: &M) {
    let (mut cluster, leader) =
        Cluster::led(maker, 1, Bounds { unsynced_entries_max: 1, ..Bounds::default() });
    let now = cluster.now_of(leader);
    let before = cluster.nodes[&leader].shard.status().engine.last;
    let deadline = now.monotonic + Duration::from_secs(5);
    let request = |ticket, command, stale| Request { ticket, command, deadline, stale };
    let node = cluster.node(leader);
    // As it is with many stale reads: each step has some.
    node.shard
        .submit(now, [request(1, get("a"), true), request(2, put("a", "1"), false)])
        .expect("it goes on");
    let effects = node.shard.advance(now).expect("it goes on");
    assert_eq!(effects.replies.iter().map(|reply| reply.ticket).collect::<Vec<_>>(), [1]);
    assert_eq!(node.shard.status().engine.last, before + 1);
}

pub fn deletes_of_ranges_do_not_share_an_entry_and_every_node_scans_what_they_leave<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let delete = |prefix: &'static str| {
        let range = KeyRange::of_prefix(prefix);
        Command::single(Action::DeleteRange { range, limit: 10 })
    };
    let before = cluster.nodes[&leader].shard.status().engine.last;
    let commands = ["a1", "b1", "c1"].map(|key| put(key, "1")).into_iter().chain([delete("a"), delete("b")]);
    let tickets: Vec<u64> = commands.map(|command| cluster.submit(leader, command)).collect();
    cluster.settle();
    let entries = cluster.nodes[&leader].shard.status().engine.last - before;
    assert_eq!(entries, 3, "the first alone, then all up to the second delete, then that");
    let deleted = Ok(Outcome::Done(vec![OperationResult::DeletedRange { deleted: 1, next: None }]));
    assert_eq!(
        (&cluster.replies[&tickets[3]].result, &cluster.replies[&tickets[4]].result),
        (&deleted, &deleted)
    );
    let scan = Action::Scan { range: KeyRange::default(), limit: 10, bytes_max: 100 };
    for node in 1..=3 {
        let scanned = cluster.run(node, Command::single(scan.clone()));
        let Ok(Outcome::Done(results)) = scanned else { panic!("node {node}: {scanned:?}") };
        let [OperationResult::Scanned { keys, next: None }] = &results[..] else { panic!("{results:?}") };
        assert_eq!(keys.iter().map(|found| &found.key[..]).collect::<Vec<_>>(), [b"c1"], "node {node}");
    }
}

pub fn nothing_is_acknowledged_before_a_majority_has_synced<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "0")).expect("written");
    cluster.stall_all_but(leader, true);
    let ticket = cluster.submit(leader, put("a", "1"));
    // Neither the leader's own disk nor what followers have in memory is enough.
    cluster.settle();
    assert!(!cluster.replies.contains_key(&ticket));
    cluster.stall_all_but(leader, false);
    cluster.settle();
    assert_eq!(cluster.replies[&ticket].result, written(2));
}

pub fn a_replica_applies_only_what_is_on_its_own_disk<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "0")).expect("written");
    let slow = cluster.follower(leader);
    cluster.node(slow).is_stalled = true;
    let before = cluster.applied(slow);
    assert_eq!(cluster.run(leader, put("a", "1")), written(2), "the others are a majority");
    cluster.elapse(Duration::from_millis(200));
    assert!(cluster.applied(leader) > before);
    assert_eq!(cluster.applied(slow), before);
    cluster.node(slow).is_stalled = false;
    cluster.elapse(Duration::from_secs(3));
    assert_eq!(cluster.applied(slow), cluster.applied(leader));
}

pub fn past_its_bounds_a_shard_refuses_at_once<M: Maker>(maker: &M) {
    let bounds = Bounds { waiting_commands_max: 3, unsynced_entries_max: 1, ..Bounds::default() };
    let (mut cluster, leader) = Cluster::led(maker, 3, bounds);
    let tickets: Vec<u64> = (0..6).map(|_| cluster.submit(leader, put("a", "1"))).collect();
    let refused = |ticket: &&u64| {
        let reply = cluster.replies.get(ticket);
        reply.is_some_and(|reply| matches!(reply.result, Err(Refusal::Unavailable(_))))
    };
    // One is on its way to the disk, three wait.
    assert_eq!(tickets.iter().filter(refused).count(), 2);
}

pub fn what_is_late_is_not_carried_out<M: Maker>(maker: &M) {
    let bounds = Bounds { unsynced_entries_max: 1, ..Bounds::default() };
    let (mut cluster, leader) = Cluster::led(maker, 3, bounds);
    cluster.node(leader).is_stalled = true;
    cluster.submit(leader, put("a", "1"));
    let waiting = cluster.submit(leader, put("b", "1"));
    // It stands still, and nobody looks for what is late before it goes on.
    cluster.now += Duration::from_secs(6);
    let (now, deadline) = (cluster.now_of(leader), cluster.now);
    let request = Request { ticket: 99, command: put("c", "1"), deadline, stale: false };
    cluster.node(leader).shard.submit(now, [request]).expect("it goes on");
    cluster.node(leader).is_stalled = false;
    cluster.settle();
    for ticket in [waiting, 99] {
        let result = &cluster.replies[&ticket].result;
        assert!(matches!(result, Err(Refusal::Unavailable(_))), "{result:?}");
    }
    let leader = cluster.wait_for_leader();
    for key in ["b", "c"] {
        assert_eq!(value_of(cluster.run(leader, get(key))), None, "{key}");
    }
}

pub fn without_room_only_what_takes_none_is_taken<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    cluster.node(leader).shard.mind_room(Room::Short);
    let refused = cluster.run(leader, put("b", "1"));
    assert!(matches!(refused, Err(Refusal::Unavailable(_))), "{refused:?}");
    assert_eq!(value_of(cluster.run(leader, get("a"))), Some(Bytes::from("1")));
    let remove = || Command::single(Action::Delete { key: "a".into() });
    // Whatever is put with a removal takes room.
    let replace = Command {
        operations: [remove(), put("b", "1")].map(|one| one.operations[0].clone()).into(),
        ..remove()
    };
    assert!(matches!(cluster.run(leader, replace), Err(Refusal::Unavailable(_))));
    cluster.run(leader, remove()).expect("removed");
    assert_eq!(value_of(cluster.run(leader, get("a"))), None);
    cluster.node(leader).shard.mind_room(Room::Elsewhere);
    assert_eq!(cluster.run(leader, put("b", "1")), Err(Refusal::NotLeader(None)));
    cluster.node(leader).shard.mind_room(Room::Enough);
    cluster.run(leader, put("b", "1")).expect("written");
}

pub fn a_write_that_is_proposed_and_not_chosen_is_unknown<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.nodes.retain(|id, _| *id == leader);
    let ticket = cluster.submit(leader, put("a", "1"));
    cluster.elapse(Duration::from_secs(6));
    assert!(matches!(cluster.replies[&ticket].result, Err(Refusal::OutcomeUnknown(_))));
}

pub fn a_read_without_a_quorum_is_refused_in_time<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    cluster.nodes.retain(|id, _| *id == leader);
    // The second waits until the first is done with.
    let tickets = [cluster.submit(leader, get("a")), cluster.submit(leader, get("a"))];
    cluster.elapse(Duration::from_secs(6));
    for ticket in tickets {
        assert!(matches!(cluster.replies[&ticket].result, Err(Refusal::Unavailable(_))));
    }
}

pub fn everything_acknowledged_survives_a_crash_of_all_nodes<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
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

pub fn a_retry_after_a_failover_takes_effect_once<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
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

pub fn a_failed_precondition_changes_nothing<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let conditional = Command {
        preconditions: vec![Precondition { key: "a".into(), expect: Expect::Absent }],
        operations: vec![Operation { action: Action::put("a", "2"), on_error: OnError::Abort }],
        ..put("a", "2")
    };
    let conflict = Ok(Outcome::Conflict { precondition: 0, version: Some(1) });
    assert_eq!(cluster.run(leader, conditional), conflict);
    assert_eq!(value_of(cluster.run(leader, get("a"))), Some(Bytes::from("1")));
}

pub fn a_deposed_leader_answers_its_proposals_truly<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
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

pub fn a_leader_that_leads_again_answers_what_it_proposed_before_truly<M: Maker>(maker: &M) {
    let (mut cluster, old) = Cluster::led(maker, 3, Bounds { unsynced_entries_max: 9, ..Bounds::default() });
    let increment = |key: &str| Command::single(Action::Increment { key: key.to_owned().into(), by: 1 });
    let early: Vec<u64> = (0..6).map(|_| cluster.submit(old, increment("early"))).collect();
    cluster.network.clear();
    let node = cluster.nodes.remove(&old).expect("it exists");
    let next = cluster.wait_for_leader();
    cluster.nodes.retain(|id, _| *id == next);
    cluster.nodes.insert(old, node);
    cluster.elapse(Duration::from_secs(3));
    // Nobody else holds this, so that nobody else can lead.
    cluster.run(next, put("a", "1")).expect("written");
    let now = cluster.now;
    cluster.node(next).shard.transfer_leadership(now, None);
    cluster.advance(next).expect("it goes on");
    cluster.settle();
    assert_eq!(cluster.wait_for_leader(), old);
    // In places where the early ones stood.
    for value in 1..=8 {
        let outcome = cluster.run(old, increment("late")).expect("written");
        let Outcome::Done(results) = outcome else { panic!("{outcome:?}") };
        assert!(matches!(results[..], [OperationResult::Incremented { value: found, .. }] if found == value));
    }
    cluster.elapse(Duration::from_secs(6));
    let (mut done, mut unknown) = (0, 0);
    for ticket in early {
        match &cluster.replies[&ticket].result {
            Ok(_) => done += 1,
            Err(Refusal::OutcomeUnknown(_)) => unknown += 1,
            Err(Refusal::Unavailable(_) | Refusal::NotLeader(_)) => {}
        }
    }
    let value = value_of(cluster.run(old, get("early"))).map_or("0".into(), |value| value);
    let applied: u64 = String::from_utf8_lossy(&value).parse().expect("a number");
    assert!(
        done <= applied && applied <= done + unknown,
        "{done} done, {unknown} unknown, {applied} applied"
    );
}

pub fn a_replica_that_differs_from_a_majority_stops<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    for _ in 0..70 {
        cluster.run(leader, put("a", "1")).expect("written");
    }
    let now = cluster.now;
    let shard = &mut cluster.node(leader).shard;
    let wrong = ChainHash { index: 64, chain: 1 };
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).map(NodeId).collect();
    let tell = |from| shard.receive(now, from, ReplicaMessage::ChainHash(wrong));
    let told = others.into_iter().map(tell).collect::<Vec<_>>();
    let diverged = Err(Failure::Diverged { index: 64 });
    assert_eq!(told, [Ok(true), diverged], "one against two is wrong itself");
}

pub fn leadership_goes_to_the_member_that_is_named<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 5, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    for named in (1..=5).filter(|id| *id != leader) {
        let (now, leader) = (cluster.now, cluster.wait_for_leader());
        cluster.node(leader).shard.transfer_leadership(now, Some(NodeId(named)));
        cluster.advance(leader).expect("it goes on");
        cluster.settle();
        assert_eq!(cluster.node(named).shard.status().engine.role, Role::Leader, "{named} after {leader}");
        cluster.elapse(Duration::from_millis(100));
        cluster.run(named, put("a", "2")).expect("written");
    }
}

/// Five, so that followers which all wanted to lead would split the votes.
pub fn leadership_is_handed_over_without_an_election_timeout<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 5, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let now = cluster.now;
    cluster.node(leader).shard.transfer_leadership(now, None);
    cluster.advance(leader).expect("it goes on");
    cluster.settle();
    let leaders = cluster.leaders();
    assert_eq!(leaders.len(), 1);
    assert_ne!(leaders[0], leader);
    assert_eq!(cluster.now, now);
}

pub fn leadership_is_handed_over_though_the_word_is_lost<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let now = cluster.now;
    cluster.node(leader).shard.transfer_leadership(now, None);
    cluster.advance(leader).expect("it goes on");
    cluster.network.clear();
    cluster.elapse(Duration::from_millis(300));
    let leaders = cluster.leaders();
    assert!(leaders.len() == 1 && leaders != [leader], "{leaders:?} after {leader}");
}

pub fn leadership_is_handed_over_once_somebody_answers<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let away: Vec<_> = others.iter().map(|id| (*id, cluster.nodes.remove(id).expect("it exists"))).collect();
    cluster.elapse(Duration::from_millis(700));
    let now = cluster.now;
    cluster.node(leader).shard.transfer_leadership(now, None);
    cluster.elapse(Duration::from_millis(100));
    cluster.nodes.extend(away);
    cluster.elapse(Duration::from_millis(400));
    let leaders = cluster.leaders();
    assert!(leaders.len() == 1 && leaders != [leader], "{leaders:?} after {leader}");
}

pub fn a_leader_whose_connections_are_reset_is_replaced_without_an_election_timeout<M: Maker>(maker: &M) {
    for size in [3, 5] {
        let (mut cluster, leader) = Cluster::led(maker, size, Bounds::default());
        cluster.run(leader, put("a", "1")).expect("written");
        cluster.nodes.remove(&leader);
        let now = cluster.now;
        cluster.nodes.values_mut().for_each(|node| node.shard.disconnected(now, NodeId(leader)));
        cluster.elapse(Duration::from_millis(300));
        assert_eq!(cluster.leaders().len(), 1);
    }
}

pub fn a_leader_that_only_one_replica_has_lost_stays<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let ballot = cluster.node(leader).shard.status().engine.ballot;
    for _ in 0..20 {
        let (follower, now) = (cluster.follower(leader), cluster.now);
        cluster.node(follower).shard.disconnected(now, NodeId(leader));
        cluster.elapse(Duration::from_millis(100));
    }
    assert_eq!(cluster.node(leader).shard.status().engine.ballot, ballot);
    assert_eq!(cluster.run(leader, put("a", "2")), written(2));
}

/// Of resets at different times each counts alone.
pub fn a_leader_that_was_lost_for_a_moment_by_one_after_the_other_stays<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let ballot = cluster.node(leader).shard.status().engine.ballot;
    for follower in (1..=3).filter(|id| *id != leader).cycle().take(6) {
        let now = cluster.now;
        cluster.node(follower).shard.disconnected(now, NodeId(leader));
        // It hears the leader again.
        cluster.elapse(Duration::from_millis(1500));
    }
    assert_eq!(cluster.node(leader).shard.status().engine.ballot, ballot);
}

/// Within a few heartbeats: not when those who wait for an answer give up.
pub fn what_is_lost_with_a_connection_is_sent_again_once_there_is_one<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let (now, others) = (cluster.now, (1..=3).filter(|id| *id != leader));
    others.for_each(|other| cluster.node(leader).shard.disconnected(now, NodeId(other)));
    let ticket = cluster.submit(leader, put("a", "2"));
    cluster.sync(leader);
    cluster.network.clear();
    cluster.elapse(Duration::from_millis(300));
    assert_eq!(cluster.replies.get(&ticket).map(|reply| &reply.result), Some(&written(2)));
}

pub fn a_replica_that_was_away_counts_again_as_soon_as_it_is_back<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let away = cluster.follower(leader);
    let other = (1..=3).find(|id| ![away, leader].contains(id)).expect("one more");
    let node = cluster.nodes.remove(&away).expect("it exists");
    for number in 1..=20 {
        cluster.run(leader, put("a", &number.to_string())).expect("written");
        cluster.elapse(Duration::from_millis(100));
    }
    cluster.nodes.insert(away, node);
    cluster.elapse(Duration::from_millis(200));
    cluster.nodes.remove(&other);
    assert_eq!(cluster.run(leader, put("a", "21")), written(21));
}

/// Also one that starts again, and has the last leader's name on its disk.
pub fn who_hears_no_leader_knows_none<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let follower = cluster.follower(leader);
    cluster.nodes.retain(|id, _| *id == follower);
    for boot in 2..=3 {
        cluster.elapse(Duration::from_secs(4));
        assert_eq!(cluster.node(follower).shard.status().engine.leader, None);
        cluster.restart(follower, boot);
    }
}

pub fn leadership_is_not_handed_to_the_dead<M: Maker>(maker: &M) {
    for dead in 1..=3 {
        let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
        cluster.run(leader, put("a", "1")).expect("written");
        if dead == leader {
            continue;
        }
        cluster.nodes.remove(&dead);
        cluster.elapse(Duration::from_secs(2));
        let (now, leader) = (cluster.now, cluster.wait_for_leader());
        cluster.node(leader).shard.transfer_leadership(now, None);
        cluster.advance(leader).expect("it goes on");
        cluster.settle();
        cluster.elapse(Duration::from_millis(100));
        let alive = (1..=3).find(|id| ![dead, leader].contains(id)).expect("one more");
        assert_eq!(cluster.node(alive).shard.status().engine.role, Role::Leader, "{dead} is dead");
    }
}

pub fn an_entry_that_is_unknown_and_chosen_stops_the_replica<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 1, Bounds::default());
    let now = cluster.now;
    let index =
        cluster.node(leader).shard.engine().propose(now, Bytes::from_static(b"\xff of a later version"));
    let stopped = (0..10).find_map(|_| {
        let synced = cluster.node(leader).log.lock().sync();
        if let Some(token) = synced {
            cluster.node(leader).shard.persisted(now, token);
        }
        cluster.advance(leader).err()
    });
    let failure = stopped.expect("it does not go on");
    let Failure::UnknownEntry { index: at, .. } = &failure else { panic!("{failure:?}") };
    assert_eq!(Some(*at), index);
    assert!(failure.to_string().contains("newer"), "it says what to do: {failure}");
}

pub fn a_replica_that_was_away_catches_up_page_by_page<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let away = cluster.follower(leader);
    let node = cluster.nodes.remove(&away).expect("it exists");
    let large = "x".repeat(10_000);
    for i in 0..300 {
        cluster.run(leader, put(&format!("k{i}"), &large)).expect("written");
    }
    cluster.nodes.insert(away, node);
    cluster.restart(away, 2);
    cluster.elapse(Duration::from_secs(5));
    let leader = cluster.wait_for_leader();
    assert_eq!(cluster.applied(away), cluster.applied(leader));
    assert_eq!(value_of(cluster.run(away, get("k299"))), Some(Bytes::from(large)));
}

pub fn a_log_is_dropped_below_what_every_member_has_flushed_and_no_further<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    for _ in 0..20 {
        cluster.run(leader, put("a", "1")).expect("written");
    }
    let lagging = cluster.follower(leader);
    let flushed = cluster.applied(lagging);
    cluster.flush();
    cluster.elapse(Duration::from_secs(1));
    let node = cluster.nodes.remove(&lagging).expect("it exists");
    for _ in 0..20 {
        cluster.run(leader, put("a", "2")).expect("written");
    }
    cluster.flush();
    cluster.elapse(Duration::from_secs(3));
    let leader = cluster.wait_for_leader();
    let first = cluster.node(leader).shard.status().engine.first;
    assert!(first > 1, "something was dropped");
    assert!(first <= flushed + 1, "index {first} is the first, and one replica has flushed {flushed} only");
    cluster.nodes.insert(lagging, node);
    cluster.restart(lagging, 2);
    (1..=3).filter(|id| *id != lagging).for_each(|id| cluster.restart(id, 2));
    cluster.wait_for_leader();
    assert_eq!(value_of(cluster.run(lagging, get("a"))), Some(Bytes::from("2")));
    cluster.flush();
    cluster.elapse(Duration::from_secs(3));
    let firsts = cluster.nodes.values().map(|node| node.shard.status().engine.first);
    assert!(firsts.into_iter().all(|first| first > flushed + 1), "everybody has come up");
}

pub fn a_crash_in_the_middle_of_apply_loses_and_repeats_nothing<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let increment = || Command::single(Action::Increment { key: "n".into(), by: 1 });
    for flushed in 0..12 {
        cluster.run(leader, increment()).expect("written");
        let node = cluster.node(leader);
        // What is flushed ends anywhere.
        let unflushed = node.shard.state().unflushed();
        node.shard.state().flush_writes(unflushed.min(flushed % 3));
    }
    (1..=3).for_each(|id| cluster.restart(id, 2));
    let leader = cluster.wait_for_leader();
    assert_eq!(value_of(cluster.run(leader, get("n"))), Some(Bytes::from("12")));
}

pub fn a_leader_cut_off_serves_no_read_and_a_new_one_serves_what_was_written<M: Maker>(maker: &M) {
    let (mut cluster, old) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(old, put("a", "old")).expect("written");
    let node = cluster.nodes.remove(&old).expect("it exists");
    let new = cluster.wait_for_leader();
    cluster.run(new, put("a", "new")).expect("written");
    // It has heard of nothing.
    let others = std::mem::take(&mut cluster.nodes);
    cluster.nodes.insert(old, node);
    let read = cluster.submit(old, get("a"));
    cluster.settle();
    assert!(!cluster.replies.contains_key(&read), "nobody has confirmed that it leads");
    cluster.nodes.extend(others);
    cluster.elapse(Duration::from_secs(3));
    assert_eq!(value_of(cluster.replies.remove(&read).expect("answered").result), Some(Bytes::from("new")));
}

pub fn a_log_that_has_lost_its_end_is_refused<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let applied = cluster.applied(leader);
    let members: BTreeSet<u64> = (1..=3).collect();
    let log = cluster.node(leader).log.clone();
    let state = cluster.now;
    log.clone().submit(vec![LogRecord::DropFrom(applied)], u64::MAX);
    assert!(
        maker.open(leader, members.clone(), 7, log, applied, state).is_err(),
        "it lacks an applied entry"
    );
    let wiped = SharedLog::default();
    assert!(maker.open(leader, members, 8, wiped, applied, state).is_err(), "it lacks everything");
}

pub fn a_replica_refuses_proposals_while_leadership_is_handed_over<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let now = cluster.now;
    cluster.node(leader).shard.transfer_leadership(now, None);
    let during = cluster.submit(leader, put("a", "2"));
    cluster.settle();
    cluster.elapse(Duration::from_secs(3));
    let outcome = cluster.replies.remove(&during).expect("answered").result;
    let value = value_of(cluster.run(leader, get("a")));
    match outcome {
        Ok(_) => assert_eq!(value, Some(Bytes::from("2"))),
        Err(Refusal::NotLeader(_) | Refusal::Unavailable(_)) => assert_eq!(value, Some(Bytes::from("1"))),
        Err(Refusal::OutcomeUnknown(why)) => panic!("the cluster was whole all the time: {why}"),
    }
}

pub fn a_leader_that_lost_what_it_had_sent_puts_nothing_else_in_its_place<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "0")).expect("written");
    // The others hold the entry, its proposer's disk never gets it.
    cluster.node(leader).is_stalled = true;
    cluster.submit(leader, put("a", "sent"));
    cluster.settle();
    cluster.restart(leader, 2);
    cluster.elapse(Duration::from_secs(3));
    let next = cluster.wait_for_leader();
    cluster.run(next, put("b", "later")).expect("written");
    cluster.elapse(Duration::from_secs(3));
    let chains: BTreeSet<u128> = cluster.nodes.values().map(|node| node.shard.status().chain).collect();
    assert_eq!(chains.len(), 1, "all replicas hold the same");
    for node in 1..=3 {
        assert_eq!(value_of(cluster.run(node, get("a"))), Some(Bytes::from("sent")), "a majority held it");
    }
}

/// Nobody else could do better.
pub fn a_replica_alone_leads_though_its_disk_is_slower_than_its_timeouts<M: Maker>(maker: &M) {
    let mut cluster = Cluster::new(maker, 1, Bounds::default());
    let sync_slowly = |cluster: &mut Cluster<M>| {
        cluster.node(1).is_stalled = true;
        cluster.elapse(Duration::from_secs(3));
        cluster.node(1).is_stalled = false;
        cluster.sync(1);
    };
    (0..4).for_each(|_| sync_slowly(&mut cluster));
    for value in ["1", "2"] {
        let write = cluster.submit(1, put("a", value));
        (0..2).for_each(|_| sync_slowly(&mut cluster));
        let reply = cluster.replies.remove(&write).expect("answered");
        assert!(reply.result.is_ok(), "{reply:?}");
    }
}

/// The shortest timeout tells it, and the disks of the others were fast: its successor needs no election timeout.
pub fn a_leader_whose_disk_stalls_leads_no_more_after_the_shortest_timeout<M: Maker>(maker: &M) {
    let (mut cluster, old) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(old, put("a", "0")).expect("written");
    cluster.node(old).is_stalled = true;
    cluster.submit(old, put("a", "1"));
    cluster.elapse(Duration::from_millis(750));
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let leads = |id: &&u64| cluster.nodes[*id].shard.status().engine.role == Role::Leader;
    let new = *others.iter().find(leads).expect("another leads");
    cluster.run(new, put("a", "2")).expect("written");
}

/// Not for a moment: no time passes until the answers are there.
pub fn a_follower_whose_disk_stalls_holds_nothing_up<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "0")).expect("written");
    let follower = leader % 3 + 1;
    cluster.node(follower).is_stalled = true;
    for number in 1..=20 {
        let value = number.to_string();
        for command in [put("a", &value), get("a")] {
            let ticket = cluster.submit(leader, command);
            cluster.settle();
            let reply = cluster.replies.remove(&ticket).expect("answered");
            assert!(reply.result.is_ok(), "{reply:?}");
        }
    }
}

/// Who stands first finds that the others miss it as well.
pub fn a_leader_that_falls_silent_is_replaced_within_the_longest_timeout<M: Maker>(maker: &M) {
    for size in [3, 5] {
        let (mut cluster, leader) = Cluster::led(maker, size, Bounds::default());
        cluster.run(leader, put("a", "1")).expect("written");
        cluster.nodes.remove(&leader);
        cluster.elapse(Duration::from_millis(1300));
        assert_eq!(cluster.leaders().len(), 1);
    }
}
