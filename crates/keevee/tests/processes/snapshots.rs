//! Nodes that were away for longer than logs last: they go on from a snapshot of another node's state.

use std::fs;
use std::path::PathBuf;

use keevee_client::{Connection, Consistency, Write};
use keevee_cluster::{TemporaryCluster, until};

use crate::joining::ask;
use crate::load::{Load, all_there};
use crate::{PATIENCE, catches_up, client, client_of, endpoint_of, put, start};

with_both_engines! {
    a_node_that_was_away_for_longer_than_logs_last_goes_on_from_a_snapshot
    a_snapshot_under_load_arrives_though_its_sender_and_its_receiver_are_killed
    logs_are_cut_before_they_are_written_out
}

/// A cluster whose logs are short: with these lines in each `[engine]` section.
pub(crate) async fn start_with_short_logs(engine: &str, lines: &str) -> TemporaryCluster {
    let mut cluster = start(3, engine).await;
    cluster.stop(PATIENCE).await.expect("stopped");
    for node in cluster.nodes() {
        let text = fs::read_to_string(node.config()).expect("a configuration");
        let short = format!("[engine]\nlog_bytes_max = 100000\nflush_interval_ms = 200\n{lines}");
        fs::write(node.config(), text.replace("[engine]\n", &short)).expect("written");
    }
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    cluster
}

/// Writes so many keys of 10 kB each; what they hold tells them apart.
pub(crate) async fn fill(cluster: &mut TemporaryCluster, name: &str, keys: u64) -> Vec<(String, String)> {
    let client = client(cluster.endpoints());
    let mut written = Vec::new();
    for number in 0..keys {
        let (key, value) = (format!("{name}-{number}"), format!("{name} {number} ").repeat(1_000));
        client.put(key.as_bytes(), value.clone(), Write::default()).await.expect("a write");
        written.push((key, value));
    }
    written
}

/// Waits until all other nodes have dropped the beginning of their logs.
pub(crate) async fn logs_begin_later(cluster: &mut TemporaryCluster, than: u64, but: u64) {
    for id in (1..=3).filter(|id| *id != but) {
        let there = endpoint_of(cluster, id);
        let dropped = until(PATIENCE, async || {
            let status = ask(&there, "/v1/cluster/status").await?;
            let shards = status["shards"].as_array()?;
            let data = shards.iter().find(|shard| shard["shard"] == 1)?;
            (data["first"].as_u64()? > than).then_some(())
        });
        assert!(dropped.await.is_some(), "node {id} keeps its log");
    }
}

pub(crate) async fn last_of(cluster: &mut TemporaryCluster, id: u64) -> u64 {
    let status = ask(&endpoint_of(cluster, id), "/v1/cluster/status").await.expect("a status");
    let shards = status["shards"].as_array().expect("shards");
    let data = shards.iter().find(|shard| shard["shard"] == 1).expect("the data shard");
    data["last"].as_u64().expect("a number")
}

