//! What is gRPC's alone: who is refused and how, and what a peer can't do to this node.

use bytes::BufMut;
use futures_util::stream::{BoxStream, StreamExt, iter, pending};
use http::header::AUTHORIZATION;
use http_body_util::{BodyExt, StreamBody};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tonic::{Code, Status, Streaming};
use tower_service::Service;

use super::*;
use crate::rapid_resets::farewells;
use crate::transport::grpc::caller::Calls;
use crate::transport::grpc::server;
use crate::transport::identity::PeerBounds;
use crate::transport::listener::{self, Inbound};
use crate::transport::refusals::Refusals;
use crate::transport::wire::proto::peer_client::PeerClient;
use crate::transport::wire::proto::peer_server::{Peer as PeerService, PeerServer};
use crate::transport::wire::{self, Envelope, Item, proto};

const SECRET: &str = "Bearer sesame";

fn envelope() -> Envelope {
    Envelope {
        cluster_id: "blue".into(),
        from_node: 2,
        from_store: "store-2".into(),
        to_store: "store-1".into(),
        shard: 0,
    }
}

fn handshake(version_min: u32, version_max: u32, envelope: Envelope) -> proto::Item {
    let handshake = proto::Handshake { version_min, version_max, envelope: Some(envelope) };
    proto::Item { item: Some(Item::Handshake(handshake)) }
}

/// Calls with these items, then says nothing more: the first answer.
async fn call(
    address: SocketAddr,
    secret: Option<&'static str>,
    items: Vec<proto::Item>,
) -> Result<(Streaming<proto::Item>, proto::Item), Status> {
    let stream = TcpStream::connect(address).await.unwrap();
    let connected = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (requests, connection) = connected.unwrap();
    tokio::spawn(connection);
    let origin = format!("http://{address}").parse().unwrap();
    let mut client = PeerClient::with_origin(Calls(requests), origin);
    let mut request = tonic::Request::new(iter(items).chain(pending()));
    if let Some(secret) = secret {
        request.metadata_mut().insert("authorization", secret.parse().unwrap());
    }
    let answered = async {
        let mut answers = client.converse(request).await?.into_inner();
        let first = answers.message().await?.expect("an answer");
        Ok((answers, first))
    };
    timeout(DEADLINE, answered).await.expect("an answer in time")
}

fn count(node: &TestNode, reason: &str) -> u64 {
    let start = format!("keevee_peer_refused_total{{reason=\"{reason}\"}} ");
    let text = node.metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.expect("counted").parse().unwrap()
}

/// A pair whose messages arrive, whatever strangers did.
async fn undisturbed(one: &TestNode, two: &TestNode, index: u64) {
    two.transport.send(NodeId(1), of(SHARD, vec![chain(index)]));
    let last = (NodeId(2), SHARD, chain(index));
    one.recorder.wait(|heard| heard.messages.contains(&last)).await;
    assert_eq!(one.recorder.heard.borrow().disconnected, []);
    assert!(one.transport.is_reachable(NodeId(2)));
}

