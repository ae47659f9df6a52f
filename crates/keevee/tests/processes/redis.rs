//! The Redis protocol: raw bytes, `redis-cli` and `redis-benchmark` of Debian, and a real `redis-server` to compare with.

mod client;
mod crashes;
mod differential;
mod hostile;
mod libraries;
mod tools;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keevee_cluster::{TemporaryCluster, free_ports, until};
use tokio::net::TcpStream;

use self::client::{Reply, Resp, bulk};
use crate::{PATIENCE, client as http_client, get, put, start};

/// Where a node speaks the Redis protocol.
fn address(cluster: &mut TemporaryCluster, id: u64) -> String {
    let node = cluster.node(id).expect("a node");
    node.resp.expect("it listens").to_string()
}

async fn connect(cluster: &mut TemporaryCluster, id: u64) -> Resp {
    let address = address(cluster, id);
    Resp::connect(&address).await
}

with_both_engines! {
    any_node_answers_any_key
    a_pipeline_is_answered_in_order_and_reads_its_writes
    transactions_are_one_and_watch_what_others_do
    keys_are_found_in_all_shards
    keys_are_gone_in_time_and_not_before
}

async fn any_node_answers_any_key(engine: &str) {
    let mut cluster = start(3, engine).await;
    for id in 1..=3 {
        let mut resp = connect(&mut cluster, id).await;
        assert_eq!(resp.ask(&["SET", &format!("key-{id}"), "value"]).await, Reply::ok());
    }
    for id in 1..=3 {
        let mut resp = connect(&mut cluster, id).await;
        let values = Reply::Array(vec![bulk("value"), bulk("value"), Reply::Null]);
        assert_eq!(resp.ask(&["MGET", "key-1", "key-3", "nope"]).await, values);
        // In RESP3 what is not there looks else, and maps are maps.
        assert!(matches!(resp.ask(&["HELLO", "3"]).await, Reply::Map(_)));
        assert_eq!(resp.ask(&["GET", "nope"]).await, Reply::Null);
    }
    // One store, whatever it is asked by.
    let client = http_client(cluster.endpoints());
    assert_eq!(get(&client, "key-2").await.as_deref(), Some("value"));
    put(&client, "key-2", "other").await;
    assert_eq!(connect(&mut cluster, 1).await.ask(&["GET", "key-2"]).await, bulk("other"));
}

async fn a_pipeline_is_answered_in_order_and_reads_its_writes(engine: &str) {
    let mut cluster = start(3, engine).await;
    let mut resp = connect(&mut cluster, 2).await;
    for number in 0..2_000 {
        resp.send(&["SET", "a", &number.to_string()]).await;
        resp.send(&["GET", "a"]).await;
        resp.send(&["INCR", "counter"]).await;
        resp.send(&["PING"]).await;
    }
    for number in 0..2_000 {
        assert_eq!(resp.receive().await, Reply::ok());
        assert_eq!(resp.receive().await, bulk(&number.to_string()));
        assert_eq!(resp.receive().await, Reply::Integer(number + 1));
        assert_eq!(resp.receive().await, Reply::Simple("PONG".into()));
    }
}

async fn transactions_are_one_and_watch_what_others_do(engine: &str) {
    let mut cluster = start(3, engine).await;
    let (mut one, mut other) = (connect(&mut cluster, 1).await, connect(&mut cluster, 2).await);
    for (is_disturbed, key) in [(false, "quiet"), (true, "busy")] {
        assert_eq!(one.ask(&["SET", key, "1"]).await, Reply::ok());
        assert_eq!(one.ask(&["WATCH", key]).await, Reply::ok());
        assert_eq!(one.ask(&["MULTI"]).await, Reply::ok());
        assert_eq!(one.ask(&["INCR", key]).await, Reply::Simple("QUEUED".into()));
        if is_disturbed {
            other.ask(&["SET", key, "7"]).await;
        }
        let expected = if is_disturbed { Reply::Null } else { Reply::Array(vec![Reply::Integer(2)]) };
        assert_eq!(one.ask(&["EXEC"]).await, expected);
        let value = if is_disturbed { "7" } else { "2" };
        assert_eq!(other.ask(&["GET", key]).await, bulk(value));
    }
}

