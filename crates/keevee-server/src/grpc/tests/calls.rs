//! Unary calls: what they do, and how they are refused.

use keevee_core::command::{Action, OperationError, Outcome};
use keevee_core::kv::{condition, operation, operation_result};
use keevee_core::requests::RequestId;

use super::*;
use crate::node::{Consistency, ExecuteError};

const GRPC: (&str, &str) = ("content-type", "application/grpc");

fn condition(expect: condition::Expect) -> Option<kv::Condition> {
    Some(kv::Condition { expect: Some(expect) })
}

fn execute(actions: impl IntoIterator<Item = operation::Action>) -> kv::ExecuteRequest {
    let operation = |action| kv::Operation { action: Some(action), continue_on_error: false };
    kv::ExecuteRequest {
        operations: actions.into_iter().map(operation).collect(),
        ..kv::ExecuteRequest::default()
    }
}

fn put_action(key: &str, value: &str) -> operation::Action {
    operation::Action::Put(kv::Put { key: key.to_owned().into(), value: value.to_owned().into() })
}

fn increment(key: &str, by: i64) -> operation::Action {
    operation::Action::Increment(kv::Increment { key: key.to_owned().into(), by })
}

fn get_action(key: &str) -> operation::Action {
    operation::Action::Get(kv::Get { key: key.to_owned().into() })
}

#[tokio::test]
async fn a_value_goes_in_and_comes_out() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let written = client.put(put("color", "blue")).await.unwrap().into_inner();
    assert_eq!(written, kv::PutResponse { version: 1 });
    let read = client.get(get("color")).await.unwrap().into_inner();
    assert_eq!(read, kv::GetResponse { version: 1, value: "blue".into(), ..kv::GetResponse::default() });

    let known = |version| kv::GetRequest { known_version: Some(version), ..get("color") };
    let unmodified = client.get(known(1)).await.unwrap().into_inner();
    assert_eq!(unmodified, kv::GetResponse { version: 1, not_modified: true, ..kv::GetResponse::default() });
    assert_eq!(client.get(known(2)).await.unwrap().into_inner(), read);

    for deleted in [true, false] {
        let answer = client.delete(delete("color")).await.unwrap().into_inner();
        assert_eq!(answer, kv::DeleteResponse { deleted });
    }
    let absent = client.get(get("color")).await.unwrap_err();
    assert_eq!((absent.code(), kind(&absent)), (Code::NotFound, ErrorKind::NotFound));

    // Whatever bytes, up to the limits.
    let key: Vec<u8> = (0..=255).cycle().take(4096).collect();
    let value: Vec<u8> = (0..=255).cycle().take(VALUE_BYTES_MAX).collect();
    let largest =
        kv::PutRequest { key: key.clone().into(), value: value.clone().into(), ..kv::PutRequest::default() };
    client.put(largest).await.unwrap();
    let read = kv::GetRequest { key: key.into(), ..kv::GetRequest::default() };
    assert_eq!(client.get(read).await.unwrap().into_inner().value, value);
}

#[tokio::test]
async fn operations_are_carried_out_as_one() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let append = operation::Action::Append(kv::Append { key: "log".into(), suffix: "abc".into() });
    let delete = operation::Action::Delete(kv::Delete { key: "absent".into() });
    let all = [put_action("k", "v"), get_action("k"), delete, increment("n", -5), append, get_action("none")];
    let results = client.execute(execute(all)).await.unwrap().into_inner().results;
    let results: Vec<_> = results.into_iter().map(|result| result.result.unwrap()).collect();
    let expected = [
        operation_result::Result::Written(kv::Written { version: 1 }),
        operation_result::Result::Value(kv::Value {
            value: Some("v".into()),
            version: 1,
            expires_unix_ms: None,
        }),
        operation_result::Result::Deleted(kv::Deleted { existed: false }),
        operation_result::Result::Incremented(kv::Incremented { value: -5, version: 2 }),
        operation_result::Result::Appended(kv::Appended { length: 3, version: 3 }),
        operation_result::Result::Value(kv::Value::default()),
    ];
    assert_eq!(results, expected);

    // One that fails takes all with it, unless it was told not to.
    let aborted = client.execute(execute([put_action("k", "w"), increment("log", 1)])).await.unwrap_err();
    assert_eq!((aborted.code(), kind(&aborted)), (Code::InvalidArgument, ErrorKind::Invalid));
    let told = error(&aborted);
    assert_eq!((told.operation, told.operation_error()), (Some(1), kv::OperationError::NotAnInteger));
    assert_eq!(client.get(get("k")).await.unwrap().into_inner().value, "v");
    let mut tolerant = execute([put_action("k", "w"), increment("log", 1)]);
    tolerant.operations[1].continue_on_error = true;
    let results = client.execute(tolerant).await.unwrap().into_inner().results;
    let failed = kv::OperationError::NotAnInteger.into();
    assert_eq!(results[1].result, Some(operation_result::Result::Failed(failed)));
}

