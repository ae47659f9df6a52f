//! What nodes are asked beside keys: the JSON API of shards and placement. Any node answers, so they are asked in turn.
//!
//! Keys, with retries and request ids, are [`keevee_client`]'s.

use std::time::Duration;

use keevee_client::{Endpoint, ErrorKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::failure::Failure;
use crate::load::http::exchange;
use crate::load::wire::Wire;

/// How long connecting to one node may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// How long one node may take to show that it is there.
const LIFE_PATIENCE: Duration = Duration::from_secs(1);
/// How long one node may take to answer a question before the next is asked.
const ANSWER_PATIENCE: Duration = Duration::from_secs(4);

/// Before all nodes are asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// The nodes to ask, and how long all of them together may take.
pub(crate) struct Api<'a> {
    pub(crate) nodes: &'a [Endpoint],
    pub(crate) timeout: Duration,
}

/// Why a node did not do it.
#[derive(Deserialize)]
struct Problem {
    kind: String,
    detail: String,
}

impl Api<'_> {
    /// What a path says.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(&Request { method: "GET", path, body: "", changes: false }).await
    }

    /// What would come of this body, which says that nothing is to be changed.
    pub(crate) async fn post_in_vain<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &str,
    ) -> Result<T, Failure> {
        self.ask(&Request { method: "POST", path, body, changes: false }).await
    }

    /// What comes of this body. It is sent on to another node only while it is sure that nothing has happened.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &str) -> Result<T, Failure> {
        self.ask(&Request { method: "POST", path, body, changes: true }).await
    }

    /// Asks one node after the other until one answers for good or the time is up.
    async fn ask<T: DeserializeOwned>(&self, request: &Request<'_>) -> Result<T, Failure> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let mut last = (ErrorKind::Unavailable, "unavailable: no node was asked".to_owned());
            for node in self.nodes {
                match ask_one(node, request, deadline).await {
                    Ok(answer) => return read(&answer),
                    Err(refusal) => last = refusal,
                }
                if last.0 != ErrorKind::Unavailable || Instant::now() >= deadline {
                    break;
                }
            }
            let (kind, message) = last;
            if kind != ErrorKind::Unavailable || Instant::now() + PAUSE >= deadline {
                return Err(Failure::of_kind(kind, message));
            }
            sleep(PAUSE).await;
        }
    }
}

struct Request<'a> {
    method: &'static str,
    path: &'a str,
    body: &'a str,
    /// True unless it is a question, which can be asked again whatever became of it.
    changes: bool,
}

/// One node's answer. `unavailable` means that nothing has happened.
async fn ask_one(
    node: &Endpoint,
    request: &Request<'_>,
    deadline: Instant,
) -> Result<Vec<u8>, (ErrorKind, String)> {
    let unavailable = |why: &str| (ErrorKind::Unavailable, format!("unavailable: {node} {why}"));
    // A process that stands still takes connections, and one that is full or ends closes them: what it was told to do nobody
    // else could be told.
    see_alive(node, deadline).await.map_err(unavailable)?;
    let mut wire = open(node).await.map_err(unavailable)?;
    let Request { method, path, body, changes } = request;
    let (host, length) = (node.authority(), body.len());
    let text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n{body}");
    let patience = if *changes { deadline } else { deadline.min(Instant::now() + ANSWER_PATIENCE) };
    match timeout_at(patience, exchange(&mut wire, text.as_bytes())).await {
        Ok(Ok(reply)) if matches!(reply.status, 200..300) => Ok(reply.body.to_vec()),
        Ok(Ok(reply)) => Err(problem(reply.status, reply.body)),
        _ if *changes => Err((ErrorKind::OutcomeUnknown, format!("outcome_unknown: {node} does not answer"))),
        _ => Err(unavailable("does not answer")),
    }
}

async fn open(node: &Endpoint) -> Result<Wire, &'static str> {
    let opened = timeout(CONNECT_PATIENCE, Wire::open(node)).await;
    opened.ok().and_then(Result::ok).ok_or("can't be reached")
}

