//! The cluster manager as people meet it: `Config.toml`, `keevee cluster start --watch`, the sample programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use keevee_cluster::{Cluster, free_ports, process, until};

use crate::{PATIENCE, client, get, program, put};

#[test]
fn sample_programs_fit_on_a_page() {
    for program in [include_str!("../../src/bin/admin.rs"), include_str!("../../src/bin/client.rs")] {
        assert!(program.lines().count() < 60);
    }
}

/// A `Config.toml` with ports that were free a moment ago, in a folder of its own.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(text: &str) -> Files {
        let folder = tempfile::tempdir().expect("a folder");
        let http = free_ports(18);
        let (peer, resp) = (http + 6, http + 12);
        let text =
            format!("{text}\nhttp_port = {http}\npeer_port = {peer}\nresp_port = {resp}\ndata = \"data\"\n");
        fs::write(folder.path().join("Config.toml"), text).expect("written");
        Files { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A program that runs a cluster in the foreground. Nothing of it is left, whatever becomes of the test.
struct Started {
    child: Child,
    folder: PathBuf,
}

impl Started {
    fn new(program: impl AsRef<Path>, arguments: &[&str], files: &Files) -> Started {
        let folder = files.path().to_owned();
        let output = fs::File::create(folder.join("output")).expect("a file");
        let child = Command::new(program.as_ref())
            .args(arguments)
            .current_dir(&folder)
            .env_remove("KEEVEE_DATA")
            .stdin(Stdio::null())
            .stdout(output)
            .spawn()
            .expect("the program");
        Started { child, folder }
    }

    /// The cluster, once the program says that it watches.
    async fn cluster(&mut self) -> Cluster {
        let watches = until(PATIENCE, async || {
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("it ended by itself: {status}");
            }
            let output = fs::read_to_string(self.folder.join("output")).expect("its output");
            output.contains("Ctrl-C stops the cluster.").then_some(())
        });
        assert!(watches.await.is_some(), "it does not watch");
        Cluster::open(&self.folder.join("data"), program()).expect("a cluster")
    }

    /// Its exit code, once it ends.
    async fn ended(&mut self) -> Option<i32> {
        let ended = until(PATIENCE, async || self.child.try_wait().expect("a child")).await;
        ended.expect("it does not end").code()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Ok(mut cluster) = Cluster::open(&self.folder.join("data"), program()) {
            for pid in cluster.nodes().iter_mut().filter_map(|node| node.pid()) {
                let _ = process::signal(pid, "KILL");
            }
        }
    }
}

/// Runs the program to its end: exit code and output.
fn run(arguments: &[&str], files: &Files) -> (i32, String) {
    let mut command = Command::new(program());
    command.args(arguments).current_dir(files.path()).env_remove("KEEVEE_DATA");
    let output = command.output().expect("the program");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

const WATCH: [&str; 5] = ["cluster", "start", "--watch", "--config", "Config.toml"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_started_again_until_ctrl_c() {
    let files = Files::new("nodes_per_cluster = 3");
    let mut watcher = Started::new(program(), &WATCH, &files);
    let mut cluster = watcher.cluster().await;
    let all = client(cluster.endpoints());
    put(&all, "key", "value").await;
    let node = cluster.node(2).expect("a node");
    let killed = node.pid().expect("it runs");
    process::signal(killed, "KILL").expect("sent");
    let again = until(PATIENCE, async || node.pid().filter(|pid| *pid != killed));
    assert!(again.await.is_some(), "node 2 is not started again");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    assert_eq!(get(&all, "key").await.as_deref(), Some("value"));

    process::signal(watcher.child.id(), "INT").expect("sent");
    assert_eq!(watcher.ended().await, Some(0));
    assert!(cluster.running().is_empty(), "all are stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_from_elsewhere_ends_the_watch() {
    let files = Files::new("nodes_per_cluster = 1\nnum_clusters = 2");
    let mut watcher = Started::new(program(), &WATCH, &files);
    let mut cluster = watcher.cluster().await;
    let (code, text) = run(&WATCH, &files);
    assert!(code == 1 && text.contains("watches the cluster"), "a cluster has one watcher: {text}");
    assert_eq!(cluster.running(), [1, 2], "the second one ends nothing");
    let (code, text) = run(&["cluster", "stop", "--config", "Config.toml"], &files);
    assert_eq!(code, 0, "{text}");
    assert_eq!(watcher.ended().await, Some(0));
    assert!(cluster.running().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sample_programs_start_write_and_stop() {
    let files = Files::new("num_clusters = 2\nnodes_per_cluster = 1\nengine = \"raft\"");
    let mut admin = Started::new(env!("CARGO_BIN_EXE_admin"), &[], &files);
    let mut cluster = admin.cluster().await;
    let output = Command::new(env!("CARGO_BIN_EXE_client")).current_dir(files.path()).output();
    let output = output.expect("the sample client");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("\"group-1\" on nodes [1]"), "{text}");
    assert!(text.contains("\"group-2\" on nodes [2]"), "{text}");
    process::signal(admin.child.id(), "INT").expect("sent");
    assert_eq!(admin.ended().await, Some(0));
    assert!(cluster.running().is_empty());
}

#[test]
fn a_port_that_is_taken_leaves_nothing_behind() {
    let files = Files::new("");
    let config = keevee_cluster::Config::load(&files.path().join("Config.toml")).expect("right");
    let taken = config.seeds().expect("addresses")[2].authority().to_owned();
    let _listener = std::net::TcpListener::bind(&taken).expect("it was free");
    let (code, text) = run(&["cluster", "start", "--config", "Config.toml"], &files);
    assert!(code == 1 && text.contains(&taken), "{text}");
    assert!(!files.path().join("data").exists(), "nothing is written");
}

#[test]
fn a_wrong_configuration_names_the_right_key() {
    let files = Files::new("num_cluster = 2");
    let (code, text) = run(&["cluster", "start", "--config", "Config.toml"], &files);
    assert!(code == 2 && text.contains("did you mean `num_clusters`?"), "{text}");
}
