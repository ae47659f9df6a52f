//! One keep-alive connection to one node: one request at a time, no retries.
//!
//! Programs that measure use it, since every answer belongs to exactly one request here. [`crate::Client`] asks
//! by it what is not keys and values: the shard map, and how nodes are.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use keevee_core::error::ErrorKind;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::answer::{Answer, Error, Value};
use crate::endpoint::Endpoint;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It never left: nothing happened.
    #[error("{endpoint} can't be reached: {cause}")]
    NotSent {
        /// The node meant.
        endpoint: Endpoint,
        /// What the connection said.
        cause: String,
    },
    /// It may have left, and no answer came: what it asked for may happen.
    #[error("{endpoint} did not answer: {cause}")]
    NoAnswer {
        /// The node meant.
        endpoint: Endpoint,
        /// What the connection said.
        cause: String,
    },
}

impl From<SendError> for Error {
    fn from(error: SendError) -> Error {
        let kind = match error {
            SendError::NotSent { .. } => ErrorKind::Unavailable,
            SendError::NoAnswer { .. } => ErrorKind::OutcomeUnknown,
        };
        Error::new(kind, error.to_string())
    }
}

/// An open connection to one node.
#[derive(Debug)]
pub struct Connection {
    endpoint: Endpoint,
    host: HeaderValue,
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects, giving up after `patience`.
    pub async fn open(endpoint: &Endpoint, patience: Duration) -> Result<Connection, SendError> {
        let not_sent = |cause: String| SendError::NotSent { endpoint: endpoint.clone(), cause };
        let stream = timeout(patience, TcpStream::connect(endpoint.authority()))
            .await
            .map_err(|_| not_sent(format!("no connection within {patience:?}")))?
            .map_err(|error| not_sent(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| not_sent(error.to_string()))?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| not_sent(error.to_string()))?;
        let host =
            HeaderValue::from_str(endpoint.authority()).map_err(|error| not_sent(error.to_string()))?;
        // Its errors reach the request under way, or `is_open`.
        tokio::spawn(driver);
        Ok(Connection { endpoint: endpoint.clone(), host, sender })
    }

    /// False once the connection is known to be of no further use.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// The node at the other end.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sets a key, without a request id: returns its new version.
    pub async fn put(&mut self, key: &[u8], value: Bytes) -> Result<u64, Error> {
        let request = request(Method::PUT, key_path(key), value);
        self.send(request).await?.success()?.version()
    }

    /// Reads a key, linearizably.
    pub async fn get(&mut self, key: &[u8]) -> Result<Option<Value>, Error> {
        let answer = self.send(request(Method::GET, key_path(key), Bytes::new())).await?;
        value_or_absent(answer.success().and_then(Answer::into_value))
    }

    /// Gets a path: the HTTP status and the body, whatever they are.
    pub async fn ask(&mut self, path: &str) -> Result<(u16, Bytes), SendError> {
        let answer = self.send(request(Method::GET, path.to_owned(), Bytes::new())).await?;
        Ok((answer.status.as_u16(), answer.body))
    }

    /// Posts nothing to a path: the HTTP status, and the body of the answer as it comes.
    pub async fn post(&mut self, path: &str) -> Result<(u16, AnswerBody), SendError> {
        let response = self.begin(request(Method::POST, path.to_owned(), Bytes::new())).await?;
        let (head, body) = response.into_parts();
        Ok((head.status.as_u16(), AnswerBody { endpoint: self.endpoint.clone(), body }))
    }

    /// Sends a request made by [`request`] and waits for the whole answer, however long that takes.
    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, SendError> {
        let (head, body) = self.begin(request).await?.into_parts();
        let collected = body.collect().await;
        let body = collected.map_err(|error| no_answer(&self.endpoint, &error))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Sends a request and waits for the head of the answer.
    async fn begin(&mut self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, SendError> {
        request.headers_mut().insert(HOST, self.host.clone());
        let not_sent = |error: &hyper::Error| SendError::NotSent {
            endpoint: self.endpoint.clone(),
            cause: describe(error),
        };
        self.sender.ready().await.map_err(|error| not_sent(&error))?;
        self.sender.try_send_request(request).await.map_err(|mut error| {
            // The request comes back only if none of it was written.
            let came_back = error.take_message().is_some();
            if came_back { not_sent(error.error()) } else { no_answer(&self.endpoint, error.error()) }
        })
    }
}

/// The body of an answer, as it comes.
#[derive(Debug)]
pub struct AnswerBody {
    endpoint: Endpoint,
    body: Incoming,
}

impl AnswerBody {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SendError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(no_answer(&self.endpoint, &error)),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

fn no_answer(endpoint: &Endpoint, error: &hyper::Error) -> SendError {
    SendError::NoAnswer { endpoint: endpoint.clone(), cause: describe(error) }
}

/// Asks a node once, over a connection of its own.
pub(crate) async fn get_once(
    endpoint: &Endpoint,
    path: &str,
    connect_timeout: Duration,
    patience: Duration,
) -> Result<Answer, SendError> {
    let mut connection = Connection::open(endpoint, connect_timeout).await?;
    let sent = timeout(patience, connection.send(request(Method::GET, path.to_owned(), Bytes::new())));
    let too_slow = |_| SendError::NoAnswer { endpoint: endpoint.clone(), cause: "too slow".to_owned() };
    sent.await.map_err(too_slow)?
}

/// The error with what caused it: hyper's own text alone says little.
pub(crate) fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A request to be completed by [`Connection::send`].
pub(crate) fn request(method: Method, path: String, body: Bytes) -> Request<Full<Bytes>> {
    let length = body.len();
    let has_body = method == Method::PUT;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    // `key_path` encodes what a URI may not hold, and other paths are ours.
    *request.uri_mut() = path.parse().unwrap_or_default();
    if has_body {
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    request
}

const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The path of a key, which may be any bytes.
pub(crate) fn key_path(key: &[u8]) -> String {
    format!("/kv/{}", percent_encode(key, RESERVED))
}

/// A key that is not there is no error to who reads it.
pub(crate) fn value_or_absent(result: Result<Value, Error>) -> Result<Option<Value>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_can_be_a_key() {
        assert_eq!(key_path(b"plain-key_1.~"), "/kv/plain-key_1.~");
        assert_eq!(key_path(b"a/b c%\x00\xff"), "/kv/a%2Fb%20c%25%00%FF");
        let every: Vec<u8> = (0..=255).collect();
        let request = request(Method::GET, key_path(&every), Bytes::new());
        assert_ne!(request.uri().path(), "/");
    }
}