/// How many snapshots of the data shard a node went on from since its start.
pub(crate) async fn taken_over(cluster: &mut TemporaryCluster, id: u64) -> u64 {
    let endpoint = endpoint_of(cluster, id);
    let mut connection = Connection::open(&endpoint, PATIENCE).await.expect("connected");
    let (_, body) = connection.ask("/metrics").await.expect("an answer");
    let metrics = String::from_utf8_lossy(&body);
    let line =
        metrics.lines().find(|line| line.starts_with("keevee_snapshots_taken_over_total{shard=\"1\"}"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("a count")
}

pub(crate) async fn holds(cluster: &mut TemporaryCluster, id: u64, written: &[(String, String)]) {
    let client = client_of(cluster, id);
    for (key, value) in written {
        let found = client.get(key.as_bytes(), Consistency::Stale).await.expect("a read");
        assert_eq!(found.map(|found| found.bytes), Some(value.clone().into()), "node {id}: {key}");
    }
}

async fn a_node_that_was_away_for_longer_than_logs_last_goes_on_from_a_snapshot(engine: &str) {
    let mut cluster = start_with_short_logs(engine, "").await;
    let mut written = fill(&mut cluster, "before", 20).await;
    // Also one that led.
    for (round, away) in [(1, 3), (2, cluster.leader().await.unwrap_or(1))] {
        let last = last_of(&mut cluster, away).await;
        cluster.kill(away).await.expect("killed");
        written.extend(fill(&mut cluster, &format!("round-{round}"), 100).await);
        logs_begin_later(&mut cluster, last + 1, away).await;
        cluster.start_node(away).expect("started");
        put(&client(cluster.endpoints()), "last", &format!("of round {round}")).await;
        catches_up(&client_of(&mut cluster, away), "last", &format!("of round {round}")).await;
        holds(&mut cluster, away, &written).await;
        assert_eq!(taken_over(&mut cluster, away).await, 1, "round {round}: one snapshot was enough");
    }
    // What they were given lasts.
    cluster.kill_all().await.expect("killed");
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    for id in 1..=3 {
        catches_up(&client_of(&mut cluster, id), "last", "of round 2").await;
        holds(&mut cluster, id, &written).await;
    }
}

/// States are flushed when a segment of the journal is nearly full, whatever time has passed.
async fn logs_are_cut_before_they_are_written_out(engine: &str) {
    let mut cluster = start(3, engine).await;
    cluster.stop(PATIENCE).await.expect("stopped");
    for node in cluster.nodes() {
        let text = fs::read_to_string(node.config()).expect("a configuration");
        let seldom = "[engine]\nflush_interval_ms = 3600000\n";
        assert!(text.contains("[engine]\n"), "{text}");
        fs::write(node.config(), text.replace("[engine]\n", seldom)).expect("written");
    }
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    let before = last_of(&mut cluster, 1).await;
    // Three quarters of a segment are 48 MiB, and RocksDB flushes 64 by itself.
    let client = client(cluster.endpoints());
    for _ in 0..60 {
        client.put(b"key", "x".repeat(900_000), Write::default()).await.expect("a write");
    }
    logs_begin_later(&mut cluster, before, 0).await;
}

/// Where a node gathers a snapshot of the data shard that is on its way.
pub(crate) fn incoming(cluster: &mut TemporaryCluster, id: u64) -> PathBuf {
    cluster.node(id).expect("a node").config().with_file_name("data").join("incoming/1")
}

async fn a_snapshot_under_load_arrives_though_its_sender_and_its_receiver_are_killed(engine: &str) {
    // Eight seconds for what is written here.
    let mut cluster = start_with_short_logs(engine, "snapshot_bytes_per_second = 1048576\n").await;
    let away = 3;
    let mut written = fill(&mut cluster, "before", 800).await;
    let load = Load::start(&cluster.endpoints(), 4);
    let folder = incoming(&mut cluster, away);
    cluster.kill(away).await.expect("killed");
    let last = last_of(&mut cluster, 1).await;
    written.extend(fill(&mut cluster, "meanwhile", 50).await);
    logs_begin_later(&mut cluster, last, away).await;
    for kills_sender in [false, true] {
        cluster.start_node(away).expect("started");
        let begun = until(PATIENCE, async || folder.exists().then_some(())).await;
        assert!(begun.is_some(), "no snapshot is on its way");
        load.acknowledges(20).await;
        if kills_sender {
            // Of the two that could send it the leader does.
            let leader = cluster.leader().await.filter(|leader| *leader != away).unwrap_or(1);
            cluster.kill(leader).await.expect("killed");
            load.acknowledges(20).await;
            cluster.start_node(leader).expect("started");
        } else {
            cluster.kill(away).await.expect("killed");
            // Or it would look as if the next one was on its way.
            let _ = fs::remove_dir_all(&folder);
        }
    }
    written.extend(fill(&mut cluster, "after", 10).await);
    let keys = load.stop().await;
    put(&client(cluster.endpoints()), "last", "of all").await;
    for id in 1..=3 {
        let node = client_of(&mut cluster, id);
        catches_up(&node, "last", "of all").await;
        holds(&mut cluster, id, &written).await;
        all_there(&node, &keys, Consistency::Stale).await;
    }
    assert!(taken_over(&mut cluster, away).await >= 1);
}
