//! Scrubs: replicas compare what their states hold.

use super::quiescence::{is_quiesced, quiesce};
use super::*;
use crate::storage::{MemorySource, StorageError};
use crate::{Content, Difference, Scrub, ScrubMessage, ScrubProgress};

/// Begins a scrub: each replica that takes part has a view when this returns.
fn begin<M: Maker>(cluster: &mut Cluster<'_, M>, leader: u64) {
    let now = cluster.now;
    assert!(cluster.node(leader).shard.scrub(now), "it leads, and no other is under way");
    cluster.advance(leader).expect("it goes on");
    cluster.settle();
    cluster.elapse(Duration::from_millis(200));
}

fn content(mut scrub: Scrub<MemorySource>) -> Content {
    loop {
        match scrub.read(16).expect("memory does not fail") {
            ScrubProgress::Page(bytes) => assert!(bytes > 0),
            ScrubProgress::Done(content) => return content,
        }
    }
}

/// Has a node read its view and tell what is in it.
fn read<M: Maker>(cluster: &mut Cluster<'_, M>, id: u64) -> Result<(), Failure> {
    let now = cluster.now_of(id);
    let shard = &mut cluster.node(id).shard;
    let scrub = shard.take_scrub().expect("it takes part");
    let index = scrub.index();
    assert!(shard.is_scrubbing(index));
    shard.scrubbed(now, index, Ok(content(scrub)))?;
    cluster.advance(id).expect("it goes on");
    cluster.settle();
    Ok(())
}

/// Who agrees with a node, and who does not.
fn found<M: Maker>(cluster: &Cluster<'_, M>, id: u64) -> (Vec<u64>, Vec<u64>) {
    let scrub = cluster.nodes[&id].shard.status().scrub.expect("it took part");
    let list = |nodes: BTreeSet<NodeId>| nodes.into_iter().map(|node| node.0).collect();
    (list(scrub.agree), list(scrub.differ))
}

fn is_damaged(result: &Result<(), Failure>) -> bool {
    matches!(result, Err(Failure::Storage(StorageError::Damaged { .. })))
}

/// A cluster with some keys, and its leader.
fn filled<M: Maker>(maker: &M) -> (Cluster<'_, M>, u64) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    for number in 0..10 {
        let request_id = Some(RequestId::Free(number));
        let command = Command { request_id, ..put(&format!("key-{number}"), "value") };
        cluster.run(leader, command).expect("written");
    }
    (cluster, leader)
}

pub fn equal_states_agree_while_writes_go_on<M: Maker>(maker: &M) {
    let (mut cluster, leader) = filled(maker);
    for number in 0..5 {
        cluster.submit(leader, put("before", &number.to_string()));
    }
    begin(&mut cluster, leader);
    // Behind the view: each replica reads after another number of writes.
    for id in 1..=3 {
        cluster.run(leader, put("behind", &id.to_string())).expect("written");
        read(&mut cluster, id).expect("it agrees");
    }
    for id in 1..=3 {
        assert_eq!(found(&cluster, id), (vec![1, 2, 3], vec![]), "node {id}");
        assert_eq!(cluster.node(id).shard.take_differences(), []);
        let content = cluster.nodes[&id].shard.status().scrub.expect("it took part").content;
        // Eleven keys, ten requests, and what else a state has.
        assert!(content.records >= 21 && content.bytes > 100, "{content:?}");
    }
}

pub fn a_record_that_was_changed_is_found_by_its_replica_and_by_the_others<M: Maker>(maker: &M) {
    for damaged in 1..=3 {
        let (mut cluster, leader) = filled(maker);
        let rotten = cluster.node(damaged).shard.state().rot(3).expect("there are ten");
        assert_eq!(&rotten.1[..], b"key-3");
        begin(&mut cluster, leader);
        read(&mut cluster, damaged).expect("it does not know yet");
        let others: Vec<u64> = (1..=3).filter(|id| *id != damaged).collect();
        read(&mut cluster, others[0]).expect("one against one is right");
        let index = cluster.nodes[&others[0]].shard.status().scrub.expect("it took part").index;
        let difference = Difference { index, node: NodeId(damaged), is_outvoted: false };
        assert_eq!(cluster.node(others[0]).shard.take_differences(), [difference]);

        let scrub = cluster.node(others[1]).shard.take_scrub().expect("it takes part");
        let (now, content) = (cluster.now_of(others[1]), content(scrub));
        cluster.node(others[1]).shard.scrubbed(now, index, Ok(content)).expect("it has a majority");
        let difference = Difference { is_outvoted: true, ..difference };
        assert_eq!(cluster.node(others[1]).shard.take_differences(), [difference]);
        assert_eq!(found(&cluster, others[1]), (others.clone(), vec![damaged]));
        let told = ScrubMessage::Content { index, layout: 1, digest: content.digest };
        let now = cluster.now;
        let told = cluster.node(damaged).shard.receive(now, NodeId(others[1]), ReplicaMessage::Scrub(told));
        assert!(is_damaged(&told.map(drop)), "node {damaged} must not go on");
    }
}

