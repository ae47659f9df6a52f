//! Shards that nobody asks anything: their clocks stand still, and go on for whatever comes.

use super::*;

const IDLE: Duration = Duration::from_secs(1);

/// A cluster whose leader has quiesced the shard, with everything told.
fn quiesced<M: Maker>(maker: &M) -> (Cluster<'_, M>, u64) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    assert_eq!(cluster.run(leader, put("a", "1")), written(1));
    cluster.elapse(IDLE);
    quiesce(&mut cluster, leader);
    for id in 1..=3 {
        assert!(is_quiesced(&cluster, id), "node {id}");
    }
    (cluster, leader)
}

pub(super) fn quiesce<M: Maker>(cluster: &mut Cluster<'_, M>, leader: u64) {
    let now = cluster.now;
    cluster.node(leader).shard.quiesce_if_idle(now, IDLE);
    cluster.advance(leader).expect("it goes on");
    cluster.settle();
}

pub(super) fn is_quiesced<M: Maker>(cluster: &Cluster<'_, M>, id: u64) -> bool {
    cluster.nodes[&id].shard.status().is_quiesced
}

/// How many messages the replicas say to each other meanwhile.
fn said_within<M: Maker>(cluster: &mut Cluster<'_, M>, time: Duration) -> usize {
    let before = cluster.delivered;
    cluster.elapse(time);
    cluster.delivered - before
}

pub fn a_shard_that_nobody_asks_says_nothing_and_serves_when_it_is_asked<M: Maker>(maker: &M) {
    let (mut cluster, leader) = quiesced(maker);
    assert_eq!(said_within(&mut cluster, Duration::from_secs(600)), 0);
    assert_eq!(cluster.wait_for_leader(), leader);
    assert_eq!(cluster.run(leader, put("a", "2")), written(2));
    assert!(said_within(&mut cluster, IDLE) > 0, "heartbeats go on");
    quiesce(&mut cluster, leader);
    let follower = cluster.follower(leader);
    assert!(is_quiesced(&cluster, follower));
    assert_eq!(said_within(&mut cluster, Duration::from_secs(600)), 0);
    assert_eq!(value_of(cluster.run(follower, get("a"))), Some(Bytes::from("2")));
    assert_eq!(cluster.wait_for_leader(), leader, "nobody else stood for election");
}

pub fn heartbeats_in_step_with_quiescing_do_not_keep_a_shard_awake<M: Maker>(maker: &M) {
    // Wherever within the interval of heartbeats the leader looks; and whether a heartbeat is on its way by then, or is sent
    // in the same step.
    for (steps, advances) in (1..=6).flat_map(|steps| [(steps, false), (steps, true)]) {
        let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
        assert_eq!(cluster.run(leader, put("a", "1")), written(1));
        cluster.elapse(IDLE);
        for step in 1..=steps {
            cluster.now += Duration::from_millis(20);
            let now = cluster.now;
            cluster.node(leader).shard.tick(now).expect("memory does not fail");
            if advances || step < steps {
                cluster.advance(leader).expect("it goes on");
            }
        }
        quiesce(&mut cluster, leader);
        for id in 1..=3 {
            assert!(is_quiesced(&cluster, id), "node {id}, {steps} steps, advances: {advances}");
        }
        assert_eq!(said_within(&mut cluster, Duration::from_secs(60)), 0);
        assert_eq!(cluster.wait_for_leader(), leader, "nobody else stood for election");
    }
}

pub fn a_late_heartbeat_wakes_the_leader_with_the_followers<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    assert_eq!(cluster.run(leader, put("a", "1")), written(1));
    cluster.elapse(IDLE);
    while cluster.network.is_empty() {
        cluster.now += Duration::from_millis(20);
        let now = cluster.now;
        cluster.node(leader).shard.tick(now).expect("memory does not fail");
        cluster.advance(leader).expect("it goes on");
    }
    let late = std::mem::take(&mut cluster.network);
    quiesce(&mut cluster, leader);
    assert!(is_quiesced(&cluster, cluster.follower(leader)));
    cluster.network = late;
    cluster.settle();
    assert!(!is_quiesced(&cluster, leader), "else nobody would send heartbeats to those that wait for them");
    cluster.elapse(2 * IDLE);
    assert_eq!(cluster.wait_for_leader(), leader, "nobody else stood for election");
    quiesce(&mut cluster, leader);
    assert!(is_quiesced(&cluster, leader) && is_quiesced(&cluster, cluster.follower(leader)));
}

