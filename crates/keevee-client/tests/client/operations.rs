//! Each kind of operation: what is sent, and what is made of the answer.

use bytes::Bytes;
use keevee_client::{
    Appended, Batch, Consistency, Counter, ErrorKind, Expect, OperationError, OperationResult, Write,
};
use keevee_core::kv::{self, operation_result, request, response};

use crate::fake::*;

/// Answers each operation of a command as if it had been carried out.
fn carries_out(request: &kv::Request) -> Step {
    use kv::operation::Action;
    let Some(request::Operation::Execute(execute)) = &request.operation else { panic!("a command") };
    let result = |operation: &kv::Operation| match operation.action.as_ref().expect("an action") {
        Action::Get(_) => operation_result::Result::Value(kv::Value::default()),
        Action::Put(_) => operation_result::Result::Written(kv::Written { version: 5 }),
        Action::Delete(_) => operation_result::Result::Deleted(kv::Deleted { existed: true }),
        Action::Increment(kv::Increment { by, .. }) => {
            operation_result::Result::Incremented(kv::Incremented { value: *by, version: 6 })
        }
        Action::Append(kv::Append { suffix, .. }) if operation.continue_on_error => {
            assert!(!suffix.is_empty());
            operation_result::Result::Failed(kv::OperationError::ValueTooLarge.into())
        }
        Action::Append(kv::Append { suffix, .. }) => {
            operation_result::Result::Appended(kv::Appended { length: suffix.len() as u64, version: 7 })
        }
        Action::PutWith(_) => operation_result::Result::Skipped(kv::Nothing {}),
        Action::SetExpiry(_) => operation_result::Result::Written(kv::Written { version: 8 }),
        Action::SetRange(kv::SetRange { offset, bytes, .. }) => {
            let length = u64::from(*offset) + bytes.len() as u64;
            operation_result::Result::Appended(kv::Appended { length, version: 9 })
        }
        Action::Scan(_) | Action::DeleteRange(_) => unreachable!("a batch has no ranges"),
    };
    let results = execute.operations.iter().map(result);
    let results = results.map(|result| kv::OperationResult { result: Some(result) }).collect();
    Step::Answer(response::Result::Execute(kv::ExecuteResponse { results }))
}

#[tokio::test]
async fn increments_and_appends_are_commands_of_one_operation() {
    let node = Node::start(|_, request| carries_out(request)).await;
    let client = client(&[&node]);
    let write = Write::only_if(Expect::Present);
    assert_eq!(client.increment(b"n", -3, write).await, Ok(Counter { value: -3, version: 6 }));
    let appended = client.append(b"log", "line", Write::default()).await;
    assert_eq!(appended, Ok(Appended { length: 4, version: 7 }));
    let requests = node.requests();
    let Some(request::Operation::Execute(first)) = &requests[0].operation else { panic!("a command") };
    assert_eq!((first.preconditions.len(), &first.preconditions[0].key[..]), (1, &b"n"[..]));
    assert!(node.ids().iter().all(|id| !id.is_empty()));
}

#[tokio::test]
async fn a_batch_has_a_result_for_each_operation() {
    let node = Node::start(|_, request| carries_out(request)).await;
    let batch = Batch::new()
        .only_if("{t}0", Expect::Absent)
        .put("{t}1", "value")
        .get("{t}2")
        .delete("{t}3")
        .increment("{t}4", 2)
        .append("{t}5", "more")
        .or_go_on();
    let results = client(&[&node]).execute(batch, None).await.expect("results");
    let expected = [
        OperationResult::Written { version: 5 },
        OperationResult::Value(None),
        OperationResult::Deleted { existed: true },
        OperationResult::Incremented(Counter { value: 2, version: 6 }),
        OperationResult::Failed(OperationError::ValueTooLarge),
    ];
    assert_eq!(results, expected);
}

#[tokio::test]
async fn a_batch_that_only_reads_is_a_read() {
    let node = Node::with_steps([Step::Break]).await;
    let error = client(&[&node]).execute(Batch::new().get("key"), None).await.expect_err("no answer");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(node.ids().iter().all(String::is_empty));
}

