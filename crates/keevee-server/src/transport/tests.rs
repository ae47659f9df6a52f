//! Transports over real sockets, with handlers that remember what they were told.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Instant;

use keevee_paxos::{Ballot, Entry, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::http_json::HttpJson;
use super::listener::{Bounds, Inbound};
use super::throttle::Throttle;
use super::*;
use crate::metrics::Metrics;

const DEADLINE: Duration = Duration::from_secs(20);
const SHARD: ShardId = ShardId(1);

/// Remembers everything, and can be waited for.
struct Recorder {
    heard: watch::Sender<Heard>,
    answer: Mutex<Vec<ForwardReply>>,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    messages: Vec<(NodeId, ShardId, PeerMessage)>,
    disconnected: Vec<NodeId>,
    forwards: Vec<(NodeId, Forward)>,
}

impl Recorder {
    async fn wait(&self, condition: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = self.heard.subscribe();
        let found = timeout(DEADLINE, heard.wait_for(condition)).await;
        found.expect("the condition holds in time").unwrap().clone()
    }
}

impl PeerHandler for Recorder {
    fn receive(&self, from: NodeId, shard: ShardId, messages: Vec<PeerMessage>) {
        let messages = messages.into_iter().map(|message| (from, shard, message));
        self.heard.send_modify(|heard| heard.messages.extend(messages));
    }

    fn disconnected(&self, node: NodeId) {
        self.heard.send_modify(|heard| heard.disconnected.push(node));
    }

    fn execute_forwarded(&self, from: NodeId, forward: Forward) -> BoxFuture<Vec<ForwardReply>> {
        self.heard.send_modify(|heard| heard.forwards.push((from, forward)));
        let answer = self.answer.lock().unwrap().clone();
        if answer.is_empty() {
            return Box::pin(std::future::pending());
        }
        Box::pin(std::future::ready(answer))
    }
}

struct TestNode {
    transport: HttpJson,
    recorder: Arc<Recorder>,
    metrics: Metrics,
    id: NodeId,
    address: SocketAddr,
}

fn config(node: u64, addresses: &[SocketAddr]) -> PeerConfig {
    let peer = |(position, address): (usize, &SocketAddr)| {
        let id = position as u64 + 1;
        Peer { id: NodeId(id), store_id: format!("store-{id}"), address: address.to_string() }
    };
    PeerConfig {
        cluster_id: "blue".into(),
        secret: "sesame".into(),
        node: NodeId(node),
        store_id: format!("store-{node}"),
        peers: addresses.iter().enumerate().map(peer).collect(),
        body_bytes_max: 4 << 20,
    }
}

fn start(config: PeerConfig, listener: TcpListener) -> TestNode {
    let (metrics, id) = (Metrics::new(), config.node);
    let transport = HttpJson::new(config, &metrics).unwrap();
    let recorder = Arc::new(Recorder { heard: watch::Sender::default(), answer: Mutex::default() });
    let address = listener.local_addr().unwrap();
    transport.start(recorder.clone(), listener);
    TestNode { transport, recorder, metrics, id, address }
}

async fn listeners(count: usize) -> (Vec<TcpListener>, Vec<SocketAddr>) {
    let mut listeners = Vec::new();
    for _ in 0..count {
        listeners.push(TcpListener::bind(("127.0.0.1", 0)).await.unwrap());
    }
    let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    (listeners, addresses)
}

/// Nodes 1 and 2, connected both ways.
async fn pair() -> (TestNode, TestNode) {
    let (mut listeners, addresses) = listeners(2).await;
    let two = start(config(2, &addresses), listeners.remove(1));
    let one = start(config(1, &addresses), listeners.remove(0));
    connected(&one, &two).await;
    connected(&two, &one).await;
    (one, two)
}

/// Waits until messages arrive on both lanes.
async fn connected(from: &TestNode, to: &TestNode) {
    let deadline = Instant::now() + DEADLINE;
    let (mut log, mut control) = (false, false);
    let mut heard = to.recorder.heard.subscribe();
    while !(log && control) {
        assert!(Instant::now() < deadline, "the nodes connect in time");
        let probes = vec![chain(0), PeerMessage::Paxos(Message::Poll { poll: 0 })];
        from.transport.send(to.id, SHARD, probes);
        // Dropped while there is no connection: ask again.
        let _ = timeout(Duration::from_millis(20), heard.changed()).await;
        let messages = &heard.borrow_and_update().messages;
        log = messages.iter().any(|(.., message)| *message == chain(0));
        control = messages.iter().any(|(.., message)| matches!(message, PeerMessage::Paxos(_)));
    }
}

fn chain(index: u64) -> PeerMessage {
    PeerMessage::ChainHash(ChainHash { index, chain: 7 })
}

fn accept(index: u64, bytes: usize) -> PeerMessage {
    let ballot = Ballot { round: 1, node: 1 };
    let entry = Entry { index, ballot, value: Value::Data(vec![index as u8; bytes].into()) };
    PeerMessage::Paxos(Message::Accept { ballot, sent_at: index, entries: vec![entry], chosen: 0 })
}

fn forward(time_left: Duration) -> Forward {
    Forward { shard: SHARD, time_left, commands: vec!["one".into(), "two".into()] }
}

#[tokio::test]
async fn messages_arrive_in_order_with_sender_and_shard() {
    let (one, two) = pair().await;
    let mut expected = Vec::new();
    for index in 1..=300 {
        let shard = ShardId(1 + (index / 100) as u32);
        // Some larger than a post is cut at, and two kinds on one lane.
        let bytes = if index % 100 == 50 { 1 << 20 } else { 10 };
        let messages = vec![accept(index, bytes), chain(index), chain(index + 1000)];
        expected.extend(messages.iter().map(|message| (NodeId(1), shard, message.clone())));
        one.transport.send(NodeId(2), shard, messages);
    }
    let last = expected.last().unwrap().clone();
    let heard = two.recorder.wait(|heard| heard.messages.contains(&last)).await;
    let probe = |message: &PeerMessage| {
        *message == chain(0) || matches!(message, PeerMessage::Paxos(Message::Poll { .. }))
    };
    let received: Vec<_> = heard.messages.into_iter().filter(|(.., message)| !probe(message)).collect();
    assert!(received == expected, "{} of {}", received.len(), expected.len());
    assert!(one.transport.is_reachable(NodeId(2)) && !one.transport.is_reachable(NodeId(3)));
}

#[tokio::test]
async fn a_broken_connection_is_told_at_once_and_mended() {
    let (mut listeners, addresses) = listeners(2).await;
    let two = start(config(2, &addresses), listeners.remove(1));
    let one = start(config(1, &addresses), listeners.remove(0));
    connected(&one, &two).await;
    connected(&two, &one).await;
    // As by a kill: the sockets close, and nothing is said.
    two.transport.stop();
    drop(two.transport);
    let heard = one.recorder.wait(|heard| !heard.disconnected.is_empty()).await;
    assert_eq!(heard.disconnected[0], NodeId(2));
    wait_until(|| !one.transport.is_reachable(NodeId(2))).await;

    let listener = TcpListener::bind(two.address).await.unwrap();
    let two = start(config(2, &addresses), listener);
    connected(&one, &two).await;
    connected(&two, &one).await;
    wait_until(|| one.transport.is_reachable(NodeId(2))).await;
}

#[tokio::test]
async fn a_silent_peer_becomes_unreachable_without_a_disconnect() {
    let (mut listeners, addresses) = listeners(2).await;
    let one = start(config(1, &addresses), listeners.remove(0));
    // Answers the first hello of each lane, then reads and says nothing, as a stopped process.
    let silent = listeners.remove(0);
    let task = tokio::spawn(async move {
        let mut streams = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = silent.accept().await.unwrap();
            let mut head = [0; 1024];
            assert_ne!(stream.read(&mut head).await.unwrap(), 0);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            streams.push(stream);
        }
        std::future::pending::<()>().await;
    });
    wait_until(|| one.transport.is_reachable(NodeId(2))).await;
    wait_until(|| !one.transport.is_reachable(NodeId(2))).await;
    assert_eq!(one.recorder.heard.borrow().disconnected, []);
    task.abort();
}

