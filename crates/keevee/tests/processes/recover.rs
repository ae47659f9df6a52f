//! Clusters of which a majority is lost for good, and what `keevee recover` makes of the folders that are left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use keevee_client::{Consistency, Write};
use keevee_cluster::{Choices, Layout, TemporaryCluster, until};
use serde_json::Value;
use uuid::Uuid;

use crate::joining::{Joiner, ask};
use crate::load::{Load, all_there};
use crate::members::{is_known, node, voters};
use crate::snapshots::{fill, last_of, logs_begin_later, start_with_short_logs, taken_over};
use crate::{PATIENCE, catches_up, client, client_of, get, program, put};

with_both_engines! {
    one_folder_of_three_makes_a_cluster_that_grows_again
    whatever_pair_of_folders_is_left_has_all_that_was_acknowledged
    what_came_as_a_snapshot_is_kept
    shards_are_gathered_from_several_folders_and_lost_ones_are_named
    what_is_damaged_or_in_use_is_not_taken
}

const SECRET: &str = "secret = \"the secret of the new cluster\"";

async fn start_shards(engine: &str, shards: u16, replicas: Option<u64>) -> TemporaryCluster {
    let layout = Some(Layout::Shared { shards, replicas });
    let choices = Choices { consensus: Some(engine.to_owned()), layout, ..Choices::default() };
    TemporaryCluster::start_with(program(), 3, &choices).await.expect("a cluster")
}

fn folder(cluster: &mut TemporaryCluster, id: u64) -> PathBuf {
    cluster.node(id).expect("a node").config().with_file_name("data")
}

/// The one node of a cluster to come.
fn new_node(id: u64) -> Joiner {
    Joiner::of(&format!("id = \"{}\"", Uuid::new_v4()), SECRET, id)
}

/// Another node of the same cluster.
fn another(node: &Joiner, id: u64) -> Joiner {
    let text = fs::read_to_string(&node.config).expect("a configuration");
    let cluster = text.lines().find(|line| line.starts_with("id = \"")).expect("its id");
    Joiner::of(cluster, SECRET, id)
}

async fn recover(folders: &[&Path], arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.arg("recover").args(folders).args(arguments);
    tokio::task::spawn_blocking(move || command.output()).await.expect("it runs").expect("the program")
}

/// What it says if it succeeds.
async fn recovered(folders: &[&Path], arguments: &[&str]) -> String {
    let output = recover(folders, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// What it says if it refuses with this exit code.
async fn refused(folders: &[&Path], arguments: &[&str], code: i32) -> String {
    let output = recover(folders, arguments).await;
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

/// All files of a folder: what is in them, and when they were written last.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for file in fs::read_dir(folder).expect("a folder") {
        let path = file.expect("a file").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let written = path.metadata().and_then(|file| file.modified()).expect("a file");
            found.insert(path.clone(), (written, fs::read(&path).expect("readable")));
        }
    }
    found
}

