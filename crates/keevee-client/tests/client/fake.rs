//! Nodes of a cluster that is none: each speaks the contract (the shard map over HTTP, `Pipeline` over gRPC) and does
//! with each request what its test says.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use keevee_client::{Client, Endpoint, Options};
use keevee_core::error::ErrorKind;
use keevee_core::kv::{self, request, response};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// How long a condition may take to come true.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What a node does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Answer(response::Result),
    /// Answers once a later request was answered.
    AnswerAfterNext(response::Result),
    /// Closes the connection.
    Break,
    /// Ends the stream as a server does, with this kind.
    End(ErrorKind),
    /// Never answers.
    Hang,
    /// Sends these bytes as they are.
    Raw(Bytes),
}

type Behaviour = dyn Fn(usize, &kv::Request) -> Step + Send + Sync;

/// A node. Its sockets close when it is dropped.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) endpoint: Endpoint,
    shared: Arc<Shared>,
    accepts: JoinHandle<()>,
}

struct Shared {
    behaviour: Mutex<Arc<Behaviour>>,
    /// The answer to a question for the map; 404 without one.
    carp: Mutex<Option<String>>,
    carp_asked: AtomicUsize,
    requests: Mutex<Vec<kv::Request>>,
    streams: AtomicUsize,
    open_streams: AtomicUsize,
    asked_to_redirect: Mutex<HashSet<bool>>,
    dies: Notify,
}

impl Node {
    /// A node that tells no map.
    pub(crate) async fn start(
        behaviour: impl Fn(usize, &kv::Request) -> Step + Send + Sync + 'static,
    ) -> Node {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = listener.local_addr().expect("an address").to_string().parse().expect("an endpoint");
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(Arc::new(behaviour)),
            carp: Mutex::new(None),
            carp_asked: AtomicUsize::new(0),
            requests: Mutex::default(),
            streams: AtomicUsize::new(0),
            open_streams: AtomicUsize::new(0),
            asked_to_redirect: Mutex::default(),
            dies: Notify::new(),
        });
        let accepts = tokio::spawn(accept(listener, shared.clone()));
        Node { id: IDS.fetch_add(1, Ordering::Relaxed), endpoint, shared, accepts }
    }

    /// A node that takes one step for each request, and the last one again and again.
    pub(crate) async fn with_steps(steps: impl Into<Vec<Step>>) -> Node {
        let steps = steps.into();
        Node::start(move |number, _| steps[number.min(steps.len() - 1)].clone()).await
    }

    /// An endpoint where nobody listens.
    pub(crate) async fn gone() -> Node {
        let node = Node::with_steps([Step::Hang]).await;
        node.die().await;
        node
    }

    pub(crate) fn does(&self, behaviour: impl Fn(usize, &kv::Request) -> Step + Send + Sync + 'static) {
        *self.shared.behaviour.lock().expect("no panic") = Arc::new(behaviour);
    }

    pub(crate) fn tells(&self, carp: &str) {
        *self.shared.carp.lock().expect("no panic") = Some(carp.to_owned());
    }

    /// How often it was asked for the map.
    pub(crate) fn carp_asked(&self) -> usize {
        self.shared.carp_asked.load(Ordering::SeqCst)
    }

    /// How many streams were opened to it.
    pub(crate) fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::SeqCst)
    }

    /// How many of them are open.
    pub(crate) fn open_streams(&self) -> usize {
        self.shared.open_streams.load(Ordering::SeqCst)
    }

    /// Whether streams asked to be redirected: what all of them said.
    pub(crate) fn asked_to_redirect(&self) -> Vec<bool> {
        self.shared.asked_to_redirect.lock().expect("no panic").iter().copied().collect()
    }

    pub(crate) fn requests(&self) -> Vec<kv::Request> {
        self.shared.requests.lock().expect("no panic").clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.shared.requests.lock().expect("no panic").len()
    }

    /// The request ids of all requests.
    pub(crate) fn ids(&self) -> Vec<String> {
        let id = |request: &kv::Request| {
            let id = match request.operation.as_ref().expect("an operation") {
                request::Operation::Put(put) => put.idempotency_key.clone(),
                request::Operation::Delete(delete) => delete.idempotency_key.clone(),
                request::Operation::Execute(execute) => execute.idempotency_key.clone(),
                request::Operation::Get(_) => None,
            };
            String::from_utf8(id.unwrap_or_default().to_vec()).expect("text")
        };
        self.requests().iter().map(id).collect()
    }

    /// Closes everything, and listens no more.
    pub(crate) async fn die(&self) {
        self.accepts.abort();
        self.shared.dies.notify_waiters();
        // The listener is closed once its task is gone.
        until(|| self.accepts.is_finished()).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.accepts.abort();
        self.shared.dies.notify_waiters();
    }
}

