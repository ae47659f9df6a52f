//! `redis-cli` and `redis-benchmark`, as Debian has them.

use std::process::{Command, Output};

use super::{address, is_installed, left_out};
use crate::start;

/// The tests of `redis-benchmark` whose commands keevee has.
const TESTS: &str = "ping,set,get,incr,mset";

fn port(address: &str) -> &str {
    address.rsplit(':').next().expect("a port")
}

async fn run(program: &'static str, arguments: Vec<String>) -> Output {
    let run = move || Command::new(program).args(arguments).output().expect("it runs");
    tokio::task::spawn_blocking(run).await.expect("it ends")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cli_works_against_any_node() {
    if !is_installed("redis-cli") {
        return left_out("redis-cli", "redis-cli");
    }
    let mut cluster = start(3, "paxos").await;
    for id in 1..=3 {
        let address = address(&mut cluster, id);
        let cli = async |arguments: &str| {
            let arguments = format!("-p {} {arguments}", port(&address));
            let output = run("redis-cli", arguments.split(' ').map(str::to_owned).collect()).await;
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        assert_eq!(cli("SET color green EX 100").await, "OK");
        assert_eq!(cli("GET color").await, "green");
        assert_eq!(cli("-3 GET color").await, "green", "RESP3");
        assert_eq!(cli("-c MGET color nope").await, "green", "as a client of a cluster");
        assert_eq!(cli("INCR nope-but-once").await, id.to_string());
        assert!(cli("INFO").await.contains("redis_version:7.0"));
        assert!(cli("CLUSTER INFO").await.contains("cluster_state:ok"));
        assert_eq!(cli("CLUSTER KEYSLOT foo").await, "12182");
        let slots = cli("CLUSTER SLOTS").await;
        for other in 1..=3 {
            assert!(slots.contains(port(&super::address(&mut cluster, other))), "{slots}");
        }
        assert_eq!(cli("CLUSTER NODES").await.lines().filter(|line| line.contains("myself")).count(), 1);
        assert_eq!(cli("nope").await, "ERR unknown command 'nope', with args beginning with:");
        assert_eq!(cli("DEL color").await, "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_benchmark_runs() {
    if !is_installed("redis-benchmark") {
        return left_out("redis-benchmark", "redis-benchmark");
    }
    let mut cluster = start(3, "paxos").await;
    let address = address(&mut cluster, 2);
    for pipeline in ["1", "32"] {
        let arguments =
            ["-p", port(&address), "-t", TESTS, "-n", "2000", "-c", "20", "-P", pipeline, "--csv"];
        let output = run("redis-benchmark", arguments.map(str::to_owned).to_vec()).await;
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !errors.contains("ERR"), "{text}{errors}");
        for test in ["PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "MSET (10 keys)"] {
            assert!(text.contains(&format!("\"{test}\",")), "{test} did not run: {text}{errors}");
        }
    }
}
