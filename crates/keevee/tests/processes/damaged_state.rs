//! Nodes whose applied state is damaged on the disk: they find it, serve nothing of it, and are rebuilt by the others.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use keevee_client::{Connection, Consistency};
use keevee_cluster::{TemporaryCluster, until};

use crate::joining::ask;
use crate::load::{Load, all_there};
use crate::snapshots::{fill, holds, incoming, last_of, logs_begin_later, start_with_short_logs};
use crate::{PATIENCE, catches_up, client, client_of, endpoint_of, others, put, start};

with_both_engines! {
    a_flipped_bit_in_a_followers_state_is_found_and_made_good
    a_flipped_bit_in_a_leaders_state_is_found_and_made_good
    a_flipped_bit_in_a_snapshot_is_found_and_made_good
    a_state_that_can_not_be_opened_is_rebuilt
    the_only_state_there_is_is_not_given_up
    what_all_nodes_have_damaged_is_kept
}

/// The sorted files of a node's applied state that hold so much.
fn sorted_files(cluster: &mut TemporaryCluster, id: u64, bytes_min: u64) -> Vec<PathBuf> {
    let folder = cluster.node(id).expect("a node").data().join("data");
    let files = fs::read_dir(folder).expect("a folder").filter_map(|file| Some(file.ok()?.path()));
    let is_sorted = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sst");
    let is_large = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.len() >= bytes_min);
    files.filter(|path| is_sorted(path) && is_large(path)).collect()
}

/// Flips a bit of a value in each of a node's files, while it runs.
async fn flip(cluster: &mut TemporaryCluster, id: u64) {
    let files = until(PATIENCE, async || {
        let files = sorted_files(cluster, id, 100_000);
        (!files.is_empty()).then_some(files)
    });
    for path in files.await.expect("the state is flushed") {
        // A compaction may have removed it.
        let _ = flip_in(&path);
    }
}

/// Flips a bit in a file, where its records are.
fn flip_in(path: &Path) -> io::Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let (place, mut byte) = (file.metadata()?.len() / 3, [0]);
    file.read_exact_at(&mut byte, place)?;
    file.write_all_at(&[byte[0] ^ 1], place)
}

/// How often the data shard's replica of a node was rebuilt since it began anew; `None` while it does not answer.
pub(crate) async fn rebuilt(cluster: &mut TemporaryCluster, id: u64) -> Option<u64> {
    let endpoint = endpoint_of(cluster, id);
    let mut connection = Connection::open(&endpoint, PATIENCE).await.ok()?;
    let (_, body) = connection.ask("/metrics").await.ok()?;
    let metrics = String::from_utf8_lossy(&body);
    let line = metrics.lines().find(|line| line.starts_with("keevee_replicas_rebuilt_total{shard=\"1\"}"));
    line?.rsplit(' ').next()?.parse().ok()
}

/// Waits until all replicas of all nodes have applied the same, and the same way.
async fn agree(cluster: &mut TemporaryCluster) {
    let agreed = until(PATIENCE, async || {
        let mut all = Vec::new();
        for id in 1..=3 {
            let status = ask(&endpoint_of(cluster, id), "/v1/cluster/status").await?;
            let shards = status["shards"].as_array()?;
            let of = |shard: &serde_json::Value| {
                (shard["shard"].clone(), shard["applied"].clone(), shard["chain"].clone())
            };
            assert!(shards.len() == 2, "the system shard and one of data: {status}");
            all.push(shards.iter().map(of).collect::<Vec<_>>());
        }
        all.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    });
    assert!(agreed.await.is_some(), "the replicas differ");
}

fn damaged(cluster: &mut TemporaryCluster, id: u64) -> PathBuf {
    cluster.node(id).expect("a node").data().join("damaged")
}

async fn is_removed(folder: PathBuf) {
    let removed = until(PATIENCE, async || (!folder.exists()).then_some(())).await;
    assert!(removed.is_some(), "what was given up is still there");
}

async fn a_flipped_bit_in_a_followers_state_is_found_and_made_good(engine: &str) {
    a_flipped_bit_is_found_and_made_good(engine, false).await;
}