async fn one_folder_of_three_makes_a_cluster_that_grows_again(engine: &str) {
    let mut cluster = start_shards(engine, 3, None).await;
    let load = Load::start(&cluster.endpoints(), 4);
    load.acknowledges(200).await;
    let keys = load.stop().await;
    let named = Write { request_id: Some(Uuid::now_v7().to_string()), ..Write::default() };
    let version = client(cluster.endpoints()).put(b"named", "once", named.clone()).await.expect("a write");
    // One folder has all: its node has applied the last write of every shard.
    let one = client_of(&mut cluster, 1);
    let has = async |key: &str| {
        let held = one.get(key.as_bytes(), Consistency::Stale).await;
        held.is_ok_and(|held| held.is_some()).then_some(())
    };
    for key in keys.iter().map(String::as_str).chain(["named"]) {
        assert!(until(PATIENCE, async || has(key).await).await.is_some(), "node 1 has no {key}");
    }
    cluster.kill_all().await.expect("killed");
    for lost in [2, 3] {
        fs::remove_dir_all(folder(&mut cluster, lost)).expect("removed");
    }

    let left = folder(&mut cluster, 1);
    let (left, before) = (left.as_path(), contents(&left));
    let mut first = new_node(7);
    let config = first.config.to_str().expect("a path").to_owned();
    // Named twice it counts once.
    let said = recovered(&[left.parent().expect("a folder"), left], &[]).await;
    for words in
        ["MAY LOSE WRITES: of its voters 1,2,3, 2,3 are not here", "Nothing was changed", "--accept-loss"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    let said = refused(&[left], &["--config", &config, "--new-cluster"], 2).await;
    assert!(said.contains("--accept-loss"), "{said}");
    assert!(!first.config.with_file_name("data").exists(), "nothing is made");
    let said = recovered(&[left], &["--config", &config, "--new-cluster", "--accept-loss"]).await;
    assert!(said.contains("--join") && said.contains("keevee node add"), "{said}");
    assert!(contents(left) == before, "the survivor is as it was");
    let again = ["--config", &config, "--new-cluster", "--accept-loss"];
    let said = refused(&[left], &again, 1).await;
    assert!(said.contains("is already formatted for node 7"), "no folder is written over: {said}");

    first.start(&[]);
    let there = client(vec![first.endpoint()]);
    all_there(&there, &keys, Consistency::Linearizable).await;
    let again = there.put(b"named", "once", named).await.expect("a write");
    assert_eq!(again, version, "a request of before is remembered");
    put(&there, "after", "x").await;

    // What is left of the old cluster is not let in.
    let mut old = another(&first, 1);
    let text = fs::read_to_string(&old.config).expect("a configuration");
    let with_old_folder =
        text.replace("data = \"data\"", &format!("data = {:?}", left.display().to_string()));
    fs::write(&old.config, with_old_folder).expect("written");
    for arguments in [&[][..], &["--join", first.endpoint().authority()]] {
        old.start(arguments);
        let said = old.refusal().await;
        assert!(said.contains("do not belong together") || said.contains("of node 1 of cluster"), "{said}");
    }

    // One node more, and another: then none of them is needed.
    let mut more = [1, 2].map(|id| another(&first, id));
    for (joiner, id) in more.iter_mut().zip(["1", "2"]) {
        joiner.start(&["--join", first.endpoint().authority()]);
        is_known(&first.endpoint(), id.parse().expect("a number")).await;
        node(&first.endpoint(), &["add", id, "--replicas", "3"]).await;
    }
    for shard in 0..=3 {
        let mut decide = voters(&first.endpoint(), shard).await.expect("a status");
        decide.sort_unstable();
        assert_eq!(decide, [1, 2, 7], "shard {shard}");
    }
    // Each can reach the other.
    for (joiner, other) in more.iter().zip([2, 1]) {
        is_known(&joiner.endpoint(), other).await;
    }
    first.kill();
    let there = client(more.iter().map(Joiner::endpoint).collect());
    all_there(&there, &keys, Consistency::Linearizable).await;
    assert_eq!(get(&there, "after").await.as_deref(), Some("x"));
    put(&there, "after", "y").await;
}

async fn whatever_pair_of_folders_is_left_has_all_that_was_acknowledged(engine: &str) {
    let mut cluster = start_shards(engine, 3, None).await;
    let load = Load::start(&cluster.endpoints(), 8);
    load.acknowledges(200).await;
    // One lags: what follows is on the two others alone, and on disk only when all are killed in the middle of it.
    cluster.pause(3).expect("paused");
    load.acknowledges(200).await;
    cluster.resume(3).expect("awake");
    load.acknowledges(20).await;
    cluster.kill_all().await.expect("killed");
    let keys = load.stop().await;
    for lost in 1..=3 {
        let left: Vec<PathBuf> =
            (1..=3).filter(|id| *id != lost).map(|id| folder(&mut cluster, id)).collect();
        let left: Vec<&Path> = left.iter().map(PathBuf::as_path).collect();
        let before: Vec<_> = left.iter().map(|folder| contents(folder)).collect();
        let mut new = new_node(1);
        let config = new.config.to_str().expect("a path").to_owned();
        let said = recovered(&left, &["--config", &config, "--new-cluster"]).await;
        assert!(said.contains("nothing that was acknowledged is lost"), "{said}");
        let after: Vec<_> = left.iter().map(|folder| contents(folder)).collect();
        assert!(before == after, "the survivors are as they were");
        new.start(&[]);
        let there = client(vec![new.endpoint()]);
        all_there(&there, &keys, Consistency::Linearizable).await;
        put(&there, "after", "x").await;
        // What it goes on from is in its own folder.
        new.kill();
        new.start(&[]);
        all_there(&there, &keys, Consistency::Linearizable).await;
        assert_eq!(get(&there, "after").await.as_deref(), Some("x"));
    }
}

/// Its state is in another place of its folder than one that was there from the first, and its log begins later.
async fn what_came_as_a_snapshot_is_kept(engine: &str) {
    let mut cluster = start_with_short_logs(engine, "").await;
    let mut written = fill(&mut cluster, "before", 20).await;
    let last = last_of(&mut cluster, 3).await;
    cluster.kill(3).await.expect("killed");
    written.extend(fill(&mut cluster, "meanwhile", 100).await);
    logs_begin_later(&mut cluster, last + 1, 3).await;
    cluster.start_node(3).expect("started");
    put(&client(cluster.endpoints()), "last", "x").await;
    catches_up(&client_of(&mut cluster, 3), "last", "x").await;
    assert_eq!(taken_over(&mut cluster, 3).await, 1);
    // What is applied of it is on the disk before the log drops it.
    let last = last_of(&mut cluster, 3).await;
    written.extend(fill(&mut cluster, "after", 30).await);
    logs_begin_later(&mut cluster, last + 1, 0).await;
    cluster.kill_all().await.expect("killed");

    let left = [1, 3].map(|id| folder(&mut cluster, id));
    let left = left.each_ref().map(PathBuf::as_path);
    for (folders, confirmed) in [(&left[..], None), (&left[1..], Some("--accept-loss"))] {
        let mut new = new_node(1);
        let config = new.config.to_str().expect("a path").to_owned();
        let make: Vec<&str> = ["--config", &config, "--new-cluster"].into_iter().chain(confirmed).collect();
        recovered(folders, &make).await;
        new.start(&[]);
        let there = client(vec![new.endpoint()]);
        // The last ones may be on node 1 alone.
        for (key, value) in written.iter().filter(|(key, _)| confirmed.is_none() || !key.starts_with("after"))
        {
            assert_eq!(get(&there, key).await.as_ref(), Some(value), "{key}");
        }
        put(&there, "last", "y").await;
    }
}

async fn shards_are_gathered_from_several_folders_and_lost_ones_are_named(engine: &str) {
    // Each shard is on one node.
    let mut cluster = start_shards(engine, 6, Some(1)).await;
    let before = client(cluster.endpoints());
    let keys: Vec<String> = (0..60).map(|number| format!("key-{number}")).collect();
    for key in &keys {
        put(&before, key, key).await;
    }
    let one = cluster.node(1).expect("a node").endpoint();
    let map = ask(&one, "/v1/cluster/carp").await.expect("a map");
    let is_on_3 = |shard: &Value| shard["members"] == serde_json::json!([3]);
    let shards = map["shards"].as_array().expect("shards").clone();
    let lost: Vec<u64> =
        shards.iter().filter(|shard| is_on_3(shard)).filter_map(|shard| shard["id"].as_u64()).collect();
    assert_eq!(lost.len(), 2, "{map}");
    let mut lost_keys = Vec::new();
    for key in &keys {
        let explained = ask(&one, &format!("/v1/explain?key={key}")).await.expect("an answer");
        if lost.contains(&explained["shard"].as_u64().expect("a shard")) {
            lost_keys.push(key.clone());
        }
    }
    assert!(!lost_keys.is_empty() && lost_keys.len() < keys.len());
    cluster.kill_all().await.expect("killed");

    let left = [folder(&mut cluster, 1), folder(&mut cluster, 2)];
    let left = left.each_ref().map(PathBuf::as_path);
    let mut new = new_node(1);
    let config = new.config.to_str().expect("a path").to_owned();
    let told: Value = serde_json::from_str(&recovered(&left, &["--output", "json"]).await).expect("JSON");
    for shard in told["shards"].as_array().expect("shards") {
        let is_lost = lost.contains(&shard["id"].as_u64().expect("a number"));
        assert_eq!(
            (&shard["lost"], &shard["may_lose_writes"]),
            (&is_lost.into(), &is_lost.into()),
            "{shard}"
        );
    }
    let make = ["--config", &config, "--new-cluster"];
    let said = refused(&left, &make, 2).await;
    let named = lost.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    assert!(said.contains(&format!("of shards {named} no folder has anything")), "{said}");
    recovered(&left, &[&make[..], &["--accept-lost-shards"]].concat()).await;
    new.start(&[]);
    let there = client(vec![new.endpoint()]);
    for key in &keys {
        let expected = (!lost_keys.contains(key)).then(|| key.clone());
        assert_eq!(get(&there, key).await, expected, "{key}");
    }
    // The lost shards serve again.
    put(&there, &lost_keys[0], "again").await;
}

async fn what_is_damaged_or_in_use_is_not_taken(engine: &str) {
    let mut cluster = start_shards(engine, 2, None).await;
    put(&client(cluster.endpoints()), "key", "value").await;
    let paths = [1, 2, 3].map(|id| folder(&mut cluster, id));
    let folders = paths.each_ref().map(PathBuf::as_path);
    let said = refused(&folders[..1], &[], 1).await;
    assert!(said.contains("another keevee process"), "{said}");
    let pid = cluster.node(1).expect("a node").pid().expect("it runs");
    assert!(said.contains(&pid.to_string()), "{said}");
    cluster.kill_all().await.expect("killed");

    let said = refused(&[folders[0], &folders[0].join("log")], &[], 1).await;
    assert!(said.contains("is no data folder of a node"), "{said}");
    let copy = folders[0].with_file_name("copy");
    let copied = Command::new("cp").arg("-r").args([folders[0], &copy]).status().expect("cp");
    let said = refused(&[folders[0], &copy], &[], 1).await;
    assert!(copied.success() && said.contains("both of node 1"), "{said}");
    let config = cluster.node(1).expect("a node").config();
    let config = config.to_str().expect("a path").to_owned();
    let said = refused(&folders, &["--config", &config, "--new-cluster"], 1).await;
    assert!(said.contains("[cluster] id is the lost cluster's"), "{said}");

    fs::remove_file(folders[0].join("log/CURRENT")).expect("removed");
    let said = recovered(&folders, &[]).await;
    assert!(said.contains("damaged, left out"), "{said}");
    assert!(said.contains("nothing that was acknowledged is lost: enough of its voters 1,2,3"), "{said}");
    let mut new = new_node(1);
    let config = new.config.to_str().expect("a path").to_owned();
    recovered(&folders, &["--config", &config, "--new-cluster"]).await;
    new.start(&[]);
    assert_eq!(get(&client(vec![new.endpoint()]), "key").await.as_deref(), Some("value"));
    // Alone it is nothing to go on from.
    let said = refused(&folders[..1], &[], 1).await;
    assert!(said.contains("none of the folders can be used"), "{said}");
}
