//! Stock libraries, plain and cluster-aware: Rust's `redis` and Python's, against clusters that forward and that redirect.

use std::process::Command;

use keevee_cluster::{Choices, Layout, TemporaryCluster, until};

use super::client::{Reply, Resp};
use super::{address, connect, left_out};
use crate::{PATIENCE, program};

/// Shards over all nodes, so that each node leads some.
pub(super) async fn start_sharded(engine: &str) -> TemporaryCluster {
    let layout = Some(Layout::Shared { shards: 6, replicas: None });
    let choices = Choices { consensus: Some(engine.to_owned()), layout, ..Choices::default() };
    TemporaryCluster::start_with(program(), 3, &choices).await.expect("a cluster")
}

/// The same cluster with more in its configurations.
pub(super) async fn configured(cluster: &mut TemporaryCluster, more: &str) {
    cluster.stop(PATIENCE).await.expect("stopped");
    for node in cluster.nodes() {
        let text = std::fs::read_to_string(node.config()).expect("its configuration");
        std::fs::write(node.config(), format!("{text}\n{more}\n")).expect("written");
    }
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
}

pub(super) const MOVED: &str = "[resp]\nredirect = \"moved\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_redirects_says_where_to_go() {
    let mut cluster = start_sharded("paxos").await;
    configured(&mut cluster, MOVED).await;
    let addresses: Vec<String> = (1..=3).map(|id| address(&mut cluster, id)).collect();
    let (mut one, mut moved) = (connect(&mut cluster, 1).await, 0);
    for number in 0..60 {
        let key = format!("key-{number}");
        let slot = one.ask(&["CLUSTER", "KEYSLOT", &key]).await.number();
        moved += usize::from(set_where_it_is_led(&addresses, &key, &slot).await);
    }
    assert!((1..60).contains(&moved), "{moved} of 60 keys are led elsewhere");
    // Each tells of what it leads, and a client adds up; leaderships may move while it does.
    let counted = async || {
        let mut sum = 0;
        for address in &addresses {
            let Reply::Integer(count) = Resp::connect(address).await.ask(&["DBSIZE"]).await else {
                return None;
            };
            sum += count;
        }
        (sum == 60).then_some(())
    };
    assert!(until(PATIENCE, counted).await.is_some());
    // Who takes what is old reads at any replica.
    assert_eq!(one.ask(&["READONLY"]).await, Reply::ok());
    let read = async || {
        for number in 0..60 {
            let key = format!("key-{number}");
            if connect_and_read(&addresses[0], &key).await != super::bulk("1") {
                return None;
            }
        }
        Some(())
    };
    assert!(until(PATIENCE, read).await.is_some());
}

/// Sets a key by the first node, or where that sends us: whether it did. Leaderships may move meanwhile.
async fn set_where_it_is_led(addresses: &[String], key: &str, slot: &str) -> bool {
    let mut at = addresses[0].clone();
    let set = async || match Resp::connect(&at).await.ask(&["SET", key, "1"]).await {
        Reply::Error(text) if text.starts_with("CLUSTERDOWN") => None,
        Reply::Error(text) => {
            let (to, address) = text.rsplit_once(' ').expect("an address");
            assert_eq!(to, format!("MOVED {slot}"));
            assert!(addresses.iter().any(|known| known == address), "{text}");
            at = address.to_owned();
            None
        }
        reply => (reply == Reply::ok()).then_some(()),
    };
    assert!(until(PATIENCE, set).await.is_some(), "{key} is led somewhere");
    at != addresses[0]
}

async fn connect_and_read(address: &str, key: &str) -> Reply {
    let mut resp = Resp::connect(address).await;
    resp.ask(&["READONLY"]).await;
    resp.ask(&["GET", key]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_redis_crate_works_plain_and_as_a_cluster() {
    let mut cluster = start_sharded("paxos").await;
    for more in ["", MOVED] {
        if !more.is_empty() {
            configured(&mut cluster, more).await;
        }
        let urls: Vec<String> = (1..=3).map(|id| format!("redis://{}", address(&mut cluster, id))).collect();
        let client = redis::cluster::ClusterClient::new(urls.clone()).expect("a client");
        let mut connection = client.get_async_connection().await.expect("a connection");
        for number in 0..200 {
            let key = format!("key-{number}");
            let () = redis::cmd("SET").arg(&key).arg(number).query_async(&mut connection).await.expect("set");
            let got: i64 = redis::cmd("GET").arg(&key).query_async(&mut connection).await.expect("get");
            assert_eq!(got, number);
        }
        if more.is_empty() {
            let client = redis::Client::open(urls[2].as_str()).expect("a client");
            let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
            let mut pipeline = redis::pipe();
            pipeline.atomic().set("{t}a", 1).incr("{t}a", 2).get("{t}b");
            let got: (String, i64, Option<i64>) =
                pipeline.query_async(&mut connection).await.expect("a transaction");
            assert_eq!(got, ("OK".to_owned(), 3, None));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_s_redis_works_plain_and_as_a_cluster() {
    let python = std::env::var("KEEVEE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import redis"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        return left_out("Python's redis", "the package redis of KEEVEE_PYTHON (or python3)");
    }
    let mut cluster = start_sharded("paxos").await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/processes/redis/libraries.py");
    for (mode, more) in [("forward", ""), ("moved", MOVED)] {
        if !more.is_empty() {
            configured(&mut cluster, more).await;
        }
        let addresses: Vec<String> = (1..=3).map(|id| address(&mut cluster, id)).collect();
        let (python, mode) = (python.clone(), mode.to_owned());
        let run =
            move || Command::new(python).arg(script).arg(mode).args(addresses).output().expect("python");
        let output = tokio::task::spawn_blocking(run).await.expect("it ends");
        let text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    }
}