/// On a connection of its own: whoever answers may close it.
async fn see_alive(node: &Endpoint, deadline: Instant) -> Result<(), &'static str> {
    let mut wire = open(node).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {}\r\n\r\n", node.authority());
    let asked = exchange(&mut wire, request.as_bytes());
    match timeout_at(deadline.min(Instant::now() + LIFE_PATIENCE), asked).await {
        Ok(Ok(reply)) if reply.status == 200 => Ok(()),
        Ok(Ok(_)) => Err("takes no requests now"),
        _ => Err("does not answer"),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::other(format!("the answer can't be read: {error}; is this a keevee node?")))
}

fn problem(status: u16, body: &[u8]) -> (ErrorKind, String) {
    let known = serde_json::from_slice::<Problem>(body).ok();
    let known = known.and_then(|problem| Some((ErrorKind::from_name(&problem.kind)?, problem.detail)));
    match known {
        Some((kind, detail)) => (kind, format!("{}: {detail}", kind.name())),
        None => (ErrorKind::Invalid, format!("an answer that is not keevee's: HTTP status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn problems_carry_their_kind() {
        let body = br#"{"kind":"invalid","detail":"there are 3","status":400}"#;
        assert_eq!(problem(400, body), (ErrorKind::Invalid, "invalid: there are 3".to_owned()));
        let (_, message) = problem(502, b"<html>");
        assert!(message.contains("502"), "{message}");
    }

    #[tokio::test]
    async fn a_node_that_takes_connections_and_does_not_answer_is_told_nothing() {
        let hung = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let nodes = [hung.local_addr().expect("bound").to_string().parse().expect("an endpoint")];
        let api = Api { nodes: &nodes, timeout: Duration::from_millis(300) };
        let failure = api.post::<serde_json::Value>("/v1/cluster/shards", "{}").await.unwrap_err();
        assert_eq!(failure.code, 5, "{failure}");
    }

    /// A node that says this to each request, and closes.
    async fn says(status: &'static str, body: &'static str) -> Endpoint {
        let node = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = node.local_addr().expect("bound").to_string();
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = node.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address.parse().expect("an endpoint")
    }

    #[tokio::test]
    async fn a_node_that_closes_each_connection_is_asked_on_another_one() {
        let nodes = [says("200 OK", "7").await];
        let api = Api { nodes: &nodes, timeout: Duration::from_secs(60) };
        assert_eq!(api.post::<u64>("/v1/cluster/shards", "{}").await.expect("an answer"), 7);
        assert_eq!(api.get::<u64>("/v1/cluster/shards").await.expect("an answer"), 7);
    }

    #[tokio::test]
    async fn a_node_that_takes_no_requests_is_told_nothing_and_the_next_one_is() {
        let nodes = [says("503 Service Unavailable", "{}").await, says("200 OK", "7").await];
        let api = Api { nodes: &nodes, timeout: Duration::from_secs(60) };
        assert_eq!(api.post::<u64>("/v1/cluster/shards", "{}").await.expect("an answer"), 7);
    }

    #[tokio::test]
    async fn a_question_is_asked_again_whatever_became_of_it() {
        // It shows that it is there, and then closes without an answer.
        let ends = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let first = ends.local_addr().expect("bound").to_string().parse().expect("an endpoint");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = ends.accept().await {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap_or_default();
                if request[..read].starts_with(b"GET /healthz") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        });
        let nodes = [first, says("200 OK", "7").await];
        let api = Api { nodes: &nodes, timeout: Duration::from_secs(60) };
        assert_eq!(api.post_in_vain::<u64>("/v1/cluster/nodes/2/drain", "{}").await.expect("an answer"), 7);
        let failure = api.post::<u64>("/v1/cluster/nodes/2/drain", "{}").await.unwrap_err();
        assert_eq!(failure.code, 6, "{failure}");
    }

    #[tokio::test]
    async fn without_a_node_that_answers_it_is_unavailable() {
        let nodes = ["127.0.0.1:1".parse().expect("an endpoint")];
        let api = Api { nodes: &nodes, timeout: Duration::from_millis(300) };
        let failure = api.get::<serde_json::Value>("/v1/cluster/shards").await.unwrap_err();
        assert_eq!(failure.code, 5);
        assert!(failure.to_string().contains("127.0.0.1:1 can't be reached"), "{failure}");
    }
}
