//! Real processes: clusters of the built program, killed, paused, stopped and started.
//!
//! Each test has a cluster of its own on free ports and in a folder of its own, waits for conditions with a
//! deadline and never for a time, and leaves nothing behind. How long recovery takes is printed, not judged.

/// Makes two tests of each function: with Multi-Paxos, and with Raft.
macro_rules! with_both_engines {
    ($($test:ident)*) => {
        mod paxos {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test("paxos").await;
            })*
        }
        mod raft {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test("raft").await;
            })*
        }
    };
}

mod backups;
mod bench;
mod command_line;
mod crashes;
mod damaged_state;
mod disks;
mod folders;
mod joining;
mod load;
mod manager;
mod members;
mod overload;
mod pauses;
mod quiescence;
mod recover;
mod redis;
mod scans;
mod scripts;
mod scrubs;
mod service;
mod shards;
mod snapshots;
mod verify;

use std::path::Path;
use std::time::Duration;

use keevee_client::{Client, Consistency, Endpoint, Options, Write};
use keevee_cluster::{Choices, TemporaryCluster, until};

/// How long a condition may take to come true on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_keevee"))
}

/// A cluster whose nodes agree by this engine.
async fn start(nodes: u64, engine: &str) -> TemporaryCluster {
    let choices = Choices { consensus: Some(engine.to_owned()), ..Choices::default() };
    TemporaryCluster::start_with(program(), nodes, &choices).await.expect("a cluster")
}

/// A client of these nodes that gives up after `timeout`.
fn client_within(endpoints: Vec<Endpoint>, timeout: Duration) -> Client {
    let options = Options { timeout, ..Options::default() };
    Client::unrouted(endpoints, options).expect("a client")
}

/// A client of these nodes that gives up only when the test is lost anyway.
fn client(endpoints: Vec<Endpoint>) -> Client {
    client_within(endpoints, PATIENCE)
}

/// As [`client`], one that goes to the leaders by itself.
fn routing_client(endpoints: Vec<Endpoint>) -> Client {
    Client::new(endpoints, Options { timeout: PATIENCE, ..Options::default() }).expect("a client")
}

/// A client of one node.
fn client_of(cluster: &mut TemporaryCluster, id: u64) -> Client {
    client(vec![endpoint_of(cluster, id)])
}

fn endpoint_of(cluster: &mut TemporaryCluster, id: u64) -> Endpoint {
    cluster.node(id).expect("a node").endpoint()
}

/// The nodes other than this one.
fn others(cluster: &mut TemporaryCluster, id: u64) -> Vec<u64> {
    cluster.nodes().iter().map(|node| node.id).filter(|other| *other != id).collect()
}

async fn put(client: &Client, key: &str, value: &str) -> u64 {
    client.put(key.as_bytes(), value.to_owned(), Write::default()).await.expect("a write")
}

async fn get(client: &Client, key: &str) -> Option<String> {
    let value = client.get(key.as_bytes(), Consistency::Linearizable).await.expect("a read");
    value.map(|value| String::from_utf8(value.bytes.to_vec()).expect("text"))
}

/// Waits until a node's own state holds this.
async fn catches_up(client: &Client, key: &str, value: &str) {
    let held = until(PATIENCE, async || {
        let read = client.get(key.as_bytes(), Consistency::Stale).await.ok().flatten();
        read.filter(|read| read.bytes == value.as_bytes())
    });
    assert!(held.await.is_some(), "{key} does not become {value}");
}
