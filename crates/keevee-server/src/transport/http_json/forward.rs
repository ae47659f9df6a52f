//! Hands commands to another node: a request on one of a few connections, and its answer.
//!
//! What the caller must learn is whether the commands may have taken effect: [`ForwardError::NotSent`]
//! only where they never left this node, or were refused as a whole.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus::IntCounter;
use tokio::time::{Instant, timeout_at};

use super::posts::{self, Requests};
use crate::http::body;
use crate::metrics::Metrics;
use crate::transport::remote::Remote;
use crate::transport::wire::{self, FORWARD_PATH};
use crate::transport::{Forward, ForwardError, ForwardReply, ForwardResult};

/// More idle connections than this are not kept for one peer.
const IDLE_MAX: usize = 64;

/// The connections for forwards to one peer.
pub(super) struct Pool {
    remote: Arc<Remote>,
    /// The last used is used first: the others may be left idle.
    idle: Mutex<Vec<Requests>>,
    body_bytes_max: usize,
    ok: IntCounter,
    not_sent: IntCounter,
    no_answer: IntCounter,
}

/// Why there is no answer, before the node's name is added.
enum Failure {
    NotSent(String),
    NoAnswer(String),
}

impl Pool {
    pub(super) fn new(remote: Arc<Remote>, body_bytes_max: usize, metrics: &Metrics) -> Pool {
        let counter = |result| metrics.forwards(remote.peer.id, result);
        Pool {
            ok: counter("ok"),
            not_sent: counter("not_sent"),
            no_answer: counter("no_answer"),
            idle: Mutex::default(),
            body_bytes_max,
            remote,
        }
    }

    /// Hands the commands over and waits for the answers, no longer than the callers' time.
    pub(super) async fn forward(&self, forward: Forward) -> ForwardResult {
        let node = self.remote.peer.id;
        match self.try_forward(forward).await {
            Ok(replies) => {
                self.ok.inc();
                Ok(replies)
            }
            Err(Failure::NotSent(cause)) => {
                self.not_sent.inc();
                Err(ForwardError::NotSent { node, cause })
            }
            Err(Failure::NoAnswer(cause)) => {
                self.no_answer.inc();
                Err(ForwardError::NoAnswer { node, cause })
            }
        }
    }

    /// Closes all idle connections.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    async fn try_forward(&self, forward: Forward) -> Result<Vec<ForwardReply>, Failure> {
        let count = forward.commands.len();
        let deadline = Instant::now() + forward.time_left;
        let body = wire::write_forward(self.remote.envelope.clone(), forward)
            .map_err(|error| Failure::NotSent(error.to_string()))?;
        let (connection, mut response) =
            self.send(posts::request(&self.remote, FORWARD_PATH, body), deadline).await?;
        let status = response.status();
        let body = timeout_at(deadline, body::read(response.body_mut(), self.body_bytes_max)).await;
        let body = body
            .map_err(|_| Failure::NoAnswer("the answer did not end in time".to_owned()))?
            .map_err(|error| Failure::NoAnswer(error.to_string()))?;
        self.give_back(connection);
        let replies = match status {
            StatusCode::OK => {
                wire::read_replies(&body).map_err(|error| Failure::NoAnswer(error.to_string()))?
            }
            // A peer refuses before it looks at any command.
            refused if refused.is_client_error() => {
                let detail = String::from_utf8_lossy(&body);
                return Err(Failure::NotSent(format!("refused with status {refused}: {detail}")));
            }
            other => return Err(Failure::NoAnswer(format!("status {other}"))),
        };
        if replies.len() != count {
            let cause = format!("{} replies to {count} commands", replies.len());
            return Err(Failure::NoAnswer(cause));
        }
        Ok(replies)
    }

    /// Sends on an idle connection, or on a new one where all idle ones turn out to be closed.
    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<(Requests, Response<Incoming>), Failure> {
        let mut unsent = request;
        loop {
            let idle = self.lock().pop();
            let is_new = idle.is_none();
            let mut connection = match idle {
                Some(connection) => connection,
                None => self.connect(deadline).await?,
            };
            let exchange = async {
                // A connection that is no longer ready is told by the attempt itself.
                let _ = connection.ready().await;
                connection.try_send_request(unsent).await
            };
            let mut error = match timeout_at(deadline, exchange).await {
                Ok(Ok(response)) => return Ok((connection, response)),
                Ok(Err(error)) => error,
                Err(_) => return Err(Failure::NoAnswer("no answer in time".to_owned())),
            };
            match error.take_message() {
                Some(request) if !is_new => unsent = request,
                Some(_) => return Err(Failure::NotSent(error.error().to_string())),
                None => return Err(Failure::NoAnswer(error.error().to_string())),
            }
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<Requests, Failure> {
        let (requests, connection) = timeout_at(deadline, posts::connect(&self.remote))
            .await
            .map_err(|_| Failure::NotSent("no connection in time".to_owned()))?
            .map_err(|error| Failure::NotSent(error.to_string()))?;
        // Ends when `requests` is dropped, or the peer closes; either way its user is told.
        tokio::spawn(connection);
        Ok(requests)
    }

    fn give_back(&self, connection: Requests) {
        let mut idle = self.lock();
        if idle.len() < IDLE_MAX && !connection.is_closed() {
            idle.push(connection);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Requests>> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
