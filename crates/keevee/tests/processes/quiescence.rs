//! Shards that nobody asks anything say nothing to each other, and are there when they are asked.

use keevee_cluster::{Choices, Layout, TemporaryCluster, until};

use crate::{PATIENCE, client, client_of, endpoint_of, get, others, program, put};

with_both_engines! {
    a_quiesced_shard_wakes_when_its_leaders_node_has_restarted
    a_quiesced_shard_is_led_by_another_while_its_leaders_node_is_paused
    quiesced_shards_serve_after_everything_was_killed
    shards_that_not_every_node_holds_become_quiet_and_are_led_evenly
}

const KEYS: [&str; 4] = ["blue", "green", "red", "white"];

/// Three nodes with four shards, a few keys in them, and nothing to do.
async fn quiet(engine: &str) -> TemporaryCluster {
    let layout = Layout::Shared { shards: 4, replicas: Some(3) };
    let choices = Choices { consensus: Some(engine.to_owned()), layout: Some(layout), ..Choices::default() };
    let mut cluster = TemporaryCluster::start_with(program(), 3, &choices).await.expect("a cluster");
    let all = client(cluster.endpoints());
    for key in KEYS {
        put(&all, key, "before").await;
    }
    becomes_quiet(&mut cluster).await;
    cluster
}

/// Waits until every replica on every node is quiesced, those of the system shard too.
async fn becomes_quiet(cluster: &mut TemporaryCluster) {
    for node in 1..=3 {
        let here = client_of(cluster, node);
        let quiet = until(PATIENCE, async || {
            let status = here.status().await.ok()?;
            status.shards.iter().all(|replica| replica.quiesced).then_some(())
        });
        assert!(quiet.await.is_some(), "node {node} does not become quiet");
    }
}

async fn leader(cluster: &mut TemporaryCluster) -> u64 {
    cluster.leader().await.expect("a leader")
}

async fn a_quiesced_shard_wakes_when_its_leaders_node_has_restarted(engine: &str) {
    let mut cluster = quiet(engine).await;
    for round in 1..=3 {
        let leader = leader(&mut cluster).await;
        cluster.kill(leader).await.expect("killed");
        cluster.start().expect("started");
        cluster.wait_ready(PATIENCE).await.expect("ready");
        // At every node at once, the restarted one too.
        for node in 1..=3 {
            let here = client_of(&mut cluster, node);
            for key in KEYS {
                put(&here, key, &format!("{round} {node}")).await;
                assert_eq!(get(&here, key).await, Some(format!("{round} {node}")));
            }
        }
        becomes_quiet(&mut cluster).await;
    }
}

async fn a_quiesced_shard_is_led_by_another_while_its_leaders_node_is_paused(engine: &str) {
    let mut cluster = quiet(engine).await;
    let leader = leader(&mut cluster).await;
    cluster.pause(leader).expect("paused");
    let survivors = others(&mut cluster, leader);
    let elsewhere = client(survivors.iter().map(|id| endpoint_of(&mut cluster, *id)).collect());
    for key in KEYS {
        put(&elsewhere, key, "meanwhile").await;
    }
    cluster.resume(leader).expect("awake");
    let woken = client_of(&mut cluster, leader);
    for key in KEYS {
        assert_eq!(get(&woken, key).await.as_deref(), Some("meanwhile"), "{key}");
    }
    becomes_quiet(&mut cluster).await;
}

async fn quiesced_shards_serve_after_everything_was_killed(engine: &str) {
    let mut cluster = quiet(engine).await;
    for node in 1..=3 {
        cluster.kill(node).await.expect("killed");
    }
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    let all = client(cluster.endpoints());
    for key in KEYS {
        assert_eq!(get(&all, key).await.as_deref(), Some("before"), "{key}");
    }
    becomes_quiet(&mut cluster).await;
}

async fn shards_that_not_every_node_holds_become_quiet_and_are_led_evenly(engine: &str) {
    let layout = Layout::Shared { shards: 16, replicas: Some(3) };
    let choices = Choices { consensus: Some(engine.to_owned()), layout: Some(layout), ..Choices::default() };
    let mut cluster = TemporaryCluster::start_with(program(), 5, &choices).await.expect("a cluster");
    let nodes: Vec<_> = (1..=5).map(|node| client_of(&mut cluster, node)).collect();
    // All at once: leaderships that wander keep some shard awake.
    let settled = until(PATIENCE, async || {
        let mut led = Vec::new();
        for node in &nodes {
            let shards = node.status().await.ok()?.shards;
            if !shards.iter().all(|replica| replica.quiesced) {
                return None;
            }
            led.push(shards.iter().filter(|replica| replica.role == "leader").count());
        }
        let is_even = led.iter().max()? - led.iter().min()? <= 2;
        (led.iter().sum::<usize>() == 17 && is_even).then_some(led)
    });
    let led = settled.await.expect("all quiet, and led evenly");
    println!("led: {led:?}");
}