async fn a_flipped_bit_in_a_leaders_state_is_found_and_made_good(engine: &str) {
    a_flipped_bit_is_found_and_made_good(engine, true).await;
}

async fn a_flipped_bit_is_found_and_made_good(engine: &str, is_leader: bool) {
    let mut cluster = start_with_short_logs(engine, "").await;
    let kept = fill(&mut cluster, "kept", 100).await;
    let load = Load::start(&cluster.endpoints(), 4);
    load.acknowledges(50).await;
    let leader = cluster.leader().await.expect("a leader");
    let struck = if is_leader { leader } else { others(&mut cluster, leader)[0] };
    let pid = cluster.node(struck).expect("a node").pid();
    flip(&mut cluster, struck).await;
    let node = client_of(&mut cluster, struck);
    // Nothing but what was written is ever read of it, whether it serves or not.
    let found = until(PATIENCE, async || {
        for (key, value) in &kept {
            if let Ok(found) = node.get(key.as_bytes(), Consistency::Linearizable).await {
                assert_eq!(found.map(|found| found.bytes), Some(value.clone().into()), "{key}");
            }
        }
        rebuilt(&mut cluster, struck).await.filter(|count| *count > 0)
    });
    assert!(found.await.is_some(), "the damage is not found, or not made good");
    load.acknowledges(50).await;
    let keys = load.stop().await;
    put(&client(cluster.endpoints()), "last", "one").await;
    for id in 1..=3 {
        let node = client_of(&mut cluster, id);
        catches_up(&node, "last", "one").await;
        holds(&mut cluster, id, &kept).await;
        all_there(&node, &keys, Consistency::Stale).await;
    }
    agree(&mut cluster).await;
    let given_up = damaged(&mut cluster, struck);
    is_removed(given_up).await;
    assert_eq!(cluster.node(struck).expect("a node").pid(), pid, "nobody had to start it again");
    // What it was given lasts.
    cluster.kill(struck).await.expect("killed");
    cluster.start_node(struck).expect("started");
    catches_up(&client_of(&mut cluster, struck), "last", "one").await;
    holds(&mut cluster, struck, &kept).await;
}

async fn a_flipped_bit_in_a_snapshot_is_found_and_made_good(engine: &str) {
    // Some seconds for what is written here.
    let mut cluster = start_with_short_logs(engine, "snapshot_bytes_per_second = 1048576\n").await;
    let away = 3;
    let mut kept = fill(&mut cluster, "before", 300).await;
    cluster.kill(away).await.expect("killed");
    let last = last_of(&mut cluster, 1).await;
    kept.extend(fill(&mut cluster, "meanwhile", 50).await);
    logs_begin_later(&mut cluster, last, away).await;
    let folder = incoming(&mut cluster, away);
    cluster.start_node(away).expect("started");
    // What has come so far, while the rest is on its way.
    let flipped = until(PATIENCE, async || {
        let path = fs::read_dir(&folder).ok()?.next()?.ok()?.path();
        let is_begun = fs::metadata(&path).is_ok_and(|found| found.len() > 100_000);
        (is_begun && flip_in(&path).is_ok()).then_some(())
    });
    assert!(flipped.await.is_some(), "no snapshot is on its way");
    let node = client_of(&mut cluster, away);
    let found = until(PATIENCE, async || {
        for (key, value) in &kept {
            if let Ok(found) = node.get(key.as_bytes(), Consistency::Linearizable).await {
                assert_eq!(found.map(|found| found.bytes), Some(value.clone().into()), "{key}");
            }
            // Nothing at all, before there is a snapshot, or what was written.
            if let Ok(Some(found)) = node.get(key.as_bytes(), Consistency::Stale).await {
                assert_eq!(found.bytes, value, "{key}");
            }
        }
        rebuilt(&mut cluster, away).await.filter(|count| *count > 0)
    });
    assert!(found.await.is_some(), "the damage is not found, or not made good");
    put(&client(cluster.endpoints()), "last", "one").await;
    catches_up(&node, "last", "one").await;
    holds(&mut cluster, away, &kept).await;
    agree(&mut cluster).await;
}

