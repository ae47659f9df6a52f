//! Backups of clusters that serve, and what comes of them in other clusters.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::TryStreamExt;
use keevee_client::{Client, Connection, Expiry, Scan, Write};
use keevee_cluster::{Choices, Layout, TemporaryCluster, until};
use keevee_core::cut::{CutError, Decoder};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::{JoinHandle, block_in_place};

use crate::command_line::{run, texts};
use crate::joining::ask;
use crate::load::Load;
use crate::shards::start_shards;
use crate::{PATIENCE, client, endpoint_of, get, program, put, routing_client, start};

with_both_engines! {
    a_backup_under_load_is_restored_into_other_shards
    a_backup_that_is_damaged_is_refused_before_anything_is_written
    a_leader_that_is_killed_makes_no_wrong_backup
    a_backup_without_one_of_the_shards_ends_within_its_timeout
    a_node_stops_though_nobody_reads_its_cut
}

/// What a key holds: its value, and when it is gone, in milliseconds since the Unix epoch.
type Held = BTreeMap<Bytes, (Bytes, Option<u64>)>;

fn folder() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().expect("a folder");
    let path = parent.path().join("backup");
    (parent, path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Runs the program to a good end: its JSON.
fn succeeds(cluster: &TemporaryCluster, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--output", "json"]].concat();
    let (code, stdout, stderr) = block_in_place(|| run(cluster, &arguments));
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    serde_json::from_str(&stdout).expect("JSON")
}

/// What a backup's files hold, read without the program.
fn held_by_files(folder: &Path) -> Held {
    let mut held = Held::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "cut") {
            continue;
        }
        let mut decoder = Decoder::new();
        decoder.feed(&fs::read(&path).expect("a file"));
        while let Some(record) = decoder.next_record().expect("a cut") {
            let expires = record.expires.map(|micros| micros.div_ceil(1_000));
            assert!(held.insert(record.key, (record.value, expires)).is_none(), "a key is there twice");
        }
        decoder.finish().expect("a whole cut");
    }
    held
}

async fn held_by_cluster(cluster: &TemporaryCluster) -> Held {
    let client = routing_client(cluster.endpoints());
    let entries: Vec<_> = client.scan_all(Scan::default()).try_collect().await.expect("a scan");
    entries.into_iter().map(|entry| (entry.key, (entry.value.bytes, entry.value.expires_ms))).collect()
}

/// Writes `sequence-0`, `sequence-1`, … one after another, each when the one before is acknowledged.
struct Sequence {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writer: JoinHandle<()>,
}

impl Sequence {
    fn start(client: Client) -> Sequence {
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let writer = tokio::spawn(async move {
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                put(&client, &format!("sequence-{number}"), "").await;
                count.store(number + 1, Ordering::Relaxed);
            }
        });
        Sequence { stop, acknowledged, writer }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    async fn goes_on(&self) {
        let goal = self.acknowledged() + 50;
        let reached = until(PATIENCE, async || (self.acknowledged() >= goal).then_some(()));
        assert!(reached.await.is_some(), "no writes within {PATIENCE:?}");
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.writer.await.expect("a writer");
    }
}

/// How long the sequence is in a backup: of one time, it has no gap.
fn length_of_sequence(held: &Held) -> u64 {
    let numbers = held.keys().filter_map(|key| {
        let number = std::str::from_utf8(key).ok()?.strip_prefix("sequence-")?;
        number.parse::<u64>().ok()
    });
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    let gap = (0..).zip(&numbers).find(|(expected, number)| expected != *number);
    assert_eq!(gap, None, "a write is there without the one before it");
    numbers.len() as u64
}

