//! Many shards: on nodes of their own, and over shared nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use keevee_client::{Client, Consistency, Endpoint, ErrorKind, Write};
use keevee_cluster::{Choices, Layout, TemporaryCluster, until};
use keevee_core::shard_map::view::CarpView;
use keevee_core::slot_table::SlotTable;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::joining::{ask, post};
use crate::{PATIENCE, client, client_of, client_within, endpoint_of, get, program, put, routing_client};

with_both_engines! {
    a_key_is_on_the_nodes_of_its_group_only
    a_group_without_a_majority_takes_nobody_along
    one_shard_is_served_everywhere
    three_shards_are_served_everywhere
    sixteen_shards_are_served_everywhere
    a_hundred_and_twenty_eight_shards_are_served_everywhere
    a_client_with_an_old_map_ends_up_right
    a_map_that_is_wrong_about_members_costs_a_detour
    of_two_map_changes_at_once_one_wins
}

async fn start(engine: &str, nodes: u64, layout: Layout) -> TemporaryCluster {
    let choices = Choices { consensus: Some(engine.to_owned()), layout: Some(layout), ..Choices::default() };
    TemporaryCluster::start_with(program(), nodes, &choices).await.expect("a cluster")
}

/// Three nodes that hold all of so many shards.
pub(crate) async fn start_shards(engine: &str, shards: u16) -> TemporaryCluster {
    start(engine, 3, Layout::Shared { shards, replicas: None }).await
}

/// Two groups of three nodes.
async fn start_groups(engine: &str) -> TemporaryCluster {
    start(engine, 6, Layout::Pinned { group_nodes: 3, load_factors: vec![1, 1] }).await
}

/// The shard map as node 1 tells it.
async fn map(cluster: &mut TemporaryCluster) -> Value {
    ask(&endpoint_of(cluster, 1), "/v1/cluster/carp").await.expect("a map")
}

/// A few keys of each shard that owns any.
async fn keys_by_shard(cluster: &mut TemporaryCluster) -> BTreeMap<u32, Vec<String>> {
    let view: CarpView = serde_json::from_value(map(cluster).await).expect("a map");
    let table = SlotTable::from_runs(&view.slots).expect("a table");
    let mut keys: BTreeMap<u32, Vec<String>> =
        table.counts().into_keys().map(|shard| (shard.0, Vec::new())).collect();
    for number in 0.. {
        let key = format!("key-{number}");
        let of_shard = keys.get_mut(&table.owner_of_key(key.as_bytes()).0).expect("it owns a slot");
        if of_shard.len() < 3 {
            of_shard.push(key);
        }
        if keys.values().all(|keys| keys.len() == 3) {
            break;
        }
    }
    keys
}

/// Adds a shard, as soon as there is a map to change: the status, and the answer.
async fn add_shard(node: &Endpoint, name: &str) -> (u16, Value) {
    post(node, "/v1/cluster/shards", &json!({ "name": name })).await
}

/// What a node's replica of a shard has applied; `None` if it holds none.
async fn applied(cluster: &mut TemporaryCluster, node: u64, shard: u32) -> Option<u64> {
    let status = client_of(cluster, node).status().await.expect("a status");
    status.shards.iter().find(|replica| replica.shard == shard).map(|replica| replica.applied)
}