async fn a_state_that_can_not_be_opened_is_rebuilt(engine: &str) {
    let mut cluster = start_with_short_logs(engine, "").await;
    let kept = fill(&mut cluster, "kept", 50).await;
    let struck = 2;
    for damage in ["no CURRENT", "a short file", "nothing"] {
        let files = until(PATIENCE, async || {
            Some(sorted_files(&mut cluster, struck, 10_000)).filter(|files| !files.is_empty())
        });
        files.await.expect("the state is flushed");
        cluster.kill(struck).await.expect("killed");
        let folder = cluster.node(struck).expect("a node").data().join("data");
        match damage {
            "no CURRENT" => fs::remove_file(folder.join("CURRENT")).expect("removed"),
            "a short file" => {
                for path in sorted_files(&mut cluster, struck, 10_000) {
                    let file = fs::File::options().write(true).open(path).expect("a file");
                    file.set_len(5_000).expect("cut");
                }
            }
            _ => fs::remove_dir_all(&folder).expect("removed"),
        }
        cluster.start_node(struck).expect("started");
        let made_good =
            until(PATIENCE, async || rebuilt(&mut cluster, struck).await.filter(|count| *count > 0));
        assert!(made_good.await.is_some(), "{damage}: it is not rebuilt");
        put(&client(cluster.endpoints()), "last", damage).await;
        catches_up(&client_of(&mut cluster, struck), "last", damage).await;
        holds(&mut cluster, struck, &kept).await;
        let given_up = damaged(&mut cluster, struck);
        is_removed(given_up).await;
    }
    agree(&mut cluster).await;
}

async fn the_only_state_there_is_is_not_given_up(engine: &str) {
    let mut cluster = start(1, engine).await;
    fill(&mut cluster, "kept", 10).await;
    cluster.stop(PATIENCE).await.expect("stopped");
    let folder = cluster.node(1).expect("a node").data();
    fs::remove_file(folder.join("data/CURRENT")).expect("removed");
    cluster.start().expect("started");
    let node = cluster.node(1).expect("a node");
    let status = until(PATIENCE, async || node.exit_status()).await.expect("it stops");
    assert_eq!(status.code(), Some(1), "by itself");
    let log = fs::read_to_string(node.log()).expect("a log");
    assert!(log.contains("no other node has a replica of shard"), "{log}");
    assert!(folder.join("data").exists() && !folder.join("damaged").exists(), "it is as it was");
}

async fn what_all_nodes_have_damaged_is_kept(engine: &str) {
    let mut cluster = start_with_short_logs(engine, "").await;
    let kept = fill(&mut cluster, "kept", 50).await;
    cluster.stop(PATIENCE).await.expect("stopped");
    let moved = |folder: PathBuf| (folder.join("data/CURRENT"), folder.join("moved"));
    for id in 1..=3 {
        let (current, aside) = moved(cluster.node(id).expect("a node").data());
        fs::rename(current, aside).expect("moved");
    }
    cluster.start().expect("started");
    for id in 1..=3 {
        let log = cluster.node(id).expect("a node").log();
        let says = async || {
            fs::read_to_string(&log).ok()?.contains("no other node that answers has a state").then_some(())
        };
        assert!(until(PATIENCE, says).await.is_some(), "node {id} gives up what nobody has");
        assert!(!damaged(&mut cluster, id).exists(), "node {id} has nobody to have it from");
    }
    // The others wait for one that has it.
    cluster.kill(1).await.expect("killed");
    let (current, aside) = moved(cluster.node(1).expect("a node").data());
    fs::rename(aside, current).expect("moved back");
    cluster.start_node(1).expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    put(&client(cluster.endpoints()), "last", "one").await;
    for id in 1..=3 {
        catches_up(&client_of(&mut cluster, id), "last", "one").await;
        holds(&mut cluster, id, &kept).await;
    }
    agree(&mut cluster).await;
}
