//! Replicas that compare what lies on their disks: what was changed there is found, and made good.

use std::fs;
use std::path::Path;

use keevee_client::{Client, Connection, ScrubStatus};
use keevee_cluster::{TemporaryCluster, until};
use keevee_server::storage::{DataFolder, flush_states};

use crate::command_line::run;
use crate::damaged_state::rebuilt;
use crate::{PATIENCE, catches_up, client, client_of, endpoint_of, get, others, put, start};

with_both_engines! {
    replicas_that_hold_the_same_agree
    a_value_that_was_changed_in_one_nodes_data_is_found
    a_flipped_byte_in_a_file_of_one_nodes_data_is_found
}

const VALUE: &str = "a value that nobody reads for long";

/// The data shard's last scrub, as a node has it.
async fn last_scrub(node: &Client) -> Option<ScrubStatus> {
    let status = node.status().await.ok()?;
    status.shards.into_iter().find(|shard| shard.shard == 1)?.scrub
}

/// Has the cluster scrub its shards.
fn scrub(cluster: &TemporaryCluster) {
    let (code, stdout, stderr) = run(cluster, &["shards", "scrub", "--output", "json"]);
    assert!(code == 0 && stdout.contains("shards"), "{code}: {stdout}{stderr}");
}

/// Waits until a node has compared its data shard with that of these nodes, itself among them; what it saw.
async fn agrees_with(cluster: &mut TemporaryCluster, id: u64, nodes: &[u64]) -> ScrubStatus {
    let node = client_of(cluster, id);
    let agreed = until(PATIENCE, async || last_scrub(&node).await.filter(|scrub| scrub.agree == nodes));
    agreed.await.unwrap_or_else(|| panic!("node {id} does not agree with {nodes:?}"))
}

async fn replicas_that_hold_the_same_agree(engine: &str) {
    let mut cluster = start(3, engine).await;
    for number in 0..100 {
        put(&client(cluster.endpoints()), &format!("key-{number}"), VALUE).await;
    }
    scrub(&cluster);
    for id in 1..=3 {
        let scrub = agrees_with(&mut cluster, id, &[1, 2, 3]).await;
        assert!(scrub.differ.is_empty());
        assert!(scrub.records >= 100 && scrub.bytes > 100 * VALUE.len() as u64, "{scrub:?}");
        let endpoint = endpoint_of(&mut cluster, id);
        let mut connection = Connection::open(&endpoint, PATIENCE).await.expect("connected");
        let (_, metrics) = connection.ask("/metrics").await.expect("an answer");
        let metrics = String::from_utf8_lossy(&metrics).into_owned();
        let records = format!("keevee_scrub_records{{shard=\"1\"}} {}\n", scrub.records);
        assert!(metrics.contains(&records), "{metrics}");
        assert!(metrics.contains("keevee_scrub_differences_total{shard=\"1\"} 0\n"), "{metrics}");
    }
    let (code, stdout, stderr) = run(&cluster, &["shards", "scrub", "99"]);
    assert!(code == 3 && stdout.is_empty(), "{code}: {stdout}{stderr}");
    assert!(stderr.contains("there is no shard 99"), "{stderr}");
}

/// A cluster with a key, of which a node's data is changed while that node is stopped; then all nodes run. The node.
async fn with_damage(engine: &str, damage: impl Fn(&Path)) -> (TemporaryCluster, u64) {
    let mut cluster = start(3, engine).await;
    // With others on both sides, each as large as a block: a start reads what is first and last.
    for number in 0..10 {
        for side in ["a", "z"] {
            put(&client(cluster.endpoints()), &format!("{side}-{number}"), &"filler".repeat(1_000)).await;
        }
    }
    put(&client(cluster.endpoints()), "key", VALUE).await;
    let leader = cluster.leader().await.expect("a leader");
    let struck = others(&mut cluster, leader)[0];
    catches_up(&client_of(&mut cluster, struck), "key", VALUE).await;
    // In order, so that no log replays the value.
    cluster.stop_node(struck, PATIENCE).await.expect("stopped");
    damage(&cluster.node(struck).expect("a node").data());
    cluster.start_node(struck).expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    put(&client(cluster.endpoints()), "later", "1").await;
    catches_up(&client_of(&mut cluster, struck), "later", "1").await;
    (cluster, struck)
}

/// Scrubs until the damaged node is rebuilt; its log must say why. Then all hold what is right.
async fn is_found(mut cluster: TemporaryCluster, struck: u64, why: &str) {
    let is_rebuilt = until(PATIENCE, async || {
        // Whoever led may have just handed over.
        scrub(&cluster);
        rebuilt(&mut cluster, struck).await.filter(|count| *count > 0)
    });
    assert!(is_rebuilt.await.is_some(), "the damage is not found, or not made good");
    let log = fs::read_to_string(cluster.node(struck).expect("a node").log()).expect("a log");
    assert!(log.contains(why), "its log does not tell of {why:?}:\n{log}");
    catches_up(&client_of(&mut cluster, struck), "key", VALUE).await;
    assert_eq!(get(&client(cluster.endpoints()), "key").await.as_deref(), Some(VALUE));
    until(PATIENCE, async || {
        scrub(&cluster);
        let node = client_of(&mut cluster, struck);
        last_scrub(&node).await.filter(|scrub| scrub.agree == [1, 2, 3])
    })
    .await
    .expect("all replicas agree");
}

async fn a_value_that_was_changed_in_one_nodes_data_is_found(engine: &str) {
    let change = |data: &Path| {
        let (folder, _journal) = DataFolder::open(data).expect("a folder");
        let mut records = folder.data.raw_iterator();
        records.seek_to_first();
        while !records.value().expect("it is there").ends_with(VALUE.as_bytes()) {
            records.next();
        }
        let (key, value) = records.item().expect("it is there");
        let (key, mut value) = (key.to_vec(), value.to_vec());
        *value.last_mut().expect("it is not empty") ^= 1;
        folder.data.put(key, value).expect("written");
        flush_states(&folder.data).expect("flushed");
    };
    let (cluster, struck) = with_damage(engine, change).await;
    is_found(cluster, struck, "holds something else than that of a majority").await;
}

async fn a_flipped_byte_in_a_file_of_one_nodes_data_is_found(engine: &str) {
    let flip = |data: &Path| {
        let files =
            fs::read_dir(data.join("data")).expect("a folder").map(|file| file.expect("a file").path());
        let flipped =
            files.filter(|path| path.extension().is_some_and(|ending| ending == "sst")).filter(|path| {
                let mut bytes = fs::read(path).expect("read");
                let found = bytes.windows(VALUE.len()).position(|window| window == VALUE.as_bytes());
                if let Some(at) = found {
                    bytes[at] ^= 1;
                    fs::write(path, bytes).expect("written");
                }
                found.is_some()
            });
        assert_eq!(flipped.count(), 1, "it is in one file");
    };
    let (cluster, struck) = with_damage(engine, flip).await;
    is_found(cluster, struck, "the applied state is damaged").await;
}
