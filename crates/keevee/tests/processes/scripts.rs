//! The scripts, from start to stop and back.

use std::path::{Path, PathBuf};
use std::process::Command;

use keevee_cluster::Cluster;

use crate::{client, get, program, put};

/// Ends the cluster whatever becomes of the test.
struct Started(PathBuf);

impl Drop for Started {
    fn drop(&mut self) {
        if let Ok(mut cluster) = Cluster::open(&self.0, program()) {
            for node in cluster.nodes() {
                if let Some(pid) = node.pid() {
                    let _ = keevee_cluster::process::signal(pid, "KILL");
                }
            }
        }
    }
}

/// Runs a script by a shell, from another folder: exit code and output.
fn script(shell: &str, name: &str, arguments: &[&str], folder: &Path) -> (i32, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(name);
    let mut command = if shell.is_empty() { Command::new(&path) } else { Command::new(shell) };
    if !shell.is_empty() {
        command.arg(&path);
    }
    let output = command
        .args(arguments)
        .env("KEEVEE_BIN", program())
        .env_remove("KEEVEE_DATA")
        .current_dir(folder)
        .output()
        .expect("the script");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// Starts a cluster by the script, at ports that are free: another program may take one meanwhile.
fn start_with(shell: &str, folder: &Path, options: &[&str]) -> String {
    for _ in 0..5 {
        let ports = ["--http-port", "0", "--peer-port", "0", "--resp-port", "0"];
        let arguments = [&["--data", "data"], &ports[..], options].concat();
        let (code, text) = script(shell, "start_server.sh", &arguments, folder);
        if code == 0 {
            return text;
        }
        assert!(text.contains("in use"), "{text}");
        let _ = std::fs::remove_dir_all(folder.join("data"));
    }
    panic!("no free ports");
}

with_both_engines! {
    scripts_start_stop_and_start_again
}

async fn scripts_start_stop_and_start_again(engine: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let _started = Started(data.clone());
    let text = start_with("", folder.path(), &["--consensus", engine]);
    assert!(text.contains("curl"), "{text}");
    let mut cluster = Cluster::open(&data, program()).expect("a cluster");
    assert_eq!(cluster.running(), [1, 2, 3]);
    for file in ["keevee.toml", "keevee.pid", "keevee.log"] {
        assert!(data.join("node2").join(file).exists(), "{file}");
    }
    let everywhere = client(cluster.endpoints());
    put(&everywhere, "key", "value").await;

    let (code, text) = script("bash", "start_server.sh", &["--data", "data"], folder.path());
    assert!(code == 0 && text.contains("is running"), "{text}");
    for check in ["test_CRUD.sh", "test_cross_nodes.sh", "test_benchmarks.sh"] {
        let (code, text) = script("sh", check, &["--data", "data"], folder.path());
        assert_eq!(code, 0, "{check}: {text}");
        assert!(text.contains("that runs in data"), "{check} uses the running cluster: {text}");
    }

    let (code, text) = script("sh", "stop_server.sh", &["--data", "data"], folder.path());
    assert_eq!(code, 0, "{text}");
    assert!(cluster.running().is_empty());
    let (code, text) = script("bash", "stop_server.sh", &["--data", "data"], folder.path());
    assert!(code == 0 && text.contains("was not running"), "{text}");

    let (code, text) = script("sh", "start_server.sh", &["--data", "data"], folder.path());
    assert_eq!(code, 0, "{text}");
    assert_eq!(get(&everywhere, "key").await.as_deref(), Some("value"));
    let (code, text) = script("", "stop_server.sh", &["--data", "data"], folder.path());
    assert_eq!(code, 0, "{text}");
    assert!(cluster.running().is_empty());
}

#[test]
fn one_group_and_several_pass_their_tests() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, engine) in [("test-single-cluster.sh", "paxos"), ("test-multiple-clusters.sh", "raft")] {
        let (code, text) = script("sh", name, &[engine], folder.path());
        assert!(code == 0 && text.ends_with("passed\n"), "{name}: {text}");
    }
}

#[test]
fn a_start_spreads_keys_over_shards() {
    let folder = tempfile::tempdir().expect("a folder");
    let _started = Started(folder.path().join("data"));
    let shards = ["--shards", "8", "--replicas", "2"];
    let text = start_with("sh", folder.path(), &shards);
    assert!(text.contains("leads"), "{text}");
    let (code, text) = script("sh", "start_server.sh", &["--data", "data", "--shards", "4"], folder.path());
    assert!(code == 1 && text.contains("--shards 8 --replicas 2"), "a cluster keeps its shards: {text}");
}

#[test]
fn a_check_without_a_cluster_starts_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let (code, text) = script("", "test_CRUD.sh", &["--data", "none"], folder.path());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("a temporary one"), "{text}");
    assert!(!folder.path().join("none").exists());
}