#[tokio::test]
async fn conditions_must_hold() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.put(put("k", "one")).await.unwrap();
    let (absent, present) =
        (condition::Expect::Absent(kv::Nothing {}), condition::Expect::Present(kv::Nothing {}));
    for (key, expect, holds) in [
        ("k", absent, false),
        ("new", absent, true),
        ("none", present, false),
        ("k", condition::Expect::Version(9), false),
        ("k", condition::Expect::Version(1), true),
        ("k", present, true),
    ] {
        let request = kv::PutRequest { condition: condition(expect), ..put(key, "v") };
        let answer = client.put(request).await;
        assert_eq!(answer.is_ok(), holds, "{key} {expect:?}");
        if let Err(status) = answer {
            assert_eq!((status.code(), kind(&status)), (Code::Aborted, ErrorKind::Conflict));
            let version = (key == "k").then_some(1);
            assert_eq!((error(&status).version, error(&status).precondition), (version, Some(0)));
        }
    }
    let unmet = condition(condition::Expect::Version(99));
    let status = client.get(kv::GetRequest { condition: unmet, ..get("k") }).await.unwrap_err();
    assert_eq!(kind(&status), ErrorKind::Conflict);
    let status = client.delete(kv::DeleteRequest { condition: unmet, ..delete("k") }).await.unwrap_err();
    assert_eq!(kind(&status), ErrorKind::Conflict);

    let mut request = execute([put_action("k", "v")]);
    for (key, expect) in [("new", present), ("k", absent)] {
        request.preconditions.push(kv::Precondition { key: key.into(), condition: condition(expect) });
    }
    let status = client.execute(request).await.unwrap_err();
    assert_eq!((kind(&status), error(&status).precondition), (ErrorKind::Conflict, Some(1)));
}

#[tokio::test]
async fn a_retry_takes_effect_once() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let request = kv::ExecuteRequest { idempotency_key: Some("once".into()), ..execute([increment("n", 1)]) };
    let first = client.execute(request.clone()).await.unwrap().into_inner();
    assert_eq!(client.execute(request).await.unwrap().into_inner(), first);
    let reused = kv::PutRequest { idempotency_key: Some("once".into()), ..put("n", "2") };
    let status = client.put(reused).await.unwrap_err();
    assert_eq!((status.code(), kind(&status)), (Code::AlreadyExists, ErrorKind::RequestReused));
    // A UUIDv7 of the year 1970.
    let old = Some("00000000-0000-7000-8000-000000000000".into());
    let status = client.delete(kv::DeleteRequest { idempotency_key: old, ..delete("n") }).await.unwrap_err();
    assert_eq!((status.code(), kind(&status)), (Code::OutOfRange, ErrorKind::RequestExpired));
}

