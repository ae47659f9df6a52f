//! Many shards: on nodes of their own, and over shared nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_client::{Client, Consistency, ErrorKind, Write};
use keevee_cluster::{Choices, Layout, TemporaryCluster, until};
use serde_json::Value;

use crate::{PATIENCE, client, client_of, client_within, endpoint_of, get, program, put};

with_both_engines! {
    a_key_is_on_the_nodes_of_its_group_only
    a_group_without_a_majority_takes_nobody_along
    every_node_serves_every_key_of_sixteen_shards
}

async fn start(engine: &str, nodes: u64, layout: Layout) -> TemporaryCluster {
    let choices = Choices { consensus: Some(engine.to_owned()), layout: Some(layout), ..Choices::default() };
    TemporaryCluster::start_with(program(), nodes, &choices).await.expect("a cluster")
}

/// Two groups of three nodes.
async fn start_groups(engine: &str) -> TemporaryCluster {
    start(engine, 6, Layout::Pinned { group_nodes: 3, load_factors: vec![1, 1] }).await
}

/// The shard of a key, as the asked node says.
async fn shard_of(cluster: &mut TemporaryCluster, key: &str) -> u32 {
    let endpoint = endpoint_of(cluster, 1);
    let mut node = keevee_client::Connection::open(&endpoint, PATIENCE).await.expect("a connection");
    let (_, body) = node.ask(&format!("/v1/explain?key={key}")).await.expect("an answer");
    let explained: Value = serde_json::from_slice(&body).expect("JSON");
    explained["shard"].as_u64().expect("a shard") as u32
}

/// A few keys of a shard.
async fn keys_of(cluster: &mut TemporaryCluster, shard: u32) -> Vec<String> {
    let mut keys = Vec::new();
    for number in 0.. {
        let key = format!("key-{number}");
        if shard_of(cluster, &key).await == shard {
            keys.push(key);
        }
        if keys.len() == 5 {
            break;
        }
    }
    keys
}

/// What a node's replica of a shard has applied; `None` if it holds none.
async fn applied(cluster: &mut TemporaryCluster, node: u64, shard: u32) -> Option<u64> {
    let status = client_of(cluster, node).status().await.expect("a status");
    status.shards.iter().find(|replica| replica.shard == shard).map(|replica| replica.applied)
}

async fn a_key_is_on_the_nodes_of_its_group_only(engine: &str) {
    let mut cluster = start_groups(engine).await;
    let all = client(cluster.endpoints());
    let keys = keys_of(&mut cluster, 2).await;
    let others_before = applied(&mut cluster, 1, 1).await.expect("a replica");
    for node in 1..=6 {
        assert_eq!(applied(&mut cluster, node, 1).await.is_some(), node <= 3, "shard 1 on node {node}");
        assert_eq!(applied(&mut cluster, node, 2).await.is_some(), node > 3, "shard 2 on node {node}");
    }
    for key in &keys {
        put(&all, key, "value").await;
    }
    // All of the group apply it, and it alone.
    for node in 4..=6 {
        let caught_up = until(PATIENCE, async || {
            applied(&mut cluster, node, 2).await.filter(|applied| *applied >= keys.len() as u64)
        });
        assert!(caught_up.await.is_some(), "node {node} does not catch up");
    }
    assert_eq!(applied(&mut cluster, 1, 1).await, Some(others_before));
    for node in 1..=6 {
        assert_eq!(get(&client_of(&mut cluster, node), &keys[0]).await.as_deref(), Some("value"));
    }
}

async fn a_group_without_a_majority_takes_nobody_along(engine: &str) {
    let mut cluster = start_groups(engine).await;
    let all = client(cluster.endpoints());
    let (here, there) = (keys_of(&mut cluster, 1).await, keys_of(&mut cluster, 2).await);
    for key in here.iter().chain(&there) {
        put(&all, key, "before").await;
    }
    for node in [4, 5] {
        cluster.kill(node).await.expect("killed");
    }
    // Node 6, the last of its group, and one of the other group: they serve what has a majority, and say so of the rest.
    for node in [1, 6] {
        let endpoints = vec![endpoint_of(&mut cluster, node)];
        let (patient, hasty) = (client(endpoints.clone()), client_within(endpoints, Duration::from_secs(4)));
        for key in &here {
            put(&patient, key, &format!("after-{node}")).await;
            assert_eq!(get(&patient, key).await, Some(format!("after-{node}")));
        }
        refused(&hasty, &there[0]).await;
    }
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    for key in &there {
        put(&all, key, "again").await;
    }
}

/// A read is refused as unavailable, and so is a write once no leader takes it into its log any more.
async fn refused(client: &Client, key: &str) {
    let read = client.get(key.as_bytes(), Consistency::Linearizable).await;
    assert_eq!(read.expect_err("no majority, no read").kind, ErrorKind::Unavailable);
    let refused = until(PATIENCE, async || {
        let written = client.put(key.as_bytes(), "in vain", Write::default()).await;
        match written.expect_err("no majority, no write").kind {
            ErrorKind::Unavailable => Some(()),
            ErrorKind::OutcomeUnknown => None,
            other => panic!("a write without a majority: {other}"),
        }
    });
    assert!(refused.await.is_some(), "it never says that it is unavailable");
}

async fn every_node_serves_every_key_of_sixteen_shards(engine: &str) {
    let layout = Layout::Shared { shards: 16, replicas: Some(3) };
    let mut cluster = start(engine, 4, layout).await;
    let mut shards = BTreeSet::new();
    let mut keys = Vec::new();
    for number in 0.. {
        let key = format!("key-{number}");
        shards.insert(shard_of(&mut cluster, &key).await);
        keys.push(key);
        if shards.len() == 16 && keys.len() >= 64 {
            break;
        }
    }
    for (number, key) in keys.iter().enumerate() {
        put(&client_of(&mut cluster, number as u64 % 4 + 1), key, key).await;
    }
    for node in 1..=4 {
        let here = client_of(&mut cluster, node);
        for key in &keys {
            assert_eq!(get(&here, key).await.as_ref(), Some(key), "node {node}");
        }
    }
}
