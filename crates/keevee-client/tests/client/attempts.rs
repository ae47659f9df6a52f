//! What the client makes of several attempts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keevee_client::{Client, Consistency, ErrorKind, Expect, OperationError, Options, Write};
use keevee_core::kv::{self, request, response};
use tokio::task::JoinSet;

use crate::fake::*;

/// Puts through these nodes: the version, or the kind of the error.
async fn put(nodes: &[&Node]) -> Result<u64, ErrorKind> {
    let put = client(nodes).put(b"key", "value", Write::default()).await;
    put.map_err(|error| error.kind)
}

#[tokio::test]
async fn a_refusal_is_tried_elsewhere_under_the_same_id() {
    let one = Node::with_steps([fails(ErrorKind::Unavailable)]).await;
    let two = Node::with_steps([written(7)]).await;
    assert_eq!(put(&[&one, &two]).await, Ok(7));
    assert_eq!(one.ids(), two.ids());
    assert!(!one.ids()[0].is_empty());
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_id() {
    for lost in [fails(ErrorKind::OutcomeUnknown), fails(ErrorKind::Fatal), Step::Break, Step::Hang] {
        let node = Node::with_steps([lost, written(7)]).await;
        assert_eq!(put(&[&node]).await, Ok(7));
        let ids = node.ids();
        assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
    }
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_passed_over() {
    let (gone, node) = (Node::gone().await, Node::with_steps([written(7)]).await);
    assert_eq!(put(&[&gone, &node]).await, Ok(7));
    assert_eq!(put(&[&gone]).await, Err(ErrorKind::Unavailable));
}

#[tokio::test]
async fn refusals_until_the_end_mean_that_nothing_happened() {
    let node = Node::with_steps([fails(ErrorKind::Unavailable)]).await;
    assert_eq!(put(&[&node]).await, Err(ErrorKind::Unavailable));
    assert!(node.count() > 2);
}

#[tokio::test]
async fn a_refusal_says_nothing_about_an_earlier_lost_answer() {
    for refusal in
        [ErrorKind::Unavailable, ErrorKind::TooLarge, ErrorKind::RequestExpired, ErrorKind::NotLeader]
    {
        let node = Node::with_steps([fails(ErrorKind::OutcomeUnknown), fails(refusal)]).await;
        assert_eq!(put(&[&node]).await, Err(ErrorKind::OutcomeUnknown), "then {refusal}");
    }
    let node = Node::with_steps([Step::Break, fails(ErrorKind::Unavailable)]).await;
    assert_eq!(put(&[&node]).await, Err(ErrorKind::OutcomeUnknown));
}

#[tokio::test]
async fn a_conflict_answers_for_all_attempts() {
    let kind = kv::ErrorKind::Conflict.into();
    let conflict = kv::Error { kind, version: Some(3), ..kv::Error::default() };
    let node = Node::with_steps([fails(ErrorKind::OutcomeUnknown), fails_with(conflict)]).await;
    let write = Write::only_if(Expect::Version(2));
    let error = client(&[&node]).put(b"key", "value", write).await.expect_err("a conflict");
    assert_eq!((error.kind, error.version), (ErrorKind::Conflict, Some(3)));
    let Some(request::Operation::Put(put)) = &node.requests()[0].operation else { panic!("a put") };
    assert_eq!(put.condition, Some(kv::Condition { expect: Some(kv::condition::Expect::Version(2)) }));
}

#[tokio::test]
async fn an_operation_that_failed_answers_for_all_attempts() {
    let failed = kv::Error {
        kind: kv::ErrorKind::Invalid.into(),
        operation: Some(0),
        operation_error: kv::OperationError::Overflow.into(),
        ..kv::Error::default()
    };
    let node = Node::with_steps([Step::Break, fails_with(failed)]).await;
    let error = client(&[&node]).increment(b"key", 1, Write::default()).await.expect_err("an overflow");
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert_eq!(error.failed.map(|failed| failed.error), Some(OperationError::Overflow));
}

#[tokio::test]
async fn an_answer_that_is_final_is_not_asked_for_again() {
    let node = Node::with_steps([fails(ErrorKind::TooLarge), written(7)]).await;
    assert_eq!(put(&[&node]).await, Err(ErrorKind::TooLarge));
    assert_eq!(node.count(), 1);
}

#[tokio::test]
async fn a_wrong_clock_is_set_by_the_refusal() {
    let node = Node::with_steps([fails(ErrorKind::RequestExpired), written(7)]).await;
    assert_eq!(put(&[&node]).await, Ok(7));
    let ids = node.ids();
    let seconds = |id: &str| {
        let id = uuid::Uuid::parse_str(id).expect("a UUID");
        id.get_timestamp().expect("version 7").to_unix().0
    };
    assert!((784_111_777..784_111_877).contains(&seconds(&ids[1])), "{ids:?}");
    // An id that the caller chose is the caller's affair.
    let node = Node::with_steps([fails(ErrorKind::RequestExpired), written(7)]).await;
    let write = Write { condition: None, request_id: Some("mine".to_owned()) };
    let error = client(&[&node]).put(b"key", "value", write).await.expect_err("expired");
    assert_eq!(error.kind, ErrorKind::RequestExpired);
    assert_eq!(node.ids(), ["mine"]);
}

#[tokio::test]
async fn a_read_whose_answer_is_lost_is_only_late() {
    let node = Node::with_steps([Step::Break, found(7, "bytes")]).await;
    let value = client(&[&node]).get(b"key", Consistency::Linearizable).await.expect("a read");
    assert_eq!(value.map(|value| (value.version, value.bytes)), Some((7, "bytes".into())));
    let node = Node::with_steps([Step::Break]).await;
    let error = client(&[&node]).get(b"key", Consistency::Stale).await.expect_err("no answer");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let request = &node.requests()[0];
    let Some(request::Operation::Get(get)) = &request.operation else { panic!("a get") };
    assert_eq!(get.consistency(), kv::Consistency::Stale);
    assert!(request.timeout_ms.is_some_and(|timeout| timeout < 300), "the node is told to answer earlier");
}

#[tokio::test]
async fn each_call_has_an_id_of_its_own() {
    let node = Node::with_steps([written(7)]).await;
    let client = client(&[&node]);
    for _ in 0..10 {
        client.put(b"key", "value", Write::default()).await.expect("a write");
    }
    let ids = node.ids();
    assert_eq!(ids.len(), 10);
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");
}

#[tokio::test]
async fn no_call_outlives_its_deadline() {
    let (map, keys) = (Node::with_steps([Step::Hang]).await, Node::with_steps([Step::Hang]).await);
    // A listener that accepts nothing, and nodes that answer nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = silent.local_addr().expect("an address").to_string().parse().expect("an endpoint");
    map.tells(&carp(1, &[(1, &[&keys], None)], ALL_IN_1));
    let options = Options { timeout: Duration::from_millis(400), ..Options::default() };
    let clients = [client_with(&[&map], options.clone()), Client::new(vec![endpoint], options).expect("one")];
    for (client, kind) in clients.iter().zip([ErrorKind::OutcomeUnknown, ErrorKind::Unavailable]) {
        let call = client.put(b"key", "value", Write::default());
        let error = tokio::time::timeout(DEADLINE, call).await.expect("it ends").expect_err("no answer");
        assert_eq!(error.kind, kind, "{error}");
    }
}

#[tokio::test]
async fn what_is_repeated_stays_within_the_budget() {
    let node = Arc::new(Node::with_steps([fails(ErrorKind::Unavailable)]).await);
    let client = client(&[&node]);
    let started = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..500 {
        let client = client.clone();
        calls.spawn(async move { client.put(b"key", "value", Write::default()).await });
    }
    while let Some(call) = calls.join_next().await {
        call.expect("no panic").expect_err("it is refused");
    }
    // A fifth of the calls, the reserve of a hundred, and ten a second.
    let bound = 500 + 100 + 100 + 10 * (started.elapsed().as_secs() as usize + 1);
    assert!(node.count() <= bound, "{} requests, at most {bound} are paid for", node.count());
    assert!(node.count() > 500);
}

#[tokio::test]
async fn an_answer_of_an_unknown_kind_says_nothing() {
    let strange = kv::Error { kind: 4711, ..kv::Error::default() };
    let node = Node::with_steps([fails_with(strange.clone()), written(7)]).await;
    assert_eq!(put(&[&node]).await, Ok(7));
    let node = Node::with_steps([fails_with(strange)]).await;
    assert_eq!(put(&[&node]).await, Err(ErrorKind::OutcomeUnknown));
    let other = Step::Answer(response::Result::Delete(kv::DeleteResponse { deleted: true }));
    let node = Node::with_steps([other]).await;
    assert_eq!(put(&[&node]).await, Err(ErrorKind::OutcomeUnknown));
    let error = client(&[&node]).get(b"key", Consistency::Linearizable).await.expect_err("no value");
    assert_eq!(error.kind, ErrorKind::Unavailable);
}