#[tokio::test]
async fn an_unreachable_peers_messages_are_dropped_and_counted() {
    let (mut listeners, addresses) = listeners(2).await;
    drop(listeners.pop());
    let one = start(config(1, &addresses), listeners.remove(0));
    one.transport.send(NodeId(2), SHARD, vec![chain(1), chain(2)]);
    let text = one.metrics.text();
    assert!(text.contains("keevee_peer_dropped_messages_total{lane=\"log\",peer=\"2\"} 2\n"), "{text}");
    assert!(!one.transport.is_reachable(NodeId(2)));
    let result = one.transport.forward(NodeId(2), forward(DEADLINE)).await;
    assert!(matches!(result, Err(ForwardError::NotSent { node: NodeId(2), .. })), "{result:?}");
    let result = one.transport.forward(NodeId(9), forward(DEADLINE)).await;
    assert!(matches!(result, Err(ForwardError::NotSent { node: NodeId(9), .. })), "{result:?}");
}

#[tokio::test]
async fn forwards_bring_back_a_reply_for_each_command() {
    let (one, two) = pair().await;
    let error = ForwardReply::Error { kind: ErrorKind::NotLeader, detail: "node 3 leads".into() };
    let replies = vec![ForwardReply::Outcome("done".into()), error];
    *two.recorder.answer.lock().unwrap() = replies.clone();
    // Many at once, then again on the same connections.
    for _ in 0..3 {
        let all: Vec<_> =
            (0..20).map(|_| tokio::spawn(one.transport.forward(NodeId(2), forward(DEADLINE)))).collect();
        for result in all {
            assert_eq!(result.await.unwrap(), Ok(replies.clone()));
        }
    }
    let heard = two.recorder.wait(|heard| heard.forwards.len() == 60).await;
    let (from, found) = &heard.forwards[0];
    assert_eq!((*from, found.shard, found.time_left), (NodeId(1), SHARD, DEADLINE));
    assert_eq!(found.commands, forward(DEADLINE).commands);
    assert!(one.metrics.text().contains("keevee_forwards_total{peer=\"2\",result=\"ok\"} 60\n"));
}