async fn a_backup_under_load_is_restored_into_other_shards(engine: &str) {
    let cluster = start_shards(engine, 3).await;
    let client = client(cluster.endpoints());
    let expires = Expiry::After(Duration::from_secs(3_600).as_micros() as u64);
    let mut written = Held::new();
    for number in 0..300_u32 {
        let key = format!("key-{number}\0\u{fe}");
        let value = vec![number as u8; number as usize % 7 * 10_000];
        let expiry = if number % 3 == 0 { expires } else { Expiry::Never };
        client.put_with(key.as_bytes(), value.clone(), expiry, Write::default()).await.expect("a write");
        written.insert(key.into(), (value.into(), None));
    }
    let soon = Expiry::After(1_000);
    client.put_with(b"gone", "", soon, Write::default()).await.expect("a write");
    assert!(until(PATIENCE, async || get(&client, "gone").await.is_none().then_some(())).await.is_some());

    let load = Load::start_routing(&cluster.endpoints(), 8);
    let sequence = Sequence::start(routing_client(cluster.endpoints()));
    sequence.goes_on().await;
    let mut last = 0;
    let (_parents, backups): (Vec<_>, Vec<_>) = (0..3).map(|_| folder()).unzip();
    for path in &backups {
        let before = sequence.acknowledged();
        let taken = succeeds(&cluster, &["backup", "--to", text(path)]);
        let held = held_by_files(path);
        assert_eq!((&taken["keys"], &taken["shards"]), (&Value::from(held.len()), &Value::from(3)));
        let length = length_of_sequence(&held);
        println!("{engine}: {length} of the sequence, {before} when it began, {} keys", held.len());
        assert!(
            length >= before && length > last,
            "{length} {before} {last}: what was acknowledged is there"
        );
        last = length;
        for (key, (value, _)) in &written {
            assert_eq!(held.get(key).map(|(value, _)| value), Some(value), "{key:?}");
        }
        assert!(!held.contains_key(&b"gone"[..]));
        sequence.goes_on().await;
    }
    sequence.stop().await;
    load.stop().await;

    let backup = &backups[2];
    let verified = succeeds(&cluster, &["backup", "verify", text(backup)]);
    let held = held_by_files(backup);
    let has_expiry = held.values().filter(|(_, expires)| expires.is_some()).count();
    assert_eq!(has_expiry, 100);
    for shards in [5, 1] {
        let other = start_shards(engine, shards).await;
        let restored = succeeds(&other, &["restore", text(backup)]);
        assert_eq!((&restored["keys"], &restored["time"]), (&verified["keys"], &verified["time"]));
        let found = held_by_cluster(&other).await;
        assert_eq!(found.len(), held.len());
        assert!(found == held, "every key has its value and its expiry");
    }
}

async fn a_backup_that_is_damaged_is_refused_before_anything_is_written(engine: &str) {
    let cluster = start(1, engine).await;
    let client = client(cluster.endpoints());
    for number in 0..100 {
        put(&client, &format!("key-{number}"), "backed up").await;
    }
    let (_parent, path) = folder();
    succeeds(&cluster, &["backup", "--to", text(&path)]);
    let (code, _, stderr) = block_in_place(|| run(&cluster, &["backup", "--to", text(&path)]));
    assert!(code == 2 && stderr.contains("name a new folder"), "{stderr}");

    let (code, _, stderr) = block_in_place(|| run(&cluster, &["restore", text(&path)]));
    assert!(code == 4 && stderr.contains("--merge"), "{stderr}");
    put(&client, "key-7", "changed").await;
    put(&client, "other", "stays").await;
    succeeds(&cluster, &["restore", text(&path), "--merge"]);
    assert_eq!(get(&client, "key-7").await.as_deref(), Some("backed up"));
    assert_eq!(get(&client, "other").await.as_deref(), Some("stays"));

    let empty = start(1, engine).await;
    let refused = |why: &str| {
        for command in [&["backup", "verify", text(&path)][..], &["restore", text(&path), "--merge"]] {
            let (code, _, stderr) = block_in_place(|| run(&empty, command));
            assert!(code == 1 && stderr.contains(why), "{command:?}: {code} {stderr}");
        }
    };
    let file = path.join("shard-1.cut");
    let whole = fs::read(&file).expect("a file");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&file, flipped).expect("written");
    refused("shard-1.cut: it is damaged");
    fs::write(&file, &whole[..whole.len() - 20]).expect("written");
    refused("it breaks off");
    fs::remove_file(&file).expect("removed");
    refused("is missing");
    fs::write(&file, whole).expect("written");
    let manifest = fs::read_to_string(path.join("manifest.json")).expect("a manifest");
    fs::write(path.join("manifest.json"), manifest.replace("\"format\": 1", "\"format\": 9"))
        .expect("written");
    refused("use a newer keevee");
    fs::remove_file(path.join("manifest.json")).expect("removed");
    refused("no manifest.json");
    assert_eq!(held_by_cluster(&empty).await, Held::new());
    fs::write(path.join("manifest.json"), manifest).expect("written");
    succeeds(&empty, &["restore", text(&path)]);
    assert_eq!(held_by_cluster(&empty).await, held_by_files(&path));
}

/// The leader of the first data shard.
async fn leader(cluster: &mut TemporaryCluster) -> u64 {
    let there = endpoint_of(cluster, 1);
    let leader = until(PATIENCE, async || {
        let map = ask(&there, "/v1/cluster/carp").await?;
        map["shards"].as_array()?.iter().find(|shard| shard["id"] == 1)?["leader"].as_u64()
    });
    leader.await.expect("a leader")
}