#[tokio::test]
async fn what_the_caller_wants_reaches_the_store() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let stale = kv::Consistency::Stale.into();
    client.put(put("k", "v")).await.unwrap();
    client.get(kv::GetRequest { consistency: stale, ..get("k") }).await.unwrap();
    client.get(get("k")).await.unwrap();
    let read = kv::ExecuteRequest { consistency: stale, ..execute([get_action("k")]) };
    client.execute(read).await.unwrap();
    let mut patient =
        tonic::Request::new(kv::PutRequest { idempotency_key: Some("once".into()), ..put("k", "v") });
    patient.set_timeout(Duration::from_secs(50));
    client.put(patient).await.unwrap();

    let asked = server.store.asked();
    let consistencies: Vec<Consistency> = asked.iter().map(|(context, _)| context.consistency).collect();
    let (stale, linearizable) = (Consistency::Stale, Consistency::Linearizable);
    assert_eq!(consistencies, [linearizable, stale, linearizable, stale, linearizable]);
    assert!(asked[4].0.deadline > asked[0].0.deadline + Duration::from_secs(40));
    assert_eq!(asked[4].1.request_id, Some(RequestId::from_idempotency_key(b"once")));
    assert_eq!(asked[0].1.request_id, None);
    assert_eq!(asked[0].1.operations[0].action, Action::put("k", "v"));
    assert_eq!(asked[1].1.preconditions, []);

    // However long a client would wait, a request ends.
    server.call("/keevee.v1.Kv/Put", &[GRPC, ("grpc-timeout", "99H")], framed(&put("k", "v"))).await;
    let latest = Instant::now() + TIMEOUT_MAX;
    assert!(server.store.asked()[0].0.deadline <= latest);
    let text = server.metrics.text();
    for operation in ["put", "get", "execute"] {
        let line = format!("operation=\"{operation}\",protocol=\"grpc\",result=\"ok\"");
        assert!(text.contains(&line), "{line}");
    }
}

#[tokio::test]
async fn every_kind_has_its_code() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let refused = |kind, retry_after| {
        Err(ExecuteError { kind, detail: "so it is: \u{e4}%".into(), retry_after, hint: None })
    };
    let brief = Some(Duration::from_millis(2001));
    let aborted = |error| Ok(Outcome::Aborted { operation: 0, error });
    for (answer, code, expected, retry_after) in [
        (refused(ErrorKind::Invalid, None), Code::InvalidArgument, ErrorKind::Invalid, None),
        (refused(ErrorKind::TooLarge, None), Code::ResourceExhausted, ErrorKind::TooLarge, None),
        (refused(ErrorKind::NotLeader, None), Code::FailedPrecondition, ErrorKind::NotLeader, None),
        (refused(ErrorKind::WrongShard, None), Code::FailedPrecondition, ErrorKind::WrongShard, None),
        (refused(ErrorKind::Unavailable, None), Code::Unavailable, ErrorKind::Unavailable, Some("1")),
        (refused(ErrorKind::Unavailable, brief), Code::Unavailable, ErrorKind::Unavailable, Some("3")),
        (refused(ErrorKind::OutcomeUnknown, None), Code::DeadlineExceeded, ErrorKind::OutcomeUnknown, None),
        (refused(ErrorKind::Fatal, None), Code::Internal, ErrorKind::Fatal, None),
        (Ok(Outcome::WrongShard), Code::FailedPrecondition, ErrorKind::WrongShard, None),
        (Ok(Outcome::RequestReused), Code::AlreadyExists, ErrorKind::RequestReused, None),
        (Ok(Outcome::RequestExpired), Code::OutOfRange, ErrorKind::RequestExpired, None),
        (Ok(Outcome::RequestMemoryFull), Code::Unavailable, ErrorKind::Unavailable, Some("1")),
        (aborted(OperationError::ValueTooLarge), Code::ResourceExhausted, ErrorKind::TooLarge, None),
        (aborted(OperationError::Overflow), Code::InvalidArgument, ErrorKind::Invalid, None),
        (Ok(Outcome::Done(vec![])), Code::DeadlineExceeded, ErrorKind::OutcomeUnknown, None),
    ] {
        let label = format!("{answer:?}");
        server.store.answer_next(answer);
        let status = client.put(put("k", "v")).await.unwrap_err();
        assert_eq!((status.code(), kind(&status)), (code, expected), "{label}");
        let told = status.metadata().get("retry-after").map(|value| value.to_str().unwrap());
        assert_eq!(told, retry_after, "{label}");
    }
    // The others come of themselves in other tests.
    let codes: Vec<Code> = ErrorKind::ALL.into_iter().map(failure::code).collect();
    assert!(!codes.contains(&Code::Ok) && !codes.contains(&Code::Unknown));
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_is_asked() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let long = "k".repeat(4097);
    let large = "v".repeat(VALUE_BYTES_MAX + 1);
    let empty = Some(Bytes::new());
    let unknown = Some(kv::Condition { expect: None });
    for (request, expected) in [
        (put("", "v"), ErrorKind::Invalid),
        (put(&long, "v"), ErrorKind::TooLarge),
        (put("k", &large), ErrorKind::TooLarge),
        (kv::PutRequest { idempotency_key: empty.clone(), ..put("k", "v") }, ErrorKind::Invalid),
        (kv::PutRequest { condition: unknown, ..put("k", "v") }, ErrorKind::Invalid),
    ] {
        let label = format!("{request:.100?}");
        assert_eq!(kind(&client.put(request).await.unwrap_err()), expected, "{label}");
    }
    let unknown_consistency = kv::GetRequest { consistency: 9, ..get("k") };
    assert_eq!(kind(&client.get(unknown_consistency).await.unwrap_err()), ErrorKind::Invalid);
    assert_eq!(kind(&client.delete(delete("")).await.unwrap_err()), ErrorKind::Invalid);
    let stale = kv::Consistency::Stale.into();
    let no_action = kv::Operation { action: None, continue_on_error: true };
    let many = || std::iter::repeat_with(|| get_action("k")).take(1025);
    for (request, expected) in [
        (execute([]), ErrorKind::Invalid),
        (execute(many()), ErrorKind::TooLarge),
        (kv::ExecuteRequest { consistency: stale, ..execute([put_action("k", "v")]) }, ErrorKind::Invalid),
        (kv::ExecuteRequest { operations: vec![no_action], ..execute([]) }, ErrorKind::Invalid),
        (
            kv::ExecuteRequest { idempotency_key: empty, ..execute([put_action("k", "v")]) },
            ErrorKind::Invalid,
        ),
    ] {
        let label = format!("{request:.100?}");
        assert_eq!(kind(&client.execute(request).await.unwrap_err()), expected, "{label}");
    }
    assert!(server.store.asked().is_empty());
    // The largest command that is allowed fits in a message, whatever it is made of.
    let all = execute(many().take(1024));
    assert_eq!(client.execute(all).await.unwrap().into_inner().results.len(), 1024);
}

