use std::fmt::Write;

use prost::Message;

use super::*;
use crate::command::OperationResult as CoreResult;
use crate::command::Versioned;

fn condition(expect: condition::Expect) -> Option<Condition> {
    Some(Condition { expect: Some(expect) })
}

fn sample_put() -> PutRequest {
    PutRequest {
        key: "k".into(),
        value: "value".into(),
        condition: condition(condition::Expect::Version(300)),
        idempotency_key: Some("once".into()),
    }
}

fn sample_get() -> GetRequest {
    GetRequest {
        key: "k".into(),
        consistency: Consistency::Stale.into(),
        condition: condition(condition::Expect::Present(Nothing {})),
        known_version: Some(7),
    }
}

fn sample_delete() -> DeleteRequest {
    DeleteRequest {
        key: "k".into(),
        condition: condition(condition::Expect::Absent(Nothing {})),
        idempotency_key: Some("once".into()),
    }
}

fn operation(action: operation::Action) -> Operation {
    Operation { action: Some(action), continue_on_error: false }
}

/// With every kind of condition and operation.
fn sample_execute() -> ExecuteRequest {
    let precondition =
        |key: &'static str, expect| Precondition { key: key.into(), condition: condition(expect) };
    ExecuteRequest {
        preconditions: vec![
            precondition("a", condition::Expect::Absent(Nothing {})),
            precondition("b", condition::Expect::Present(Nothing {})),
            precondition("c", condition::Expect::Version(300)),
        ],
        operations: vec![
            operation(operation::Action::Get(Get { key: "g".into() })),
            operation(operation::Action::Put(Put { key: "p".into(), value: "value".into() })),
            operation(operation::Action::Delete(Delete { key: "d".into() })),
            Operation {
                action: Some(operation::Action::Increment(Increment { key: "i".into(), by: -7 })),
                continue_on_error: true,
            },
            operation(operation::Action::Append(Append { key: "x".into(), suffix: "suffix".into() })),
        ],
        idempotency_key: Some("once".into()),
        consistency: Consistency::Linearizable.into(),
        shard: None,
    }
}

/// With every kind of result.
fn sample_executed() -> ExecuteResponse {
    let results = [
        CoreResult::Value(None),
        CoreResult::Value(Some(Versioned { version: 9, stamp: 5, expires: None, value: "v".into() })),
        CoreResult::Written { version: 10 },
        CoreResult::Deleted { existed: true },
        CoreResult::Incremented { value: i64::MIN, version: 11 },
        CoreResult::Appended { length: 12, version: 13 },
        CoreResult::Failed(command::OperationError::NotAnInteger),
        CoreResult::Failed(command::OperationError::Overflow),
        CoreResult::Failed(command::OperationError::ValueTooLarge),
    ];
    ExecuteResponse { results: results.into_iter().map(OperationResult::from).collect() }
}

fn sample_error() -> Error {
    Error {
        kind: ErrorKind::Conflict.into(),
        detail: "so it is".into(),
        version: Some(2),
        retry_after_ms: Some(1500),
        precondition: Some(0),
        operation: Some(1),
        operation_error: OperationError::Overflow.into(),
        hint: None,
    }
}

fn sample_requests() -> Vec<Request> {
    let request = |operation| Request {
        sequence: 300,
        timeout_ms: Some(1500),
        operation: Some(operation),
        ..Request::default()
    };
    vec![
        request(request::Operation::Put(sample_put())),
        request(request::Operation::Get(sample_get())),
        request(request::Operation::Delete(sample_delete())),
        request(request::Operation::Execute(sample_execute())),
    ]
}

/// Kinds that came later, and the epoch.
fn sample_range_requests() -> Vec<Request> {
    let scan = Scan { start: "a".into(), end: Some("b".into()), limit: 10, bytes_max: 300 };
    let delete = DeleteRange { start: "a".into(), end: None, limit: 10 };
    let actions = [operation::Action::Scan(scan), operation::Action::DeleteRange(delete)];
    let request = |action| {
        let operations = vec![operation(action)];
        let execute = ExecuteRequest { operations, shard: Some(3), ..ExecuteRequest::default() };
        let operation = Some(request::Operation::Execute(execute));
        Request { sequence: 300, operation, epoch: 7, ..Request::default() }
    };
    actions.into_iter().map(request).collect()
}

