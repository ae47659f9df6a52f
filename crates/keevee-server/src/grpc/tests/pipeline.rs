//! Streams: order, bounds, errors as values, and their end.

use keevee_core::kv::request::Operation;
use keevee_core::kv::response::Result as Answer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::super::pipeline::REQUESTS_MAX;
use super::*;
use crate::node::{Consistency, ExecuteError};

/// A stream under way.
struct Stream {
    requests: mpsc::Sender<kv::Request>,
    responses: Streaming<kv::Response>,
}

impl Stream {
    async fn open(server: &Server) -> Stream {
        let (requests, sent) = mpsc::channel(1);
        let mut client = server.client().await.max_decoding_message_size(1 << 20);
        let responses = within(client.pipeline(ReceiverStream::new(sent))).await.unwrap().into_inner();
        Stream { requests, responses }
    }

    async fn send(&self, sequence: u64, operation: Operation) {
        let request = kv::Request { sequence, operation: Some(operation), ..kv::Request::default() };
        within(self.requests.send(request)).await.unwrap();
    }

    async fn next(&mut self) -> (u64, Answer) {
        let response = within(self.responses.message()).await.unwrap().expect("a response");
        (response.sequence, response.result.expect("a result"))
    }

    async fn failure(&mut self) -> tonic::Status {
        within(self.responses.message()).await.expect_err("a failure")
    }
}

fn written(version: u64) -> Answer {
    Answer::Put(kv::PutResponse { version })
}

fn kind_of(answer: &Answer) -> kv::ErrorKind {
    match answer {
        Answer::Error(error) => error.kind(),
        other => panic!("no error: {other:?}"),
    }
}

#[tokio::test]
async fn each_operation_has_its_answer_and_the_stream_its_end() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let increment = kv::operation::Action::Increment(kv::Increment { key: "n".into(), by: 7 });
    let execute = kv::ExecuteRequest {
        operations: vec![kv::Operation { action: Some(increment), continue_on_error: false }],
        ..kv::ExecuteRequest::default()
    };
    stream.send(u64::MAX, Operation::Put(put("k", "v"))).await;
    assert_eq!(stream.next().await, (u64::MAX, written(1)));
    // A sequence is the client's alone: any number, any number of times.
    stream.send(0, Operation::Get(get("k"))).await;
    let found = kv::GetResponse { version: 1, value: "v".into(), ..kv::GetResponse::default() };
    assert_eq!(stream.next().await, (0, Answer::Get(found)));
    stream.send(0, Operation::Delete(delete("k"))).await;
    assert_eq!(stream.next().await, (0, Answer::Delete(kv::DeleteResponse { deleted: true })));
    stream.send(5, Operation::Execute(execute)).await;
    let (sequence, Answer::Execute(executed)) = stream.next().await else { panic!("not of an execute") };
    assert_eq!((sequence, executed.results.len()), (5, 1));
    drop(stream.requests);
    assert_eq!(within(stream.responses.message()).await.unwrap(), None);
    let text = server.metrics.text();
    assert!(text.contains("operation=\"put\",protocol=\"grpc\",result=\"ok\"} 1"), "{text}");
}

#[tokio::test]
async fn answers_come_as_they_are_done() {
    let server = Server::start().await;
    server.store.hold("slow");
    let mut stream = Stream::open(&server).await;
    stream.send(1, Operation::Put(put("slow", "v"))).await;
    stream.send(2, Operation::Put(put("quick", "v"))).await;
    assert_eq!(stream.next().await, (2, written(1)));
    stream.send(3, Operation::Get(get("absent"))).await;
    let (sequence, answer) = stream.next().await;
    assert_eq!((sequence, kind_of(&answer)), (3, kv::ErrorKind::NotFound));
    // Even after the client has said that it is done.
    let Stream { requests, mut responses } = stream;
    drop(requests);
    server.store.release("slow");
    let last = within(responses.message()).await.unwrap().unwrap();
    assert_eq!((last.sequence, last.result), (1, Some(written(2))));
    assert_eq!(within(responses.message()).await.unwrap(), None);
}

