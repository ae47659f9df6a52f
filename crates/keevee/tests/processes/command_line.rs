//! The command line as people and scripts meet it.

use std::fs;
use std::process::{Command, Output};

use keevee_cluster::{TemporaryCluster, until};
use serde_json::{Value, json};

use crate::{PATIENCE, program, start};

with_both_engines! {
    keys_are_put_read_and_deleted
    ranges_are_listed_and_deleted
    shards_are_explained_listed_and_added
    a_local_cluster_is_started_and_shown_as_json
}

/// Runs the program against a cluster: exit code, standard output, standard error.
pub(crate) fn run(cluster: &TemporaryCluster, arguments: &[&str]) -> (i32, String, String) {
    let endpoints: Vec<String> = cluster.endpoints().iter().map(ToString::to_string).collect();
    let output = Command::new(program())
        .args(arguments)
        .env("KEEVEE_ENDPOINTS", endpoints.join(","))
        .output()
        .expect("the program");
    texts(output)
}

pub(crate) fn texts(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

async fn keys_are_put_read_and_deleted(engine: &str) {
    let mut cluster = start(3, engine).await;
    let (code, stdout, stderr) = run(&cluster, &["put", "a/b c", "grün", "--output", "json"]);
    assert_eq!(code, 0, "{stderr}");
    let answer: Value = serde_json::from_str(&stdout).expect("JSON");
    let version = answer["version"].as_u64().expect("a version").to_string();
    assert_eq!(run(&cluster, &["get", "a/b c"]), (0, "grün".to_owned(), String::new()));

    let (code, _, stderr) = run(&cluster, &["put", "a/b c", "x", "--if-absent"]);
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("conflict"), "{stderr}");
    assert_eq!(run(&cluster, &["put", "a/b c", "y", "--if-version", &version]).0, 0);
    assert_eq!(run(&cluster, &["delete", "a/b c"]).1, "deleted\n");
    let (code, stdout, stderr) = run(&cluster, &["get", "a/b c"]);
    assert_eq!((code, stdout.as_str()), (3, ""), "{stderr}");
    assert_eq!(run(&cluster, &["get", ""]).0, 2);

    let (code, stdout, stderr) = run(&cluster, &["status", "--output", "json"]);
    assert_eq!(code, 0, "{stderr}");
    let nodes: Value = serde_json::from_str(&stdout).expect("JSON");
    let leaders = nodes
        .as_array()
        .expect("nodes")
        .iter()
        .filter(|node| node["status"]["shards"][0]["role"] == "leader");
    assert_eq!(leaders.count(), 1, "{stdout}");

    cluster.kill_all().await.expect("killed");
    let (code, _, stderr) = run(&cluster, &["get", "a", "--timeout", "500ms"]);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("keevee cluster start"), "the error names the fix: {stderr}");
}

async fn ranges_are_listed_and_deleted(engine: &str) {
    let cluster = start(3, engine).await;
    for number in 0..5 {
        assert_eq!(run(&cluster, &["increment", &format!("count-{number}"), "--by", "-2"]).1, "-2\n");
    }
    let (code, stdout, stderr) = run(&cluster, &["scan", "--prefix", "count-", "--limit", "3"]);
    assert_eq!((code, stdout.lines().count()), (0, 4), "{stdout}{stderr}");
    assert!(stdout.contains("count-0") && stderr.contains("--cursor "), "{stdout}{stderr}");
    let cursor = stderr.split("--cursor ").nth(1).and_then(|rest| rest.split(',').next()).expect("a cursor");
    let (_, stdout, _) =
        run(&cluster, &["scan", "--prefix", "count-", "--cursor", cursor, "--output", "json"]);
    let page: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&page["entries"][0]["key"], &page["cursor"]), (&Value::from("count-3"), &Value::Null));
    let (_, stdout, _) = run(&cluster, &["scan", "--all", "--output", "json"]);
    let page: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(page["entries"].as_array().map(Vec::len), Some(5));
    assert_eq!(run(&cluster, &["scan", "--prefix", "other", "--cursor", cursor]).0, 2);

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("batch.json");
    let batch =
        r#"{"operations": [{"action": "get", "key": "count-0"}, {"action": "delete", "key": "{count-0}x"}]}"#;
    fs::write(&file, batch).expect("written");
    let (code, stdout, stderr) = run(&cluster, &["batch", &file.to_string_lossy(), "--output", "json"]);
    assert_eq!(code, 0, "{stderr}");
    let results: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(
        (&results["results"][0]["value"], &results["results"][1]["deleted"]),
        (&Value::from("-2"), &Value::from(false))
    );
    fs::write(&file, "{}").expect("written");
    assert_eq!(run(&cluster, &["batch", &file.to_string_lossy()]).0, 2);

    let (code, _, stderr) = run(&cluster, &["delete"]);
    assert!(code == 2 && stderr.contains("--prefix"), "{stderr}");
    assert_eq!(run(&cluster, &["delete", "--prefix", ""]).0, 2, "never everything by accident");
    assert_eq!(
        run(&cluster, &["delete", "--prefix", "count-"]),
        (0, "5 keys deleted\n".to_owned(), String::new())
    );
    assert_eq!(run(&cluster, &["scan", "--all"]).1, "key  version  value\n");
}