fn sample_range_response() -> Response {
    let versioned = Versioned { version: 9, stamp: 5, expires: None, value: "v".into() };
    let keys = vec![command::ScannedKey { key: "a".into(), value: versioned }];
    let results = [
        CoreResult::Scanned { keys, next: Some("b".into()) },
        CoreResult::DeletedRange { deleted: 300, next: None },
    ];
    let answer = ExecuteResponse { results: results.into_iter().map(OperationResult::from).collect() };
    Response { sequence: 300, result: Some(response::Result::Execute(answer)), epoch: 7 }
}

fn sample_responses() -> Vec<Response> {
    let response = |result| Response { sequence: 300, result: Some(result), epoch: 0 };
    let found = GetResponse { version: 9, value: "value".into(), not_modified: true, expires_unix_ms: None };
    vec![
        response(response::Result::Error(sample_error())),
        response(response::Result::Put(PutResponse { version: 9 })),
        response(response::Result::Get(found)),
        response(response::Result::Delete(DeleteResponse { deleted: true })),
        response(response::Result::Execute(sample_executed())),
        response(response::Result::Error(Error {
            kind: ErrorKind::NotLeader.into(),
            hint: Some(Box::new(Hint { shard: 3, epoch: 2, leader: 1, address: "h:1".into() })),
            ..Error::default()
        })),
    ]
}

/// Bytes as programs send and read them today. They must mean the same for ever: never change them, add others.
/// The requests and results of unary calls are within.
mod today {
    use super::*;

    const REQUESTS: [&str; 4] = [
        "08ac0210dc0b1a150a016b120576616c75651a0318ac0222046f6e6365",
        "08ac0210dc0b220b0a016b10021a0212002007",
        "08ac0210dc0b2a0d0a016b12020a001a046f6e6365",
        "08ac0210dc0b325a0a070a016112020a000a070a0162120212000a080a0163120318ac0212050a030a01\
        67120c120a0a0170120576616c756512051a030a0164120922050a0169100d7801120d2a0b0a01781206\
        7375666669781a046f6e63652001",
    ];
    const RESPONSES: [&str; 6] = [
        "08ac02121708041208736f206974206973180220dc0b280030013802",
        "08ac021a020809",
        "08ac02220b0809120576616c75651801",
        "08ac022a020801",
        "08ac02323e0a020a000a070a050a017610090a041202080a0a041a0208010a0f220d08ffffffffffffff\
        ffff01100b0a062a04080c100d0a0230010a0230020a023003",
        "08ac02120f0807420b0803100218012203683a31",
    ];

    const RANGE_REQUESTS: [&str; 2] =
        ["08ac023211120d320b0a0161120162180a20ac0228033807", "08ac02320b12073a050a0161180a28033807"];
    const RANGE_RESPONSE: &str = "08ac0232180a0f3a0d0a080a016112017618091201620a05420308ac023807";

