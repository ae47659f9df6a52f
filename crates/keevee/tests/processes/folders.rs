//! What a node does with a data folder that is not as it must be, and how it leaves a good one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use keevee_client::Connection;
use keevee_cluster::{process, until};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::{PATIENCE, client, client_of, get, program, put, start};

with_both_engines! {
    sigterm_ends_a_node_with_0_and_its_data_stays
    a_folder_that_was_wiped_is_refused
}

/// Waits until a node says this: the rest of its words.
async fn says(child: &mut Child, text: &'static str) -> BufReader<ChildStderr> {
    let mut output = BufReader::new(child.stderr.take().expect("it is piped"));
    let read = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(output.read_line(&mut line).expect("text"), 0, "it ended without a word of it");
        }
        output
    });
    tokio::time::timeout(PATIENCE, read).await.expect("it says so in time").expect("a reader")
}

/// Runs a node that is expected to refuse: returns what it says.
async fn refusal(config: &Path) -> String {
    let mut child = spawn(config);
    let ended = until(PATIENCE, async || child.try_wait().expect("a child")).await;
    if ended.is_none() {
        let _ = child.kill();
    }
    let Output { status, stderr, .. } = child.wait_with_output().expect("its output");
    assert_eq!(status.code(), Some(1), "it must refuse");
    String::from_utf8_lossy(&stderr).into_owned()
}

fn spawn(config: &Path) -> Child {
    Command::new(program())
        .args(["server", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_a_folder_is_refused() {
    let mut cluster = start(1, "paxos").await;
    let config = cluster.node(1).expect("a node").config();
    let running = process::running(&config).expect("a pid");
    let text = refusal(&config).await;
    assert!(text.contains("another keevee process"), "{text}");
    assert!(text.contains(&running.to_string()), "{text}");
    // The first one is none the worse for it, and still found.
    assert_eq!(process::running(&config), Some(running));
    put(&client_of(&mut cluster, 1), "key", "value").await;
}

async fn a_folder_that_was_wiped_is_refused(engine: &str) {
    let mut cluster = start(3, engine).await;
    let patience = Duration::from_secs(30);
    cluster.stop_node(2, patience).await.expect("stopped");
    let config = cluster.node(2).expect("a node").config();
    let data = config.with_file_name("data");
    // Wiped: it must not come back under its old identity.
    fs::remove_dir_all(&data).expect("removed");
    let text = refusal(&config).await;
    assert!(text.contains("keevee init"), "{text}");
    // Empty: the same.
    fs::create_dir(&data).expect("made");
    let text = refusal(&config).await;
    assert!(text.contains("keevee init"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_without_first_members_is_refused() {
    let mut cluster = start(3, "paxos").await;
    cluster.stop_node(2, PATIENCE).await.expect("stopped");
    let config = cluster.node(2).expect("a node").config();
    fs::remove_dir_all(config.with_file_name("data")).expect("removed");
    let init = Command::new(program()).args(["init", "--config"]).arg(&config).output().expect("init");
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    assert!(String::from_utf8_lossy(&init.stdout).starts_with("member 2="));
    let text = refusal(&config).await;
    assert!(text.contains("--members") || text.contains("first members"), "{text}");
    let again = Command::new(program()).args(["init", "--config"]).arg(&config).output().expect("init");
    assert_eq!(again.status.code(), Some(1), "a formatted folder is not formatted again");
}

async fn sigterm_ends_a_node_with_0_and_its_data_stays(engine: &str) {
    let mut cluster = start(1, engine).await;
    let node = cluster.node(1).expect("a node");
    let (config, endpoint) = (node.config(), node.endpoint());
    cluster.stop_node(1, PATIENCE).await.expect("stopped");
    assert!(!process::pid_file(&config).exists(), "it takes its pid file along");

    // By hand this time, to see the exit code.
    let mut child = spawn(&config);
    let here = client(vec![endpoint]);
    put(&here, "key", "value").await;
    assert_eq!(process::running(&config), Some(child.id()), "the manager finds it too");
    process::signal(child.id(), "TERM").expect("sent");
    let ended = until(PATIENCE, async || child.try_wait().expect("a child")).await;
    let _ = child.kill();
    assert_eq!(ended.and_then(|status| status.code()), Some(0));

    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    assert_eq!(get(&here, "key").await.as_deref(), Some("value"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_ends_a_node_that_still_stops() {
    let mut cluster = start(3, "paxos").await;
    cluster.stop_node(2, PATIENCE).await.expect("stopped");
    let node = cluster.node(2).expect("a node");
    let (config, endpoint) = (node.config(), node.endpoint());
    let mut child = spawn(&config);
    assert_eq!(get(&client(vec![endpoint.clone()]), "key").await, None, "it serves");
    // Without the others it has no leader, and reads wait for one. It does not stop before they are answered.
    for other in [1, 3] {
        cluster.kill(other).await.expect("killed");
    }
    let mut readers = JoinSet::new();
    let (refuse, mut refused) = mpsc::channel(1);
    for _ in 0..8 {
        let mut connection = Connection::open(&endpoint, PATIENCE).await.expect("a connection");
        let refuse = refuse.clone();
        readers.spawn(async move {
            while connection.is_open() {
                if connection.get(b"key").await.is_err() {
                    let _ = refuse.try_send(());
                }
            }
        });
    }
    // From the first refusal on, some wait at any time.
    assert!(refused.recv().await.is_some());
    process::signal(child.id(), "TERM").expect("sent");
    let _words = says(&mut child, "stopping").await;
    process::signal(child.id(), "TERM").expect("sent");
    let ended = until(PATIENCE, async || child.try_wait().expect("a child")).await;
    let _ = child.kill();
    assert_eq!(ended.and_then(|status| status.code()), Some(130));
}