#[tokio::test]
async fn a_forward_without_a_full_answer_may_have_happened() {
    let (one, two) = pair().await;
    let no_answer = |result: ForwardResult| match result {
        Err(ForwardError::NoAnswer { node, cause }) => {
            assert_eq!(node, NodeId(2));
            cause
        }
        other => panic!("{other:?}"),
    };
    let late = one.transport.forward(NodeId(2), forward(Duration::from_millis(50))).await;
    assert!(no_answer(late).contains("in time"));

    *two.recorder.answer.lock().unwrap() = vec![ForwardReply::Outcome("only one".into())];
    let short = one.transport.forward(NodeId(2), forward(DEADLINE)).await;
    assert!(no_answer(short).contains("1 replies to 2 commands"));

    two.recorder.answer.lock().unwrap().clear();
    let pending = tokio::spawn(one.transport.forward(NodeId(2), forward(DEADLINE)));
    two.recorder.wait(|heard| heard.forwards.len() == 3).await;
    two.transport.stop();
    no_answer(pending.await.unwrap());
    // Its idle connections are closed now, and nobody listens.
    let unsent = one.transport.forward(NodeId(2), forward(DEADLINE)).await;
    assert!(matches!(unsent, Err(ForwardError::NotSent { .. })), "{unsent:?}");
}

#[tokio::test]
async fn strangers_are_refused() {
    let (one, _two) = pair().await;
    let envelope = |cluster: &str, from: u64, store: &str, to: &str| {
        let from = format!(r#""from_node":{from},"from_store":"{store}""#);
        format!(
            r#"{{"envelope":{{"cluster_id":"{cluster}",{from},"to_store":"{to}","shard":1}},"messages":[]}}"#
        )
    };
    let right = envelope("blue", 2, "store-2", "store-1");
    let secret = "authorization: Bearer sesame\r\n";
    for (head, body, status, named) in [
        ("POST /heartbeat", ("", right.clone()), 403, "authorization"),
        ("POST /heartbeat", ("authorization: Bearer wrong\r\n", right.clone()), 403, "authorization"),
        ("POST /heartbeat", (secret, envelope("red", 2, "store-2", "store-1")), 403, "`red`"),
        ("POST /heartbeat", (secret, envelope("blue", 2, "store-1", "store-1")), 403, "node 2 with store"),
        ("POST /heartbeat", (secret, envelope("blue", 3, "store-3", "store-1")), 403, "node 3 with store"),
        // Its own id and store, which its configuration names like all others.
        ("POST /heartbeat", (secret, envelope("blue", 1, "store-1", "store-1")), 403, "claims to be node 1"),
        ("POST /hello", (secret, envelope("blue", 1, "store-1", "store-1")), 403, "claims to be node 1"),
        ("POST /heartbeat", (secret, envelope("blue", 2, "store-2", "store-3")), 403, "for store `store-3`"),
        ("POST /hello", (secret, envelope("red", 2, "store-2", "store-1")), 403, "`red`"),
        ("POST /heartbeat", (secret, "{}".to_owned()), 400, "envelope"),
        ("POST /forward", (secret, right.clone()), 400, "time_left_micros"),
        ("POST /paxos/unheard_of", (secret, right.clone()), 404, "/paxos/unheard_of"),
        ("GET /heartbeat", (secret, String::new()), 405, "POST"),
        ("POST /heartbeat", (secret, right.clone()), 204, ""),
    ] {
        let (extra, body) = body;
        let request = format!(
            "{head} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{extra}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = send_raw(one.address, &request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(named),
            "{head} {answer}"
        );
        assert_eq!(answer.contains("application/problem+json"), status != 204, "{answer}");
        assert!(!answer.contains("sesame"));
    }
    // Declared too large: refused before any of it is read, even if the rest is right.
    let request = format!(
        "POST /heartbeat HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{secret}content-length: 4194305\r\n\r\n"
    );
    let answer = send_raw(one.address, &request).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("too_large"), "{answer}");
}

