//! Ranges of keys over several shards: scans, deletes by prefix; batches and increments over HTTP; the epoch.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::TryStreamExt;
use keevee_client::{Client, Endpoint, ErrorKind, KeyRange, Options, Scan, Write};
use keevee_cluster::{Choices, Layout, TemporaryCluster};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{PATIENCE, client_of, endpoint_of, program};

with_both_engines! {
    a_scan_is_in_order_and_complete_while_others_write
    a_prefix_is_deleted_from_all_shards_and_nothing_else
    http_serves_ranges_batches_and_increments_from_any_node
}

/// Eight shards over four nodes, so that no node has all of them.
async fn start(engine: &str) -> TemporaryCluster {
    let layout = Layout::Shared { shards: 8, replicas: Some(3) };
    let choices = Choices { consensus: Some(engine.to_owned()), layout: Some(layout), ..Choices::default() };
    TemporaryCluster::start_with(program(), 4, &choices).await.expect("a cluster")
}

/// A client that routes by itself.
fn routing(cluster: &TemporaryCluster) -> Client {
    let options = Options { timeout: PATIENCE, ..Options::default() };
    Client::new(cluster.endpoints(), options).expect("a client")
}

async fn fill(client: &Client, prefix: &str, count: usize) -> Vec<String> {
    let keys: Vec<String> = (0..count).map(|number| format!("{prefix}{number:04}")).collect();
    for result in client.multi_put(keys.iter().map(|key| (key.clone(), key.clone()))).await {
        result.expect("a write");
    }
    keys
}

/// All keys of a scan, each with its value.
async fn all(client: &Client, scan: Scan) -> Vec<(String, String)> {
    let (mut entries, mut found) = (pin!(client.scan_all(scan)), Vec::new());
    while let Some(entry) = entries.try_next().await.expect("a page") {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        found.push((text(&entry.key), text(&entry.value.bytes)));
    }
    found
}

async fn a_scan_is_in_order_and_complete_while_others_write(engine: &str) {
    let mut cluster = start(engine).await;
    let client = routing(&cluster);
    let stable = fill(&client, "key-", 300).await;
    // Others come and go between them.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (client, stop) = (client.clone(), stop.clone());
        async move {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return number;
                }
                let key = format!("key-{:04}.5", number % 300);
                client.put(key.as_bytes(), "passing", Write::default()).await.expect("a write");
                client.delete(key.as_bytes(), Write::default()).await.expect("a delete");
                let key = &format!("key-{:04}", number % 300);
                client.put(key.as_bytes(), key.clone(), Write::default()).await.expect("a write");
            }
            0
        }
    });
    let unrouted = client_of(&mut cluster, 4);
    for (number, client) in [&client, &client, &unrouted, &client].into_iter().enumerate() {
        let found = all(client, Scan::of_prefix("key-").limit(37)).await;
        assert!(
            found.windows(2).all(|pair| pair[0].0 < pair[1].0),
            "scan {number}: in order, and none twice"
        );
        let kept: Vec<&String> = found.iter().filter(|(key, _)| key.len() == 8).map(|(key, _)| key).collect();
        assert!(kept.iter().copied().eq(&stable), "scan {number}: {kept:?}");
        assert!(found.iter().all(|(key, value)| value == if key.len() == 8 { key } else { "passing" }));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await.expect("the writer") > 0);

    let part = KeyRange { start: "key-0100".into(), end: Some("key-0200".into()) };
    let found = all(&client, Scan::of_range(part)).await;
    assert!(found.iter().map(|(key, _)| key).eq(&stable[100..200]));
}

async fn a_prefix_is_deleted_from_all_shards_and_nothing_else(engine: &str) {
    let mut cluster = start(engine).await;
    let client = routing(&cluster);
    let kept = fill(&client, "kept-", 50).await;
    // More than one step takes, in one shard; and some in each.
    fill(&client, "gone-{one}", 1200).await;
    fill(&client, "gone-", 100).await;
    let id = Some(uuid::Uuid::now_v7().to_string());
    assert_eq!(client.delete_prefix("gone-", id.clone()).await, Ok(1300));
    fill(&client, "gone-", 3).await;
    assert_eq!(
        client.delete_prefix("gone-", id.clone()).await,
        Ok(1300),
        "a retry is answered, and deletes nothing"
    );
    assert_eq!(all(&client, Scan::of_prefix("gone-")).await.len(), 3);
    let reused = client.delete_prefix("kept-", id).await.expect_err("another range");
    assert_eq!((reused.kind, reused.deleted), (ErrorKind::RequestReused, Some(0)));
    let unrouted = client_of(&mut cluster, 1);
    assert_eq!(unrouted.delete_prefix("gone-", None).await, Ok(3));
    assert!(all(&client, Scan::default()).await.iter().map(|(key, _)| key).eq(&kept));
    let everything = client.delete_prefix("", None).await.expect_err("by accident");
    assert_eq!(everything.kind, ErrorKind::Invalid);
}