async fn a_leader_that_is_killed_makes_no_wrong_backup(engine: &str) {
    let mut cluster = start_shards(engine, 3).await;
    let client = client(cluster.endpoints());
    let value = "large ".repeat(40_000);
    for number in 0..150 {
        put(&client, &format!("key-{number}"), &value).await;
    }
    let sequence = Sequence::start(routing_client(cluster.endpoints()));
    sequence.goes_on().await;
    let before = sequence.acknowledged();
    let (_parent, path) = folder();
    let leader = leader(&mut cluster).await;
    let endpoints: Vec<String> = cluster.endpoints().iter().map(ToString::to_string).collect();
    let backup = Command::new(program())
        .args(["backup", "--to", text(&path), "--output", "json"])
        .env("KEEVEE_ENDPOINTS", endpoints.join(","))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    let partial = path.join("shard-1.cut.partial");
    let begun = until(PATIENCE, async || {
        let is_written = fs::metadata(&partial).is_ok_and(|file| file.len() > 0);
        (is_written || path.join("shard-1.cut").exists()).then_some(())
    });
    assert!(begun.await.is_some(), "no backup begins");
    cluster.kill(leader).await.expect("killed");
    let output = block_in_place(|| backup.wait_with_output()).expect("the program");
    let (code, _, stderr) = texts(output);
    println!("{engine}: the backup ended with {code}: {stderr}");
    sequence.goes_on().await;
    sequence.stop().await;
    if code != 0 {
        assert!(!path.exists() && stderr.contains("unavailable"), "{code}: {stderr}");
        return;
    }
    succeeds(&cluster, &["backup", "verify", text(&path)]);
    let held = held_by_files(&path);
    assert!(length_of_sequence(&held) >= before);
    for number in 0..150 {
        let found = held.get(format!("key-{number}").as_bytes()).map(|(found, _)| &found[..]);
        assert_eq!(found, Some(value.as_bytes()), "key-{number}");
    }
}

async fn a_backup_without_one_of_the_shards_ends_within_its_timeout(engine: &str) {
    // One replica of each: a node takes its shards with it, and the others go on.
    let layout = Layout::Shared { shards: 3, replicas: Some(1) };
    let consensus = Some(engine.to_owned());
    let choices = Choices { consensus, peer_transport: None, layout: Some(layout) };
    let mut cluster = TemporaryCluster::start_with(program(), 3, &choices).await.expect("a cluster");
    let client = routing_client(cluster.endpoints());
    for number in 0..100 {
        put(&client, &format!("key-{number}"), "value").await;
    }
    let map = ask(&endpoint_of(&mut cluster, 1), "/v1/cluster/carp").await.expect("a map");
    let shards = map["shards"].as_array().expect("shards");
    let first = shards.iter().find(|shard| shard["id"] == 1).expect("a shard");
    cluster.kill(first["members"][0].as_u64().expect("a node")).await.expect("killed");
    let (_parent, path) = folder();
    let arguments = ["backup", "--to", text(&path), "--timeout", "2s"];
    let (code, _, stderr) = block_in_place(|| run(&cluster, &arguments));
    // What came of the other shards meanwhile is no reason to go on.
    assert!(code == 5 && stderr.contains("no cut of all shards in 1 attempts"), "{code}: {stderr}");
    assert!(!path.exists());
}

async fn a_node_stops_though_nobody_reads_its_cut(engine: &str) {
    let mut cluster = start(1, engine).await;
    let client = client(cluster.endpoints());
    // More than waits in sockets.
    let value = "large".repeat(200_000);
    for number in 0..30 {
        put(&client, &format!("key-{number}"), &value).await;
    }
    let endpoint = endpoint_of(&mut cluster, 1);
    let mut connection = Connection::open(&endpoint, PATIENCE).await.expect("connected");
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let time = wall.as_micros() + 200_000;
    let (status, mut body) =
        connection.post(&format!("/v1/cluster/cut?shard=1&time={time}")).await.expect("an answer");
    assert_eq!(status, 200);
    cluster.stop(PATIENCE).await.expect("stopped");
    let mut decoder = Decoder::new();
    while let Ok(Some(bytes)) = body.next().await {
        decoder.feed(&bytes);
        while decoder.next_record().expect("the beginning of a cut").is_some() {}
    }
    assert_eq!(decoder.finish(), Err(CutError::Torn));
}