#[tokio::test]
async fn without_the_secret_no_connection_lasts() {
    let (mut listeners, addresses) = listeners(1).await;
    let config = config(1, &addresses);
    let inbound = Inbound {
        stop: watch::Sender::new(()),
        authorization: config.authorization().unwrap(),
        config,
        remotes: Default::default(),
        handler: Arc::new(Recorder { heard: watch::Sender::default(), answer: Mutex::default() }),
        bounds: Bounds { connections_max: 2, secret_timeout: Duration::from_millis(300) },
        complaints: Throttle::default(),
    };
    let task = tokio::spawn(listener::run(listeners.remove(0), Arc::new(inbound)));
    let connect = async |head: &str| {
        let mut stream = TcpStream::connect(addresses[0]).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let get = "GET /hello HTTP/1.1\r\nhost: h\r\n";
    let with_secret = format!("{get}authorization: Bearer sesame\r\n\r\n");
    let mut peer = connect(&with_secret).await;
    let mut buffer = [0; 4096];
    assert_ne!(timeout(DEADLINE, peer.read(&mut buffer)).await.unwrap().unwrap(), 0);
    let mut stranger = connect(&format!("{get}\r\n")).await;
    let mut refusal = Vec::new();
    // A third finds no room; it may be closed before it has spoken.
    let mut third = TcpStream::connect(addresses[0]).await.unwrap();
    assert_eq!(timeout(DEADLINE, third.read(&mut buffer)).await.unwrap().unwrap(), 0);
    timeout(DEADLINE, stranger.read_to_end(&mut refusal)).await.unwrap().unwrap();
    assert!(refusal.starts_with(b"HTTP/1.1 403 "));
    let mut silent = connect("").await;
    assert_eq!(timeout(DEADLINE, silent.read(&mut buffer)).await.unwrap().unwrap(), 0);
    // By now the peer has been idle for longer.
    peer.write_all(with_secret.as_bytes()).await.unwrap();
    assert_ne!(timeout(DEADLINE, peer.read(&mut buffer)).await.unwrap().unwrap(), 0);
    task.abort();
}

#[tokio::test]
async fn a_peer_of_another_cluster_is_never_reached() {
    let (mut listeners, addresses) = listeners(2).await;
    let two = start(config(2, &addresses), listeners.remove(1));
    let other = PeerConfig { cluster_id: "red".into(), ..config(1, &addresses) };
    let one = start(other, listeners.remove(0));
    let forwarded = one.transport.forward(NodeId(2), forward(DEADLINE)).await;
    match forwarded {
        Err(ForwardError::NotSent { cause, .. }) => assert!(cause.contains("`red`"), "{cause}"),
        other => panic!("{other:?}"),
    }
    assert!(!one.transport.is_reachable(NodeId(2)));
    let heard = two.recorder.heard.borrow();
    assert!(heard.forwards.is_empty() && heard.messages.is_empty());
}

#[test]
fn a_secret_that_no_header_can_hold_is_an_error() {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let bad = PeerConfig { secret: "open\nsesame".into(), ..config(1, &[address, address]) };
    let error = HttpJson::new(bad, &Metrics::new()).err().unwrap();
    assert!(error.to_string().contains("secret"));
}

async fn send_raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

async fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition holds in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
