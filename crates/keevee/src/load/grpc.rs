//! Unary gRPC calls for measuring: `Put`, `Get` and `Delete` of keevee, or of etcd's `KV` service.
//!
//! Both services have a key in field 1 and a put's value in field 2, so the messages are written by hand: what a
//! request costs here is what HTTP/2 costs. Answers are not looked into beyond their status.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Method, Request, Uri, Version};
use keevee_client::{Endpoint, ErrorKind};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::connection::{Answer, Operation};
use super::wire::invalid;
use super::workload::{Kind, Protocol, Workload};

/// Bytes of answers that may be on their way.
const WINDOW_BYTES: u32 = 4 << 20;
/// gRPC's status of what is not there.
const NOT_FOUND: &str = "5";

/// A connection, and the calls on it.
pub(crate) struct Calls {
    requests: SendRequest<Bytes>,
    driver: JoinHandle<()>,
    workload: Arc<Workload>,
    uris: [Uri; 3],
    /// Where messages are written; what was sent is used again.
    buffer: BytesMut,
    added: Vec<(Kind, Bytes)>,
    under_way: VecDeque<ResponseFuture>,
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Calls {
    pub(super) async fn open(endpoint: &Endpoint, workload: Arc<Workload>) -> io::Result<Calls> {
        let (requests, driver) = connect(endpoint).await?;
        let methods = match workload.protocol {
            Protocol::Etcd => ["etcdserverpb.KV/Range", "etcdserverpb.KV/Put", "etcdserverpb.KV/DeleteRange"],
            _ => ["keevee.v1.Kv/Get", "keevee.v1.Kv/Put", "keevee.v1.Kv/Delete"],
        };
        Ok(Calls {
            requests,
            driver,
            workload,
            uris: methods.map(|method| uri(endpoint, method)),
            buffer: BytesMut::new(),
            added: Vec::new(),
            under_way: VecDeque::new(),
        })
    }

    pub(super) fn add(&mut self, operation: &Operation<'_>) {
        let Operation { kind, key, value } = *operation;
        let Workload { protocol, stale, request_ids, .. } = *self.workload;
        let buffer = &mut self.buffer;
        buffer.reserve(HEADER_BYTES + key.len() + value.len() + 64);
        buffer.put_bytes(0, HEADER_BYTES);
        put_field(buffer, 1, key.as_bytes());
        match (kind, protocol) {
            (Kind::Put, _) => put_field(buffer, 2, value),
            // `serializable`, field 7, is true.
            (Kind::Get, Protocol::Etcd) if stale => buffer.put_slice(&[7 << 3, 1]),
            // `consistency`, field 2, is CONSISTENCY_STALE.
            (Kind::Get, _) if stale => buffer.put_slice(&[2 << 3, 2]),
            _ => {}
        }
        if request_ids && kind != Kind::Get {
            let tag = if kind == Kind::Put { 4 } else { 3 };
            put_field(buffer, tag, Uuid::now_v7().to_string().as_bytes());
        }
        self.added.push((kind, finish(buffer)));
    }

    pub(super) async fn send(&mut self) -> io::Result<()> {
        for (kind, message) in self.added.drain(..) {
            let uri = &self.uris[kind as usize];
            self.under_way.push_back(call(&mut self.requests, uri, message).await?);
        }
        Ok(())
    }

    pub(super) async fn answer(&mut self, kind: Kind) -> io::Result<Answer> {
        let call = self.under_way.pop_front().ok_or_else(|| invalid("no call is under way"))?;
        let end = read(call, |_| {}).await?;
        let text = |name: &str| end.get(name).and_then(|value| value.to_str().ok());
        match (text("grpc-status"), text("keevee-kind")) {
            (Some("0"), _) => Ok(Ok(())),
            (Some(NOT_FOUND), _) if kind == Kind::Get => Ok(Ok(())),
            (_, Some(kind)) => {
                Ok(Err(ErrorKind::from_name(kind).map_or("not keevee's answer", ErrorKind::name).to_owned()))
            }
            (Some(status), None) => Ok(Err(format!("gRPC status {status}"))),
            (None, None) => Ok(Err("no gRPC status".to_owned())),
        }
    }
}

/// Whether one byte says that a message is compressed, and four its length.
const HEADER_BYTES: usize = 5;

/// Asks once and returns the message that comes: for what is not measured.
pub(crate) async fn ask(endpoint: &Endpoint, method: &str) -> io::Result<Vec<u8>> {
    let (mut requests, driver) = connect(endpoint).await?;
    let call = call(&mut requests, &uri(endpoint, method), Bytes::from_static(&[0; HEADER_BYTES])).await?;
    let mut answer = Vec::new();
    let end = read(call, |data| answer.extend_from_slice(data)).await;
    driver.abort();
    let is_done = end?.get("grpc-status").is_some_and(|status| status == "0");
    if !is_done || answer.len() < HEADER_BYTES {
        return Err(invalid("the call failed"));
    }
    Ok(answer.split_off(HEADER_BYTES))
}

async fn connect(endpoint: &Endpoint) -> io::Result<(SendRequest<Bytes>, JoinHandle<()>)> {
    let stream = TcpStream::connect(endpoint.authority()).await?;
    stream.set_nodelay(true)?;
    let mut builder = client::Builder::new();
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let (requests, connection) = builder.handshake(stream).await.map_err(other)?;
    // How it ended, the calls on it say.
    let driver = tokio::task::spawn(async move { connection.await.unwrap_or(()) });
    Ok((requests, driver))
}

fn uri(endpoint: &Endpoint, method: &str) -> Uri {
    format!("{endpoint}/{method}").parse().expect("an endpoint and a name are a URI")
}

async fn call(requests: &mut SendRequest<Bytes>, uri: &Uri, message: Bytes) -> io::Result<ResponseFuture> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.clone();
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    headers.insert(TE, http::HeaderValue::from_static("trailers"));
    std::future::poll_fn(|context| requests.poll_ready(context)).await.map_err(other)?;
    let (response, mut body): (ResponseFuture, SendStream<Bytes>) =
        requests.send_request(request, false).map_err(other)?;
    body.send_data(message, true).map_err(other)?;
    Ok(response)
}