#[tokio::test]
async fn no_more_are_under_way_than_allowed_and_all_are_answered() {
    let server = Server::start().await;
    server.store.hold("k");
    let Stream { requests, mut responses } = Stream::open(&server).await;
    let count = 3 * REQUESTS_MAX as u64;
    let sending = tokio::spawn(async move {
        for sequence in 0..count {
            let operation = Some(Operation::Put(put("k", "v")));
            requests.send(kv::Request { sequence, operation, ..kv::Request::default() }).await.unwrap();
        }
    });
    until(|| server.store.waiting() == REQUESTS_MAX).await;
    // Everything else is served meanwhile, and a round trip later there are no more.
    server.client().await.put(put("other", "v")).await.unwrap();
    assert_eq!(server.store.waiting(), REQUESTS_MAX);
    server.store.release("k");
    let mut sequences = Vec::new();
    while let Some(response) = within(responses.message()).await.unwrap() {
        assert!(matches!(response.result, Some(Answer::Put(_))), "{response:?}");
        sequences.push(response.sequence);
    }
    within(sending).await.unwrap();
    sequences.sort_unstable();
    assert_eq!(sequences, (0..count).collect::<Vec<_>>());
    assert_eq!(server.api.body_room.available_permits(), 256 << 20);
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_not_read_from() {
    let server = Server::start().await;
    let value = "v".repeat(VALUE_BYTES_MAX);
    server.client().await.put(put("large", &value)).await.unwrap();
    let Stream { requests, mut responses } = Stream::open(&server).await;
    let count = 4 * REQUESTS_MAX as u64;
    let sending = tokio::spawn(async move {
        for sequence in 0..count {
            let operation = Some(Operation::Get(get("large")));
            if requests.send(kv::Request { sequence, operation, ..kv::Request::default() }).await.is_err() {
                return;
            }
        }
    });
    // Answers of 200 MB do not fit the windows between here and there.
    until(|| server.store.asked_count() > 10).await;
    server.client().await.put(put("other", "v")).await.unwrap();
    assert!(server.store.asked_count() <= 2 * REQUESTS_MAX);
    for _ in 0..count {
        let response = within(responses.message()).await.unwrap().unwrap();
        assert!(matches!(response.result, Some(Answer::Get(_))), "{response:.100?}");
    }
    assert_eq!(within(responses.message()).await.unwrap(), None);
    within(sending).await.unwrap();
}

#[tokio::test]
async fn errors_are_values_and_the_stream_goes_on() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let mut sequence = 0;
    for kind in ErrorKind::ALL {
        let (detail, retry_after) = ("so it is".to_owned(), Some(Duration::from_millis(1500)));
        server.store.answer_next(Err(ExecuteError { kind, detail: detail.clone(), retry_after, hint: None }));
        sequence += 1;
        stream.send(sequence, Operation::Put(put("k", "v"))).await;
        let (answered, answer) = stream.next().await;
        let expected = kv::Error {
            kind: kv::ErrorKind::from(kind).into(),
            detail,
            retry_after_ms: Some(1500),
            ..kv::Error::default()
        };
        assert_eq!((answered, answer), (sequence, Answer::Error(expected)));
    }
    server.store.asked();
    let conditional = kv::Condition { expect: Some(kv::condition::Expect::Version(9)) };
    let too_large = "v".repeat(VALUE_BYTES_MAX + 1);
    for (operation, timeout_ms, expected) in [
        (Some(Operation::Put(put("", "v"))), None, kv::ErrorKind::Invalid),
        (Some(Operation::Put(put("k", &too_large))), None, kv::ErrorKind::TooLarge),
        (Some(Operation::Put(put("k", "v"))), Some(0), kv::ErrorKind::Invalid),
        (Some(Operation::Put(put("k", "v"))), Some(60_001), kv::ErrorKind::Invalid),
        (None, None, kv::ErrorKind::Invalid),
    ] {
        within(stream.requests.send(kv::Request {
            sequence: 7,
            timeout_ms,
            operation,
            ..kv::Request::default()
        }))
        .await
        .unwrap();
        let (sequence, answer) = stream.next().await;
        assert_eq!((sequence, kind_of(&answer)), (7, expected));
    }
    assert!(server.store.asked().is_empty());
    let request = kv::PutRequest { condition: Some(conditional), ..put("k", "v") };
    stream.send(8, Operation::Put(request)).await;
    assert_eq!(kind_of(&stream.next().await.1), kv::ErrorKind::Conflict);
    stream.send(9, Operation::Put(put("k", "v"))).await;
    assert_eq!(stream.next().await, (9, written(1)));
}

