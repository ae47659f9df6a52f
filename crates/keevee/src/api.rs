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
        self.ask("GET", path, "").await
    }

    /// What comes of this body. It is sent on to another node only while it is sure that nothing has happened.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &str) -> Result<T, Failure> {
        self.ask("POST", path, body).await
    }

    /// Asks one node after the other until one answers for good or the time is up.
    async fn ask<T: DeserializeOwned>(&self, method: &str, path: &str, body: &str) -> Result<T, Failure> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let mut last = (ErrorKind::Unavailable, "unavailable: no node was asked".to_owned());
            for node in self.nodes {
                match ask_one(node, method, path, body, deadline).await {
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

/// One node's answer. `unavailable` means that nothing has happened.
async fn ask_one(
    node: &Endpoint,
    method: &str,
    path: &str,
    body: &str,
    deadline: Instant,
) -> Result<Vec<u8>, (ErrorKind, String)> {
    let unavailable = |why: &str| (ErrorKind::Unavailable, format!("unavailable: {node} {why}"));
    let Ok(Ok(mut wire)) = timeout(CONNECT_PATIENCE, Wire::open(node)).await else {
        return Err(unavailable("can't be reached"));
    };
    let (host, length) = (node.authority(), body.len());
    // A process that stands still takes connections: what it was told to do nobody else could be told.
    let is_alive = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\n\r\n");
    if !matches!(
        timeout_at(deadline.min(Instant::now() + LIFE_PATIENCE), exchange(&mut wire, is_alive.as_bytes()))
            .await,
        Ok(Ok(_))
    ) {
        return Err(unavailable("does not answer"));
    }
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n{body}");
    let changes_nothing = method == "GET";
    let patience = if changes_nothing { deadline.min(Instant::now() + ANSWER_PATIENCE) } else { deadline };
    match timeout_at(patience, exchange(&mut wire, request.as_bytes())).await {
        Ok(Ok(reply)) if matches!(reply.status, 200..300) => Ok(reply.body.to_vec()),
        Ok(Ok(reply)) => Err(problem(reply.status, reply.body)),
        _ if changes_nothing => Err(unavailable("does not answer")),
        _ => Err((ErrorKind::OutcomeUnknown, format!("outcome_unknown: {node} does not answer"))),
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

    #[tokio::test]
    async fn without_a_node_that_answers_it_is_unavailable() {
        let nodes = ["127.0.0.1:1".parse().expect("an endpoint")];
        let api = Api { nodes: &nodes, timeout: Duration::from_millis(300) };
        let failure = api.get::<serde_json::Value>("/v1/cluster/shards").await.unwrap_err();
        assert_eq!(failure.code, 5);
        assert!(failure.to_string().contains("127.0.0.1:1 can't be reached"), "{failure}");
    }
}
