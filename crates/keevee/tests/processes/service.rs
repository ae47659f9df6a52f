//! Service while all is well, and while a minority is down.

use keevee_client::{Consistency, ErrorKind, Expect, Expiry, Write};
use keevee_cluster::{Choices, TemporaryCluster, until};

use crate::{PATIENCE, catches_up, client, client_of, get, program, put, start};

with_both_engines! {
    every_node_creates_reads_updates_and_deletes
    a_retry_through_another_node_takes_effect_once
    service_goes_on_while_a_minority_is_down
    a_key_that_is_gone_on_one_node_is_gone_on_all
}

async fn every_node_creates_reads_updates_and_deletes(engine: &str) {
    let mut cluster = start(3, engine).await;
    for id in 1..=3 {
        let here = client_of(&mut cluster, id);
        let there = client_of(&mut cluster, id % 3 + 1);
        let key = format!("key-{id}");
        assert_eq!(get(&there, &key).await, None);
        let first = put(&here, &key, "first").await;
        assert_eq!(get(&there, &key).await.as_deref(), Some("first"));
        let second = put(&there, &key, "second").await;
        assert!(second > first);
        assert_eq!(get(&here, &key).await.as_deref(), Some("second"));

        let outdated = Write::only_if(Expect::Version(first));
        let refused = here.put(key.as_bytes(), "third", outdated).await.expect_err("a conflict");
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert!(here.delete(key.as_bytes(), Write::default()).await.expect("a delete"));
        assert_eq!(get(&there, &key).await, None);
        assert!(!there.delete(key.as_bytes(), Write::default()).await.expect("a delete"));
    }
}

async fn a_retry_through_another_node_takes_effect_once(engine: &str) {
    let mut cluster = start(3, engine).await;
    let (one, two) = (client_of(&mut cluster, 1), client_of(&mut cluster, 2));
    let id = uuid::Uuid::now_v7().to_string();
    let write = Write { condition: None, request_id: Some(id) };
    let version = one.put(b"key", "once", write.clone()).await.expect("a write");
    put(&one, "key", "later").await;
    let again = two.put(b"key", "once", write.clone()).await.expect("the first answer again");
    assert_eq!(again, version);
    assert_eq!(get(&one, "key").await.as_deref(), Some("later"));
    let reused = two.put(b"key", "other", write).await.expect_err("another payload");
    assert_eq!(reused.kind, ErrorKind::RequestReused);
}

async fn service_goes_on_while_a_minority_is_down(engine: &str) {
    let mut cluster = start(3, engine).await;
    let leader = cluster.leader().await.expect("a leader");
    let follower = leader % 3 + 1;
    let all = client(cluster.endpoints());
    put(&all, "before", "1").await;
    cluster.kill(follower).await.expect("killed");
    // Through each of the others, and through a client that does not know who is down.
    for id in (1..=3).filter(|id| *id != follower) {
        let one = client_of(&mut cluster, id);
        for number in 0..50 {
            put(&one, &format!("{id}-{number}"), "x").await;
            assert_eq!(get(&one, &format!("{id}-{number}")).await.as_deref(), Some("x"));
        }
    }
    for number in 0..50 {
        put(&all, &format!("all-{number}"), "x").await;
    }
    assert_eq!(get(&all, "before").await.as_deref(), Some("1"));

    cluster.start_node(follower).expect("started");
    cluster.wait_ready(crate::PATIENCE).await.expect("ready");
    let back = client_of(&mut cluster, follower);
    crate::catches_up(&back, "all-49", "x").await;
    assert!(back.get(b"before", Consistency::Stale).await.expect("a read").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_speak_json_to_each_other_serve_and_replace_a_dead_leader() {
    let over_json = Choices { peer_transport: Some("http-json".to_owned()), ..Choices::default() };
    let started = TemporaryCluster::start_with(program(), 3, &over_json).await;
    let mut cluster = started.expect("a cluster");
    let all = client(cluster.endpoints());
    for id in 1..=3 {
        put(&client_of(&mut cluster, id), &format!("key-{id}"), "before").await;
    }
    let leader = cluster.leader().await.expect("a leader");
    cluster.kill(leader).await.expect("killed");
    for id in 1..=3 {
        assert_eq!(get(&all, &format!("key-{id}")).await.as_deref(), Some("before"));
    }
    put(&all, "key", "after").await;
    cluster.start_node(leader).expect("started");
    catches_up(&client_of(&mut cluster, leader), "key", "after").await;
}

async fn a_key_that_is_gone_on_one_node_is_gone_on_all(engine: &str) {
    let mut cluster = start(3, engine).await;
    let clients = [1, 2, 3].map(|id| client_of(&mut cluster, id));
    let hour = Expiry::After(3_600_000_000);
    clients[0].put_with(b"long", "1", hour, Write::default()).await.expect("a write");
    let long = clients[1].get(b"long", Consistency::Linearizable).await.expect("a read").expect("a value");
    assert!(long.expires_ms.is_some());
    for (id, client) in clients.iter().enumerate() {
        let key = format!("short-{id}");
        let expires = Expiry::After(300_000);
        client.put_with(key.as_bytes(), "1", expires, Write::default()).await.expect("a write");
        let gone = until(PATIENCE, async || get(client, &key).await.is_none().then_some(())).await;
        assert!(gone.is_some(), "{key} stays");
        for other in &clients {
            assert_eq!(get(other, &key).await, None, "{key} has come back");
        }
        let absent = Write::only_if(Expect::Absent);
        client.put(key.as_bytes(), "2", absent).await.expect("a write");
        assert_eq!(get(&clients[2], &key).await.as_deref(), Some("2"));
    }
    let changed = clients[2].set_expiry(b"long", Expiry::Never, Write::default()).await.expect("a write");
    assert!(changed.is_some());
    let long = clients[0].get(b"long", Consistency::Linearizable).await.expect("a read").expect("a value");
    assert_eq!(long.expires_ms, None);
}
