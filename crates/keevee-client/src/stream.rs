//! The task of one stream: connects, sends what the link has, hands answers to the link, and says how it ended.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keevee_core::error::ErrorKind;
use keevee_core::kv;
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::connection::describe;
use crate::frames::{self, Reader};
use crate::link::Shared;

const METHOD: &str = "/keevee.v1.Kv/Pipeline";
/// A node that gets this answers rather than forward what it does not lead.
const REDIRECT: &str = "keevee-redirect";

/// Bytes of answers that may wait to be read: enough for full speed on a local network.
const WINDOW_BYTES: u32 = 4 << 20;
/// A connection on which nothing came for so long is pinged…
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// …and closed without an answer in this time.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// How a stream ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) kind: EndKind,
    pub(crate) cause: String,
}

/// What its end means for requests that were written and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndKind {
    /// They may have been carried out.
    Broken,
    /// The node said that they were not begun.
    NotBegun,
    /// The same, and one of them is the reason.
    TooLarge,
}

impl End {
    fn broken(cause: impl Into<String>) -> End {
        End { kind: EndKind::Broken, cause: cause.into() }
    }

    fn by_node(trailers: &HeaderMap) -> End {
        let (kind, cause) = frames::end_of_stream(trailers);
        let kind = match kind {
            Some(ErrorKind::Invalid | ErrorKind::Unavailable) => EndKind::NotBegun,
            Some(ErrorKind::TooLarge) => EndKind::TooLarge,
            _ => EndKind::Broken,
        };
        End { kind, cause }
    }
}

/// Tells the link how the stream ended, even if its task is dropped with its runtime.
struct Ending {
    shared: Arc<Shared>,
    stream: u64,
    end: End,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.shared.ended(self.stream, &self.end);
    }
}

/// Ends the connection's task with the stream's.
struct Driver(JoinHandle<Result<(), hyper::Error>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves a link until its stream ends.
pub(crate) async fn run(shared: Arc<Shared>, stream: u64) {
    let mut ending = Ending { shared, stream, end: End::broken("the stream's task was stopped") };
    ending.end = converse(&ending.shared, stream).await;
}

async fn converse(shared: &Arc<Shared>, stream: u64) -> End {
    let (mut requests, _driver) = match timeout(shared.connect_timeout, connect(shared)).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(cause)) => return End::broken(cause),
        Err(_) => return End::broken(format!("no connection within {:?}", shared.connect_timeout)),
    };
    let body = Requests { shared: shared.clone(), stream };
    let request = match pipeline(shared, body) {
        Ok(request) => request,
        Err(error) => return End::broken(error.to_string()),
    };
    match requests.send_request(request).await {
        Ok(response) => read(shared, response).await,
        Err(error) => End::broken(describe(&error)),
    }
}

async fn connect(shared: &Shared) -> Result<(http2::SendRequest<Requests>, Driver), String> {
    let socket = TcpStream::connect(shared.endpoint.authority()).await.map_err(|error| error.to_string())?;
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let handshake = builder.handshake(TokioIo::new(socket)).await;
    let (requests, connection) = handshake.map_err(|error| describe(&error))?;
    Ok((requests, Driver(tokio::spawn(connection))))
}

fn pipeline(shared: &Shared, body: Requests) -> Result<Request<Requests>, http::Error> {
    let mut request = Request::post(format!("{}{METHOD}", shared.endpoint))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers");
    if shared.asks_for_redirects {
        request = request.header(REDIRECT, "1");
    }
    request.body(body)
}

/// Hands all answers on; returns at their end.
async fn read(shared: &Shared, response: Response<Incoming>) -> End {
    let (head, mut body) = response.into_parts();
    if head.status != StatusCode::OK {
        return End::broken(format!("HTTP status {}; is this a keevee node?", head.status.as_u16()));
    }
    if head.headers.contains_key("grpc-status") {
        return End::by_node(&head.headers);
    }
    let mut reader = Reader::default();
    loop {
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return End::broken(describe(&error)),
            None => return End::broken("the stream ended"),
        };
        match frame.into_data() {
            Ok(data) => reader.push(data),
            Err(frame) => return End::by_node(frame.trailers_ref().unwrap_or(&HeaderMap::new())),
        }
        loop {
            match reader.next() {
                Ok(Some(message)) => match kv::Response::decode(message) {
                    Ok(response) => shared.answered(response),
                    Err(error) => return End::broken(format!("an answer can't be decoded: {error}")),
                },
                Ok(None) => break,
                Err(unreadable) => return End::broken(unreadable.to_string()),
            }
        }
    }
}

/// The requests of a link as the body of its call.
struct Requests {
    shared: Arc<Shared>,
    stream: u64,
}

impl Body for Requests {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(batch) = ready!(self.shared.poll_take(self.stream, context)) else {
            return Poll::Ready(None);
        };
        let mut buffer = BytesMut::new();
        for request in &batch {
            frames::write(request, &mut buffer);
        }
        Poll::Ready(Some(Ok(Frame::data(buffer.freeze()))))
    }
}
