//! The connection to one node: many requests at once, and its end.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use keevee_client::{Consistency, ErrorKind, Options, Write};
use keevee_core::kv::{self, request, response};
use tokio::task::JoinSet;

use crate::fake::*;

/// The first byte of the value that a request puts.
fn mark(request: &kv::Request) -> u8 {
    match &request.operation {
        Some(request::Operation::Put(put)) => put.value.first().copied().unwrap_or_default(),
        other => panic!("no put: {other:?}"),
    }
}

#[tokio::test]
async fn many_requests_share_one_stream() {
    let node = Node::start(|number, _| written(number as u64)).await;
    let client = patient(&[&node]);
    let mut calls = JoinSet::new();
    for _ in 0..300 {
        let client = client.clone();
        calls.spawn(async move { client.put(b"key", "value", Write::default()).await.expect("a write") });
    }
    let mut versions = calls.join_all().await;
    versions.sort();
    assert_eq!(versions, (0..300).collect::<Vec<_>>());
    assert_eq!(node.streams(), 1);
}

#[tokio::test]
async fn answers_find_their_requests_in_any_order() {
    let node = Node::start(|number, request| {
        let result = response::Result::Put(kv::PutResponse { version: mark(request).into() });
        if number % 4 == 3 { Step::Answer(result) } else { Step::AnswerAfterNext(result) }
    })
    .await;
    let client = patient(&[&node]);
    let puts = client.multi_put((0..100u8).map(|number| (format!("key-{number}"), vec![number]))).await;
    let versions: Vec<u64> = puts.into_iter().map(|put| put.expect("a write")).collect();
    assert_eq!(versions, (0..100).collect::<Vec<_>>());
    assert_eq!(node.count(), 100);
}

#[tokio::test]
async fn a_stream_that_breaks_leaves_no_one_waiting() {
    // The first requests hang until one breaks the connection; later all are answered.
    let node = Node::start(|number, _| match number {
        0..9 => Step::Hang,
        9 => Step::Break,
        _ => written(7),
    })
    .await;
    let client = patient(&[&node]);
    let puts = client.multi_put((0..10).map(|number| (format!("key-{number}"), "value"))).await;
    assert!(puts.iter().all(|put| put == &Ok(7)), "{puts:?}");
    let ids = node.ids();
    let (first, again) = ids.split_at(10);
    assert!(first.iter().all(|id| again.contains(id)), "each is asked for again under its id");
    assert_eq!(node.streams(), 2);
}

#[tokio::test]
async fn what_a_node_did_not_begin_is_not_in_doubt() {
    for (end, known) in [
        (ErrorKind::Unavailable, ErrorKind::TooLarge),
        (ErrorKind::Invalid, ErrorKind::TooLarge),
        (ErrorKind::Fatal, ErrorKind::OutcomeUnknown),
    ] {
        let node = Node::with_steps([Step::End(end), fails(ErrorKind::TooLarge)]).await;
        let put = patient(&[&node]).put(b"key", "value", Write::default()).await;
        assert_eq!(put.map_err(|error| error.kind), Err(known), "after {end}");
    }
}

#[tokio::test]
async fn a_request_that_is_too_large_fails_alone() {
    let node = Node::start(|_, request| {
        let Some(request::Operation::Put(put)) = &request.operation else { panic!("a put") };
        match put.value.len() {
            // Lets others be under way when the large one comes.
            0..1000 if !put.key.ends_with(b"!") => written(7),
            0..1000 => Step::Hang,
            _ => Step::End(ErrorKind::TooLarge),
        }
    })
    .await;
    let client = patient(&[&node]);
    client.put(b"key", "value", Write::default()).await.expect("a write");
    let large = tokio::spawn({
        let client = client.clone();
        async move { client.put(b"key", vec![b'x'; 100_000], Write::default()).await }
    });
    let small = client.multi_put((0..50).map(|number| (format!("key-{number}"), "value"))).await;
    let large = large.await.expect("no panic");
    assert_eq!(large.map_err(|error| error.kind), Err(ErrorKind::TooLarge));
    assert!(small.iter().all(|put| put == &Ok(7)), "{small:?}");
}