pub fn a_quiesced_leader_that_dies_is_replaced<M: Maker>(maker: &M) {
    let (mut cluster, leader) = quiesced(maker);
    cluster.elapse(Duration::from_secs(60));
    cluster.nodes.remove(&leader);
    // As the nodes notice that it is silent.
    let now = cluster.now;
    cluster.nodes.values_mut().for_each(|node| node.shard.missed(now, NodeId(leader)));
    let before = cluster.now;
    let next = cluster.wait_for_leader();
    assert_ne!(next, leader);
    assert!(cluster.now - before < Duration::from_secs(4), "{:?}", cluster.now - before);
    assert_eq!(cluster.run(next, put("a", "2")), written(2));
}

pub fn a_quiesced_leader_whose_connections_are_reset_is_replaced_without_an_election_timeout<M: Maker>(
    maker: &M,
) {
    let (mut cluster, leader) = quiesced(maker);
    cluster.elapse(Duration::from_secs(60));
    cluster.nodes.remove(&leader);
    let now = cluster.now;
    for id in cluster.nodes.keys().copied().collect::<Vec<u64>>() {
        cluster.node(id).shard.disconnected(now, NodeId(leader));
        cluster.advance(id).expect("it goes on");
    }
    cluster.settle();
    cluster.elapse(Duration::from_millis(200));
    assert_ne!(cluster.wait_for_leader(), leader);
    assert!(cluster.now - now < Duration::from_millis(600), "{:?}", cluster.now - now);
}

pub fn a_restarted_follower_finds_the_leader_of_a_quiesced_shard<M: Maker>(maker: &M) {
    let (mut cluster, leader) = quiesced(maker);
    cluster.elapse(Duration::from_secs(60));
    let follower = cluster.follower(leader);
    cluster.restart(follower, 2);
    let now = cluster.now;
    cluster.node(leader).shard.disconnected(now, NodeId(follower));
    cluster.elapse(Duration::from_millis(200));
    assert_eq!(cluster.nodes[&follower].shard.leader(), Some(NodeId(leader)));
}

pub fn a_follower_that_wakes_wakes_the_leader<M: Maker>(maker: &M) {
    let (mut cluster, leader) = quiesced(maker);
    let follower = cluster.follower(leader);
    let other = (1..=3).find(|id| ![leader, follower].contains(id)).expect("three of them");
    let now = cluster.now;
    cluster.node(follower).shard.missed(now, NodeId(other));
    assert!(is_quiesced(&cluster, follower), "only its leader matters to it");
    cluster.node(follower).shard.missed(now, NodeId(leader));
    cluster.advance(follower).expect("it goes on");
    cluster.settle();
    assert!(!is_quiesced(&cluster, leader));
    cluster.elapse(Duration::from_secs(5));
    assert_eq!(cluster.wait_for_leader(), leader, "nobody else stood for election");
}

pub fn a_shard_is_not_quiesced_while_a_member_lacks_something<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let follower = cluster.follower(leader);
    cluster.node(follower).is_stalled = true;
    assert_eq!(cluster.run(leader, put("a", "1")), written(1));
    cluster.elapse(2 * IDLE);
    quiesce(&mut cluster, leader);
    assert!(!is_quiesced(&cluster, leader));
    cluster.node(follower).is_stalled = false;
    cluster.settle();
    cluster.elapse(IDLE);
    quiesce(&mut cluster, leader);
    assert!(is_quiesced(&cluster, leader) && is_quiesced(&cluster, follower));
}

pub fn a_deposed_leader_comes_to_rest_with_entries_that_nobody_else_has<M: Maker>(maker: &M) {
    let (mut cluster, old) = Cluster::led(maker, 3, Bounds { unsynced_entries_max: 9, ..Bounds::default() });
    // More of them than the next leader has entries at first.
    for value in ["1", "2", "3"] {
        cluster.submit(old, put("a", value));
    }
    cluster.network.clear();
    let deposed = cluster.nodes.remove(&old).expect("it exists");
    let leader = cluster.wait_for_leader();
    cluster.nodes.insert(old, deposed);
    // Until nobody waits for an answer any more.
    cluster.elapse(Duration::from_secs(6));
    quiesce(&mut cluster, leader);
    assert!(is_quiesced(&cluster, leader) && is_quiesced(&cluster, old));
}

pub fn a_quiesced_log_is_dropped_once_all_is_flushed<M: Maker>(maker: &M) {
    let (mut cluster, leader) = quiesced(maker);
    cluster.flush();
    assert!(!is_quiesced(&cluster, leader), "there is something to tell");
    cluster.elapse(2 * IDLE);
    let first = cluster.nodes[&leader].shard.status().engine.first;
    assert!(first > 1, "{first}");
    quiesce(&mut cluster, leader);
    cluster.flush();
    assert!(is_quiesced(&cluster, leader), "nothing new is flushed");
}
