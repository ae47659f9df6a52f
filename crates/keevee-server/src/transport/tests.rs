//! Transports over real sockets, with handlers that remember what they were told. What both transports promise is
//! tested on both.

mod grpc;
mod http_json;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keevee_core::error::ErrorKind;
use keevee_paxos::{Ballot, Entry, Message, Value};
use keevee_replica::ChainHash;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
const SHARD: ShardId = ShardId(1);

/// Each test on both transports.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod on_grpc {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::PeerProtocol::Grpc).await;
            })*
        }

        mod on_http_json {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::PeerProtocol::HttpJson).await;
            })*
        }
    };
}

on_both! {
    messages_arrive_in_order_with_sender_and_shard
    a_broken_connection_is_told_at_once_and_mended
    a_broken_connection_from_a_peer_is_told_too
    a_connection_that_is_dropped_at_once_is_made_again_without_waiting_for_an_answer
    a_silent_peer_becomes_unreachable_without_a_disconnect
    an_unreachable_peers_messages_are_dropped_and_counted
    forwards_bring_back_a_reply_for_each_command
    a_forward_without_a_full_answer_may_have_happened
    a_stopping_nodes_last_answers_reach_its_peers
    a_peer_of_another_cluster_is_never_reached
    a_node_that_moves_is_followed
}

/// Remembers everything, and can be waited for.
struct Recorder {
    heard: watch::Sender<Heard>,
    /// To all forwards, once it is not empty.
    answer: watch::Sender<Vec<ForwardReply>>,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    messages: Vec<(NodeId, ShardId, PeerMessage)>,
    disconnected: Vec<NodeId>,
    forwards: Vec<(NodeId, Forward)>,
}

impl Recorder {
    fn new() -> Arc<Recorder> {
        Arc::new(Recorder { heard: watch::Sender::default(), answer: watch::Sender::default() })
    }

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
        let mut answer = self.answer.subscribe();
        Box::pin(async move { answer.wait_for(|answer| !answer.is_empty()).await.unwrap().clone() })
    }
}

struct TestNode {
    transport: Arc<dyn PeerTransport>,
    recorder: Arc<Recorder>,
    metrics: Arc<Metrics>,
    id: NodeId,
    address: SocketAddr,
}

pub(in crate::transport) fn config(node: u64, addresses: &[SocketAddr]) -> PeerConfig {
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
        bounds: PeerBounds::default(),
    }
}

/// Messages of one shard.
fn of(shard: ShardId, messages: Vec<PeerMessage>) -> Vec<(ShardId, PeerMessage)> {
    messages.into_iter().map(|message| (shard, message)).collect()
}