async fn shards_are_explained_listed_and_added(engine: &str) {
    let cluster = start(3, engine).await;
    let (code, stdout, stderr) = run(&cluster, &["explain", "a&b c"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("shard    1 (shard-1)\n"), "{stdout}");
    let (code, stdout, stderr) = run(&cluster, &["explain", "color", "--output", "json"]);
    assert_eq!(code, 0, "{stderr}");
    let explained: Value = serde_json::from_str(&stdout).expect("JSON");
    assert!(explained["slot"] == 4601 && explained["leader"].is_u64(), "{stdout}");

    let add = ["shards", "add", "--name", "archive", "--engine", engine, "--replicas", "3"];
    let (code, stdout, stderr) = run(&cluster, &add);
    assert!(code == 0 && stdout.starts_with("shard 2 (archive) is on nodes "), "{stdout}{stderr}");
    let (code, _, stderr) = run(&cluster, &add);
    assert!(code == 2 && stderr.contains("choose another name"), "{stderr}");
    let (code, stdout, stderr) = run(&cluster, &["shards"]);
    assert_eq!(code, 0, "{stderr}");
    let line = stdout.lines().find(|line| line.contains("shard-1")).expect("a line");
    assert!(line.contains(engine) && line.contains("16384"), "{stdout}");
    let leads = until(PATIENCE, async || {
        let (code, stdout, _) = run(&cluster, &["status"]);
        let archive = stdout.lines().find(|line| line.contains("archive"))?;
        (code == 0 && archive.ends_with("ok")).then_some(())
    });
    assert!(leads.await.is_some(), "the new shard finds no leader");
}

async fn a_local_cluster_is_started_and_shown_as_json(engine: &str) {
    let mut cluster = start(1, engine).await;
    let pid = cluster.node(1).expect("a node").pid();
    let folder = cluster.folder().to_string_lossy().into_owned();
    let ask = |cluster: &TemporaryCluster, what| {
        let (code, stdout, stderr) = run(cluster, &["cluster", what, "--data", &folder, "--output", "json"]);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<Value>(&stdout).expect("JSON")
    };
    let started = ask(&cluster, "start");
    assert_eq!((&started["started"], &started["folder"]), (&json!([]), &json!(folder)));
    assert_eq!((&started["nodes"][0]["node"], &started["nodes"][0]["pid"]), (&json!(1), &json!(pid)));
    let shown = ask(&cluster, "status");
    assert_eq!(
        (&shown["nodes"][0]["pid"], &shown["nodes"][0]["status"]["node_id"]),
        (&json!(pid), &json!(1))
    );
    assert_eq!(shown["shards"][1]["slots"], 16_384, "{shown}");

    cluster.kill_all().await.expect("killed");
    let shown = ask(&cluster, "status");
    assert_eq!((&shown["nodes"][0]["pid"], &shown["shards"]), (&Value::Null, &json!([])), "{shown}");
    let (code, _, stderr) = run(&cluster, &["cluster", "start", "--watch", "--output", "json"]);
    assert!(code == 2 && stderr.contains("--watch"), "{stderr}");
}

#[test]
fn shells_complete_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(program()).args(["completions", shell]).output();
        let (code, stdout, _) = texts(output.expect("the program"));
        assert!(code == 0 && stdout.contains("cluster"), "{shell}: {stdout}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_configuration_key_names_the_nearest_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("keevee.toml");
    let cluster =
        "[cluster]\nid = \"6a1f0c9e-58a7-4d1c-9a52-0a4f3b1f7d11\"\nsecert = \"sixteen characters\"\n";
    fs::write(&config, cluster).expect("written");
    let output = Command::new(program()).args(["server", "--config"]).arg(&config).output();
    let (code, _, stderr) = texts(output.expect("the program"));
    assert_eq!(code, 1);
    assert!(stderr.contains("did you mean `secret`?"), "{stderr}");
}

#[test]
fn a_node_to_join_that_is_no_address_is_refused_at_once() {
    for (address, advice) in [("https://127.0.0.1:8001", "TLS"), ("127.0.0.1", "write http://host:port")] {
        let output = Command::new(program()).args(["server", "--config", "none", "--join", address]).output();
        let (code, _, stderr) = texts(output.expect("the program"));
        assert!(code == 2 && stderr.contains(advice), "{address}: {stderr}");
    }
}

#[test]
fn every_command_shows_examples() {
    for command in [
        &["server"][..],
        &["init"],
        &["cluster"],
        &["cluster", "start"],
        &["cluster", "stop"],
        &["cluster", "status"],
        &["cluster", "check"],
        &["cluster", "check", "crud"],
        &["cluster", "check", "cross-nodes"],
        &["cluster", "check", "benchmarks"],
        &["cluster", "check", "failover"],
        &["put"],
        &["get"],
        &["delete"],
        &["increment"],
        &["batch"],
        &["scan"],
        &["explain"],
        &["shards"],
        &["shards", "add"],
        &["status"],
        &["backup"],
        &["backup", "verify"],
        &["restore"],
        &["bench"],
        &["completions"],
        &[],
    ] {
        let output = Command::new(program()).args(command).arg("--help").output();
        let (code, stdout, _) = texts(output.expect("the program"));
        assert_eq!(code, 0);
        assert!(stdout.contains("Examples:\n"), "keevee {} --help", command.join(" "));
    }
}

#[test]
fn engines_are_compared_on_clusters_of_their_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let plot = folder.path().join("engines.svg");
    let output = Command::new(program())
        .args(["bench", "--compare", "paxos,raft", "--duration", "300ms", "--warm-up", "0s", "--kills", "1"])
        .args(["--connections", "8", "--keys", "50", "--output", "json", "--plot"])
        .arg(&plot)
        .output()
        .expect("the program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let engines = document["engines"].as_array().expect("a list");
    assert_eq!(engines.iter().map(|one| &one["engine"]).collect::<Vec<_>>(), ["paxos", "raft"]);
    for one in engines {
        for figure in ["messages", "bytes", "syncs"] {
            assert!(one["per_write"][figure].as_f64().is_some_and(|figure| figure > 0.0), "{one}");
        }
        assert!(one["write"]["put"]["count"].as_u64().is_some_and(|count| count > 0), "{one}");
        assert!(one["read"]["get"]["count"].as_u64().is_some_and(|count| count > 0), "{one}");
        assert!(one["failover_ms"]["worst"].as_u64().is_some_and(|worst| worst > 0), "{one}");
    }
    let drawn = fs::read_to_string(&plot).expect("a plot");
    assert!(drawn.starts_with("<svg") && drawn.contains("failover"), "{drawn}");
}

#[test]
fn a_full_cluster_serves_again_after_all_of_it_stopped() {
    for how in [&[][..], &["--kill", "--consensus", "raft"]] {
        let check = ["cluster", "check", "restart", "--shards", "4", "--keys", "2000"];
        let output = Command::new(program()).args(check).args(how).output().expect("the program");
        let (code, stdout, stderr) = texts(output);
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.contains("a read in each of 4 shards"), "{stdout}");
    }
}
