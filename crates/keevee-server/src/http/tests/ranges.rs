//! Scans, deletes of ranges, batches, increments, and the epoch.

use std::collections::BTreeSet;

use super::*;

impl Answer {
    fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, StatusCode::OK, "{:?}", self.body);
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// With keys `key-00` and on, in two shards.
async fn with_keys(count: usize) -> Server {
    let server = Server::start().await;
    for number in 0..count {
        server.put(&format!("/kv/key-{number:02}/{number}"), b"").await;
    }
    server.store.asked();
    server
}

#[tokio::test]
async fn pages_of_all_shards_are_in_order_and_leave_nothing_out() {
    let server = with_keys(40).await;
    let owners: BTreeSet<u32> = (0..40)
        .map(|number| format!("key-{number:02}"))
        .map(|key| server.store.map().owner(key.as_bytes()).0)
        .collect();
    assert_eq!(owners.len(), 2);
    let (mut keys, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = server.get(&format!("/v1/kv?prefix=key-&limit=7{cursor}")).await.json();
        let entries = page["entries"].as_array().unwrap();
        assert!(!entries.is_empty() && entries.len() <= 7);
        for entry in entries {
            let key = entry["key"].as_str().unwrap().to_owned();
            assert_eq!(key, format!("key-{:02}", entry["value"].as_str().unwrap().parse::<u32>().unwrap()));
            assert!(entry["version"].as_u64().unwrap() > 0);
            keys.push(key);
        }
        pages += 1;
        match page["cursor"].as_str() {
            Some(text) => cursor = format!("&cursor={text}"),
            None => break,
        }
    }
    assert!(keys.iter().cloned().eq((0..40).map(|number| format!("key-{number:02}"))), "{keys:?}");
    assert!(pages >= 6);
    let some = server.get("/v1/kv?start=key-05&end=key-08&consistency=stale").await.json();
    let names: Vec<&str> =
        some["entries"].as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap()).collect();
    assert_eq!((names, &some["cursor"]), (vec!["key-05", "key-06", "key-07"], &serde_json::Value::Null));
    assert!(server.store.asked().iter().all(|(context, _)| context.shard.is_some()));
}

#[tokio::test]
async fn bytes_that_are_no_text_are_base64() {
    let server = Server::start().await;
    server.put("/kv/%FF%00/%FE", b"").await;
    let page = server.get("/v1/kv?prefix=%FF").await.json();
    let entry = serde_json::json!({ "key_base64": "/wA=", "version": 1, "value_base64": "/g==" });
    assert_eq!(page, serde_json::json!({ "entries": [entry], "cursor": null }));
    assert_eq!(server.send("DELETE", "/v1/kv?prefix=%FF", &[], b"").await.body, "{\"deleted\":1}");
}

#[tokio::test]
async fn a_prefix_is_deleted_step_by_step_each_under_an_id_of_its_own() {
    let server = with_keys(10).await;
    server.put("/kv/other/1", b"").await;
    server.store.asked();
    let once = [("idempotency-key", "once")];
    let answer = server.send("DELETE", "/v1/kv?prefix=key-", &once, b"").await;
    assert_eq!(answer.body, "{\"deleted\":10}");
    let asked = server.store.asked();
    assert_eq!(asked.len(), 10);
    let ids: BTreeSet<RequestId> = asked.iter().map(|(_, command)| command.request_id.unwrap()).collect();
    assert_eq!(ids.len(), 10);
    assert_eq!(server.get("/kv/other").await.status, StatusCode::OK);

    // A retry asks under the same ids, as far as it gets the same answers.
    server.send("DELETE", "/v1/kv?prefix=key-", &once, b"").await;
    server.store.asked().iter().filter(|(_, command)| !command.is_read_only()).for_each(|(_, command)| {
        assert!(ids.contains(&command.request_id.unwrap()));
    });
    // For another range, each shard is asked under an id that it knows: so it can tell that this is no retry.
    server.send("DELETE", "/v1/kv?prefix=other", &once, b"").await;
    let first = |(_, command): &(Context, Command)| ids.contains(&command.request_id.unwrap());
    assert_eq!(server.store.asked().iter().filter(|asked| first(asked)).count(), 2);
    server.send("DELETE", "/v1/kv?prefix=key-", &[], b"").await;
    assert!(server.store.asked().iter().all(|(_, command)| !ids.contains(&command.request_id.unwrap())));
}