#[tokio::test]
async fn values_may_be_large() {
    let value = Bytes::from(vec![b'x'; 24 << 20]);
    let answer = value.clone();
    let node = Node::start(move |_, _| found(1, answer.clone())).await;
    let read = patient(&[&node]).get(b"key", Consistency::Linearizable).await.expect("a read");
    assert!(read.expect("a value").bytes == value);
}

#[tokio::test]
async fn what_is_no_answer_is_an_error() {
    let mut endless = BytesMut::new();
    endless.put_u8(0);
    endless.put_u32(u32::MAX);
    let mut garbage = BytesMut::new();
    garbage.put_u8(0);
    garbage.put_u32(3);
    garbage.put_slice(&[0xff, 0xff, 0xff]);
    let compressed = Bytes::from_static(&[1, 0, 0, 0, 0]);
    // An answer without a result, to the first request of the stream.
    let empty = framed(&kv::Response { sequence: 1, ..kv::Response::default() });
    for bytes in [endless.freeze(), garbage.freeze(), compressed, empty.freeze()] {
        let node = Node::with_steps([Step::Raw(bytes.clone())]).await;
        let client = client_with(&[&node], Options { timeout: Duration::from_millis(500), ..options() });
        let put = client.put(b"key", "value", Write::default()).await;
        assert_eq!(put.map_err(|error| error.kind), Err(ErrorKind::OutcomeUnknown), "{bytes:?}");
        let get = client.get(b"key", Consistency::Linearizable).await;
        assert_eq!(get.map_err(|error| error.kind), Err(ErrorKind::Unavailable), "{bytes:?}");
    }
    // Nobody asked for this one.
    let stray = framed(&kv::Response { sequence: 4711, ..kv::Response::default() }).freeze();
    let node = Node::with_steps([Step::Raw(stray), written(7)]).await;
    let put = client(&[&node]).put(b"key", "value", Write::default()).await;
    assert_eq!(put, Ok(7));
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_the_stream_to_others() {
    let node = Node::with_steps([
        Step::AnswerAfterNext(response::Result::Put(kv::PutResponse { version: 1 })),
        written(2),
        written(3),
    ])
    .await;
    let client = patient(&[&node]);
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.put(b"key", "value", Write::default()).await }
    });
    until(|| node.count() == 1).await;
    call.abort();
    assert!(call.await.expect_err("it was dropped").is_cancelled());
    // The late answer comes with this one, and nobody takes it for its own.
    assert_eq!(client.put(b"key", "value", Write::default()).await, Ok(2));
    assert_eq!(client.put(b"key", "value", Write::default()).await, Ok(3));
    assert_eq!((node.streams(), node.count()), (1, 3));
}

#[tokio::test]
async fn requests_under_way_have_a_bound() {
    let node = Node::with_steps([Step::Hang]).await;
    let client = patient(&[&node]);
    let mut calls = JoinSet::new();
    for _ in 0..600 {
        let client = client.clone();
        calls.spawn(async move { client.put(b"key", "value", Write::default()).await });
    }
    until(|| node.count() == 512).await;
    // One more comes only when another gives up its place.
    let late = client.clone();
    let waits = tokio::time::timeout(Duration::from_millis(50), late.put(b"key", "late", Write::default()));
    assert!(waits.await.is_err());
    assert_eq!(node.count(), 512);
    calls.abort_all();
    while calls.join_next().await.is_some() {}
    node.does(|_, _| written(7));
    assert_eq!(client.put(b"key", "value", Write::default()).await, Ok(7));
}

#[tokio::test]
async fn a_connection_ends_with_its_client() {
    let node = Node::with_steps([written(7)]).await;
    for round in 1..=3 {
        let client = client(&[&node]);
        client.put(b"key", "value", Write::default()).await.expect("a write");
        drop(client);
        until(|| node.open_streams() == 0).await;
        assert_eq!(node.streams(), round);
    }
}

#[test]
fn a_client_outlives_the_runtime_that_it_was_used_in() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let server = tokio::runtime::Runtime::new().expect("a runtime");
    let node = server.block_on(Node::with_steps([written(7)]));
    let client = client(&[&node]);
    for _ in 0..3 {
        let put = runtime().block_on(client.put(b"key", "value", Write::default()));
        assert_eq!(put, Ok(7));
    }
    assert_eq!(node.streams(), 3);
}