/// Waits for a condition.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("it comes true in time");
}

/// Patient enough for what takes a few attempts.
pub(crate) fn options() -> Options {
    Options {
        timeout: Duration::from_secs(2),
        attempt_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(1),
    }
}

pub(crate) fn client(nodes: &[&Node]) -> Client {
    client_with(nodes, options())
}

/// A client that gives up only when the test is lost anyway.
pub(crate) fn patient(nodes: &[&Node]) -> Client {
    client_with(nodes, Options { timeout: DEADLINE, attempt_timeout: DEADLINE, ..options() })
}

pub(crate) fn client_with(nodes: &[&Node], options: Options) -> Client {
    Client::new(nodes.iter().map(|node| node.endpoint.clone()).collect(), options).expect("endpoints")
}

/// A shard of a fake map: its id, its members with the preferred leader first, and who leads.
pub(crate) type Shard<'a> = (u32, &'a [&'a Node], Option<&'a Node>);

/// A map in which each of these shards owns the slots up to its bound.
pub(crate) fn carp(epoch: u64, shards: &[Shard<'_>], bounds: &[(u16, u32)]) -> String {
    let mut nodes: Vec<(u64, &Endpoint)> = shards
        .iter()
        .flat_map(|(_, members, _)| members.iter().map(|node| (node.id, &node.endpoint)))
        .collect();
    nodes.sort_by_key(|(id, _)| *id);
    nodes.dedup_by_key(|(id, _)| *id);
    let nodes: Vec<_> = nodes
        .iter()
        .map(|(id, endpoint)| serde_json::json!({"id": id, "http": endpoint.authority()}))
        .collect();
    let shards: Vec<_> = shards
        .iter()
        .map(|(id, members, leader)| {
            let members: Vec<u64> = members.iter().map(|node| node.id).collect();
            serde_json::json!({
                "id": id, "name": format!("shard-{id}"), "load_factor": 1, "multiplier": 1.0, "engine": "paxos",
                "members": members, "leader": leader.map(|node| node.id),
            })
        })
        .collect();
    let mut first = 0;
    let mut slots = Vec::new();
    for (last, shard) in bounds {
        slots.push((first, *last, *shard));
        first = last + 1;
    }
    let map = serde_json::json!({
        "epoch": epoch, "ttl_seconds": 60, "shards": shards, "nodes": nodes, "slots": slots,
    });
    map.to_string()
}

/// A key of the slots up to 8191, and one of those above.
pub(crate) const LOW: &[u8] = b"bar";
pub(crate) const HIGH: &[u8] = b"foo";
/// Shard 1 owns the low half of the slots, shard 2 the other one.
pub(crate) const HALVES: &[(u16, u32)] = &[(8191, 1), (16383, 2)];
pub(crate) const ALL_IN_1: &[(u16, u32)] = &[(16383, 1)];

pub(crate) fn written(version: u64) -> Step {
    Step::Answer(response::Result::Put(kv::PutResponse { version }))
}

pub(crate) fn found(version: u64, value: impl Into<Bytes>) -> Step {
    let value = value.into();
    Step::Answer(response::Result::Get(kv::GetResponse { version, value, ..kv::GetResponse::default() }))
}

pub(crate) fn fails(kind: ErrorKind) -> Step {
    let kind = kv::ErrorKind::from(kind).into();
    fails_with(kv::Error { kind, detail: "as the test says".to_owned(), ..kv::Error::default() })
}

pub(crate) fn fails_with(error: kv::Error) -> Step {
    Step::Answer(response::Result::Error(error))
}

/// A refusal that names where to go.
pub(crate) fn redirects(kind: ErrorKind, shard: u32, epoch: u64, leader: Option<&Node>) -> Step {
    let hint = kv::Hint {
        shard,
        epoch,
        leader: leader.map_or(0, |node| node.id),
        address: leader.map_or(String::new(), |node| node.endpoint.authority().to_owned()),
    };
    let kind = kv::ErrorKind::from(kind).into();
    fails_with(kv::Error { kind, hint: Some(Box::new(hint)), ..kv::Error::default() })
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let breaks = Arc::new(Notify::new());
            let service = service_fn(|request| respond(shared.clone(), breaks.clone(), request));
            let builder = auto::Builder::new(TokioExecutor::new());
            tokio::select! {
                _ = builder.serve_connection(TokioIo::new(socket), service) => {}
                () = breaks.notified() => {}
                () = shared.dies.notified() => {}
            }
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn respond(
    shared: Arc<Shared>,
    breaks: Arc<Notify>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let mut response = match request.uri().path() {
        "/keevee.v1.Kv/Pipeline" => {
            shared.streams.fetch_add(1, Ordering::SeqCst);
            shared.open_streams.fetch_add(1, Ordering::SeqCst);
            let asks = request.headers().get("keevee-redirect").is_some_and(|value| value == "1");
            shared.asked_to_redirect.lock().expect("no panic").insert(asks);
            let (frames, written) = mpsc::channel(16);
            tokio::spawn(async move {
                pipeline(&shared, breaks, request.into_body(), frames).await;
                shared.open_streams.fetch_sub(1, Ordering::SeqCst);
            });
            let frames = tokio_stream::wrappers::ReceiverStream::new(written);
            Response::new(StreamBody::new(frames).boxed())
        }
        "/v1/cluster/carp" => {
            shared.carp_asked.fetch_add(1, Ordering::SeqCst);
            let carp = shared.carp.lock().expect("no panic").clone();
            let mut response = Response::new(Full::from(carp.clone().unwrap_or_default()).boxed());
            if carp.is_none() {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            response
        }
        _ => Response::new(Full::default().boxed()),
    };
    // All fakes live in the same past.
    let date = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
    response.headers_mut().insert("date", date);
    Ok(response)
}

async fn pipeline(
    shared: &Shared,
    breaks: Arc<Notify>,
    mut body: Incoming,
    frames: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
) {
    let (mut buffer, mut held) = (BytesMut::new(), Vec::new());
    loop {
        while let Some(request) = take_request(&mut buffer) {
            let number = {
                let mut requests = shared.requests.lock().expect("no panic");
                requests.push(request.clone());
                requests.len() - 1
            };
            let behaviour = shared.behaviour.lock().expect("no panic").clone();
            let answer =
                |result| framed(&kv::Response { sequence: request.sequence, result: Some(result), epoch: 0 });
            let bytes = match behaviour(number, &request) {
                Step::Answer(result) => {
                    let mut bytes = answer(result);
                    held.drain(..).for_each(|held: BytesMut| bytes.unsplit(held));
                    bytes.freeze()
                }
                Step::AnswerAfterNext(result) => {
                    held.push(answer(result));
                    continue;
                }
                Step::Break => return breaks.notify_one(),
                Step::End(kind) => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("13"));
                    trailers.insert("keevee-kind", HeaderValue::from_static(kind.name()));
                    let _ = frames.send(Ok(Frame::trailers(trailers))).await;
                    return;
                }
                Step::Hang => continue,
                Step::Raw(bytes) => bytes,
            };
            if frames.send(Ok(Frame::data(bytes))).await.is_err() {
                return;
            }
        }
        match body.frame().await {
            Some(Ok(frame)) => buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            _ => return,
        }
    }
}

fn take_request(buffer: &mut BytesMut) -> Option<kv::Request> {
    let length = buffer.get(1..5)?.get_u32() as usize;
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5);
    Some(kv::Request::decode(buffer.split_to(length)).expect("a request"))
}

pub(crate) fn framed(message: &impl Message) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).expect("room");
    bytes
}