#[tokio::test]
async fn strangers_are_refused() {
    let (one, two) = pair(PeerProtocol::Grpc).await;
    let right = || handshake(1, 1, envelope());
    let with = |change: fn(&mut Envelope)| {
        let mut envelope = envelope();
        change(&mut envelope);
        vec![handshake(1, 1, envelope)]
    };
    let batch = || wire::batch(vec![(SHARD, chain(1_000_000))]);
    let before = one.recorder.heard.borrow().messages.len();
    for (secret, items, code, named, reason) in [
        (None, vec![right(), batch()], Code::Unauthenticated, "authorization", "secret"),
        (Some("Bearer wrong"), vec![right(), batch()], Code::Unauthenticated, "authorization", "secret"),
        (Some(SECRET), with(|it| it.cluster_id = "red".into()), Code::PermissionDenied, "`red`", "cluster"),
        (
            Some(SECRET),
            with(|it| it.from_store = "?".into()),
            Code::PermissionDenied,
            "node 2 with",
            "identity",
        ),
        (Some(SECRET), with(|it| it.from_node = 3), Code::PermissionDenied, "node 3 with", "identity"),
        (
            Some(SECRET),
            with(|it| it.from_node = 1),
            Code::PermissionDenied,
            "claims to be node 1",
            "identity",
        ),
        (
            Some(SECRET),
            with(|it| it.to_store = "?".into()),
            Code::PermissionDenied,
            "for store `?`",
            "identity",
        ),
        (
            Some(SECRET),
            vec![handshake(0, 0, envelope()), batch()],
            Code::FailedPrecondition,
            "0 to 0",
            "version",
        ),
        (
            Some(SECRET),
            vec![handshake(2, 7, envelope()), batch()],
            Code::FailedPrecondition,
            "2 to 7",
            "version",
        ),
        (Some(SECRET), vec![batch()], Code::InvalidArgument, "handshake", "malformed"),
        (Some(SECRET), vec![proto::Item { item: None }], Code::InvalidArgument, "handshake", "malformed"),
    ] {
        let counted = count(&one, reason);
        let status = call(one.address, secret, items).await.expect_err(named);
        assert!(status.code() == code && status.message().contains(named), "{named}: {status:?}");
        assert!(!status.message().contains("sesame"));
        assert_eq!(count(&one, reason), counted + 1, "{named}");
    }
    assert_eq!(one.recorder.heard.borrow().messages.len(), before);
    let (_, first) = call(one.address, Some(SECRET), vec![right()]).await.unwrap();
    let ours =
        Envelope { from_node: 1, from_store: "store-1".into(), to_store: "store-2".into(), ..envelope() };
    assert_eq!(first, handshake(1, 1, ours));
    undisturbed(&one, &two, 5).await;
}

#[tokio::test]
async fn who_takes_back_what_was_never_looked_at_is_cut_off() {
    let (one, two) = pair(PeerProtocol::Grpc).await;
    // ENHANCE_YOUR_CALM
    assert_eq!(timeout(DEADLINE, farewells(one.address)).await.expect("it is cut off"), [11]);
    undisturbed(&one, &two, 5).await;
}

#[tokio::test]
async fn a_member_that_breaks_the_rules_loses_its_call() {
    let (one, _two) = pair(PeerProtocol::Grpc).await;
    let right = || handshake(1, 1, envelope());
    let unreadable = || {
        let kind = proto::message::Kind::Prepare(proto::Prepare { ballot: None, from: 1 });
        let messages = vec![proto::Message { kind: Some(kind) }];
        let shards = vec![proto::ShardMessages { shard: 1, messages }];
        proto::Item { item: Some(Item::Batch(proto::Batch { shards })) }
    };
    for (item, named) in [
        (right(), "second handshake"),
        (wire::forward_answer(1, Vec::new()), "an answer to nothing"),
        (unreadable(), "`ballot` is missing"),
    ] {
        let counted = count(&one, "malformed");
        let (mut answers, _) = call(one.address, Some(SECRET), vec![right(), item]).await.unwrap();
        let status = timeout(DEADLINE, answers.message()).await.unwrap().expect_err(named);
        assert!(status.code() == Code::InvalidArgument && status.message().contains(named), "{status:?}");
        assert_eq!(count(&one, "malformed"), counted + 1);
    }
}

#[tokio::test]
async fn what_this_version_does_not_know_is_skipped_and_counted() {
    let (one, _two) = pair(PeerProtocol::Grpc).await;
    let mut batch = wire::batch(vec![(SHARD, chain(70)), (SHARD, chain(71))]);
    if let Some(Item::Batch(batch)) = &mut batch.item {
        batch.shards[0].messages.insert(1, proto::Message { kind: None });
    }
    let items = vec![handshake(1, 4, envelope()), proto::Item { item: None }, batch];
    let _call = call(one.address, Some(SECRET), items).await.unwrap();
    let last = (NodeId(2), SHARD, chain(71));
    let heard = one.recorder.wait(|heard| heard.messages.contains(&last)).await;
    assert!(heard.messages.contains(&(NodeId(2), SHARD, chain(70))));
    assert_eq!((count(&one, "unknown_kind"), count(&one, "malformed")), (2, 0));
}