#[tokio::test]
async fn a_delete_that_stops_half_way_says_how_far_it_came() {
    let server = with_keys(3).await;
    let failed = |kind| {
        let detail = "so it is".to_owned();
        Err(ExecuteError { kind, detail, retry_after: None, hint: None })
    };
    for _ in 0..2 {
        server.store.answer_next(failed(ErrorKind::Unavailable));
    }
    let nothing = server.send("DELETE", "/v1/kv?prefix=key-", &[], b"").await;
    assert_eq!(nothing.problem().0, "unavailable");

    let next = Some("key-02".into());
    server.store.answer_next(Ok(Outcome::Done(vec![OperationResult::DeletedRange { deleted: 1, next }])));
    for _ in 0..2 {
        server.store.answer_next(failed(ErrorKind::Unavailable));
    }
    let half = server.send("DELETE", "/v1/kv?prefix=key-", &[], b"").await;
    let (kind, detail) = half.problem();
    assert_eq!(kind, "outcome_unknown");
    assert!(detail.starts_with("1 keys were deleted"), "{detail}");
}

#[tokio::test]
async fn a_wrong_request_for_a_range_does_nothing() {
    let server = with_keys(3).await;
    let cursor = server.get("/v1/kv?prefix=key-&limit=1").await.json()["cursor"].as_str().unwrap().to_owned();
    server.store.asked();
    let longest = "k".repeat(4097);
    for (method, query, headers, named) in [
        ("DELETE", "", &[][..], "`prefix`"),
        ("DELETE", "?prefix=", &[], "`prefix`"),
        ("DELETE", "?start=", &[], "`prefix`"),
        ("DELETE", "?prefix=a&limit=1", &[], "`limit`"),
        ("DELETE", "?prefix=a&consistency=stale", &[], "linearizable"),
        ("DELETE", "?prefix=a", &[("if-match", "*")], "`if-match`"),
        ("DELETE", "?prefix=a&start=b", &[], "not both"),
        ("GET", "?start=b&end=a", &[], "behind `start`"),
        ("GET", "?limit=0", &[], "1 to 1000"),
        ("GET", "?limit=1001", &[], "1 to 1000"),
        ("GET", "?prefx=a", &[], "`prefx`"),
        ("GET", "?prefix=a&prefix=b", &[], "twice"),
        ("GET", "?cursor=nonsense", &[], "cursor"),
        ("GET", &format!("?prefix=other&cursor={cursor}"), &[], "cursor"),
        ("GET", &format!("?prefix=key-&cursor={}", &cursor[1..]), &[], "cursor"),
        ("GET", "", &[("keevee-redirect", "1")], "`Keevee-Redirect`"),
        ("GET", "", &[("keevee-epoch", "new")], "`Keevee-Epoch`"),
        ("GET", &format!("?prefix={longest}"), &[], "4097"),
    ] {
        let answer = server.send(method, &format!("/v1/kv{query}"), headers, b"").await;
        let (_, detail) = answer.problem();
        assert!(detail.contains(named), "{method} {query}: {detail}");
    }
    assert_eq!(server.send("POST", "/v1/kv", &[], b"").await.header("allow"), Some("GET, HEAD, DELETE"));
    assert!(server.store.asked().is_empty());
}

#[tokio::test]
async fn a_batch_answers_each_operation() {
    let server = Server::start().await;
    server.put("/kv/a/1", b"").await;
    server.store.asked();
    let body = br#"{"preconditions": [{"key": "a", "expect": 1}],
                    "operations": [{"action": "get", "key": "a"}, {"action": "put", "key": "a", "value": "2"},
                                   {"action": "increment", "key": "n", "by": 5}, {"action": "delete", "key": "b"}]}"#;
    let answer = server.send("POST", "/v1/batch", &[("idempotency-key", "once")], body).await.json();
    let results = serde_json::json!([
        { "found": true, "version": 1, "value": "1" },
        { "version": 2 },
        { "version": 3, "value": 5 },
        { "deleted": false },
    ]);
    assert_eq!(answer, serde_json::json!({ "results": results }));
    let (_, command) = server.store.asked().remove(0);
    assert_eq!(command.request_id, Some(RequestId::from_idempotency_key(b"once")));

    let conflict = server.send("POST", "/v1/batch", &[], body).await;
    let (kind, detail) = conflict.problem();
    assert_eq!((conflict.status, kind.as_str()), (StatusCode::PRECONDITION_FAILED, "conflict"));
    assert!(detail.contains("precondition 0"), "{detail}");
}