    fn to_hex(message: &impl Message) -> String {
        message.encode_to_vec().iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    fn from_hex(text: &str) -> Bytes {
        let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect::<Vec<u8>>().into()
    }

    #[test]
    fn messages_are_written_the_same() {
        assert_eq!(sample_requests().iter().map(to_hex).collect::<Vec<_>>(), REQUESTS);
        assert_eq!(sample_responses().iter().map(to_hex).collect::<Vec<_>>(), RESPONSES);
        assert_eq!(sample_range_requests().iter().map(to_hex).collect::<Vec<_>>(), RANGE_REQUESTS);
        assert_eq!(to_hex(&sample_range_response()), RANGE_RESPONSE);
    }

    #[test]
    fn messages_decode_for_ever() {
        let requests = REQUESTS.map(|hex| Request::decode(from_hex(hex)).unwrap());
        assert_eq!(requests.as_slice(), sample_requests());
        let responses = RESPONSES.map(|hex| Response::decode(from_hex(hex)).unwrap());
        assert_eq!(responses.as_slice(), sample_responses());
        let requests = RANGE_REQUESTS.map(|hex| Request::decode(from_hex(hex)).unwrap());
        assert_eq!(requests.as_slice(), sample_range_requests());
        assert_eq!(Response::decode(from_hex(RANGE_RESPONSE)), Ok(sample_range_response()));
    }
}

#[test]
fn requests_become_commands() {
    let id = RequestId::from_idempotency_key(b"once");
    let expecting = |expect| vec![command::Precondition { key: "k".into(), expect }];

    let put = Command::try_from(sample_put()).unwrap();
    let action = Action::put("k", "value");
    let expected = Command { preconditions: expecting(Expect::Version(300)), ..Command::single(action) };
    assert_eq!(put, Command { request_id: Some(id), ..expected });

    let get = Command::try_from(sample_get()).unwrap();
    let expected = Command::single(Action::Get { key: "k".into() });
    assert_eq!(get, Command { preconditions: expecting(Expect::Present), ..expected });

    let delete = Command::try_from(sample_delete()).unwrap();
    let expected = Command::single(Action::Delete { key: "k".into() });
    assert_eq!(
        delete,
        Command { request_id: Some(id), preconditions: expecting(Expect::Absent), ..expected }
    );
}

#[test]
fn a_command_is_what_execute_says() {
    let command = Command::try_from(sample_execute()).unwrap();
    let expects: Vec<Expect> = command.preconditions.iter().map(|precondition| precondition.expect).collect();
    assert_eq!(expects, [Expect::Absent, Expect::Present, Expect::Version(300)]);
    let actions: Vec<Action> = command.operations.iter().map(|operation| operation.action.clone()).collect();
    let expected = [
        Action::Get { key: "g".into() },
        Action::put("p", "value"),
        Action::Delete { key: "d".into() },
        Action::Increment { key: "i".into(), by: -7 },
        Action::Append { key: "x".into(), suffix: "suffix".into() },
    ];
    assert_eq!(actions, expected);
    let continues = command.operations.iter().map(|operation| operation.on_error == OnError::Continue);
    assert_eq!(continues.collect::<Vec<_>>(), [false, false, false, true, false]);
    assert_eq!(command.request_id, Some(RequestId::from_idempotency_key(b"once")));
    assert_eq!(command.namespace, Namespace::DEFAULT);
}

#[test]
fn a_range_without_limits_has_the_largest() {
    let action = |action| {
        let operations = vec![operation(action)];
        let command = Command::try_from(ExecuteRequest { operations, ..ExecuteRequest::default() });
        command.unwrap().operations.remove(0).action
    };
    let range = KeyRange { start: "a".into(), end: None };
    let scan = Scan { start: "a".into(), ..Scan::default() };
    let (limit, bytes_max) = (SCAN_KEYS_MAX, SCAN_BYTES_MAX);
    assert_eq!(action(operation::Action::Scan(scan)), Action::Scan { range, limit, bytes_max });
    let range = KeyRange { start: "a".into(), end: Some("b".into()) };
    let delete = DeleteRange { start: "a".into(), end: Some("b".into()), limit: 7 };
    assert_eq!(action(operation::Action::DeleteRange(delete)), Action::DeleteRange { range, limit: 7 });
}

#[test]
fn unknown_fields_are_skipped_and_unknown_kinds_refused() {
    // Field 99, of two bytes.
    let unknown = [0x9a, 0x06, 2, 1, 2];
    let put = [&sample_put().encode_to_vec()[..], &unknown].concat();
    assert_eq!(PutRequest::decode(&put[..]), Ok(sample_put()));
    let execute = [&sample_execute().encode_to_vec()[..], &unknown].concat();
    assert_eq!(ExecuteRequest::decode(&execute[..]), Ok(sample_execute()));

    let unknown_action = Operation::decode(&unknown[..]).unwrap();
    let mut execute = sample_execute();
    execute.operations.insert(1, unknown_action);
    assert_eq!(Command::try_from(execute), Err(NoCommand::UnknownAction(1)));

    let unknown_condition = Some(Condition::decode(&unknown[..]).unwrap());
    let put = PutRequest { condition: unknown_condition, ..sample_put() };
    assert_eq!(Command::try_from(put), Err(NoCommand::UnknownCondition("condition")));
    for condition in [None, unknown_condition] {
        let mut execute = sample_execute();
        execute.preconditions[0].condition = condition;
        assert_eq!(Command::try_from(execute), Err(NoCommand::UnknownCondition("preconditions")));
    }
}

#[test]
fn an_idempotency_key_is_not_empty() {
    let empty = Some(Bytes::new());
    let put = PutRequest { idempotency_key: empty.clone(), ..sample_put() };
    assert_eq!(Command::try_from(put), Err(NoCommand::EmptyIdempotencyKey));
    let execute = ExecuteRequest { idempotency_key: empty, ..sample_execute() };
    assert_eq!(Command::try_from(execute), Err(NoCommand::EmptyIdempotencyKey));
    let put = PutRequest { idempotency_key: None, ..sample_put() };
    assert_eq!(Command::try_from(put).unwrap().request_id, None);
}

#[test]
fn every_kind_of_error_keeps_its_name() {
    for kind in error::ErrorKind::ALL {
        let name = format!("ERROR_KIND_{}", kind.name().to_uppercase());
        assert_eq!(ErrorKind::from(kind).as_str_name(), name);
    }
}