#[tokio::test]
async fn what_is_no_call_is_refused_before_anything_is_asked() {
    let server = Server::start().await;
    let good = framed(&put("k", "v"));
    let garbage = [&[0, 0, 0, 0, 3], &[0xff, 0xff, 0xff][..]].concat();
    let path = "/keevee.v1.Kv/Put";
    let huge = vec![0, 0xff, 0xff, 0xff, 0xff];
    let timeout = |value| [GRPC, ("grpc-timeout", value)];
    let invalid = (Code::InvalidArgument, ErrorKind::Invalid);
    let unimplemented = (Code::Unimplemented, ErrorKind::Invalid);
    for (path, headers, body, expected) in [
        (path, &[GRPC][..], vec![], invalid),
        (path, &[GRPC], good[..good.len() - 1].to_vec(), invalid),
        (path, &[GRPC], [&good[..], &good].concat(), invalid),
        (path, &[GRPC], [&[1], &good[1..]].concat(), invalid),
        (path, &[GRPC], garbage, invalid),
        (path, &[GRPC], huge, (Code::ResourceExhausted, ErrorKind::TooLarge)),
        (path, &timeout("5"), good.clone(), invalid),
        (path, &timeout("S"), good.clone(), invalid),
        (path, &timeout("123456789m"), good.clone(), invalid),
        (path, &timeout("-5S"), good.clone(), invalid),
        (path, &[GRPC, ("grpc-encoding", "gzip")], good.clone(), unimplemented),
        ("/keevee.v1.Kv/Scan", &[GRPC], good.clone(), unimplemented),
        ("/keevee.v2.Kv/Put", &[GRPC], good.clone(), unimplemented),
        ("/", &[GRPC], good.clone(), unimplemented),
    ] {
        let answer = server.call(path, headers, body.clone()).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers["content-type"], "application/grpc");
        assert_eq!(answer.failure(), expected, "{path} {headers:?} {body:?}");
    }
    for media_type in ["application/grpc-web", "application/grpc+json"] {
        let answer = server.call(path, &[("content-type", media_type)], good.clone()).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let answer = server.call(path, &[], good.clone()).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let get = http::Request::get(format!("http://localhost{path}")).header(GRPC.0, GRPC.1);
    let answer = server.send(get.body(Full::new(Bytes::new())).unwrap()).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(server.store.asked().is_empty());

    for headers in
        [[GRPC, ("grpc-timeout", "5S")], [("content-type", "application/grpc+proto"), ("te", "trailers")]]
    {
        let answer = server.call(path, &headers, good.clone()).await;
        assert_eq!((&answer.trailers["grpc-status"], answer.body.len()), (&HeaderValue::from_static("0"), 7));
    }
}