#[tokio::test]
async fn a_wrong_batch_does_nothing() {
    let server = Server::start().await;
    let put = br#"{"operations": [{"action": "put", "key": "k", "value": "v"}]}"#;
    let all = br#"{"operations": [{"action": "put", "key": "k"}]}"#;
    for (query, headers, body, named) in [
        ("", &[][..], &b"{}"[..], "`operations`"),
        ("", &[], b"put k v", "no batch"),
        ("", &[], br#"{"operations": [["put", "k", null, "v", null, null, false]]}"#, "an object"),
        ("", &[], all, "operation 0"),
        ("?consistency=stale", &[], put, "linearizable"),
        ("?by=1", &[], put, "`by`"),
        ("", &[("if-match", "*")], put, "`if-match`"),
    ] {
        let answer = server.send("POST", &format!("/v1/batch{query}"), headers, body).await;
        let (kind, detail) = answer.problem();
        assert!(kind == "invalid" && detail.contains(named), "{detail}");
    }
    assert_eq!(server.get("/v1/batch").await.header("allow"), Some("POST"));
    assert!(server.store.asked().is_empty());
    let read = br#"{"operations": [{"action": "get", "key": "k"}]}"#;
    server.send("POST", "/v1/batch?consistency=stale", &[], read).await.json();
    assert_eq!(server.store.asked()[0].0.consistency, Consistency::Stale);
}

#[tokio::test]
async fn a_key_is_incremented() {
    let server = Server::start().await;
    let first = server.send("POST", "/v1/kv/a%2Fb/increment", &[], b"").await;
    assert_eq!((&first.body[..], first.header("etag")), (&b"{\"value\":1,\"version\":1}"[..], Some("\"1\"")));
    let headers = [("idempotency-key", "once"), ("if-match", "\"1\"")];
    let second = server.send("POST", "/v1/kv/a%2Fb/increment?by=-3", &headers, b"").await;
    assert_eq!(second.body, "{\"value\":-2,\"version\":2}");
    let (_, command) = server.store.asked().remove(1);
    assert_eq!(command.request_id, Some(RequestId::from_idempotency_key(b"once")));
    assert_eq!(command.preconditions[0].expect, Expect::Version(1));

    server.put("/kv/text/x", b"").await;
    let failed = server.send("POST", "/v1/kv/text/increment", &[], b"").await;
    assert_eq!(failed.problem().0, "invalid");
    server.store.asked();
    for (path, named) in [
        ("/v1/kv//increment", "empty"),
        ("/v1/kv/n/increment?by=x", "64-bit"),
        ("/v1/kv/n/increment?by=1&by=1", "twice"),
        ("/v1/kv/n/increment?bye=1", "`bye`"),
        ("/v1/kv/n/increment?consistency=stale", "linearizable"),
        ("/v1/kv/%zz/increment", "percent"),
    ] {
        let (kind, detail) = server.send("POST", path, &[], b"").await.problem();
        assert!(kind == "invalid" && detail.contains(named), "{path}: {detail}");
    }
    let (kind, detail) = server.send("POST", "/v1/kv/n/increment", &[], b"5").await.problem();
    assert!(kind == "invalid" && detail.contains("`?by=`"), "{detail}");
    assert_eq!(server.get("/v1/kv/n/increment").await.header("allow"), Some("POST"));
    assert_eq!(server.send("POST", "/v1/kv/a/b/increment", &[], b"").await.status, StatusCode::NOT_FOUND);
    assert!(server.store.asked().is_empty());
}

#[tokio::test]
async fn epochs_go_both_ways() {
    let server = Server::start().await;
    let newer = [("keevee-epoch", "9")];
    for (method, path) in
        [("GET", "/kv/k"), ("PUT", "/kv/k/v"), ("GET", "/v1/kv"), ("POST", "/v1/kv/k/increment")]
    {
        let answer = server.send(method, path, &newer, b"").await;
        assert_eq!(answer.header("keevee-epoch"), Some("7"), "{method} {path}");
        assert!(server.store.asked().iter().all(|(context, _)| context.epoch == 9), "{method} {path}");
    }
    assert_eq!(server.get("/healthz").await.header("keevee-epoch"), Some("7"));
    server.send("GET", "/v1/explain?key=k", &newer, b"").await.json();
    server.send("GET", "/v1/cluster/carp", &newer, b"").await.json();
    assert_eq!(server.store.0.lock().unwrap().epochs, [9, 9, 9], "a scan, too, looks first");
}
