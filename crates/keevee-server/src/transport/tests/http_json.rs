//! What is JSON's alone.

use super::*;
use crate::transport::http_json::server;
use crate::transport::identity::PeerBounds;
use crate::transport::listener::{self, Inbound};
use crate::transport::refusals::Refusals;

#[tokio::test]
async fn strangers_are_refused() {
    let (one, _two) = pair(PeerProtocol::HttpJson).await;
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
        let answer = String::from_utf8(send_raw(one.address, request.as_bytes()).await).unwrap();
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
    let answer = String::from_utf8(send_raw(one.address, request.as_bytes()).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("too_large"), "{answer}");
    let text = one.metrics.text();
    for counted in ["secret\"} 2", "cluster\"} 2", "identity\"} 5", "malformed\"} 4", "too_large\"} 1"] {
        let line = format!("keevee_peer_refused_total{{reason=\"{counted}\n");
        assert!(text.contains(&line), "no {line} in\n{text}");
    }
}

fn inbound(config: PeerConfig) -> Arc<Inbound> {
    let inbound = Inbound {
        stop: watch::Sender::new(()),
        authorization: config.authorization().unwrap(),
        config,
        remotes: Default::default(),
        handler: Recorder::new(),
        refusals: Arc::new(Refusals::new(&Metrics::new())),
    };
    Arc::new(inbound)
}

/// Who knows the secret may still be dead, or cut off.
#[tokio::test]
async fn a_body_that_does_not_arrive_is_given_up() {
    let (mut listeners, addresses) = listeners(1).await;
    let bounds = PeerBounds { body_timeout: Duration::from_millis(100), ..PeerBounds::default() };
    let config = PeerConfig { bounds, ..config(1, &addresses) };
    let task = tokio::spawn(listener::run(listeners.remove(0), inbound(config), server::serve));
    let head = "POST /heartbeat HTTP/1.1\r\nhost: h\r\nauthorization: Bearer sesame\r\ncontent-length: 1000000\r\n\r\n";
    let (mut reader, mut writer) = TcpStream::connect(addresses[0]).await.unwrap().into_split();
    writer.write_all(head.as_bytes()).await.unwrap();
    // A byte now and then is no body either.
    let dribble = tokio::spawn(async move {
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut answer = Vec::new();
    // The connection ends with a reset, as not all was read.
    let _ = timeout(DEADLINE, reader.read_to_end(&mut answer)).await.expect("it is closed");
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("did not arrive within 100ms"),
        "{answer}"
    );
    timeout(DEADLINE, dribble).await.expect("nobody reads on").unwrap();
    task.abort();
}

#[tokio::test]
async fn without_the_secret_no_connection_lasts() {
    let (mut listeners, addresses) = listeners(1).await;
    let handshake_timeout = Duration::from_millis(300);
    let bounds = PeerBounds { connections_max: 2, handshake_timeout, ..PeerBounds::default() };
    let config = PeerConfig { bounds, ..config(1, &addresses) };
    let task = tokio::spawn(listener::run(listeners.remove(0), inbound(config), server::serve));
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
