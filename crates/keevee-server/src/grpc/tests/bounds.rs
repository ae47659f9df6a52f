//! One port for all, and what strangers may hold of it.

use http_body_util::StreamBody;
use hyper::client::conn::http1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::rapid_resets::farewells;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NO_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A request whose body goes on for ever after these bytes.
fn endless(
    method: &str,
    bytes: Vec<u8>,
    timeout: &str,
) -> Request<impl hyper::body::Body<Data = Bytes, Error = Infallible> + Unpin> {
    use futures_util::StreamExt;
    let first = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(bytes)))]);
    http::Request::post(format!("http://localhost/keevee.v1.Kv/{method}"))
        .header("content-type", "application/grpc")
        .header("grpc-timeout", timeout)
        .body(StreamBody::new(Box::pin(first.chain(stream::pending()))))
        .unwrap()
}

#[tokio::test]
async fn http_1_and_http_2_and_grpc_share_the_port() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut plain, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for round in 1..=20 {
        let request =
            http::Request::put("/kv/plain/v").header("host", "h").body(Full::new(Bytes::new())).unwrap();
        let (by_http, by_grpc) = tokio::join!(within(plain.send_request(request)), client.put(put("k", "v")));
        assert_eq!(by_http.unwrap().status(), StatusCode::OK);
        assert!((2 * round - 1..=2 * round).contains(&by_grpc.unwrap().into_inner().version));
    }
    // What one wrote the other reads; HTTP/2 serves keys as HTTP/1 does.
    let read = client.get(get("plain")).await.unwrap().into_inner();
    assert_eq!(read.value, "v");
    let request = http::Request::get("http://localhost/kv/k").body(Full::new(Bytes::new())).unwrap();
    let answer = server.send(request).await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"v"[..]));
    // gRPC needs HTTP/2.
    let request = http::Request::post("/keevee.v1.Kv/Get").header("content-type", "application/grpc");
    let request = request.header("host", "h").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(within(plain.send_request(request)).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn bodies_share_their_room_with_those_of_http() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let all = server.api.body_room.available_permits();
    let rest = server.api.body_room.try_acquire_many(all as u32 - 10).unwrap();
    let status = client.put(put("key", "and a value")).await.unwrap_err();
    assert_eq!((status.code(), kind(&status)), (Code::Unavailable, ErrorKind::Unavailable));
    assert_eq!(status.metadata().get("retry-after").unwrap(), "1");
    client.put(put("k", "v")).await.unwrap();
    assert_eq!(server.store.asked().len(), 1);

    // A stream waits for room instead.
    let operation = Some(kv::request::Operation::Put(put("key", "and a value")));
    let request = kv::Request { sequence: 1, operation, ..kv::Request::default() };
    let waiting = tokio::spawn(async move {
        let mut responses = client.pipeline(stream::iter([request])).await.unwrap().into_inner();
        responses.message().await.unwrap().unwrap()
    });
    server.client().await.put(put("k", "v")).await.unwrap();
    assert!(!waiting.is_finished());
    drop(rest);
    let response = within(waiting).await.unwrap();
    assert!(matches!(response.result, Some(kv::response::Result::Put(_))), "{response:?}");
    until(|| server.api.body_room.available_permits() == all).await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_ends_with_the_calls_time() {
    let server = Server::start().await;
    let whole = framed(&put("k", "v"));
    // None of it, a part of the header, a part of the message, and all of it but the end of the body.
    for length in [0, 3, 7, whole.len()] {
        let answer = server.send(endless("Put", whole[..length].to_vec(), "50m")).await;
        assert_eq!(answer.failure(), (Code::InvalidArgument, ErrorKind::Invalid), "{length}");
    }
    assert!(server.store.asked().is_empty());
    assert_eq!(server.api.body_room.available_permits(), 256 << 20);
}

#[tokio::test]
async fn idle_connections_are_closed_whatever_they_speak() {
    let short = Duration::from_millis(50);
    let bounds = Bounds { head_timeout: short, idle_timeout: short, ..Bounds::default() };
    let server = Server::start_within(bounds).await;
    // A watch is not idle, though nothing is said for long.
    let mut client = HealthClient::new(server.channel().await);
    let mut watched = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    within(watched.message()).await.unwrap().unwrap();
    let hello = [PREFACE, &NO_SETTINGS].concat();
    for beginning in [&b""[..], b"P", &PREFACE[..10], PREFACE, &hello, b"GET /kv/k HTTP/1.1\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let mut rest = Vec::new();
        // Closed or reset, it ends.
        let _ = within(stream.read_to_end(&mut rest)).await;
    }
    server.store.set_ready(false);
    within(watched.message()).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_has_begun_must_go_on_sooner_than_who_is_idle_must_speak() {
    let bounds = Bounds { head_timeout: Duration::from_millis(50), ..Bounds::default() };
    let server = Server::start_within(bounds).await;
    let mut client = server.client().await;
    client.put(put("k", "v")).await.unwrap();
    for beginning in [&b"P"[..], &PREFACE[..10], b"GET /kv/k HTTP/1.1\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let _ = within(stream.read_to_end(&mut Vec::new())).await;
    }
    // It was idle meanwhile.
    client.put(put("k", "v")).await.unwrap();
}

#[tokio::test]
async fn who_takes_back_what_was_never_looked_at_is_cut_off() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.put(put("k", "v")).await.unwrap();
    // ENHANCE_YOUR_CALM
    assert_eq!(within(farewells(server.address)).await, [11]);
    client.put(put("k", "v")).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_never_taken_ends_its_connection_and_no_other() {
    let bounds = Bounds { stalled_timeout: Duration::from_millis(200), ..Bounds::default() };
    let server = Server::start_within(bounds).await;
    let mut client = server.client().await;
    client.put(put("k", &"v".repeat(VALUE_BYTES_MAX))).await.unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1000);
    let (mut requests, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://localhost/kv/k").body(Full::new(Bytes::new())).unwrap();
    let response = within(requests.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // The client answers all pings, and reads nothing of the body.
    let _ = within(connection).await.unwrap();
    assert_eq!(client.get(get("k")).await.unwrap().into_inner().value.len(), VALUE_BYTES_MAX);
}

#[tokio::test]
async fn a_connection_tells_its_bounds() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[PREFACE, &NO_SETTINGS].concat()).await.unwrap();
    let mut head = [0; 9];
    within(stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[3], 4, "settings come first");
    let mut settings = vec![0; usize::from(head[2])];
    within(stream.read_exact(&mut settings)).await.unwrap();
    let value = |id: u8| {
        let setting = settings.chunks(6).find(|setting| setting[..2] == [0, id])?;
        Some(u32::from_be_bytes(setting[2..].try_into().unwrap()))
    };
    // The identifiers of RFC 9113, section 6.5.2.
    assert_eq!(value(3), Some(256), "streams at a time");
    assert_eq!(value(4), Some(1 << 20), "bytes of a stream not yet read");
    assert_eq!(value(6), Some(64 << 10), "bytes of a head");
}

#[tokio::test]
async fn garbage_closes_its_connection_and_disturbs_no_other() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut bits: u64 = 0x0123_4567_89ab_cdef;
    for round in 0..50 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let mut bytes =
            if round % 2 == 0 { [PREFACE, &NO_SETTINGS].concat() } else { PREFACE[..20].to_vec() };
        for _ in 0..200 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&bits.to_be_bytes()[..4]);
        }
        // It may be closed before all is written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let _ = within(stream.read_to_end(&mut Vec::new())).await;
    }
    client.put(put("k", "v")).await.unwrap();
    assert_eq!(server.store.asked().len(), 1);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = Server::start().await;
    let long = "v".repeat(70_000);
    let headers = [("content-type", "application/grpc"), ("x", &long)];
    let answer = server.call("/keevee.v1.Kv/Put", &headers, framed(&put("k", "v"))).await;
    assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert!(server.store.asked().is_empty());
}