async fn keys_are_found_in_all_shards(engine: &str) {
    use keevee_cluster::{Choices, Layout};
    let layout = Some(Layout::Shared { shards: 4, replicas: None });
    let choices = Choices { consensus: Some(engine.to_owned()), layout, ..Choices::default() };
    let mut cluster = TemporaryCluster::start_with(crate::program(), 3, &choices).await.expect("a cluster");
    let mut resp = connect(&mut cluster, 1).await;
    let keys: Vec<String> = (0..500).map(|number| format!("key-{number:03}")).collect();
    for key in &keys {
        resp.send(&["SET", key, "x"]).await;
    }
    for _ in &keys {
        assert_eq!(resp.receive().await, Reply::ok());
    }
    assert_eq!(resp.ask(&["DBSIZE"]).await, Reply::Integer(500));
    let mut found = Vec::new();
    let mut cursor = "0".to_owned();
    loop {
        // As clients with a pool do: each step on whatever connection is free.
        let mut resp = connect(&mut cluster, 1).await;
        let Reply::Array(page) = resp.ask(&["SCAN", &cursor, "MATCH", "key-*", "COUNT", "37"]).await else {
            panic!("no page");
        };
        let [Reply::Bulk(next), Reply::Array(page)] = &page[..] else { panic!("{page:?}") };
        found.extend(page.iter().map(Reply::text));
        cursor = String::from_utf8_lossy(next).into_owned();
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(found, keys);
    let Reply::Array(some) = resp.ask(&["KEYS", "key-?0[0-4]"]).await else { panic!("no keys") };
    assert_eq!(some.len(), 25);
    // Spread over shards: not one command of the store, and one reply all the same.
    let all: Vec<&str> = ["EXISTS"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    assert_eq!(resp.ask(&all).await, Reply::Integer(500));
    let apart = ["MSET", "key-000", "1", "key-001", "1", "key-002", "1", "key-003", "1", "key-004", "1"];
    assert!(resp.ask(&apart).await.text().starts_with("CROSSSLOT"));
    assert_eq!(resp.ask(&["MSET", "{t}a", "1", "{t}b", "2"]).await, Reply::ok());
    assert_eq!(resp.ask(&["MSETNX", "{t}b", "3", "{t}c", "3"]).await, Reply::Integer(0));
    assert_eq!(resp.ask(&["GET", "{t}c"]).await, Reply::Null);
    let some: Vec<&str> = ["DEL"].into_iter().chain(keys[..100].iter().map(String::as_str)).collect();
    assert_eq!(resp.ask(&some).await, Reply::Integer(100));
    assert_eq!(resp.ask(&["FLUSHDB"]).await, Reply::ok());
    assert_eq!(resp.ask(&["DBSIZE"]).await, Reply::Integer(0));
}

async fn keys_are_gone_in_time_and_not_before(engine: &str) {
    let mut cluster = start(3, engine).await;
    let mut one = connect(&mut cluster, 1).await;
    assert_eq!(one.ask(&["SET", "stays", "1", "EX", "1000"]).await, Reply::ok());
    let started = Instant::now();
    assert_eq!(one.ask(&["SET", "goes", "1", "PX", "700"]).await, Reply::ok());
    for id in 1..=3 {
        let mut resp = connect(&mut cluster, id).await;
        let gone = async || {
            let (found, after) = (resp.ask(&["GET", "goes"]).await, started.elapsed());
            // The shard's time begins with the write or later, so it is there for so long at least.
            assert!(found != Reply::Null || after >= Duration::from_millis(700), "gone after {after:?}");
            (found == Reply::Null).then_some(())
        };
        assert!(until(PATIENCE, gone).await.is_some(), "it is gone at node {id}");
        for (command, reply) in [("EXISTS", 0), ("TTL", -2), ("PEXPIRETIME", -2), ("PERSIST", 0)] {
            assert_eq!(resp.ask(&[command, "goes"]).await, Reply::Integer(reply), "{command}");
        }
        assert_eq!(resp.ask(&["KEYS", "*"]).await, Reply::Array(vec![bulk("stays")]));
    }
    assert_eq!(one.ask(&["INCR", "goes"]).await, Reply::Integer(1));
    assert_eq!(one.ask(&["TTL", "goes"]).await, Reply::Integer(-1), "it begins anew");
}

/// A `redis-server` of its own; killed when dropped.
pub(crate) struct RedisServer {
    child: Child,
    pub(crate) address: String,
    _folder: tempfile::TempDir,
}

impl RedisServer {
    /// `None` if there is none on this machine.
    pub(crate) async fn start() -> Option<RedisServer> {
        if !is_installed("redis-server") {
            return None;
        }
        loop {
            let folder = tempfile::tempdir().expect("a folder");
            let port = free_ports(1);
            let mut command = Command::new("redis-server");
            command
                .args(["--port", &port.to_string(), "--save", "", "--bind", "127.0.0.1", "--dir"])
                .arg(folder.path());
            let child = command.stdout(Stdio::null()).spawn().expect("redis-server");
            let mut server = RedisServer { child, address: format!("127.0.0.1:{port}"), _folder: folder };
            let address = server.address.clone();
            let answers =
                until(Duration::from_secs(20), async || TcpStream::connect(&address).await.ok()).await;
            // Another program may have been faster.
            if answers.is_some() && matches!(server.child.try_wait(), Ok(None)) {
                return Some(server);
            }
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn is_installed(program: &str) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

/// Said where a test is left out. `.ci/run` installs what is needed.
pub(crate) fn left_out(what: &str, needs: &str) {
    eprintln!(
        "LEFT OUT: {what}: {needs} is not installed (apt-get install redis-server redis-tools etcd-server)"
    );
}
