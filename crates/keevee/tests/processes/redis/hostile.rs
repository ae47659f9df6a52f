//! Bad input: it is cut off, holds little, and disturbs nobody.

use std::time::{Duration, Instant};

use keevee_cluster::{TemporaryCluster, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Reply, Resp};
use super::{address, bulk, connect};
use crate::{PATIENCE, start};

/// Idle connections of the test, if this process may have so many files.
const IDLE_CONNECTIONS: usize = 10_000;
/// Those that are there before memory is measured.
const FIRST_CONNECTIONS: usize = 100;
/// What an idle connection may cost, in bytes. Without its buffers it is a task and a socket; much more would be a buffer.
const IDLE_BYTES_MAX: u64 = 8 << 10;

/// What comes on a connection until its end.
async fn to_the_end(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    // It may be cut off while this is sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    let _ = read;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn metric(cluster: &mut TemporaryCluster, id: u64, name: &str) -> f64 {
    let endpoint = cluster.node(id).expect("a node").endpoint();
    let mut connection = keevee_client::Connection::open(&endpoint, PATIENCE).await.expect("a connection");
    let (_, text) = connection.ask("/metrics").await.expect("metrics");
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

fn memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_redis_is_cut_off() {
    let mut cluster = start(1, "paxos").await;
    let address = address(&mut cluster, 1);
    assert_eq!(to_the_end(&address, b"POST / HTTP/1.1\r\nHost: x\r\n\r\nSET a 1\r\n").await, "");
    let answer = to_the_end(&address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\nSET a 1\r\n").await;
    assert_eq!(answer, "-ERR wrong number of arguments for 'get' command\r\n");
    for (bytes, answer) in [
        (&b"*1\r\n$536870912\r\n"[..], "-ERR Protocol error: invalid bulk length\r\n"),
        (b"*1048577\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n!1\r\n", "-ERR Protocol error: expected '$', got '!'\r\n"),
        (b"set a \"b\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"),
        (b"PING\r\n*x\r\n", "+PONG\r\n-ERR Protocol error: invalid multibulk length\r\n"),
    ] {
        assert_eq!(to_the_end(&address, bytes).await, answer);
    }
    assert_eq!(connect(&mut cluster, 1).await.ask(&["GET", "a"]).await, Reply::Null);
    // The end of what is sent is not the end of what is answered.
    let mut half = TcpStream::connect(&address).await.expect("a connection");
    half.write_all(b"PING\r\nPING\r\n").await.expect("sent");
    half.shutdown().await.expect("shut");
    let mut answer = String::new();
    timeout(PATIENCE, half.read_to_string(&mut answer)).await.expect("an end").expect("text");
    assert_eq!(answer, "+PONG\r\n+PONG\r\n");
    let ended = |reason: &str| format!("keevee_resp_connections_ended_total{{reason=\"{reason}\"}}");
    assert_eq!(metric(&mut cluster, 1, &ended("http")).await, 2.0);
    assert_eq!(metric(&mut cluster, 1, &ended("protocol")).await, 5.0);
    assert_eq!(metric(&mut cluster, 1, "keevee_resp_commands_total{command=\"ping\"}").await, 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_slow_connections_hold_little() {
    let mut cluster = start(1, "paxos").await;
    let pid = cluster.node(1).expect("a node").pid().expect("it runs");
    let address = address(&mut cluster, 1);
    let files = rlimit::increase_nofile_limit(u64::MAX).expect("a limit of files") as usize;
    let connections = IDLE_CONNECTIONS.min(files.saturating_sub(500));
    let mut idle = Vec::new();
    for _ in 0..FIRST_CONNECTIONS {
        idle.push(Resp::connect(&address).await);
        idle.last_mut().expect("one").ask(&["PING"]).await;
    }
    let before = memory_bytes(pid);
    // One less than a node takes: its metrics are asked for elsewhere, and one more connection is to come.
    while idle.len() < connections - 1 {
        let mut resp = Resp::connect(&address).await;
        // Each has been of use once.
        assert_eq!(resp.ask(&["SET", "a", &"x".repeat(1000)]).await, Reply::ok());
        idle.push(resp);
    }
    let each = memory_bytes(pid).saturating_sub(before) / (connections - FIRST_CONNECTIONS) as u64;
    println!("each of {connections} idle connections costs about {each} bytes");
    assert!(each <= IDLE_BYTES_MAX, "an idle connection costs {each} bytes");
    // One that has sent half a request waits, and the others do not wait for it.
    let mut slow = Resp::connect(&address).await;
    slow.writer.write_all(b"*2\r\n$3\r\nGE").await.expect("sent");
    assert_eq!(idle[0].ask(&["STRLEN", "a"]).await, Reply::Integer(1000));
    slow.writer.write_all(b"T\r\n$1\r\na\r\n").await.expect("sent");
    assert_eq!(slow.receive().await.text().len(), 1000);
    assert_eq!(metric(&mut cluster, 1, "keevee_resp_connections").await, connections as f64);
    if connections == IDLE_CONNECTIONS {
        let mut one_too_many = Resp::connect(&address).await;
        assert_eq!(one_too_many.receive().await.text(), "ERR max number of clients reached");
    }
}

/// A node alone, with more in its configuration.
async fn start_with(more: &str) -> TemporaryCluster {
    let mut cluster = start(1, "paxos").await;
    let config = cluster.node(1).expect("a node").config();
    cluster.stop_node(1, PATIENCE).await.expect("stopped");
    let text = std::fs::read_to_string(&config).expect("its configuration");
    std::fs::write(&config, format!("{text}\n{more}\n")).expect("written");
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_requests_wait_for_room_and_are_cut_off_without() {
    let mut cluster = start_with("[resp]\nrequests_bytes_max = 33554432\n").await;
    let address = address(&mut cluster, 1);
    // With the keys 16 MiB.
    let value = "v".repeat((8 << 20) - 1);
    // Two that stop shortly before the end of all that they announced hold nearly all the room.
    let mut holding = Vec::new();
    for _ in 0..2 {
        let mut resp = Resp::connect(&address).await;
        let head =
            format!("*5\r\n$4\r\nMSET\r\n$1\r\na\r\n${0}\r\n{value}\r\n$1\r\nb\r\n${0}\r\n", value.len());
        resp.writer.write_all(head.as_bytes()).await.expect("sent");
        resp.writer.write_all(&value.as_bytes()[..value.len() - 1]).await.expect("sent");
        holding.push(resp);
    }
    // They hold it once the node has read all of that.
    let mut other = connect(&mut cluster, 1).await;
    let is_taken = async || {
        let info = other.ask(&["INFO", "memory"]).await.text();
        let free = info.lines().find_map(|line| line.strip_prefix("keevee_requests_room_free:"))?;
        (free.parse::<usize>().ok()? < 1 << 20).then_some(())
    };
    assert!(until(PATIENCE, is_taken).await.is_some());
    let mut third = Resp::connect(&address).await;
    // Not all of it: what is on its way when a connection ends may take the reply with it.
    let head = format!("*3\r\n$3\r\nSET\r\n$1\r\nc\r\n${}\r\n{}", value.len(), &value[..1 << 20]);
    third.writer.write_all(head.as_bytes()).await.expect("sent");
    assert!(third.receive().await.text().starts_with("OOM"));
    assert!(third.try_receive().await.is_none(), "it is cut off");
    assert_eq!(metric(&mut cluster, 1, "keevee_resp_connections_ended_total{reason=\"no_room\"}").await, 1.0);
    // Small ones need none of it, and once there is some again, large ones are taken.
    assert_eq!(connect(&mut cluster, 1).await.ask(&["SET", "d", "1"]).await, Reply::ok());
    for mut resp in holding {
        resp.writer.write_all(b"v\r\n").await.expect("sent");
        assert_eq!(resp.receive().await, Reply::ok());
    }
    assert_eq!(connect(&mut cluster, 1).await.ask(&["SET", "c", &value]).await, Reply::ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_never_read_large_values_take_bounded_memory() {
    let mut cluster = start_with("[resp]\nreplies_bytes_max = 33554432").await;
    let (address, pid) = (address(&mut cluster, 1), cluster.node(1).expect("a node").pid().expect("it runs"));
    let mut other = connect(&mut cluster, 1).await;
    let value = "v".repeat(8 << 20);
    for (key, value) in [("large", value.as_str()), ("small", "1")] {
        assert_eq!(other.ask(&["SET", key, value]).await, Reply::ok());
    }
    let before = memory_bytes(pid);
    let mut greedy = Vec::new();
    for _ in 0..60 {
        let mut resp = Resp::connect(&address).await;
        for _ in 0..20 {
            resp.send(&["GET", "large"]).await;
        }
        greedy.push(resp);
    }
    // They have all the room, and others are told so.
    let full = async || other.ask(&["GET", "large"]).await.text().starts_with("OOM").then_some(());
    assert!(until(PATIENCE, full).await.is_some());
    let mut one = connect(&mut cluster, 1).await;
    assert_eq!(one.ask(&["GET", "small"]).await, bulk("1"));
    assert_eq!(one.ask(&["SET", "other", "1"]).await, Reply::ok());
    let grown = memory_bytes(pid).saturating_sub(before) >> 20;
    println!("60 clients that do not read 1200 values of 8 MiB cost {grown} MiB");
    assert!(grown < 256, "{grown} MiB more");
    drop(greedy);
    let free = async || (one.ask(&["GET", "large"]).await.text().len() == value.len()).then_some(());
    assert!(until(PATIENCE, free).await.is_some(), "there is room again");
}

/// What a transaction and a pipeline read is bounded, whatever they ask for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_values_are_read_in_bounded_memory() {
    const READS: usize = 200;
    let mut cluster = start(1, "paxos").await;
    let pid = cluster.node(1).expect("a node").pid().expect("it runs");
    let mut resp = connect(&mut cluster, 1).await;
    let value = "v".repeat(8 << 20);
    for key in ["a", "b"] {
        assert_eq!(resp.ask(&["SET", key, &value]).await, Reply::ok());
    }
    let before = memory_bytes(pid);
    resp.ask(&["MULTI"]).await;
    resp.send(&["SET", "c", "1"]).await;
    for _ in 0..READS {
        resp.send(&["GET", "a"]).await;
    }
    for _ in 0..READS + 1 {
        assert_eq!(resp.receive().await.text(), "QUEUED");
    }
    assert!(
        resp.ask(&["EXEC"]).await.text().contains("too large to be answered at once, and nothing happened")
    );
    assert_eq!(resp.ask(&["GET", "c"]).await, Reply::Null);
    // Each alone is another matter, and so is what only looks whether the key is there.
    for _ in 0..READS {
        resp.send(&["GET", "a"]).await;
        resp.send(&["SET", "c", "1"]).await;
    }
    for _ in 0..READS {
        assert_eq!(resp.receive().await.text().len(), value.len());
        assert_eq!(resp.receive().await, Reply::ok());
    }
    assert_eq!(
        resp.ask(&[["EXISTS"].as_slice(), &["a"; READS]].concat()).await,
        Reply::Integer(READS as i64)
    );
    let Reply::Array(some) = resp.ask(&["MGET", "a", "c", "b", "a", "b"]).await else { panic!("no values") };
    assert_eq!(
        some.iter().map(|one| one.text().len()).collect::<Vec<_>>(),
        [8 << 20, 1, 8 << 20, 8 << 20, 8 << 20]
    );
    assert!(
        resp.ask(&[["MGET"].as_slice(), &["a"; READS]].concat()).await.text().contains("ask for fewer keys")
    );
    // What reads and writes does nothing if there is no room for what it read.
    for _ in 0..4 {
        resp.send(&["GETSET", "a", &value]).await;
    }
    for _ in 0..4 {
        assert_eq!(resp.receive().await.text().len(), value.len());
    }
    let grown = memory_bytes(pid).saturating_sub(before) >> 20;
    println!("{READS} values of 8 MiB read in some ways cost {grown} MiB");
    assert!(grown < 512, "{grown} MiB more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_of_a_million_commands_needs_bounded_memory() {
    const COMMANDS: usize = 1_000_000;
    let mut cluster = start(1, "paxos").await;
    let pid = cluster.node(1).expect("a node").pid().expect("it runs");
    let address = address(&mut cluster, 1);
    let before = memory_bytes(pid);
    let (mut reader, mut writer) = TcpStream::connect(&address).await.expect("a connection").into_split();
    let writing = tokio::spawn(async move {
        let some = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".repeat(1000);
        for _ in 0..COMMANDS / 1000 {
            writer.write_all(&some).await.expect("sent");
        }
        writer
    });
    let (mut left, mut most) = (COMMANDS * b"$-1\r\n".len(), 0);
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let read = timeout(PATIENCE, reader.read(&mut buffer)).await.expect("in time").expect("replies");
        assert!(read > 0, "cut off");
        left -= read;
        most = most.max(memory_bytes(pid));
    }
    writing.await.expect("sent");
    let grown = most.saturating_sub(before) >> 20;
    println!("a million commands on one connection cost at most {grown} MiB");
    assert!(grown < 64, "{grown} MiB more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_reads_is_not_read_from_and_then_cut_off() {
    let mut cluster = start_with("[resp]\nstalled_ms = 1000").await;
    let address = address(&mut cluster, 1);
    let mut other = connect(&mut cluster, 1).await;
    let value = "x".repeat(100_000);
    assert_eq!(other.ask(&["SET", "a", &value]).await, Reply::ok());
    let pid = cluster.node(1).expect("a node").pid().expect("it runs");
    let before = memory_bytes(pid);
    let mut greedy = TcpStream::connect(&address).await.expect("a connection");
    let some = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".repeat(1000);
    // Sends until it is cut off, and never reads.
    let started = Instant::now();
    let cut_off = async { while greedy.write_all(&some).await.is_ok() {} };
    timeout(PATIENCE, cut_off).await.expect("it is cut off");
    println!("cut off after {:?}", started.elapsed());
    assert_eq!(other.ask(&["GET", "a"]).await, bulk(&value));
    let stalled = "keevee_resp_connections_ended_total{reason=\"stalled\"}";
    assert_eq!(metric(&mut cluster, 1, stalled).await, 1.0);
    let grown = memory_bytes(pid).saturating_sub(before) >> 20;
    assert!(grown < 256, "{grown} MiB more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_ends_a_request_is_cut_off_and_who_is_idle_is_not() {
    let mut cluster = start_with("[resp]\nrequest_ms = 500").await;
    let address = address(&mut cluster, 1);
    let mut other = connect(&mut cluster, 1).await;
    assert_eq!(other.ask(&["SET", "a", "1"]).await, Reply::ok());
    // At its beginning, in a small request, and in a large one: a byte now and then.
    for first in ["", "PING\r\n*2\r\n$3\r\nGET\r\n$70000\r\n", "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1000000\r\n"] {
        let mut slow = TcpStream::connect(&address).await.expect("a connection");
        slow.write_all(first.as_bytes()).await.expect("sent");
        let cut_off = async {
            while slow.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, cut_off).await.expect("it is cut off");
    }
    // It was silent for longer.
    assert_eq!(other.ask(&["GET", "a"]).await, bulk("1"));
    let stalled = "keevee_resp_connections_ended_total{reason=\"stalled\"}";
    assert_eq!(metric(&mut cluster, 1, stalled).await, 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_go_in_and_out() {
    let mut cluster = start(3, "paxos").await;
    let mut resp = connect(&mut cluster, 3).await;
    let value = "v".repeat(8 << 20);
    assert_eq!(resp.ask(&["SET", "large", &value]).await, Reply::ok());
    for _ in 0..20 {
        resp.send(&["GET", "large"]).await;
    }
    for _ in 0..20 {
        assert_eq!(resp.receive().await.text().len(), value.len());
    }
    // One byte more is refused before it comes.
    let head = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${}\r\n", value.len() + 1);
    resp.writer.write_all(head.as_bytes()).await.expect("sent");
    assert_eq!(resp.receive().await.text(), "ERR Protocol error: invalid bulk length");
    let ends =
        until(Duration::from_secs(20), async || resp.try_receive().await.is_none().then_some(())).await;
    assert!(ends.is_some());
}