pub fn a_replica_that_reads_last_learns_that_its_state_is_damaged<M: Maker>(maker: &M) {
    let (mut cluster, leader) = filled(maker);
    let damaged = cluster.follower(leader);
    cluster.node(damaged).shard.state().rot(0).expect("there are ten");
    begin(&mut cluster, leader);
    for id in (1..=3).filter(|id| *id != damaged) {
        read(&mut cluster, id).expect("it agrees");
    }
    assert!(is_damaged(&read(&mut cluster, damaged)));
}

pub fn a_state_that_cannot_be_read_is_damaged<M: Maker>(maker: &M) {
    let (mut cluster, leader) = filled(maker);
    begin(&mut cluster, leader);
    let now = cluster.now_of(leader);
    let shard = &mut cluster.node(leader).shard;
    let index = shard.take_scrub().expect("it takes part").index();
    let corrupt = StorageError::Corrupt { what: "reading a snapshot", cause: "a checksum".to_owned() };
    let read = shard.scrubbed(now, index, Err(corrupt.clone()));
    assert_eq!(read, Err(Failure::Storage(corrupt.of_state())));
}

pub fn a_member_that_is_away_is_left_out<M: Maker>(maker: &M) {
    let (mut cluster, leader) = filled(maker);
    let away = cluster.follower(leader);
    let node = cluster.nodes.remove(&away).expect("it exists");
    begin(&mut cluster, leader);
    let here: Vec<u64> = cluster.nodes.keys().copied().collect();
    for id in &here {
        read(&mut cluster, *id).expect("it agrees");
    }
    assert_eq!(found(&cluster, leader), (here, vec![]));
    // It is back, and takes part in the next.
    cluster.nodes.insert(away, node);
    cluster.elapse(Duration::from_secs(2));
    let leader = cluster.wait_for_leader();
    begin(&mut cluster, leader);
    (1..=3).for_each(|id| read(&mut cluster, id).expect("it agrees"));
    assert_eq!(found(&cluster, leader), (vec![1, 2, 3], vec![]));
}

pub fn only_a_leader_begins_a_scrub_and_one_at_a_time<M: Maker>(maker: &M) {
    let (mut cluster, leader) = filled(maker);
    let (now, follower) = (cluster.now, cluster.follower(leader));
    assert!(!cluster.node(follower).shard.scrub(now), "it does not lead");
    begin(&mut cluster, leader);
    assert!(!cluster.node(leader).shard.scrub(now), "one is under way");
    read(&mut cluster, leader).expect("it agrees");
    // The others still read the first: they are left out of the second, and that is finished nevertheless.
    begin(&mut cluster, leader);
    read(&mut cluster, leader).expect("it agrees");
    assert_eq!(found(&cluster, leader), (vec![leader], vec![]));
    read(&mut cluster, follower).expect("it agrees");
    assert_eq!(found(&cluster, follower), (BTreeSet::from([leader, follower]).into_iter().collect(), vec![]));
}

pub fn a_scrub_goes_on_when_its_leader_is_gone<M: Maker>(maker: &M) {
    let (mut cluster, old) = filled(maker);
    begin(&mut cluster, old);
    cluster.nodes.remove(&old).expect("it exists");
    cluster.wait_for_leader();
    let here: Vec<u64> = cluster.nodes.keys().copied().collect();
    for id in &here {
        read(&mut cluster, *id).expect("it agrees");
    }
    assert_eq!(found(&cluster, here[0]), (here.clone(), vec![]));
}

pub fn a_quiesced_shard_is_scrubbed_and_comes_to_rest_while_it_is_read<M: Maker>(maker: &M) {
    let (mut cluster, leader) = filled(maker);
    cluster.elapse(Duration::from_secs(2));
    quiesce(&mut cluster, leader);
    assert!(is_quiesced(&cluster, leader));
    begin(&mut cluster, leader);
    cluster.elapse(Duration::from_secs(2));
    quiesce(&mut cluster, leader);
    assert!((1..=3).all(|id| is_quiesced(&cluster, id)), "nothing is read yet");
    (1..=3).for_each(|id| read(&mut cluster, id).expect("it agrees"));
    assert_eq!(found(&cluster, leader), (vec![1, 2, 3], vec![]));
    assert!((1..=3).all(|id| is_quiesced(&cluster, id)), "what was found wakes nobody");
}

pub fn a_scrub_gives_way_to_a_change_of_members<M: Maker>(maker: &M) {
    let (mut cluster, leader) = filled(maker);
    begin(&mut cluster, leader);
    let index = cluster.node(leader).shard.take_scrub().expect("it takes part").index();
    let (now, ballot) = (cluster.now, cluster.nodes[&leader].shard.status().engine.ballot);
    let stays: BTreeSet<NodeId> = [leader, cluster.follower(leader)].map(NodeId).into();
    cluster.node(leader).shard.want_voters(now, &ballot, stays.clone());
    cluster.elapse(Duration::from_secs(3));
    assert_eq!(cluster.nodes[&leader].shard.members().voters, stays);
    assert!(!cluster.nodes[&leader].shard.is_scrubbing(index));
    let now = cluster.now_of(leader);
    let shard = &mut cluster.node(leader).shard;
    shard.scrubbed(now, index, Ok(Content::default())).expect("it comes late");
    assert_eq!(shard.status().scrub, None);
}
