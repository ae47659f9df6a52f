//! Scans and deletes of ranges, against nodes that hold keys.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use keevee_client::{ErrorKind, Scan};
use keevee_core::kv::{self, operation, operation_result, request, response};
use keevee_core::range::KeyRange;

use crate::fake::*;

type Held = Arc<Mutex<BTreeSet<String>>>;

fn holding(keys: &[&str]) -> Held {
    Arc::new(Mutex::new(keys.iter().map(|key| (*key).to_owned()).collect()))
}

/// Answers for one shard: two keys at a time.
fn serves(shard: u32, held: &Held, request: &kv::Request) -> Step {
    let Some(request::Operation::Execute(execute)) = &request.operation else { panic!("a range") };
    assert_eq!((execute.shard, execute.operations.len()), (Some(shard), 1));
    let mut held = held.lock().expect("no panic");
    let found = |start: &[u8], end: &Option<bytes::Bytes>| -> Vec<String> {
        let range = KeyRange { start: bytes::Bytes::copy_from_slice(start), end: end.clone() };
        held.iter().filter(|key| range.contains(key.as_bytes())).take(3).cloned().collect()
    };
    let next = |keys: &[String]| keys.get(2).map(|key| key.clone().into());
    let result = match execute.operations[0].action.as_ref().expect("an action") {
        operation::Action::Scan(kv::Scan { start, end, .. }) => {
            let keys = found(start, end);
            let key = |key: &String| kv::ScannedKey {
                key: key.clone().into(),
                value: "v".into(),
                version: 3,
                expires_unix_ms: None,
            };
            let next = next(&keys);
            operation_result::Result::Scanned(kv::Scanned {
                keys: keys.iter().take(2).map(key).collect(),
                next,
            })
        }
        operation::Action::DeleteRange(kv::DeleteRange { start, end, .. }) => {
            assert!(execute.idempotency_key.is_some());
            let keys = found(start, end);
            let next = next(&keys);
            keys.iter().take(2).for_each(|key| _ = held.remove(key));
            let deleted = keys.len().min(2) as u64;
            operation_result::Result::DeletedRange(kv::DeletedRange { deleted, next })
        }
        other => panic!("{other:?}"),
    };
    let results = vec![kv::OperationResult { result: Some(result) }];
    Step::Answer(response::Result::Execute(kv::ExecuteResponse { results }))
}

async fn node(shard: u32, held: &Held) -> Node {
    let held = held.clone();
    Node::start(move |_, request| serves(shard, &held, request)).await
}

fn names(page: &keevee_client::Page) -> Vec<&str> {
    page.entries.iter().map(|entry| std::str::from_utf8(&entry.key).expect("text")).collect()
}

#[tokio::test]
async fn pages_are_merged_from_the_leaders_of_all_shards() {
    let (odd, even) = (holding(&["k1", "k3", "k5", "other"]), holding(&["k2", "k4", "k6", "k7"]));
    let (one, two) = (node(1, &odd).await, node(2, &even).await);
    let members: &[&Node] = &[&one, &two];
    one.tells(&carp(1, &[(1, members, Some(&one)), (2, members, Some(&two))], HALVES));
    let client = patient(&[&one]);
    let scan = Scan::of_prefix("k").limit(4);
    let first = client.scan(&scan).await.expect("a page");
    assert_eq!(names(&first), ["k1", "k2", "k3", "k4"]);
    assert_eq!((first.entries[0].value.version, &first.entries[0].value.bytes[..]), (3, &b"v"[..]));
    let cursor = first.cursor.expect("more");
    let second = client.scan(&scan.clone().after(cursor.clone())).await.expect("a page");
    assert_eq!((names(&second), &second.cursor), (vec!["k5", "k6", "k7"], &None));
    let foreign = client.scan(&Scan::of_prefix("o").after(cursor)).await.expect_err("another range");
    assert_eq!(foreign.kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_prefix_is_deleted_with_an_id_for_each_step() {
    let (odd, even) = (holding(&["k1", "k3", "k5", "other"]), holding(&["k2", "k4"]));
    let (one, two) = (node(1, &odd).await, node(2, &even).await);
    let members: &[&Node] = &[&one, &two];
    one.tells(&carp(1, &[(1, members, Some(&one)), (2, members, Some(&two))], HALVES));
    let client = patient(&[&one]);
    assert_eq!(client.delete_prefix("k", Some("once".to_owned())).await, Ok(5));
    assert_eq!((odd.lock().expect("no panic").len(), even.lock().expect("no panic").len()), (1, 0));
    let ids: BTreeSet<String> = one.ids().into_iter().chain(two.ids()).collect();
    assert_eq!((one.count(), two.count(), ids.len()), (2, 1, 3));
    client.delete_prefix("k", Some("once".to_owned())).await.expect("again");
    assert!(one.ids()[2..].iter().chain(&two.ids()[1..]).all(|id| ids.contains(id)), "the same steps");
}

#[tokio::test]
async fn a_delete_that_stops_half_way_says_how_many_keys_are_gone() {
    let held = holding(&["k1", "k2", "k3"]);
    let shared = held.clone();
    let one = Node::start(move |number, request| match number {
        0 => serves(1, &shared, request),
        _ => fails(ErrorKind::Unavailable),
    })
    .await;
    one.tells(&carp(1, &[(1, &[&one], Some(&one))], ALL_IN_1));
    let error = client(&[&one]).delete_prefix("k", None).await.expect_err("no end");
    assert_eq!((error.kind, error.deleted), (ErrorKind::OutcomeUnknown, Some(2)));
}

#[tokio::test]
async fn an_answer_that_is_out_of_order_is_no_answer() {
    let one = Node::start(|_, _| {
        let key = |key: &'static str| kv::ScannedKey { key: key.into(), ..kv::ScannedKey::default() };
        let scanned = kv::Scanned { keys: vec![key("b"), key("a")], next: None };
        let results = vec![kv::OperationResult { result: Some(operation_result::Result::Scanned(scanned)) }];
        Step::Answer(response::Result::Execute(kv::ExecuteResponse { results }))
    })
    .await;
    one.tells(&carp(1, &[(1, &[&one], Some(&one))], ALL_IN_1));
    let error = client(&[&one]).scan(&Scan::default()).await.expect_err("no page");
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn epochs_go_both_ways() {
    let one = Node::start(|_, request| {
        assert!(request.epoch == 4 || request.epoch == 5);
        let result = Some(response::Result::Put(kv::PutResponse { version: 1 }));
        Step::Raw(framed(&kv::Response { sequence: request.sequence, result, epoch: 5 }).freeze())
    })
    .await;
    one.tells(&carp(4, &[(1, &[&one], Some(&one))], ALL_IN_1));
    let client = patient(&[&one]);
    client.put(LOW, "v", keevee_client::Write::default()).await.expect("a write");
    assert_eq!(one.requests()[0].epoch, 4);
    one.tells(&carp(5, &[(1, &[&one], Some(&one))], ALL_IN_1));
    until(|| one.carp_asked() >= 2).await;
    while one.requests().last().is_some_and(|last| last.epoch == 4) {
        client.put(LOW, "v", keevee_client::Write::default()).await.expect("a write");
    }
}
