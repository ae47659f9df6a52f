//! kill -9: of the leader, of a majority, of all. And nodes restarted one after another, as for a new version.

use std::time::Duration;

use keevee_client::{Consistency, ErrorKind, Write};
use keevee_cluster::until;

use crate::load::{Load, all_there};
use crate::shards::start_shards;
use crate::{PATIENCE, client, client_of, client_within, endpoint_of, get, others, put, start};

with_both_engines! {
    a_leader_killed_under_load_loses_nothing
    leaders_killed_under_a_routing_clients_load_lose_nothing
    a_rolling_restart_fails_no_request
    all_killed_at_once_lose_nothing
    without_a_majority_nothing_succeeds_falsely
}

async fn a_leader_killed_under_load_loses_nothing(engine: &str) {
    let mut cluster = start(3, engine).await;
    let load = Load::start(&cluster.endpoints(), 8);
    load.acknowledges(200).await;
    for round in 1..=3 {
        let leader = cluster.wait_ready(PATIENCE).await.expect("a leader");
        cluster.kill(leader).await.expect("killed");
        let took = load.acknowledges(20).await;
        println!("round {round}: leader {leader} killed, 20 more writes after {took:?}");
        load.acknowledges(100).await;
        cluster.start_node(leader).expect("started");
    }
    cluster.wait_ready(PATIENCE).await.expect("all ready");
    let keys = load.stop().await;
    println!("{} acknowledged writes", keys.len());
    for id in 1..=3 {
        let node = client_of(&mut cluster, id);
        all_there(&node, &keys, Consistency::Linearizable).await;
        // It has caught up then, so its own state has everything too.
        all_there(&node, &keys, Consistency::Stale).await;
    }
}

async fn leaders_killed_under_a_routing_clients_load_lose_nothing(engine: &str) {
    let mut cluster = start_shards(engine, 16).await;
    let load = Load::start_routing(&cluster.endpoints(), 16);
    load.acknowledges(200).await;
    // Each of them leads a part of the shards.
    for node in 1..=3 {
        cluster.kill(node).await.expect("killed");
        let took = load.acknowledges(100).await;
        println!("node {node} killed, 100 more writes after {took:?}");
        cluster.start_node(node).expect("started");
        cluster.wait_ready(PATIENCE).await.expect("ready");
        load.acknowledges(100).await;
    }
    let keys = load.stop().await;
    all_there(&client(cluster.endpoints()), &keys, Consistency::Linearizable).await;
}

async fn a_rolling_restart_fails_no_request(engine: &str) {
    const SHARDS: u16 = 16;
    let mut cluster = start_shards(engine, SHARDS).await;
    // Some find the leaders, some let the nodes forward.
    let loads = [Load::start_routing(&cluster.endpoints(), 8), Load::start(&cluster.endpoints(), 8)];
    let start = std::time::Instant::now();
    for node in 1..=3 {
        for load in &loads {
            load.acknowledges(100).await;
        }
        cluster.stop_node(node, PATIENCE).await.expect("stopped");
        cluster.start_node(node).expect("started");
        cluster.wait_ready(PATIENCE).await.expect("ready");
    }
    println!("three nodes restarted within {:?}", start.elapsed());
    for load in loads {
        load.acknowledges(100).await;
        let (keys, failures) = load.stop_and_count().await;
        assert_eq!(failures, 0, "every write was acknowledged within its deadline");
        println!("{} acknowledged writes", keys.len());
        all_there(&client(cluster.endpoints()), &keys, Consistency::Linearizable).await;
    }
    let nodes: Vec<_> = (1..=3).map(|node| client_of(&mut cluster, node)).collect();
    let spread = until(PATIENCE, async || {
        let mut led = Vec::new();
        for node in &nodes {
            let shards = node.status().await.ok()?.shards;
            led.push(shards.iter().filter(|replica| replica.role == "leader").count());
        }
        let is_even = led.iter().max()? - led.iter().min()? <= 1;
        // The system shard, too.
        (led.iter().sum::<usize>() == usize::from(SHARDS) + 1 && is_even).then_some(led)
    });
    let led = spread.await.expect("leaderships spread over all nodes again");
    println!("led: {led:?}");
}

async fn all_killed_at_once_lose_nothing(engine: &str) {
    let mut cluster = start(3, engine).await;
    let load = Load::start(&cluster.endpoints(), 8);
    load.acknowledges(300).await;
    cluster.kill_all().await.expect("killed");
    let start = std::time::Instant::now();
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    println!("all killed, service back after {:?}", start.elapsed());
    load.acknowledges(100).await;
    let keys = load.stop().await;
    println!("{} acknowledged writes", keys.len());
    for id in 1..=3 {
        all_there(&client_of(&mut cluster, id), &keys, Consistency::Linearizable).await;
    }
}

async fn without_a_majority_nothing_succeeds_falsely(engine: &str) {
    let mut cluster = start(3, engine).await;
    let leader = cluster.leader().await.expect("a leader");
    put(&client(cluster.endpoints()), "before", "1").await;
    let followers = others(&mut cluster, leader);
    // Once the leader is left over, once a follower.
    for survivor in [leader, followers[0]] {
        cluster.wait_ready(PATIENCE).await.expect("ready");
        crate::catches_up(&client_of(&mut cluster, survivor), "before", "1").await;
        for id in others(&mut cluster, survivor) {
            cluster.kill(id).await.expect("killed");
        }
        let refused = write_in_vain(&mut cluster, survivor).await;
        let here = client_within(vec![endpoint_of(&mut cluster, survivor)], Duration::from_secs(4));
        let read = here.get(b"before", Consistency::Linearizable).await;
        assert_eq!(read.expect_err("no majority, no read").kind, ErrorKind::Unavailable);
        let stale = here.get(b"before", Consistency::Stale).await.expect("a stale read");
        assert_eq!(stale.expect("a value").bytes, "1");

        cluster.start().expect("started");
        cluster.wait_ready(PATIENCE).await.expect("ready");
        let all = client(cluster.endpoints());
        put(&all, "after", "1").await;
        for key in refused {
            assert_eq!(get(&all, &key).await, None, "{key} was refused and came all the same");
        }
    }
}

/// Writes through the only node left: returns the keys of the writes that were refused for good.
async fn write_in_vain(cluster: &mut keevee_cluster::TemporaryCluster, survivor: u64) -> Vec<String> {
    let endpoint = endpoint_of(cluster, survivor);
    let mut refused = Vec::new();
    // Both ways to fail are right: at first, of writes that the leader has put into its log, the outcome is
    // unknown; once it has stepped down, they are refused.
    let stepped_down = until(PATIENCE, async || {
        let here = client_within(vec![endpoint.clone()], Duration::from_secs(6));
        let key = format!("vain-{survivor}-{}", uuid::Uuid::new_v4());
        let written = here.put(key.as_bytes(), key.clone(), Write::default()).await;
        match written.expect_err("no majority, no write").kind {
            ErrorKind::Unavailable => refused.push(key),
            ErrorKind::OutcomeUnknown => {}
            other => panic!("a write without a majority: {other}"),
        }
        (!refused.is_empty()).then_some(())
    });
    assert!(stepped_down.await.is_some(), "the node never says that it is unavailable");
    refused
}