/// Asks a node over HTTP: the status, the header lines and the body.
async fn http(node: &Endpoint, request: &str, body: &str) -> (u16, String, Value) {
    let mut stream = TcpStream::connect(node.authority()).await.expect("a connection");
    let length = body.len();
    let head = format!("{request}\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), serde_json::from_str(body).expect("JSON"))
}

async fn http_serves_ranges_batches_and_increments_from_any_node(engine: &str) {
    let mut cluster = start(engine).await;
    let keys = fill(&routing(&cluster), "key-", 40).await;
    let mut found = BTreeMap::new();
    let mut path = "/v1/kv?prefix=key-&limit=15".to_owned();
    // Each page from another node.
    for node in (1..=4).cycle() {
        let node = endpoint_of(&mut cluster, node);
        let (status, head, page) = http(&node, &format!("GET {path} HTTP/1.1"), "").await;
        assert!(status == 200 && head.contains("keevee-epoch: "), "{head} {page}");
        let entries = page["entries"].as_array().expect("entries");
        assert!(entries.len() <= 15);
        for entry in entries {
            let key = entry["key"].as_str().expect("a key").to_owned();
            assert_eq!(found.insert(key, entry["version"].clone()), None, "shown once");
        }
        let Some(cursor) = page["cursor"].as_str() else { break };
        path = format!("/v1/kv?prefix=key-&limit=15&cursor={cursor}");
    }
    assert!(found.keys().eq(&keys));

    // A retry through another node counts once.
    let id = format!("idempotency-key: {}", uuid::Uuid::now_v7());
    for node in 1..=4 {
        let node = endpoint_of(&mut cluster, node);
        let request = format!("POST /v1/kv/counter/increment?by=5 HTTP/1.1\r\n{id}");
        assert_eq!(http(&node, &request, "").await.2["value"], 5);
        let batch = r#"{"operations": [{"action": "increment", "key": "{counter}2"}, {"action": "get", "key": "counter"}]}"#;
        let request = format!("POST /v1/batch HTTP/1.1\r\n{id}2");
        let (_, _, answer) = http(&node, &request, batch).await;
        assert_eq!(
            (&answer["results"][0]["value"], &answer["results"][1]["value"]),
            (&1.into(), &"5".into())
        );
    }
    let node = endpoint_of(&mut cluster, 2);
    let operation = |key: &String| format!(r#"{{"action": "delete", "key": "{key}"}}"#);
    let apart =
        format!(r#"{{"operations": [{}]}}"#, keys.iter().map(operation).collect::<Vec<_>>().join(","));
    let (status, _, problem) = http(&node, "POST /v1/batch HTTP/1.1", &apart).await;
    assert!(
        status == 400 && problem["detail"].as_str().expect("a detail").contains("{hash tag}"),
        "{problem}"
    );

    let once = "idempotency-key: once";
    let none = http(&node, &format!("DELETE /v1/kv?prefix=none- HTTP/1.1\r\n{once}"), "").await;
    assert_eq!((none.0, &none.2["deleted"]), (200, &0.into()));
    for range in ["prefix=key-", "start=none-&end=none-5"] {
        let (status, _, problem) =
            http(&node, &format!("DELETE /v1/kv?{range} HTTP/1.1\r\n{once}"), "").await;
        assert_eq!((status, &problem["kind"]), (422, &"request_reused".into()), "{range}: {problem}");
    }

    // It is told of a map that does not exist: it looks, and serves.
    let epoch = "keevee-epoch: 999999";
    let (status, _, answer) =
        http(&node, &format!("DELETE /v1/kv?prefix=key- HTTP/1.1\r\n{epoch}"), "").await;
    assert_eq!((status, &answer["deleted"]), (200, &40.into()));
    assert_eq!(http(&node, "DELETE /v1/kv HTTP/1.1", "").await.0, 400);
}