#[tokio::test]
async fn each_request_has_its_own_time_and_consistency() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let read = kv::GetRequest { consistency: kv::Consistency::Stale.into(), ..get("k") };
    for (timeout_ms, operation) in
        [(None, Operation::Get(read)), (Some(50_000), Operation::Put(put("k", "v")))]
    {
        let operation = Some(operation);
        within(stream.requests.send(kv::Request {
            sequence: 1,
            timeout_ms,
            operation,
            ..kv::Request::default()
        }))
        .await
        .unwrap();
        stream.next().await;
    }
    let asked = server.store.asked();
    assert_eq!(asked[0].0.consistency, Consistency::Stale);
    assert!(asked[1].0.deadline > asked[0].0.deadline + Duration::from_secs(40));
}

#[tokio::test]
async fn a_message_that_cannot_be_read_ends_the_stream_after_the_answers() {
    let server = Server::start().await;
    let good =
        kv::Request { sequence: 1, operation: Some(Operation::Put(put("k", "v"))), ..kv::Request::default() };
    let huge = vec![0, 0xff, 0xff, 0xff, 0xff];
    let garbage = vec![0, 0, 0, 0, 1, 0xff];
    let cut_off = vec![0, 0, 0, 0, 9, 1];
    for (bytes, code, expected) in [
        (huge, Code::ResourceExhausted, ErrorKind::TooLarge),
        (garbage, Code::InvalidArgument, ErrorKind::Invalid),
        (cut_off, Code::InvalidArgument, ErrorKind::Invalid),
    ] {
        let body = [framed(&good), bytes].concat();
        let path = "/keevee.v1.Kv/Pipeline";
        let answer = server.call(path, &[("content-type", "application/grpc")], body).await;
        assert_eq!(answer.failure(), (code, expected));
        let response = kv::Response::decode(&answer.body[5..]).unwrap();
        assert!(matches!(response.result, Some(Answer::Put(_))), "{response:?}");
    }
}

#[tokio::test]
async fn a_stopping_server_answers_what_is_under_way_on_a_stream() {
    let mut server = Server::start().await;
    server.store.hold("k");
    let mut stream = Stream::open(&server).await;
    stream.send(1, Operation::Put(put("k", "v"))).await;
    until(|| server.store.waiting() == 1).await;
    let mut unary = server.client().await;
    let call = tokio::spawn(async move { unary.put(put("k", "v")).await });
    until(|| server.store.waiting() == 2).await;
    server.stop.take().unwrap().send(()).unwrap();
    until(|| std::net::TcpStream::connect(server.address).is_err()).await;
    assert!(!server.task.is_finished());

    server.store.release("k");
    assert!(matches!(stream.next().await, (1, Answer::Put(_))));
    within(call).await.unwrap().unwrap();
    let end = stream.failure().await;
    assert_eq!((end.code(), kind(&end)), (Code::Unavailable, ErrorKind::Unavailable));
    within(server.task).await.unwrap();
}