async fn a_key_is_on_the_nodes_of_its_group_only(engine: &str) {
    let mut cluster = start_groups(engine).await;
    let all = client(cluster.endpoints());
    let keys = keys_by_shard(&mut cluster).await.remove(&2).expect("it owns keys");
    // Until it has applied its leader's first entry, which changes nothing.
    let others_before =
        until(PATIENCE, async || applied(&mut cluster, 1, 1).await.filter(|index| *index > 0));
    let others_before = others_before.await.expect("a leader in time");
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
    let keys = keys_by_shard(&mut cluster).await;
    let (here, there) = (&keys[&1], &keys[&2]);
    for key in here.iter().chain(there) {
        put(&all, key, "before").await;
    }
    for node in [4, 5] {
        cluster.kill(node).await.expect("killed");
    }
    // Node 6, the last of its group, and one of the other group: they serve what has a majority, and say so of the rest.
    for node in [1, 6] {
        let endpoints = vec![endpoint_of(&mut cluster, node)];
        let (patient, hasty) = (client(endpoints.clone()), client_within(endpoints, Duration::from_secs(4)));
        for key in here {
            put(&patient, key, &format!("after-{node}")).await;
            assert_eq!(get(&patient, key).await, Some(format!("after-{node}")));
        }
        refused(&hasty, &there[0]).await;
    }
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    for key in there {
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

async fn one_shard_is_served_everywhere(engine: &str) {
    every_key_is_served_everywhere(engine, 1).await;
}

async fn three_shards_are_served_everywhere(engine: &str) {
    every_key_is_served_everywhere(engine, 3).await;
}

async fn sixteen_shards_are_served_everywhere(engine: &str) {
    every_key_is_served_everywhere(engine, 16).await;
}

async fn a_hundred_and_twenty_eight_shards_are_served_everywhere(engine: &str) {
    every_key_is_served_everywhere(engine, 128).await;
}

/// Written and read through every node, and by a client that goes to the leaders by itself.
async fn every_key_is_served_everywhere(engine: &str, shards: u16) {
    let mut cluster = start_shards(engine, shards).await;
    let by_shard = keys_by_shard(&mut cluster).await;
    assert_eq!(by_shard.len(), usize::from(shards));
    let keys: Vec<String> = by_shard.into_values().flatten().collect();
    let mut clients = vec![routing_client(cluster.endpoints())];
    for node in 1..=3 {
        clients.push(client_of(&mut cluster, node));
    }
    // Each key through another one, and again through all.
    for (at, client) in clients.iter().enumerate() {
        let own = keys.iter().skip(at).step_by(clients.len());
        for written in client.multi_put(own.map(|key| (key.clone(), key.clone()))).await {
            written.expect("a write");
        }
    }
    for (at, client) in clients.iter().enumerate() {
        let read = client.multi_get(&keys, Consistency::Linearizable).await;
        for (key, value) in keys.iter().zip(read) {
            let value = value.expect("a read").map(|value| value.bytes);
            assert_eq!(value.as_deref(), Some(key.as_bytes()), "{key} by client {at}");
        }
    }
}

async fn a_client_with_an_old_map_ends_up_right(engine: &str) {
    let mut cluster = start_shards(engine, 4).await;
    let keys: Vec<String> = keys_by_shard(&mut cluster).await.into_values().flatten().collect();
    let old = routing_client(cluster.endpoints());
    for key in &keys {
        put(&old, key, "before").await;
    }
    let one = endpoint_of(&mut cluster, 1);
    let (status, shard) = add_shard(&one, "late").await;
    assert_eq!(status, 201, "{shard}");
    assert_eq!(shard["engine"], engine, "as all of the cluster, since nobody said otherwise");
    // Every leadership goes elsewhere, and some come back.
    for node in 1..=3 {
        cluster.stop_node(node, PATIENCE).await.expect("stopped");
        for key in &keys {
            put(&old, key, &format!("without {node}")).await;
        }
        cluster.start_node(node).expect("started");
        cluster.wait_ready(PATIENCE).await.expect("ready");
    }
    for key in &keys {
        assert_eq!(get(&old, key).await.as_deref(), Some("without 3"));
    }
}

/// Tells whoever asks for the shard map this one, and serves nothing else.
async fn tell(listener: TcpListener, map: String) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = [0; 1024];
        let count = stream.read(&mut head).await.unwrap_or_default();
        if head[..count].starts_with(b"GET /v1/cluster/carp ") {
            let length = map.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{map}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }
}

async fn a_map_that_is_wrong_about_members_costs_a_detour(engine: &str) {
    let mut cluster = start_groups(engine).await;
    let keys = keys_by_shard(&mut cluster).await;
    let mut wrong = map(&mut cluster).await;
    // Shard 1 is said to be where shard 2 is, and the other way round; of the same epoch, so that nobody thinks it old.
    let shards = wrong["shards"].as_array_mut().expect("shards");
    for shard in shards.iter_mut().filter(|shard| shard["id"] != 0) {
        let others = if shard["id"] == 1 { [4, 5, 6] } else { [1, 2, 3] };
        shard["members"] = json!(others);
        shard["leader"] = Value::Null;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let seed: Endpoint = listener.local_addr().expect("bound").to_string().parse().expect("an endpoint");
    let telling = tokio::spawn(tell(listener, wrong.to_string()));
    let misled = routing_client(vec![seed]);
    for key in keys.values().flatten() {
        put(&misled, key, key).await;
    }
    for node in [1, 4] {
        let there = client_of(&mut cluster, node);
        for key in keys.values().flatten() {
            assert_eq!(get(&there, key).await.as_ref(), Some(key));
        }
    }
    telling.abort();
}

async fn of_two_map_changes_at_once_one_wins(engine: &str) {
    let mut cluster = start_shards(engine, 1).await;
    let (one, two) = (endpoint_of(&mut cluster, 1), endpoint_of(&mut cluster, 2));
    assert_eq!(add_shard(&one, "first").await.0, 201);
    let add = async |node: &Endpoint, name: String| {
        let (status, answer) = add_shard(node, &name).await;
        (name, status, answer)
    };
    let (mut added, mut round) = (Vec::new(), 0);
    // Mostly they meet at once; if one was faster, again.
    let refused = until(PATIENCE, async || {
        round += 1;
        let both = tokio::join!(add(&one, format!("a-{round}")), add(&two, format!("b-{round}")));
        let (won, lost): (Vec<_>, Vec<_>) =
            [both.0, both.1].into_iter().partition(|(_, status, _)| *status == 201);
        added.extend(won.into_iter().map(|(name, ..)| name));
        assert!(lost.len() < 2, "one of them comes first: {lost:?}");
        lost.into_iter().next()
    });
    let (name, status, problem) = refused.await.expect("two changes meet");
    assert_eq!((status, problem["kind"].as_str()), (409, Some("conflict")), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("try again")), "{problem}");
    let names = |map: Value| -> Vec<String> {
        let shards = map["shards"].as_array().expect("shards").iter();
        shards.map(|shard| shard["name"].as_str().expect("a name").to_owned()).collect()
    };
    // The node that is asked follows soon.
    let all_there = until(PATIENCE, async || {
        let there = names(map(&mut cluster).await);
        added.iter().all(|name| there.contains(name)).then_some(there)
    });
    let there = all_there.await.expect("what was added is there");
    assert!(!there.contains(&name), "{name} was refused and is there: {there:?}");
    let (_, status, answer) = add(&one, name).await;
    assert_eq!(status, 201, "{answer}");
}
