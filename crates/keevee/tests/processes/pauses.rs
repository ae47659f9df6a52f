//! A leader that is stopped for a while and does not know it.

use keevee_client::{Client, Connection, ErrorKind};
use keevee_cluster::until;
use tokio::task::JoinSet;

use crate::{PATIENCE, client, client_of, endpoint_of, get, others, put, start};

with_both_engines! {
    a_leader_that_wakes_serves_no_stale_read
    a_paused_follower_is_not_waited_for
    a_peer_that_stops_reading_takes_no_memory
}

async fn a_leader_that_wakes_serves_no_stale_read(engine: &str) {
    let mut cluster = start(3, engine).await;
    for round in 1..=3 {
        let leader = cluster.wait_ready(PATIENCE).await.expect("a leader");
        put(&client(cluster.endpoints()), "key", &format!("old {round}")).await;
        // Open before the pause: what is asked on them waits at the node's door and is the first thing it sees.
        let endpoint = endpoint_of(&mut cluster, leader);
        let mut connections = Vec::new();
        for _ in 0..16 {
            connections.push(Connection::open(&endpoint, PATIENCE).await.expect("a connection"));
        }
        cluster.pause(leader).expect("paused");
        let survivors = others(&mut cluster, leader);
        let new = format!("new {round}");
        let start = std::time::Instant::now();
        let elsewhere = client(survivors.iter().map(|id| endpoint_of(&mut cluster, *id)).collect());
        put(&elsewhere, "key", &new).await;
        println!("round {round}: leader {leader} paused, written elsewhere after {:?}", start.elapsed());

        let mut reads = JoinSet::new();
        for mut connection in connections {
            reads.spawn(async move { connection.get(b"key").await });
        }
        cluster.resume(leader).expect("awake");
        let mut answered = 0;
        while let Some(read) = reads.join_next().await {
            match read.expect("a reader") {
                Ok(value) => {
                    let value = value.expect("a value").bytes;
                    assert_eq!(value, new.as_bytes(), "a stale read from the leader that woke");
                    answered += 1;
                }
                Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable, "{error}"),
            }
        }
        println!("round {round}: {answered} of 16 reads answered, none stale");
        let woken = client_of(&mut cluster, leader);
        assert_eq!(get(&woken, "key").await, Some(new));
    }
}

async fn a_paused_follower_is_not_waited_for(engine: &str) {
    let mut cluster = start(3, engine).await;
    let leader = cluster.leader().await.expect("a leader");
    let follower = others(&mut cluster, leader)[0];
    cluster.pause(follower).expect("paused");
    let there = client_of(&mut cluster, leader);
    for number in 0..100 {
        put(&there, &format!("key-{number}"), "x").await;
    }
    cluster.resume(follower).expect("awake");
    let back = client_of(&mut cluster, follower);
    crate::catches_up(&back, "key-99", "x").await;
    let follows =
        until(PATIENCE, async || (get(&back, "key-99").await.as_deref() == Some("x")).then_some(()));
    assert!(follows.await.is_some());
}

/// Writes so many MiB at one node.
async fn write_mebibytes(client: &Client, count: u64) {
    let value = "x".repeat(64 << 10);
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let (client, value) = (client.clone(), value.clone());
        writers.spawn(async move {
            for _ in 0..count {
                put(&client, &format!("key-{writer}"), &value).await;
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("a writer");
    }
}

fn resident_mebibytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux tells it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the resident size");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

async fn a_peer_that_stops_reading_takes_no_memory(engine: &str) {
    let mut cluster = start(3, engine).await;
    let leader = cluster.leader().await.expect("a leader");
    let follower = others(&mut cluster, leader)[0];
    let pid = cluster.node(leader).expect("a node").pid().expect("it runs");
    let there = client_of(&mut cluster, leader);
    cluster.pause(follower).expect("paused");
    // Buffers and caches fill up to their bounds.
    write_mebibytes(&there, 256).await;
    let before = resident_mebibytes(pid);
    write_mebibytes(&there, 256).await;
    let after = resident_mebibytes(pid);
    println!("{before} MiB resident, {after} MiB after 256 MiB that a peer did not take");
    assert!(after < before + 128, "{before} MiB became {after}");
    assert_eq!(cluster.leader().await, Some(leader), "it leads all the time");
    cluster.resume(follower).expect("awake");
    put(&there, "last", "x").await;
    crate::catches_up(&client_of(&mut cluster, follower), "last", "x").await;
}