/// Reads an answer to its end: the headers that its status is among.
async fn read(call: ResponseFuture, mut on_data: impl FnMut(&[u8])) -> io::Result<HeaderMap> {
    let (head, mut body): (_, RecvStream) = call.await.map_err(other)?.into_parts();
    while let Some(data) = body.data().await {
        let data = data.map_err(other)?;
        on_data(&data);
        body.flow_control().release_capacity(data.len()).map_err(other)?;
    }
    let trailers = body.trailers().await.map_err(other)?;
    Ok(trailers.unwrap_or(head.headers))
}

/// Appends a field of bytes: its tag (up to 15), length, and content.
fn put_field(buffer: &mut BytesMut, tag: u8, bytes: &[u8]) {
    buffer.put_u8(tag << 3 | 2);
    prost::encoding::encode_varint(bytes.len() as u64, buffer);
    buffer.put_slice(bytes);
}

/// Takes the message, whose header is room that was left, with its header.
fn finish(buffer: &mut BytesMut) -> Bytes {
    let length = (buffer.len() - HEADER_BYTES) as u32;
    buffer[1..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
    buffer.split().freeze()
}

fn other(error: h2::Error) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use keevee_core::kv;
    use prost::Message;

    use super::*;

    #[test]
    fn messages_are_what_the_service_takes() {
        let mut buffer = BytesMut::new();
        for length in [1, 128, 70_000] {
            let value = vec![b'x'; length];
            buffer.put_bytes(0, HEADER_BYTES);
            put_field(&mut buffer, 1, b"key");
            put_field(&mut buffer, 2, &value);
            let bytes = finish(&mut buffer);
            assert_eq!(bytes[1..HEADER_BYTES], ((bytes.len() - HEADER_BYTES) as u32).to_be_bytes());
            let put = kv::PutRequest::decode(bytes.slice(HEADER_BYTES..)).expect("a put");
            assert_eq!((&put.key[..], &put.value[..]), (&b"key"[..], &value[..]));
        }
    }
}