#[tokio::test]
async fn an_answer_with_too_few_results_is_none() {
    let empty = response::Result::Execute(kv::ExecuteResponse::default());
    let node = Node::with_steps([Step::Answer(empty)]).await;
    let error =
        client(&[&node]).execute(Batch::new().put("key", "value"), None).await.expect_err("no result");
    assert_eq!(error.kind, ErrorKind::OutcomeUnknown);
}

#[tokio::test]
async fn a_batch_of_keys_in_several_shards_names_two_of_them() {
    let node = Node::start(|_, request| carries_out(request)).await;
    node.tells(&carp(1, &[(1, &[&node], Some(&node)), (2, &[&node], Some(&node))], HALVES));
    let client = client(&[&node]);
    let apart = Batch::new().put("foo", "1").put("bar", "2");
    let error = client.execute(apart, None).await.expect_err("two shards");
    assert_eq!(error.kind, ErrorKind::Invalid);
    for word in ["\"foo\"", "\"bar\"", "shard 1", "shard 2", "hash tag"] {
        assert!(error.detail.contains(word), "{error}");
    }
    assert_eq!(node.count(), 0);
    let conditional = Batch::new().only_if("foo", Expect::Absent).put("bar", "2");
    assert!(client.execute(conditional, None).await.is_err(), "conditions count");
    let together = Batch::new().put("{foo}", "1").put("{foo}bar", "2");
    assert_eq!(client.execute(together, None).await.map(|results| results.len()), Ok(2));
}

#[tokio::test]
async fn keys_that_an_old_map_holds_apart_are_looked_up_in_a_new_one() {
    let node = Node::start(|_, request| carries_out(request)).await;
    node.tells(&carp(1, &[(1, &[&node], Some(&node)), (2, &[&node], Some(&node))], HALVES));
    let client = client(&[&node]);
    let batch = || Batch::new().put("foo", "1").put("bar", "2");
    assert!(client.execute(batch(), None).await.is_err());
    node.tells(&carp(2, &[(1, &[&node], Some(&node))], ALL_IN_1));
    assert_eq!(client.execute(batch(), None).await.map(|results| results.len()), Ok(2));
}

#[tokio::test]
async fn many_keys_have_results_in_the_order_asked() {
    let value_of = |request: &kv::Request| match &request.operation {
        Some(request::Operation::Get(get)) if get.key.ends_with(b"7") => fails(ErrorKind::NotFound),
        Some(request::Operation::Get(get)) => found(1, get.key.clone()),
        Some(request::Operation::Put(put)) if put.value.is_empty() => fails(ErrorKind::Invalid),
        Some(request::Operation::Put(put)) => written(put.value.len() as u64),
        other => panic!("{other:?}"),
    };
    let low = Node::start(move |_, request| value_of(request)).await;
    let high = Node::start(move |_, request| value_of(request)).await;
    low.tells(&carp(1, &[(1, &[&low], Some(&low)), (2, &[&high], Some(&high))], HALVES));
    let client = patient(&[&low]);
    let keys: Vec<String> = (0..1000).map(|number| format!("key-{number}")).collect();
    let values = client.multi_get(&keys, Consistency::Linearizable).await;
    assert_eq!(values.len(), keys.len());
    for (key, value) in keys.iter().zip(values) {
        let expected = (!key.ends_with('7')).then(|| Bytes::from(key.clone()));
        assert_eq!(value.expect("a read").map(|value| value.bytes), expected);
    }
    assert!(low.count() > 300 && high.count() > 300, "{} and {}", low.count(), high.count());
    assert_eq!((low.streams(), high.streams()), (1, 1));
    let puts = client.multi_put([("a", "1"), ("b", ""), ("c", "123")]).await;
    let kinds: Vec<_> = puts.into_iter().map(|put| put.map_err(|error| error.kind)).collect();
    assert_eq!(kinds, [Ok(1), Err(ErrorKind::Invalid), Ok(3)]);
    assert!(client.multi_get(&[] as &[&str], Consistency::Stale).await.is_empty());
}
