//! The interface over real sockets, above a store in memory.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use keevee_core::command::{Action, Expect, Expiry, OperationError, OperationResult, ScannedKey, Versioned};
use keevee_core::ids::{NodeId, StoreId};
use keevee_core::requests::RequestId;
use keevee_core::shard_map::change::{Placement, ShardSpec};
use keevee_core::shard_map::{Consensus, NodeInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::node::Consistency;

mod hostile;
mod ranges;

const DEADLINE: Duration = Duration::from_secs(20);
const VALUE_BYTES_MAX: usize = 100_000;

/// A store of one shard in memory. It can be told what to answer next, and remembers what it was asked.
#[derive(Clone, Default)]
struct FakeStore(Arc<Mutex<FakeState>>, Arc<Notify>);

#[derive(Default)]
struct FakeState {
    version: u64,
    values: BTreeMap<Bytes, Versioned>,
    answers: VecDeque<Result<Outcome, ExecuteError>>,
    asked: Vec<(Context, Command)>,
    /// Of the maps that it was to catch up with.
    epochs: Vec<u64>,
    /// Of the command at hand.
    shard: Option<ShardId>,
    /// Requests wait to be let go.
    held: bool,
    unready: bool,
}

impl FakeStore {
    fn answer_next(&self, answer: Result<Outcome, ExecuteError>) {
        self.0.lock().unwrap().answers.push_back(answer);
    }

    fn asked(&self) -> Vec<(Context, Command)> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

impl FakeStore {
    fn map(&self) -> ShardMap {
        let store = StoreId(uuid::Uuid::from_u128(1));
        let node = NodeInfo {
            id: NodeId(1),
            store,
            peer: "localhost:9001".into(),
            http: "localhost:8001".into(),
            resp: None,
        };
        let spec = ShardSpec {
            name: None,
            load_factor: 1,
            consensus: Consensus::Paxos,
            placement: Placement::Spread { replicas: 1 },
        };
        ShardMap::bootstrap(vec![node], Consensus::Paxos, &[spec.clone(), spec]).unwrap()
    }
}

impl FakeState {
    fn apply(&mut self, command: &Command, owner: impl Fn(&[u8]) -> ShardId) -> Outcome {
        let shard = self.shard;
        for (precondition, condition) in command.preconditions.iter().enumerate() {
            let version = self.values.get(&condition.key).map(|value| value.version);
            let holds = match condition.expect {
                Expect::Absent => version.is_none(),
                Expect::Present => version.is_some(),
                Expect::Version(expected) => version == Some(expected),
            };
            if !holds {
                return Outcome::Conflict { precondition, version };
            }
        }
        let results = command.operations.iter().map(|operation| match &operation.action {
            Action::Get { key } => OperationResult::Value(self.values.get(key).cloned()),
            Action::Put { key, value, expires, .. } => {
                let expires = match expires {
                    Expiry::At(micros) => Some(*micros),
                    _ => None,
                };
                self.version += 1;
                let version = self.version;
                self.values
                    .insert(key.clone(), Versioned { version, stamp: 0, expires, value: value.clone() });
                OperationResult::Written { version }
            }
            Action::Delete { key } => OperationResult::Deleted { existed: self.values.remove(key).is_some() },
            Action::Increment { key, by } => {
                let held = self.values.get(key).map(|held| String::from_utf8(held.value.to_vec()).unwrap());
                let Some(value) = held.map_or(Some(0), |text| text.parse::<i64>().ok()) else {
                    return OperationResult::Failed(OperationError::NotAnInteger);
                };
                self.version += 1;
                let (version, value) = (self.version, value + by);
                let text = value.to_string().into();
                self.values.insert(key.clone(), Versioned { version, stamp: 0, expires: None, value: text });
                OperationResult::Incremented { value, version }
            }
            Action::Scan { range, limit, .. } => {
                let found = self.values.iter();
                let found = found.filter(|(key, _)| range.contains(key) && shard == Some(owner(key)));
                let mut keys: Vec<ScannedKey> =
                    found.map(|(key, value)| ScannedKey { key: key.clone(), value: value.clone() }).collect();
                let rest = keys.split_off(keys.len().min(*limit as usize));
                OperationResult::Scanned { keys, next: rest.into_iter().next().map(|found| found.key) }
            }
            Action::DeleteRange { range, .. } => {
                let found = self.values.keys().filter(|key| range.contains(key) && shard == Some(owner(key)));
                // One at a time, so that there are several steps.
                let keys: Vec<Bytes> = found.take(2).cloned().collect();
                let deleted = keys.first().and_then(|key| self.values.remove(key)).map_or(0, |_| 1);
                OperationResult::DeletedRange { deleted, next: keys.get(1).cloned() }
            }
            other => panic!("the interface never asks {other:?}"),
        });
        Outcome::Done(results.collect())
    }
}

impl Store for FakeStore {
    async fn execute(&self, context: Context, command: Command) -> Result<Outcome, ExecuteError> {
        loop {
            let released = self.1.notified();
            if !self.0.lock().unwrap().held {
                break;
            }
            released.await;
        }
        let mut state = self.0.lock().unwrap();
        state.asked.push((context.clone(), command.clone()));
        state.shard = context.shard;
        match state.answers.pop_front() {
            Some(answer) => answer,
            None => Ok(state.apply(&command, |key| self.map().owner(key))),
        }
    }

    async fn catch_up(&self, epoch: u64, _: Instant) {
        self.0.lock().unwrap().epochs.push(epoch);
    }

    fn epoch(&self) -> u64 {
        7
    }

    fn shards_with_keys(&self) -> Vec<ShardId> {
        vec![ShardId(1), ShardId(2)]
    }

    async fn status(&self) -> Result<NodeStatus, ExecuteError> {
        Ok(NodeStatus {
            cluster_id: "blue".into(),
            node_id: 1,
            version: "0",
            clock_off: false,
            disk_low: false,
            shards: vec![],
        })
    }

    async fn nodes(&self) -> Vec<PeerStatus> {
        let (http, peer) = ("localhost:8001".into(), "localhost:9001".into());
        vec![PeerStatus { id: 1, http, peer, resp: None, reachable: true, drained: false, lag: None }]
    }

    fn carp(&self) -> CarpView {
        self.map().carp_view(|_| Some(NodeId(1)))
    }

    fn explain(&self, key: &[u8]) -> Explained {
        Explained { explanation: self.map().explain(key), leader: Some(NodeId(1)) }
    }

    async fn change_map(
        &self,
        change: impl FnOnce(&ShardMap) -> Result<ShardMap, ChangeError> + Send,
    ) -> Result<ShardMap, MapError> {
        Ok(change(&self.map())?)
    }

    async fn cut(&self, shard: ShardId, time: u64) -> Result<CutBody, CutFailure> {
        let detail = format!("shard {shard} is past {time}");
        Err(CutFailure::Time { kind: ErrorKind::Conflict, detail, clock: 17 })
    }

    async fn scrub(&self, shard: Option<ShardId>) -> Result<Vec<ShardId>, ExecuteError> {
        Ok(vec![shard.unwrap_or(ShardId::FIRST_DATA)])
    }

    fn is_leader(&self, shard: ShardId) -> Option<bool> {
        (shard == ShardId::FIRST_DATA).then_some(true)
    }

    fn is_ready(&self) -> bool {
        !self.0.lock().unwrap().unready
    }
}

/// A server of its own for each test.
struct Server {
    store: FakeStore,
    metrics: Arc<Metrics>,
    address: SocketAddr,
    body_room: Arc<Semaphore>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The kind and detail of a well-formed problem.
    fn problem(&self) -> (String, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{:?}", self.body);
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(json["status"], self.status.as_u16());
        assert_eq!(json["type"], "about:blank");
        assert_eq!(json["title"], self.status.canonical_reason().unwrap());
        (json["kind"].as_str().unwrap().to_owned(), json["detail"].as_str().unwrap().to_owned())
    }
}

impl Server {
    async fn start() -> Server {
        Server::start_up_to(100).await
    }

    async fn start_up_to(connections_max: usize) -> Server {
        let bounds = Bounds { connections_max, ..Bounds::default() };
        Server::start_within(bounds, Duration::from_secs(30)).await
    }

    async fn start_within(bounds: Bounds, body_timeout: Duration) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (store, metrics) = (FakeStore::default(), Arc::new(Metrics::new()));
        let settings = Settings {
            limits: Limits { value_bytes_max: VALUE_BYTES_MAX, ..Limits::default() },
            timeout: Duration::from_secs(5),
            body_timeout,
            peer_address: "localhost:9001".into(),
            cluster_id: uuid::Uuid::from_u128(7),
            authorization: HeaderValue::from_static("Bearer sesame"),
        };
        let api = Api::new(store.clone(), settings, metrics.clone());
        let body_room = api.body_room.clone();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve_within(bounds, listener, api, async {
            stopped.await.ok();
        }));
        Server { store, metrics, address, body_room, stop: Some(stop), task }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = http::Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut requests, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let response = timeout(DEADLINE, requests.send_request(request)).await.unwrap().unwrap();
        let (head, body) = response.into_parts();
        let body = timeout(DEADLINE, body.collect()).await.unwrap().unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }

    async fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.send("PUT", path, &[], body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    /// Sends a body to the end before looking at the answer.
    async fn send_all(&self, body: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("PUT /kv/k HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        timeout(DEADLINE, stream.write_all(body)).await.unwrap().unwrap();
        let mut answer = vec![0; 4096];
        let length = timeout(DEADLINE, stream.read(&mut answer)).await.unwrap().unwrap();
        answer.truncate(length);
        answer
    }

    /// Sends bytes as they are, and returns what comes back first.
    async fn send_raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let length = timeout(DEADLINE, stream.read(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}

#[tokio::test]
async fn a_value_goes_in_and_comes_out() {
    let server = Server::start().await;
    let written = server.put("/kv/color/blue", b"").await;
    assert_eq!((written.status, &written.body[..]), (StatusCode::OK, &b"{\"version\":1}"[..]));
    assert_eq!(written.header("etag"), Some("\"1\""));
    assert_eq!(written.header("content-type"), Some("application/json"));

    let read = server.get("/kv/color").await;
    assert_eq!((read.status, &read.body[..]), (StatusCode::OK, &b"blue"[..]));
    assert_eq!(read.header("etag"), Some("\"1\""));
    assert_eq!(read.header("content-type"), Some("application/octet-stream"));

    let head = server.send("HEAD", "/kv/color", &[], b"").await;
    assert_eq!((head.status, &head.body[..]), (StatusCode::OK, &b""[..]));
    assert_eq!((head.header("content-length"), head.header("etag")), (Some("4"), Some("\"1\"")));

    for deleted in ["true", "false"] {
        let answer = server.send("DELETE", "/kv/color", &[], b"").await;
        assert_eq!(answer.body, format!("{{\"deleted\":{deleted}}}"));
    }
    let absent = server.get("/kv/color").await;
    assert_eq!((absent.status, absent.problem().0.as_str()), (StatusCode::NOT_FOUND, "not_found"));
}

#[tokio::test]
async fn a_put_may_say_when_its_key_is_gone_and_a_get_tells() {
    let server = Server::start().await;
    let expires = [("keevee-expires", "1800000000123")];
    assert_eq!(server.send("PUT", "/kv/k/v", &expires, b"").await.status, StatusCode::OK);
    for method in ["GET", "HEAD"] {
        let read = server.send(method, "/kv/k", &[], b"").await;
        assert_eq!(read.header("keevee-expires"), Some("1800000000123"), "{method}");
    }
    let unmodified = server.send("GET", "/kv/k", &[("if-none-match", "\"1\"")], b"").await;
    assert_eq!(unmodified.status, StatusCode::NOT_MODIFIED);
    assert_eq!(unmodified.header("keevee-expires"), Some("1800000000123"));
    server.put("/kv/k?ttl=30s", b"v").await;
    server.put("/kv/k", b"v").await;
    assert_eq!(server.get("/kv/k").await.header("keevee-expires"), None);
    let actions = server.store.asked().into_iter().map(|(_, command)| command.operations[0].action.clone());
    let puts = actions.filter_map(|action| match action {
        Action::Put { expires, .. } => Some(expires),
        _ => None,
    });
    let expected = [Expiry::At(1_800_000_000_123_000), Expiry::After(30_000_000), Expiry::Never];
    assert_eq!(puts.collect::<Vec<_>>(), expected);
    for (path, headers) in
        [("/kv/k?ttl=1s", &expires[..]), ("/kv/k", &[("keevee-expires", "tomorrow")]), ("/kv/k?ttl=0s", &[])]
    {
        assert_eq!(server.send("PUT", path, headers, b"v").await.status, StatusCode::BAD_REQUEST, "{path}");
    }
}

#[tokio::test]
async fn keys_and_values_are_bytes() {
    let server = Server::start().await;
    let all: Vec<u8> = (0..=255).collect();
    let encoded: String = all.iter().map(|byte| format!("%{byte:02X}")).collect();
    server.put(&format!("/kv/{encoded}"), &all).await;
    assert_eq!(server.get(&format!("/kv/{encoded}")).await.body, all);
    server.put(&format!("/kv/in-path/{encoded}"), b"").await;
    assert_eq!(server.get("/kv/in-path").await.body, all);
    for (path, key, value) in [
        ("/kv/k/", "k", ""),
        ("/kv/k//", "k", "/"),
        ("/kv/a%2Fb/c/d", "a/b", "c/d"),
        ("/kv/%2e%2E/../..", "..", "../.."),
        ("/kv/k?", "k", ""),
    ] {
        assert_eq!(server.put(path, b"").await.status, StatusCode::OK, "{path}");
        let (_, command) = server.store.asked().pop().unwrap();
        let put = Action::put(key.to_owned(), value.to_owned());
        assert_eq!(command.operations[0].action, put, "{path}");
    }
}

#[tokio::test]
async fn bad_input_is_refused_before_anything_is_proposed() {
    let server = Server::start().await;
    let long_key = format!("/kv/{}", "k".repeat(4097));
    let long_value = vec![0; VALUE_BYTES_MAX + 1];
    let long_order = vec![b' '; 3 << 20];
    let put = |path: &'static str| ("PUT", path, ("accept", "*/*"), &b""[..], 400, "invalid");
    let cases = [
        ("PUT", "/kv/", ("accept", "*/*"), &b"v"[..], 400, "invalid"),
        ("PUT", "/kv//v", ("accept", "*/*"), b"", 400, "invalid"),
        ("PUT", &long_key, ("accept", "*/*"), b"", 413, "too_large"),
        ("GET", &long_key, ("accept", "*/*"), b"", 413, "too_large"),
        ("PUT", "/kv/k", ("accept", "*/*"), &long_value, 413, "too_large"),
        ("POST", "/v1/cluster/shards", ("accept", "*/*"), &long_order, 413, "too_large"),
        ("POST", "/v1/cluster/nodes/2/drain", ("accept", "*/*"), &long_order, 413, "too_large"),
        ("PUT", "/kv/k/v", ("accept", "*/*"), b"v", 400, "invalid"),
        ("GET", "/kv/k/v", ("accept", "*/*"), b"", 400, "invalid"),
        ("DELETE", "/kv/k/", ("accept", "*/*"), b"", 400, "invalid"),
        ("GET", "/kv/%", ("accept", "*/*"), b"", 400, "invalid"),
        ("DELETE", "/kv/%f", ("accept", "*/*"), b"", 400, "invalid"),
        put("/kv/%zz"),
        put("/kv/k/%zz"),
        put("/kv/k?consistency=stale"),
        put("/kv/k?timeout=5"),
        ("GET", "/kv/k?consistency=eventual", ("accept", "*/*"), b"", 400, "invalid"),
        ("GET", "/kv/k?timeout_ms=0", ("accept", "*/*"), b"", 400, "invalid"),
        ("PUT", "/kv/k", ("if-match", "7"), b"", 400, "invalid"),
        ("PUT", "/kv/k", ("if-match", "W/\"7\""), b"", 400, "invalid"),
        ("PUT", "/kv/k", ("if-match", "\"7\", \"8\""), b"", 400, "invalid"),
        ("PUT", "/kv/k", ("if-none-match", "\"7\""), b"", 400, "invalid"),
        ("DELETE", "/kv/k", ("if-match", "\"x\""), b"", 400, "invalid"),
        ("GET", "/kv/k", ("if-match", "x"), b"", 400, "invalid"),
        ("PUT", "/kv/k", ("idempotency-key", ""), b"", 400, "invalid"),
        ("POST", "/kv/k", ("accept", "*/*"), b"", 405, "invalid"),
        ("PATCH", "/kv/k", ("accept", "*/*"), b"", 405, "invalid"),
        ("POST", "/healthz", ("accept", "*/*"), b"", 405, "invalid"),
        ("DELETE", "/v1/cluster/status", ("accept", "*/*"), b"", 405, "invalid"),
        ("GET", "/", ("accept", "*/*"), b"", 404, "not_found"),
        ("GET", "/kv", ("accept", "*/*"), b"", 404, "not_found"),
        ("PUT", "/%6bv/k", ("accept", "*/*"), b"", 404, "not_found"),
        ("GET", "/v1/cluster", ("accept", "*/*"), b"", 404, "not_found"),
        ("GET", "/is_leader?shard=9", ("accept", "*/*"), b"", 404, "not_found"),
        ("GET", "/is_leader?shard=x", ("accept", "*/*"), b"", 400, "invalid"),
        ("POST", "/heartbeat", ("accept", "*/*"), b"{}", 403, "invalid"),
        ("POST", "/paxos/read_index/reply", ("accept", "*/*"), b"{}", 403, "invalid"),
        ("POST", "/chain_hash", ("accept", "*/*"), b"{}", 403, "invalid"),
        ("POST", "/hello", ("accept", "*/*"), b"{}", 403, "invalid"),
        ("GET", "/forward", ("accept", "*/*"), b"", 403, "invalid"),
    ];
    for (method, path, header, body, status, kind) in cases {
        let answer = server.send(method, path, &[header], body).await;
        let (found, detail) = answer.problem();
        assert_eq!((answer.status.as_u16(), found.as_str()), (status, kind), "{method} {path} {header:?}");
        assert!(!detail.is_empty());
        if status == 403 {
            assert!(detail.contains("localhost:9001"), "{detail}");
        }
        if status == 405 {
            let expected = if path == "/kv/k" { "GET, HEAD, PUT, DELETE" } else { "GET, HEAD" };
            assert_eq!(answer.headers.get_all("allow").iter().collect::<Vec<_>>(), [expected]);
        }
    }
    assert!(server.store.asked().is_empty());
}

#[tokio::test]
async fn limits_are_checked_on_declared_and_streamed_bodies() {
    let server = Server::start().await;
    // Declared: answered without a byte of the body.
    let declared = server.send_raw("PUT /kv/k HTTP/1.1\r\nhost: h\r\ncontent-length: 100001\r\n\r\n").await;
    assert!(declared.starts_with("HTTP/1.1 413 "), "{declared}");
    // A client that only reads once it has sent everything still gets the answer.
    let huge = vec![0; 20 << 20];
    let answer = server.put("/kv/k", &huge).await;
    assert_eq!((answer.status.as_u16(), answer.problem().0.as_str()), (413, "too_large"));
    assert_eq!(server.send_all(&huge).await[..13], *b"HTTP/1.1 413 ");
    // Streamed: answered before the end.
    let chunk = format!("186a1\r\n{}\r\n", "v".repeat(100_001));
    let head = "PUT /kv/k HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    let streamed = server.send_raw(&format!("{head}{chunk}")).await;
    assert!(streamed.starts_with("HTTP/1.1 413 "), "{streamed}");
    let beside = "PUT /kv/k/v HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\nv\r\n";
    let answer = server.send_raw(beside).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(server.store.asked().is_empty());

    let whole = format!("{head}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert!(server.send_raw(&whole).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(server.get("/kv/k").await.body, "abcde");
    let largest = vec![7; VALUE_BYTES_MAX];
    assert_eq!(server.put("/kv/k", &largest).await.status, StatusCode::OK);
    assert_eq!(server.get("/kv/k").await.body, largest);
    assert_eq!(server.put(&format!("/kv/{}", "k".repeat(4096)), b"").await.status, StatusCode::OK);
}

#[tokio::test]
async fn headers_are_checked_before_the_body_is_read() {
    let server = Server::start().await;
    for keys in ["idempotency-key: \r\n", "idempotency-key: a\r\nidempotency-key: a\r\n"] {
        let head = format!("PUT /kv/k HTTP/1.1\r\nhost: h\r\n{keys}content-length: 5\r\n\r\n");
        let answer = server.send_raw(&head).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("idempotency-key"), "{answer}");
    }
}

#[tokio::test]
async fn bodies_have_bounded_room() {
    let server = Server::start().await;
    let all = server.body_room.available_permits();
    let rest = server.body_room.try_acquire_many(all as u32 - 10).unwrap();
    let chunked = "PUT /kv/k HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    let declared = "PUT /kv/k HTTP/1.1\r\nhost: h\r\ncontent-length: 11\r\n\r\n";
    for head in [chunked, declared] {
        let answer = server.send_raw(head).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");
        assert!(answer.contains("unavailable"), "{answer}");
    }
    let too_large = server.put("/kv/k", &vec![0; VALUE_BYTES_MAX + 1]).await;
    assert_eq!(too_large.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(server.put("/kv/k", b"ten bytes.").await.status, StatusCode::OK);
    assert_eq!(server.put("/kv/k/in-the-path", b"").await.status, StatusCode::OK);
    drop(rest);
    assert_eq!(server.put("/kv/k", b"and eleven.").await.status, StatusCode::OK);
    assert_eq!(server.body_room.available_permits(), all);
}

#[tokio::test]
async fn connections_past_the_bound_are_told_so_and_closed_at_once() {
    let server = Server::start_up_to(1).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    let mut buffer = [0; 4096];
    for _ in 0..2 {
        // The first goes on, whoever else comes.
        first.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        assert_ne!(timeout(DEADLINE, first.read(&mut buffer)).await.unwrap().unwrap(), 0);
        let mut second = TcpStream::connect(server.address).await.unwrap();
        let mut refusal = String::new();
        timeout(DEADLINE, second.read_to_string(&mut refusal)).await.unwrap().unwrap();
        let (head, text) = refusal.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 ") && text.contains("too many connections"), "{refusal}");
        assert!(head.contains(&format!("content-length: {}\r\n", text.len())), "{refusal}");
    }
}

#[tokio::test]
async fn writes_are_conditional() {
    let server = Server::start().await;
    server.put("/kv/k", b"one").await;
    let cases = [
        ("PUT", "if-none-match", "*", "k", 412),
        ("PUT", "if-none-match", "*", "new", 200),
        ("PUT", "if-match", "*", "absent", 412),
        ("DELETE", "if-match", "*", "absent", 412),
        ("PUT", "if-match", "\"9\"", "k", 412),
        ("DELETE", "if-match", "\"9\"", "k", 412),
        ("PUT", "if-match", "\"1\"", "k", 200),
        ("PUT", "if-match", "*", "k", 200),
        ("DELETE", "if-match", "*", "k", 200),
        ("DELETE", "if-none-match", "*", "k", 200),
    ];
    for (method, name, value, key, status) in cases {
        let answer = server.send(method, &format!("/kv/{key}"), &[(name, value)], b"").await;
        assert_eq!(answer.status.as_u16(), status, "{method} {key} {name}: {value}");
        if status == 412 {
            assert_eq!(answer.problem().0, "conflict");
            let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            let version = (key == "k").then_some(1);
            assert_eq!(json.get("version").and_then(serde_json::Value::as_u64), version);
        }
    }
}

#[tokio::test]
async fn reads_are_conditional() {
    let server = Server::start().await;
    server.put("/kv/k", b"one").await;
    for (name, value, status) in [
        ("if-none-match", "\"1\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"2\"", 200),
        ("if-match", "\"1\"", 200),
        ("if-match", "\"2\"", 412),
    ] {
        let answer = server.send("GET", "/kv/k", &[(name, value)], b"").await;
        assert_eq!(answer.status.as_u16(), status, "{name}: {value}");
        if status != 412 {
            assert_eq!(answer.header("etag"), Some("\"1\""));
        }
    }
}

#[tokio::test]
async fn what_the_caller_wants_reaches_the_store() {
    let server = Server::start().await;
    server.get("/kv/k?consistency=stale").await;
    server.get("/kv/k").await;
    server.send("PUT", "/kv/k?timeout_ms=60000", &[("idempotency-key", "once")], b"v").await;
    let asked = server.store.asked();
    assert_eq!(asked[0].0.consistency, Consistency::Stale);
    assert_eq!(asked[1].0.consistency, Consistency::Linearizable);
    assert!(asked[2].0.deadline > asked[1].0.deadline + Duration::from_secs(50));
    assert_eq!(asked[1].1.request_id, None);
    assert_eq!(asked[2].1.request_id, Some(RequestId::from_idempotency_key(b"once")));
}

#[tokio::test]
async fn every_refusal_has_its_status() {
    let server = Server::start().await;
    let error =
        |kind, retry_after| Err(ExecuteError { kind, detail: "so it is".into(), retry_after, hint: None });
    let brief = Some(Duration::from_millis(2001));
    for (answer, status, kind, retry_after) in [
        (error(ErrorKind::NotLeader, None), 421, "not_leader", None),
        (error(ErrorKind::WrongShard, None), 421, "wrong_shard", None),
        (error(ErrorKind::Unavailable, None), 503, "unavailable", Some("1")),
        (error(ErrorKind::Unavailable, brief), 503, "unavailable", Some("3")),
        (error(ErrorKind::OutcomeUnknown, None), 504, "outcome_unknown", None),
        (error(ErrorKind::Fatal, None), 500, "fatal", None),
        (Ok(Outcome::WrongShard), 421, "wrong_shard", None),
        (Ok(Outcome::RequestReused), 422, "request_reused", None),
        (Ok(Outcome::RequestExpired), 410, "request_expired", None),
        (Ok(Outcome::RequestMemoryFull), 503, "unavailable", Some("1")),
        (Ok(Outcome::Done(vec![])), 504, "outcome_unknown", None),
    ] {
        let label = format!("{answer:?}");
        server.store.answer_next(answer);
        let answer = server.put("/kv/k", b"v").await;
        assert_eq!((answer.status.as_u16(), answer.problem().0.as_str()), (status, kind), "{label}");
        assert_eq!(answer.header("retry-after"), retry_after, "{label}");
    }
}

#[tokio::test]
async fn the_node_tells_of_itself() {
    let server = Server::start().await;
    server.put("/kv/k", b"v").await;
    server.get("/kv/absent").await;
    for (path, part) in [
        ("/v1/cluster/status", "{\"cluster_id\":\"blue\",\"node_id\":1,"),
        ("/v1/cluster/nodes", "[{\"id\":1,\"http\":\"localhost:8001\",\"peer\":\"localhost:9001\","),
        ("/is_leader", "true"),
        ("/is_leader?shard=1", "true"),
        ("/healthz", "alive"),
        ("/readyz", "ready"),
        ("/metrics", "keevee_requests_total{operation=\"put\",protocol=\"http\",result=\"ok\"} 1\n"),
        ("/metrics", "keevee_requests_total{operation=\"get\",protocol=\"http\",result=\"not_found\"} 1\n"),
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let body = String::from_utf8(answer.body.into()).unwrap();
        assert!(body.contains(part), "{path}: {body}");
    }
    server.store.0.lock().unwrap().unready = true;
    let unready = server.get("/readyz").await;
    assert_eq!((unready.status, unready.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    assert_eq!(unready.problem().0, "unavailable");
    assert!(server.metrics.text().contains("keevee_request_seconds_count{operation=\"get\""));
}

#[tokio::test]
async fn the_router_serves_keys_too() {
    let store = FakeStore::default();
    let settings = Settings {
        limits: Limits::default(),
        timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(30),
        peer_address: "localhost:9001".into(),
        cluster_id: uuid::Uuid::from_u128(7),
        authorization: HeaderValue::from_static("Bearer sesame"),
    };
    let mut router = router(Api::new(store, settings, Arc::new(Metrics::new())));
    for (method, path, body) in [("PUT", "/kv/%FF%2F//", "{\"version\":1}"), ("GET", "/kv/%FF%2F", "/")] {
        let request = http::Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = tower_service::Service::call(&mut router, request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }
}

#[tokio::test]
async fn a_stopping_server_answers_what_is_in_flight() {
    let mut server = Server::start().await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut buffer = [0; 4096];
    assert_ne!(timeout(DEADLINE, idle.read(&mut buffer)).await.unwrap().unwrap(), 0);

    server.store.0.lock().unwrap().held = true;
    let mut busy = TcpStream::connect(server.address).await.unwrap();
    busy.write_all(b"PUT /kv/k/v HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    // The listener is served in order: once this is answered, the request above has its connection.
    server.get("/healthz").await;
    server.stop.take().unwrap().send(()).unwrap();
    // An idle connection ends at once.
    assert_eq!(timeout(DEADLINE, idle.read(&mut buffer)).await.unwrap().unwrap(), 0);
    assert!(!server.task.is_finished());

    server.store.0.lock().unwrap().held = false;
    server.store.1.notify_waiters();
    let mut answer = String::new();
    timeout(DEADLINE, busy.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("{\"version\":1}"), "{answer}");
    timeout(DEADLINE, server.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn the_shard_map_is_shown_and_explained() {
    let server = Server::start().await;
    let get = async |path: &str| {
        let answer = server.send("GET", path, &[], b"").await;
        (answer.status, serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap())
    };
    let (status, carp) = get("/v1/cluster/carp").await;
    assert_eq!((status, &carp["epoch"]), (StatusCode::OK, &serde_json::json!(1)));
    assert_eq!(carp["shards"][1]["engine"], "paxos");
    let (_, shards) = get("/v1/cluster/shards").await;
    let slots: Vec<u64> =
        shards.as_array().unwrap().iter().map(|shard| shard["slots"].as_u64().unwrap()).collect();
    assert_eq!(slots, [0, 8192, 8192]);
    // Any bytes are a key.
    let (_, explained) = get("/v1/explain?key=%ff%00{x}").await;
    assert_eq!(explained["slot"], u64::from(keevee_core::slots::slot(b"x").0));
    assert_eq!(explained["leader"], 1);
    for path in ["/v1/explain", "/v1/explain?key="] {
        let (status, problem) = get(path).await;
        assert_eq!((status, &problem["kind"]), (StatusCode::BAD_REQUEST, &serde_json::json!("invalid")));
    }
    assert_eq!(get(&format!("/v1/explain?key={}", "k".repeat(4097))).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn shards_are_added_without_slots_and_nodes_with_the_secret() {
    let server = Server::start().await;
    let post = async |path: &str, headers: &[(&str, &str)], body: &str| {
        let answer = server.send("POST", path, headers, body.as_bytes()).await;
        (answer.status.as_u16(), String::from_utf8_lossy(&answer.body).into_owned())
    };
    let shards = "/v1/cluster/shards";
    let (status, added) = post(shards, &[], r#"{"name": "late", "engine": "raft"}"#).await;
    assert!(status == 201 && added.contains(r#""id":3,"name":"late","load_factor":0"#), "{added}");
    for (body, named) in [
        ("", "JSON"),
        (r#"{"nam": "x"}"#, "nam"),
        (r#"{"name": "shard-1"}"#, "choose another name"),
        (r#"{"load_factor": 1}"#, "not possible yet"),
        (r#"{"members": [9]}"#, "node 9"),
        (r#"{"members": [1], "replicas": 1}"#, "not both"),
    ] {
        let (status, problem) = post(shards, &[], body).await;
        assert!(status == 400 && problem.contains(named), "{body}: {problem}");
    }
    let node = |cluster: u128| {
        let (cluster, store) = (uuid::Uuid::from_u128(cluster), uuid::Uuid::from_u128(2));
        format!(r#"{{"cluster_id":"{cluster}","id":2,"store_id":"{store}","http":"h:1","peer":"p:1"}}"#)
    };
    let nodes = "/v1/cluster/nodes";
    let right = [("authorization", "Bearer sesame")];
    assert_eq!(post(nodes, &[], &node(7)).await.0, 403);
    assert_eq!(post(nodes, &[("authorization", "Bearer wrong")], &node(7)).await.0, 403);
    assert_eq!(post(nodes, &right, &node(8)).await.0, 400, "another cluster's");
    for address in ["h:1", "p:1"] {
        let another_name = node(7).replace(address, "127.0.0.1:8001");
        let (status, problem) = post(nodes, &right, &another_name).await;
        assert!(status == 400 && problem.contains("leads to node 1"), "{problem}");
    }
    let answer = server.send("POST", nodes, &right, node(7).as_bytes()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let map = keevee_core::shard_map::codec::decode(answer.body).unwrap();
    assert_eq!((map.epoch, map.nodes.len()), (2, 2));
}

#[tokio::test]
async fn who_routes_by_itself_is_told_where_to_go() {
    let server = Server::start().await;
    let hint = crate::node::Hint { shard: 2, epoch: 5, leader: Some(3), address: Some("h:3".into()) };
    server.store.answer_next(Err(ExecuteError {
        kind: ErrorKind::NotLeader,
        detail: "node 3 leads".into(),
        retry_after: None,
        hint: Some(Box::new(hint)),
    }));
    let answer = server.send("GET", "/kv/a", &[("keevee-redirect", "1")], b"").await;
    assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST);
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(problem["hint"], serde_json::json!({"shard": 2, "epoch": 5, "leader": 3, "address": "h:3"}));
    server.send("GET", "/kv/a", &[], b"").await;
    let redirects: Vec<bool> = server.store.asked().iter().map(|(context, _)| context.redirect).collect();
    assert_eq!(redirects, [true, false]);
    assert_eq!(server.send("GET", "/kv/a", &[("keevee-redirect", "yes")], b"").await.status, 400);
}

#[tokio::test]
async fn a_cut_names_its_shard_and_its_time_and_a_refusal_tells_the_clock() {
    let server = Server::start().await;
    let post = async |path: &str| {
        let answer = server.send("POST", path, &[], b"").await;
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        (answer.status.as_u16(), problem)
    };
    let (status, problem) = post("/v1/cluster/cut?shard=2&time=5").await;
    assert_eq!((status, &problem["clock"]), (412, &serde_json::json!(17)));
    assert_eq!(problem["detail"], "shard 2 is past 5");
    for query in ["", "?shard=2", "?time=5", "?shard=x&time=5", "?shard=2&time=-5", "?shard=2&time=5&to=x"] {
        assert_eq!(post(&format!("/v1/cluster/cut{query}")).await.0, 400, "{query}");
    }
    assert_eq!(server.get("/v1/cluster/cut?shard=2&time=5").await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_scrub_is_of_one_shard_or_of_all_and_tells_which_it_begins() {
    let server = Server::start().await;
    let post = async |path: &str| {
        let answer = server.send("POST", path, &[], b"").await;
        (answer.status.as_u16(), serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap())
    };
    assert_eq!(post("/v1/cluster/scrub").await, (202, serde_json::json!({"shards": [1]})));
    assert_eq!(post("/v1/cluster/scrub?shard=0").await, (202, serde_json::json!({"shards": [0]})));
    let (status, problem) = post("/v1/cluster/scrub?shard=99").await;
    assert_eq!((status, &problem["kind"]), (404, &serde_json::json!("not_found")));
    for query in ["?shard=x", "?shard=1&shard=2", "?time=5"] {
        assert_eq!(post(&format!("/v1/cluster/scrub{query}")).await.0, 400, "{query}");
    }
    assert_eq!(server.get("/v1/cluster/scrub").await.status, StatusCode::METHOD_NOT_ALLOWED);
}