#[tokio::test]
async fn garbage_is_refused_and_disturbs_nobody() {
    let (one, two) = pair(PeerProtocol::Grpc).await;
    let http_1 = format!("POST /hello HTTP/1.1\r\nauthorization: {SECRET}\r\nhost: h\r\n\r\n").into_bytes();
    let noise: Vec<u8> = (0..100_000_u32).map(|number| ((number * 7919) >> 3) as u8).collect();
    let mut broken_frame = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // Settings of a length that settings can't have.
    broken_frame.extend([0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]);
    for (number, garbage) in [http_1, noise, broken_frame, vec![0; 40]].into_iter().enumerate() {
        let mut stream = TcpStream::connect(one.address).await.unwrap();
        // The node may have closed it by then.
        let _ = stream.write_all(&garbage).await;
        let mut answer = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("closed in time");
        wait_until(|| count(&one, "malformed") == number as u64 + 1).await;
    }
    undisturbed(&one, &two, 6).await;
}

#[tokio::test]
async fn a_frame_that_says_it_is_huge_is_refused_before_it_comes() {
    let (one, two) = pair(PeerProtocol::Grpc).await;
    let stream = TcpStream::connect(one.address).await.unwrap();
    let (mut requests, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut start = Vec::new();
    let handshake = handshake(1, 1, envelope());
    start.put_u8(0);
    start.put_u32(handshake.encoded_len() as u32);
    handshake.encode(&mut start).unwrap();
    // 100 MiB are announced, and none of them ever comes.
    start.put_u8(0);
    start.put_u32(100 << 20);
    let frame = Ok::<_, Status>(hyper::body::Frame::data(Bytes::from(start)));
    let request = http::Request::post(format!("http://{}/keevee.peer.v1.Peer/Converse", one.address))
        .header(AUTHORIZATION, SECRET)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(iter([frame]).chain(pending())))
        .unwrap();
    let response = timeout(DEADLINE, requests.send_request(request)).await.unwrap().unwrap();
    let body = timeout(DEADLINE, response.into_body().collect()).await.unwrap().unwrap();
    let trailers = body.trailers().expect("a status").clone();
    assert_eq!(trailers["grpc-status"], "11", "{trailers:?}");
    assert_eq!((count(&one, "too_large"), count(&one, "malformed")), (1, 0));
    undisturbed(&one, &two, 7).await;
}

#[tokio::test]
async fn an_entry_as_large_as_a_body_may_be_arrives() {
    let (one, two) = pair(PeerProtocol::Grpc).await;
    let largest = accept(1, 4 << 20);
    one.transport.send(NodeId(2), of(SHARD, vec![largest.clone()]));
    let expected = (NodeId(1), SHARD, largest);
    two.recorder.wait(|heard| heard.messages.contains(&expected)).await;
}

#[tokio::test]
async fn without_the_secret_no_connection_lasts() {
    let (mut listeners, addresses) = listeners(2).await;
    let handshake_timeout = Duration::from_millis(300);
    let bounds = PeerBounds { connections_max: 8, handshake_timeout, ..PeerBounds::default() };
    let config = PeerConfig { bounds, ..config(1, &addresses) };
    let remotes = crate::transport::remote::ByNode::default();
    for remote in crate::transport::remote::remotes(&config).unwrap() {
        remotes.insert(remote.id, remote);
    }
    let inbound = Inbound {
        stop: watch::Sender::new(()),
        authorization: config.authorization().unwrap(),
        remotes,
        config,
        handler: Recorder::new(),
        refusals: Arc::new(Refusals::new(&Metrics::new())),
    };
    let task = tokio::spawn(listener::run(listeners.remove(0), Arc::new(inbound), server::serve));
    let (mut answers, _) = call(addresses[0], Some(SECRET), vec![handshake(1, 1, envelope())]).await.unwrap();
    for start in [&b""[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        // Closed by the node, for nothing but its silence.
        send_raw(addresses[0], start).await;
    }
    // Nor does a call of who has it and does not say who calls.
    let status = call(addresses[0], Some(SECRET), Vec::new()).await.unwrap_err();
    assert!(status.message().contains("no handshake came in time"), "{status:?}");
    // By now the member has been idle for longer, and its call goes on.
    assert!(timeout(Duration::from_millis(50), answers.message()).await.is_err());
    task.abort();
}

/// Shakes hands with this item, then never reads again.
#[derive(Clone)]
struct Deaf(proto::Item);

#[tonic::async_trait]
impl PeerService for Deaf {
    type ConverseStream = BoxStream<'static, Result<proto::Item, Status>>;

    async fn converse(
        &self,
        request: tonic::Request<Streaming<proto::Item>>,
    ) -> Result<tonic::Response<Self::ConverseStream>, Status> {
        let unread = request.into_inner();
        let answers = iter([Ok(self.0.clone())]).chain(pending());
        // The calls are open for as long as the answers are.
        let answers = answers.map(move |answer| {
            let _ = &unread;
            answer
        });
        Ok(tonic::Response::new(answers.boxed()))
    }
}

async fn serve_deaf(listener: TcpListener, deaf: Deaf) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let server = PeerServer::new(deaf.clone());
        let service = service_fn(move |request| server.clone().call(request));
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        connections.spawn(builder.serve_connection(TokioIo::new(stream), service));
    }
}

