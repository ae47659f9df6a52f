//! The interface over real sockets, by generated clients, above a store in memory that means what the core says.

mod bounds;
mod calls;
mod health;
mod pipeline;
mod store;

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keevee_core::error::ErrorKind;
use keevee_core::kv;
use keevee_core::limits::Limits;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use self::client::kv_client::KvClient;
use self::store::CoreStore;
use super::*;
use crate::http::Settings;
use crate::http::server::{Bounds, serve_within};
use crate::metrics::Metrics;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod client {
    include!(concat!(env!("OUT_DIR"), "/keevee.v1.rs"));
}

const DEADLINE: Duration = Duration::from_secs(20);
const VALUE_BYTES_MAX: usize = 100_000;

/// A server of its own for each test.
struct Server {
    store: CoreStore,
    metrics: Arc<Metrics>,
    address: SocketAddr,
    api: Api<CoreStore>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// What a call by hand is answered.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    trailers: HeaderMap,
    body: Bytes,
}

impl Server {
    async fn start() -> Server {
        Server::start_within(Bounds::default()).await
    }

    async fn start_within(bounds: Bounds) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (store, metrics) = (CoreStore::default(), Arc::new(Metrics::new()));
        let settings = Settings {
            limits: Limits { value_bytes_max: VALUE_BYTES_MAX, ..Limits::default() },
            timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(30),
            peer_address: "localhost:9001".into(),
            cluster_id: uuid::Uuid::from_u128(7),
            authorization: HeaderValue::from_static("Bearer sesame"),
        };
        let api = Api::new(store.clone(), settings, metrics.clone());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve_within(bounds, listener, api.clone(), async {
            stopped.await.ok();
        }));
        Server { store, metrics, address, api, stop: Some(stop), task }
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await)
    }

    /// Sends a call as it is, without a client's help.
    async fn call(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut request = http::Request::builder().method("POST").uri(format!("http://localhost{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Full::new(Bytes::from(body))).unwrap()).await
    }

    async fn send<B>(&self, request: Request<B>) -> Answer
    where
        B: hyper::body::Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut requests, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let response = within(requests.send_request(request)).await.unwrap();
        let (head, body) = response.into_parts();
        let collected = within(body.collect()).await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Answer { status: head.status, headers: head.headers, trailers, body: collected.to_bytes() }
    }
}

impl Answer {
    /// The code and kind of a call that failed.
    fn failure(&self) -> (Code, ErrorKind) {
        let fields = if self.headers.contains_key("grpc-status") { &self.headers } else { &self.trailers };
        let status = tonic::Status::from_header_map(fields).expect("a status");
        (status.code(), kind(&status))
    }
}

/// The result, if it comes in time.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("it comes in time")
}

/// Waits for a condition.
async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn framed(message: &impl Message) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    messages::write(message, &mut bytes);
    bytes.into()
}

fn put(key: &str, value: &str) -> kv::PutRequest {
    kv::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..kv::PutRequest::default() }
}

fn get(key: &str) -> kv::GetRequest {
    kv::GetRequest { key: key.to_owned().into(), ..kv::GetRequest::default() }
}

fn delete(key: &str) -> kv::DeleteRequest {
    kv::DeleteRequest { key: key.to_owned().into(), ..kv::DeleteRequest::default() }
}

/// The kind that a failed call names, in both of its places.
fn kind(status: &tonic::Status) -> ErrorKind {
    let name = status.metadata().get("keevee-kind").expect("a kind").to_str().unwrap();
    let kind = ErrorKind::from_name(name).expect("a known kind");
    let error = error(status);
    assert_eq!(error.kind(), kv::ErrorKind::from(kind));
    assert_eq!(error.detail, status.message());
    assert!(!error.detail.is_empty());
    kind
}

fn error(status: &tonic::Status) -> kv::Error {
    let bytes = status.metadata().get_bin("keevee-error-bin").expect("an error").to_bytes().unwrap();
    kv::Error::decode(bytes).unwrap()
}