#[tokio::test]
async fn random_bytes_never_do_harm() {
    let server = Server::start().await;
    let mut bits: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..100 {
        let mut body = framed(&put("key", "value"));
        for _ in 0..3 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (bits >> 33) as usize % body.len();
            body[at] = (bits >> 24) as u8;
        }
        for path in ["/keevee.v1.Kv/Put", "/keevee.v1.Kv/Execute", "/keevee.v1.Kv/Pipeline"] {
            assert_eq!(server.call(path, &[GRPC], body.clone()).await.status, StatusCode::OK);
        }
    }
    server.client().await.put(put("k", "v")).await.unwrap();
}

#[test]
fn timeouts_are_read_as_the_protocol_writes_them() {
    for (text, milliseconds) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5)] {
        assert_eq!(parse_timeout(text), Some(Duration::from_millis(milliseconds)));
    }
    assert_eq!(parse_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
    for bad in ["", "S", "1", "1s", "1h", "+1S", "-1S", "1.5S", "123456789S", "1S ", "\u{e4}", "1\u{e4}"] {
        assert_eq!(parse_timeout(bad), None, "{bad}");
    }
}

#[tokio::test]
async fn a_range_is_asked_of_a_shard() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for key in ["a1", "a2", "b1"] {
        client.put(put(key, "v")).await.unwrap();
    }
    server.store.asked();
    let shard = Some(1);
    let (start, end) = (Bytes::from("a"), Some(Bytes::from("b")));
    let scan = kv::Scan { start: start.clone(), end: end.clone(), limit: 1, bytes_max: 0 };
    let request = kv::ExecuteRequest { shard, ..execute([operation::Action::Scan(scan)]) };
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("keevee-epoch", "2".parse().unwrap());
    let response = client.execute(request).await.unwrap();
    assert_eq!(response.metadata().get("keevee-epoch").unwrap(), &store::EPOCH.to_string());
    let found = kv::ScannedKey { key: "a1".into(), value: "v".into(), version: 1, expires_unix_ms: None };
    let scanned = kv::Scanned { keys: vec![found], next: Some("a2".into()) };
    let result = Some(operation_result::Result::Scanned(scanned));
    assert_eq!(response.into_inner().results, [kv::OperationResult { result }]);

    let delete = kv::DeleteRange { start, end, limit: 0 };
    let request = kv::ExecuteRequest { shard, ..execute([operation::Action::DeleteRange(delete)]) };
    let results = client.execute(request).await.unwrap().into_inner().results;
    let result = Some(operation_result::Result::DeletedRange(kv::DeletedRange { deleted: 2, next: None }));
    assert_eq!(results, [kv::OperationResult { result }]);
    let contexts = server
        .store
        .asked()
        .into_iter()
        .map(|(context, _)| (context.shard.map(|shard| shard.0), context.epoch));
    assert!(contexts.eq([(shard, 2), (shard, 0)]));

    let delete = operation::Action::DeleteRange(kv::DeleteRange::default());
    let mixed = execute([put_action("k", "v"), delete]);
    assert_eq!(kind(&client.execute(mixed).await.unwrap_err()), ErrorKind::Invalid);
}
