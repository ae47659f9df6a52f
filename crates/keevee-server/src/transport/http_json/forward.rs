//! Hands commands to another node: a request on one of a few connections, and its answer.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::posts::{self, Requests};
use super::server;
use crate::http::body;
use crate::transport::identity::PeerConfig;
use crate::transport::lane::Lane;
use crate::transport::links::{Failure, Link, Protocol};
use crate::transport::listener::{Caller, Inbound};
use crate::transport::remote::Remote;
use crate::transport::wire::{self, FORWARD_PATH};
use crate::transport::{BoxFuture, Forward, ForwardReply};

/// More idle connections than this are not kept for one peer.
const IDLE_MAX: usize = 64;

/// The connections for forwards to one peer.
pub(in crate::transport) struct Pool {
    remote: Arc<Remote>,
    /// The last used is used first: the others may be left idle.
    idle: Mutex<Vec<Requests>>,
    body_bytes_max: usize,
}

impl Protocol for Pool {
    fn new(remote: &Arc<Remote>, config: &PeerConfig) -> Pool {
        Pool { remote: remote.clone(), idle: Mutex::default(), body_bytes_max: config.body_bytes_max }
    }

    fn connections(link: &Link<Pool>, inbound: &Inbound) -> Vec<BoxFuture<()>> {
        let run = |lane: &Arc<Lane>| posts::run(lane.clone(), link.remote.clone(), inbound.handler.clone());
        vec![Box::pin(run(&link.lanes.control)), Box::pin(run(&link.lanes.log))]
    }

    async fn serve(stream: TcpStream, caller: Caller, inbound: Arc<Inbound>) {
        server::serve(stream, caller, inbound).await;
    }

    async fn forward(&self, forward: Forward) -> Result<Vec<ForwardReply>, Failure> {
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
        match status {
            StatusCode::OK => wire::read_replies(&body).map_err(|error| Failure::NoAnswer(error.to_string())),
            // A peer refuses before it looks at any command.
            refused if refused.is_client_error() => {
                let detail = String::from_utf8_lossy(&body);
                Err(Failure::NotSent(format!("refused with status {refused}: {detail}")))
            }
            other => Err(Failure::NoAnswer(format!("status {other}"))),
        }
    }

    /// Forwards under way end with their connections.
    fn end(&self, _cause: &str) {
        self.lock().clear();
    }
}

impl Pool {
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
