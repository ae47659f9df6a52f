//! `keevee bench`: every protocol, closed and open loops, and what it is compared with. What the figures are is not judged.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use keevee_cluster::{free_ports, until};
use serde_json::{Value, json};

use crate::command_line::{run, texts};
use crate::redis::{RedisServer, is_installed, left_out};
use crate::{PATIENCE, program, start};

/// Few operations, some of each kind, as JSON.
const LOAD: [&str; 12] = [
    "bench",
    "--operations",
    "500",
    "--connections",
    "8",
    "--keys",
    "100",
    "--reads",
    "0.5",
    "--distribution",
    "zipf",
    "--output=json",
];

with_both_engines! {
    every_protocol_does_all_that_is_asked
    an_open_loop_does_what_is_due
}

async fn every_protocol_does_all_that_is_asked(engine: &str) {
    let cluster = start(3, engine).await;
    for protocol in ["http", "resp", "grpc"] {
        for (target, nodes) in [("all", 3), ("leader", 1), ("followers", 2)] {
            let options = ["--protocol", protocol, "--target", target, "--pipeline", "7", "--key-size", "40"];
            let report = report(run(&cluster, &[&LOAD[..], &options].concat()));
            assert_all_done(&report, 500);
            let endpoints = report["workload"]["endpoints"].as_array().map(Vec::len);
            assert_eq!(endpoints, Some(nodes), "{report}");
        }
    }
    let (code, text, _) = run(&cluster, &["scan", "--prefix", "bench-", "--limit", "1"]);
    let key = text.lines().nth(1).and_then(|line| line.split(' ').next()).unwrap_or_default();
    assert_eq!((code, key.len()), (0, 40), "{text}");
    let mut text = LOAD;
    text[11] = "--output=text";
    let (code, text, _) = run(&cluster, &[&text[..], &["--consistency", "stale", "--threads", "2"]].concat());
    assert!(code == 0 && text.starts_with("500 operations in "), "{text}");
}

async fn an_open_loop_does_what_is_due(engine: &str) {
    let cluster = start(3, engine).await;
    for protocol in ["http", "resp", "grpc"] {
        let options = ["--protocol", protocol, "--rate", "2000"];
        let open = report(run(&cluster, &[&LOAD[..], &options].concat()));
        assert_all_done(&open, 500);
        assert_eq!(open["rate"], json!({"per_second": 2000.0, "unsent": 0}), "{open}");
        // The last is due 499/2000 s after the first, however fast the answers come.
        assert!(open["seconds"].as_f64() >= Some(0.249), "{open}");
    }
    // What no connection can send in time is counted, and so is its wait.
    let options = ["bench", "--rate", "1000000", "--connections", "1", "--duration", "1s", "--warm-up", "0s"];
    let behind = report(run(&cluster, &[&options[..], &["--output", "json"]].concat()));
    let done = behind["operations"].as_u64().expect("a number");
    let unsent = behind["rate"]["unsent"].as_u64().expect("a number");
    assert!(unsent > 0 && (900_000..=1_000_000).contains(&(done + unsent)), "{behind}");
    let (slowest, seconds) = (behind["put"]["max_ms"].as_f64(), behind["seconds"].as_f64());
    assert!(slowest > Some(500.0) && seconds >= Some(0.9), "the last one sent was due long before: {behind}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_counted_by_name() {
    let cluster = start(3, "paxos").await;
    let too_large = ["bench", "--operations", "5", "--value-size", "9000000", "--connections", "1"];
    for (protocol, name) in [("http", "too_large"), ("resp", "connection"), ("grpc", "too_large")] {
        let (code, _, text) = run(&cluster, &[&too_large[..], &["--protocol", protocol]].concat());
        assert!(code == 1 && text.contains(&format!("5 {name}")), "{protocol}: {text}");
    }
    let (code, _, text) = run(&cluster, &["bench", "--protocol", "resp", "--request-ids"]);
    assert!(code == 2 && text.contains("--request-ids"), "{text}");
    let (code, _, text) = run(&cluster, &["bench", "--endpoint", "redis://127.0.0.1:1"]);
    assert!(code == 2 && text.contains("--protocol resp"), "{text}");
    let (code, _, text) = run(&cluster, &["bench", "--protocol", "etcd"]);
    assert!(code == 1 && text.contains("does not answer as etcd does"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_server_is_driven_too() {
    let Some(server) = RedisServer::start().await else {
        return left_out("bench against redis-server", "redis-server");
    };
    let place = format!("redis://{}", server.address);
    let options = ["--protocol", "resp", "--endpoint", &place, "--pipeline", "16"];
    let output = Command::new(program()).args(LOAD).args(options).output().expect("the program");
    assert_all_done(&report(texts(output)), 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_is_driven_too() {
    if !is_installed("etcd") {
        return left_out("bench against etcd", "etcd");
    }
    let etcd = Etcd::start().await;
    for options in [&["--target", "leader"][..], &["--rate", "1000"], &["--consistency", "stale"]] {
        let mut bench = Command::new(program());
        bench.args(LOAD).args(["--protocol", "etcd", "--endpoint", &etcd.endpoint]).args(options);
        assert_all_done(&report(texts(bench.output().expect("the program"))), 500);
    }
}

/// What the program printed, which succeeded.
fn report((code, stdout, stderr): (i32, String, String)) -> Value {
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&stdout).expect("JSON")
}

fn assert_all_done(report: &Value, operations: u64) {
    assert_eq!(report["operations"], operations, "{report}");
    assert_eq!(report["errors"], json!({}), "{report}");
    let counts = [&report["get"]["count"], &report["put"]["count"]].map(|count| count.as_u64());
    assert!(counts.iter().all(Option::is_some), "some of each: {report}");
    assert_eq!(counts.into_iter().flatten().sum::<u64>(), operations, "{report}");
    for kind in ["get", "put"] {
        let times = ["p50_ms", "p99_ms", "p999_ms", "max_ms"].map(|name| report[kind][name].as_f64());
        assert!(times[0] > Some(0.0) && times.is_sorted(), "{report}");
    }
}

/// An etcd of one node; killed when dropped.
struct Etcd {
    child: Child,
    endpoint: String,
    _folder: tempfile::TempDir,
}

impl Etcd {
    async fn start() -> Etcd {
        loop {
            let folder = tempfile::tempdir().expect("a folder");
            let port = free_ports(2);
            let (client, peer) =
                (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", port + 1));
            let log = File::create(folder.path().join("log")).expect("a file");
            let mut command = Command::new("etcd");
            command.arg("--data-dir").arg(folder.path().join("data"));
            command.args([
                "--name",
                "one",
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &format!("one={peer}")]).stdout(Stdio::null()).stderr(log);
            let child = command.spawn().expect("etcd");
            let mut etcd = Etcd { child, endpoint: client, _folder: folder };
            let leads = until(PATIENCE, async || etcd.leads_or_ended()).await;
            // Another program may have taken a port.
            if leads == Some(true) {
                return etcd;
            }
        }
    }

    fn leads_or_ended(&mut self) -> Option<bool> {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return Some(false);
        }
        let load = ["bench", "--protocol", "etcd", "--target", "leader", "--operations", "1", "--endpoint"];
        let output = Command::new(program()).args(load).arg(&self.endpoint).output().expect("the program");
        output.status.success().then_some(true)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