fn start(protocol: PeerProtocol, config: PeerConfig, listener: TcpListener) -> TestNode {
    let (metrics, id) = (Arc::new(Metrics::new()), config.node);
    let transport = open(protocol, config, &metrics).unwrap();
    let recorder = Recorder::new();
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
async fn pair(protocol: PeerProtocol) -> (TestNode, TestNode) {
    let (mut listeners, addresses) = listeners(2).await;
    let two = start(protocol, config(2, &addresses), listeners.remove(1));
    let one = start(protocol, config(1, &addresses), listeners.remove(0));
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
        from.transport.send(to.id, of(SHARD, probes));
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

async fn messages_arrive_in_order_with_sender_and_shard(protocol: PeerProtocol) {
    let (one, two) = pair(protocol).await;
    let mut expected = Vec::new();
    for index in 1..=300 {
        let shard = ShardId(1 + (index / 100) as u32);
        // Some larger than a post is cut at, and two kinds on one lane.
        let bytes = if index % 100 == 50 { 1 << 20 } else { 10 };
        let messages = vec![accept(index, bytes), chain(index), chain(index + 1000)];
        expected.extend(messages.iter().map(|message| (NodeId(1), shard, message.clone())));
        one.transport.send(NodeId(2), of(shard, messages));
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

async fn a_broken_connection_is_told_at_once_and_mended(protocol: PeerProtocol) {
    let (mut listeners, addresses) = listeners(2).await;
    let two = start(protocol, config(2, &addresses), listeners.remove(1));
    let one = start(protocol, config(1, &addresses), listeners.remove(0));
    connected(&one, &two).await;
    connected(&two, &one).await;
    // As by a kill: the sockets close, and nothing is said.
    two.transport.stop();
    drop(two.transport);
    let heard = one.recorder.wait(|heard| !heard.disconnected.is_empty()).await;
    assert_eq!(heard.disconnected[0], NodeId(2));
    wait_until(|| !one.transport.is_reachable(NodeId(2))).await;

    let listener = TcpListener::bind(two.address).await.unwrap();
    let two = start(protocol, config(2, &addresses), listener);
    connected(&one, &two).await;
    connected(&two, &one).await;
    wait_until(|| one.transport.is_reachable(NodeId(2))).await;
}

async fn an_unreachable_peers_messages_are_dropped_and_counted(protocol: PeerProtocol) {
    let (mut listeners, addresses) = listeners(2).await;
    drop(listeners.pop());
    let one = start(protocol, config(1, &addresses), listeners.remove(0));
    one.transport.send(NodeId(2), of(SHARD, vec![chain(1), chain(2)]));
    let text = one.metrics.text();
    assert!(text.contains("keevee_peer_dropped_messages_total{lane=\"log\",peer=\"2\"} 2\n"), "{text}");
    assert!(!one.transport.is_reachable(NodeId(2)));
    let result = one.transport.forward(NodeId(2), forward(DEADLINE)).await;
    assert!(matches!(result, Err(ForwardError::NotSent { node: NodeId(2), .. })), "{result:?}");
    let result = one.transport.forward(NodeId(9), forward(DEADLINE)).await;
    assert!(matches!(result, Err(ForwardError::NotSent { node: NodeId(9), .. })), "{result:?}");
}

async fn forwards_bring_back_a_reply_for_each_command(protocol: PeerProtocol) {
    let (one, two) = pair(protocol).await;
    let error = ForwardReply::Error {
        kind: ErrorKind::NotLeader,
        detail: "node 3 leads".into(),
        leader: Some(NodeId(3)),
    };
    let replies = vec![ForwardReply::Outcome("done".into()), error];
    two.recorder.answer.send_replace(replies.clone());
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

async fn a_forward_without_a_full_answer_may_have_happened(protocol: PeerProtocol) {
    let (one, two) = pair(protocol).await;
    let no_answer = |result: ForwardResult| match result {
        Err(ForwardError::NoAnswer { node, cause }) => {
            assert_eq!(node, NodeId(2));
            cause
        }
        other => panic!("{other:?}"),
    };
    let late = one.transport.forward(NodeId(2), forward(Duration::from_millis(50))).await;
    assert!(no_answer(late).contains("in time"));

    two.recorder.answer.send_replace(vec![ForwardReply::Outcome("only one".into())]);
    let short = one.transport.forward(NodeId(2), forward(DEADLINE)).await;
    assert!(no_answer(short).contains("1 replies to 2 commands"));

    two.recorder.answer.send_replace(Vec::new());
    let pending = tokio::spawn(one.transport.forward(NodeId(2), forward(DEADLINE)));
    two.recorder.wait(|heard| heard.forwards.len() == 3).await;
    two.transport.stop();
    no_answer(pending.await.unwrap());
    // Its idle connections are closed now, and nobody listens.
    let unsent = one.transport.forward(NodeId(2), forward(DEADLINE)).await;
    assert!(matches!(unsent, Err(ForwardError::NotSent { .. })), "{unsent:?}");
}

async fn a_peer_of_another_cluster_is_never_reached(protocol: PeerProtocol) {
    let (mut listeners, addresses) = listeners(2).await;
    let two = start(protocol, config(2, &addresses), listeners.remove(1));
    let other = PeerConfig { cluster_id: "red".into(), ..config(1, &addresses) };
    let one = start(protocol, other, listeners.remove(0));
    let forwarded = one.transport.forward(NodeId(2), forward(DEADLINE)).await;
    match forwarded {
        Err(ForwardError::NotSent { cause, .. }) => assert!(cause.contains("`red`"), "{cause}"),
        other => panic!("{other:?}"),
    }
    assert!(!one.transport.is_reachable(NodeId(2)));
    let heard = two.recorder.heard.borrow();
    assert!(heard.forwards.is_empty() && heard.messages.is_empty());
}

async fn a_node_that_moves_is_followed(protocol: PeerProtocol) {
    let (one, two) = pair(protocol).await;
    let elsewhere = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = elsewhere.local_addr().unwrap();
    let moved = start(protocol, config(2, &[one.address, address]), elsewhere);
    one.transport.set_peer(Peer { id: NodeId(2), store_id: "store-2".into(), address: address.to_string() });
    // What listens at the old address is left, though it would go on.
    two.recorder.wait(|heard| heard.disconnected == [NodeId(1)]).await;
    connected(&one, &moved).await;
    wait_until(|| one.transport.is_reachable(NodeId(2))).await;
    let replies = vec![ForwardReply::Outcome("from".into()), ForwardReply::Outcome("here".into())];
    moved.recorder.answer.send_replace(replies.clone());
    // Forwards have a connection of their own, which may follow later.
    let deadline = Instant::now() + DEADLINE;
    loop {
        match one.transport.forward(NodeId(2), forward(DEADLINE)).await {
            Err(ForwardError::NotSent { .. }) if Instant::now() < deadline => tokio::task::yield_now().await,
            answered => break assert_eq!(answered, Ok(replies)),
        }
    }
    assert_eq!(two.recorder.heard.borrow().forwards.len(), 0);
}

async fn a_broken_connection_from_a_peer_is_told_too(protocol: PeerProtocol) {
    let (mut listeners, addresses) = listeners(2).await;
    // Node 1 reaches nobody: all that it hears of node 2 comes on node 2's connections.
    let nowhere = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let one = start(protocol, config(1, &[addresses[0], nowhere]), listeners.remove(0));
    let two = start(protocol, config(2, &addresses), listeners.remove(0));
    connected(&two, &one).await;
    assert_eq!(one.recorder.heard.borrow().disconnected, []);
    two.transport.stop();
    let heard = one.recorder.wait(|heard| !heard.disconnected.is_empty()).await;
    assert_eq!(heard.disconnected, [NodeId(2)]);
}

async fn a_connection_that_is_dropped_at_once_is_made_again_without_waiting_for_an_answer(
    protocol: PeerProtocol,
) {
    let (mut listeners, addresses) = listeners(2).await;
    let dropping = listeners.remove(1);
    let _one = start(protocol, config(1, &addresses), listeners.remove(0));
    // As a proxy does whose server is down. So many would take longer if answers were waited for.
    let taken = async {
        for _ in 0..30 {
            drop(dropping.accept().await);
        }
    };
    timeout(DEADLINE, taken).await.expect("it calls again");
}

async fn a_silent_peer_becomes_unreachable_without_a_disconnect(protocol: PeerProtocol) {
    let (mut listeners, addresses) = listeners(3).await;
    let freeze = watch::Sender::new(false);
    let proxy = tokio::spawn(relay(listeners.remove(2), addresses[1], freeze.subscribe()));
    let _two = start(protocol, config(2, &addresses[..2]), listeners.remove(1));
    // Node 2 is reached through the relay.
    let one = start(protocol, config(1, &[addresses[0], addresses[2]]), listeners.remove(0));
    wait_until(|| one.transport.is_reachable(NodeId(2))).await;
    freeze.send_replace(true);
    wait_until(|| !one.transport.is_reachable(NodeId(2))).await;
    assert_eq!(one.recorder.heard.borrow().disconnected, []);
    proxy.abort();
}

/// Hands bytes on in both directions, until it holds all of them, as a network that fails without a word.
async fn relay(listener: TcpListener, target: SocketAddr, freeze: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut frozen = freeze.clone();
        connections.spawn(async move {
            let mut far = TcpStream::connect(target).await.unwrap();
            tokio::select! {
                _ = frozen.wait_for(|frozen| *frozen) => {}
                _ = copy_bidirectional(&mut near, &mut far) => return,
            }
            std::future::pending().await
        });
    }
}

async fn a_stopping_nodes_last_answers_reach_its_peers(protocol: PeerProtocol) {
    let (one, two) = pair(protocol).await;
    let pending = tokio::spawn(one.transport.forward(NodeId(2), forward(DEADLINE)));
    two.recorder.wait(|heard| !heard.forwards.is_empty()).await;
    let drained = tokio::spawn(two.transport.drain());
    let replies = vec![ForwardReply::Outcome("late".into()), ForwardReply::Outcome("too".into())];
    two.recorder.answer.send_replace(replies.clone());
    drained.await.unwrap();
    two.transport.stop();
    assert_eq!(pending.await.unwrap(), Ok(replies));
}

#[test]
fn a_secret_that_no_header_can_hold_is_an_error() {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    for protocol in [PeerProtocol::Grpc, PeerProtocol::HttpJson] {
        let bad = PeerConfig { secret: "open\nsesame".into(), ..config(1, &[address, address]) };
        let error = open(protocol, bad, &Arc::new(Metrics::new())).err().unwrap();
        assert!(error.to_string().contains("secret"));
    }
}

async fn send_raw(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    answer
}

async fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition holds in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