#[tokio::test]
async fn a_peer_that_stops_reading_costs_no_more_than_the_queue() {
    let (mut listeners, addresses) = listeners(2).await;
    let deaf = tokio::spawn(serve_deaf(listeners.remove(1), Deaf(handshake(1, 1, envelope()))));
    let one = start(PeerProtocol::Grpc, config(1, &addresses), listeners.remove(0));
    wait_until(|| one.transport.is_reachable(NodeId(2))).await;
    let gauge = |name: &str| {
        let start = format!("keevee_peer_{name}{{lane=\"log\",peer=\"2\"}} ");
        let text = one.metrics.text();
        text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |value| value.parse().unwrap())
    };
    // The log lane may open a moment later than the other.
    wait_until(|| {
        one.transport.send(NodeId(2), of(SHARD, vec![accept(1, 1 << 20)]));
        gauge("queue_messages") > 0
    })
    .await;
    let dropped: i64 = gauge("dropped_messages_total");
    for index in 0..100 {
        one.transport.send(NodeId(2), of(SHARD, vec![accept(index, 1 << 20)]));
    }
    assert!(gauge("queue_messages") <= 64, "{}", gauge("queue_messages"));
    assert!(gauge("dropped_messages_total") >= dropped + 30, "{}", gauge("dropped_messages_total"));
    // It is given up, and what waited for it is dropped; the other lane is not disturbed.
    wait_until(|| gauge("queue_messages") == 0).await;
    assert!(one.transport.is_reachable(NodeId(2)));
    assert_eq!(one.recorder.heard.borrow().disconnected, []);
    deaf.abort();
}

#[tokio::test]
async fn who_answers_must_be_who_was_called() {
    for (number, (answer, reason)) in [
        (handshake(1, 1, envelope()), ""),
        (handshake(1, 1, Envelope { from_node: 3, from_store: "store-3".into(), ..envelope() }), "identity"),
        (handshake(1, 1, Envelope { cluster_id: "red".into(), ..envelope() }), "cluster"),
        (handshake(2, 3, envelope()), "version"),
        (wire::batch(Vec::new()), "malformed"),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut listeners, mut addresses) = listeners(2).await;
        let deaf = tokio::spawn(serve_deaf(listeners.remove(1), Deaf(answer)));
        // A third member, so that node 3 is one.
        addresses.push(addresses[1]);
        let one = start(PeerProtocol::Grpc, config(1, &addresses), listeners.remove(0));
        if number == 0 {
            wait_until(|| one.transport.is_reachable(NodeId(2))).await;
        } else {
            wait_until(|| count(&one, reason) > 0).await;
            assert!(!one.transport.is_reachable(NodeId(2)), "{reason}");
            let result = one.transport.forward(NodeId(2), forward(DEADLINE)).await;
            assert!(matches!(result, Err(ForwardError::NotSent { .. })), "{result:?}");
        }
        deaf.abort();
    }
}
